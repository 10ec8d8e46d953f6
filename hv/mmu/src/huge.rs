//! Collapse of tables to large pages, split of large pages to tables, and removal and moves of tables.

use crate::entry::{Entry, Leaf, Pte};
use crate::env::Env;
use crate::fault_injection::After;
use crate::format::{Format, FormatExt, span};
use crate::level::{Address, Level};
use crate::map::{Changed, Input, PteMapLocked, Table};
use crate::rules::Rule;
use crate::spare::Spare;
use crate::tree::{NoMemory, Tree};
use addr::{PAGE_SHIFT, PageSize, Pfn};
use core::cmp::Ordering::{Equal, Greater};
use core::fmt;
use core::ops::Range;
use model::kept;
use rcu::{Cpu, Guard};

/// Why a page was not split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitError {
    /// There is no frame for a table.
    NoMemory,
    /// No large page is mapped there.
    NotLarge,
}

impl From<NoMemory> for SplitError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

/// Why a table was not collapsed. The tree is as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CollapseError {
    /// There is no table.
    NoTable,
    /// The pages under the table can't form one page: some are missing, not contiguous, or differ in rights.
    NotUniform,
    /// The format or the processor has no such leaf.
    NoSuchSize,
    /// Another CPU changed something meanwhile.
    Changed,
}

impl From<Changed> for CollapseError {
    fn from(_: Changed) -> Self {
        Self::Changed
    }
}

impl fmt::Display for SplitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoMemory => "no frame for a table",
            Self::NotLarge => "no large page is mapped there",
        })
    }
}

impl core::error::Error for SplitError {}

impl fmt::Display for CollapseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoTable => "there is no table",
            Self::NotUniform => "the pages can't form one page",
            Self::NoSuchSize => "the format or the processor has no such page size",
            Self::Changed => "another CPU changed the tables",
        })
    }
}

impl core::error::Error for CollapseError {}

impl<E: Env> Tree<E> {
    /// Replaces the large page at `at` by a table of pages of the next level. Every walker finds either the page or the
    /// filled table, which translate alike, so no flush is necessary.
    ///
    /// # Errors
    /// [`SplitError`].
    pub fn split(&self, guard: Guard<'_>, at: Input<E>) -> Result<(), SplitError> {
        let offset = at.to_offset(E::Format::INPUT_BITS).ok_or(SplitError::NotLarge)?;
        let mut spare = self.top_up(1)?;
        loop {
            let (table, pte) = self.walk(guard, offset, Level::PTE).ok_or(SplitError::NotLarge)?;
            match table.decode(pte) {
                Entry::Leaf(_) if table.level > Level::PTE => {
                    if self.split_leaf(table, offset, &mut spare).is_ok() {
                        return Ok(());
                    }
                }
                Entry::Frozen => self.wait_or_clear_bad(table, pte, offset),
                _ => return Err(SplitError::NotLarge),
            }
        }
    }

    /// Splits pages until none crosses an edge of the range.
    pub(crate) fn split_edges(&self, guard: Guard<'_>, range: &Range<u64>) -> Result<(), NoMemory> {
        loop {
            let missing: usize = [range.start, range.end].iter().map(|&edge| self.levels_across(guard, edge)).sum();
            if missing == 0 {
                return Ok(());
            }
            let mut spare = self.top_up(missing)?;
            for edge in [range.start, range.end] {
                for _ in 0..self.levels_across(guard, edge) {
                    if let Some((table, _)) = self.walk(guard, edge, Level::PTE) {
                        // If another CPU changed the entry, the next iteration of the outer loop handles that.
                        let _ = self.split_leaf(table, edge, &mut spare);
                    }
                }
            }
        }
    }

    /// The number of splits until no page crosses `edge`.
    fn levels_across(&self, guard: Guard<'_>, edge: u64) -> usize {
        let Some((table, pte)) = self.walk(guard, edge, Level::PTE) else { return 0 };
        let Entry::Leaf(_) = table.decode(pte) else { return 0 };
        let across = |level: &u8| edge & (span::<E::Format>(Level::from_number(*level)) - 1) != 0;
        (1..=table.level.number()).filter(across).count()
    }

    fn split_leaf(&self, table: Table<'_, E>, offset: u64, spare: &mut Spare<'_, E>) -> Result<(), Changed> {
        let locked = table.lock()?;
        let index = E::Format::index(offset, table.level);
        let below = table.level.below().ok_or(Changed)?;
        let Entry::Leaf(_) = table.decode(table.at(index)) else { return Err(Changed) };
        let pfn = spare.frame(0).ok_or(Changed)?;
        let entry = E::Format::table(pfn, table.level);
        if !kept(Rule::FillFirst) {
            self.start_table(pfn, below, E::Format::entries(below) as u16, |_| Pte::NONE);
            spare.used(1);
            let old = locked.replace(index, entry);
            return self.fill_with_parts(table, old, pfn, below).ok_or(Changed);
        }
        // The processor may set the dirty bit between the load of the leaf and the exchange. A plain store would lose
        // it, so the exchange fails and the table is filled again.
        loop {
            let pte = table.at(index);
            self.fill_with_parts(table, pte, pfn, below).ok_or(Changed)?;
            if table.cmpxchg(index, pte, entry).is_ok() {
                spare.used(1);
                return Ok(());
            }
        }
    }

