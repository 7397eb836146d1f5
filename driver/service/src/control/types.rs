//! What the service says of itself: plain types that serialise. Times are seconds since 1970, sizes bytes.
//!
//! Imports: `error` (kinds), `metrics` (measures).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use virtfold_backup::metrics::BackupMetrics;
use virtfold_base::error::ErrorKind;

/// An entry of the queue. Numbers are given once and never again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EntryId(pub i64);

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for EntryId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// How everything stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The service itself.
    pub service: ServiceStatus,
    /// The hypervisor.
    pub libvirt: LibvirtStatus,
    /// The guests of this host; nothing while they are not known.
    #[serde(default)]
    pub guests: Option<GuestCounts>,
    /// Whether everything is paused ([`JobStatus::paused`] is apart from this).
    pub paused: bool,
    /// What runs now.
    pub running: Vec<RunningEntry>,
    /// How many entries wait.
    pub queued: u64,
    /// When the one was due that waits longest.
    pub queued_since: Option<i64>,
    /// The jobs of the configuration, in its order.
    pub jobs: Vec<JobStatus>,
    /// The domains that are backed up, or were, by name.
    pub domains: Vec<DomainStatus>,
    /// Domains that were backed up and are no more, because another one has the name of each.
    #[serde(default)]
    pub replaced: Vec<Uuid>,
    /// What a person should look at.
    pub warnings: Vec<Warning>,
}

/// The service itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// When it started.
    pub since: i64,
    /// The time at which this was said.
    pub now: i64,
    /// How far it is.
    pub state: ServiceState,
}

/// How far the service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// It brings in order what an earlier one left behind.
    Starting,
    /// It works.
    Running,
    /// It was told to end, and ends or parks what runs.
    Stopping,
}

/// The hypervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LibvirtStatus {
    /// Its address.
    pub uri: String,
    /// Why it can't be reached; nothing where it can.
    pub error: Option<String>,
    /// Since when it can, or can't, be reached.
    pub since: i64,
}

/// The guests of this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestCounts {
    /// How many there are.
    pub all: u64,
    /// The names of those that have no backup on purpose: `except` of a job names them, or only jobs that are
    /// switched off have them.
    pub left_out: Vec<String>,
}

/// An entry that runs, and how far it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunningEntry {
    /// The entry.
    pub entry: EntryStatus,
    /// How far it is.
    pub progress: RunProgress,
}

/// How far a run is, as [`virtfold_backup::ProgressSnapshot`] says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunProgress {
    /// What is being done, a word.
    pub phase: String,
    /// Bytes of data done in this phase.
    pub done: u64,
    /// Bytes of data in all; zero while not known.
    pub total: u64,
    /// How long this phase has lasted, seconds.
    pub seconds: u64,
}

/// A job of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Its name.
    pub job: String,
    /// Whether it is switched on.
    #[serde(default = "on")]
    pub enabled: bool,
    /// Whether it is paused by name.
    pub paused: bool,
    /// The domains that it has now, by name; none while libvirt was never reached.
    pub domains: Vec<String>,
    /// When it is due next; nothing for one that has no schedule, or never.
    pub next_due: Option<i64>,
}

fn on() -> bool {
    true
}

/// A domain's backups.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DomainStatus {
    /// Its name.
    pub domain: String,
    /// Its uuid.
    pub uuid: Option<Uuid>,
    /// The jobs that it is in; none for one that is in none any more.
    pub jobs: Vec<String>,
    /// The last good backup.
    pub last_success: Option<LastSuccess>,
    /// The last one that failed, though a good one may have followed.
    pub last_failure: Option<LastFailure>,
}

impl DomainStatus {
    /// Whether the last backup failed.
    pub fn is_failing(&self) -> bool {
        let failed = self.last_failure.as_ref().map(|failure| failure.at);
        failed.is_some() && failed > self.last_success.as_ref().map(|success| success.measure.at)
    }
}

/// A good backup.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastSuccess {
    /// The job that it was of.
    pub job: String,
    /// Its archives, one for each medium.
    pub archives: Vec<String>,
    /// What it was like, and when it ended.
    #[serde(flatten)]
    pub measure: BackupMetrics,
}

/// A backup that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastFailure {
    /// When it ended.
    pub at: i64,
    /// The job that it was of.
    pub job: String,
    /// What kind of failure it was.
    pub kind: ErrorKind,
    /// What happened.
    pub sentence: String,
    /// What a person can do.
    pub hint: Option<String>,
}

/// An entry of the queue: one domain, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryStatus {
    /// Its number.
    pub id: EntryId,
    /// The job.
    pub job: String,
    /// The domain's name.
    pub domain: String,
    /// The domain's uuid.
    pub uuid: Option<Uuid>,
    /// How far it is.
    pub state: EntryState,
    /// Why it is there.
    pub trigger: EntryOrigin,
    /// When it was due: the schedule's time, or when it was asked for.
    pub due: i64,
    /// Not to be begun before: its jitter, or the wait before it is tried again.
    pub not_before: Option<i64>,
    /// What it waits for, as a sentence ('the drive /dev/nst0 is in use').
    pub waits_for: Option<String>,
    /// When its last attempt began.
    pub started: Option<i64>,
    /// When it ended.
    pub ended: Option<i64>,
    /// How often it was begun.
    pub attempts: u32,
    /// Why its last attempt failed.
    pub failure: Option<LastFailure>,
    /// What it left, where it succeeded.
    pub archives: Vec<String>,
}

/// How far an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntryState {
    /// It waits.
    Waiting,
    /// It is being done.
    Running,
    /// It was asked to end, and has not yet.
    Ending,
    /// There is a good backup.
    Succeeded,
    /// There is none, and it is not tried again.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

impl EntryState {
    /// Whether nothing comes after it.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// Why an entry is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntryOrigin {
    /// The schedule.
    Schedule,
    /// A time of the schedule at which the service did not run.
    CatchUp,
    /// Somebody asked for it.
    Request,
    /// Something happened to the guest, for example `shutdown`.
    Event(String),
}

/// What a person should look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// What it is about.
    pub kind: WarningKind,
    /// What it is about, by name: a guest, a file; may be empty.
    pub subject: String,
    /// What is the matter.
    pub sentence: String,
}

/// What a warning is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WarningKind {
    /// A guest is in no job, and none leaves it out by name.
    GuestWithoutJob,
    /// A guest, or all of them, can't be looked at.
    Guest,
    /// A job says something that has no effect.
    Job,
    /// The configuration in the files can't be used; an older one holds.
    Configuration,
    /// Events of guests may have been missed.
    Events,
    /// A guest is not on its own disks, and a person has to decide.
    Recovery,
    /// The clock was ahead, and what was noted then is not believed.
    Clock,
    /// Something else.
    Other,
}

impl WarningKind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::GuestWithoutJob,
        Self::Guest,
        Self::Job,
        Self::Configuration,
        Self::Events,
        Self::Recovery,
        Self::Clock,
        Self::Other,
    ];

    /// Its name, as programs see it.
    pub fn name(self) -> &'static str {
        match self {
            Self::GuestWithoutJob => "guest-without-job",
            Self::Guest => "guest",
            Self::Job => "job",
            Self::Configuration => "configuration",
            Self::Events => "events",
            Self::Recovery => "recovery",
            Self::Clock => "clock",
            Self::Other => "other",
        }
    }
}
