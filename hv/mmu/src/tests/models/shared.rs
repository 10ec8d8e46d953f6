//! Models of a table that two trees refer to.

use super::EXPLORER;
use super::world::{A, F, Thread, WHOLE, World, at};
use crate::pool::{Pool, PoolPlatform};
use crate::rules::Rule;
use crate::tests::page;
use crate::{Fault, Level, ShareError, Tree};
use addr::PageSize;
use model::loom_tests;
use rcu::Cpu;
use std::sync::Arc;

/// A world with a second tree.
struct Shared {
    world: Arc<World>,
    second: Tree<Pool<F>>,
}

impl Shared {
    /// A second tree with nothing mapped.
    fn apart(world: Arc<World>) -> Self {
        let second = Pool::new(&world.memory, &world.domain).tree().expect("there are frames");
        Self { world, second }
    }

    /// A shared table with `pages` pages.
    fn new(pages: u64) -> Arc<Self> {
        let shared = Self::apart(World::empty_table());
        shared.world.on(0, |cpu| {
            shared.share(cpu).expect("there is a table");
            (0..pages).for_each(|gfn| shared.world.map(cpu, gfn, A + gfn));
        });
        Arc::new(shared)
    }

    /// Makes the second tree use the first tree's table.
    fn share(&self, cpu: &Cpu<'_, PoolPlatform<F>>) -> Result<(), ShareError> {
        self.second.share(cpu, at(0), &self.world.tree, at(0), Level::PMD)
    }

