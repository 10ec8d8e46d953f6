//! Operations on ranges: zap, protect, harvest, the dirty log.
//!
//! Each operation walks down without locks, takes the lock of one table at a time, and handles the pages of the range
//! in it. It flushes changes before it reports pages: a caller that gets a zapped page may reuse its frame.

use crate::entry::{Entry, Leaf, Pte, Rights};
use crate::env::Env;
use crate::fault_injection::After;
use crate::format::{FormatExt, span};
use crate::level::{Address, Level};
use crate::map::{Input, PteMapLocked, Table};
use crate::tree::{NoMemory, Tree};
use crate::unlink::Unlinked;
use addr::{PAGE_SIZE, PageSize};
use arrayvec::ArrayVec;
use core::fmt;
use core::ops::Range;
use model::sync::relax;
use rcu::{Cpu, Guard};

/// Why an operation on a range failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeError {
    /// There is no frame for a table that a split at an edge of the range needs. The tree is as before, unless another
    /// CPU collapsed the table at the edge again after this operation split it.
    NoMemory,
    /// The range is outside of the tree's, or its edges are not aligned to 4 KiB.
    Invalid,
}

impl From<NoMemory> for RangeError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoMemory => "no frame for a table",
            Self::Invalid => "the range is outside of the tree's or not aligned",
        })
    }
}

impl core::error::Error for RangeError {}

/// A page of a range that an operation reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page<A> {
    /// Its first address.
    pub at: A,
    /// Its size.
    pub size: PageSize,
    /// The last value of its entry.
    pub leaf: Leaf,
}

/// Pages whose entries were changed and tables that were unlinked, which wait for one flush: Linux's `mmu_gather`.
struct Gather<'c, E: Env> {
    tree: &'c Tree<E>,
    cpu: &'c Cpu<'c, E::Platform>,
    pages: ArrayVec<(u64, Level, Leaf), BATCH>,
    tables: Unlinked<'c, E>,
    /// The number of entries for tables that earlier gathers have cleared.
    unlinked: usize,
    /// Processors may hold stale translations of changed entries.
    stale: bool,
    after: After,
}

/// The pages in a gather. A larger number needs more stack, a smaller one more flushes and kicks.
const BATCH: usize = 128;

impl<'c, E: Env> Gather<'c, E> {
    fn new(tree: &'c Tree<E>, cpu: &'c Cpu<'c, E::Platform>, after: After) -> Self {
        Self { tree, cpu, pages: ArrayVec::new(), tables: Unlinked::new(tree, cpu), unlinked: 0, stale: false, after }
    }

    fn is_full(&self) -> bool {
        self.pages.is_full()
    }

    fn push(&mut self, at: u64, level: Level, leaf: Leaf) {
        self.pages.push((at, level, leaf));
    }

    /// Flushes if necessary, then reports the pages.
    fn finish(&mut self, page: &mut impl FnMut(Page<Input<E>>)) {
        let mut tables = core::mem::replace(&mut self.tables, Unlinked::new(self.tree, self.cpu));
        let stale = core::mem::take(&mut self.stale);
        if stale && self.tree.flushes(self.after) {
            tables.gather.changed();
        }
        self.unlinked += tables.entries;
        self.tree.finish_gather(self.cpu, tables.gather, (stale || tables.shared).then_some(self.after));
        for (at, level, leaf) in self.pages.drain(..) {
            if let Some(size) = level.page_size() {
                page(Page { at: Input::<E>::from_offset(at, E::Format::INPUT_BITS), size, leaf });
            }
        }
    }
}

/// How a walk over the range in one table ended.
enum End {
    Done,
    /// The table was unlinked. The walk continues at this offset from the table above.
    Gone(u64),
    /// A page crosses the edge of the range. The walk continues at this offset after the page is split.
    Across(u64),
    /// The gather is full. The walk continues at this offset after the flush.
    Full(u64),
}

