//! Comparison of the tree with a simple map from guest frames to pages: sequences of all operations in all formats.
//! Every operation is tried first with each number of table frames that is too small.

use super::{check_tables, with_tree};
use crate::format::{Format, FormatExt};
use crate::pool::{Memory, NewTable, Pool, PoolPlatform};
use crate::{
    Address, Entry, Ept, Leaf, Level, LongMode, MapError, Npt, Pae, Page, RangeError, Rights, SplitError, Toy, Tree,
};
use addr::{PageSize, Pfn};
use proptest::prelude::*;
use rcu::Cpu;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::vec;
use std::vec::Vec;

/// The expected leaf of each 4 KiB page of the guest.
type Pages = BTreeMap<u64, Leaf>;

#[derive(Clone, Debug)]
enum Op {
    Map { at: u64, pfn: u64, want: u8, write: bool },
    Fill { at: u64, pfn: u64 },
    Zap { from: u64, to: u64 },
    Unmap { from: u64, to: u64 },
    Retract { from: u64, to: u64 },
    ZapTables { from: u64, to: u64 },
    Protect { from: u64, to: u64, write: bool },
    Split { at: u64 },
    Collapse { at: u64, size: u8 },
    Harvest { from: u64, to: u64 },
    Age { from: u64, to: u64 },
    DirtyLog { from: u64, to: u64 },
    Unprotect { at: u64 },
    Write { at: u64 },
    SoftwareWrite { at: u64 },
    Replace { at: u64, size: u8, pfn: u64 },
    CollapseInto { at: u64, size: u8, pfn: u64 },
    Move { from: u64, to: u64 },
    Reclaim,
}

/// Page numbers, some near the edges of large pages. [`Reference::fold`] maps them into a format's space.
fn gfn() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..8, 505u64..520, 1020u64..1026, Just(512u64), (1u64 << 40) - 600..1 << 40]
}

fn op() -> impl Strategy<Value = Op> {
    let pfn = prop_oneof![0x8000u64..0x8010, Just(0x8200u64), Just(0x4_0000u64)];
    let new = prop_oneof![3 => Just(0x8_0000u64), 1 => pfn.clone()];
    let range = || (gfn(), gfn());
    prop_oneof![
        4 => (gfn(), pfn.clone(), 0u8..3, any::<bool>()).prop_map(|(at, pfn, want, write)| Op::Map { at, pfn, want, write }),
        2 => (gfn(), pfn).prop_map(|(at, pfn)| Op::Fill { at, pfn }),
        2 => range().prop_map(|(from, to)| Op::Zap { from, to }),
        1 => range().prop_map(|(from, to)| Op::Unmap { from, to }),
        1 => range().prop_map(|(from, to)| Op::Retract { from, to }),
        1 => range().prop_map(|(from, to)| Op::ZapTables { from, to }),
        1 => (range(), any::<bool>()).prop_map(|((from, to), write)| Op::Protect { from, to, write }),
        2 => gfn().prop_map(|at| Op::Split { at }),
        2 => (gfn(), 1u8..3).prop_map(|(at, size)| Op::Collapse { at, size }),
        1 => range().prop_map(|(from, to)| Op::Harvest { from, to }),
        1 => range().prop_map(|(from, to)| Op::Age { from, to }),
        2 => range().prop_map(|(from, to)| Op::DirtyLog { from, to }),
        2 => gfn().prop_map(|at| Op::Unprotect { at }),
        3 => gfn().prop_map(|at| Op::Write { at }),
        2 => gfn().prop_map(|at| Op::SoftwareWrite { at }),
        2 => (gfn(), 0u8..3, new.clone()).prop_map(|(at, size, pfn)| Op::Replace { at, size, pfn }),
        2 => (gfn(), 1u8..3, new).prop_map(|(at, size, pfn)| Op::CollapseInto { at, size, pfn }),
        1 => range().prop_map(|(from, to)| Op::Move { from, to }),
        1 => Just(Op::Reclaim),
    ]
}

fn size(n: u8) -> PageSize {
    [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G][usize::from(n)]
}

/// The operation failed because there was no frame for a table.
struct NoMemory;

