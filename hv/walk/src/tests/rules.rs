use super::*;
use AccessKind::{Fetch, Read, Write};
use Privilege::User;
use addr::PageSize;

/// Flags of an entry that gives all rights: present, writable, user.
const PWU: u64 = 7;

/// Long-mode tables at 0x1000 (the root) to 0x4000, which map the page of linear address 0x2345 to 0x5000.
pub(crate) fn long(flags: u64) -> (Ram, Paging) {
    let ram = Ram::new(16);
    ram.set(0x1000, 0x2000 | PWU);
    ram.set(0x2000, 0x3000 | PWU);
    ram.set(0x3000, 0x4000 | PWU);
    ram.set(0x4010, 0x5000 | flags);
    (ram, paging(PE_PG | WP, 0x1000, PAE, LMA | NXE))
}

fn go(ram: &Ram, paging: &Paging, gva: u64, kind: AccessKind, privilege: Privilege) -> Result<Translation, Fault> {
    translate(ram, paging, Gva::new(gva), access(kind, privilege), SetAccessedDirty::No)
}

/// The error code of the fault that the access must give.
fn code(ram: &Ram, paging: &Paging, gva: u64, kind: AccessKind, privilege: Privilege) -> u32 {
    match go(ram, paging, gva, kind, privilege) {
        Err(Fault::Page { error_code, address }) => {
            assert_eq!(address, Gva::new(gva));
            error_code.bits()
        }
        other => panic!("{other:?}"),
    }
}

fn gpa(ram: &Ram, paging: &Paging, gva: u64, kind: AccessKind, privilege: Privilege) -> u64 {
    go(ram, paging, gva, kind, privilege).unwrap().gpa.raw()
}

#[test]
fn a_page_that_is_not_there_faults_without_p() {
    let (ram, paging) = long(0);
    assert_eq!(code(&ram, &paging, 0x2345, Read, SUPERVISOR), 0);
    assert_eq!(code(&ram, &paging, 0x2345, Write, SUPERVISOR), 2);
    assert_eq!(code(&ram, &paging, 0x2345, Read, User), 4);
    assert_eq!(code(&ram, &paging, 0x2345, Write, User), 6);
    assert_eq!(code(&ram, &paging, 0x2345, Fetch, User), 0x14);
}

#[test]
fn reserved_bits_of_an_entry_that_is_not_present_do_not_matter() {
    let (ram, paging) = long(1 << 45);
    assert_eq!(code(&ram, &paging, 0x2345, Read, SUPERVISOR), 0);
}

#[test]
fn the_offset_is_kept() {
    let (ram, paging) = long(PWU);
    assert_eq!(gpa(&ram, &paging, 0x2345, Write, User), 0x5345);
}

#[test]
fn supervisor_pages_are_closed_to_the_user() {
    let (ram, paging) = long(3);
    assert_eq!(code(&ram, &paging, 0x2345, Read, User), 5);
    assert_eq!(code(&ram, &paging, 0x2345, Write, User), 7);
    assert_eq!(code(&ram, &paging, 0x2345, Fetch, User), 0x15);
    assert_eq!(gpa(&ram, &paging, 0x2345, Read, SUPERVISOR), 0x5345);
}

#[test]
fn every_level_must_give_the_right() {
    for level in [0x1000, 0x2000, 0x3000] {
        let (ram, paging) = long(PWU);
        ram.set(level, ram.get(level) & !RW);
        assert_eq!(code(&ram, &paging, 0x2345, Write, User), 7);
        ram.set(level, ram.get(level) & !US | RW);
        assert_eq!(code(&ram, &paging, 0x2345, Write, User), 7);
        ram.set(level, ram.get(level) | US | NX);
        assert_eq!(code(&ram, &paging, 0x2345, Fetch, User), 0x15);
    }
}

#[test]
fn wp_decides_on_supervisor_writes_alone() {
    let (ram, mut paging) = long(P | US);
    assert_eq!(code(&ram, &paging, 0x2345, Write, SUPERVISOR), 3);
    paging.controls.cr0 &= !WP;
    assert_eq!(gpa(&ram, &paging, 0x2345, Write, SUPERVISOR), 0x5345);
    assert_eq!(code(&ram, &paging, 0x2345, Write, User), 7);
}

