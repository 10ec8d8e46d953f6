//! Replacement of a page's frame while CPUs use the page, and software's own writes to pages.
//!
//! A write during the copy of a page would be lost. So the page's entry is frozen and every CPU has flushed before the
//! copy begins. The CPU that copies holds the table's lock until it has set the new entry. A CPU that faults on the
//! frozen entry waits for that lock outside of guest mode, so the flush does not wait for it, and there is no deadlock.
//! Software writes under the lock too ([`Tree::write`]): its writes go to the old frame before the copy, or to the new
//! frame after it.
//!
//! Software that reads by an older translation may access the old frame until its next quiescent state. So the old
//! frame must not be reused before a grace period has ended ([`Cpu::call_rcu`]).

use crate::entry::{Entry, Leaf, Pte, Rights};
use crate::env::Env;
use crate::fault_injection::After;
use crate::format::{FormatExt, span};
use crate::huge::CollapseError;
use crate::level::{Address, Level};
use crate::map::{Input, PteMapLocked, Table};
use crate::range::Page;
use crate::rules::Rule;
use crate::tree::{Translation, Tree};
use addr::{PageSize, Pfn};
use core::fmt;
use model::kept;
use model::sync::relax;
use rcu::{Cpu, Guard};

/// Why a page was not replaced. The tree is as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplaceError {
    /// No page of that size is mapped there.
    NoPage,
    /// The new frame is not aligned to the page, or above the physical addresses of the processor.
    Invalid,
    /// Another CPU changed something meanwhile.
    Changed,
}

/// Why software can't write to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// Nothing is mapped there.
    NoPage,
    /// The page is read-only, and not just write-protected by the dirty log.
    ReadOnly,
}

impl fmt::Display for ReplaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPage => "no page of that size is mapped there",
            Self::Invalid => "the new frame is not valid for the page",
            Self::Changed => "another CPU changed the tables",
        })
    }
}

impl core::error::Error for ReplaceError {}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPage => "nothing is mapped there",
            Self::ReadOnly => "the page is read-only",
        })
    }
}

impl core::error::Error for WriteError {}

/// The most entries of a table.
const MAX_ENTRIES: usize = 512;

/// The entries of a table that is being collapsed.
struct Parts {
    ptes: [Pte; MAX_ENTRIES],
    /// The page that results from them, except for its frame.
    whole: Leaf,
}

impl<E: Env> Tree<E> {
    /// Writes to the page at `at` by software: runs `write` with the translation and then sets the accessed and dirty
    /// bits as a processor does. It holds the table's lock, so that no zap, copy or dirty log happens between the two.
    ///
    /// # Errors
    /// [`WriteError`]; `write` did not run.
    pub fn write<R>(
        &self,
        guard: Guard<'_>,
        at: Input<E>,
        write: impl FnOnce(Translation) -> R,
    ) -> Result<R, WriteError> {
        let offset = at.to_offset(E::Format::INPUT_BITS).ok_or(WriteError::NoPage)?;
        let (locked, index) = self.lock_leaf(guard, offset).ok_or(WriteError::NoPage)?;
        let found = self.translation(locked.level(), locked.table().at(index), offset).ok_or(WriteError::NoPage)?;
        if !found.leaf.may_write() {
            return Err(WriteError::ReadOnly);
        }
        let result = write(found);
        locked.change(index, written);
        Ok(result)
    }

