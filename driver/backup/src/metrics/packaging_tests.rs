//! Holds what is shipped beside the code to the metrics that the code exports: the alert rules, the
//! dashboard, the table in `packaging/README.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::names::{ALL, Family, MetricKind};

/// Metrics of others that are asked for, with the labels that they have.
const FOREIGN: [Family; 2] = [
    Family { name: "up", help: "", kind: MetricKind::Gauge, labels: &[] },
    Family { name: "node_textfile_mtime_seconds", help: "", kind: MetricKind::Gauge, labels: &["file"] },
];
/// What Prometheus adds to every series.
const ADDED: [&str; 2] = ["instance", "job"];
const GROUPING: [&str; 2] = ["by", "on"];
const WORDS: [&str; 3] = ["and", "or", "unless"];
const FUNCTIONS: [&str; 9] =
    ["time", "max", "min", "sum", "count", "increase", "absent", "vector", "label_values"];

fn packaged(name: &str) -> String {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn family(name: &str) -> Result<&'static Family, String> {
    let known = ALL.iter().copied().chain(&FOREIGN).find(|family| family.name == name);
    known.ok_or_else(|| format!("nothing exports '{name}'"))
}

/// The pieces of an expression that matter: words, and the signs that say what a word is. Strings and ranges
/// are dropped.
fn pieces(expression: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(c) = rest.chars().next() {
        let word = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let length = match c {
            _ if word > 0 => {
                found.push(rest[..word].to_owned());
                word
            }
            '"' => 2 + rest[1..].find('"').expect("a string has an end"),
            '[' => 1 + rest.find(']').expect("a range has an end"),
            '(' | ')' | '{' | '}' | ',' => {
                found.push(c.to_string());
                1
            }
            _ => c.len_utf8(),
        };
        rest = &rest[length..];
    }
    found
}

/// Takes the pieces up to `end`, which goes, too; commas are dropped.
fn until(pieces: &mut std::vec::IntoIter<String>, end: &str) -> Result<Vec<String>, String> {
    let mut taken = Vec::new();
    for piece in pieces {
        match piece.as_str() {
            found if found == end => return Ok(taken),
            "," => {}
            _ => taken.push(piece),
        }
    }
    Err(format!("there is no '{end}'"))
}

/// The labels that the series of an expression can have, or what is wrong with it.
fn check(expression: &str) -> Result<BTreeSet<String>, String> {
    let mut pieces = pieces(expression).into_iter();
    let (mut labels, mut asked) = (BTreeSet::from(ADDED.map(str::to_owned)), Vec::new());
    let (mut function, mut metric): (String, Option<&Family>) = (String::new(), None);
    let mut metrics = 0;
    while let Some(piece) = pieces.next() {
        let word = piece.as_str();
        if GROUPING.contains(&word) {
            until(&mut pieces, "(")?;
            asked.extend(until(&mut pieces, ")")?);
        } else if word == "{" {
            let metric = metric.ok_or("a '{' without a metric")?;
            for label in until(&mut pieces, "}")? {
                if !metric.labels.contains(&label.as_str()) && !ADDED.contains(&label.as_str()) {
                    return Err(format!("'{}' has no label '{label}'", metric.name));
                }
            }
        } else if FUNCTIONS.contains(&word) {
            function = piece;
        } else if word.starts_with(|c: char| c.is_ascii_alphabetic()) && !WORDS.contains(&word) {
            let found = family(word)?;
            if function == "increase" && found.kind != MetricKind::Counter {
                return Err(format!("'{word}' is no counter"));
            }
            labels.extend(found.labels.iter().map(|&label| label.to_owned()));
            metric = Some(found);
            metrics += 1;
        }
    }
    match asked.iter().find(|label| !labels.contains(*label)) {
        _ if metrics == 0 => Err("it asks for nothing".to_owned()),
        Some(label) => Err(format!("nothing in it has the label '{label}'")),
        None => Ok(labels),
    }
}

#[test]
fn the_check_finds_what_is_wrong() {
    let sound = [
        "virtfold_running",
        "time() - max by (domain, uuid) (virtfold_backup_last_success_timestamp_seconds) > 26 * 3600",
        "sum(increase(virtfold_tape_underruns_total{instance=~\"(a|b)}\"}[1h])) or vector(0)",
    ];
    for expression in sound {
        check(expression).unwrap_or_else(|wrong| panic!("{expression}: {wrong}"));
    }
    let wrong = [
        ("virtfold_runing", "nothing exports"),
        ("time()", "asks for nothing"),
        ("virtfold_running{domain=\"a\"}", "has no label 'domain'"),
        ("sum by (domain) (virtfold_running)", "has the label 'domain'"),
        ("increase(virtfold_running[1h])", "is no counter"),
        ("rate(virtfold_tape_underruns_total[1h])", "nothing exports 'rate'"),
        ("sum by (instance", "there is no ')'"),
    ];
    for (expression, what) in wrong {
        let found = check(expression).unwrap_err();
        assert!(found.contains(what), "{expression}: {found}");
    }
}

