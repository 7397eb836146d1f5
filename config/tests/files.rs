//! Real files: samples, merging, permissions, bounds, the reference.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::Value;
use virtfold_config::{
    Compression, Config, Defaults, Environment, Layout, MAX_FILE, ValueOrigin, load, man_page, parse,
    reference, schema,
};

fn crate_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A folder that only its owner can write to, and so each above it.
fn folder() -> tempfile::TempDir {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tempfile::tempdir_in(virtfold_base::safe_path::trust::testing::closed(place)).unwrap()
}

/// A directory with `config.yaml` and the files of `conf.d`.
fn written(main: &str, extra: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
    let dir = folder();
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

/// The paths of all keys in a schema, sections included; names of the user's are `*`.
fn keys(schema: &Value, path: &[String], out: &mut Vec<Vec<String>>) {
    for form in schema["anyOf"].as_array().into_iter().flatten() {
        keys(form, path, out);
    }
    for named in schema["patternProperties"].as_object().into_iter().flat_map(|map| map.values()) {
        keys(named, &[path, &["*".to_owned()]].concat(), out);
    }
    for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
        let path = [path, std::slice::from_ref(key)].concat();
        assert!(inner["description"].is_string(), "{path:?} has no words");
        keys(inner, &path, out);
        out.push(path);
    }
}

/// Whether a document sets the key at this path.
fn sets(document: &serde_yaml::Value, path: &[String]) -> bool {
    match path {
        [] => true,
        [star, rest @ ..] if star == "*" => {
            document.as_mapping().is_some_and(|map| map.values().any(|inner| sets(inner, rest)))
        }
        [key, rest @ ..] => document.get(key).is_some_and(|inner| sets(inner, rest)),
    }
}

#[test]
fn every_sample_is_read_and_the_full_one_sets_every_key() {
    let dir = crate_dir().join("../examples");
    let mut seen = 0;
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "yaml") {
            let text = fs::read_to_string(&path).unwrap();
            let config = parse(&text, &path).unwrap_or_else(|e| panic!("{e}"));
            seen += 1;
            if path.ends_with("config-full.yaml") {
                let document: serde_yaml::Value = serde_yaml::from_str(&text).unwrap();
                let mut all = Vec::new();
                keys(&schema(), &[], &mut all);
                let left: Vec<_> = all.iter().filter(|path| !sets(&document, path)).collect();
                assert!(left.is_empty() && all.len() > 60, "not in the full sample: {left:?}");
                let left: Vec<_> =
                    config.show().into_iter().filter(|s| s.origin == ValueOrigin::Default).collect();
                assert!(left.iter().all(|shown| shown.key.starts_with("media.lto")), "{left:?}");
            }
            if path.ends_with("config-minimal.yaml") {
                assert_eq!(config.defaults, Defaults::default());
            }
        }
    }
    assert!(seen >= 5);
}

