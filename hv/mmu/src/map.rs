//! Maps of tables: Linux's `pte_offset_map` family, the same for every level.
//!
//! ```text
//! EntryRef ── pte_offset_map ────────────> PteMap        reads
//!      ├─ pte_offset_map_ro_nolock ──> PteMapRo      reads; lock() ─> PteReadLock, reads that hold still
//!      ├─ pte_offset_map_rw_nolock ──> PteMapRw      reads; lock() ─> PteLock ─ pmd_same() ─> PteMapLocked, writes
//!      └─ pte_offset_map_lock ───────────────────────────────────────────────────────────────> PteMapLocked
//! ```
//!
//! A map borrows the RCU guard that it was made under. If its table is unlinked meanwhile, the table is not reused
//! before the guard ends; all its entries are frozen, unless [`Tree::zap_tables`] has unlinked it. Dropping a map is
//! `pte_unmap`. A lock borrows its map, so it is released first.

use crate::Tree;
use crate::entry::{Entry, Leaf, Pte};
use crate::env::{BadEntry, Env, TableDesc};
use crate::format::{Format, FormatExt, span, table_frame};
use crate::level::{Address, Level};
use crate::rules::Rule;
use addr::Pfn;
use core::fmt;
use core::ops::Deref;
use model::kept;
use model::sync::{AtomicU64, Ordering};
use rcu::Guard;

pub(crate) type Input<E> = <<E as Env>::Format as Format>::Input;
pub(crate) type TableOf<E> = <<E as Env>::Format as Format>::Table;

/// Why there is no table to map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoTable {
    /// Nothing is mapped there.
    None,
    /// A page is mapped there.
    Leaf(Leaf),
    /// The entry is being changed, or its table was unlinked: the caller walks again from the root.
    Frozen,
    /// The entry was bad. It was reported and cleared.
    Bad,
}

/// Another CPU changed the tables between the walk and the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed;

impl fmt::Display for NoTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "nothing is mapped there",
            Self::Leaf(_) => "a page is mapped there",
            Self::Frozen => "the entry is being changed or its table was unlinked",
            Self::Bad => "the entry was bad",
        })
    }
}

impl core::error::Error for NoTable {}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another CPU changed the tables")
    }
}

impl core::error::Error for Changed {}

/// A table that a walk found, with the entry that referred to it.
pub(crate) struct Table<'g, E: Env> {
    pub(crate) tree: &'g Tree<E>,
    _guard: Guard<'g>,
    pub(crate) pfn: Pfn,
    entries: &'g TableOf<E>,
    pub(crate) level: Level,
    /// [`Caps::address_mask`](crate::Caps), kept here so that a walk does not load it again at each level.
    address: u64,
    /// The entry that referred to the table, and its value then. None for the root.
    parent: Option<(&'g AtomicU64, Pte)>,
}

impl<E: Env> Clone for Table<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E: Env> Copy for Table<'_, E> {}

impl<'g, E: Env> Table<'g, E> {
    #[inline]
    pub(crate) fn root(tree: &'g Tree<E>, guard: Guard<'g>, pfn: Pfn) -> Option<Self> {
        let entries = tree.env.table(pfn)?;
        Some(Self {
            tree,
            _guard: guard,
            pfn,
            entries,
            level: E::Format::TOP,
            address: tree.caps.address_mask(),
            parent: None,
        })
    }

