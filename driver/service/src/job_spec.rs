//! What the service works by: jobs, media, limits, in its own words. `settings` makes them of the
//! configuration.
//!
//! Imports: `config`, `hypervisor` and `catalog` (plain types).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use virtfold_config::{CommandCondition, Config};
use virtfold_hypervisor::DomainId;

/// When a job is due.
pub trait NextTime: Debug + Send + Sync {
    /// The first time after `time`, if there is one at all.
    fn next_after(&self, time: Timestamp) -> Option<Timestamp>;
}

/// What a job is for.
pub trait GuestSelector: Debug + Send + Sync {
    /// Whether a guest is one of the job's.
    fn guest(&self, guest: &GuestFacts) -> bool;

    /// Whether a disk of such a guest is.
    fn disk(&self, target: &str) -> bool;

    /// Whether the job leaves a guest out by its name: somebody wants it to have no backup.
    fn leaves_out(&self, guest: &GuestFacts) -> bool;
}

/// A guest, as a job picks it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestFacts {
    /// Its uuid.
    pub id: DomainId,
    /// Its name.
    pub name: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// The targets of its disks.
    pub disks: Vec<String>,
    /// Why it can't be looked at: its tags and disks are not known then.
    pub trouble: Option<String>,
}

/// A command of the configuration: no shell sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandSpec {
    /// The program and its arguments.
    pub words: Vec<OsString>,
    /// How long it may take.
    pub limit: Duration,
}

/// A job.
#[derive(Clone, Debug)]
pub struct JobSpec {
    /// Its name.
    pub name: String,
    /// Whether its schedule and its events count.
    pub enabled: bool,
    /// Its domains and disks.
    pub pick: Arc<dyn GuestSelector>,
    /// When it is due: the earliest of them.
    pub calendars: Vec<Arc<dyn NextTime>>,
    /// The words of the events that it runs on: `shutdown`, `started`, `migrated`.
    pub on: Vec<String>,
    /// Each domain's run begins later by a time from 0 to this one.
    pub jitter: Duration,
    /// How late a missed run may begin.
    pub catch_up: Duration,
    /// Its media by name, each once.
    pub media: Vec<String>,
    /// The options of its backups, but for the media.
    pub options: Vec<OsString>,
    /// How long a run may take.
    pub timeout: Option<Duration>,
    /// How often a run is tried in all.
    pub attempts: u32,
    /// How long to wait before the next attempt.
    pub delay: Duration,
    /// The command before.
    pub before: Option<CommandSpec>,
    /// The command after, and after which runs.
    pub after: Option<(CommandSpec, CommandCondition)>,
    /// Whether old backups are pruned after a run.
    pub prune: bool,
    /// When its backups are verified that were not for long.
    pub verify: Vec<Arc<dyn NextTime>>,
}

impl JobSpec {
    /// The first time after `time` that its backups are verified.
    pub fn verify_after(&self, time: Timestamp) -> Option<Timestamp> {
        self.verify.iter().filter_map(|calendar| calendar.next_after(time)).min()
    }

    /// The first time after `time` that it is due.
    pub fn next_after(&self, time: Timestamp) -> Option<Timestamp> {
        self.calendars.iter().filter_map(|calendar| calendar.next_after(time)).min()
    }
}

/// A medium.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediumSpec {
    /// Its name.
    pub name: String,
    /// What `--to` says.
    pub to: OsString,
    /// Its options for a backup.
    pub options: Vec<OsString>,
    /// How many runs write to it at once.
    pub concurrency: usize,
    /// A file of variables for the environment of a run.
    pub environment: Option<PathBuf>,
}

/// Everything.
#[derive(Clone, Debug, Default)]
pub struct ServiceSettings {
    /// The jobs, in the configuration's order.
    pub jobs: Vec<Arc<JobSpec>>,
    /// The media, by name.
    pub media: BTreeMap<String, MediumSpec>,
    /// How many runs there are at once.
    pub concurrency: usize,
    /// How long running work may take to end when the service stops.
    pub stop_timeout: Duration,
    /// The configuration, to be held against the guests that there are.
    pub config: Option<Arc<Config>>,
    /// Where files of metrics go.
    pub metrics_dir: Option<PathBuf>,
}

impl ServiceSettings {
    /// A job by name.
    pub fn job(&self, name: &str) -> Option<&Arc<JobSpec>> {
        self.jobs.iter().find(|job| job.name == name)
    }
}
