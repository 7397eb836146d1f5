//! The queue of the service: what is to be done, what runs, what became of it; how far each job's schedule
//! was turned into entries; and what is paused.
//!
//! - An entry is one domain of one job, once. While it waits, there is no second one of the same job and
//!   domain: whatever asks for one finds it. The tables say so themselves (`queue_waiting`), as they say that
//!   a domain has one run at a time (`queue_running`).
//! - Each call is one transaction, durable when it returns. [`Queue::fire`] makes the entries of a schedule's
//!   time and notes that time in one go, so that a restart neither loses a run nor makes it twice.
//! - An entry whose service dies under it waits again, [`INTERRUPTED`] times in a row at most: it may be what
//!   the service dies of.
//! - Entries that have ended are kept: the last [`HISTORY`], and of each job and domain the last of each
//!   kind.
//!
//! ```text
//! waiting, parked --start--> running --end--> succeeded, failed, cancelled
//!    ^    \------cancel----> cancelled  |
//!    \------- again, parked, recall ---/  (recall, too often: failed)
//! ```
//!
//! Imports: `error`, plain types of `hypervisor`.

mod rows;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Debug;

use jiff::Timestamp;

use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_hypervisor::DomainId;

/// Entries that have ended and are kept.
pub const HISTORY: u32 = 1000;

/// How often in a row an entry may be interrupted by the death of its service.
pub const INTERRUPTED: u32 = 5;

/// Why an entry is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryReason {
    /// The schedule.
    Schedule,
    /// A time of the schedule that was missed.
    CatchUp,
    /// Something happened to the guest; the word for it.
    Event(String),
    /// A person asked for it. Such entries come first.
    Request,
}

/// How far an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryState {
    /// It waits.
    Waiting,
    /// It is being done.
    Running,
    /// It was broken off because the service ended; it waits for the next one.
    Parked,
    /// There is a good backup.
    Succeeded,
    /// There is none, and it is not tried again.
    Failed,
    /// Somebody took it out.
    Cancelled,
}

impl EntryState {
    /// Whether nothing comes after it.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// What is to be put into the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEntry {
    /// The job.
    pub job: String,
    /// The domain.
    pub domain: DomainId,
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: EntryReason,
    /// When it was due.
    pub due: Timestamp,
    /// Not to be begun before.
    pub not_before: Timestamp,
}

/// An entry of the queue.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueEntry {
    /// Its number, given once and never again.
    pub id: i64,
    /// What was wanted.
    pub wanted: NewEntry,
    /// How far it is.
    pub state: EntryState,
    /// How often it was begun.
    pub attempts: u32,
    /// When it was last begun.
    pub started: Option<Timestamp>,
    /// When its last attempt ended.
    pub ended: Option<Timestamp>,
    /// What its last attempt left or why it failed.
    pub result: Option<RunResult>,
}

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunResult {
    /// What happened, as a sentence.
    pub sentence: String,
    /// What a person can do.
    pub hint: Option<String>,
    /// The exit code of its process; none where it was ended by force, or never began.
    pub exit_code: Option<i32>,
    /// The kind of the failure; none for a good backup.
    pub kind: Option<ErrorKind>,
    /// Its archives.
    pub archives: Vec<String>,
    /// What it was like, in the service's words.
    pub measure: Option<serde_json::Value>,
}

/// What is paused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pauses {
    /// Everything.
    pub all: bool,
    /// These jobs.
    pub jobs: Vec<String>,
}

impl Pauses {
    /// Whether a job's scheduled runs may not begin.
    pub fn holds(&self, job: &str) -> bool {
        self.all || self.jobs.iter().any(|paused| paused == job)
    }
}

/// What the service notes before it acts.
pub trait Queue: Debug + Send + Sync {
    /// Puts entries into the queue, all or none, or finds those that wait already; their numbers, in their
    /// order. One that a person asks for brings the waiting one to the front.
    ///
    /// # Errors
    /// The catalog can't be written.
    fn add_all(&self, wanted: &[NewEntry]) -> Result<Vec<i64>>;

    /// As [`Queue::add_all`], one entry.
    ///
    /// # Errors
    /// The catalog can't be written.
    fn add(&self, wanted: &NewEntry) -> Result<i64> {
        let lost = || Error::new(ErrorKind::Internal, "an entry was noted without a number");
        self.add_all(std::slice::from_ref(wanted))?.first().copied().ok_or_else(lost)
    }

