//! The high precision event timer (IA-PC HPET specification 1.0a): a counter of 64 bits at 100 MHz, and three timers, each of which
//! can be periodic. Its state is computed from the time when it is accessed.
//!
//! There is no FSB interrupt delivery. As in QEMU, a timer that is routed to I/O APIC input n drives GSI n.

use crate::Nanoseconds;
use abi::irq;

const TIMERS: usize = 3;
const TICK_NANOSECONDS: u64 = 10;
const TICK_FEMTOSECONDS: u64 = TICK_NANOSECONDS * 1_000_000;

/// Registers of 64 bits, by their offset (section 2.3.1).
mod register {
    pub(super) const CAPABILITIES: u16 = 0x000;
    pub(super) const CONFIGURATION: u16 = 0x010;
    pub(super) const STATUS: u16 = 0x020;
    pub(super) const COUNTER: u16 = 0x0f0;
    pub(super) const TIMERS: u16 = 0x100;
    pub(super) const TIMERS_LAST: u16 = TIMERS + 0x20 * super::TIMERS as u16 - 1;
}

/// General capabilities and ID: revision 1, the number of the last timer, a counter of 64 bits, legacy replacement, and the vendor
/// that chip sets have here.
const CAPABILITIES: u64 = TICK_FEMTOSECONDS << 32 | 0x8086 << 16 | 1 << 15 | 1 << 13 | (TIMERS as u64 - 1) << 8 | 0x01;
/// The lower half of the HPET's capabilities register, which ACPI's table for it repeats.
pub const HPET_CAPABILITIES: u32 = CAPABILITIES as u32;

/// General configuration.
mod general {
    pub(super) const ENABLE: u64 = 1 << 0;
    pub(super) const LEGACY_REPLACEMENT: u64 = 1 << 1;
    pub(super) const WRITABLE: u64 = ENABLE | LEGACY_REPLACEMENT;
}

/// A timer's configuration and capabilities.
mod timer {
    pub(super) const LEVEL: u64 = 1 << 1;
    pub(super) const INTERRUPT: u64 = 1 << 2;
    pub(super) const PERIODIC: u64 = 1 << 3;
    pub(super) const SET_ACCUMULATOR: u64 = 1 << 6;
    pub(super) const ONLY_32_BITS: u64 = 1 << 8;
    pub(super) const ROUTE_SHIFT: u32 = 9;
    pub(super) const ROUTE: u64 = 0x1f << ROUTE_SHIFT;
    pub(super) const WRITABLE: u64 = LEVEL | INTERRUPT | PERIODIC | SET_ACCUMULATOR | ONLY_32_BITS | ROUTE;
    const CAN_BE_PERIODIC: u64 = 1 << 4;
    const HAS_64_BITS: u64 = 1 << 5;
    /// The inputs of the I/O APIC that a timer can be routed to: 2, 8, and those that no ISA device has. QEMU's PC has the same.
    pub(super) const ROUTES: u64 = 0x00ff_0104;
    pub(super) const CAPABILITIES: u64 = ROUTES << 32 | HAS_64_BITS | CAN_BE_PERIODIC;
}

/// With legacy replacement, the first timer is interrupt 0 in place of the 8254, the second interrupt 8 in place of the clock
/// (section 2.3.5, LEG_RT_CNF).
const LEGACY_GSIS: [u8; 2] = [irq::TIMER, irq::RTC];

/// The main counter.
#[derive(Clone, Copy, Debug)]
enum Counter {
    Stopped(u64),
    /// It is so much less than the number of ticks since the VM's start, modulo 2^64.
    Runs(u64),
}

#[derive(Clone, Copy, Debug)]
struct Timer {
    /// The writable bits.
    configuration: u64,
    /// The value of the counter with which the timer expires; the accumulator of a periodic one.
    comparator: u64,
    /// What a periodic timer adds to its comparator when it expires.
    period: u64,
    /// The tick since the VM's start with which it expires next.
    due: Option<u64>,
}

impl Timer {
    const fn new() -> Self {
        Self { configuration: 0, comparator: u64::MAX, period: 0, due: None }
    }