    #[inline]
    pub(crate) fn entry(&self, index: usize) -> &'g AtomicU64 {
        // The mask tells the compiler that the index is in bounds.
        &self.entries.as_ref()[index & ((1 << E::Format::INDEX_BITS) - 1)]
    }

    /// One load of the entry for `offset`.
    #[inline]
    pub(crate) fn get(&self, offset: u64) -> Pte {
        self.at(E::Format::index(offset, self.level))
    }

    #[inline]
    pub(crate) fn at(&self, index: usize) -> Pte {
        Pte::new(self.entry(index).load(Ordering::Acquire))
    }

    /// The table that `pte`, read at `offset`, refers to.
    #[inline]
    pub(crate) fn below(&self, pte: Pte, offset: u64) -> Option<Self> {
        if kept(Rule::OneRead) && !E::Format::is_table(pte, self.level, self.address) {
            return None;
        }
        let level = self.level.below()?;
        let pfn = table_frame(pte, self.address);
        let entries = self.tree.env.table(pfn)?;
        let parent = Some((self.entry(E::Format::index(offset, self.level)), pte));
        Some(Self { entries, pfn, level, parent, ..*self })
    }

    /// As [`below`](Self::below), for callers that may take the locks of both tables. None if the descriptor of either
    /// table has another level: corrupted entries could otherwise make two CPUs take two locks in opposite order.
    pub(crate) fn below_in_order(&self, pte: Pte, offset: u64) -> Option<Self> {
        self.below(pte, offset).filter(|table| self.is_in_order() && table.is_in_order())
    }

    /// Whether the table's descriptor has the level at which the walk found the table.
    pub(crate) fn is_in_order(&self) -> bool {
        self.desc().is_some_and(|desc| desc.level() == self.level)
    }

    /// Replaces `old` by `new`, or returns the entry that is there instead of `old`.
    pub(crate) fn cmpxchg(&self, index: usize, old: Pte, new: Pte) -> Result<(), Pte> {
        if !kept(Rule::AtomicChange) {
            self.entry(index).store(new.raw(), Ordering::Release);
            return Ok(());
        }
        // Release, as `new` may refer to a table. Nothing is read through the entry that is there instead.
        match self.entry(index).compare_exchange(old.raw(), new.raw(), Ordering::Release, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            Err(now) => Err(Pte::new(now)),
        }
    }

    pub(crate) fn decode(&self, pte: Pte) -> Entry {
        match E::Format::decode(pte, self.level, self.tree.caps) {
            Entry::Table(pfn) if !self.tree.holds_table(pfn, self.level) => Entry::Bad,
            entry => entry,
        }
    }

    /// Whether the entry above still refers to this table as it did. Asked under this table's lock, which the CPU that unlinks it
    /// holds, too: the lock orders the load.
    #[inline]
    fn is_same(&self) -> bool {
        self.parent.is_none_or(|(entry, pte)| entry.load(Ordering::Relaxed) == pte.raw())
    }

    pub(crate) fn desc(&self) -> Option<&'g TableDesc> {
        self.tree.env.desc(self.pfn)
    }

    /// Takes this table's lock and checks that the table is still in the tree. It can't be unlinked while the lock is
    /// held.
    #[inline]
    pub(crate) fn lock(self) -> Result<PteMapLocked<'g, E>, Changed> {
        let lock = self.lock_without_recheck().ok_or(Changed)?;
        lock.pmd_same()
    }

    /// Takes this table's lock only. None if the environment has no descriptor for the table.
    #[inline]
    fn lock_without_recheck(self) -> Option<PteLock<'g, E>> {
        let desc = self.desc()?;
        if kept(Rule::Lock) {
            desc.lock();
        }
        Some(PteLock { table: self, lock: Held { desc } })
    }

    #[inline]
    pub(crate) fn entry_ref(self, offset: u64) -> EntryRef<'g, E> {
        EntryRef { table: self, offset }
    }

    /// Reports and clears the entry for `offset` if it is (still) bad.
    #[cold]
    pub(crate) fn clear_bad(self, offset: u64) {
        if let Ok(locked) = self.lock() {
            locked.clear_bad(offset);
        }
    }
}

/// One entry of a table: the `pmd_t *` that Linux passes.
pub struct EntryRef<'g, E: Env> {
    table: Table<'g, E>,
    offset: u64,
}

impl<'g, E: Env> EntryRef<'g, E> {
    /// The entry, by one load. It may have changed since. On x86-64 an aligned 64-bit load is atomic; for entries that
    /// are written in halves see [`SplitEntry`](crate::SplitEntry).
    #[inline]
    pub fn pmdp_get_lockless(&self) -> Pte {
        self.table.get(self.offset)
    }

    /// The decoded entry, by one load.
    pub fn get(&self) -> Entry {
        self.table.decode(self.pmdp_get_lockless())
    }

    /// The entry's level.
    pub fn level(&self) -> Level {
        self.table.level
    }

