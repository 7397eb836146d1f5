//! The keys, once and for all: parser, JSON Schema and reference are made from these structs.
//!
//! How to add a key: a field with a doc comment (which becomes its documentation, for users), a type of
//! `values.rs` or a new one there, and a default in `Default`. A section is a struct with
//! `deny_unknown_fields`; a section with names of the user's (such as `jobs`) is a map of structs, and files
//! in `conf.d` may each add to it.

mod jobs;
mod media;
mod service;
mod trust;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::jobs::{After, Before, Disks, Domains, Job, KeepRules, ResolvedJob, Retry};
pub use self::media::Medium;
pub use self::service::Service;
pub use self::trust::Trust;
use crate::position::Position;
use crate::values::{
    BlockSize, ByteRate, ByteSize, Compression, DetectZeroes, FilePath, Layout, Name, PauseDuration,
    QuiesceMode, RecipientList, Version, Workers,
};

/// The configuration of virtfold.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The version of this format, in one file.
    pub version: Version,
    /// What a backup does where its command line says nothing.
    #[serde(default)]
    pub defaults: Defaults,
    /// How the service (`virtfold serve`) runs on this host.
    #[serde(default)]
    pub service: Service,
    /// What this host signs its archives with, and whose archives are taken.
    #[serde(default)]
    pub trust: Trust,
    /// Where archives go, each under a name that jobs use. A name is 1 to 64 letters, digits, `_`, `.` or
    /// `-`, and begins with a letter, a digit or `_`.
    #[serde(default)]
    pub media: BTreeMap<Name, Medium>,
    /// What the service backs up, and when; each job under a name, with the same letters as those of media.
    #[serde(default)]
    pub jobs: BTreeMap<Name, Job>,
    /// Where each key that is set, and each section, was set, by its path.
    #[serde(skip)]
    pub(crate) origins: Origins,
}

/// Places of keys, by path.
pub(crate) type Origins = BTreeMap<Vec<String>, Position>;

impl Default for Config {
    /// The configuration of a host that has no file.
    fn default() -> Self {
        Self {
            version: Version::V1,
            defaults: Defaults::default(),
            service: Service::default(),
            trust: Trust::default(),
            media: BTreeMap::new(),
            jobs: BTreeMap::new(),
            origins: Origins::new(),
        }
    }
}

/// What a backup does where its command line says nothing.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[schemars(inline)]
pub struct Defaults {
    /// How archives are compressed. Higher levels are smaller and slower; `zstd` alone is level 3.
    pub compress: Compression,
    /// Whom archives are encrypted to: the public keys of age that can open them, each alone. Not set, and
    /// `recipients` neither: archives are not encrypted. `--encrypt-to` and `--recipients` on a command line
    /// take the place of both keys;
    /// `--no-encryption` switches encryption off.
    pub encrypt_to: Option<RecipientList>,
    /// A file that names those whom archives are encrypted to, one a line, together with `encrypt-to`. One
    /// that somebody else may write is refused.
    pub recipients: Option<FilePath>,
    /// Which bytes of a disk an archive holds.
    pub layout: Layout,
    /// The granularity of the fold. Not set: the source's own (its cluster size for qcow2, 64KiB for raw).
    pub block_size: Option<BlockSize>,
    /// Whether disks are read once more before they are copied, to leave out blocks that are zeros though an
    /// image calls them data. Not set: block devices and raw files without holes are, of which nothing else
    /// tells where zeros are.
    pub detect_zeroes: Option<DetectZeroes>,
    /// The most bytes of an archive that are written in a second. Not set: no limit.
    pub limit_rate: Option<ByteRate>,
    /// Threads that read, digest and compress. Not set: one for each processor.
    pub workers: Option<Workers>,
    /// Whether the agent in a running guest makes its file systems clean before a backup.
    pub quiesce: QuiesceMode,
    /// How long a running guest may stand still at one time during a backup. When it is over, a process of
    /// its own lets the guest go on.
    pub pause_budget: PauseDuration,
    /// The directory where running guests write while their disks are copied. Not set: beside each image, and
    /// in the state directory for block devices.
    pub overlay_dir: Option<FilePath>,
    /// What stays free in the file systems that the overlays of running guests lie in. A backup that would
    /// need more is refused, and one that comes below is aborted: a full file system stops guests.
    pub min_free: ByteSize,
}

/// What a job's backups do: its own keys where it has them, else those of `defaults`.
pub type Settings = Defaults;

impl Default for Defaults {
    fn default() -> Self {
        Self {
            compress: Compression::Zstd { level: 3 },
            encrypt_to: None,
            recipients: None,
            layout: Layout::Compact,
            block_size: None,
            detect_zeroes: None,
            limit_rate: None,
            workers: None,
            quiesce: QuiesceMode::Auto,
            pause_budget: PauseDuration::from_millis(2000),
            overlay_dir: None,
            min_free: ByteSize::new(1 << 30),
        }
    }
}
