//! Real files: samples, merging, permissions, bounds, the reference.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use virtfold_config::{
    Compression, Config, Defaults, Layout, MAX_FILE, Origin, load, parse, reference, schema,
};

fn crate_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A directory with `config.yaml` and the files of `conf.d`.
fn written(main: &str, extra: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.yaml");
    fs::write(&path, main).unwrap();
    if !extra.is_empty() {
        fs::create_dir(dir.path().join("conf.d")).unwrap();
    }
    for (name, text) in extra {
        fs::write(dir.path().join("conf.d").join(name), text).unwrap();
    }
    (dir, path)
}

fn shown(config: &Config, dir: &Path) -> String {
    let lines: Vec<_> = config.show().iter().map(ToString::to_string).collect();
    lines.join("\n").replace(&format!("{}/", dir.display()), "")
}

#[test]
fn every_sample_is_read_and_the_full_one_sets_every_key() {
    let dir = crate_dir().join("../examples");
    let mut seen = 0;
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "yaml") {
            let config = parse(&fs::read_to_string(&path).unwrap(), &path).unwrap_or_else(|e| panic!("{e}"));
            seen += 1;
            if path.ends_with("config-full.yaml") {
                let left: Vec<_> =
                    config.show().into_iter().filter(|s| s.origin == Origin::Default).collect();
                assert!(left.is_empty(), "not in the full sample: {left:?}");
            }
            if path.ends_with("config-minimal.yaml") {
                assert_eq!(config.defaults, Defaults::default());
            }
        }
    }
    assert!(seen >= 2);
}

#[test]
fn the_reference_is_up_to_date() {
    let path = crate_dir().join("README.md");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, reference()).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), reference(), "run with UPDATE=1 to write README.md anew");
}

#[test]
fn the_schema_refuses_unknown_keys_and_describes_every_known_one() {
    let schema = schema();
    let defaults = &schema["properties"]["defaults"];
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(defaults["additionalProperties"], false);
    assert_eq!(schema["required"], serde_json::json!(["version"]));
    let config = parse("version: 1", Path::new("c")).unwrap();
    for shown in config.show() {
        let pointer = format!("/properties/{}/description", shown.key.replace('.', "/properties/"));
        assert!(schema.pointer(&pointer).is_some_and(|text| text.is_string()), "{} has no words", shown.key);
    }
}

#[test]
fn files_are_united_in_the_order_of_their_names_and_show_tells_where_from() {
    let (dir, path) = written(
        "version: 1\ndefaults:\n  # nothing yet\n",
        &[
            ("20-b.yaml", "defaults: {layout: full}\n"),
            ("10-a.yaml", "defaults:\n  compress: none\n  block-size: 65536\n"),
            ("30-empty.yaml", "# nothing\n"),
            (".40-hidden.yaml", "nonsense: 1\n"),
            ("50-old.yaml.bak", "nonsense: 1\n"),
        ],
    );
    let config = load(&path).unwrap();
    assert_eq!(config.defaults.compress, Compression::None);
    assert_eq!(config.defaults.layout, Layout::Full);
    let expect = "defaults.block-size: 64KiB  # conf.d/10-a.yaml:3:3\n\
                  defaults.compress: none  # conf.d/10-a.yaml:2:3\n\
                  defaults.encrypt-to: (not set)  # default\n\
                  defaults.layout: full  # conf.d/20-b.yaml:1:12\n\
                  defaults.limit-rate: (not set)  # default\n\
                  defaults.min-free: 1GiB  # default\n\
                  defaults.pause-budget: 2s  # default\n\
                  defaults.quiesce: auto  # default\n\
                  defaults.recipients: (not set)  # default\n\
                  defaults.workers: (not set)  # default\n\
                  version: 1  # config.yaml:1:1";
    assert_eq!(shown(&config, dir.path()), expect);
}

#[test]
fn what_everybody_may_write_is_refused() {
    let (dir, path) = written("version: 1\n", &[("a.yaml", "defaults:\n")]);
    load(&path).unwrap();
    for victim in [path.clone(), dir.path().join("conf.d"), dir.path().join("conf.d/a.yaml")] {
        let before = fs::metadata(&victim).unwrap().permissions();
        fs::set_permissions(&victim, Permissions::from_mode(before.mode() | 0o002)).unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(error.contains("may be written by everybody"), "{error}");
        assert!(error.starts_with(victim.to_str().unwrap()), "{error}");
        fs::set_permissions(&victim, before).unwrap();
    }
}

#[test]
fn pipes_folders_and_giants_are_refused_at_once() {
    let (dir, path) = written("version: 1\n", &[]);
    let error = load(dir.path()).unwrap_err().to_string();
    assert!(error.ends_with("is not a regular file"), "{error}");
    let pipe = dir.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert!(load(&pipe).unwrap_err().to_string().ends_with("is not a regular file"));
    let mut text = "version: 1\n#".to_owned();
    text.push_str(&"x".repeat(usize::try_from(MAX_FILE).unwrap() - text.len()));
    fs::write(&path, &text).unwrap();
    load(&path).unwrap();
    fs::write(&path, text + "x").unwrap();
    assert!(load(&path).unwrap_err().to_string().ends_with("is larger than 1 MiB"));
}

#[test]
fn the_largest_files_are_read_or_refused_soon() {
    let wide: String = (0..90_000).map(|i| format!("k{i}: 1\n")).collect();
    let bomb: String =
        "a: &a [".to_owned() + &"1,".repeat(100_000) + "]\nb: [" + &"*a,".repeat(200_000) + "]";
    let deep = "{a: ".repeat(200_000);
    let directives: String = (0..32_000).map(|i| format!("%TAG !a{i}! tag:a\n")).collect();
    let lists = "[".repeat(100) + &"a,".repeat(500_000);
    for text in [wide, bomb, deep, directives, lists, "- ".repeat(500_000), "? ".repeat(500_000)] {
        let started = std::time::Instant::now();
        assert!(parse(&text, Path::new("c")).is_err());
        assert!(started.elapsed().as_secs() < 10, "{:.20}: {:?}", text, started.elapsed());
    }
}

proptest! {
    /// Whatever is done to a good file, it is read or refused; and a refusal names a place in it.
    #[test]
    fn no_text_makes_it_panic(edits in proptest::collection::vec((any::<prop::sample::Index>(), ".{0,3}"), 1..8)) {
        let mut chars: Vec<char> = include_str!("../../examples/config-full.yaml").chars().collect();
        for (index, new) in edits {
            let at = index.index(chars.len());
            chars.splice(at..at + 1, new.chars());
        }
        let text: String = chars.into_iter().collect();
        if let Err(error) = parse(&text, Path::new("c.yaml")) {
            let said = error.to_string();
            let mut parts = said.split(':');
            prop_assert_eq!(parts.next(), Some("c.yaml"));
            let line: usize = parts.next().unwrap().parse().unwrap();
            let breaks = ['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}'];
            let lines = text.split(breaks).count();
            prop_assert!(line >= 1 && line <= lines + 1);
        }
    }
}
