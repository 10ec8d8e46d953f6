//! EFER.LME, which some hosts must not have while the guest's paging is off.
//!
//! At an exit QEMU (as of 7.2, `do_vmexit`) loads the host's CR0 while EFER and CR4 are still the guest's. With EFER.LME set and
//! CR4.PAE clear it then refuses to turn paging on, and the hypervisor runs on at physical addresses: any guest could take the
//! machine down by two register writes. There LME is held back while the guest's CR0.PG is clear, and writes of CR0 exit while
//! the guest has LME set. Only those that change more than TS and MP do (APM section 15.9: CR0_SEL_WRITE).

use super::vcpu::SvmVcpu;
use super::vmcb::misc1;
use crate::translation::Translation;
use arch::{CR0_PG, EFER_LMA, EFER_LME, EFER_SVME};
use vm::Vcpu;

impl<T: Translation> SvmVcpu<T> {
    /// The guest's EFER is `efer` from now on, but for SVME, which the processor wants.
    pub(super) fn load_efer(&mut self, efer: u64) {
        self.vmcb.save.efer = efer | EFER_SVME;
        if self.guards_long_mode {
            self.hold_long_mode();
        }
    }

    /// The guest's CR0 is `cr0` from now on. Long mode becomes active, or inactive, with paging (APM section 14.6.1).
    pub(super) fn load_cr0(&mut self, cr0: u64) {
        let save = &mut self.vmcb.save;
        save.cr0 = cr0;
        save.efer |= self.held_lme;
        let is_active = cr0 & CR0_PG != 0 && save.efer & EFER_LME != 0;
        save.efer = save.efer & !EFER_LMA | if is_active { EFER_LMA } else { 0 };
        if self.guards_long_mode {
            self.hold_long_mode();
        }
        self.flush();
    }

    /// The guest's CR4 is `cr4` from now on, with what its change does to translations.
    pub(super) fn load_cr4(&mut self, cr4: u64) {
        if cr4 != self.vmcb.save.cr4 {
            self.vmcb.save.cr4 = cr4;
            self.flush();
        }
    }

    /// Takes LME out of what the processor gets where it must not have it.
    fn hold_long_mode(&mut self) {
        let save = &mut self.vmcb.save;
        let lme = save.efer & EFER_LME;
        self.held_lme = if save.cr0 & CR0_PG == 0 { lme } else { 0 };
        save.efer &= !self.held_lme;
        let intercepts = &mut self.vmcb.control.intercept_misc1;
        *intercepts = *intercepts & !misc1::CR0_SELECTIVE | if lme != 0 { misc1::CR0_SELECTIVE } else { 0 };
    }
}
