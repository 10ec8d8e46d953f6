//! PAT on a processor whose entry and exit controls can't switch it: there it is loaded from the lists of MSRs, which every
//! processor with VMX has.

use super::vmcs::Vmcs;
use crate::Physical;
use crate::page::HardwarePage;
use core::alloc::Layout;
use x86::msr::{IA32_PAT, rdmsr};
use x86::vmx::vmcs::control;

/// An entry of an MSR-load area (Intel SDM vol. 3, table 25-15).
#[repr(C, align(16))]
struct Entry {
    msr: u32,
    _reserved: u32,
    value: u64,
}

impl Entry {
    const fn new(value: u64) -> Self {
        Self { msr: IA32_PAT, _reserved: 0, value }
    }
}

/// What entries and what exits load.
#[repr(C)]
struct Lists {
    guest: Entry,
    host: Entry,
}

/// The lists, one entry long each. The guest's writes to PAT exit, so exits need not save it.
pub(super) struct Pat(HardwarePage<Lists>);

impl Pat {
    /// What one takes.
    pub(super) const ALLOCATION: Layout = Layout::new::<Lists>();

    /// The guest has `value`, the host what it has now. To be [installed](Self::install).
    pub(super) fn new(physical: Physical, value: u64) -> Self {
        // SAFETY: reading has no effect; every processor with long mode has PAT.
        let host = unsafe { rdmsr(IA32_PAT) };
        Self(HardwarePage::new(physical, Lists { guest: Entry::new(value), host: Entry::new(host) }))
    }

    /// Has `vmcs`, which is the current one, use them.
    pub(super) fn install(&self, vmcs: &mut Vmcs) {
        let guest = self.0.address().raw();
        vmcs.write(control::VMENTRY_MSR_LOAD_ADDR_FULL, guest);
        vmcs.write(control::VMENTRY_MSR_LOAD_COUNT, 1);
        vmcs.write(control::VMEXIT_MSR_LOAD_ADDR_FULL, guest + size_of::<Entry>() as u64);
        vmcs.write(control::VMEXIT_MSR_LOAD_COUNT, 1);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.guest.value
    }

    pub(super) fn set(&mut self, value: u64) {
        self.0.guest.value = value;
    }
}
