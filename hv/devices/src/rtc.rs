//! The clock and CMOS memory of a PC: a Motorola MC146818A (data sheet ADI1046R1), and IBM's layout of the memory. The clock's state
//! is computed from the time when it is accessed.
//!
//! ```text
//!   32.768 kHz ──▶ divider ──┬──▶ each period (A, bits 0 to 3) ──▶ PF ──┐
//!                  (A, 4-6)  │                                          ├─ and their enables in B ──▶ IRQF, IRQ 8
//!                            └──▶ each second: UIP, then the update ──▶ UF, AF                       until C is read
//!                                 unless B holds it (SET)
//! ```

use crate::calendar::{self, DateTime};
use crate::{BoardConfig, Nanoseconds};

/// Register numbers.
mod register {
    pub(super) const SECONDS: u8 = 0;
    pub(super) const SECONDS_ALARM: u8 = 1;
    pub(super) const MINUTES: u8 = 2;
    pub(super) const MINUTES_ALARM: u8 = 3;
    pub(super) const HOURS: u8 = 4;
    pub(super) const HOURS_ALARM: u8 = 5;
    pub(super) const WEEKDAY: u8 = 6;
    pub(super) const DAY: u8 = 7;
    pub(super) const MONTH: u8 = 8;
    pub(super) const YEAR: u8 = 9;
    pub(super) const STATUS_A: u8 = 0x0a;
    pub(super) const STATUS_B: u8 = 0x0b;
    pub(super) const STATUS_C: u8 = 0x0c;
    pub(super) const STATUS_D: u8 = 0x0d;
    pub(super) use abi::ports::RTC_CENTURY as CENTURY;

    /// The registers that the time is in.
    pub(super) const TIME: [u8; 8] = [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY];
}

/// Status A: an update is in progress, or will be soon.
const UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// Status A: which oscillator there is. From [`DIVIDER_STOPPED`] on, the divider is tested or reset, and the clock stands still.
const DIVIDER: u8 = 0x70;
const DIVIDER_STOPPED: u8 = 0x30;
/// Status A: how often a periodic interrupt occurs.
const RATE: u8 = 0x0f;
/// Status A as firmware leaves it: a 32.768 kHz crystal, and a period of 1/1024 second.
const STATUS_A: u8 = 0x26;

/// Status B: the clock is held, to be set.
const SET: u8 = 1 << 7;
/// Status B's enables and status C's flags: each period, alarm, end of an update.
const PERIODIC: u8 = 1 << 6;
const ALARM: u8 = 1 << 5;
const UPDATED: u8 = 1 << 4;
const INTERRUPTS: u8 = PERIODIC | ALARM | UPDATED;
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;

/// Status C: some flag is set that is enabled.
const INTERRUPT_REQUEST: u8 = 1 << 7;
/// Status D: the battery is good.
const STATUS_D: u8 = 0x80;

/// An hour of the afternoon, in the format of 12 hours.
const PM: u8 = 1 << 7;
/// An alarm's register of which these bits are set matches any time.
const ANY: u8 = 0xc0;

const CRYSTAL_HERTZ: u32 = 32_768;
const SECOND: u64 = 1_000_000_000;
/// How long before the end of an update UIP shows it: 244 us before the update, which takes 1984 us.
const UIP_TIME: u64 = (244 + 1984) * 1000;
/// How soon the first update comes when the divider goes on from its reset.
const FIRST_UPDATE: u64 = SECOND / 2;

/// The divider: seconds and periods are counted from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Divider {
    since: Nanoseconds,
    /// How far it had counted then.
    lead: u64,
}

impl Divider {
    fn elapsed(self, now: Nanoseconds) -> Nanoseconds {
        Nanoseconds(now.0.saturating_sub(self.since.0).saturating_add(self.lead))
    }

