//! The values in effect, each with where it came from.

use std::fmt;

use serde_json::Value;

use crate::keys::Config;
use crate::position::Position;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueOrigin {
    /// No file sets it.
    Default,
    /// A file sets it here.
    File(Position),
}

/// One value in effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The key's dotted path.
    pub key: String,
    /// The value as it would be written in YAML; `None` where the key is not set and has no default.
    pub value: Option<String>,
    /// Where it came from.
    pub origin: ValueOrigin,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.value.as_deref().unwrap_or("(not set)"))?;
        match &self.origin {
            ValueOrigin::Default => f.write_str("  # default"),
            ValueOrigin::File(place) => write!(f, "  # {place}"),
        }
    }
}

impl Config {
    /// Every key with its value in effect, by name. Of jobs and media, those that are set or have a default
    /// of their own.
    pub fn show(&self) -> Vec<Shown> {
        let mut out = Vec::new();
        // Values that serialize to anything but JSON don't exist here: all are text, numbers and sections.
        if let Ok(tree) = serde_json::to_value(self) {
            self.flatten(&tree, &mut Vec::new(), &mut out);
        }
        out.sort_by(|a, b| a.key.cmp(&b.key));
        out
    }

    fn flatten(&self, value: &Value, path: &mut Vec<String>, out: &mut Vec<Shown>) {
        let shown = match value {
            Value::Object(children) => {
                for (key, child) in children {
                    path.push(key.clone());
                    self.flatten(child, path, out);
                    path.pop();
                }
                return;
            }
            // What a job or a medium leaves open is what `defaults` or `service` say; two dozen lines of that
            // hide the others.
            Value::Null if path.len() > 2 => return,
            Value::Null => None,
            other => Some(plain(other)),
        };
        let origin = self.origins.get(path).cloned().map_or(ValueOrigin::Default, ValueOrigin::File);
        out.push(Shown { key: path.join("."), value: shown, origin });
    }
}

/// A value as YAML has it in a flow: text as it is, lists with brackets.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(quoted).collect();
            format!("[{}]", items.join(", "))
        }
        other => other.to_string(),
    }
}

/// An entry of a list: in quotes where a comma, a bracket or a sign of YAML's would be misread.
fn quoted(value: &Value) -> String {
    let text = plain(value);
    let bare = |c: char| c.is_alphanumeric() || "_./:@%+-".contains(c);
    let inside = |c: char| bare(c) || " *?".contains(c);
    let readable = text.starts_with(|c| bare(c) && c != '@' && c != '%') && text.chars().all(inside);
    if readable || !value.is_string() { text } else { format!("'{}'", text.replace('\'', "''")) }
}