    /// Maps the table that the entry refers to, for reading.
    ///
    /// # Errors
    /// What there is instead of a table. A table that was mapped before may have been unlinked.
    pub fn pte_offset_map(&self) -> Result<PteMap<'g, E>, NoTable> {
        self.below().map(|table| PteMap { table })
    }

    /// As [`pte_offset_map`](Self::pte_offset_map), for a caller that will take the table's lock to read stable
    /// entries. It need not compare the pmd again to read: the guard keeps the table, and the entries of an unlinked
    /// table are frozen; those of one that [`Tree::zap_tables`] has unlinked stay as they were.
    ///
    /// # Errors
    /// As for [`pte_offset_map`](Self::pte_offset_map).
    pub fn pte_offset_map_ro_nolock(&self) -> Result<PteMapRo<'g, E>, NoTable> {
        self.pte_offset_map().map(PteMapRo)
    }

    /// As [`pte_offset_map`](Self::pte_offset_map), with the value of the pmd at that time. To write, the caller takes
    /// the lock and checks by [`PteLock::pmd_same`] that the table is still in the tree.
    ///
    /// # Errors
    /// As for [`pte_offset_map`](Self::pte_offset_map).
    pub fn pte_offset_map_rw_nolock(&self) -> Result<PteMapRw<'g, E>, NoTable> {
        self.pte_offset_map().map(PteMapRw)
    }

    /// Maps the table and takes its lock. If the pmd changes before the lock is taken, it tries again.
    ///
    /// # Errors
    /// As for [`pte_offset_map`](Self::pte_offset_map).
    pub fn pte_offset_map_lock(&self) -> Result<PteMapLocked<'g, E>, NoTable> {
        loop {
            if let Ok(locked) = self.below()?.lock() {
                return Ok(locked);
            }
        }
    }

    fn below(&self) -> Result<Table<'g, E>, NoTable> {
        let pte = self.pmdp_get_lockless();
        let again = if kept(Rule::OneRead) { pte } else { self.pmdp_get_lockless() };
        match self.table.decode(pte) {
            Entry::Table(_) => self.table.below_in_order(again, self.offset).ok_or(NoTable::Frozen),
            Entry::None => Err(NoTable::None),
            Entry::Leaf(leaf) => Err(NoTable::Leaf(leaf)),
            Entry::Frozen => Err(NoTable::Frozen),
            Entry::Bad => {
                self.table.clear_bad(self.offset);
                Err(NoTable::Bad)
            }
        }
    }
}

/// A mapped table, for reading. It can't outlive its guard, can't be sent to another CPU, and writes nothing:
///
/// ```compile_fail,E0502
/// # fn f<E: mmu::Env>(entry: fn(rcu::Guard<'_>) -> mmu::EntryRef<'_, E>, cpu: &mut rcu::Cpu<'_, E::Platform>) {
/// let map = entry(cpu.read()).pte_offset_map().ok().unwrap();
/// cpu.quiescent();
/// let level = map.level();
/// # }
/// ```
/// ```compile_fail,E0277
/// # fn f<E: mmu::Env + Send + Sync>(entry: mmu::EntryRef<'_, E>) {
/// fn send(_: impl Send) {}
/// send(entry.pte_offset_map());
/// # }
/// ```
/// ```compile_fail,E0599
/// # fn f<E: mmu::Env<Format = mmu::Npt>>(entry: mmu::EntryRef<'_, E>, at: addr::Gpa, leaf: mmu::Leaf) {
/// let map = entry.pte_offset_map().ok().unwrap();
/// map.set_pte(at, leaf);
/// # }
/// ```
pub struct PteMap<'g, E: Env> {
    pub(crate) table: Table<'g, E>,
}

impl<'g, E: Env> PteMap<'g, E> {
    /// The level of the table's entries.
    pub fn level(&self) -> Level {
        self.table.level
    }

    /// The entry for `at`. Only the bits of `at` that select an entry of this table are used.
    pub fn get(&self, at: Input<E>) -> Entry {
        self.entry_ref(at).get()
    }

    /// A reference to the entry for `at`.
    pub fn entry_ref(&self, at: Input<E>) -> EntryRef<'g, E> {
        self.table.entry_ref(at.to_offset(E::Format::INPUT_BITS).unwrap_or(0))
    }
}

/// A map whose table can be locked to read stable entries.
pub struct PteMapRo<'g, E: Env>(PteMap<'g, E>);

impl<E: Env> PteMapRo<'_, E> {
    /// Takes the table's lock. While it is held, entries change only by processors, which set accessed and dirty bits,
    /// and by compare-and-exchange of other CPUs.
    pub fn lock(&self) -> Option<PteReadLock<'_, E>> {
        let PteLock { table, lock } = self.0.table.lock_without_recheck()?;
        Some(PteReadLock { map: PteMap { table }, _lock: lock })
    }
}

