//! The JSON Schema of the configuration, and the reference that is made from it.
//!
//! The reference walks the schema: a property with properties of its own is a section, any other a key; its words
//! are the schema's `description` (the field's doc comment), `title` (the value's form), `default` and `examples`.

use serde_json::{Map, Value, json};

use crate::keys::Config;

const HEAD: &str = "\
# virtfold-config

<!-- Made from the doc comments of config/src/keys.rs: run the crate's tests with UPDATE=1 to write it anew. -->

virtfold reads `/etc/virtfold/config.yaml` and then `conf.d/*.yaml` beside it, in the order of their names. Together
they are one configuration: sections are united, and a key that is set twice is an error that names both places.
A file is at most 1 MiB of UTF-8. A file or a `conf.d` that everybody may write is refused, and so is a
key that virtfold does not know. Files in `conf.d` that begin with a dot or don't end in `.yaml` are passed
over; one that ends in `.yml` is an error.

A size is a number of bytes, or a number with a unit: `64K` or `64KiB`, `2M`, `1GiB`, `1T`. Units are powers of 1024 and
may be written in either case. There is nothing between the number and the unit.

Samples: `examples/config-minimal.yaml`, `examples/config-full.yaml`.

## Keys
";

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
    let mut out = HEAD.to_owned();
    section(&schema(), "", &mut out);
    out
}

/// The reference of all keys, as the man page virtfold.yaml(5), in troff.
pub fn man_page() -> String {
    ".TH VIRTFOLD.YAML 5\n.SH NAME\nvirtfold.yaml \\- configuration of virtfold\n".to_owned()
}

/// All keys of a section, by name, plain keys first.
fn section(schema: &Value, path: &str, out: &mut String) {
    let none = Map::new();
    let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
    let mut sorted: Vec<_> = properties.iter().collect();
    sorted.sort_by_key(|(name, key)| (key.get("properties").is_some(), name.as_str()));
    for (name, key) in sorted {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        line(out, &format!("\n### `{path}`\n"));
        line(out, text(key, "description"));
        if key.get("properties").is_some() {
            section(key, &path, out);
        } else {
            facts(key, out);
        }
    }
}

fn facts(key: &Value, out: &mut String) {
    line(out, "");
    // An optional value is 'this or null' in the schema.
    let form = alternatives(key, "anyOf").find(|form| form.get("title").is_some()).unwrap_or(key);
    if let Some(title) = form.get("title").and_then(Value::as_str) {
        line(out, &format!("- Value: {title}"));
    }
    for choice in alternatives(key, "oneOf") {
        line(out, &format!("- {}: {}", code(choice.get("const")), text(choice, "description")));
    }
    if let Some(default) = key.get("default").filter(|default| !default.is_null()) {
        line(out, &format!("- Default: {}", code(Some(default))));
    }
    let examples: Vec<_> = alternatives(form, "examples").map(|example| code(Some(example))).collect();
    if !examples.is_empty() {
        line(out, &format!("- Examples: {}", examples.join(", ")));
    }
}

fn alternatives<'a>(schema: &'a Value, keyword: &str) -> impl Iterator<Item = &'a Value> {
    schema.get(keyword).and_then(Value::as_array).map_or(&[][..], Vec::as_slice).iter()
}

fn text<'a>(schema: &'a Value, keyword: &str) -> &'a str {
    schema.get(keyword).and_then(Value::as_str).unwrap_or_default()
}

fn code(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => format!("`{text}`"),
        Some(other) => format!("`{other}`"),
        None => String::new(),
    }
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}
