//! The grammar of schedules. Words may be written in either case.
//!
//! - `manual`.
//! - Cron: five fields (minute, hour, day of month, month, weekday) of numbers, names, `*`, ranges `a-b`,
//!   steps `/n`, lists with commas;
//!   or `@hourly`, `@daily`, `@midnight`, `@weekly`, `@monthly`, `@yearly`, `@annually`.
//! - Calendar words: `hourly`, or `daily`, `weekly`, `monthly`, `quarterly`, `semiannually`, `yearly`,
//!   `annually` with a time or without
//!   (midnight); or weekdays, date, time, each of which may be left out: `Mon,Thu *-1..7 02:00`.
//! - Behind each, a time zone: `Europe/Berlin`, `UTC`.

use jiff::tz::TimeZone;

use super::ScheduleRule;
use super::calendar::{Calendar, DAYS, HOURS, MONTHS, WEEK};
use crate::suggest::nearest;

/// The longest text.
pub(super) const MAX: usize = 200;
const WEEKDAYS: [&str; 7] = ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];
const MONTH_NAMES: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];
const WORDS: [&str; 8] =
    ["hourly", "daily", "weekly", "monthly", "quarterly", "semiannually", "yearly", "annually"];
const HINT: &str = "write for example 'daily 02:00', 'mon..fri 22:30', '*-*-01 04:00' or '30 2 * * 1-5'";

/// One part of a time: what it is called, its bounds, the names of its numbers, and all that in words.
struct Part {
    name: &'static str,
    min: u64,
    max: u64,
    names: &'static [&'static str],
    known: &'static str,
}

const MINUTE: Part = Part { name: "minute", min: 0, max: 59, names: &[], known: "they go from 0 to 59" };
const HOUR: Part = Part { name: "hour", min: 0, max: 23, names: &[], known: "they go from 0 to 23" };
const DAY: Part = Part { name: "day of a month", min: 1, max: 31, names: &[], known: "they go from 1 to 31" };
const MONTH: Part =
    Part { name: "month", min: 1, max: 12, names: &MONTH_NAMES, known: "they go from 1 to 12 or jan to dec" };
/// Sunday is 0 and 7.
const WEEKDAY: Part =
    Part { name: "weekday", min: 0, max: 7, names: &WEEKDAYS, known: "they go from 0 to 7 or sun to sat" };

/// Reads a schedule.
///
/// # Errors
/// A sentence for the person who typed it.
pub(super) fn rule(text: &str) -> Result<ScheduleRule, String> {
    if text.len() > MAX {
        return Err(format!("a schedule has at most {MAX} characters"));
    }
    let lower = text.to_ascii_lowercase();
    let mut words: Vec<&str> = lower.split_ascii_whitespace().collect();
    if words == ["manual"] {
        return Ok(ScheduleRule::Manual);
    }
    let mut zone = None;
    if let Some(last) = words.last().filter(|word| words.len() > 1 && is_zone(word)) {
        let written = text.split_ascii_whitespace().next_back().unwrap_or(last);
        zone = Some(TimeZone::get(written).map_err(|_| no_zone(written))?);
        words.pop();
    }
    let calendar = match words.as_slice() {
        [word] if word.starts_with('@') => nickname(word)?,
        [minute, hour, day, month, weekday] if !lower.contains(':') => {
            cron([minute, hour, day, month, weekday])?
        }
        [] | [_] | [_, _] | [_, _, _] => calendar(&words)?,
        more if more.iter().any(|word| word.contains(':')) => {
            return Err(format!(
                "'{text}' has too many words; it may have weekdays, a date, a time and a zone"
            ));
        }
        more => {
            return Err(format!(
                "'{text}' has {} fields; cron has five: minute, hour, day, month, weekday",
                more.len()
            ));
        }
    };
    if !calendar.comes() {
        return Err(format!("'{text}' never comes: the month has no such day"));
    }
    Ok(ScheduleRule::At(calendar, zone))
}

/// Whether a word behind others is meant as a time zone: `utc`, or `area/city` where the area is no weekday
/// or month.
fn is_zone(word: &str) -> bool {
    let area = word.split('/').next().unwrap_or_default();
    let letters = area.len() > 1 && area.chars().all(|c| c.is_ascii_alphabetic() || c == '_');
    let known = named(area, &WEEKDAYS).or_else(|| named(area, &MONTH_NAMES)).is_some();
    word == "utc" || (word.contains('/') && letters && !known)
}

