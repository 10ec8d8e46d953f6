//! Machines in virtual time, with random delays.

use crate::{Calibration, PIT_RELOAD, Pit, Quality, Reference, TOLERANCE, Timers, calibrate};
use proptest::prelude::*;
use std::vec::Vec;

/// A machine in virtual time.
#[derive(Clone, Debug)]
struct Simulated {
    tsc_hertz: u64,
    apic_hertz: u64,
    /// None: the machine has no 8254, and reads ones.
    pit_hertz: Option<u64>,
    pm_hertz: Option<u64>,
    hint: Option<u64>,
    /// Nanoseconds since some moment, and when the counters were started.
    now: u64,
    started: u64,
    /// The delays before and after each access to a clock, in turn.
    delays: Vec<u64>,
    next: usize,
}

impl Simulated {
    fn new(tsc_hertz: u64) -> Self {
        Self {
            tsc_hertz,
            apic_hertz: 100_000_000,
            pit_hertz: Some(1_193_182),
            pm_hertz: Some(3_579_545),
            hint: None,
            now: 5_000_000_000,
            started: 0,
            delays: std::vec![500],
            next: 0,
        }
    }

    fn pass(&mut self) {
        self.now += self.delays[self.next % self.delays.len()];
        self.next += 1;
    }

    /// A clock's value at one moment of the access.
    fn access(&mut self, hertz: u64, since: u64) -> u64 {
        self.pass();
        let value = u128::from(self.now - since) * u128::from(hertz) / 1_000_000_000;
        self.pass();
        value as u64
    }

    fn is_right(&self, calibration: &Calibration) -> bool {
        let is_near = |is: u128, should: u128| is.abs_diff(should) * 1_000_000 <= should * u128::from(TOLERANCE);
        let (count, ticks) = calibration.apic.unwrap_or((self.apic_hertz, self.tsc_hertz));
        is_near(calibration.tsc_hertz.into(), self.tsc_hertz.into())
            && is_near(u128::from(count) * u128::from(self.tsc_hertz), u128::from(ticks) * u128::from(self.apic_hertz))
    }
}

impl Timers for Simulated {
    fn tsc(&mut self) -> u64 {
        self.now += 10;
        (u128::from(self.now) * u128::from(self.tsc_hertz) / 1_000_000_000) as u64
    }

    fn start(&mut self) {
        self.pass();
        self.started = self.now;
        self.pass();
    }

    fn pit(&mut self) -> Pit {
        let Some(hertz) = self.pit_hertz else { return Pit { count: 0xffff, is_over: true } };
        let count = PIT_RELOAD.wrapping_sub(self.access(hertz, self.started) as u16);
        let is_over = self.access(hertz, self.started) >= PIT_RELOAD.into();
        Pit { count, is_over }
    }

    fn pm_timer(&mut self) -> Option<u32> {
        let hertz = self.pm_hertz?;
        // The PM timer has 32 bits.
        Some(self.access(hertz, 0) as u32)
    }

    fn apic(&mut self) -> u32 {
        u32::MAX - u32::try_from(self.access(self.apic_hertz, self.started)).unwrap_or(u32::MAX)
    }

    fn hint(&self) -> Option<u64> {
        self.hint
    }
}

#[test]
fn two_references_agree_on_an_idle_machine() {
    let mut machine = Simulated::new(2_994_374_000);
    let calibration = calibrate(&mut machine);
    assert_eq!(calibration.quality, Quality::Agreed);
    assert!(calibration.is_certain() && !Calibration { apic: None, ..calibration }.is_certain());
    assert!(machine.is_right(&calibration) && calibration.apic.is_some(), "{calibration}");
    assert!(machine.now < 5_020_000_000, "the first window does");
}

#[test]
fn a_machine_with_one_reference_says_so() {
    for (pit, pm, reference) in [
        (Some(1_193_182), None, Reference::Pit),
        (None, Some(3_579_545), Reference::PmTimer),
        // It stands still.
        (Some(1_193_182), Some(0), Reference::Pit),
    ] {
        let mut machine = Simulated { pit_hertz: pit, pm_hertz: pm, ..Simulated::new(1_500_000_000) };
        let calibration = calibrate(&mut machine);
        assert_eq!(calibration.quality, Quality::Single(reference));
        assert!(!calibration.is_certain());
        assert!(machine.is_right(&calibration));
        machine.hint = Some(1_500_000_000);
        assert_eq!(calibrate(&mut machine).quality, Quality::Agreed);
        machine.hint = Some(1_600_000_000);
        assert_eq!(calibrate(&mut machine).quality, Quality::Doubtful);
    }
}

