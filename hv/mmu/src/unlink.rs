//! Tables that are unlinked: empty ones by [`Tree::retract`] and [`Tree::unmap`], and others by [`Tree::zap_tables`].

use crate::entry::Pte;
use crate::env::Env;
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

impl<E: Env> Tree<E> {
    /// Unlinks the tables in the range that have no entries, and returns their number. A [shared](Self::share) table is
    /// unlinked from this tree only.
    ///
    /// # Errors
    /// [`RangeError::Invalid`].
    pub fn retract(&self, cpu: &Cpu<'_, E::Platform>, range: Range<Input<E>>) -> Result<usize, RangeError> {
        let range = Self::offsets(range)?;
        let mut gather = cpu.gather(self.space());
        let retracted = self.root_table(cpu.read()).map_or(0, |root| self.retract_below(root, range, &mut gather));
        self.finish_gather(cpu, gather, None);
        Ok(retracted)
    }

    fn retract_below(&self, table: Table<'_, E>, range: Range<u64>, gather: &mut Gather<'_, E::Platform>) -> usize {
        let mut retracted = 0;
        let mut at = range.start;
        while at < range.end {
            let next = next_entry::<E>(at, table.level);
            let pte = table.get(at);
            if let Some(below) = table.below_in_order(pte, at) {
                retracted += self.retract_below(below, at..next.min(range.end), gather);
                retracted += usize::from(self.unlink_if_empty(table, below, at, &range, gather));
            }
            at = next;
        }
        retracted
    }

    /// Unlinks `below`, to which the entry for `offset` refers, if it is wholly in the range and has no entries. Whether it did. For
    /// nearly all tables it costs one read.
    pub(crate) fn unlink_if_empty(
        &self,
        table: Table<'_, E>,
        below: Table<'_, E>,
        offset: u64,
        range: &Range<u64>,
        gather: &mut Gather<'_, E::Platform>,
    ) -> bool {
        let start = offset & !(span::<E::Format>(table.level) - 1);
        let whole = range.start <= start && next_entry::<E>(offset, table.level) <= range.end;
        whole
            && below.desc().is_some_and(|desc| desc.children() == 0)
            && self.unlink_table(table, below, offset, Content::None, gather).is_ok()
    }

    /// Unlinks a table. It holds both locks: a CPU that has passed `pmd_same` under the table's own lock may be about to set an
    /// entry, or has set one since the caller counted them. And it freezes all entries of an empty table that goes with its last
    /// entry: a compare-and-exchange of a CPU that holds no lock must fail from then on. In a table that goes with its pages such
    /// an exchange is in vain.
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
        let is_empty = content == Content::None && kept(Rule::CountUnderLock);
        if is_empty && pages > 0 {
            return Err(Changed);
        }
        let last = lower.is_last_entry();
        if last && is_empty {
            lower.freeze(|_| Pte::NONE)?;
        }
        upper.clear(E::Format::index(offset, table.level));
        if !last {
            // The table waits for a grace period when its last entry is cleared, in which the processors of that entry's tree are
            // flushed. It waits for this tree's as well, because they are flushed here.
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
