//! The kept shadow against the oracle, and against the translation buffer.

use super::guest::{Guest, LARGE, Words};
use super::machine::{Format, Machine, Shadows, Tables, ThisCpu};
use super::oracle::{Oracle, Seen};
use super::sequences::{self, Story, play, story};
use super::vtlb::{self, CAPS, READ, TWO_LEVELS, VCPUS, WRITE, two_levels};
use crate::{Counter, NoMemory, Outcome, Reason, Registers, Shadow, View, Writer};
use addr::{Gpa, Gva, Pfn};
use mmu::pool::{self, Pool};
use proptest::prelude::*;
use rcu::{Flush, Space};
use std::vec::Vec;
use walk::{Access, Controls, PhysMem, Privilege};

const FRAMES: usize = 128;
const TREES: usize = VCPUS + 2;
const NOTES: u32 = 256;

struct Cached {
    shadow: Shadow<Pool<Format>>,
    views: Vec<View>,
}

impl Cached {
    fn count(&self, counter: Counter) -> u64 {
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
    fn load(&self, cpu: &ThisCpu<'_>, _: &Guest, vcpu: usize, registers: &Registers) -> Flush {
        self.shadow.load(cpu, &self.views[vcpu], registers);
        Flush::Keep
    }
    fn invlpg(&self, cpu: &ThisCpu<'_>, _: &Guest, vcpu: usize, gva: Gva) -> Flush {
        self.shadow.invlpg(cpu, &self.views[vcpu], gva);
        Flush::Keep
    }
    fn fault(
        &self,
        cpu: &ThisCpu<'_>,
        guest: &Guest,
        vcpu: usize,
        registers: &Registers,
        gva: Gva,
        access: Access,
    ) -> Result<Outcome, NoMemory> {
        self.shadow.fault(cpu, &self.views[vcpu], guest, registers, gva, access)
    }
    fn write(&self, cpu: &ThisCpu<'_>, guest: &Guest, gpa: Gpa, bytes: &[u8]) {
        let store = || guest.write(gpa, bytes).expect("it is memory");
        self.shadow.write(cpu, gpa, bytes.len(), Writer::Software, store);
    }
    fn forget(&self, cpu: &ThisCpu<'_>, _: Gpa) {
        self.shadow.suspend(cpu);
        self.shadow.resume();
    }
}

/// Runs `test` on a machine with a guest, with a shadow of so many notes; every frame must be back afterwards.
fn with_machine<R>(
    words: Words,
    controls: Controls,
    notes: u32,
    test: impl FnOnce(&mut Machine<'_, Cached>, &mut ThisCpu<'_>) -> R,
) -> R {
    let tables = Tables::new(FRAMES);
    let domain = pool::domain::<Format, 1>(&tables);
    let mut cpu = domain.register(0).expect("it is the first");
    let envs = (0..TREES).map(|_| Pool::new(&tables, &domain));
    let shadow = Shadow::new(envs, CAPS, notes).expect("there are frames");
    let guest = Guest::new(words.clone());
    let registers = sequences::registers(&guest, controls);
    let views: Vec<_> = (0..VCPUS).map(|_| shadow.view(&cpu).expect("there are more trees")).collect();
    views.iter().for_each(|view| shadow.load(&cpu, view, &registers));
    let shadows = Cached { views, shadow };
    let vcpus = (0..VCPUS).map(|_| Machine::<Cached>::vcpu(registers.clone())).collect();
    let oracle = Oracle::new(words, VCPUS);
    let mut machine = Machine { tables: &tables, shadows: &shadows, guest: &guest, vcpus, oracle, seen: Vec::new() };
    let result = test(&mut machine, &mut cpu);
    assert_eq!(tables.bad(), []);
    shadows.shadow.free();
    cpu.barrier(|table| tables.free(table));
    assert_eq!(tables.in_use(), 0, "frames have leaked");
    result
}

/// What all accesses came to, and the memory at the end.
fn outcome(story: &Story, notes: u32) -> (Vec<Seen>, Words) {
    with_machine(story.words.clone(), story.controls, notes, |machine, cpu| {
        play(machine, cpu, &story.steps, true);
        (machine.seen.clone(), machine.guest.words.borrow().clone())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn a_guest_sees_what_the_manual_allows(story in story(VCPUS)) {
        with_machine(story.words, story.controls, NOTES, |machine, cpu| play(machine, cpu, &story.steps, false));
    }

    /// So few notes that everything is dropped now and then.
    #[test]
    fn a_guest_sees_the_same_without_place_for_notes(story in story(VCPUS)) {
        with_machine(story.words, story.controls, 4, |machine, cpu| play(machine, cpu, &story.steps, false));
    }

    /// Where every vCPU drops its translations after every change there is one outcome.
    #[test]
    fn the_kept_shadow_and_the_buffer_agree(story in story(VCPUS)) {
        let kept = outcome(&story, NOTES);
        vtlb::with_machine(story.words, story.controls, |machine, cpu, _| {
            play(machine, cpu, &story.steps, true);
            assert_eq!(kept, (machine.seen.clone(), machine.guest.words.borrow().clone()));
        });
    }
}

fn load(machine: &mut Machine<'_, Cached>, cpu: &ThisCpu<'_>, cr3: u64) {
    machine.control(cpu, 0, |registers, guest| registers.write_cr3(guest, cr3));
}

#[test]
fn an_address_space_is_found_again() {
    with_machine(two_levels(0x3007), TWO_LEVELS, NOTES, |machine, cpu| {
        machine.access(cpu, 0, Gva::new(0), WRITE, 1);
        let faults = machine.shadows.count(Counter::Faults);
        load(machine, cpu, 0x5000);
        load(machine, cpu, 0x1000);
        machine.access(cpu, 0, Gva::new(4), WRITE, 1);
        assert_eq!(machine.shadows.count(Counter::Faults), faults, "the page is still there");
        // The second vCPU has never been there.
        machine.access(cpu, 1, Gva::new(8), WRITE, 1);
        assert_eq!(machine.shadows.count(Counter::Faults), faults, "and for all");
    });
}

#[test]
fn the_space_that_was_loaded_longest_ago_makes_place() {
    with_machine(two_levels(0x3007), TWO_LEVELS, NOTES, |machine, cpu| {
        machine.access(cpu, 0, Gva::new(0), READ, 0);
        // The second vCPU stays in the first space: that one is never dropped.
        let spaces = [0x5000, 0x6000, 0x7000, 0x8000];
        spaces.iter().for_each(|&cr3| load(machine, cpu, cr3));
        let made = machine.shadows.count(Counter::Made);
        load(machine, cpu, 0x7000);
        assert_eq!(machine.shadows.count(Counter::Made), made, "one of the last");
        load(machine, cpu, 0x5000);
        assert_eq!(machine.shadows.count(Counter::Made), made + 1, "the first of all");
        let faults = machine.shadows.count(Counter::Faults);
        machine.access(cpu, 1, Gva::new(0), READ, 0);
        assert_eq!(machine.shadows.count(Counter::Faults), faults);
    });
}

/// Linear 0x1000 is the table itself.
fn maps_itself() -> Words {
    let mut words = two_levels(0x3067 | 0x2067 << 32);
    words.insert(0x2008, 0x5067 << 32);
    words
}

#[test]
fn a_write_to_a_directory_is_told_of_and_takes_effect_at_once() {
    // Linear 0x1000 is the directory, linear 4 MiB a large page.
    let mut words = two_levels(0x1067 << 32 | 0x3067);
    words.insert(0x5000, 0x4067);
    with_machine(words, TWO_LEVELS, NOTES, |machine, cpu| {
        machine.access(cpu, 0, Gva::new(0x40_0000), WRITE, 1);
        let registers = machine.vcpus[0].registers.clone();
        let outcome = machine.shadows.fault(cpu, machine.guest, 0, &registers, Gva::new(0x1004), WRITE);
        assert_eq!(outcome, Ok(Outcome::Emulate { gpa: Gpa::new(0x1004), reason: Reason::Table }));
        // It becomes page 4, by a table in page 5.
        machine.access(cpu, 0, Gva::new(0x1004), WRITE, 0x5067);
        assert_eq!(machine.shadows.count(Counter::Written), 1);
        machine.access(cpu, 0, Gva::new(0x40_0000), WRITE, 77);
        assert_eq!(machine.guest.read_u32(Gpa::new(0x4000)), Some(77));
    });
}

#[test]
fn a_last_level_is_out_of_sync_from_its_first_write_to_the_next_load() {
    with_machine(maps_itself(), TWO_LEVELS, NOTES, |machine, cpu| {
        machine.access(cpu, 0, Gva::new(0), WRITE, 1);
        // Linear 0 becomes page 4, and page 3 again, and so on.
        for round in 1..=3 {
            for page in [4u64, 3] {
                machine.access(cpu, 0, Gva::new(0x1000), WRITE, (page << 12 | 0x67) as u32);
                machine.invlpg(cpu, 0, Gva::new(0));
                machine.access(cpu, 0, Gva::new(0), WRITE, round * 10 + page as u32);
                assert_eq!(machine.guest.read_u32(Gpa::new(page << 12)), Some(round * 10 + page as u32));
            }
            assert_eq!(machine.shadows.count(Counter::Unsynced), round.into());
            assert_eq!(machine.shadows.count(Counter::Written), 0, "no exit");
            load(machine, cpu, 0x1000);
            assert_eq!(machine.shadows.count(Counter::Synced), round.into());
        }
    });
}

#[test]
fn a_table_that_is_out_of_sync_is_back_in_sync_when_it_becomes_a_directory() {
    with_machine(maps_itself(), TWO_LEVELS, NOTES, |machine, cpu| {
        machine.access(cpu, 0, Gva::new(0x1000), WRITE, 0x3067);
        assert_eq!(machine.shadows.count(Counter::Unsynced), 1);
        // The second vCPU takes it for a directory, by which linear 4 MiB is page 1 of what is a table now.
        machine.control(cpu, 1, |registers, guest| registers.write_cr3(guest, 0x2000));
        machine.access(cpu, 1, Gva::new(0x40_0000), READ, 0);
        assert_eq!(machine.shadows.count(Counter::Synced), 1);
        machine.access(cpu, 0, Gva::new(0x1000), WRITE, 0x4067);
        assert_eq!(machine.shadows.count(Counter::Unsynced), 1, "it is emulated");
    });
}

#[test]
fn a_page_that_becomes_a_table_is_read_only_at_once() {
    with_machine(maps_itself(), TWO_LEVELS, NOTES, |machine, cpu| {
        // Page 5, at linear 0x3000, is written before it is a table: the directory's second entry refers to it then.
        machine.access(cpu, 0, Gva::new(0x3000), WRITE, 0x4067);
        machine.write(cpu, Gpa::new(0x1004), &0x5067u32.to_le_bytes());
        machine.access(cpu, 0, Gva::new(0x40_0000), WRITE, 1);
        machine.access(cpu, 0, Gva::new(0x3000), WRITE, 0x3067);
        assert_eq!(machine.shadows.count(Counter::Unsynced), 1, "it took an exit");
        machine.invlpg(cpu, 0, Gva::new(0x40_0000));
        machine.access(cpu, 0, Gva::new(0x40_0000), WRITE, 9);
        assert_eq!(machine.guest.read_u32(Gpa::new(0x3000)), Some(9));
    });
}

#[test]
fn a_table_that_is_only_written_is_a_table_no_more() {
    with_machine(two_levels(0x3067), TWO_LEVELS, NOTES, |machine, cpu| {
        machine.access(cpu, 0, Gva::new(0), READ, 0);
        for n in 0..20u64 {
            machine.write(cpu, Gpa::new(0x2000), &(0x3067 | n << 12).to_le_bytes());
        }
        assert_eq!(machine.shadows.count(Counter::Flooded), 1);
        let written = machine.shadows.count(Counter::Written);
        assert!(written < 20, "the last writes were to an ordinary page");
        machine.write(cpu, Gpa::new(0x2000), &0x4067u64.to_le_bytes());
        machine.access(cpu, 0, Gva::new(0), WRITE, 5);
        assert_eq!(machine.guest.read_u32(Gpa::new(0x4000)), Some(5));
        machine.write(cpu, Gpa::new(0x2000), &0x3067u64.to_le_bytes());
        assert_eq!(machine.shadows.count(Counter::Written), written + 1, "it is one again since the fault");
    });
}

#[test]
fn a_directory_whose_write_can_not_be_emulated_is_given_up() {
    // Linear 4 MiB is page 6 by a table in page 5; for the second vCPU page 6 is the directory.
    let mut words = two_levels(0x3067);
    words.insert(0x1000, 0x5067 << 32 | 0x2067);
    words.insert(0x5000, 0x6067);
    words.insert(0x6000, 0x2067);
    with_machine(words, TWO_LEVELS, NOTES, |machine, cpu| {
        machine.control(cpu, 1, |registers, guest| registers.write_cr3(guest, 0x6000));
        machine.access(cpu, 1, Gva::new(0), READ, 0);
        let registers = machine.vcpus[0].registers.clone();
        let fault = |machine: &Machine<'_, Cached>, cpu: &ThisCpu<'_>| {
            machine.shadows.fault(cpu, machine.guest, 0, &registers, Gva::new(0x40_0000), WRITE)
        };
        let directory = Gpa::new(0x6000);
        assert_eq!(fault(machine, cpu), Ok(Outcome::Emulate { gpa: directory, reason: Reason::Table }));
        machine.shadows.shadow.unshadow(cpu, directory);
        assert_eq!(fault(machine, cpu), Ok(Outcome::Mapped));
        // The second vCPU's linear 0 becomes page 6 itself.
        machine.access(cpu, 0, Gva::new(0x40_0000), WRITE, 0x5067);
        machine.access(cpu, 1, Gva::new(8), WRITE, 3);
        assert_eq!(machine.guest.read_u32(Gpa::new(0x6008)), Some(3));
    });
}

#[test]
fn an_entry_written_in_halves_is_read_whole() {
    // PAE: linear 0 is page 3, by PDPTEs in page 9, a directory in page 1, a table in page 2.
    let words = Words::from([(0x9000, 0x1001), (0x1000, 0x2067), (0x2000, 0x3067)]);
    let controls = Controls { cr0: 0x8001_0001, cr3: 0x9000, cr4: 0x20, efer: 1 << 11 };
    with_machine(words, controls, NOTES, |machine, cpu| {
        machine.access(cpu, 0, Gva::new(0), WRITE, 1);
        // In the architected order: clear low, set high (NX), set low.
        for (at, half) in [(0x2000, 0), (0x2004, 1u32 << 31), (0x2000, 0x4067)] {
            machine.write(cpu, Gpa::new(at), &half.to_le_bytes());
            machine.access(cpu, 0, Gva::new(0), WRITE, 8);
        }
        assert_eq!(machine.guest.read_u32(Gpa::new(0x4000)), Some(8));
        assert!(matches!(
            machine.seen[..],
            [Seen::Page(_), Seen::Fault(2 | 6, _), Seen::Fault(2 | 6, _), Seen::Page(_)]
        ));
    });
}

/// Two directories, in pages 1 and 6, have the table in page 2 in common: the second vCPU is in the second address space.
fn with_common_table(test: impl FnOnce(&mut Machine<'_, Cached>, &mut ThisCpu<'_>)) {
    let mut words = two_levels(0x3067 | 0x2067 << 32);
    words.insert(0x6000, 0x2007);
    words.insert(0x5000, 0x7067);
    with_machine(words, TWO_LEVELS, NOTES, |machine, cpu| {
        machine.control(cpu, 1, |registers, guest| registers.write_cr3(guest, 0x6000));
        test(machine, cpu);
    });
}

#[test]
fn address_spaces_share_what_stands_for_a_common_table() {
    with_common_table(|machine, cpu| {
        machine.access(cpu, 0, Gva::new(0), WRITE, 1);
        let (tables, mapped) = (machine.tables.in_use(), machine.shadows.count(Counter::Mapped));
        machine.access(cpu, 1, Gva::new(0), WRITE, 2);
        assert_eq!(machine.shadows.count(Counter::Shared), 1);
        assert_eq!(machine.tables.in_use(), tables + 1, "a directory");
        assert_eq!(machine.shadows.count(Counter::Mapped), mapped + 1, "the fault that found it");
        // What one maps then is mapped for the other.
        machine.access(cpu, 1, Gva::new(0x1000), READ, 0);
        let faults = machine.shadows.count(Counter::Faults);
        machine.access(cpu, 0, Gva::new(0x1000), READ, 0);
        assert_eq!(machine.shadows.count(Counter::Faults), faults);
    });
}

#[test]
fn tables_by_entries_with_other_rights_are_not_shared() {
    with_common_table(|machine, cpu| {
        machine.write(cpu, Gpa::new(0x6000), &0x2005u32.to_le_bytes());
        machine.access(cpu, 0, Gva::new(0), WRITE, 1);
        machine.access(cpu, 1, Gva::new(0), WRITE, 2);
        assert!(matches!(machine.seen[..], [Seen::Page(_), Seen::Fault(3 | 7, _)]));
        assert_eq!(machine.shadows.count(Counter::Shared), 0);
    });
}

#[test]
fn an_address_space_that_goes_on_without_it_leaves_a_common_table_to_the_other() {
    with_common_table(|machine, cpu| {
        [0, 1].iter().for_each(|&n| machine.access(cpu, n, Gva::new(0), WRITE, 1));
        machine.write(cpu, Gpa::new(0x1000), &0x4007u32.to_le_bytes());
        machine.access(cpu, 0, Gva::new(0), READ, 0);
        assert!(matches!(machine.seen[..], [Seen::Page(_), Seen::Page(_), Seen::Fault(..)]));
        let faults = machine.shadows.count(Counter::Faults);
        load(machine, cpu, 0x6000);
        machine.access(cpu, 0, Gva::new(0), WRITE, 3);
        machine.access(cpu, 1, Gva::new(0), WRITE, 4);
        assert_eq!(machine.shadows.count(Counter::Faults), faults, "it is as it was");
        // And so is the frame: a write is noticed.
        machine.write(cpu, Gpa::new(0x2000), &0x5067u32.to_le_bytes());
        machine.access(cpu, 1, Gva::new(0), WRITE, 5);
        assert_eq!(machine.guest.read_u32(Gpa::new(0x5000)), Some(5));
    });
}

#[test]
fn processors_in_each_address_space_flush_when_a_page_of_a_common_table_goes() {
    for (one, other) in [(0, 1), (1, 0)] {
        with_common_table(|machine, cpu| {
            // Both have page 3 in their buffers, to write. It becomes a directory, by which linear 0 is page 7.
            [0, 1].iter().for_each(|&n| machine.access(cpu, n, Gva::new(0), WRITE, 0x5067));
            assert_eq!(machine.shadows.count(Counter::Shared), 1);
            machine.control(cpu, one, |registers, guest| registers.write_cr3(guest, 0x3000));
            machine.access(cpu, one, Gva::new(0), WRITE, 6);
            assert_eq!(machine.guest.read_u32(Gpa::new(0x7000)), Some(6));
            let written = machine.shadows.count(Counter::Written);
            machine.access(cpu, other, Gva::new(0), WRITE, 0x2067);
            assert_eq!(
                machine.shadows.count(Counter::Written),
                written + 1,
                "{other} has written a directory unnoticed"
            );
        });
    }
}

#[test]
fn a_page_that_one_address_space_has_dropped_is_in_no_buffer() {
    with_common_table(|machine, cpu| {
        [0, 1].iter().for_each(|&n| machine.access(cpu, n, Gva::new(0), WRITE, 0x5067));
        // The table, which is page 1 of the address spaces, goes out of sync; the first drops its page 0.
        machine.access(cpu, 0, Gva::new(0x1004), WRITE, 0x2067);
        assert_eq!(machine.shadows.count(Counter::Unsynced), 1);
        machine.invlpg(cpu, 0, Gva::new(0));
        // Nothing maps page 3 any more, which becomes a directory: the second is not to write it unnoticed.
        load(machine, cpu, 0x3000);
        machine.access(cpu, 0, Gva::new(0), READ, 0);
        let written = machine.shadows.count(Counter::Written);
        machine.access(cpu, 1, Gva::new(0), WRITE, 0x4067);
        assert_eq!(machine.shadows.count(Counter::Written), written + 1);
    });
}

#[test]
fn each_of_the_tables_that_stand_for_one_is_write_protected() {
    for (one, other) in [(0, 1), (1, 0)] {
        with_common_table(|machine, cpu| {
            // Of other rights, so each has its own: of the supervisor alone, and of all.
            machine.write(cpu, Gpa::new(0x6000), &0x2003u32.to_le_bytes());
            let supervisor = Access { privilege: Privilege::Supervisor { ac: false }, ..WRITE };
            [0, 1].iter().for_each(|&n| machine.access(cpu, n, Gva::new(0), supervisor, 0x5067));
            assert_eq!(machine.shadows.count(Counter::Shared), 0);
            machine.control(cpu, one, |registers, guest| registers.write_cr3(guest, 0x3000));
            machine.access(cpu, one, Gva::new(0), READ, 0);
            let written = machine.shadows.count(Counter::Written);
            machine.access(cpu, other, Gva::new(0), supervisor, 0x4067);
            assert_eq!(machine.shadows.count(Counter::Written), written + 1);
        });
    }
}

/// The bytes of a directory's entry are there, and the shadow is yet to be told, when another vCPU goes through them.
#[test]
fn an_entry_that_is_news_to_the_shadow_does_not_spoil_a_common_table() {
    // A table in page 4, and a large page.
    for entry in [0x4067u32, 0x40_00e7] {
        with_common_table(|machine, cpu| {
            machine.write(cpu, Gpa::new(0x4008), &0x7067u32.to_le_bytes());
            [0, 1].iter().for_each(|&n| machine.access(cpu, n, Gva::new(0), WRITE, 1));
            assert_eq!(machine.shadows.count(Counter::Shared), 1);
            machine.guest.write(Gpa::new(0x1000), &entry.to_le_bytes()).unwrap();
            let fault = |n: usize, gva| {
                let registers = &machine.vcpus[n].registers;
                machine.shadows.fault(cpu, machine.guest, n, registers, Gva::new(gva), READ)
            };
            assert_eq!(fault(0, 0x2000), Ok(Outcome::Mapped));
            // The second has nothing there.
            assert!(matches!(fault(1, 0x2000), Ok(Outcome::Inject { .. })));
            let root = machine.shadows.root(1);
            assert!(!machine.is_mapped(root, Gva::new(0x2000)), "{entry:x}");
            assert!(machine.is_mapped(root, Gva::new(0)), "{entry:x}");
            machine.shadows.shadow.write(cpu, Gpa::new(0x1000), 4, Writer::Software, || ());
        });
    }
}

#[test]
fn there_are_no_more_views_than_trees() {
    with_machine(two_levels(0), TWO_LEVELS, NOTES, |machine, cpu| {
        let more = (0..).take_while(|_| machine.shadows.shadow.view(cpu).is_ok()).count();
        assert_eq!(more, TREES - VCPUS);
    });
}

#[test]
fn nothing_is_mapped_while_frames_change() {
    with_machine(two_levels(0x3007), TWO_LEVELS, NOTES, |machine, cpu| {
        machine.access(cpu, 0, Gva::new(0), READ, 0);
        let (shadow, view, registers) =
            (&machine.shadows.shadow, &machine.shadows.views[0], &machine.vcpus[0].registers);
        let fault = || shadow.fault(cpu, view, machine.guest, registers, Gva::new(0), READ);
        let zapped = machine.shadows.count(Counter::Zapped);
        shadow.suspend(cpu);
        shadow.suspend(cpu);
        assert_eq!(machine.shadows.count(Counter::Zapped), zapped + 1);
        for _ in 0..2 {
            assert_eq!(fault(), Ok(Outcome::Retry));
            shadow.resume();
        }
        assert_eq!(fault(), Ok(Outcome::Mapped));
    });
}

#[test]
fn without_frames_a_fault_fails_and_may_be_tried_again() {
    with_machine(two_levels(0x3007), TWO_LEVELS, NOTES, |machine, cpu| {
        let registers = machine.vcpus[0].registers.clone();
        let fault = |machine: &Machine<'_, Cached>, cpu: &ThisCpu<'_>| {
            machine.shadows.fault(cpu, machine.guest, 0, &registers, Gva::new(0), READ)
        };
        let before = machine.tables.in_use();
        for budget in 0..2 {
            machine.tables.limit(Some(budget));
            assert_eq!(fault(machine, cpu), Err(NoMemory));
            assert_eq!(machine.tables.in_use(), before);
        }
        machine.tables.limit(None);
        assert_eq!(fault(machine, cpu), Ok(Outcome::Mapped));
    });
}

/// By a directory in page 1: linear 0 and on by a table within the large frames, linear 4 MiB and on is all of these.
fn a_table_within_large_frames() -> Words {
    let table = LARGE + 0x3000;
    let directory = (LARGE | 0xe7) << 32 | table | 0x67;
    Words::from([(0x1000, directory), (table, 0x3067)])
}

/// Linear address of the table in [`a_table_within_large_frames`].
const TABLE: Gva = Gva::new(0x40_3000);

#[test]
fn a_large_page_is_no_way_to_write_a_table_that_it_contains() {
    for large_first in [false, true] {
        with_machine(a_table_within_large_frames(), TWO_LEVELS, NOTES, |machine, cpu| {
            let mut gvas = [Gva::new(0), Gva::new(0x40_0000)];
            if large_first {
                gvas.reverse();
            }
            gvas.iter().for_each(|&gva| machine.access(cpu, 0, gva, WRITE, 1));
            machine.access(cpu, 0, TABLE, WRITE, 0x4067);
            assert_eq!(machine.shadows.count(Counter::Unsynced), 1, "it took an exit");
            machine.invlpg(cpu, 0, Gva::new(0));
            machine.access(cpu, 0, Gva::new(0), WRITE, 6);
            assert_eq!(machine.guest.read_u32(Gpa::new(0x4000)), Some(6));
        });
    }
}

#[test]
fn an_accessed_bit_of_one_format_is_an_address_of_the_other() {
    // For PAE linear 0 is page 3 by PDPTEs in page 9, a directory in page 1 and the table in page 2. With two levels, by a
    // directory in page 5, the halves of the table's first entry are entries: 0x1000 is page 6 by the high one.
    let words = Words::from([(0x9000, 0x1001), (0x1000, 0x2067), (0x2000, 0x3067), (0x5000, 0x2067)]);
    let pae = Controls { cr0: 0x8001_0001, cr3: 0x9000, cr4: 0x20, efer: 0 };
    with_machine(words, pae, NOTES, |machine, cpu| {
        machine.control(cpu, 1, |registers, guest| registers.write(guest, Controls { cr3: 0x5000, ..TWO_LEVELS }));
        machine.access(cpu, 0, Gva::new(0), READ, 0);
        let zapped = machine.shadows.count(Counter::Zapped);
        // The first walk with two levels.
        machine.access(cpu, 1, Gva::new(0), READ, 0);
        assert_eq!(machine.shadows.count(Counter::Zapped), zapped + 1, "what the other format made of it");
        machine.access(cpu, 0, Gva::new(0), READ, 0);
        assert_eq!(machine.shadows.count(Counter::Zapped), zapped + 2, "and back");
    });
}

#[test]
fn one_fault_flushes_each_address_space_a_few_times_at_most() {
    let words = (0..512).flat_map(|n| [(0x1000 + n * 8, 0x2067_0000_2067), (0x2000 + n * 8, 0x3067_0000_3067)]);
    with_machine(words.collect(), TWO_LEVELS, 4096, |machine, cpu| {
        let fault = |n: usize, gva, registers: &Registers| {
            machine.shadows.fault(cpu, machine.guest, n, registers, Gva::new(gva), WRITE)
        };
        let one = machine.vcpus[0].registers.clone();
        let gvas = (0..1024).map(|n| n << 22).chain((0..1024).map(|n| n << 12));
        gvas.for_each(|gva| assert_eq!(fault(0, gva, &one), Ok(Outcome::Mapped)));
        // The page at which all of these end becomes a directory.
        let other = sequences::registers(machine.guest, Controls { cr3: 0x3000, ..TWO_LEVELS });
        for (at, entry) in [(0x3000, 0x5067u32), (0x5000, 0x6067)] {
            machine.guest.write(Gpa::new(at), &entry.to_le_bytes()).unwrap();
        }
        machine.shadows.shadow.load(cpu, &machine.shadows.views[1], &other);
        let before = machine.shadows.space(0).flushes();
        assert_eq!(fault(1, 0, &other), Ok(Outcome::Mapped));
        assert!(machine.shadows.space(0).flushes() - before < 10);
    });
}

#[test]
fn accessed_bits_are_no_writes_that_a_table_is_given_up_for() {
    with_common_table(|machine, cpu| {
        (0..20u64).for_each(|n| machine.write(cpu, Gpa::new(0x2000 + n * 8), &0x3007_0000_3007u64.to_le_bytes()));
        [0, 1].iter().for_each(|&n| machine.access(cpu, n, Gva::new(0), READ, 0));
        let before = machine.shadows.count(Counter::Flooded);
        for n in 1..20u64 {
            let registers = machine.vcpus[0].registers.clone();
            let at = Gpa::new(0x2000 + n * 4);
            let mark = || machine.guest.write(at, &0x3027u32.to_le_bytes()).unwrap();
            machine.shadows.shadow.write(cpu, at, 4, Writer::Walk, mark);
            let outcome = machine.shadows.fault(cpu, machine.guest, 0, &registers, Gva::new(n << 12), READ);
            assert_eq!(outcome, Ok(Outcome::Mapped));
        }
        assert_eq!(machine.shadows.count(Counter::Flooded), before);
    });
}
