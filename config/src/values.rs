//! The values that keys take: each with its grammar, its bounds, the form it is shown in and its JSON Schema.
//!
//! A value is written as text or as a number; both go through the same `FromStr`, whose error is a sentence
//! for the person who typed it. A schema's `title` is the form in words, for the reference and for editors.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::{Serialize, Serializer};

pub use self::encryption::{FilePath, RecipientList};
pub use self::glob::Glob;
pub use self::keywords::{BackupKind, CommandCondition, Trigger};
pub use self::media::{LoopbackAddress, MediumAddress, MediumKind};
pub use self::names::{CommandLine, List, Name, NonEmptyText};
pub use self::numbers::{Attempts, ChainLength, Concurrency, Count, Workers};
pub use self::time::{Interval, Window};
use crate::suggest::nearest;

/// Level of `zstd` without a level: the reference library's own.
const ZSTD_DEFAULT: i32 = 3;
const ZSTD_MAX: i32 = 19;

/// A block of the fold is a power of two of these many bytes.
const BLOCK_MIN: u64 = 4 << 10;
const BLOCK_MAX: u64 = 2 << 20;

/// Pauses of a guest, milliseconds.
const PAUSE: std::ops::RangeInclusive<u64> = 100..=60_000;

/// Sizes as the command line takes them, for the schema.
const SIZE_PATTERN: &str = "^[0-9]+([bB]|[kKmMgGtT]([iI][bB])?)?$";

/// Reads a size: `65536`, `64K`, `64KiB`, `2M`, `1GiB`, `1T`. All units are powers of 1024, in either case;
/// nothing stands before, between or behind. This is strictly the grammar of the command line
/// (`driver/base/src/units.rs`); this crate can't import it, because the driver imports this crate.
///
/// # Errors
/// A sentence for the person who typed it.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let number = text.strip_suffix(unit).and_then(|digits| digits.parse::<u64>().ok());
    let number = number.ok_or_else(|| format!("'{text}' is not a size; write for example 64KiB"))?;
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err(format!("'{unit}' is not a unit of size; use KiB, MiB, GiB or TiB")),
    };
    number.checked_mul(1 << shift).ok_or_else(|| format!("'{text}' is too large"))
}

/// Writes a size with the largest unit that divides it, so that [`parse_size`] reads the same number.
fn write_size(bytes: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.iter().find(|(shift, _)| bytes > 0 && bytes.is_multiple_of(1 << shift)) {
        Some((shift, unit)) => write!(f, "{}{unit}", bytes >> shift),
        None => write!(f, "{bytes}"),
    }
}

/// Reads text or a whole number with `FromStr`.
pub(crate) fn scalar<'de, D, T>(deserializer: D, wanted: &'static str) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err = String>,
{
    struct Scalar(&'static str);

    impl Visitor<'_> for Scalar {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<E>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }

        fn visit_u64<E>(self, number: u64) -> Result<String, E> {
            Ok(number.to_string())
        }
    }

    deserializer.deserialize_any(Scalar(wanted))?.parse().map_err(D::Error::custom)
}

/// What every value type has: text or number in, and a schema that stands in its place.
macro_rules! value_in {
    ($name:ident, $wanted:expr, $schema:expr) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                crate::values::scalar(deserializer, $wanted)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

/// A value type that is shown as text.
macro_rules! value {
    ($name:ident, $wanted:expr, $schema:expr) => {
        value_in!($name, $wanted, $schema);

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

/// The version of the format of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The only one there is.
    V1,
}

value!(Version, "the number 1", json_schema!({ "title": "the number 1", "const": 1 }));

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "1" => Ok(Self::V1),
            other => Err(format!("this virtfold knows version 1 only, not '{other}'")),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("1")
    }
}

/// How an archive is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all: a plain tar.
    None,
    /// As Zstandard frames.
    Zstd {
        /// 1 to 19.
        level: i32,
    },
}

value!(
    Compression,
    "none, zstd or zstd:LEVEL",
    json_schema!({
        "title": "`none`, `zstd` or `zstd:LEVEL` with a level from 1 to 19",
        "type": "string",
        "pattern": "^(none|zstd(:([1-9]|1[0-9]))?)$",
        "examples": ["none", "zstd", "zstd:9"],
    })
);

