//! Entries as rows of the table.

use jiff::Timestamp;
use rusqlite::Row;
use uuid::Uuid;

use super::super::journal::meaning;
use super::super::schema::Sql;
use super::{EntryReason, EntryState, NewEntry, QueueEntry, RunResult};
use virtfold_base::error::ErrorKind;
use virtfold_hypervisor::DomainId;

pub(super) const STATES: [(&str, EntryState); 6] = [
    ("waiting", EntryState::Waiting),
    ("running", EntryState::Running),
    ("parked", EntryState::Parked),
    ("succeeded", EntryState::Succeeded),
    ("failed", EntryState::Failed),
    ("cancelled", EntryState::Cancelled),
];

pub(super) const COLUMNS: &str =
    "id, job, domain, name, reason, event, due, not_before, state, attempts, started, ended, result";

pub(super) fn time(millis: i64) -> Sql<Timestamp> {
    Ok(Timestamp::from_millisecond(millis)?)
}

fn reason(text: &str, event: Option<String>) -> Sql<EntryReason> {
    Ok(match (text, event) {
        ("schedule", None) => EntryReason::Schedule,
        ("catch-up", None) => EntryReason::CatchUp,
        ("request", None) => EntryReason::Request,
        ("event", Some(event)) => EntryReason::Event(event),
        _ => return Err(format!("'{text}' is not a reason of an entry").into()),
    })
}

pub(super) fn reason_words(reason: &EntryReason) -> (&'static str, Option<&str>) {
    match reason {
        EntryReason::Schedule => ("schedule", None),
        EntryReason::CatchUp => ("catch-up", None),
        EntryReason::Request => ("request", None),
        EntryReason::Event(event) => ("event", Some(event)),
    }
}

pub(super) fn read_entry(row: &Row<'_>) -> Sql<QueueEntry> {
    let moment = |index: usize| row.get::<_, Option<i64>>(index)?.map(time).transpose();
    let result: Option<String> = row.get(12)?;
    Ok(QueueEntry {
        id: row.get(0)?,
        wanted: NewEntry {
            job: row.get(1)?,
            domain: DomainId(row.get::<_, String>(2)?.parse::<Uuid>()?),
            name: row.get(3)?,
            reason: reason(&row.get::<_, String>(4)?, row.get(5)?)?,
            due: time(row.get(6)?)?,
            not_before: time(row.get(7)?)?,
        },
        state: meaning(&STATES, &row.get::<_, String>(8)?)?,
        attempts: row.get(9)?,
        started: moment(10)?,
        ended: moment(11)?,
        result: result.map(|text| read_result(&text)).transpose()?,
    })
}

pub(super) fn write_result(result: &RunResult) -> String {
    serde_json::json!({
        "sentence": result.sentence, "hint": result.hint, "exit_code": result.exit_code, "kind": result.kind,
        "archives": result.archives, "measure": result.measure,
    })
    .to_string()
}

fn read_result(text: &str) -> Sql<RunResult> {
    #[derive(serde::Deserialize)]
    struct Stored {
        sentence: String,
        hint: Option<String>,
        exit_code: Option<i32>,
        kind: Option<ErrorKind>,
        archives: Vec<String>,
        measure: Option<serde_json::Value>,
    }
    let Stored { sentence, hint, exit_code, kind, archives, measure } = serde_json::from_str(text)?;
    Ok(RunResult { sentence, hint, exit_code, kind, archives, measure })
}
