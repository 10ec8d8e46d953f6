//! Calibration by windows of time.

use crate::interval::Interval;
use abi::timers::{PIT_HERTZ, PM_TIMER_HERTZ, PM_TIMER_MASK};
use core::fmt;

/// The largest uncertainty of a frequency, in millionths: the width of the interval that contains the results of all references.
pub const TOLERANCE: u64 = 1000;

/// The initial count of the 8254: the largest that can be told from 0 when it is read.
pub const PIT_RELOAD: u16 = 0xffff;

/// The lengths of the windows, in milliseconds, in order. The 8254 counts for 54.9 ms.
const WINDOWS: [u64; 7] = [10, 20, 40, 40, 40, 40, 40];

/// How often a value is read at each end of a window. The reading that took least time is used.
const READINGS: usize = 4;

/// A window ends after this many ticks of the TSC, even if no reference shows its end: within a second at 1 GHz or more.
const MOST_TICKS: u64 = 1 << 30;

/// How far CPUID's frequency of the TSC may be off, in millionths, to count as a second reference.
const HINT_TOLERANCE: u64 = 10_000;

/// A reading of the 8254's channel 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pit {
    /// The latched count.
    pub count: u16,
    /// The output, read after the count. High: the count has passed 0 and wrapped around.
    pub is_over: bool,
}

/// The clocks and timers of a machine.
pub trait Timers {
    /// How often a window checks for its end at most. This bounds a window where neither the TSC nor a reference counts.
    const MAX_POLLS: u32 = 1 << 22;

    /// The time-stamp counter.
    fn tsc(&mut self) -> u64;
    /// Starts the 8254's channel 2 at [`PIT_RELOAD`] (mode 0), and the local APIC's timer at 2³² - 1.
    fn start(&mut self);
    /// The 8254's channel 2. A machine without an 8254 reads ones.
    fn pit(&mut self) -> Pit;
    /// ACPI's PM timer. None if the machine has none.
    fn pm_timer(&mut self) -> Option<u32>;
    /// The local APIC's timer.
    fn apic(&mut self) -> u32;
    /// The TSC's frequency in Hz by CPUID (leaf 15h), if it is given there.
    fn hint(&self) -> Option<u64> {
        None
    }
}

/// A clock of known frequency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference {
    /// The 8254, at 1.193182 MHz.
    Pit,
    /// ACPI's PM timer, at 3.579545 MHz.
    PmTimer,
    /// CPUID.
    Hint,
}

/// The quality of a calibration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quality {
    /// Two references agree within [`TOLERANCE`].
    Agreed,
    /// There is only one reference.
    Single(Reference),
    /// References disagree, or no reading was close enough.
    Doubtful,
}

/// The result of a calibration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calibration {
    /// The TSC's frequency in Hz; never 0.
    pub tsc_hertz: u64,
    /// Ticks of the local APIC's timer, and ticks of the TSC in the same time; neither is 0. None if the timer does not count.
    pub apic: Option<(u64, u64)>,
    /// The uncertainty of the TSC's frequency, in millionths.
    pub spread: u64,
    /// The quality.
    pub quality: Quality,
}

impl Calibration {
    /// Whether all clocks count and agree. If not, a user has to know.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        self.quality == Quality::Agreed && self.apic.is_some()
    }
}

impl fmt::Display for Calibration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kilohertz, spread) = (self.tsc_hertz / 1000, self.spread);
        write!(f, "TSC: {}.{:03} MHz, ", kilohertz / 1000, kilohertz % 1000)?;
        match self.quality {
            Quality::Agreed => write!(f, "by two references that agree within {spread} ppm"),
            Quality::Single(reference) => write!(f, "within {spread} ppm by {reference} alone"),
            Quality::Doubtful => write!(f, "in doubt: the references leave a spread of {spread} ppm"),
        }?;
        match self.apic {
            Some(_) => Ok(()),
            None => f.write_str("; the local APIC's timer does not count"),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pit => "the 8254",
            Self::PmTimer => "the PM timer",
            Self::Hint => "CPUID",
        })
    }
}

/// Calibrates `timers`. It ends whatever they read, and takes less than half a second where they work.
pub fn calibrate<M: Timers>(timers: &mut M) -> Calibration {
    let hint = timers.hint();
    let has_pm_timer = timers.pm_timer().is_some();
    let mut best: Option<Calibration> = None;
    for milliseconds in WINDOWS {
        let Some(this) = Window::watch(timers, milliseconds).result(hint) else { continue };
        if this.is_final(has_pm_timer) {
            return this;
        }
        best = Some(best.filter(|best| best.rank() <= this.rank()).unwrap_or(this));
    }
    best.unwrap_or(Calibration {
        tsc_hertz: hint.filter(|&hertz| hertz != 0).unwrap_or(1_000_000_000),
        apic: None,
        spread: 0,
        quality: hint.map_or(Quality::Doubtful, |_| Quality::Single(Reference::Hint)),
    })
}

impl Calibration {
    /// Whether another window can't improve it.
    fn is_final(&self, has_pm_timer: bool) -> bool {
        let is_certain = match self.quality {
            Quality::Agreed => true,
            Quality::Single(_) => !has_pm_timer,
            Quality::Doubtful => false,
        };
        is_certain && self.apic.is_some()
    }

    /// The lowest rank is the best.
    fn rank(&self) -> (bool, bool, u64) {
        (self.quality == Quality::Doubtful, self.apic.is_none(), self.spread)
    }
}

/// A value, and the TSC before and after it was read.
#[derive(Clone, Copy, Debug)]
struct Reading {
    before: u64,
    value: u64,
    after: u64,
}

