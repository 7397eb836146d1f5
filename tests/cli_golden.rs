//! What virtfold prints, to the letter: the help of every verb, typical errors, typical reports.
//!
//! `tests/golden/<name>.txt` holds each; `UPDATE_GOLDEN=1 cargo test --test cli_golden` writes them anew, and the
//! difference is then a matter of review. Paths, ids, times and rates are replaced by words.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "a test program has no public items")]

mod common;

use std::fs;
use std::path::Path;

use common::archive::{backup, backup_args};
use common::image::{Format, Image};
use common::run::{Outcome, run, text, virtfold};
use common::scratch::Scratch;

/// The verbs that have a help of their own.
const VERBS: [&str; 12] = [
    "backup", "restore", "verify", "list", "show", "table", "map", "tape", "domains", "recover", "prune", "config",
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
    say("error-tape-partial", &["restore", "tape:/nowhere/nst0#latest", "--output", text(here), "--partial"]);
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
