//! What a vCPU looked like when its guest had to end, for people.

use super::failure::{EntryFailure, instruction_error};
use super::guest_state::{self, GuestState};
use super::switch::ENTRY_REFUSED;
use super::vcpu::VmxVcpu;
use super::{reason, vmcs::Vmcs};
use crate::translation::Translation;
use crate::unswitched::dr6;
use core::fmt;
use vm::{Registers, Vcpu};
use x86::controlregs::cr2;
use x86::vmx::vmcs::control::{self, EntryControls};
use x86::vmx::vmcs::{guest, ro};

pub(super) fn write<T: Translation>(vcpu: &VmxVcpu<T>, out: &mut dyn fmt::Write) -> fmt::Result {
    let vmcs = &vcpu.vmcs;
    if vcpu.reason == ENTRY_REFUSED {
        let number = vmcs.read(ro::VM_INSTRUCTION_ERROR) as u32;
        writeln!(out, "entry refused: error {number}, {}", instruction_error(number))?;
    } else if vcpu.reason & reason::ENTRY_FAILED != 0 {
        writeln!(out, "{}", EntryFailure(vcpu.reason as u16))?;
        match guest_state::check(&snapshot(vcpu)) {
            Err(rule) => writeln!(out, "broken rule: {rule}")?,
            Ok(()) => writeln!(out, "broken rule: none of those known here")?,
        }
    }
    if vcpu.is_real() {
        writeln!(out, "in real mode, which is emulated: there is no unrestricted guest here")?;
    }
    writeln!(
        out,
        "exit reason {:#x} qualification {:#x} physical {:#x} linear {:#x} length {}",
        vcpu.reason,
        vmcs.read(ro::EXIT_QUALIFICATION),
        vmcs.read(ro::GUEST_PHYSICAL_ADDR_FULL),
        vmcs.read(ro::GUEST_LINEAR_ADDR),
        vmcs.read(ro::VMEXIT_INSTRUCTION_LEN)
    )?;
    writeln!(
        out,
        "event {:#x} error {:#x} interrupted {:#x} injected {:#x} shadow {:#x}",
        vmcs.read(ro::VMEXIT_INTERRUPTION_INFO),
        vmcs.read(ro::VMEXIT_INTERRUPTION_ERR_CODE),
        vmcs.read(ro::IDT_VECTORING_INFO),
        vmcs.read(control::VMENTRY_INTERRUPTION_INFO_FIELD),
        vmcs.read(guest::INTERRUPTIBILITY_STATE)
    )?;
    registers(vcpu, out)
}

fn registers<T: Translation>(vcpu: &VmxVcpu<T>, out: &mut dyn fmt::Write) -> fmt::Result {
    let control = vcpu.control();
    let (cs, rflags) = (vcpu.vmcs.read(guest::CS_SELECTOR), vcpu.rflags());
    writeln!(out, "rip {:016x} cs {cs:04x} rflags {rflags:08x} cpl {}", vcpu.rip(), control.cpl)?;
    // SAFETY: reading has no effect; the guest's is in the processor while the vCPU lives.
    let cr2 = unsafe { cr2() };
    writeln!(out, "cr0 {:08x} cr2 {cr2:016x} cr3 {:016x} cr4 {:08x}", control.cr0, control.cr3, control.cr4)?;
    let dr7 = vcpu.vmcs.read(guest::DR7);
    writeln!(out, "efer {:04x} dr6 {:08x} dr7 {dr7:08x}", control.efer, dr6())?;
    crate::dump::general_registers(vcpu, out)
}

/// What the rules of entries speak of, as the VMCS has it.
fn snapshot<T: Translation>(vcpu: &VmxVcpu<T>) -> GuestState {
    let vmcs = &vcpu.vmcs;
    let entry = vmcs.read(control::VMENTRY_CONTROLS) as u32;
    let [es, cs, ss, ds, fs, gs, ldtr, tr] = core::array::from_fn(|number| segment(vmcs, number as u32));
    GuestState {
        cr0: vmcs.read(guest::CR0),
        cr3: vmcs.read(guest::CR3),
        cr4: vmcs.read(guest::CR4),
        dr7: vmcs.read(guest::DR7),
        debug_control: vmcs.read(guest::IA32_DEBUGCTL_FULL),
        efer: if vcpu.capabilities.features.efer { vmcs.read(guest::IA32_EFER_FULL) } else { 0 },
        pat: if vcpu.capabilities.features.pat { vmcs.read(guest::IA32_PAT_FULL) } else { 0 },
        sysenter_esp: vmcs.read(guest::IA32_SYSENTER_ESP),
        sysenter_eip: vmcs.read(guest::IA32_SYSENTER_EIP),
        cs,
        ss,
        ds,
        es,
        fs,
        gs,
        ldtr,
        tr,
        gdtr_base: vmcs.read(guest::GDTR_BASE),
        gdtr_limit: vmcs.read(guest::GDTR_LIMIT),
        idtr_base: vmcs.read(guest::IDTR_BASE),
        idtr_limit: vmcs.read(guest::IDTR_LIMIT),
        rip: vmcs.read(guest::RIP),
        rflags: vmcs.read(guest::RFLAGS),
        activity: vmcs.read(guest::ACTIVITY_STATE),
        interruptibility: vmcs.read(guest::INTERRUPTIBILITY_STATE),
        pending_debug: vmcs.read(guest::PENDING_DBG_EXCEPTIONS),
        link_pointer: vmcs.read(guest::LINK_PTR_FULL),
        pdptes: core::array::from_fn(|number| vmcs.read(guest::PDPTE0_FULL + 2 * number as u32)),
        event: vmcs.read(control::VMENTRY_INTERRUPTION_INFO_FIELD),
        long_mode: entry & EntryControls::IA32E_MODE_GUEST.bits() != 0,
        loads_pat: entry & EntryControls::LOAD_IA32_PAT.bits() != 0,
        unrestricted: vcpu.capabilities.features.unrestricted_guest,
        cr0_fixed: (vcpu.capabilities.cr0_ones, vcpu.capabilities.cr0_allowed),
        cr4_fixed: (vcpu.capabilities.cr4_ones, vcpu.capabilities.cr4_allowed),
        physical_bits: vcpu.physical_bits.into(),
    }
}

/// A segment register by its number: the fields are in the order of encodings, with LDTR and TR behind GS.
fn segment(vmcs: &Vmcs, number: u32) -> guest_state::Segment {
    guest_state::Segment {
        selector: vmcs.read(guest::ES_SELECTOR + 2 * number),
        base: vmcs.read(guest::ES_BASE + 2 * number),
        limit: vmcs.read(guest::ES_LIMIT + 2 * number),
        access_rights: vmcs.read(guest::ES_ACCESS_RIGHTS + 2 * number),
    }
}
