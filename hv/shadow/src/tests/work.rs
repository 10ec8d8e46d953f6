//! How much work the cached shadow does, by its counters: what it does once, and what it leaves alone.

use super::cached::{
    CAPACITY, Cached, LARGE_CAPACITY, a_table_within_large_frames, all_one_table, load, maps_itself, with_guest,
};
use super::guest::{Guest, ThisCpu};
use super::memory::{LARGE, Meanwhile, Moment, Words};
use super::oracle::Seen;
use super::vtlb::{READ, TWO_LEVELS, WRITE, two_levels};
use crate::{Capacity, Counter, FaultOutcome, Writer};
use addr::{Gpa, Gva};
use std::cell::Cell;
use std::format;
use walk::PhysMem;

/// How many faults `act` takes.
fn faults(
    guest: &mut Guest<'_, Cached>,
    cpu: &mut ThisCpu<'_>,
    act: impl FnOnce(&mut Guest<'_, Cached>, &mut ThisCpu<'_>),
) -> u64 {
    let before = guest.shadows.count(Counter::Faults);
    act(guest, cpu);
    guest.shadows.count(Counter::Faults) - before
}

#[test]
fn invlpg_leaves_the_page_of_a_table_in_sync() {
    with_guest(two_levels(0x3067), TWO_LEVELS, CAPACITY, |guest, cpu| {
        guest.access(cpu, 0, Gva::new(0), WRITE, 1);
        guest.invlpg(cpu, 0, Gva::new(0));
        assert_eq!(guest.shadows.count(Counter::Zapped), 0);
    });
}

#[test]
fn the_guest_writes_a_last_level_without_an_emulator() {
    with_guest(maps_itself(), TWO_LEVELS, CAPACITY, |guest, cpu| {
        guest.access(cpu, 0, Gva::new(0), READ, 0);
        guest.access(cpu, 0, Gva::new(0x1000), READ, 0);
        assert_eq!(guest.shadows.count(Counter::Unsynced), 0, "it was only read");
        let first = faults(guest, cpu, |guest, cpu| guest.access(cpu, 0, Gva::new(0x1000), WRITE, 0x4067));
        let second = faults(guest, cpu, |guest, cpu| guest.access(cpu, 0, Gva::new(0x1000), WRITE, 0x3067));
        assert_eq!([first, second], [1, 0]);
        assert_eq!(guest.shadows.count(Counter::Emulated), 0);
    });
}

#[test]
fn software_writes_a_table_that_is_out_of_sync_as_any_page() {
    with_guest(maps_itself(), TWO_LEVELS, CAPACITY, |guest, cpu| {
        guest.access(cpu, 0, Gva::new(0), READ, 0);
        guest.access(cpu, 0, Gva::new(0x1000), WRITE, 0x3067);
        assert_eq!(guest.shadows.count(Counter::Unsynced), 1);
        let zapped = guest.shadows.count(Counter::Zapped);
        (0..20).for_each(|n| guest.write(cpu, Gpa::new(0x2000), &(0x3067u32 + 0x1000 * (n % 2)).to_le_bytes()));
        assert_eq!(guest.shadows.count(Counter::Zapped), zapped);
        assert_eq!((guest.shadows.count(Counter::Written), guest.shadows.count(Counter::Flooded)), (0, 0));
    });
}

/// The last of the bytes that are written is the first one of the next entry, or of the next table.
#[test]
fn each_byte_of_a_write_counts() {
    let words =
        Words::from([(0x1000, 0x3007_0000_2007), (0x2000, 0x5067_0000_4067), (0x2ff8, 0x4067 << 32), (0x3000, 0x5067)]);
    for (at, gva) in [(0x2000, 0x1000), (0x2ffc, 0x40_0000)] {
        with_guest(words.clone(), TWO_LEVELS, CAPACITY, |guest, cpu| {
            let pages = [0, 0x1000, 0x3f_f000, 0x40_0000];
            pages.iter().for_each(|&gva| guest.access(cpu, 0, Gva::new(gva), WRITE, 1));
            // The one byte of the second entry clears its present bit.
            guest.write(cpu, Gpa::new(at), &[0x67, 0x40, 0, 0, 0x66]);
            let is_mapped = |gva| guest.is_mapped(guest.shadows.shadow.root(&guest.shadows.views[0]), Gva::new(gva));
            let gone = [gva, if at == 0x2000 { 0 } else { 0x3f_f000 }];
            assert_eq!(pages.map(is_mapped), pages.map(|gva| !gone.contains(&gva)));
        });
    }
}

