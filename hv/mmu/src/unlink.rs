//! Tables that are unlinked: empty ones by [`Tree::retract`] and [`Tree::unmap`], and others by [`Tree::zap_tables`].

use crate::entry::Pte;
use crate::env::Env;
use crate::fault_injection::After;
use crate::format::{FormatExt, span};
use crate::map::{Changed, Input, Table};
use crate::range::{RangeError, next_entry};
use crate::rules::Rule;
use crate::tree::Tree;
use crate::zap_tables::ZappedTables;
use core::ops::Range;
use model::kept;
use rcu::{Cpu, Gather};

/// Which tables are unlinked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// Those without an entry.
    None,
    /// All, with the pages in them.
    Any,
}

/// Empty tables that were unlinked, which wait for one flush.
pub(crate) struct Unlinked<'c, E: Env> {
    pub(crate) gather: Gather<'c, E::Platform>,
    /// The number of entries that were cleared.
    pub(crate) entries: usize,
    /// One of them was an entry of a shared table.
    pub(crate) shared: bool,
}

impl<'c, E: Env> Unlinked<'c, E> {
    pub(crate) fn new(tree: &'c Tree<E>, cpu: &'c Cpu<'c, E::Platform>) -> Self {
        Self { gather: cpu.gather(tree.space()), entries: 0, shared: false }
    }
}

impl<E: Env> Tree<E> {
    /// Unlinks the tables in the range that have no entries, and returns their number. A [shared](Self::share) table is
    /// unlinked from this tree only.
    ///
    /// # Errors
    /// [`RangeError::Invalid`].
    pub fn retract(&self, cpu: &Cpu<'_, E::Platform>, range: Range<Input<E>>) -> Result<usize, RangeError> {
        let range = Self::offsets(range)?;
        let mut unlinked = Unlinked::new(self, cpu);
        if let Some(root) = self.root_table(cpu.read()) {
            self.retract_below(root, range, &mut unlinked);
        }
        self.finish_gather(cpu, unlinked.gather, unlinked.shared.then_some(After::Retract));
        Ok(unlinked.entries)
    }

    fn retract_below(&self, table: Table<'_, E>, range: Range<u64>, unlinked: &mut Unlinked<'_, E>) {
        let mut at = range.start;
        while at < range.end {
            let next = next_entry::<E>(at, table.level);
            let pte = table.get(at);
            if let Some(below) = table.below_in_order(pte, at) {
                self.retract_below(below, at..next.min(range.end), unlinked);
                self.unlink_if_empty(table, below, at, &range, unlinked);
            }
            at = next;
        }
    }

    /// Unlinks `below`, to which the entry for `offset` refers, if it is wholly in the range and has no entries. For nearly all tables it
    /// costs one read.
    pub(crate) fn unlink_if_empty(
        &self,
        table: Table<'_, E>,
        below: Table<'_, E>,
        offset: u64,
        range: &Range<u64>,
        unlinked: &mut Unlinked<'_, E>,
    ) {
        let start = offset & !(span::<E::Format>(table.level) - 1);
        let whole = range.start <= start && next_entry::<E>(offset, table.level) <= range.end;
        if whole
            && below.desc().is_some_and(|desc| desc.children() == 0)
            && let Ok(gone) = self.unlink_table(table, below, offset, Content::None, &mut unlinked.gather)
        {
            unlinked.entries += 1;
            unlinked.shared |= gone.tables == 0;
        }
    }

    /// Unlinks a table. It holds both locks: a CPU that has passed `pmd_same` under the table's own lock may be about to set an
    /// entry, or has set one since the caller counted them. And it freezes all entries of an empty table that goes with its last
    /// entry: a compare-and-exchange of a CPU that holds no lock must fail from then on. In a table that goes with its pages such
    /// an exchange is in vain.
    // Inlined, so that `content` is a constant: a zap of thousands of tables holds up all vCPUs of its processor.
    #[inline(always)]
    pub(crate) fn unlink_table(
        &self,
        table: Table<'_, E>,
        below: Table<'_, E>,
        offset: u64,
        content: Content,
        gather: &mut Gather<'_, E::Platform>,
    ) -> Result<ZappedTables, Changed> {
        let upper = table.lock()?;
        let lower = below.lock()?;
        let pages = lower.desc().children().into();
        let must_be_empty = content == Content::None && kept(Rule::CountUnderLock);
        if must_be_empty && pages > 0 {
            return Err(Changed);
        }
        let last = lower.is_last_entry();
        if last && must_be_empty {
            lower.freeze(|_| Pte::NONE)?;
        }
        upper.clear(E::Format::index(offset, table.level));
        if !last {
            // When its last entry is cleared, the table waits for the processors of that entry's tree alone. So the caller awaits the
            // flush of this tree's, and is itself waited for meanwhile.
            if kept(Rule::Flush) {
                gather.changed();
            }
            return Ok(ZappedTables::default());
        }
        lower.desc().set_dead();
        self.retire(below.pfn, gather);
        Ok(ZappedTables { pages, tables: 1 })
    }
}
