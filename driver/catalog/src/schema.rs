//! The tables, their version, and how a catalog comes to be.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::safe_path::Entry;

/// What SQLite says, or why a row is of no use.
pub(super) type Sql<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Marks the file as ours (`PRAGMA application_id`): `vfct`.
const APPLICATION: i32 = 0x7666_6374;
/// The version of [`TABLES`] (`PRAGMA user_version`); each of [`ADDED`] is one more.
const FIRST: i32 = 1;

/// How often all of the catalog is checked, seconds; the service does so at its start, too.
const CHECK_EVERY: i64 = 7 * 24 * 3600;

/// How long a writer waits for another one.
const PATIENCE: Duration = Duration::from_secs(30);

/// What version 1 has: the journal of freeze sessions; the service's queue, in which a domain has one run at
/// a time and a job waits for a domain once; the backups, each copy a row, with what tells their sources
/// apart (JSON), what the last verification of each came to, the archives that are pinned, and notes of
/// archives; the numbers of signed archives, the last one of each chain, and which archives `prune` removed;
/// what was mounted where archives go; and what is known of tapes, which is rebuilt by reading them but for
/// `failed`; and when all of the catalog was last checked (`integrity`). `created`, `removed`, `since` and
/// `checked` are seconds since 1970, the queue's times and `planned.last` milliseconds.
const TABLES: &str = "
CREATE TABLE freeze_session (
    id TEXT PRIMARY KEY,
    domain TEXT NOT NULL,
    name TEXT NOT NULL,
    persistence TEXT NOT NULL,
    live TEXT,
    inactive TEXT,
    kind TEXT NOT NULL,
    created INTEGER NOT NULL,
    state TEXT NOT NULL,
    held TEXT,
    outcome TEXT,
    closed INTEGER
) STRICT;
CREATE INDEX freeze_session_open ON freeze_session (domain) WHERE outcome IS NULL;
CREATE TABLE session_disk (
    session TEXT NOT NULL REFERENCES freeze_session (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    target TEXT NOT NULL,
    alias TEXT,
    base BLOB NOT NULL,
    format TEXT NOT NULL,
    device TEXT,
    inode TEXT,
    backing BLOB,
    backing_format TEXT,
    overlay BLOB,
    frozen TEXT,
    state TEXT NOT NULL,
    level TEXT,
    PRIMARY KEY (session, target)
) STRICT;
CREATE TABLE queue (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    job TEXT NOT NULL,
    domain TEXT NOT NULL,
    name TEXT NOT NULL,
    reason TEXT NOT NULL,
    event TEXT,
    due INTEGER NOT NULL,
    not_before INTEGER NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    interrupted INTEGER NOT NULL DEFAULT 0,
    started INTEGER,
    ended INTEGER,
    result TEXT
) STRICT;
CREATE UNIQUE INDEX queue_running ON queue (domain) WHERE state = 'running';
CREATE UNIQUE INDEX queue_waiting ON queue (job, domain) WHERE state IN ('waiting', 'parked');
CREATE INDEX queue_last ON queue (job, domain, state, ended);
CREATE INDEX queue_open ON queue (state != 'running', reason != 'request', due, id) WHERE state IN ('waiting', 'running', 'parked');
CREATE TABLE planned (job TEXT PRIMARY KEY, last INTEGER NOT NULL) STRICT;
CREATE TABLE pause (job TEXT PRIMARY KEY) STRICT;
CREATE TABLE backup (
    name TEXT PRIMARY KEY,
    destination TEXT NOT NULL,
    archive TEXT NOT NULL,
    uuid TEXT,
    subject TEXT NOT NULL,
    images INTEGER NOT NULL,
    host TEXT NOT NULL,
    created INTEGER NOT NULL,
    parent TEXT,
    bytes INTEGER NOT NULL,
    root TEXT,
    encrypted INTEGER NOT NULL,
    job TEXT,
    removed INTEGER,
    source TEXT
) STRICT;
CREATE INDEX backup_destination ON backup (destination);
CREATE INDEX backup_domain ON backup (uuid, created);
CREATE INDEX backup_archive ON backup (archive, destination);
CREATE INDEX backup_removed ON backup (removed) WHERE removed IS NOT NULL;
CREATE TABLE verification (
    name TEXT PRIMARY KEY REFERENCES backup (name) ON DELETE CASCADE,
    archive TEXT NOT NULL,
    checked INTEGER NOT NULL,
    root TEXT,
    sound INTEGER NOT NULL
) STRICT;
CREATE TABLE pin (archive TEXT PRIMARY KEY, since INTEGER NOT NULL) STRICT;
CREATE TABLE archive_note (archive TEXT NOT NULL, note TEXT NOT NULL, PRIMARY KEY (archive, note)) STRICT;
CREATE TABLE chain_number (subject TEXT NOT NULL, signer TEXT NOT NULL, taken INTEGER NOT NULL, PRIMARY KEY (subject, signer)) STRICT;
CREATE TABLE chain_last (
    subject TEXT NOT NULL,
    signer TEXT NOT NULL,
    destination TEXT NOT NULL,
    archive TEXT NOT NULL,
    root TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    PRIMARY KEY (subject, signer, destination)
) STRICT;
CREATE TABLE pruned (archive TEXT NOT NULL, destination TEXT NOT NULL, removed INTEGER NOT NULL, PRIMARY KEY (archive, destination)) STRICT;
CREATE TABLE integrity (id INTEGER PRIMARY KEY CHECK (id = 1), checked INTEGER NOT NULL) STRICT;
CREATE TABLE mount (destination TEXT PRIMARY KEY, point TEXT NOT NULL, file_system TEXT) STRICT;
CREATE TABLE tape_volume (
    id TEXT PRIMARY KEY,
    label TEXT NOT NULL,
    pool TEXT NOT NULL,
    block_size INTEGER NOT NULL,
    created TEXT NOT NULL,
    retain_until TEXT,
    tool TEXT NOT NULL,
    failed TEXT
) STRICT;
CREATE TABLE tape_part (
    volume TEXT NOT NULL REFERENCES tape_volume (id) ON DELETE CASCADE,
    file INTEGER NOT NULL,
    start INTEGER NOT NULL,
    run TEXT NOT NULL,
    archive TEXT NOT NULL,
    part INTEGER NOT NULL,
    first_byte INTEGER NOT NULL,
    before TEXT NOT NULL,
    created TEXT NOT NULL,
    blocks INTEGER,
    bytes INTEGER,
    digest TEXT,
    total INTEGER,
    last INTEGER,
    PRIMARY KEY (volume, file)
) STRICT;
CREATE INDEX tape_run ON tape_part (run, part);
";

/// Notes when all of it was checked.
const CHECKED: &str = "INSERT OR REPLACE INTO integrity (id, checked) VALUES (1, ?1)";

/// What each version adds to the one before it, from version 2 on.
const ADDED: &[&str] = &[];

/// Opens the catalog at `path`, or makes it where there is none.
pub(super) fn open(path: &Path) -> Result<Connection> {
    let looking = || format!("cannot look at '{}'", path.display());
    let entry = Entry::locate(path).at(looking)?;
    let real = entry.path();
    // Only looked at: a file that is opened and closed beside SQLite would take SQLite's locks along.
    entry.expect_no_link().at(looking)?;
    if entry.find().at(looking)?.is_none() {
        make(&real)?;
    }
    connect(&real).map_err(|e| unusable(path, e))
}

/// A catalog that is there, and no link to one.
const FLAGS: OpenFlags = OpenFlags::SQLITE_OPEN_READ_WRITE
    .union(OpenFlags::SQLITE_OPEN_NO_MUTEX)
    .union(OpenFlags::SQLITE_OPEN_NOFOLLOW);

fn connect(path: &Path) -> Sql<Connection> {
    let connection = Connection::open_with_flags(path, FLAGS)?;
    settle(&connection)?;
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    if number("application_id")? != APPLICATION {
        return Err("it is not a catalog of virtfold".into());
    }
    upgrade(&connection, ADDED)?;
    expect_whole(&connection, path)?;
    let now = Timestamp::now().as_second();
    let checked: Option<i64> =
        connection.query_row("SELECT max(checked) FROM integrity", [], |row| row.get(0))?;
    // A time to come was noted by a clock that was wrong.
    if checked.is_none_or(|checked| checked > now || now - checked >= CHECK_EVERY) {
        check(&connection)?;
    }
    Ok(connection)
}

/// Refuses a file that is cut: that shows at once.
fn expect_whole(connection: &Connection, path: &Path) -> Sql<()> {
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let said = u64::try_from(number("page_count")?)?.saturating_mul(u64::try_from(number("page_size")?)?);
    let there = path.metadata()?.len();
    if there < said { Err(format!("it is cut: it has {there} bytes of {said}").into()) } else { Ok(()) }
}

/// Goes through all of it, and notes that. It takes as long as the catalog is large, so not each run does it.
pub(super) fn check(connection: &Connection) -> Sql<()> {
    let verdict: String = connection.pragma_query_value(None, "quick_check", |row| row.get(0))?;
    if verdict != "ok" {
        return Err(verdict.into());
    }
    if let Err(error) = connection.execute(CHECKED, [Timestamp::now().as_second()]) {
        // The next one checks again.
        tracing::debug!(%error, "that the catalog was checked could not be noted");
    }
    Ok(())
}

/// From an older version to this one, whole or not at all; another process may be quicker.
fn upgrade(connection: &Connection, added: &[&str]) -> Sql<()> {
    let read = || connection.pragma_query_value(None, "user_version", |row| row.get::<_, i32>(0));
    let missing =
        |version: i32| version.checked_sub(FIRST).and_then(|n| added.get(usize::try_from(n).ok()?..));
    if missing(read()?).is_some_and(<[_]>::is_empty) {
        return Ok(());
    }
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    let (version, newest) = (read()?, FIRST + i32::try_from(added.len())?);
    let tables = missing(version)
        .ok_or_else(|| format!("it has version {version}, this virtfold knows version {newest}"))?;
    tables.iter().try_for_each(|tables| transaction.execute_batch(tables))?;
    transaction.pragma_update(None, "user_version", newest)?;
    Ok(transaction.commit()?)
}

/// What each connection needs.
fn settle(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(PATIENCE)?;
    connection.pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(()))?;
    // EXTRA is FULL and a sync of the directory after the rollback journal's removal: without it a power cut
    // could bring that journal back, and with it the state before.
    connection.pragma_update(None, "synchronous", "EXTRA")?;
    connection.pragma_update(None, "foreign_keys", true)
}

