//! A VM whose memory becomes what it was at the start.

use super::world::{LARGE, World, config};
use crate::arena::Arena;
use crate::{HostMemory, Restart, RestartStatus};
use addr::{Gpa, PAGE_SIZE, PageSize};
use loader::rom::{Recorder, Rom};
use loader::{GuestMemory, Paging, VmConfig};
use sched::Instant;
use std::vec;
use std::vec::Vec;

const IMAGE: u64 = LARGE;

/// Loads an image of so many bytes, each of which is 0x5a.
fn load(world: &mut World<'_>, bytes: usize) -> Rom<'static> {
    let mut view = world.view();
    let mut recorder = Recorder::new(&mut view, &[]);
    recorder.write(Gpa::new(IMAGE), &vec![0x5a; bytes]).unwrap();
    recorder.finish()
}

/// What came of each turn of a CPU that another task always wants, up to the last.
fn turns(world: &mut World<'_>, rom: &Rom<'_>) -> Vec<RestartStatus> {
    let mut restart = Restart::default();
    let mut statuses = Vec::new();
    while statuses.last().is_none_or(|status| *status == RestartStatus::Preempted) {
        assert!(statuses.len() < 10_000, "it ends");
        statuses.push(restart.run(&mut world.view(), rom, 1, || Instant::new(0), |_| true));
        world.cpu.quiescent();
    }
    statuses
}

#[test]
fn memory_is_what_it_was_at_the_start_after_some_turns() {
    for paging in [Paging::Nested, Paging::Shadow] {
        let domain = Arena::domain(4096);
        let small = VmConfig { pages: PageSize::Size4K, ..config(3 * LARGE, paging) };
        let mut world = World::new(&domain, &small);
        let rom = load(&mut world, 200 << 10);
        [0, IMAGE, IMAGE + (199 << 10), 3 * LARGE - PAGE_SIZE].iter().for_each(|&at| world.write(at, 7));
        let statuses = turns(&mut world, &rom);
        // Three parts are taken away and the end is seen, and four parts are written.
        assert_eq!(statuses.len(), 3 + 1 + 4 + 1, "{statuses:?}");
        assert_eq!(statuses.last(), Some(&RestartStatus::Done));
        let image = u64::from_le_bytes([0x5a; 8]);
        assert_eq!([IMAGE, IMAGE + (200 << 10) - 8].map(|at| world.read(at)), [image; 2]);
        assert_eq!([0, IMAGE + (200 << 10), 3 * LARGE - PAGE_SIZE].map(|at| world.read(at)), [0; 3]);
        world.end();
    }
}

#[test]
fn a_turn_ends_when_the_cpu_was_long_without_a_quiescent_state() {
    let domain = Arena::domain(4096);
    let mut world = World::new(&domain, &config(3 * LARGE, Paging::Nested));
    let rom = load(&mut world, 4096);
    let ticks = core::cell::Cell::new(0);
    let clock = || Instant::new(ticks.replace(ticks.get() + 1));
    let mut restart = Restart::default();
    assert_eq!(restart.run(&mut world.view(), &rom, 1, clock, |_| false), RestartStatus::Preempted);
    assert_eq!(restart, Restart::Clears(Gpa::new(LARGE)), "one step");
    let rest = restart.run(&mut world.view(), &rom, 1000, clock, |_| false);
    assert_eq!(rest, RestartStatus::Done);
    world.end();
}

#[test]
fn frames_that_another_vm_has_taken_are_missing() {
    let domain = Arena::domain(1024);
    let small = VmConfig { pages: PageSize::Size4K, ..config(2 * LARGE, Paging::Nested) };
    let mut world = World::new(&domain, &small);
    let rom = load(&mut world, 512 << 10);
    // All of it is taken away, and then another VM takes what there is.
    let mut restart = Restart::default();
    while !matches!(restart, Restart::Loads(_)) {
        restart.run(&mut world.view(), &rom, 1, || Instant::new(0), |_| true);
    }
    (0..4).for_each(|_| world.cpu.quiescent());
    while world.view().hurry_back() {
        world.cpu.quiescent();
    }
    let frames = domain.platform().frames();
    world.memory.account().pool.lock().empty(frames);
    let taken: Vec<_> = core::iter::from_fn(|| frames.alloc_contiguous(1)).collect();
    let statuses = loop {
        match restart.run(&mut world.view(), &rom, 1, || Instant::new(0), |_| true) {
            RestartStatus::Preempted => world.cpu.quiescent(),
            status => break status,
        }
    };
    assert_eq!(statuses, RestartStatus::OutOfMemory);
    taken.iter().for_each(|frame| frames.add(frame.start()..frame.add(1).start()));
    world.end();
}
