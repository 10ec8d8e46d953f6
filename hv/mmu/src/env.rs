//! The environment of a tree, and the table descriptors.

use crate::entry::Pte;
use crate::format::Format;
use crate::level::Level;
use addr::Pfn;
use core::sync::atomic::AtomicU32 as Note;
use model::const_unless_loom;
use model::sync::{AtomicBool, AtomicU8, AtomicU16, Ordering, relax};
use rcu::{Head, Platform, Space};

/// The environment of one tree: frames for tables, the space of its flushes, and reports of bad entries.
///
/// `table` and `desc` are called on every walk; they should be a comparison and an addition.
pub trait Env {
    /// The format of the tree's tables.
    type Format: Format;
    /// The platform. Its `head` of a table is that of the table's descriptor; `poll` of its CPUs passes tables to free.
    type Platform: Platform;

    /// Allocates a frame for a table; its content does not matter. No table lock is held.
    fn alloc_table(&self) -> Option<Pfn>;

    /// Allocates a frame for the root. The root of PAE must lie below 4 GiB ([`Format::ROOT_END`]).
    fn alloc_root(&self) -> Option<Pfn> {
        self.alloc_table()
    }

    /// Frees a table that no walker can see. No table lock is held.
    fn free_table(&self, table: Pfn);

    /// Called before `table` is queued for its grace period. The environment can record the owner of the table in its
    /// descriptor's [private data](TableDesc::private), for the CPU that frees it. A table lock may be held.
    fn retire(&self, table: Pfn) {
        let _ = table;
    }

    /// The table in frame `pfn`, or None if no table can be there (an entry that refers to it is bad then).
    fn table(&self, pfn: Pfn) -> Option<&<Self::Format as Format>::Table>;

    /// The descriptor of frame `pfn`. Every table has one, which outlives the table.
    fn desc(&self, pfn: Pfn) -> Option<&TableDesc>;

    /// The space that CPUs enter to have their hardware walk this tree.
    fn space(&self) -> &Space;

    /// Reports a bad entry that was found and cleared. Called once for each, under the lock of its table.
    fn bad(&self, entry: BadEntry<<Self::Format as Format>::Input>);
}

/// An entry that the tree has not written, or that the processor treats as misconfigured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadEntry<A> {
    /// The first address of its range.
    pub at: A,
    /// Its level.
    pub level: Level,
    /// Its value.
    pub pte: Pte,
}

/// The descriptor of a frame that holds a table: Linux's `ptdesc`.
///
/// It is not in the table itself, because processors may still walk a table that is queued to be freed, and because the
/// lock must stay valid for CPUs that wait for it when the table is unlinked.
///
/// It has its own cache line, because CPUs take the locks of neighbouring tables at the same time.
#[repr(align(64))]
pub struct TableDesc {
    lock: AtomicBool,
    level: AtomicU8,
    dead: AtomicBool,
    /// The number of entries that are not none. Changed under the lock.
    children: AtomicU16,
    /// The number of entries that refer to the table, minus one. Changed under the lock.
    sharers: AtomicU16,
    private: Note,
    head: Head,
}

impl TableDesc {
    const_unless_loom! {
        /// The descriptor of a frame that holds no table.
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
    }

    /// The link for deferral.
    #[inline]
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The owner's private data (Linux's `page_private`).
    pub fn private(&self) -> u32 {
        self.private.load(Ordering::Relaxed)
    }

    /// Sets the owner's private data, for example for the CPU that frees the frame after a grace period.
    pub fn set_private(&self, private: u32) {
        self.private.store(private, Ordering::Relaxed);
    }

    /// The level of the table's entries.
    #[inline]
    pub fn level(&self) -> Level {
        Level::from_number(self.level.load(Ordering::Relaxed))
    }

    /// Whether the table is in no tree.
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

    /// Called under the lock. False if the counter would overflow.
    pub(crate) fn add_sharer(&self) -> bool {
        let more = self.sharers.load(Ordering::Relaxed).checked_add(1);
        more.inspect(|more| self.sharers.store(*more, Ordering::Relaxed)).is_some()
    }

    /// Called under the lock of a shared table.
    pub(crate) fn drop_sharer(&self) {
        self.sharers.store(self.sharers.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
    }

    /// Initializes the descriptor of a table that no other CPU can see yet. The lock and the counter of sharers are as the last table
    /// left them: free, and zero.
    pub(crate) fn start(&self, level: Level, children: u16) {
        self.level.store(level.number(), Ordering::Relaxed);
        self.children.store(children, Ordering::Relaxed);
        self.dead.store(false, Ordering::Relaxed);
    }

    pub(crate) fn set_dead(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    /// Called under the lock. It saturates, because a corrupted entry that is cleared was never counted.
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