fn no_zone(written: &str) -> String {
    let names: Vec<String> = jiff::tz::db().available().map(|name| name.to_string()).collect();
    let lost = format!("this host knows no time zone '{written}'");
    if names.is_empty() {
        return format!("{lost}, nor any other; install tzdata");
    }
    let meant = nearest(written, names.iter().map(String::as_str));
    meant.map_or_else(
        || format!("{lost}; write for example Europe/Berlin or UTC"),
        |name| format!("{lost}; did you mean `{name}`?"),
    )
}

/// Midnight of every day; what is made of it has one minute and one hour.
const MIDNIGHT: Calendar =
    Calendar { months: MONTHS, days: DAYS, weekdays: WEEK, either: false, hours: 1, minutes: 1 };

fn nickname(word: &str) -> Result<Calendar, String> {
    Ok(match word {
        "@hourly" => Calendar { hours: HOURS, ..MIDNIGHT },
        "@daily" | "@midnight" => MIDNIGHT,
        "@weekly" => Calendar { weekdays: 1, ..MIDNIGHT },
        "@monthly" => Calendar { days: 1 << 1, ..MIDNIGHT },
        "@yearly" | "@annually" => Calendar { days: 1 << 1, months: 1 << 1, ..MIDNIGHT },
        _ => {
            return Err(format!(
                "'{word}' is none of @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually"
            ));
        }
    })
}

fn cron([minute, hour, day, month, weekday]: [&str; 5]) -> Result<Calendar, String> {
    Ok(Calendar {
        minutes: field(minute, "-", &MINUTE)?,
        hours: field(hour, "-", &HOUR)?,
        days: field(day, "-", &DAY)?,
        months: field(month, "-", &MONTH)?,
        weekdays: week(field(weekday, "-", &WEEKDAY)?),
        either: !day.starts_with('*') && !weekday.starts_with('*'),
    })
}

fn calendar(words: &[&str]) -> Result<Calendar, String> {
    let mut out = MIDNIGHT;
    let mut rest = words;
    let mut hourly = false;
    if let Some((first, more)) =
        rest.split_first().filter(|(first, _)| first.starts_with(|c: char| c.is_ascii_alphabetic()))
    {
        rest = more;
        match *first {
            "hourly" => {
                out.hours = HOURS;
                hourly = true;
            }
            "daily" => {}
            "weekly" => out.weekdays = 1 << 1,
            "monthly" => out.days = 1 << 1,
            "quarterly" => (out.days, out.months) = (1 << 1, 1 << 1 | 1 << 4 | 1 << 7 | 1 << 10),
            "semiannually" => (out.days, out.months) = (1 << 1, 1 << 1 | 1 << 7),
            "yearly" | "annually" => (out.days, out.months) = (1 << 1, 1 << 1),
            word => out.weekdays = weekdays(word)?,
        }
        if WORDS.contains(first) && rest.first().is_some_and(|word| !word.contains(':')) {
            return Err(format!("after '{first}' only a time of day and a time zone may follow; {HINT}"));
        }
    }
    if let Some((first, more)) =
        rest.split_first().filter(|(first, _)| first.contains('-') && !first.contains(':'))
    {
        rest = more;
        (out.months, out.days) = date(first)?;
    }
    match rest {
        [] if words.is_empty() => Err(format!("it is empty; {HINT}")),
        [] => Ok(out),
        [_] if hourly => {
            Err("'hourly' is at the full hour; for another minute write for example '*:30'".to_owned())
        }
        [time] if time.contains(':') => {
            (out.hours, out.minutes) = self::time(time)?;
            Ok(out)
        }
        [time, word, ..] if time.contains(':') => Err(format!(
            "'{word}' after the time is not a time zone; write Area/City, for example Europe/Berlin, or UTC"
        )),
        [word, ..] => Err(format!("'{word}' is not a weekday, date or time of day here; {HINT}")),
    }
}

