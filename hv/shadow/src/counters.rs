//! Counters, so that the numbers of exits show what caching buys.

use crate::Outcome;
use core::array;
use core::fmt;
use core::ops::Add;
use core::sync::atomic::{AtomicU64, Ordering};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Page faults of the processor.
    Faults,
    /// Those that were the guest's own.
    Injected,
    /// Those whose instruction had to be emulated.
    Emulated,
    /// Entries that were made.
    Mapped,
    /// Entries that were taken away.
    Zapped,
    /// Loads of a context: CR3, or what changes the meaning of tables.
    Loads,
    /// INVLPG.
    Invlpgs,
    /// Loads of a context that had no tree: one was emptied for it.
    Made,
    /// Loads of a context whose tree was still there.
    Found,
    /// Guest frames that became known as tables, and read-only.
    Tables,
    /// Tables that another address space had a shadow of already.
    Shared,
    /// Writes to such a table that were told.
    Written,
    /// Tables that were written again and again, and are no longer known as such.
    Flooded,
    /// Tables that went out of sync.
    Unsynced,
    /// Tables that came back in sync.
    Synced,
    /// Times that everything was dropped, because there was no place for another note.
    Emptied,
}

const ALL: usize = Counter::Emptied as usize + 1;

/// Names, by number.
const NAMES: [&str; ALL] = [
    "faults", "injected", "emulated", "mapped", "zapped", "loads", "invlpgs", "made", "found", "tables", "shared",
    "written", "flooded", "unsynced", "synced", "emptied",
];

/// The counters of one shadow. Nothing is ordered by them.
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

    pub(crate) fn count_outcome(&self, outcome: Outcome) {
        match outcome {
            Outcome::Mapped => self.count(Counter::Mapped),
            Outcome::Inject { .. } => self.count(Counter::Injected),
            Outcome::Emulate { .. } => self.count(Counter::Emulated),
            Outcome::Retry | Outcome::Unbacked(_) => {}
        }
    }

    pub(crate) fn read(&self) -> Counts {
        Counts(array::from_fn(|n| self.0[n].load(Ordering::Relaxed)))
    }
}

/// What a shadow's counters were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts([u64; ALL]);

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(array::from_fn(|n| self.0[n] + other.0[n]))
    }
}

/// `name=count`, for what is not zero.
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
    /// One of them.
    pub const fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }
}
