//! The cached shadow, compared with the oracle and with the virtual TLB.

use super::guest::{Format, Guest, Shadows, Tables, ThisCpu};
use super::memory::{GuestMemory, LARGE, Meanwhile, Moment, Words};
use super::oracle::{Oracle, Seen};
use super::sequences::{self, Story, play, story};
use super::vtlb::{self, CAPS, READ, TWO_LEVELS, VCPUS, WRITE, two_levels};
use crate::{Capacity, Counter, FaultOutcome, NoMemory, Reason, Registers, Shadow, View, Writer};
use addr::{Gpa, Gva, Pfn};
use mmu::pool::{self, Pool};
use proptest::prelude::*;
use rcu::{Flush, Space};
use std::vec::Vec;
use walk::{Access, AccessKind, Controls, PhysMem, Privilege};

const FRAMES: usize = 128;
const ROOTS: usize = VCPUS + 2;
pub(super) const CAPACITY: Capacity = Capacity { tables: 256, uses: 256, mappings: 1024 };
/// Enough for the tests that map one page, or one table, thousands of times.
pub(super) const LARGE_CAPACITY: Capacity = Capacity { tables: 4096, uses: 4096, mappings: 16_384 };

pub(super) struct Cached {
    pub(super) shadow: Shadow<Pool<Format>>,
    pub(super) views: Vec<View>,
}

impl Cached {
    pub(super) fn count(&self, counter: Counter) -> u64 {
        self.shadow.counts().get(counter)
    }
}

impl Shadows for Cached {
    fn root(&self, vcpu: usize) -> Pfn {
        self.shadow.root(&self.views[vcpu])
    }
    fn space(&self, vcpu: usize) -> &Space {
        self.shadow.space(&self.views[vcpu])
    }
    fn roots(&self) -> usize {
        ROOTS
    }
    fn load(&self, cpu: &ThisCpu<'_>, _: &GuestMemory, vcpu: usize, registers: &Registers) -> Flush {
        self.shadow.load(cpu, &self.views[vcpu], registers);
        Flush::Keep
    }
    fn invlpg(&self, cpu: &ThisCpu<'_>, _: &GuestMemory, vcpu: usize, gva: Gva) -> Flush {
        self.shadow.invlpg(cpu, &self.views[vcpu], gva);
        Flush::Keep
    }
    fn fault(
        &self,
        cpu: &ThisCpu<'_>,
        memory: &GuestMemory,
        vcpu: usize,
        registers: &Registers,
        gva: Gva,
        access: Access,
    ) -> Result<FaultOutcome, NoMemory> {
        self.shadow.fault(cpu, &self.views[vcpu], memory, registers, gva, access)
    }
    fn write(&self, cpu: &ThisCpu<'_>, memory: &GuestMemory, gpa: Gpa, bytes: &[u8]) {
        let store = || memory.write(gpa, bytes).expect("it is memory");
        self.shadow.write(cpu, gpa, bytes.len(), Writer::Software, store);
    }
    fn forget(&self, cpu: &ThisCpu<'_>, _: Gpa) {
        self.shadow.suspend(cpu);
        self.shadow.resume();
    }
}

/// Runs `test` on a guest with a shadow of this capacity, and checks that all frames are free afterwards.
pub(super) fn with_guest<R>(
    words: Words,
    controls: Controls,
    capacity: Capacity,
    test: impl FnOnce(&mut Guest<'_, Cached>, &mut ThisCpu<'_>) -> R,
) -> R {
    let tables = Tables::new(FRAMES);
    let domain = pool::domain::<Format, 1>(&tables);
    let mut cpu = domain.register(0).expect("it is the first");
    let envs = (0..ROOTS).map(|_| Pool::new(&tables, &domain));
    let shadow = Shadow::new(envs, CAPS, capacity, 1).expect("there are frames");
    let memory = GuestMemory::new(words.clone());
    let registers = sequences::registers(&memory, controls);
    let views: Vec<_> = (0..VCPUS).map(|_| shadow.view(&cpu).expect("there are more roots")).collect();
    views.iter().for_each(|view| shadow.load(&cpu, view, &registers));
    let shadows = Cached { views, shadow };
    let vcpus = (0..VCPUS).map(|_| Guest::<Cached>::vcpu(registers.clone())).collect();
    let oracle = Oracle::new(words, VCPUS);
    let mut guest = Guest { tables: &tables, shadows: &shadows, memory: &memory, vcpus, oracle, seen: Vec::new() };
    let result = test(&mut guest, &mut cpu);
    assert_eq!(tables.bad(), []);
    shadows.shadow.into_trees().into_iter().for_each(|tree| tree.free_pgtables(|_, _, _| {}));
    cpu.barrier(|table| tables.free(table));
    assert_eq!(tables.in_use(), 0, "frames have leaked");
    result
}

