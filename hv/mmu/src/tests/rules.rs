//! Tests of the rules of DESIGN.md one by one, without interleavings, which the models cover.

use super::{check_tables, page, with_tree};
use crate::format::FormatExt;
use crate::pool::{FIRST, Memory, NewTable, Pool, PoolPlatform};
use crate::{
    Address, Caps, CollapseError, Entry, Ept, Fault, Format, Leaf, Level, MapError, NoTable, Npt, Pae, Pte, RangeError,
    Rights, ShareError, SplitError, Toy, Tree, ZappedTables, pool,
};
use addr::{Gpa, Gva, Hpa, PAGE_SIZE, PageSize, Pfn};
use model::sync::Ordering;
use rcu::Cpu;
use std::string::ToString;
use std::sync::Arc;
use std::vec::Vec;

const M2: u64 = PageSize::Size2M.bytes();
const WHOLE: core::ops::Range<Gpa> = Gpa::new(0)..Gpa::new(1 << 48);

fn write_raw<F: Format>(memory: &Memory<F>, pfn: Pfn, index: usize, raw: u64) {
    memory.table(pfn).expect("it is a table").as_ref()[index].store(raw, Ordering::Relaxed);
}

#[test]
fn rule_1_fallible_at_every_level_alike() {
    with_tree::<Npt>(8, |tree, cpu, _| {
        let guard = cpu.read();
        let at = Gpa::new(5 * M2);
        assert_eq!(tree.find(guard, at, Level::P4D).unwrap().pte_offset_map().err(), Some(NoTable::None));
        tree.map(guard, at, page(0x8000), PageSize::Size4K).unwrap();
        for (level, below) in [(Level::P4D, Level::PUD), (Level::PUD, Level::PMD), (Level::PMD, Level::PTE)] {
            let entry = tree.find(guard, at, level).unwrap();
            assert!(matches!(entry.get(), Entry::Table(_)));
            assert_eq!(entry.pte_offset_map().unwrap().level(), below);
            assert_eq!(entry.pte_offset_map_lock().unwrap().level(), below);
        }
        tree.map(guard, Gpa::new(0), page(0x200), PageSize::Size2M).unwrap();
        let leaf = tree.find(guard, Gpa::new(0), Level::PMD).unwrap();
        assert!(matches!(leaf.pte_offset_map().err(), Some(NoTable::Leaf(_))));
        let none = tree.find(guard, Gpa::new(M2), Level::PMD).unwrap();
        assert_eq!(none.pte_offset_map().err(), Some(NoTable::None));
        assert_eq!(none.pte_offset_map_lock().err(), Some(NoTable::None));
        assert!(tree.find(guard, Gpa::new(1 << 39), Level::PMD).is_none());
    });
}

#[test]
fn rule_1_bad_is_reported_once_and_cleared() {
    with_tree::<Npt>(8, |tree, cpu, memory| {
        let guard = cpu.read();
        tree.map(guard, Gpa::new(0), page(0x8000), PageSize::Size4K).unwrap();
        let mut pmd = None;
        tree.path(guard, Gpa::new(0), |level, _, entry| {
            if let (Level::PUD, Entry::Table(pfn)) = (level, entry) {
                pmd = Some(pfn);
            }
        });
        // Entry 3 of the pmd table: reserved bits, then a table beyond the pool, then one of the wrong level.
        for (n, raw) in [(1, 0xfff0_0000_0000_0067u64), (2, 0x5067), (3, (tree.root().raw() << 12) | 0x27)] {
            write_raw(memory, pmd.unwrap(), 3, raw);
            memory.desc(pmd.unwrap()).unwrap().add_children(1);
            let entry = tree.find(guard, Gpa::new(3 * M2), Level::PMD).unwrap();
            assert_eq!(entry.get(), Entry::Bad);
            assert_eq!(entry.pte_offset_map().err(), Some(NoTable::Bad));
            assert_eq!(entry.pte_offset_map().err(), Some(NoTable::None));
            assert_eq!(memory.bad().len(), n);
        }
        let last = memory.bad()[2];
        assert_eq!((last.at, last.level), (Gpa::new(3 * M2), Level::PMD));
    });
}

#[test]
fn rule_1_infallible_only_by_ownership() {
    let memory = Memory::<Ept>::new(8);
    let domain = pool::domain::<Ept, 1>(&memory);
    let cpu = domain.register(0).unwrap();
    let tree = Pool::new(&memory, &domain).tree().unwrap();
    tree.map(cpu.read(), Gpa::new(0x7000), page(1), PageSize::Size4K).unwrap();
    tree.map(cpu.read(), Gpa::new(M2), page(0x200), PageSize::Size2M).unwrap();
    let mut pages = Vec::new();
    tree.free_pgtables(|at, size, leaf| pages.push((at, size, leaf.pfn)));
    let expected =
        [(Gpa::new(0x7000), PageSize::Size4K, Pfn::new(1)), (Gpa::new(M2), PageSize::Size2M, Pfn::new(0x200))];
    assert_eq!(pages, expected);
    assert_eq!(memory.in_use(), 0);
}

#[test]
fn rule_2_guarded_a_table_stays_while_the_guard_lives() {
    with_tree::<Npt>(8, |tree, cpu, memory| {
        let guard = cpu.read();
        tree.map(guard, Gpa::new(0), page(0x8000), PageSize::Size4K).unwrap();
        let map = tree.find(guard, Gpa::new(0), Level::PMD).unwrap().pte_offset_map().unwrap();
        let before = memory.in_use();
        assert_eq!(tree.unmap(cpu, WHOLE, |_| {}).unwrap(), 3);
        assert_eq!(cpu.poll(8, |_| panic!("still mapped")), 0);
        assert_eq!(map.get(Gpa::new(0)), Entry::Frozen);
        assert_eq!(memory.in_use(), before);
        // The guard and the map end here: no quiescent state can be reported before.
        cpu.barrier(|table| memory.free(table));
        assert_eq!(memory.in_use(), 1);
    });
}

