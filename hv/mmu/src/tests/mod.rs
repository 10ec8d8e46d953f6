//! Helpers of the tests.

#[cfg(not(any(loom, shuttle)))]
mod arbitrary;
#[cfg(not(any(loom, shuttle)))]
mod environment;
#[cfg(not(any(loom, shuttle)))]
mod flushes;
#[cfg(not(any(loom, shuttle)))]
mod formats;
#[cfg(loom)]
mod models;
#[cfg(not(any(loom, shuttle)))]
mod reference;
#[cfg(not(any(loom, shuttle)))]
mod rules;
#[cfg(not(any(loom, shuttle)))]
mod split_entry;
#[cfg(not(any(loom, shuttle)))]
mod stale;
#[cfg(not(loom))]
mod stress;

use crate::entry::{Entry, Pte, Rights};
use crate::format::{Format, FormatExt, table_frame};
use crate::level::Level;
use crate::pool::{Memory, Pool};
#[cfg(not(any(loom, shuttle)))]
use crate::pool::{NewTable, PoolPlatform};
use crate::{Leaf, Tree};
use addr::Pfn;
use model::sync::Ordering;
#[cfg(not(any(loom, shuttle)))]
use rcu::Cpu;
#[cfg(not(any(loom, shuttle)))]
use std::sync::Arc;

/// A page of ordinary memory.
pub(super) fn page(pfn: u64) -> Leaf {
    Leaf::new(Pfn::new(pfn), Rights::ALL)
}

#[cfg(not(any(loom, shuttle)))]
/// Runs `test` on a tree and one CPU, then ends the tree and checks that all frames are free.
pub(super) fn with_tree<F: Format<Table: NewTable>>(
    frames: usize,
    test: impl FnOnce(&Tree<Pool<F>>, &mut Cpu<'_, PoolPlatform<F>>, &Arc<Memory<F>>),
) {
    let memory = Memory::<F>::new(frames);
    let domain = crate::pool::domain::<F, 1>(&memory);
    let mut cpu = domain.register(0).expect("it is the first");
    let tree = Pool::new(&memory, &domain).tree().expect("there are frames");
    test(&tree, &mut cpu, &memory);
    check_tables(&tree, &memory);
    tree.free_pgtables(|_, _, _| {});
    cpu.barrier(|table| memory.free(table));
    assert_eq!(memory.in_use(), 0, "frames have leaked");
}

/// Checks that every table's count of entries is right, and that none is dead or in the tree twice. Returns the number
/// of tables.
pub(super) fn check_tables<F: Format>(tree: &Tree<Pool<F>>, memory: &Memory<F>) -> usize {
    let mut seen = std::collections::BTreeSet::new();
    check_table(tree, memory, tree.root(), F::TOP, &mut seen);
    seen.len()
}

fn check_table<F: Format>(
    tree: &Tree<Pool<F>>,
    memory: &Memory<F>,
    pfn: Pfn,
    level: Level,
    seen: &mut std::collections::BTreeSet<Pfn>,
) {
    assert!(seen.insert(pfn), "{pfn:?} is in the tree twice");
    let desc = memory.desc(pfn).expect("tables have descriptors");
    assert!(!desc.is_dead(), "{pfn:?} is dead");
    assert_eq!(desc.level(), level);
    let mut children = 0;
    for entry in &memory.table(pfn).expect("it is a table").as_ref()[..F::entries(level)] {
        let pte = Pte::new(entry.load(Ordering::Relaxed));
        children += u16::from(!pte.is_none());
        match F::decode(pte, level, tree.caps()) {
            Entry::Table(_) => {
                let below = level.below().expect("a pte is no table");
                check_table(tree, memory, table_frame(pte, tree.caps().address_mask()), below, seen);
            }
            Entry::None | Entry::Leaf(_) => {}
            wrong => panic!("{pte:?} of {level:?} is {wrong:?}"),
        }
    }
    assert_eq!(desc.children(), children, "children of {pfn:?}");
}