impl Reading {
    /// Reads a value [`READINGS`] times, and returns the reading that took least time. None if the value can't be read.
    fn take<M: Timers>(timers: &mut M, read: fn(&mut M) -> Option<u64>) -> Option<Self> {
        let one = |_| {
            let before = timers.tsc();
            let value = read(timers)?;
            Some(Self { before, value, after: timers.tsc() })
        };
        (0..READINGS).filter_map(one).min_by_key(|reading| reading.after.wrapping_sub(reading.before))
    }

    /// The ticks of the TSC from `self` to `end`. None if the TSC went back or stood still.
    fn ticks_to(self, end: Self) -> Option<Interval> {
        let low = end.before.checked_sub(self.after)?;
        let high = end.after.checked_sub(self.before)?;
        (low <= high && high != 0).then_some(Interval { low, high })
    }
}

/// The ticks of the 8254 since its start. None if it has wrapped around.
fn pit<M: Timers>(timers: &mut M) -> Option<u64> {
    let Pit { count, is_over } = timers.pit();
    (!is_over).then_some((PIT_RELOAD - count).into())
}

fn pm_timer<M: Timers>(timers: &mut M) -> Option<u64> {
    timers.pm_timer().map(|value| (value & PM_TIMER_MASK).into())
}

/// The ticks of the local APIC's timer since its start. None if it has stopped at 0.
fn apic<M: Timers>(timers: &mut M) -> Option<u64> {
    let count = timers.apic();
    (count != 0).then_some((u32::MAX - count).into())
}

/// Readings of all clocks, one after the other.
#[derive(Clone, Copy, Debug)]
struct Readings {
    pit: Option<Reading>,
    pm_timer: Option<Reading>,
    apic: Option<Reading>,
}

impl Readings {
    fn take<M: Timers>(timers: &mut M) -> Self {
        Self {
            pit: Reading::take(timers, pit),
            pm_timer: Reading::take(timers, pm_timer),
            apic: Reading::take(timers, apic),
        }
    }
}

/// A window of time.
struct Window {
    start: Readings,
    end: Readings,
}

impl Window {
    fn watch<M: Timers>(timers: &mut M, milliseconds: u64) -> Self {
        timers.start();
        let start = Readings::take(timers);
        let begin = timers.tsc();
        for _ in 0..M::MAX_POLLS {
            if is_over(timers, &start, milliseconds) || timers.tsc().wrapping_sub(begin) >= MOST_TICKS {
                break;
            }
        }
        Self { start, end: Readings::take(timers) }
    }

    /// The calibration by this window. None if no reference could be read.
    fn result(&self, hint: Option<u64>) -> Option<Calibration> {
        let (tsc, spread, quality) = match (self.by_pit(), self.by_pm_timer()) {
            // Their hull must be narrow: two wide intervals can have a narrow intersection by chance.
            (Some(one), Some(other)) => match (one.and(other), one.hull(other).spread()) {
                (Some(both), spread @ ..=TOLERANCE) => (both, spread, Quality::Agreed),
                (_, spread) => (one.hull(other), spread, Quality::Doubtful),
            },
            (Some(one), None) => (one, one.spread(), single(one, Reference::Pit, hint)),
            (None, Some(one)) => (one, one.spread(), single(one, Reference::PmTimer, hint)),
            (None, None) => return None,
        };
        Some(Calibration { tsc_hertz: tsc.middle(), apic: self.apic(), spread, quality })
    }

    fn by_pit(&self) -> Option<Interval> {
        let (start, end) = (self.start.pit?, self.end.pit?);
        Interval::rate(start.ticks_to(end)?, PIT_HERTZ.into(), end.value.checked_sub(start.value)?)
    }

    fn by_pm_timer(&self) -> Option<Interval> {
        let (start, end) = (self.start.pm_timer?, self.end.pm_timer?);
        Interval::rate(start.ticks_to(end)?, PM_TIMER_HERTZ.into(), pm_periods(start.value, end.value))
    }

    /// Ticks of the APIC's timer and of the TSC, if their ratio is within [`TOLERANCE`].
    fn apic(&self) -> Option<(u64, u64)> {
        let (start, end) = (self.start.apic?, self.end.apic?);
        let (ticks, count) = (start.ticks_to(end)?, end.value.checked_sub(start.value)?);
        let is_close = Interval::rate(ticks, 1_000_000, count).is_some_and(|rate| rate.spread() <= TOLERANCE);
        is_close.then_some((count, ticks.middle()))
    }
}

fn single(interval: Interval, reference: Reference, hint: Option<u64>) -> Quality {
    let is_near = |hint: u64| interval.hull(Interval { low: hint, high: hint }).spread() <= HINT_TOLERANCE;
    match hint {
        _ if interval.spread() > TOLERANCE => Quality::Doubtful,
        None => Quality::Single(reference),
        Some(hint) if is_near(hint) => Quality::Agreed,
        Some(_) => Quality::Doubtful,
    }
}

fn pm_periods(start: u64, end: u64) -> u64 {
    end.wrapping_sub(start) & u64::from(PM_TIMER_MASK)
}

/// Whether a reference shows that `milliseconds` have passed since `start`, or no reference can be read.
fn is_over<M: Timers>(timers: &mut M, start: &Readings, milliseconds: u64) -> bool {
    let pit = start.pit.and_then(|start| Some((pit(timers)?.saturating_sub(start.value), PIT_HERTZ.into())));
    let pm_timer =
        start.pm_timer.and_then(|start| Some((pm_periods(start.value, pm_timer(timers)?), PM_TIMER_HERTZ.into())));
    let is_past = |(periods, hertz): (u64, u64)| periods >= milliseconds * hertz / 1000;
    let mut all = pit.into_iter().chain(pm_timer).peekable();
    all.peek().is_none() || all.any(is_past)
}
