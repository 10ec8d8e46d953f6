//! The memory of a VM that begins anew.

use super::world::{LARGE, World, config};
use crate::arena::Arena;
use crate::pool::PlannedFailures;
use abi::hypercall::TestCall;
use addr::{Gpa, PAGE_SIZE, PageSize};
use core::iter;
use loader::{Backing, GuestMemory, Paging, VmConfig};
use std::vec::Vec;
use vm::Resolved;

const GIB: u64 = 1 << 30;

/// Takes all memory away: how many steps that takes.
fn clear(world: &mut World<'_>) -> usize {
    let mut view = world.view();
    iter::successors(Some(Gpa::new(0)), |&from| view.clear(from)).count() - 1
}

fn is_zero_and_mapped_as_at_first(config: &VmConfig) {
    let domain = Arena::domain(3 * 512 + 600);
    let mut world = World::new(&domain, config);
    let last = config.ram.bytes() - PAGE_SIZE;
    let touched: Vec<_> = [0, 0xa_0000, LARGE, LARGE + 5 * PAGE_SIZE, last].into();
    let touch = |world: &mut World<'_>| {
        touched.iter().for_each(|&at| assert_eq!(world.fault(at), Resolved::Retry));
        world.report()
    };
    let at_first = touch(&mut world);
    touched.iter().for_each(|&at| world.write(at, !at));
    if config.pages == PageSize::Size2M {
        assert_eq!(world.call(TestCall::Split { at: LARGE }), Ok(0), "the table of small pages has to go");
    }
    assert_eq!(clear(&mut world) as u64, config.ram.bytes().div_ceil(LARGE));
    assert!(world.report().starts_with("tables:"), "nothing is mapped: {}", world.report());
    assert_eq!(touch(&mut world), at_first);
    touched.iter().for_each(|&at| assert_eq!(world.read(at), 0, "{at:#x}"));
    world.end();
}

#[test]
fn memory_is_zero_and_mapped_as_at_first() {
    let ram = 3 * LARGE - 3 * PAGE_SIZE;
    for paging in [Paging::Nested, Paging::Shadow, Paging::Vtlb] {
        is_zero_and_mapped_as_at_first(&config(ram, paging));
        is_zero_and_mapped_as_at_first(&VmConfig { pages: PageSize::Size4K, ..config(ram, paging) });
    }
    is_zero_and_mapped_as_at_first(&VmConfig { backing: Backing::Reserve, ..config(ram, Paging::Nested) });
}

#[test]
fn memory_above_4_gib_is_cleared_and_the_hole_is_passed_over() {
    let domain = Arena::domain(2048);
    let mut world = World::new(&domain, &VmConfig { pages: PageSize::Size4K, ..config(5 * GIB, Paging::Nested) });
    let touched = [3 * GIB - PAGE_SIZE, 4 * GIB, 6 * GIB - PAGE_SIZE];
    touched.iter().for_each(|&at| world.write(at, 1));
    assert_eq!(clear(&mut world) as u64, 5 * GIB / LARGE);
    touched.iter().for_each(|&at| assert_eq!(world.read(at), 0));
    world.end();
}

#[test]
fn failures_that_were_planned_are_forgotten() {
    let domain = Arena::domain(2048);
    let mut world = World::new(&domain, &config(2 * LARGE, Paging::Nested));
    world.fail(PlannedFailures::All);
    assert_eq!(world.fault(0), Resolved::OutOfMemory);
    clear(&mut world);
    assert_eq!(world.fault(0), Resolved::Retry);
    world.end();
}

#[test]
fn a_large_page_of_the_image_is_cleared_in_steps() {
    let domain = Arena::domain(2048);
    let mut world = World::new(&domain, &config(2 * LARGE, Paging::Nested));
    let mut mapped = Vec::new();
    while !world.view().prepare(Gpa::new(LARGE - PAGE_SIZE), 2 * PAGE_SIZE).unwrap() {
        mapped.push([LARGE - 1, LARGE].map(|at| world.is_mapped(at)));
    }
    let [none, first] = [[false; 2], [true, false]];
    assert_eq!(mapped, [none, none, none, first, first, first], "each page in four steps, and one at a time");
    assert!(world.is_mapped(LARGE));
    world.end();
}
