//! The virtual TLB, compared with the oracle.

use super::guest::{Format, Guest, Shadows, Tables, ThisCpu};
use super::memory::{GuestMemory, Meanwhile, Moment, Words};
use super::oracle::Oracle;
use super::sequences::{self, play, story};
use crate::{Counter, FaultOutcome, NoMemory, Registers, Vtlb};
use addr::{Gpa, Gva, PageSize, Pfn};
use mmu::Caps;
use mmu::pool::{self, Pool};
use proptest::prelude::*;
use rcu::{Flush, Space};
use std::vec::Vec;
use walk::{Access, AccessKind, Controls, PhysMem, Privilege};

pub(super) const CAPS: Caps = Caps::new(40, PageSize::Size2M, true);
const FRAMES: usize = 1200;
const MAX_TABLES: u32 = 512;
pub(super) const VCPUS: usize = 2;

/// A virtual TLB for each vCPU.
pub(super) struct Vtlbs(Vec<Vtlb<Pool<Format>>>);

impl Shadows for Vtlbs {
    fn root(&self, vcpu: usize) -> Pfn {
        self.0[vcpu].root()
    }
    fn space(&self, vcpu: usize) -> &Space {
        self.0[vcpu].space()
    }
    fn roots(&self) -> usize {
        1
    }
    fn load(&self, cpu: &ThisCpu<'_>, _: &GuestMemory, vcpu: usize, _: &Registers) -> Flush {
        self.0[vcpu].load(cpu);
        Flush::Keep
    }
    fn invlpg(&self, cpu: &ThisCpu<'_>, _: &GuestMemory, vcpu: usize, gva: Gva) -> Flush {
        self.0[vcpu].invlpg(cpu, gva);
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
        self.0[vcpu].fault(cpu, memory, registers, gva, access)
    }
    fn write(&self, _: &ThisCpu<'_>, memory: &GuestMemory, gpa: Gpa, bytes: &[u8]) {
        memory.write(gpa, bytes).expect("it is memory");
    }
    fn forget(&self, cpu: &ThisCpu<'_>, _: Gpa) {
        self.0.iter().for_each(|vtlb| {
            vtlb.suspend(cpu);
            vtlb.resume();
        });
    }
}

/// Runs `test` on a guest, and checks that all frames are free afterwards.
pub(super) fn with_guest(
    words: Words,
    controls: Controls,
    test: impl FnOnce(&mut Guest<'_, Vtlbs>, &mut ThisCpu<'_>, &Tables),
) {
    let tables = Tables::new(FRAMES);
    let domain = pool::domain::<Format, 1>(&tables);
    let mut cpu = domain.register(0).expect("it is the first");
    let vtlbs = (0..VCPUS).map(|_| Vtlb::new(Pool::new(&tables, &domain), CAPS, MAX_TABLES));
    let vtlbs = Vtlbs(vtlbs.collect::<Result<_, _>>().expect("there are frames"));
    let memory = GuestMemory::new(words.clone());
    let registers = sequences::registers(&memory, controls);
    let vcpus = (0..VCPUS).map(|_| Guest::<Vtlbs>::vcpu(registers.clone())).collect();
    let oracle = Oracle::new(words, VCPUS);
    test(
        &mut Guest { tables: &tables, shadows: &vtlbs, memory: &memory, vcpus, oracle, seen: Vec::new() },
        &mut cpu,
        &tables,
    );
    assert_eq!(tables.bad(), []);
    vtlbs.0.into_iter().for_each(|vtlb| vtlb.into_tree().free_pgtables(|_, _, _| {}));
    cpu.barrier(|table| tables.free(table));
    assert_eq!(tables.in_use(), 0, "frames have leaked");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_guest_sees_what_the_manual_allows(story in story(VCPUS)) {
        with_guest(story.words, story.controls, |guest, cpu, _| play(guest, cpu, &story.steps, false));
    }
}

pub(super) const READ: Access = Access { kind: AccessKind::Read, privilege: Privilege::User };
pub(super) const WRITE: Access = Access { kind: AccessKind::Write, privilege: Privilege::User };
const SUPERVISOR_WRITE: Access = Access { kind: AccessKind::Write, privilege: Privilege::Supervisor { ac: false } };
/// Two levels, PSE, WP.
pub(super) const TWO_LEVELS: Controls = Controls { cr0: 0x8001_0001, cr3: 0x1000, cr4: 0x10, efer: 0 };

/// Linear 0 is mapped to page 3 by the table in page 2; linear 4 MiB is mapped to the large page at 4 MiB.
pub(super) fn two_levels(pte: u64) -> Words {
    Words::from([(0x1000, 0x40_0087 << 32 | 0x2007), (0x2000, pte)])
}

