//! Who runs what the queue says. The real one ([`ProcessRunner`]) starts this program again, as a process for
//! each run.
//!
//! Imports: `error`, `hypervisor` (plain types), `catalog` (plain types, the domains' locks), `job_spec`,
//! `engine` (its inputs).

mod child_process;
mod output;
mod process;
#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

use crossbeam_channel::Sender;

pub use self::process::{ProcessRunner, RunPaths};
use super::engine::Input;
use super::job_spec::{GuestFacts, JobSpec, MediumSpec};
use virtfold_base::error::Result;
use virtfold_hypervisor::DomainId;

/// A run.
#[derive(Clone, Debug)]
pub struct RunOrder {
    /// The entry.
    pub id: i64,
    /// The job.
    pub job: Arc<JobSpec>,
    /// Its media.
    pub media: Vec<MediumSpec>,
    /// The guest; without disks and tags where it is not known just now.
    pub guest: GuestFacts,
}

/// What is done with the backups of a job beside making them: a run of its own kind, of no guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Chore {
    /// Old ones go.
    Prune,
    /// Those are verified that were not for long.
    Verify,
}

impl Chore {
    /// What failed, in the past.
    pub fn failure(self) -> &'static str {
        match self {
            Self::Prune => "old backups could not be pruned",
            Self::Verify => "backups could not be verified, or are not sound",
        }
    }
}

/// A chore of a job.
#[derive(Clone, Debug)]
pub struct ChoreOrder {
    /// What is to be done.
    pub chore: Chore,
    /// Of which job.
    pub job: String,
    /// Its media.
    pub media: Vec<MediumSpec>,
    /// Where metrics are written.
    pub metrics_dir: Option<PathBuf>,
}

/// A run that was begun.
pub trait Handle: Debug + Send {
    /// Asks it to end; it brings its guest home first.
    fn end(&self);

    /// Ends it by force; the guest is brought home by a recovery.
    fn kill(&self);
}

/// Who runs things. What it starts reports by [`Input`]s; each run by exactly one [`Input::Ended`] in the
/// end.
pub trait Runner: Debug + Send + Sync {
    /// Begins a run.
    ///
    /// # Errors
    /// It can't be begun; nothing was.
    fn start(&self, order: RunOrder, reports: &Sender<Input>) -> Result<Box<dyn Handle>>;

    /// Begins to bring all guests home; ends with [`Input::Recovered`].
    fn recover(&self, reports: &Sender<Input>);

    /// Begins a chore of a job; ends with [`Input::ChoreDone`].
    fn chore(&self, order: ChoreOrder, reports: &Sender<Input>);

    /// Who else is at work on a domain, as a sentence: a person, or what a service left that was killed.
    fn busy(&self, domain: DomainId) -> Option<String>;
}
