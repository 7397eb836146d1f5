//! What is known of backups, in SQLite: each copy that a backup has made good, a row.
//!
//! - A memory, not the truth: what is at a place counts. Rows come from the backups themselves and from
//!   looking at a place
//!   ([`Catalog::remember`] for both), so a lost catalog is had again by looking.
//! - A row outlives its archive, for two years: then it says when that was found to be gone. An archive that
//!   is seen again is there again.
//! - Copies are known by their names ([`copy_name`]), which are the same from whatever directory a person
//!   works.
//!
//! Imports: `error`, `medium` (`Location`).

use std::collections::BTreeSet;

use jiff::Timestamp;
use rusqlite::{Row, Transaction, params};
use uuid::Uuid;

use super::journal::Catalog;
use super::schema::Sql;
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_medium::Location;

/// What a backup is of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct Owner {
    /// The domain's uuid; none for images, and for a domain whose archive does not say it.
    pub uuid: Option<Uuid>,
    /// The domain's name, or what the set of images is called.
    pub name: String,
    /// Whether it is a set of images.
    pub images: bool,
}

/// What tells an owner from another one of the same name.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Source {
    /// The host, whatever it is called.
    pub host_id: Option<String>,
    /// Whether a person named the images: then the name says what they are.
    pub labelled: bool,
    /// Where the images were on their host.
    pub paths: Vec<String>,
}

/// A copy of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupCopy {
    /// Its name, by [`copy_name`].
    pub name: String,
    /// Where it lies, by [`destination_name`].
    pub place: String,
    /// The archive's id, the same for all its copies.
    pub archive: Uuid,
    /// What it is of.
    pub owner: Owner,
    /// What tells it from others of the same name; nothing where that is not known.
    pub source: Source,
    /// The host that made it.
    pub host: String,
    /// When.
    pub created: Timestamp,
    /// The archive that it continues, where it is an increment.
    pub parent: Option<Uuid>,
    /// Its size, bytes.
    pub bytes: u64,
    /// The digest that stands for all of it, hexadecimal, where it is known.
    pub root: Option<String>,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// The configuration's job that it was made for.
    pub job: Option<String>,
}

/// The last good backup of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastBackup {
    /// The domain.
    pub domain: Uuid,
    /// When it was made.
    pub created: Timestamp,
}

/// A place as the catalog has it: directories by their real path.
///
/// # Errors
/// Usage: a path that is no UTF-8, which the catalog can't hold; the directory is not there.
pub fn destination_name(place: &Location) -> Result<String> {
    let Location::Path(path) = place else { return Ok(place.to_string()) };
    let real = path.canonicalize().at(|| format!("cannot look at '{}'", path.display()))?;
    utf8(&real)
}

/// An archive's name as the catalog has it: files by the real path of their directory.
///
/// # Errors
/// As [`destination_name`].
pub fn copy_name(archive: &Location) -> Result<String> {
    let Location::Path(path) = archive else { return Ok(archive.to_string()) };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folder = parent.unwrap_or_else(|| std::path::Path::new("."));
    let real = folder.canonicalize().at(|| format!("cannot look at '{}'", folder.display()))?;
    utf8(&real.join(path.file_name().unwrap_or_default()))
}

pub(super) fn utf8(path: &std::path::Path) -> Result<String> {
    path.to_str().map(ToOwned::to_owned).ok_or_else(|| {
        let message = format!("'{}' is not UTF-8; the catalog can't hold it", path.display());
        Error::new(ErrorKind::Usage, message).with_hint("rename the directory")
    })
}

/// How long a copy is remembered that is gone, seconds: two years.
const REMEMBERED: i64 = 2 * 365 * 24 * 3600;

/// Forgets copies that went long ago, but for the last one of each owner and job: that it was there says
/// whose backups a job's are.
const FORGET: &str = "DELETE FROM backup WHERE removed IS NOT NULL AND removed < ?1 AND EXISTS (
    SELECT 1 FROM backup later WHERE later.uuid IS backup.uuid AND later.subject = backup.subject
    AND later.images = backup.images AND later.job IS backup.job
    AND (later.created > backup.created OR later.created = backup.created AND later.name > backup.name))";