#[test]
fn nx_is_a_right_with_nxe_and_reserved_without() {
    let (ram, mut paging) = long(PWU | NX);
    assert_eq!(code(&ram, &paging, 0x2345, Fetch, SUPERVISOR), 0x11);
    assert_eq!(gpa(&ram, &paging, 0x2345, Read, User), 0x5345);
    paging.controls.efer &= !NXE;
    assert_eq!(code(&ram, &paging, 0x2345, Read, User), 0xd);
    // Without NX and SMEP the error code of a fetch is that of a read.
    assert_eq!(code(&ram, &paging, 0x2345, Fetch, User), 0xd);
}

#[test]
fn smep_closes_user_pages_to_supervisor_fetches() {
    let (ram, mut paging) = long(PWU);
    paging.controls.cr4 |= SMEP;
    paging.controls.efer &= !NXE;
    assert_eq!(code(&ram, &paging, 0x2345, Fetch, SUPERVISOR), 0x11);
    assert_eq!(gpa(&ram, &paging, 0x2345, Fetch, User), 0x5345);
    assert_eq!(gpa(&ram, &paging, 0x2345, Read, SUPERVISOR), 0x5345);
}

#[test]
fn smep_leaves_supervisor_pages_to_the_supervisor() {
    let (ram, mut paging) = long(P | RW);
    paging.controls.cr4 |= SMEP;
    assert_eq!(gpa(&ram, &paging, 0x2345, Fetch, SUPERVISOR), 0x5345);
}

#[test]
fn smap_leaves_supervisor_pages_to_the_supervisor() {
    let (ram, mut paging) = long(P | RW);
    paging.controls.cr4 |= SMAP;
    assert_eq!(gpa(&ram, &paging, 0x2345, Write, SUPERVISOR), 0x5345);
}

#[test]
fn smap_closes_user_pages_to_supervisor_data_unless_ac() {
    let (ram, mut paging) = long(PWU);
    paging.controls.cr4 |= SMAP;
    assert_eq!(code(&ram, &paging, 0x2345, Read, SUPERVISOR), 1);
    assert_eq!(code(&ram, &paging, 0x2345, Write, SUPERVISOR), 3);
    assert_eq!(gpa(&ram, &paging, 0x2345, Write, Privilege::Supervisor { ac: true }), 0x5345);
    assert_eq!(gpa(&ram, &paging, 0x2345, Fetch, SUPERVISOR), 0x5345);
    // AC opens the page, it does not make it writable.
    ram.set(0x4010, 0x5000 | P | US);
    assert_eq!(code(&ram, &paging, 0x2345, Write, Privilege::Supervisor { ac: true }), 3);
}

#[test]
fn reserved_bits_fault_at_every_level_and_before_rights() {
    for level in [0x1000, 0x2000, 0x3000, 0x4010] {
        let (ram, paging) = long(PWU);
        ram.set(level, ram.get(level) & !US | 1 << 40);
        assert_eq!(code(&ram, &paging, 0x2345, Write, User), 0xf);
        ram.set(level, ram.get(level) & !(1 << 40) | US | 1 << 39);
        assert!(!matches!(go(&ram, &paging, 0x2345, Write, User), Err(Fault::Page { .. })));
    }
}

#[test]
fn ps_is_reserved_where_there_is_no_such_page() {
    let (ram, mut paging) = long(PWU);
    ram.set(0x1000, 0x2000 | PWU | PS);
    assert_eq!(code(&ram, &paging, 0x2345, Read, SUPERVISOR), 9);
    ram.set(0x1000, 0x2000 | PWU);
    ram.set(0x2000, PWU | PS);
    assert_eq!(go(&ram, &paging, 0x2345, Read, SUPERVISOR).unwrap().size, PageSize::Size1G);
    paging.features.pages_1g = false;
    assert_eq!(code(&ram, &paging, 0x2345, Read, SUPERVISOR), 9);
}

