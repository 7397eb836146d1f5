//! The queue of the service: what is to be done, what runs, what became of it; how far each job's schedule was turned into entries; and what
//! is paused.
//!
//! - An entry is one domain of one job, once. While it waits, there is no second one of the same job and domain: whatever asks for one
//!   finds it. The tables say so themselves (`queue_waiting`), as they say that a domain has one run at a time (`queue_running`).
//! - Each call is one transaction, durable when it returns. [`Queue::fire`] makes the entries of a schedule's time and notes that time in
//!   one go, so that a restart neither loses a run nor makes it twice.
//! - An entry whose service dies under it waits again, [`INTERRUPTED`] times in a row at most: it may be what the service dies of.
//! - Entries that have ended are kept: the last [`HISTORY`], and of each job and domain the last of each kind.
//!
//! ```text
//! waiting, parked --start--> running --end--> succeeded, failed, cancelled
//!    ^    \------cancel----> cancelled  |
//!    \------- again, parked, recall ---/  (recall, too often: failed)
//! ```
//!
//! Imports: `error`, plain types of `hypervisor`.

mod rows;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Debug;

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, Transaction, params};

use self::rows::{COLUMNS, STATES, read_entry, reason_words, time, write_result};
use super::journal::{Catalog, Sql, word};
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
    /// Puts an entry into the queue, or finds the one that waits already. One that a person asks for brings the waiting one to the front.
    ///
    /// # Errors
    /// The catalog can't be written.
    fn add(&self, wanted: &NewEntry) -> Result<i64>;

    /// Notes that a job's schedule is turned into entries up to `planned`, and makes those entries, all or none.
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

    /// Puts what a service left that is dead back into the queue: what ran, and what it parked. Returns what ran, as it is now: its attempt
    /// counts, and after [`INTERRUPTED`] of them that ended so, with no noted end between them, it has failed.
    ///
    /// # Errors
    /// The catalog can't be written.
    fn recall(&self, at: Timestamp) -> Result<Vec<QueueEntry>>;

    /// Entries that wait or run, in the order in which they are taken.
    ///
    /// # Errors
    /// The catalog can't be read.
    fn open_entries(&self) -> Result<Vec<QueueEntry>>;

    /// One entry.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; the catalog can't be read.
    fn entry(&self, id: i64) -> Result<QueueEntry>;

    /// Of each job and domain the last success and the last failure, of those that ended by `until`.
    ///
    /// # Errors
    /// The catalog can't be read.
    fn last_ends(&self, until: Timestamp) -> Result<Vec<QueueEntry>>;

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

/// The one key of a pause of everything; no job has this name.
const EVERYTHING: &str = "";

/// Inserts an entry where none waits; where one does, a person's wish brings it to the front.
fn insert(transaction: &Transaction<'_>, wanted: &NewEntry) -> Sql<i64> {
    let (reason, event) = reason_words(&wanted.reason);
    let domain = wanted.domain.to_string();
    let query = "SELECT id FROM queue WHERE job = ?1 AND domain = ?2 AND state IN ('waiting', 'parked')";
    let found =
        transaction.query_row(query, params![wanted.job, domain], |row| row.get::<_, i64>(0)).optional()?;
    if let Some(id) = found {
        if wanted.reason == EntryReason::Request {
            let front = "UPDATE queue SET reason = 'request', event = NULL, not_before = ?2 WHERE id = ?1";
            transaction.execute(front, params![id, wanted.not_before.as_millisecond()])?;
        }
        return Ok(id);
    }
    transaction.execute(
        "INSERT INTO queue (job, domain, name, reason, event, due, not_before, state, attempts)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 'waiting', 0)",
        params![
            wanted.job,
            domain,
            wanted.name,
            reason,
            event,
            wanted.due.as_millisecond(),
            wanted.not_before.as_millisecond()
        ],
    )?;
    Ok(transaction.last_insert_rowid())
}

/// Keeps the history bounded.
fn prune(transaction: &Transaction<'_>) -> Sql<()> {
    let ended = "state IN ('succeeded', 'failed', 'cancelled')";
    transaction.execute(
        &format!(
            "DELETE FROM queue WHERE {ended}
             AND id NOT IN (SELECT id FROM queue WHERE {ended} ORDER BY id DESC LIMIT {HISTORY})
             AND id NOT IN (SELECT max(id) FROM queue WHERE {ended} GROUP BY job, domain, state)"
        ),
        [],
    )?;
    Ok(())
}

