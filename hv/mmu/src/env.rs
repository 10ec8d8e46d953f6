//! What a tree needs of its surroundings, and what the surroundings keep for it.

use crate::entry::Pte;
use crate::format::Format;
use crate::level::Level;
use crate::sync::{AtomicBool, AtomicU8, AtomicU16, Note, Ordering, relax};
use addr::Pfn;
use rcu::{Head, Platform, Space};

/// The surroundings of one tree: frames, the space that its flushes count in, reports.
///
/// `table` and `desc` are called on every walk; they should be a comparison and an addition.
pub trait Env {
    /// The format of the tree's tables.
    type Format: Format;
    /// The machine. Its `head` of a table is that of the table's descriptor; what its CPUs' `poll` gives back are tables.
    type Platform: Platform;

    /// Takes a frame for a table, whatever it holds. No table lock is held.
    fn alloc_table(&self) -> Option<Pfn>;

    /// Takes a frame for the root. PAE's has to lie below 4 GiB ([`Format::ROOT_END`]).
    fn alloc_root(&self) -> Option<Pfn> {
        self.alloc_table()
    }

    /// Gives back at once a table that no walker can see. No table lock is held.
    fn free_table(&self, table: Pfn);

    /// Table `table` is about to wait for its grace period: what will give it back may want to know whose it is, for which its
    /// descriptor has a [note](TableDesc::note). A table lock may be held.
    fn retire(&self, table: Pfn) {
        let _ = table;
    }

    /// The table in frame `pfn`, or None if no table can be there (the entry that named it is then bad).
    fn table(&self, pfn: Pfn) -> Option<&<Self::Format as Format>::Table>;

    /// The descriptor of frame `pfn`; there is one wherever there is a table. It outlives the table.
    fn desc(&self, pfn: Pfn) -> Option<&TableDesc>;

    /// The space that CPUs enter to have their hardware walk this tree.
    fn space(&self) -> &Space;

    /// A bad entry was found and cleared; called once for each, under its table's lock.
    fn bad(&self, entry: BadEntry<<Self::Format as Format>::Input>);
}

/// An entry that is no entry of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadEntry<A> {
    /// The first address that it would translate.
    pub at: A,
    /// Its level.
    pub level: Level,
    /// What it held.
    pub pte: Pte,
}

/// What is kept beside a frame that holds a table: Linux's `ptdesc`.
///
/// It is not in the table, as a processor may still walk that while it waits to be freed, and the lock has to live as long
/// as somebody may want it.
///
/// A cache line of its own, as CPUs take the locks of neighbouring tables at once.
#[repr(align(64))]
pub struct TableDesc {
    lock: AtomicBool,
    level: AtomicU8,
    dead: AtomicBool,
    /// Entries that are not none. Changed under the lock.
    children: AtomicU16,
    /// Entries that refer to the table, besides the first. Changed under the lock.
    sharers: AtomicU16,
    private: Note,
    head: Head,
}

impl TableDesc {
    /// The descriptor of a frame that holds no table.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self {
            lock: AtomicBool::new(false),
            level: AtomicU8::new(0),
            dead: AtomicBool::new(true),
            children: AtomicU16::new(0),
            sharers: AtomicU16::new(0),
            private: Note::new(0),
            head: Head::new(),
        }
    }

    /// The descriptor of a frame that holds no table.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self {
            lock: AtomicBool::new(false),
            level: AtomicU8::new(0),
            dead: AtomicBool::new(true),
            children: AtomicU16::new(0),
            sharers: AtomicU16::new(0),
            private: Note::new(0),
            head: Head::new(),
        }
    }

    /// The link for deferral.
    #[inline]
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// What the owner of the frames noted last.
    pub fn private(&self) -> u32 {
        self.private.load(Ordering::Relaxed)
    }

    /// Notes something for whoever gets the frame after a grace period: whose it is, say.
    pub fn set_private(&self, private: u32) {
        self.private.store(private, Ordering::Relaxed);
    }

    /// The level of the table's entries.
    #[inline]
    pub fn level(&self) -> Level {
        Level::from_number(self.level.load(Ordering::Relaxed))
    }

    /// Whether the table is in no tree (any more).
    #[inline]
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// The number of entries that are not none.
    #[inline]
    pub fn children(&self) -> u16 {
        self.children.load(Ordering::Relaxed)
    }

    /// Whether more than one entry refers to the table.
    #[inline]
    pub fn is_shared(&self) -> bool {
        self.sharers.load(Ordering::Relaxed) > 0
    }

    /// Under the lock. False if no more can be counted.
    pub(crate) fn add_sharer(&self) -> bool {
        let more = self.sharers.load(Ordering::Relaxed).checked_add(1);
        more.inspect(|more| self.sharers.store(*more, Ordering::Relaxed)).is_some()
    }

    /// Under the lock, of a table that is shared.
    pub(crate) fn drop_sharer(&self) {
        self.sharers.store(self.sharers.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
    }

    /// For a table that nobody else can see yet.
    pub(crate) fn start(&self, level: Level, children: u16) {
        self.level.store(level.number(), Ordering::Relaxed);
        self.children.store(children, Ordering::Relaxed);
        self.sharers.store(0, Ordering::Relaxed);
        self.dead.store(false, Ordering::Relaxed);
        self.lock.store(false, Ordering::Relaxed);
    }

    pub(crate) fn set_dead(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    /// Under the lock. Saturating, as a corrupted entry that is cleared was never counted.
    #[inline]
    pub(crate) fn add_children(&self, change: i16) {
        self.children.store(self.children().saturating_add_signed(change), Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn lock(&self) {
        while self.lock.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            self.wait();
        }
    }

    #[cold]
    fn wait(&self) {
        while self.lock.load(Ordering::Relaxed) {
            relax();
        }
    }

    #[inline]
    pub(crate) fn unlock(&self) {
        self.lock.store(false, Ordering::Release);
    }
}

impl Default for TableDesc {
    fn default() -> Self {
        Self::new()
    }
}
