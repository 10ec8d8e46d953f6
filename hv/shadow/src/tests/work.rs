//! How much work the cached shadow does, by its counters: what it does once, and what it leaves alone.

use super::cached::{
    CAPACITY, Cached, LARGE_CAPACITY, a_table_within_large_frames, all_one_table, load, maps_itself, with_guest,
};
use super::guest::{Guest, ThisCpu};
use super::memory::{LARGE, Words};
use super::vtlb::{READ, TWO_LEVELS, WRITE, two_levels};
use crate::{Counter, Writer};
use addr::{Gpa, Gva};
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
            guest.write(cpu, Gpa::new(0x2000), &(0x3067 | n % 2 << 12).to_le_bytes());
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
    let table = |n: u64| LARGE + (n << 12) | 0x67;
    let entries = (0..TABLES / 2).map(|n| (0x1008 + n * 8, table(2 * n + 1) << 32 | table(2 * n)));
    let pages = (0..TABLES).map(|n| (LARGE + (n << 12), 0x3067));
    entries.chain(pages).chain([(0x1000, (LARGE | 0xe7) << 32)]).collect()
}

#[test]
fn the_oldest_of_16_tables_out_of_sync_makes_way() {
    with_guest(many_tables(), TWO_LEVELS, CAPACITY, |guest, cpu| {
        (0..TABLES).for_each(|n| guest.access(cpu, 0, Gva::new(n + 2 << 22), READ, 0));
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
