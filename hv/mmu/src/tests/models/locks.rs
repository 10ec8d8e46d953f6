//! Models of locks, and of the lifetime of tables and their descriptors.

use super::EXPLORER;
use super::world::{A, B, WHOLE, World, at};
use crate::rules::Rule;
use crate::{Entry, Level};
use addr::PageSize;
use model::loom_tests;

loom_tests! {
    loom_map_lock_against_collapse = map_lock_against_collapse;
    mutant_map_lock_against_collapse_without_recheck_and_freeze breaks [RecheckPmd, Freeze]
}

fn map_lock_against_collapse() {
    let world = World::two_pages();
    let other = world.spawn(|world, cpu| {
        let entry = world.tree.find(cpu.read(), at(0), Level::PMD).unwrap();
        entry.pte_offset_map_lock().is_ok_and(|locked| locked.ptep_get_and_clear(at(0)).is_ok())
    });
    let collapsed = world.on(0, |cpu| world.tree.collapse(cpu, at(0), PageSize::Size2M).is_ok());
    let cleared = other.join().unwrap();
    assert!(collapsed != cleared);
    assert_eq!(world.pfn(0), collapsed.then_some(A));
    assert_eq!(world.pfn(1), Some(B));
    world.check_tables();
}

loom_tests! {
    loom_a_locked_table_holds_still = a_stable_look;
    mutant_a_table_without_lock_does_not breaks [Lock]
}

fn a_stable_look() {
    let world = World::two_pages();
    let other = world.spawn(|world, cpu| {
        let entry = world.tree.find(cpu.read(), at(0), Level::PMD).unwrap();
        let map = entry.pte_offset_map_ro_nolock().unwrap();
        let locked = map.lock().unwrap();
        assert_eq!(locked.get(at(0)), locked.get(at(0)));
    });
    world.on(0, |cpu| world.tree.zap(cpu, WHOLE, |_| {}).unwrap());
    other.join().unwrap();
}

loom_tests! {
    loom_two_retracts_of_one_table = two_retracts;
    mutant_two_retracts_without_recheck_and_freeze breaks [RecheckPmd, Freeze]
}

fn two_retracts() {
    let world = World::empty_table();
    let other = world.spawn(|world, cpu| world.tree.retract(cpu, WHOLE).unwrap());
    let ours = world.on(0, |cpu| world.tree.retract(cpu, WHOLE).unwrap());
    assert_eq!(ours + other.join().unwrap(), 1);
    world.check_tables();
}

loom_tests! {
    loom_zap_tables_against_retract = zap_tables_against_retract;
    mutant_zap_tables_against_retract_without_recheck breaks [RecheckPmd, Freeze]
}

fn zap_tables_against_retract() {
    let world = World::empty_table();
    let other = world.spawn(|world, cpu| world.tree.zap_tables(cpu, WHOLE).unwrap().tables);
    let ours = world.on(0, |cpu| world.tree.retract(cpu, WHOLE).unwrap());
    assert_eq!(ours + other.join().unwrap(), 1, "it is unlinked once");
    world.check_tables();
}

loom_tests! {
    loom_move_against_retract = move_against_retract;
    mutant_move_against_retract_without_lock breaks [Lock]
}

fn move_against_retract() {
    let world = World::empty_table();
    let other = world.spawn(|world, cpu| world.tree.move_table(cpu, at(0), at(2), Level::PMD).is_ok());
    world.on(0, |cpu| world.tree.retract(cpu, WHOLE).unwrap());
    other.join().unwrap();
    // A table that is moved to a range that the retracting CPU has passed stays; a retracted table is in no entry.
    world.check_tables();
}

loom_tests! {
    loom_move_against_zap_tables = move_against_zap_tables;
    mutant_move_against_zap_tables_without_lock breaks [Lock]
}

