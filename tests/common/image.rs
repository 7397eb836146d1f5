//! What `qemu-img` and `qemu-io` know about an image: the judge of these tests.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::run::{run, text, tool};

/// The formats virtfold reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Raw,
    Qcow2,
}

impl Format {
    /// As virtfold and QEMU spell it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An image file and its format.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) path: PathBuf,
    pub(crate) format: Format,
}

impl Image {
    /// The image at `path`.
    pub(crate) fn new(path: impl Into<PathBuf>, format: Format) -> Self {
        Self { path: path.into(), format }
    }

    /// A new image of `size` bytes with the options `options` of `qemu-img create -o` (may be empty).
    pub(crate) fn create(path: impl Into<PathBuf>, format: Format, options: &str, size: u64) -> Self {
        let image = Self::new(path, format);
        let size = size.to_string();
        let mut args = vec!["create", "-q", "-f", format.name()];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend([image.text(), &size]);
        run(&mut tool("qemu-img", args)).ok();
        image
    }

    /// Runs qemu-io commands on it, all in one process.
    pub(crate) fn io<S: AsRef<str>>(&self, commands: &[S]) {
        let mut args = vec!["-f", self.format.name(), "-d", "unmap", "-t", "unsafe"];
        for command in commands {
            args.extend(["-c", command.as_ref()]);
        }
        args.push(self.text());
        run(&mut tool("qemu-io", args)).ok();
    }

    /// The path as text.
    pub(crate) fn text(&self) -> &str {
        text(&self.path)
    }

    /// `qemu-img info`, read although somebody may be writing.
    pub(crate) fn info(&self) -> Value {
        let args = ["info", "-U", "--output=json", "-f", self.format.name(), self.text()];
        run(&mut tool("qemu-img", args)).ok().json()
    }

    /// The guest's bytes.
    pub(crate) fn capacity(&self) -> u64 {
        self.info()["virtual-size"].as_u64().unwrap()
    }

    /// Fails unless `qemu-img check` finds neither errors nor leaks (raw images have nothing to check).
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        if self.format == Format::Qcow2 {
            run(&mut tool("qemu-img", ["check", "-f", "qcow2", self.text()])).ok();
        }
    }

    /// Fails unless a guest reads the same bytes and the same capacity from both.
    #[track_caller]
    pub(crate) fn assert_same_disk(&self, other: &Self) {
        let (from, to) = (self.format.name(), other.format.name());
        let args = ["compare", "-f", from, "-F", to, self.text(), other.text()];
        run(&mut tool("qemu-img", args)).ok();
        assert_eq!(self.capacity(), other.capacity(), "capacity of {} and {}", self.text(), other.text());
    }

    /// The guest's bytes as a raw file.
    pub(crate) fn convert_to_raw(&self, path: &Path) -> Self {
        let args = ["convert", "-f", self.format.name(), "-O", "raw", self.text(), text(path)];
        run(&mut tool("qemu-img", args)).ok();
        Self::new(path, Format::Raw)
    }
}