#[test]
fn rule_3_locked_means_rechecked() {
    with_tree::<Npt>(8, |tree, cpu, memory| {
        let guard = cpu.read();
        tree.map(guard, Gpa::new(0), page(0x8000), PageSize::Size4K).unwrap();
        let entry = tree.find(guard, Gpa::new(0), Level::PMD).unwrap();
        let map = entry.pte_offset_map_rw_nolock().unwrap();
        assert_eq!(map.pmdval(), Some(entry.pmdp_get_lockless()));
        let locked = map.lock().unwrap().pmd_same().ok().unwrap();
        assert_eq!(locked.set_pte(Gpa::new(0), page(1)).err(), Some(Entry::Leaf(page(0x8000))));
        locked.set_pte(Gpa::new(0x1000), page(0x8001)).unwrap();
        assert_eq!(locked.ptep_get_and_clear(Gpa::new(0)), Ok(page(0x8000)));
        drop(locked);
        tree.unmap(cpu, WHOLE, |_| {}).unwrap();
        assert!(map.lock().unwrap().pmd_same().is_err(), "the table is out of the tree");
        // The failed check released the lock.
        drop(map.lock());
        assert_eq!(map.get(Gpa::new(0)), Entry::Frozen);
        // Reads need no check of the pmd: the entries of an unlinked table are frozen.
        assert!(memory.bad().is_empty());
    });
}

#[test]
fn rule_3_a_frozen_entry_is_its_freezers_alone() {
    with_tree::<Npt>(8, |tree, cpu, _| {
        let guard = cpu.read();
        tree.map(guard, Gpa::new(0), page(0x8000), PageSize::Size4K).unwrap();
        tree.dirty_log(cpu, WHOLE, |_| {}).unwrap();
        let (table, pte) = tree.walk(guard, 0, Level::PTE).unwrap();
        tree.unmap(cpu, WHOLE, |_| {}).unwrap();
        assert!(table.cmpxchg(0, pte, Pte::NONE).is_err(), "a late compare-and-exchange");
        assert!(table.cmpxchg(1, Pte::NONE, pte).is_err());
        assert!((0..512).all(|index| table.decode(table.at(index)) == Entry::Frozen));
    });
}

#[test]
fn rule_4_lockless_reads_are_whole() {
    with_tree::<Pae>(8, |tree, cpu, _| {
        let guard = cpu.read();
        let end = Gva::new(0xffff_f000);
        tree.map(guard, end, page(0x8000), PageSize::Size4K).unwrap();
        assert_eq!(tree.translate(guard, Gva::new(0xffff_f123)).unwrap().hpa, Hpa::new(0x800_0123));
        let entry = tree.find(guard, end, Level::PUD).unwrap();
        assert_eq!(entry.pmdp_get_lockless().raw() & 0xfff, 1, "a PDPTE has no rights");
        assert_eq!(core::mem::align_of::<crate::AtomicU64>(), 8);
    });
}

#[test]
fn rule_5_freed_late_after_software_and_hardware() {
    with_tree::<Npt>(8, |tree, cpu, memory| {
        tree.map(cpu.read(), Gpa::new(0), page(0x8000), PageSize::Size4K).unwrap();
        let used = memory.in_use();
        let mut tlb = rcu::Tlb::new();
        cpu.guest(tree.space(), &mut tlb, |flush| assert_eq!(flush, rcu::Flush::Needed));
        cpu.guest(tree.space(), &mut tlb, |flush| assert_eq!(flush, rcu::Flush::Keep));
        tree.unmap(cpu, WHOLE, |_| {}).unwrap();
        assert_eq!(cpu.poll(8, |_| panic!("no quiescent state yet")), 0);
        assert_eq!(memory.in_use(), used);
        cpu.guest(tree.space(), &mut tlb, |flush| assert_eq!(flush, rcu::Flush::Needed));
        cpu.synchronize();
        assert_eq!(cpu.poll(8, |table| memory.free(table)), 3);
    });
}

#[test]
fn rule_6_bounded_every_page_is_back() {
    // `with_tree` checks that all frames are free. This defers more tables than the limit of the pool's domain.
    with_tree::<Npt>(256, |tree, cpu, memory| {
        for n in 0..100 {
            tree.map(cpu.read(), Gpa::new(n * M2), page(0x8000), PageSize::Size4K).unwrap();
        }
        let mut pages = 0;
        assert_eq!(tree.unmap(cpu, WHOLE, |_| pages += 1), Ok(102));
        assert_eq!((pages, cpu.backlog()), (100, 102));
        assert!(cpu.domain().stats().peak_backlog > 64);
        cpu.barrier(|table| memory.free(table));
        assert_eq!(memory.in_use(), 1);
    });
}

#[test]
fn rule_7_failing_whole() {
    with_tree::<Npt>(8, |tree, cpu, memory| {
        let guard = cpu.read();
        tree.map(guard, Gpa::new(0), page(0x200), PageSize::Size2M).unwrap();
        tree.map(guard, Gpa::new(M2), page(0x400), PageSize::Size2M).unwrap();
        let before = (tree.report(guard), memory.in_use());
        let part = Gpa::new(0x1000)..Gpa::new(M2 + 0x1000);
        for budget in 0..2 {
            memory.limit(Some(budget));
            assert_eq!(tree.zap(cpu, part.clone(), |_| panic!("nothing is zapped")), Err(RangeError::NoMemory));
            assert_eq!(tree.protect(cpu, part.clone(), Rights::READ_ONLY), Err(RangeError::NoMemory));
            let far = Gpa::new(1 << 40);
            assert_eq!(tree.map(guard, far, page(1), PageSize::Size4K), Err(MapError::NoMemory));
            assert_eq!((tree.report(guard), memory.in_use()), before);
        }
        memory.limit(Some(0));
        assert_eq!(tree.split(guard, Gpa::new(0)), Err(SplitError::NoMemory));
        memory.limit(None);
        let mut zapped = 0;
        tree.zap(cpu, part, |_| zapped += 1).unwrap();
        assert_eq!(zapped, 512);
    });
    let memory = Memory::<Npt>::new(1);
    let domain = pool::domain::<Npt, 1>(&memory);
    memory.limit(Some(0));
    assert!(Pool::new(&memory, &domain).tree().is_err());
}