/// Weekdays of calendar words; a word that is none may be meant as another one.
fn weekdays(word: &str) -> Result<u64, String> {
    let plain = word.chars().all(|c| c.is_ascii_alphabetic());
    if plain && named(word, &WEEKDAYS).is_none() {
        let known = WORDS.iter().chain(&WEEKDAYS).chain(&["manual"]).copied();
        let lost = format!("unknown word '{word}' in a schedule");
        return Err(nearest(word, known)
            .map_or_else(|| format!("{lost}; {HINT}"), |meant| format!("{lost}; did you mean `{meant}`?")));
    }
    let separator = if word.contains("..") { ".." } else { "-" };
    field(word, separator, &WEEKDAY).map(week)
}

fn date(word: &str) -> Result<(u64, u64), String> {
    let (month, day) = match word.split('-').collect::<Vec<_>>().as_slice() {
        ["*", month, day] => (*month, *day),
        [month, day] => (*month, *day),
        [_, _, _] => {
            return Err(format!("'{word}' has a year, and a schedule repeats every year; write * for it"));
        }
        _ => {
            return Err(format!(
                "invalid date '{word}'; write for example *-*-01 for the first of each month"
            ));
        }
    };
    Ok((field(month, "..", &MONTH)?, field(day, "..", &DAY)?))
}

fn time(word: &str) -> Result<(u64, u64), String> {
    match word.split(':').collect::<Vec<_>>().as_slice() {
        [hour, minute] | [hour, minute, "0" | "00"] => {
            Ok((field(hour, "..", &HOUR)?, field(minute, "..", &MINUTE)?))
        }
        [_, _, _] => Err(format!("'{word}' has seconds; a schedule is by the minute")),
        _ => Err(format!("invalid time of day '{word}'; write for example 02:00")),
    }
}

/// The set of a field: parts with commas between them, each `*`, a number or a range, with a step or without.
fn field(text: &str, separator: &str, part: &Part) -> Result<u64, String> {
    let mut set = 0;
    for item in text.split(',') {
        let (range, step) = match item.split_once('/') {
            Some((range, step)) => (range, Some(step)),
            None => (item, None),
        };
        let (from, to) = match range.split_once(separator) {
            _ if range == "*" => (part.min, if part.max == 7 { 6 } else { part.max }),
            Some((from, to)) => (number(from, part)?, last(to, part)?),
            None if step.is_some() => (number(range, part)?, part.max),
            None => (number(range, part)?, number(range, part)?),
        };
        if from > to {
            return Err(format!("'{item}' goes backwards"));
        }
        let step = step.map_or(Ok(1), |step| self::step(step, part))?;
        let mut at = from;
        while at <= to {
            set |= 1 << at;
            at += step;
        }
    }
    Ok(set)
}

fn step(text: &str, part: &Part) -> Result<u64, String> {
    let step = digits(text).filter(|step| (1..=part.max).contains(step));
    step.ok_or_else(|| {
        format!("'/{text}' is not a valid step of a {}; they go from 1 to {}", part.name, part.max)
    })
}

/// The end of a range: Sunday is its seventh day there.
fn last(text: &str, part: &Part) -> Result<u64, String> {
    number(text, part).map(|number| if number == 0 && part.max == 7 { 7 } else { number })
}

fn number(text: &str, part: &Part) -> Result<u64, String> {
    if let Some(number) = named(text, part.names) {
        return Ok(number + u64::from(part.max == 12));
    }
    let number = digits(text).filter(|number| (part.min..=part.max).contains(number));
    number.ok_or_else(|| {
        let lost = format!("'{text}' is not a valid {}; {}", part.name, part.known);
        let meant = nearest(text, part.names.iter().copied());
        meant.map_or(lost.clone(), |name| format!("{lost}; did you mean `{name}`?"))
    })
}

/// Which of `names` a word is: in full, or its first three letters.
fn named(word: &str, names: &[&str]) -> Option<u64> {
    let is = |name: &&str| word == *name || (word.len() == 3 && name.starts_with(word));
    (0..).zip(names).find(|(_, name)| is(name)).map(|(number, _)| number)
}

/// One or two digits.
fn digits(text: &str) -> Option<u64> {
    let plain = (1..=2).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

/// A set of weekdays with Sunday as 0 only.
fn week(set: u64) -> u64 {
    (set | set >> 7) & WEEK
}
