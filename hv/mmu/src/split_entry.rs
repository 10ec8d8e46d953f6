//! Entries that are written in two 32-bit halves.
//!
//! The tree's own entries never are: an aligned 64-bit access is whole by itself. But a 32-bit guest writes its PAE entries
//! half by half, while other CPUs read them. Linux' protocol (`include/linux/pgtable.h`, `pmdp_get_lockless`;
//! `arch/x86/include/asm/pgtable-3level.h`) makes that safe:
//!
//! * to set: the high half, then the low half, which holds the present bit; to clear: the low half, then the high half;
//! * to read: low, high, and low again, until both reads of the low half agree;
//! * between clearing and setting again, every read that began before must have ended. Otherwise a read may take the low half
//!   before and after, both the same by chance, and the high half in between, when it was zero. Readers therefore keep
//!   interrupts off, for those three loads only, and whoever clears sends every CPU an interrupt and waits for the answers.
//!
//! A vCPU that is in the hypervisor answers no interrupt of its guest, so for the guest's writers the hypervisor's reads are
//! such reads too.

use crate::entry::Pte;
use crate::rules::{Rule, kept};
use crate::sync::{AtomicU32, Ordering, relax};

/// This CPU's interrupts.
pub trait Interrupts {
    /// Runs `read` with interrupts off.
    fn off<R>(&self, read: impl FnOnce() -> R) -> R;
}

/// Interrupts to all CPUs.
pub trait LocklessSync {
    /// Returns when every CPU has had its interrupts on since the call: Linux' `pmdp_get_lockless_sync`.
    fn lockless_sync(&self);
}

/// An entry of two halves, as it lies in memory.
#[derive(Debug)]
#[repr(C, align(8))]
pub struct SplitEntry {
    low: AtomicU32,
    high: AtomicU32,
}

/// An entry that was cleared; some CPU may still be in the middle of reading what it was.
#[must_use = "it can't be set again before it is synchronised"]
pub struct Cleared<'e>(&'e SplitEntry);

/// An entry that is none for every CPU: it may be set.
pub struct Empty<'e>(&'e SplitEntry);

impl SplitEntry {
    /// An entry that holds `pte`.
    pub fn new(pte: Pte) -> Self {
        let (low, high) = halves(pte);
        Self { low: AtomicU32::new(low), high: AtomicU32::new(high) }
    }

    /// What the entry is, or was recently, never half of each.
    pub fn pmdp_get_lockless(&self, interrupts: &impl Interrupts) -> Pte {
        interrupts.off(|| {
            loop {
                let low = self.low.load(Ordering::Acquire);
                let high = self.high.load(Ordering::Acquire);
                if !kept(Rule::ReadLowAgain) || self.low.load(Ordering::Relaxed) == low {
                    return Pte::new(u64::from(high) << 32 | u64::from(low));
                }
                relax();
            }
        })
    }

    /// Makes the entry none, if it is not.
    pub fn clear(&self) -> Cleared<'_> {
        if kept(Rule::LowLast) {
            self.low.store(0, Ordering::Relaxed);
            self.high.store(0, Ordering::Release);
        } else {
            self.high.store(0, Ordering::Relaxed);
            self.low.store(0, Ordering::Release);
        }
        Cleared(self)
    }

    /// An entry that nobody else can see.
    pub fn fresh(&mut self) -> Empty<'_> {
        *self = Self::new(Pte::NONE);
        Empty(self)
    }

    /// Writes the low half alone, as a guest's instruction does that the hypervisor carries out.
    pub fn write_low(&self, low: u32) {
        self.low.store(low, Ordering::Release);
    }

    /// Writes the high half alone.
    pub fn write_high(&self, high: u32) {
        self.high.store(high, Ordering::Release);
    }
}

impl<'e> Cleared<'e> {
    /// Waits until no CPU is in the middle of reading what the entry was.
    pub fn lockless_sync(self, cpus: &impl LocklessSync) -> Empty<'e> {
        if kept(Rule::LocklessSync) {
            cpus.lockless_sync();
        }
        Empty(self.0)
    }
}

impl Empty<'_> {
    /// Sets the entry.
    pub fn set(self, pte: Pte) {
        let (low, high) = halves(pte);
        if kept(Rule::LowLast) {
            self.0.high.store(high, Ordering::Relaxed);
            self.0.low.store(low, Ordering::Release);
        } else {
            self.0.low.store(low, Ordering::Relaxed);
            self.0.high.store(high, Ordering::Release);
        }
    }
}

fn halves(pte: Pte) -> (u32, u32) {
    (pte.raw() as u32, (pte.raw() >> 32) as u32)
}
