//! The translation buffer against the oracle.

use super::guest::{Guest, Words};
use super::machine::{Format, Machine, Shadows, Tables, ThisCpu};
use super::oracle::Oracle;
use super::sequences::{self, play, story};
use crate::{Counter, NoMemory, Outcome, Registers, Vtlb};
use addr::{Gpa, Gva, PageSize, Pfn};
use mmu::Caps;
use mmu::pool::{self, Pool};
use proptest::prelude::*;
use rcu::{Flush, Space};
use std::vec::Vec;
use walk::{Access, Controls, Kind, PhysMem, Privilege};

pub(super) const CAPS: Caps = Caps::new(40, PageSize::Size2M, true);
const FRAMES: usize = 64;
pub(super) const VCPUS: usize = 2;

/// A buffer for each vCPU.
pub(super) struct Buffers(Vec<Vtlb<Pool<Format>>>);

impl Shadows for Buffers {
    fn root(&self, vcpu: usize) -> Pfn {
        self.0[vcpu].root()
    }
    fn space(&self, vcpu: usize) -> &Space {
        self.0[vcpu].space()
    }
    fn load(&self, cpu: &ThisCpu<'_>, _: &Guest, vcpu: usize, _: &Registers) -> Flush {
        self.0[vcpu].load(cpu);
        Flush::Keep
    }
    fn invlpg(&self, cpu: &ThisCpu<'_>, _: &Guest, vcpu: usize, gva: Gva) -> Flush {
        self.0[vcpu].invlpg(cpu, gva);
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
        self.0[vcpu].fault(cpu, guest, registers, gva, access)
    }
    fn write(&self, _: &ThisCpu<'_>, guest: &Guest, gpa: Gpa, bytes: &[u8]) {
        guest.write(gpa, bytes).expect("it is memory");
    }
    fn forget(&self, cpu: &ThisCpu<'_>, _: Gpa) {
        self.0.iter().for_each(|buffer| {
            buffer.suspend(cpu);
            buffer.resume();
        });
    }
}

/// Runs `test` on a machine with a guest; every frame must be back afterwards.
pub(super) fn with_machine(
    words: Words,
    controls: Controls,
    test: impl FnOnce(&mut Machine<'_, Buffers>, &mut ThisCpu<'_>, &Tables),
) {
    let tables = Tables::new(FRAMES);
    let domain = pool::domain::<Format, 1>(&tables);
    let mut cpu = domain.register(0).expect("it is the first");
    let buffers = (0..VCPUS).map(|_| Vtlb::new(Pool::new(&tables, &domain), CAPS));
    let buffers = Buffers(buffers.collect::<Result<_, _>>().expect("there are frames"));
    let guest = Guest::new(words.clone());
    let registers = sequences::registers(&guest, controls);
    let vcpus = (0..VCPUS).map(|_| Machine::<Buffers>::vcpu(registers.clone())).collect();
    let oracle = Oracle::new(words, VCPUS);
    test(
        &mut Machine { tables: &tables, shadows: &buffers, guest: &guest, vcpus, oracle, seen: Vec::new() },
        &mut cpu,
        &tables,
    );
    assert_eq!(tables.bad(), []);
    buffers.0.into_iter().for_each(Vtlb::free);
    cpu.barrier(|table| tables.free(table));
    assert_eq!(tables.in_use(), 0, "frames have leaked");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_guest_sees_what_the_manual_allows(story in story(VCPUS)) {
        with_machine(story.words, story.controls, |machine, cpu, _| play(machine, cpu, &story.steps, false));
    }
}

pub(super) const READ: Access = Access { kind: Kind::Read, privilege: Privilege::User };
pub(super) const WRITE: Access = Access { kind: Kind::Write, privilege: Privilege::User };
const SUPERVISOR_WRITE: Access = Access { kind: Kind::Write, privilege: Privilege::Supervisor { ac: false } };
/// Two levels, PSE, WP.
pub(super) const TWO_LEVELS: Controls = Controls { cr0: 0x8001_0001, cr3: 0x1000, cr4: 0x10, efer: 0 };

/// Linear 0 is page 3, by the table in page 2; linear 4 MiB is the large page there.
pub(super) fn two_levels(pte: u64) -> Words {
    Words::from([(0x1000, 0x40_0087 << 32 | 0x2007), (0x2000, pte)])
}