#[test]
fn a_page_is_writable_only_when_it_is_dirty() {
    with_guest(two_levels(0x3007), TWO_LEVELS, |guest, cpu, _| {
        let rights = |guest: &Guest<'_, Vtlbs>, cpu: &ThisCpu<'_>| {
            guest.shadows.0[0].tree().translate(cpu.read(), Gva::new(0)).map(|found| found.leaf.rights.write)
        };
        guest.access(cpu, 0, Gva::new(0), READ, 0);
        assert_eq!(rights(guest, cpu), Some(false));
        guest.access(cpu, 0, Gva::new(0), WRITE, 1);
        assert_eq!(rights(guest, cpu), Some(true));
        assert_eq!(guest.memory.read_u32(Gpa::new(0x2000)), Some(0x3067));
        let faults = guest.shadows.0[0].counts().get(Counter::Faults);
        guest.access(cpu, 0, Gva::new(4), WRITE, 1);
        assert_eq!(guest.shadows.0[0].counts().get(Counter::Faults), faults, "the third access needs none");
    });
}

#[test]
fn nothing_is_mapped_while_frames_change() {
    with_guest(two_levels(0x3007), TWO_LEVELS, |guest, cpu, _| {
        guest.access(cpu, 0, Gva::new(0), READ, 0);
        let (vtlb, registers) = (&guest.shadows.0[0], &guest.vcpus[0].registers);
        vtlb.suspend(cpu);
        vtlb.suspend(cpu);
        for _ in 0..2 {
            assert_eq!(vtlb.tree().translate(cpu.read(), Gva::new(0)), None);
            assert_eq!(vtlb.fault(cpu, guest.memory, registers, Gva::new(0), READ), Ok(FaultOutcome::Retry));
            vtlb.resume();
        }
        assert_eq!(vtlb.fault(cpu, guest.memory, registers, Gva::new(0), READ), Ok(FaultOutcome::Mapped));
    });
}

#[test]
fn a_page_whose_frame_changes_during_the_fault_is_not_mapped() {
    with_guest(two_levels(0x3007), TWO_LEVELS, |guest, cpu, _| {
        let (vtlb, registers) = (&guest.shadows.0[0], &guest.vcpus[0].registers);
        let memory = Meanwhile(guest.memory, |moment| {
            if moment == Moment::Backing {
                vtlb.suspend(cpu);
                guest.memory.replace(3);
                vtlb.resume();
            }
        });
        assert_eq!(vtlb.fault(cpu, &memory, registers, Gva::new(0), READ), Ok(FaultOutcome::Retry));
        assert_eq!(vtlb.tree().translate(cpu.read(), Gva::new(0)), None);
    });
}

#[test]
fn invlpg_zaps_both_entries_of_2_mib_of_a_large_page() {
    with_guest(two_levels(0), TWO_LEVELS, |guest, cpu, _| {
        let mapped = |guest: &Guest<'_, Vtlbs>, cpu: &ThisCpu<'_>, gva| {
            guest.shadows.0[0].tree().translate(cpu.read(), Gva::new(gva)).map(|found| found.size)
        };
        guest.access(cpu, 0, Gva::new(0x40_0000), WRITE, 1);
        guest.access(cpu, 0, Gva::new(0x60_0000), WRITE, 1);
        assert_eq!(mapped(guest, cpu, 0x40_1000), Some(PageSize::Size2M));
        assert_eq!(mapped(guest, cpu, 0x60_1000), Some(PageSize::Size2M));
        guest.invlpg(cpu, 0, Gva::new(0x40_1000));
        assert_eq!(mapped(guest, cpu, 0x40_1000), None);
        assert_eq!(mapped(guest, cpu, 0x60_1000), None, "the other half of the memory's page");
    });
}

#[test]
fn a_linear_address_has_32_bits() {
    with_guest(two_levels(0x3067), TWO_LEVELS, |guest, cpu, _| {
        let (vtlb, registers) = (&guest.shadows.0[0], &guest.vcpus[0].registers);
        let gva = Gva::new(0xffff_ffff_0000_0000);
        assert_eq!(vtlb.fault(cpu, guest.memory, registers, gva, READ), Ok(FaultOutcome::Mapped));
        assert!(vtlb.tree().translate(cpu.read(), Gva::new(0)).is_some());
        vtlb.invlpg(cpu, gva);
        assert!(vtlb.tree().translate(cpu.read(), Gva::new(0)).is_none());
    });
}