#[test]
fn bit_8_of_a_pml4e_is_reserved_on_amd_alone() {
    let (ram, mut paging) = long(PWU);
    ram.set(0x1000, 0x2000 | PWU | 1 << 8);
    assert_eq!(gpa(&ram, &paging, 0x2345, Read, User), 0x5345);
    paging.features.pml4e_bit8_reserved = true;
    assert_eq!(code(&ram, &paging, 0x2345, Read, User), 0xd);
}

#[test]
fn large_pages_keep_more_offset_and_reserve_the_bits_between() {
    let (ram, paging) = long(PWU);
    ram.set(0x3008, 0x60_0000 | PWU | PS | 1 << 12);
    let found = go(&ram, &paging, 0x2a_bcde, Write, User).unwrap();
    assert_eq!((found.gpa, found.size), (Gpa::new(0x6a_bcde), PageSize::Size2M));
    ram.set(0x3008, 0x60_0000 | PWU | PS | 1 << 13);
    assert_eq!(code(&ram, &paging, 0x2a_bcde, Write, User), 0xf);
    ram.set(0x2008, 0x8000_0000 | PWU | PS);
    assert_eq!(gpa(&ram, &paging, 0x4000_1234, Read, User), 0x8000_1234);
    ram.set(0x2008, 0x8000_0000 | PWU | PS | 1 << 29);
    assert_eq!(code(&ram, &paging, 0x4000_1234, Read, User), 0xd);
}

#[test]
fn addresses_must_be_canonical() {
    let (ram, mut paging) = long(PWU);
    assert_eq!(go(&ram, &paging, 0x0000_8000_0000_0000, Read, User), Err(Fault::NonCanonical));
    assert_eq!(go(&ram, &paging, 0xffff_7fff_ffff_ffff, Read, User), Err(Fault::NonCanonical));
    assert_eq!(code(&ram, &paging, 0xffff_8000_0000_0000, Read, User), 4);
    paging.controls.cr4 |= LA57;
    assert_eq!(go(&ram, &paging, 0x0100_0000_0000_0000, Read, User), Err(Fault::NonCanonical));
}

#[test]
fn five_levels() {
    let ram = Ram::new(16);
    for level in 1..=5 {
        ram.set(level * 0x1000 + level * 8, ((level + 1) * 0x1000) | PWU);
    }
    let paging = paging(PE_PG, 0x1000, PAE | LA57, LMA);
    let gva = (1 << 48) | (2 << 39) | (3 << 30) | (4 << 21) | (5 << 12) | 0x678;
    assert_eq!(gpa(&ram, &paging, gva, Read, User), 0x6678);
    ram.set(0x1008, 0x2000 | PWU | PS);
    assert_eq!(code(&ram, &paging, gva, Read, User), 0xd);
}

#[test]
fn two_levels_of_four_byte_entries() {
    let ram = Ram::new(16);
    ram.set32(0x1004, 0x2000 | 7);
    ram.set32(0x2008, 0x3000 | 7);
    let mut paging = paging(PE_PG, 0x1000, 0, NXE);
    assert_eq!(gpa(&ram, &paging, 0x40_2345, Write, User), 0x3345);
    // The address is 32 bits wide, and NXE means nothing without PAE.
    assert_eq!(gpa(&ram, &paging, 0xffff_ffff_0040_2345, Fetch, User), 0x3345);
    assert_eq!(code(&ram, &paging, 0x2345, Fetch, User), 4);
    // PS is ignored without CR4.PSE.
    ram.set32(0x1004, 0x2000 | 7 | PS as u32);
    assert_eq!(gpa(&ram, &paging, 0x40_2345, Write, User), 0x3345);
    paging.controls.cr4 = PSE;
    ram.set32(0x1004, 0x0080_0000 | 7 | PS as u32);
    let found = go(&ram, &paging, 0x41_2345, Write, User).unwrap();
    assert_eq!((found.gpa, found.size), (Gpa::new(0x81_2345), PageSize::Size4M));
}

