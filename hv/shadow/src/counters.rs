//! Counters of exits and of the shadow's work.

use crate::FaultOutcome;
use core::array;
use core::fmt;
use core::ops::Add;
use core::sync::atomic::{AtomicU64, Ordering};

/// A counted event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Page faults that exited.
    Faults,
    /// Page faults that were injected into the guest.
    Injected,
    /// Page faults whose instruction was emulated.
    Emulated,
    /// Shadow entries that were made.
    Mapped,
    /// Shadow entries that were zapped.
    Zapped,
    /// Loads of a context: of CR3, or of bits that change the meaning of tables.
    Loads,
    /// INVLPG instructions.
    Invlpgs,
    /// Loads of a context without a cached root: one was zapped for it.
    Made,
    /// Loads of a context with a cached root.
    Found,
    /// Guest frames that were recorded as tables, and became read-only.
    Tables,
    /// Guest tables whose shadow another address space had already.
    Shared,
    /// Writes to guest tables that were emulated.
    Written,
    /// Guest tables that are not shadowed any more, because they were written too often.
    Flooded,
    /// Guest tables that went out of sync.
    Unsynced,
    /// Guest tables that came back in sync.
    Synced,
    /// Writable mappings that were cleared to make room for others.
    Evicted,
    /// How often a root, or a part of a virtual TLB, was zapped to make room for tables of others.
    Dropped,
    /// The most entries that the reverse map had at once.
    Rmap,
    /// How many it can have.
    RmapRoom,
    /// The most shadow tables of the last level at once.
    ShadowTables,
    /// How many there can be.
    TableRoom,
}

const ALL: usize = Counter::TableRoom as usize + 1;

/// Names, by number.
const NAMES: [&str; ALL] = [
    "faults",
    "injected",
    "emulated",
    "mapped",
    "zapped",
    "loads",
    "invlpgs",
    "made",
    "found",
    "tables",
    "shared",
    "written",
    "flooded",
    "unsynced",
    "synced",
    "evicted",
    "dropped",
    "rmap",
    "rmap-room",
    "shadow-tables",
    "shadow-table-room",
];

/// The counters of one shadow. Other memory accesses are not ordered by them.
#[derive(Debug)]
pub(crate) struct Counters([AtomicU64; ALL]);

impl Counters {
    pub(crate) fn new() -> Self {
        Self(array::from_fn(|_| AtomicU64::new(0)))
    }

    pub(crate) fn count(&self, counter: Counter) {
        self.add(counter, 1);
    }

    pub(crate) fn add(&self, counter: Counter, times: u64) {
        self.0[counter as usize].fetch_add(times, Ordering::Relaxed);
    }

    /// Raises a counter that is the most of something at once. Calls do not overlap.
    pub(crate) fn most(&self, counter: Counter, now: usize) {
        let most = &self.0[counter as usize];
        if most.load(Ordering::Relaxed) < now as u64 {
            most.store(now as u64, Ordering::Relaxed);
        }
    }

    pub(crate) fn count_outcome(&self, outcome: FaultOutcome) {
        match outcome {
            FaultOutcome::Mapped => self.count(Counter::Mapped),
            FaultOutcome::Inject { .. } => self.count(Counter::Injected),
            FaultOutcome::Emulate { .. } => self.count(Counter::Emulated),
            FaultOutcome::Retry | FaultOutcome::Unbacked(_) => {}
        }
    }

    pub(crate) fn read(&self) -> Counts {
        Counts(array::from_fn(|n| self.0[n].load(Ordering::Relaxed)))
    }
}

/// The values of a shadow's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts([u64; ALL]);

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(array::from_fn(|n| self.0[n] + other.0[n]))
    }
}

/// `name=count` for each counter that is not 0.
impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut gap = "";
        for (name, count) in NAMES.iter().zip(self.0).filter(|(_, count)| *count != 0) {
            write!(f, "{gap}{name}={count}")?;
            gap = " ";
        }
        Ok(())
    }
}

impl Counts {
    /// The value of one counter.
    pub const fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }
}
