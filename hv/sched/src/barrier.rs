//! The first guest starts when all CPUs are ready.

use crate::rules::Rule;
use model::sync::{AtomicUsize, Ordering, relax};
use model::{const_unless_loom, kept};

/// All CPUs make their vCPUs before the first guest starts: what can fail for want of memory, or because a CPU lacks something, fails
/// before that. Between the two, the boot CPU notes that guests run.
///
/// ```text
///   CPU 0     ready ─── all are ready ── opens ── release ───▶ guests
///   others    ready ─────────────────────────────── released? ──▶ guests
/// ```
///
/// ```
/// let barrier = sched::StartBarrier::new();
/// let mut opened = false;
/// barrier.wait(0, 1, || opened = true);
/// assert!(opened);
/// ```
#[derive(Debug)]
pub struct StartBarrier {
    /// How many CPUs are ready; one more than there are: they are released.
    ready: AtomicUsize,
}

impl StartBarrier {
    const_unless_loom! {
        /// No CPU is ready.
        pub fn new() -> Self {
            Self { ready: AtomicUsize::new(0) }
        }
    }

    /// CPU `cpu` of `cpus` is ready. Returns when all are, and CPU 0 has called `open`, as it does before it releases the others.
    pub fn wait(&self, cpu: usize, cpus: usize, open: impl FnOnce()) {
        let released = cpus + 1;
        let order = if kept(Rule::ReadyReleases) { Ordering::AcqRel } else { Ordering::Relaxed };
        self.ready.fetch_add(1, order);
        if cpu == 0 {
            while kept(Rule::AllReady) && self.ready.load(Ordering::Acquire) < cpus {
                relax();
            }
            open();
            let order = if kept(Rule::OpenReleases) { Ordering::Release } else { Ordering::Relaxed };
            self.ready.store(released, order);
        }
        while self.ready.load(Ordering::Acquire) < released {
            relax();
        }
    }
}

impl Default for StartBarrier {
    fn default() -> Self {
        Self::new()
    }
}
