//! Backups of guests that write all the time: each is of one point in time, on every disk the same; the
//! guest's own disks are intact afterwards, its chains as long as before; and a golden image below them does
//! not change.
//!
//! Thirty backups in all, qcow2 and raw, one disk and four, with and without the guest's agent.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::cli::{backup, everything, overlays, restore};
use crate::lab::records::{Prefix, check, check_images, take_from_ext4};
use crate::lab::{Guest, GuestSpec, Lab, wait_for};

/// Backs a running guest up `rounds` times and judges each archive; then the guest's own disks.
fn rounds(guest: &Guest<'_>, rounds: usize, more: &[&str]) {
    guest.progress.wait_more(200);
    let before = everything(guest);
    let mut last = None;
    for round in 0..rounds {
        let from = (guest.progress.last(), Instant::now());
        let (archive, report) = backup(guest, more);
        let to = (guest.progress.last(), Instant::now());
        let folder = restore(guest, &archive);
        let seen = judge(guest, &folder);
        let (gap, _) = guest.progress.gap_between(from.1, to.1);
        println!("round {round}: {:?} in {from:?}..{to:?}, largest gap {gap:?}", seen.last);
        assert!(seen.last >= from.0 && seen.last < to.0, "{seen:?} is not of {from:?}..{to:?}\n{report}");
        assert!(seen.last > last, "an older point in time than the one before");
        last = seen.last;
        std::fs::remove_dir_all(folder).unwrap();
        std::fs::remove_file(archive).unwrap();
        assert_eq!(everything(guest), before);
    }
    assert_eq!(overlays(&guest.folder), Vec::<std::path::PathBuf>::new());
    guest.progress.wait_more(50);
    guest.power_off();
    if guest.spec.ext4 {
        return;
    }
    let images = guest.images();
    let images: Vec<_> = images.iter().map(|(path, format)| (path.as_path(), *format)).collect();
    assert_eq!(check_images(&images, guest.layout()).unwrap().last, guest.progress.last());
    for (path, format) in images.iter().filter(|(_, format)| *format == "qcow2") {
        crate::lab::run(Command::new("qemu-img").args(["check", "-q", "-f", format]).arg(path));
    }
}

/// What a restored set of disks holds. With file systems on them, those must be clean as they stand.
fn judge(guest: &Guest<'_>, folder: &Path) -> Prefix {
    let disks = guest.spec.disks.iter().enumerate();
    let images: Vec<_> =
        disks.map(|(n, f)| (folder.join(format!("{}.{f}", crate::lab::guest::target(n))), *f)).collect();
    if !guest.spec.ext4 {
        let images: Vec<_> = images.iter().map(|(path, format)| (path.as_path(), *format)).collect();
        return check_images(&images, guest.layout()).unwrap();
    }
    let mut files = Vec::new();
    for (image, format) in images {
        let raw = image.with_extension("flat");
        crate::lab::run(
            Command::new("qemu-img").args(["convert", "-f", format, "-O", "raw"]).arg(&image).arg(&raw),
        );
        let records = image.with_extension("records");
        take_from_ext4(&raw, &records).unwrap();
        files.push(records);
    }
    check(&files.iter().map(|path| path.as_path()).collect::<Vec<_>>(), guest.layout()).unwrap()
}

fn of(disks: &[&'static str]) -> GuestSpec {
    GuestSpec { disks: disks.to_vec(), slots: 512, ..GuestSpec::default() }
}

#[test]
fn one_disk() {
    let lab = Lab::start();
    for (format, count) in [("qcow2", 6), ("raw", 6)] {
        let guest = lab.guest(GuestSpec { name: format.to_owned(), ..of(&[format]) });
        guest.start();
        rounds(&guest, count, &["--compress", "zstd:1"]);
    }
}

#[test]
fn four_disks() {
    let lab = Lab::start();
    // As fast as it can.
    let guest = lab.guest(GuestSpec { pause_us: Some(0), ..of(&["qcow2", "raw", "qcow2", "raw"]) });
    guest.start();
    rounds(&guest, 9, &["--compress", "none"]);
}

#[test]
fn with_the_agent_file_systems_are_clean() {
    let lab = Lab::start();
    let guest = lab.guest(GuestSpec { ext4: true, agent: true, ..of(&["qcow2", "raw"]) });
    guest.start();
    wait_for("the agent answers", 60, || lab.agent_answers(guest.name()));
    rounds(&guest, 9, &["--quiesce", "yes"]);
}

#[test]
fn a_golden_image_below_two_guests_keeps_its_digest() {
    let lab = Lab::start();
    let golden = lab.folder().join("golden.qcow2");
    crate::lab::run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&golden).arg("192M"));
    // Something is in it that must not change.
    let script = "write -P 0x61 0 8M";
    crate::lab::run(Command::new("qemu-io").args(["-f", "qcow2", "-c", script]).arg(&golden));
    let digest = || blake3::hash(&std::fs::read(&golden).unwrap());
    let before = digest();
    let guests = ["one", "two"].map(|name| {
        let stride = 64 << 10;
        let spec =
            GuestSpec { name: name.to_owned(), golden: Some(golden.clone()), stride, ..of(&["qcow2"]) };
        lab.guest(spec)
    });
    // The writer looks for its records in what the golden image holds, and finds none only where it is zero.
    for guest in &guests {
        crate::lab::run(
            Command::new("qemu-io").args(["-f", "qcow2", "-c", "write -z 0 192M"]).arg(guest.disk(0)),
        );
        guest.start();
    }
    for round in 0..20 {
        for guest in &guests {
            guest.progress.wait_more(20);
            let (archive, _) = backup(guest, &["--compress", "zstd:1"]);
            if round % 10 == 9 {
                let folder = restore(guest, &archive);
                judge(guest, &folder);
            }
            std::fs::remove_file(archive).unwrap();
        }
    }
    assert_eq!(digest(), before);
}
