//! Intervals of positive numbers.

const MILLION: u128 = 1_000_000;

/// A positive number from `low` to `high`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interval {
    pub(crate) low: u64,
    pub(crate) high: u64,
}

impl Interval {
    /// `ticks` times `hertz` divided by `count`, where `count` may be off by one. None if the result has no bound or is 0.
    pub(crate) fn rate(ticks: Self, hertz: u64, count: u64) -> Option<Self> {
        let least = count.checked_sub(1).filter(|&count| count != 0)?;
        let low = u128::from(ticks.low) * u128::from(hertz) / (u128::from(count) + 1);
        let high = (u128::from(ticks.high) * u128::from(hertz)).div_ceil(u128::from(least));
        let (low, high) = (u64::try_from(low).ok()?, u64::try_from(high).ok()?);
        (high != 0).then_some(Self { low, high })
    }

    /// The intersection of both, if it is not empty.
    pub(crate) fn and(self, other: Self) -> Option<Self> {
        let both = Self { low: self.low.max(other.low), high: self.high.min(other.high) };
        (both.low <= both.high).then_some(both)
    }

    /// The smallest interval that contains both.
    pub(crate) fn hull(self, other: Self) -> Self {
        Self { low: self.low.min(other.low), high: self.high.max(other.high) }
    }

    /// The middle; never 0.
    pub(crate) fn middle(self) -> u64 {
        (self.low + (self.high - self.low) / 2).max(1)
    }

    /// Its width in millionths of its middle.
    pub(crate) fn spread(self) -> u64 {
        let spread = u128::from(self.high - self.low) * MILLION / u128::from(self.middle());
        u64::try_from(spread).unwrap_or(u64::MAX)
    }
}