/// The labels in `{{ ... }}` of a text.
fn shown_labels(text: &str) -> BTreeSet<String> {
    let inside =
        text.split("{{").skip(1).filter_map(|rest| rest.split_once("}}")).map(|(inside, _)| inside.trim());
    let labels = inside.filter(|inside| !inside.starts_with("$value"));
    labels.map(|inside| inside.trim_start_matches("$labels.").to_owned()).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFile {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    name: String,
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    alert: String,
    expr: String,
    #[serde(default, rename = "for")]
    lasts: Option<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

#[test]
fn alerts_ask_for_what_is_exported() {
    let file: RuleFile = serde_yaml::from_str(&packaged("prometheus/virtfold.rules.yml")).unwrap();
    let [group] = &file.groups[..] else { panic!("one group") };
    assert_eq!(group.name, "virtfold");
    let mut names = BTreeSet::new();
    for rule in &group.rules {
        let name = &rule.alert;
        assert!(name.starts_with("Virtfold") && names.insert(name.as_str()), "{name}");
        let labels = check(&rule.expr).unwrap_or_else(|wrong| panic!("{name}: {wrong}"));
        let has: Vec<_> = rule.annotations.keys().map(String::as_str).collect();
        assert_eq!(has, ["description", "summary"], "{name}");
        for label in rule.annotations.values().flat_map(|text| shown_labels(text)) {
            assert!(labels.contains(&label), "{name} shows the label '{label}', which its series have not");
        }
        let severity = rule.labels.get("severity").map_or("", String::as_str);
        assert!(["info", "warning", "critical"].contains(&severity) && rule.labels.len() == 1, "{name}");
        let lasts = rule.lasts.as_deref().unwrap_or("0m");
        let (count, unit) = lasts.split_at(lasts.len() - 1);
        assert!(count.parse::<u32>().is_ok() && "mh".contains(unit), "{name}: for {lasts}");
    }
    for wanted in
        ["BackupOld", "BackupFailing", "QueueStuck", "GuestWithoutJob", "TapeUnderruns", "ServiceDown"]
    {
        assert!(names.contains(format!("Virtfold{wanted}").as_str()), "{wanted}");
    }
}

/// A panel's place on the dashboard: columns and rows that it covers.
fn cells(panel: &Value) -> Vec<(u64, u64)> {
    let grid = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
    let [x, y, width, height] = grid;
    assert!(width > 0 && height > 0 && x + width <= 24, "{}", panel["title"]);
    (x..x + width).flat_map(|column| (y..y + height).map(move |row| (column, row))).collect()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no '{key}' in {value}"))
}

#[test]
fn the_dashboard_asks_for_what_is_exported() {
    let board: Value = serde_json::from_str(&packaged("grafana/virtfold.json")).unwrap();
    assert_eq!((text(&board, "title"), text(&board, "uid")), ("virtfold", "virtfold"));
    let variables = board["templating"]["list"].as_array().unwrap();
    let names: Vec<_> = variables.iter().map(|variable| text(variable, "name")).collect();
    assert_eq!(names, ["datasource", "instance", "domain"]);
    for variable in &variables[1..] {
        let query = text(variable, "definition");
        let inner = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')')).unwrap();
        let (asked, label) = inner.rsplit_once(", ").unwrap();
        let labels = check(asked).unwrap_or_else(|wrong| panic!("{query}: {wrong}"));
        assert!(labels.contains(label), "{query}");
        assert_eq!(text(&variable["query"], "query"), query);
    }
    let (mut ids, mut titles, mut taken) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for panel in board["panels"].as_array().unwrap() {
        let title = text(panel, "title");
        assert!(ids.insert(panel["id"].as_u64().unwrap()) && titles.insert(title), "{title}");
        assert!(["stat", "table", "timeseries"].contains(&text(panel, "type")), "{title}");
        assert!(!text(panel, "description").is_empty(), "{title}");
        assert!(cells(panel).into_iter().all(|cell| taken.insert(cell)), "{title} covers another panel");
        let targets = panel["targets"].as_array().unwrap();
        let references: BTreeSet<_> = targets.iter().map(|target| text(target, "refId")).collect();
        assert!(!targets.is_empty() && references.len() == targets.len(), "{title}");
        for target in targets {
            assert_eq!(text(&target["datasource"], "uid"), "${datasource}", "{title}");
            let labels = check(text(target, "expr")).unwrap_or_else(|wrong| panic!("{title}: {wrong}"));
            let legend = shown_labels(text(target, "legendFormat"));
            assert!(legend.is_subset(&labels), "{title}: {legend:?}");
        }
    }
}

/// `packaging/README.md` has a row for each, as [`ALL`] has it.
#[test]
fn each_metric_is_documented() {
    let readme = packaged("README.md");
    let row = |family: &&Family| {
        let kind = if family.kind == MetricKind::Counter { "counter" } else { "gauge" };
        format!("| `{}` | {kind} | {} | {} |", family.name, family.labels.join(", "), family.help)
    };
    let expected: Vec<String> = ALL.iter().map(row).collect();
    let found: Vec<&str> = readme.lines().filter(|line| line.starts_with("| `virtfold_")).collect();
    assert!(found == expected, "the table is to be:\n{}", expected.join("\n"));
}
