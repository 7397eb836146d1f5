//! The documents, as text: short enough, links that lead somewhere, and what they say of the code held
//! against the code.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::ROOT;

/// What a reader of the front page is asked to read at most.
const README_BYTES: usize = 8 << 10;
/// The width of a text.
const COLUMNS: usize = 110;

/// The files below a folder of the repository whose names end so; what is built or not ours is left out.
fn files(folder: &str, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(ROOT).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            match path.is_dir() {
                true if name.starts_with('.') || name == "target" => {}
                true => folders.push(path),
                false if name.ends_with(end) => found.push(path),
                false => {}
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no {end} in {folder}");
    found
}

fn text(path: impl AsRef<Path>) -> String {
    let path = Path::new(ROOT).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(ROOT).unwrap_or(path).display().to_string()
}

/// The lines of a document that are prose, with their numbers: no tables and no code.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut lines = Vec::new();
    let mut fenced = false;
    for (index, line) in text.lines().enumerate() {
        if line.starts_with("```") {
            fenced = !fenced;
        } else if !fenced && !line.starts_with('|') && !line.starts_with("    ") {
            lines.push((index + 1, line));
        }
    }
    lines
}

/// What stands between the two, each time.
fn between<'a>(text: &'a str, open: &'a str, close: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(open).skip(1).filter_map(move |rest| rest.split_once(close)).map(|(inner, _)| inner)
}

/// What stands in `code`.
fn code(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The anchors that GitHub and others give a document: its headings, and those that it has itself.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors: BTreeSet<String> = between(text, "<a id=\"", "\"").map(str::to_owned).collect();
    for (_, line) in prose(text) {
        let heading = line.trim_start_matches('#');
        if heading.len() < line.len() {
            let kept = heading.trim().to_lowercase();
            let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            anchors.insert(kept.map(|c| if c == ' ' { '-' } else { c }).collect());
        }
    }
    anchors
}

/// The source of everything that talks to a user, with string literals that go over several lines put
/// together.
fn source() -> String {
    let all = ["driver", "config/src", "hooks/src"].into_iter().flat_map(|folder| files(folder, ".rs"));
    let all: String = all.map(text).collect();
    let mut parts = all.split("\\\n");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |joined, part| joined + part.trim_start())
}

/// What is wrong, one a line.
fn none(wrong: &str) {
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn the_front_page_is_short() {
    let bytes = text("README.md").len();
    assert!(bytes <= README_BYTES, "README.md has {bytes} bytes: what is more belongs to docs/");
}

#[test]
fn links_lead_somewhere() {
    let mut wrong = String::new();
    for document in files("", ".md") {
        let own = text(&document);
        for (number, line) in own.lines().enumerate() {
            for target in between(line, "](", ")") {
                if target.contains("://") || target.starts_with("mailto:") {
                    continue;
                }
                let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
                let led = if path.is_empty() { document.clone() } else { document.with_file_name(path) };
                let there = led.exists() && (anchor.is_empty() || anchors(&text(&led)).contains(anchor));
                if !there {
                    writeln!(wrong, "{}:{}: '{target}' leads nowhere", shown(&document), number + 1).unwrap();
                }
            }
        }
    }
    none(&wrong);
}

#[test]
fn prose_has_110_columns() {
    let mut wrong = String::new();
    for document in files("", ".md") {
        for (number, line) in prose(&text(&document)) {
            let links: usize = between(line, "](", ")").map(|target| target.chars().count() + 2).sum();
            let columns = line.chars().count() - links;
            if columns > COLUMNS {
                writeln!(wrong, "{}:{number}: {columns} columns", shown(&document)).unwrap();
            }
        }
    }
    none(&wrong);
}

/// Tables apart, as in documents: a row can't be broken.
#[test]
fn comments_have_110_columns() {
    let mut wrong = String::new();
    for source in
        ["driver", "config", "hooks", "tests", "benches"].iter().flat_map(|folder| files(folder, ".rs"))
    {
        for (index, line) in text(&source).lines().enumerate() {
            let comment = line.trim_start();
            let is_prose =
                comment.starts_with("//") && !comment.trim_start_matches(['/', '!', ' ']).starts_with('|');
            if is_prose && line.chars().count() > COLUMNS {
                writeln!(wrong, "{}:{}", shown(&source), index + 1).unwrap();
            }
        }
    }
    none(&wrong);
}

/// A pair as a parameter dodges the limit of arguments: `(control, cancel): (&Control, &AtomicBool)`.
#[test]
fn no_parameter_is_a_tuple_in_pieces() {
    let mut wrong = String::new();
    for source in ["driver", "config", "hooks"].iter().flat_map(|folder| files(folder, ".rs")) {
        let text = text(&source);
        for (at, _) in text.match_indices("): (") {
            let before = &text[..at];
            let open = before.rfind('(').unwrap_or(0);
            let is_pattern =
                before[open + 1..].chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ',' | ' '))
                    && before[open + 1..].contains(", ");
            let is_parameter = before[..open].trim_end().ends_with(['(', ',']);
            if is_pattern && is_parameter {
                writeln!(wrong, "{}:{}", shown(&source), before.lines().count()).unwrap();
            }
        }
    }
    none(&wrong);
}

