//! What a person asks for, from beginning to end: back up, restore, verify, look inside. A job takes a
//! request, does it by the rooms below, and returns a report; it prints nothing.
//!
//! A backup follows FIG. 13 of the method: 1302 capacity and allocation table, 1303-1305 freeze, 1306-1307
//! decide and build the correspondence table, 1308-1310 stream the dense image, 1311 end.
//!
//! Imports: all crates that ARCHITECTURE.md draws above it; `service` and `cli` import this one.

pub mod attachments;
pub mod audit;
pub mod destinations;
pub mod domain;
pub mod events;
pub mod folded_disk;
pub mod forget;
pub mod freeze;
pub mod host_identity;
pub mod increment;
pub mod inspect;
pub mod known_copy;
pub mod metrics;
pub mod mount_check;
pub mod options;
pub mod parents;
pub mod plan;
mod progress;
pub mod restore;
pub mod restore_domain;
pub mod resume;
pub mod retention;
pub mod session;
pub mod signing;
mod start_lock;
pub mod tape;
pub mod target;
pub mod trust;
pub mod verify;
pub mod verify_chain;
pub mod verify_due;

use std::sync::Arc;

pub use self::progress::{Progress, ProgressSnapshot};
use virtfold_archive::stream::Cancel;

/// Whether what a run decides is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunMode {
    /// It is.
    Apply,
    /// It is only reported.
    DryRun,
}

/// How a running job is watched and stopped.
#[derive(Clone, Debug, Default)]
pub struct Control {
    /// Set it, and the job ends with [`virtfold_base::error::ErrorKind::Interrupted`].
    pub cancel: Cancel,
    /// How far it is.
    pub progress: Arc<Progress>,
}
