//! Models of mapping and unmapping pages.

use super::EXPLORER;
use super::world::{A, B, WHOLE, World, at};
use crate::pool::PoolPlatform;
use crate::rules::Rule;
use crate::{Entry, Level, NoTable, Toy};
use model::loom_tests;
use model::sync::{AtomicBool, Ordering};
use std::sync::Arc;
use std::vec::Vec;

/// The frames of all mapped pages and of the pages that were reported as unmapped, in order.
fn all(world: &World, handed_out: &[u64]) -> Vec<u64> {
    let mut all: Vec<u64> = (0..4).filter_map(|gfn| world.pfn(gfn)).chain(handed_out.iter().copied()).collect();
    all.sort_unstable();
    all
}

loom_tests! {
    loom_map_against_retract = map_against_retract;
    mutant_map_against_retract_without_recheck_and_freeze breaks [RecheckPmd, Freeze]
}

fn map_against_retract() {
    let world = World::empty_table();
    let other = world.spawn(|world, cpu| world.fault_in(cpu, 0, A));
    world.on(0, |cpu| world.tree.retract(cpu, WHOLE).unwrap());
    let mapped = other.join().unwrap();
    assert_eq!(world.pfn(0), mapped.then_some(A), "a page is mapped in a table that has gone");
    world.check_tables();
}

loom_tests! {
    loom_map_against_zap_tables = map_against_zap_tables;
    mutant_map_against_zap_tables_without_recheck breaks [RecheckPmd]
}

fn map_against_zap_tables() {
    let world = World::empty_table();
    let other = world.spawn(|world, cpu| world.fault_in(cpu, 0, A));
    let zapped = world.on(0, |cpu| world.tree.zap_tables(cpu, WHOLE).unwrap());
    let mapped = other.join().unwrap();
    // The page was mapped before and is zapped with its table, or was refused, or is in a new table.
    let there = mapped && zapped.pages == 0;
    assert_eq!(world.pfn(0), there.then_some(A), "a page is mapped in a table that has gone");
    world.check_tables();
}

loom_tests! {
    loom_two_faults_on_one_slot = two_faults_on_one_slot;
    mutant_two_faults_on_one_slot_without_a_second_look breaks [RecheckEntry],
    mutant_two_faults_on_one_slot_without_lock breaks [Lock]
}

fn two_faults_on_one_slot() {
    let world = World::empty_table();
    let other = world.spawn(|world, cpu| world.fault_in(cpu, 0, A));
    let ours = world.on(0, |cpu| world.fault_in(cpu, 0, B));
    let theirs = other.join().unwrap();
    assert!(ours != theirs, "one of them maps, the other sees it");
    assert_eq!(world.pfn(0), Some(if ours { B } else { A }));
}

loom_tests! {
    loom_two_faults_on_one_missing_table = two_faults_on_one_table;
    mutant_two_faults_on_one_missing_table_without_a_second_look breaks [RecheckEntry]
}

fn two_faults_on_one_table() {
    let world = World::empty();
    let other = world.spawn(|world, cpu| world.map(cpu, 0, A));
    world.on(0, |cpu| world.map(cpu, 1, B));
    other.join().unwrap();
    assert_eq!((world.pfn(0), world.pfn(1)), (Some(A), Some(B)));
    assert_eq!(world.memory.in_use(), world.check_tables(), "the table of the CPU that lost is free");
}

loom_tests! {
    loom_fault_against_zap = fault_against_zap;
    mutant_fault_against_zap_without_lock breaks [Lock]
}

fn fault_against_zap() {
    let world = World::new(|world, cpu| world.map(cpu, 0, A));
    let other = world.spawn(|world, cpu| world.fault_in(cpu, 1, B));
    let mut zapped = Vec::new();
    world.on(0, |cpu| world.tree.zap(cpu, at(0)..at(1), |page| zapped.push(page.leaf.pfn.raw())).unwrap());
    assert!(other.join().unwrap());
    assert_eq!(all(&world, &zapped), [A, B]);
    assert_eq!(zapped, [A]);
    world.check_tables();
}

loom_tests! {
    loom_unmap_against_map = unmap_against_map;
    mutant_unmap_against_map_without_a_count_under_the_lock breaks [CountUnderLock]
}

