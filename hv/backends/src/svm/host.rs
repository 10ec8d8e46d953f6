//! The host's state that VMRUN and exits leave alone: FS, GS, TR, LDTR and the MSRs of system calls (APM section 15.5.2).

use super::vcpu::SvmVcpu;
use crate::translation::Translation;
use core::arch::asm;

impl<T: Translation> SvmVcpu<T> {
    /// Loads the guest's part of what VMRUN leaves alone; from here on interrupts wait (GIF is 0) but in the guest.
    #[cold]
    pub(super) fn load_guest(&mut self) {
        // SAFETY: SVM is on while a vCPU exists; with GIF = 0 nothing can use the host's TR until `put_guest`. IF is set
        // so that the host's interrupts make the guest exit (V_INTR_MASKING).
        unsafe {
            asm!("clgi", "sti", options(nostack));
        }
        // SAFETY: both are VMCBs of this vCPU; what VMSAVE and VMLOAD move is not used by the hypervisor meanwhile.
        unsafe {
            asm!("vmsave rax", in("rax") self.host.address().raw(), options(nostack));
        }
        // SAFETY: as above.
        unsafe {
            asm!("vmload rax", in("rax") self.vmcb.address().raw(), options(nostack));
        }
        self.guest_loaded = true;
    }

    /// Has the VMCB hold what the processor has of the guest in the host's place.
    #[cold]
    pub(super) fn save_guest(&mut self) {
        if self.guest_loaded {
            self.save();
        }
    }

    fn save(&mut self) {
        // SAFETY: as in `load_guest`.
        unsafe {
            asm!("vmsave rax", in("rax") self.vmcb.address().raw(), options(nostack));
        }
    }

    /// The host's part again; its interrupts are taken as soon as GIF is 1, before this returns.
    #[cold]
    pub(super) fn put_guest(&mut self) {
        if !core::mem::take(&mut self.guest_loaded) {
            return;
        }
        self.forget_step();
        self.save();
        // SAFETY: as in `load_guest`: brings back what was saved there.
        unsafe {
            asm!("vmload rax", in("rax") self.host.address().raw(), options(nostack));
        }
        // SAFETY: the host's tables are loaded again, so its interrupts can be served.
        unsafe {
            asm!("stgi", "nop", "cli");
        }
    }
}
