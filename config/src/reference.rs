//! The JSON Schema of the configuration, and the reference that is made from it.
//!
//! The reference walks the schema: a property with properties of its own is a section, one with patterns of
//! names a section of such, any other a key; its words are the schema's `description` (the field's doc
//! comment), `title` (the value's form), `default` and `examples`. What is true of many keys stands before
//! them (`reference/about.md`). The man page is the same text in troff (`reference/man.rs`).

mod man;

use serde_json::{Map, Value, json};

use crate::keys::Config;

const TITLE: &str = "\
# virtfold-config

<!-- Made from config/src/reference/about.md and the doc comments of config/src/keys.
     UPDATE=1 cargo test -p virtfold-config writes it again. -->

";
/// The width of the text.
const COLUMNS: usize = 110;
const ABOUT: &str = include_str!("reference/about.md");

/// The JSON Schema (draft 2020-12), for editors and other tools.
pub fn schema() -> Value {
    let mut schema = schemars::schema_for!(Config).to_value();
    if let Some(object) = schema.as_object_mut() {
        object.insert("title".to_owned(), json!("virtfold configuration"));
    }
    schema
}

/// The reference of all keys, as Markdown: the text of this crate's README.md.
pub fn reference() -> String {
    format!("{TITLE}{}", wrapped(&text_of_all()))
}

/// The text with its long lines wrapped, but for tables and code.
fn wrapped(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        if line.starts_with(['|', ' ']) {
            out.push_str(line);
        } else {
            wrap(line, &mut out);
        }
        out.push('\n');
    }
    out
}

fn wrap(line: &str, out: &mut String) {
    let indent = if line.starts_with("- ") { "  " } else { "" };
    let mut column = 0;
    for word in words(line) {
        let width = word.chars().count();
        if column == 0 {
            column = width;
        } else if column + 1 + width <= COLUMNS {
            out.push(' ');
            column += 1 + width;
        } else {
            out.push('\n');
            out.push_str(indent);
            column = indent.len() + width;
        }
        out.push_str(word);
    }
}

/// The words of a line; a space within `code` ends none.
fn words(line: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    line.split(move |c| {
        in_code ^= c == '`';
        c == ' ' && !in_code
    })
}

/// The reference of all keys, as the man page virtfold.yaml(5), in troff.
pub fn man_page() -> String {
    man::page(&text_of_all())
}

fn text_of_all() -> String {
    let mut out = format!("{ABOUT}\n## Keys\n");
    section(&schema(), "", &mut out);
    out
}

/// All keys of a section, by name, plain keys first.
fn section(schema: &Value, path: &str, out: &mut String) {
    let none = Map::new();
    let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
    let mut sorted: Vec<_> = properties.iter().collect();
    sorted.sort_by_key(|(name, key)| (inner(key).is_some(), name.as_str()));
    let required: Vec<_> = alternatives(schema, "required").filter_map(Value::as_str).collect();
    for (name, key) in sorted {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        line(out, &format!("\n### `{path}`\n"));
        line(out, text(key, "description"));
        let inner = inner(key);
        if inner.is_none() {
            facts(key, out);
        }
        if required.contains(&name.as_str()) {
            line(out, if inner.is_some() { "\nIt must be there." } else { "- It must be there." });
        }
        match inner {
            Some(Inner::Section(inner)) => section(inner, &path, out),
            Some(Inner::Named(inner)) => section(inner, &format!("{path}.NAME"), out),
            None => {}
        }
    }
}

/// What is in a section.
enum Inner<'a> {
    /// These keys.
    Section(&'a Value),
    /// Names of the user's, each with these keys.
    Named(&'a Value),
}

/// What is in it, if it is a section. An optional one is 'this or null' in the schema.
fn inner(key: &Value) -> Option<Inner<'_>> {
    if key.get("properties").is_some() {
        return Some(Inner::Section(key));
    }
    let named = key.get("patternProperties").and_then(Value::as_object);
    if let Some(named) = named.and_then(|patterns| patterns.values().next()) {
        return Some(Inner::Named(named));
    }
    alternatives(key, "anyOf").find(|form| form.get("properties").is_some()).map(Inner::Section)
}

fn facts(key: &Value, out: &mut String) {
    line(out, "");
    // An optional value is 'this or null' in the schema, a list 'this or several'.
    let forms = || std::iter::once(key).chain(alternatives(key, "anyOf"));
    let form = forms().find(|form| form.get("title").is_some()).unwrap_or(key);
    if let Some(title) = form.get("title").and_then(Value::as_str) {
        line(out, &format!("- Value: {title}"));
    } else if key.get("type").and_then(Value::as_str) == Some("boolean") {
        line(out, "- Value: `true` or `false`");
    }
    for choice in forms().flat_map(|form| alternatives(form, "oneOf")) {
        line(out, &format!("- {}: {}", code(choice.get("const")), text(choice, "description")));
    }
    let empty = |default: &Value| default.is_null() || default.as_array().is_some_and(Vec::is_empty);
    if let Some(default) = key.get("default").filter(|default| !empty(default)) {
        line(out, &format!("- Default: {}", code(Some(default))));
    }
    let examples: Vec<_> = alternatives(form, "examples").map(|example| code(Some(example))).collect();
    if !examples.is_empty() {
        line(out, &format!("- Examples: {}", examples.join(", ")));
    }
}

fn alternatives<'a>(schema: &'a Value, keyword: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    schema.get(keyword).and_then(Value::as_array).map_or(&[][..], Vec::as_slice).iter()
}

fn text<'a>(schema: &'a Value, keyword: &str) -> &'a str {
    schema.get(keyword).and_then(Value::as_str).unwrap_or_default()
}

fn code(value: Option<&Value>) -> String {
    value.map_or_else(String::new, |value| format!("`{}`", crate::show::plain(value)))
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}
