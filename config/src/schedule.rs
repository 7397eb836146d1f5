//! When a job runs: texts such as `daily 02:00` or `30 2 * * 1-5`, and the next time after a given one.
//!
//! The text is read in `schedule/parse.rs` (cron's five fields, a part of systemd's calendar words) and
//! becomes sets of months, days, weekdays, hours and minutes (`schedule/calendar.rs`), which know nothing of
//! time zones. This file puts the clock's times into a zone:
//! - A schedule that has only some of the day's hours runs when the clock first comes to, or jumps over, one
//!   of its times. So a time that does not exist (the clock goes forward) is due in the moment after the gap,
//!   together with the others in it; a time that comes twice (the clock goes back) is due the first time.
//! - A schedule that has every hour runs whenever the clock shows one of its minutes: in each real hour, in
//!   the one that comes twice, too.
//!
//! Invariants: the next time is later than the one asked about; asking again with it goes on without leaving
//! one out.
//!
//! Imports: nothing of virtfold but `values`' macros and `suggest`.

mod calendar;
mod parse;

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Timestamp, ToSpan, Zoned};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer};
use serde::{Serialize, Serializer};

use self::calendar::Calendar;

/// When a job runs.
#[derive(Clone, Debug)]
pub struct Schedule {
    text: String,
    rule: ScheduleRule,
}

#[derive(Clone, Debug)]
enum ScheduleRule {
    /// Never by itself.
    Manual,
    /// At these times, in this zone or in the host's.
    At(Calendar, Option<TimeZone>),
}

value!(
    Schedule,
    "a schedule such as 'daily 02:00'",
    json_schema!({
        "title": "calendar words or the five fields of cron, with a time zone behind them where it is not the host's; or `manual`",
        "type": "string",
        "minLength": 1,
        "examples": ["daily 02:00", "mon..fri 22:30", "*-*-01 04:00 Europe/Berlin", "30 2 * * 1-5", "hourly", "manual"],
    })
);

impl Schedule {
    /// The first time after `now` that is due, in the zone of `now`; `None` for `manual`. Times without a
    /// zone of their own are those of the zone of `now`.
    pub fn next_after(&self, now: &Zoned) -> Option<Zoned> {
        let next = self.next_after_in(now.timestamp(), now.time_zone())?;
        Some(next.to_zoned(now.time_zone().clone()))
    }

    /// The first time after `now` that is due; times without a zone of their own are those of `zone`.
    pub fn next_after_in(&self, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let ScheduleRule::At(calendar, own) = &self.rule else { return None };
        let zone = own.as_ref().unwrap_or(zone);
        if calendar.has_every_hour() {
            next_shown(calendar, now, zone)
        } else {
            next_reached(calendar, now, zone)
        }
    }

    /// Whether it has no times: only a person starts the job.
    pub fn is_manual(&self) -> bool {
        matches!(self.rule, ScheduleRule::Manual)
    }
}

/// The next time that the clock reaches or jumps over. The clock's times become instants in their order, so
/// the first one whose instant is late enough is it.
fn next_reached(calendar: &Calendar, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    let mut from = next_minute(zone.to_datetime(now))?;
    loop {
        let time = calendar.first_from(from)?;
        let at = reached(time, zone)?;
        if at > now {
            return Some(at);
        }
        from = next_minute(time)?;
    }
}

/// When the clock first comes to `time`, or jumps over it.
fn reached(time: DateTime, zone: &TimeZone) -> Option<Timestamp> {
    let ambiguous = zone.to_ambiguous_timestamp(time);
    let AmbiguousOffset::Gap { after, .. } = ambiguous.offset() else {
        return ambiguous.compatible().ok();
    };
    // Seen from behind the gap, the time lies before it; the gap's end is the next change to that offset.
    let before_gap = after.to_timestamp(time).ok()?;
    let mut changes = zone.following(before_gap);
    changes.find(|change| change.offset() == after).map(|change| change.timestamp())
}

/// The next time that the clock shows. Between two changes of the offset the clock goes evenly, so each such
/// stretch is looked at by itself.
fn next_shown(calendar: &Calendar, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    let mut from = next_minute(zone.to_datetime(now))?;
    let mut offset = zone.to_offset(now);
    let mut changes = zone.following(now);
    loop {
        let at = offset.to_timestamp(calendar.first_from(from)?).ok()?;
        match changes.next() {
            Some(change) if change.timestamp() <= at => {
                offset = change.offset();
                from = offset.to_datetime(change.timestamp());
            }
            _ => return Some(at),
        }
    }
}

/// The first whole minute after `time`.
fn next_minute(time: DateTime) -> Option<DateTime> {
    let whole = time.with().second(0).subsec_nanosecond(0).build().ok()?;
    whole.checked_add(1.minute()).ok()
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rule = parse::rule(text).map_err(|why| {
            let told = text.is_empty() || text.len() > parse::MAX || why.starts_with(&format!("'{text}'"));
            if told { why } else { format!("'{text}': {why}") }
        })?;
        Ok(Self { text: text.to_owned(), rule })
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Schedule {}

#[cfg(test)]
mod tests;