struct Reference<'t, 'd, F: Format> {
    tree: &'t Tree<Pool<F>>,
    cpu: &'t mut Cpu<'d, PoolPlatform<F>>,
    memory: &'t Arc<Memory<F>>,
    pages: Pages,
}

impl<F: Format> Reference<'_, '_, F> {
    /// The number of 4 KiB pages in the space.
    const SPACE: u64 = 1 << (F::INPUT_BITS - 12);

    fn fold(gfn: u64) -> u64 {
        gfn % Self::SPACE
    }

    fn at(gfn: u64) -> F::Input {
        F::Input::from_offset(gfn << 12, F::INPUT_BITS)
    }

    fn frames(size: PageSize) -> u64 {
        1 << (F::INDEX_BITS * u32::from(Level::of(size).number()))
    }

    /// The range between two pages in either order. It includes the last page of the space only if its end is an
    /// address.
    fn range(from: u64, to: u64) -> (core::ops::Range<u64>, core::ops::Range<F::Input>) {
        let (start, last) = (Self::fold(from).min(Self::fold(to)), Self::fold(from).max(Self::fold(to)));
        match (last + 1 == Self::SPACE).then(|| F::Input::end(F::INPUT_BITS)).flatten() {
            Some(end) => (start..last + 1, Self::at(start)..end),
            None => (start..last, Self::at(start)..Self::at(last)),
        }
    }

    /// Does `op` on both. If it returns [`NoMemory`], neither has changed.
    fn apply(&mut self, op: &Op) -> Result<(), NoMemory> {
        match *op {
            Op::Map { at, pfn, want, write } => self.map(Self::fold(at), pfn, size(want), write).map(|_| ()),
            Op::Fill { at, pfn } => self.fill(Self::fold(at), pfn),
            Op::Zap { from, to } => self.zap(from, to, false),
            Op::Unmap { from, to } => self.zap(from, to, true),
            Op::Retract { from, to } => {
                self.tree.retract(self.cpu, Self::range(from, to).1).expect("the range is one");
                Ok(())
            }
            Op::ZapTables { from, to } => {
                self.zap_tables(from, to);
                Ok(())
            }
            Op::Protect { from, to, write } => self.protect(from, to, write),
            Op::Split { at } => match self.tree.split(self.cpu.read(), Self::at(Self::fold(at))) {
                Err(SplitError::NoMemory) => Err(NoMemory),
                _ => Ok(()),
            },
            Op::Collapse { at, size: to } => {
                self.collapse(Self::fold(at), size(to));
                Ok(())
            }
            Op::Harvest { from, to } => {
                self.harvest(from, to);
                Ok(())
            }
            Op::Age { from, to } => {
                self.age(from, to);
                Ok(())
            }
            Op::DirtyLog { from, to } => {
                self.dirty_log(from, to);
                Ok(())
            }
            Op::Unprotect { at } => {
                self.unprotect(Self::fold(at));
                Ok(())
            }
            Op::Write { at } => {
                self.write(Self::fold(at));
                Ok(())
            }
            Op::SoftwareWrite { at } => {
                self.software_write(Self::fold(at));
                Ok(())
            }
            Op::Replace { at, size: of, pfn } => {
                self.replace(Self::fold(at), size(of), pfn);
                Ok(())
            }
            Op::CollapseInto { at, size: to, pfn } => {
                self.collapse_into(Self::fold(at), size(to), pfn);
                Ok(())
            }
            Op::Move { from, to } => {
                self.move_table(Self::fold(from), Self::fold(to));
                Ok(())
            }
            Op::Reclaim => {
                self.cpu.barrier(|table| self.memory.free(table));
                Ok(())
            }
        }
    }

    fn map(&mut self, gfn: u64, pfn: u64, want: PageSize, write: bool) -> Result<u64, NoMemory> {
        let leaf = Leaf::new(Pfn::new(pfn), Rights { write, ..Rights::ALL });
        match self.tree.map(self.cpu.read(), Self::at(gfn), leaf, want) {
            Ok(size) => {
                assert!(size <= want && (gfn | pfn).is_multiple_of(Self::frames(size)));
                for n in 0..Self::frames(size) {
                    let old = self.pages.insert(gfn + n, Leaf { pfn: Pfn::new(pfn + n), ..leaf });
                    assert_eq!(old, None, "something was mapped there");
                }
                Ok(Self::frames(size))
            }
            Err(MapError::Present) => {
                assert!(self.pages.contains_key(&gfn));
                Ok(1)
            }
            Err(MapError::NoMemory) => Err(NoMemory),
            Err(wrong) => panic!("{wrong:?}"),
        }
    }

