//! Whole tables unlinked at once, with the pages in them: what a shadow zaps by, as its pages belong to another tree.

use crate::entry::Entry;
use crate::env::Env;
use crate::fault_injection::After;
use crate::format::{Format, FormatExt, span};
use crate::level::Level;
use crate::map::{Changed, Input, Table};
use crate::range::{RangeError, next_entry};
use crate::tree::Tree;
use crate::unlink::Content;
use addr::PageSize;
use core::ops::{AddAssign, Range};
use model::sync::relax;
use rcu::{Cpu, Gather};

/// What [`Tree::zap_tables`] has unlinked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ZappedTables {
    /// The number of pages.
    pub pages: u64,
    /// The number of tables that no entry refers to any more.
    pub tables: usize,
}

impl AddAssign for ZappedTables {
    fn add_assign(&mut self, other: Self) {
        self.pages += other.pages;
        self.tables += other.tables;
    }
}

impl<E: Env> Tree<E> {
    /// Clears each entry of level [`Level::PMD`] in the range, whether it maps a page of 2 MiB or refers to a table, and flushes.
    /// A table goes with the pages in it, so that the cost grows with the number of tables and not with that of pages (KVM zaps
    /// shadow pages so, too). No page is reported: this is for trees whose pages have their owner elsewhere. A
    /// [shared](Self::share) table is unlinked from this tree only, and its pages are not counted. Operations that clear entries of
    /// shared tables need one lock for all trees: a table is freed after a flush of the tree that cleared its last entry, while
    /// processors may still walk it by an entry that another CPU has cleared and not flushed yet.
    ///
    /// The entries of an unlinked table are not frozen. A CPU that has mapped it before may still change them, in vain.
    ///
    /// # Errors
    /// [`RangeError::Invalid`], also if the range is not aligned to 2 MiB, or if the tree can map pages of 1 GiB.
    pub fn zap_tables(&self, cpu: &Cpu<'_, E::Platform>, range: Range<Input<E>>) -> Result<ZappedTables, RangeError> {
        let range = Self::offsets(range)?;
        let aligned = (range.start | range.end) & (span::<E::Format>(Level::PMD) - 1) == 0;
        let has_larger = E::Format::TOP > Level::PMD && self.caps.largest() > PageSize::Size2M;
        if !aligned || has_larger {
            return Err(RangeError::Invalid);
        }
        let mut gather = cpu.gather(self.space());
        let mut zapped = ZappedTables::default();
        let mut at = range.start;
        while let Some((table, _)) = self.walk(cpu.read(), at, Level::PMD)
            && at < range.end
        {
            if table.level == Level::PMD {
                match self.zap_pmd(table, at, &mut gather) {
                    Ok(more) => zapped += more,
                    // It is looked for again from the root: its table may have gone.
                    Err(Changed) => {
                        relax();
                        continue;
                    }
                }
            }
            at = next_entry::<E>(at, table.level);
        }
        self.finish_gather(cpu, gather, Some(After::Zap));
        Ok(zapped)
    }

    /// Clears the entry for `offset`.
    fn zap_pmd(
        &self,
        table: Table<'_, E>,
        offset: u64,
        gather: &mut Gather<'_, E::Platform>,
    ) -> Result<ZappedTables, Changed> {
        let pte = table.get(offset);
        match table.decode(pte) {
            Entry::None => Ok(ZappedTables::default()),
            Entry::Table(_) => {
                let below = table.below_in_order(pte, offset).ok_or(Changed)?;
                self.unlink_table(table, below, offset, Content::Any, gather)
            }
            Entry::Leaf(_) => self.clear_leaf(table, offset, gather),
            // Under the lock a frozen entry is a corrupted one.
            Entry::Bad | Entry::Frozen => {
                table.clear_bad(offset);
                Err(Changed)
            }
        }
    }

    fn clear_leaf(
        &self,
        table: Table<'_, E>,
        offset: u64,
        gather: &mut Gather<'_, E::Platform>,
    ) -> Result<ZappedTables, Changed> {
        let locked = table.lock()?;
        let Entry::Leaf(_) = table.decode(table.get(offset)) else { return Err(Changed) };
        locked.clear(E::Format::index(offset, table.level));
        gather.changed();
        Ok(ZappedTables { pages: 1, tables: 0 })
    }
}
