//! Media that hang, or go away: only the process that writes there waits, and it is left behind.
//! `guests/hanging.rs` does so with a guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::common::MIB;
use crate::common::archive::{backup, backup_args, records_of, verify};
use crate::common::mount::Mount;
use crate::common::rng::Rng;
use crate::common::run::{
    collect_within, exit, is_there, line_of, run, stands_in_the_kernel, text, tool, virtfold, wait_until,
    waits_for_fuse,
};
use crate::common::scratch::{Scratch, names};
use crate::faults::{
    PATIENCE, finished, killed_when_some_is_there, noisy_image, partial, signal, start_slow_backup,
};

/// A medium that hangs holds nothing but the process that writes to it: neither the run nor the image.
#[test]
fn a_medium_that_hangs_is_abandoned() {
    let scratch = Scratch::new("hangs");
    let image = noisy_image(&mut Rng::of_case("hangs", 0), scratch.join("hangs.qcow2"), 32);
    let medium =
        Mount::made(&scratch.join("medium"), &scratch.join("medium.img"), 64 * MIB, &["mkfs.ext4", "-q"]);
    let folder = medium.path().join("archives");
    fs::create_dir(&folder).unwrap();
    for (which, code) in [(Signal::SIGTERM, exit::SIGTERM), (Signal::SIGKILL, 137)] {
        let (line, child) = start_slow_backup(&image, &folder, "none");
        wait_until("the backup's file", PATIENCE, || !partial(&folder).is_empty());
        let frozen = medium.freeze();
        let mut stuck = None;
        wait_until("the write to stand in the kernel", PATIENCE, || {
            stuck = stands_in_the_kernel(child.id());
            stuck.is_some()
        });
        let (stuck, told) = (stuck.unwrap(), Instant::now());
        signal(&child, which);
        let outcome = collect_within(PATIENCE, line, child);
        println!("{which}: {:?}\n{outcome}", told.elapsed());
        assert_eq!(outcome.shell_code(), code, "{outcome}");
        assert!(is_there(stuck), "nothing stands in the kernel: nothing was tried");
        if which == Signal::SIGTERM {
            let said = format!("the copy of 'hangs' was abandoned; process {stuck} hangs in the kernel");
            assert!(outcome.stderr.contains(&said) && outcome.stderr.contains(text(&folder)), "{outcome}");
        }
        // Nobody has the image.
        run(&mut tool("qemu-io", ["-f", "qcow2", "-c", "read 0 512", image.text()])).ok();
        drop(frozen);
        wait_until("the process to end with its write", PATIENCE, || !is_there(stuck));
        assert_eq!(finished(&folder), [] as [PathBuf; 0], "{outcome}");
        // What is left is gone on with, or goes.
        let next = backup(&image, &folder, &["--compress", "none"]);
        verify(&next).ok();
        assert_eq!(names(&folder).len(), 1, "{which}: {:?}", names(&folder));
        assert!(records_of(&image).is_empty());
        fs::remove_file(next).unwrap();
    }
}

/// What an earlier run left is read by a process that can be abandoned, too.
#[test]
fn a_medium_that_hangs_before_its_archive_is_gone_on_with_is_abandoned() {
    let scratch = Scratch::new("hangs-again");
    let image = noisy_image(&mut Rng::of_case("hangs-again", 0), scratch.join("again.qcow2"), 100);
    let medium = Mount::exfat(&scratch.join("medium"), &scratch.join("medium.img"), 256 * MIB);
    let folder = medium.path().join("archives");
    fs::create_dir(&folder).unwrap();
    let plain = ["--compress", "none", "--no-require-mount"];
    killed_when_some_is_there(&image, &folder, &plain);
    for (which, code) in [(Signal::SIGTERM, exit::SIGTERM), (Signal::SIGKILL, 137)] {
        let stopped = medium.stop_serving();
        let mut command = virtfold(backup_args(&image, text(&folder), &plain));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut waits = None;
        wait_until("somebody to wait for the medium", PATIENCE, || {
            waits = waits_for_fuse(child.id());
            waits.is_some()
        });
        signal(&child, which);
        let outcome = collect_within(PATIENCE, line_of(&command), child);
        assert_eq!(outcome.shell_code(), code, "{outcome}");
        wait_until("whoever waited to be gone", PATIENCE, || !is_there(waits.unwrap()));
        assert_eq!(records_of(&image).len(), 1, "what was not looked at is not given up\n{outcome}");
        drop(stopped);
    }
    let done = run(&mut virtfold(backup_args(&image, text(&folder), &plain))).ok();
    verify(Path::new(done.last_line())).ok();
    assert_eq!(names(&folder).len(), 1, "{:?}\n{done}", names(&folder));
    assert!(records_of(&image).is_empty());
}

