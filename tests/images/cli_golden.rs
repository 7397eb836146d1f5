//! What virtfold prints, to the letter: the help of every verb, typical errors, typical reports.
//!
//! `tests/golden/<name>.txt` holds each; `UPDATE_GOLDEN=1 cargo test --test images cli_golden::` writes them
//! anew, and the difference is then a matter of review. Paths, ids, times and rates are replaced by words.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::common::archive::{backup, backup_args};
use crate::common::image::{Format, Image};
use crate::common::run::{Outcome, run, text, virtfold};
use crate::common::scratch::Scratch;
use crate::common::service::{answer_at, bad_night, entry, status};
use serde_json::{Value, json};

/// The verbs that have a help of their own.
const VERBS: [&str; 24] = [
    "backup", "restore", "verify", "audit", "list", "show", "table", "map", "tape", "domains", "recover",
    "prune", "pin", "unpin", "forget", "key", "config", "serve", "status", "queue", "run", "pause", "resume",
    "cancel",
];
/// The verbs of tapes.
const TAPE_VERBS: [&str; 5] = ["status", "label", "list", "verify", "erase"];

/// What differs from run to run, by its shape: `d` stands for a digit, `h` for a hexadecimal one.
const SHAPES: [(&str, &str); 5] = [
    ("hhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhh", "[DIGEST]"),
    ("hhhhhhhh-hhhh-hhhh-hhhh-hhhhhhhhhhhh", "[ID]"),
    ("-ddddddddTddddddZ-hhhhhhhh.tar", "-[STAMP]-[ID8].tar"),
    ("dddd-dd-dd dd:dd:dd +dd:dd", "[TIME]"),
    (" in d.d s", " in [SECONDS] s"),
];

/// Replaces what differs from run to run.
fn normalised(output: &str, scratch: &Path) -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let mut output = output
        .replace(text(scratch), "[FOLDER]")
        .replace(&format!(" on {} by ", host.trim()), " on [HOST] by ")
        .replace(concat!("virtfold ", env!("CARGO_PKG_VERSION")), "virtfold [VERSION]");
    for (shape, word) in SHAPES {
        output = replace_shape(&output, shape, word);
    }
    let lines: Vec<&str> = output.lines().map(str::trim_end).collect();
    lines.join("\n") + "\n"
}