/// Why an entry has failed that no service has survived.
fn interrupted_too_often() -> RunResult {
    RunResult {
        sentence: format!(
            "the service was killed during each of {INTERRUPTED} attempts in a row; it is not tried again"
        ),
        hint: Some("the system's log may say what kills it ('journalctl -u virtfold', memory?); 'virtfold run' tries again".to_owned()),
        kind: Some(ErrorKind::Interrupted),
        ..RunResult::default()
    }
}

/// Changes one entry that must be in a state.
fn change(changed: usize, id: i64, state: &str) -> Sql<()> {
    if changed == 1 { Ok(()) } else { Err(format!("there is no entry {id} that is {state}").into()) }
}

impl Catalog {
    fn entries(&self, tail: &str) -> Sql<Vec<QueueEntry>> {
        let connection = self.connection();
        let mut statement = connection.prepare(&format!("SELECT {COLUMNS} FROM queue {tail}"))?;
        let mut rows = statement.query([])?;
        let mut entries = Vec::new();
        while let Some(row) = rows.next()? {
            entries.push(read_entry(row)?);
        }
        Ok(entries)
    }

    fn pairs<T>(&self, query: &str, read: impl Fn(&Row<'_>) -> Sql<T>) -> Sql<Vec<T>> {
        let connection = self.connection();
        let mut statement = connection.prepare(query)?;
        let mut rows = statement.query([])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            all.push(read(row)?);
        }
        Ok(all)
    }
}

impl Queue for Catalog {
    fn add(&self, wanted: &NewEntry) -> Result<i64> {
        let mut id = 0;
        self.write(|transaction| {
            id = insert(transaction, wanted)?;
            Ok(())
        })?;
        Ok(id)
    }

    fn fire(&self, job: &str, planned: Timestamp, wanted: &[NewEntry]) -> Result<()> {
        self.write(|transaction| {
            transaction.execute(
                "INSERT INTO planned (job, last) VALUES (?1, ?2) ON CONFLICT (job) DO UPDATE SET last = ?2",
                params![job, planned.as_millisecond()],
            )?;
            wanted.iter().try_for_each(|wanted| insert(transaction, wanted).map(|_| ()))
        })
    }

    fn planned(&self) -> Result<BTreeMap<String, Timestamp>> {
        let read = self.pairs("SELECT job, last FROM planned", |row| Ok((row.get(0)?, time(row.get(1)?)?)));
        read.map(|pairs| pairs.into_iter().collect()).map_err(|e| self.unreadable(e))
    }

    fn start(&self, id: i64, at: Timestamp) -> Result<()> {
        self.write(|transaction| {
            let update =
                "UPDATE queue SET state = 'running', attempts = attempts + 1, started = ?2, ended = NULL
                          WHERE id = ?1 AND state IN ('waiting', 'parked')";
            change(transaction.execute(update, params![id, at.as_millisecond()])?, id, "waiting")
        })
    }