#[test]
fn pse36_puts_the_high_address_bits_into_13_to_20() {
    let ram = Ram::new(2);
    let mut paging = paging(PE_PG, 0x1000, PSE, 0);
    ram.set32(0x1000, (0xff << 13) | 7 | PS as u32);
    assert_eq!(gpa(&ram, &paging, 0x1234, Read, User), 0xff_0000_1234);
    ram.set32(0x1000, (1 << 21) | 7 | PS as u32);
    assert_eq!(code(&ram, &paging, 0x1234, Read, User), 0xd);
    // A 36-bit processor has four of them; bits above are reserved.
    paging.features.maxphyaddr = 36;
    ram.set32(0x1000, (0xf << 13) | 7 | PS as u32);
    assert_eq!(gpa(&ram, &paging, 0x1234, Read, User), 0xf_0000_1234);
    ram.set32(0x1000, (0x10 << 13) | 7 | PS as u32);
    assert_eq!(code(&ram, &paging, 0x1234, Read, User), 0xd);
    paging.features.pse36 = false;
    ram.set32(0x1000, (1 << 13) | 7 | PS as u32);
    assert_eq!(code(&ram, &paging, 0x1234, Read, User), 0xd);
}

/// PAE: PDPTEs at 0x1020, tables at 0x2000 and 0x3000, the page of 0x4000_2345 at 0x5000.
fn pae() -> (Ram, Paging) {
    let ram = Ram::new(16);
    ram.set(0x1028, 0x2000 | P);
    ram.set(0x2000, 0x3000 | PWU);
    ram.set(0x3010, 0x5000 | PWU);
    (ram, paging(PE_PG, 0x1020, PAE, NXE))
}

#[test]
fn pae_pdptes_have_no_rights() {
    let (ram, paging) = pae();
    assert_eq!(gpa(&ram, &paging, 0x4000_2345, Write, User), 0x5345);
    ram.set(0x3010, 0x5000 | PWU | 1 << 52);
    assert_eq!(code(&ram, &paging, 0x4000_2345, Read, User), 0xd);
    ram.set(0x2000, 0x40_0000 | PWU | PS);
    assert_eq!(go(&ram, &paging, 0x4000_2345, Read, User).unwrap().size, PageSize::Size2M);
}

#[test]
fn pae_pdptes_that_the_processor_holds_go_before_memory() {
    let (ram, mut paging) = pae();
    paging.pdptes = Some([0, 0x2000 | P, 0, 0]);
    ram.set(0x1028, 0);
    assert_eq!(gpa(&ram, &paging, 0x4000_2345, Write, User), 0x5345);
    assert_eq!(code(&ram, &paging, 0x2345, Write, User), 6);
}

#[test]
fn pae_pdptes_are_checked_when_loaded() {
    let (ram, paging) = pae();
    assert_eq!(load_pdptes(&ram, &paging), Ok([0, 0x2001, 0, 0]));
    // Not present: nothing is reserved.
    ram.set(0x1030, !P);
    assert!(load_pdptes(&ram, &paging).is_ok());
    for bit in [1, 2, 5, 6, 7, 8, 40, 51, 52, 63] {
        ram.set(0x1030, P | 1 << bit);
        assert_eq!(load_pdptes(&ram, &paging), Err(PdpteError::Reserved), "bit {bit}");
    }
    ram.set(0x1030, P | 0xe18 | (1 << 39));
    assert!(load_pdptes(&ram, &paging).is_ok());
}

#[test]
fn a_reserved_pdpte_in_memory_faults() {
    let (ram, paging) = pae();
    ram.set(0x1028, 0x2000 | P | RW);
    assert_eq!(code(&ram, &paging, 0x4000_2345, Read, SUPERVISOR), 9);
}

#[test]
fn without_paging_linear_is_physical() {
    let ram = Ram::new(1);
    let paging = paging(1, 0xdead_b000, SMEP | SMAP, 0);
    assert_eq!(gpa(&ram, &paging, 0x1_0000_2345, Write, User), 0x2345);
}

#[test]
fn a_table_outside_memory_is_unbacked() {
    let (ram, paging) = long(PWU);
    ram.set(0x2000, 0x10_0000 | PWU);
    assert_eq!(go(&ram, &paging, 0x2345, Read, User), Err(Fault::Unbacked(Gpa::new(0x10_0000))));
}