#[test]
fn a_page_is_writable_only_when_it_is_dirty() {
    with_machine(two_levels(0x3007), TWO_LEVELS, |machine, cpu, _| {
        let rights = |machine: &Machine<'_, Buffers>, cpu: &ThisCpu<'_>| {
            machine.shadows.0[0].tree().translate(cpu.read(), Gva::new(0)).map(|found| found.leaf.rights.write)
        };
        machine.access(cpu, 0, Gva::new(0), READ, 0);
        assert_eq!(rights(machine, cpu), Some(false));
        machine.access(cpu, 0, Gva::new(0), WRITE, 1);
        assert_eq!(rights(machine, cpu), Some(true));
        assert_eq!(machine.guest.read_u32(Gpa::new(0x2000)), Some(0x3067));
        let faults = machine.shadows.0[0].counts().get(Counter::Faults);
        machine.access(cpu, 0, Gva::new(4), WRITE, 1);
        assert_eq!(machine.shadows.0[0].counts().get(Counter::Faults), faults, "the third access needs none");
    });
}

#[test]
fn nothing_is_mapped_while_frames_change() {
    with_machine(two_levels(0x3007), TWO_LEVELS, |machine, cpu, _| {
        machine.access(cpu, 0, Gva::new(0), READ, 0);
        let (buffer, registers) = (&machine.shadows.0[0], &machine.vcpus[0].registers);
        buffer.suspend(cpu);
        buffer.suspend(cpu);
        for _ in 0..2 {
            assert_eq!(buffer.tree().translate(cpu.read(), Gva::new(0)), None);
            assert_eq!(buffer.fault(cpu, machine.guest, registers, Gva::new(0), READ), Ok(Outcome::Retry));
            buffer.resume();
        }
        assert_eq!(buffer.fault(cpu, machine.guest, registers, Gva::new(0), READ), Ok(Outcome::Mapped));
    });
}

#[test]
fn a_large_page_is_one_entry_of_2_mib_and_goes_as_a_whole() {
    with_machine(two_levels(0), TWO_LEVELS, |machine, cpu, _| {
        let mapped = |machine: &Machine<'_, Buffers>, cpu: &ThisCpu<'_>, gva| {
            machine.shadows.0[0].tree().translate(cpu.read(), Gva::new(gva)).map(|found| found.size)
        };
        machine.access(cpu, 0, Gva::new(0x40_0000), WRITE, 1);
        machine.access(cpu, 0, Gva::new(0x60_0000), WRITE, 1);
        assert_eq!(mapped(machine, cpu, 0x40_1000), Some(PageSize::Size2M));
        assert_eq!(mapped(machine, cpu, 0x60_1000), Some(PageSize::Size2M));
        machine.invlpg(cpu, 0, Gva::new(0x40_1000));
        assert_eq!(mapped(machine, cpu, 0x40_1000), None);
        assert_eq!(mapped(machine, cpu, 0x60_1000), None, "the other half of the guest's page");
    });
}

#[test]
fn a_page_that_wp_alone_opens_is_the_supervisors_until_the_user_comes() {
    let controls = Controls { cr0: 0x8000_0001, ..TWO_LEVELS };
    with_machine(two_levels(0x3005), controls, |machine, cpu, _| {
        for _ in 0..2 {
            machine.access(cpu, 0, Gva::new(0), SUPERVISOR_WRITE, 1);
            machine.access(cpu, 0, Gva::new(0), READ, 0);
        }
        assert_eq!(machine.shadows.0[0].counts().get(Counter::Faults), 4);
    });
}

#[test]
fn with_smap_no_entry_gives_what_clear_wp_allows() {
    let controls = Controls { cr0: 0x8000_0001, cr4: TWO_LEVELS.cr4 | 1 << 21, ..TWO_LEVELS };
    with_machine(two_levels(0x3005), controls, |machine, cpu, _| {
        let write = |ac| Access { kind: Kind::Write, privilege: Privilege::Supervisor { ac } };
        machine.access(cpu, 0, Gva::new(0), write(true), 7);
        assert_eq!(machine.guest.read_u32(Gpa::new(0x3000)), Some(7));
        machine.access(cpu, 0, Gva::new(0), write(false), 8);
        assert_eq!(machine.guest.read_u32(Gpa::new(0x3000)), Some(7), "EFLAGS.AC is clear");
        assert_eq!(machine.shadows.0[0].counts().get(Counter::Emulated), 1);
    });
}

#[test]
fn without_frames_a_fault_fails_and_may_be_tried_again() {
    with_machine(two_levels(0x3007), TWO_LEVELS, |machine, cpu, tables| {
        let fault = |machine: &Machine<'_, Buffers>, cpu: &ThisCpu<'_>| {
            let registers = &machine.vcpus[0].registers;
            machine.shadows.0[0].fault(cpu, machine.guest, registers, Gva::new(0), READ)
        };
        let before = tables.in_use();
        for budget in 0..2 {
            tables.limit(Some(budget));
            assert_eq!(fault(machine, cpu), Err(NoMemory));
            assert_eq!(tables.in_use(), before);
        }
        tables.limit(None);
        machine.guest.budget.set(Some(0));
        assert_eq!(fault(machine, cpu), Err(NoMemory));
        machine.guest.budget.set(None);
        assert_eq!(fault(machine, cpu), Ok(Outcome::Mapped));
    });
}
