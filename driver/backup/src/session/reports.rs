//! What came of a backup: the archive, its disks, its copies.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use virtfold_archive::manifest::{Disk, Manifest};
use virtfold_base::error::{ErrorKind, sentence};
use virtfold_medium::tape::TapeReport;
use virtfold_medium::{MediumOutcome, MediumOutcomes};

/// What came of a backup.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackupReport {
    /// The archive's name, as `restore` takes it.
    pub archive: String,
    /// The archive's id.
    pub id: Uuid,
    /// Its size, bytes.
    pub archive_bytes: u64,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// Bytes of it that an earlier run had written, where this one went on with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resumed_at: Option<u64>,
    /// The digest that stands for all of it, hexadecimal.
    pub root: String,
    /// How long it took.
    pub seconds: f64,
    /// What came of the tapes, where it is on tapes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tapes: Vec<TapeReport>,
    /// The disks.
    pub disks: Vec<DiskReport>,
    /// What became of each copy, where the archive was to go to several media. At least one is good.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<CopyReport>,
    /// Its head, in the process that made it.
    #[serde(skip)]
    pub head: Option<Manifest>,
}

/// What became of the copy on one of several media.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CopyReport {
    /// Where it was to go.
    pub to: String,
    /// The archive's name there, as `restore` takes it; nothing where it failed.
    pub archive: Option<String>,
    /// Why there is none.
    pub failure: Option<String>,
    /// What a person can do about that.
    pub hint: Option<String>,
    /// What kind of failure it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<ErrorKind>,
}

/// What came of one disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiskReport {
    /// Its name in the archive.
    pub target: String,
    /// Its size, bytes.
    pub capacity: u64,
    /// Bytes that the source has recorded.
    pub allocated: u64,
    /// Bytes copied: those, widened to whole blocks.
    pub dense_length: u64,
    /// Runs in the correspondence table.
    pub runs: u64,
    /// What a person should know of the source.
    pub warnings: Vec<String>,
}

impl BackupReport {
    /// With what became of the copies.
    #[must_use]
    pub fn with(self, copies: &MediumOutcomes) -> Self {
        let report = |copy: MediumOutcome| match copy.result {
            Ok(durable) => CopyReport {
                to: copy.to.to_string(),
                archive: Some(durable.name),
                failure: None,
                hint: None,
                kind: None,
            },
            Err(error) => CopyReport {
                to: copy.to.to_string(),
                archive: None,
                failure: Some(sentence(&error)),
                hint: error.hint().map(ToOwned::to_owned),
                kind: Some(error.kind()),
            },
        };
        Self { copies: copies.take().into_iter().map(report).collect(), ..self }
    }
}

/// Of a disk, by the archive's head.
pub(super) fn report(disk: &Disk) -> DiskReport {
    DiskReport {
        target: disk.target.clone(),
        capacity: disk.capacity,
        allocated: disk.allocated,
        dense_length: disk.dense_length,
        runs: disk.runs,
        warnings: disk.source.warnings.clone(),
    }
}