/// Makes a whole catalog under another name and then gives it its own.
fn make(path: &Path) -> Result<()> {
    let fresh = path.with_extension(format!("{}.new", std::process::id()));
    match std::fs::remove_file(&fresh) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io(format!("cannot remove '{}'", fresh.display()), e));
        }
        _ => {}
    }
    // Descriptions of domains hold passwords. SQLite gives its own files beside this one the same mode.
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh);
    made.at(|| format!("cannot create '{}'", fresh.display()))?;
    fill(&fresh).map_err(|e| unusable(&fresh, e.into()))?;
    let making = || format!("cannot make the catalog '{}'", path.display());
    File::open(&fresh).and_then(|f| f.sync_all()).at(making)?;
    // A link refuses to replace: another run may have been quicker, and its catalog is as good.
    match std::fs::hard_link(&fresh, path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(Error::io(making(), e)),
        _ => {}
    }
    std::fs::remove_file(&fresh).at(making)?;
    let parent = path.parent().unwrap_or(Path::new("."));
    File::open(parent).and_then(|d| d.sync_all()).at(making)
}

fn fill(path: &Path) -> rusqlite::Result<()> {
    let connection = Connection::open_with_flags(path, FLAGS)?;
    settle(&connection)?;
    connection.execute_batch(TABLES)?;
    connection.execute(CHECKED, [Timestamp::now().as_second()])?;
    connection.pragma_update(None, "application_id", APPLICATION)?;
    connection.pragma_update(None, "user_version", FIRST)
}

