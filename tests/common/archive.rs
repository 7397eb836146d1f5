//! Backup and restore as a user does them, with the checks that hold for each.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::image::{Format, Image};
use super::run::{Outcome, run, text, tool, virtfold};

/// How to restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Rewrite,
    Remap,
}

impl Method {
    /// As `--method` has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rewrite => "rewrite",
            Self::Remap => "remap",
        }
    }
}

/// The arguments of a backup of `image` to `to`.
pub(crate) fn backup_args<'a>(image: &'a Image, to: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["backup", "--image", image.text(), "--format", image.format.name(), "--to", to];
    args.extend(more);
    args
}

/// Backs `image` up into `folder`; the archive's path, which is the last line of standard output.
pub(crate) fn backup(image: &Image, folder: &Path, more: &[&str]) -> PathBuf {
    let done = run(&mut virtfold(backup_args(image, text(folder), more))).ok();
    let archive = PathBuf::from(done.last_line());
    assert!(archive.is_file(), "no archive at the path it printed\n{done}");
    if is_for_the_second_reader(&archive) {
        second_reader(&archive, &[]);
    }
    archive
}

/// All that the second reader can open, and of the large ones, which take it long, some.
fn is_for_the_second_reader(archive: &Path) -> bool {
    const SMALL: u64 = 8 << 20;
    let bytes = std::fs::metadata(archive).unwrap().len();
    let is_open = archive.extension().is_none_or(|end| end != "age");
    is_open && (bytes <= SMALL || (bytes / 512).is_multiple_of(8))
}

/// Holds `archive` against FORMAT.md by a reader that was written from it alone.
pub(crate) fn second_reader(archive: &Path, more: &[&str]) -> Outcome {
    let reader = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reader/virtfold_reader.py");
    let args = [&[reader, text(archive)], more].concat();
    run(&mut tool("python3", args)).ok()
}

/// The arguments of a restore of the disk `vda` to `to`.
pub(crate) fn restore_args<'a>(archive: &'a str, disk: &'a str, to: Format, method: Method) -> Vec<&'a str> {
    vec!["restore", archive, "--disk", disk, "--format", to.name(), "--method", method.name()]
}

/// Restores the disk `vda` of `archive` to `target`.
pub(crate) fn restore(archive: &Path, target: &Image, method: Method) -> Outcome {
    let disk = format!("vda={}", target.text());
    run(&mut virtfold(restore_args(text(archive), &disk, target.format, method)))
}

/// Verifies `archive`.
pub(crate) fn verify(archive: &Path) -> Outcome {
    run(&mut virtfold(["verify", text(archive), "--json"]))
}

/// A range of the disk that a verb reported as damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Damage {
    pub(crate) start: u64,
    pub(crate) length: u64,
}

/// The damaged ranges of the disk `vda` among a verb's JSON lines.
pub(crate) fn damage(outcome: &Outcome) -> Vec<Damage> {
    let number = |event: &Value, name: &str| {
        event[name].as_u64().unwrap_or_else(|| panic!("'{name}' in {event}\n{outcome}"))
    };
    let lines = outcome.json_lines();
    let events = lines.iter().filter(|event| event["event"] == "damage" && event["disk"] == "vda");
    events.map(|event| Damage { start: number(event, "start"), length: number(event, "length") }).collect()
}

/// Fails unless two raw files are equal outside of `damage`; `len` is the capacity.
pub(crate) fn assert_same_outside(original: &[u8], restored: &[u8], damage: &[Damage], context: &str) {
    assert_eq!(original.len(), restored.len(), "capacity\n{context}");
    // Whole slices at a time: byte by byte this would take longer than the restore, not being optimised.
    let mut mended = restored.to_vec();
    for range in damage {
        let (start, len) = (usize::try_from(range.start).unwrap(), usize::try_from(range.length).unwrap());
        let lost = start..start + len;
        let right =
            original.get(lost.clone()).unwrap_or_else(|| panic!("{range:?} is not in the disk\n{context}"));
        mended[lost].copy_from_slice(right);
    }
    if mended != original {
        let at = original.iter().zip(&mended).position(|(right, found)| right != found);
        panic!("byte {at:?} is wrong and was not reported as damaged ({damage:?})\n{context}");
    }
}

/// The records of archives of `image` that lie in the state directory of these tests: of runs that live, or
/// were killed.
pub(crate) fn records_of(image: &Image) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("state/resume");
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let is_of = |record: &PathBuf| {
        std::fs::read_to_string(record.join("origin.json")).is_ok_and(|text| text.contains(image.text()))
    };
    entries.map(|entry| entry.unwrap().path()).filter(is_of).collect()
}

/// What the record of an archive of `image` says is durable.
pub(crate) fn marks_of(image: &Image) -> String {
    let record = records_of(image).into_iter().next();
    record.and_then(|record| std::fs::read_to_string(record.join("marks")).ok()).unwrap_or_default()
}