impl<'g, E: Env> Deref for PteMapRo<'g, E> {
    type Target = PteMap<'g, E>;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// A map whose table can be locked for writing, after a check that it is still in the tree.
///
/// ```
/// # fn f<E: mmu::Env<Format = mmu::Npt>>(entry: mmu::EntryRef<'_, E>, at: addr::Gpa, leaf: mmu::Leaf) {
/// let map = entry.pte_offset_map_rw_nolock().ok().unwrap();
/// // Long operations, such as an allocation or a copy, go here.
/// if let Ok(locked) = map.lock().unwrap().pmd_same() {
///     locked.set_pte(at, leaf).ok();
/// }
/// # }
/// ```
/// Without the check nothing can be written, and the lock must be released before the map:
///
/// ```compile_fail,E0599
/// # fn f<E: mmu::Env<Format = mmu::Npt>>(entry: mmu::EntryRef<'_, E>, at: addr::Gpa, leaf: mmu::Leaf) {
/// let map = entry.pte_offset_map_rw_nolock().ok().unwrap();
/// map.lock().unwrap().set_pte(at, leaf);
/// # }
/// ```
/// ```compile_fail,E0505
/// # fn f<E: mmu::Env>(entry: mmu::EntryRef<'_, E>) {
/// let map = entry.pte_offset_map_rw_nolock().ok().unwrap();
/// let locked = map.lock().unwrap();
/// drop(map);
/// drop(locked);
/// # }
/// ```
pub struct PteMapRw<'g, E: Env>(PteMap<'g, E>);

impl<E: Env> PteMapRw<'_, E> {
    /// The value of the entry above when the walk found the table.
    pub fn pmdval(&self) -> Option<Pte> {
        self.0.table.parent.map(|(_, pte)| pte)
    }

    /// Takes the table's lock, which by itself does not allow writes.
    pub fn lock(&self) -> Option<PteLock<'_, E>> {
        self.0.table.lock_without_recheck()
    }
}

impl<'g, E: Env> Deref for PteMapRw<'g, E> {
    type Target = PteMap<'g, E>;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// A lock that is released when dropped.
struct Held<'m> {
    desc: &'m TableDesc,
}

impl Drop for Held<'_> {
    #[inline]
    fn drop(&mut self) {
        self.desc.unlock();
    }
}

/// A table's lock, for reading stable entries.
pub struct PteReadLock<'m, E: Env> {
    map: PteMap<'m, E>,
    _lock: Held<'m>,
}

impl<'m, E: Env> Deref for PteReadLock<'m, E> {
    type Target = PteMap<'m, E>;
    fn deref(&self) -> &Self::Target {
        &self.map
    }
}

/// A table's lock, before it is known whether the table is still in the tree.
pub struct PteLock<'m, E: Env> {
    table: Table<'m, E>,
    lock: Held<'m>,
}

impl<'m, E: Env> PteLock<'m, E> {
    /// Checks that the pmd is unchanged since the walk. A table is unlinked under its own lock, so the pmd can't change
    /// before the lock is released.
    ///
    /// # Errors
    /// [`Changed`]; the lock is released.
    #[inline]
    pub fn pmd_same(self) -> Result<PteMapLocked<'m, E>, Changed> {
        if kept(Rule::RecheckPmd) && !self.table.is_same() {
            return Err(Changed);
        }
        Ok(PteMapLocked { map: PteMap { table: self.table }, _lock: self.lock })
    }
}

/// A locked table that is in the tree: its entries may be written.
pub struct PteMapLocked<'m, E: Env> {
    map: PteMap<'m, E>,
    _lock: Held<'m>,
}

impl<'m, E: Env> Deref for PteMapLocked<'m, E> {
    type Target = PteMap<'m, E>;
    fn deref(&self) -> &Self::Target {
        &self.map
    }
}

impl<'m, E: Env> PteMapLocked<'m, E> {
    /// Maps a page where nothing is mapped. The page's address must be aligned to the level's page size.
    ///
    /// # Errors
    /// The present entry, or [`Entry::Bad`] if the new entry would not be valid.
    pub fn set_pte(&self, at: Input<E>, leaf: Leaf) -> Result<(), Entry> {
        let offset = at.to_offset(E::Format::INPUT_BITS).ok_or(Entry::Bad)?;
        let pte = self.table().tree.encode(&leaf, self.level()).ok_or(Entry::Bad)?;
        let index = E::Format::index(offset, self.level());
        match self.table().at(index) {
            Pte::NONE => {
                self.set(index, pte);
                Ok(())
            }
            there => Err(self.table().decode(there)),
        }
    }

    /// Unmaps a page and returns its last entry. Its frame must not be reused before a flush.
    ///
    /// # Errors
    /// The entry, if it is no page.
    pub fn ptep_get_and_clear(&self, at: Input<E>) -> Result<Leaf, Entry> {
        let index = E::Format::index(at.to_offset(E::Format::INPUT_BITS).ok_or(Entry::None)?, self.level());
        match self.table().decode(self.table().at(index)) {
            Entry::Leaf(leaf) => match self.table().decode(self.clear(index)) {
                Entry::Leaf(last) => Ok(last),
                _ => Ok(leaf),
            },
            other => Err(other),
        }
    }

