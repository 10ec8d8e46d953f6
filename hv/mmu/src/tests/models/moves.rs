//! Models of a tree of three levels: two tables above those of ptes.

use super::EXPLORER;
use super::world::{A, at};
use crate::pool::{self, Memory, Pool, PoolPlatform};
use crate::rules::Rule;
use crate::tests::{check_tables, page};
use crate::{Caps, Level, Toy, Tree};
use addr::PageSize;
use model::loom_tests;
use rcu::{Cpu, CpuData, Domain};
use std::sync::Arc;

/// A root, two tables of pmds, and tables of ptes, with two entries each.
type F = Toy<3>;

struct Deep {
    memory: Arc<Memory<F>>,
    domain: Domain<PoolPlatform<F>, [CpuData; 2]>,
    tree: Tree<Pool<F>>,
}

impl Deep {
    /// A tree with a page at these addresses.
    fn new(pages: &[u64]) -> Arc<Self> {
        let memory = Memory::new(6);
        let domain = pool::domain(&memory);
        let caps = Caps::new(40, PageSize::Size2M, true);
        let tree = Tree::new(Pool::new(&memory, &domain), caps).expect("there are frames");
        let deep = Self { memory, domain, tree };
        deep.on(0, |cpu| pages.iter().for_each(|&gfn| deep.map(cpu, gfn)));
        Arc::new(deep)
    }

    fn map(&self, cpu: &Cpu<'_, PoolPlatform<F>>, gfn: u64) {
        self.tree.map(cpu.read(), at(gfn), page(A + gfn), PageSize::Size4K).expect("there is room");
    }

    fn on<R>(&self, index: usize, work: impl FnOnce(&Cpu<'_, PoolPlatform<F>>) -> R) -> R {
        work(&self.domain.register(index).expect("no other uses it"))
    }

    fn pfn(&self, gfn: u64) -> Option<u64> {
        self.on(0, |cpu| self.tree.translate(cpu.read(), at(gfn)).map(|found| found.leaf.pfn.raw()))
    }
}

loom_tests! {
    loom_moves_in_opposite_directions = opposite_moves;
    mutant_moves_in_opposite_directions_without_lock_order hangs_without [LockOrder]
}

fn opposite_moves() {
    let deep = Deep::new(&[0, 4]);
    let theirs = deep.clone();
    let other = loom::thread::spawn(move || {
        theirs.on(1, |cpu| theirs.tree.move_table(cpu, at(4), at(2), Level::PMD)).unwrap();
    });
    deep.on(0, |cpu| deep.tree.move_table(cpu, at(0), at(6), Level::PMD)).unwrap();
    other.join().unwrap();
    assert_eq!([0, 2, 4, 6].map(|gfn| deep.pfn(gfn)), [None, Some(A + 4), None, Some(A)]);
    check_tables(&deep.tree, &deep.memory);
}

loom_tests! {
    loom_two_moves_of_one_table = two_moves;
    mutant_two_moves_of_one_table_without_recheck breaks [RecheckPmd]
}

fn two_moves() {
    let deep = Deep::new(&[0, 4]);
    let theirs = deep.clone();
    let other =
        loom::thread::spawn(move || theirs.on(1, |cpu| theirs.tree.move_table(cpu, at(0), at(2), Level::PMD)).is_ok());
    let ours = deep.on(0, |cpu| deep.tree.move_table(cpu, at(0), at(6), Level::PMD)).is_ok();
    assert!(ours != other.join().unwrap());
    assert_eq!([0, 2, 6].map(|gfn| deep.pfn(gfn)), [None, (!ours).then_some(A), ours.then_some(A)]);
    check_tables(&deep.tree, &deep.memory);
}

/// A zap that finds nothing above the tables that it unlinks leaves what another CPU maps there meanwhile.
#[test]
fn loom_zap_tables_against_the_first_map_below_an_entry() {
    EXPLORER.explore(|| {
        let deep = Deep::new(&[]);
        let theirs = deep.clone();
        let other = loom::thread::spawn(move || theirs.on(1, |cpu| theirs.map(cpu, 1)));
        // loom tries no order in which the other CPU comes first, if this one does not give way.
        loom::thread::yield_now();
        let zapped = deep.on(0, |cpu| deep.tree.zap_tables(cpu, at(0)..at(8)).unwrap());
        other.join().unwrap();
        assert_eq!(deep.pfn(1), (zapped.tables == 0).then_some(A + 1));
        assert_eq!(deep.memory.in_use(), check_tables(&deep.tree, &deep.memory) + zapped.tables, "a table is lost");
    });
}
