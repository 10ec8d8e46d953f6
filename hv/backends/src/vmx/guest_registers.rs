//! The guest's control registers and EFER as the guest knows them. The VMCS has others in their place while the guest's tables
//! have a shadow, and while an unpaged guest runs on the identity map.

use super::vcpu::VmxVcpu;
use crate::translation::Translation;
use arch::EFER_LME;
use vm::Vcpu;
use walk::Controls;
use x86::vmx::vmcs::{control, guest};

impl<T: Translation> VmxVcpu<T> {
    /// The registers of a guest under shadow paging; the VMCS holds those of the shadow.
    #[inline]
    fn own_controls(&self) -> Option<&Controls> {
        self.translation.shadow().map(|shadow| &shadow.own.paging().controls)
    }

    /// Changes them, if it is such a guest; it is not paged.
    pub(super) fn change_own_controls(&mut self, change: impl FnOnce(&mut Controls)) -> bool {
        let Some(shadow) = self.translation.shadow_mut() else { return false };
        shadow.own.write_unpaged(change);
        self.apply_paging(None);
        true
    }

    #[inline]
    pub(super) fn guest_cr0(&self) -> u64 {
        if let Some(own) = self.own_controls() {
            return own.cr0;
        }
        self.cr0.guest(self.vmcs.read(guest::CR0), self.vmcs.read(control::CR0_READ_SHADOW))
    }

    #[inline]
    pub(super) fn guest_cr3(&self) -> u64 {
        if let Some(own) = self.own_controls() {
            return own.cr3;
        }
        match self.unpaged {
            Some(unpaged) => unpaged.cr3,
            None => self.vmcs.read(guest::CR3),
        }
    }

    #[inline]
    pub(super) fn guest_cr4(&self) -> u64 {
        if let Some(own) = self.own_controls() {
            return own.cr4;
        }
        self.cr4.guest(self.vmcs.read(guest::CR4), self.vmcs.read(control::CR4_READ_SHADOW))
    }

    #[inline]
    pub(super) fn efer(&self) -> u64 {
        if let Some(own) = self.own_controls() {
            return own.efer;
        }
        match self.unpaged {
            Some(unpaged) => unpaged.efer,
            None => self.vmcs.read(guest::IA32_EFER_FULL),
        }
    }

    pub(super) fn set_efer(&mut self, value: u64) {
        match &mut self.unpaged {
            Some(unpaged) => {
                unpaged.efer = value;
                self.vmcs.write(guest::IA32_EFER_FULL, value & !EFER_LME);
            }
            None => self.vmcs.write(guest::IA32_EFER_FULL, value),
        }
    }
}
