//! The journal in SQLite.

use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use uuid::Uuid;

use super::freeze_session::{
    BaseImage, FreezeSession, JournalEntry, SessionDisk, SessionKind, SessionOutcome, SessionState,
    UnfreezeState,
};
use super::schema::Sql;
use super::{DomainLock, HISTORY, Journal, NoCatalog, locks, schema};
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::partial_file;
use virtfold_hypervisor::DomainId;
use virtfold_hypervisor::host_files::ImageStamp;
use virtfold_hypervisor::types::Persistence;
use virtfold_hypervisor::watchdog::GuestHold;

const KINDS: [(&str, SessionKind); 3] = [
    ("running", SessionKind::Running),
    ("standing", SessionKind::Standing),
    ("at rest", SessionKind::AtRest),
];
const STATES: [(&str, SessionState); 6] = [
    ("planned", SessionState::Planned),
    ("snapshotted", SessionState::Snapshotted),
    ("read done", SessionState::ReadDone),
    ("committing", SessionState::Committing),
    ("reading", SessionState::Reading),
    ("closed", SessionState::Closed),
];
const HELD: [(&str, GuestHold); 2] = [("frozen", GuestHold::Frozen), ("paused", GuestHold::Paused)];
const OUTCOMES: [(&str, SessionOutcome); 3] = [
    ("copied", SessionOutcome::Copied),
    ("failed", SessionOutcome::Failed),
    ("recovered", SessionOutcome::Recovered),
];
const PERSISTENCE: [(&str, Persistence); 2] =
    [("persistent", Persistence::Persistent), ("transient", Persistence::Transient)];
const DISKS: [(&str, UnfreezeState); 7] = [
    ("waiting", UnfreezeState::Waiting),
    ("committing", UnfreezeState::Committing),
    ("ready", UnfreezeState::Ready),
    ("at rest", UnfreezeState::AtRest),
    ("pivoting", UnfreezeState::Pivoting { level: None }),
    ("pivoted", UnfreezeState::Pivoted),
    ("done", UnfreezeState::Done),
];

/// The catalog in a state directory.
#[derive(Debug)]
pub struct Catalog {
    path: PathBuf,
    locks: PathBuf,
    connection: Mutex<Connection>,
}

impl Catalog {
    /// Opens the catalog of a state directory, where there is one; makes nothing.
    ///
    /// # Errors
    /// As [`Catalog::open`].
    pub fn open_existing(state: &Path) -> Result<Option<Self>> {
        if NoCatalog::is_missing(state) { Ok(None) } else { Self::open(state).map(Some) }
    }

    /// Opens the catalog of a state directory; makes both where there is no catalog yet.
    ///
    /// # Errors
    /// The directory can't be made or written; [`ErrorKind::Damaged`] when the catalog is none, or of another
    /// version.
    pub fn open(state: &Path) -> Result<Self> {
        let locks = state.join("locks");
        let making = || format!("cannot make the state directory '{}'", state.display());
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&locks);
        partial_file::at_directory(made, &locks, making)?;
        let path = state.join("catalog.sqlite");
        let connection = schema::open(&path)?;
        if let Some(parent) = state.parent().filter(|p| !p.as_os_str().is_empty()) {
            File::open(parent).and_then(|d| d.sync_all()).at(making)?;
        }
        Ok(Self { path, locks, connection: Mutex::new(connection) })
    }

    /// Checks all of it now. Opening does so once a week.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] where it is damaged.
    pub fn check(&self) -> Result<()> {
        schema::check(&self.connection()).map_err(|e| schema::unusable(&self.path, e))
    }

    /// Keeps other runs that prune away.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`] with the process that does.
    pub fn lock_pruning(&self) -> Result<Box<dyn DomainLock>> {
        locks::take_prune(&self.locks)
    }

    pub(super) fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one transaction that writes.
    pub(super) fn write(&self, work: impl FnOnce(&Transaction<'_>) -> Sql<()>) -> Result<()> {
        let mut connection = self.connection();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate);
        let written = transaction.map_err(Into::into).and_then(|transaction| -> Sql<()> {
            work(&transaction)?;
            Ok(transaction.commit()?)
        });
        written.map_err(|e| {
            let message = format!("the catalog '{}' can't be written", self.path.display());
            Error::new(schema::failure(e.as_ref()).unwrap_or(ErrorKind::Io), message).with_source(e)
        })
    }

    /// The error of a failed read.
    pub(super) fn unreadable(&self, source: Box<dyn std::error::Error + Send + Sync>) -> Error {
        let message = format!("the catalog '{}' can't be read", self.path.display());
        Error::new(schema::failure(source.as_ref()).unwrap_or(ErrorKind::Io), message).with_source(source)
    }

    fn read(&self, domain: Option<DomainId>) -> Sql<Vec<FreezeSession>> {
        let connection = self.connection();
        let mut statement = connection.prepare(
            "SELECT id, domain, name, persistence, live, inactive, kind, created, state, held FROM freeze_session
             WHERE outcome IS NULL AND (?1 IS NULL OR domain = ?1) ORDER BY rowid",
        )?;
        let mut rows = statement.query([domain.map(|d| d.to_string())])?;
        let mut jobs = Vec::new();
        while let Some(row) = rows.next()? {
            let mut job = read_job(row)?;
            job.disks = read_disks(&connection, job.id)?;
            jobs.push(job);
        }
        Ok(jobs)
    }
}