    /// Maps small pages that can be collapsed to a large one.
    fn fill(&mut self, gfn: u64, pfn: u64) -> Result<(), NoMemory> {
        let frames = Self::frames(PageSize::Size2M);
        let (start, pfn) = (gfn & !(frames - 1), pfn & !(frames - 1));
        // Only the first page can need tables, unless a large page is mapped there.
        for n in 0..frames {
            self.map(start + n, pfn + n, PageSize::Size4K, true)?;
        }
        Ok(())
    }

    fn zap(&mut self, from: u64, to: u64, tables: bool) -> Result<(), NoMemory> {
        let (gfns, range) = Self::range(from, to);
        let mut zapped = Vec::new();
        let note = |page: Page<F::Input>| zapped.push(page);
        let result = if tables {
            self.tree.unmap(self.cpu, range, note).map(|_| ())
        } else {
            self.tree.zap(self.cpu, range, note)
        };
        match result {
            Ok(()) => {}
            Err(RangeError::NoMemory) => {
                assert!(zapped.is_empty());
                return Err(NoMemory);
            }
            Err(wrong) => panic!("{wrong:?}"),
        }
        for (gfn, leaf) in zapped.iter().flat_map(Self::parts) {
            assert!(gfns.contains(&gfn));
            assert_eq!(self.pages.remove(&gfn), Some(leaf));
        }
        assert_eq!(self.pages.range(gfns).next(), None);
        Ok(())
    }

    /// Zaps all tables between those of the two pages.
    fn zap_tables(&mut self, from: u64, to: u64) {
        let edge = |gfn| gfn & !(Self::frames(PageSize::Size2M) - 1);
        let (gfns, range) = Self::range(edge(from), edge(to));
        let large = self.pages.range(gfns.clone()).count();
        match self.tree.zap_tables(self.cpu, range) {
            Ok(zapped) => {
                assert!(zapped.pages as usize <= large);
                assert_eq!(zapped.pages == 0, large == 0);
                self.pages.retain(|gfn, _| !gfns.contains(gfn));
            }
            Err(RangeError::Invalid) => {
                assert!(
                    F::TOP > Level::PMD && self.tree.caps().largest() > PageSize::Size2M
                        || gfns.end % Self::frames(PageSize::Size2M) != 0
                );
            }
            Err(wrong) => panic!("{wrong:?}"),
        }
    }

    /// The 4 KiB parts of a page.
    fn parts(page: &Page<F::Input>) -> impl Iterator<Item = (u64, Leaf)> {
        let gfn = page.at.to_offset(F::INPUT_BITS).expect("it is an address of the tree's") >> 12;
        let leaf = page.leaf;
        (0..Self::frames(page.size)).map(move |n| (gfn + n, Leaf { pfn: Pfn::new(leaf.pfn.raw() + n), ..leaf }))
    }

    fn protect(&mut self, from: u64, to: u64, write: bool) -> Result<(), NoMemory> {
        let (gfns, range) = Self::range(from, to);
        let rights = Rights { write, ..Rights::ALL };
        match self.tree.protect(self.cpu, range, rights) {
            Ok(()) => {}
            Err(RangeError::NoMemory) => return Err(NoMemory),
            Err(wrong) => panic!("{wrong:?}"),
        }
        for (_, leaf) in self.pages.range_mut(gfns) {
            leaf.logged &= write;
            leaf.rights.write = write && !leaf.logged;
        }
        Ok(())
    }

    /// The page that translates `gfn`: its first page number and its size in 4 KiB.
    fn page_of(&self, gfn: u64) -> Option<core::ops::Range<u64>> {
        let frames = Self::frames(self.tree.translate(self.cpu.read(), Self::at(gfn))?.size);
        let start = gfn & !(frames - 1);
        Some(start..start + frames)
    }