#[test]
fn rule_8_collapse_and_split_keep_translations_and_dirty_bits() {
    with_tree::<Ept>(8, |tree, cpu, memory| {
        let guard = cpu.read();
        let at = |n: u64| Gpa::new(n << 12);
        for n in 0..511 {
            tree.map(guard, at(n), page(0x400 + n), PageSize::Size4K).unwrap();
        }
        assert_eq!(tree.collapse(cpu, at(0), PageSize::Size2M), Err(CollapseError::NotUniform));
        let dirty = crate::Leaf { dirty: true, accessed: true, ..page(0x400 + 511) };
        tree.map(guard, at(511), dirty, PageSize::Size4K).unwrap();
        tree.collapse(cpu, at(77), PageSize::Size2M).unwrap();
        let whole = tree.translate(guard, Gpa::new(0x12_3456)).unwrap();
        assert_eq!((whole.hpa, whole.size, whole.leaf.dirty), (Hpa::new(0x52_3456), PageSize::Size2M, true));
        assert_eq!(tree.collapse(cpu, at(0), PageSize::Size2M), Err(CollapseError::NoTable));
        tree.split(guard, at(3)).unwrap();
        let part = tree.translate(guard, Gpa::new(0x12_3456)).unwrap();
        assert_eq!((part.hpa, part.size, part.leaf.dirty), (whole.hpa, PageSize::Size4K, true));
        assert_eq!(tree.report(guard).pages(PageSize::Size4K), 512);
        assert_eq!(tree.split(guard, at(3)), Err(SplitError::NotLarge));
        // A page with other rights prevents the collapse.
        tree.protect(cpu, at(9)..at(10), Rights::READ_ONLY).unwrap();
        assert_eq!(tree.collapse(cpu, at(0), PageSize::Size2M), Err(CollapseError::NotUniform));
        check_tables(tree, memory);
    });
}

#[test]
fn rule_8_aborted_collapse_leaves_all_as_it_was() {
    with_tree::<Npt>(8, |tree, cpu, memory| {
        let guard = cpu.read();
        for n in 0..512 {
            tree.map(guard, Gpa::new(n << 12), page(0x400 + n), PageSize::Size4K).unwrap();
        }
        let (table, _) = tree.walk(guard, 0, Level::PTE).unwrap();
        let before: Vec<Pte> = (0..512).map(|index| table.at(index)).collect();
        let locked = tree.find(guard, Gpa::new(0), Level::PMD).unwrap().pte_offset_map_lock().unwrap();
        // Entry 300 is not as expected, as after an `unprotect` between the check and the freeze.
        assert!(locked.freeze(|index| if index == 300 { Pte::NONE } else { before[index] }).is_err());
        drop(locked);
        assert!((0..512).all(|index| table.at(index) == before[index]));
        check_tables(tree, memory);
    });
}

#[test]
fn rule_9_the_read_side_takes_no_lock_and_writes_nothing() {
    with_tree::<Npt>(8, |tree, cpu, memory| {
        let guard = cpu.read();
        assert_eq!(core::mem::size_of_val(&guard), 0);
        tree.map(guard, Gpa::new(0), page(0x8000), PageSize::Size4K).unwrap();
        let entries = || -> Vec<u64> {
            let tables = (0..8).filter_map(|n| memory.table(Pfn::new(FIRST + n)));
            tables.flatten().map(|entry| entry.load(Ordering::Relaxed)).collect()
        };
        let before = entries();
        // All locks are held, and none of these operations waits.
        let locks: Vec<_> = [Level::P4D, Level::PUD, Level::PMD]
            .map(|level| tree.find(guard, Gpa::new(0), level).unwrap().pte_offset_map_lock().unwrap())
            .into_iter()
            .collect();
        let root = tree.pgd_offset_lock(guard);
        assert!(tree.translate(guard, Gpa::new(0x123)).is_some());
        assert!(matches!(tree.fault(guard, Gpa::new(0), PageSize::Size4K), Ok(Fault::Present(_))));
        assert!(matches!(tree.fault(guard, Gpa::new(0x1000), PageSize::Size4K), Ok(Fault::Room(_))));
        assert_eq!(tree.report(guard).bytes(), 4096);
        let map = tree.find(guard, Gpa::new(0), Level::PMD).unwrap().pte_offset_map().unwrap();
        assert_eq!(map.get(Gpa::new(0)), Entry::Leaf(page(0x8000)));
        drop((locks, root));
        assert_eq!(before, entries());
    });
}

#[test]
fn faults_fall_back_to_what_fits() {
    with_tree::<Npt>(16, |tree, cpu, _| {
        let guard = cpu.read();
        let room = |at: u64, want| match tree.fault(guard, Gpa::new(at), want) {
            Ok(Fault::Room(room)) => room,
            _ => panic!("something is mapped"),
        };
        let first = room(M2 + 0x5000, PageSize::Size1G);
        assert_eq!((first.start(), first.size()), (Gpa::new(0), PageSize::Size1G));
        let first = first.at_most(PageSize::Size4K);
        assert_eq!((first.start(), first.size()), (Gpa::new(M2 + 0x5000), PageSize::Size4K));
        first.install(page(0x8000)).unwrap();
        // Now a table prevents a page of 2 MiB.
        assert_eq!(room(M2, PageSize::Size1G).size(), PageSize::Size4K);
        assert_eq!(room(2 * M2, PageSize::Size1G).size(), PageSize::Size2M);
        assert_eq!(room(2 * M2, PageSize::Size2M).install(page(0x201)), Err(MapError::Invalid));
        // The frame is aligned to 4 KiB only, so the page is of 4 KiB.
        assert_eq!(tree.map(guard, Gpa::new(2 * M2), page(0x201), PageSize::Size2M), Ok(PageSize::Size4K));
        assert_eq!(tree.map(guard, Gpa::new(2 * M2), page(0x201), PageSize::Size2M), Err(MapError::Present));
        assert_eq!(tree.map(guard, Gpa::new(3 * M2), page(1 << 28), PageSize::Size2M), Err(MapError::Invalid));
        assert!(tree.fault(guard, Gpa::new(1 << 48), PageSize::Size4K).is_err());
    });
}