    /// Locks the table with the page at `offset`; also returns the index of the entry. None if no page is mapped there.
    #[inline]
    pub(crate) fn lock_leaf<'g>(&'g self, guard: Guard<'g>, offset: u64) -> Option<(PteMapLocked<'g, E>, usize)> {
        loop {
            let (table, pte) = self.walk(guard, offset, Level::PTE)?;
            if pte.is_none() {
                return None;
            }
            let Ok(locked) = table.lock() else {
                relax();
                continue;
            };
            let index = E::Format::index(offset, table.level);
            if matches!(table.decode(table.at(index)), Entry::Leaf(_)) {
                return Some((locked, index));
            }
            locked.clear_bad(offset);
        }
    }

    /// Replaces the frame of the page of `size` at `at` by `new`. It calls `copy`, which copies the page's content,
    /// when no CPU can write the page any more; only software that translated before can still read it. Returns the
    /// last value of the old page, whose frame may be reused after a grace period.
    ///
    /// # Errors
    /// [`ReplaceError`]; `copy` was not called.
    pub fn replace(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        at: Input<E>,
        size: PageSize,
        new: Pfn,
        copy: impl FnOnce(Leaf),
    ) -> Result<Leaf, ReplaceError> {
        let level = Level::of(size);
        let offset = at.to_offset(E::Format::INPUT_BITS).ok_or(ReplaceError::NoPage)?;
        let (table, _) = self.walk(cpu.read(), offset, level).ok_or(ReplaceError::NoPage)?;
        if table.level != level {
            return Err(ReplaceError::NoPage);
        }
        let locked = table.lock().map_err(|_| ReplaceError::Changed)?;
        let index = E::Format::index(offset, level);
        let pte = table.at(index);
        let Entry::Leaf(old) = table.decode(pte) else { return Err(ReplaceError::NoPage) };
        let entry = self.encode(&Leaf { pfn: new, ..old }, level).ok_or(ReplaceError::Invalid)?;
        let last = locked.freeze_one(index, pte).ok_or(ReplaceError::Changed)?;
        self.flush_after(cpu, After::Replace);
        copy(old);
        locked.replace(index, E::Format::with_ad(entry, last));
        match table.decode(last) {
            Entry::Leaf(last) => Ok(last),
            _ => Ok(old),
        }
    }

    /// Replaces the table at `at` by one page of `size` in frame `new`, if all entries are pages with the same rights,
    /// as Linux's khugepaged does; their frames need not be contiguous. When none of the pages can be written any more,
    /// `copy` gets each with its index and copies it to its part of `new`; CPUs that fault meanwhile wait. Then `page`
    /// gets each old page, whose frame may be reused after a grace period. The table is deferred. The write protection
    /// of the dirty log is lifted; the large page is dirty if one of the pages was, so the log reports it.
    ///
    /// # Errors
    /// [`CollapseError`]; neither was called.
    pub fn collapse_into(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        at: Input<E>,
        size: PageSize,
        new: Pfn,
        mut copy: impl FnMut(usize, Leaf),
        mut page: impl FnMut(Page<Input<E>>),
    ) -> Result<(), CollapseError> {
        let level = Level::of(size);
        let offset = at.to_offset(E::Format::INPUT_BITS).ok_or(CollapseError::NoTable)?;
        let (upper, pte) = self.walk(cpu.read(), offset, level).ok_or(CollapseError::NoTable)?;
        let below = upper.below_in_order(pte, offset).filter(|_| upper.level == level).ok_or(CollapseError::NoTable)?;
        let parts = self.parts(below).ok_or(CollapseError::NotUniform)?;
        let entry = self.encode(&Leaf { pfn: new, ..parts.whole }, level).ok_or(CollapseError::NoSuchSize)?;
        {
            let lower = below.lock()?;
            lower.is_unshared()?;
            let ad = lower.freeze(|index| parts.ptes[index])?;
            self.flush_after(cpu, After::Collapse);
            parts.leaves(below).for_each(|(index, leaf)| copy(index, leaf));
            // The table can't be unlinked or moved while its lock is held, so the entry above still refers to it.
            let index = E::Format::index(offset, level);
            if upper.cmpxchg(index, pte, E::Format::with_ad(entry, ad)).is_err() {
                lower.thaw_all(|index| parts.ptes[index]);
                return Err(CollapseError::Changed);
            }
            lower.desc().set_dead();
        }
        let start = offset & !(span::<E::Format>(level) - 1);
        for (index, leaf) in parts.leaves(below) {
            let at =
                Input::<E>::from_offset(start + index as u64 * span::<E::Format>(below.level), E::Format::INPUT_BITS);
            page(Page { at, size: below.level.page_size().unwrap_or(PageSize::Size4K), leaf });
        }
        self.defer_table(cpu, below.pfn);
        Ok(())
    }

    /// The entries of `table`, if all are pages with the same rights.
    fn parts(&self, table: Table<'_, E>) -> Option<Parts> {
        let Entry::Leaf(first) = table.decode(table.at(0)) else { return None };
        let common = without_ad(first);
        let whole = Leaf { accessed: false, dirty: false, ..common };
        let mut parts = Parts { ptes: [Pte::NONE; MAX_ENTRIES], whole };
        for (index, place) in parts.ptes[..E::Format::entries(table.level)].iter_mut().enumerate() {
            let pte = table.at(index);
            let Entry::Leaf(leaf) = table.decode(pte) else { return None };
            if (Leaf { pfn: common.pfn, ..without_ad(leaf) }) != common {
                return None;
            }
            *place = pte;
        }
        Some(parts)
    }
}

impl Parts {
    /// The pages, with their indices in `table`.
    fn leaves<E: Env>(&self, table: Table<'_, E>) -> impl Iterator<Item = (usize, Leaf)> {
        let leaf = move |(index, pte): (usize, &Pte)| match table.decode(*pte) {
            Entry::Leaf(leaf) => Some((index, leaf)),
            _ => None,
        };
        self.ptes[..E::Format::entries(table.level)].iter().enumerate().filter_map(leaf)
    }
}

/// The page without its accessed and dirty bits, and without the dirty log's write protection.
fn without_ad(leaf: Leaf) -> Leaf {
    let rights = Rights { write: leaf.may_write(), ..leaf.rights };
    Leaf { rights, accessed: false, dirty: false, logged: false, ..leaf }
}

/// The page after a write.
fn written(leaf: Leaf) -> Leaf {
    if !kept(Rule::MarkDirty) {
        return leaf;
    }
    let rights = Rights { write: true, ..leaf.rights };
    Leaf { rights, accessed: true, dirty: true, logged: false, ..leaf }
}
