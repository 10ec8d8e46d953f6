//! A machine with fewer frames than the guest has pages.

use super::world::{LARGE, World};
use crate::arena::Arena;
use crate::pool::PlannedFailures;
use crate::view::Touched;
use crate::{ViewState, poll_idle};
use abi::hypercall::{Refused, TestCall};
use addr::{Gpa, PAGE_SIZE, PageSize};
use loader::{Paging, VmConfig};
use mmu::Fault;
use rcu::Tlb;
use vm::{Memory, NestedFault, Resolved};

/// Fewer than the 1024 pages of the guest.
const FRAMES: usize = 600;
const RAM: u64 = 2 * LARGE;

/// Small pages alone.
fn config() -> VmConfig {
    VmConfig { pages: PageSize::Size4K, ..super::world::config(RAM, Paging::Nested) }
}

/// Touches pages in turn until none is left: how many that were.
fn fill(world: &mut World<'_>) -> u64 {
    (0..RAM / PAGE_SIZE)
        .find(|page| world.fault(page * PAGE_SIZE) == Resolved::OutOfMemory)
        .expect("there are fewer frames")
}

#[test]
fn what_a_guest_gives_back_is_had_again_at_once() {
    let domain = Arena::domain(FRAMES);
    let mut world = World::new(&domain, &config());
    let pages = fill(&mut world);
    assert!(pages > 500, "{pages}");

    // As many frames as wait for a grace period then can be mapped elsewhere, though no time was left for one.
    let released = 100;
    assert_eq!(world.call(TestCall::Release { start: 0, bytes: released * PAGE_SIZE }), Ok(released));
    for page in pages..pages + released - 2 {
        assert_eq!(world.fault(page * PAGE_SIZE), Resolved::Retry, "page {page}");
        assert_eq!(world.read(page * PAGE_SIZE), 0, "page {page}");
    }
    world.end();
}

/// Two vCPUs have found the same page missing, and each has a page for it.
#[test]
fn a_fault_that_is_too_late_gives_its_page_back() {
    let domain = Arena::domain(FRAMES);
    let mut world = World::new(&domain, &config());
    assert_eq!(world.fault(PAGE_SIZE), Resolved::Retry);
    let before = world.outstanding();

    let view = world.view();
    let rooms = [(); 2].map(|()| match view.vm.tree.fault(view.cpu.read(), Gpa::new(0), PageSize::Size4K) {
        Ok(Fault::Room(room)) => room,
        _ => panic!("there is no page"),
    });
    for room in rooms {
        assert_eq!(view.fill(room), Ok(Touched::Mapped));
    }
    assert_eq!(world.outstanding(), before + 1);
    world.end();
}

#[test]
fn an_operation_waits_for_frames_that_wait_for_a_grace_period() {
    let domain = Arena::domain(FRAMES);
    let mut world = World::new(&domain, &config());
    let pages = fill(&mut world);
    let last = (pages - 1) * PAGE_SIZE;
    world.write(last, 7);
    // No frame is free for the copy, until the page released just now has come back.
    assert_eq!(world.call(TestCall::Replace { at: last }), Err(Refused::NoMemory));
    assert_eq!(world.call(TestCall::Release { start: 0, bytes: PAGE_SIZE }), Ok(1));
    assert_eq!(world.call(TestCall::Replace { at: last }), Ok(0));
    assert_eq!(world.read(last), 7);
    world.end();
}

#[test]
fn a_fault_does_not_wait_for_pages_of_another_cpu() {
    let domain = Arena::domain(FRAMES);
    let mut world = World::new(&domain, &config());
    let pages = fill(&mut world);
    let mut other = domain.register(1).unwrap();
    let (mut tlb, state) = (Tlb::new(), ViewState::new());
    let mut view = world.memory.view_of(0, &mut other, &mut tlb, &state);
    // The grace period ends with the next quiescent state of CPU 0, and the pages come back when CPU 1 polls.
    assert_eq!(view.test_call(TestCall::Release { start: 0, bytes: 32 * PAGE_SIZE }), Some(Ok(32)));
    let fault = NestedFault::new(Gpa::new(pages * PAGE_SIZE), true, false, false);
    assert_eq!(world.view().fault(fault), Resolved::Retry);
    assert!(!world.is_mapped(pages * PAGE_SIZE), "all frames wait");
    assert_eq!(world.view().test_call(TestCall::Replace { at: (pages - 1) * PAGE_SIZE }), None, "it waits as well");
    world.cpu.quiescent();
    other.quiescent();
    poll_idle(&other);
    assert_eq!(world.fault(pages * PAGE_SIZE), Resolved::Retry);
    assert!(world.is_mapped(pages * PAGE_SIZE));
    drop(other);
    world.end();
}

#[test]
fn a_call_ends_though_pages_of_another_vcpu_always_wait() {
    let domain = Arena::domain(FRAMES);
    let mut world = World::new(&domain, &config());
    fill(&mut world);
    let mut other = domain.register(1).unwrap();
    let (mut tlb, state) = (Tlb::new(), ViewState::new());
    let result = (0..10).find_map(|page| {
        let mut view = world.memory.view_of(0, &mut other, &mut tlb, &state);
        let release = TestCall::Release { start: page * PAGE_SIZE, bytes: PAGE_SIZE };
        assert_eq!(view.test_call(release), Some(Ok(1)));
        // There is no large page for it, whatever comes back.
        let result = world.view().test_call(TestCall::Collapse { at: LARGE });
        world.cpu.quiescent();
        other.quiescent();
        poll_idle(&other);
        result
    });
    assert_eq!(result, Some(Err(Refused::NoMemory)));
    drop(other);
    world.end();
}

#[test]
fn a_large_page_that_was_begun_is_given_back_when_there_is_no_frame() {
    let domain = Arena::domain(2 * FRAMES);
    let mut world = World::new(&domain, &super::world::config(RAM, Paging::Nested));
    let fault = |at| NestedFault::new(Gpa::new(at), true, false, false);
    assert_eq!(world.view().fault(fault(0)), Resolved::Retry);
    assert!(!world.is_mapped(0), "a part of it is zero");
    // Software is faster, by small pages.
    [PAGE_SIZE, LARGE + PAGE_SIZE].iter().for_each(|&at| world.write(at, 1));
    let before = world.outstanding();
    world.fail(PlannedFailures::All);
    assert_eq!(world.view().fault(fault(LARGE)), Resolved::Retry);
    assert_eq!(world.outstanding(), before - LARGE / PAGE_SIZE);
    assert_eq!(world.view().fault(fault(LARGE)), Resolved::OutOfMemory);
    world.fail(PlannedFailures::None);
    world.end();
}

#[test]
fn software_that_finds_no_frame_is_told_so() {
    use walk::PhysMem;
    let domain = Arena::domain(FRAMES);
    let mut world = World::new(&domain, &config());
    fill(&mut world);
    let last = Gpa::new(RAM - PAGE_SIZE);
    assert_eq!(world.view().read_u64(last), None);
    assert_eq!(PhysMem::write(&world.view(), last, &[1]), None);
    world.end();
}