    const fn has(&self, bit: u64) -> bool {
        self.configuration & bit != 0
    }

    /// The largest value of its counter.
    const fn largest(&self) -> u64 {
        if self.has(timer::ONLY_32_BITS) { u32::MAX as u64 } else { u64::MAX }
    }

    /// Computes when the counter, which is `counter` with tick `now`, next becomes equal to the comparator.
    fn arm(&mut self, counter: u64, now: u64) {
        let ticks = self.comparator.wrapping_sub(counter) & self.largest();
        let ticks = if ticks == 0 { self.largest().checked_add(1) } else { Some(ticks) };
        self.due = ticks.and_then(|ticks| now.checked_add(ticks));
    }

    /// Whether it has expired until tick `now`, once or more often.
    fn expire(&mut self, now: u64) -> bool {
        let Some(due) = self.due.filter(|&due| due <= now) else { return false };
        let periodic = self.has(timer::PERIODIC) && self.period != 0;
        // A timer that is not periodic expires again when its counter comes round (section 2.3.9.2.1).
        let distance = if periodic { Some(self.period) } else { self.largest().checked_add(1) };
        let passed = distance.and_then(|distance| ((now - due) / distance + 1).checked_mul(distance));
        if periodic {
            self.comparator = self.comparator.wrapping_add(passed.unwrap_or(0)) & self.largest();
        }
        self.due = passed.and_then(|passed| due.checked_add(passed));
        true
    }

    fn route(&self) -> u8 {
        ((self.configuration & timer::ROUTE) >> timer::ROUTE_SHIFT) as u8
    }

    /// A route that is not offered does not read back, by which software finds those that are.
    fn configure(&mut self, value: u64) {
        let wanted = (value & timer::ROUTE) >> timer::ROUTE_SHIFT;
        let route = if timer::ROUTES >> wanted & 1 != 0 { value } else { self.configuration } & timer::ROUTE;
        self.configuration = value & timer::WRITABLE & !timer::ROUTE | route;
        self.comparator &= self.largest();
        self.period &= self.largest();
    }

    /// A periodic timer's period is written, and its accumulator only behind [`timer::SET_ACCUMULATOR`], which is cleared then
    /// (section 2.3.9.2.2).
    fn set_comparator(&mut self, write: QwordWrite) {
        if !self.has(timer::PERIODIC) || self.has(timer::SET_ACCUMULATOR) {
            self.comparator = write.onto(self.comparator) & self.largest();
        }
        if self.has(timer::PERIODIC) {
            self.period = write.onto(self.period) & self.largest();
        }
        self.configuration &= !timer::SET_ACCUMULATOR;
    }
}

/// A write of a register of 64 bits, or of one of its halves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QwordWrite {
    value: u64,
    mask: u64,
}

impl QwordWrite {
    /// A write of the bytes at `offset`. None if they are neither a register nor half of one: there are no other accesses (section
    /// 2.4.7).
    pub(crate) fn new(offset: u16, bytes: &[u8]) -> Option<Self> {
        match *bytes {
            [a, b, c, d] if offset & 3 == 0 => {
                let shift = 8 * u32::from(offset & 4);
                let value = u64::from(u32::from_le_bytes([a, b, c, d])) << shift;
                Some(Self { value, mask: 0xffff_ffff << shift })
            }
            [a, b, c, d, e, f, g, h] if offset & 7 == 0 => {
                Some(Self { value: u64::from_le_bytes([a, b, c, d, e, f, g, h]), mask: u64::MAX })
            }
            _ => None,
        }
    }

    fn onto(self, old: u64) -> u64 {
        old & !self.mask | self.value
    }
}

/// The HPET.
#[derive(Debug)]
pub(crate) struct Hpet {
    configuration: u64,
    counter: Counter,
    timers: [Timer; TIMERS],
    /// General interrupt status: timers that are level-triggered and have expired.
    status: u64,
}

/// GSIs as bits.
pub(crate) type Gsis = u32;

impl Hpet {
    pub(crate) const fn new() -> Self {
        Self { configuration: 0, counter: Counter::Stopped(0), timers: [Timer::new(); TIMERS], status: 0 }
    }

