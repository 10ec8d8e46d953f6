//! The tables that VMs' firmware leaves in memory. VMs with as many vCPUs have the same.

use alloc::collections::BTreeMap;
use loader::VmPlan;
use vm::cpuid::{Table, Topology};

/// The tables of some VMs, by the number of their vCPUs.
pub(super) struct Firmware(BTreeMap<usize, bios::Tables>);

impl Firmware {
    /// Those of the VMs that are planned.
    pub(super) fn of(plans: &[VmPlan]) -> Self {
        let mut tables = BTreeMap::new();
        for vcpus in plans.iter().map(|plan| plan.config.vcpus) {
            tables.entry(vcpus).or_insert_with(|| make(vcpus));
        }
        Self(tables)
    }

    /// The tables of a planned VM with so many vCPUs.
    pub(super) fn tables(&self, vcpus: usize) -> &bios::Tables {
        &self.0[&vcpus]
    }
}

/// What the boot vCPU of a VM with so many is shown of this machine's processor.
pub(super) fn cpuid(vcpus: usize) -> Table {
    Table::new(crate::cpu::cpuid, Topology { index: 0, vcpus })
}

fn make(vcpus: usize) -> bios::Tables {
    let features = cpuid(vcpus).get(1, 0);
    bios::Tables::new(&bios::PcConfig {
        vcpus: vcpus as u8,
        processor: bios::Processor { signature: features.eax, features: features.edx },
        ioapic: true,
        hpet: Some(devices::HPET_CAPABILITIES),
        pci_gsis: [16, 17, 18, 19],
    })
}
