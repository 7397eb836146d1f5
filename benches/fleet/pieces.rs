//! A backup of a disk in many pieces beside one of the same data in one.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use nix::sys::resource::UsageWho;

use crate::{measured, row};

/// Bytes of a piece.
const PIECE: usize = 4096;

pub(crate) fn run(count: usize) {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let piece = PIECE as u64;
    for (what, step) in [("one piece", piece), ("as many pieces", 2 * piece)] {
        let image = folder.path().join("image.raw");
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(count as u64 * step).unwrap();
        (0..count as u64).for_each(|n| file.write_all_at(&[n.to_le_bytes()[0]; PIECE], n * step).unwrap());
        let ((), cost) = measured(UsageWho::RUSAGE_CHILDREN, || backup(folder.path(), &image));
        row(&format!("backup of {count} x 4 KiB in {what}"), cost, "");
    }
}

fn backup(folder: &Path, image: &Path) {
    let to = folder.join("to");
    std::fs::create_dir(&to).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_virtfold"));
    command
        .args(["backup", "--format", "raw", "--compress", "none", "--block-size", "4k", "--image"])
        .arg(image);
    let done = command.arg("--to").arg(&to).arg("--state-dir").arg(folder.join("state")).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    std::fs::remove_dir_all(to).unwrap();
}
