//! How a thing is written that was written otherwise: the word of other tools that means a key, a section in
//! the place of a single value, quotes where YAML needs them. An example is made of what stands there, as far
//! as that is short and plain.

use crate::yaml_node::YamlNode;

/// Words of other tools and of everyday speech, and the keys that they mean.
const SYNONYMS: &[(&str, &[&str])] = &[
    ("keep", &["retention", "retain", "prune", "keep-last", "keep-daily", "rotation"]),
    ("schedule", &["cron", "when", "at", "time", "interval", "calendar", "on-calendar", "oncalendar"]),
    ("domains", &["vms", "vm", "guests", "guest", "machines", "instances", "include"]),
    (
        "to",
        &[
            "target",
            "targets",
            "destination",
            "dest",
            "medium",
            "media",
            "storage",
            "repository",
            "path",
            "url",
            "dir",
            "directory",
            "location",
        ],
    ),
    ("except", &["exclude", "excludes", "not", "skip"]),
    ("exclude", &["except", "skip"]),
    ("compress", &["compression"]),
    ("encrypt-to", &["encryption", "encrypt", "key", "keys", "public-key"]),
    ("limit-rate", &["bwlimit", "rate", "bandwidth", "rate-limit"]),
    ("concurrency", &["parallel", "jobs-at-once", "max-workers"]),
    ("enabled", &["disabled", "enable", "active"]),
    ("retry", &["retries"]),
    ("before", &["pre", "pre-hook", "pre-script"]),
    ("after", &["post", "post-hook", "post-script", "notify"]),
    ("quiesce", &["freeze", "fsfreeze", "quiescing"]),
    ("media", &["storages", "targets", "repositories", "destinations"]),
];

/// Keys that hold a section, and one of each kind.
const SECTIONS: &[(&str, &str)] = &[
    ("domains", "domains: {names: [web, 'db-*']}"),
    ("disks", "disks: {exclude: [vdb]}"),
    ("keep", "keep: {daily: 7, weekly: 4}"),
    ("retry", "retry: {attempts: 3, delay: 10m}"),
    ("before", "before: {command: [/usr/local/sbin/prepare]}"),
    ("after", "after: {command: [/usr/local/sbin/notify], when: failure}"),
    ("defaults", "defaults: {compress: zstd}"),
    ("service", "service: {concurrency: 2}"),
    ("trust", "trust: {require-signature: true}"),
    ("media", "media: {nas: {to: /srv/backup}}"),
    ("jobs", "jobs: {nightly: {domains: {names: [web]}, schedule: daily, to: nas}}"),
];

/// The key of a section into which a single value belongs.
const INNER: &[(&str, &str)] = &[
    ("domains", "names"),
    ("disks", "include"),
    ("keep", "last"),
    ("before", "command"),
    ("after", "command"),
    ("retry", "attempts"),
];

/// The longest value that an example repeats.
const SHORT: usize = 60;

/// The known key that a word of another tool means.
pub(crate) fn synonym(written: &str, known: &'static [&'static str]) -> Option<&'static str> {
    let written = written.to_lowercase().replace('_', "-");
    let meant = SYNONYMS.iter().filter(|(_, words)| words.contains(&written.as_str())).map(|(key, _)| *key);
    meant.filter(|key| known.contains(key)).find_map(|key| known.iter().copied().find(|word| *word == key))
}

/// How a section of this name is written.
pub(crate) fn section(key: &str) -> Option<&'static str> {
    SECTIONS.iter().find(|(name, _)| *name == key).map(|(_, example)| *example)
}

/// How the section at `path` is written with the value that stands in its place; else any such section.
pub(crate) fn in_section(path: &[String], value: Option<&str>) -> Option<String> {
    let key = path.last()?.as_str();
    let made = match (path, value) {
        ([media, name], Some(value)) if media == "media" => Some(format!("{name}: {{to: {value}}}")),
        ([_, _, domains], Some("all" | "'*'")) if domains == "domains" => {
            Some("domains: {all: true}".to_owned())
        }
        (_, Some(value)) => INNER.iter().find(|(name, _)| *name == key).map(|(_, inner)| {
            let list = matches!(*inner, "names" | "include" | "command") && !value.starts_with('[');
            if list {
                format!("{key}: {{{inner}: [{value}]}}")
            } else {
                format!("{key}: {{{inner}: {value}}}")
            }
        }),
        (_, None) => None,
    };
    made.or_else(|| section(key).map(str::to_owned))
}

