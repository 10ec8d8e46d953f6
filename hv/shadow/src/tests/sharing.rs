//! Tables that several address spaces have in common: who shares a shadow table, and who flushes when an entry of it goes.

use super::cached::{CAPACITY, Cached, load, with_common_table, with_guest};
use super::guest::{Guest, ThisCpu};
use super::memory::{LARGE, Words};
use super::oracle::Seen;
use super::vtlb::{READ, TWO_LEVELS, WRITE, two_levels};
use crate::{Counter, FaultOutcome, Writer};
use addr::{Gpa, Gva};
use std::vec::Vec;
use walk::{Access, AccessKind, Controls, PhysMem, Privilege};

const PAE: Controls = Controls { cr0: 0x8001_0001, cr3: 0x9000, cr4: 0x20, efer: 1 << 11 };
const FETCH: Access = Access { kind: AccessKind::Fetch, ..READ };

/// A fault as of another vCPU that has found no page.
fn fault(guest: &Guest<'_, Cached>, cpu: &ThisCpu<'_>, n: usize, gva: u64, access: Access) -> FaultOutcome {
    let (shadow, view, registers) = (&guest.shadows.shadow, &guest.shadows.views[n], &guest.vcpus[n].registers);
    shadow.fault(cpu, view, guest.memory, registers, Gva::new(gva), access).expect("there are frames")
}

/// The flushes of each root's space.
fn flushes(guest: &Guest<'_, Cached>) -> Vec<u64> {
    guest.shadows.shadow.spaces().map(rcu::Space::flushes).collect()
}

/// The second vCPU's directory, in page 6, refers to the table in page 2 by an entry without one of the rights of the first one's. Both
/// have read linear 0, in either order.
fn with_fewer_rights(right: u64, test: impl Fn(&mut Guest<'_, Cached>, &mut ThisCpu<'_>)) {
    for order in [[0, 1], [1, 0]] {
        let entry = 0x2067;
        let words = Words::from([(0x9000, 0x1001), (0xa000, 0x6001), (0x1000, entry), (0x6000, entry ^ right)]);
        let pages = Words::from([(0x2000, 0x3067), (0x2008, 0x4067)]);
        with_guest(words.into_iter().chain(pages).collect(), PAE, CAPACITY, |guest, cpu| {
            guest.control(cpu, 1, |registers, memory| registers.write_cr3(memory, 0xa000));
            let supervisor = Access { privilege: Privilege::Supervisor { ac: true }, ..READ };
            order.into_iter().for_each(|n| guest.access(cpu, n, Gva::new(0), supervisor, 0));
            assert_eq!(guest.shadows.count(Counter::Shared), 0);
            test(guest, cpu);
            let [first, second] = guest.seen[2..] else { panic!("{:?}", guest.seen) };
            assert!(matches!((first, second), (Seen::Page(_), Seen::Fault(..))), "{:?}", guest.seen);
        });
    }
}

#[test]
fn a_table_is_not_shared_with_an_entry_without_write() {
    with_fewer_rights(1 << 1, |guest, cpu| [0, 1].iter().for_each(|&n| guest.access(cpu, n, Gva::new(0), WRITE, 1)));
}

#[test]
fn a_table_is_not_shared_with_an_entry_of_the_supervisor() {
    with_fewer_rights(1 << 2, |guest, cpu| [0, 1].iter().for_each(|&n| guest.access(cpu, n, Gva::new(0), READ, 0)));
}

#[test]
fn a_table_is_not_shared_with_an_entry_that_forbids_to_execute() {
    with_fewer_rights(1 << 63, |guest, cpu| [0, 1].iter().for_each(|&n| guest.access(cpu, n, Gva::new(0), FETCH, 0)));
}

/// A vCPU faults through a directory's entry whose rights are written, before [`Shadow::write`](crate::Shadow::write) has handled the
/// write.
#[test]
fn a_table_whose_entry_loses_a_right_has_another_shadow() {
    with_common_table(|guest, cpu| {
        [0, 1].iter().for_each(|&n| guest.access(cpu, n, Gva::new(0), WRITE, 1));
        assert_eq!(guest.shadows.count(Counter::Shared), 1);
        guest.memory.write(Gpa::new(0x1000), &0x2065u32.to_le_bytes()).unwrap();
        assert_eq!(fault(guest, cpu, 0, 0x1000, READ), FaultOutcome::Mapped);
        let is_writable = |n| guest.is_writable(guest.shadows.shadow.root(&guest.shadows.views[n]), Gva::new(0));
        assert_eq!([0, 1].map(is_writable), [false, true]);
        guest.shadows.shadow.write(cpu, Gpa::new(0x1000), 4, Writer::Software, || ());
    });
}

