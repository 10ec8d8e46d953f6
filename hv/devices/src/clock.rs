//! The time that the devices see.

/// Nanoseconds since the VM's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nanoseconds(pub u64);

const PER_SECOND: u64 = 1_000_000_000;

impl Nanoseconds {
    /// Whole seconds.
    pub(crate) const fn seconds(self) -> u64 {
        self.0 / PER_SECOND
    }

    /// Whole ticks of an oscillator of `HERTZ`.
    #[inline]
    pub(crate) const fn to_ticks<const HERTZ: u32>(self) -> u64 {
        // Divisions of 128 bits, which are a loop, would be most of what a read of a timer costs.
        let Fraction { high, low } = const { Fraction::of_a_second(HERTZ) };
        let time = self.0 as u128;
        ((time * high as u128 + ((time * low as u128) >> 64)) >> 64) as u64
    }

    /// The first time at which that many ticks of an oscillator of `hertz` have passed, saturating at the last.
    #[inline]
    pub(crate) const fn from_ticks(ticks: u64, hertz: u32) -> Self {
        let (seconds, rest) = (ticks / hertz as u64, ticks % hertz as u64);
        Self(seconds.saturating_mul(PER_SECOND).saturating_add((rest * PER_SECOND).div_ceil(hertz as u64)))
    }
}

/// How many ticks a nanosecond has, as a fraction of 128 bits.
struct Fraction {
    high: u64,
    low: u64,
}

impl Fraction {
    /// Rounded up. Times 64 bits the error stays below 2^-64 of a tick, and a time that is no whole number of ticks is a billionth of
    /// one away from that at least: whole ticks are exact.
    const fn of_a_second(hertz: u32) -> Self {
        assert!((hertz as u64) < PER_SECOND);
        let numerator = (hertz as u128) << 64;
        let rest = numerator % PER_SECOND as u128;
        let low = (rest << 64).div_ceil(PER_SECOND as u128);
        Self { high: (numerator / PER_SECOND as u128) as u64, low: low as u64 }
    }
}

/// A clock that never goes back.
pub trait Clock {
    /// The time now.
    fn now(&self) -> Nanoseconds;
}

impl<C: Clock> Clock for &C {
    fn now(&self) -> Nanoseconds {
        (**self).now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::timers::{PIT_HERTZ, PM_TIMER_HERTZ};
    use proptest::prelude::*;

    #[test]
    fn a_second_has_as_many_ticks_as_its_hertz() {
        assert_eq!(Nanoseconds(PER_SECOND).to_ticks::<PIT_HERTZ>(), 1_193_182);
        assert_eq!(Nanoseconds(838).to_ticks::<PIT_HERTZ>(), 0);
        assert_eq!(Nanoseconds(839).to_ticks::<PIT_HERTZ>(), 1);
    }

    /// The conversions for an oscillator.
    fn check<const HERTZ: u32>(nanoseconds: u64, ticks: u64) {
        let per_second = u128::from(PER_SECOND);
        let exact = u128::from(nanoseconds) * u128::from(HERTZ) / per_second;
        assert_eq!(u128::from(Nanoseconds(nanoseconds).to_ticks::<HERTZ>()), exact);
        let exact = (u128::from(ticks) * per_second).div_ceil(HERTZ.into());
        let time = Nanoseconds::from_ticks(ticks, HERTZ);
        assert_eq!(time.0, u64::try_from(exact).unwrap_or(u64::MAX));
        if time.0 != u64::MAX {
            assert_eq!(time.to_ticks::<HERTZ>(), ticks, "it has passed then");
            assert!(time.0 == 0 || Nanoseconds(time.0 - 1).to_ticks::<HERTZ>() < ticks, "and not before");
        }
    }

    proptest! {
        #[test]
        fn both_conversions_are_exact(nanoseconds: u64, ticks in prop_oneof![any::<u64>(), 0u64..1 << 44]) {
            check::<PIT_HERTZ>(nanoseconds, ticks);
            check::<PM_TIMER_HERTZ>(nanoseconds, ticks);
            check::<32_768>(nanoseconds, ticks);
            check::<{ 512 * 15_625 }>(nanoseconds, ticks);
        }
    }
}
