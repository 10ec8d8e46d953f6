//! The time that the devices see.

/// Nanoseconds since the VM's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nanoseconds(pub u64);

const PER_SECOND: u128 = 1_000_000_000;

impl Nanoseconds {
    /// Whole seconds.
    pub(crate) const fn seconds(self) -> u64 {
        self.0 / PER_SECOND as u64
    }

    /// Whole ticks of an oscillator of `hertz`.
    pub(crate) const fn to_ticks(self, hertz: u32) -> u64 {
        (self.0 as u128 * hertz as u128 / PER_SECOND) as u64
    }

    /// The first time at which that many ticks of an oscillator of `hertz` have passed, saturating at the last.
    pub(crate) const fn from_ticks(ticks: u64, hertz: u32) -> Self {
        let time = (ticks as u128 * PER_SECOND).div_ceil(hertz as u128);
        Self(if time > u64::MAX as u128 { u64::MAX } else { time as u64 })
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
        assert_eq!(Nanoseconds(PER_SECOND as u64).to_ticks(1_193_182), 1_193_182);
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
    }
}
