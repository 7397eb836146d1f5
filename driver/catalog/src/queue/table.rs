//! The queue's table in SQLite: each call of [`Queue`] is one transaction or one statement.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::super::journal::{Catalog, word};
use super::super::schema::Sql;
use super::rows::{COLUMNS, STATES, read_entry, reason_words, time, write_result};
use super::{
    EntryReason, EntryState, HISTORY, INTERRUPTED, NewEntry, Pause, Pauses, Queue, QueueEntry, RunEnd,
    RunResult, WaitingEntries,
};
use virtfold_base::error::{Error, ErrorKind, Result};

/// Entries that wait or run, in the order in which they are taken; the index `queue_open` has it.
pub(super) const OPEN: &str = "WHERE state IN ('waiting', 'running', 'parked') ORDER BY state != 'running', reason != 'request', due, id";

/// Entries that one statement asks for by their numbers.
const MOST_AT_ONCE: usize = 500;

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
    fn select(&self, tail: &str) -> Sql<Vec<QueueEntry>> {
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
    fn add_all(&self, wanted: &[NewEntry]) -> Result<Vec<i64>> {
        let mut ids = Vec::with_capacity(wanted.len());
        self.write(|transaction| {
            for wanted in wanted {
                ids.push(insert(transaction, wanted)?);
            }
            Ok(())
        })?;
        Ok(ids)
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
        let ran = self.select("WHERE state = 'running' ORDER BY id").map_err(|e| self.unreadable(e))?;
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
        self.select(OPEN).map_err(|e| self.unreadable(e))
    }

    fn open_page(&self, skip: u64, most: usize) -> Result<Vec<QueueEntry>> {
        self.select(&format!("{OPEN} LIMIT {most} OFFSET {skip}")).map_err(|e| self.unreadable(e))
    }

    fn waiting(&self) -> Result<WaitingEntries> {
        let query = "SELECT count(*), min(due) FROM queue WHERE state IN ('waiting', 'parked')";
        let read = |row: &Row<'_>| -> Sql<WaitingEntries> {
            let since = row.get::<_, Option<i64>>(1)?.map(time).transpose()?;
            Ok(WaitingEntries { count: u64::try_from(row.get::<_, i64>(0)?)?, since })
        };
        let found = self.pairs(query, read).map_err(|e| self.unreadable(e))?;
        Ok(found.into_iter().next().unwrap_or_default())
    }

    fn entry(&self, id: i64) -> Result<QueueEntry> {
        let found = self.entries(&[id])?;
        found
            .into_iter()
            .next()
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no entry {id}")))
    }

    fn entries(&self, ids: &[i64]) -> Result<Vec<QueueEntry>> {
        let mut found = Vec::with_capacity(ids.len());
        for some in ids.chunks(MOST_AT_ONCE) {
            let list: Vec<String> = some.iter().map(i64::to_string).collect();
            let read = self.select(&format!("WHERE id IN ({})", list.join(", ")));
            found.extend(read.map_err(|e| self.unreadable(e))?);
        }
        Ok(found)
    }

    fn last_end_ids(&self, until: Timestamp) -> Result<Vec<i64>> {
        let query = format!(
            "SELECT max(id) AS last FROM queue WHERE state IN ('succeeded', 'failed') AND ended <= {}
             GROUP BY job, domain, state ORDER BY last",
            until.as_millisecond()
        );
        self.pairs(&query, |row| Ok(row.get(0)?)).map_err(|e| self.unreadable(e))
    }

    fn last_ends_after(&self, time: Timestamp) -> Result<Vec<QueueEntry>> {
        let query = format!(
            "WHERE id IN (SELECT last FROM (SELECT max(id) AS last, ended FROM queue WHERE state IN ('succeeded', 'failed')
             GROUP BY job, domain, state) WHERE ended > {}) ORDER BY name, ended",
            time.as_millisecond()
        );
        self.select(&query).map_err(|e| self.unreadable(e))
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
