//! The tables, as an operating system reads them.

use crate::{PcConfig, Processor, Tables};
use addr::Gpa;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::vec::Vec;

fn machine(vcpus: u8) -> PcConfig {
    let processor = Processor { signature: 0x00a2_0f10, features: 0x078b_fbff };
    PcConfig { vcpus, processor, ioapic: true, hpet: Some(0x8086_a201), pci_gsis: [16, 17, 18, 19] }
}

fn any_machine() -> impl Strategy<Value = PcConfig> {
    let gsis = prop::array::uniform4(prop_oneof![5u8..=5, 10u8..=11, 16u8..24]);
    (1u8..=254, any::<[u32; 2]>(), any::<bool>(), any::<Option<u32>>(), gsis).prop_map(
        |(vcpus, [signature, features], ioapic, hpet, pci_gsis)| PcConfig {
            vcpus,
            processor: Processor { signature, features },
            ioapic,
            hpet,
            pci_gsis,
        },
    )
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn dword(bytes: &[u8], at: usize) -> u32 {
    u32::from(word(bytes, at)) | u32::from(word(bytes, at + 2)) << 16
}

fn qword(bytes: &[u8], at: usize) -> u64 {
    u64::from(dword(bytes, at)) | u64::from(dword(bytes, at + 4)) << 32
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

impl Tables {
    /// What lies at `at` and behind.
    fn at(&self, at: u64) -> &[u8] {
        &self.bytes()[(at - self.range().start.raw()) as usize..]
    }

    /// The first 16-byte boundary with this signature, as an operating system finds it.
    fn search(&self, signature: &[u8]) -> Option<Gpa> {
        let found = self.bytes().chunks(16).position(|chunk| chunk.starts_with(signature));
        found.map(|chunk| self.range().start.wrapping_add(16 * chunk as u64))
    }

    fn rsdp_bytes(&self) -> &[u8] {
        &self.at(self.rsdp().raw())[..36]
    }

    /// A table with ACPI's header, at `at`.
    fn table(&self, at: u64) -> &[u8] {
        let bytes = self.at(at);
        &bytes[..dword(bytes, 4) as usize]
    }

    /// The tables that the RSDT names, and those that the XSDT names.
    fn named(&self) -> [Vec<u64>; 2] {
        let rsdt = self.table(dword(self.rsdp_bytes(), 16).into());
        let xsdt = self.table(qword(self.rsdp_bytes(), 24));
        [
            rsdt[36..].chunks(4).map(|address| dword(address, 0).into()).collect(),
            xsdt[36..].chunks(8).map(|address| qword(address, 0)).collect(),
        ]
    }

    fn find(&self, signature: &[u8; 4]) -> Option<&[u8]> {
        let [_, named] = self.named();
        named.into_iter().map(|at| self.table(at)).find(|table| table.starts_with(signature))
    }

    fn madt(&self) -> Vec<&[u8]> {
        let mut rest = &self.find(b"APIC").expect("a MADT")[44..];
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let (entry, behind) = rest.split_at(rest[1].into());
            entries.push(entry);
            rest = behind;
        }
        entries
    }

    /// The MP table's header and entries.
    fn mp(&self) -> Option<(&[u8], Vec<&[u8]>)> {
        let table = self.at(dword(self.at(self.mp_pointer()?.raw()), 4).into());
        let table = &table[..word(table, 4).into()];
        let (header, mut rest) = table.split_at(44);
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let (entry, behind) = rest.split_at(if rest[0] == 0 { 20 } else { 8 });
            entries.push(entry);
            rest = behind;
        }
        Some((header, entries))
    }
}

proptest! {
    #[test]
    fn tables_are_found_whole_and_where_they_are_searched(machine in any_machine()) {
        let tables = Tables::new(&machine);
        let range = tables.range();
        prop_assert!(range.start.raw() >= 0xf_0000 && range.end.raw() <= 0xf_8000);
        prop_assert_eq!(range.end.raw() - range.start.raw(), tables.bytes().len() as u64);
        prop_assert_eq!(tables.search(b"RSD PTR "), Some(tables.rsdp()));
        prop_assert_eq!(tables.search(b"_MP_"), tables.mp_pointer());
        prop_assert_eq!(tables.mp_pointer().is_some(), machine.ioapic);
    }

    #[test]
    fn every_checksum_is_right(machine in any_machine()) {
        let tables = Tables::new(&machine);
        let rsdp = tables.rsdp_bytes();
        prop_assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));
        let [by_rsdt, by_xsdt] = tables.named();
        prop_assert_eq!(&by_rsdt, &by_xsdt);
        let dsdt = u64::from(dword(tables.find(b"FACP").expect("a FADT"), 40));
        let roots = [dword(rsdp, 16).into(), qword(rsdp, 24), dsdt];
        prop_assert_eq!(&[tables.rsdt().raw(), tables.xsdt().raw()], &roots[..2]);
        for at in by_xsdt.into_iter().chain(roots) {
            prop_assert_eq!(sum(tables.table(at)), 0, "the table at {:#x}", at);
        }
        if let Some((header, entries)) = tables.mp() {
            let pointer = tables.mp_pointer().expect("the pointer by which the table was found");
            prop_assert_eq!(sum(&tables.at(pointer.raw())[..16]), 0);
            prop_assert_eq!(sum(header).wrapping_add(sum(&entries.concat())), 0);
        }
    }

    #[test]
    fn the_tables_tell_what_the_machine_has(machine in any_machine()) {
        let tables = Tables::new(&machine);
        let entries = tables.madt();
        let count = |kind| entries.iter().filter(|entry| entry[0] == kind).count();
        prop_assert_eq!(count(0), machine.vcpus.into());
        prop_assert_eq!((count(1), count(2)), if machine.ioapic { (1, 2) } else { (0, 0) });
        prop_assert_eq!(tables.find(b"HPET").map(|table| dword(table, 36)), machine.hpet);
    }
}

