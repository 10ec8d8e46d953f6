//! Notices a CPU that is stuck in the hypervisor, where with interrupts off nothing else would ever tell.
//!
//! Each CPU's heart beats whenever it is about to enter a guest, whenever it has slept, and while it waits for a grace period.
//! About once a second one of the CPUs that were interrupted, or wait so, [looks](look) at all hearts. A CPU that was found in
//! the hypervisor, without a beat since the last look, at as many looks in a row as it has seconds, is stuck: the machine ends,
//! by [`panic::stuck`]. Long before, a warning names who holds up a grace period.
//!
//! Looks are counted, rather than time, so that a machine that was stopped as a whole, as emulators can be, is not taken for
//! a stuck one. The only CPU of a machine has nobody to look after it.

use crate::panic;
use crate::smp::{self, MAX_CPUS};
use crate::tables;
use crate::timer::{self, Deadline};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

/// From one look to the next. Every CPU in guest mode or asleep comes back as often as that, to look.
const PERIOD: Duration = Duration::from_secs(1);

/// A CPU's heart, in a cache line that others only read, but for a look a second.
#[repr(align(64))]
pub(crate) struct Heart {
    /// Written by its own CPU alone.
    beats: AtomicU64,
    /// What the last look saw of them.
    seen: AtomicU64,
    /// Looks in a row that found the CPU in the hypervisor and no beat.
    silent: AtomicU32,
}

static HEARTS: [Heart; MAX_CPUS] = [const { Heart::new() }; MAX_CPUS];

/// When the next look is due, in ticks of the TSC; never before [`start`].
static NEXT: AtomicU64 = AtomicU64::new(u64::MAX);

/// How many looks a CPU may be silent.
static PATIENCE: AtomicU32 = AtomicU32::new(0);

/// Begins to watch: after so many seconds of silence a CPU is stuck; 0 is never.
pub(crate) fn start(patience: u32) {
    PATIENCE.store(patience, Ordering::Relaxed);
    if patience != 0 {
        NEXT.store(timer::tsc(), Ordering::Relaxed);
    }
}

/// When a CPU has to look at the latest.
pub(crate) fn next_look() -> Deadline {
    Deadline::after(PERIOD)
}

/// The heart of CPU `cpu`.
pub(crate) fn heart(cpu: usize) -> &'static Heart {
    &HEARTS[cpu]
}

impl Heart {
    const fn new() -> Self {
        Self { beats: AtomicU64::new(0), seen: AtomicU64::new(0), silent: AtomicU32::new(0) }
    }

    /// Its CPU is alive. Costs an increment of a CPU's own cache line, without LOCK.
    #[inline]
    pub(crate) fn beat(&self) {
        self.beats.store(self.beats.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// How many looks have found no beat, with this one.
    fn silence(&self, is_away: bool) -> u32 {
        let beats = self.beats.load(Ordering::Relaxed);
        let silent = match is_away || self.seen.swap(beats, Ordering::Relaxed) != beats {
            true => 0,
            false => self.silent.load(Ordering::Relaxed) + 1,
        };
        self.silent.store(silent, Ordering::Relaxed);
        silent
    }
}

/// Looks after all CPUs, if that is due and nobody else is at it. To be called by a CPU that has had a beat since it last did.
pub(crate) fn look() {
    let (now, due) = (timer::tsc(), NEXT.load(Ordering::Relaxed));
    let next = now.saturating_add(timer::ticks(PERIOD.as_nanos() as u64));
    if now >= due && NEXT.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        look_at_all();
    }
}

#[cold]
fn look_at_all() {
    let patience = PATIENCE.load(Ordering::Relaxed);
    let silences = (0..smp::cpus()).map(|cpu| (heart(cpu).silence(tables::is_away(cpu)), cpu));
    // Of several the first to fall silent: the others may only wait for it.
    if let Some((silent, cpu)) = silences.max_by_key(|&(silent, cpu)| (silent, core::cmp::Reverse(cpu)))
        && silent >= patience
    {
        panic::stuck(cpu);
    }
    let patience = Duration::from_secs(patience.into()) / 2;
    for stall in tables::stalls(timer::ticks(patience.as_nanos() as u64)) {
        let held_up = timer::nanoseconds(stall.ticks) / 1_000_000;
        log::warn!("CPU {} holds up a grace period for {held_up} ms: {:?}", stall.cpu, stall.mode);
    }
    panic::report_nmis();
}
