//! The contents of a vCPU's VMCB when it is created, after INIT, and where it starts.

use super::backend::Svm;
use super::events::Nmi;
use super::vcpu::SvmVcpu;
use super::vmcb::{self, SegmentField, Vmcb, misc1, misc2};
use crate::INTERCEPTED_EXCEPTIONS;
use crate::translation::Translation;
use arch::entry::{Controls, Entry, Mode, TSS_LIMIT};
use arch::segment::FlatSegment;
use arch::{CR0_CD, CR0_ET, CR0_NW, reset, segment};
use vm::{DebugRegisters, Gpr};

/// How many PAUSEs the guest executes before one exits (KVM's `pause_filter_count`). The exit lets the host serve its
/// interrupts: Bochs takes none of them while the guest has its own off, and a guest that spins on a lock may do so for long.
const PAUSES_BEFORE_EXIT: u16 = 3000;

/// Sets the intercepts that nested and shadow paging share.
pub(super) fn write_controls(vmcb: &mut Vmcb, svm: &Svm) {
    let control = &mut vmcb.control;
    control.intercept_dr = if svm.withholds_breakpoints { vmcb::INTERCEPT_BREAKPOINTS } else { 0 };
    control.intercept_exceptions = INTERCEPTED_EXCEPTIONS;
    control.intercept_misc1 = misc1::INTR
        | misc1::NMI
        | misc1::SMI
        | misc1::INIT
        | misc1::RDPMC
        | misc1::CPUID
        | misc1::INVD
        | misc1::HLT
        | misc1::INVLPGA
        | misc1::IOIO
        | misc1::MSR
        | misc1::SHUTDOWN;
    control.intercept_misc2 = misc2::VMRUN
        | misc2::VMMCALL
        | misc2::VMLOAD
        | misc2::VMSAVE
        | misc2::STGI
        | misc2::CLGI
        | misc2::SKINIT
        | misc2::MONITOR
        | misc2::MWAIT
        | misc2::XSETBV
        | misc2::INT1;
    if svm.pause_filter {
        control.intercept_misc1 |= misc1::PAUSE;
        control.pause_filter_count = PAUSES_BEFORE_EXIT;
    }
}

/// A flat segment as the VMCB has it (APM section 15.5.1): attributes are bits 40 to 47 and 52 to 55 of a descriptor.
fn flat((selector, segment): (u16, FlatSegment)) -> SegmentField {
    let attributes = u16::from(segment.flags) << 8 | u16::from(segment.access);
    SegmentField { selector, attributes, limit: u32::MAX, base: 0 }
}

impl<T: Translation> SvmVcpu<T> {
    /// What RESET does to the registers that INIT keeps.
    pub(super) fn write_power_on(&mut self) {
        self.vmcb.control.tsc_offset = 0;
        let save = &mut self.vmcb.save;
        save.cr0 = 0;
        save.pat = reset::PAT;
        [save.star, save.lstar, save.cstar, save.sfmask, save.kernel_gs_base] = [0; 5];
        [save.sysenter_cs, save.sysenter_esp, save.sysenter_eip] = [0; 3];
    }

    /// What INIT leaves, but for the segments (APM table 14-1).
    pub(super) fn write_init(&mut self) {
        self.registers.gprs = [0; 16];
        let control = &mut self.vmcb.control;
        control.event_injection = 0;
        control.withdraw();
        control.set_cr8(0);
        control.interrupt_state = 0;
        control.intercept_misc1 &= !misc1::IRET;
        self.nmi = Nmi::None;
        self.step = None;
        let save = &mut self.vmcb.save;
        save.cpl = 0;
        save.cr0 = save.cr0 & (CR0_CD | CR0_NW) | CR0_ET;
        [save.cr2, save.cr3, save.cr4] = [0; 3];
        save.dr6 = reset::DR6;
        save.dr7 = reset::DR7;
        save.rflags = reset::RFLAGS;
        [save.rax, save.rsp] = [0; 2];
        self.set_debugctl(0);
        self.load_efer(0);
    }

    /// As a boot protocol enters it.
    pub(super) fn start_boot(&mut self, entry: &Entry) {
        let mode = entry.mode;
        let is_long = matches!(mode, Mode::Long { .. });
        assert!(!is_long || self.translation.shadow().is_none(), "shadow paging has no long mode");
        self.set_segments(flat(mode.code()), flat(mode.data()));
        self.registers.gprs[..8].copy_from_slice(&entry.general_registers());
        let (gdt, limit) = mode.gdtr();
        let Controls { cr0, cr3, cr4, efer } = mode.controls();
        let save = &mut self.vmcb.save;
        save.gdtr = SegmentField { base: gdt.into(), limit: limit.into(), ..save.gdtr };
        save.tr.limit = TSS_LIMIT.into();
        [save.rip, save.rax, save.rsp] = [entry.eip, entry.eax, entry.esp].map(u64::from);
        (save.cr3, save.cr4) = (cr3, cr4);
        let cr0 = save.cr0 | cr0;
        self.load_efer(efer);
        self.load_cr0(cr0);
    }

    /// Real mode, at the start of a page.
    pub(super) fn start_real(&mut self, page: u8) {
        let data = SegmentField { selector: 0, attributes: segment::DATA.into(), limit: reset::LIMIT.into(), base: 0 };
        let (selector, base) = (u16::from(page) << 8, u64::from(page) << 12);
        self.set_segments(SegmentField { selector, attributes: segment::CODE.into(), base, ..data }, data);
        self.vmcb.save.rip = 0;
        self.registers.gprs[Gpr::RDX.index()] = raw_cpuid::cpuid!(1).eax.into();
    }

    fn set_segments(&mut self, code: SegmentField, data: SegmentField) {
        let save = &mut self.vmcb.save;
        save.cs = code;
        [save.ds, save.es, save.ss, save.fs, save.gs] = [data; 5];
        let table = SegmentField { selector: 0, attributes: 0, limit: reset::LIMIT.into(), base: 0 };
        [save.gdtr, save.idtr] = [table; 2];
        save.tr = SegmentField { attributes: segment::BUSY_TSS.into(), ..table };
        save.ldtr = SegmentField { attributes: segment::LDT.into(), ..table };
    }
}
