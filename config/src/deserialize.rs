//! Serde's view of a tree: the structs of `keys` are read from it, and whatever they refuse becomes an error
//! with the key's path and place.
//!
//! How an error finds its place: it starts without one; each mapping that it passes on its way out adds its
//! key to the path, and the first one also its place. Serde's own refusals (`unknown_field`,
//! `unknown_variant`, `missing_field`) arrive with the known words, hence the suggestions.
//!
//! A section (struct or map) may be empty; a key that takes one value may not: `compress:` with nothing
//! behind it is a slip, not a wish.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::value::{StrDeserializer, StringDeserializer};
use serde::de::{
    self, DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess, Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;

use crate::error::ConfigError;
use crate::examples;
use crate::position::Position;
use crate::suggest::nearest;
use crate::yaml_node::{YamlEntry, YamlNode};

/// An error on its way out of the tree.
#[derive(Debug)]
pub(crate) struct KeyError {
    what: What,
    /// The keys passed, innermost first.
    path: Vec<String>,
    place: Option<Position>,
}

#[derive(Debug)]
enum What {
    Unknown {
        known: &'static [&'static str],
    },
    Missing {
        key: &'static str,
    },
    Value {
        message: String,
        meant: Option<String>,
    },
    /// A section was wanted.
    Section {
        said: String,
        value: Option<String>,
    },
}

impl KeyError {
    fn new(what: What) -> Self {
        Self { what, path: Vec::new(), place: None }
    }

    fn under(mut self, key: String, place: Position) -> Self {
        self.path.push(key);
        self.place.get_or_insert(place);
        self
    }

    /// The finished error; `whole` is the place of a fault of the whole document.
    pub(crate) fn finish(mut self, whole: Position) -> ConfigError {
        self.path.reverse();
        let place = self.place.unwrap_or(whole);
        match self.what {
            What::Unknown { known } => {
                let near = |key: &String| {
                    nearest(key, known.iter().copied()).or_else(|| examples::synonym(key, known))
                };
                let meant = self.path.last().and_then(near);
                ConfigError::UnknownKey { place, key: self.path.join("."), known, meant }
            }
            What::Missing { key } => {
                self.path.push(key.to_owned());
                ConfigError::Missing { place, key: self.path.join(".") }
            }
            What::Section { said, value } => {
                let example = examples::in_section(&self.path, value.as_deref());
                let example = example.map_or_else(String::new, |one| format!("; write for example `{one}`"));
                let message = format!("{said}, but a section of keys is wanted{example}");
                ConfigError::BadValue { place, key: self.path.join("."), message, meant: None }
            }
            What::Value { message, meant } => {
                ConfigError::BadValue { place, key: self.path.join("."), message, meant }
            }
        }
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.what)
    }
}

impl std::error::Error for KeyError {}

impl de::Error for KeyError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(What::Value { message: message.to_string(), meant: None })
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::custom(format_args!("{}, but {expected} is wanted", said(unexpected)))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let message = format!("'{variant}' is none of {}", expected.join(", "));
        Self::new(What::Value {
            message,
            meant: examples::truth(variant, expected)
                .or_else(|| nearest(variant, expected.iter().copied()))
                .map(str::to_owned),
        })
    }

    fn unknown_field(_: &str, known: &'static [&'static str]) -> Self {
        Self::new(What::Unknown { known })
    }

    fn missing_field(key: &'static str) -> Self {
        Self::new(What::Missing { key })
    }
}

/// What stands there, in the words of this format rather than serde's.
fn said(unexpected: Unexpected<'_>) -> String {
    match unexpected {
        Unexpected::Bool(value) => format!("it is {value}"),
        Unexpected::Unsigned(value) => format!("it is the number {value}"),
        Unexpected::Signed(value) => format!("it is the number {value}"),
        Unexpected::Float(value) => format!("it is the number {value}"),
        Unexpected::Str(text) => format!("it is the text '{text}'"),
        Unexpected::Seq => "it is a list".to_owned(),
        Unexpected::Map => "it is a section".to_owned(),
        _ => "it has no value".to_owned(),
    }
}

