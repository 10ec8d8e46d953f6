//! The rights of shadow entries on a processor whose CR0.WP is set.

use super::memory::{GuestMemory, ROM, Words};
use super::sequences::{self, FEATURES};
use crate::resolve::resolve;
use crate::{Memory, Registers};
use addr::{Gva, PageSize};
use arch::{CR4_SMAP, CR4_SMEP};
use mmu::Rights;
use walk::{Access, AccessKind, Controls, Privilege};

/// PAE, with NX, without WP.
const CONTROLS: Controls = Controls { cr0: 0x8000_0001, cr3: 0x9000, cr4: 0x20, efer: 1 << 11 };
const SUPERVISOR: Privilege = Privilege::Supervisor { ac: true };
const USER: u64 = 4;
const NX: u64 = 1 << 63;

/// Linear 0 is mapped by this entry.
fn memory(pte: u64) -> GuestMemory {
    GuestMemory::new(Words::from([(0x9000, 0x1001), (0x1000, 0x2067), (0x2000, pte)]))
}

/// The rights for an access to a page by an entry with these bits, or None if it is emulated.
fn rights(bits: u64, cr4: u64, kind: AccessKind, privilege: Privilege) -> Option<Rights> {
    let memory = memory(0x3001 | bits);
    let registers = sequences::registers(&memory, Controls { cr4: CONTROLS.cr4 | cr4, ..CONTROLS });
    let found = resolve(&memory, &registers, Gva::new(0), Access { kind, privilege });
    found.unwrap_or_else(|fault| panic!("{fault:?}")).rights
}

#[test]
fn a_read_only_page_that_the_supervisor_writes_is_the_supervisors() {
    let write = |bits, cr4| rights(bits, cr4, AccessKind::Write, SUPERVISOR);
    let given = |execute| Some(Rights { write: true, execute, user: false });
    for (bits, cr4, expected) in [
        (USER, 0, given(true)),
        (USER, CR4_SMEP, given(false)),
        (USER, CR4_SMAP, None),
        (USER | NX, 0, given(false)),
        (0, CR4_SMEP, given(true)),
        (0, CR4_SMAP, given(true)),
        (NX, CR4_SMEP, given(false)),
    ] {
        assert_eq!(write(bits, cr4), expected, "{bits:x} {cr4:x}");
    }
}

#[test]
fn any_other_page_has_the_guests_rights_and_is_writable_when_it_is_dirty() {
    const WRITABLE: u64 = 2;
    const DIRTY: u64 = 0x40;
    for (bits, kind, write) in [
        (0, AccessKind::Read, false),
        (DIRTY, AccessKind::Read, false),
        (WRITABLE, AccessKind::Read, false),
        (WRITABLE | DIRTY, AccessKind::Read, true),
        (WRITABLE, AccessKind::Write, true),
    ] {
        for (user, execute) in [(true, true), (true, false), (false, true), (false, false)] {
            let bits = bits | if user { USER } else { 0 } | if execute { 0 } else { NX };
            let given = rights(bits, CR4_SMEP | CR4_SMAP, kind, SUPERVISOR);
            assert_eq!(given, Some(Rights { write, execute, user }), "{bits:x} {kind:?}");
        }
    }
}

#[test]
fn read_only_memory_is_mapped_read_only() {
    let memory = memory(ROM << 12 | 0x67);
    let registers = sequences::registers(&memory, CONTROLS);
    let read = Access { kind: AccessKind::Read, privilege: SUPERVISOR };
    let found = resolve(&memory, &registers, Gva::new(0), read).unwrap_or_else(|fault| panic!("{fault:?}"));
    assert!(found.rights.is_some_and(|rights| rights.write));
    let (_, rights) = found.entry(memory.backing(found.gpa, false).unwrap(), false).unwrap();
    assert_eq!(rights, Rights { write: false, execute: true, user: true });
}

#[test]
fn without_paging_a_page_is_as_large_as_its_memory() {
    let read = Access { kind: AccessKind::Read, privilege: SUPERVISOR };
    let found = resolve(&memory(0), &Registers::new(FEATURES), Gva::new(0), read);
    assert!(found.is_ok_and(|found| found.size == PageSize::Size4M));
}
