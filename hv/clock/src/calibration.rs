//! Windows of time, and what they say together.

use crate::interval::Interval;
use core::fmt;

/// By how much a frequency may be uncertain, in millionths: the width of an interval that contains all that the references say.
pub const TOLERANCE: u64 = 1000;

/// What the 8254 counts down from: the most, as it is read modulo 2¹⁶.
pub const PIT_RELOAD: u16 = 0xffff;

const PIT_HERTZ: u64 = 1_193_182;
/// ACPI specification 6.5, section 4.8.3.3. Of its 32 bits the upper 8 may be missing.
const PM_HERTZ: u64 = 3_579_545;
const PM_MASK: u32 = 0xff_ffff;

/// How long the windows are, one after the other, in milliseconds. The 8254 counts for 54.9 ms.
const WINDOWS: [u64; 7] = [10, 20, 40, 40, 40, 40, 40];

/// How often a value is read at a window's end, of which the reading that took least counts.
const READINGS: usize = 4;

/// A window ends when the TSC has gone so far, whatever the references say: within a second on processors of 1 GHz and more.
const MOST_TICKS: u64 = 1 << 30;

/// How far what a processor says of its TSC may be off, in millionths, to count as a second reference.
const HINT_TOLERANCE: u64 = 10_000;

/// A reading of the 8254's channel 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pit {
    /// The count, latched.
    pub count: u16,
    /// Its output, read after the count: high when the count has passed 0, and goes on at 2¹⁶.
    pub is_over: bool,
}

/// The clocks of a machine.
pub trait Machine {
    /// How often a window asks whether it is over. (A processor whose TSC stands still has no other way to tell.)
    const PATIENCE: u32 = 1 << 22;

    /// The time-stamp counter.
    fn tsc(&mut self) -> u64;
    /// Has the 8254's channel 2 count down from [`PIT_RELOAD`] (mode 0), and the local APIC's timer from 2³² - 1.
    fn start(&mut self);
    /// The 8254's channel 2. A machine without one reads ones.
    fn pit(&mut self) -> Pit;
    /// ACPI's PM timer. None if there is none.
    fn pm_timer(&mut self) -> Option<u32>;
    /// The local APIC's timer.
    fn apic(&mut self) -> u32;
    /// The TSC's frequency in Hz by CPUID (leaf 15h), if it says so.
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

/// How sure a calibration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quality {
    /// Two references agree within [`TOLERANCE`].
    Agreed,
    /// There is but one reference.
    Single(Reference),
    /// References disagree, or none could be read closely.
    Doubtful,
}

/// How fast the clocks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calibration {
    /// The TSC's frequency in Hz; never 0.
    pub tsc_hertz: u64,
    /// How far the local APIC's timer gets, and the TSC meanwhile; neither is 0. None if it does not count.
    pub apic: Option<(u64, u64)>,
    /// By how much the TSC's frequency may be off, in millionths, as far as the references tell.
    pub spread: u64,
    /// How sure that is.
    pub quality: Quality,
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

/// Calibrates the clocks of `machine`, whatever they read: in less than half a second where they work.
pub fn calibrate<M: Machine>(machine: &mut M) -> Calibration {
    let hint = machine.hint();
    let has_pm_timer = machine.pm_timer().is_some();
    let mut best: Option<Calibration> = None;
    for milliseconds in WINDOWS {
        let Some(this) = Window::watch(machine, milliseconds).result(hint) else { continue };
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
    /// Whether another window could make it no better.
    fn is_final(&self, has_pm_timer: bool) -> bool {
        let is_certain = match self.quality {
            Quality::Agreed => true,
            Quality::Single(_) => !has_pm_timer,
            Quality::Doubtful => false,
        };
        is_certain && self.apic.is_some()
    }

    /// The lower the better.
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
    /// The closest of a few; None if the value can't be read.
    fn take<M: Machine>(machine: &mut M, read: fn(&mut M) -> Option<u64>) -> Option<Self> {
        let one = |_| {
            let before = machine.tsc();
            let value = read(machine)?;
            Some(Self { before, value, after: machine.tsc() })
        };
        (0..READINGS).filter_map(one).min_by_key(|reading| reading.after.wrapping_sub(reading.before))
    }

    /// How far the TSC got from `self` to `end`. None if it went back or stood still.
    fn ticks_to(self, end: Self) -> Option<Interval> {
        let low = end.before.checked_sub(self.after)?;
        let high = end.after.checked_sub(self.before)?;
        (low <= high && high != 0).then_some(Interval { low, high })
    }
}

/// Periods of the 8254 since it was started.
fn pit<M: Machine>(machine: &mut M) -> Option<u64> {
    let Pit { count, is_over } = machine.pit();
    (!is_over).then_some((PIT_RELOAD - count).into())
}

fn pm_timer<M: Machine>(machine: &mut M) -> Option<u64> {
    machine.pm_timer().map(|value| (value & PM_MASK).into())
}

/// Periods of the local APIC's timer since it was started. At 0 it stops.
fn apic<M: Machine>(machine: &mut M) -> Option<u64> {
    let count = machine.apic();
    (count != 0).then_some((u32::MAX - count).into())
}

/// All clocks at one moment, more or less.
#[derive(Clone, Copy, Debug)]
struct Readings {
    pit: Option<Reading>,
    pm_timer: Option<Reading>,
    apic: Option<Reading>,
}

impl Readings {
    fn take<M: Machine>(machine: &mut M) -> Self {
        Self {
            pit: Reading::take(machine, pit),
            pm_timer: Reading::take(machine, pm_timer),
            apic: Reading::take(machine, apic),
        }
    }
}

/// A window of time.
struct Window {
    start: Readings,
    end: Readings,
}

impl Window {
    fn watch<M: Machine>(machine: &mut M, milliseconds: u64) -> Self {
        machine.start();
        let start = Readings::take(machine);
        let begin = machine.tsc();
        for _ in 0..M::PATIENCE {
            if is_over(machine, &start, milliseconds) || machine.tsc().wrapping_sub(begin) >= MOST_TICKS {
                break;
            }
        }
        Self { start, end: Readings::take(machine) }
    }

    /// What the window tells. None if it tells nothing.
    fn result(&self, hint: Option<u64>) -> Option<Calibration> {
        let (tsc, spread, quality) = match (self.by_pit(), self.by_pm_timer()) {
            // Both have to be close: two vague intervals overlap in a narrow one by chance.
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
        Interval::rate(start.ticks_to(end)?, PIT_HERTZ, end.value.checked_sub(start.value)?)
    }

    fn by_pm_timer(&self) -> Option<Interval> {
        let (start, end) = (self.start.pm_timer?, self.end.pm_timer?);
        Interval::rate(start.ticks_to(end)?, PM_HERTZ, pm_periods(start.value, end.value))
    }

    /// The APIC's timer against the TSC, if that is as certain as it has to be.
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
    end.wrapping_sub(start) & u64::from(PM_MASK)
}

/// Whether a reference says that so much time has passed since `start`, or none says anything.
fn is_over<M: Machine>(machine: &mut M, start: &Readings, milliseconds: u64) -> bool {
    let pit = start.pit.and_then(|start| Some((pit(machine)?.saturating_sub(start.value), PIT_HERTZ)));
    let pm_timer = start.pm_timer.and_then(|start| Some((pm_periods(start.value, pm_timer(machine)?), PM_HERTZ)));
    let is_past = |(periods, hertz): (u64, u64)| periods >= milliseconds * hertz / 1000;
    let mut all = pit.into_iter().chain(pm_timer).peekable();
    all.peek().is_none() || all.any(is_past)
}