/// The file that packages install has a job in its comments, which is to be made one by taking the signs
/// away.
#[test]
fn the_sample_in_the_packaged_configuration_is_one() {
    let path = crate_dir().join("../packaging/config.yaml");
    let text = fs::read_to_string(&path).unwrap();
    let begin = text.find("# media:").unwrap();
    let signs_away = text.replace("\n# ", "\n");
    let (_, sample) = signs_away.split_once("media:").unwrap();
    let whole = format!("{}media:{sample}", &text[..begin]);
    let config = parse(&whole, &path).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((config.jobs.len(), config.media.len()), (1, 1));
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
    // Names are the user's; what stands below them is known.
    for section in ["jobs", "media"] {
        let section = &schema["properties"][section];
        assert_eq!(section["additionalProperties"], false);
        let named: Vec<_> = section["patternProperties"].as_object().unwrap().values().collect();
        assert!(named.len() == 1 && named[0]["additionalProperties"] == false);
    }
    // Every key has words: `keys` looks at each.
    keys(&schema, &[], &mut Vec::new());
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
                  defaults.detect-zeroes: (not set)  # default\n\
                  defaults.encrypt-to: (not set)  # default\n\
                  defaults.layout: full  # conf.d/20-b.yaml:1:12\n\
                  defaults.limit-rate: (not set)  # default\n\
                  defaults.min-free: 1GiB  # default\n\
                  defaults.overlay-dir: (not set)  # default\n\
                  defaults.pause-budget: 2s  # default\n\
                  defaults.quiesce: auto  # default\n\
                  defaults.recipients: (not set)  # default\n\
                  defaults.workers: (not set)  # default\n\
                  service.catch-up: 1d  # default\n\
                  service.concurrency: 2  # default\n\
                  service.metrics-dir: (not set)  # default\n\
                  service.metrics-listen: (not set)  # default\n\
                  service.stop-timeout: 5m  # default\n\
                  trust.allowed-signers: (not set)  # default\n\
                  trust.keys: []  # default\n\
                  trust.require-signature: false  # default\n\
                  trust.signing-key: (not set)  # default\n\
                  version: 1  # config.yaml:1:1";
    assert_eq!(shown(&config, dir.path()), expect);
}

const OFFICE: &str = "version: 1
defaults: {compress: zstd:9, encrypt-to: age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p, min-free: 2GiB}
service: {catch-up: 2h}
media:
  nas: {to: /nas}
";

#[test]
fn files_add_jobs_and_keys_to_jobs_and_show_has_what_is_set() {
    let (dir, path) = written(
        OFFICE,
        &[
            ("a.yaml", "jobs:\n  web:\n    domains: {names: [web, 'db-*']}\n    to: nas\n"),
            (
                "b.yaml",
                "jobs:\n  web:\n    schedule: [hourly, '30 2 * * 1,2']\n  all:\n    {domains: {all: true}, on: shutdown, to: [nas]}\n",
            ),
        ],
    );
    let config = load(&path).unwrap();
    let shown = shown(&config, dir.path());
    let jobs: Vec<_> = shown.lines().filter(|line| line.starts_with("jobs.web.")).collect();
    assert_eq!(
        jobs,
        [
            "jobs.web.disks.exclude: []  # default",
            "jobs.web.disks.include: []  # default",
            "jobs.web.domains.all: false  # default",
            "jobs.web.domains.except: []  # default",
            "jobs.web.domains.names: [web, db-*]  # conf.d/a.yaml:3:15",
            "jobs.web.domains.tags: []  # default",
            "jobs.web.enabled: true  # default",
            "jobs.web.jitter: 0  # default",
            "jobs.web.kind: full  # default",
            "jobs.web.on: []  # default",
            "jobs.web.schedule: [hourly, '30 2 * * 1,2']  # conf.d/b.yaml:3:5",
            "jobs.web.to: [nas]  # conf.d/a.yaml:4:5",
            "jobs.web.verify: []  # default",
        ]
    );
    assert!(shown.contains("jobs.all.on: [shutdown]  # conf.d/b.yaml:5:"), "{shown}");
    assert!(shown.contains("media.nas.to: /nas  # config.yaml:5:9"), "{shown}");
}

#[test]
fn a_job_has_its_own_keys_and_else_the_defaults() {
    let read = |job: &str| {
        let text = format!("{OFFICE}jobs: {{j: {{domains: {{tags: gold}}, schedule: daily, to: nas{job}}}}}");
        parse(&text, Path::new("c")).unwrap_or_else(|e| panic!("{e}"))
    };
    let config = read("");
    let job = config.job("j").unwrap();
    assert_eq!(job.settings, config.defaults);
    assert_eq!(job.catch_up.to_string(), "2h");
    assert_eq!(
        job.media.iter().map(|(name, medium)| (*name, medium.to.as_str())).collect::<Vec<_>>(),
        [("nas", "/nas")]
    );
    assert!(config.job("k").is_none() && config.job("").is_none());
    let config = read(", compress: none, catch-up: 0, min-free: 0, quiesce: yes, layout: full, workers: 3");
    let job = config.job("j").unwrap();
    let mut expect = config.defaults.clone();
    expect.compress = Compression::None;
    expect.min_free = "0".parse().unwrap();
    expect.quiesce = virtfold_config::QuiesceMode::Yes;
    expect.layout = Layout::Full;
    expect.workers = Some("3".parse().unwrap());
    assert_eq!(job.settings, expect);
    assert!(job.catch_up.is_zero());
    // Own recipients take the place of both keys of the defaults.
    let config = read(", recipients: /r");
    let job = config.job("j").unwrap();
    assert!(job.settings.encrypt_to.is_none());
    assert_eq!(job.settings.recipients.unwrap().as_path(), Path::new("/r"));
}

