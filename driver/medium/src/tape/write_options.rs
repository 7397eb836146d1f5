//! How an archive goes to tapes, and what came of it.
//!
//! Imports: the traits of drives, changers and the catalog.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::changer::Changer;
use super::drive::Drive;
use super::tape_catalog::TapeCatalog;
use virtfold_archive::stream::Cancel;

/// How an archive goes to tapes.
pub struct TapeWriteOptions {
    /// The drive, not open.
    pub drive: Box<dyn Drive>,
    /// Who changes volumes.
    pub changer: Box<dyn Changer>,
    /// What is remembered.
    pub ledger: Arc<dyn TapeCatalog>,
    /// The pool that the first volume has to be of; any where none is said.
    pub pool: Option<String>,
    /// Bytes of the ring.
    pub ring: u64,
    /// After so many bytes what is written is committed, and the next part begun.
    pub commit_every: u64,
    /// How long to wait for a tape to be ready.
    pub patience: Duration,
    /// Ends the run.
    pub cancel: Cancel,
}

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapeReport {
    /// The labels of the volumes that the archive is on, in their order.
    pub volumes: Vec<String>,
    /// The labels of the volumes that failed meanwhile. Some of the archive may be on them: what was
    /// committed before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<String>,
    /// Bytes on them.
    pub bytes: u64,
    /// How often the drive had to wait for data.
    pub underruns: u64,
}