const RESTING_ELSEWHERE: &str = "WHERE destination != ?1 AND removed IS NULL AND parent IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM backup p WHERE p.archive = backup.parent AND p.destination = backup.destination AND p.removed IS NULL) ORDER BY created, name";

/// SQLite gives a bare column the value of the row that has the maximum.
const NEWEST: &str = "SELECT archive, max(created) FROM backup WHERE removed IS NULL AND root IS NOT NULL
    GROUP BY destination, uuid, subject, images, source
    UNION SELECT archive, max(created) FROM backup WHERE removed IS NULL AND root IS NOT NULL AND parent IS NULL
    GROUP BY destination, uuid, subject, images, source";

fn put(transaction: &Transaction<'_>, copy: &BackupCopy) -> Sql<()> {
    transaction.execute(
        "INSERT INTO backup (name, destination, archive, uuid, subject, images, host, created, parent, bytes, root, encrypted, job, source)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
         ON CONFLICT (name) DO UPDATE SET destination = ?2, archive = ?3, uuid = ?4, subject = ?5, images = ?6, host = ?7, created = ?8,
         parent = ?9, bytes = ?10, root = coalesce(?11, root), encrypted = ?12, removed = NULL, source = ?14,
         job = coalesce(?13, CASE WHEN archive = ?3 THEN job END)",
        params![
            copy.name,
            copy.place,
            copy.archive.to_string(),
            copy.owner.uuid.map(|uuid| uuid.to_string()),
            copy.owner.name,
            copy.owner.images,
            copy.host,
            copy.created.as_second(),
            copy.parent.map(|parent| parent.to_string()),
            i64::try_from(copy.bytes)?,
            copy.root,
            copy.encrypted,
            copy.job,
            serde_json::to_string(&copy.source)?,
        ],
    )?;
    Ok(())
}

fn read(row: &Row<'_>) -> Sql<BackupCopy> {
    let text = |index: usize| row.get::<_, String>(index);
    let id = |index: usize| -> Sql<Option<Uuid>> {
        Ok(row.get::<_, Option<String>>(index)?.map(|text| text.parse()).transpose()?)
    };
    Ok(BackupCopy {
        name: text(0)?,
        place: text(1)?,
        archive: text(2)?.parse()?,
        owner: Owner { uuid: id(3)?, name: text(4)?, images: row.get(5)? },
        source: row
            .get::<_, Option<String>>(13)?
            .map_or_else(|| Ok(Source::default()), |text| serde_json::from_str(&text))?,
        host: text(6)?,
        created: Timestamp::from_second(row.get(7)?)?,
        parent: id(8)?,
        bytes: u64::try_from(row.get::<_, i64>(9)?)?,
        root: row.get(10)?,
        encrypted: row.get(11)?,
        job: row.get(12)?,
    })
}

impl Catalog {
    /// Notes copies that are there, all or none of them. Durable when it returns.
    ///
    /// # Errors
    /// The catalog can't be written.
    pub fn remember(&self, copies: &[BackupCopy]) -> Result<()> {
        self.write(|transaction| copies.iter().try_for_each(|copy| put(transaction, copy)))
    }

    /// Notes that copies are gone.
    ///
    /// # Errors
    /// The catalog can't be written.
    pub fn gone(&self, names: &[String], when: Timestamp) -> Result<()> {
        self.write(|transaction| {
            let update = "UPDATE backup SET removed = ?2 WHERE name = ?1 AND removed IS NULL";
            let mut statement = transaction.prepare(update)?;
            for name in names {
                statement.execute(params![name, when.as_second()])?;
            }
            transaction.execute(FORGET, [when.as_second().saturating_sub(REMEMBERED)])?;
            Ok(())
        })
    }

