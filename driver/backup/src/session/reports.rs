//! What came of a backup: the archive, its disks, its copies.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use virtfold_archive::layout::BackupKind;
use virtfold_archive::manifest::{Changes, Disk, Manifest};
use virtfold_archive::sign::ChainLink;
use virtfold_medium::CopyReport;
use virtfold_medium::tape::TapeReport;

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
    /// Full, or what changed since its parent.
    pub kind: BackupKind,
    /// The archive that it continues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Uuid>,
    /// Why it is full, where an increment was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_reason: Option<String>,
    /// The digest that stands for all of it, hexadecimal.
    pub root: String,
    /// Of a signed one: whose it is, and which one of its subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed: Option<ChainLink>,
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
    /// In an increment: how it was found what changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<Changes>,
    /// What a person should know of the source.
    pub warnings: Vec<String>,
}

/// Of a disk, by the archive's head.
pub(super) fn report(disk: &Disk) -> DiskReport {
    DiskReport {
        target: disk.target.clone(),
        capacity: disk.capacity,
        allocated: disk.allocated,
        dense_length: disk.dense_length,
        runs: disk.runs,
        changes: disk.changes.clone(),
        warnings: disk.source.warnings.clone(),
    }
}