/// The operation on one page, under its table's lock.
type Work<'w, E> = dyn FnMut(&PteMapLocked<'_, E>, usize, u64, &mut Gather<'_, E>) + 'w;

/// An operation on a range while it walks down.
struct Pass<'p, 'c, E: Env> {
    range: Range<u64>,
    edges: Edges,
    /// Whether it unlinks the tables that it leaves empty.
    unlinks: bool,
    gather: Gather<'c, E>,
    work: &'p mut Work<'p, E>,
}

/// How an operation treats a page that is only partly in the range.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Edges {
    Split,
    Whole,
}

impl Edges {
    const fn of(work: After) -> Self {
        match work {
            After::Harvest | After::DirtyLog => Self::Whole,
            _ => Self::Split,
        }
    }
}

impl<E: Env> Tree<E> {
    /// Unmaps all pages in the range; pages that cross an edge are split first. `page` gets each page after the flush,
    /// when no CPU can access it through this tree any more: its frame may be reused.
    ///
    /// # Errors
    /// [`RangeError`].
    pub fn zap(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        range: Range<Input<E>>,
        page: impl FnMut(Page<Input<E>>),
    ) -> Result<(), RangeError> {
        self.for_range(cpu, range, After::Zap, page, &mut zap_one)
    }

    /// Unmaps the page at `at`, of any size, and flushes, so that no CPU can access it through this tree any more.
    /// Whether there was a page.
    pub fn zap_page(&self, cpu: &Cpu<'_, E::Platform>, at: Input<E>) -> bool {
        let cleared = self.clear_page(cpu, at);
        if cleared {
            self.flush_after(cpu, After::Zap);
        }
        cleared
    }

    /// As [`zap_page`](Self::zap_page), without the flush: CPUs may access the page until the caller
    /// [flushes](Self::flush). For a caller that unmaps several pages.
    pub fn clear_page(&self, cpu: &Cpu<'_, E::Platform>, at: Input<E>) -> bool {
        let Some(offset) = at.to_offset(E::Format::INPUT_BITS) else { return false };
        let Some((locked, index)) = self.lock_leaf(cpu.read(), offset) else { return false };
        locked.clear(index);
        true
    }

    /// Unmaps all pages in the range as [`zap`](Self::zap) does. In the same pass it unlinks the tables in the range that have no
    /// entries, as soon as their last page has gone (Linux's `PT_RECLAIM`), under the flush of that page. Returns their number.
    ///
    /// # Errors
    /// [`RangeError`].
    pub fn unmap(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        range: Range<Input<E>>,
        page: impl FnMut(Page<Input<E>>),
    ) -> Result<usize, RangeError> {
        self.pass(cpu, range, After::Zap, true, page, &mut zap_one)
    }

    /// Gives all pages in the range these rights; pages that cross an edge are split first. When it returns, no CPU
    /// uses a translation with more rights. A page that the dirty log has write-protected becomes writable only at its
    /// next write fault.
    ///
    /// # Errors
    /// [`RangeError`].
    pub fn protect(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        range: Range<Input<E>>,
        rights: Rights,
    ) -> Result<(), RangeError> {
        let with_rights = |leaf: Leaf| {
            let logged = leaf.logged && rights.write;
            Leaf { rights: Rights { write: rights.write && !logged, ..rights }, logged, ..leaf }
        };
        self.for_range(cpu, range, After::Protect, |_| {}, &mut |table, index, _, gather| {
            if let Some(old) = table.change(index, with_rights) {
                gather.stale |= !rights.include(old.rights);
            }
        })
    }

