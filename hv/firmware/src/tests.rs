//! Tables as firmware leaves them, and as it should not.

use crate::{PhysicalMemory, StaticTables, Topology, find_rsdp};
use abi::acpi::RSDP_V1_BYTES;
use acpi::AcpiTables;
use addr::Hpa;
use std::boxed::Box;
use std::ptr::NonNull;
use std::string::ToString;
use std::vec::Vec;

const SDT_HEADER: usize = 36;
const FADT_LENGTH: usize = 276;
const PM_TIMER_BLOCK: usize = 76;
const PM_TIMER_LENGTH: usize = 91;

/// Physical memory from address 0 on.
#[derive(Clone, Copy)]
struct Memory(&'static [u8]);

impl PhysicalMemory for Memory {
    fn pointer(&self, at: Hpa, size: usize) -> NonNull<u8> {
        NonNull::from(&self.0[at.raw() as usize..][..size]).cast()
    }
}

fn checksummed(mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
    let sum = bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    bytes[at] = bytes[at].wrapping_sub(sum);
    bytes
}

fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut bytes = signature.to_vec();
    bytes.extend(((SDT_HEADER + body.len()) as u32).to_le_bytes());
    bytes.resize(SDT_HEADER, 0);
    bytes.extend(body);
    checksummed(bytes, 9)
}

fn madt(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut body = 0xfee0_0000u32.to_le_bytes().to_vec();
    body.extend([1, 0, 0, 0]);
    entries.iter().for_each(|entry| body.extend(entry));
    table(b"APIC", &body)
}

fn local_apic(id: u8, flags: u32) -> Vec<u8> {
    let mut entry = std::vec![0, 8, id, id];
    entry.extend(flags.to_le_bytes());
    entry
}

fn local_x2apic(id: u32, flags: u32) -> Vec<u8> {
    let mut entry = std::vec![9, 16, 0, 0];
    [id, flags, 0].iter().for_each(|word| entry.extend(word.to_le_bytes()));
    entry
}

fn address_override(address: u64) -> Vec<u8> {
    let mut entry = std::vec![5, 12, 0, 0];
    entry.extend(address.to_le_bytes());
    entry
}

fn fadt() -> Vec<u8> {
    let mut body = std::vec![0; FADT_LENGTH - SDT_HEADER];
    body[PM_TIMER_BLOCK - SDT_HEADER..][..4].copy_from_slice(&0x608u32.to_le_bytes());
    body[PM_TIMER_LENGTH - SDT_HEADER] = 4;
    table(b"FACP", &body)
}

/// A machine whose firmware has left these tables.
fn topology<const MAX: usize>(tables: &[Vec<u8>]) -> Topology<MAX> {
    const RSDP: usize = 0xe_0010;
    let mut memory = std::vec![0; 0x10_0000];
    let (mut at, mut addresses) = (0x1000, Vec::new());
    for table in tables {
        memory[at..at + table.len()].copy_from_slice(table);
        addresses.extend((at as u32).to_le_bytes());
        at += table.len().next_multiple_of(16);
    }
    let rsdt = table(b"RSDT", &addresses);
    memory[at..at + rsdt.len()].copy_from_slice(&rsdt);
    let mut rsdp = b"RSD PTR \0MAKER \0".to_vec();
    rsdp.extend((at as u32).to_le_bytes());
    memory[RSDP..RSDP + RSDP_V1_BYTES].copy_from_slice(&checksummed(rsdp, 8));
    let memory = Memory(Box::leak(memory.into_boxed_slice()));
    let read = |at: Hpa| memory.0[at.raw() as usize..][..RSDP_V1_BYTES].try_into().expect("as many bytes");
    assert_eq!(find_rsdp(read), Some(Hpa::new(RSDP as u64)));
    // SAFETY: an RSDP and its tables are there, as was just written.
    let tables = unsafe { AcpiTables::from_rsdp(StaticTables(memory), RSDP) }.expect("tables");
    Topology::new(&tables)
}

#[test]
fn processors_are_those_that_are_enabled() {
    let entries = [local_apic(0, 1), local_apic(1, 0), local_apic(2, 2), local_apic(4, 1), local_x2apic(0x123, 1)];
    let found = topology::<8>(&[madt(&entries), fadt()]);
    assert_eq!((found.processors, &found.apic_ids[..]), (3, &[0, 4, 0x123][..]));
    assert_eq!(found.to_string(), "ACPI: 3 processors, local APICs at 0xfee00000, PM timer at port 0x608");
}

#[test]
fn of_more_processors_than_fit_the_first_are_kept_and_all_are_counted() {
    let entries: Vec<_> = (0..5).map(|id| local_apic(id, 1)).collect();
    let found = topology::<2>(&[madt(&entries)]);
    assert_eq!((found.processors, &found.apic_ids[..]), (5, &[0, 1][..]));
}

#[test]
fn the_local_apics_address_is_that_of_the_override() {
    let found = topology::<2>(&[madt(&[address_override(0x12_fee0_0000)])]);
    assert_eq!(found.local_apic, Some(Hpa::new(0x12_fee0_0000)));
}

#[test]
fn missing_tables_leave_their_parts_empty() {
    let found = topology::<2>(&[]);
    assert_eq!((found.processors, found.local_apic, found.pm_timer), (0, None, None));
}

#[test]
fn a_madt_shorter_than_its_header_has_no_processors() {
    let found = topology::<2>(&[table(b"APIC", &[])]);
    assert_eq!((found.processors, found.local_apic), (0, None));
}

#[test]
fn an_entry_beyond_the_madts_end_ends_it() {
    let mut entries = local_apic(0, 1);
    entries.extend([0, 200, 1, 1]);
    assert_eq!(topology::<2>(&[madt(&[entries])]).processors, 1);
}

#[test]
fn an_rsdp_with_a_wrong_checksum_is_none() {
    let read = |_: Hpa| *b"RSD PTR \x01MAKER \0\0\0\0\0";
    assert_eq!(find_rsdp(read), None);
}
