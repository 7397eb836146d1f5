//! Keys that take one of a few words.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer};
use serde::{Serialize, Serializer};

/// What kind of backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackupKind {
    /// All that a disk holds.
    #[default]
    Full,
    /// What changed since the last backup.
    Incremental,
    /// What changed since the last full backup.
    Differential,
}

value!(
    BackupKind,
    "full, incremental or differential",
    json_schema!({
        "title": "`full`, `incremental` or `differential`",
        "type": "string",
        "enum": ["full", "incremental", "differential"],
    })
);

impl FromStr for BackupKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "full" => Ok(Self::Full),
            "incremental" => Ok(Self::Incremental),
            "differential" => Ok(Self::Differential),
            other => {
                Err(format!("invalid kind of backup '{other}'; write full, incremental or differential"))
            }
        }
    }
}

impl fmt::Display for BackupKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Incremental => "incremental",
            Self::Differential => "differential",
        })
    }
}

/// An event of a domain.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Deserialize, serde::Serialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Trigger {
    /// It was shut off, by itself or by somebody. The backup is made while it is off.
    Shutdown,
    /// It was started.
    Started,
    /// It came to this host by a migration.
    Migrated,
    /// It was defined. No backup is made; the metrics warn where a domain has no job.
    Defined,
}

/// After which backups a command is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum CommandCondition {
    /// After each, also when `before` failed.
    #[default]
    Always,
    /// After those that went well on every medium.
    Success,
    /// After the others.
    Failure,
}