#[test]
fn a_frame_is_no_table_any_more_from_the_sixth_write_on() {
    with_guest(two_levels(0x3067), TWO_LEVELS, CAPACITY, |guest, cpu| {
        guest.access(cpu, 0, Gva::new(0), READ, 0);
        for n in 1..=8u32 {
            guest.write(cpu, Gpa::new(0x2000), &(0x3067 + 0x1000 * (n % 2)).to_le_bytes());
            assert_eq!(guest.shadows.count(Counter::Flooded), u64::from(n >= 6), "{n}");
        }
        assert_eq!(guest.shadows.count(Counter::Written), 6);
    });
}

#[test]
fn a_large_page_without_tables_is_mapped_by_two_entries() {
    with_guest(two_levels(0), TWO_LEVELS, CAPACITY, |guest, cpu| {
        // The second half does not cost the first one its entry.
        let halves = [0x40_1000, 0x60_0000, 0x40_0000, 0x60_0000]
            .map(|gva| faults(guest, cpu, |guest, cpu| guest.access(cpu, 0, Gva::new(gva), WRITE, 1)));
        assert_eq!(halves, [1, 1, 0, 0]);
        assert_eq!(guest.shadows.count(Counter::Tables), 1, "the directory");
    });
}

/// The fault is at another frame of the large page than the first one.
#[test]
fn a_frame_within_a_large_page_that_becomes_a_table_is_read_only_at_once() {
    with_guest(a_table_within_large_frames(), TWO_LEVELS, CAPACITY, |guest, cpu| {
        guest.access(cpu, 0, Gva::new(0x40_5000), WRITE, 1);
        assert!(guest.is_writable(guest.shadows.shadow.root(&guest.shadows.views[0]), Gva::new(0x40_3000)));
        guest.access(cpu, 0, Gva::new(0), READ, 0);
        assert!(!guest.is_mapped(guest.shadows.shadow.root(&guest.shadows.views[0]), Gva::new(0x40_3000)));
    });
}

#[test]
fn a_load_brings_each_table_of_the_address_space_back_in_sync() {
    // The tables in pages 2 and 4, which the first one maps at linear 0x1000 and 0x2000.
    let words = Words::from([
        (0x1000, 0x4067 << 32 | 0x2067),
        (0x2000, 0x2067 << 32 | 0x3067),
        (0x2008, 0x4067),
        (0x4000, 0x3067),
    ]);
    with_guest(words, TWO_LEVELS, CAPACITY, |guest, cpu| {
        let pages = [0, 0x40_0000];
        pages.iter().for_each(|&gva| guest.access(cpu, 0, Gva::new(gva), WRITE, 1));
        [0x1000, 0x2000].iter().for_each(|&gva| guest.access(cpu, 0, Gva::new(gva), WRITE, 0x5067));
        assert_eq!(guest.shadows.count(Counter::Unsynced), 2);
        load(guest, cpu, 0x1000);
        assert_eq!(guest.shadows.count(Counter::Synced), 2);
        for (gva, value) in [(0, 8), (0x40_0000, 9)] {
            guest.access(cpu, 0, Gva::new(gva), WRITE, value);
            assert_eq!(guest.memory.read_u32(Gpa::new(0x5000)), Some(value));
        }
    });
}

/// Each of so many tables, in the first pages of the large frames, is the directory's entry from the third on. The second entry maps
/// them all.
const TABLES: u64 = 18;

fn many_tables() -> Words {
    let table = |n: u64| LARGE + (n << 12) + 0x67;
    let entries = (0..TABLES / 2).map(|n| (0x1008 + n * 8, table(2 * n + 1) << 32 | table(2 * n)));
    let pages = (0..TABLES).map(|n| (LARGE + (n << 12), 0x3067));
    entries.chain(pages).chain([(0x1000, (LARGE | 0xe7) << 32)]).collect()
}

#[test]
fn the_oldest_of_16_tables_out_of_sync_makes_way() {
    with_guest(many_tables(), TWO_LEVELS, CAPACITY, |guest, cpu| {
        (0..TABLES).for_each(|n| guest.access(cpu, 0, Gva::new((n + 2) << 22), READ, 0));
        let write = |n: u64| {
            move |guest: &mut Guest<'_, Cached>, cpu: &mut ThisCpu<'_>| {
                guest.access(cpu, 0, Gva::new(0x40_0000 | n << 12), WRITE, 0x5067);
            }
        };
        for n in 0..TABLES {
            assert_eq!(faults(guest, cpu, write(n)), 1);
            assert_eq!(guest.shadows.count(Counter::Unsynced) - guest.shadows.count(Counter::Synced), 16.min(n + 1));
        }
        let root = guest.shadows.shadow.root(&guest.shadows.views[0]);
        let is_out_of_sync = |n: &u64| guest.is_writable(root, Gva::new(0x40_0000 | n << 12));
        assert!((0..TABLES).filter(is_out_of_sync).eq(2..TABLES));
        assert_eq!(faults(guest, cpu, write(0)), 1, "it is in sync again");
    });
}

