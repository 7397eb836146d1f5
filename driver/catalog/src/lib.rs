//! The catalog: one SQLite file in the state directory. It holds the journal of backups, which is what a
//! driver that was killed leaves to the next one, what is known of tapes and of backups, and the queue of the
//! service ([`queue`]).
//!
//! - [`Journal`] is what a job says and what a recovery reads; [`Catalog`] keeps it in `catalog.sqlite`.
//! - Each entry is one transaction, on the disk when the call returns (`synchronous=EXTRA`: the rollback
//!   journal's removal, too). An entry comes before the step that it describes, so a step that was begun is
//!   always known.
//! - A new catalog is made under another name, and gets its own when it is whole; so a file of that name that
//!   is no catalog is damage, and is said, never replaced.
//! - [`Journal::lock`] is a lock of the kernel's on `locks/UUID.lock`: it ends with its process, however that
//!   ends.
//! - Open jobs stay until they are closed; of the closed ones the last [`HISTORY`] are kept.
//!
//! - The tables of tapes (`tapes`) and of backups (`backups`) are a memory, not the truth: what is on a tape
//!   or at a place counts, and looking at it fills them anew.
//!
//! Imports: `error`, plain types of `hypervisor`, and of `medium` those of tapes, `Location` and
//! `MountPoint`.

mod backups;
mod chains;
mod forget;
mod freeze_session;
mod journal;
mod locks;
mod mounts;
mod no_catalog;
mod notes;
mod pins;
pub mod queue;
mod schema;
mod tapes;
#[cfg(test)]
mod tests;
mod verifications;
mod volumes;

pub use backups::{BackupCopy, LastBackup, Owner, Source, copy_name, destination_name};
pub use chains::{ChainEntry, ChainName, NextInChain};
pub use forget::{KnownDomain, Traces};
pub use freeze_session::{
    BaseImage, FreezeSession, JournalEntry, SessionDisk, SessionKind, SessionOutcome, SessionState,
    UnfreezeState,
};
pub use journal::Catalog;
pub use no_catalog::NoCatalog;
pub use verifications::{Verification, VerifyOutcome};
pub use volumes::Volume;

use std::fmt::Debug;

use uuid::Uuid;

use virtfold_base::error::Result;
use virtfold_hypervisor::DomainId;

/// Closed jobs that are kept.
pub const HISTORY: u32 = 1000;

/// A lock on a domain, held until it is dropped or its process ends.
pub trait DomainLock: Debug + Send {}

/// What a job says before each of its steps.
pub trait Journal: Debug + Send + Sync {
    /// Keeps other runs of virtfold away from a domain.
    ///
    /// # Errors
    /// [`virtfold_base::error::ErrorKind::InUse`] with the process that has it.
    fn lock(&self, domain: DomainId) -> Result<Box<dyn DomainLock>>;

    /// Begins a job. Durable when it returns.
    ///
    /// # Errors
    /// The catalog can't be written.
    fn begin(&self, job: &FreezeSession) -> Result<()>;

    /// Notes changes of an open job, all or none of them. Durable when it returns.
    ///
    /// # Errors
    /// The catalog can't be written, or has no such open job or disk.
    fn record(&self, job: Uuid, changes: &[JournalEntry]) -> Result<()>;

    /// The open jobs, of one domain or of all, oldest first.
    ///
    /// # Errors
    /// The catalog can't be read.
    fn open_sessions(&self, domain: Option<DomainId>) -> Result<Vec<FreezeSession>>;
}
