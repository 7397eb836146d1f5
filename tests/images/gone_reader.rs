//! Whoever reads the output has read enough (`virtfold list | head`): a verb ends as other tools do, without
//! a word.

use std::fs;
use std::process::{Command, Stdio};

use crate::common::image::{Format, Image};
use crate::common::run::{exit, run, virtfold};
use crate::common::scratch::Scratch;

/// Runs a command whose reader is gone before it begins; gives its exit code and what it says on standard
/// error.
fn unread(command: &mut Command) -> (Option<i32>, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let child = command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    let ended = child.wait_with_output().unwrap();
    (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
}

#[test]
fn a_reader_that_has_gone_is_no_error_of_what_is_printed() {
    let scratch = Scratch::new("gone-reader");
    let image = Image::create(scratch.join("disk.qcow2"), Format::Qcow2, "", 1 << 20);
    let config = scratch.join("config.yaml");
    fs::write(&config, "version: 1\n").unwrap();
    let config = config.to_str().unwrap();
    let folder = scratch.folder("archives");
    let folder = folder.to_str().unwrap();
    let made = run(&mut virtfold([
        "backup",
        "--image",
        image.text(),
        "--format",
        "qcow2",
        "--to",
        folder,
        "--json",
    ]))
    .ok();
    let summary: serde_json::Value = serde_json::from_str(made.text().lines().last().unwrap()).unwrap();
    let archive = summary["archive"].as_str().unwrap();
    for line in [
        vec!["list", folder],
        vec!["list", folder, "--json"],
        vec!["show", archive],
        vec!["verify", archive],
        vec!["table", archive, "--disk", "vda"],
        vec!["map", image.text(), "--format", "qcow2"],
        vec!["map", image.text(), "--format", "qcow2", "--json"],
        vec!["config", "check", "--config", config],
        vec!["config", "show", "--config", config],
        vec!["config", "schema"],
    ] {
        assert_eq!(unread(&mut virtfold(&line)), (Some(exit::SIGPIPE), String::new()), "{line:?}");
    }
}

/// What is no print but the archive itself has to arrive.
#[test]
fn an_archive_that_nobody_takes_is_an_error() {
    let scratch = Scratch::new("gone-taker");
    let image = Image::create(scratch.join("disk.qcow2"), Format::Qcow2, "", 1 << 20);
    let (code, said) =
        unread(&mut virtfold(["backup", "--image", image.text(), "--format", "qcow2", "--to", "-"]));
    assert!(code == Some(exit::FAILURE) && said.contains("Broken pipe"), "{code:?} {said}");
}

/// A result that finds no room is one, too.
#[test]
fn a_result_that_finds_no_room_says_so() {
    let scratch = Scratch::new("full-output");
    let folder = scratch.folder("archives");
    let line = format!("exec {} list {} > /dev/full", env!("CARGO_BIN_EXE_virtfold"), folder.display());
    let said = run(Command::new("sh").args(["-c", &line])).exits(exit::NO_SPACE);
    assert!(said.stderr.contains("hint: free some space"), "{said}");
}