#[test]
fn without_accessed_and_dirty_bits_writable_means_dirty() {
    let memory: Arc<Memory<Ept>> = Memory::new(8);
    let domain = pool::domain::<Ept, 1>(&memory);
    let cpu = domain.register(0).unwrap();
    let caps = crate::Caps::new(40, PageSize::Size2M, false);
    let tree = Tree::new(Pool::new(&memory, &domain), caps).unwrap();
    tree.map(cpu.read(), Gpa::new(0), page(1), PageSize::Size4K).unwrap();
    let dirty = |tree: &Tree<Pool<Ept>>| {
        let mut count = 0;
        tree.dirty_log(&cpu, WHOLE, |_| count += 1).unwrap();
        count
    };
    assert!(tree.translate(cpu.read(), Gpa::new(0)).unwrap().leaf.dirty);
    assert_eq!(dirty(&tree), 1);
    assert_eq!(dirty(&tree), 0);
    assert!(tree.unprotect(cpu.read(), Gpa::new(0)));
    assert_eq!(dirty(&tree), 1);
    assert!(tree.unprotect(cpu.read(), Gpa::new(0)));
    tree.protect(&cpu, WHOLE, Rights::READ_ONLY).unwrap();
    assert_eq!([dirty(&tree), dirty(&tree)], [1, 0], "what was written before it became read-only");
    tree.protect(&cpu, WHOLE, Rights::ALL).unwrap();
    let mut harvested = 0;
    tree.harvest(&cpu, WHOLE, |_| harvested += 1).unwrap();
    tree.harvest(&cpu, WHOLE, |_| harvested += 1).unwrap();
    assert_eq!(harvested, 2, "it may have been written since");
    assert_eq!(tree.age(cpu.read(), WHOLE), Ok(0), "nothing tells which pages are in use");
    tree.free_pgtables(|_, _, _| {});
}

#[test]
fn a_page_that_software_writes_is_dirty() {
    with_tree::<Npt>(8, |tree, cpu, _| {
        let leaf = || tree.translate(cpu.read(), Gpa::new(0)).unwrap().leaf;
        tree.map(cpu.read(), Gpa::new(0), page(0x8000), PageSize::Size4K).unwrap();
        tree.dirty_log(cpu, WHOLE, |_| panic!("nothing has written it")).unwrap();
        assert!(!leaf().dirty && !leaf().accessed);
        assert_eq!(tree.write(cpu.read(), Gpa::new(0), |found| found.hpa), Ok(Hpa::new(0x800_0000)));
        assert!(leaf().dirty && leaf().accessed);
        let mut dirty = 0;
        tree.dirty_log(cpu, WHOLE, |_| dirty += 1).unwrap();
        assert_eq!(dirty, 1);
    });
}

#[test]
fn a_table_moves_with_its_pages() {
    with_tree::<Npt>(8, |tree, cpu, memory| {
        tree.map(cpu.read(), Gpa::new(0x5000), page(0x8000), PageSize::Size4K).unwrap();
        tree.map(cpu.read(), Gpa::new(1 << 30), page(0x8001), PageSize::Size4K).unwrap();
        let to = Gpa::new((1 << 30) + 7 * M2);
        tree.move_table(cpu, Gpa::new(0), to, Level::PMD).unwrap();
        assert!(tree.translate(cpu.read(), Gpa::new(0x5000)).is_none());
        assert_eq!(tree.translate(cpu.read(), to.wrapping_add(0x5123)).unwrap().hpa, Hpa::new(0x800_0123));
        assert!(tree.move_table(cpu, Gpa::new(0), to, Level::PMD).is_err());
        assert!(tree.move_table(cpu, to, Gpa::new(1 << 30), Level::PMD).is_err(), "there is a table");
        check_tables(tree, memory);
    });
}

/// Even with corrupted entries, two locks are taken in the order of their tables' levels.
#[test]
fn corrupted_tables_make_no_circle_of_locks() {
    with_tree::<Npt>(8, |tree, cpu, memory| {
        tree.map(cpu.read(), Gpa::new(0), page(0x8000), PageSize::Size4K).unwrap();
        let table_at = |level| match tree.find(cpu.read(), Gpa::new(0), level).map(|entry| entry.get()) {
            Some(Entry::Table(table)) => table,
            other => panic!("{other:?}"),
        };
        let (directories, table) = (table_at(Level::P4D), table_at(Level::PMD));
        // Corrupted entries refer to the page table as a page directory, and as the page table of its own second entry.
        write_raw(memory, directories, 1, Npt::table(table, Level::PUD).raw());
        write_raw(memory, table, 1, Npt::table(table, Level::PMD).raw());
        let to_itself = Gpa::new((1 << 30) + M2);
        assert!(tree.move_table(cpu, to_itself, Gpa::new(5 * M2), Level::PMD).is_err());
        assert!(tree.move_table(cpu, Gpa::new(0), Gpa::new((1 << 30) + 5 * M2), Level::PMD).is_err());
        assert_eq!(tree.retract(cpu, WHOLE), Ok(0));
        write_raw(memory, directories, 1, 0);
        write_raw(memory, table, 1, 0);
    });
}

