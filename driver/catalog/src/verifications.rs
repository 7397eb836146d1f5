//! What the last verification of each copy came to: when, with which root, and whether it was sound. Of
//! copies that are known; of one that holds another archive by now it says nothing.
//!
//! A row goes with that of its copy, so one that is gone is known to have been verified for as long as it is
//! known itself.
//!
//! Imports: `error`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rusqlite::{Row, params};

use super::backups::BackupCopy;
use super::journal::Catalog;
use super::schema::Sql;
use virtfold_base::error::Result;

/// What a verification came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyOutcome {
    /// Every byte is what was written.
    Sound,
    /// It is damaged, incomplete or another archive.
    Failed,
}

/// A verification of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verification {
    /// When it ended.
    pub checked: Timestamp,
    /// The root that was found, hexadecimal, where the archive was whole.
    pub root: Option<String>,
    /// What it came to.
    pub outcome: VerifyOutcome,
}

fn read(row: &Row<'_>, first: usize) -> Sql<Verification> {
    let sound: bool = row.get(first + 2)?;
    Ok(Verification {
        checked: Timestamp::from_second(row.get(first)?)?,
        root: row.get(first + 1)?,
        outcome: if sound { VerifyOutcome::Sound } else { VerifyOutcome::Failed },
    })
}

impl Catalog {
    /// Notes a verification of the copy of that name, in place of the one before; whether the copy is known.
    /// Durable when it returns.
    ///
    /// # Errors
    /// The catalog can't be written.
    pub fn record_verification(&self, name: &str, done: &Verification) -> Result<bool> {
        let mut known = false;
        self.write(|transaction| {
            let insert = "INSERT INTO verification (name, archive, checked, root, sound)
                SELECT name, archive, ?2, ?3, ?4 FROM backup WHERE name = ?1
                ON CONFLICT (name) DO UPDATE SET archive = excluded.archive, checked = excluded.checked,
                root = excluded.root, sound = excluded.sound";
            let sound = done.outcome == VerifyOutcome::Sound;
            known =
                transaction.execute(insert, params![name, done.checked.as_second(), done.root, sound])? > 0;
            Ok(())
        })?;
        Ok(known)
    }

    /// The last verification of each copy at a place, by the copy's name; gone ones, too.
    ///
    /// # Errors
    /// The catalog can't be read.
    pub fn verifications(&self, place: &str) -> Result<BTreeMap<String, Verification>> {
        let read = || -> Sql<BTreeMap<String, Verification>> {
            let connection = self.connection();
            let query = "SELECT v.name, v.checked, v.root, v.sound FROM verification v JOIN backup b
                ON b.name = v.name AND b.archive = v.archive WHERE b.destination = ?1";
            let mut statement = connection.prepare(query)?;
            let mut rows = statement.query([place])?;
            let mut found = BTreeMap::new();
            while let Some(row) = rows.next()? {
                found.insert(row.get(0)?, read(row, 1)?);
            }
            Ok(found)
        };
        read().map_err(|e| self.unreadable(e))
    }

    /// The copies at a place that were sound when they were verified last; gone ones, too.
    ///
    /// # Errors
    /// The catalog can't be read.
    pub fn verified_copies(&self, place: &str) -> Result<Vec<BackupCopy>> {
        let which =
            "WHERE destination = ?1 AND EXISTS (SELECT 1 FROM verification v WHERE v.name = backup.name
            AND v.archive = backup.archive AND v.sound) ORDER BY created, name";
        self.copies(which, [place]).map_err(|e| self.unreadable(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Owner, Source};
    use uuid::Uuid;

    fn copy(name: &str, archive: u128) -> BackupCopy {
        BackupCopy {
            name: name.to_owned(),
            place: "/backup".to_owned(),
            archive: Uuid::from_u128(archive),
            owner: Owner { uuid: None, name: "web".to_owned(), images: true },
            source: Source::default(),
            host: "h1".to_owned(),
            created: Timestamp::UNIX_EPOCH,
            parent: None,
            bytes: 5,
            root: None,
            encrypted: false,
            job: None,
        }
    }

    #[test]
    fn the_last_verification_counts_and_goes_with_its_archive() {
        let state = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(state.path()).unwrap();
        let done = |second, outcome| Verification {
            checked: Timestamp::from_second(second).unwrap(),
            root: Some("ab".repeat(32)),
            outcome,
        };
        let sound = done(10, VerifyOutcome::Sound);
        assert!(!catalog.record_verification("/backup/1", &sound).unwrap(), "it is not known");
        catalog.remember(&[copy("/backup/1", 1)]).unwrap();
        assert!(catalog.record_verification("/backup/1", &sound).unwrap());
        let known = || catalog.verifications("/backup").unwrap();
        assert_eq!(known(), BTreeMap::from([("/backup/1".to_owned(), sound.clone())]));
        assert_eq!(catalog.verified_copies("/backup").unwrap(), [copy("/backup/1", 1)]);
        assert_eq!(catalog.verifications("/other").unwrap(), BTreeMap::new());
        // Noted once more by a look, and found to be gone: it was verified all the same.
        catalog.remember(&[copy("/backup/1", 1)]).unwrap();
        catalog.gone(&["/backup/1".to_owned()], Timestamp::from_second(20).unwrap()).unwrap();
        assert_eq!(catalog.verified_copies("/backup").unwrap().len(), 1);
        let failed = done(30, VerifyOutcome::Failed);
        assert!(catalog.record_verification("/backup/1", &failed).unwrap());
        assert_eq!(known(), BTreeMap::from([("/backup/1".to_owned(), failed)]));
        assert_eq!(catalog.verified_copies("/backup").unwrap(), []);
        // Another archive has the name now.
        catalog.remember(&[copy("/backup/1", 2)]).unwrap();
        assert_eq!(known(), BTreeMap::new());
    }
}