#[test]
fn domains_are_selected_by_name_tag_or_all_but() {
    let selects = |domains: &str, name: &str, tags: &[&str]| {
        let text = format!("{OFFICE}jobs: {{j: {{domains: {{{domains}}}, schedule: daily, to: nas}}}}");
        let config = parse(&text, Path::new("c")).unwrap_or_else(|e| panic!("{e}"));
        config.job("j").unwrap().job.domains.selects(name, tags)
    };
    assert!(selects("names: [web, 'db-*']", "db-1", &[]) && !selects("names: [web, 'db-*']", "web2", &[]));
    assert!(selects("tags: gold", "x", &["a", "gold"]) && !selects("tags: gold", "x", &["golden"]));
    assert!(selects("names: x, tags: gold", "x", &[]) && selects("names: x, tags: gold", "y", &["gold"]));
    assert!(selects("all: true, except: '*-test'", "web", &[]));
    assert!(!selects("all: true, except: '*-test'", "web-test", &["gold"]));
    assert!(!selects("tags: gold, except: web", "web", &["gold"]));
}

#[test]
fn credentials_are_read_from_a_file_of_ones_own() {
    let dir = folder();
    let path = dir.path().join("cloud.env");
    let write = |text: &str, mode| {
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        Environment::load(&path)
    };
    let read =
        write("# keys\n\nA_KEY=hunter2\r\nB = x\n".replace("B = x", "B=\"x y\"").as_str(), 0o600).unwrap();
    let expect = [("A_KEY".to_owned(), "hunter2".to_owned()), ("B".to_owned(), "x y".to_owned())];
    assert_eq!(read.as_slice(), expect);
    assert!(!format!("{read:?}").contains("hunter2"));
    for mode in [0o644, 0o642, 0o601, 0o640, 0o610] {
        let error = write("A=hunter2", mode).unwrap_err().to_string();
        assert!(error.contains("chmod ") && error.contains(&format!("mode {mode:04o}")), "{error}");
    }
    for bad in [
        "hunter2",
        "=hunter2",
        "1A=hunter2",
        "export A=hunter2",
        "A='hunter2",
        "A=x\nA=hunter2",
        "A=hunter2\0",
    ] {
        let error = write(bad, 0o600).unwrap_err().to_string();
        assert!(error.contains("line ") && !error.contains("hunter2"), "{error}");
    }
    assert!(Environment::load(&dir.path().join("none")).is_err());
}

