//! Models of splits and collapses under walkers.

use super::EXPLORER;
use super::world::{A, B, World, at};
use crate::rules::Rule;
use crate::{CollapseError, Fault, Level, Pte};
use addr::{PageSize, Pfn};
use model::loom_tests;
use model::sync::{AtomicU64, Ordering};
use std::sync::Arc;
use std::vec::Vec;

loom_tests! {
    loom_split_under_a_walker = split_under_a_walker;
    mutant_split_publishes_before_it_fills breaks [FillFirst]
}

fn split_under_a_walker() {
    let world = World::large_page();
    let other = world.spawn(|world, cpu| {
        for (gfn, pfn) in [(0, A), (1, B)] {
            let found = world.tree.translate(cpu.read(), at(gfn)).expect("it is mapped all the time");
            assert_eq!(found.hpa.frame(), Pfn::new(pfn));
        }
    });
    world.on(0, |cpu| world.tree.split(cpu.read(), at(0)).unwrap());
    other.join().unwrap();
    world.check_tables();
}

loom_tests! {
    loom_split_under_a_writing_processor = split_under_a_processor;
    mutant_split_loses_a_dirty_bit breaks [AtomicChange]
}

fn split_under_a_processor() {
    let world = World::large_page();
    let other = world.spawn(|world, _| world.hardware_write(1));
    world.on(0, |cpu| world.tree.split(cpu.read(), at(0)).unwrap());
    assert!(other.join().unwrap(), "it is writable all the time");
    assert!(world.leaf(1).unwrap().dirty, "a write is lost");
}

loom_tests! {
    loom_two_splits_of_one_page = two_splits;
    mutant_two_splits_without_lock_and_exchange breaks [Lock, AtomicChange]
}

fn two_splits() {
    let world = World::large_page();
    let other = world.spawn(|world, cpu| world.tree.split(cpu.read(), at(0)).is_ok());
    let ours = world.on(0, |cpu| world.tree.split(cpu.read(), at(1)).is_ok());
    assert!(ours != other.join().unwrap());
    assert_eq!(world.memory.in_use(), world.check_tables(), "the table of the CPU that lost is free");
    assert_eq!((world.pfn(0), world.pfn(1)), (Some(A), Some(B)));
}

loom_tests! {
    loom_collapse_under_a_fault = collapse_under_a_fault;
    mutant_collapse_that_clears_instead_of_freezing breaks [FrozenIsNotNone]
}

fn collapse_under_a_fault() {
    let world = World::two_pages();
    let other = world.spawn(|world, cpu| match world.tree.fault(cpu.read(), at(1), PageSize::Size4K).unwrap() {
        Fault::Present(found) => assert_eq!(found.hpa.frame(), Pfn::new(B)),
        Fault::Room(_) => panic!("it is mapped all the time"),
    });
    world.on(0, |cpu| world.tree.collapse(cpu, at(0), PageSize::Size2M).unwrap());
    other.join().unwrap();
    assert_eq!((world.pfn(0), world.pfn(1)), (Some(A), Some(B)));
    world.check_tables();
}

loom_tests! {
    loom_collapse_under_a_writing_processor = collapse_under_a_processor;
    mutant_collapse_loses_accessed_and_dirty_bits breaks [KeepAccessedDirty],
    mutant_collapse_without_freeze_loses_a_late_dirty_bit breaks [Freeze]
}

fn collapse_under_a_processor() {
    let world = World::two_pages();
    let other = world.spawn(|world, _| world.hardware_write(1));
    world.on(0, |cpu| world.tree.collapse(cpu, at(0), PageSize::Size2M).unwrap());
    if other.join().unwrap() {
        assert!(world.leaf(1).unwrap().dirty, "a write is lost");
    }
}

loom_tests! {
    loom_collapse_against_zap = collapse_against_zap;
    mutant_collapse_against_zap_without_recheck_and_freeze breaks [RecheckPmd, Freeze]
}

fn collapse_against_zap() {
    collapse_against_a_zap_of(0, &[(0, None), (1, Some(B))], A);
}

loom_tests! {
    loom_collapse_against_zap_of_the_upper_half = collapse_against_zap_of_the_upper_half;
    mutant_collapse_against_zap_of_the_upper_half_without_recheck_and_freeze breaks [RecheckPmd, Freeze]
}

fn collapse_against_zap_of_the_upper_half() {
    collapse_against_a_zap_of(1, &[(0, Some(A)), (1, None)], B);
}

fn collapse_against_a_zap_of(gfn: u64, left: &[(u64, Option<u64>)], pfn: u64) {
    let world = World::two_pages();
    let other = world.spawn(|world, cpu| match world.tree.collapse(cpu, at(0), PageSize::Size2M) {
        Ok(()) | Err(CollapseError::NotUniform | CollapseError::Changed) => {}
        Err(wrong) => panic!("{wrong:?}"),
    });
    let mut zapped = Vec::new();
    world.on(0, |cpu| world.tree.zap(cpu, at(gfn)..at(gfn + 1), |page| zapped.push(page.leaf.pfn.raw())).unwrap());
    other.join().unwrap();
    assert_eq!(zapped, [pfn]);
    left.iter().for_each(|&(gfn, pfn)| assert_eq!(world.pfn(gfn), pfn));
    world.check_tables();
}

/// One CPU fills a frame and maps it, another freezes its table and gives that up, and a third reads the frame by the thawed entry.
#[test]
fn loom_a_thawed_entry_leads_to_what_was_there_before() {
    EXPLORER.explore(|| {
        let world = World::new(|world, cpu| world.map(cpu, 1, B));
        let content = Arc::new(AtomicU64::new(0));
        let [filled, read] = [content.clone(), content];
        let fills = world.spawn(move |world, cpu| {
            filled.store(7, Ordering::Relaxed);
            world.map(cpu, 0, A);
        });
        let reads = world.spawn_on(2, move |world, cpu| {
            if world.tree.translate(cpu.read(), at(0)).is_some() {
                assert_eq!(read.load(Ordering::Relaxed), 7, "a page is read without what was written to it before");
            }
        });
        world.on(0, |cpu| {
            let locked = world.tree.find(cpu.read(), at(0), Level::PMD).unwrap().pte_offset_map_lock().unwrap();
            let first = locked.table().at(0);
            assert!(locked.freeze(|index| if index == 0 { first } else { Pte::NONE }).is_err());
        });
        fills.join().unwrap();
        reads.join().unwrap();
    });
}

loom_tests! {
    loom_a_frozen_entry_refuses_a_late_exchange = a_late_exchange;
    mutant_a_late_exchange_on_a_dead_table breaks [Freeze]
}

fn a_late_exchange() {
    let world = World::new(|world, cpu| {
        world.map(cpu, 0, A);
        world.map(cpu, 1, B);
        world.tree.dirty_log(cpu, super::world::WHOLE, |_| {}).unwrap();
    });
    let other = world.spawn(|world, cpu| world.tree.unprotect(cpu.read(), at(0)));
    let collapsed = world.on(0, |cpu| world.tree.collapse(cpu, at(0), PageSize::Size2M).is_ok());
    let writable = other.join().unwrap();
    // The CPU that lost a race faults again.
    assert_eq!(world.leaf(0).unwrap().rights.write, writable, "collapsed: {collapsed}");
    world.check_tables();
}
