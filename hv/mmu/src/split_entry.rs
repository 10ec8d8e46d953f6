//! Entries that are written in two 32-bit halves.
//!
//! The tree's own entries are not: an aligned 64-bit access is atomic. But a 32-bit guest writes its PAE entries in
//! halves while other CPUs read them. Linux's protocol (`include/linux/pgtable.h`, `pmdp_get_lockless`;
//! `arch/x86/include/asm/pgtable-3level.h`) makes that safe:
//!
//! * to set: the high half, then the low half, which holds the present bit; to clear: the low half, then the high half;
//! * to read: low, high, and low again, until both reads of the low half agree;
//! * between clearing and setting again, all reads that began before must have ended. Otherwise a read may load the low
//!   half before the clearing and after the setting, equal by chance, and the high half in between, when it was zero.
//!   Readers therefore disable interrupts for those three loads, and the CPU that clears sends every CPU an interrupt
//!   and waits until all have handled it.
//!
//! A vCPU that is in the hypervisor does not handle an interrupt of its guest. So for the guest's writers the
//! hypervisor's reads behave as reads with interrupts disabled.

use crate::entry::Pte;
use crate::rules::Rule;
use model::kept;
use model::sync::{AtomicU32, Ordering, relax};

/// Control of this CPU's interrupts.
pub trait Interrupts {
    /// Runs `read` with interrupts disabled.
    fn off<R>(&self, read: impl FnOnce() -> R) -> R;
}

/// Interrupts to all CPUs.
pub trait LocklessSync {
    /// Returns when every CPU has had its interrupts enabled since the call: Linux's `pmdp_get_lockless_sync`.
    fn lockless_sync(&self);
}

/// An entry of two halves in memory.
#[derive(Debug)]
#[repr(C, align(8))]
pub struct SplitEntry {
    low: AtomicU32,
    high: AtomicU32,
}

/// An entry that was cleared. A CPU may still be reading its previous value.
#[must_use = "it can't be set again before it is synchronised"]
pub struct Cleared<'e>(&'e SplitEntry);

/// An entry that is none for every CPU, so that it may be set.
pub struct Empty<'e>(&'e SplitEntry);

impl SplitEntry {
    /// An entry that holds `pte`.
    pub fn new(pte: Pte) -> Self {
        let (low, high) = halves(pte);
        Self { low: AtomicU32::new(low), high: AtomicU32::new(high) }
    }

    /// The current or a recent value of the entry, never halves of two values.
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

    /// Clears the entry.
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

    /// Clears an entry that no other CPU can see.
    pub fn fresh(&mut self) -> Empty<'_> {
        *self = Self::new(Pte::NONE);
        Empty(self)
    }

    /// Writes the low half only, for a guest's instruction that the hypervisor emulates.
    pub fn write_low(&self, low: u32) {
        self.low.store(low, Ordering::Release);
    }

    /// Writes the high half only.
    pub fn write_high(&self, high: u32) {
        self.high.store(high, Ordering::Release);
    }
}

impl<'e> Cleared<'e> {
    /// Waits until no CPU is reading the previous value of the entry.
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