/// Runs `test` with two trees in the same memory, then ends both.
fn with_two_trees<F: Format<Table: NewTable>>(
    test: impl FnOnce(&Tree<Pool<F>>, &Tree<Pool<F>>, &mut Cpu<'_, PoolPlatform<F>>, &Memory<F>),
) {
    let memory = Memory::<F>::new(16);
    let domain = pool::domain::<F, 1>(&memory);
    let mut cpu = domain.register(0).unwrap();
    let [first, second] = [(); 2].map(|()| Pool::new(&memory, &domain).tree().unwrap());
    test(&first, &second, &mut cpu, &memory);
    for tree in [first, second] {
        check_tables(&tree, &memory);
        tree.free_pgtables(|_, _, _| {});
    }
    cpu.barrier(|table| memory.free(table));
    assert_eq!((memory.in_use(), memory.bad().len()), (0, 0));
}

fn pfn(tree: &Tree<Pool<Pae>>, cpu: &Cpu<'_, PoolPlatform<Pae>>, at: u64) -> Option<u64> {
    tree.translate(cpu.read(), Gva::new(at)).map(|found| found.leaf.pfn.raw())
}

#[test]
fn a_shared_table_is_one_until_each_entry_has_gone() {
    with_two_trees::<Pae>(|first, second, cpu, memory| {
        let [at, there] = [M2, 0xc000_0000].map(Gva::new);
        first.map(cpu.read(), at, page(1), PageSize::Size4K).unwrap();
        let before = memory.in_use();
        second.share(cpu, there, first, at, Level::PMD).unwrap();
        first.share(cpu, Gva::new(0), first, at, Level::PMD).unwrap();
        assert_eq!(memory.in_use(), before + 1, "a directory, and no table");
        // A page that is mapped or unmapped through one entry is mapped or unmapped for all.
        second.map(cpu.read(), Gva::new(0xc000_3000), page(7), PageSize::Size4K).unwrap();
        assert_eq!(
            [pfn(first, cpu, 0), pfn(first, cpu, 0x3000), pfn(second, cpu, 0xc000_0000)],
            [Some(1), Some(7), Some(1)]
        );
        first.zap(cpu, Gva::new(0)..Gva::new(0x1000), |_| {}).unwrap();
        assert_eq!([pfn(first, cpu, M2), pfn(second, cpu, 0xc000_0000)], [None; 2]);
        // A shared table stays when one tree's entries are zapped.
        let zapped = first.zap_tables(cpu, Gva::new(0)..Gva::new(2 * M2)).unwrap();
        assert_eq!(zapped, ZappedTables { pages: 0, tables: 0 });
        assert_eq!([pfn(first, cpu, M2 + 0x3000), pfn(second, cpu, 0xc000_3000)], [None, Some(7)]);
        assert_eq!(second.unmap(cpu, Gva::new(0)..Gva::new(1 << 32), |_| {}), Ok(2));
        cpu.barrier(|table| memory.free(table));
        assert_eq!(memory.in_use(), before - 1, "two roots and the first tree's directory");
    });
}

#[test]
fn only_a_table_is_shared_and_only_where_there_is_nothing() {
    with_two_trees::<Pae>(|first, second, cpu, memory| {
        let share = |to: u64, from: u64| second.share(cpu, Gva::new(to), first, Gva::new(from), Level::PMD);
        assert_eq!(share(0, 0), Err(ShareError::NoTable));
        first.map(cpu.read(), Gva::new(M2), page(0x200), PageSize::Size2M).unwrap();
        first.map(cpu.read(), Gva::new(2 * M2), page(1), PageSize::Size4K).unwrap();
        assert_eq!(share(0, 0), Err(ShareError::NoTable));
        assert_eq!(share(0, M2), Err(ShareError::NoTable), "a large page");
        assert_eq!(share(1 << 32, 2 * M2), Err(ShareError::Present), "no address");
        memory.limit(Some(0));
        assert_eq!(share(0, 2 * M2), Err(ShareError::NoMemory));
        memory.limit(None);
        share(0, 2 * M2).unwrap();
        assert_eq!(share(0, 2 * M2), Err(ShareError::Present));
    });
}

#[test]
fn a_shared_table_stays_a_table() {
    with_two_trees::<Pae>(|first, second, cpu, _| {
        for n in 0..512 {
            first.map(cpu.read(), Gva::new(n << 12), page(0x200 + n), PageSize::Size4K).unwrap();
        }
        let at = Gva::new(0);
        second.share(cpu, at, first, at, Level::PMD).unwrap();
        let collapse = || first.collapse(cpu, at, PageSize::Size2M);
        assert_eq!(collapse(), Err(CollapseError::Changed));
        let into = first.collapse_into(cpu, at, PageSize::Size2M, Pfn::new(0x400), |_, _| panic!(), |_| panic!());
        assert_eq!(into, Err(CollapseError::Changed));
        second.zap_tables(cpu, at..Gva::new(M2)).unwrap();
        assert_eq!(collapse(), Ok(()));
    });
}

#[test]
fn tables_are_zapped_with_the_pages_in_them() {
    with_two_trees::<Pae>(|first, second, cpu, memory| {
        let whole = Gva::new(0)..Gva::new(1 << 32);
        for (at, frame) in [(0, 1), (0x3000, 2), (M2 + 0x1000, 3)] {
            first.map(cpu.read(), Gva::new(at), page(frame), PageSize::Size4K).unwrap();
        }
        first.map(cpu.read(), Gva::new(2 * M2), page(0x200), PageSize::Size2M).unwrap();
        second.share(cpu, Gva::new(0), first, Gva::new(0), Level::PMD).unwrap();
        let flushes = first.space().flushes();
        let zapped = first.zap_tables(cpu, Gva::new(0)..Gva::new(3 * M2)).unwrap();
        assert_eq!(zapped, ZappedTables { pages: 2, tables: 1 }, "the shared table is not freed, nor are its pages");
        assert_eq!(first.space().flushes(), flushes + 1, "one flush for all");
        assert_eq!([0, M2 + 0x1000, 2 * M2].map(|at| pfn(first, cpu, at)), [None; 3]);
        assert_eq!(pfn(second, cpu, 0x3000), Some(2));
        check_tables(first, memory);
        assert_eq!(second.zap_tables(cpu, whole.clone()), Ok(ZappedTables { pages: 2, tables: 1 }));
        assert_eq!(second.zap_tables(cpu, whole), Ok(ZappedTables::default()));
        assert_eq!(first.zap_tables(cpu, Gva::new(0)..Gva::new(0x1000)), Err(RangeError::Invalid), "a part of a table");
    });
    with_tree::<Npt>(8, |tree, cpu, _| {
        assert_eq!(tree.zap_tables(cpu, WHOLE), Err(RangeError::Invalid), "a page of 1 GiB may be there");
    });
}

#[test]
fn each_kind_of_entry_that_is_zapped_is_flushed() {
    with_two_trees::<Pae>(|first, second, cpu, _| {
        let zap = |tree: &Tree<Pool<Pae>>, cpu: &mut Cpu<'_, PoolPlatform<Pae>>, at| {
            let flushes = tree.space().flushes();
            tree.zap_tables(cpu, Gva::new(at)..Gva::new(at + M2)).unwrap();
            tree.space().flushes() - flushes
        };
        first.map(cpu.read(), Gva::new(0), page(1), PageSize::Size4K).unwrap();
        first.map(cpu.read(), Gva::new(M2), page(0x200), PageSize::Size2M).unwrap();
        second.share(cpu, Gva::new(0), first, Gva::new(0), Level::PMD).unwrap();
        assert_eq!(zap(first, cpu, M2), 1, "a large page");
        assert_eq!(zap(first, cpu, 0), 1, "a shared table");
        assert_eq!(zap(second, cpu, 0), 1, "a table");
        assert_eq!(zap(second, cpu, 0), 0, "nothing");
    });
}