#[test]
fn accessed_and_dirty_are_set_when_allowed() {
    let (ram, paging) = long(PWU);
    let entries = || [0x1000, 0x2000, 0x3000, 0x4010].map(|at| ram.get(at) & 0x60);
    let set =
        |kind, privilege| translate(&ram, &paging, Gva::new(0x2345), access(kind, privilege), SetAccessedDirty::Yes);
    ram.set(0x4010, 0x5000 | P);
    set(Write, User).unwrap_err();
    assert_eq!(entries(), [0; 4], "a fault sets nothing");
    ram.set(0x4010, 0x5000 | PWU);
    set(Read, User).unwrap();
    assert_eq!(entries(), [0x20; 4]);
    set(Write, User).unwrap();
    assert_eq!(entries(), [0x20, 0x20, 0x20, 0x60], "only the leaf gets dirty");
}

#[test]
fn accessed_bits_of_short_entries_leave_the_neighbour_alone() {
    let ram = Ram::new(8);
    ram.set(0x1000, 0x2007_dead_beef);
    ram.set(0x1000, 0x0000_2007_dead_bee0);
    ram.set32(0x2000, 0x3007);
    let paging = paging(PE_PG, 0x1000, 0, 0);
    translate(&ram, &paging, Gva::new(0x40_0000), access(Write, User), SetAccessedDirty::Yes).unwrap();
    assert_eq!(ram.get(0x1000), 0x0000_2027_dead_bee0);
    assert_eq!(ram.get(0x2000), 0x3067);
}

#[test]
fn pdptes_get_no_accessed_bit() {
    let (ram, paging) = pae();
    translate(&ram, &paging, Gva::new(0x4000_2345), access(Write, User), SetAccessedDirty::Yes).unwrap();
    assert_eq!((ram.get(0x1028), ram.get(0x2000), ram.get(0x3010)), (0x2001, 0x3027, 0x5067));
}

#[test]
fn a_lost_race_walks_again_and_a_lasting_one_gives_up() {
    let (ram, paging) = long(PWU);
    let set = || translate(&ram, &paging, Gva::new(0x2345), access(Write, User), SetAccessedDirty::Yes);
    ram.contention.set(1000);
    assert_eq!(set(), Err(Fault::Contended));
    ram.contention.set(ATTEMPTS - 1);
    assert!(set().is_ok());
}

#[test]
fn a_walk_that_sets_its_bits_is_done_once() {
    let (ram, paging) = long(PWU);
    let set = || translate(&ram, &paging, Gva::new(0x2345), access(Write, User), SetAccessedDirty::Yes);
    set().unwrap();
    assert_eq!(ram.reads.get(), 4 + 4, "four entries by the walk, and each again by its exchange");
}

#[test]
fn entries_that_are_marked_already_are_not_written() {
    let (ram, paging) = long(PWU);
    let set = || translate(&ram, &paging, Gva::new(0x2345), access(Write, User), SetAccessedDirty::Yes);
    set().unwrap();
    // Each write would fail: as it would where the guest's tables are in read-only memory.
    ram.contention.set(1000);
    assert!(set().is_ok());
}

#[test]
fn nothing_is_set_unless_asked_for() {
    let (ram, paging) = long(PWU);
    go(&ram, &paging, 0x2345, Write, User).unwrap();
    assert_eq!([0x1000, 0x2000, 0x3000, 0x4010].map(|at| ram.get(at) & 0x60), [0; 4]);
}

#[test]
fn a_page_is_dirty_once_it_was_written_or_where_there_is_no_bit() {
    let (ram, mut paging) = long(PWU);
    let is_dirty = |paging: &Paging, kind| {
        let traced = trace(&ram, paging, Gva::new(0x2345), access(kind, User), SetAccessedDirty::Yes);
        traced.unwrap().1.is_dirty()
    };
    assert!(!is_dirty(&paging, Read));
    assert!(is_dirty(&paging, Write));
    assert!(is_dirty(&paging, Read), "it was written before");
    paging.controls.cr0 = 1;
    assert!(is_dirty(&paging, Read), "there are no entries");
}