#[test]
fn a_write_to_a_common_table_takes_effect_at_once_in_each_address_space() {
    for order in [[0, 1], [1, 0]] {
        with_common_table(|guest, cpu| {
            order.into_iter().for_each(|n| guest.access(cpu, n, Gva::new(0), WRITE, 1));
            guest.write(cpu, Gpa::new(0x2000), &0x5067u32.to_le_bytes());
            for (n, value) in [(0, 10), (1, 11)] {
                guest.access(cpu, n, Gva::new(0), WRITE, value);
                assert_eq!(guest.memory.read_u32(Gpa::new(0x5000)), Some(value), "{n} has the old page in its TLB");
            }
        });
    }
}

#[test]
fn address_spaces_that_share_a_table_are_flushed_when_an_entry_goes_and_no_others() {
    with_common_table(|guest, cpu| {
        [0, 1].iter().for_each(|&n| guest.access(cpu, n, Gva::new(0), WRITE, 1));
        // Nothing is mapped by the entry any more when it is written again.
        for roots in [2, 0] {
            let before = flushes(guest);
            guest.write(cpu, Gpa::new(0x2000), &0x5067u32.to_le_bytes());
            let flushed = flushes(guest).iter().zip(before).filter(|&(now, before)| *now != before).count();
            assert_eq!(flushed, roots);
        }
    });
}

#[test]
fn a_table_of_one_address_space_is_flushed_once() {
    with_guest(two_levels(0x3067), TWO_LEVELS, CAPACITY, |guest, cpu| {
        guest.access(cpu, 0, Gva::new(0), WRITE, 1);
        let before: u64 = flushes(guest).iter().sum();
        guest.write(cpu, Gpa::new(0x2000), &0x5067u32.to_le_bytes());
        assert_eq!(flushes(guest).iter().sum::<u64>(), before + 1);
        // Nothing is mapped by the entry any more.
        guest.write(cpu, Gpa::new(0x2000), &0x3067u32.to_le_bytes());
        assert_eq!(flushes(guest).iter().sum::<u64>(), before + 1);
    });
}

/// The common table is out of sync, and nothing is mapped by its second entry.
#[test]
fn invlpg_of_a_page_that_is_not_mapped_flushes_no_other_address_space() {
    with_common_table(|guest, cpu| {
        [0, 1].iter().for_each(|&n| guest.access(cpu, n, Gva::new(0), WRITE, 1));
        guest.access(cpu, 0, Gva::new(0x1004), WRITE, 0x3067);
        assert_eq!(guest.shadows.count(Counter::Unsynced), 1);
        let (before, zapped) = (flushes(guest), guest.shadows.count(Counter::Zapped));
        guest.invlpg(cpu, 0, Gva::new(0x5000));
        assert_eq!((flushes(guest), guest.shadows.count(Counter::Zapped)), (before, zapped));
        guest.invlpg(cpu, 0, Gva::new(0));
        assert_eq!(guest.shadows.count(Counter::Zapped), zapped + 1);
    });
}

/// The common table is out of sync. Its first entry changes, and one vCPU faults on it while the other has the old page in its TLB.
#[test]
fn a_page_that_replaces_another_one_in_a_common_table_is_everyones_at_once() {
    for (one, other) in [(0, 1), (1, 0)] {
        with_common_table(|guest, cpu| {
            [0, 1].iter().for_each(|&n| guest.access(cpu, n, Gva::new(0), WRITE, 1));
            guest.access(cpu, one, Gva::new(0x1000), WRITE, 0x5067);
            assert_eq!(guest.shadows.count(Counter::Unsynced), 1);
            assert_eq!(fault(guest, cpu, one, 0, WRITE), FaultOutcome::Mapped);
            guest.access(cpu, other, Gva::new(0), WRITE, 9);
            assert_eq!(guest.memory.read_u32(Gpa::new(0x5000)), Some(9));
        });
    }
}

#[test]
fn a_page_that_is_mapped_already_stays() {
    with_guest(two_levels(0x3067), TWO_LEVELS, CAPACITY, |guest, cpu| {
        for _ in 0..2 {
            assert_eq!(fault(guest, cpu, 0, 0, WRITE), FaultOutcome::Mapped);
        }
        assert_eq!(guest.shadows.count(Counter::Zapped), 0);
    });
}

#[test]
fn a_frame_that_is_a_table_for_two_address_spaces_became_read_only_once() {
    with_common_table(|guest, cpu| {
        [0, 1].iter().for_each(|&n| guest.access(cpu, n, Gva::new(0), READ, 0));
        assert_eq!(guest.shadows.count(Counter::Tables), 3, "two directories and the table");
    });
}