#[test]
fn the_document_of_security_names_all_unsafe_code() {
    let said = text("SECURITY.md");
    let said = said.split("- **Unsafe code**").nth(1).expect("SECURITY.md has no bullet 'Unsafe code'");
    let said = said.split("\n- ").next().unwrap();
    let named: BTreeSet<String> =
        code(said).into_iter().filter(|c| c.ends_with(".rs")).map(str::to_owned).collect();
    let allows = |path: &PathBuf| {
        let lines = text(path);
        lines.lines().any(|line| line.trim_start().starts_with("#") && line.contains("(unsafe_code"))
    };
    let sources = ["driver", "config", "hooks", "examples", "benches"];
    let allowing = sources.into_iter().flat_map(|folder| files(folder, ".rs")).filter(allows);
    assert_eq!(allowing.map(|path| shown(&path)).collect::<BTreeSet<_>>(), named);
}

#[test]
fn messages_that_are_explained_are_those_of_the_program() {
    let source = source();
    let mut wrong = String::new();
    for line in text("docs/troubleshooting.md").lines().filter(|line| line.starts_with("| `")) {
        let seen = line.split(" | ").next().unwrap();
        for words in code(seen).into_iter().filter(|words| !source.contains(words)) {
            writeln!(wrong, "the program never says '{words}'").unwrap();
        }
    }
    none(&wrong);
}

#[test]
fn exit_codes_are_those_of_the_help() {
    let help = text("tests/golden/help.txt");
    let help = between(&help, "Exit codes:\n", "\n\n").next().unwrap();
    let documented = text("docs/troubleshooting.md");
    let rows = between(&documented, "| code | meaning |\n|---|---|\n", "\n\n").next().unwrap();
    // Both tell a code and its sentence; only the characters between them differ.
    let words = |text: &str| -> Vec<String> {
        let lines = text.lines().map(|line| line.replace('|', " "));
        lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    };
    assert!(words(help).len() > 10, "{help}");
    assert_eq!(words(rows), words(help));
}

#[test]
fn both_packages_have_all_documents() {
    let manifest = text("Cargo.toml");
    for entry in [
        r#"["docs/*.md", "usr/share/doc/virtfold/docs/""#,
        r#"{ source = "docs/*.md", dest = "/usr/share/doc/virtfold/docs/""#,
    ] {
        assert!(manifest.contains(entry), "{entry} is not in Cargo.toml");
    }
}

/// Prose that docs/glossary.md has retired, as far as it is kept out already.
const RETIRED: [&str; 13] = [
    "comes home",
    "guests home",
    "way home",
    "brings guests home",
    "brings its guests home",
    "is brought home",
    "had again",
    "gone on with",
    "power cut would leave",
    "takes nothing away",
    "is no name for",
    "gives way",
    "begun anew",
];

/// Types and files that docs/glossary.md has retired: what they were called says nothing to somebody new.
const RETIRED_NAMES: [&str; 45] = [
    "Adoption",
    "Arrival",
    "Clerk",
    "Deck",
    "Desk",
    "DiskJob",
    "DiskSight",
    "Fate",
    "Found",
    "Gaps",
    "Gate",
    "Glance",
    "Guard",
    "Guarded",
    "Heard",
    "Homing",
    "Job",
    "Keep",
    "Known",
    "Ledger",
    "Manner",
    "Mark",
    "Material",
    "Neighbours",
    "Notes",
    "Nothing",
    "Outlet",
    "Patience",
    "Quiesce",
    "Reach",
    "Remains",
    "Run",
    "Said",
    "Sentry",
    "Sight",
    "Sound",
    "Spot",
    "StartGuard",
    "TapeCare",
    "Thawed",
    "Unlogged",
    "Verdict",
    "Way",
    "Wish",
    "WentOn",
];
const RETIRED_FILES: [&str; 16] = [
    "again", "behind", "care", "deck", "gaps", "home", "look", "nothing", "people", "remains", "said",
    "sight", "told", "torn", "want", "words",
];
/// The one meaning that stays: the configuration's job, the correspondence table's run.
const STAY: [(&str, &str); 2] =
    [("config/src/keys/jobs.rs", "Job"), ("driver/archive/src/table/mod.rs", "Run")];