/// Puts `word` wherever `output` has the shape.
fn replace_shape(output: &str, shape: &str, word: &str) -> String {
    let fits = |(actual, wanted): (u8, u8)| match wanted {
        b'd' => actual.is_ascii_digit(),
        b'h' => actual.is_ascii_hexdigit(),
        _ => actual == wanted,
    };
    let mut out = String::new();
    let mut rest = output;
    while let Some(c) = rest.chars().next() {
        let here = rest.as_bytes().get(..shape.len());
        if here.is_some_and(|here| here.iter().copied().zip(shape.bytes()).all(fits)) {
            out.push_str(word);
            rest = &rest[shape.len()..];
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

/// Compares with, or writes, the golden file `name`.
fn golden(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, actual).unwrap();
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(
        expected == actual,
        "{} differs\n--- expected\n{expected}--- actual\n{actual}--- UPDATE_GOLDEN=1 takes it over",
        path.display()
    );
}

/// Exit code and both outputs as one text.
fn transcript(outcome: &Outcome, scratch: &Path) -> String {
    let out = normalised(outcome.text(), scratch);
    let err = normalised(&outcome.stderr, scratch);
    format!("exit {}\n--- stdout\n{}--- stderr\n{}", outcome.shell_code(), out, err)
}

#[test]
fn helps() {
    let here = Path::new("/nowhere-at-all");
    let wide = |args: &[&str]| run(virtfold(args).env("COLUMNS", "100"));
    golden("help", &transcript(&wide(&["--help"]), here));
    golden("version", &transcript(&wide(&["--version"]), here));
    for verb in ["show", "new", "trust"] {
        golden(&format!("help-key-{verb}"), &transcript(&wide(&["key", verb, "--help"]), here));
    }
    for verb in VERBS {
        golden(&format!("help-{verb}"), &transcript(&wide(&[verb, "--help"]), here));
    }
    for verb in TAPE_VERBS {
        golden(&format!("help-tape-{verb}"), &transcript(&wide(&["tape", verb, "--help"]), here));
    }
}

#[test]
fn errors() {
    let scratch = Scratch::new("golden-errors");
    let here = scratch.path();
    let image = Image::create(scratch.join("disk.qcow2"), Format::Qcow2, "", 1 << 20);
    let archives = scratch.folder("archives");
    let say = |name: &str, args: &[&str]| golden(name, &transcript(&run(&mut virtfold(args)), here));
    say("error-no-verb", &[]);
    say("error-unknown-verb", &["fold"]);
    say("error-backup-without-format", &["backup", "--image", image.text(), "--to", text(&archives)]);
    say(
        "error-backup-wrong-format",
        &["backup", "--image", image.text(), "--format", "vmdk", "--to", text(&archives)],
    );
    let missing = Image::new(scratch.join("missing.qcow2"), Format::Qcow2);
    say("error-backup-missing-image", &backup_args(&missing, text(&archives), &[]));
    say("error-backup-missing-folder", &backup_args(&image, text(&scratch.join("nowhere")), &[]));
    say("error-backup-block-size", &backup_args(&image, text(&archives), &["--block-size", "5000"]));
    say("error-backup-compress", &backup_args(&image, text(&archives), &["--compress", "lzma"]));
    say("error-backup-nothing", &["backup", "--to", text(&archives)]);
    say(
        "error-backup-domain-and-image",
        &["backup", "web", "--image", image.text(), "--format", "qcow2", "--plan"],
    );
    say("error-backup-image-plan", &["backup", "--image", image.text(), "--format", "qcow2", "--plan"]);
    say("error-backup-pause-budget", &["backup", "web", "--to", text(&archives), "--pause-budget", "2m"]);
    say("error-verify-missing", &["verify", text(&scratch.join("missing.tar"))]);
    let rubbish = scratch.join("rubbish.tar");
    fs::write(&rubbish, [b'x'; 2048]).unwrap();
    say("error-verify-rubbish", &["verify", text(&rubbish)]);
    say("error-map-rubbish", &["map", text(&rubbish), "--format", "qcow2"]);
    say("error-list-missing", &["list", text(&scratch.join("nowhere"))]);
}

/// With `--json` a failure is an event like everything else, and the text for people stays on standard error.
#[test]
fn a_failure_is_an_event_for_programs() {
    let scratch = Scratch::new("golden-event");
    let missing = scratch.join("no.tar");
    let failed = run(&mut virtfold(["show", text(&missing), "--json"]));
    assert_eq!(failed.shell_code(), 9, "{}", failed.stderr);
    let event = failed.json();
    assert_eq!((&event["event"], &event["kind"]), (&json!("error"), &json!("not-found")));
    let message = event["message"].as_str().unwrap();
    assert!(message.contains("no.tar") && failed.stderr.contains(message), "{message}: {}", failed.stderr);
    assert_eq!(run(&mut virtfold(["show", text(&missing)])).text(), "");
}

#[test]
fn configurations() {
    let scratch = Scratch::new("golden-config");
    let here = scratch.path();
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/config-tape-rotation.yaml");
    let file = scratch.join("config.yaml");
    fs::copy(&sample, &file).unwrap();
    let say = |name: &str, verb: &str| {
        golden(name, &transcript(&run(&mut virtfold(["config", verb, "--config", text(&file)])), here));
    };
    say("config-check", "check");
    say("config-show", "show");
    let cloud = |to: &str| {
        let credentials = scratch.join("cloud.env");
        fs::write(&credentials, "AWS_ACCESS_KEY_ID=hunter2\n").unwrap();
        fs::set_permissions(&credentials, fs::Permissions::from_mode(0o644)).unwrap();
        let medium = format!("{{ to: '{to}', environment-file: {} }}", credentials.display());
        fs::write(&file, format!("version: 1\nmedia:\n  cloud: {medium}\n")).unwrap();
    };
    cloud("s3://x/vm");
    say("error-config-bucket", "check");
    cloud("s3://bucket/vm");
    say("error-config-credentials", "check");
}

/// What is said of tapes where there is no drive.
#[test]
fn tape_errors() {
    let scratch = Scratch::new("golden-tapes");
    let here = scratch.path();
    let state = scratch.join("state");
    let say = |name: &str, args: &[&str]| {
        let mut command = virtfold(args);
        command.env("VIRTFOLD_STATE_DIR", &state);
        golden(name, &transcript(&run(&mut command), here));
    };
    let none = "tape:/nowhere/nst0";
    say("error-tape-no-drive", &["tape", "status", none]);
    say("error-tape-no-device", &["tape", "status", "tape:/dev/null"]);
    say("error-tape-rewinding", &["tape", "status", "tape:/dev/st0"]);
    say("error-tape-is-none", &["tape", "list", "/backup"]);
    say("error-tape-bad-label", &["tape", "label", none, "not a label"]);
    say("error-tape-block-size", &["tape", "label", none, "VF0001", "--block-size", "2MiB"]);
    say("error-tape-archive-for-tape", &["tape", "list", "tape:/dev/nst0#latest"]);
    say("error-tape-no-archive", &["restore", none, "--output", text(here)]);
    say("error-tape-change-command", &["verify", "tape:/nowhere/nst0#latest", "--change-command", "mtx %z"]);
    say("error-tape-change-timeout", &["verify", "tape:/nowhere/nst0#latest", "--change-timeout", "5"]);
}

/// What the verbs of domains say where no libvirt is asked.
#[test]
fn connection_errors() {
    let scratch = Scratch::new("golden-connection");
    let domains = |uri: &str| run(&mut virtfold(["domains", "--connect", uri]));
    let say = |name: &str, outcome: &Outcome| golden(name, &transcript(outcome, scratch.path()));
    if cfg!(feature = "libvirt") {
        say("error-connect-remote", &domains("qemu+ssh://root@host/system"));
        let socket = format!("qemu+unix:///system?socket={}", text(&scratch.join("nobody")));
        say("error-connect-nobody", &domains(&socket));
        let mut command = virtfold(["domains"]);
        command.env_remove("VIRTFOLD_CONNECT").env("LIBVIRT_DEFAULT_URI", "xen:///system");
        say("error-connect-environment", &run(&mut command));
    } else {
        say("error-without-libvirt", &domains("qemu:///system"));
    }
}

#[test]
fn restore_errors() {
    let scratch = Scratch::new("golden-restore");
    let image = Image::create(scratch.join("disk.qcow2"), Format::Qcow2, "", 1 << 20);
    image.io(&["write -P 1 64k 64k"]);
    let archive = backup(&image, &scratch.folder("archives"), &[]);
    let say =
        |name: &str, args: &[&str]| golden(name, &transcript(&run(&mut virtfold(args)), scratch.path()));
    let to = |disk: &str, name: &str| format!("{disk}={}", text(&scratch.join(name)));
    say("error-restore-no-target", &["restore", text(&archive)]);
    say("error-restore-unknown-disk", &["restore", text(&archive), "--disk", &to("vdx", "out.qcow2")]);
    say("error-restore-exists", &["restore", text(&archive), "--disk", &to("vda", "disk.qcow2")]);
    let folder = scratch.join("out");
    let both = ["restore", text(&archive), "--disk", &to("vda", "out.qcow2"), "--output", text(&folder)];
    say("error-restore-output-and-disk", &both);
    say(
        "error-restore-name-without-define",
        &["restore", text(&archive), "--output", text(&folder), "--name", "web2"],
    );
    say(
        "error-restore-define-remote",
        &["restore", text(&archive), "--define", "-c", "qemu+ssh://host/system"],
    );
    let raw = ["--format", "raw", "--method", "remap"];
    let disk = to("vda", "out.raw");
    say("error-restore-remap-raw", &[&["restore", text(&archive), "--disk", &disk], &raw[..]].concat());
}

/// A verb that asks the service, at a socket.
fn ask(socket: &Path, args: &[&str]) -> Outcome {
    let mut command = virtfold(args);
    command.args(["--socket", text(socket)]);
    run(&mut command)
}

/// The verbs that ask the service, where there is none, and where it answers.
#[test]
fn control_verbs() {
    let scratch = Scratch::new("golden-control");
    let here = scratch.path();
    let socket = |name: &str| scratch.join(name);
    let say = |name: &str, outcome: &Outcome| golden(name, &transcript(outcome, here));
    say("error-no-service", &ask(&socket("nobody.sock"), &["status"]));
    answer_at(&socket("well"), |_| json!({"answer": {"status": status(&json!({}))}}));
    say("status", &ask(&socket("well"), &["status"]));
    let machine = ask(&socket("well"), &["status", "--json"]).ok().json();
    assert_eq!((&machine["event"], &machine["domains"][1]["archive"]), (&json!("summary"), &Value::Null));
    assert_eq!(machine["domains"][1]["last_success"]["archive_bytes"], 42_u64 << 30);
    answer_at(&socket("bad"), |_| json!({"answer": {"status": bad_night()}}));
    say("status-bad-night", &ask(&socket("bad"), &["status"]));

    answer_at(&socket("queue"), |_| {
        let now = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
        let failure =
            json!({"at": now, "job": "nightly", "kind": "io", "sentence": "the drive says no", "hint": null});
        let (due, later) = (json!({"due": now - 630}), now + 630);
        let entries = [
            json!({"due": now - 630, "state": "running", "started": now - 600, "trigger": "request", "attempts": 1}),
            json!({"due": now - 630, "waits_for": "the drive /dev/nst0 is in use", "trigger": {"event": "shutdown\u{1b}[2J"}}),
            json!({"due": now - 630, "not_before": later, "failure": failure, "attempts": 2, "trigger": "catch-up"}),
            due,
        ];
        let entries = entries.iter().zip(9..).map(|(more, id)| entry(id, "web", more));
        json!({"answer": {"queue": entries.collect::<Vec<_>>()}})
    });
    say("queue", &ask(&socket("queue"), &["queue"]));
    answer_at(&socket("idle"), |_| json!({"answer": {"queue": []}}));
    say("queue-empty", &ask(&socket("idle"), &["queue"]));
}

/// What the verbs that change something ask, and what they say of it.
#[test]
fn control_changes() {
    let scratch = Scratch::new("golden-changes");
    let socket = scratch.join("control.sock");
    let asked = answer_at(&socket, |ask| match ask["cancel"]["id"].as_i64() {
        None if ask.get("entry").is_some() => {
            let state = if ask["entry"]["id"] == 17 { "cancelled" } else { "ending" };
            json!({"answer": {"entry": entry(17, "web", &json!({"state": state}))}})
        }
        Some(99) => {
            json!({"error": {"kind": "not-found", "sentence": "there is no entry 99", "hint": "'virtfold queue' lists them"}})
        }
        _ => json!({"answer": "done"}),
    });
    let cases: [(&str, &[&str], Value); 7] = [
        ("pause", &["pause"], json!({"pause": {}})),
        ("pause-job", &["pause", "nightly"], json!({"pause": {"job": "nightly"}})),
        ("resume", &["resume"], json!({"resume": {}})),
        ("resume-job", &["resume", "nightly", "--json"], json!({"resume": {"job": "nightly"}})),
        ("cancel", &["cancel", "17"], json!({"cancel": {"id": 17}})),
        ("cancel-running", &["cancel", "18"], json!({"cancel": {"id": 18}})),
        ("cancel-unknown", &["cancel", "99"], json!({"cancel": {"id": 99}})),
    ];
    for (name, args, ask_) in cases {
        golden(name, &transcript(&ask(&socket, args), scratch.path()));
        let asked: Vec<_> = asked.try_iter().filter(|ask| ask.get("entry").is_none()).collect();
        assert_eq!(asked, [ask_], "{name}");
    }
}

/// `run`, alone and waiting: two entries of which one fails once and one for good, and a service that is away
/// in between.
#[test]
fn control_runs() {
    let scratch = Scratch::new("golden-run");
    let socket = scratch.join("control.sock");
    let looks = std::sync::atomic::AtomicU32::new(0);
    let asked = answer_at(&socket, move |ask| {
        if ask.get("run").is_some() {
            return json!({"answer": {"entries": [17, 18]}});
        }
        let look = looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let failure = json!({"at": 60, "job": "nightly", "kind": "no-space", "sentence": "no room in '/backup'", "hint": "make some"});
        let more = match (ask["entry"]["id"].as_i64().unwrap(), look) {
            (_, 0..4) => json!({"trigger": "request"}),
            (17, 4) => json!({"state": "running", "attempts": 1}),
            (17, 5) => {
                return json!({"error": {"kind": "in-use", "sentence": "32 connections are open already"}});
            }
            (17, 6) => json!({"state": "waiting", "attempts": 1, "failure": failure}),
            (17, _) => {
                json!({"state": "succeeded", "attempts": 2, "started": 100, "ended": 190, "archives": ["/backup/web.tar"]})
            }
            _ => json!({"state": "failed", "attempts": 3, "started": 100, "ended": 161, "failure": failure}),
        };
        json!({"answer": {"entry": entry(ask["entry"]["id"].as_i64().unwrap(), "web", &more)}})
    });
    golden("run", &transcript(&ask(&socket, &["run", "nightly"]), scratch.path()));
    assert_eq!(asked.recv().unwrap(), json!({"run": {"job": "nightly"}}));
    let waited = ask(&socket, &["run", "nightly", "web", "--wait"]);
    golden("run-wait", &transcript(&waited, scratch.path()));
    let runs: Vec<_> = asked.try_iter().filter(|ask| ask.get("run").is_some()).collect();
    assert_eq!(runs, [json!({"run": {"job": "nightly", "domain": "web"}})]);
}

/// Takes off the archive's last quarter.
fn cut(archive: &Path) {
    let file = fs::OpenOptions::new().write(true).open(archive).unwrap();
    file.set_len(file.metadata().unwrap().len() / 4 * 3).unwrap();
}

#[test]
fn reports() {
    let scratch = Scratch::new("golden-reports");
    let here = scratch.path();
    let image =
        Image::create(scratch.join("disk.qcow2"), Format::Qcow2, "compat=1.1,cluster_size=65536", 8 << 20);
    image.io(&["write -P 1 64k 128k", "write -P 2 4M 64k", "write -z 5M 64k"]);
    let archive = backup(&image, &scratch.folder("archives"), &["--compress", "none"]);
    let say = |name: &str, args: &[&str]| golden(name, &transcript(&run(&mut virtfold(args)).ok(), here));
    say("map", &["map", image.text(), "--format", "qcow2"]);
    say("map-json", &["map", image.text(), "--format", "qcow2", "--json"]);
    say("table", &["table", text(&archive), "--disk", "vda"]);
    say("table-csv", &["table", text(&archive), "--disk", "vda", "--csv"]);
    say("show", &["show", text(&archive)]);
    say("verify", &["verify", text(&archive)]);
    say("list", &["list", text(&scratch.join("archives"))]);
    let disk = format!("vda={}", text(&scratch.join("again.qcow2")));
    say("restore", &["restore", text(&archive), "--disk", &disk]);
    cut(&archive);
    golden("verify-cut", &transcript(&run(&mut virtfold(["verify", text(&archive)])), here));
    golden("list-cut", &transcript(&run(&mut virtfold(["list", text(&scratch.join("archives"))])), here));
    let partial = ["restore", text(&archive), "--disk", &disk, "--partial", "--force"];
    golden("restore-cut", &transcript(&run(&mut virtfold(partial)), here));
}

/// Old archives of a directory, what would go and what goes; and what makes no sense.
#[test]
fn prunes() {
    let scratch = Scratch::new("golden-prune");
    let image = Image::create(scratch.join("disk.qcow2"), Format::Qcow2, "compat=1.1", 1 << 20);
    image.io(&["write -P 1 64k 128k"]);
    let archives = scratch.folder("archives");
    for _ in 0..3 {
        backup(&image, &archives, &["--compress", "none"]);
    }
    fs::write(archives.join("rescued\u{1b}.tar"), [b'x'; 2048]).unwrap();
    let config = scratch.join("config.yaml");
    let yaml = "version: 1\nmedia: { nas: { to: /nowhere } }\njobs:\n  nightly: { domains: { all: true }, schedule: manual, to: nas }\n";
    fs::write(&config, yaml).unwrap();
    let state = scratch.join("state");
    let say = |name: &str, args: &[&str]| {
        let mut command = virtfold([&["prune"], args].concat());
        golden(name, &transcript(&run(command.env("VIRTFOLD_STATE_DIR", &state)), scratch.path()));
    };
    let place = ["--place", text(&archives)];
    say("prune-not-recorded", &[&place[..], &["--keep-last", "2"]].concat());
    run(virtfold(["list", "--remember", text(&archives)]).env("VIRTFOLD_STATE_DIR", &state)).ok();
    let with = |more: &[&'static str]| [&place[..], more].concat();
    say("prune-dry-run", &with(&["--keep-last", "2", "--dry-run"]));
    say("prune", &with(&["--keep-last", "2"]));
    say("prune-again", &with(&["--keep-last", "2"]));
    say("error-prune-no-rule", &place);
    say("error-prune-zero", &with(&["--keep-last", "0"]));
    say("error-prune-job-and-place", &with(&["nightly"]));
    say("error-prune-tape", &["--place", "tape:/dev/nst0", "--keep-last", "2"]);
    say("error-prune-no-job", &["--config", text(&config), "weekly"]);
    say("error-prune-keeps-all", &["--config", text(&config), "nightly"]);
    say("error-prune-nothing-to-do", &["--config", text(&config)]);
}