    /// Clears the accessed and dirty bits in the range and reports every page that had one set, including pages that
    /// cross an edge. When `page` is called, the processor sets the dirty bit again at later writes. As after an [`age`](Self::age),
    /// which counts accesses alone and takes no lock, the accessed bit is set at the next walk. If the processor has no such bits,
    /// they stay set.
    ///
    /// # Errors
    /// [`RangeError::Invalid`].
    pub fn harvest(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        range: Range<Input<E>>,
        page: impl FnMut(Page<Input<E>>),
    ) -> Result<(), RangeError> {
        let clear = |leaf: Leaf| Leaf { accessed: false, dirty: false, ..leaf };
        self.for_range(cpu, range, After::Harvest, page, &mut |table, index, at, gather| {
            if let Some(old) = table.change(index, clear)
                && (old.accessed || old.dirty)
            {
                gather.stale |= old.dirty;
                gather.push(at, table.level(), old);
            }
        })
    }

    /// Write-protects all pages in the range, including pages that cross an edge, and reports every page that was
    /// written since the last call. When `page` is called, all these writes are in memory, and the next write faults;
    /// [`unprotect`](Self::unprotect) then makes the page writable and dirty.
    ///
    /// # Errors
    /// [`RangeError::Invalid`].
    pub fn dirty_log(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        range: Range<Input<E>>,
        page: impl FnMut(Page<Input<E>>),
    ) -> Result<(), RangeError> {
        let protect = |leaf: Leaf| Leaf {
            rights: Rights { write: false, ..leaf.rights },
            logged: leaf.may_write(),
            dirty: false,
            ..leaf
        };
        self.for_range(cpu, range, After::DirtyLog, page, &mut |table, index, at, gather| {
            if let Some(old) = table.change(index, protect) {
                gather.stale |= old.rights.write;
                if old.dirty {
                    gather.push(at, table.level(), old);
                }
            }
        })
    }

    /// Makes the page at `at` writable again, and dirty, if only the dirty log write-protects it. It works without
    /// locks by compare-and-exchange, and needs no flush. Whether the page is writable now.
    pub fn unprotect(&self, guard: Guard<'_>, at: Input<E>) -> bool {
        let Some(offset) = at.to_offset(E::Format::INPUT_BITS) else { return false };
        let Some((table, mut pte)) = self.walk(guard, offset, Level::PTE) else { return false };
        let index = E::Format::index(offset, table.level);
        while let Entry::Leaf(leaf) = table.decode(pte) {
            if !leaf.logged {
                return leaf.rights.write;
            }
            let rights = Rights { write: true, ..leaf.rights };
            let Some(new) = self.encode(&Leaf { rights, logged: false, dirty: true, ..leaf }, table.level) else {
                return false;
            };
            match table.cmpxchg(index, pte, new) {
                Ok(()) => return true,
                Err(now) => pte = now,
            }
        }
        false
    }

    /// The range as offsets.
    pub(crate) fn offsets(range: Range<Input<E>>) -> Result<Range<u64>, RangeError> {
        let bits = E::Format::INPUT_BITS;
        let start = range.start.to_offset(bits).ok_or(RangeError::Invalid)?;
        // The end may be the end of the whole space, which is no address in it.
        let end = match range.end.to_offset(bits) {
            Some(end) => end,
            None if Input::<E>::end(bits) == Some(range.end) => 1 << bits,
            None => return Err(RangeError::Invalid),
        };
        let aligned = (start | end) & (PAGE_SIZE - 1) == 0;
        if aligned && start <= end { Ok(start..end) } else { Err(RangeError::Invalid) }
    }

    fn for_range(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        range: Range<Input<E>>,
        after: After,
        page: impl FnMut(Page<Input<E>>),
        work: &mut Work<'_, E>,
    ) -> Result<(), RangeError> {
        self.pass(cpu, range, after, false, page, work).map(|_| ())
    }