    /// Notes that copies are gone because `prune` removed them: nobody is to miss them.
    ///
    /// # Errors
    /// The catalog can't be written.
    pub fn pruned(&self, names: &[String], when: Timestamp) -> Result<()> {
        self.write(|transaction| {
            let note = "INSERT OR REPLACE INTO pruned (archive, destination, removed)
                        SELECT archive, destination, ?2 FROM backup WHERE name = ?1";
            let mut statement = transaction.prepare(note)?;
            for name in names {
                statement.execute(params![name, when.as_second()])?;
            }
            let old = when.as_second().saturating_sub(REMEMBERED);
            transaction.execute("DELETE FROM pruned WHERE removed < ?1", [old])?;
            Ok(())
        })?;
        self.gone(names, when)
    }

    /// Archives that `prune` has removed from a destination.
    ///
    /// # Errors
    /// The catalog can't be read.
    pub fn pruned_archives(&self, destination: &str) -> Result<BTreeSet<Uuid>> {
        let read = || -> Sql<BTreeSet<Uuid>> {
            let connection = self.connection();
            let mut statement = connection.prepare("SELECT archive FROM pruned WHERE destination = ?1")?;
            let mut rows = statement.query([destination])?;
            let mut found = BTreeSet::new();
            while let Some(row) = rows.next()? {
                found.insert(row.get::<_, String>(0)?.parse()?);
            }
            Ok(found)
        };
        read().map_err(|e| self.unreadable(e))
    }

    /// What is known of a copy, gone or not.
    ///
    /// # Errors
    /// The catalog can't be read.
    pub fn copy(&self, name: &str) -> Result<Option<BackupCopy>> {
        let found = self.copies("WHERE name = ?1", [name]).map_err(|e| self.unreadable(e))?;
        Ok(found.into_iter().next())
    }

    /// All copies of an archive that are known, gone or not.
    ///
    /// # Errors
    /// The catalog can't be read.
    pub fn copies_of(&self, archive: Uuid) -> Result<Vec<BackupCopy>> {
        self.copies("WHERE archive = ?1 ORDER BY name", [archive.to_string()]).map_err(|e| self.unreadable(e))
    }

    /// The copies at a place that are not known to be gone, oldest first; those of one second in the order in
    /// which they became known.
    ///
    /// # Errors
    /// The catalog can't be read.
    pub fn copies_at(&self, place: &str) -> Result<Vec<BackupCopy>> {
        self.copies("WHERE destination = ?1 AND removed IS NULL ORDER BY created, rowid", [place])
            .map_err(|e| self.unreadable(e))
    }

