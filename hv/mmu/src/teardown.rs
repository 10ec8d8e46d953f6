//! The end of a tree, in steps: Linux's `exit_mmap` with a place to reschedule.

use crate::entry::{Entry, Leaf, Pte};
use crate::env::{Env, TableDesc};
use crate::format::{Format, FormatExt, span};
use crate::level::{Address, Level};
use crate::map::Input;
use crate::report::Report;
use crate::tree::Tree;
use addr::{PageSize, Pfn};
use model::sync::Ordering;

/// A tree that has ended, and whose tables are being freed. Dropping it leaks those that are left.
pub struct Teardown<E: Env> {
    tree: Tree<E>,
    /// What was in the tree, as far as it is freed.
    report: Report,
    is_done: bool,
}

impl<E: Env> Tree<E> {
    /// Ends the tree as [`free_pgtables`](Self::free_pgtables) does, under the same conditions, but frees nothing yet.
    pub fn tear_down(self) -> Teardown<E> {
        Teardown { tree: self, report: Report::default(), is_done: false }
    }
}

impl<E: Env> Teardown<E> {
    /// Calls `page` for every page that is mapped, with its first address, and frees the tables, until all are freed or the caller
    /// is `preempted`, which is asked after each table. Whether all are freed.
    pub fn free_until(&mut self, preempted: impl Fn() -> bool, mut page: impl FnMut(Input<E>, PageSize, Leaf)) -> bool {
        if !self.is_done {
            self.is_done = self.free_below(self.tree.root(), E::Format::TOP, 0, &preempted, &mut page);
        }
        self.is_done
    }

    /// What was in the tree: complete when all is freed. Tables that another tree shares are not counted.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The tree's environment.
    pub fn env(&self) -> &E {
        self.tree.env()
    }

    fn free_below(
        &mut self,
        pfn: Pfn,
        level: Level,
        start: u64,
        preempted: &impl Fn() -> bool,
        page: &mut impl FnMut(Input<E>, PageSize, Leaf),
    ) -> bool {
        if self.tree.env.desc(pfn).is_some_and(TableDesc::is_shared) {
            self.tree.env.desc(pfn).into_iter().for_each(TableDesc::drop_sharer);
            return true;
        }
        for index in 0..E::Format::entries(level) {
            let at = start + (index as u64) * span::<E::Format>(level);
            let pte = self.entry(pfn, index);
            match E::Format::decode(pte, level, self.tree.caps) {
                Entry::Table(below) if self.tree.holds_table(below, level) => {
                    if let Some(level) = level.below()
                        && !self.free_below(below, level, at, preempted, page)
                    {
                        return false;
                    }
                    self.clear(pfn, index);
                    // The root is freed last, so that there is always one table more.
                    if preempted() {
                        return false;
                    }
                }
                Entry::Leaf(leaf) => {
                    self.clear(pfn, index);
                    self.report.count(level, &leaf);
                    if let Some(size) = level.page_size() {
                        page(Input::<E>::from_offset(at, E::Format::INPUT_BITS), size, leaf);
                    }
                }
                _ => {}
            }
        }
        self.free_table(pfn);
        true
    }

    /// Frees a table once, also if a corrupted entry refers to it again.
    fn free_table(&mut self, pfn: Pfn) {
        if let Some(desc) = self.tree.env.desc(pfn)
            && !desc.is_dead()
        {
            desc.set_dead();
            self.report.tables += 1;
            self.tree.env.free_table(pfn);
        }
    }

    fn entry(&self, table: Pfn, index: usize) -> Pte {
        let entries = self.tree.env.table(table).map_or(&[][..], AsRef::as_ref);
        entries.get(index).map_or(Pte::NONE, |entry| Pte::new(entry.load(Ordering::Relaxed)))
    }

    fn clear(&self, table: Pfn, index: usize) {
        let entries = self.tree.env.table(table).map_or(&[][..], AsRef::as_ref);
        entries.get(index).into_iter().for_each(|entry| entry.store(0, Ordering::Relaxed));
    }
}
