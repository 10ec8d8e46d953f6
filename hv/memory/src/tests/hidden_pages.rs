//! Pages that a vCPU's local APIC lies over.

use super::world::{LARGE, World, config};
use crate::arena::Arena;
use abi::hypercall::TestCall;
use addr::{Gpa, PAGE_SIZE, PageSize};
use loader::{Paging, VmConfig};
use mmu::Rights;
use vm::Resolved;

const PAGE: u64 = 3 * PAGE_SIZE;

fn with(pages: PageSize, test: fn(&mut World<'_>)) {
    let domain = Arena::domain(4096);
    let mut world = World::new(&domain, &VmConfig { pages, vcpus: 2, ..config(2 * LARGE, Paging::Nested) });
    test(&mut world);
    world.end();
}

fn for_both(test: fn(&mut World<'_>)) {
    with(PageSize::Size4K, test);
    with(PageSize::Size2M, test);
}

fn hide(world: &mut World<'_>, vcpu: usize, at: Option<u64>) {
    world.view().hide(vcpu, at.map(|at| Gpa::new(at).frame()));
}

fn rights(world: &World<'_>, at: u64) -> Option<Rights> {
    world.memory.tree.translate(world.cpu.read(), Gpa::new(at)).map(|found| found.leaf.rights)
}

/// What becomes of an access when a fault has mapped the page, if that was needed.
fn access(world: &mut World<'_>, at: u64) -> Resolved {
    world.fault(at);
    world.fault(at)
}

#[test]
fn a_page_under_an_apic_is_there_for_software_alone() {
    for_both(|world| {
        world.fault(PAGE);
        world.write(PAGE, 7);
        let flushes = world.memory.tree.space().flushes();
        hide(world, 0, Some(PAGE));
        assert_eq!(world.memory.tree.space().flushes(), flushes + 1);
        assert_eq!(access(world, PAGE), Resolved::NotMemory);
        assert_eq!([PAGE - PAGE_SIZE, PAGE + PAGE_SIZE].map(|at| world.fault(at)), [Resolved::Retry; 2]);
        assert_eq!(world.read(PAGE), 7);
        world.write(PAGE, 8);
        hide(world, 0, None);
        assert_eq!(world.fault(PAGE), Resolved::Retry);
        assert_eq!((world.read(PAGE), rights(world, PAGE)), (8, Some(Rights::ALL)));
    });
}

#[test]
fn a_page_is_hidden_that_was_never_touched_or_was_released() {
    for_both(|world| {
        hide(world, 0, Some(PAGE));
        assert_eq!(access(world, PAGE), Resolved::NotMemory);
        assert_eq!(world.call(TestCall::Release { start: 0, bytes: LARGE }), Ok(1));
        assert_eq!(world.fault(0), Resolved::Retry);
        assert_eq!((world.read(PAGE), rights(world, PAGE)), (0, Some(Rights::HIDDEN)));
        assert!(world.call(TestCall::Collapse { at: 0 }).is_err());
        assert_eq!(access(world, PAGE), Resolved::NotMemory);
    });
}

#[test]
fn a_page_is_hidden_as_long_as_one_apic_is_there() {
    for_both(|world| {
        hide(world, 0, Some(PAGE));
        hide(world, 1, Some(PAGE));
        hide(world, 0, Some(PAGE + PAGE_SIZE));
        assert_eq!([PAGE, PAGE + PAGE_SIZE].map(|at| access(world, at)), [Resolved::NotMemory; 2]);
        hide(world, 1, None);
        assert_eq!([PAGE, PAGE + PAGE_SIZE].map(|at| access(world, at)), [Resolved::Retry, Resolved::NotMemory]);
    });
}

#[test]
fn a_vm_that_begins_anew_has_no_hidden_page() {
    for_both(|world| {
        hide(world, 0, Some(PAGE));
        let mut from = Some(Gpa::new(0));
        while let Some(at) = from {
            from = world.view().clear(at);
        }
        assert_eq!(world.fault(PAGE), Resolved::Retry);
        // And may hide the same one again.
        hide(world, 0, Some(PAGE));
        assert_eq!(access(world, PAGE), Resolved::NotMemory);
    });
}

#[test]
fn the_default_place_is_no_memory_and_stays_so() {
    for_both(|world| {
        hide(world, 0, Some(0xfee0_0000));
        assert_eq!(world.fault(0xfee0_0000), Resolved::NotMemory);
        assert_eq!(rights(world, 0xfee0_0000), None);
    });
}