#[test]
fn a_page_that_is_mapped_again_is_known_once() {
    with_guest(two_levels(0x3067), TWO_LEVELS, CAPACITY, |guest, cpu| {
        for value in 0..5 {
            guest.access(cpu, 0, Gva::new(0), WRITE, value);
            guest.shadows.shadow.write(cpu, Gpa::new(0x2000), 4, Writer::Walk, || ());
        }
        assert_eq!(guest.shadows.count(Counter::Zapped), 5);
        assert_eq!(guest.shadows.count(Counter::Rmap), 1);
    });
}

#[test]
fn a_mapping_that_makes_way_for_others_of_its_frame_is_in_no_tlb() {
    with_guest(all_one_table(), TWO_LEVELS, LARGE_CAPACITY, |guest, cpu| {
        let write = |n: u64| {
            move |guest: &mut Guest<'_, Cached>, cpu: &mut ThisCpu<'_>| {
                guest.access(cpu, 0, Gva::new(n << 12), WRITE, 1);
            }
        };
        assert_eq!((0..33).map(|n| faults(guest, cpu, write(n))).sum::<u64>(), 33);
        assert_eq!(faults(guest, cpu, write(0)), 1);
    });
}

/// The note of a writable mapping outlives the mapping.
#[test]
fn a_frame_that_is_not_mapped_any_more_becomes_a_table_without_a_flush() {
    with_guest(maps_itself(), TWO_LEVELS, CAPACITY, |guest, cpu| {
        // Page 5, at linear 0x3000, is written; then the entry that maps it is.
        guest.access(cpu, 0, Gva::new(0x3000), WRITE, 0);
        guest.write(cpu, Gpa::new(0x200c), &0u32.to_le_bytes());
        guest.write(cpu, Gpa::new(0x1004), &0x5067u32.to_le_bytes());
        guest.write(cpu, Gpa::new(0x5000), &0x3067u32.to_le_bytes());
        let (flushes, zapped) =
            (guest.shadows.shadow.spaces().map(rcu::Space::flushes).sum::<u64>(), guest.shadows.count(Counter::Zapped));
        guest.access(cpu, 0, Gva::new(0x40_0000), READ, 0);
        assert_eq!(guest.shadows.shadow.spaces().map(rcu::Space::flushes).sum::<u64>(), flushes);
        assert_eq!(guest.shadows.count(Counter::Zapped), zapped);
    });
}

/// Each vCPU's address space has a table of its own, and there is room for two.
#[test]
fn an_address_space_with_a_vcpu_makes_way_after_the_others() {
    let words = Words::from([
        (0x1000, 0x4067),
        (0x6000, 0x2067),
        (0x7000, 0x5067),
        (0x2000, 0x3067),
        (0x4000, 0x3067),
        (0x5000, 0x3067),
    ]);
    with_guest(words, TWO_LEVELS, Capacity { tables: 2, ..CAPACITY }, |guest, cpu| {
        guest.control(cpu, 1, |registers, memory| registers.write_cr3(memory, 0x6000));
        guest.access(cpu, 1, Gva::new(0), READ, 0);
        for cr3 in [0x1000, 0x7000] {
            load(guest, cpu, cr3);
            guest.access(cpu, 0, Gva::new(0), READ, 0);
        }
        assert_eq!(guest.shadows.count(Counter::Dropped), 1);
        assert!(guest.is_mapped(guest.shadows.shadow.root(&guest.shadows.views[1]), Gva::new(0)));
    });
}

#[test]
fn while_frames_change_nothing_is_known_of_the_guests_tables() {
    with_guest(two_levels(0x3067), TWO_LEVELS, CAPACITY, |guest, cpu| {
        guest.access(cpu, 0, Gva::new(0), WRITE, 1);
        let known =
            |guest: &Guest<'_, Cached>| guest.shadows.shadow.known(Gpa::new(0x2000).frame(), Gpa::new(0x3000).frame());
        assert_eq!(known(guest), (1, 1));
        guest.shadows.shadow.suspend(cpu);
        guest.shadows.shadow.resume();
        assert_eq!(known(guest), (0, 0));
        guest.write(cpu, Gpa::new(0x1000), &0x2067u32.to_le_bytes());
        assert_eq!(guest.shadows.count(Counter::Written), 0, "the directory is an ordinary page");
    });
}

