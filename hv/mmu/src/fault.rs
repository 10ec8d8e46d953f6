//! Page faults and mapping: how pages get into the tree.

use crate::entry::{Entry, Leaf, Pte};
use crate::env::Env;
use crate::format::{Format, FormatExt, span};
use crate::level::{Address, Level};
use crate::map::{Changed, Input, Table};
use crate::rules::Rule;
use crate::spare::Spare;
use crate::tree::{NoMemory, Translation, Tree};
use addr::PageSize;
use core::fmt;
use core::ops::Range;
use model::kept;
use model::sync::relax;
use rcu::Guard;

/// The result of a walk for a fault.
pub enum Fault<'g, E: Env> {
    /// A page is mapped: another CPU handled the same fault, or the access needs a right that the page does not give.
    Present(Translation),
    /// Nothing is mapped, and there is room for a page.
    Room(Room<'g, E>),
}

/// The address is outside of the tree's range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRange;

/// Why a page was not mapped. The tree is as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// There is no frame for a table.
    NoMemory,
    /// Another CPU changed the tree since the walk: the caller walks again.
    Raced,
    /// A page is mapped already.
    Present,
    /// The leaf is not valid: its frame is not aligned to the page or above the physical addresses of the processor, or
    /// the address is outside of the tree's range.
    Invalid,
}

impl From<NoMemory> for MapError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the address is outside of the tree's range")
    }
}

impl core::error::Error for OutOfRange {}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoMemory => "no frame for a table",
            Self::Raced => "another CPU changed the tree",
            Self::Present => "a page is mapped already",
            Self::Invalid => "the frame or the address is not valid for a page",
        })
    }
}

impl core::error::Error for MapError {}

/// Room for a page: an entry that is none, and the size of the page.
pub struct Room<'g, E: Env> {
    table: Table<'g, E>,
    offset: u64,
    level: Level,
}

impl<E: Env> Tree<E> {
    /// Walks to `at` without locks. Returns the page there, or the room for a page of at most `want`.
    ///
    /// # Errors
    /// [`OutOfRange`].
    #[inline(always)]
    pub fn fault<'g>(&'g self, guard: Guard<'g>, at: Input<E>, want: PageSize) -> Result<Fault<'g, E>, OutOfRange> {
        let offset = at.to_offset(E::Format::INPUT_BITS).ok_or(OutOfRange)?;
        loop {
            let (table, pte) = self.walk(guard, offset, Level::PTE).ok_or(OutOfRange)?;
            if pte.is_none() {
                let level = Level::of(want).min(Level::of(self.caps.largest())).min(table.level);
                return Ok(Fault::Room(Room { table, offset, level }));
            }
            if let Some(found) = self.translation(table.level, pte, offset) {
                return Ok(Fault::Present(found));
            }
            self.wait_or_clear_bad(table, pte, offset);
        }
    }

    /// Handles an entry that a walk can't use, before it walks again: waits for the lock of a frozen entry's table,
    /// which its freezer holds, and clears a bad entry.
    #[cold]
    pub(crate) fn wait_or_clear_bad(&self, table: Table<'_, E>, pte: Pte, offset: u64) {
        match table.decode(pte) {
            Entry::Frozen => match table.lock() {
                Ok(locked) => locked.clear_bad(offset),
                Err(Changed) => relax(),
            },
            _ => table.clear_bad(offset),
        }
    }

    /// Maps `leaf` at `at`, by one page. Its size is `want` if both addresses are aligned to that and no table is in
    /// the way, else the next smaller size that fits. Returns the size; the caller continues after that page.
    ///
    /// # Errors
    /// [`MapError`], except `Raced`.
    pub fn map(&self, guard: Guard<'_>, at: Input<E>, leaf: Leaf, want: PageSize) -> Result<PageSize, MapError> {
        loop {
            let room = match self.fault(guard, at, want).map_err(|_| MapError::Invalid)? {
                Fault::Present(_) => return Err(MapError::Present),
                Fault::Room(room) => room.aligned_to(leaf),
            };
            let size = room.size();
            match room.install(leaf) {
                Err(MapError::Raced) => relax(),
                result => return result.map(|()| size),
            }
        }
    }
}

impl<E: Env> Room<'_, E> {
    /// The size of the page that [`install`](Self::install) maps.
    pub fn size(&self) -> PageSize {
        self.level.page_size().unwrap_or(PageSize::Size4K)
    }

    /// The first address of that page.
    pub fn start(&self) -> Input<E> {
        let start = self.offset & !(span::<E::Format>(self.level) - 1);
        Input::<E>::from_offset(start, E::Format::INPUT_BITS)
    }

    /// Whether the table for a page of that size exists.
    pub fn is_in_table(&self) -> bool {
        self.level == self.table.level
    }

    /// Room for a page of at most `size`.
    #[must_use]
    pub fn at_most(self, size: PageSize) -> Self {
        Self { level: self.level.min(Level::of(size)), ..self }
    }

    /// The largest room that begins at the requested address and whose size `leaf`'s frame is aligned to.
    fn aligned_to(mut self, leaf: Leaf) -> Self {
        let both = self.offset | leaf.pfn.start().raw();
        while let Some(below) = self.level.below()
            && both & (span::<E::Format>(self.level) - 1) != 0
        {
            self.level = below;
        }
        self
    }

    /// Maps the page. If the tables exist, this locks the table, compares its pmd, stores the entry and unlocks.
    ///
    /// # Errors
    /// [`MapError`]; the caller keeps the frame.
    #[inline]
    pub fn install(self, leaf: Leaf) -> Result<(), MapError> {
        let pte = self.table.tree.encode(&leaf, self.level).ok_or(MapError::Invalid)?;
        if self.is_in_table() {
            return self.publish(pte);
        }
        self.install_with_tables(pte)
    }

    #[inline]
    fn publish(&self, pte: Pte) -> Result<(), MapError> {
        let locked = self.table.lock().map_err(|_| MapError::Raced)?;
        let index = E::Format::index(self.offset, self.table.level);
        if kept(Rule::RecheckEntry) && !self.table.at(index).is_none() {
            return Err(MapError::Raced);
        }
        locked.set(index, pte);
        Ok(())
    }

    /// Builds the missing tables with the page in them, then publishes them by one store.
    #[cold]
    fn install_with_tables(&self, leaf: Pte) -> Result<(), MapError> {
        let missing = self.table.level.number() - self.level.number();
        let tree = self.table.tree;
        let mut spare = tree.top_up(usize::from(missing))?;
        let entry = tree.chain(leaf, self.level..self.table.level, self.offset, &spare).ok_or(MapError::NoMemory)?;
        self.publish(entry)?;
        spare.used(usize::from(missing));
        Ok(())
    }
}

impl<E: Env> Tree<E> {
    /// Builds a chain of tables that no other CPU can see yet: one table of each of `levels`, the lowest with the entry
    /// `pte` for `offset`. Returns the entry for the uppermost table.
    pub(crate) fn chain(&self, mut pte: Pte, levels: Range<Level>, offset: u64, spare: &Spare<'_, E>) -> Option<Pte> {
        for (n, number) in (levels.start.number()..levels.end.number()).enumerate() {
            let level = Level::from_number(number);
            let table = spare.frame(n)?;
            let index = E::Format::index(offset, level);
            self.start_table(table, level, 1, |i| if i == index { pte } else { Pte::NONE })?;
            pte = E::Format::table(table, level.above());
        }
        Some(pte)
    }
}
