//! Notices a CPU that is stuck in the hypervisor.
//!
//! Every CPU that runs guests or sleeps is back in the hypervisor at least once a second, and says so. One that is in the
//! hypervisor and says nothing for long is stuck: with interrupts off nothing else would ever tell.

use crate::panic;
use crate::smp::{self, MAX_CPUS};
use crate::tables;
use crate::timer::{self, Deadline};
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

/// Turns of each CPU's loop so far.
static BEATS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// What was last seen of them, and since when, in ticks of the TSC.
static SEEN: [(AtomicU64, AtomicU64); MAX_CPUS] = [const { (AtomicU64::new(0), AtomicU64::new(0)) }; MAX_CPUS];

/// How long a CPU may be silent, in ticks of the TSC; 0 is for ever.
static PATIENCE: AtomicU64 = AtomicU64::new(0);

/// Begins to watch.
pub(crate) fn start(patience: Duration) {
    PATIENCE.store(timer::ticks(patience.as_nanos() as u64), Ordering::Relaxed);
}

/// CPU `cpu` is alive, and looks whether the others are.
pub(crate) fn beat(cpu: usize) {
    BEATS[cpu].fetch_add(1, Ordering::Relaxed);
    let patience = PATIENCE.load(Ordering::Relaxed);
    if patience == 0 {
        return;
    }
    for other in (0..smp::cpus()).filter(|&other| other != cpu) {
        let (beats, since) = &SEEN[other];
        let now = BEATS[other].load(Ordering::Relaxed);
        if beats.swap(now, Ordering::Relaxed) != now || tables::is_away(other) {
            since.store(timer::tsc(), Ordering::Relaxed);
        } else if now != 0 && Deadline::at(since.load(Ordering::Relaxed).saturating_add(patience)).is_past() {
            panic::stuck(other);
        }
    }
}
