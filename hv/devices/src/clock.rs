//! The time that the devices see.

/// Nanoseconds since the VM's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nanoseconds(pub u64);

const PER_SECOND: u64 = 1_000_000_000;

// Seconds and the rest are converted each by itself: the products then have 64 bits, and a division by a constant is a
// multiplication. Divisions of 128 bits, which are a loop, would be most of what a read of a timer costs.
impl Nanoseconds {
    /// Whole seconds.
    pub(crate) const fn seconds(self) -> u64 {
        self.0 / PER_SECOND
    }

    /// Whole ticks of an oscillator of `hertz`, modulo 2^64.
    #[inline]
    pub(crate) const fn to_ticks(self, hertz: u32) -> u64 {
        let (seconds, rest) = (self.0 / PER_SECOND, self.0 % PER_SECOND);
        seconds.wrapping_mul(hertz as u64).wrapping_add(rest * hertz as u64 / PER_SECOND)
    }

    /// The first time at which that many ticks of an oscillator of `hertz` have passed, saturating at the last.
    #[inline]
    pub(crate) const fn from_ticks(ticks: u64, hertz: u32) -> Self {
        let (seconds, rest) = (ticks / hertz as u64, ticks % hertz as u64);
        Self(seconds.saturating_mul(PER_SECOND).saturating_add((rest * PER_SECOND).div_ceil(hertz as u64)))
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
    use proptest::prelude::*;

    #[test]
    fn a_second_has_as_many_ticks_as_its_hertz() {
        assert_eq!(Nanoseconds(PER_SECOND).to_ticks(1_193_182), 1_193_182);
        assert_eq!(Nanoseconds(838).to_ticks(1_193_182), 0);
        assert_eq!(Nanoseconds(839).to_ticks(1_193_182), 1);
    }

    proptest! {
        #[test]
        fn a_tick_has_passed_at_its_time_and_not_before(ticks in 1u64..1 << 40, hertz in 1u32..10_000_000) {
            let time = Nanoseconds::from_ticks(ticks, hertz);
            prop_assert_eq!(time.to_ticks(hertz), ticks.max(time.to_ticks(hertz)));
            prop_assert!(Nanoseconds(time.0 - 1).to_ticks(hertz) < ticks);
        }

        #[test]
        fn both_conversions_are_exact(nanoseconds: u64, ticks: u64, hertz in 1u32..) {
            let per_second = u128::from(PER_SECOND);
            let exact = u128::from(nanoseconds) * u128::from(hertz) / per_second;
            prop_assert_eq!(Nanoseconds(nanoseconds).to_ticks(hertz), exact as u64);
            let exact = (u128::from(ticks) * per_second).div_ceil(hertz.into());
            prop_assert_eq!(Nanoseconds::from_ticks(ticks, hertz).0, u64::try_from(exact).unwrap_or(u64::MAX));
        }
    }
}
