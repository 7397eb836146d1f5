//! Domains through the binary: real guests are planned, listed, backed up while they write, and restored.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
#![allow(missing_docs, reason = "a test program has no public items")]

mod common;
#[path = "common/lab/mod.rs"]
mod lab;

use std::fs;
use std::path::{Path, PathBuf};

use common::run::{Outcome, exit, run, text, virtfold};
use lab::{Guest, GuestSpec, Lab};

/// virtfold against the lab's libvirtd, with a state directory in the lab's folder.
fn virtfold_in(lab: &Lab, args: &[&str]) -> Outcome {
    let state = lab.folder().join("state");
    let mut command = virtfold(args);
    run(command.env("VIRTFOLD_CONNECT", lab.uri()).env("VIRTFOLD_STATE_DIR", state))
}

/// Everything in a folder with its length, and both descriptions of the guest.
fn everything(guest: &Guest<'_>) -> (Vec<PathBuf>, [String; 2]) {
    let mut names: Vec<_> = fs::read_dir(&guest.folder).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    let xml = |more: &[&str]| guest.lab.virsh(&[&["dumpxml", guest.name()], more].concat());
    (names, [xml(&[]), xml(&["--inactive"])])
}

#[test]
fn a_plan_says_what_would_be_done_and_touches_nothing() {
    let lab = Lab::start();
    let cdrom = "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>";
    let spec = GuestSpec { disks: vec!["qcow2", "raw"], devices: cdrom.to_owned(), ..GuestSpec::default() };
    let guest = lab.guest(spec);
    let off = virtfold_in(&lab, &["backup", "writer", "--plan"]).ok();
    assert!(off.text().contains("way         offline"), "{off}");
    guest.start();
    let before = everything(&guest);
    let plan = virtfold_in(&lab, &["backup", "writer", "--plan"]).ok();
    println!("{plan}");
    for line in [
        "way         online",
        "vda      copied",
        "vdb      copied",
        "sda      left out: a CD drive",
        ".overlay, ",
    ] {
        assert!(plan.text().contains(line), "'{line}' is missing\n{plan}");
    }
    assert_eq!(plan.stderr, "");
    let json = virtfold_in(&lab, &["backup", "writer", "--plan", "--json"]).ok().json();
    assert_eq!((&json["way"], &json["disks"][1]["format"]), (&"online".into(), &"raw".into()));
    assert_eq!(json["obstacles"], serde_json::json!([]));
    let greedy =
        virtfold_in(&lab, &["backup", "writer", "--plan", "--min-free", "4000T"]).exits(exit::NO_SPACE);
    assert!(greedy.text().contains("in the way  no room for the overlays of vda, vdb"), "{greedy}");
    virtfold_in(&lab, &["backup", "writer", "--plan", "--quiesce", "yes"]).exits(exit::REFUSED);
    let domains = virtfold_in(&lab, &["domains"]).ok();
    println!("{domains}");
    assert!(domains.text().contains("running       2 of 3"), "{domains}");
    let listed = virtfold_in(&lab, &["domains", "--json"]).ok().json();
    assert_eq!(
        (&listed["domains"][0]["name"], &listed["domains"][0]["possible"]),
        (&"writer".into(), &true.into())
    );
    assert_eq!(everything(&guest), before);
    assert!(!lab.folder().join("state").exists(), "a plan made the state directory");
    guest.progress.wait_more(50);
}

#[test]
fn refusals_name_their_reason() {
    let lab = Lab::start();
    let guest = lab.guest(GuestSpec { pause_us: None, ..GuestSpec::default() });
    let missing = virtfold_in(&lab, &["backup", "nobody", "--plan"]).exits(exit::NOT_FOUND);
    assert!(
        missing.stderr.contains("there is no domain 'nobody'") && missing.stderr.contains("libvirt error 42")
    );
    assert_eq!(missing.stderr.lines().count(), 1, "{missing}");
    let unknown =
        virtfold_in(&lab, &["backup", "writer", "--plan", "--exclude", "vdx"]).exits(exit::NOT_FOUND);
    assert!(unknown.stderr.contains("hint: its disks are vda"), "{unknown}");
    let none = virtfold_in(&lab, &["backup", "writer", "--plan", "--exclude", "vda"]).exits(exit::BAD_IMAGE);
    assert!(none.text().contains("no disk is left to copy"), "{none}");
    let remote = virtfold_in(&lab, &["domains", "-c", "qemu+ssh://host/system"]).exits(exit::BAD_IMAGE);
    assert!(remote.stderr.contains("it is remote"), "{remote}");
    lab.stop();
    let away = virtfold_in(&lab, &["domains"]).exits(exit::REFUSED);
    assert_eq!(away.stderr.lines().count(), 2, "{away}");
    lab.restart();
    drop(guest);
}

/// The files of the guest's folder that are overlays.
fn overlays(folder: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    names.filter(|path| text(path).contains(".virtfold-")).collect()
}