/// What kind of failure an error of SQLite is that says nothing against the catalog.
pub(super) fn failure(source: &(dyn std::error::Error + Send + Sync + 'static)) -> Option<ErrorKind> {
    let error = source.downcast_ref::<rusqlite::Error>()?;
    match error.sqlite_error_code()? {
        ErrorCode::PermissionDenied | ErrorCode::ReadOnly | ErrorCode::CannotOpen => Some(ErrorKind::Denied),
        ErrorCode::DiskFull => Some(ErrorKind::NoSpace),
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Some(ErrorKind::InUse),
        ErrorCode::SystemIoFailure => Some(ErrorKind::Io),
        _ => None,
    }
}

pub(super) fn unusable(path: &Path, source: Box<dyn std::error::Error + Send + Sync>) -> Error {
    // SQLite says of a file that it may not open only that it can't.
    if let Err(error) = OpenOptions::new().read(true).write(true).open(path) {
        return Error::io(format!("the catalog '{}' can't be used", path.display()), error);
    }
    if let Some(kind) = failure(source.as_ref()) {
        return Error::new(kind, format!("the catalog '{}' can't be used", path.display()))
            .with_source(source);
    }
    let hint = "it knows which guests must be put back on their disks, so it is not replaced. Repair or restore it, or move it away; then run `virtfold recover`";
    let message = format!("the catalog '{}' can't be used", path.display());
    Error::new(ErrorKind::Damaged, message).with_source(source).with_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who may write to the directory has put a link to another catalog, or to a directory, there.
    #[test]
    fn no_catalog_is_opened_or_made_through_a_planted_link() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("root")).unwrap();
        drop(open(&at("root/catalog.sqlite")).unwrap());
        std::os::unix::fs::symlink("root", at("own")).unwrap();
        drop(open(&at("own/catalog.sqlite")).unwrap());
        for (link, target, path) in [
            ("catalog.sqlite", "root/catalog.sqlite", "catalog.sqlite"),
            ("planted", "root", "planted/catalog.sqlite"),
            ("elsewhere", "root", "elsewhere/other.sqlite"),
        ] {
            std::os::unix::fs::symlink(target, at(link)).unwrap();
            std::os::unix::fs::lchown(at(link), Some(65_533), None).unwrap();
            assert_eq!(open(&at(path)).unwrap_err().kind(), ErrorKind::Denied, "{path}");
        }
        assert!(!at("root/other.sqlite").exists());
    }

    /// A catalog of an older version gets what it has not, once, and keeps what it has; one step that fails
    /// undoes all.
    #[test]
    fn older_catalogs_learn() {
        let folder = tempfile::tempdir().unwrap();
        let connection = open(&folder.path().join("catalog.sqlite")).unwrap();
        connection.execute_batch("INSERT INTO pin VALUES ('a', 7)").unwrap();
        let version =
            || connection.pragma_query_value(None, "user_version", |row| row.get::<_, i32>(0)).unwrap();
        let (second, third) =
            ("CREATE TABLE new (a INTEGER) STRICT;", "ALTER TABLE new ADD COLUMN b INTEGER;");
        let (newest, with) =
            (FIRST + i32::try_from(ADDED.len()).unwrap(), |more: &[&'static str]| [ADDED, more].concat());
        upgrade(&connection, &with(&[second, "no SQL"])).unwrap_err();
        assert_eq!(version(), newest);
        for (added, more) in [(&[second][..], 1), (&[second][..], 1), (&[second, third][..], 2)] {
            upgrade(&connection, &with(added)).unwrap();
            assert_eq!(version(), newest + more);
        }
        connection.execute_batch("INSERT INTO new VALUES (1, 2)").unwrap();
        let pinned: i64 = connection.query_row("SELECT since FROM pin", [], |row| row.get(0)).unwrap();
        assert_eq!(pinned, 7);
        let error = upgrade(&connection, &with(&[second])).unwrap_err();
        assert!(error.to_string().contains(&format!("version {}", newest + 2)), "{error}");
    }
}