impl FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, level) = text.split_once(':').map_or((text, None), |(name, level)| (name, Some(level)));
        match (name, level) {
            ("none", None) => Ok(Self::None),
            ("none", Some(_)) => Err("none has no level".to_owned()),
            ("zstd", None) => Ok(Self::Zstd { level: ZSTD_DEFAULT }),
            ("zstd", Some(level)) => whole(level)
                .and_then(|level| i32::try_from(level).ok())
                .filter(|level| (1..=ZSTD_MAX).contains(level))
                .map(|level| Self::Zstd { level })
                .ok_or_else(|| format!("'{level}' is not a level of zstd; they go from 1 to {ZSTD_MAX}")),
            _ => {
                let known =
                    "invalid compression '{}'; write none, zstd or zstd:LEVEL".replacen("{}", text, 1);
                let meant = nearest(name, ["none", "zstd"]);
                Err(meant.map_or(known.clone(), |word| format!("{known}; did you mean `{word}`?")))
            }
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Zstd { level } => write!(f, "zstd:{level}"),
        }
    }
}

/// Which bytes of a disk an archive holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Layout {
    /// Only what is allocated, densely, with the table that says where each piece belongs.
    #[default]
    Compact,
    /// The whole capacity, as a conventional all-block copy.
    Full,
}

/// Whether a disk is read once more before it is copied, to find the blocks that are zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum DetectZeroes {
    /// It is.
    On,
    /// What an image calls data is copied.
    Off,
}

/// The granularity of a fold in bytes: a power of two from 4 KiB to 2 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize(u64);

value!(
    BlockSize,
    "a size such as 64KiB",
    json_schema!({
        "title": "a size that is a power of two from 4KiB to 2MiB",
        "type": ["string", "integer"],
        "pattern": SIZE_PATTERN,
        "minimum": BLOCK_MIN,
        "maximum": BLOCK_MAX,
        "examples": ["64KiB", 65536],
    })
);

impl BlockSize {
    /// The size in bytes.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl FromStr for BlockSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = parse_size(text)?;
        if bytes.is_power_of_two() && (BLOCK_MIN..=BLOCK_MAX).contains(&bytes) {
            Ok(Self(bytes))
        } else {
            Err(format!("'{text}' is not a power of two from 4KiB to 2MiB"))
        }
    }
}

impl fmt::Display for BlockSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_size(self.0, f)
    }
}

/// Bytes a second, not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRate(u64);

value!(
    ByteRate,
    "a size such as 100MiB",
    json_schema!({
        "title": "a size, not zero: bytes a second",
        "type": ["string", "integer"],
        "pattern": SIZE_PATTERN,
        "minimum": 1,
        "examples": ["100MiB", "1GiB"],
    })
);

impl ByteRate {
    /// Bytes a second.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match parse_size(text)? {
            0 => Err("a rate of 0 would never end; leave the key out for no limit".to_owned()),
            bytes => Ok(Self(bytes)),
        }
    }
}

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_size(self.0, f)
    }
}

/// A size that may be zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(u64);

value!(
    ByteSize,
    "a size such as 1GiB",
    json_schema!({
        "title": "a size; 0 for none",
        "type": ["string", "integer"],
        "pattern": SIZE_PATTERN,
        "minimum": 0,
        "examples": ["1GiB", 0],
    })
);

impl ByteSize {
    /// A size of `bytes`.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Bytes.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_size(text).map(Self)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_size(self.0, f)
    }
}

/// A short time, 100 ms to 60 s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PauseDuration(u64);

value!(
    PauseDuration,
    "a time such as 2s",
    json_schema!({
        "title": "a whole number of `ms` or `s`, from 100ms to 60s",
        "type": "string",
        "pattern": "^(0|[1-9][0-9]*)(ms|s)$",
        "examples": ["2s", "500ms"],
    })
);

impl PauseDuration {
    /// A time of so many milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds.
    pub const fn millis(self) -> u64 {
        self.0
    }
}

impl FromStr for PauseDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, unit) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
            (Some(digits), _) => (digits, 1),
            (None, Some(digits)) => (digits, 1000),
            (None, None) => return Err(format!("'{text}' is not a time; write for example 2s or 500ms")),
        };
        let number = whole(digits).filter(|_| !digits.is_empty());
        let number =
            number.ok_or_else(|| format!("'{text}' is not a time; write for example 2s or 500ms"))?;
        let millis = number.saturating_mul(unit);
        if PAUSE.contains(&millis) {
            Ok(Self(millis))
        } else {
            Err(format!("'{text}' is not from 100ms to 60s"))
        }
    }
}

impl fmt::Display for PauseDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1000) { write!(f, "{}s", self.0 / 1000) } else { write!(f, "{}ms", self.0) }
    }
}

/// Whether the agent in a guest makes its file systems clean before a backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum QuiesceMode {
    /// By the agent if it answers; else the backup is crash-consistent.
    #[default]
    Auto,
    /// By the agent, or no backup.
    Yes,
    /// Never: the backup is crash-consistent.
    No,
}

/// A whole number as people write it: digits, and neither a sign nor zeros before them.
fn whole(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|c| c.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

mod encryption;
mod glob;
mod keywords;
mod media;
mod names;
mod numbers;
mod time;

#[cfg(test)]
mod tests;
