//! Tables that several entries refer to: the shadows of many address spaces share the tables of the kernel's half.
//!
//! The descriptor counts the entries that refer to a table; the operation that clears the last one defers the table
//! ([`Tree::zap_tables`] clears one, and leaves the table to the others). A
//! shared table can be changed through any tree, but an operation flushes only the space of its own tree: the owner of
//! the trees must flush the others.

use crate::env::Env;
use crate::format::{Format, FormatExt};
use crate::level::{Address, Level};
use crate::map::{Changed, Input, PteMapLocked, Table};
use crate::rules::Rule;
use crate::tree::{NoMemory, Tree};
use core::fmt;
use model::kept;
use model::sync::relax;
use rcu::Cpu;

/// Why a table was not shared. The trees are as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShareError {
    /// There is no table to share, or the counter of its entries is at its maximum.
    NoTable,
    /// The entry that should refer to it is not none.
    Present,
    /// There is no frame for a table above it.
    NoMemory,
}

impl From<NoMemory> for ShareError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

impl fmt::Display for ShareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoTable => "there is no table to share",
            Self::Present => "the entry is not none",
            Self::NoMemory => "no frame for a table",
        })
    }
}

impl core::error::Error for ShareError {}

impl<E: Env> Tree<E> {
    /// Makes the entry of `level` for `to`, which must be none, refer to the table that `other`'s entry for `from`
    /// refers to. `other` may be this tree; the environments of both must have the same frames.
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
            // Lock order: the upper table first.
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

    fn table_below<'g>(&'g self, cpu: &'g Cpu<'_, E::Platform>, at: Input<E>, level: Level) -> Option<Table<'g, E>> {
        let offset = at.to_offset(E::Format::INPUT_BITS)?;
        let (table, pte) = self.walk(cpu.read(), offset, level)?;
        table.below_in_order(pte, offset)
    }
}

impl<E: Env> PteMapLocked<'_, E> {
    /// Fails for a shared table, which can't be collapsed: the other entries would still refer to it.
    pub(crate) fn is_unshared(&self) -> Result<(), Changed> {
        if self.desc().is_shared() { Err(Changed) } else { Ok(()) }
    }

    /// Counts that an entry to this table is cleared. The caller holds the lock of that entry's table. Whether it was
    /// the last one.
    pub(crate) fn is_last_entry(&self) -> bool {
        if !kept(Rule::CountEntries) || !self.desc().is_shared() {
            return true;
        }
        self.desc().drop_sharer();
        false
    }
}
