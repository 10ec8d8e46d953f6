//! Tests of what the tree asks its environment, and what it makes of the answers.

use super::page;
use crate::pool::{self, FIRST, Memory, Pool, PoolPlatform};
use crate::{BadEntry, Caps, Entry, Env, Level, NoMemory, NoTable, Pae, TableDesc, Tree};
use addr::{Gva, PageSize, Pfn};
use core::cell::{Cell, RefCell};
use core::ops::Range;
use rcu::{Cpu, Space};
use std::sync::Arc;
use std::vec::Vec;

const WHOLE: Range<Gva> = Gva::new(0)..Gva::new(1 << 32);

/// A pool whose first frame, the root's, has another number, and which notes what it is told.
struct Noting<'n> {
    pool: Pool<Pae>,
    root: Pfn,
    /// A frame that has a descriptor but no table.
    without_table: Cell<Option<Pfn>>,
    notes: &'n Notes,
}

#[derive(Default)]
struct Notes {
    freed: RefCell<Vec<Pfn>>,
    retired: RefCell<Vec<Pfn>>,
}

impl Noting<'_> {
    /// The pool's number of a frame.
    fn number(&self, pfn: Pfn) -> Pfn {
        if pfn == self.root { Pfn::new(FIRST) } else { pfn }
    }
}

impl Env for Noting<'_> {
    type Format = Pae;
    type Platform = PoolPlatform<Pae>;

    fn alloc_table(&self) -> Option<Pfn> {
        self.pool.alloc_table()
    }
    fn alloc_root(&self) -> Option<Pfn> {
        self.pool.alloc_table().map(|_| self.root)
    }
    fn free_table(&self, table: Pfn) {
        self.notes.freed.borrow_mut().push(table);
    }
    fn retire(&self, table: Pfn) {
        self.notes.retired.borrow_mut().push(table);
    }
    fn table(&self, pfn: Pfn) -> Option<&<Pae as crate::Format>::Table> {
        if self.without_table.get() == Some(pfn) { None } else { self.pool.table(self.number(pfn)) }
    }
    fn desc(&self, pfn: Pfn) -> Option<&TableDesc> {
        self.pool.desc(self.number(pfn))
    }
    fn space(&self) -> &Space {
        self.pool.space()
    }
    fn bad(&self, entry: BadEntry<Gva>) {
        self.pool.bad(entry);
    }
}

/// Makes a tree with this root and runs `test` on it.
fn with_root<R>(
    root: Pfn,
    without_table: Option<Pfn>,
    notes: &Notes,
    test: impl FnOnce(Result<&Tree<Noting<'_>>, NoMemory>, &Cpu<'_, PoolPlatform<Pae>>) -> R,
) -> R {
    let memory: Arc<Memory<Pae>> = Memory::new(8);
    let domain = pool::domain::<Pae, 1>(&memory);
    let cpu = domain.register(0).unwrap();
    let env = Noting { pool: Pool::new(&memory, &domain), root, without_table: Cell::new(without_table), notes };
    let tree = Tree::new(env, Caps::new(40, PageSize::Size2M, true));
    test(tree.as_ref().map_err(|error| *error), &cpu)
}

#[test]
fn a_root_is_below_the_formats_limit_and_has_a_table() {
    let tries = |root: u64, without_table| {
        let notes = Notes::default();
        let is_made = with_root(Pfn::new(root), without_table, &notes, |tree, _| tree.is_ok());
        (is_made, notes.freed.take())
    };
    let limit = 1 << 20;
    assert_eq!(tries(limit - 1, None), (true, Vec::new()));
    for above in [limit, limit + 1] {
        assert_eq!(tries(above, None), (false, Vec::from([Pfn::new(above)])), "CR3 has 32 bits");
    }
    let first = Pfn::new(FIRST);
    assert_eq!(tries(FIRST, Some(first)), (false, Vec::from([first])), "there is no memory");
}

#[test]
fn the_owner_is_told_of_each_table_that_waits_for_a_grace_period() {
    let notes = Notes::default();
    with_root(Pfn::new(FIRST), None, &notes, |tree, cpu| {
        let tree = tree.unwrap();
        let map = || {
            tree.map(cpu.read(), Gva::new(0), page(1), PageSize::Size4K).unwrap();
            [Level::PMD, Level::PUD].map(|level| match tree.find(cpu.read(), Gva::new(0), level).map(|it| it.get()) {
                Some(Entry::Table(table)) => table,
                other => panic!("{other:?}"),
            })
        };
        let [table, _] = map();
        tree.zap_tables(cpu, WHOLE).unwrap();
        assert_eq!(notes.retired.take(), [table]);
        let both = map();
        tree.unmap(cpu, WHOLE, |_| {}).unwrap();
        assert_eq!(notes.retired.take(), both);
    });
}

#[test]
fn a_frame_without_memory_is_no_table() {
    with_root(Pfn::new(FIRST), None, &Notes::default(), |tree, cpu| {
        let tree = tree.unwrap();
        tree.map(cpu.read(), Gva::new(0), page(1), PageSize::Size4K).unwrap();
        let entry = tree.find(cpu.read(), Gva::new(0), Level::PMD).unwrap();
        let Entry::Table(table) = entry.get() else { panic!("it is mapped") };
        tree.env().without_table.set(Some(table));
        assert_eq!(entry.get(), Entry::Bad);
        assert_eq!(entry.pte_offset_map().err(), Some(NoTable::Bad));
        assert_eq!(entry.pte_offset_map().err(), Some(NoTable::None));
    });
}