    fn collapse(&mut self, gfn: u64, size: PageSize) {
        let frames = Self::frames(size);
        let start = gfn & !(frames - 1);
        if self.tree.collapse(self.cpu, Self::at(gfn), size).is_err() {
            return;
        }
        let parts: Vec<Leaf> = self.pages.range(start..start + frames).map(|(_, leaf)| *leaf).collect();
        assert_eq!(parts.len() as u64, frames);
        let (accessed, dirty) = (parts.iter().any(|leaf| leaf.accessed), parts.iter().any(|leaf| leaf.dirty));
        for (_, leaf) in self.pages.range_mut(start..start + frames) {
            (leaf.accessed, leaf.dirty) = (accessed, dirty);
        }
    }

    /// The part of a leaf that must be equal in all pages for a collapse: without frame, accessed and dirty bits.
    fn in_common(leaf: &Leaf) -> Leaf {
        let rights = Rights { write: leaf.may_write(), ..leaf.rights };
        Leaf { pfn: Pfn::new(0), rights, accessed: false, dirty: false, logged: false, ..*leaf }
    }

    fn collapse_into(&mut self, gfn: u64, size: PageSize, pfn: u64) {
        let frames = Self::frames(size);
        let start = gfn & !(frames - 1);
        let below = Level::of(size).below().expect("it is no small page").page_size().expect("nor a huge one");
        let parts: Vec<Leaf> = self.pages.range(start..start + frames).map(|(_, leaf)| *leaf).collect();
        let alike = parts.windows(2).all(|pair| Self::in_common(&pair[0]) == Self::in_common(&pair[1]));
        let small = (start..start + frames)
            .all(|gfn| self.tree.translate(self.cpu.read(), Self::at(gfn)).is_some_and(|page| page.size == below));
        let fits = size <= F::LARGEST && pfn.is_multiple_of(frames);
        let (mut copied, mut back) = (Vec::new(), Vec::new());
        let copy = |index: usize, leaf: Leaf| copied.push((index as u64, leaf));
        let result =
            self.tree.collapse_into(self.cpu, Self::at(gfn), size, Pfn::new(pfn), copy, |page| back.push(page));
        assert_eq!(result.is_ok(), alike && small && fits, "{result:?}");
        if result.is_err() {
            assert!(copied.is_empty() && back.is_empty());
            return;
        }
        let back: Vec<_> = back.iter().flat_map(Self::parts).collect();
        assert!(back.iter().copied().eq((start..).zip(parts.iter().copied())), "each page comes back once");
        let entries = back.iter().map(|(_, leaf)| leaf).step_by(Self::frames(below) as usize);
        assert!(copied.iter().eq((0..).zip(entries.copied()).collect::<Vec<_>>().iter()), "each page is copied once");
        let (accessed, dirty) = (parts.iter().any(|leaf| leaf.accessed), parts.iter().any(|leaf| leaf.dirty));
        for (n, (_, leaf)) in (0..).zip(self.pages.range_mut(start..start + frames)) {
            *leaf = Leaf { pfn: Pfn::new(pfn + n), accessed, dirty, ..Self::in_common(leaf) };
        }
    }

    fn replace(&mut self, gfn: u64, size: PageSize, pfn: u64) {
        let frames = Self::frames(size);
        let page = self.page_of(gfn).filter(|page| page.end - page.start == frames);
        let fits = pfn.is_multiple_of(frames);
        let mut copied = None;
        let copy = |leaf: Leaf| copied = Some(leaf.pfn);
        let result = self.tree.replace(self.cpu, Self::at(gfn), size, Pfn::new(pfn), copy);
        let Some(page) = page.filter(|_| fits) else {
            assert!(result.is_err() && copied.is_none());
            return;
        };
        assert_eq!(result.as_ref().ok(), self.pages.get(&page.start));
        assert_eq!(copied, result.ok().map(|old| old.pfn));
        for (n, (_, leaf)) in (0..).zip(self.pages.range_mut(page)) {
            leaf.pfn = Pfn::new(pfn + n);
        }
    }

