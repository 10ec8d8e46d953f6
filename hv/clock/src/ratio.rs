//! Conversion of one clock's ticks to another clock's.

use core::sync::atomic::{AtomicU64, Ordering};

/// The ratio of two clocks' frequencies, in units of 2⁻³². It is set once and read by all CPUs.
#[derive(Debug)]
pub struct Ratio(AtomicU64);

impl Ratio {
    /// Both clocks are equally fast.
    pub const fn one() -> Self {
        Self(AtomicU64::new(1 << 32))
    }

    /// Sets the ratio `to` / `from`, saturating at the largest.
    pub fn set(&self, to: u64, from: u64) {
        let ratio = (u128::from(to) << 32) / u128::from(from.max(1));
        self.0.store(u64::try_from(ratio).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// `ticks` times the ratio, rounded down and saturating.
    pub fn convert(&self, ticks: u64) -> u64 {
        let ticks = (u128::from(ticks) * u128::from(self.0.load(Ordering::Relaxed))) >> 32;
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::Ratio;
    use proptest::prelude::*;

    fn ratio(to: u64, from: u64) -> Ratio {
        let ratio = Ratio::one();
        ratio.set(to, from);
        ratio
    }

    #[test]
    fn what_does_not_fit_is_the_greatest_number() {
        assert_eq!(ratio(u64::MAX, 1).convert(u64::MAX), u64::MAX);
        assert_eq!(ratio(1, 0).convert(3), 3, "a clock that stands still counts as one tick");
    }

    proptest! {
        /// The ratio is rounded to 2⁻³², so the error stays below a millionth for clocks of 10 MHz to 10 GHz.
        #[test]
        fn there_and_back_loses_a_millionth_at_most(hertz in 10_000_000u64..10_000_000_000, ticks in 0u64..1 << 50) {
            let there = ratio(1_000_000_000, hertz).convert(ticks);
            let back = ratio(hertz, 1_000_000_000).convert(there);
            prop_assert!(back <= ticks);
            let rounding = hertz / 1_000_000_000 + 1;
            prop_assert!(ticks - back <= rounding + ticks / 1_000_000, "{} of {}", ticks - back, ticks);
        }
    }
}
