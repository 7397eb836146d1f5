//! Times that pass: `90s`, `15m`, `6h`, `1d`, `2w`. A day is 24 hours of a clock that nobody sets.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer};
use serde::{Serialize, Serializer};

use super::whole;

/// Units in seconds, largest first.
const UNITS: [(&str, u64); 5] = [("w", 604_800), ("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];
/// The longest time: ten years.
const MAX: u64 = 3660 * 86_400;
const HINT: &str = "write a whole number and a unit, for example 90s, 15m, 6h or 1d";

fn parse(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a time; {HINT}");
    if text == "0" {
        return Ok(0);
    }
    let (digits, unit) = text.split_at(text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).len());
    let number = whole(digits).filter(|_| !digits.is_empty()).ok_or_else(wrong)?;
    let (_, seconds) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
    let seconds = number.checked_mul(*seconds).filter(|seconds| *seconds <= MAX);
    seconds.ok_or_else(|| format!("'{text}' is longer than 3660d"))
}

fn write(seconds: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    // Weeks are written as days: people count retention in days.
    match UNITS.iter().skip(1).find(|(_, unit)| seconds > 0 && seconds.is_multiple_of(*unit)) {
        Some((name, unit)) => write!(f, "{}{name}", seconds / unit),
        None => f.write_str("0"),
    }
}

/// A time from 1 second to 3660 days.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interval(u64);

value!(
    Interval,
    "a time such as 15m",
    json_schema!({
        "title": "a whole number of `s`, `m`, `h`, `d` or `w`, from 1s to 3660d",
        "type": "string",
        "pattern": "^[1-9][0-9]*[smhdw]$",
        "examples": ["90s", "15m", "6h", "1d"],
    })
);

impl Interval {
    /// A time of so many seconds, at least one.
    pub(crate) const fn from_secs(seconds: u64) -> Self {
        Self(seconds)
    }

    /// The time.
    pub const fn get(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

impl FromStr for Interval {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match parse(text)? {
            0 => Err(format!("invalid time '{text}'; the shortest is 1s")),
            seconds => Ok(Self(seconds)),
        }
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(self.0, f)
    }
}

/// A time that may be 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Window(u64);

value!(
    Window,
    "a time such as 15m, or 0",
    json_schema!({
        "title": "a whole number of `s`, `m`, `h`, `d` or `w`, at most 3660d; or 0",
        "type": ["string", "integer"],
        "pattern": "^(0|(0|[1-9][0-9]*)[smhdw])$",
        "minimum": 0,
        "maximum": 0,
        "examples": ["15m", "1d", 0],
    })
);

impl Window {
    /// A time of so many seconds.
    pub(crate) const fn from_secs(seconds: u64) -> Self {
        Self(seconds)
    }

    /// The time.
    pub const fn get(self) -> Duration {
        Duration::from_secs(self.0)
    }

    /// Whether it is 0.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).map(Self)
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(self.0, f)
    }
}