#[test]
fn invlpg_zaps_the_one_small_page() {
    with_guest(two_levels(0x3067 | 0x4067 << 32), TWO_LEVELS, |guest, cpu, _| {
        let zapped = |guest: &Guest<'_, Vtlbs>| guest.shadows.0[0].counts().get(Counter::Zapped);
        [0, 0x1000].iter().for_each(|&gva| guest.access(cpu, 0, Gva::new(gva), READ, 0));
        for _ in 0..2 {
            guest.invlpg(cpu, 0, Gva::new(0));
            assert_eq!(zapped(guest), 1);
        }
        assert!(guest.is_mapped(guest.shadows.root(0), Gva::new(0x1000)));
    });
}

#[test]
fn a_fault_maps_what_the_guests_table_has_now() {
    with_guest(two_levels(0x3067), TWO_LEVELS, |guest, cpu, _| {
        let (vtlb, registers) = (&guest.shadows.0[0], &guest.vcpus[0].registers);
        let zapped_behind = |pte: u32| {
            guest.memory.write(Gpa::new(0x2000), &pte.to_le_bytes()).unwrap();
            assert_eq!(vtlb.fault(cpu, guest.memory, registers, Gva::new(0), READ), Ok(FaultOutcome::Mapped));
            vtlb.counts().get(Counter::Zapped)
        };
        // Another page, and the same one with other rights.
        assert_eq!([0x3067, 0x3067, 0x4067, 0x4065, 0x4065].map(zapped_behind), [0, 0, 1, 2, 2]);
        let page = vtlb.tree().translate(cpu.read(), Gva::new(0)).unwrap();
        assert_eq!(guest.memory.reached(page.hpa), Gpa::new(0x4000));
    });
}

#[test]
fn a_page_that_is_writable_with_clear_wp_is_the_supervisors_until_the_user_accesses_it() {
    let controls = Controls { cr0: 0x8000_0001, ..TWO_LEVELS };
    with_guest(two_levels(0x3005), controls, |guest, cpu, _| {
        for _ in 0..2 {
            guest.access(cpu, 0, Gva::new(0), SUPERVISOR_WRITE, 1);
            guest.access(cpu, 0, Gva::new(0), READ, 0);
        }
        assert_eq!(guest.shadows.0[0].counts().get(Counter::Faults), 4);
    });
}

#[test]
fn with_smap_no_entry_gives_what_clear_wp_allows() {
    let controls = Controls { cr0: 0x8000_0001, cr4: TWO_LEVELS.cr4 | 1 << 21, ..TWO_LEVELS };
    with_guest(two_levels(0x3005), controls, |guest, cpu, _| {
        let write = |ac| Access { kind: AccessKind::Write, privilege: Privilege::Supervisor { ac } };
        guest.access(cpu, 0, Gva::new(0), write(true), 7);
        assert_eq!(guest.memory.read_u32(Gpa::new(0x3000)), Some(7));
        guest.access(cpu, 0, Gva::new(0), write(false), 8);
        assert_eq!(guest.memory.read_u32(Gpa::new(0x3000)), Some(7), "EFLAGS.AC is clear");
        assert_eq!(guest.shadows.0[0].counts().get(Counter::Emulated), 1);
    });
}

#[test]
fn without_frames_a_fault_fails_and_may_be_tried_again() {
    with_guest(two_levels(0x3007), TWO_LEVELS, |guest, cpu, tables| {
        let fault = |guest: &Guest<'_, Vtlbs>, cpu: &ThisCpu<'_>| {
            let registers = &guest.vcpus[0].registers;
            guest.shadows.0[0].fault(cpu, guest.memory, registers, Gva::new(0), READ)
        };
        let before = tables.in_use();
        for budget in 0..2 {
            tables.limit(Some(budget));
            assert_eq!(fault(guest, cpu), Err(NoMemory));
            assert_eq!(tables.in_use(), before);
        }
        tables.limit(None);
        guest.memory.budget.set(Some(0));
        assert_eq!(fault(guest, cpu), Err(NoMemory));
        guest.memory.budget.set(None);
        assert_eq!(fault(guest, cpu), Ok(FaultOutcome::Mapped));
    });
}

#[test]
fn a_load_zaps_all_pages_by_one_flush() {
    let words = (0..512).map(|n| (0x2000 + n * 8, 0x3067_0000_3067)).chain([(0x1000, 0x2067)]);
    with_guest(words.collect(), TWO_LEVELS, |guest, cpu, _| {
        (0..1024).for_each(|n| guest.access(cpu, 0, Gva::new(n << 12), WRITE, 1));
        let before = guest.shadows.space(0).flushes();
        guest.load(cpu, 0);
        assert_eq!(guest.shadows.space(0).flushes(), before + 1);
        guest.access(cpu, 0, Gva::new(0), READ, 0);
    });
}