/// A single value, or a list of them, as it may stand in an example.
pub(crate) fn plain(value: &YamlNode) -> Option<String> {
    let text = match value {
        YamlNode::Text(text) => quoted(text)?,
        YamlNode::Unsigned(number) => number.to_string(),
        YamlNode::List(items) => {
            let items: Option<Vec<String>> = items
                .iter()
                .map(|item| if matches!(item, YamlNode::List(_)) { None } else { plain(item) })
                .collect();
            format!("[{}]", items?.join(", "))
        }
        _ => return None,
    };
    (text.chars().count() <= SHORT).then_some(text)
}

fn quoted(text: &str) -> Option<String> {
    if text.is_empty() || text.chars().any(|c| c.is_control() || c == '\'') {
        return None;
    }
    let bare = text.chars().all(|c| c.is_alphanumeric() || "_./-".contains(c)) && !text.starts_with('-');
    Some(if bare { text.to_owned() } else { format!("'{text}'") })
}

/// The word for true or false that a text or a truth value means where one of `known` is wanted.
pub(crate) fn truth(written: &str, known: &[&'static str]) -> Option<&'static str> {
    let pair = match written.to_lowercase().as_str() {
        "on" | "yes" | "y" | "true" | "1" => ["true", "yes"],
        "off" | "no" | "n" | "false" | "0" => ["false", "no"],
        _ => return None,
    };
    known.iter().copied().find(|word| pair.contains(word))
}

/// What to do where YAML takes the first character of a value for a sign of its own: `*-*-* 02:00`, `@daily`.
/// `column` is where its parser stopped.
pub(crate) fn quotes(line: &str, column: usize) -> Option<String> {
    let chars: Vec<char> = line.chars().collect();
    let before = |at: usize| chars.get(..at).unwrap_or_default().iter().rev().find(|c| **c != ' ').copied();
    let begins = |at: &usize| {
        let apart =
            at.checked_sub(1).and_then(|at| chars.get(at)).is_none_or(|c| matches!(c, ' ' | '[' | '{' | ','));
        apart
            && matches!(chars.get(*at), Some('*' | '@' | '`' | '&' | '%'))
            && matches!(before(*at), Some(':' | '[' | ',' | '-' | '{') | None)
    };
    let start = (0..=column.min(chars.len())).rev().find(begins)?;
    let in_flow = chars[..start].iter().any(|c| matches!(c, '[' | '{'));
    let rest: String = chars[start..].iter().collect();
    let value = match in_flow {
        true => rest.split([',', ']', '}']).next().unwrap_or_default(),
        false => rest.split(" #").next().unwrap_or_default(),
    };
    let value = value.trim();
    let sign = value.chars().next()?;
    let said = format!("a value that begins with `{sign}` has to stand in quotes");
    let short = value.chars().count() <= SHORT && !value.contains('\'');
    Some(if short { format!("{said}: '{value}'") } else { said })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_is_one() {
        let media = "version: 1\nmedia: {nas: {to: /srv/backup}}\n";
        for (key, example) in SECTIONS {
            let text = match *key {
                "media" => format!("version: 1\n{example}\n"),
                "defaults" | "service" | "trust" | "jobs" => format!("{media}{example}\n"),
                _ => {
                    let domains = if *key == "domains" { "" } else { "domains: {all: true}, " };
                    format!("{media}jobs: {{j: {{{domains}schedule: daily, to: nas, {example}}}}}\n")
                }
            };
            crate::parse(&text, std::path::Path::new("c")).unwrap_or_else(|e| panic!("{e}"));
        }
    }

    #[test]
    fn what_needs_quotes_gets_them() {
        for (line, column, expect) in [
            ("    schedule: *-*-* 02:00  # at night", 17, Some("'*-*-* 02:00'")),
            ("    names: [web, *]", 19, Some("'*'")),
            ("  - *db", 5, Some("'*db'")),
            ("    schedule: @daily", 15, Some("'@daily'")),
            ("    schedule: daily", 15, None),
            ("", 1, None),
            ("ä*", 99, None),
        ] {
            let told = quotes(line, column);
            assert_eq!(
                told.as_deref().and_then(|told| told.split_once("quotes: ")).map(|(_, v)| v),
                expect,
                "{line}"
            );
        }
    }
}
