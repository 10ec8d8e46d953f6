//! What a vCPU looked like when its guest had to end, for people.

use super::vcpu::SvmVcpu;
use crate::translation::Translation;
use core::fmt;
use vm::{ControlRegisters, Vcpu};

pub(super) fn write<T: Translation>(vcpu: &SvmVcpu<T>, out: &mut dyn fmt::Write) -> fmt::Result {
    let (control, save) = (&vcpu.vmcb.control, &vcpu.vmcb.save);
    writeln!(
        out,
        "exit code {:#x} info1 {:#x} info2 {:#x} interrupted {:#x} shadow {:#x}",
        control.exit_code, control.exit_info1, control.exit_info2, control.exit_interrupt_info, control.interrupt_state
    )?;
    writeln!(out, "rip {:016x} cs {:04x} rflags {:08x} cpl {}", save.rip, save.cs.selector, save.rflags, save.cpl)?;
    let ControlRegisters { cr0, cr3, cr4, efer, .. } = vcpu.control();
    writeln!(out, "cr0 {cr0:08x} cr2 {:016x} cr3 {cr3:016x} cr4 {cr4:08x}", save.cr2)?;
    writeln!(out, "efer {efer:04x} dr6 {:08x} dr7 {:08x} pat {:016x}", save.dr6, save.dr7, save.pat)?;
    if let Some(shadow) = vcpu.translation.shadow() {
        writeln!(out, "shadow at {} by cr0 {:08x} cr4 {:08x} efer {:04x}", shadow.root, save.cr0, save.cr4, save.efer)?;
    }
    crate::dump::general_registers(vcpu, out)
}
