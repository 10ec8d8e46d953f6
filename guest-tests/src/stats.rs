//! Distributions of samples.

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
