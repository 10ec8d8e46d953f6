//! The tables that a VM's firmware leaves, as boot protocols pass them on.

use crate::AcpiTables;
use bios::{PcConfig, Processor, Tables};

/// The bytes at an address.
fn at(tables: &Tables, at: u64) -> &[u8] {
    &tables.bytes()[(at - tables.range().start.raw()) as usize..]
}

#[test]
fn the_fields_of_the_rsdp_are_those_in_memory() {
    let processor = Processor { signature: 0x00a2_0f10, features: 0x078b_fbff };
    let tables = Tables::new(&PcConfig { vcpus: 2, processor, ioapic: true, hpet: None, pci_gsis: [16, 17, 18, 19] });
    let AcpiTables { rsdp_at, rsdp, reclaimable, nvs } = AcpiTables::from(&tables);
    let in_memory = at(&tables, rsdp_at.raw());
    assert!(in_memory.starts_with(b"RSD PTR "));
    assert_eq!(in_memory[9..15], rsdp.oem_id);
    assert_eq!(in_memory[16..20], rsdp.rsdt.to_le_bytes());
    assert_eq!(in_memory[24..32], rsdp.xsdt.to_le_bytes());
    assert!(at(&tables, rsdp.rsdt.into()).starts_with(b"RSDT") && at(&tables, rsdp.xsdt).starts_with(b"XSDT"));
    assert!(reclaimable.is_empty() && nvs.is_empty(), "they are in the BIOS's ROM");
}