/// The results of all accesses, and the memory at the end.
fn outcome(story: &Story, capacity: Capacity) -> (Vec<Seen>, Words) {
    with_guest(story.words.clone(), story.controls, capacity, |guest, cpu| {
        play(guest, cpu, &story.steps, true);
        (guest.seen.clone(), guest.memory.words.borrow().clone())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn a_guest_sees_what_the_manual_allows(story in story(VCPUS)) {
        with_guest(story.words, story.controls, CAPACITY, |guest, cpu| play(guest, cpu, &story.steps, false));
    }

    /// The capacity is so small that roots and mappings make way for each other now and then.
    #[test]
    fn a_guest_sees_the_same_when_the_metadata_is_often_full(story in story(VCPUS), tables in 2usize..5, mappings in 1u32..5) {
        let capacity = Capacity { tables, uses: 4, mappings };
        with_guest(story.words, story.controls, capacity, |guest, cpu| play(guest, cpu, &story.steps, false));
    }

    /// If every vCPU drops its translations after every change, the manual allows one result only.
    #[test]
    fn the_cached_shadow_and_the_vtlb_agree(story in story(VCPUS)) {
        let cached = outcome(&story, CAPACITY);
        vtlb::with_guest(story.words, story.controls, |guest, cpu, _| {
            play(guest, cpu, &story.steps, true);
            assert_eq!(cached, (guest.seen.clone(), guest.memory.words.borrow().clone()));
        });
    }
}

pub(super) fn load(guest: &mut Guest<'_, Cached>, cpu: &ThisCpu<'_>, cr3: u64) {
    guest.control(cpu, 0, |registers, memory| registers.write_cr3(memory, cr3));
}

#[test]
fn an_address_space_is_found_again() {
    with_guest(two_levels(0x3007), TWO_LEVELS, CAPACITY, |guest, cpu| {
        guest.access(cpu, 0, Gva::new(0), WRITE, 1);
        let faults = guest.shadows.count(Counter::Faults);
        load(guest, cpu, 0x5000);
        load(guest, cpu, 0x1000);
        guest.access(cpu, 0, Gva::new(4), WRITE, 1);
        assert_eq!(guest.shadows.count(Counter::Faults), faults, "the page is still there");
        // The second vCPU has never been there.
        guest.access(cpu, 1, Gva::new(8), WRITE, 1);
        assert_eq!(guest.shadows.count(Counter::Faults), faults, "for all vCPUs");
    });
}

#[test]
fn the_root_that_was_loaded_longest_ago_is_reused() {
    with_guest(two_levels(0x3007), TWO_LEVELS, CAPACITY, |guest, cpu| {
        guest.access(cpu, 0, Gva::new(0), READ, 0);
        // The second vCPU stays in the first space, so its root is never reused.
        let spaces = [0x5000, 0x6000, 0x7000, 0x8000];
        spaces.iter().for_each(|&cr3| load(guest, cpu, cr3));
        let made = guest.shadows.count(Counter::Made);
        load(guest, cpu, 0x7000);
        assert_eq!(guest.shadows.count(Counter::Made), made, "one of the last");
        load(guest, cpu, 0x5000);
        assert_eq!(guest.shadows.count(Counter::Made), made + 1, "the first of all");
        let faults = guest.shadows.count(Counter::Faults);
        guest.access(cpu, 1, Gva::new(0), READ, 0);
        assert_eq!(guest.shadows.count(Counter::Faults), faults);
    });
}

/// The table is mapped at linear 0x1000.
pub(super) fn maps_itself() -> Words {
    let mut words = two_levels(0x3067 | 0x2067 << 32);
    words.insert(0x2008, 0x5067 << 32);
    words
}

#[test]
fn a_write_to_a_directory_is_emulated_and_takes_effect_at_once() {
    // The directory is mapped at linear 0x1000, a large page at linear 4 MiB.
    let mut words = two_levels(0x1067 << 32 | 0x3067);
    words.insert(0x5000, 0x4067);
    with_guest(words, TWO_LEVELS, CAPACITY, |guest, cpu| {
        guest.access(cpu, 0, Gva::new(0x40_0000), WRITE, 1);
        let registers = guest.vcpus[0].registers.clone();
        let outcome = guest.shadows.fault(cpu, guest.memory, 0, &registers, Gva::new(0x1004), WRITE);
        assert_eq!(outcome, Ok(FaultOutcome::Emulate { gpa: Gpa::new(0x1004), reason: Reason::Table }));
        // Linear 4 MiB becomes page 4, by a table in page 5.
        guest.access(cpu, 0, Gva::new(0x1004), WRITE, 0x5067);
        assert_eq!(guest.shadows.count(Counter::Written), 1);
        guest.access(cpu, 0, Gva::new(0x40_0000), WRITE, 77);
        assert_eq!(guest.memory.read_u32(Gpa::new(0x4000)), Some(77));
    });
}

#[test]
fn a_last_level_is_out_of_sync_from_its_first_write_to_the_next_load() {
    with_guest(maps_itself(), TWO_LEVELS, CAPACITY, |guest, cpu| {
        guest.access(cpu, 0, Gva::new(0), WRITE, 1);
        // Linear 0 becomes page 4 and page 3 by turns.
        for round in 1..=3 {
            for page in [4u64, 3] {
                guest.access(cpu, 0, Gva::new(0x1000), WRITE, (page << 12 | 0x67) as u32);
                guest.invlpg(cpu, 0, Gva::new(0));
                guest.access(cpu, 0, Gva::new(0), WRITE, round * 10 + page as u32);
                assert_eq!(guest.memory.read_u32(Gpa::new(page << 12)), Some(round * 10 + page as u32));
            }
            assert_eq!(guest.shadows.count(Counter::Unsynced), round.into());
            assert_eq!(guest.shadows.count(Counter::Written), 0, "no exit");
            load(guest, cpu, 0x1000);
            assert_eq!(guest.shadows.count(Counter::Synced), round.into());
        }
    });
}

#[test]
fn a_table_that_is_out_of_sync_is_back_in_sync_when_it_becomes_a_directory() {
    with_guest(maps_itself(), TWO_LEVELS, CAPACITY, |guest, cpu| {
        guest.access(cpu, 0, Gva::new(0x1000), WRITE, 0x3067);
        assert_eq!(guest.shadows.count(Counter::Unsynced), 1);
        // The second vCPU uses page 2 as its directory, whose second entry refers to page 2 itself as a table.
        guest.control(cpu, 1, |registers, memory| registers.write_cr3(memory, 0x2000));
        guest.access(cpu, 1, Gva::new(0x40_0000), READ, 0);
        assert_eq!(guest.shadows.count(Counter::Synced), 1);
        guest.access(cpu, 0, Gva::new(0x1000), WRITE, 0x4067);
        assert_eq!(guest.shadows.count(Counter::Unsynced), 1, "it is emulated");
    });
}

#[test]
fn a_page_that_becomes_a_table_is_read_only_at_once() {
    with_guest(maps_itself(), TWO_LEVELS, CAPACITY, |guest, cpu| {
        // Page 5, at linear 0x3000, is written before it is a table: the directory's second entry refers to it then.
        guest.access(cpu, 0, Gva::new(0x3000), WRITE, 0x4067);
        guest.write(cpu, Gpa::new(0x1004), &0x5067u32.to_le_bytes());
        guest.access(cpu, 0, Gva::new(0x40_0000), WRITE, 1);
        guest.access(cpu, 0, Gva::new(0x3000), WRITE, 0x3067);
        assert_eq!(guest.shadows.count(Counter::Unsynced), 1, "it took an exit");
        guest.invlpg(cpu, 0, Gva::new(0x40_0000));
        guest.access(cpu, 0, Gva::new(0x40_0000), WRITE, 9);
        assert_eq!(guest.memory.read_u32(Gpa::new(0x3000)), Some(9));
    });
}

#[test]
fn a_table_that_is_only_written_is_not_shadowed_any_more() {
    with_guest(two_levels(0x3067), TWO_LEVELS, CAPACITY, |guest, cpu| {
        guest.access(cpu, 0, Gva::new(0), READ, 0);
        for n in 0..20u64 {
            guest.write(cpu, Gpa::new(0x2000), &(0x3067 | n << 12).to_le_bytes());
        }
        assert_eq!(guest.shadows.count(Counter::Flooded), 1);
        let written = guest.shadows.count(Counter::Written);
        assert!(written < 20, "the last writes were to an ordinary page");
        guest.write(cpu, Gpa::new(0x2000), &0x4067u64.to_le_bytes());
        guest.access(cpu, 0, Gva::new(0), WRITE, 5);
        assert_eq!(guest.memory.read_u32(Gpa::new(0x4000)), Some(5));
        guest.write(cpu, Gpa::new(0x2000), &0x3067u64.to_le_bytes());
        assert_eq!(guest.shadows.count(Counter::Written), written + 1, "the fault has recorded it as a table again");
    });
}

#[test]
fn a_directory_whose_write_can_not_be_emulated_is_unshadowed() {
    // Linear 4 MiB is page 6 by a table in page 5; for the second vCPU page 6 is the directory.
    let mut words = two_levels(0x3067);
    words.insert(0x1000, 0x5067 << 32 | 0x2067);
    words.insert(0x5000, 0x6067);
    words.insert(0x6000, 0x2067);
    with_guest(words, TWO_LEVELS, CAPACITY, |guest, cpu| {
        guest.control(cpu, 1, |registers, memory| registers.write_cr3(memory, 0x6000));
        guest.access(cpu, 1, Gva::new(0), READ, 0);
        let registers = guest.vcpus[0].registers.clone();
        let fault = |guest: &Guest<'_, Cached>, cpu: &ThisCpu<'_>| {
            guest.shadows.fault(cpu, guest.memory, 0, &registers, Gva::new(0x40_0000), WRITE)
        };
        let directory = Gpa::new(0x6000);
        assert_eq!(fault(guest, cpu), Ok(FaultOutcome::Emulate { gpa: directory, reason: Reason::Table }));
        guest.shadows.shadow.unshadow(cpu, directory);
        assert_eq!(fault(guest, cpu), Ok(FaultOutcome::Mapped));
        // The second vCPU's linear 0 becomes page 6 itself.
        guest.access(cpu, 0, Gva::new(0x40_0000), WRITE, 0x5067);
        guest.access(cpu, 1, Gva::new(8), WRITE, 3);
        assert_eq!(guest.memory.read_u32(Gpa::new(0x6008)), Some(3));
    });
}

#[test]
fn an_entry_written_in_halves_is_read_whole() {
    // PAE: linear 0 is page 3, by PDPTEs in page 9, a directory in page 1, a table in page 2.
    let words = Words::from([(0x9000, 0x1001), (0x1000, 0x2067), (0x2000, 0x3067)]);
    let controls = Controls { cr0: 0x8001_0001, cr3: 0x9000, cr4: 0x20, efer: 1 << 11 };
    with_guest(words, controls, CAPACITY, |guest, cpu| {
        guest.access(cpu, 0, Gva::new(0), WRITE, 1);
        // In the architected order: clear low, set high (NX), set low.
        for (at, half) in [(0x2000, 0), (0x2004, 1u32 << 31), (0x2000, 0x4067)] {
            guest.write(cpu, Gpa::new(at), &half.to_le_bytes());
            guest.access(cpu, 0, Gva::new(0), WRITE, 8);
        }
        assert_eq!(guest.memory.read_u32(Gpa::new(0x4000)), Some(8));
        assert!(matches!(guest.seen[..], [Seen::Page(_), Seen::Fault(2 | 6, _), Seen::Fault(2 | 6, _), Seen::Page(_)]));
    });
}

/// Two directories, in pages 1 and 6, have the table in page 2 in common: the second vCPU is in the second address space.
pub(super) fn with_common_table(test: impl FnOnce(&mut Guest<'_, Cached>, &mut ThisCpu<'_>)) {
    let mut words = two_levels(0x3067 | 0x2067 << 32);
    words.insert(0x6000, 0x2007);
    words.insert(0x5000, 0x7067);
    with_guest(words, TWO_LEVELS, CAPACITY, |guest, cpu| {
        guest.control(cpu, 1, |registers, memory| registers.write_cr3(memory, 0x6000));
        test(guest, cpu);
    });
}

#[test]
fn address_spaces_share_the_shadow_of_a_common_table() {
    with_common_table(|guest, cpu| {
        guest.access(cpu, 0, Gva::new(0), WRITE, 1);
        let (tables, mapped) = (guest.tables.in_use(), guest.shadows.count(Counter::Mapped));
        guest.access(cpu, 1, Gva::new(0), WRITE, 2);
        assert_eq!(guest.shadows.count(Counter::Shared), 1);
        assert_eq!(guest.tables.in_use(), tables + 1, "the second space has a directory of its own");
        assert_eq!(guest.shadows.count(Counter::Mapped), mapped + 1, "its fault counts, too");
        // A page that one of them maps now is mapped for the other.
        guest.access(cpu, 1, Gva::new(0x1000), READ, 0);
        let faults = guest.shadows.count(Counter::Faults);
        guest.access(cpu, 0, Gva::new(0x1000), READ, 0);
        assert_eq!(guest.shadows.count(Counter::Faults), faults);
    });
}

#[test]
fn a_common_table_that_one_address_space_unlinks_stays_with_the_other() {
    with_common_table(|guest, cpu| {
        [0, 1].iter().for_each(|&n| guest.access(cpu, n, Gva::new(0), WRITE, 1));
        guest.write(cpu, Gpa::new(0x1000), &0x4007u32.to_le_bytes());
        guest.access(cpu, 0, Gva::new(0), READ, 0);
        assert!(matches!(guest.seen[..], [Seen::Page(_), Seen::Page(_), Seen::Fault(..)]));
        let faults = guest.shadows.count(Counter::Faults);
        load(guest, cpu, 0x6000);
        guest.access(cpu, 0, Gva::new(0), WRITE, 3);
        guest.access(cpu, 1, Gva::new(0), WRITE, 4);
        assert_eq!(guest.shadows.count(Counter::Faults), faults, "its pages are still mapped");
        // The frame is still a table: a write is emulated.
        guest.write(cpu, Gpa::new(0x2000), &0x5067u32.to_le_bytes());
        guest.access(cpu, 1, Gva::new(0), WRITE, 5);
        assert_eq!(guest.memory.read_u32(Gpa::new(0x5000)), Some(5));
    });
}

#[test]
fn processors_in_each_address_space_flush_when_a_page_of_a_common_table_is_zapped() {
    for (one, other) in [(0, 1), (1, 0)] {
        with_common_table(|guest, cpu| {
            // Both have page 3 writable in their TLBs. It becomes a directory, by which linear 0 is page 7.
            [0, 1].iter().for_each(|&n| guest.access(cpu, n, Gva::new(0), WRITE, 0x5067));
            assert_eq!(guest.shadows.count(Counter::Shared), 1);
            guest.control(cpu, one, |registers, memory| registers.write_cr3(memory, 0x3000));
            guest.access(cpu, one, Gva::new(0), WRITE, 6);
            assert_eq!(guest.memory.read_u32(Gpa::new(0x7000)), Some(6));
            let written = guest.shadows.count(Counter::Written);
            guest.access(cpu, other, Gva::new(0), WRITE, 0x2067);
            assert_eq!(guest.shadows.count(Counter::Written), written + 1, "{other} has written a directory unnoticed");
        });
    }
}

#[test]
fn a_page_that_one_address_space_has_zapped_is_in_no_tlb() {
    with_common_table(|guest, cpu| {
        [0, 1].iter().for_each(|&n| guest.access(cpu, n, Gva::new(0), WRITE, 0x5067));
        // The table, which is mapped at linear 0x1000, goes out of sync; the first vCPU zaps linear 0.
        guest.access(cpu, 0, Gva::new(0x1004), WRITE, 0x2067);
        assert_eq!(guest.shadows.count(Counter::Unsynced), 1);
        guest.invlpg(cpu, 0, Gva::new(0));
        // Page 3, which nothing maps any more, becomes a directory: the second vCPU must not write it without an exit.
        load(guest, cpu, 0x3000);
        guest.access(cpu, 0, Gva::new(0), READ, 0);
        let written = guest.shadows.count(Counter::Written);
        guest.access(cpu, 1, Gva::new(0), WRITE, 0x4067);
        assert_eq!(guest.shadows.count(Counter::Written), written + 1);
    });
}

#[test]
fn each_of_several_shadows_of_a_table_is_write_protected() {
    for (one, other) in [(0, 1), (1, 0)] {
        with_common_table(|guest, cpu| {
            // The directories' entries give other rights (supervisor and user), so that each space has its own shadow.
            guest.write(cpu, Gpa::new(0x6000), &0x2003u32.to_le_bytes());
            let supervisor = Access { privilege: Privilege::Supervisor { ac: false }, ..WRITE };
            [0, 1].iter().for_each(|&n| guest.access(cpu, n, Gva::new(0), supervisor, 0x5067));
            assert_eq!(guest.shadows.count(Counter::Shared), 0);
            guest.control(cpu, one, |registers, memory| registers.write_cr3(memory, 0x3000));
            guest.access(cpu, one, Gva::new(0), READ, 0);
            let written = guest.shadows.count(Counter::Written);
            guest.access(cpu, other, Gva::new(0), supervisor, 0x4067);
            assert_eq!(guest.shadows.count(Counter::Written), written + 1);
        });
    }
}

/// The write comes before the table is write-protected, so that no exit tells of it.
#[test]
fn an_entry_that_changes_during_the_fault_is_not_mapped_as_it_was() {
    with_guest(two_levels(0x3067), TWO_LEVELS, CAPACITY, |guest, cpu| {
        let (at, word) = (Gpa::new(0x2000), 0x4067u32);
        guest.oracle.write(at, &word.to_le_bytes());
        let (shadow, view, registers) = (&guest.shadows.shadow, &guest.shadows.views[0], &guest.vcpus[0].registers);
        let memory = Meanwhile(guest.memory, |moment| {
            if moment == Moment::Backing {
                guest.memory.write(at, &word.to_le_bytes()).unwrap();
            }
        });
        let outcome = shadow.fault(cpu, view, &memory, registers, Gva::new(0), WRITE);
        assert_eq!(outcome, Ok(FaultOutcome::Retry));
        assert!(!guest.is_mapped(guest.shadows.root(0), Gva::new(0)));
        guest.access(cpu, 0, Gva::new(0), WRITE, 5);
        assert_eq!(guest.memory.read_u32(Gpa::new(0x4000)), Some(5));
    });
}

/// A vCPU faults through a directory's entry whose bytes are written, before [`Shadow::write`] has handled the write.
#[test]
fn an_entry_whose_write_is_not_handled_yet_leaves_a_common_table_as_it_is() {
    // A table in page 4, and a large page.
    for entry in [0x4067u32, 0x40_00e7] {
        with_common_table(|guest, cpu| {
            guest.write(cpu, Gpa::new(0x4008), &0x7067u32.to_le_bytes());
            [0, 1].iter().for_each(|&n| guest.access(cpu, n, Gva::new(0), WRITE, 1));
            assert_eq!(guest.shadows.count(Counter::Shared), 1);
            guest.memory.write(Gpa::new(0x1000), &entry.to_le_bytes()).unwrap();
            let fault = |n: usize, gva| {
                let registers = &guest.vcpus[n].registers;
                guest.shadows.fault(cpu, guest.memory, n, registers, Gva::new(gva), READ)
            };
            assert_eq!(fault(0, 0x2000), Ok(FaultOutcome::Mapped));
            // The second space has no page there.
            assert!(matches!(fault(1, 0x2000), Ok(FaultOutcome::Inject { .. })));
            let root = guest.shadows.root(1);
            assert!(!guest.is_mapped(root, Gva::new(0x2000)), "{entry:x}");
            assert!(guest.is_mapped(root, Gva::new(0)), "{entry:x}");
            guest.shadows.shadow.write(cpu, Gpa::new(0x1000), 4, Writer::Software, || ());
        });
    }
}

#[test]
fn a_page_that_the_supervisor_may_execute_without_smep_is_not_executable_with_it() {
    let controls = Controls { cr0: 0x8000_0001, ..TWO_LEVELS };
    with_guest(two_levels(0x3065), controls, CAPACITY, |guest, cpu| {
        let access = |kind| Access { kind, privilege: Privilege::Supervisor { ac: false } };
        // The write gives the supervisor an entry of its own.
        guest.access(cpu, 0, Gva::new(0), access(AccessKind::Write), 1);
        guest.access(cpu, 0, Gva::new(0), access(AccessKind::Fetch), 0);
        let smep = Controls { cr4: controls.cr4 | 1 << 20, ..controls };
        guest.control(cpu, 0, |registers, memory| registers.write(memory, smep));
        guest.access(cpu, 0, Gva::new(0), access(AccessKind::Fetch), 0);
        assert!(matches!(guest.seen[..], [Seen::Page(_), Seen::Page(_), Seen::Fault(..)]), "{:?}", guest.seen);
    });
}

#[test]
fn a_linear_address_has_32_bits() {
    with_guest(two_levels(0x3067), TWO_LEVELS, CAPACITY, |guest, cpu| {
        let (shadow, view, registers) = (&guest.shadows.shadow, &guest.shadows.views[0], &guest.vcpus[0].registers);
        let gva = Gva::new(0xffff_ffff_0000_0000);
        assert_eq!(shadow.fault(cpu, view, guest.memory, registers, gva, READ), Ok(FaultOutcome::Mapped));
        assert!(guest.is_mapped(shadow.root(view), Gva::new(0)));
    });
}

#[test]
fn there_are_no_more_views_than_roots() {
    with_guest(two_levels(0), TWO_LEVELS, CAPACITY, |guest, cpu| {
        let more = (0..).take_while(|_| guest.shadows.shadow.view(cpu).is_ok()).count();
        assert_eq!(more, ROOTS - VCPUS);
    });
}

#[test]
fn nothing_is_mapped_while_frames_change() {
    with_guest(two_levels(0x3007), TWO_LEVELS, CAPACITY, |guest, cpu| {
        guest.access(cpu, 0, Gva::new(0), READ, 0);
        let (shadow, view, registers) = (&guest.shadows.shadow, &guest.shadows.views[0], &guest.vcpus[0].registers);
        let fault = || shadow.fault(cpu, view, guest.memory, registers, Gva::new(0), READ);
        let zapped = guest.shadows.count(Counter::Zapped);
        shadow.suspend(cpu);
        shadow.suspend(cpu);
        assert_eq!(guest.shadows.count(Counter::Zapped), zapped + 1);
        for _ in 0..2 {
            assert_eq!(fault(), Ok(FaultOutcome::Retry));
            shadow.resume();
        }
        assert_eq!(fault(), Ok(FaultOutcome::Mapped));
    });
}

#[test]
fn a_page_whose_frame_changes_during_the_fault_is_not_mapped() {
    with_guest(two_levels(0x3007), TWO_LEVELS, CAPACITY, |guest, cpu| {
        let (shadow, view, registers) = (&guest.shadows.shadow, &guest.shadows.views[0], &guest.vcpus[0].registers);
        let memory = Meanwhile(guest.memory, |moment| {
            if moment == Moment::Backing {
                shadow.suspend(cpu);
                guest.memory.replace(3);
                shadow.resume();
            }
        });
        assert_eq!(shadow.fault(cpu, view, &memory, registers, Gva::new(0), READ), Ok(FaultOutcome::Retry));
        assert!(!guest.is_mapped(guest.shadows.root(0), Gva::new(0)));
    });
}

#[test]
fn without_frames_a_fault_fails_and_may_be_tried_again() {
    with_guest(two_levels(0x3007), TWO_LEVELS, CAPACITY, |guest, cpu| {
        let registers = guest.vcpus[0].registers.clone();
        let fault = |guest: &Guest<'_, Cached>, cpu: &ThisCpu<'_>| {
            guest.shadows.fault(cpu, guest.memory, 0, &registers, Gva::new(0), READ)
        };
        let before = guest.tables.in_use();
        for budget in 0..2 {
            guest.tables.limit(Some(budget));
            assert_eq!(fault(guest, cpu), Err(NoMemory));
            assert_eq!(guest.tables.in_use(), before);
        }
        guest.tables.limit(None);
        assert_eq!(fault(guest, cpu), Ok(FaultOutcome::Mapped));
    });
}

/// A directory in page 1: linear 0 to 4 MiB is mapped by a table within the large frames, linear 4 MiB to 8 MiB is a large page
/// of all these frames.
pub(super) fn a_table_within_large_frames() -> Words {
    let table = LARGE + 0x3000;
    let directory = (LARGE | 0xe7) << 32 | table | 0x67;
    Words::from([(0x1000, directory), (table, 0x3067)])
}

/// The linear address of the table in [`a_table_within_large_frames`].
const TABLE: Gva = Gva::new(0x40_3000);

#[test]
fn a_large_page_is_no_way_to_write_a_table_that_it_contains() {
    for large_first in [false, true] {
        with_guest(a_table_within_large_frames(), TWO_LEVELS, CAPACITY, |guest, cpu| {
            let mut gvas = [Gva::new(0), Gva::new(0x40_0000)];
            if large_first {
                gvas.reverse();
            }
            gvas.iter().for_each(|&gva| guest.access(cpu, 0, gva, WRITE, 1));
            guest.access(cpu, 0, TABLE, WRITE, 0x4067);
            assert_eq!(guest.shadows.count(Counter::Unsynced), 1, "it took an exit");
            guest.invlpg(cpu, 0, Gva::new(0));
            guest.access(cpu, 0, Gva::new(0), WRITE, 6);
            assert_eq!(guest.memory.read_u32(Gpa::new(0x4000)), Some(6));
        });
    }
}

#[test]
fn an_accessed_bit_of_one_format_is_an_address_of_the_other() {
    // For PAE linear 0 is page 3 by PDPTEs in page 9, a directory in page 1 and the table in page 2. With two levels, by a
    // directory in page 5, the halves of the table's first entry are entries: 0x1000 is page 6 by the high one.
    let words = Words::from([(0x9000, 0x1001), (0x1000, 0x2067), (0x2000, 0x3067), (0x5000, 0x2067)]);
    let pae = Controls { cr0: 0x8001_0001, cr3: 0x9000, cr4: 0x20, efer: 0 };
    with_guest(words, pae, CAPACITY, |guest, cpu| {
        guest.control(cpu, 1, |registers, memory| registers.write(memory, Controls { cr3: 0x5000, ..TWO_LEVELS }));
        guest.access(cpu, 0, Gva::new(0), READ, 0);
        let zapped = guest.shadows.count(Counter::Zapped);
        // The first walk with two levels.
        guest.access(cpu, 1, Gva::new(0), READ, 0);
        assert_eq!(guest.shadows.count(Counter::Zapped), zapped + 1, "the entry in the other format");
        guest.access(cpu, 0, Gva::new(0), READ, 0);
        assert_eq!(guest.shadows.count(Counter::Zapped), zapped + 2, "and the other way round");
    });
}

#[test]
fn one_fault_flushes_each_address_space_a_few_times_at_most() {
    with_guest(all_one_table(), TWO_LEVELS, LARGE_CAPACITY, |guest, cpu| {
        let fault = |n: usize, gva, registers: &Registers| {
            guest.shadows.fault(cpu, guest.memory, n, registers, Gva::new(gva), WRITE)
        };
        let one = guest.vcpus[0].registers.clone();
        let gvas = (0..1024).map(|n| n << 22).chain((0..1024).map(|n| n << 12));
        gvas.for_each(|gva| assert_eq!(fault(0, gva, &one), Ok(FaultOutcome::Mapped)));
        // The page that all of these map becomes a directory.
        let other = sequences::registers(guest.memory, Controls { cr3: 0x3000, ..TWO_LEVELS });
        for (at, entry) in [(0x3000, 0x5067u32), (0x5000, 0x6067)] {
            guest.memory.write(Gpa::new(at), &entry.to_le_bytes()).unwrap();
        }
        guest.shadows.shadow.load(cpu, &guest.shadows.views[1], &other);
        let before = guest.shadows.space(0).flushes();
        assert_eq!(fault(1, 0, &other), Ok(FaultOutcome::Mapped));
        assert!(guest.shadows.space(0).flushes() - before < 10);
    });
}

/// Each entry of the directory in page 1 refers to the table in page 2, each entry of which maps page 3.
pub(super) fn all_one_table() -> Words {
    let entries = (0..512).flat_map(|n| [(0x1000 + n * 8, 0x2067_0000_2067), (0x2000 + n * 8, 0x3067_0000_3067)]);
    entries.collect()
}

/// The number of pages that the test below zaps at once, each in a table of its own or all in one.
const PAGES: u64 = 1024;

#[test]
fn one_table_in_each_entry_of_a_directory_is_known_in_a_few_places_only() {
    with_guest(all_one_table(), TWO_LEVELS, LARGE_CAPACITY, |guest, cpu| {
        for gva in (0..PAGES).map(|n| n << 22).chain((0..PAGES).map(|n| n << 12)) {
            guest.access(cpu, 0, Gva::new(gva), WRITE, 1);
        }
        let (uses, mappings) = guest.shadows.shadow.known(Gpa::new(0x2000).frame(), Gpa::new(0x3000).frame());
        assert!((1..=ROOTS + 16).contains(&uses), "{uses} uses of the table");
        assert!((1..=32).contains(&mappings), "{mappings} writable mappings of the page");
        // The page becomes a directory. No other way to write it is left.
        guest.write(cpu, Gpa::new(0x3000), &0x2067u32.to_le_bytes());
        guest.control(cpu, 1, |registers, memory| registers.write_cr3(memory, 0x3000));
        guest.access(cpu, 1, Gva::new(0), READ, 0);
        for gva in (0..PAGES).map(|n| n << 22).chain((0..PAGES).map(|n| n << 12)) {
            assert!(!guest.is_writable(guest.shadows.root(0), Gva::new(gva)), "at {gva:#x}");
        }
    });
}

#[test]
fn all_pages_are_zapped_by_one_flush_of_each_address_space() {
    with_guest(all_one_table(), TWO_LEVELS, LARGE_CAPACITY, |guest, cpu| {
        (0..PAGES).for_each(|n| guest.access(cpu, 0, Gva::new(n << 12), READ, 0));
        let before = guest.shadows.space(0).flushes();
        guest.shadows.shadow.suspend(cpu);
        assert_eq!(guest.shadows.space(0).flushes(), before + 1);
        guest.shadows.shadow.resume();
        guest.access(cpu, 0, Gva::new(0), READ, 0);
    });
}

#[test]
fn there_are_no_more_shadow_tables_than_the_capacity() {
    // Each 4 MiB are a large page, of whose frames one is a table: its parts are small, without metadata.
    let large = (0..512).map(|n| (0x1000 + n * 8, (LARGE | 0xe7) << 32 | LARGE | 0xe7));
    let words = large.chain([(LARGE, 0x2067), (0x2000, 0x3067)]);
    let capacity = Capacity { tables: 16, ..CAPACITY };
    with_guest(words.collect(), TWO_LEVELS, capacity, |guest, cpu| {
        let other = Controls { cr3: LARGE, ..TWO_LEVELS };
        guest.control(cpu, 1, |registers, memory| registers.write(memory, other));
        for n in 0..200 {
            guest.access(cpu, 1, Gva::new(0), READ, 0);
            guest.access(cpu, 0, Gva::new((n << 22) + 0x1000), READ, 0);
            let above = ROOTS * (1 + 4);
            assert!(guest.shadows.shadow.tables(cpu) as usize <= above + 16);
            cpu.barrier(|table| guest.tables.free(table));
        }
        assert_ne!(guest.shadows.count(Counter::Dropped), 0);
    });
}

#[test]
fn writes_of_accessed_bits_do_not_count_as_write_flooding() {
    with_common_table(|guest, cpu| {
        (0..20u64).for_each(|n| guest.write(cpu, Gpa::new(0x2000 + n * 8), &0x3007_0000_3007u64.to_le_bytes()));
        [0, 1].iter().for_each(|&n| guest.access(cpu, n, Gva::new(0), READ, 0));
        let before = guest.shadows.count(Counter::Flooded);
        for n in 1..20u64 {
            let registers = guest.vcpus[0].registers.clone();
            let at = Gpa::new(0x2000 + n * 4);
            let mark = || guest.memory.write(at, &0x3027u32.to_le_bytes()).unwrap();
            guest.shadows.shadow.write(cpu, at, 4, Writer::Walk, mark);
            let outcome = guest.shadows.fault(cpu, guest.memory, 0, &registers, Gva::new(n << 12), READ);
            assert_eq!(outcome, Ok(FaultOutcome::Mapped));
        }
        assert_eq!(guest.shadows.count(Counter::Flooded), before);
    });
}
