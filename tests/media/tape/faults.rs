//! Faults of the drive at every Nth block: an archive that is told to be good is good, or something is said.

use super::bench::{Bench, TAPE, name_of};
use super::drive::{Fault, Object};
use crate::common::image::Image;
use crate::common::run::{exit, text};

/// Writes behind an archive with a fault, and looks what came of both. Whether it was said.
fn with_fault(
    bench: &mut Bench,
    kept: &Image,
    image: &Image,
    fault: impl Fn(u64) -> Fault,
    offset: u64,
) -> bool {
    bench.label(0);
    let before = name_of(&bench.backup(kept, &[]).ok());
    let behind = bench.objects(0).len() as u64;
    let fault = fault(behind + offset);
    bench.unit(|unit| unit.faults = vec![fault]);
    let done = bench.backup(image, &[]);
    let unused = bench.unit(|unit| std::mem::take(&mut unit.faults));
    assert!(unused.is_empty(), "the fault {fault:?} did not happen\n{done}");
    if done.code() == Some(exit::OK) {
        bench.assert_restores(&name_of(&done), image, &[]);
        return false;
    }
    let done = done.exits(exit::FAILURE);
    assert!(done.stderr.contains("hint: "), "{done}");
    // What was on the tape is still there, and nothing of the new one looks whole.
    bench.assert_restores(&before, kept, &[]);
    bench.assert_restores(&format!("{TAPE}#latest"), kept, &[]);
    let objects = bench.objects(0);
    let again = bench.backup(image, &[]).exits(exit::FAILURE);
    assert!(again.stderr.contains("has failed before"), "{fault:?}\n{again}");
    assert_eq!(bench.objects(0), objects, "{fault:?}: a failed volume was written to again");
    true
}

/// With a second volume: the backup goes on there, is the same, and the first one is never written to again.
fn goes_on(bench: &mut Bench, image: &Image, fault: impl Fn(u64) -> Fault, offset: u64) {
    (0..2).rev().for_each(|slot| bench.label(slot));
    let fault = fault(2 + offset);
    bench.unit(|unit| unit.faults = vec![fault]);
    let change = bench.change();
    let done = bench.backup(image, &[&change, "--tape-commit-every", "1MiB"]).ok();
    let unused = bench.unit(|unit| std::mem::take(&mut unit.faults));
    assert!(unused.is_empty(), "the fault {fault:?} did not happen\n{done}");
    assert!(done.text().contains("volume T0 failed"), "{fault:?}\n{done}");
    let archive = name_of(&done);
    bench.unit(|unit| unit.insert(0));
    let failed = bench.virtfold(&["tape", "status", TAPE, "--json"]).ok().json();
    assert!(failed["failed"].is_string(), "{failed}");
    bench.assert_restores(&archive, image, &[&change]);
    // By what the tapes say alone, from the last volume on.
    let nobody = bench.scratch.join("empty");
    bench.assert_restores(&archive, image, &[&change, "--state-dir", text(&nobody)]);
}

/// Faults at the begin, the data and the end of parts, of which the image has three, the last one without
/// data of its own.
fn at_blocks(make: impl Fn(u64) -> Fault, again: &[u64]) {
    let mut bench = Bench::new(2, 64);
    let (kept, image) = (bench.image("kept.raw", 1), bench.image("disk.raw", 2));
    // Without a second volume: the begin is 0, the data 2 to 10, the end 12.
    assert!(with_fault(&mut bench, &kept, &image, &make, 12));
    // The parts begin at 0, 9 and 18.
    again.iter().for_each(|offset| goes_on(&mut bench, &image, &make, *offset));
}

#[test]
fn a_write_error() {
    at_blocks(Fault::WriteError, &[0, 7, 13]);
}

#[test]
fn a_silent_drop() {
    at_blocks(Fault::SilentDrop, &[4, 16]);
}

#[test]
fn a_deferred_error() {
    at_blocks(|at| Fault::Deferred { at, lost: 1 }, &[13]);
}

#[test]
fn a_reset_of_the_drive() {
    at_blocks(Fault::Reset, &[2, 13]);
}

