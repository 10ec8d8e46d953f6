//! The manual's rules for loads of PDPTEs.

use super::memory::{GuestMemory, Words};
use super::sequences::FEATURES;
use crate::{Change, LoadError, Registers};
use addr::Gpa;
use walk::{Controls, PdpteError, PhysMem};

const PAE: Controls = Controls { cr0: 0x8000_0001, cr3: 0x1000, cr4: 0x20, efer: 0 };

fn pae() -> (GuestMemory, Registers) {
    let memory = GuestMemory::new(Words::from([(0x1000, 0x2001), (0x1018, 0x3001)]));
    let mut registers = Registers::new(FEATURES);
    assert_eq!(registers.write(&memory, PAE), Ok(Change::Context));
    (memory, registers)
}

#[test]
fn pdptes_are_kept_from_the_load_of_cr3_on() {
    let (memory, mut registers) = pae();
    assert_eq!(registers.paging().pdptes, Some([0x2001, 0, 0, 0x3001]));
    memory.write(Gpa::new(0x1000), &0x4001u64.to_le_bytes()).unwrap();
    assert_eq!(registers.paging().pdptes, Some([0x2001, 0, 0, 0x3001]));
    assert_eq!(registers.write_cr3(&memory, 0x1000), Ok(Change::Context));
    assert_eq!(registers.paging().pdptes, Some([0x4001, 0, 0, 0x3001]));
}

#[test]
fn the_changes_of_cr0_and_cr4_that_load_pdptes() {
    for (cr0, cr4, loads) in [
        (1 << 3, 0, false),
        (1 << 30, 0, true),
        (1 << 29, 0, true),
        (1 << 16, 0, false),
        (0, 1 << 4, true),
        (0, 1 << 7, true),
        (0, 1 << 20, true),
        (0, 1 << 21, false),
        (0, 1 << 9, false),
    ] {
        let (memory, mut registers) = pae();
        memory.write(Gpa::new(0x1000), &0x4001u64.to_le_bytes()).unwrap();
        let controls = Controls { cr0: PAE.cr0 ^ cr0, cr4: PAE.cr4 ^ cr4, ..PAE };
        let change = registers.write(&memory, controls).unwrap();
        assert_eq!(registers.paging().pdptes.unwrap()[0] == 0x4001, loads, "{controls:x?}");
        let means = loads || cr0 & (1 << 16) | cr4 & (1 << 21) != 0;
        assert_eq!(change, if means { Change::Context } else { Change::None });
    }
}

#[test]
fn reserved_bits_refuse_the_load_and_change_nothing() {
    let (memory, mut registers) = pae();
    memory.write(Gpa::new(0x5000), &0x2003u64.to_le_bytes()).unwrap();
    assert_eq!(registers.write_cr3(&memory, 0x5000), Err(LoadError::Pdptes(PdpteError::Reserved)));
    assert_eq!(registers.paging().controls, PAE);
    assert_eq!(registers.paging().pdptes, Some([0x2001, 0, 0, 0x3001]));
    let long = Controls { efer: 1 << 10, ..PAE };
    assert_eq!(registers.write(&memory, long), Err(LoadError::LongMode));
    assert_eq!(registers.paging().controls, PAE);
}

#[test]
fn without_paging_the_processor_has_neither_smep_nor_smap() {
    let memory = GuestMemory::new(Words::new());
    let mut registers = Registers::new(FEATURES);
    let controls = Controls { cr0: 1, cr3: 0, cr4: 3 << 20 | 1 << 7, efer: 0 };
    assert_eq!(registers.write(&memory, controls), Ok(Change::Context));
    assert_eq!(registers.host(), Controls { cr0: 0x8001_0001, cr3: 0, cr4: 0x20, efer: 1 << 11 });
}

#[test]
fn a_change_of_nxe_changes_what_entries_mean() {
    for (efer, change) in [(1 << 11, Change::Context), (1 << 0, Change::None)] {
        let (memory, mut registers) = pae();
        assert_eq!(registers.write(&memory, Controls { efer, ..PAE }), Ok(change));
    }
}

#[test]
fn after_a_reset_and_by_writes_without_paging_paging_stays_off() {
    let (_, mut registers) = pae();
    registers.reset(0xe000_0011);
    assert_eq!(registers.paging().controls, Controls { cr0: 0x6000_0011, cr3: 0, cr4: 0, efer: 0 });
    assert_eq!(registers.paging().pdptes, None);
    let (_, mut registers) = pae();
    registers.write_unpaged(|controls| *controls = Controls { cr3: 0x5000, ..PAE });
    assert_eq!(registers.paging().controls, Controls { cr0: 1, cr3: 0x5000, ..PAE });
    assert_eq!(registers.paging().pdptes, None);
}
