//! What a YAML document holds, with the place of every key.

use std::collections::BTreeMap;

use crate::position::Position;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum YamlNode {
    Null,
    Bool(bool),
    Unsigned(u64),
    Negative(i64),
    Float(f64),
    Text(String),
    List(Vec<YamlNode>),
    Map(BTreeMap<String, YamlEntry>),
}

/// A value under a key, and where the key stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct YamlEntry {
    pub(crate) place: Position,
    pub(crate) value: YamlNode,
}
