//! The guest's CR8, in a page that the processor reads and writes (Intel SDM vol. 3, section 30.1.1: TPR shadow).

use super::vmcs::Vmcs;
use crate::Physical;
use crate::page::HardwarePage;
use core::alloc::Layout;
use x86::vmx::vmcs::control;

/// The virtual-APIC page, of which one register is used.
#[repr(C, align(4096))]
struct Page([u32; 1024]);

/// The index of VTPR, at offset 80h; CR8 is its bits 7:4.
const VTPR: usize = 0x80 / 4;

/// CR8 of a processor with TPR shadow.
pub(super) struct TaskPriority(HardwarePage<Page>);

impl TaskPriority {
    /// What one takes.
    pub(super) const ALLOCATION: Layout = Layout::new::<Page>();

    /// CR8 is 0. To be [installed](Self::install).
    pub(super) fn new(physical: Physical) -> Self {
        Self(HardwarePage::new(physical, Page([0; 1024])))
    }

    /// Has `vmcs`, which is the current one, use it.
    pub(super) fn install(&self, vmcs: &mut Vmcs) {
        vmcs.write(control::VIRT_APIC_ADDR_FULL, self.0.address().raw());
        vmcs.write(control::TPR_THRESHOLD, 0);
    }

    #[inline]
    pub(super) fn cr8(&self) -> u64 {
        u64::from(self.0.0[VTPR] >> 4 & 0xf)
    }

    /// CR8 is `value`, and no fall of it exits: an entry with a threshold above CR8 is refused (SDM section 27.2.1.1).
    pub(super) fn set_cr8(&mut self, vmcs: &mut Vmcs, value: u64) {
        self.0.0[VTPR] = (value as u32 & 0xf) << 4;
        Self::watch(vmcs, 0);
    }

    /// Has the guest exit behind a MOV that takes CR8 below `class`; 0: behind none.
    pub(super) fn watch(vmcs: &mut Vmcs, class: u8) {
        vmcs.write(control::TPR_THRESHOLD, class.into());
    }
}