fn move_against_zap_tables() {
    let world = World::new(|world, cpu| world.map(cpu, 0, A));
    let other = world.spawn(|world, cpu| world.tree.move_table(cpu, at(0), at(2), Level::PMD).is_ok());
    let zapped = world.on(0, |cpu| world.tree.zap_tables(cpu, at(0)..at(2)).unwrap());
    let moved = other.join().unwrap();
    assert!(moved != (zapped.tables == 1));
    assert_eq!([world.pfn(0), world.pfn(2)], [None, moved.then_some(A)]);
    world.check_tables();
}

loom_tests! {
    loom_move_against_fault = move_against_fault;
    mutant_move_against_fault_without_recheck breaks [RecheckPmd],
    mutant_move_against_fault_without_the_tables_own_lock breaks [LockChild]
}

fn move_against_fault() {
    let world = World::new(|world, cpu| world.map(cpu, 1, B));
    let other = world.spawn(|world, cpu| world.fault_in(cpu, 0, A));
    world.on(0, |cpu| world.tree.move_table(cpu, at(0), at(2), Level::PMD)).unwrap();
    let moved = world.pfn(2);
    let mapped = other.join().unwrap();
    assert_eq!(world.pfn(2), moved, "a page is mapped where its table went");
    assert!(mapped || moved.is_none());
    assert_eq!(world.pfn(3), Some(B));
}

loom_tests! {
    loom_a_walker_keeps_its_table = a_walker_keeps_its_table;
    mutant_a_walker_loses_its_table breaks [FreeLate]
}

fn a_walker_keeps_its_table() {
    let world = World::new(|world, cpu| world.map(cpu, 0, A));
    let other = world.spawn(|world, cpu| {
        let guard = cpu.read();
        if let Ok(map) = world.tree.find(guard, at(0), Level::PMD).unwrap().pte_offset_map() {
            let entry = map.get(at(0));
            assert_ne!(entry, Entry::Bad, "the table was freed");
        }
        cpu.quiescent();
    });
    world.on(0, |cpu| {
        world.tree.unmap(cpu, WHOLE, |_| {}).unwrap();
        for _ in 0..2 {
            cpu.quiescent();
            cpu.poll(1, |table| world.memory.free(table));
        }
    });
    other.join().unwrap();
}

loom_tests! {
    loom_a_processor_keeps_its_table = a_processor_keeps_its_table;
    mutant_a_processor_loses_its_table breaks [FreeLate]
}

fn a_processor_keeps_its_table() {
    let world = World::empty_table();
    let other = world.spawn(|world, cpu| {
        let mut tlb = rcu::Tlb::new();
        // Between its two loads the hardware walk uses a table without a guard.
        cpu.guest(world.tree.space(), &mut tlb, |_| _ = world.hardware_walk(0));
    });
    world.on(0, |cpu| {
        // No page goes with it, so that no flush is awaited.
        world.tree.retract(cpu, WHOLE).unwrap();
        for _ in 0..2 {
            cpu.quiescent();
            cpu.poll(1, |table| world.memory.free(table));
        }
    });
    other.join().unwrap();
}

loom_tests! {
    loom_a_processor_keeps_a_table_that_is_zapped_whole = a_processor_under_zap_tables;
    mutant_a_processor_loses_a_table_that_is_zapped_whole breaks [FreeLate]
}

fn a_processor_under_zap_tables() {
    let world = World::new(|world, cpu| world.map(cpu, 0, A));
    let other = world.spawn(|world, cpu| {
        cpu.guest(world.tree.space(), &mut rcu::Tlb::new(), |_| _ = world.hardware_walk(0));
    });
    world.on(0, |cpu| {
        world.tree.zap_tables(cpu, WHOLE).unwrap();
        for _ in 0..2 {
            cpu.quiescent();
            cpu.poll(1, |table| world.memory.free(table));
        }
    });
    other.join().unwrap();
}

#[test]
fn mutant_a_processor_loses_its_table_in_a_grace_period_of_software_alone() {
    EXPLORER.must_fail(&[rcu::rules::Rule::WaitForHardware], a_processor_keeps_its_table, model::Ending::Broken);
}
