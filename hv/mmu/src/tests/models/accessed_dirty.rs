//! Models of accessed and dirty bits, and of processors with cached translations.

use super::EXPLORER;
use super::world::{A, F, WHOLE, World, at};
use crate::format::Format;
use crate::rules::Rule;
use crate::tests::page;
use crate::{Leaf, Level, Rights};
use addr::PageSize;
use model::loom_tests;
use model::sync::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

/// A world with one accessed page, so that a harvest always reports it.
fn one_page() -> Arc<World> {
    World::new(|world, cpu| {
        let leaf = Leaf { accessed: true, ..page(A) };
        world.tree.map(cpu.read(), at(0), leaf, PageSize::Size4K).unwrap();
    })
}

loom_tests! {
    loom_protect_against_a_writing_processor = protect_against_a_write;
    mutant_protect_by_load_and_store breaks [AtomicChange]
}

fn protect_against_a_write() {
    let world = one_page();
    let other = world.spawn(|world, _| world.hardware_write(0));
    world.on(0, |cpu| world.tree.protect(cpu, WHOLE, Rights::READ_ONLY).unwrap());
    let written = other.join().unwrap();
    let leaf = world.leaf(0).unwrap();
    assert_eq!(leaf.dirty, written, "a write is lost");
    assert!(!leaf.rights.write);
}

loom_tests! {
    loom_protect_is_final_when_it_returns = protect_is_final;
    mutant_protect_without_flush breaks [Flush]
}

fn protect_is_final() {
    let world = one_page();
    let sealed = Arc::new(AtomicBool::new(false));
    let seen = sealed.clone();
    let other = world.spawn(move |world, cpu| {
        let mut tlb = rcu::Tlb::new();
        cpu.guest(world.tree.space(), &mut tlb, |_| {
            // The processor has a cached translation that allows writes.
            if world.hardware_write(0) {
                assert!(!seen.load(Ordering::Acquire), "a guest writes what is read-only");
            }
        });
    });
    world.on(0, |cpu| world.tree.protect(cpu, WHOLE, Rights::READ_ONLY).unwrap());
    sealed.store(true, Ordering::Release);
    other.join().unwrap();
}

loom_tests! {
    loom_zap_against_a_writing_processor = zap_against_a_write;
    mutant_zap_by_load_and_store breaks [AtomicChange]
}

fn zap_against_a_write() {
    let world = one_page();
    let other = world.spawn(|world, _| world.hardware_write(0));
    let mut dirty = false;
    world.on(0, |cpu| world.tree.zap(cpu, WHOLE, |page| dirty = page.leaf.dirty).unwrap());
    assert_eq!(other.join().unwrap(), dirty, "a write is lost");
}

loom_tests! {
    loom_dirty_log_loses_no_write = dirty_log_loses_no_write;
    mutant_dirty_log_without_flush breaks [Flush]
}

/// A guest writes, and the log copies dirty pages: a write that was not copied leaves the page dirty.
fn dirty_log_loses_no_write() {
    copies_are_whole(|world, copy| {
        world.on(0, |cpu| world.tree.dirty_log(cpu, WHOLE, |_| copy()).unwrap());
    });
}

loom_tests! {
    loom_harvest_loses_no_write = harvest_loses_no_write;
    mutant_harvest_without_flush breaks [Flush]
}

fn harvest_loses_no_write() {
    copies_are_whole(|world, copy| {
        world.on(0, |cpu| world.tree.harvest(cpu, WHOLE, |_| copy()).unwrap());
    });
}

fn copies_are_whole(collect: impl FnOnce(&World, &dyn Fn())) {
    let world = one_page();
    let memory = Arc::new(AtomicU64::new(0));
    let written = memory.clone();
    let other = world.spawn(move |world, cpu| {
        let mut tlb = rcu::Tlb::new();
        cpu.guest(world.tree.space(), &mut tlb, |_| {
            let may = world.hardware_write(0);
            if may {
                written.store(1, Ordering::Release);
            }
            may
        })
    });
    let copied = AtomicU64::new(0);
    collect(&world, &|| copied.store(memory.load(Ordering::Acquire), Ordering::Relaxed));
    if other.join().unwrap() {
        let copied = copied.load(Ordering::Relaxed) == 1;
        assert!(copied || world.leaf(0).unwrap().dirty, "a write was neither copied nor will be");
    }
}

loom_tests! {
    loom_unprotect_against_dirty_log = unprotect_against_dirty_log;
    mutant_unprotect_against_dirty_log_by_load_and_store breaks [AtomicChange]
}

/// A guest writes by its translation, or after the write fault.
fn unprotect_against_dirty_log() {
    let world = one_page();
    let other = world.spawn(|world, cpu| world.hardware_write(0) || world.tree.unprotect(cpu.read(), at(0)));
    let mut told = false;
    world.on(0, |cpu| world.tree.dirty_log(cpu, WHOLE, |_| told = true).unwrap());
    assert!(other.join().unwrap());
    let leaf = world.leaf(0).unwrap();
    assert_eq!(leaf.dirty, !told, "a write is told of once");
    assert_eq!(leaf.rights.write, !leaf.logged);
}

loom_tests! {
    loom_harvest_against_a_writing_processor = harvest_against_a_write;
    mutant_harvest_by_load_and_store breaks [AtomicChange]
}

fn harvest_against_a_write() {
    let world = one_page();
    let other = world.spawn(|world, _| world.hardware_write(0));
    let mut told = false;
    world.on(0, |cpu| world.tree.harvest(cpu, WHOLE, |page| told = page.leaf.dirty).unwrap());
    assert!(other.join().unwrap());
    assert_eq!(world.leaf(0).unwrap().dirty, !told, "a write is told of once");
}

loom_tests! {
    loom_age_against_a_writing_processor = age_against_a_write;
    mutant_age_by_load_and_store breaks [AtomicChange]
}

fn age_against_a_write() {
    let world = one_page();
    let other = world.spawn(|world, _| world.hardware_write(0));
    let aged = world.on(0, |cpu| world.tree.age(cpu.read(), WHOLE));
    assert_eq!((other.join().unwrap(), aged), (true, Ok(1)));
    assert!(world.leaf(0).unwrap().dirty, "a write is lost");
}

loom_tests! {
    loom_age_against_zap = age_against_zap;
    mutant_age_against_zap_by_load_and_store breaks [AtomicChange]
}

fn age_against_zap() {
    let world = one_page();
    let other = world.spawn(|world, cpu| world.tree.age(cpu.read(), WHOLE));
    world.on(0, |cpu| world.tree.zap(cpu, WHOLE, |_| {}).unwrap());
    other.join().unwrap().unwrap();
    assert_eq!(world.pfn(0), None, "a page is back that was unmapped");
}

loom_tests! {
    loom_age_against_split = age_against_split;
    mutant_age_against_split_by_load_and_store breaks [AtomicChange]
}

/// The entry of the table that takes the page's place keeps its accessed bit.
fn age_against_split() {
    let world = World::new(|world, cpu| {
        let leaf = Leaf { accessed: true, ..page(A) };
        world.tree.map(cpu.read(), at(0), leaf, PageSize::Size2M).unwrap();
    });
    let other = world.spawn(|world, cpu| world.tree.age(cpu.read(), WHOLE));
    world.on(0, |cpu| world.tree.split(cpu.read(), at(0)).unwrap());
    other.join().unwrap().unwrap();
    let table = world.on(0, |cpu| world.tree.find(cpu.read(), at(0), Level::PMD).unwrap().pmdp_get_lockless());
    assert_ne!(table.raw() & F::ACCESSED, 0);
    world.check_tables();
}
