//! Tables that more than one entry refers to: a shadow of many address spaces has the kernel's half of them once.
//!
//! Each entry counts, and who takes away the last one gives the table back. What is in a shared table is changed through any of
//! its entries, and flushed then by that entry's tree alone: who shares tables flushes the others'.

use crate::env::{Env, TableDesc};
use crate::format::{Format, FormatExt};
use crate::level::{Address, Level};
use crate::map::{Changed, Input, PteMapLocked, Table};
use crate::rules::{Rule, kept};
use crate::skip::After;
use crate::sync::relax;
use crate::tree::{NoMemory, Tree};
use rcu::Cpu;

/// Why a table was not shared. The trees are as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShareError {
    /// There is no table to share (any more), or none that one more entry can be counted of.
    NoTable,
    /// The entry that should refer to it is not none.
    Present,
    /// No frame for a table above it.
    NoMemory,
}

impl From<NoMemory> for ShareError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

impl<E: Env> Tree<E> {
    /// Lets the entry of `level` for `to`, which is none, refer to the table that `other`'s for `from` refers to. `other` may
    /// be this tree; the surroundings of both have the same frames.
    ///
    /// # Errors
    /// [`ShareError`].
    pub fn share(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        to: Input<E>,
        other: &Self,
        from: Input<E>,
        level: Level,
    ) -> Result<(), ShareError> {
        let offset = to.to_offset(E::Format::INPUT_BITS).ok_or(ShareError::Present)?;
        loop {
            let (table, pte) = self.walk(cpu.read(), offset, level).ok_or(ShareError::Present)?;
            if table.level < level || !pte.is_none() {
                return Err(ShareError::Present);
            }
            let missing = usize::from(table.level.number() - level.number());
            let mut spare = self.top_up(missing)?;
            let source = other.table_below(cpu, from, level).ok_or(ShareError::NoTable)?;
            let entry = E::Format::table(source.pfn, level);
            let entry = self.chain(entry, level..table.level, offset, &spare).ok_or(ShareError::NoMemory)?;
            // Downwards, as all locks are.
            if let Ok(upper) = table.lock()
                && let Ok(lower) = source.lock()
                && upper.table().get(offset).is_none()
            {
                if !lower.desc().add_sharer() {
                    return Err(ShareError::NoTable);
                }
                upper.set(E::Format::index(offset, table.level), entry);
                spare.used(missing);
                return Ok(());
            }
            relax();
        }
    }

    /// Takes away the entry of `level` for `at` if it is not the only one that refers to its table, and flushes. The table stays as it
    /// is, for the others. Whether it did.
    pub fn unshare(&self, cpu: &Cpu<'_, E::Platform>, at: Input<E>, level: Level) -> bool {
        let Some(offset) = at.to_offset(E::Format::INPUT_BITS) else { return false };
        loop {
            let Some((table, pte)) = self.walk(cpu.read(), offset, level) else { return false };
            let below = table.below_in_order(pte, offset).filter(|_| table.level == level);
            let Some(below) = below.filter(|below| below.desc().is_some_and(TableDesc::is_shared)) else {
                return false;
            };
            if let Ok(upper) = table.lock()
                && let Ok(lower) = below.lock()
            {
                if !lower.desc().is_shared() {
                    return false;
                }
                lower.desc().drop_sharer();
                upper.clear(E::Format::index(offset, level));
                break;
            }
            relax();
        }
        self.flush_after(cpu, After::Unshare);
        true
    }

    fn table_below<'g>(&'g self, cpu: &'g Cpu<'_, E::Platform>, at: Input<E>, level: Level) -> Option<Table<'g, E>> {
        let offset = at.to_offset(E::Format::INPUT_BITS)?;
        let (table, pte) = self.walk(cpu.read(), offset, level)?;
        table.below_in_order(pte, offset).filter(|_| table.level == level)
    }
}

impl<E: Env> PteMapLocked<'_, E> {
    /// A table that others refer to can't become a page.
    pub(crate) fn is_unshared(&self) -> Result<(), Changed> {
        if self.desc().is_shared() { Err(Changed) } else { Ok(()) }
    }

    /// An entry to this table is taken away, under its own table's lock: whether it was the last one.
    pub(crate) fn is_last_entry(&self) -> bool {
        if !kept(Rule::CountEntries) || !self.desc().is_shared() {
            return true;
        }
        self.desc().drop_sharer();
        false
    }
}