#[test]
fn what_is_wrong_on_the_tape_is_found_when_it_is_read() {
    let mut bench = Bench::new(1, 64);
    bench.label(0);
    let image = bench.image("disk.raw", 2);
    let archive = name_of(&bench.backup(&image, &[]).ok());
    let objects = bench.objects(0);
    for at in [2, 4, 8, 12, 14] {
        for fault in [Fault::Corrupt(at), Fault::ReadError(at)] {
            bench.unit(|unit| unit.faults = vec![fault]);
            let verdict = bench.virtfold(&["tape", "verify", TAPE]);
            assert_ne!(verdict.code(), Some(exit::OK), "{fault:?}\n{verdict}");
            bench.unit(|unit| unit.faults = vec![fault]);
            let verdict = bench.virtfold(&["verify", &archive]);
            // What is not the archive's is not read, and a begin that is wrong by the catalog is looked for
            // once more.
            let read = bench.unit(|unit| std::mem::take(&mut unit.faults)).is_empty();
            let found_again = fault == Fault::Corrupt(2);
            assert_eq!(verdict.code() != Some(exit::OK), read && !found_again, "{fault:?}\n{verdict}");
        }
    }
    assert_eq!(bench.objects(0), objects, "reading writes nothing");
    bench.virtfold(&["tape", "verify", TAPE]).ok();
    assert!(matches!(objects[14], Object::Block(_)));
}

#[test]
fn a_tape_that_is_changed_in_mid_write() {
    let mut bench = Bench::new(2, 256);
    bench.label(1);
    bench.label(0);
    let image = bench.image("disk.raw", 64);
    let args = ["backup", "--image", image.text(), "--format", "raw", "--to", TAPE, "--tape-buffer", "1MiB"];
    let before = bench.unit(|unit| unit.writes);
    let running = bench.start(&args);
    bench.wait_for_writes(before + 20);
    let other = bench.objects(1);
    bench.unit(|unit| unit.insert(1));
    let ended = running.wait().exits(exit::FAILURE);
    assert!(ended.stderr.contains("hint: "), "{ended}");
    assert_eq!(bench.objects(1), other, "the other tape was written to");
    bench.unit(|unit| unit.insert(0));
    let again = bench.backup(&image, &[]).exits(exit::FAILURE);
    assert!(again.stderr.contains("has failed before"), "{again}");
}

/// The bytes of an encrypted archive are made again, too.
#[test]
fn an_encrypted_backup_goes_on_and_copies_fail_alone() {
    let mut bench = Bench::new(2, 64);
    (0..2).rev().for_each(|slot| bench.label(slot));
    let image = bench.image("disk.raw", 2);
    let change = bench.change();
    let (key, recipient) = bench.key();
    // Behind the first part's end.
    bench.unit(|unit| unit.faults = vec![Fault::WriteError(13)]);
    let more = [&change, "--encrypt-to", &recipient, "--tape-commit-every", "1MiB"];
    let done = bench.backup(&image, &more).ok();
    assert!(done.text().contains("volume T0 failed") && done.stderr.contains("resuming at"), "{done}");
    bench.unit(|unit| unit.insert(0));
    bench.assert_restores(&name_of(&done), &image, &[&change, "--identity", text(&key)]);
    // Two copies, and the tape goes on on the other volume; the file has nothing twice.
    bench.label(0);
    let both = bench.scratch.folder("both");
    bench.unit(|unit| unit.faults = vec![Fault::WriteError(13)]);
    let more = [&change, "--to", text(&both), "--tape-commit-every", "1MiB", "--json"];
    let done = bench.backup(&image, &more).ok().json_lines().pop().unwrap();
    assert_eq!(done["tapes"][0]["failed"], serde_json::json!(["T0"]), "{done}");
    let copies = done["copies"].as_array().unwrap();
    assert_eq!(copies.len(), 2, "{done}");
    bench.unit(|unit| unit.insert(0));
    for copy in copies {
        bench.assert_restores(
            copy["archive"].as_str().unwrap_or_else(|| panic!("{done}")),
            &image,
            &[&change],
        );
    }
    // Two copies, and the tape fails in mid-write: the file is good, and the exit code is the tape's.
    bench.label(0);
    let folder = bench.scratch.folder("copies");
    bench.unit(|unit| unit.faults = vec![Fault::WriteError(8)]);
    let done = bench.backup(&image, &["--to", text(&folder)]).exits(exit::FAILURE);
    assert!(done.stderr.contains(TAPE), "{done}");
    let archive = done.last_line().to_owned();
    assert!(archive.starts_with(text(&folder)), "{done}");
    bench.assert_restores(&archive, &image, &[]);
    let again = bench.backup(&image, &[]).exits(exit::FAILURE);
    assert!(again.stderr.contains("has failed before"), "{again}");
    // And the other way round: the file's place is full.
    bench.label(0);
    bench.sh("mkdir /run/small; mount -t tmpfs -o size=512k small /run/small").ok();
    let done = bench.backup(&image, &["--to", "/run/small"]).exits(exit::NO_SPACE);
    assert!(done.stderr.contains("/run/small"), "{done}");
    bench.assert_restores(&name_of(&done), &image, &[]);
    bench.sh("[ -z \"$(ls -A /run/small)\" ]").ok();
}