    /// Does `work` on each page of the range, and `unlinks` the tables that it leaves empty. Returns the number of the latter.
    fn pass(
        &self,
        cpu: &Cpu<'_, E::Platform>,
        range: Range<Input<E>>,
        after: After,
        unlinks: bool,
        mut page: impl FnMut(Page<Input<E>>),
        work: &mut Work<'_, E>,
    ) -> Result<usize, RangeError> {
        let guard = cpu.read();
        let range = Self::offsets(range)?;
        let mut left = range.clone();
        let mut pass = Pass { range, edges: Edges::of(after), unlinks, gather: Gather::new(self, cpu, after), work };
        if pass.edges == Edges::Split {
            self.split_edges(guard, &left)?;
        }
        while let Some(root) = self.root_table(guard)
            && !left.is_empty()
        {
            let end = self.in_table(root, left.clone(), &mut pass);
            pass.gather.finish(&mut page);
            left.start = match end {
                End::Done => left.end,
                End::Gone(at) | End::Full(at) => at,
                End::Across(at) => {
                    left.start = at;
                    self.split_edges(guard, &left)?;
                    at
                }
            };
        }
        Ok(pass.gather.unlinked)
    }

    fn in_table(&self, table: Table<'_, E>, range: Range<u64>, pass: &mut Pass<'_, '_, E>) -> End {
        let mut at = range.start;
        while at < range.end {
            let pte = table.get(at);
            let next = next_entry::<E>(at, table.level).min(range.end);
            match table.decode(pte) {
                Entry::None => at = next,
                Entry::Table(_) => match self.below_in(table, pte, at..next, pass) {
                    End::Done => at = next,
                    End::Gone(back) => at = back,
                    end => return end,
                },
                Entry::Leaf(_) | Entry::Frozen | Entry::Bad => {
                    let Ok(locked) = table.lock() else {
                        relax();
                        return End::Gone(at);
                    };
                    match in_locked(&locked, at..range.end, pass) {
                        Ok(reached) => at = reached,
                        Err(end) => return end,
                    }
                }
            }
        }
        End::Done
    }

    fn below_in(&self, table: Table<'_, E>, pte: Pte, range: Range<u64>, pass: &mut Pass<'_, '_, E>) -> End {
        let Some(below) = table.below_in_order(pte, range.start) else { return End::Gone(range.start) };
        let end = self.in_table(below, range.clone(), pass);
        if pass.unlinks && matches!(end, End::Done) {
            self.unlink_if_empty(table, below, range.start, &pass.range, &mut pass.gather.tables);
        }
        end
    }
}

fn zap_one<E: Env>(table: &PteMapLocked<'_, E>, index: usize, at: u64, gather: &mut Gather<'_, E>) {
    if let Entry::Leaf(leaf) = table.table().decode(table.clear(index)) {
        gather.stale = true;
        gather.push(at, table.level(), leaf);
    }
}

/// The offset of the entry after the entry of `at`.
pub(crate) fn next_entry<E: Env>(at: u64, level: Level) -> u64 {
    let span = span::<E::Format>(level);
    (at & !(span - 1)) + span
}

/// Handles the pages of the range in the locked table, up to the first entry that refers to a table. Returns the offset
/// that it reached.
fn in_locked<E: Env>(locked: &PteMapLocked<'_, E>, range: Range<u64>, pass: &mut Pass<'_, '_, E>) -> Result<u64, End> {
    let table = locked.table();
    let mut at = range.start;
    let end = range.end.min(next_entry::<E>(at, table.level.above()));
    while at < end {
        let start = at & !(span::<E::Format>(table.level) - 1);
        let next = next_entry::<E>(at, table.level);
        let index = E::Format::index(at, table.level);
        match table.decode(table.at(index)) {
            Entry::None => {}
            Entry::Leaf(_) if pass.edges == Edges::Split && (start < range.start || range.end < next) => {
                return Err(End::Across(at));
            }
            Entry::Leaf(_) if pass.gather.is_full() => return Err(End::Full(at)),
            Entry::Leaf(_) => (pass.work)(locked, index, start, &mut pass.gather),
            Entry::Table(_) => return Ok(at),
            Entry::Bad | Entry::Frozen => locked.clear_bad(at),
        }
        at = next;
    }
    Ok(at.min(end))
}
