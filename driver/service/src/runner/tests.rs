//! The runner with a script in this program's place.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::job_spec::{CommandSpec, GuestSelector};
use virtfold_base::error::ErrorKind;
use virtfold_catalog::queue::RunResult;
use virtfold_catalog::{Catalog, Journal};
use virtfold_config::CommandCondition;

#[derive(Debug)]
struct AllButVdb;

impl GuestSelector for AllButVdb {
    fn guest(&self, _: &GuestFacts) -> bool {
        true
    }

    fn disk(&self, target: &str) -> bool {
        target != "vdb"
    }

    fn leaves_out(&self, _: &GuestFacts) -> bool {
        false
    }
}

/// Notes its arguments and environment, and does what is in the file `play` beside it.
const SCRIPT: &str = r#"#!/bin/sh
here=$(dirname "$0")
echo "$*" >> "$here/called"
env | grep -E '^AWS_.*KEY' >> "$here/environment"
for verb in backup recover prune verify; do
    case " $* " in *" $verb "*) if [ -f "$here/$verb" ]; then . "$here/$verb"; fi; exit 0;; esac
done
"#;

struct Stage {
    folder: TempDir,
    runner: ProcessRunner,
    reports: Receiver<Input>,
    sender: Sender<Input>,
}

impl Stage {
    fn new() -> Self {
        // Files of variables are not read where others than their owner can write.
        let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tmp");
        let folder = tempfile::tempdir_in(virtfold_base::safe_path::trust::testing::closed(&place)).unwrap();
        let program = folder.path().join("virtfold");
        std::fs::write(&program, SCRIPT).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let state_dir = folder.path().join("state");
        let catalog = Arc::new(Catalog::open(&state_dir).unwrap());
        let config = Some(PathBuf::from("/etc/virtfold/config.yaml"));
        let paths = RunPaths { program, uri: "test:///".to_owned(), state_dir, config };
        let kind = |code| if code == 143 { ErrorKind::Interrupted } else { ErrorKind::NoSpace };
        let runner = ProcessRunner::new(paths, catalog, kind).unwrap();
        let (sender, reports) = unbounded();
        Self { folder, runner, reports, sender }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn play(&self, verb: &str, script: &str) {
        std::fs::write(self.path(verb), script).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn order(&self) -> RunOrder {
        let job = JobSpec {
            name: "nightly".to_owned(),
            enabled: true,
            pick: Arc::new(AllButVdb),
            calendars: Vec::new(),
            on: Vec::new(),
            jitter: Duration::ZERO,
            catch_up: Duration::ZERO,
            media: vec!["disk".to_owned()],
            options: vec!["--compress".into(), "none".into()],
            timeout: None,
            attempts: 1,
            delay: Duration::ZERO,
            before: None,
            after: None,
            prune: false,
            verify: Vec::new(),
        };
        let medium = MediumSpec {
            name: "disk".to_owned(),
            to: "/backup".into(),
            options: vec!["--pool".into(), "x".into()],
            concurrency: 1,
            environment: None,
        };
        let id = DomainId(uuid::Uuid::nil());
        let disks = vec!["vda".to_owned(), "vdb".to_owned()];
        let guest = GuestFacts { id, name: "web".to_owned(), tags: Vec::new(), disks, trouble: None };
        RunOrder { id: 7, job: Arc::new(job), media: vec![medium], guest }
    }

    fn start(&self, order: RunOrder) -> Box<dyn Handle> {
        self.runner.start(order, &self.sender).unwrap()
    }

    /// Waits for the end; what came before it is returned, too.
    fn end(&self) -> (RunResult, Vec<Input>) {
        let mut before = Vec::new();
        loop {
            match self.reports.recv_timeout(Duration::from_secs(60)).unwrap() {
                Input::Ended(7, result) => return (result, before),
                other => before.push(other),
            }
        }
    }

    fn wait_for(&self, name: &str) {
        let until = Instant::now() + Duration::from_secs(60);
        while !self.path(name).exists() {
            assert!(Instant::now() < until, "no {name}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn shell(line: &str, limit: Duration) -> CommandSpec {
    CommandSpec { words: ["sh", "-c", line].map(Into::into).to_vec(), limit }
}

/// A script that prints events.
fn script(events: &[serde_json::Value]) -> String {
    events.iter().map(|event| format!("cat <<'END'\n{event}\nEND\n")).collect()
}

/// A backup's summary, with `changes` over what a good one says.
fn summary(changes: serde_json::Value) -> serde_json::Value {
    let mut event = json!({
        "event": "summary", "domain": "web", "uuid": uuid::Uuid::nil(), "way": "online", "freeze": null,
        "left_out": [], "notes": [], "recovered": [], "total_seconds": 1.5, "archive": "/a",
        "id": uuid::Uuid::nil(), "archive_bytes": 5, "encrypted": false, "kind": "full", "root": "ab", "seconds": 1.0, "disks": [],
    });
    let serde_json::Value::Object(changes) = changes else { panic!() };
    event.as_object_mut().unwrap().extend(changes);
    event
}

fn recovered(domains: serde_json::Value) -> String {
    script(&[json!({"event": "summary", "domains": domains})])
}

fn no_room(message: &str) -> String {
    let event = json!({"event": "error", "kind": "no-space", "message": message, "hint": "free some"});
    format!("{}exit 8", script(&[event]))
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_good_run_is_told_with_its_archive_and_its_measure() {
    let stage = Stage::new();
    let progress = json!({
        "event": "progress", "phase": "copying", "done": 1, "total": 2, "bytes_per_second": 1, "seconds_left": 1,
    });
    let events = script(&[progress, summary(json!({"archive": "/backup/a.tar"}))]);
    stage.play("backup", &format!("echo 'virtfold: warning: something' >&2\n{events}"));
    let variables = stage.path("keys");
    std::fs::write(&variables, "# of the store\nAWS_ACCESS_KEY_ID=abc\nAWS_SECRET_ACCESS_KEY=\"d e\"\n")
        .unwrap();
    std::fs::set_permissions(&variables, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut order = stage.order();
    order.media[0].environment = Some(variables);
    let job = Arc::get_mut(&mut order.job).unwrap();
    let told = stage.path("told");
    job.before =
        Some(shell(&format!("echo before $VIRTFOLD_JOB $VIRTFOLD_DOMAIN > {}", told.display()), LONG));
    let after = shell(&format!("echo after $VIRTFOLD_RESULT $VIRTFOLD_ARCHIVES >> {}", told.display()), LONG);
    job.after = Some((after, CommandCondition::Success));
    drop(stage.start(order));
    let (result, before) = stage.end();
    assert_eq!(
        (result.kind, result.archives.as_slice()),
        (None, ["/backup/a.tar".to_owned()].as_slice()),
        "{result:?}"
    );
    let measure = result.measure.unwrap();
    assert_eq!((measure["archive_bytes"].as_u64(), measure["seconds"].as_f64()), (Some(5), Some(1.5)));
    assert!(before.iter().any(|input| matches!(input, Input::Progress(7, progress) if progress.total == 2)));
    assert_eq!(stage.read("told"), "before nightly web\nafter success /backup/a.tar\n");
    let called = stage.read("called");
    let parent = format!("--parent {} backup --json --state-dir ", std::process::id());
    assert!(called.starts_with(&parent), "{called}");
    let uuid = "00000000-0000-0000-0000-000000000000";
    let rest = format!("{uuid} --connect test:/// --config ");
    assert!(called.contains(&rest), "{called}");
    assert!(called.trim_end().ends_with("--compress none --to /backup --pool x --exclude vdb"), "{called}");
    assert_eq!(stage.read("environment"), "AWS_ACCESS_KEY_ID=abc\nAWS_SECRET_ACCESS_KEY=d e\n");
}

#[test]
fn a_failed_run_is_recovered_and_told_in_its_own_words() {
    let stage = Stage::new();
    stage.play("backup", &no_room("no room: it is full"));
    let web = json!({
        "domain": "0", "name": "web", "job": null, "verdict": "undecided", "found": [], "done": [],
        "remains": ["look at it"], "disks": [],
    });
    stage.play("recover", &format!("{}exit 1", recovered(json!([web]))));
    drop(stage.start(stage.order()));
    let (result, _) = stage.end();
    assert_eq!((result.kind, result.exit_code), (Some(ErrorKind::NoSpace), Some(8)));
    assert_eq!(result.sentence, "no room: it is full; the guest 'web' needs attention: look at it");
    assert_eq!(result.hint.as_deref(), Some("free some"));
    assert_eq!(stage.read("called").lines().count(), 2);
}

/// Exit code 0 is not enough: a report that is missing, or in other words, is no good backup.
#[test]
fn a_run_without_a_report_is_no_good_backup() {
    let mut other = summary(json!({}));
    other.as_object_mut().unwrap().remove("archive");
    for (said, word) in [("true".to_owned(), "said nothing"), (script(&[other]), "`archive`")] {
        let stage = Stage::new();
        stage.play("backup", &said);
        stage.play("recover", &recovered(json!([])));
        drop(stage.start(stage.order()));
        let (result, _) = stage.end();
        assert_eq!((result.kind, result.exit_code), (Some(ErrorKind::Internal), Some(0)), "{result:?}");
        assert!(result.sentence.contains(word), "{result:?}");
    }
}

#[test]
fn a_good_archive_of_a_guest_that_a_recovery_brings_home_is_good() {
    let stage = Stage::new();
    let away = json!({"sentence": "libvirtd was away", "hint": "start it", "kind": "refused"});
    stage.play("backup", &format!("{}exit 10", script(&[summary(json!({"thaw_failure": away}))])));
    stage.play("recover", &recovered(json!([])));
    drop(stage.start(stage.order()));
    let (result, _) = stage.end();
    assert_eq!(result.kind, None, "{result:?}");
    assert!(
        result.sentence.contains("libvirtd was away; a recovery put the guest back on its disks"),
        "{result:?}"
    );
    // One copy of two is missing: that is a failure.
    let copies = json!([
        {"to": "x", "archive": "/a", "failure": null, "hint": null},
        {"to": "s3://b", "archive": null, "failure": "no key", "hint": null, "kind": "denied"},
    ]);
    stage.play("backup", &format!("{}exit 1", script(&[summary(json!({"copies": copies}))])));
    drop(stage.start(stage.order()));
    let (result, _) = stage.end();
    assert_eq!(result.sentence, "no copy in 's3://b': no key");
}

#[test]
fn a_run_is_asked_to_end_and_then_killed() {
    let stage = Stage::new();
    let begun = stage.path("begun");
    let script =
        |trap: &str| format!("trap '{trap}' TERM; echo > {}; while :; do sleep 0.05; done", begun.display());
    stage.play("backup", &script("exit 143"));
    let handle = stage.start(stage.order());
    stage.wait_for("begun");
    handle.end();
    let (result, _) = stage.end();
    assert_eq!((result.kind, result.exit_code), (Some(ErrorKind::Interrupted), Some(143)));
    std::fs::remove_file(&begun).unwrap();
    stage.play("backup", &script(":"));
    let handle = stage.start(stage.order());
    stage.wait_for("begun");
    handle.end();
    handle.kill();
    let (result, _) = stage.end();
    assert_eq!((result.kind, result.exit_code), (Some(ErrorKind::Interrupted), None));
    assert!(stage.read("called").lines().last().unwrap().contains("recover"));
    // Asked before it has begun, it never does.
    let mut order = stage.order();
    Arc::get_mut(&mut order.job).unwrap().before = Some(shell("sleep 1000 & wait", LONG));
    let handle = stage.start(order);
    handle.end();
    let (result, _) = stage.end();
    assert_eq!(result.kind, Some(ErrorKind::Interrupted));
    assert_eq!(stage.read("called").lines().filter(|line| line.contains(" backup ")).count(), 2);
}

#[test]
fn a_command_before_that_fails_or_takes_too_long_ends_the_run() {
    let stage = Stage::new();
    for (line, limit, word) in [
        ("echo no tape in the drive >&2; exit 3", LONG, "no tape in the drive"),
        ("sleep 1000", Duration::from_millis(200), "timed out after 0 s"),
    ] {
        let mut order = stage.order();
        let job = Arc::get_mut(&mut order.job).unwrap();
        job.before = Some(shell(line, limit));
        job.after = Some((shell("exit 4", LONG), CommandCondition::Always));
        drop(stage.start(order));
        let (result, _) = stage.end();
        assert_eq!(result.kind, Some(ErrorKind::Io));
        assert!(
            result.sentence.contains(word) && result.sentence.contains("its `after` command"),
            "{result:?}"
        );
    }
    assert_eq!(stage.read("called"), "", "nothing was begun");
}

/// What a script prints is how it explains itself, wherever it prints it.
#[test]
fn a_command_before_is_repeated_in_its_failure_with_both_outputs() {
    let stage = Stage::new();
    for (line, limit) in [
        ("for n in 1 2 3 4 5 6; do echo said $n; done; echo no tape >&2; exit 3", LONG),
        ("echo said 6; echo no tape >&2; sleep 1000", Duration::from_millis(500)),
    ] {
        let mut order = stage.order();
        Arc::get_mut(&mut order.job).unwrap().before = Some(shell(line, limit));
        drop(stage.start(order));
        let (result, _) = stage.end();
        let said = &result.sentence;
        assert!(said.contains("said 6") && said.contains("no tape") && !said.contains("said 1"), "{said}");
    }
}

#[test]
fn the_command_after_is_told_what_went_wrong_and_what_to_do() {
    let stage = Stage::new();
    let told = stage.path("told");
    let print = format!(
        "set -u; printf '%s;' \"$VIRTFOLD_RESULT\" \"$VIRTFOLD_ERROR\" \"$VIRTFOLD_HINT\" \"$VIRTFOLD_EXIT_CODE\" > {}",
        told.display()
    );
    let order = || {
        let mut order = stage.order();
        Arc::get_mut(&mut order.job).unwrap().after = Some((shell(&print, LONG), CommandCondition::Always));
        order
    };
    stage.play("backup", &no_room("no \0room"));
    stage.play("recover", &recovered(json!([])));
    drop(stage.start(order()));
    stage.end();
    assert_eq!(stage.read("told"), "failure;no room;free some;8;");
    stage.play("backup", &script(&[summary(json!({}))]));
    drop(stage.start(order()));
    stage.end();
    assert_eq!(stage.read("told"), "success;;;0;");
    let mut unbegun = order();
    Arc::get_mut(&mut unbegun.job).unwrap().before = Some(shell("exit 1", LONG));
    drop(stage.start(unbegun));
    stage.end();
    let read = stage.read("told");
    assert!(read.starts_with("failure;the backup was not started: ") && read.ends_with(";;;"), "{read}");
}

#[test]
fn variables_of_others_are_refused_and_no_line_of_them_is_told() {
    let stage = Stage::new();
    let variables = stage.path("keys");
    for (mode, text, word) in
        [(0o644, "A=b", "can't be used"), (0o600, "A=b\nverysecret\n", "line 2 is not NAME=VALUE")]
    {
        std::fs::write(&variables, text).unwrap();
        std::fs::set_permissions(&variables, std::fs::Permissions::from_mode(mode)).unwrap();
        let mut order = stage.order();
        order.media[0].environment = Some(variables.clone());
        drop(stage.start(order));
        let (result, _) = stage.end();
        assert_eq!(result.kind, Some(ErrorKind::Usage));
        assert!(result.sentence.contains(word) && !result.sentence.contains("verysecret"), "{result:?}");
    }
}

/// Both media are written to by one process: one of them would be written to with the other one's keys.
#[test]
fn media_that_give_one_variable_different_values_are_refused() {
    let stage = Stage::new();
    let order = |second: &str| {
        let mut order = stage.order();
        order.media.push(MediumSpec { name: "cloud".to_owned(), ..order.media[0].clone() });
        for (medium, (file, text)) in
            order.media.iter_mut().zip([("keys", "AWS_REGION=x\nAWS_SECRET_KEY=first\n"), ("more", second)])
        {
            let path = stage.path(file);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            medium.environment = Some(path);
        }
        order
    };
    drop(stage.start(order("AWS_SECRET_KEY=second\n")));
    let (result, _) = stage.end();
    assert_eq!(result.kind, Some(ErrorKind::Usage));
    for word in ["'disk'", "'cloud'", "AWS_SECRET_KEY", "/keys'", "/more'"] {
        assert!(result.sentence.contains(word), "no {word} in {result:?}");
    }
    for word in ["first", "second"] {
        assert!(!format!("{result:?}").contains(word), "{result:?}");
    }
    assert_eq!(stage.read("called"), "", "nothing was begun");
    // The same value is no contradiction, and a name that one of them has is the run's.
    drop(stage.start(order("AWS_SECRET_KEY='first'\nAWS_OTHER_KEY=o\n")));
    stage.end();
    let environment = stage.read("environment");
    let mut lines: Vec<_> = environment.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["AWS_OTHER_KEY=o", "AWS_SECRET_KEY=first"]);
}

#[test]
fn recoveries_and_prunes_are_told_and_locks_are_seen() {
    let stage = Stage::new();
    let error = json!({"event": "error", "kind": "refused", "message": "libvirt is not there"});
    stage.play("recover", &format!("{}exit 10", script(&[error])));
    stage.runner.recover(&stage.sender);
    let Input::Recovered(Err(error)) = stage.reports.recv_timeout(LONG).unwrap() else { panic!() };
    assert_eq!(error.to_string(), "libvirt is not there");
    let order = |chore| ChoreOrder {
        chore,
        job: "nightly".to_owned(),
        media: stage.order().media,
        metrics_dir: None,
    };
    stage.runner.chore(order(Chore::Prune), &stage.sender);
    let Input::ChoreDone(Chore::Prune, job, Ok(())) = stage.reports.recv_timeout(LONG).unwrap() else {
        panic!()
    };
    assert_eq!(job, "nightly");
    let called = stage.read("called");
    assert!(called.ends_with("--config /etc/virtfold/config.yaml -- nightly\n"), "{called}");
    let unsound = json!({"archive": "/backup/a.tar", "sound": false, "faults": ["replaced: its id"]});
    let failed = json!({"archive": "/backup/b.tar", "sentence": "not found"});
    let report = json!({"event": "summary", "verified": [unsound], "failed": [failed]});
    stage.play("verify", &format!("{}exit 3", script(&[report])));
    let mut verify = ChoreOrder { metrics_dir: Some("/metrics".into()), ..order(Chore::Verify) };
    let tape = MediumSpec { to: "tape:/dev/nst0".into(), ..verify.media[0].clone() };
    verify.media.insert(0, tape);
    stage.runner.chore(verify, &stage.sender);
    let Input::ChoreDone(Chore::Verify, _, Err(error)) = stage.reports.recv_timeout(LONG).unwrap() else {
        panic!()
    };
    let told = "'/backup/a.tar' is not sound: replaced: its id; '/backup/b.tar': not found";
    assert!(error.to_string().ends_with(told), "{error}");
    let called = stage.read("called");
    assert!(
        called.ends_with("/backup --due 30d --config /etc/virtfold/config.yaml --metrics-dir /metrics\n")
            && !called.contains("tape:"),
        "{called}"
    );
    let domain = DomainId(uuid::Uuid::nil());
    assert_eq!(stage.runner.busy(domain), None);
    let other = Catalog::open(Path::new(&stage.path("state"))).unwrap();
    let held = other.lock(domain).unwrap();
    assert!(stage.runner.busy(domain).unwrap().contains("is working"));
    drop(held);
    assert_eq!(stage.runner.busy(domain), None);
}
