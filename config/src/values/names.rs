//! Names, patterns of names, words, and lists of them.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, IntoDeserializer, SeqAccess, Visitor};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::scalar;

/// The longest list.
const MAX_ITEMS: usize = 1000;
/// The longest name.
const MAX_NAME: usize = 64;

/// The name of a job, a medium, a tag or a pool.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

value!(
    Name,
    "a name",
    json_schema!({
        "title": "a name: 1 to 64 letters, digits, `_`, `.` or `-`, not beginning with `.` or `-`",
        "type": "string",
        "pattern": "^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$",
    })
);

impl Name {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if text.is_empty()
            || text.len() > MAX_NAME
            || text.starts_with(['.', '-'])
            || !text.chars().all(allowed)
        {
            let cut: String = text.chars().take(MAX_NAME).collect();
            return Err(format!(
                "'{cut}' is not a name; a name is 1 to {MAX_NAME} letters, digits, '_', '.' or '-', and does not begin with '.' or '-'"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One value, or a list of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List<T>(Vec<T>);

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Deref for List<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<'a, T> IntoIterator for &'a List<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<T: Serialize> Serialize for List<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T>(std::marker::PhantomData<T>);

        impl<'de, T: DeserializeOwned> Visitor<'de> for Items<T> {
            type Value = Vec<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one value or a list of them")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<T>, E> {
                T::deserialize(text.into_deserializer()).map(|one| vec![one])
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Vec<T>, E> {
                T::deserialize(number.into_deserializer()).map(|one| vec![one])
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
                let mut all = Vec::new();
                while let Some(item) = items.next_element()? {
                    if all.len() == MAX_ITEMS {
                        return Err(de::Error::custom(format_args!(
                            "a list has at most {MAX_ITEMS} entries"
                        )));
                    }
                    all.push(item);
                }
                Ok(all)
            }
        }

        deserializer.deserialize_any(Items(std::marker::PhantomData)).map(Self)
    }
}

impl<T: JsonSchema> JsonSchema for List<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("List_of_{}", T::schema_name()).into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let item = T::json_schema(generator).to_value();
        let title = item.get("title").and_then(Value::as_str).unwrap_or("one of these words");
        let mut schema = json_schema!({
            "title": format!("{title}; or a list of such"),
            "anyOf": [item, { "type": "array", "items": item, "maxItems": MAX_ITEMS }],
        });
        if let Some(examples) = item.get("examples") {
            schema.insert("examples".to_owned(), examples.clone());
        }
        schema
    }
}

/// A text that is not empty and has no control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NonEmptyText(String);

value!(
    NonEmptyText,
    "a text",
    json_schema!({ "title": "a text on one line", "type": "string", "minLength": 1 })
);

impl NonEmptyText {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NonEmptyText {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() || text.chars().any(char::is_control) {
            return Err("it is empty, or has control characters".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for NonEmptyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A program by its absolute path, and its arguments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct CommandLine(Vec<String>);

impl CommandLine {
    /// Program and arguments: at least one.
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }
}

impl<'de> Deserialize<'de> for CommandLine {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let words: List<CommandWord> = List::deserialize(deserializer)?;
        let words: Vec<String> = words.0.into_iter().map(|word| word.0).collect();
        let wrong = |why: &str| Err(de::Error::custom(why));
        match words.first() {
            None => wrong("a command has at least the program's path"),
            Some(program) if !program.starts_with('/') => Err(de::Error::custom(format_args!(
                "'{program}' is not the absolute path of a program; write for example [/usr/local/sbin/dump-db, --all]"
            ))),
            Some(program) if words.len() == 1 && program.contains(' ') => {
                wrong("no shell splits it: write a list, for example [/usr/local/sbin/dump-db, --all]")
            }
            Some(_) if words.iter().any(|word| word.contains('\0')) => {
                wrong("an argument can't hold a zero byte")
            }
            Some(_) => Ok(Self(words)),
        }
    }
}

struct CommandWord(String);

impl FromStr for CommandWord {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for CommandWord {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        scalar(deserializer, "a text")
    }
}

impl JsonSchema for CommandLine {
    fn schema_name() -> Cow<'static, str> {
        "CommandLine".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "title": "a list: the absolute path of a program and its arguments",
            "type": ["string", "array"],
            "pattern": "^/[^ ]*$",
            "items": { "type": ["string", "integer"] },
            "prefixItems": [{ "type": "string", "pattern": "^/" }],
            "minItems": 1,
            "maxItems": MAX_ITEMS,
            "examples": json!([["/usr/local/sbin/dump-db", "--all"]]),
        })
    }
}
