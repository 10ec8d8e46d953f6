//! The tables as the crates `acpi` and `firmware` read them.
#![expect(unsafe_code, reason = "`AcpiTables::from_rsdt` is an unsafe function")]

use acpi::AcpiTables;
use acpi::address::AddressSpace;
use acpi::sdt::{fadt::Fadt, hpet::HpetTable, madt::Madt};
use addr::{Gpa, Hpa};
use bios::{PcConfig, Processor, Tables};
use firmware::{PhysicalMemory, StaticTables, Topology, find_rsdp};
use std::ptr::NonNull;

/// The first MiB.
#[derive(Clone, Copy)]
struct Memory(&'static [u8]);

impl PhysicalMemory for Memory {
    fn pointer(&self, at: Hpa, size: usize) -> NonNull<u8> {
        NonNull::from(&self.0[at.raw() as usize..][..size]).cast()
    }
}

fn machine(vcpus: u8) -> PcConfig {
    let processor = Processor { signature: 0x00a2_0f10, features: 0x078b_fbff };
    PcConfig { vcpus, processor, ioapic: true, hpet: Some(0x8086_a201), pci_gsis: [16, 17, 18, 19] }
}

fn read(machine: &PcConfig) -> AcpiTables<StaticTables<Memory>> {
    let tables = Tables::new(machine);
    let mut memory = vec![0; 0x10_0000];
    let at = tables.range().start.raw() as usize;
    memory[at..at + tables.bytes().len()].copy_from_slice(tables.bytes());
    let memory = Memory(Box::leak(memory.into_boxed_slice()));
    let bytes = |at: Hpa| -> [u8; 20] { memory.0[at.raw() as usize..][..20].try_into().expect("as many bytes") };
    let rsdp = find_rsdp(bytes).expect("an RSDP");
    assert_eq!(Gpa::new(rsdp.raw()), tables.rsdp());
    let [.., a, b, c, d] = bytes(rsdp);
    let rsdt = u32::from_le_bytes([a, b, c, d]) as usize;
    // By the RSDT, not the XSDT: `acpi` 6.1 reads the latter's entries as aligned, which behind a header of 36 bytes they are not.
    // SAFETY: the tables that the RSDT leads to are there, as was just written.
    unsafe { AcpiTables::from_rsdt(StaticTables(memory), 0, rsdt) }.expect("tables")
}

#[test]
fn every_vcpu_is_found() {
    for vcpus in [1, 4, 64] {
        let topology = Topology::<64>::new(&read(&machine(vcpus)));
        assert_eq!(topology.processors, usize::from(vcpus));
        assert!(topology.apic_ids.iter().copied().eq(0..u32::from(vcpus)));
        assert_eq!((topology.local_apic, topology.pm_timer), (Some(Hpa::new(0xfee0_0000)), Some(0x608)));
    }
}

#[test]
fn fixed_registers_are_where_the_devices_have_them() {
    let tables = read(&machine(1));
    let fadt = tables.find_table::<Fadt>().expect("a FADT");
    fadt.validate().expect("a valid FADT");
    let port = |register: Result<acpi::address::GenericAddress, acpi::AcpiError>| {
        let register = register.expect("a register");
        assert_eq!(register.address_space, AddressSpace::SystemIo);
        (register.address, register.bit_width)
    };
    assert_eq!(port(fadt.pm1a_event_block()), (0x600, 32));
    assert_eq!(port(fadt.pm1a_control_block()), (0x604, 16));
    assert_eq!(port(fadt.reset_register()), (0xcf9, 8));
    assert!(tables.dsdt().is_ok());
}

#[test]
fn the_madt_and_the_hpet_are_read() {
    let tables = read(&machine(2));
    let madt = tables.find_table::<Madt>().expect("a MADT");
    assert_eq!(madt.get().entries().count(), 6);
    let hpet = tables.find_table::<HpetTable>().expect("an HPET");
    let address = hpet.base_address.address;
    assert_eq!(address, 0xfed0_0000);
    assert!(read(&PcConfig { hpet: None, ..machine(2) }).find_table::<HpetTable>().is_none());
}