    fn harvest(&mut self, from: u64, to: u64) {
        let mut found = Vec::new();
        self.tree.harvest(self.cpu, Self::range(from, to).1, |page| found.push(page)).expect("the range is one");
        for (gfn, leaf) in found.iter().flat_map(Self::parts) {
            let page = self.pages.get_mut(&gfn).expect("it is mapped");
            assert_eq!(*page, leaf);
            assert!(page.accessed || page.dirty);
            (page.accessed, page.dirty) = (false, false);
        }
        for (_, leaf) in self.pages.range(Self::range(from, to).0) {
            assert!(!leaf.accessed && !leaf.dirty, "one was missed");
        }
    }

    fn age(&mut self, from: u64, to: u64) {
        let (gfns, range) = Self::range(from, to);
        // Pages that cross an edge are aged as a whole.
        let here = self.pages.range(gfns).filter_map(|(&gfn, _)| self.page_of(gfn));
        let pages: BTreeSet<_> = here.map(|page| (page.start, page.end)).collect();
        let mut accessed = 0;
        for (start, end) in pages {
            accessed += u64::from(self.pages[&start].accessed);
            self.pages.range_mut(start..end).for_each(|(_, page)| page.accessed = false);
        }
        assert_eq!(self.tree.age(self.cpu.read(), range), Ok(accessed));
    }

    fn dirty_log(&mut self, from: u64, to: u64) {
        let (gfns, range) = Self::range(from, to);
        let mut found = Vec::new();
        self.tree.dirty_log(self.cpu, range, |page| found.push(page)).expect("the range is one");
        for (gfn, leaf) in found.iter().flat_map(Self::parts) {
            let page = self.pages.get_mut(&gfn).expect("it is mapped");
            assert!(page.dirty);
            assert_eq!(*page, leaf);
            page.dirty = false;
        }
        // Pages that cross an edge are write-protected as a whole.
        let starts: BTreeSet<u64> =
            self.pages.range(gfns).filter_map(|(&gfn, _)| self.page_of(gfn)).map(|page| page.start).collect();
        let whole: Vec<u64> = starts.into_iter().filter_map(|gfn| self.page_of(gfn)).flatten().collect();
        for gfn in whole {
            let page = self.pages.get_mut(&gfn).expect("its first is mapped");
            assert!(!page.dirty, "one was missed");
            page.logged = page.may_write();
            page.rights.write = false;
        }
    }

    fn unprotect(&mut self, gfn: u64) {
        let writable = self.tree.unprotect(self.cpu.read(), Self::at(gfn));
        let expected = self.pages.get(&gfn).is_some_and(Leaf::may_write);
        assert_eq!(writable, expected);
        if self.pages.get(&gfn).is_some_and(|leaf| leaf.logged) {
            for gfn in self.page_of(gfn).expect("it is mapped") {
                let page = self.pages.get_mut(&gfn).expect("all of the page is mapped");
                (page.logged, page.rights.write, page.dirty) = (false, true, true);
            }
        }
    }

    /// A write by a processor.
    fn write(&mut self, gfn: u64) {
        let Some((table, pte)) = self.tree.walk(self.cpu.read(), gfn << 12, Level::PTE) else { return };
        let Entry::Leaf(Leaf { rights: Rights { write: true, .. }, .. }) = table.decode(pte) else { return };
        let marked = crate::Pte::new(pte.raw() | F::AD);
        table.cmpxchg(F::index(gfn << 12, table.level), pte, marked).expect("no other CPU changes it");
        for gfn in self.page_of(gfn).expect("it is mapped") {
            let page = self.pages.get_mut(&gfn).expect("all of the page is mapped");
            (page.accessed, page.dirty) = (true, true);
        }
    }

    /// A write by software.
    fn software_write(&mut self, gfn: u64) {
        let found = self.tree.write(self.cpu.read(), Self::at(gfn), |found| found.hpa);
        let expected = self.pages.get(&gfn).filter(|leaf| leaf.may_write()).map(|leaf| leaf.pfn.start());
        assert_eq!(found.ok(), expected);
        for gfn in self.page_of(gfn).filter(|_| expected.is_some()).into_iter().flatten() {
            let page = self.pages.get_mut(&gfn).expect("all of the page is mapped");
            (page.accessed, page.dirty, page.logged, page.rights.write) = (true, true, false, true);
        }
    }

