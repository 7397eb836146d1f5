//! Times of a calendar without a zone, as sets of what their parts may be; a set is a number whose bit N says
//! that N is in it.

use jiff::civil::{Date, DateTime};

/// Every day of the week, Sunday first.
pub(super) const WEEK: u64 = 0x7f;
/// Every day of a month.
pub(super) const DAYS: u64 = 0xffff_fffe;
/// Every month.
pub(super) const MONTHS: u64 = 0x1ffe;
/// Every hour of a day.
pub(super) const HOURS: u64 = 0xff_ffff;

/// February 29th on a given weekday comes again after 40 years at the latest; anything else sooner.
const SEARCHED_DAYS: usize = 41 * 366;
const LONGEST: [(u64, u64); 12] = [
    (1, 31),
    (2, 29),
    (3, 31),
    (4, 30),
    (5, 31),
    (6, 30),
    (7, 31),
    (8, 31),
    (9, 30),
    (10, 31),
    (11, 30),
    (12, 31),
];

/// Which times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Calendar {
    pub(super) months: u64,
    pub(super) days: u64,
    pub(super) weekdays: u64,
    /// Whether a day needs to be in one of `days` and `weekdays` only, as cron has it where both are
    /// restricted.
    pub(super) either: bool,
    pub(super) hours: u64,
    pub(super) minutes: u64,
}

impl Calendar {
    /// Whether each hour of a day is one of its.
    pub(super) fn has_every_hour(&self) -> bool {
        self.hours == HOURS
    }

    /// Whether there is a day that it takes.
    pub(super) fn comes(&self) -> bool {
        let month = |(month, longest): &(u64, u64)| {
            has(self.months, *month) && (1..=*longest).any(|day| has(self.days, day))
        };
        self.either || LONGEST.iter().any(month)
    }

    /// Its first time from `start` on, which is one of its if the calendar has it.
    pub(super) fn first_from(&self, start: DateTime) -> Option<DateTime> {
        let mut date = start.date();
        let begun = start.second() > 0 || start.subsec_nanosecond() > 0;
        let mut minute = i32::from(start.hour()) * 60 + i32::from(start.minute()) + i32::from(begun);
        for _ in 0..SEARCHED_DAYS {
            if self.takes(date)
                && let Some(minute) = (minute..24 * 60).find(|minute| self.takes_minute(*minute))
            {
                let hour = i8::try_from(minute / 60).ok()?;
                return Some(date.at(hour, i8::try_from(minute % 60).ok()?, 0, 0));
            }
            date = date.tomorrow().ok()?;
            minute = 0;
        }
        None
    }

    fn takes(&self, date: Date) -> bool {
        let day = has(self.days, date.day());
        let weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        let day = if self.either { day || weekday } else { day && weekday };
        day && has(self.months, date.month())
    }

    fn takes_minute(&self, minute: i32) -> bool {
        has(self.hours, minute / 60) && has(self.minutes, minute % 60)
    }
}

fn has<N>(set: u64, number: N) -> bool
where
    u64: std::ops::Shr<N, Output = u64>,
{
    (set >> number) & 1 == 1
}