/// Lets tables of [`many_tables`] go out of sync.
fn unsync(guest: &mut Guest<'_, Cached>, cpu: &mut ThisCpu<'_>, tables: core::ops::Range<u64>) {
    for n in tables {
        guest.access(cpu, 0, Gva::new((n + 2) << 22), READ, 0);
        guest.access(cpu, 0, Gva::new(0x40_0000 | n << 12), WRITE, 0x5067);
    }
}

#[test]
fn tables_that_are_none_any_more_do_not_count_as_out_of_sync() {
    with_guest(many_tables(), TWO_LEVELS, CAPACITY, |guest, cpu| {
        unsync(guest, cpu, 0..16);
        guest.shadows.shadow.suspend(cpu);
        guest.shadows.shadow.resume();
        unsync(guest, cpu, 0..3);
        // The first two tables are in no directory any more.
        guest.write(cpu, Gpa::new(0x1008), &0u64.to_le_bytes());
        unsync(guest, cpu, 3..18);
        assert_eq!(guest.shadows.count(Counter::Synced), 0);
        load(guest, cpu, 0x1000);
        assert_eq!(guest.shadows.count(Counter::Synced), 16);
        for n in 2..18 {
            guest.access(cpu, 0, Gva::new((n + 2) << 22), READ, 0);
            assert_eq!(guest.seen.last(), Some(&Seen::Page(Gpa::new(0x5000))));
        }
    });
}

#[test]
fn a_load_leaves_tables_of_other_address_spaces_out_of_sync() {
    with_guest(maps_itself(), TWO_LEVELS, CAPACITY, |guest, cpu| {
        guest.access(cpu, 0, Gva::new(0x1000), WRITE, 0x4067);
        load(guest, cpu, 0x5000);
        assert_eq!((guest.shadows.count(Counter::Unsynced), guest.shadows.count(Counter::Synced)), (1, 0));
        load(guest, cpu, 0x1000);
        assert_eq!(guest.shadows.count(Counter::Synced), 1);
    });
}

/// The write makes the oldest of the tables that are out of sync come back in sync, which is the one that maps the page. The guest writes
/// its entry in the last moment in which that takes no exit.
#[test]
fn an_entry_that_changes_before_its_table_is_back_in_sync_is_not_mapped_as_it_was() {
    // The first table's second entry maps the last table.
    let (at, gva) = (Gpa::new(LARGE + 4), Gva::new(0x80_1000));
    let mut words = many_tables();
    words.insert(LARGE, (LARGE + (17 << 12) + 0x67) << 32 | 0x3067);
    with_guest(words, TWO_LEVELS, CAPACITY, |guest, cpu| {
        unsync(guest, cpu, 0..16);
        guest.access(cpu, 0, Gva::new(19 << 22), READ, 0);
        let (shadow, view, registers) = (&guest.shadows.shadow, &guest.shadows.views[0], &guest.vcpus[0].registers);
        let has_walked = Cell::new(false);
        let memory = Meanwhile(guest.memory, |moment| match moment {
            Moment::Backing => has_walked.set(true),
            Moment::Read(entry) if entry == at && has_walked.take() => {
                guest.memory.write(at, &0x3067u32.to_le_bytes()).unwrap();
            }
            Moment::Read(_) => {}
        });
        assert_eq!(shadow.fault(cpu, view, &memory, registers, gva, WRITE), Ok(FaultOutcome::Retry));
        assert_eq!(guest.shadows.count(Counter::Synced), 1);
        assert!(!guest.is_mapped(guest.shadows.shadow.root(view), gva));
    });
}

#[test]
fn a_page_that_is_read_is_no_writable_mapping() {
    with_guest(two_levels(0x3065), TWO_LEVELS, CAPACITY, |guest, cpu| {
        guest.access(cpu, 0, Gva::new(0), READ, 0);
        assert_eq!(guest.shadows.count(Counter::Rmap), 0);
    });
}

#[test]
fn the_bits_of_cr3_that_are_no_address_make_no_other_address_space() {
    with_guest(two_levels(0x3067), TWO_LEVELS, CAPACITY, |guest, cpu| {
        let made = guest.shadows.count(Counter::Made);
        load(guest, cpu, 0x1018);
        assert_eq!(guest.shadows.count(Counter::Made), made);
    });
}

#[test]
fn what_was_counted_is_shown_by_name() {
    with_guest(two_levels(0x3067), TWO_LEVELS, CAPACITY, |guest, cpu| {
        guest.access(cpu, 0, Gva::new(0), READ, 0);
        let shown = format!("{}", guest.shadows.shadow.counts());
        assert!(shown.starts_with("faults=1 mapped=1 loads=2 made=2 found="), "{shown}");
    });
}