    /// Whether the 8254 and the clock are cut off from their interrupts.
    pub(crate) const fn replaces_legacy(&self) -> bool {
        self.configuration & general::WRITABLE == general::WRITABLE
    }

    /// Reads the register of 64 bits that `offset` is in.
    pub(crate) fn read(&self, offset: u16, now: Nanoseconds) -> u64 {
        match offset & !7 {
            register::CAPABILITIES => CAPABILITIES,
            register::CONFIGURATION => self.configuration,
            register::STATUS => self.status,
            register::COUNTER => self.count(ticks(now)),
            register::TIMERS..=register::TIMERS_LAST => {
                let timer = &self.timers[usize::from((offset - register::TIMERS) >> 5)];
                match offset & 0x18 {
                    0x00 => timer.configuration | timer::CAPABILITIES,
                    0x08 => timer.comparator,
                    _ => 0,
                }
            }
            _ => 0,
        }
    }

    /// Writes at `offset`. [`advance`](Self::advance) must have been called with the same time.
    pub(crate) fn write(&mut self, offset: u16, write: QwordWrite, now: Nanoseconds) {
        let now = ticks(now);
        match offset & !7 {
            register::CONFIGURATION => self.configure(write.onto(self.configuration), now),
            register::STATUS => self.status &= !write.value,
            // A counter that runs can't be written.
            register::COUNTER => {
                if let Counter::Stopped(count) = &mut self.counter {
                    *count = write.onto(*count);
                }
            }
            register::TIMERS..=register::TIMERS_LAST => self.write_timer(offset - register::TIMERS, write, now),
            _ => {}
        }
    }

    fn write_timer(&mut self, offset: u16, write: QwordWrite, now: u64) {
        let n = usize::from(offset >> 5);
        let timer = &mut self.timers[n];
        match offset & 0x18 {
            0x00 => {
                timer.configure(write.onto(timer.configuration));
                if !timer.has(timer::LEVEL) {
                    self.status &= !(1 << n);
                }
            }
            0x08 => timer.set_comparator(write),
            _ => return,
        }
        self.arm(n, now);
    }

    fn configure(&mut self, value: u64, now: u64) {
        self.configuration = value & general::WRITABLE;
        let runs = value & general::ENABLE != 0;
        match self.counter {
            Counter::Stopped(count) if runs => self.counter = Counter::Runs(now.wrapping_sub(count)),
            Counter::Runs(_) if !runs => self.counter = Counter::Stopped(self.count(now)),
            _ => return,
        }
        (0..TIMERS).for_each(|n| self.arm(n, now));
    }

    fn arm(&mut self, n: usize, now: u64) {
        let count = self.count(now);
        match self.counter {
            Counter::Stopped(_) => self.timers[n].due = None,
            Counter::Runs(_) => self.timers[n].arm(count, now),
        }
    }

    fn count(&self, now: u64) -> u64 {
        match self.counter {
            Counter::Stopped(count) => count,
            Counter::Runs(less) => now.wrapping_sub(less),
        }
    }

    /// Lets timers expire. Returns the GSIs of edge-triggered ones that have: each is to be raised and lowered once, however often
    /// the timer has expired since the last call.
    pub(crate) fn advance(&mut self, now: Nanoseconds) -> Gsis {
        let now = ticks(now);
        let mut pulses = 0;
        for n in 0..TIMERS {
            let timer = &mut self.timers[n];
            if !timer.expire(now) {
                continue;
            }
            // The status is set whether or not the timer interrupts.
            if timer.has(timer::LEVEL) {
                self.status |= 1 << n;
            } else if timer.has(timer::INTERRUPT) {
                pulses |= self.output(n);
            }
        }
        pulses
    }