#[test]
fn corrupted_entries_are_cleared_by_a_zap_of_tables() {
    let memory = Memory::<Pae>::new(8);
    let domain = pool::domain::<Pae, 1>(&memory);
    let mut cpu = domain.register(0).unwrap();
    let tree = Pool::new(&memory, &domain).tree().unwrap();
    tree.map(cpu.read(), Gva::new(0), page(1), PageSize::Size4K).unwrap();
    let directory = match tree.find(cpu.read(), Gva::new(0), Level::PUD).map(|entry| entry.get()) {
        Some(Entry::Table(table)) => table,
        other => panic!("{other:?}"),
    };
    // A table where there is none, and an entry that looks frozen, though no CPU has frozen it.
    write_raw(&memory, directory, 1, Pae::<Gva>::table(Pfn::new(0x7_0000), Level::PMD).raw());
    write_raw(&memory, directory, 2, Pae::<Gva>::frozen(Pte::NONE).raw());
    assert_eq!(tree.zap_tables(&cpu, Gva::new(0)..Gva::new(1 << 32)), Ok(ZappedTables { pages: 1, tables: 1 }));
    assert_eq!(memory.bad().len(), 2);
    tree.free_pgtables(|_, _, _| {});
    cpu.barrier(|table| memory.free(table));
}

#[test]
fn a_tree_can_be_freed_in_steps() {
    let memory = Memory::<Npt>::new(16);
    let domain = pool::domain::<Npt, 1>(&memory);
    let mut cpu = domain.register(0).unwrap();
    let tree = Pool::new(&memory, &domain).tree().unwrap();
    for at in [0, 0x1000, M2, 7 << 30] {
        tree.map(cpu.read(), Gpa::new(at), page(0x8000 + at / PAGE_SIZE), PageSize::Size4K).unwrap();
    }
    let expected = tree.report(cpu.read());
    let (mut teardown, mut pages, mut steps) = (tree.tear_down(), Vec::new(), 1);
    while !teardown.free_until(|| true, |at, _, _| pages.push(at.raw())) {
        steps += 1;
        assert!(pages.len() <= 512 * steps, "a step frees one table");
    }
    assert_eq!(pages, [0, 0x1000, M2, 7 << 30]);
    assert_eq!((*teardown.report(), steps), (expected, expected.tables as usize), "each table's end is a step");
    assert!(teardown.free_until(|| false, |_, _, _| panic!("nothing is left")));
    cpu.barrier(|table| memory.free(table));
    assert_eq!(memory.in_use(), 0);
}

#[test]
fn a_report_in_parts_is_the_report_of_the_whole() {
    with_tree::<Npt>(16, |tree, cpu, _| {
        for (at, size) in [
            (0, PageSize::Size4K),
            (3 * M2, PageSize::Size2M),
            (5 << 30, PageSize::Size1G),
            (6 << 30, PageSize::Size4K),
        ] {
            tree.map(cpu.read(), Gpa::new(at), page(0x40_0000), size).unwrap();
        }
        let whole = tree.report(cpu.read());
        for step in [64 << 20, 3 << 20, PAGE_SIZE << 12] {
            let parts = (0..(8u64 << 30).div_ceil(step)).map(|n| Gpa::new(n * step)..Gpa::new((n + 1) * step));
            let reports: Vec<_> = parts.map(|part| tree.report_range(cpu.read(), part).unwrap()).collect();
            for size in [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G] {
                assert_eq!(reports.iter().map(|report| report.pages(size)).sum::<u64>(), whole.pages(size));
            }
        }
        assert_eq!(tree.report_range(cpu.read(), Gpa::new(1)..Gpa::new(2)), Err(RangeError::Invalid));
    });
}

#[test]
fn a_descriptor_keeps_its_owners_word() {
    with_tree::<Npt>(4, |tree, _, memory| {
        let desc = memory.desc(tree.root()).unwrap();
        assert_eq!(desc.private(), 0);
        desc.set_private(7);
        assert_eq!(desc.private(), 7);
    });
}

#[test]
fn room_says_whether_its_table_exists() {
    with_tree::<Npt>(8, |tree, cpu, _| {
        let is_in_table = |at: u64| match tree.fault(cpu.read(), Gpa::new(at), PageSize::Size4K).unwrap() {
            Fault::Room(room) => room.is_in_table(),
            Fault::Present(_) => panic!("nothing is mapped there"),
        };
        assert!(!is_in_table(0x1000));
        tree.map(cpu.read(), Gpa::new(0), page(1), PageSize::Size4K).unwrap();
        assert!(is_in_table(0x1000));
        assert!(!is_in_table(M2));
    });
}

#[test]
fn a_table_has_no_more_entries_than_it_can_count() {
    const ENTRIES: u64 = 1 << 16;
    let memory = Memory::<Npt>::new(140);
    let domain = pool::domain::<Npt, 1>(&memory);
    let mut cpu = domain.register(0).unwrap();
    let tree = Tree::new(Pool::new(&memory, &domain), Caps::new(40, PageSize::Size2M, true)).unwrap();
    let share = |n: u64| tree.share(&cpu, Gpa::new(n * M2), &tree, Gpa::new(0), Level::PMD);
    tree.map(cpu.read(), Gpa::new(0), page(1), PageSize::Size4K).unwrap();
    (1..ENTRIES).for_each(|n| share(n).unwrap());
    assert_eq!(share(ENTRIES), Err(ShareError::NoTable));
    let zap = |entries: u64| tree.zap_tables(&cpu, Gpa::new(0)..Gpa::new(entries * M2)).unwrap();
    assert_eq!(zap(ENTRIES - 1), ZappedTables::default(), "one entry is left");
    assert_eq!(zap(ENTRIES), ZappedTables { pages: 1, tables: 1 });
    tree.free_pgtables(|_, _, _| {});
    cpu.barrier(|table| memory.free(table));
    assert_eq!(memory.in_use(), 0);
}

