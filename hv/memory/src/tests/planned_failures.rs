//! Each allocation of each operation fails once: all is as before then, and nothing is lost.

use super::world::{LARGE, World, config};
use crate::arena::Arena;
use crate::host::HostMemory;
use crate::pool::PlannedFailures;
use abi::hypercall::{Refused, TestCall};
use addr::PAGE_SIZE;
use loader::Paging;
use std::string::String;
use std::vec::Vec;

const FRAMES: usize = 4096;
const RAM: u64 = 2 * LARGE;

/// Contents of three pages: of what is a large page before the operation, and of two small ones.
fn contents(world: &mut World<'_>) -> [u64; 3] {
    [0, LARGE, LARGE + PAGE_SIZE].map(|at| world.read(at))
}

/// A VM with a large page and, above it, small ones.
fn start(world: &mut World<'_>) {
    world.fault(0);
    world.write(0, 1);
    world.fault(LARGE);
    world.call(TestCall::Split { at: LARGE }).unwrap();
    world.write(LARGE, 2);
    world.write(LARGE + PAGE_SIZE, 3);
}

/// Runs the call with its first allocation failing, its second, and so on until none fails any more. How many of them it can't do
/// without.
fn fails_in_turn(call: TestCall) -> usize {
    let mut failed = 0;
    for nth in 1.. {
        let domain = Arena::domain(FRAMES);
        let mut world = World::new(&domain, &config(RAM, Paging::Nested));
        start(&mut world);
        let before: (String, u64, [u64; 3]) = (world.report(), world.outstanding(), contents(&mut world));

        world.fail(PlannedFailures::Nth(nth));
        let result = world.call(call);
        let has_fewer = world.is_to_fail();
        world.fail(PlannedFailures::None);
        if let Err(refused) = result {
            failed += 1;
            assert_eq!(refused, Refused::NoMemory, "{call:?} without allocation {nth}");
            let after = (world.report(), world.outstanding(), contents(&mut world));
            assert_eq!(after, before, "{call:?} without allocation {nth}");
            assert!(world.call(call).is_ok(), "a second try");
        }
        world.end();
        if has_fewer {
            break;
        }
    }
    failed
}

#[test]
fn a_call_without_one_of_its_frames_leaves_all_as_it_was() {
    let calls = [
        // The range ends within the large page: a table to split it.
        (TestCall::Release { start: PAGE_SIZE, bytes: 2 * PAGE_SIZE }, 1),
        (TestCall::Release { start: 0, bytes: RAM }, 0),
        (TestCall::Split { at: 0 }, 1),
        (TestCall::Collapse { at: LARGE }, 1),
        // A table for the large page, and the page.
        (TestCall::Replace { at: PAGE_SIZE }, 2),
        (TestCall::Replace { at: LARGE }, 1),
        (TestCall::LogDirty { start: LARGE, bytes: LARGE, bitmap: None }, 0),
    ];
    let failed: Vec<_> = calls.iter().map(|&(call, _)| fails_in_turn(call)).collect();
    assert_eq!(failed, calls.map(|(_, allocations)| allocations));
}

#[test]
fn a_fault_without_one_of_its_frames_takes_a_smaller_page_or_a_second_try() {
    for nth in 1..6 {
        let domain = Arena::domain(FRAMES);
        let mut world = World::new(&domain, &config(RAM, Paging::Nested));
        world.fail(PlannedFailures::Nth(nth));
        world.fault(LARGE);
        world.fail(PlannedFailures::None);
        assert!(world.is_mapped(LARGE), "without allocation {nth}");
        assert_eq!(world.read(LARGE), 0);
        world.end();
    }
}

/// To give all of them back takes milliseconds, for which other VMs would wait.
#[test]
fn a_planned_failure_leaves_the_frames_at_hand_where_they_are() {
    let domain = Arena::domain(2 * FRAMES);
    let mut world = World::new(&domain, &config(RAM, Paging::Nested));
    world.memory.prezero(|| false);
    world.write(0, 1);
    let free = |world: &World<'_>| world.domain.platform().frames().available();
    let before = free(&world);
    world.fail(PlannedFailures::Nth(1));
    assert_eq!((world.is_to_fail(), free(&world)), (true, before));
    assert_eq!(world.call(TestCall::Replace { at: 0 }), Err(Refused::NoMemory));
    assert_eq!((world.is_to_fail(), free(&world)), (false, before));
    assert_eq!(world.call(TestCall::Replace { at: 0 }), Ok(0));
    assert!(before - free(&world) <= 1, "a frame at hand is taken again, but for one by the table");
    world.end();
}

#[test]
fn with_no_frame_at_all_a_fault_ends_the_guest_and_changes_nothing() {
    let domain = Arena::domain(FRAMES);
    let mut world = World::new(&domain, &config(RAM, Paging::Nested));
    let before = (world.report(), world.outstanding());
    world.fail(PlannedFailures::All);
    assert_eq!(world.fault(LARGE), vm::Resolved::OutOfMemory);
    assert_eq!((world.report(), world.outstanding()), before);
    world.end();
}

#[test]
fn a_vm_that_lacks_a_frame_for_its_trees_is_refused_and_leaves_nothing() {
    use crate::VmMemory;
    use addr::PageSize;
    use mmu::{Caps, Npt};
    let caps = Caps::new(40, PageSize::Size2M, true);
    for paging in [Paging::Nested, Paging::Vtlb, Paging::Shadow] {
        let config = config(RAM, paging);
        // As many roots as are needed, and no frame for a nested root besides; then one root too few.
        for (frames, roots) in
            [(1 + config.trees().next_power_of_two(), config.trees()), (FRAMES, config.trees().saturating_sub(1))]
        {
            let domain = Arena::domain(frames);
            let host = domain.platform();
            if roots != 0 && host.frames().keep_roots(roots).is_none() {
                continue;
            }
            let free = host.frames().available();
            let mut cpu = domain.register(0).unwrap();
            let memory = VmMemory::<Npt, _>::new(&mut cpu, &config, (caps, caps), None);
            if let Some(memory) = memory {
                assert_eq!(memory.free(&mut cpu).accounts.left, 0);
            }
            assert_eq!(host.frames().available(), free, "{paging:?} with {frames} frames and {roots} roots");
        }
    }
}
