//! Distributions of samples.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// The most samples that [`take_buffer`] has room for.
pub const MOST_SAMPLES: usize = 32 << 10;

struct Buffer {
    samples: UnsafeCell<[u64; MOST_SAMPLES]>,
    taken: AtomicBool,
}

// SAFETY: `take_buffer` hands out the only reference to the samples, once.
unsafe impl Sync for Buffer {}

static BUFFER: Buffer = Buffer { samples: UnsafeCell::new([0; MOST_SAMPLES]), taken: AtomicBool::new(false) };

/// Room for samples, every page of it touched already; None from the second time on.
pub fn take_buffer() -> Option<&'static mut [u64]> {
    if BUFFER.taken.swap(true, Relaxed) {
        return None;
    }
    // SAFETY: this is the first and only time, and the static lives for ever.
    let samples = unsafe { &mut *BUFFER.samples.get() };
    // Not 0, which the image's .bss is: the compiler may not take the write for one that changes nothing.
    samples.fill(u64::MAX);
    Some(samples)
}

/// What is told of a distribution.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Summary {
    /// How many samples there were.
    pub samples: usize,
    /// The smallest.
    pub min: u64,
    /// The smallest sample that half of them do not exceed.
    pub median: u64,
    /// The smallest sample that 99 % of them do not exceed.
    pub p99: u64,
    /// The largest.
    pub max: u64,
}

impl Summary {
    /// Sorts `samples` in place and sums them up (percentiles by nearest rank); None if there are none.
    pub fn of(samples: &mut [u64]) -> Option<Self> {
        samples.sort_unstable();
        let count = samples.len();
        let percentile = |percent: usize| samples.get((count * percent).div_ceil(100).saturating_sub(1)).copied();
        Some(Self {
            samples: count,
            min: *samples.first()?,
            median: percentile(50)?,
            p99: percentile(99)?,
            max: *samples.last()?,
        })
    }
}