#[test]
fn a_misconfigured_entry_has_reserved_bits_and_stands_where_there_was_none() {
    with_tree::<Npt>(8, |tree, cpu, memory| {
        let misconfigure = |at: u64| tree.misconfigure(cpu.read(), Gpa::new(at));
        let entry = |at: u64| tree.lookup(cpu.read(), Gpa::new(at)).unwrap();
        assert!(!misconfigure(0), "there is no table");
        tree.map(cpu.read(), Gpa::new(0), page(1), PageSize::Size4K).unwrap();
        let before = entry(0);
        assert!(!misconfigure(0), "there is a page");
        assert_eq!(entry(0), before);
        assert!(misconfigure(0x1000));
        let reserved = arch::paging::ADDRESS & !tree.caps().address_mask();
        assert_ne!(entry(0x1000).1.raw() & reserved, 0);
        assert!(matches!(tree.fault(cpu.read(), Gpa::new(0x1000), PageSize::Size4K), Ok(Fault::Room(_))));
        assert_eq!(memory.bad().len(), 1);
    });
}

#[test]
fn a_page_in_a_frame_that_could_be_a_tables_is_a_page() {
    with_tree::<Npt>(600, |tree, cpu, memory| {
        let frame = Pfn::new(512);
        assert!(memory.table(frame).is_some());
        tree.map(cpu.read(), Gpa::new(0), page(frame.raw()), PageSize::Size2M).unwrap();
        let found = tree.translate(cpu.read(), Gpa::new(0x1000)).unwrap();
        assert_eq!((found.size, found.hpa), (PageSize::Size2M, Hpa::new(513 << 12)));
    });
}

#[test]
fn frames_and_sizes_that_no_entry_can_hold_are_refused() {
    let memory = Memory::<Npt>::new(8);
    let domain = pool::domain::<Npt, 1>(&memory);
    let cpu = domain.register(0).unwrap();
    let tree = Tree::new(Pool::new(&memory, &domain), Caps::new(40, PageSize::Size2M, true)).unwrap();
    for frame in [1 << 28, 1 << 51, 1 << 52, 1 << 63] {
        let mapped = tree.map(cpu.read(), Gpa::new(0), page(frame), PageSize::Size4K);
        assert_eq!(mapped, Err(MapError::Invalid), "frame {frame:#x}");
    }
    for n in 0..512 {
        tree.map(cpu.read(), Gpa::new(n * M2), page(n << 9), PageSize::Size2M).unwrap();
    }
    assert_eq!(tree.collapse(&cpu, Gpa::new(0), PageSize::Size1G), Err(CollapseError::NoSuchSize));
    let new = Pfn::new(1 << 18);
    let into = tree.collapse_into(&cpu, Gpa::new(0), PageSize::Size1G, new, |_, _| panic!(), |_| panic!());
    assert_eq!(into, Err(CollapseError::NoSuchSize));
}

#[test]
fn a_tree_has_no_entries_above_its_root() {
    with_two_trees::<Pae>(|first, second, cpu, _| {
        first.map(cpu.read(), Gva::new(0), page(1), PageSize::Size4K).unwrap();
        let at = Gva::new(0);
        assert!(first.find(cpu.read(), at, Level::P4D).is_none());
        assert_eq!(second.share(cpu, at, first, at, Level::P4D), Err(ShareError::Present));
        assert!(first.move_table(cpu, at, Gva::new(1 << 30), Level::P4D).is_err());
    });
    with_tree::<Toy<2>>(4, |tree, cpu, _| {
        for n in 0..4 {
            tree.map(cpu.read(), Gpa::new(n << 12), page(4 + n), PageSize::Size4K).unwrap();
        }
        assert_eq!(tree.collapse(cpu, Gpa::new(0), PageSize::Size1G), Err(CollapseError::NoTable));
        let into = tree.collapse_into(cpu, Gpa::new(0), PageSize::Size1G, Pfn::new(8), |_, _| panic!(), |_| panic!());
        assert_eq!(into, Err(CollapseError::NoTable));
    });
}

#[test]
fn only_ranges_of_whole_pages_in_the_tree_are_taken() {
    with_tree::<Npt>(4, |tree, cpu, _| {
        let zap = |start: u64, end: u64| tree.zap(cpu, Gpa::new(start)..Gpa::new(end), |_| {});
        assert_eq!(zap(0, 1 << 48), Ok(()));
        assert_eq!(zap(0x1000, 0x1000), Ok(()), "an empty range");
        for (start, end) in [(0x2000, 0x1000), (0, (1 << 48) + 0x1000), (1, 0x1000), (0, 0x1001), (1 << 48, 1 << 48)] {
            assert_eq!(zap(start, end), Err(RangeError::Invalid), "{start:#x}..{end:#x}");
        }
    });
    // A canonical address has 64 bits: there is no address behind the last one.
    assert_eq!([32, 48, 57].map(<Gva as Address>::end), [Some(Gva::new(1 << 32)), None, None]);
}

#[test]
fn pages_and_tables_beside_a_range_stay_as_they_are() {
    with_tree::<Npt>(8, |tree, cpu, _| {
        for n in 0..3 {
            tree.map(cpu.read(), Gpa::new(n * M2), page((n + 1) << 9), PageSize::Size2M).unwrap();
        }
        tree.zap(cpu, Gpa::new(M2)..Gpa::new(2 * M2), |_| {}).unwrap();
        assert_eq!(tree.report(cpu.read()).pages(PageSize::Size2M), 2);
        // An empty table that the range has only a part of.
        tree.map(cpu.read(), Gpa::new(M2), page(1), PageSize::Size4K).unwrap();
        tree.clear_page(cpu, Gpa::new(M2));
        let retract = |start: u64, end: u64| tree.retract(cpu, Gpa::new(start)..Gpa::new(end)).unwrap();
        assert_eq!([retract(M2, M2 + 0x1000), retract(M2 + 0x1000, 2 * M2), retract(M2, 2 * M2)], [0, 0, 1]);
    });
}