#[test]
fn a_guest_that_uses_more_and_more_tables_loses_the_first_ones() {
    // Each entry of the directory refers to the table in page 2.
    let words = (0..512).map(|n| (0x1000 + n * 8, 0x2067_0000_2067)).chain([(0x2000, 0x3067)]);
    with_guest(words.collect(), TWO_LEVELS, |guest, cpu, tables| {
        (0..1000).for_each(|n| guest.access(cpu, 0, Gva::new(n << 22), READ, 0));
        let counts = guest.shadows.0[0].counts();
        // 16 tables at a time.
        assert_eq!(counts.get(Counter::Dropped), (1000 - u64::from(MAX_TABLES)).div_ceil(16));
        assert_eq!(counts.get(Counter::ShadowTables), MAX_TABLES.into());
        cpu.barrier(|table| tables.free(table));
        assert!(tables.in_use() < 600, "{} tables", tables.in_use());
        let is_mapped = |n: u64| guest.is_mapped(guest.shadows.root(0), Gva::new(n << 22));
        assert!((1000 - u64::from(MAX_TABLES) + 16..1000).all(is_mapped), "the last ones");
    });
}

#[test]
fn only_a_page_that_needs_a_table_takes_one() {
    // Each entry of the directory but the second refers to the table in page 2.
    let mut words: Words = (0..512).map(|n| (0x1000 + n * 8, 0x2067_0000_2067)).collect();
    words.extend([(0x1000, 0x40_00e7 << 32 | 0x2067), (0x2000, 0x3067 | 0x4067 << 32)]);
    with_guest(words, TWO_LEVELS, |guest, cpu, _| {
        let count = |guest: &Guest<'_, Vtlbs>, counter| guest.shadows.0[0].counts().get(counter);
        guest.access(cpu, 0, Gva::new(0x40_0000), READ, 0);
        assert_eq!(count(guest, Counter::ShadowTables), 0, "a large page");
        let tables = (0..=u64::from(MAX_TABLES)).filter(|n| *n != 1);
        tables.clone().for_each(|n| guest.access(cpu, 0, Gva::new(n << 22), READ, 0));
        tables.for_each(|n| guest.access(cpu, 0, Gva::new((n << 22) + 0x1000), READ, 0));
        assert_eq!(count(guest, Counter::ShadowTables), MAX_TABLES.into());
        assert_eq!(count(guest, Counter::Dropped), 0);
    });
}

#[test]
fn the_last_part_of_the_address_space_makes_way_as_well() {
    let words = Words::from([(0x1ff8, 0x2067 << 32), (0x2000, 0x3067)]);
    with_guest(words, TWO_LEVELS, |guest, cpu, _| {
        guest.access(cpu, 0, Gva::new(0xffc0_0000), READ, 0);
        assert!(guest.shadows.0[0].make_way(cpu));
        assert!(!guest.is_mapped(guest.shadows.root(0), Gva::new(0xffc0_0000)));
        assert!(!guest.shadows.0[0].make_way(cpu));
        assert_eq!(guest.shadows.0[0].counts().get(Counter::Dropped), 1);
    });
}

#[test]
fn tables_make_way_where_the_host_has_no_frame() {
    let words = (0..512).map(|n| (0x1000 + n * 8, 0x2067_0000_2067)).chain([(0x2000, 0x3067)]);
    with_guest(words.collect(), TWO_LEVELS, |guest, cpu, tables| {
        (0..100).for_each(|n| guest.access(cpu, 0, Gva::new(n << 22), READ, 0));
        tables.limit(Some(0));
        let fault = |cpu: &mut ThisCpu<'_>| {
            guest.shadows.fault(cpu, guest.memory, 0, &guest.vcpus[0].registers, Gva::new(200 << 22), READ)
        };
        assert_eq!(fault(cpu), Err(NoMemory));
        let in_use = tables.in_use();
        // 16 tables at a time.
        for n in 1..=100u64.div_ceil(16) as usize {
            assert!(guest.shadows.0[0].make_way(cpu));
            cpu.barrier(|table| tables.free(table));
            assert_eq!(tables.in_use(), in_use - (16 * n).min(100));
        }
        assert!(!guest.shadows.0[0].make_way(cpu), "none is left");
        tables.limit(None);
        assert_eq!(fault(cpu), Ok(FaultOutcome::Mapped));
    });
}
