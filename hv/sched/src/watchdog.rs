//! Finds a CPU that is stuck in the hypervisor.

use crate::instant::Instant;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The heartbeat of a CPU, in a cache line of its own: other CPUs access it at a check only.
#[derive(Debug)]
#[repr(align(64))]
pub struct Heart {
    /// Only its own CPU writes this.
    beats: AtomicU64,
    /// The value of `beats` at the last check.
    seen: AtomicU64,
    /// The number of consecutive checks that found the CPU in the hypervisor without a new beat.
    missed: AtomicU32,
}

impl Heart {
    const fn new() -> Self {
        Self { beats: AtomicU64::new(0), seen: AtomicU64::new(0), missed: AtomicU32::new(0) }
    }

    /// Records progress: the CPU has been between two exits of a guest, or has slept. An increment without LOCK.
    #[inline]
    pub fn beat(&self) {
        self.beats.store(self.beats.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Checks the CPU: returns the number of consecutive checks without a beat, including this one.
    fn missed_beats(&self, is_away: bool) -> u32 {
        let beats = self.beats.load(Ordering::Relaxed);
        let moved = self.seen.swap(beats, Ordering::Relaxed) != beats;
        let missed = if is_away || moved { 0 } else { self.missed.load(Ordering::Relaxed) + 1 };
        self.missed.store(missed, Ordering::Relaxed);
        missed
    }
}

/// The heartbeats of up to `N` CPUs, and their checks.
///
/// A CPU makes progress if its heart beats, or if it is away: in a guest or asleep, which its timer will end. A CPU that is busy with
/// a guest's exits beats when [`Slice::next_event`](crate::Slice::next_event) is due, which is more often than there are checks.
/// A CPU without progress at [`max_missed`](Self::start) consecutive checks is stuck.
///
/// Checks are counted instead of time, so that a machine which was stopped as a whole, as an emulator can be, is not taken for
/// stuck. A CPU that is not stuck makes the check, so the only CPU of a machine is not watched.
#[derive(Debug)]
pub struct Watchdog<const N: usize> {
    hearts: [Heart; N],
    /// When the next check is due.
    next: AtomicU64,
    /// Ticks between checks.
    period: AtomicU64,
    /// The number of consecutive missed beats at which a CPU is stuck.
    max_missed: AtomicU32,
}

impl<const N: usize> Default for Watchdog<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Watchdog<N> {
    /// A watchdog that does not watch yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            hearts: [const { Heart::new() }; N],
            next: AtomicU64::new(u64::MAX),
            period: AtomicU64::new(0),
            max_missed: AtomicU32::new(0),
        }
    }

    /// Begins to watch at `now`, with a check each `period` ticks. A CPU that misses `max_missed` consecutive beats is stuck; 0
    /// disables the watchdog.
    pub fn start(&self, now: Instant, period: u64, max_missed: u32) {
        self.period.store(period, Ordering::Relaxed);
        self.max_missed.store(max_missed, Ordering::Relaxed);
        if max_missed != 0 {
            self.next.store(now.ticks(), Ordering::Relaxed);
        }
    }

    /// The heart of CPU `cpu`.
    ///
    /// # Panics
    /// If there is no such CPU.
    #[must_use]
    pub fn heart(&self, cpu: usize) -> &Heart {
        &self.hearts[cpu]
    }

    /// Whether a check is due at `now`. True for one CPU, which must make it.
    pub fn is_due(&self, now: Instant) -> bool {
        let due = self.next.load(Ordering::Relaxed);
        let next = now.after(self.period.load(Ordering::Relaxed)).ticks();
        now.ticks() >= due && self.next.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Checks `cpus` CPUs; to be called if it [is due](Self::is_due). Returns a CPU that is stuck. Of several, it is the one that has
    /// missed most beats, because the others may only be waiting for it.
    pub fn check(&self, cpus: usize, is_away: impl Fn(usize) -> bool) -> Option<usize> {
        let max_missed = self.max_missed.load(Ordering::Relaxed);
        let hearts = self.hearts.iter().take(cpus).enumerate();
        let all = hearts.map(|(cpu, heart)| (heart.missed_beats(is_away(cpu)), cpu));
        let (missed, cpu) = all.max_by_key(|&(missed, cpu)| (missed, core::cmp::Reverse(cpu)))?;
        (max_missed != 0 && missed >= max_missed).then_some(cpu)
    }
}
