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

    /// As [`convert`](Self::convert), but modulo 2⁶⁴: for a count that does not come that far, which costs less.
    #[inline]
    pub fn convert_modulo(&self, ticks: u64) -> u64 {
        ((u128::from(ticks) * u128::from(self.0.load(Ordering::Relaxed))) >> 32) as u64
    }

    /// The initial count with which a timer of 32 bits, the other clock, ends `ticks` from now at the earliest. It is one more than the
    /// quotient, which is rounded down: a timer that is early has to be started again for nothing. A count that has too many bits
    /// is the largest, so that the timer is early.
    pub fn timer_count(&self, ticks: u64) -> u32 {
        u32::try_from(self.convert(ticks).saturating_add(1)).unwrap_or(u32::MAX)
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

    #[test]
    fn a_count_that_does_not_fit_is_the_largest() {
        assert_eq!(
            [0, u64::from(u32::MAX), u64::MAX].map(|ticks| ratio(1, 1).timer_count(ticks)),
            [1, u32::MAX, u32::MAX]
        );
    }

    proptest! {
        #[test]
        fn a_timer_is_never_early_nor_later_than_two_of_its_ticks(to in 1u64..1 << 16, from in 1u64..1 << 16, ticks in 0u64..1 << 15) {
            // In units in which a tick of the one clock takes `to`, and one of the timer takes `from`.
            let (wanted, waited) = (u128::from(ticks * to), u128::from(ratio(to, from).timer_count(ticks)) * u128::from(from));
            prop_assert!(wanted <= waited && waited <= wanted + 2 * u128::from(from), "{wanted} {waited}");
        }

        /// The ratio is rounded to 2⁻³², so the error stays below a millionth for clocks of 10 MHz to 10 GHz.
        #[test]
        fn there_and_back_loses_a_millionth_at_most(hertz in 10_000_000u64..10_000_000_000, ticks in 0u64..1 << 50) {
            let there = ratio(1_000_000_000, hertz).convert(ticks);
            prop_assert_eq!(ratio(1_000_000_000, hertz).convert_modulo(ticks), there);
            let back = ratio(hertz, 1_000_000_000).convert(there);
            prop_assert!(back <= ticks);
            let rounding = hertz / 1_000_000_000 + 1;
            prop_assert!(ticks - back <= rounding + ticks / 1_000_000, "{} of {}", ticks - back, ticks);
        }
    }
}