impl Journal for Catalog {
    fn lock(&self, domain: DomainId) -> Result<Box<dyn DomainLock>> {
        locks::take(&self.locks, domain)
    }

    fn begin(&self, job: &FreezeSession) -> Result<()> {
        self.write(|transaction| insert(transaction, job))
    }

    fn record(&self, job: Uuid, changes: &[JournalEntry]) -> Result<()> {
        self.write(|transaction| {
            let open = "SELECT 1 FROM freeze_session WHERE id = ?1 AND outcome IS NULL";
            let known = transaction.query_row(open, [job.to_string()], |_| Ok(())).optional()?;
            known.ok_or_else(|| format!("no open freeze session {job}"))?;
            changes.iter().try_for_each(|change| apply(transaction, job, change))
        })
    }

    fn open_sessions(&self, domain: Option<DomainId>) -> Result<Vec<FreezeSession>> {
        self.read(domain).map_err(|e| self.unreadable(e))
    }
}

pub(super) fn word<T: PartialEq>(table: &[(&'static str, T)], value: &T) -> &'static str {
    table.iter().find(|(_, v)| v == value).map_or("", |(word, _)| word)
}

pub(super) fn meaning<T: Copy>(table: &[(&'static str, T)], text: &str) -> Sql<T> {
    let found = table.iter().find(|(word, _)| *word == text).map(|(_, v)| *v);
    found.ok_or_else(|| format!("'{text}' means nothing").into())
}

fn mark_text(mark: ImageStamp) -> String {
    format!("{} {} {}", mark.modified.as_secs(), mark.modified.subsec_nanos(), mark.size)
}

fn read_mark(text: Option<String>) -> Sql<Option<ImageStamp>> {
    let Some(text) = text else { return Ok(None) };
    let numbers = text.split(' ').map(str::parse).collect::<std::result::Result<Vec<u64>, _>>()?;
    match numbers[..] {
        [seconds, nanos, size] => {
            let modified = std::time::Duration::new(seconds, u32::try_from(nanos)?);
            Ok(Some(ImageStamp { modified, size }))
        }
        _ => Err(format!("'{text}' is not a stamp").into()),
    }
}

fn path_blob(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

fn path_of(blob: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(blob))
}

fn insert(transaction: &Transaction<'_>, job: &FreezeSession) -> Sql<()> {
    transaction.execute(
        "INSERT INTO freeze_session (id, domain, name, persistence, live, inactive, kind, created, state, held)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        params![
            job.id.to_string(),
            job.domain.to_string(),
            job.name,
            word(&PERSISTENCE, &job.persistence),
            job.live,
            job.inactive,
            word(&KINDS, &job.kind),
            job.created,
            word(&STATES, &job.state),
            job.held.map(|h| word(&HELD, &h)),
        ],
    )?;
    job.disks.iter().enumerate().try_for_each(|(position, disk)| {
        let position = i64::try_from(position)?;
        insert_disk(transaction, job.id, position, disk)
    })
}

fn insert_disk(transaction: &Transaction<'_>, job: Uuid, position: i64, disk: &SessionDisk) -> Sql<()> {
    let (state, level) = state_words(disk.state);
    let backing = disk.base.backing.as_ref();
    transaction.execute(
        "INSERT INTO session_disk (session, position, target, alias, base, format, device, inode, backing, backing_format,
                           overlay, frozen, state, level)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
        params![
            job.to_string(),
            position,
            disk.target,
            disk.alias,
            path_blob(&disk.base.path),
            disk.base.format,
            disk.base.identity.map(|(device, _)| device.to_string()),
            disk.base.identity.map(|(_, inode)| inode.to_string()),
            backing.map(|(path, _)| path_blob(path)),
            backing.map(|(_, format)| format),
            disk.overlay.as_deref().map(path_blob),
            disk.frozen.map(mark_text),
            state,
            level,
        ],
    )?;
    Ok(())
}

fn state_words(state: UnfreezeState) -> (&'static str, Option<String>) {
    match state {
        UnfreezeState::Pivoting { level } => ("pivoting", level.map(mark_text)),
        other => (word(&DISKS, &other), None),
    }
}

fn apply(transaction: &Transaction<'_>, job: Uuid, change: &JournalEntry) -> Sql<()> {
    let job = job.to_string();
    let changed = match change {
        JournalEntry::State(state) => transaction
            .execute("UPDATE freeze_session SET state = ?2 WHERE id = ?1", [&job, word(&STATES, state)])?,
        JournalEntry::Held(held) => {
            let held = held.as_ref().map(|h| word(&HELD, h));
            transaction.execute("UPDATE freeze_session SET held = ?2 WHERE id = ?1", params![job, held])?
        }
        JournalEntry::Frozen { target, mark } => transaction.execute(
            "UPDATE session_disk SET frozen = ?3 WHERE session = ?1 AND target = ?2",
            params![job, target, mark_text(*mark)],
        )?,
        JournalEntry::Disk { target, state } => {
            let (state, level) = state_words(*state);
            let update = "UPDATE session_disk SET state = ?3, level = ?4 WHERE session = ?1 AND target = ?2";
            transaction.execute(update, params![job, target, state, level])?
        }
        JournalEntry::Close(outcome) => {
            let closed = word(&STATES, &SessionState::Closed);
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
            let update =
                "UPDATE freeze_session SET state = ?2, outcome = ?3, held = NULL, closed = ?4 WHERE id = ?1";
            let values = params![job, closed, word(&OUTCOMES, outcome), i64::try_from(now)?];
            let changed = transaction.execute(update, values)?;
            let old = "DELETE FROM freeze_session WHERE outcome IS NOT NULL AND id NOT IN
                       (SELECT id FROM freeze_session WHERE outcome IS NOT NULL ORDER BY rowid DESC LIMIT ?1)";
            transaction.execute(old, [HISTORY])?;
            changed
        }
    };
    if changed == 1 {
        Ok(())
    } else {
        Err(format!("freeze session {job} has not what is noted: {change:?}").into())
    }
}

fn read_job(row: &Row<'_>) -> Sql<FreezeSession> {
    let text = |index: usize| row.get::<_, String>(index);
    let held: Option<String> = row.get(9)?;
    Ok(FreezeSession {
        id: text(0)?.parse()?,
        domain: DomainId(text(1)?.parse()?),
        name: text(2)?,
        persistence: meaning(&PERSISTENCE, &text(3)?)?,
        live: row.get(4)?,
        inactive: row.get(5)?,
        kind: meaning(&KINDS, &text(6)?)?,
        created: row.get(7)?,
        state: meaning(&STATES, &text(8)?)?,
        held: held.map(|h| meaning(&HELD, &h)).transpose()?,
        disks: Vec::new(),
    })
}

fn read_disks(connection: &Connection, job: Uuid) -> Sql<Vec<SessionDisk>> {
    let mut statement = connection.prepare(
        "SELECT target, alias, base, format, device, inode, backing, backing_format, overlay, frozen, state, level
         FROM session_disk WHERE session = ?1 ORDER BY position",
    )?;
    let mut rows = statement.query([job.to_string()])?;
    let mut disks = Vec::new();
    while let Some(row) = rows.next()? {
        disks.push(read_disk(row)?);
    }
    Ok(disks)
}

fn read_disk(row: &Row<'_>) -> Sql<SessionDisk> {
    let number = |index: usize| -> Sql<Option<u64>> {
        Ok(row.get::<_, Option<String>>(index)?.map(|text| text.parse()).transpose()?)
    };
    let backing = row.get::<_, Option<Vec<u8>>>(6)?.map(path_of).zip(row.get(7)?);
    let state = match meaning(&DISKS, &row.get::<_, String>(10)?)? {
        UnfreezeState::Pivoting { .. } => UnfreezeState::Pivoting { level: read_mark(row.get(11)?)? },
        other => other,
    };
    Ok(SessionDisk {
        target: row.get(0)?,
        alias: row.get(1)?,
        base: BaseImage {
            path: path_of(row.get(2)?),
            format: row.get(3)?,
            identity: number(4)?.zip(number(5)?),
            backing,
        },
        overlay: row.get::<_, Option<Vec<u8>>>(8)?.map(path_of),
        frozen: read_mark(row.get(9)?)?,
        state,
    })
}