    /// The time at which so much has elapsed.
    fn at(self, elapsed: Nanoseconds) -> Nanoseconds {
        Nanoseconds(elapsed.0.saturating_sub(self.lead).saturating_add(self.since.0))
    }

    fn updates(self, now: Nanoseconds) -> u64 {
        self.elapsed(now).seconds()
    }

    fn periods(self, now: Nanoseconds, period: u64) -> u64 {
        self.elapsed(now).to_ticks::<CRYSTAL_HERTZ>() / period
    }
}

#[derive(Debug)]
pub(crate) struct Rtc {
    selected: u8,
    /// All registers. Those of the time are up to date while the clock is held; status A has no UIP, and C no IRQF.
    memory: [u8; 128],
    /// None while it is reset.
    divider: Option<Divider>,
    /// The time of day less the divider's count of updates, in seconds since 1970.
    base: i64,
    /// What was added to the day of the week, by a guest that counts its days otherwise.
    weekday_offset: u8,
    /// The flags of C are those of this time.
    seen: Nanoseconds,
}

impl Rtc {
    pub(crate) fn new(config: &BoardConfig) -> Self {
        let divider = Some(Divider { since: Nanoseconds(0), lead: 0 });
        let base = i64::try_from(config.boot_time).unwrap_or_default();
        let mut rtc =
            Self { selected: 0, memory: [0; 128], divider, base, weekday_offset: 0, seen: Nanoseconds::default() };
        rtc.memory[usize::from(register::STATUS_A)] = STATUS_A;
        rtc.reset(config, Nanoseconds::default());
        rtc
    }

    /// The machine is reset. A battery keeps the time and the memory, of which the firmware writes its own part anew.
    pub(crate) fn reset(&mut self, config: &BoardConfig, now: Nanoseconds) {
        self.write_register(register::STATUS_A, STATUS_A, now);
        self.write_register(register::STATUS_B, HOURS_24, now);
        self.memory[usize::from(register::STATUS_C)] = 0;
        let memory = &mut self.memory;
        let mut set = |at: usize, value: u16| memory[at..at + 2].copy_from_slice(&value.to_le_bytes());
        let in_units = |bytes: u64, unit: u64| u16::try_from(bytes / unit).unwrap_or(u16::MAX);
        let above = |start: u64| config.ram_bytes.saturating_sub(start);
        // In KiB: below 640, above 1 MiB (twice). In 64 KiB: above 16 MiB.
        set(0x15, 640);
        set(0x17, in_units(above(1 << 20), 1 << 10));
        set(0x30, in_units(above(1 << 20), 1 << 10));
        set(0x34, in_units(above(16 << 20), 64 << 10));
        memory[0x5f] = config.cpus.saturating_sub(1).min(255) as u8;
        self.selected = 0;
    }

    /// Writes port 0x70. Bit 7 masks NMIs, of which there are none.
    pub(crate) fn select(&mut self, value: u8) {
        self.selected = value & 0x7f;
    }

    /// Whether status C is selected, whose reading clears its flags.
    pub(crate) fn has_flags_selected(&self) -> bool {
        self.selected == register::STATUS_C
    }

    /// Reads port 0x71. If status C is selected, the level of [`interrupt`](Self::interrupt) may change.
    pub(crate) fn read(&mut self, now: Nanoseconds) -> u8 {
        match self.selected {
            register::STATUS_A => self.get(register::STATUS_A) | self.update_in_progress(now),
            register::STATUS_C => self.take_flags(now),
            register::STATUS_D => STATUS_D,
            other => match (register::TIME.contains(&other), self.updates(now)) {
                (true, Some(updates)) => self.encode_at(other, updates),
                _ => self.get(other),
            },
        }
    }

    #[inline(never)]
    fn take_flags(&mut self, now: Nanoseconds) -> u8 {
        self.advance(now);
        let flags = core::mem::take(&mut self.memory[usize::from(register::STATUS_C)]);
        if flags & self.get(register::STATUS_B) & INTERRUPTS != 0 { flags | INTERRUPT_REQUEST } else { flags }
    }