#[test]
fn a_directory_of_an_address_space_that_made_way_is_an_ordinary_page() {
    with_common_table(|guest, cpu| {
        [0, 1].iter().for_each(|&n| guest.access(cpu, n, Gva::new(0), READ, 0));
        // The first vCPU leaves its directory, in page 1, for so many others that the root is used again.
        [0x5000, 0x7000, 0x8000, 0x9000].iter().for_each(|&cr3| load(guest, cpu, cr3));
        let written = guest.shadows.count(Counter::Written);
        guest.write(cpu, Gpa::new(0x1000), &0x4067u32.to_le_bytes());
        assert_eq!(guest.shadows.count(Counter::Written), written);
        // The second vCPU's directory is one still.
        guest.write(cpu, Gpa::new(0x2000), &0x5067u32.to_le_bytes());
        guest.write(cpu, Gpa::new(0x6000), &0x7067u32.to_le_bytes());
        assert_eq!(guest.shadows.count(Counter::Written), written + 2);
        guest.access(cpu, 1, Gva::new(0), READ, 0);
        assert!(matches!(guest.seen.last(), Some(Seen::Fault(..))), "{:?}", guest.seen);
    });
}

/// The directory of the one format is a table of the other.
#[test]
fn an_accessed_bit_that_another_format_sets_in_a_directory_is_an_address() {
    // For PAE linear 0 is page 3 by PDPTEs in page 9, a directory in page 1 and a table in page 2. With two levels page 1 is the
    // table of the directory in page 5.
    let words = Words::from([(0x9000, 0x1001), (0x1000, 0x2067), (0x2000, 0x3067), (0x5000, 0x1067)]);
    with_guest(words, PAE, CAPACITY, |guest, cpu| {
        guest.control(cpu, 1, |registers, memory| registers.write(memory, Controls { cr3: 0x5000, ..TWO_LEVELS }));
        guest.access(cpu, 0, Gva::new(0), READ, 0);
        let zapped = guest.shadows.count(Counter::Zapped);
        guest.access(cpu, 1, Gva::new(0), READ, 0);
        assert_eq!(guest.shadows.count(Counter::Zapped), zapped + 1, "the page that the directory led to");
    });
}

/// A table of two levels maps a page behind its first 2 MiB, which are all that it translates for PAE later on. The note of that mapping
/// must not reach what the next table maps there, whose other address spaces would not be flushed.
#[test]
fn a_mapping_of_another_format_is_none_of_the_next_tables() {
    // For PAE: PDPTEs in page 9, a directory in page 6, and the tables in pages 2 and 4.
    let two_levels = Words::from([(0x1000, 0x2067), (0x2800, 0x3067)]);
    let pae = Words::from([(0x9000, 0x6001), (0x6000, 0x2067), (0x6008, 0x4067), (0x2000, 0x7067), (0x4000, 0x5067)]);
    with_guest(two_levels.into_iter().chain(pae).collect(), TWO_LEVELS, CAPACITY, |guest, cpu| {
        let second = Gva::new(0x20_0000);
        guest.access(cpu, 0, second, WRITE, 0x7067);
        guest.control(cpu, 1, |registers, memory| registers.write(memory, PAE));
        guest.access(cpu, 1, Gva::new(0), READ, 0);
        guest.access(cpu, 1, second, WRITE, 0);
        // Page 3 becomes a table.
        guest.write(cpu, Gpa::new(0x6010), &0x3067u64.to_le_bytes());
        guest.access(cpu, 1, Gva::new(0x40_0000), READ, 0);
        assert_eq!(guest.seen.last(), Some(&Seen::Page(Gpa::new(0x7000))));
        assert!(guest.is_mapped(guest.shadows.shadow.root(&guest.shadows.views[1]), second));
    });
}

/// The note of a large page outlives it: the directory's entry refers to a common table then.
#[test]
fn a_large_page_that_was_is_none_of_a_common_tables() {
    let words = Words::from([
        (0x1000, (LARGE | 0xe7) << 32),
        (0x6000, 0x2067 << 32),
        (0x2000, 0x3067),
        (0x5000, 0x7067),
        (LARGE, 0x7067),
    ]);
    with_guest(words, TWO_LEVELS, CAPACITY, |guest, cpu| {
        let gva = Gva::new(0x40_0000);
        guest.control(cpu, 1, |registers, memory| registers.write_cr3(memory, 0x6000));
        guest.access(cpu, 0, gva, WRITE, 0x7067);
        guest.write(cpu, Gpa::new(0x1004), &0x2067u32.to_le_bytes());
        [0, 1].iter().for_each(|&n| guest.access(cpu, n, gva, WRITE, 0x5067));
        assert_eq!(guest.shadows.count(Counter::Shared), 1);
        // The first frame of what was the large page becomes a table.
        guest.write(cpu, Gpa::new(0x1008), &(LARGE as u32 | 0x67).to_le_bytes());
        guest.access(cpu, 0, Gva::new(0x80_0000), READ, 0);
        // The page that both have in their TLBs becomes a directory: the second vCPU must not write it without an exit.
        load(guest, cpu, 0x3000);
        guest.access(cpu, 0, Gva::new(0), READ, 0);
        let written = guest.shadows.count(Counter::Written);
        guest.access(cpu, 1, gva, WRITE, 0x4067);
        assert_eq!(guest.shadows.count(Counter::Written), written + 1);
    });
}