    /// Whether time changes nothing: the counter is stopped, and no status is set.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.counter, Counter::Stopped(_)) && self.status == 0
    }

    /// The GSIs that level-triggered timers hold high.
    pub(crate) fn levels(&self) -> Gsis {
        let interrupts = |n: usize| self.status >> n & 1 != 0 && self.timers[n].has(timer::INTERRUPT);
        (0..TIMERS).filter(|&n| interrupts(n)).fold(0, |gsis, n| gsis | self.output(n))
    }

    /// The GSI of timer `n`. None after reset: no timer can be routed to the first input, which is the route's initial value.
    fn gsi(&self, n: usize) -> Option<u8> {
        match LEGACY_GSIS.get(n) {
            Some(&gsi) if self.replaces_legacy() => Some(gsi),
            _ => Some(self.timers[n].route()).filter(|route| timer::ROUTES >> route & 1 != 0),
        }
    }

    fn output(&self, n: usize) -> Gsis {
        self.gsi(n).map_or(0, |gsi| 1 << gsi)
    }

    /// When the next timer expires that has an interrupt to send: one of a GSI that `accepts` an edge, and whose level, if it is
    /// level-triggered, is not high yet.
    pub(crate) fn next_deadline(&self, accepts: impl Fn(u8) -> bool) -> Option<Nanoseconds> {
        let is_heard = |n: usize| self.gsi(n).is_some_and(&accepts);
        let sends = |n: usize| self.timers[n].has(timer::INTERRUPT) && self.status >> n & 1 == 0 && is_heard(n);
        let due = (0..TIMERS).filter(|&n| sends(n)).filter_map(|n| self.timers[n].due).min()?;
        Some(Nanoseconds(due.saturating_mul(TICK_NANOSECONDS)))
    }
}