    /// Writes port 0x71. The level of [`interrupt`](Self::interrupt) may change.
    pub(crate) fn write(&mut self, value: u8, now: Nanoseconds) {
        self.write_register(self.selected, value, now);
    }

    fn write_register(&mut self, register: u8, value: u8, now: Nanoseconds) {
        match register {
            register::STATUS_C | register::STATUS_D => {}
            register::STATUS_A | register::STATUS_B => self.change(now, |rtc| {
                let value = if register == register::STATUS_A { value & !UPDATE_IN_PROGRESS } else { value };
                rtc.memory[usize::from(register)] = value;
                rtc.change_divider(now);
            }),
            _ if register::TIME.contains(&register) => self.set_time(register, value, now),
            _ => {
                self.advance(now);
                self.memory[usize::from(register)] = value;
            }
        }
    }

    /// Does what may hold the clock or let it go on: the time goes to its registers, or is taken from them.
    fn change(&mut self, now: Nanoseconds, change: impl FnOnce(&mut Self)) {
        self.advance(now);
        let shown = self.updates(now).map(|updates| self.shown(updates));
        change(self);
        match (shown, self.updates(now)) {
            (Some(shown), None) => self.hold(shown),
            (None, Some(updates)) => self.take_time(updates),
            _ => {}
        }
    }

    fn change_divider(&mut self, now: Nanoseconds) {
        let runs = self.get(register::STATUS_A) & DIVIDER < DIVIDER_STOPPED;
        self.divider = match self.divider {
            _ if !runs => None,
            None => Some(Divider { since: now, lead: SECOND - FIRST_UPDATE }),
            running => running,
        };
    }

    /// Sets one of the time's registers. While the clock runs, the others are what they are now.
    fn set_time(&mut self, register: u8, value: u8, now: Nanoseconds) {
        self.advance(now);
        let updates = self.updates(now);
        if let Some(updates) = updates {
            self.hold(self.shown(updates));
        }
        self.memory[usize::from(register)] = value;
        if let Some(updates) = updates {
            self.take_time(updates);
        }
    }

    /// What the time's registers show after so many updates.
    fn shown(&self, updates: u64) -> [u8; register::TIME.len()] {
        let time = self.time(updates);
        register::TIME.map(|register| self.encode(register, time))
    }

    /// Has the time's registers hold what they show.
    fn hold(&mut self, shown: [u8; register::TIME.len()]) {
        for (register, value) in register::TIME.into_iter().zip(shown) {
            self.memory[usize::from(register)] = value;
        }
    }

    /// The clock goes on with the time of its registers. A month that is none counts as the nearest one.
    fn take_time(&mut self, updates: u64) {
        let binary = |register| self.decode(self.get(register));
        let year = u64::from(binary(register::CENTURY)) * 100 + u64::from(binary(register::YEAR));
        let time = DateTime {
            year,
            month: binary(register::MONTH).clamp(1, 12),
            day: binary(register::DAY),
            weekday: binary(register::WEEKDAY),
            hour: self.decode_hour(self.get(register::HOURS)),
            minute: binary(register::MINUTES),
            second: binary(register::SECONDS),
        };
        let unix = time.to_unix();
        self.weekday_offset = (time.weekday % 7 + 7 - DateTime::from_unix(unix).weekday % 7) % 7;
        self.base = unix.wrapping_sub(updates as i64);
    }

    /// The level of IRQ 8, as of the last [`advance`](Self::advance).
    pub(crate) fn interrupt(&self) -> bool {
        self.get(register::STATUS_C) & self.get(register::STATUS_B) & INTERRUPTS != 0
    }

    /// Whether it may interrupt.
    pub(crate) fn is_armed(&self) -> bool {
        self.get(register::STATUS_B) & INTERRUPTS != 0
    }

