//! Pages that get another frame while CPUs use them, and software's own writes to pages.
//!
//! A page is copied when nobody writes it: its entry is frozen, then every CPU has flushed. The table's lock is held meanwhile,
//! because a frozen entry is its freezer's alone; who faults on it waits for that lock, outside of guest mode, so that the
//! flush waits for nobody who waits. Software writes under the lock as well ([`Tree::write`]): its writes are in the old frame
//! before the copy begins, or go to the new one.
//!
//! Software that reads by a translation from before may see the old frame until its quiescent state. So that frame is free
//! for other use after a grace period ([`Cpu::call_rcu`]), not at once.

use crate::entry::{Entry, Leaf, Pte, Rights};
use crate::env::Env;
use crate::format::{FormatExt, span};
use crate::huge::CollapseError;
use crate::level::{Address, Level};
use crate::map::{Input, PteMapLocked, Table};
use crate::range::Page;
use crate::rules::{Rule, kept};
use crate::skip::After;
use crate::sync::relax;
use crate::tree::{Translation, Tree};
use addr::{PageSize, Pfn};
use rcu::{Cpu, Guard};

/// Why a page was not replaced. The tree is as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplaceError {
    /// No page of that size is mapped there.
    NoPage,
    /// The new frame is not aligned to the page, or beyond the processor's reach.
    Invalid,
    /// Another CPU changed something meanwhile.
    Changed,
}

/// Why software may not write somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// Nothing is mapped there.
    NoPage,
    /// The page is read-only, and not for the dirty log's sake.
    ReadOnly,
}

/// As many entries as a table has at most.
const MAX_ENTRIES: usize = 512;

/// The entries of a table that is being collapsed.
struct Parts {
    ptes: [Pte; MAX_ENTRIES],
    /// The page that comes of them, but for its frame.
    whole: Leaf,
}

impl<E: Env> Tree<E> {
    /// Software writes to the page at `at`: runs `write` on what the address translates to, and notes a write as a processor
    /// would. The table is locked meanwhile, so neither a zap nor a copy nor a dirty log comes between the two.
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

    /// The table with the page at `offset`, locked, and the number of its entry. None if there is no page.
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

    /// Gives the page of `size` at `at` the frame `new`. `copy` is called when no CPU can write the page, nor reach it but by
    /// reads of software that began before: it copies the page's content there. Gives the page as it was at last; its
    /// frame is free for other use after a grace period.
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

    /// Makes one page of `size`, in frame `new`, of the table at `at` whose entries are all pages alike, wherever they are in
    /// memory: what Linux's khugepaged does. `copy` gets each of them with its index, when none can be written any more, to
    /// copy it to its place in `new`; walkers wait meanwhile. Then `page` gets each: its frame is free for other use after a
    /// grace period. The table is deferred. Where the dirty log has write-protected pages, it looks at the large page's dirty
    /// bit from then on, which says whether one was written.
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
        if !matches!(E::Format::decode(entry, level, self.caps), Entry::Leaf(_)) {
            return Err(CollapseError::NoSuchSize);
        }
        {
            let lower = below.lock()?;
            lower.is_unshared()?;
            let ad = lower.freeze(|index| parts.ptes[index])?;
            self.flush_after(cpu, After::Collapse);
            parts.leaves(below).for_each(|(index, leaf)| copy(index, leaf));
            // The lower lock keeps the table where it is, so this finds what was found above.
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

    /// The entries of `table`, if all are pages that can be parts of one.
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

/// The page without what the processor and the dirty log keep in it.
fn without_ad(leaf: Leaf) -> Leaf {
    let rights = Rights { write: leaf.may_write(), ..leaf.rights };
    Leaf { rights, accessed: false, dirty: false, logged: false, ..leaf }
}

/// The page after a write.
fn written(leaf: Leaf) -> Leaf {
    if !kept(Rule::NoteWrites) {
        return leaf;
    }
    let rights = Rights { write: true, ..leaf.rights };
    Leaf { rights, accessed: true, dirty: true, logged: false, ..leaf }
}
