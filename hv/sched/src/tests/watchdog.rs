//! A stuck CPU is found, and no other.

use crate::{Instant, Watchdog};
use proptest::prelude::*;
use std::vec::Vec;

const CPUS: usize = 4;
const PERIOD: u64 = 1_000;
const MAX_MISSED: u32 = 10;

/// What a CPU does between two checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Period {
    /// It is in a guest or asleep at the check.
    Away,
    /// It handles exits, one after the other: busy, but not stuck.
    Exits,
    /// It stays in one exit's handling.
    Handles,
}

fn period() -> impl Strategy<Value = Period> {
    prop_oneof![Just(Period::Away), Just(Period::Exits), Just(Period::Handles)]
}

/// Runs the CPUs through their periods, with a check after each. Returns the CPU that was found stuck, and the period.
fn watch(watchdog: &Watchdog<CPUS>, cpus: &[Vec<Period>]) -> Option<(usize, usize)> {
    watchdog.start(Instant::new(0), PERIOD, MAX_MISSED);
    (0..cpus[0].len()).find_map(|at| {
        let here = |cpu: usize| cpus[cpu][at];
        (0..cpus.len()).filter(|&cpu| here(cpu) == Period::Exits).for_each(|cpu| watchdog.heart(cpu).beat());
        let now = Instant::new(at as u64 * PERIOD);
        assert!(watchdog.is_due(now) && !watchdog.is_due(now), "one check a period");
        watchdog.check(cpus.len(), |cpu| here(cpu) == Period::Away).map(|cpu| (cpu, at))
    })
}

/// The longest sequence of periods in one exit's handling.
fn longest_handling(periods: &[Period]) -> usize {
    periods.split(|period| *period != Period::Handles).map(<[_]>::len).max().unwrap_or(0)
}

proptest! {
    #[test]
    fn it_fires_for_a_stuck_cpu_and_never_else(
        cpus in prop::collection::vec(prop::collection::vec(period(), 60), CPUS),
        stuck in prop::option::of((0..CPUS, 0..48_usize)),
    ) {
        let mut cpus = cpus;
        if let Some((cpu, from)) = stuck {
            cpus[cpu][from..].fill(Period::Handles);
        }
        let found = watch(&Watchdog::new(), &cpus);
        match found {
            Some((cpu, at)) => prop_assert!(longest_handling(&cpus[cpu][..=at]) >= MAX_MISSED as usize),
            None => prop_assert!(cpus.iter().all(|periods| longest_handling(periods) < MAX_MISSED as usize)),
        }
        if let Some((_, from)) = stuck {
            prop_assert!(found.is_some_and(|(_, at)| at < from + MAX_MISSED as usize), "{found:?} after {from}");
        }
    }
}

#[test]
fn of_several_stuck_cpus_the_first_is_reported() {
    let mut cpus = std::vec![std::vec![Period::Handles; 30]; CPUS];
    cpus[0][0] = Period::Exits;
    cpus[1][..2].fill(Period::Away);
    cpus[3][0] = Period::Away;
    assert_eq!(watch(&Watchdog::new(), &cpus), Some((2, 9)));
}

#[test]
fn with_a_limit_of_0_it_does_not_watch() {
    let watchdog = Watchdog::<CPUS>::new();
    watchdog.start(Instant::new(0), PERIOD, 0);
    assert!(!watchdog.is_due(Instant::new(1 << 60)));
    for _ in 0..100 {
        assert_eq!(watchdog.check(CPUS, |_| false), None);
    }
}
