//! Models of a table that two trees refer to.

use super::EXPLORER;
use super::world::{A, F, Thread, WHOLE, World, at};
use crate::pool::{Pool, PoolPlatform};
use crate::rules::Rule;
use crate::{Fault, Level, Tree};
use addr::PageSize;
use model::loom_tests;
use rcu::Cpu;
use std::sync::Arc;

/// A world with a second tree that shares the table.
struct Shared {
    world: Arc<World>,
    second: Tree<Pool<F>>,
}

impl Shared {
    /// A shared table with `pages` pages.
    fn new(pages: u64) -> Arc<Self> {
        let world = World::empty_table();
        let second = Pool::new(&world.memory, &world.domain).tree().expect("there are frames");
        world.on(0, |cpu| {
            second.share(cpu, at(0), &world.tree, at(0), Level::PMD).expect("there is a table");
            (0..pages).for_each(|gfn| world.map(cpu, gfn, A + gfn));
        });
        Arc::new(Self { world, second })
    }

    /// Runs `work` on CPU 1, in a thread.
    fn spawn<R: 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self, &mut Cpu<'_, PoolPlatform<F>>) -> R + 'static,
    ) -> Thread<R> {
        let shared = self.clone();
        loom::thread::spawn(move || shared.world.on(1, |cpu| work(&shared, cpu)))
    }

    /// Checks both trees, which together have `tables` tables.
    fn check(&self, tables: usize) {
        self.world.check_tables();
        crate::tests::check_tables(&self.second, &self.world.memory);
        assert_eq!(self.world.memory.in_use(), tables);
        assert_eq!(self.world.memory.bad(), []);
    }
}

/// Frees the queued tables by two quiescent states of this CPU, the only one online.
fn give_back(shared: &Shared, cpu: &mut Cpu<'_, PoolPlatform<F>>) {
    for _ in 0..2 {
        cpu.quiescent();
        cpu.poll(1, |table| shared.world.memory.free(table));
    }
}

loom_tests! {
    loom_retract_of_one_entry_against_a_fault_through_the_other = retract_against_a_fault;
    mutant_retract_of_a_shared_table_as_if_it_were_not breaks [CountEntries]
}

fn retract_against_a_fault() {
    let shared = Shared::new(0);
    let other = shared.spawn(|shared, cpu| {
        match shared.second.fault(cpu.read(), at(0), PageSize::Size4K).expect("it is in range") {
            Fault::Present(_) => panic!("no other CPU maps it"),
            Fault::Room(room) => room.install(crate::tests::page(A)).is_ok(),
        }
    });
    shared.world.on(0, |cpu| shared.world.tree.retract(cpu, WHOLE).unwrap());
    assert!(other.join().unwrap(), "the second tree's table has gone");
    shared.check(3);
}

loom_tests! {
    loom_the_last_entry_gives_the_table_back = two_retracts;
    mutant_each_entry_gives_the_table_back breaks [CountEntries, CountUnderLock]
}

fn two_retracts() {
    let shared = Shared::new(0);
    let other = shared.spawn(|shared, cpu| shared.second.retract(cpu, WHOLE).unwrap());
    shared.world.on(0, |cpu| shared.world.tree.retract(cpu, WHOLE).unwrap());
    other.join().unwrap();
    shared.world.on(0, |cpu| give_back(&shared, cpu));
    shared.check(2);
}

loom_tests! {
    loom_the_last_zap_of_a_shared_table_gives_it_back = two_zaps_of_tables;
    mutant_each_zap_of_a_shared_table_gives_it_back breaks [CountEntries]
}

fn two_zaps_of_tables() {
    let shared = Shared::new(0);
    let other = shared.spawn(|shared, cpu| shared.second.zap_tables(cpu, WHOLE).unwrap().tables);
    let ours = shared.world.on(0, |cpu| shared.world.tree.zap_tables(cpu, WHOLE).unwrap().tables);
    assert_eq!(ours + other.join().unwrap(), 1);
    shared.world.on(0, |cpu| give_back(&shared, cpu));
    shared.check(2);
}

loom_tests! {
    loom_an_entry_of_a_shared_table_is_cleared_under_a_processor = retract_under_a_processor;
    mutant_an_entry_of_a_shared_table_is_cleared_without_flush breaks [Flush]
}

fn retract_under_a_processor() {
    let shared = Shared::new(0);
    let other = shared.spawn(|shared, cpu| {
        // The processor walks the first tree. Meanwhile the second tree's entry, the last one, is cleared, and its
        // table waits for the second tree's processors only.
        cpu.guest(shared.world.tree.space(), &mut rcu::Tlb::new(), |_| _ = shared.world.hardware_walk(0));
    });
    shared.world.on(0, |cpu| {
        shared.world.tree.retract(cpu, WHOLE).unwrap();
        shared.second.retract(cpu, WHOLE).unwrap();
        give_back(&shared, cpu);
    });
    other.join().unwrap();
    assert_eq!(shared.world.pfn(0), None);
}