#[test]
fn variables_that_change_what_programs_run_are_refused() {
    let dir = folder();
    let path = dir.path().join("cloud.env");
    let write = |name: &str| {
        fs::write(&path, format!("AWS_REGION=x\n{name}=hunter2\n")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        Environment::load(&path)
    };
    for name in ["LD_PRELOAD", "LD_AUDIT", "GCONV_PATH", "BASH_ENV", "ENV", "PATH", "PYTHONPATH", "PERL5LIB"]
    {
        let error = write(name).unwrap_err().to_string();
        assert!(error.contains(&format!("line 2 sets {name}")) && !error.contains("hunter2"), "{error}");
    }
    for name in ["AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY", "SSL_CERT_FILE", "VIRTFOLD_S3_PATIENCE", "PATHS"] {
        write(name).unwrap();
    }
}

#[test]
fn the_man_page_has_every_key_and_no_text_that_troff_would_take_for_a_command() {
    let page = man_page();
    assert!(page.starts_with(".") && page.contains(".TH VIRTFOLD.YAML 5"), "{page:.300}");
    let mut all = Vec::new();
    keys(&schema(), &[], &mut all);
    for path in all {
        let heading = path.join(".").replace(".*", ".NAME").replace('-', "\\-");
        assert!(page.lines().any(|line| line == format!(".SS {heading}")), "{heading}");
    }
    let known = [".TH", ".SH", ".SS", ".IP", ".PP", ".EX", ".EE", ".ie", ".el", ".ds"];
    for line in page.lines().filter(|line| line.starts_with(['.', '\''])) {
        assert!(known.iter().any(|command| line.starts_with(command)), "{line}");
    }
}

#[test]
fn what_others_may_write_is_refused() {
    let (dir, path) = written("version: 1\n", &[("a.yaml", "defaults:\n")]);
    load(&path).unwrap();
    let victims =
        [path.clone(), dir.path().join("conf.d"), dir.path().join("conf.d/a.yaml"), dir.path().into()];
    for (victim, mode) in victims.iter().flat_map(|victim| [(victim, 0o002), (victim, 0o020)]) {
        let before = fs::metadata(victim).unwrap().permissions();
        fs::set_permissions(victim, Permissions::from_mode(before.mode() | mode)).unwrap();
        let error = load(&path).unwrap_err().to_string();
        let repair = if mode == 0o002 { "o-w" } else { "g-w" };
        let repair = format!("; do 'chmod {repair} {}'", victim.display());
        assert!(error.starts_with(&format!("{}: may be written by ", victim.display())), "{error}");
        assert!(error.contains("owner ") && error.contains("mode ") && error.ends_with(&repair), "{error}");
        fs::set_permissions(victim, before).unwrap();
    }
    let exposed = tempfile::tempdir_in("/tmp").unwrap();
    let path = exposed.path().join("config.yaml");
    fs::write(&path, "version: 1\n").unwrap();
    let error = load(&path).unwrap_err().to_string();
    assert!(error.starts_with("/tmp: may be written by ") && error.contains("elsewhere"), "{error}");
}

/// What the configuration names decides as much as it does. Run as root, as the gate does.
#[test]
fn what_it_names_is_held_against_the_same_rule() {
    let named = folder();
    let program = named.path().join("program");
    let text = |job: &str, medium: &str| {
        format!(
            "version: 1\nmedia: {{m: {{to: 'tape:/dev/nst0'{medium}}}}}\njobs: {{j: {{domains: {{all: true}}, schedule: daily, to: m{job}}}}}\n"
        )
    };
    let shown = program.display();
    let (before, after) =
        (format!(", before: {{command: [{shown}]}}"), format!(", after: {{command: [{shown}]}}"));
    for (job, medium, key) in [
        (before.as_str(), String::new(), "jobs.j.before.command"),
        (after.as_str(), String::new(), "jobs.j.after.command"),
        (&format!(", recipients: {shown}"), String::new(), "jobs.j.recipients"),
        ("", format!(", change-command: '{shown} %d'"), "media.m.change-command"),
    ] {
        let (_dir, path) = written(&text(job, &medium), &[]);
        fs::write(&program, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        load(&path).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o775)).unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("`{key}`: '{shown}' may be written by its group")), "{error}");
        // One that is not there is told when it is needed.
        fs::remove_file(&program).unwrap();
        load(&path).unwrap();
    }
    let (_dir, path) = written(&text("", ", change-command: 'next-tape %d'"), &[]);
    let error = load(&path).unwrap_err().to_string();
    assert!(error.contains("is not the absolute path of a program"), "{error}");
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
        assert!(started.elapsed().as_secs() < 60, "{:.20}: {:?}", text, started.elapsed());
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
