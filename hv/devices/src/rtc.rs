//! The clock and CMOS memory of a PC: a Motorola MC146818A without its interrupts, and IBM's layout of the memory.

use crate::{BoardConfig, Nanoseconds};

/// Register numbers.
mod register {
    pub(super) const STATUS_A: u8 = 0x0a;
    pub(super) const STATUS_B: u8 = 0x0b;
    pub(super) const STATUS_C: u8 = 0x0c;
    pub(super) const STATUS_D: u8 = 0x0d;
    pub(super) use abi::ports::RTC_CENTURY as CENTURY;
}

/// A 32.768 kHz crystal, an update once a second; no update is ever in progress.
const STATUS_A: u8 = 0x26;
const STATUS_B_BINARY: u8 = 1 << 2;
const STATUS_B_24_HOURS: u8 = 1 << 1;
/// Battery good.
const STATUS_D: u8 = 0x80;

#[derive(Debug)]
pub(crate) struct Rtc {
    selected: u8,
    memory: [u8; 128],
    boot_time: u64,
}

impl Rtc {
    pub(crate) fn new(config: &BoardConfig) -> Self {
        let mut rtc = Self { selected: 0, memory: [0; 128], boot_time: config.boot_time };
        rtc.reset(config);
        rtc
    }

    /// The machine is reset. A battery keeps the memory, of which the firmware writes its own part anew.
    pub(crate) fn reset(&mut self, config: &BoardConfig) {
        let memory = &mut self.memory;
        memory[usize::from(register::STATUS_B)] = STATUS_B_24_HOURS;
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

    /// Reads port 0x71.
    pub(crate) fn read(&self, now: Nanoseconds) -> u8 {
        let time = || DateTime::from_unix(self.boot_time.saturating_add(now.seconds()));
        match self.selected {
            0 => self.encode(time().second),
            2 => self.encode(time().minute),
            4 => self.encode(time().hour),
            6 => self.encode(time().weekday),
            7 => self.encode(time().day),
            8 => self.encode(time().month),
            9 => self.encode((time().year % 100) as u8),
            register::CENTURY => self.encode((time().year / 100 % 100) as u8),
            register::STATUS_A => STATUS_A,
            register::STATUS_C => 0,
            register::STATUS_D => STATUS_D,
            other => self.memory[usize::from(other)],
        }
    }

    /// Writes port 0x71. The time can't be set; the format is always that of 24 hours.
    pub(crate) fn write(&mut self, value: u8) {
        self.memory[usize::from(self.selected)] =
            if self.selected == register::STATUS_B { value | STATUS_B_24_HOURS } else { value };
    }

    fn encode(&self, value: u8) -> u8 {
        match self.memory[usize::from(register::STATUS_B)] & STATUS_B_BINARY {
            0 => ((value / 10) << 4) | (value % 10),
            _ => value,
        }
    }
}

/// A day and time of the Gregorian calendar, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DateTime {
    year: u64,
    month: u8,
    day: u8,
    /// 1 is Sunday.
    weekday: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl DateTime {
    fn from_unix(seconds: u64) -> Self {
        const DAY: u64 = 24 * 60 * 60;
        let (days, second_of_day) = (seconds / DAY, seconds % DAY);
        // Years that start in March, counted from 0000-03-01, have their leap day last; 400 of them are 146,097 days.
        let days_from_march_0 = days + 719_468;
        let (era, day_of_era) = (days_from_march_0 / 146_097, days_from_march_0 % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // Five months from March or August on have 153 days.
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = (month_from_march + 2) % 12 + 1;
        Self {
            year: era * 400 + year_of_era + u64::from(month <= 2),
            month: month as u8,
            day: (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u8,
            weekday: ((days + 4) % 7 + 1) as u8,
            hour: (second_of_day / 3600) as u8,
            minute: (second_of_day / 60 % 60) as u8,
            second: (second_of_day % 60) as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rtc(ram_bytes: u64, boot_time: u64) -> Rtc {
        Rtc::new(&BoardConfig { ram_bytes, cpus: 4, boot_time })
    }

    fn read(rtc: &mut Rtc, register: u8, seconds: u64) -> u8 {
        rtc.select(register);
        rtc.read(Nanoseconds(seconds * 1_000_000_000))
    }

    #[test]
    fn the_calendar() {
        let date = |seconds| {
            let time = DateTime::from_unix(seconds);
            (time.year, time.month, time.day, time.weekday, time.hour, time.minute, time.second)
        };
        assert_eq!(date(0), (1970, 1, 1, 5, 0, 0, 0));
        assert_eq!(date(951_782_399), (2000, 2, 28, 2, 23, 59, 59));
        assert_eq!(date(951_782_400), (2000, 2, 29, 3, 0, 0, 0));
        assert_eq!(date(1_709_251_199), (2024, 2, 29, 5, 23, 59, 59));
        assert_eq!(date(1_735_689_599), (2024, 12, 31, 3, 23, 59, 59));
        assert_eq!(date(4_107_542_400), (2100, 3, 1, 2, 0, 0, 0));
    }

    #[test]
    fn days_follow_one_another() {
        let mut before = DateTime::from_unix(0);
        for day in 1..200_000 {
            let now = DateTime::from_unix(day * 86_400);
            let next_day = now.day == before.day + 1 && (now.year, now.month) == (before.year, before.month);
            let next_month = now.day == 1 && before.day >= 28 && now.month == before.month % 12 + 1;
            assert!(next_day || next_month, "{before:?} {now:?}");
            assert_eq!(now.weekday, before.weekday % 7 + 1);
            before = now;
        }
    }

    #[test]
    fn the_time_runs_from_the_start_in_bcd_or_binary() {
        let mut rtc = rtc(64 << 20, 1_735_689_599);
        let date = |rtc: &mut Rtc, seconds| [0, 2, 4, 7, 8, 9, 0x32].map(|register| read(rtc, register, seconds));
        assert_eq!(date(&mut rtc, 0), [0x59, 0x59, 0x23, 0x31, 0x12, 0x24, 0x20]);
        assert_eq!(date(&mut rtc, 1), [0, 0, 0, 1, 1, 0x25, 0x20]);
        rtc.select(0x8b);
        rtc.write(0x04);
        assert_eq!(read(&mut rtc, 0x0b, 0), 0x06, "24 hours stay");
        assert_eq!(date(&mut rtc, 0), [59, 59, 23, 31, 12, 24, 20]);
    }

    #[test]
    fn no_update_is_in_progress_and_the_battery_is_good() {
        let mut rtc = rtc(64 << 20, 0);
        assert_eq!([0x0a, 0x0c, 0x0d].map(|register| read(&mut rtc, register, 0)), [0x26, 0, 0x80]);
    }

    #[test]
    fn memory_sizes() {
        let mut small = rtc(8 << 20, 0);
        let mut large = rtc(3 << 30, 0);
        let word = |rtc: &mut Rtc, at| u16::from_le_bytes([read(rtc, at, 0), read(rtc, at + 1, 0)]);
        assert_eq!([0x15, 0x17, 0x30, 0x34].map(|at| word(&mut small, at)), [640, 7 << 10, 7 << 10, 0]);
        assert_eq!([0x17, 0x34].map(|at| word(&mut large, at)), [0xffff, (((3 << 30) - (16 << 20)) >> 16) as u16]);
        assert_eq!(read(&mut small, 0x5f, 0), 3, "processors beside the first");
    }

    #[test]
    fn the_rest_is_memory() {
        let mut rtc = rtc(64 << 20, 0);
        rtc.select(0x40);
        rtc.write(0xa5);
        assert_eq!(read(&mut rtc, 0xc0, 0), 0xa5);
    }
}