#[test]
fn a_machine_without_references_goes_by_cpuid_or_says_that_it_guesses() {
    let none = Simulated { pit_hertz: None, pm_hertz: None, ..Simulated::new(2_000_000_000) };
    let hinted = calibrate(&mut Simulated { hint: Some(2_000_000_000), ..none.clone() });
    assert_eq!((hinted.tsc_hertz, hinted.quality), (2_000_000_000, Quality::Single(Reference::Hint)));
    assert_eq!(calibrate(&mut none.clone()).quality, Quality::Doubtful);
    assert_eq!(calibrate(&mut Simulated { hint: Some(0), ..none }).tsc_hertz, 1_000_000_000);
}

#[test]
fn an_apic_timer_that_stands_still_is_reported() {
    let mut machine = Simulated { apic_hertz: 0, ..Simulated::new(2_000_000_000) };
    let calibration = calibrate(&mut machine);
    assert_eq!((calibration.apic, calibration.quality), (None, Quality::Agreed));
}

/// More than a few windows use.
const DELAYS: usize = 200_000;

/// A delay at an access: mostly short, sometimes as long as a scheduler's time slice, rarely much longer.
fn delay() -> impl Strategy<Value = u64> {
    prop_oneof![40 => 100u64..3_000, 2 => 3_000u64..1_000_000, 1 => 1_000_000u64..20_000_000, 1 => 20_000_000u64..200_000_000]
}

/// A broken machine, which reads anything.
struct Garbage {
    values: Vec<u64>,
    next: usize,
}

impl Garbage {
    fn any(&mut self) -> u64 {
        self.next += 1;
        self.values[self.next % self.values.len()]
    }
}

impl Timers for Garbage {
    const MAX_POLLS: u32 = 100;

    fn tsc(&mut self) -> u64 {
        self.any()
    }

    fn start(&mut self) {}

    fn pit(&mut self) -> Pit {
        let value = self.any();
        Pit { count: value as u16, is_over: value >> 16 & 3 == 0 }
    }

    fn pm_timer(&mut self) -> Option<u32> {
        Some(self.any() as u32)
    }

    fn apic(&mut self) -> u32 {
        self.any() as u32
    }

    fn hint(&self) -> Option<u64> {
        Some(self.values[0]).filter(|value| value & 1 == 0)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_result_that_is_not_doubtful_is_right_whatever_the_delays(
        tsc_hertz in 500_000_000u64..6_000_000_000,
        apic_hertz in 20_000_000u64..1_500_000_000,
        delays in prop::collection::vec(delay(), 1..400),
    ) {
        let mut machine = Simulated { apic_hertz, delays, ..Simulated::new(tsc_hertz) };
        let calibration = calibrate(&mut machine);
        prop_assert!(calibration.quality == Quality::Doubtful || machine.is_right(&calibration), "{}", calibration);
    }

    #[test]
    fn a_single_delay_does_not_make_the_result_doubtful(
        tsc_hertz in 500_000_000u64..6_000_000_000,
        at in 0usize..DELAYS,
        delay in 1_000_000u64..60_000_000,
    ) {
        let mut delays = std::vec![500; DELAYS];
        delays[at] = delay;
        let mut machine = Simulated { delays, ..Simulated::new(tsc_hertz) };
        let calibration = calibrate(&mut machine);
        prop_assert_eq!(calibration.quality, Quality::Agreed);
        prop_assert!(machine.is_right(&calibration));
    }

    #[test]
    fn references_that_disagree_are_reported(
        error in prop_oneof![900_000u64..990_000, 1_010_000u64..1_100_000],
        delays in prop::collection::vec(delay(), 1..400),
    ) {
        let pm_hertz = Some(3_579_545 * error / 1_000_000);
        let mut machine = Simulated { pm_hertz, delays, ..Simulated::new(3_000_000_000) };
        let quality = calibrate(&mut machine).quality;
        // Where the 8254 could never be read in time, nothing contradicts the other.
        prop_assert!(matches!(quality, Quality::Doubtful | Quality::Single(Reference::PmTimer)), "{:?}", quality);
    }

    #[test]
    fn whatever_is_read_there_is_an_end_and_a_frequency(values in prop::collection::vec(any::<u64>(), 1..50)) {
        let calibration = calibrate(&mut Garbage { values, next: 0 });
        prop_assert!(calibration.tsc_hertz != 0);
        prop_assert!(calibration.apic.is_none_or(|(count, ticks)| count != 0 && ticks != 0));
    }
}
