//! A YAML document as a tree that knows the place of every key, and the union of several of them.
//!
//! The YAML parser tells places only in its errors: `key_places` has those of the keys, in the order in which
//! they come here. Each is held against the key that it is for; where the two disagree, the file is refused.
//!
//! Invariants: a tree has at most [`MAX_NODES`] nodes, however often an alias repeats them; keys of a
//! mapping are distinct.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use saphyr_parser::ScanError;
use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error as _, MapAccess, SeqAccess, Visitor};

use crate::error::ConfigError;
use crate::examples;
use crate::key_places::{KeyPlace, Scanned, key_places};
use crate::position::Position;
use crate::yaml_node::{YamlEntry, YamlNode};

/// The most values that one file may hold, aliases followed.
const MAX_NODES: usize = 200_000;

/// The YAML parser's messages repeat paths of any length; so many characters are kept.
const MAX_MESSAGE: usize = 300;

/// Reads `text`, the content of `file`. A document with nothing in it is [`YamlNode::Null`].
pub(crate) fn read(text: &str, file: &Arc<Path>) -> Result<YamlNode, ConfigError> {
    let Scanned { keys, fault } = scanned(text, file)?;
    let text = fault.as_ref().map_or(text, |fault| up_to(text, fault));
    let scan = Scan {
        keys: RefCell::new(keys.into_iter()),
        file,
        nodes: Cell::new(0),
        path: RefCell::default(),
        failure: RefCell::default(),
    };
    let outcome = Value(&scan).deserialize(serde_yaml::Deserializer::from_str(text));
    let node = outcome.map_err(|error| scan.failure.take().unwrap_or_else(|| syntax(text, file, &error)))?;
    match fault {
        None => Ok(node),
        Some(fault) => {
            let (line, column) = (fault.marker().line(), fault.marker().col() + 1);
            let place = Position { file: Arc::clone(file), line, column };
            Err(ConfigError::Syntax { place, message: fault.info().to_owned() })
        }
    }
}

/// The text up to the end of the line in which the scanner's fault is, or a little of it.
fn up_to<'a>(text: &'a str, fault: &ScanError) -> &'a str {
    let at = text.char_indices().nth(fault.marker().index()).map_or(text.len(), |(at, _)| at);
    let rest = &text[at..];
    let line = rest.find('\n').unwrap_or(rest.len()).min(MAX_MESSAGE);
    let end = (at + line..=text.len()).find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(text.len())]
}

/// The keys. Refuses what the YAML parser takes quadratic time for (minutes for 1 MiB): brackets in brackets,
/// and directives.
fn scanned(text: &str, file: &Arc<Path>) -> Result<Scanned, ConfigError> {
    let fault = |line, message: &str| {
        let place = Position { file: Arc::clone(file), line, column: 1 };
        ConfigError::Syntax { place, message: message.to_owned() }
    };
    if let Some((line, _)) = (1..).zip(text.lines()).find(|(_, content)| content.starts_with('%')) {
        return Err(fault(line, "directives (lines that begin with %) are not allowed"));
    }
    key_places(text, MAX_NODES).map_err(|deep| fault(deep.line, "lists and sections are nested too deep"))
}

/// What the YAML parser says, without the place that the error tells already.
fn syntax(text: &str, file: &Arc<Path>, error: &serde_yaml::Error) -> ConfigError {
    let (line, column) = error.location().map_or((1, 1), |at| (at.line(), at.column()));
    let message = error.to_string().replacen(&format!(" at line {line} column {column}"), "", 1);
    let message = if message.contains("more than one document") {
        "a file holds one document; what follows a second `---` would be another".to_owned()
    } else {
        let told = message.chars().take(MAX_MESSAGE).collect();
        let sign = ["an alias", "anchor", "cannot start any token"].iter().any(|of| message.contains(of));
        let quotes = text.lines().nth(line.saturating_sub(1)).filter(|_| sign);
        quotes.and_then(|content| examples::quotes(content, column)).map_or(told, |what| what)
    };
    ConfigError::Syntax { place: Position { file: Arc::clone(file), line, column }, message }
}

