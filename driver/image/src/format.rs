//! The words a caller uses to open an image.
//!
//! Imports: nothing of the crate.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The format of a disk image, as the caller knows it. It is never guessed from the contents: a guest can
/// write any header at the start of its raw disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The guest's bytes as they are, in a file or a block device.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            _ => Err(format!("'{text}' is not a format that virtfold reads; use raw or qcow2")),
        }
    }
}

/// Whether somebody may be writing into the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageAccess {
    /// Refuse an image that a QEMU has open for writing; its locks tell.
    #[default]
    Locked,
    /// The caller vouches that nothing in the image changes while it is open.
    Frozen,
    /// A look that may be a moment old: no lock is taken and none is looked for.
    Unlocked,
}

/// What counts as a change of an image while it is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChangeSensitivity {
    /// A write to it. libvirt gives files owners and labels whenever it likes, which is none.
    #[default]
    Write,
    /// Whatever the file system notes: a write whose time was set back, too.
    Any,
}

/// How to open an image.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// Whether a writer's lock is looked for.
    pub usage: ImageAccess,
    /// What [`super::DiskImage::check_unchanged`] takes for a change.
    pub change: ChangeSensitivity,
    /// The most images a chain may have; QEMU's own limit on nesting is of this order.
    pub max_depth: usize,
}

/// The most images a chain may have, unless somebody says otherwise; QEMU's own limit on nesting is of this
/// order.
pub const MAX_CHAIN: usize = 200;

impl Default for OpenOptions {
    fn default() -> Self {
        Self { usage: ImageAccess::Locked, change: ChangeSensitivity::Write, max_depth: MAX_CHAIN }
    }
}