fn unmap_against_map() {
    let world = World::new(|world, cpu| world.map(cpu, 0, A));
    let other = world.spawn(|world, cpu| world.map(cpu, 1, B));
    let mut zapped = Vec::new();
    world.on(0, |cpu| world.tree.unmap(cpu, WHOLE, |page| zapped.push(page.leaf.pfn.raw())).unwrap());
    other.join().unwrap();
    assert_eq!(all(&world, &zapped), [A, B], "every page is mapped or handed out, once");
    world.check_tables();
}

loom_tests! {
    loom_a_page_is_reused_after_the_flush = a_page_is_reused_after_the_flush;
    mutant_a_page_is_reused_without_flush breaks [Flush]
}

fn a_page_is_reused_after_the_flush() {
    a_page_is_reused_after(|world, cpu, reuse| world.tree.zap(cpu, WHOLE, |_| reuse()).unwrap());
}

loom_tests! {
    loom_a_page_is_reused_after_the_flush_of_its_table = a_page_is_reused_after_the_flush_of_its_table;
    mutant_a_page_is_reused_without_flush_of_its_table breaks [Flush]
}

fn a_page_is_reused_after_the_flush_of_its_table() {
    a_page_is_reused_after(|world, cpu, reuse| {
        assert_eq!(world.tree.zap_tables(cpu, WHOLE).unwrap().pages, 1);
        reuse();
    });
}

fn a_page_is_reused_after(zap: fn(&World, &rcu::Cpu<'_, PoolPlatform<Toy<2>>>, &dyn Fn())) {
    let world = World::new(|world, cpu| world.map(cpu, 0, A));
    let reused = Arc::new(AtomicBool::new(false));
    let seen = reused.clone();
    let other = world.spawn(move |world, cpu| {
        let mut tlb = rcu::Tlb::new();
        cpu.guest(world.tree.space(), &mut tlb, |_| {
            // The processor keeps the translation and uses it until it leaves guest mode.
            if world.pfn(0).is_some() {
                assert!(!seen.load(Ordering::Acquire), "a guest uses a page that was reused");
            }
        });
    });
    world.on(0, |cpu| zap(&world, cpu, &|| reused.store(true, Ordering::Release)));
    other.join().unwrap();
}

loom_tests! {
    loom_bad_is_reported_once = bad_is_reported_once;
    mutant_bad_is_reported_twice_without_lock_and_exchange breaks [Lock, AtomicChange]
}

fn bad_is_reported_once() {
    let world = World::new(|world, _| {
        let root = world.tree.root();
        world.hardware_entry(root, Level::PMD, 2).store(0xfff0_0000_0000_0027, Ordering::Release);
        world.memory.desc(root).unwrap().add_children(1);
    });
    let look = |world: &World, cpu: &rcu::Cpu<'_, _>| {
        world.tree.find(cpu.read(), at(2), Level::PMD).unwrap().pte_offset_map().err().unwrap()
    };
    let other = world.spawn(move |world, cpu| look(world, cpu));
    let ours = world.on(0, |cpu| look(&world, cpu));
    let theirs = other.join().unwrap();
    assert_eq!(world.memory.bad().len(), 1);
    assert!([ours, theirs].contains(&NoTable::Bad));
    world.check_tables();
}

loom_tests! {
    loom_one_read_decides = one_read_decides;
    mutant_two_reads_disagree breaks [OneRead]
}

fn one_read_decides() {
    // The pages are in frames of tables: a walk that takes a leaf for a table would find one.
    let frames = [crate::pool::FIRST + 2, crate::pool::FIRST + 3];
    let world = World::new(|world, cpu| {
        world.map(cpu, 0, frames[0]);
        world.map(cpu, 1, frames[1]);
    });
    let other = world.spawn(|world, cpu| {
        let guard = cpu.read();
        match world.tree.find(guard, at(0), Level::PMD).unwrap().pte_offset_map() {
            Ok(map) => assert_ne!(map.get(at(0)), Entry::Bad, "that is no table"),
            Err(why) => assert!(matches!(why, NoTable::Leaf(_)), "{why:?}"),
        }
    });
    world.on(0, |cpu| world.tree.collapse(cpu, at(0), addr::PageSize::Size2M).unwrap());
    other.join().unwrap();
}
