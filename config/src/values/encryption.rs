//! Whom archives are encrypted to.
//!
//! A recipient is checked for its form here and for its check sum by the driver. No message repeats what
//! stands there: it may be a secret key that was put into the wrong place.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use serde::{Serialize, Serializer};

use super::scalar;

/// What a recipient begins with, and the letters that follow; bech32 has no others.
const PREFIX: &str = "age1";
const LETTERS: &str = "qpzry9x8gf2tvdw0s3jn54khce6mua7l";
const LEN: usize = 62;
const PATTERN: &str = "^age1[02-9ac-hj-np-z]{58}$";

/// Public keys of age, `age1...`, at least one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct RecipientList(Vec<String>);

impl RecipientList {
    /// All of them, as they were written.
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }
}

/// Whether `text` has the form of a recipient.
fn is_recipient(text: &str) -> bool {
    text.len() == LEN
        && text.strip_prefix(PREFIX).is_some_and(|rest| rest.chars().all(|c| LETTERS.contains(c)))
}

impl<'de> Deserialize<'de> for RecipientList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;

        fn checked<E: de::Error>(text: String, number: usize) -> Result<String, E> {
            if is_recipient(&text) {
                return Ok(text);
            }
            Err(E::custom(format!(
                "number {number} is not a recipient; write a public key of age, age1 and 58 characters"
            )))
        }

        impl<'de> Visitor<'de> for List {
            type Value = Vec<String>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a recipient (age1...) or a list of them")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<String>, E> {
                Ok(vec![checked(text.to_owned(), 1)?])
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<String>, A::Error> {
                let mut all = Vec::new();
                while let Some(Item(text)) = items.next_element()? {
                    all.push(checked(text, all.len() + 1)?);
                }
                if all.is_empty() {
                    return Err(de::Error::custom("an empty list encrypts to nobody; leave the key out"));
                }
                Ok(all)
            }
        }

        deserializer.deserialize_any(List).map(Self)
    }
}

/// An entry of the list. One that is no text is taken as one that is no recipient.
struct Item(String);

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        scalar(deserializer, "a recipient (age1...)").map(|Text(text)| Self(text))
    }
}

struct Text(String);

impl FromStr for Text {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(text.to_owned()))
    }
}

impl JsonSchema for RecipientList {
    fn schema_name() -> Cow<'static, str> {
        "RecipientList".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "title": "a public key of age (`age1...`, as `age-keygen` prints it), or a list of them",
            "type": ["string", "array"],
            "pattern": PATTERN,
            "items": { "type": "string", "pattern": PATTERN },
            "minItems": 1,
            "examples": ["age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"],
        })
    }
}

/// The absolute path of a file or directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePath(PathBuf);

impl FilePath {
    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl FromStr for FilePath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.chars().any(char::is_control) {
            return Err("a path has no control characters".to_owned());
        }
        if !text.starts_with('/') {
            return Err(format!("'{text}' is not an absolute path; begin it with /"));
        }
        Ok(Self(PathBuf::from(text)))
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

value!(
    FilePath,
    "an absolute path",
    json_schema!({
        "title": "an absolute path",
        "type": "string",
        "pattern": "^/",
    })
);