impl YamlNode {
    /// The fault of a value that is none of some words.
    fn misfit(&self, wanted: &str, words: &[&'static str]) -> KeyError {
        let message = format!("{}, but {wanted} is wanted", said(self.unexpected()));
        let meant = match self {
            Self::Bool(value) => examples::truth(&value.to_string(), words),
            Self::Unsigned(value) => examples::truth(&value.to_string(), words),
            Self::Text(text) => examples::truth(text, words),
            _ => None,
        };
        KeyError::new(What::Value { message, meant: meant.map(str::to_owned) })
    }

    fn unexpected(&self) -> Unexpected<'_> {
        match self {
            Self::Null => Unexpected::Unit,
            Self::Bool(value) => Unexpected::Bool(*value),
            Self::Unsigned(value) => Unexpected::Unsigned(*value),
            Self::Negative(value) => Unexpected::Signed(*value),
            Self::Float(value) => Unexpected::Float(*value),
            Self::Text(text) => Unexpected::Str(text),
            Self::List(_) => Unexpected::Seq,
            Self::Map(_) => Unexpected::Map,
        }
    }
}

impl<'de> IntoDeserializer<'de, KeyError> for YamlNode {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for YamlNode {
    type Error = KeyError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
        match self {
            Self::Null => Err(de::Error::invalid_type(Unexpected::Unit, &visitor)),
            Self::Bool(value) => visitor.visit_bool(value),
            Self::Unsigned(value) => visitor.visit_u64(value),
            Self::Negative(value) => visitor.visit_i64(value),
            Self::Float(value) => visitor.visit_f64(value),
            Self::Text(text) => visitor.visit_string(text),
            Self::List(items) => visitor.visit_seq(de::value::SeqDeserializer::new(items.into_iter())),
            Self::Map(children) => visitor.visit_map(Children::new(children)),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
        match self {
            Self::Bool(value) => visitor.visit_bool(value),
            other => Err(other.misfit("true or false", &["true", "false"])),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, KeyError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
        match self {
            Self::Null => visitor.visit_map(Children::new(BTreeMap::new())),
            Self::Map(children) => visitor.visit_map(Children::new(children)),
            other => {
                let (said, value) = (said(other.unexpected()), examples::plain(&other));
                Err(KeyError::new(What::Section { said, value }))
            }
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, KeyError> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, KeyError> {
        match &self {
            Self::Text(text) => StrDeserializer::new(text).deserialize_enum(name, variants, visitor),
            other => Err(other.misfit(&variants.join(" or "), variants)),
        }
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct identifier ignored_any
    }
}

/// The children of a mapping, in the order of their places: the first error of a file is the one that is
/// told.
struct Children {
    rest: std::vec::IntoIter<(String, YamlEntry)>,
    value: Option<(String, YamlEntry)>,
}

impl Children {
    fn new(children: BTreeMap<String, YamlEntry>) -> Self {
        let mut children: Vec<_> = children.into_iter().collect();
        children.sort_by(|(_, a), (_, b)| a.place.cmp(&b.place));
        Self { rest: children.into_iter(), value: None }
    }
}

impl<'de> MapAccess<'de> for Children {
    type Error = KeyError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, KeyError> {
        let Some((key, child)) = self.rest.next() else { return Ok(None) };
        let read = seed.deserialize(StringDeserializer::<KeyError>::new(key.clone()));
        let read = read.map_err(|fault| fault.under(key.clone(), child.place.clone()))?;
        self.value = Some((key, child));
        Ok(Some(read))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, KeyError> {
        let (key, child) = self.value.take().ok_or_else(|| de::Error::custom("a value was read twice"))?;
        seed.deserialize(child.value).map_err(|fault| fault.under(key, child.place))
    }
}