#[test]
fn a_bad_entry_is_no_page_to_zap() {
    with_tree::<Npt>(8, |tree, cpu, memory| {
        tree.map(cpu.read(), Gpa::new(0), page(1), PageSize::Size4K).unwrap();
        let (table, _) = tree.walk(cpu.read(), 0, Level::PTE).unwrap();
        write_raw(memory, table.pfn, 1, 0xfff0_0000_0000_1067);
        memory.desc(table.pfn).unwrap().add_children(1);
        assert!(!tree.zap_page(cpu, Gpa::new(0x1000)));
        assert_eq!(memory.bad().len(), 1);
    });
}

/// A walk does not compare levels, so operations that take two locks do.
#[test]
fn tables_at_a_wrong_level_are_not_locked_in_a_row() {
    with_tree::<Npt>(8, |tree, cpu, memory| {
        let guard = cpu.read();
        tree.map(guard, Gpa::new(0), page(1), PageSize::Size4K).unwrap();
        let at = |level| tree.walk(guard, 0, level).unwrap();
        let [(upper, pte), (lower, _)] = [at(Level::PMD), at(Level::PTE)];
        assert!(upper.below_in_order(pte, 0).is_some());
        for (table, level) in [(upper, Level::PUD), (lower, Level::PMD)] {
            let desc = memory.desc(table.pfn).unwrap();
            let right = desc.level();
            desc.start(level, desc.children());
            assert!(upper.below_in_order(pte, 0).is_none());
            desc.start(right, desc.children());
        }
    });
}

#[test]
fn a_teardown_that_is_done_frees_nothing_more() {
    let memory = Memory::<Npt>::new(16);
    let domain = pool::domain::<Npt, 1>(&memory);
    let mut cpu = domain.register(0).unwrap();
    let tree = || Pool::new(&memory, &domain).tree().unwrap();
    let map = |tree: &Tree<Pool<Npt>>, cpu: &Cpu<'_, PoolPlatform<Npt>>| {
        [0, M2].into_iter().for_each(|at| _ = tree.map(cpu.read(), Gpa::new(at), page(1), PageSize::Size4K).unwrap());
    };
    let [first, second] = [tree(), tree()];
    map(&first, &cpu);
    second.map(cpu.read(), Gpa::new(2 * M2), page(1), PageSize::Size4K).unwrap();
    let mut ending = first.tear_down();
    // The first table of ptes that is freed is the second tree's before the rest is freed.
    assert!(!ending.free_until(|| true, |_, _, _| {}));
    map(&second, &cpu);
    assert!(ending.free_until(|| false, |_, _, _| {}));
    assert_eq!(ending.report().tables, 5);
    let third = tree();
    map(&third, &cpu);
    assert!(ending.free_until(|| false, |_, _, _| panic!("it was freed before")));
    for (tree, tables) in [(second, 6), (third, 5)] {
        assert_eq!(check_tables(&tree, &memory), tables);
        tree.free_pgtables(|_, _, _| {});
    }
    cpu.barrier(|table| memory.free(table));
    assert_eq!(memory.in_use(), 0);
}

#[test]
fn corrupted_entries_make_a_teardown_free_nothing_twice_nor_what_is_anothers() {
    let memory = Memory::<Pae>::new(8);
    let domain = pool::domain::<Pae, 1>(&memory);
    let cpu = domain.register(0).unwrap();
    let [first, second] = [(); 2].map(|()| Pool::new(&memory, &domain).tree().unwrap());
    first.map(cpu.read(), Gva::new(0), page(1), PageSize::Size4K).unwrap();
    second.map(cpu.read(), Gva::new(0), page(1), PageSize::Size4K).unwrap();
    let (directory, pte) = first.walk(cpu.read(), 0, Level::PMD).unwrap();
    // The same table again, and the other tree's root as a table of ptes.
    write_raw(&memory, directory.pfn, 1, pte.raw());
    write_raw(&memory, directory.pfn, 2, Pae::<Gva>::table(second.root(), Level::PMD).raw());
    first.free_pgtables(|_, _, _| {});
    assert_eq!(check_tables(&second, &memory), 3);
    second.free_pgtables(|_, _, _| {});
    assert_eq!(memory.in_use(), 0);
}

#[test]
fn a_report_tells_sizes_and_rights() {
    with_tree::<Npt>(8, |tree, cpu, _| {
        let map = |at: u64, size, [write, execute, user]: [bool; 3], accessed, dirty| {
            let leaf = Leaf { rights: Rights { write, execute, user }, accessed, dirty, ..page(0x200) };
            tree.map(cpu.read(), Gpa::new(at), leaf, size).unwrap();
        };
        map(0, PageSize::Size4K, [true, false, false], true, true);
        map(0x1000, PageSize::Size4K, [false, true, false], true, false);
        map(0x2000, PageSize::Size4K, [false, false, true], false, false);
        map(M2, PageSize::Size2M, [true, true, true], true, false);
        map(2 * M2, PageSize::Size2M, [true, true, true], false, false);
        let report = tree.report(cpu.read());
        assert_eq!(report.to_string(), "4K rw--: 1, 4K r-x-: 1, 4K r--u: 1, 2M rwxu: 2, tables: 4");
        assert_eq!((report.accessed, report.dirty, report.bytes()), (3, 1, 3 * PAGE_SIZE + 2 * M2));
    });
}

/// The directory with a large page is looked through again when the table behind the page has been freed.
#[test]
fn a_teardown_in_steps_reports_a_page_once() {
    let memory = Memory::<Npt>::new(8);
    let domain = pool::domain::<Npt, 1>(&memory);
    let cpu = domain.register(0).unwrap();
    let tree = Pool::new(&memory, &domain).tree().unwrap();
    tree.map(cpu.read(), Gpa::new(0), page(0x200), PageSize::Size2M).unwrap();
    tree.map(cpu.read(), Gpa::new(M2), page(1), PageSize::Size4K).unwrap();
    let (mut teardown, mut pages) = (tree.tear_down(), Vec::new());
    while !teardown.free_until(|| true, |at, _, _| pages.push(at.raw())) {}
    assert_eq!(pages, [0, M2]);
    assert_eq!(memory.in_use(), 0);
}