const fn ticks(time: Nanoseconds) -> u64 {
    time.0 / TICK_NANOSECONDS
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const CONFIGURATION: u16 = 0x10;
    const STATUS: u16 = 0x20;
    const COUNTER: u16 = 0xf0;
    /// INT_ENB, TYPE (periodic), VAL_SET and 32MODE of a timer.
    const INTERRUPT: u64 = 1 << 2;
    const PERIODIC: u64 = 1 << 3;
    const SET: u64 = 1 << 6;
    const ONLY_32: u64 = 1 << 8;
    const LEVEL: u64 = 1 << 1;

    const fn route(pin: u64) -> u64 {
        pin << 9
    }

    fn at(tick: u64) -> Nanoseconds {
        Nanoseconds(tick * 10)
    }

    fn write(hpet: &mut Hpet, offset: u16, value: u64, tick: u64) {
        hpet.write(offset, QwordWrite::new(offset, &value.to_le_bytes()).unwrap(), at(tick));
    }

    fn write_half(hpet: &mut Hpet, offset: u16, value: u32, tick: u64) {
        hpet.write(offset, QwordWrite::new(offset, &value.to_le_bytes()).unwrap(), at(tick));
    }

    const fn configuration(n: u16) -> u16 {
        0x100 + 0x20 * n
    }

    const fn comparator(n: u16) -> u16 {
        0x108 + 0x20 * n
    }

    /// The ticks among these with which a pulse comes, and on which GSIs.
    fn pulses(hpet: &mut Hpet, ticks: core::ops::RangeInclusive<u64>) -> Vec<(u64, Gsis)> {
        ticks.map(|tick| (tick, hpet.advance(at(tick)))).filter(|&(_, gsis)| gsis != 0).collect()
    }

    fn deadline(hpet: &Hpet) -> Option<u64> {
        hpet.next_deadline(|_| true).map(|time| time.0 / 10)
    }

    #[test]
    fn capabilities_tell_three_timers_of_64_bits_at_100_mhz() {
        let hpet = Hpet::new();
        assert_eq!(hpet.read(0, at(0)), 0x0098_9680_8086_a201);
        assert_eq!(hpet.read(0x100, at(0)), 0x00ff_0104_0000_0030);
        assert_eq!(hpet.read(0x108, at(0)), u64::MAX);
        assert_eq!(hpet.read(0x160, at(0)), 0, "there is no fourth timer");
    }

    #[test]
    fn the_counter_runs_while_it_is_enabled_and_is_written_while_it_is_not() {
        let mut hpet = Hpet::new();
        assert_eq!(hpet.read(COUNTER, at(100)), 0);
        write(&mut hpet, COUNTER, 0xffff_ffff, 100);
        write(&mut hpet, CONFIGURATION, 1, 100);
        assert_eq!(hpet.read(COUNTER, at(103)), 0x1_0000_0002);
        write(&mut hpet, COUNTER, 5, 103);
        assert_eq!(hpet.read(COUNTER, at(103)), 0x1_0000_0002, "it runs");
        write(&mut hpet, CONFIGURATION, 0, 110);
        assert_eq!(hpet.read(COUNTER, at(200)), 0x1_0000_0009);
        write_half(&mut hpet, COUNTER + 4, 7, 200);
        assert_eq!(hpet.read(COUNTER, at(200)), 0x7_0000_0009);
    }

    #[test]
    fn other_accesses_than_halves_and_wholes_are_none() {
        assert!(QwordWrite::new(0x10, &[0; 2]).is_none());
        assert!(QwordWrite::new(0x12, &[0; 4]).is_none());
        assert!(QwordWrite::new(0x14, &[0; 8]).is_none());
    }

    #[test]
    fn one_shot_expires_when_the_counter_gets_to_the_comparator() {
        let mut hpet = Hpet::new();
        write(&mut hpet, configuration(2), INTERRUPT | route(20), 0);
        write(&mut hpet, comparator(2), 50, 0);
        assert_eq!(deadline(&hpet), None, "it does not run yet");
        write(&mut hpet, CONFIGURATION, 1, 1000);
        assert_eq!(deadline(&hpet), Some(1050));
        assert_eq!(pulses(&mut hpet, 1000..=2000), [(1050, 1 << 20)]);
        assert_eq!(deadline(&hpet), None);
        write(&mut hpet, comparator(2), 900, 2000);
        assert_eq!(deadline(&hpet), None, "the counter is past it already");
    }

    #[test]
    fn in_32_bits_the_counter_comes_round() {
        let mut hpet = Hpet::new();
        write(&mut hpet, configuration(0), INTERRUPT | ONLY_32 | route(2), 0);
        write(&mut hpet, comparator(0), 0x1_0000_0064, 0);
        assert_eq!(hpet.read(comparator(0), at(0)), 100, "the upper half is not there");
        write(&mut hpet, CONFIGURATION, 1, 0);
        write(&mut hpet, comparator(0), 100, 200);
        assert_eq!(deadline(&hpet), Some((1 << 32) + 100));
        assert_eq!(hpet.advance(at((1 << 32) + 100)), 1 << 2);
        assert_eq!(deadline(&hpet), Some((2 << 32) + 100));
    }

    #[test]
    fn a_periodic_timer_as_linux_sets_it_up() {
        let mut hpet = Hpet::new();
        write_half(&mut hpet, CONFIGURATION, 3, 0);
        write_half(&mut hpet, configuration(0), (INTERRUPT | PERIODIC | SET | ONLY_32) as u32, 10);
        write_half(&mut hpet, comparator(0), 110, 10);
        assert_eq!(hpet.read(configuration(0), at(10)) & SET, 0, "the write has cleared it");
        write_half(&mut hpet, comparator(0), 100, 11);
        assert_eq!(hpet.read(comparator(0), at(11)), 110, "the second write was the period");
        assert_eq!(pulses(&mut hpet, 11..=400), [(110, 1), (210, 1), (310, 1)]);
        assert_eq!(hpet.read(comparator(0), at(400)), 410);
        assert_eq!((hpet.advance(at(1000)), deadline(&hpet)), (1, Some(1010)), "missed ones count as one");
    }

    #[test]
    fn legacy_replacement_moves_the_first_two_timers_to_0_and_8() {
        let mut hpet = Hpet::new();
        for (n, pin) in [(0, 2), (1, 16), (2, 23)] {
            write(&mut hpet, configuration(n), INTERRUPT | route(pin), 0);
            write(&mut hpet, comparator(n), 100, 0);
        }
        write(&mut hpet, CONFIGURATION, 2, 0);
        assert!(!hpet.replaces_legacy(), "not before it is enabled");
        write(&mut hpet, CONFIGURATION, 3, 0);
        assert!(hpet.replaces_legacy());
        assert_eq!(hpet.advance(at(100)), 1 << 0 | 1 << 8 | 1 << 23);
    }

    #[test]
    fn a_route_that_is_not_offered_does_not_read_back() {
        let mut hpet = Hpet::new();
        write(&mut hpet, configuration(1), route(21), 0);
        write(&mut hpet, configuration(1), route(5), 0);
        assert_eq!(hpet.read(configuration(1), at(0)) >> 9 & 0x1f, 21);
    }

    #[test]
    fn a_timer_without_a_route_interrupts_nothing() {
        let mut hpet = Hpet::new();
        write(&mut hpet, configuration(0), INTERRUPT, 0);
        write(&mut hpet, comparator(0), 5, 0);
        write(&mut hpet, CONFIGURATION, 1, 0);
        assert_eq!((deadline(&hpet), hpet.advance(at(9))), (None, 0));
    }

    #[test]
    fn a_level_stays_until_its_status_is_cleared() {
        let mut hpet = Hpet::new();
        write(&mut hpet, configuration(1), LEVEL | PERIODIC | SET | INTERRUPT | route(18), 0);
        write(&mut hpet, comparator(1), 100, 0);
        write(&mut hpet, CONFIGURATION, 1, 0);
        assert_eq!((hpet.advance(at(99)), hpet.levels()), (0, 0));
        assert_eq!((hpet.advance(at(100)), hpet.levels()), (0, 1 << 18));
        assert_eq!((hpet.read(STATUS, at(100)), deadline(&hpet)), (2, None));
        write(&mut hpet, STATUS, 1, 100);
        assert_eq!(hpet.levels(), 1 << 18, "another timer's bit");
        write(&mut hpet, STATUS, 2, 100);
        assert_eq!((hpet.levels(), deadline(&hpet)), (0, Some(200)));
    }

    #[test]
    fn without_its_interrupt_a_level_timer_still_shows_its_status() {
        let mut hpet = Hpet::new();
        write(&mut hpet, configuration(0), LEVEL | route(16), 0);
        write(&mut hpet, comparator(0), 5, 0);
        write(&mut hpet, CONFIGURATION, 1, 0);
        assert_eq!((deadline(&hpet), hpet.advance(at(9)), hpet.levels()), (None, 0, 0));
        assert_eq!(hpet.read(STATUS, at(9)), 1);
        write(&mut hpet, configuration(0), LEVEL | INTERRUPT | route(16), 9);
        assert_eq!(hpet.levels(), 1 << 16);
    }

    proptest! {
        /// Whether it is looked at often or seldom, a periodic timer expires in the same ticks.
        #[test]
        fn a_periodic_timer_does_not_drift(
            period in 1u64..500,
            first in 1u64..500,
            steps in prop::collection::vec(1u64..2000, 1..40),
            only_32 in any::<bool>(),
            // Near the end of 32 bits, so that the counter comes round.
            start in 0xffff_f000u64..0x1_0000_1000,
        ) {
            let mut hpet = Hpet::new();
            let size = if only_32 { ONLY_32 } else { 0 };
            write(&mut hpet, COUNTER, start, 0);
            write(&mut hpet, configuration(0), INTERRUPT | PERIODIC | SET | size | route(2), 0);
            write(&mut hpet, comparator(0), start + first, 0);
            write(&mut hpet, comparator(0), period, 0);
            write(&mut hpet, CONFIGURATION, 1, 0);
            let mut now = 0;
            let expired = |tick: u64| if tick < first { 0 } else { (tick - first) / period + 1 };
            for step in steps {
                let before = now;
                now += step;
                prop_assert_eq!(hpet.advance(at(now)) != 0, expired(now) > expired(before));
                prop_assert_eq!(deadline(&hpet), Some(first + expired(now) * period));
                let comparator = start + first + expired(now) * period;
                let largest = if only_32 { u32::MAX.into() } else { u64::MAX };
                prop_assert_eq!(hpet.read(0x108, at(now)), comparator & largest);
            }
        }
    }
}
