//! What a new vCPU's VMCB and processor hold.

use super::events::Nmi;
use super::vcpu::SvmVcpu;
use super::vmcb::{self, SegmentField, Vmcb, misc1, misc2};
use crate::resident::DR6_AT_RESET;
use crate::translation::Translation;
use vm::Gpr;

/// What PAT holds after reset (APM section 7.8.2).
pub(super) const PAT_AT_RESET: u64 = 0x0007_0406_0007_0406;

const CR0_ET: u64 = 1 << 4;
/// CR0.NW and CR0.CD, which INIT keeps.
const CR0_CACHE: u64 = 3 << 29;

/// Exceptions that exit. #UD: VMCALL is a hypercall too. #DB and #AC: delivering one can raise it again for ever, which
/// only an exit ends (CVE-2015-5307, CVE-2015-8104). #MC is the host's.
const INTERCEPTED_EXCEPTIONS: u32 = 1 << 1 | 1 << 6 | 1 << 17 | 1 << 18;

/// After so many PAUSEs the host has a look at its interrupts (KVM lets as many pass): the guest waits for something, and
/// Bochs keeps the host's interrupts back while the guest has its own off.
const PATIENCE: u16 = 3000;

/// What exits, of every guest alike. The rest depends on who translates its addresses.
pub(super) fn write_controls(vmcb: &mut Vmcb, pause_filter: bool) {
    let control = &mut vmcb.control;
    control.intercept_cr = vmcb::INTERCEPT_CR8;
    control.intercept_exceptions = INTERCEPTED_EXCEPTIONS;
    control.intercept_misc1 = misc1::INTR
        | misc1::NMI
        | misc1::SMI
        | misc1::INIT
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
        | misc2::XSETBV;
    if pause_filter {
        control.intercept_misc1 |= misc1::PAUSE;
        control.pause_filter_count = PATIENCE;
    }
}

impl<T: Translation> SvmVcpu<T> {
    /// What INIT leaves, but for the segments (APM table 14-1).
    pub(super) fn write_init(&mut self) {
        self.registers.gprs = [0; 16];
        let control = &mut self.vmcb.control;
        control.event_injection = 0;
        control.withdraw();
        control.interrupt_state = 0;
        control.intercept_misc1 &= !misc1::IRET;
        self.nmi = Nmi::None;
        let save = &mut self.vmcb.save;
        save.cpl = 0;
        save.cr0 = save.cr0 & CR0_CACHE | CR0_ET;
        [save.cr2, save.cr3, save.cr4] = [0; 3];
        save.dr6 = DR6_AT_RESET;
        save.dr7 = 0x400;
        save.debug_control = 0;
        save.rflags = 2;
        [save.rax, save.rsp] = [0; 2];
        self.load_efer(0);
    }

    /// Flat 32-bit protected mode, as a multiboot loader leaves it.
    pub(super) fn start_protected(&mut self, eip: u32, eax: u32, ebx: u32) {
        // Attributes: G, D/B, P, S and the type of APM table 4-5 (accessed).
        let data = SegmentField { selector: 0x10, attributes: 0xc93, limit: u32::MAX, base: 0 };
        let code = SegmentField { selector: 0x08, attributes: 0xc9b, ..data };
        self.set_segments(code, data);
        let save = &mut self.vmcb.save;
        save.cr0 |= 1; // PE
        save.rip = u64::from(eip);
        save.rax = u64::from(eax);
        self.registers.gprs[Gpr::RBX.index()] = u64::from(ebx);
    }

    /// Real mode, at the start of a page.
    pub(super) fn start_real(&mut self, page: u8) {
        let data = SegmentField { selector: 0, attributes: 0x93, limit: 0xffff, base: 0 };
        let (selector, base) = (u16::from(page) << 8, u64::from(page) << 12);
        self.set_segments(SegmentField { selector, attributes: 0x9b, base, ..data }, data);
        self.vmcb.save.rip = 0;
        self.registers.gprs[Gpr::RDX.index()] = raw_cpuid::cpuid!(1).eax.into();
    }

    fn set_segments(&mut self, code: SegmentField, data: SegmentField) {
        let save = &mut self.vmcb.save;
        save.cs = code;
        [save.ds, save.es, save.ss, save.fs, save.gs] = [data; 5];
        let table = SegmentField { selector: 0, attributes: 0, limit: 0xffff, base: 0 };
        [save.gdtr, save.idtr] = [table; 2];
        save.tr = SegmentField { attributes: 0x8b, ..table };
        save.ldtr = SegmentField { attributes: 0x82, ..table };
    }
}