#[test]
fn code_has_no_retired_names() {
    let mut wrong = String::new();
    for source in ["driver", "config/src", "hooks/src"].iter().flat_map(|folder| files(folder, ".rs")) {
        let name = shown(&source);
        let stem = source.file_stem().unwrap().to_str().unwrap();
        let folder = source.parent().unwrap().file_name().unwrap().to_str().unwrap();
        if RETIRED_FILES.iter().any(|retired| stem == *retired || folder == *retired) {
            writeln!(wrong, "{name}: docs/glossary.md has retired the file's name").unwrap();
        }
        for line in text(&source).lines() {
            let mut words =
                line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
            let defines = words.by_ref().any(|word| matches!(word, "struct" | "enum" | "trait" | "union"));
            let Some(defined) = words.next().filter(|_| defines && !line.trim_start().starts_with("//"))
            else {
                continue;
            };
            let stays = STAY.iter().any(|(file, word)| name == *file && defined == *word);
            if RETIRED_NAMES.contains(&defined) && !stays {
                writeln!(wrong, "{name}: '{defined}' (docs/glossary.md has the word)").unwrap();
            }
        }
    }
    none(&wrong);
}

#[test]
fn what_users_read_has_no_retired_prose() {
    let mut read = files("docs", ".md");
    read.extend(files("tests/golden", ".txt"));
    read.extend(files("packaging", "README.md"));
    read.extend(files("config", "README.md"));
    read.extend(files("tests", "README.md"));
    read.extend(files("driver", "PROTOCOL.md"));
    read.extend([Path::new(ROOT).join("README.md"), Path::new(ROOT).join("SECURITY.md")]);
    let mut wrong = String::new();
    for document in read.into_iter().filter(|path| !path.ends_with("docs/glossary.md")) {
        let words = text(&document).split_whitespace().collect::<Vec<_>>().join(" ");
        for retired in RETIRED.iter().filter(|retired| words.contains(**retired)) {
            writeln!(wrong, "{}: '{retired}' (docs/glossary.md has the word)", shown(&document)).unwrap();
        }
    }
    none(&wrong);
}

/// What the design calls by its name in the code is called so there.
#[test]
fn what_the_design_names_has_no_retired_name() {
    let mut read = files("docs/design", ".md");
    read.push(Path::new(ROOT).join("ARCHITECTURE.md"));
    let mut wrong = String::new();
    for document in read {
        let text = text(&document);
        let words = code(&text).into_iter().flat_map(|code| code.split("::")).map(|word| {
            let end = word.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(word.len());
            &word[..end]
        });
        // The correspondence table's run stays.
        let stays = |word: &str| word == "Run" && document.ends_with("ARCHITECTURE.md");
        for retired in words.filter(|word| RETIRED_NAMES.contains(word) && !stays(word)) {
            writeln!(wrong, "{}: '{retired}' (docs/glossary.md has the word)", shown(&document)).unwrap();
        }
    }
    none(&wrong);
}

/// A promise names what shows it: a test that is there.
#[test]
fn the_tests_that_the_document_of_security_names_are_there() {
    let tests: String = ["driver", "config", "hooks", "tests"]
        .iter()
        .flat_map(|folder| files(folder, ".rs"))
        .map(text)
        .collect();
    let security = text("SECURITY.md");
    let is_test = |word: &&str| {
        word.matches('_').count() >= 2
            && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    // The kernel's name of a flag.
    let named: Vec<&str> =
        code(&security).into_iter().filter(is_test).filter(|word| *word != "no_new_privs").collect();
    assert!(named.len() > 30, "{named:?}");
    let mut wrong = String::new();
    for test in named.into_iter().filter(|test| !tests.contains(&format!("fn {test}("))) {
        writeln!(wrong, "SECURITY.md: there is no test '{test}'").unwrap();
    }
    none(&wrong);
}