/// Puts `more` into `into`: mappings are united, and everything else may be set once only.
pub(crate) fn unite(
    into: &mut BTreeMap<String, YamlEntry>,
    more: BTreeMap<String, YamlEntry>,
    path: &mut Vec<String>,
) -> Result<(), ConfigError> {
    for (key, child) in more {
        path.push(key.clone());
        match into.entry(key) {
            Entry::Vacant(free) => {
                free.insert(child);
            }
            Entry::Occupied(mut taken) => match (&mut taken.get_mut().value, child.value) {
                (YamlNode::Map(ours), YamlNode::Map(theirs)) => unite(ours, theirs, path)?,
                // A section whose keys are all commented out sets nothing.
                (YamlNode::Map(_), YamlNode::Null) => {}
                (ours @ YamlNode::Null, theirs @ YamlNode::Map(_)) => *ours = theirs,
                _ => {
                    let first = taken.get().place.clone();
                    return Err(ConfigError::Twice { key: path.join("."), first, second: child.place });
                }
            },
        }
        path.pop();
    }
    Ok(())
}

/// One file on its way to a tree.
struct Scan<'a> {
    /// The keys that were not read yet.
    keys: RefCell<std::vec::IntoIter<KeyPlace>>,
    file: &'a Arc<Path>,
    nodes: Cell<usize>,
    path: RefCell<Vec<String>>,
    /// An error of ours, which the YAML parser can't carry.
    failure: RefCell<Option<ConfigError>>,
}

impl Scan<'_> {
    /// The place of the key that is read now.
    fn place_of(&self, key: &str) -> Option<Position> {
        let place = self.keys.borrow_mut().next().filter(|place| place.key == key)?;
        Some(Position { file: Arc::clone(self.file), line: place.line, column: place.column })
    }

    fn count<E: serde::de::Error>(&self) -> Result<(), E> {
        self.nodes.set(self.nodes.get() + 1);
        if self.nodes.get() > MAX_NODES {
            return Err(E::custom(format_args!("more than {MAX_NODES} values")));
        }
        Ok(())
    }
}

/// Reads one value.
#[derive(Clone, Copy)]
struct Value<'s, 'a>(&'s Scan<'a>);

impl<'de> DeserializeSeed<'de> for Value<'_, '_> {
    type Value = YamlNode;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<YamlNode, D::Error> {
        self.0.count()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_, '_> {
    type Value = YamlNode;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a plain value, a list or a section of keys")
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<YamlNode, A::Error> {
        Err(A::Error::custom("tags such as !name are not allowed"))
    }

    fn visit_unit<E>(self) -> Result<YamlNode, E> {
        Ok(YamlNode::Null)
    }

    /// A document with nothing in it.
    fn visit_none<E>(self) -> Result<YamlNode, E> {
        Ok(YamlNode::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<YamlNode, E> {
        Ok(YamlNode::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<YamlNode, E> {
        Ok(YamlNode::Unsigned(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<YamlNode, E> {
        Ok(u64::try_from(value).map_or(YamlNode::Negative(value), YamlNode::Unsigned))
    }

    fn visit_f64<E>(self, value: f64) -> Result<YamlNode, E> {
        Ok(YamlNode::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<YamlNode, E> {
        Ok(YamlNode::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<YamlNode, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(YamlNode::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<YamlNode, A::Error> {
        let mut map: BTreeMap<String, YamlEntry> = BTreeMap::new();
        while let Some((key, place)) = entries.next_key_seed(Key(self.0))? {
            self.0.path.borrow_mut().push(key.clone());
            if let Some(earlier) = map.get(&key) {
                let key = self.0.path.borrow().join(".");
                let twice = ConfigError::Twice { key, first: earlier.place.clone(), second: place };
                self.0.failure.replace(Some(twice));
                return Err(A::Error::custom("a key is set twice"));
            }
            let value = entries.next_value_seed(self)?;
            self.0.path.borrow_mut().pop();
            map.insert(key, YamlEntry { place, value });
        }
        Ok(YamlNode::Map(map))
    }
}

/// Reads one key.
struct Key<'s, 'a>(&'s Scan<'a>);

impl<'de> DeserializeSeed<'de> for Key<'_, '_> {
    type Value = (String, Position);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        self.0.count()?;
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key<'_, '_> {
    type Value = (String, Position);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<Self::Value, E> {
        let place = self.0.place_of(key);
        place.map(|place| (key.to_owned(), place)).ok_or_else(|| {
            E::custom(format_args!("the key {key:?} cannot be told from its surroundings: write it plainly"))
        })
    }
}
