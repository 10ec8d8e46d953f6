//! Finds a CPU that is stuck in the hypervisor.

use crate::instant::Instant;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A CPU's heart, in a cache line of its own: other CPUs read it only at a look.
#[derive(Debug)]
#[repr(align(64))]
pub struct Heart {
    /// Written by its own CPU alone.
    beats: AtomicU64,
    /// The beats that the last look saw.
    seen: AtomicU64,
    /// Looks in a row that found the CPU in the hypervisor and no beat.
    silent: AtomicU32,
}

impl Heart {
    const fn new() -> Self {
        Self { beats: AtomicU64::new(0), seen: AtomicU64::new(0), silent: AtomicU32::new(0) }
    }

    /// Notes progress: its CPU has come by between two exits of a guest, or has slept. An increment without LOCK.
    #[inline]
    pub fn beat(&self) {
        self.beats.store(self.beats.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// How many looks in a row have found no beat, this one among them.
    fn silence(&self, is_away: bool) -> u32 {
        let beats = self.beats.load(Ordering::Relaxed);
        let moved = self.seen.swap(beats, Ordering::Relaxed) != beats;
        let silent = if is_away || moved { 0 } else { self.silent.load(Ordering::Relaxed) + 1 };
        self.silent.store(silent, Ordering::Relaxed);
        silent
    }
}

/// The hearts of up to `N` CPUs, and the looks at them.
///
/// A CPU makes progress when its heart beats, or is away: in a guest or asleep, from where its timer brings it back. A CPU that is
/// busy with a guest's exits beats when [`Slice::next_event`](crate::Slice::next_event) is due, and that is more often than there
/// are looks. A CPU that makes no progress from look to look, [`patience`](Self::start) times in a row,
/// is stuck.
///
/// Looks are counted, rather than time, so that a machine that was stopped as a whole, as emulators can be, is not taken for a
/// stuck one. A look is made by a CPU that is not stuck, so that the only CPU of a machine is not watched.
#[derive(Debug)]
pub struct Watchdog<const N: usize> {
    hearts: [Heart; N],
    /// When the next look is due.
    next: AtomicU64,
    /// Ticks between looks.
    period: AtomicU64,
    /// How many looks a CPU may be silent.
    patience: AtomicU32,
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
            patience: AtomicU32::new(0),
        }
    }

    /// Begins to watch at `now`: a look each `period` ticks; a CPU that is silent for `patience` of them is stuck. 0: no watch.
    pub fn start(&self, now: Instant, period: u64, patience: u32) {
        self.period.store(period, Ordering::Relaxed);
        self.patience.store(patience, Ordering::Relaxed);
        if patience != 0 {
            self.next.store(now.ticks(), Ordering::Relaxed);
        }
    }

    /// The heart of CPU `cpu`.
    ///
    /// # Panics
    /// There is no such CPU.
    #[must_use]
    pub fn heart(&self, cpu: usize) -> &Heart {
        &self.hearts[cpu]
    }

    /// Whether a look is due at `now`, and this CPU is the one to make it.
    pub fn is_due(&self, now: Instant) -> bool {
        let due = self.next.load(Ordering::Relaxed);
        let next = now.after(self.period.load(Ordering::Relaxed)).ticks();
        now.ticks() >= due && self.next.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Looks at `cpus` CPUs; to be called if it [is due](Self::is_due). The CPU that is stuck, if one is: of several the one that
    /// fell silent first, for which the others may only wait.
    pub fn look(&self, cpus: usize, is_away: impl Fn(usize) -> bool) -> Option<usize> {
        let patience = self.patience.load(Ordering::Relaxed);
        let hearts = self.hearts.iter().take(cpus).enumerate();
        let silences = hearts.map(|(cpu, heart)| (heart.silence(is_away(cpu)), cpu));
        let (silent, cpu) = silences.max_by_key(|&(silent, cpu)| (silent, core::cmp::Reverse(cpu)))?;
        (patience != 0 && silent >= patience).then_some(cpu)
    }
}