    fn end(&self, id: i64, at: Timestamp, end: &RunEnd) -> Result<()> {
        let (state, result, not_before) = match end {
            RunEnd::Succeeded(result) => (EntryState::Succeeded, Some(result), None),
            RunEnd::Failed(result) => (EntryState::Failed, Some(result), None),
            RunEnd::Cancelled(result) => (EntryState::Cancelled, Some(result), None),
            RunEnd::Retry(result, not_before) => (EntryState::Waiting, Some(result), Some(*not_before)),
            RunEnd::Parked => (EntryState::Parked, None, None),
        };
        let kept = matches!(end, RunEnd::Parked);
        self.write(|transaction| {
            // One of the same job and domain came meanwhile and waits: it is what comes again.
            if matches!(state, EntryState::Waiting | EntryState::Parked) {
                let others = "UPDATE queue SET state = 'cancelled', ended = ?2, result = ?3 WHERE id IN (
                    SELECT o.id FROM queue o JOIN queue q ON q.id = ?1 AND o.job = q.job AND o.domain = q.domain
                    WHERE o.id != ?1 AND o.state = 'waiting')";
                let why = RunResult { sentence: format!("entry {id} is done in its place"), ..RunResult::default() };
                transaction.execute(others, params![id, at.as_millisecond(), write_result(&why)])?;
            }
            let changed = transaction.execute(
                "UPDATE queue SET state = ?2, ended = ?3, result = coalesce(?4, result),
                 not_before = coalesce(?5, not_before), attempts = attempts - ?6, interrupted = 0 WHERE id = ?1 AND state = 'running'",
                params![
                    id,
                    word(&STATES, &state),
                    at.as_millisecond(),
                    result.map(write_result),
                    not_before.map(Timestamp::as_millisecond),
                    i64::from(kept)
                ],
            )?;
            change(changed, id, "running")?;
            prune(transaction)
        })
    }

    fn cancel(&self, id: i64, at: Timestamp, why: &str) -> Result<()> {
        let result = write_result(&RunResult { sentence: why.to_owned(), ..RunResult::default() });
        self.write(|transaction| {
            let update = "UPDATE queue SET state = 'cancelled', ended = ?2, result = ?3
                          WHERE id = ?1 AND state IN ('waiting', 'parked')";
            change(transaction.execute(update, params![id, at.as_millisecond(), result])?, id, "waiting")
        })
    }

    fn recall(&self, at: Timestamp) -> Result<Vec<QueueEntry>> {
        let ran = self.entries("WHERE state = 'running' ORDER BY id").map_err(|e| self.unreadable(e))?;
        self.write(|transaction| {
            transaction
                .execute("UPDATE queue SET interrupted = interrupted + 1 WHERE state = 'running'", [])?;
            let enough = "UPDATE queue SET state = 'failed', ended = ?1, result = ?2
                          WHERE state = 'running' AND interrupted >= ?3";
            transaction.execute(
                enough,
                params![at.as_millisecond(), write_result(&interrupted_too_often()), INTERRUPTED],
            )?;
            // What waits beside what ran is the same wish.
            let double = "DELETE FROM queue WHERE state = 'waiting' AND EXISTS (SELECT 1 FROM queue q
                          WHERE q.job = queue.job AND q.domain = queue.domain AND q.state = 'running')";
            transaction.execute(double, [])?;
            let back = "UPDATE queue SET state = 'waiting' WHERE state IN ('running', 'parked')";
            transaction.execute(back, [])?;
            prune(transaction)
        })?;
        ran.iter().map(|entry| self.entry(entry.id)).collect()
    }

    fn open_entries(&self) -> Result<Vec<QueueEntry>> {
        let open = "WHERE state IN ('waiting', 'running', 'parked')
                    ORDER BY state != 'running', reason != 'request', due, id";
        self.entries(open).map_err(|e| self.unreadable(e))
    }

    fn entry(&self, id: i64) -> Result<QueueEntry> {
        let found = self.entries(&format!("WHERE id = {id}")).map_err(|e| self.unreadable(e))?;
        found
            .into_iter()
            .next()
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no entry {id}")))
    }

    fn last_ends(&self, until: Timestamp) -> Result<Vec<QueueEntry>> {
        let last = format!(
            "WHERE id IN (SELECT max(id) FROM queue WHERE state IN ('succeeded', 'failed') AND ended <= {}
             GROUP BY job, domain, state) ORDER BY name, ended",
            until.as_millisecond()
        );
        self.entries(&last).map_err(|e| self.unreadable(e))
    }

    fn set_pause(&self, job: Option<&str>, to: Pause) -> Result<()> {
        let change = match to {
            Pause::On => "INSERT OR IGNORE INTO pause (job) VALUES (?1)",
            Pause::Off => "DELETE FROM pause WHERE job = ?1",
        };
        self.write(|transaction| {
            transaction.execute(change, [job.unwrap_or(EVERYTHING)])?;
            Ok(())
        })
    }

    fn pauses(&self) -> Result<Pauses> {
        let names = self.pairs("SELECT job FROM pause ORDER BY job", |row| Ok(row.get::<_, String>(0)?));
        let names = names.map_err(|e| self.unreadable(e))?;
        let (all, jobs): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| name == EVERYTHING);
        Ok(Pauses { all: !all.is_empty(), jobs })
    }
}