    /// When the next interrupt is due, if it can be waited for: no flag is up that only a read of C takes down.
    pub(crate) fn next_deadline(&self) -> Option<Nanoseconds> {
        let divider = self.divider.filter(|_| !self.interrupt())?;
        let enabled = |flag| self.get(register::STATUS_B) & flag != 0;
        let updates = self.updates(self.seen);
        let second = |updates: u64| divider.at(Nanoseconds(updates.saturating_mul(SECOND)));
        let period = self.period().filter(|_| enabled(PERIODIC)).map(|period| {
            let next = divider.periods(self.seen, period) + 1;
            divider.at(Nanoseconds::from_ticks(next * period, CRYSTAL_HERTZ))
        });
        let update = updates.filter(|_| enabled(UPDATED)).map(|updates| second(updates + 1));
        let alarm = updates
            .filter(|_| enabled(ALARM))
            .and_then(|updates| Some(second(updates + self.seconds_to_alarm(self.base.wrapping_add(updates as i64))?)));
        period.into_iter().chain(update).chain(alarm).min()
    }

    /// Sets the flags of what has happened by now.
    pub(crate) fn advance(&mut self, now: Nanoseconds) {
        // The clocks of two processors may differ by a little.
        let now = now.max(self.seen);
        let seen = core::mem::replace(&mut self.seen, now);
        let Some(divider) = self.divider else { return };
        let mut flags = 0;
        if let Some(period) = self.period()
            && divider.periods(seen, period) != divider.periods(now, period)
        {
            flags |= PERIODIC;
        }
        if let (Some(before), Some(updates)) = (self.updates(seen), self.updates(now))
            && before != updates
        {
            flags |= UPDATED;
            let to_alarm = self.seconds_to_alarm(self.base.wrapping_add(before as i64));
            if to_alarm.is_some_and(|seconds| seconds <= updates - before) {
                flags |= ALARM;
            }
        }
        self.memory[usize::from(register::STATUS_C)] |= flags;
    }

    /// The divider's count of updates; none while the clock is held.
    fn updates(&self, now: Nanoseconds) -> Option<u64> {
        let divider = self.divider.filter(|_| self.get(register::STATUS_B) & SET == 0)?;
        Some(divider.updates(now))
    }

    fn update_in_progress(&self, now: Nanoseconds) -> u8 {
        let runs = self.get(register::STATUS_B) & SET == 0;
        let elapsed = self.divider.filter(|_| runs).map(|divider| divider.elapsed(now).0 % SECOND);
        if elapsed.is_some_and(|elapsed| elapsed >= SECOND - UIP_TIME) { UPDATE_IN_PROGRESS } else { 0 }
    }