    /// The archives that a later backup may continue: of the copies that are there, the newest one of each
    /// subject at each destination, and the newest full one.
    ///
    /// # Errors
    /// The catalog can't be read.
    pub fn newest_copies(&self) -> Result<Vec<Uuid>> {
        let read = || -> Sql<Vec<Uuid>> {
            let connection = self.connection();
            let mut statement = connection.prepare(NEWEST)?;
            let mut rows = statement.query([])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                found.push(row.get::<_, String>(0)?.parse()?);
            }
            Ok(found)
        };
        read().map_err(|e| self.unreadable(e))
    }

    /// The increments at other places whose parent is not known to be there, too: they rest on a copy of it
    /// elsewhere.
    ///
    /// # Errors
    /// The catalog can't be read.
    pub fn resting_elsewhere(&self, place: &str) -> Result<Vec<BackupCopy>> {
        self.copies(RESTING_ELSEWHERE, [place]).map_err(|e| self.unreadable(e))
    }

    /// Whether a backup of this owner was ever made for a job.
    ///
    /// # Errors
    /// The catalog can't be read.
    pub fn is_of_job(&self, owner: &Owner, job: &str) -> Result<bool> {
        let uuid = owner.uuid.map(|uuid| uuid.to_string());
        let query = "SELECT EXISTS (SELECT 1 FROM backup WHERE job = ?1 AND images = ?2 AND uuid IS ?3
                     AND (uuid IS NOT NULL OR subject = ?4))";
        let found = self
            .connection()
            .query_row(query, params![job, owner.images, uuid, owner.name], |row| row.get(0));
        found.map_err(|e| self.unreadable(e.into()))
    }

    /// The last backup of each domain, of those up to `until`, of which a copy is known to be there. What is
    /// dated in the future was made by a clock that was ahead, and would be the last one for years.
    ///
    /// # Errors
    /// The catalog can't be read.
    pub fn last_backups(&self, until: Timestamp) -> Result<Vec<LastBackup>> {
        self.last(until).map_err(|e| self.unreadable(e))
    }

    fn last(&self, until: Timestamp) -> Sql<Vec<LastBackup>> {
        let connection = self.connection();
        let query = "SELECT uuid, max(created) FROM backup WHERE uuid IS NOT NULL AND removed IS NULL AND created <= ?1 GROUP BY uuid";
        let mut statement = connection.prepare(query)?;
        let mut rows = statement.query([until.as_second()])?;
        let mut last = Vec::new();
        while let Some(row) = rows.next()? {
            let domain = row.get::<_, String>(0)?.parse()?;
            last.push(LastBackup { domain, created: Timestamp::from_second(row.get(1)?)? });
        }
        Ok(last)
    }

    pub(super) fn copies(&self, which: &str, values: impl rusqlite::Params) -> Sql<Vec<BackupCopy>> {
        let connection = self.connection();
        let columns = "name, destination, archive, uuid, subject, images, host, created, parent, bytes, root, encrypted, job, source";
        let mut statement = connection.prepare(&format!("SELECT {columns} FROM backup {which}"))?;
        let mut rows = statement.query(values)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(read(row)?);
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(name: &str, second: i64) -> BackupCopy {
        BackupCopy {
            name: name.to_owned(),
            place: "/backup".to_owned(),
            archive: Uuid::new_v4(),
            owner: Owner { uuid: Some(Uuid::from_u128(7)), name: "web".to_owned(), images: false },
            source: Source { host_id: Some("0a".to_owned()), labelled: false, paths: vec!["/a".to_owned()] },
            host: "h1".to_owned(),
            created: Timestamp::from_second(second).unwrap(),
            parent: None,
            bytes: 5,
            root: Some("ab".repeat(32)),
            encrypted: true,
            job: Some("nightly".to_owned()),
        }
    }

    #[test]
    fn copies_are_remembered_gone_and_seen_again() {
        let state = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(state.path()).unwrap();
        let (one, two) = (copy("/backup/1", 10), copy("/backup/2", 20));
        catalog.remember(&[one.clone(), two.clone()]).unwrap();
        assert_eq!(catalog.copies_at("/backup").unwrap(), [one.clone(), two.clone()]);
        assert_eq!(catalog.copies_at("/other").unwrap(), []);
        let last = |second| LastBackup {
            domain: Uuid::from_u128(7),
            created: Timestamp::from_second(second).unwrap(),
        };
        assert_eq!(catalog.last_backups(Timestamp::MAX).unwrap(), [last(20)]);
        let before = catalog.last_backups(Timestamp::from_second(19).unwrap()).unwrap();
        assert_eq!(before, [last(10)], "what is dated in the future is not the last");
        catalog.gone(std::slice::from_ref(&two.name), Timestamp::from_second(30).unwrap()).unwrap();
        assert_eq!(catalog.copies_at("/backup").unwrap(), std::slice::from_ref(&one));
        assert_eq!(catalog.last_backups(Timestamp::MAX).unwrap(), [last(10)]);
        assert_eq!(catalog.copy("/backup/2").unwrap(), Some(two.clone()), "what is gone is still known");
        // Seen by a look, which knows no job and, where it can't open it, no root.
        catalog.remember(&[BackupCopy { job: None, root: None, ..two.clone() }]).unwrap();
        assert_eq!(catalog.copies_at("/backup").unwrap(), [one.clone(), two.clone()]);
        assert!(catalog.is_of_job(&one.owner, "nightly").unwrap());
        assert!(!catalog.is_of_job(&one.owner, "weekly").unwrap());
        assert!(!catalog.is_of_job(&Owner { uuid: None, ..one.owner }, "nightly").unwrap());
    }

    #[test]
    fn increments_that_rest_on_another_place_are_known() {
        let state = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(state.path()).unwrap();
        let full = copy("/backup/1", 10);
        let increment = |name: &str, place: &str| BackupCopy {
            place: place.to_owned(),
            parent: Some(full.archive),
            ..copy(name, 20)
        };
        let (here, there) = (increment("/backup/2", "/backup"), increment("s3://b/2", "s3://b"));
        catalog.remember(&[full.clone(), here, there.clone()]).unwrap();
        assert_eq!(catalog.resting_elsewhere("/backup").unwrap(), [there]);
        let twin = BackupCopy { name: "s3://b/1".to_owned(), place: "s3://b".to_owned(), ..full };
        catalog.remember(&[twin]).unwrap();
        assert_eq!(catalog.resting_elsewhere("/backup").unwrap(), []);
    }

    #[test]
    fn what_went_long_ago_is_forgotten_but_for_the_last_one() {
        let state = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(state.path()).unwrap();
        let (one, two, there) = (copy("/backup/1", 10), copy("/backup/2", 20), copy("/backup/3", 30));
        let other = BackupCopy { owner: Owner { uuid: None, ..one.owner.clone() }, ..copy("/backup/4", 5) };
        catalog.remember(&[one.clone(), two.clone(), there.clone(), other.clone()]).unwrap();
        let at = |second| Timestamp::from_second(second).unwrap();
        catalog.gone(&[one.name.clone(), other.name.clone()], at(100)).unwrap();
        catalog.gone(std::slice::from_ref(&two.name), at(100 + REMEMBERED)).unwrap();
        let known = |copy: &BackupCopy| catalog.copy(&copy.name).unwrap().is_some();
        assert_eq!([&one, &two, &there, &other].map(known), [true; 4], "not yet");
        catalog.gone(&[], at(101 + REMEMBERED)).unwrap();
        assert_eq!([&one, &two, &there, &other].map(known), [false, true, true, true]);
        assert!(catalog.is_of_job(&other.owner, "nightly").unwrap());
    }

    /// A look-up for each increment, not a walk of all rows.
    #[test]
    fn parents_are_found_by_an_index() {
        let state = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(state.path()).unwrap();
        let connection = catalog.connection();
        for query in [format!("SELECT name FROM backup {RESTING_ELSEWHERE}"), FORGET.to_owned()] {
            let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {query}")).unwrap();
            let steps: Vec<String> = plan
                .query_map([rusqlite::types::Value::Null], |row| row.get(3))
                .unwrap()
                .map(std::result::Result::unwrap)
                .collect();
            let scans: Vec<_> = steps.iter().filter(|step| step.starts_with("SCAN")).collect();
            assert!(scans.iter().all(|step| step.as_str() == "SCAN backup"), "{steps:?}");
            let searched =
                steps.iter().any(|step| step.starts_with("SEARCH p ") || step.starts_with("SEARCH later "));
            assert!(searched, "{steps:?}");
        }
    }

    #[test]
    fn names_are_the_same_from_everywhere() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        let (place, link) = (real.join("backup"), real.join("link"));
        std::fs::create_dir(&place).unwrap();
        std::os::unix::fs::symlink(&place, &link).unwrap();
        let expected = place.join("a.tar").to_str().unwrap().to_owned();
        assert_eq!(copy_name(&Location::Path(link.join("a.tar"))).unwrap(), expected);
        assert_eq!(destination_name(&Location::Path(link)).unwrap(), place.to_str().unwrap());
        assert_eq!(
            destination_name(&Location::Path(real.join("none"))).unwrap_err().kind(),
            ErrorKind::NotFound
        );
        let store: Location = "s3://bucket/a".parse().unwrap();
        assert_eq!(copy_name(&store).unwrap(), "s3://bucket/a");
    }
}