    /// Fills frame `pfn` as a table of the parts of the page `pte`, each with the accessed and dirty bits of the page.
    fn fill_with_parts(&self, table: Table<'_, E>, pte: Pte, pfn: Pfn, level: Level) -> Option<()> {
        let Entry::Leaf(whole) = table.decode(pte) else { return None };
        let entries = E::Format::entries(level);
        self.start_table(pfn, level, entries as u16, |index| E::Format::leaf(&part::<E>(whole, index, level), level))
    }

    /// Replaces the table at `at` by one page of `size`, if its entries are the parts of such a page. Walkers find
    /// first the table, then frozen entries (which cause a fault that is retried), then the page. The table is
    /// deferred.
    ///
    /// # Errors
    /// [`CollapseError`].
    pub fn collapse(&self, cpu: &Cpu<'_, E::Platform>, at: Input<E>, size: PageSize) -> Result<(), CollapseError> {
        let guard = cpu.read();
        let level = Level::of(size);
        let offset = at.to_offset(E::Format::INPUT_BITS).ok_or(CollapseError::NoTable)?;
        let (table, pte) = self.walk(guard, offset, level).ok_or(CollapseError::NoTable)?;
        let below = table.below_in_order(pte, offset).filter(|_| table.level == level).ok_or(CollapseError::NoTable)?;
        let whole = self.uniform(below).ok_or(CollapseError::NotUniform)?;
        let entry = self.encode(&whole, level).ok_or(CollapseError::NoSuchSize)?;
        {
            let upper = table.lock()?;
            let lower = below.lock()?;
            lower.is_unshared()?;
            let ad = lower.freeze(|index| self.part_entry(whole, index, below.level))?;
            let ad = if kept(Rule::KeepAccessedDirty) { ad } else { Pte::NONE };
            upper.replace(E::Format::index(offset, level), E::Format::with_ad(entry, ad));
            lower.desc().set_dead();
        }
        self.defer_table(cpu, below.pfn);
        Ok(())
    }

    fn part_entry(&self, whole: Leaf, index: usize, level: Level) -> Pte {
        self.encode(&part::<E>(whole, index, level), level).unwrap_or(Pte::NONE)
    }

    /// The page whose parts are the table's entries, if there is one. Accessed and dirty bits are ignored.
    fn uniform(&self, table: Table<'_, E>) -> Option<Leaf> {
        let Entry::Leaf(first) = table.decode(table.at(0)) else { return None };
        let whole = Leaf { accessed: false, dirty: false, ..first };
        let is_part = |index| E::Format::same_but_ad(table.at(index), self.part_entry(whole, index, table.level));
        (0..E::Format::entries(table.level)).all(is_part).then_some(whole)
    }

    /// Moves the table at `from` with its pages to `to`, where the entry must be none. Both entries are of `level`;
    /// Linux's `move_normal_pmd`.
    ///
    /// # Errors
    /// [`Changed`] if there is no table at `from`, if the entry for `to` is not none, or if the table with that entry
    /// does not exist.
    pub fn move_table(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        from: Input<E>,
        to: Input<E>,
        level: Level,
    ) -> Result<(), Changed> {
        let find = |at: Input<E>| {
            let offset = at.to_offset(E::Format::INPUT_BITS)?;
            let (table, pte) = self.walk(cpu.read(), offset, level)?;
            (table.level == level && table.is_in_order()).then_some((table, offset, pte))
        };
        let (source, from, pte) = find(from).ok_or(Changed)?;
        let (target, to, _) = find(to).ok_or(Changed)?;
        let below = source.below_in_order(pte, from).ok_or(Changed)?;
        {
            let (upper, other) = lock_two(source, target)?;
            let _lower = if kept(Rule::LockChild) { Some(below.lock()?) } else { None };
            let target = other.as_ref().unwrap_or(&upper);
            let (from, to) = (E::Format::index(from, level), E::Format::index(to, level));
            if !target.table().at(to).is_none() {
                return Err(Changed);
            }
            upper.clear(from);
            target.set(to, pte);
        }
        self.flush_after(cpu, After::Move);
        Ok(())
    }
}

/// Locks two tables of one level, in the order of their frames. Returns the lock of `a`, and that of `b` if it is
/// another table.
fn lock_two<'g, E: Env>(
    a: Table<'g, E>,
    b: Table<'g, E>,
) -> Result<(PteMapLocked<'g, E>, Option<PteMapLocked<'g, E>>), Changed> {
    match a.pfn.cmp(&b.pfn) {
        Equal => Ok((a.lock()?, None)),
        Greater if kept(Rule::LockOrder) => {
            let second = b.lock()?;
            Ok((a.lock()?, Some(second)))
        }
        _ => {
            let first = a.lock()?;
            Ok((first, Some(b.lock()?)))
        }
    }
}

/// Part `index` of the page `whole`, as a page of `level`.
fn part<E: Env>(whole: Leaf, index: usize, level: Level) -> Leaf {
    let frames = span::<E::Format>(level) >> PAGE_SHIFT;
    Leaf { pfn: Pfn::new(whole.pfn.raw() + index as u64 * frames), ..whole }
}