/// What was mounted when the backup was begun and is gone when its archive is: nothing is written below.
#[test]
fn a_medium_that_goes_before_its_archive_is_begun_takes_none() {
    let scratch = Scratch::new("mount-goes");
    let source = Mount::exfat(&scratch.join("source"), &scratch.join("source.img"), 64 * MIB);
    let image = noisy_image(&mut Rng::of_case("mount-goes", 0), source.path().join("disk.qcow2"), 6);
    let at = scratch.join("nas");
    let nas = Mount::tmpfs(&at, 64 * MIB);
    // The look at the medium has passed when the backup waits for its source.
    let stopped = source.stop_serving();
    let mut command = virtfold(backup_args(&image, text(&at), &["--medium", "nas"]));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the backup to wait for its source", PATIENCE, || {
        waits_for_fuse(child.id()) == Some(child.id())
    });
    drop(nas);
    drop(stopped);
    let outcome = collect_within(PATIENCE, line_of(&command), child).exits(exit::NOT_FOUND);
    let told = format!("the medium 'nas' ('{}') is not mounted", text(&at));
    assert!(outcome.stderr.contains(&told) && outcome.stderr.contains("hint: mount it"), "{outcome}");
    assert_eq!(names(&at), [] as [&str; 0], "{outcome}");
}

/// Two archives of an image in a directory, of which `prune --keep-last 1` removes one; a catalog, which has
/// the lock; a second directory.
fn two_archives(scratch: &Scratch, folder: &Path) -> (PathBuf, PathBuf) {
    let (state, elsewhere) = (scratch.join("state"), scratch.folder("elsewhere"));
    let image = noisy_image(&mut Rng::of_case("prune-hangs", 0), scratch.join("pruned.qcow2"), 2);
    for _ in 0..2 {
        backup(&image, folder, &["--compress", "none"]);
    }
    run(virtfold(["list", "--remember", text(folder)]).env("VIRTFOLD_STATE_DIR", &state)).ok();
    (state, elsewhere)
}

/// A prune whose medium hangs in a removal is told to end, and has no lock any more.
#[test]
fn a_medium_that_hangs_while_it_is_pruned_keeps_no_lock() {
    let scratch = Scratch::new("prune-hangs");
    let medium =
        Mount::made(&scratch.join("medium"), &scratch.join("medium.img"), 64 * MIB, &["mkfs.ext4", "-q"]);
    let folder = medium.path().join("archives");
    fs::create_dir(&folder).unwrap();
    let (state, elsewhere) = two_archives(&scratch, &folder);
    let prune = |folder: &Path| {
        let mut command = virtfold(["prune", "--place", text(folder), "--keep-last", "1"]);
        command.env("VIRTFOLD_STATE_DIR", &state);
        command
    };
    let frozen = medium.freeze();
    let mut command = prune(&folder);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stuck = None;
    wait_until("the removal to stand in the kernel", PATIENCE, || {
        stuck = stands_in_the_kernel(child.id());
        stuck.is_some()
    });
    let refused = run(&mut prune(&elsewhere)).exits(exit::IN_USE);
    signal(&child, Signal::SIGTERM);
    let outcome = collect_within(PATIENCE, line_of(&command), child);
    assert_eq!(outcome.shell_code(), 128 + Signal::SIGTERM as i32, "{outcome}\n{refused}");
    assert!(is_there(stuck.unwrap()), "nothing stands in the kernel: nothing was tried");
    run(&mut prune(&elsewhere)).ok();
    drop(frozen);
    wait_until("the process to end with its removal", PATIENCE, || !is_there(stuck.unwrap()));
    // What it did nobody noted; the next one finds it so.
    run(&mut prune(&folder)).ok();
    assert_eq!(finished(&folder).len(), 1);
}

/// Who lists for the catalog does not wait for the medium itself, not even to see what is mounted there.
#[test]
fn a_medium_that_hangs_while_it_is_listed_is_another_process_s_to_wait_for() {
    let scratch = Scratch::new("list-hangs");
    let medium = Mount::exfat(&scratch.join("medium"), &scratch.join("medium.img"), 64 * MIB);
    let folder = medium.path().join("archives");
    fs::create_dir(&folder).unwrap();
    let (state, _) = two_archives(&scratch, &folder);
    let config = scratch.join("config.yaml");
    fs::write(&config, format!("version: 1\nmedia:\n  nas: {{to: {}}}\n", text(&folder))).unwrap();
    let stopped = medium.stop_serving();
    for words in [["list", "--remember", text(&folder)], ["config", "check", "--host"]] {
        let mut command = virtfold(words);
        command.env("VIRTFOLD_STATE_DIR", &state).env("VIRTFOLD_CONFIG", &config);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut waits = None;
        wait_until("somebody to wait for the medium", PATIENCE, || {
            waits = waits_for_fuse(child.id());
            waits.is_some()
        });
        assert_ne!(waits, Some(child.id()), "{words:?}");
        signal(&child, Signal::SIGTERM);
        let outcome = collect_within(PATIENCE, line_of(&command), child);
        assert_eq!(outcome.shell_code(), 128 + Signal::SIGTERM as i32, "{outcome}");
        wait_until("whoever waited to be gone", PATIENCE, || !is_there(waits.unwrap()));
    }
    drop(stopped);
    run(virtfold(["list", "--remember", text(&folder)]).env("VIRTFOLD_STATE_DIR", &state)).ok();
}