    /// Notes that a job's schedule is turned into entries up to `planned`, and makes those entries, all or
    /// none.
    ///
    /// # Errors
    /// The catalog can't be written.
    fn fire(&self, job: &str, planned: Timestamp, wanted: &[NewEntry]) -> Result<()>;

    /// Up to when each job's schedule was turned into entries.
    ///
    /// # Errors
    /// The catalog can't be read.
    fn planned(&self) -> Result<BTreeMap<String, Timestamp>>;

    /// Notes that an entry is begun, before it is.
    ///
    /// # Errors
    /// It does not wait, its domain has a run, or the catalog can't be written.
    fn start(&self, id: i64, at: Timestamp) -> Result<()>;

    /// Notes how a run ended.
    ///
    /// # Errors
    /// It did not run, or the catalog can't be written.
    fn end(&self, id: i64, at: Timestamp, end: &RunEnd) -> Result<()>;

    /// Takes an entry out that waits.
    ///
    /// # Errors
    /// It does not wait, or the catalog can't be written.
    fn cancel(&self, id: i64, at: Timestamp, why: &str) -> Result<()>;

    /// Puts what a service left that is dead back into the queue: what ran, and what it parked. Returns what
    /// ran, as it is now: its attempt counts, and after [`INTERRUPTED`] of them that ended so, with no noted
    /// end between them, it has failed.
    ///
    /// # Errors
    /// The catalog can't be written.
    fn recall(&self, at: Timestamp) -> Result<Vec<QueueEntry>>;

    /// Entries that wait or run, in the order in which they are taken.
    ///
    /// # Errors
    /// The catalog can't be read.
    fn open_entries(&self) -> Result<Vec<QueueEntry>>;

    /// As [`Queue::open_entries`], `most` of them behind the first `skip`.
    ///
    /// # Errors
    /// The catalog can't be read.
    fn open_page(&self, skip: u64, most: usize) -> Result<Vec<QueueEntry>>;

    /// How many entries wait, and since when.
    ///
    /// # Errors
    /// The catalog can't be read.
    fn waiting(&self) -> Result<WaitingEntries>;

    /// One entry.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; the catalog can't be read.
    fn entry(&self, id: i64) -> Result<QueueEntry>;

    /// Those of these entries that are there.
    ///
    /// # Errors
    /// The catalog can't be read.
    fn entries(&self, ids: &[i64]) -> Result<Vec<QueueEntry>>;

    /// The numbers of the last success and the last failure of each job and domain, of those that ended by
    /// `until`, in their order.
    ///
    /// # Errors
    /// The catalog can't be read.
    fn last_end_ids(&self, until: Timestamp) -> Result<Vec<i64>>;

    /// As [`Queue::last_end_ids`], the entries themselves.
    ///
    /// # Errors
    /// The catalog can't be read.
    fn last_ends(&self, until: Timestamp) -> Result<Vec<QueueEntry>> {
        self.entries(&self.last_end_ids(until)?)
    }

    /// Of the last success and the last failure of each job and domain those that ended after `time`: none,
    /// unless a clock was ahead.
    ///
    /// # Errors
    /// The catalog can't be read.
    fn last_ends_after(&self, time: Timestamp) -> Result<Vec<QueueEntry>>;

    /// Pauses everything, or a job; or takes that back.
    ///
    /// # Errors
    /// The catalog can't be written.
    fn set_pause(&self, job: Option<&str>, to: Pause) -> Result<()>;

    /// What is paused.
    ///
    /// # Errors
    /// The catalog can't be read.
    fn pauses(&self) -> Result<Pauses>;
}

/// Entries that wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaitingEntries {
    /// How many.
    pub count: u64,
    /// When the first of them was due.
    pub since: Option<Timestamp>,
}

/// Whether something is to be paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// It is.
    On,
    /// It is not.
    Off,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub enum RunEnd {
    /// There is a good backup.
    Succeeded(RunResult),
    /// There is none, and it is not tried again.
    Failed(RunResult),
    /// Somebody ended it.
    Cancelled(RunResult),
    /// It failed and is tried again, not before a time.
    Retry(RunResult, Timestamp),
    /// It was broken off because the service ends; the attempt does not count.
    Parked,
}