#[test]
fn fetch_stops_where_the_second_page_faults() {
    let (ram, paging) = long(PWU);
    for offset in 0..512 {
        ram.set(0x5000 + offset * 8, 0x0706_0504_0302_0100);
    }
    let fetched = fetch(&ram, &paging, Gva::new(0x2ffb), User).unwrap();
    assert_eq!(fetched.bytes(), [3, 4, 5, 6, 7]);
    let not_present = Fault::Page { error_code: ErrorCode::USER | ErrorCode::FETCH, address: Gva::new(0x3000) };
    assert_eq!(fetched.then, Some(not_present));
    ram.set(0x4018, 0x6000 | PWU);
    let fetched = fetch(&ram, &paging, Gva::new(0x2ffb), User).unwrap();
    assert_eq!(fetched.bytes(), [3, 4, 5, 6, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(fetched.then, None);
    assert_eq!(
        fetch(&ram, &paging, Gva::new(0x4000), User).unwrap_err(),
        match not_present {
            Fault::Page { error_code, .. } => Fault::Page { error_code, address: Gva::new(0x4000) },
            other => other,
        }
    );
}

#[test]
fn a_fetch_that_ends_with_its_page_needs_no_other() {
    let (ram, paging) = long(PWU);
    let fetched = fetch(&ram, &paging, Gva::new(0x2ff1), User).unwrap();
    assert_eq!((fetched.bytes().len(), fetched.then), (15, None));
}

#[test]
fn a_write_over_two_pages_is_whole_or_nothing() {
    let (ram, paging) = long(PWU);
    let put = |bytes: &[u8]| write(&ram, &paging, Gva::new(0x2ffe), User, bytes);
    put(&[1, 2, 3, 4]).unwrap_err();
    assert_eq!(ram.get(0x5ff8), 0);
    ram.set(0x4018, 0x6000 | PWU);
    put(&[1, 2, 3, 4]).unwrap();
    assert_eq!((ram.get(0x5ff8), ram.get(0x6000)), (0x0201_0000_0000_0000, 0x0403));
    assert_eq!(ram.get(0x4018) & 0x60, 0x60);
    let mut back = [0; 4];
    read(&ram, &paging, Gva::new(0x2ffe), User, &mut back).unwrap();
    assert_eq!(back, [1, 2, 3, 4]);
}

#[test]
fn a_missing_entry_of_either_level_is_found_at_once() {
    let access = Access { kind: AccessKind::Write, privilege: Privilege::User };
    let ram = Ram::new(32);
    ram.set(0x1000, 0x2007);
    for (pae, pdptes) in [(0, None), (PAE, Some([0x1001, 0, 0, 0]))] {
        let paging = Paging { pdptes, ..paging(PE_PG, 0x1000, pae, 0) };
        // The second page has a table without an entry for it; the other gigabyte has no table.
        for gva in [0x1000, 0x8000_0000] {
            let fault = Fault::Page { error_code: ErrorCode::WRITE | ErrorCode::USER, address: Gva::new(gva) };
            assert_eq!(missing(&ram, &paging, Gva::new(gva), access), Some(fault));
            assert_eq!(translate(&ram, &paging, Gva::new(gva), access, SetAccessedDirty::No), Err(fault));
        }
        ram.set(0x2000, 0x3007);
        assert_eq!(missing(&ram, &paging, Gva::new(0), access), None);
    }
}

#[test]
fn only_an_entry_without_the_present_bit_is_missing() {
    const LARGE: u64 = 0x3000 | PWU | PS;
    let access = access(Read, User);
    for (pae, pdptes) in [(0, None), (PAE, Some([0x1001, 0x1000, 0, 0]))] {
        let ram = Ram::new(16);
        let paging = Paging { pdptes, ..paging(PE_PG, 0x1000, PSE | pae, 0) };
        let is_missing = |gva| missing(&ram, &paging, Gva::new(gva), access).is_some();
        // The other bits of an entry that is not present are the guest's, and may look like the address of a table.
        let cases = [(0x3006, 0x5007, true), (0x3007, 0x5006, true), (0x3007, 0x5007, false), (LARGE, 0, false)];
        for (pde, pte, expected) in cases {
            ram.set(0x1000, pde);
            ram.set(0x3000, pte);
            assert_eq!(is_missing(0), expected, "{pae:#x}: {pde:#x}, {pte:#x}");
        }
        ram.set(0x1000, 0x3007);
        ram.set(0x3000, 0x5007);
        assert!(is_missing(0x4000_0000), "the PDPTE is not present; without PAE the entry is zero");
    }
}
