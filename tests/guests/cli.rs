//! Guests of the lab through the binary: backed up, restored, looked at.

#![allow(dead_code, reason = "every test file uses another part of it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::run::{Outcome, collect_within, line_of, run, text, virtfold};
use crate::lab::{Guest, Lab};

/// virtfold against the lab's libvirtd, with a state directory in the lab's folder.
pub(crate) fn virtfold_in(lab: &Lab, args: &[&str]) -> Outcome {
    run(&mut command_in(lab, args))
}

/// The same, for what would hang if it were broken: it may take so long.
#[track_caller]
pub(crate) fn virtfold_in_within(limit: Duration, lab: &Lab, args: &[&str]) -> Outcome {
    let mut command = command_in(lab, args);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    collect_within(limit, line_of(&command), child)
}

fn command_in(lab: &Lab, args: &[&str]) -> Command {
    let mut command = virtfold(args);
    command.env("VIRTFOLD_CONNECT", lab.uri()).env("VIRTFOLD_STATE_DIR", lab.folder().join("state"));
    command.env("VIRTFOLD_GUARDS", lab.folder().join("guards"));
    command
}

/// Every file of the guest's folder, and both descriptions of the guest. Whether its own port is open is not
/// among what must stay: QEMU tells libvirt of that a second late.
pub(crate) fn everything(guest: &Guest<'_>) -> (Vec<PathBuf>, [String; 2]) {
    let mut names: Vec<_> = fs::read_dir(&guest.folder).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    let xml = |more: &[&str]| {
        let text = guest.lab.virsh(&[&["dumpxml", guest.name()], more].concat());
        text.replace("name='virtfold.lab.0' state='disconnected'", "name='virtfold.lab.0' state='connected'")
    };
    (names, [xml(&[]), xml(&["--inactive"])])
}

/// The files of a folder that are overlays, or were.
pub(crate) fn overlays(folder: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    names.filter(|path| text(path).contains(".virtfold-")).collect()
}

/// Backs the guest up; the archive and the report.
pub(crate) fn backup(guest: &Guest<'_>, more: &[&str]) -> (PathBuf, serde_json::Value) {
    let to = guest.lab.folder().join("archives");
    fs::create_dir_all(&to).unwrap();
    let args = [&["backup", guest.name(), "--to", text(&to), "--json"], more].concat();
    let done = virtfold_in(guest.lab, &args).ok();
    if !done.stderr.is_empty() {
        println!("{done}");
    }
    let report = done.json_lines().pop().unwrap();
    (PathBuf::from(report["archive"].as_str().unwrap()), report)
}

/// Restores all disks of an archive into a new folder, `vda.qcow2` and so on.
pub(crate) fn restore(guest: &Guest<'_>, archive: &Path) -> PathBuf {
    let to = guest.lab.folder().join(format!("restored-{}", uuid::Uuid::new_v4().simple()));
    fs::create_dir(&to).unwrap();
    virtfold_in(guest.lab, &["restore", text(archive), "--output", text(&to)]).ok();
    to
}
