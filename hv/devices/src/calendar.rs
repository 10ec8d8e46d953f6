//! Days and times of the Gregorian calendar.

const DAY: i64 = 24 * 60 * 60;
/// Days from 0000-03-01 to 1970-01-01.
const EPOCH: i64 = 719_468;
/// Days of 400 years.
const ERA: i64 = 146_097;

/// Hour, minute and second so many seconds after 1970-01-01.
pub(crate) fn time_of_day(seconds: i64) -> [u8; 3] {
    // Below 86,400.
    let second = seconds.rem_euclid(DAY) as u32;
    [second / 3600, second / 60 % 60, second % 60].map(|field| field as u8)
}

/// A day and time, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DateTime {
    pub(crate) year: u64,
    pub(crate) month: u8,
    pub(crate) day: u8,
    /// 1 is Sunday.
    pub(crate) weekday: u8,
    pub(crate) hour: u8,
    pub(crate) minute: u8,
    pub(crate) second: u8,
}

impl DateTime {
    /// The day and time so many seconds after 1970-01-01, of the year 0 or later.
    pub(crate) fn from_unix(seconds: i64) -> Self {
        let [hour, minute, second] = time_of_day(seconds);
        let days = seconds.div_euclid(DAY);
        // Years that start in March, counted from 0000-03-01, have their leap day last.
        let days_from_march_0 = days + EPOCH;
        let (era, day_of_era) = (days_from_march_0.div_euclid(ERA), days_from_march_0.rem_euclid(ERA));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // Five months from March or August on have 153 days.
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = (month_from_march + 2) % 12 + 1;
        Self {
            year: (era * 400 + year_of_era + i64::from(month <= 2)).unsigned_abs(),
            month: month as u8,
            day: (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u8,
            weekday: ((days + 4).rem_euclid(7) + 1) as u8,
            hour,
            minute,
            second,
        }
    }

    /// The seconds since 1970-01-01. Fields beyond their ranges count into the next ones, but for the month, which has to be one.
    pub(crate) fn to_unix(self) -> i64 {
        let month_from_march = i64::from((self.month + 9) % 12);
        let year = self.year as i64 - i64::from(self.month <= 2);
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(self.day) - 1;
        let days = era * ERA + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - EPOCH;
        days * DAY + i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

    proptest! {
        #[test]
        fn a_date_is_the_number_that_it_is_made_of(seconds in -62_162_208_000_i64..200_000_000_000) {
            prop_assert_eq!(DateTime::from_unix(seconds).to_unix(), seconds);
        }
    }
}