#[test]
fn without_paging_a_page_that_becomes_a_table_is_read_only_at_once() {
    with_guest(two_levels(0x3067), TWO_LEVELS, CAPACITY, |guest, cpu| {
        let off = Controls { cr0: 1, ..TWO_LEVELS };
        guest.control(cpu, 1, |registers, memory| registers.write(memory, off));
        guest.access(cpu, 1, Gva::new(0x2008), WRITE, 0);
        guest.access(cpu, 0, Gva::new(0), READ, 0);
        let written = guest.shadows.count(Counter::Unsynced);
        guest.access(cpu, 1, Gva::new(0x2000), WRITE, 0x5067);
        assert_eq!(guest.shadows.count(Counter::Unsynced), written + 1, "it took an exit");
    });
}

#[test]
fn a_common_table_is_none_any_more_when_one_address_space_has_not_used_it_for_six_writes() {
    for user in [0, 1] {
        with_common_table(|guest, cpu| {
            let write = |guest: &mut Guest<'_, Cached>, cpu: &mut ThisCpu<'_>| {
                guest.write(cpu, Gpa::new(0x2000), &0x3067u32.to_le_bytes());
            };
            [0, 1].iter().for_each(|&n| guest.access(cpu, n, Gva::new(0), READ, 0));
            (1..6).for_each(|_| write(guest, cpu));
            guest.access(cpu, user, Gva::new(0), READ, 0);
            assert_eq!(guest.shadows.count(Counter::Flooded), 0);
            write(guest, cpu);
            assert_eq!(guest.shadows.count(Counter::Flooded), 1);
        });
    }
}

/// The common table is out of sync when one address space does not use it any more.
#[test]
fn a_common_table_stays_out_of_sync_for_the_other_address_space() {
    with_common_table(|guest, cpu| {
        [0, 1].iter().for_each(|&n| guest.access(cpu, n, Gva::new(0), WRITE, 1));
        guest.access(cpu, 1, Gva::new(0x1000), WRITE, 0x3067);
        assert_eq!(guest.shadows.count(Counter::Unsynced), 1);
        guest.write(cpu, Gpa::new(0x1000), &0u32.to_le_bytes());
        guest.access(cpu, 1, Gva::new(0x1000), WRITE, 0x5067);
        guest.load(cpu, 1);
        guest.access(cpu, 1, Gva::new(0), WRITE, 4);
        assert_eq!(guest.memory.read_u32(Gpa::new(0x5000)), Some(4));
    });
}

/// One address space has its directory in page 1, with a large page in the second entry. To the other one page 1 is a table that the
/// supervisor may read, so that both uses have the same role, and its own second entry refers to the table in page 2.
#[test]
fn a_directory_with_a_large_page_shares_no_table_with_a_use_of_it_as_a_table() {
    let words = Words::from([(0x1000, (LARGE | 0xe7) << 32), (0x6000, 0x2067 << 32 | 0x1001), (0x2000, 0x3067)]);
    with_guest(words, TWO_LEVELS, CAPACITY, |guest, cpu| {
        let supervisor = Access { privilege: Privilege::Supervisor { ac: true }, ..READ };
        guest.control(cpu, 1, |registers, memory| registers.write_cr3(memory, 0x6000));
        guest.access(cpu, 1, Gva::new(0x1000), supervisor, 0);
        guest.access(cpu, 1, Gva::new(0x40_0000), READ, 0);
        [0, 1].iter().for_each(|&n| guest.access(cpu, n, Gva::new(0x40_5000), READ, 0));
        assert_eq!(guest.shadows.count(Counter::Shared), 0);
        let [.., page, fault] = &guest.seen[..] else { panic!("{:?}", guest.seen) };
        assert!(matches!((page, fault), (Seen::Page(_), Seen::Fault(..))), "{:?}", guest.seen);
    });
}