    /// The crystal's ticks in a period; none if there is no periodic interrupt.
    fn period(&self) -> Option<u64> {
        match self.get(register::STATUS_A) & RATE {
            0 => None,
            // The two fastest rates are those of 8 and 9 with this crystal.
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    fn get(&self, register: u8) -> u8 {
        self.memory[usize::from(register)]
    }

    fn time(&self, updates: u64) -> DateTime {
        let mut time = DateTime::from_unix(self.base.wrapping_add(updates as i64));
        time.weekday = (time.weekday - 1 + self.weekday_offset) % 7 + 1;
        time
    }

    /// As [`encode`](Self::encode), after so many updates. The registers that are read most need no calendar.
    fn encode_at(&self, register: u8, updates: u64) -> u8 {
        let unix = self.base.wrapping_add(updates as i64);
        match register {
            register::SECONDS => self.encode_byte(unix.rem_euclid(60) as u8),
            register::MINUTES => self.encode_byte(unix.div_euclid(60).rem_euclid(60) as u8),
            register::HOURS => self.encode_hour(unix.div_euclid(3600).rem_euclid(24) as u8),
            _ => self.encode_date(register, updates),
        }
    }

    #[inline(never)]
    fn encode_date(&self, register: u8, updates: u64) -> u8 {
        self.encode(register, self.time(updates))
    }

    fn encode(&self, register: u8, time: DateTime) -> u8 {
        self.encode_byte(match register {
            register::SECONDS => time.second,
            register::MINUTES => time.minute,
            register::HOURS => return self.encode_hour(time.hour),
            register::WEEKDAY => time.weekday,
            register::DAY => time.day,
            register::MONTH => time.month,
            register::YEAR => (time.year % 100) as u8,
            _ => (time.year / 100 % 100) as u8,
        })
    }

    fn has(&self, format: u8) -> bool {
        self.get(register::STATUS_B) & format != 0
    }

    fn encode_byte(&self, value: u8) -> u8 {
        if self.has(BINARY) { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.has(HOURS_24) {
            return self.encode_byte(hour);
        }
        let of_12 = self.encode_byte((hour + 11) % 12 + 1);
        if hour < 12 { of_12 } else { of_12 | PM }
    }

    fn decode(&self, byte: u8) -> u8 {
        if self.has(BINARY) { byte } else { (byte >> 4) * 10 + (byte & 0xf) }
    }

    fn decode_hour(&self, byte: u8) -> u8 {
        if self.has(HOURS_24) {
            return self.decode(byte);
        }
        self.decode(byte & !PM) % 12 + if byte & PM != 0 { 12 } else { 0 }
    }

    /// How many seconds after `unix` the alarm's time comes; none if it never does: its registers may hold what is no time. That is
    /// looked for a field at a time, as a guest may have it done at each exit.
    fn seconds_to_alarm(&self, unix: i64) -> Option<u64> {
        let matches = |register, now| self.get(register) & ANY == ANY || self.get(register) == now;
        let hour_matches = |hour| matches(register::HOURS_ALARM, self.encode_hour(hour));
        let minute_matches = |minute| matches(register::MINUTES_ALARM, self.encode_byte(minute));
        let second_matches = |second| matches(register::SECONDS_ALARM, self.encode_byte(second));
        if !((0..24).any(hour_matches) && (0..60).any(minute_matches) && (0..60).any(second_matches)) {
            return None;
        }
        let first = unix.wrapping_add(1);
        let mut at = first;
        loop {
            let [hour, minute, second] = calendar::time_of_day(at);
            let to_next_minute = 60 - i64::from(second);
            if !hour_matches(hour) {
                at += to_next_minute + 60 * (59 - i64::from(minute));
            } else if !minute_matches(minute) {
                at += to_next_minute;
            } else if !second_matches(second) {
                at += 1;
            } else {
                return Some((at - first).unsigned_abs() + 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;

    fn config(ram_bytes: u64, boot_time: u64) -> BoardConfig {
        BoardConfig { ram_bytes, cpus: 4, boot_time }
    }

    fn rtc(boot_time: u64) -> Rtc {
        Rtc::new(&config(64 << 20, boot_time))
    }

    fn ms(milliseconds: u64) -> Nanoseconds {
        Nanoseconds(milliseconds * MS)
    }

    fn read(rtc: &mut Rtc, register: u8, milliseconds: u64) -> u8 {
        rtc.select(register);
        rtc.read(ms(milliseconds))
    }

    fn write(rtc: &mut Rtc, register: u8, value: u8, milliseconds: u64) {
        rtc.select(register);
        rtc.write(value, ms(milliseconds));
    }

    const DATE: [u8; 7] = [0, 2, 4, 7, 8, 9, 0x32];

    fn date(rtc: &mut Rtc, milliseconds: u64) -> [u8; 7] {
        DATE.map(|register| read(rtc, register, milliseconds))
    }

    /// The next interrupt, and that it comes at its time and not before.
    fn next(rtc: &mut Rtc) -> Nanoseconds {
        let due = rtc.next_deadline().unwrap();
        rtc.advance(Nanoseconds(due.0 - 1));
        assert!(!rtc.interrupt(), "before {due:?}");
        rtc.advance(due);
        assert!(rtc.interrupt(), "at {due:?}");
        assert_eq!(rtc.next_deadline(), None, "the line is high");
        due
    }

    #[test]
    fn the_time_runs_from_the_start_in_bcd_or_binary() {
        let mut rtc = rtc(1_735_689_599);
        assert_eq!(date(&mut rtc, 0), [0x59, 0x59, 0x23, 0x31, 0x12, 0x24, 0x20]);
        assert_eq!(date(&mut rtc, 1000), [0, 0, 0, 1, 1, 0x25, 0x20]);
        write(&mut rtc, 0x8b, 0x06, 1000);
        assert_eq!(date(&mut rtc, 1000), [0, 0, 0, 1, 1, 25, 20]);
    }

    #[test]
    fn hours_of_12_have_a_bit_for_the_afternoon() {
        let mut rtc = rtc(0);
        write(&mut rtc, 0x0b, 0, 0);
        let hours = [0, 1, 11, 12, 13, 23].map(|hour| read(&mut rtc, 4, hour * 3_600_000));
        assert_eq!(hours, [0x12, 0x01, 0x11, 0x92, 0x81, 0x91]);
        for (hour, expected) in hours.into_iter().zip([0, 1, 11, 12, 13, 23]) {
            write(&mut rtc, 4, hour, 100_000_000);
            assert_eq!(rtc.time(rtc.updates(ms(100_000_000)).unwrap()).hour, expected);
        }
    }

    #[test]
    fn an_update_is_in_progress_before_each_second() {
        let mut rtc = rtc(0);
        let mut at = |ns| {
            rtc.select(0x0a);
            rtc.read(Nanoseconds(ns))
        };
        let [before, first, last, after] = [SECOND - UIP_TIME - 1, SECOND - UIP_TIME, SECOND - 1, SECOND].map(&mut at);
        assert_eq!([before, first, last, after], [0x26, 0xa6, 0xa6, 0x26]);
        write(&mut rtc, 0x0b, 0x82, 1500);
        rtc.select(0x0a);
        assert_eq!(rtc.read(Nanoseconds(2 * SECOND - 1)), 0x26, "the clock is held");
    }

    #[test]
    fn flags_show_what_has_happened_until_they_are_read() {
        let mut rtc = rtc(0);
        write(&mut rtc, 0x0a, 0x20, 0);
        assert_eq!(read(&mut rtc, 0x0c, 999), 0);
        assert_eq!(read(&mut rtc, 0x0c, 1000), UPDATED);
        assert_eq!(read(&mut rtc, 0x0c, 1001), 0, "read once");
        write(&mut rtc, 0x0a, 0x26, 1001);
        assert_eq!(read(&mut rtc, 0x0c, 1003), PERIODIC, "no interrupt is enabled");
        write(&mut rtc, 0x0b, PERIODIC | HOURS_24, 1003);
        assert_eq!(read(&mut rtc, 0x0c, 1003), 0);
        assert_eq!(read(&mut rtc, 0x0c, 1005), INTERRUPT_REQUEST | PERIODIC);
        assert_eq!(
            [0x0c, 0x0d].map(|register| {
                write(&mut rtc, register, 0xff, 1005);
                read(&mut rtc, register, 1005)
            }),
            [0, 0x80],
            "they are read-only"
        );
    }

    #[test]
    fn periodic_interrupts_have_the_rate_that_was_chosen() {
        for (rate, hertz) in [(1, 256), (2, 128), (3, 8192), (6, 1024), (8, 256), (15, 2)] {
            let mut rtc = rtc(0);
            write(&mut rtc, 0x0a, 0x20 | rate, 0);
            write(&mut rtc, 0x0b, PERIODIC | HOURS_24, 0);
            for n in 1..10 {
                assert_eq!(next(&mut rtc), Nanoseconds::from_ticks(n, hertz), "rate {rate}");
                rtc.select(0x0c);
                assert_eq!(rtc.read(rtc.seen) & (INTERRUPT_REQUEST | PERIODIC), INTERRUPT_REQUEST | PERIODIC);
            }
        }
    }

    #[test]
    fn an_interrupt_comes_with_each_update() {
        let mut rtc = rtc(0);
        write(&mut rtc, 0x0b, UPDATED | HOURS_24, 300);
        for second in 1..5 {
            assert_eq!(next(&mut rtc), ms(second * 1000));
            assert_eq!(read(&mut rtc, 0x0c, second * 1000 + 100) & !PERIODIC, INTERRUPT_REQUEST | UPDATED);
        }
        write(&mut rtc, 0x0b, SET | UPDATED | HOURS_24, 5300);
        assert_eq!(rtc.next_deadline(), None);
    }

    #[test]
    fn an_alarm_comes_at_its_time_and_at_any_if_that_is_wanted() {
        let [seconds, minutes, hours] = [1, 3, 5];
        let cases: [([u8; 3], Option<u64>); 7] = [
            ([0x00, 0x00, 0x00], Some(86_400)),
            ([0x01, 0x00, 0x00], Some(1)),
            ([0x30, 0x15, 0x23], Some(23 * 3600 + 15 * 60 + 30)),
            ([0xff, 0xc0, 0xff], Some(1)),
            ([0x05, 0xff, 0xff], Some(5)),
            ([0x00, 0x10, 0xff], Some(600)),
            ([0x7a, 0xff, 0xff], None),
        ];
        for (alarm, expected) in cases {
            let mut rtc = rtc(0);
            for (register, value) in [seconds, minutes, hours].into_iter().zip(alarm) {
                write(&mut rtc, register, value, 0);
                assert_eq!(read(&mut rtc, register, 0), value);
            }
            write(&mut rtc, 0x0b, ALARM | HOURS_24, 0);
            assert_eq!(rtc.next_deadline(), expected.map(|seconds| ms(seconds * 1000)), "{alarm:x?}");
            if expected.is_some() {
                next(&mut rtc);
            }
        }
    }

    #[test]
    fn the_time_is_set_at_once_or_while_the_clock_is_held() {
        let mut rtc = rtc(1_735_689_599);
        write(&mut rtc, 2, 0x10, 500);
        assert_eq!(date(&mut rtc, 999), [0x59, 0x10, 0x23, 0x31, 0x12, 0x24, 0x20]);
        assert_eq!(date(&mut rtc, 1000)[..2], [0, 0x11], "the second goes on");
        write(&mut rtc, 0x0b, SET | HOURS_24, 1000);
        for (register, value) in DATE.into_iter().zip([0x58, 0x59, 0x23, 0x28, 0x02, 0x00, 0x20]) {
            write(&mut rtc, register, value, 2500);
        }
        assert_eq!(date(&mut rtc, 9_000_000), [0x58, 0x59, 0x23, 0x28, 0x02, 0x00, 0x20], "it is held");
        write(&mut rtc, 0x0b, HOURS_24, 9_000_500);
        assert_eq!(date(&mut rtc, 9_001_500), [0x59, 0x59, 0x23, 0x28, 0x02, 0x00, 0x20]);
        assert_eq!(date(&mut rtc, 9_002_000), [0, 0, 0, 0x29, 0x02, 0x00, 0x20], "a leap year");
    }

    #[test]
    fn the_day_of_the_week_is_the_guests() {
        let mut rtc = rtc(0);
        assert_eq!(read(&mut rtc, 6, 0), 5, "1970 began on a Thursday");
        write(&mut rtc, 6, 1, 0);
        let week = [0, 1, 5, 6, 7].map(|day| read(&mut rtc, 6, day * 86_400_000));
        assert_eq!(week, [1, 2, 6, 7, 1]);
        write(&mut rtc, 0x0b, BINARY, 0);
        write(&mut rtc, 6, 0xff, 0);
        assert_eq!(read(&mut rtc, 6, 0), 3, "255 is 3 and 36 weeks");
    }

    #[test]
    fn a_clock_that_is_a_little_behind_changes_nothing() {
        let mut rtc = rtc(0);
        write(&mut rtc, 0x0a, 0x20, 1000);
        read(&mut rtc, 0x0c, 1000);
        assert_eq!(read(&mut rtc, 0x0c, 999), 0);
        assert_eq!(read(&mut rtc, 0x0c, 1000), 0);
    }

    #[test]
    fn the_first_update_comes_half_a_second_after_the_dividers_reset() {
        let mut rtc = rtc(0);
        write(&mut rtc, 0x0b, UPDATED | PERIODIC | HOURS_24, 0);
        write(&mut rtc, 0x0a, 0x76, 100);
        read(&mut rtc, 0x0c, 100);
        assert_eq!(rtc.next_deadline(), None, "the divider is reset");
        write(&mut rtc, 0, 0x30, 5000);
        assert_eq!(read(&mut rtc, 0, 50_000), 0x30);
        write(&mut rtc, 0x0a, 0x20, 60_250);
        assert_eq!(next(&mut rtc), ms(60_750));
        assert_eq!(read(&mut rtc, 0, 60_750), 0x31);
    }

    #[test]
    fn a_reset_keeps_the_time_and_takes_the_interrupts_away() {
        let mut rtc = rtc(0);
        write(&mut rtc, 0x0b, INTERRUPTS | BINARY | HOURS_24, 0);
        write(&mut rtc, 4, 17, 0);
        write(&mut rtc, 0x40, 0xa5, 0);
        rtc.reset(&config(64 << 20, 0), ms(1500));
        assert!(!rtc.is_armed() && !rtc.interrupt());
        assert_eq!(rtc.get(0x0c), 0);
        assert_eq!([4, 0x0a, 0x0b, 0x40].map(|register| read(&mut rtc, register, 1600)), [0x17, 0x26, 2, 0xa5]);
    }

    #[test]
    fn memory_sizes() {
        let mut small = Rtc::new(&config(8 << 20, 0));
        let mut large = Rtc::new(&config(3 << 30, 0));
        let word = |rtc: &mut Rtc, at| u16::from_le_bytes([read(rtc, at, 0), read(rtc, at + 1, 0)]);
        assert_eq!([0x15, 0x17, 0x30, 0x34].map(|at| word(&mut small, at)), [640, 7 << 10, 7 << 10, 0]);
        assert_eq!([0x17, 0x34].map(|at| word(&mut large, at)), [0xffff, (((3 << 30) - (16 << 20)) >> 16) as u16]);
        assert_eq!(read(&mut small, 0x5f, 0), 3, "processors beside the first");
    }

    #[test]
    fn the_rest_is_memory() {
        let mut rtc = rtc(0);
        write(&mut rtc, 0x40, 0xa5, 0);
        assert_eq!(read(&mut rtc, 0xc0, 0), 0xa5);
    }

    proptest! {
        /// What a guest may write, at any time; a deadline is when the line goes up, and not before.
        #[test]
        fn a_deadline_is_when_the_next_interrupt_comes(
            writes in prop::collection::vec((0u8..0x10, any::<u8>(), 0u64..3_000_000_000), 0..20),
        ) {
            let (mut rtc, mut now) = (rtc(1_735_689_599), 0);
            for (register, value, later) in writes {
                now += later;
                rtc.select(register);
                rtc.write(value, Nanoseconds(now));
            }
            if let Some(due) = rtc.next_deadline() {
                prop_assert!(due.0 > rtc.seen.0);
                next(&mut rtc);
            }
        }
    }
}