    fn move_table(&mut self, from: u64, to: u64) {
        let frames = Self::frames(PageSize::Size2M);
        let (from, to) = (from & !(frames - 1), to & !(frames - 1));
        if self.tree.move_table(self.cpu, Self::at(from), Self::at(to), Level::PMD).is_err() {
            return;
        }
        for n in 0..frames {
            assert!(!self.pages.contains_key(&(to + n)));
            if let Some(leaf) = self.pages.remove(&(from + n)) {
                self.pages.insert(to + n, leaf);
            }
        }
    }

    /// Checks that both agree about every mapped page and its neighbours.
    fn compare(&self) {
        let guard = self.cpu.read();
        for (&gfn, &leaf) in &self.pages {
            let found = self.tree.translate(guard, Self::at(gfn)).expect("it is mapped");
            let within = gfn & (Self::frames(found.size) - 1);
            assert_eq!(found.hpa, leaf.pfn.start());
            assert_eq!(Leaf { pfn: Pfn::new(found.leaf.pfn.raw() + within), ..found.leaf }, leaf);
            let next = Self::fold(gfn + 1);
            assert_eq!(self.tree.translate(guard, Self::at(next)).is_some(), self.pages.contains_key(&next));
        }
        let report = self.tree.report(guard);
        let mapped = report.iter().map(|(size, _, count)| count * Self::frames(size)).sum::<u64>();
        assert_eq!(mapped, self.pages.len() as u64);
        assert_eq!(report.tables as usize, check_tables(self.tree, self.memory));
        assert_eq!(self.memory.in_use() as u64, report.tables + self.cpu.backlog(), "every frame is accounted for");
    }
}

fn run<F: Format<Table: NewTable>>(ops: &[Op]) {
    with_tree::<F>(4096, |tree, cpu, memory| {
        let mut reference = Reference { tree, cpu, memory, pages: Pages::new() };
        for op in ops {
            for budget in 0.. {
                let before = (reference.tree.report(reference.cpu.read()), memory.in_use());
                let several = matches!(op, Op::Fill { .. });
                memory.limit(Some(budget));
                let result = reference.apply(op);
                memory.limit(None);
                if result.is_ok() {
                    break;
                }
                let after = (reference.tree.report(reference.cpu.read()), memory.in_use());
                assert!(several || before == after, "{op:?} failed halfway");
                reference.compare();
            }
            reference.compare();
        }
    });
}

/// A number of cases that takes some seconds. `PROPTEST_CASES` sets a percentage of it, for longer runs.
fn cases(usual: u32) -> ProptestConfig {
    let percent = std::env::var("PROPTEST_CASES").ok().and_then(|percent| percent.parse::<u32>().ok()).unwrap_or(100);
    ProptestConfig::with_cases((usual * percent / 100).max(1))
}

proptest! {
    #![proptest_config(cases(28))]
    #[test]
    fn npt_is_as_a_plain_map(ops in prop::collection::vec(op(), 1..24)) {
        run::<Npt>(&ops);
    }
    #[test]
    fn ept_is_as_a_plain_map(ops in prop::collection::vec(op(), 1..24)) {
        run::<Ept>(&ops);
    }
    #[test]
    fn five_levels_are_as_a_plain_map(ops in prop::collection::vec(op(), 1..24)) {
        run::<LongMode<5>>(&ops);
    }
    #[test]
    fn pae_is_as_a_plain_map(ops in prop::collection::vec(op(), 1..24)) {
        run::<Pae>(&ops);
    }
}

proptest! {
    // With two entries to a table, all cases occur within a few pages.
    #![proptest_config(cases(700))]
    #[test]
    fn small_tables_are_as_a_plain_map(ops in prop::collection::vec(op(), 1..60)) {
        run::<Toy<4>>(&ops);
    }
}

/// PDPTEs of PAE can't map pages, even if the processor has 1 GiB pages in other formats.
#[test]
fn a_gigabyte_is_mapped_in_pae_as_large_pages() {
    run::<Pae>(&[Op::Map { at: 0, pfn: 1 << 18, want: 2, write: false }]);
}