#[test]
fn the_madt_numbers_apics_and_overrides_the_timer_and_the_sci() {
    let tables = Tables::new(&machine(3));
    let expected: [&[u8]; 7] = [
        &[0, 8, 0, 0, 1, 0, 0, 0],
        &[0, 8, 1, 1, 1, 0, 0, 0],
        &[0, 8, 2, 2, 1, 0, 0, 0],
        &[1, 12, 3, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
        &[2, 10, 0, 0, 2, 0, 0, 0, 0, 0],
        &[2, 10, 0, 9, 9, 0, 0, 0, 0xd, 0],
        &[4, 6, 0xff, 0, 0, 1],
    ];
    assert_eq!(tables.madt(), expected);
}

#[test]
fn the_facs_is_aligned_and_has_no_checksum() {
    let tables = Tables::new(&machine(1));
    let fadt = tables.find(b"FACP").expect("a FADT");
    let facs = dword(fadt, 36);
    assert_eq!(facs % 64, 0);
    let facs = tables.table(facs.into());
    assert_eq!((&facs[..4], facs.len()), (&b"FACS"[..], 64));
}

#[test]
fn the_fadt_names_the_ports_of_the_devices() {
    let tables = Tables::new(&machine(1));
    let fadt = tables.find(b"FACP").expect("a FADT");
    // SCI, SMI command, PM1a event and control, PM timer; their lengths.
    assert_eq!((word(fadt, 46), dword(fadt, 48)), (9, 0));
    assert_eq!([dword(fadt, 56), dword(fadt, 64), dword(fadt, 76)], [0x600, 0x604, 0x608]);
    assert_eq!([fadt[88], fadt[89], fadt[91]], [4, 2, 4]);
    // The reset register, its value, and the flag that it is there.
    assert_eq!((fadt[116], qword(fadt, 120), fadt[128], dword(fadt, 112) >> 10 & 1), (1, 0xcf9, 6, 1));
    // Legacy devices, keyboard controller, no VGA.
    assert_eq!(word(fadt, 109), 0b111);
}

#[test]
fn the_mp_table_has_its_entries_in_the_order_of_their_types() {
    let tables = Tables::new(&machine(4));
    let (header, entries) = tables.mp().expect("an MP table");
    assert_eq!((&header[..4], header[6], dword(header, 36)), (&b"PCMP"[..], 4, 0xfee0_0000));
    assert_eq!(usize::from(word(header, 34)), entries.len());
    assert!(entries.is_sorted_by_key(|entry| entry[0]));
    let flags: Vec<_> = entries.iter().filter(|entry| entry[0] == 0).map(|entry| (entry[1], entry[3])).collect();
    assert_eq!(flags, [(0, 3), (1, 1), (2, 1), (3, 1)]);
    assert!(entries.contains(&&[2, 4, 0x20, 1, 0, 0, 0xc0, 0xfe][..]));
    assert!(entries.contains(&&[4, 3, 0, 0, 1, 0, 0xff, 0][..]), "the 8259s on LINT0");
    assert!(entries.contains(&&[4, 1, 0, 0, 1, 0, 0xff, 1][..]), "NMIs on LINT1");
}

#[test]
fn the_mp_table_routes_the_timer_to_pin_2_and_the_sci_by_level() {
    let tables = Tables::new(&machine(1));
    let (_, entries) = tables.mp().expect("an MP table");
    let isa: Vec<_> = entries.iter().filter(|entry| entry[0] == 3 && entry[4] == 1).collect();
    assert_eq!(isa.len(), 15);
    for entry in isa {
        let (irq, pin, flags) = (entry[5], entry[7], word(entry, 2));
        assert_eq!(pin, if irq == 0 { 2 } else { irq });
        assert_eq!(flags, if irq == 9 { 0xd } else { 0 });
    }
}

#[test]
fn a_pin_that_pci_has_is_not_isas_too() {
    let tables = Tables::new(&PcConfig { pci_gsis: [10, 11, 10, 11], ..machine(1) });
    let (_, entries) = tables.mp().expect("an MP table");
    let pins = |bus| entries.iter().filter(move |entry| entry[0] == 3 && entry[4] == bus).map(|entry| entry[7]);
    assert_eq!(pins(0).collect::<BTreeSet<_>>(), BTreeSet::from([10, 11]));
    assert!(pins(1).all(|pin| pin != 10 && pin != 11));
}

#[test]
fn pci_interrupts_rotate_by_device() {
    let machine = machine(1);
    // INTA of device 1 is INTB of device 0, and so on around.
    assert_eq!(
        [(0, 0), (1, 0), (1, 3), (5, 0), (31, 1)].map(|(device, pin)| machine.pci_gsi(device, pin)),
        [16, 17, 16, 17, 16]
    );
}

#[test]
fn the_tables_of_64_vcpus_take_few_pages() {
    assert!(Tables::new(&machine(64)).bytes().len() <= 3 << 12);
}
