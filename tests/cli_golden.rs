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
const VERBS: [&str; 7] = ["backup", "restore", "verify", "list", "show", "table", "map"];

/// Replaces what differs from run to run.
fn normalised(output: &str, scratch: &Path) -> String {
    let output = output.replace(text(scratch), "[FOLDER]").replace(env!("CARGO_PKG_VERSION"), "[VERSION]");
    let lines: Vec<String> = output.lines().map(|line| words_of(line).trim_end().to_owned()).collect();
    lines.join("\n") + "\n"
}

/// One line with ids, times, sizes of archives and rates replaced. Digests are 64 hexadecimal digits, ids 36 or
/// 8, a stamp is `20260131T235959Z`; nothing else in the output looks like these.
fn words_of(line: &str) -> String {
    let mut out = String::new();
    let mut word = String::new();
    for c in line.chars().chain([' ']) {
        if c.is_ascii_alphanumeric() {
            word.push(c);
        } else {
            out.push_str(stand_in(&word).unwrap_or(&word));
            out.push(c);
            word.clear();
        }
    }
    // `8-4-4-4-12`: what is left of a UUID when each of its groups was looked at alone.
    join_uuids(&out)
}

fn stand_in(word: &str) -> Option<&'static str> {
    let hex = !word.is_empty() && word.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c));
    let stamp = word.len() == 16 && word.as_bytes()[8] == b'T' && word.ends_with('Z');
    match word.len() {
        _ if stamp => Some("[STAMP]"),
        64 if hex => Some("[DIGEST]"),
        8 if hex && !word.chars().all(|c| c.is_ascii_digit()) => Some("[ID8]"),
        _ => None,
    }
}

fn join_uuids(line: &str) -> String {
    let mut out = String::new();
    for (index, part) in line.split("[ID8]").enumerate() {
        if index > 0 {
            let is_uuid = part.len() >= 28 && part.starts_with('-') && part[5..].starts_with('-');
            out.push_str(if is_uuid { "[ID]" } else { "[ID8]" });
            out.push_str(if is_uuid { &part[28..] } else { part });
        } else {
            out.push_str(part);
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
    say("error-verify-missing", &["verify", text(&scratch.join("missing.tar"))]);
    let rubbish = scratch.join("rubbish.tar");
    fs::write(&rubbish, [b'x'; 2048]).unwrap();
    say("error-verify-rubbish", &["verify", text(&rubbish)]);
    say("error-map-rubbish", &["map", text(&rubbish), "--format", "qcow2"]);
    say("error-list-missing", &["list", text(&scratch.join("nowhere"))]);
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
    let raw = ["--format", "raw", "--method", "remap"];
    let disk = to("vda", "out.raw");
    say("error-restore-remap-raw", &[&["restore", text(&archive), "--disk", &disk], &raw[..]].concat());
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
}
