//! The image room against its judge: `qemu-img` and `qemu-io` make images with each feature of the format,
//! and say what is in them. A machine without them fails these tests; the test setup installs them.

mod bitmaps;
mod differential;
mod given;
mod header;
mod locks;
mod mutate;
mod random;
mod table;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::{DiskImage, Format, OpenOptions, map};
use virtfold_base::units::GuestOffset;

/// A directory of images.
pub(super) struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    pub(super) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a tool in the directory; its output, or a failed test.
    pub(super) fn run(&self, tool: &str, args: &[&str]) -> String {
        let output = Command::new(tool)
            .args(args)
            .current_dir(self.dir.path())
            .output()
            .unwrap_or_else(|e| panic!("{tool} must be installed for these tests: {e}"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{tool} {args:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// `qemu-img` with words separated by spaces.
    pub(super) fn img(&self, words: &str) -> String {
        self.run("qemu-img", &words.split_whitespace().collect::<Vec<_>>())
    }

    /// `qemu-io` on an image, one command after the other.
    pub(super) fn io(&self, format: &str, image: &str, commands: &[&str]) {
        let mut args = vec!["-f", format];
        for command in commands {
            args.extend(["-c", command]);
        }
        args.push(image);
        let said = self.run("qemu-io", &args);
        assert!(!said.contains("failed") && !said.contains("rror"), "{commands:?}: {said}");
    }

    /// Our map and bytes of the image, against QEMU's.
    pub(super) fn agree(&self, name: &str, format: Format) {
        let path = self.path(name);
        let image = DiskImage::open(&path, format, &OpenOptions::default()).unwrap();
        let table = image.allocation().unwrap();
        assert_eq!(table.capacity(), image.capacity());
        let theirs = self.img(&format!("map --output=json -f {format} {name}"));
        let mut theirs: Vec<Value> = serde_json::from_str(&theirs).unwrap();
        // QEMU prints one row without length for a disk without bytes.
        theirs.retain(|row| row["length"] != 0);
        let ours: Vec<Value> = map::rows(&image, &table)
            .unwrap()
            .map(|row| serde_json::to_value(row.unwrap()).unwrap())
            .collect();
        assert_same_rows(&ours, &theirs, name);
        self.img(&format!("convert -f {format} -O raw {name} judge.raw"));
        assert_same_bytes(&image, &table, &self.path("judge.raw"));
    }
}

fn assert_same_rows(ours: &[Value], theirs: &[Value], name: &str) {
    for (our, their) in ours.iter().zip(theirs) {
        assert_eq!(our, their, "{name}: the maps part here\nours {ours:#?}\ntheirs {theirs:#?}");
    }
    assert_eq!(ours.len(), theirs.len(), "{name}: one map is longer");
}

/// Reads the disk in pieces of odd sizes and compares it with a raw file.
fn assert_same_bytes(image: &DiskImage, table: &super::AllocationTable, raw: &Path) {
    let want = std::fs::read(raw).unwrap();
    assert_eq!(want.len() as u64, image.capacity());
    let mut at = 0;
    for size in [1 << 20, 4097, 65536, 777_777, 511].into_iter().cycle() {
        if at == want.len() {
            break;
        }
        let len = size.min(want.len() - at);
        let mut got = vec![0xa5; len];
        image.read(table, GuestOffset::new(at as u64), &mut got).unwrap();
        if got != want[at..at + len] {
            let first = got.iter().zip(&want[at..]).position(|(a, b)| a != b).unwrap();
            let extent = table.find(GuestOffset::new((at + first) as u64)).unwrap();
            panic!("{}: byte {} differs, in {extent:?}", raw.display(), at + first);
        }
        at += len;
    }
}
