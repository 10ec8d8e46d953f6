//! Tests that each operation flushes where it has to, and only there, and what is told of tables that are unlinked.

use super::{check_tables, page, with_tree};
use crate::fault_injection::After;
use crate::pool::{self, Memory, Pool, PoolPlatform};
use crate::{Caps, Leaf, Level, Npt, RangeError, Rights, Tree};
use addr::{Gpa, PageSize};
use core::ops::Range;
use rcu::{Cpu, CpuData, Domain, Space, Tlb};
use std::sync::Arc;

const M2: u64 = PageSize::Size2M.bytes();
const TWO: Range<Gpa> = at(0)..at(2);

const fn at(gfn: u64) -> Gpa {
    Gpa::new(gfn << 12)
}

/// Runs `test` on a tree whose first two pages are these.
fn with_pages(pages: [Leaf; 2], test: impl FnOnce(&Tree<Pool<Npt>>, &Cpu<'_, PoolPlatform<Npt>>)) {
    with_tree::<Npt>(8, |tree, cpu, _| {
        for (gfn, leaf) in (0..).zip(pages) {
            tree.map(cpu.read(), at(gfn), leaf, PageSize::Size4K).unwrap();
        }
        test(tree, cpu);
    });
}

/// The number of flushes of `work`.
fn flushes(tree: &Tree<Pool<Npt>>, work: impl FnOnce()) -> u64 {
    let before = tree.space().flushes();
    work();
    tree.space().flushes() - before
}

#[test]
fn less_rights_are_flushed_and_more_are_not() {
    let [writable, read_only] = [Rights::ALL, Rights::READ_ONLY].map(|rights| Leaf { rights, ..page(1) });
    let protect = |pages, rights| {
        let mut count = 0;
        with_pages(pages, |tree, cpu| count = flushes(tree, || tree.protect(cpu, TWO, rights).unwrap()));
        count
    };
    assert_eq!(protect([read_only; 2], Rights::ALL), 0);
    assert_eq!(protect([writable; 2], Rights::ALL), 0);
    assert_eq!(protect([writable, read_only], Rights::READ_ONLY), 1, "the first page's");
    assert_eq!(protect([read_only, writable], Rights::READ_ONLY), 1, "the last page's");
}

#[test]
fn the_dirty_log_flushes_where_a_page_was_writable() {
    let [writable, read_only] = [Rights::ALL, Rights::READ_ONLY].map(|rights| Leaf { rights, ..page(1) });
    for pages in [[writable, read_only], [read_only, writable]] {
        with_pages(pages, |tree, cpu| {
            let log = || tree.dirty_log(cpu, TWO, |page| panic!("no page is dirty: {page:?}")).unwrap();
            assert_eq!([flushes(tree, log), flushes(tree, log)], [1, 0]);
        });
    }
}

#[test]
fn harvest_flushes_where_a_page_was_dirty() {
    let accessed = Leaf { accessed: true, ..page(1) };
    let dirty = Leaf { dirty: true, ..accessed };
    for (pages, first) in [([dirty, accessed], 1), ([accessed; 2], 0)] {
        with_pages(pages, |tree, cpu| {
            let mut told = 0;
            assert_eq!(flushes(tree, || tree.harvest(cpu, TWO, |_| told += 1).unwrap()), first);
            assert_eq!(flushes(tree, || tree.harvest(cpu, TWO, |_| told += 1).unwrap()), 0);
            assert_eq!(told, 2);
        });
    }
}

#[test]
fn pages_are_aged_without_a_flush() {
    let [accessed, dirty] = [false, true].map(|dirty| Leaf { accessed: true, dirty, ..page(1) });
    with_pages([accessed, dirty], |tree, cpu| {
        tree.map(cpu.read(), at(2), page(2), PageSize::Size4K).unwrap();
        tree.map(cpu.read(), Gpa::new(M2), Leaf { accessed: true, ..page(0x200) }, PageSize::Size2M).unwrap();
        let age = |range| tree.age(cpu.read(), range).unwrap();
        assert_eq!(age(at(1)..at(1)), 0);
        assert_eq!(age(at(1)..at(2)), 1);
        assert_eq!(tree.translate(cpu.read(), at(1)).map(|page| page.leaf), Some(Leaf { accessed: false, ..dirty }));
        assert_eq!(flushes(tree, || assert_eq!(age(at(1)..Gpa::new(M2 + 0x1000)), 1, "a part of a large page")), 0);
        assert_eq!([age(at(0)..Gpa::new(1 << 48)), age(at(0)..Gpa::new(1 << 48))], [1, 0]);
        assert_eq!(tree.age(cpu.read(), at(0)..Gpa::new(1)), Err(RangeError::Invalid));
    });
}

#[test]
fn a_single_page_is_zapped_with_a_flush_and_cleared_without() {
    with_pages([page(1), page(2)], |tree, cpu| {
        assert_eq!(flushes(tree, || assert!(tree.zap_page(cpu, at(0)))), 1);
        assert_eq!(flushes(tree, || assert!(tree.clear_page(cpu, at(1)))), 0);
        assert!(tree.translate(cpu.read(), at(0)).is_none() && tree.translate(cpu.read(), at(1)).is_none());
        assert_eq!(flushes(tree, || assert!(!tree.zap_page(cpu, at(0)))), 0, "there is no page any more");
        assert!(!tree.clear_page(cpu, Gpa::new(1 << 48)), "there is no such address");
    });
}

#[test]
fn a_moved_table_is_flushed() {
    with_pages([page(1), page(2)], |tree, cpu| {
        let moved = || tree.move_table(cpu, at(0), Gpa::new(M2), Level::PMD).unwrap();
        assert_eq!(flushes(tree, moved), 1);
    });
}

#[test]
fn a_shared_table_is_flushed_where_its_entry_is_retracted() {
    let memory = Memory::<Npt>::new(8);
    let domain = pool::domain::<Npt, 1>(&memory);
    let mut cpu = domain.register(0).unwrap();
    let tree = Tree::new(Pool::new(&memory, &domain), Caps::new(40, PageSize::Size2M, true)).unwrap();
    tree.map(cpu.read(), at(0), page(1), PageSize::Size4K).unwrap();
    tree.share(&cpu, Gpa::new(M2), &tree, at(0), Level::PMD).unwrap();
    tree.zap_page(&cpu, at(0));
    assert_eq!(flushes(&tree, || assert_eq!(tree.retract(&cpu, at(0)..Gpa::new(M2)), Ok(1))), 1);
    tree.free_pgtables(|_, _, _| {});
    cpu.barrier(|table| memory.free(table));
}

/// Two CPUs, and a tree with this number of tables of ptes, which are empty.
struct Beside {
    memory: Arc<Memory<Npt>>,
    domain: Domain<PoolPlatform<Npt>, [CpuData; 2]>,
    tree: Tree<Pool<Npt>>,
    tables: Range<Gpa>,
}

impl Beside {
    fn new(tables: u64) -> Self {
        let memory = Memory::<Npt>::new(tables as usize + 8);
        let domain = pool::domain(&memory);
        let tree = Tree::new(Pool::new(&memory, &domain), Caps::new(40, PageSize::Size2M, true)).unwrap();
        let cpu = domain.register(0).unwrap();
        for n in 0..tables {
            tree.map(cpu.read(), Gpa::new(n * M2), page(n), PageSize::Size4K).unwrap();
            tree.clear_page(&cpu, Gpa::new(n * M2));
        }
        drop(cpu);
        Self { memory, domain, tree, tables: at(0)..Gpa::new(tables * M2) }
    }

    fn map(&self, cpu: &Cpu<'_, PoolPlatform<Npt>>, at: Gpa, pfn: u64) {
        self.tree.map(cpu.read(), at, page(pfn), PageSize::Size4K).unwrap();
    }

    /// Runs `work` on CPU 0 while CPU 1 is in a guest of another space, which it leaves late. Whether CPU 1 was kicked.
    fn kicks(self, work: impl FnOnce(&Self, &Cpu<'_, PoolPlatform<Npt>>)) -> bool {
        let [cpu, mut other] = [0, 1].map(|index| self.domain.register(index).unwrap());
        let space = Space::new(&self.domain);
        other.guest(&space, &mut Tlb::new(), |_| {
            let mut stale = cpu.gather(&space);
            stale.changed();
            stale.finish_lazily();
            work(&self, &cpu);
            self.memory.take_kick(1)
        })
    }
}

#[test]
fn tables_over_the_backlogs_limit_are_hurried_and_no_others() {
    // The limit of the pool's domain is 64 pages.
    for (tables, is_hurried) in [(60, false), (70, true)] {
        let by_retract = Beside::new(tables).kicks(|world, cpu| {
            world.tree.retract(cpu, world.tables.clone()).unwrap();
        });
        let by_zap = Beside::new(tables).kicks(|world, cpu| {
            world.tree.zap_tables(cpu, world.tables.clone()).unwrap();
        });
        let by_collapse = Beside::new(tables).kicks(|world, cpu| {
            for n in 0..tables {
                let at = |index: u64| Gpa::new(n * M2 + (index << 12));
                (0..512).for_each(|index| world.map(cpu, at(index), n * 512 + index));
                world.tree.collapse(cpu, at(0), PageSize::Size2M).unwrap();
            }
        });
        assert_eq!([by_retract, by_zap, by_collapse], [is_hurried; 3], "{tables} tables");
    }
}

#[test]
fn a_zap_of_tables_whose_flush_is_left_out_waits_for_no_guest() {
    let world = Beside::new(1);
    let [cpu, mut other] = [0, 1].map(|index| world.domain.register(index).unwrap());
    world.tree.skip_flush(Some(After::Zap));
    other.guest(world.tree.space(), &mut Tlb::new(), |_| {
        assert_eq!(world.tree.zap_tables(&cpu, world.tables.clone()).unwrap().tables, 1);
    });
}

#[test]
fn pages_go_with_their_tables_by_one_flush() {
    with_tree::<Npt>(16, |tree, cpu, memory| {
        for n in 0..3 {
            tree.map(cpu.read(), Gpa::new(n * M2), page(n), PageSize::Size4K).unwrap();
        }
        // A table with a page outside of the range, and one that was empty before.
        tree.map(cpu.read(), Gpa::new(3 * M2 - 0x1000), page(3), PageSize::Size4K).unwrap();
        tree.map(cpu.read(), Gpa::new(4 * M2), page(4), PageSize::Size4K).unwrap();
        tree.clear_page(cpu, Gpa::new(4 * M2));
        let mut pages = 0;
        let mut unmap = |range: Range<Gpa>| tree.unmap(cpu, range, |_| pages += 1).unwrap();
        let range = at(0)..Gpa::new(3 * M2 - 0x1000);
        assert_eq!(flushes(tree, || assert_eq!(unmap(range.clone()), 2)), 1);
        assert_eq!(flushes(tree, || assert_eq!(unmap(range), 0)), 0, "nothing is left there");
        let rest = flushes(tree, || assert_eq!(unmap(at(0)..Gpa::new(1 << 48)), 4, "two of ptes, and two above them"));
        assert_eq!((rest, pages, check_tables(tree, memory)), (1, 4, 1));
    });
}

#[test]
fn a_table_whose_pages_take_several_flushes_goes_with_the_last() {
    with_tree::<Npt>(8, |tree, cpu, memory| {
        for n in 0..512 {
            tree.map(cpu.read(), at(n), page(n), PageSize::Size4K).unwrap();
        }
        let mut pages = 0;
        let unmap = || assert_eq!(tree.unmap(cpu, at(0)..Gpa::new(M2), |_| pages += 1), Ok(1));
        // A gather has room for 128 pages.
        assert_eq!(flushes(tree, unmap), 4);
        assert_eq!((pages, check_tables(tree, memory)), (512, 3));
    });
}
