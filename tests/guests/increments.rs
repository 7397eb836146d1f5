//! Increments of a guest that writes, by the bitmaps of its checkpoints, and what becomes of them when
//! somebody or something takes the bitmap away.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::cli::{backup, restore};
use crate::common::scratch::names;
use crate::lab::guest::target;
use crate::lab::records::check_images;
use crate::lab::{Guest, GuestSpec, Lab};

/// How the changes of each disk were found, and what was copied of it.
fn increment(guest: &Guest<'_>, more: &[&str]) -> Value {
    let (_, report) = backup(guest, &[&["--kind", "incremental"], more].concat());
    println!("{}", report["disks"]);
    report["disks"].clone()
}

fn method(disks: &Value, disk: usize) -> &str {
    disks[disk]["changes"]["method"].as_str().unwrap()
}

#[track_caller]
fn compared_because(disks: &Value, why: &str) {
    assert_eq!(method(disks, 0), "compare", "{disks}");
    assert!(disks[0]["changes"]["reason"].as_str().unwrap().contains(why), "{disks}");
}

fn checkpoints(guest: &Guest<'_>) -> Vec<String> {
    let list = guest.lab.virsh(&["checkpoint-list", guest.name(), "--name"]);
    list.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// The guest stands still: what a bitmap missed would differ from the parent's digests now.
#[track_caller]
fn nothing_was_missed(guest: &Guest<'_>) {
    let compared = increment(guest, &["--changes", "compare"]);
    for disk in [0, 1] {
        assert_eq!(method(&compared, disk), "compare");
        assert_eq!(compared[disk]["dense_length"], 0, "the bitmap missed something: {compared}");
    }
}

#[test]
fn bitmaps_find_what_changed_and_give_way_to_a_comparison() {
    let lab = Lab::start();
    let guest = lab.guest(GuestSpec { disks: vec!["qcow2", "raw"], ..GuestSpec::default() });
    guest.start();
    guest.progress.wait_more(300);
    lab.virsh(&["checkpoint-create-as", "writer", "theirs", "--diskspec", "vda,checkpoint=bitmap"]);
    increment(&guest, &[]);
    for _ in 0..2 {
        guest.progress.wait_more(300);
        let disks = increment(&guest, &[]);
        assert_eq!((method(&disks, 0), method(&disks, 1)), ("bitmap", "compare"), "{disks}");
        let ours = checkpoints(&guest);
        assert!(ours.len() <= 4 && ours.contains(&"theirs".to_owned()), "{ours:?}");
    }
    guest.progress.wait_more(300);
    lab.virsh(&["suspend", "writer"]);
    assert_eq!(method(&increment(&guest, &[]), 0), "bitmap");
    nothing_was_missed(&guest);
    lab.virsh(&["resume", "writer"]);

    // The comparison made no checkpoint; the one after it has one again.
    compared_because(&increment(&guest, &[]), "without a checkpoint");
    for name in checkpoints(&guest).iter().filter(|name| name.starts_with("virtfold-")) {
        lab.virsh(&["checkpoint-delete", "writer", name]);
    }
    guest.progress.wait_more(100);
    compared_because(&increment(&guest, &[]), "was deleted");

    // QEMU dies: what its bitmaps marked since is lost with it.
    guest.progress.wait_more(100);
    lab.signal_qemu("writer", "KILL");
    crate::lab::wait_for("the guest to end", 30, || guest.state() == "shut off");
    guest.start();
    guest.progress.wait_more(100);
    compared_because(&increment(&guest, &[]), "can't be used");
    guest.progress.wait_more(100);
    assert_eq!(method(&increment(&guest, &[]), 0), "bitmap");
    assert!(checkpoints(&guest).contains(&"theirs".to_owned()), "somebody else's was touched");
    each_archive_is_one_point_in_time(&guest);
    guest.power_off();
    the_disks_are_those_of(&guest, &backup(&guest, &["--kind", "incremental"]).0);
}

/// Both disks of each archive have the same records, and each archive no fewer than the one before it.
fn each_archive_is_one_point_in_time(guest: &Guest<'_>) {
    let mut last = 0;
    for name in names(&guest.lab.folder().join("archives")) {
        let folder = restore(guest, &guest.lab.folder().join("archives").join(&name));
        let images = restored(guest, &folder);
        let images: Vec<_> = images.iter().map(|(path, format)| (path.as_path(), *format)).collect();
        let records = check_images(&images, guest.layout()).unwrap().last.unwrap();
        assert!(records >= last, "{name} ends with record {records}, the one before it with {last}");
        last = records;
        std::fs::remove_dir_all(folder).unwrap();
    }
}

/// The guest is off: what is restored is what there is.
fn the_disks_are_those_of(guest: &Guest<'_>, archive: &Path) {
    let folder = restore(guest, archive);
    for ((there, format), (back, _)) in guest.images().iter().zip(restored(guest, &folder)) {
        crate::lab::run(
            Command::new("qemu-img").args(["compare", "-f", format, "-F", format]).args([there, &back]),
        );
    }
}

fn restored(guest: &Guest<'_>, folder: &Path) -> Vec<(PathBuf, &'static str)> {
    let images = guest.images().into_iter().enumerate();
    images.map(|(n, (_, format))| (folder.join(format!("{}.{format}", target(n))), format)).collect()
}