    /// Tries once to map a small page by `tree`. Whether it was mapped.
    fn fault_in(tree: &Tree<Pool<F>>, cpu: &Cpu<'_, PoolPlatform<F>>) -> bool {
        match tree.fault(cpu.read(), at(0), PageSize::Size4K).expect("it is in range") {
            Fault::Present(_) => false,
            Fault::Room(room) => room.install(page(A)).is_ok(),
        }
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
    let other = shared.spawn(|shared, cpu| Shared::fault_in(&shared.second, cpu));
    shared.world.on(0, |cpu| shared.world.tree.retract(cpu, WHOLE).unwrap());
    assert!(other.join().unwrap(), "the second tree's table has gone");
    shared.check(3);
}

loom_tests! {
    loom_retract_of_a_shared_table_against_a_fault_through_the_same_entry = retract_against_its_own_fault;
    mutant_retract_of_a_shared_table_that_is_not_empty breaks [CountUnderLock]
}

fn retract_against_its_own_fault() {
    let shared = Shared::new(0);
    let other = shared.spawn(|shared, cpu| Shared::fault_in(&shared.world.tree, cpu));
    shared.world.on(0, |cpu| shared.world.tree.retract(cpu, WHOLE).unwrap());
    assert_eq!(other.join().unwrap(), shared.world.pfn(0).is_some(), "a page is lost");
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

loom_tests! {
    loom_share_against_a_fault_at_the_same_entry = share_against_a_fault;
    mutant_share_against_a_fault_without_lock breaks [Lock]
}

fn share_against_a_fault() {
    let shared = Arc::new(Shared::apart(World::empty_table()));
    let other = shared.spawn(|shared, cpu| Shared::fault_in(&shared.second, cpu));
    let ours = shared.world.on(0, |cpu| shared.share(cpu).is_ok());
    let mapped = other.join().unwrap();
    assert!(ours || mapped, "one of them comes first");
    // The fault's page is in a table of its own, or in the shared one.
    let tables = if ours { 3 } else { 4 };
    assert_eq!(shared.world.pfn(0).is_some(), ours && mapped);
    shared.check(tables);
}

loom_tests! {
    loom_share_against_retract_of_its_table = share_against_retract;
    mutant_share_against_retract_without_recheck breaks [RecheckPmd]
}

fn share_against_retract() {
    let shared = Arc::new(Shared::apart(World::empty_table()));
    let other = shared.spawn(|shared, cpu| shared.world.tree.retract(cpu, WHOLE).unwrap());
    let ours = shared.world.on(0, |cpu| shared.share(cpu).is_ok());
    assert_eq!(other.join().unwrap(), 1);
    shared.world.on(0, |cpu| give_back(&shared, cpu));
    shared.check(if ours { 3 } else { 2 });
}

loom_tests! {
    loom_share_against_a_zap_of_its_table = share_against_zap_tables;
    mutant_share_against_a_zap_of_its_table_without_recheck breaks [RecheckPmd]
}

fn share_against_zap_tables() {
    let shared = Arc::new(Shared::apart(World::empty_table()));
    let other = shared.spawn(|shared, cpu| shared.world.tree.zap_tables(cpu, WHOLE).unwrap().tables);
    let ours = shared.world.on(0, |cpu| shared.share(cpu).is_ok());
    let freed = other.join().unwrap();
    assert_eq!(freed, usize::from(!ours), "the last entry's tree frees it");
    shared.world.on(0, |cpu| give_back(&shared, cpu));
    shared.check(if ours { 3 } else { 2 });
}

loom_tests! {
    loom_share_against_collapse = share_against_collapse;
    mutant_share_against_collapse_without_recheck_and_freeze breaks [RecheckPmd, Freeze]
}

fn share_against_collapse() {
    let shared = Arc::new(Shared::apart(World::two_pages()));
    let other = shared.spawn(|shared, cpu| shared.world.tree.collapse(cpu, at(0), PageSize::Size2M).is_ok());
    let ours = shared.world.on(0, |cpu| shared.share(cpu).is_ok());
    assert!(ours != other.join().unwrap(), "a shared table stays a table");
    assert_eq!(shared.world.pfn(1), Some(A + 1));
    shared.world.on(0, |cpu| give_back(&shared, cpu));
    shared.check(if ours { 3 } else { 2 });
}

loom_tests! {
    loom_one_of_two_shares_of_one_entry_counts = two_shares;
    mutant_two_shares_of_one_entry_without_lock breaks [Lock]
}

fn two_shares() {
    let shared = Arc::new(Shared::apart(World::empty_table()));
    let other = shared.spawn(|shared, cpu| shared.share(cpu).is_ok());
    let ours = shared.world.on(0, |cpu| shared.share(cpu).is_ok());
    assert!(ours != other.join().unwrap());
    // Both entries are cleared, and the second frees the table.
    shared.world.on(0, |cpu| {
        assert_eq!(shared.world.tree.zap_tables(cpu, WHOLE).unwrap().tables, 0);
        assert_eq!(shared.second.zap_tables(cpu, WHOLE).unwrap().tables, 1);
        give_back(&shared, cpu);
    });
    shared.check(2);
}

/// Of three threads.
mod three {
    use super::*;
    use model::Explorer;

    const EXPLORER: Explorer = Explorer { preemptions: 2, ..super::EXPLORER };

    loom_tests! {
        loom_a_shared_table_waits_for_the_processors_of_each_entry = two_retracts_under_a_processor;
        mutant_a_shared_table_waits_for_the_last_entrys_processors_alone breaks [Flush]
    }

    /// A processor walks the first tree while one CPU clears that tree's entry and another one the second tree's, the last.
    fn two_retracts_under_a_processor() {
        let shared = Shared::new(0);
        let walks = shared.world.spawn(|world, cpu| {
            cpu.guest(world.tree.space(), &mut rcu::Tlb::new(), |_| _ = world.hardware_walk(0));
        });
        let retracts = shared.world.spawn_on(2, |world, cpu| world.tree.retract(cpu, WHOLE).unwrap());
        shared.world.on(0, |cpu| {
            shared.second.retract(cpu, WHOLE).unwrap();
            give_back(&shared, cpu);
        });
        walks.join().unwrap();
        retracts.join().unwrap();
    }
}