    pub(crate) fn table(&self) -> &Table<'m, E> {
        &self.map.table
    }

    pub(crate) fn desc(&self) -> &'m TableDesc {
        self._lock.desc
    }

    /// Sets an entry that is none. A release store: a CPU that reads the entry sees the contents of the table below.
    #[inline]
    pub(crate) fn set(&self, index: usize, pte: Pte) {
        self.table().entry(index).store(pte.raw(), Ordering::Release);
        self.desc().add_children(1);
    }

    /// Clears an entry and returns its last value. It publishes nothing: a CPU that has to see that the entry is gone sees it by the
    /// table's lock or by a flush.
    #[inline]
    pub(crate) fn clear(&self, index: usize) -> Pte {
        self.desc().add_children(-1);
        let entry = self.table().entry(index);
        if kept(Rule::AtomicChange) {
            Pte::new(entry.swap(0, Ordering::Relaxed))
        } else {
            let pte = self.table().at(index);
            entry.store(0, Ordering::Relaxed);
            pte
        }
    }

    /// Replaces one present entry by another and returns its last value.
    pub(crate) fn replace(&self, index: usize, pte: Pte) -> Pte {
        Pte::new(self.table().entry(index).swap(pte.raw(), Ordering::Release))
    }

    /// Changes a leaf by an atomic read-modify-write: a plain store would lose a dirty bit that the processor sets
    /// between the load and the store. Returns the last leaf; None if the entry is no leaf any more.
    pub(crate) fn change(&self, index: usize, change: impl Fn(Leaf) -> Leaf) -> Option<Leaf> {
        let table = self.table();
        let mut pte = table.at(index);
        loop {
            let Entry::Leaf(leaf) = table.decode(pte) else { return None };
            let new = table.tree.encode(&change(leaf), table.level)?;
            if new == pte {
                return Some(leaf);
            }
            match table.cmpxchg(index, pte, new) {
                Ok(()) => return Some(leaf),
                Err(now) => pte = now,
            }
        }
    }

    /// Freezes all entries if each is as `expected` apart from accessed and dirty bits, and returns these bits of all
    /// entries together. From then on a compare-and-exchange by a CPU that read an entry before fails.
    ///
    /// # Errors
    /// [`Changed`] if an entry was not as expected; all entries are restored.
    pub(crate) fn freeze(&self, expected: impl Fn(usize) -> Pte) -> Result<Pte, Changed> {
        let mut ad = Pte::NONE;
        for index in 0..E::Format::entries(self.level()) {
            match self.freeze_one(index, expected(index)) {
                Some(pte) => ad = E::Format::with_ad(ad, pte),
                None => {
                    (0..index).for_each(|index| self.thaw(index, expected(index)));
                    return Err(Changed);
                }
            }
        }
        Ok(ad)
    }

    /// Freezes one entry if it is as `expected` apart from accessed and dirty bits. Returns its last value.
    pub(crate) fn freeze_one(&self, index: usize, expected: Pte) -> Option<Pte> {
        let mut pte = self.table().at(index);
        while E::Format::same_but_ad(pte, expected) {
            if !kept(Rule::Freeze) {
                return Some(pte);
            }
            let frozen = if kept(Rule::FrozenIsNotNone) { E::Format::frozen(pte) } else { Pte::NONE };
            match self.table().cmpxchg(index, pte, frozen) {
                Ok(()) => return Some(pte),
                Err(now) => pte = now,
            }
        }
        None
    }

    /// Undoes [`freeze`](Self::freeze).
    pub(crate) fn thaw_all(&self, expected: impl Fn(usize) -> Pte) {
        (0..E::Format::entries(self.level())).for_each(|index| self.thaw(index, expected(index)));
    }

    fn thaw(&self, index: usize, expected: Pte) {
        let frozen = self.table().at(index);
        self.table().entry(index).store(E::Format::with_ad(expected, frozen).raw(), Ordering::Release);
    }

    /// Reports and clears the entry for `offset` if it is bad. A frozen entry is bad too: its freezer holds the lock
    /// while the entry is frozen, so under this lock it can only be a corrupted one.
    #[cold]
    pub(crate) fn clear_bad(&self, offset: u64) {
        let table = self.table();
        let index = E::Format::index(offset, table.level);
        if let Entry::Bad | Entry::Frozen = table.decode(table.at(index)) {
            // Processors alone change it meanwhile, by accessed and dirty bits, which make no bad entry good.
            let pte = self.clear(index);
            let start = offset & !(span::<E::Format>(table.level) - 1);
            let at = Input::<E>::from_offset(start, E::Format::INPUT_BITS);
            table.tree.env.bad(BadEntry { at, level: table.level, pte });
        }
    }
}
