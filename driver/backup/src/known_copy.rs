//! Whether an archive is the one that the catalog knows at its location. Everything that looks at archives
//! asks here, and nothing else decides it: `inspect` and `retention` for lists, `restore`, `restore_domain`,
//! `verify`.
//!
//! An archive's name is given once, so what lies under it is what was written there or somebody has replaced
//! it: by another archive that says the same of itself, by an older one of its own, by one in the clear. Each
//! of these is whole and sound by itself; only the root, the size and the id that were noted tell.
//!
//! - Compared is what could be read: of an archive that nobody can open the size, of one that comes from a
//!   pipe the id before anything is written and the root before a file gets its name.
//! - What the catalog does not know is no contradiction: a copy at another location, a host that never wrote
//!   there. A block device has one archive after the other and is not compared.
//! - What is damaged or incomplete is said to be that; of it only the id and the root count, where it has
//!   them.
//!
//! Imports: `error`, `catalog`, `medium` (`Location`), and of this crate `inspect`.

use std::os::unix::fs::FileTypeExt;

use uuid::Uuid;

use crate::inspect::{ArchiveStatus, ArchiveSummary, ListedArchive};
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_catalog::{BackupCopy, Catalog, copy_name};
use virtfold_medium::{Location, TapeAddress};

/// What an administrator does about an archive that was replaced.
const HINT: &str = "the archive that was backed up there was overwritten: look for a copy of it elsewhere. If you put this one there yourself, give it another name, and 'virtfold list --remember' records it";

/// What the catalog knows of a location; by default nothing.
#[derive(Clone, Debug, Default)]
pub struct KnownCopy {
    /// The copy there; on a tape there are several, each under its id.
    copies: Vec<BackupCopy>,
    is_tape: bool,
    /// What was opened there a moment ago.
    opened: Option<FoundArchive>,
}

/// What is found at a location, as far as it could be read.
#[derive(Clone, Debug, Default)]
pub struct FoundArchive {
    /// Its id.
    pub id: Option<Uuid>,
    /// Its root digest, hexadecimal.
    pub root: Option<String>,
    /// Its bytes.
    pub bytes: Option<u64>,
    /// Whether it is encrypted.
    pub encrypted: Option<bool>,
}

impl KnownCopy {
    /// What the catalog knows of the archive at a location.
    ///
    /// # Errors
    /// The catalog can't be read.
    pub fn at(catalog: &Catalog, archive: &Location) -> Result<Self> {
        match archive {
            Location::Pipe => Ok(Self::default()),
            Location::Tape(address) => {
                let place = Location::Tape(TapeAddress { archive: None, ..address.clone() });
                Ok(Self { copies: catalog.copies_at(&place.to_string())?, is_tape: true, opened: None })
            }
            Location::Path(path)
                if path.metadata().is_ok_and(|found| found.file_type().is_block_device()) =>
            {
                Ok(Self::default())
            }
            Location::Path(_) | Location::Object(_) => match copy_name(archive) {
                Ok(name) => Self::named(catalog, &name),
                // The catalog can't hold such a name; a directory that is not there is said by who opens it.
                Err(error) if matches!(error.kind(), ErrorKind::Usage | ErrorKind::NotFound) => {
                    Ok(Self::default())
                }
                Err(error) => Err(error),
            },
        }
    }

    /// What the catalog knows of an archive of a list of `place`, as it calls that.
    ///
    /// # Errors
    /// The catalog can't be read.
    pub fn of_listed(catalog: &Catalog, place: &str, listed: &ListedArchive) -> Result<Self> {
        match &listed.name {
            // A device is its own place.
            Some(name) if name != place => Self::named(catalog, name),
            _ => Ok(Self::default()),
        }
    }

    fn named(catalog: &Catalog, name: &str) -> Result<Self> {
        Ok(Self { copies: catalog.copy(name)?.into_iter().collect(), is_tape: false, opened: None })
    }

    /// It, where the archive is opened a second time: what was found first is what it has to be.
    #[must_use]
    pub(crate) fn opened_before(self, found: Option<FoundArchive>) -> Self {
        Self { opened: found, ..self }
    }

    /// The copy that what is found is to be.
    pub fn copy(&self, id: Option<Uuid>) -> Option<&BackupCopy> {
        match self.is_tape {
            true => self.copies.iter().find(|copy| Some(copy.archive) == id),
            false => self.copies.first(),
        }
    }

    /// Why what is found is not what was written there, as a sentence; nothing where it may be.
    pub fn contradiction(&self, found: &FoundArchive) -> Option<String> {
        let known = self.copy(found.id)?;
        let mut odd = Vec::new();
        if let Some(id) = found.id.filter(|id| *id != known.archive) {
            odd.push(format!("its id is {id}, not {}", known.archive));
        }
        if let (Some(root), Some(expected)) = (&found.root, &known.root)
            && root != expected
        {
            odd.push(format!("its root is {root}, not {expected}"));
        }
        if let Some(bytes) = found.bytes.filter(|bytes| *bytes != known.bytes) {
            odd.push(format!("it has {bytes} bytes, not {}", known.bytes));
        }
        match (found.encrypted, known.encrypted) {
            (Some(false), true) => odd.push("it is not encrypted".to_owned()),
            (Some(true), false) => odd.push("it is encrypted".to_owned()),
            _ => {}
        }
        (!odd.is_empty())
            .then(|| format!("replaced: not the archive that the catalog knows there: {}", odd.join("; ")))
    }

    /// Refuses what is not what was written there.
    ///
    /// # Errors
    /// Damaged, with what an administrator can do.
    pub fn expect(&self, name: &str, found: &FoundArchive) -> Result<()> {
        if let Some(before) = &self.opened
            && (before.id, &before.root) != (found.id, &found.root)
        {
            let message = format!("'{name}' was replaced by another archive while it was being restored");
            return Err(Error::new(ErrorKind::Damaged, message));
        }
        match self.contradiction(found) {
            None => Ok(()),
            Some(why) => {
                let message = format!("'{name}' is not what was backed up there ({why})");
                Err(Error::new(ErrorKind::Damaged, message).with_hint(HINT))
            }
        }
    }

    /// Says of an archive that was looked at whether it was replaced.
    pub fn judge(&self, summary: &mut ArchiveSummary) {
        let found = FoundArchive::of(summary);
        if let Some(why) = self.contradiction(&found) {
            summary.status = ArchiveStatus::Replaced;
            summary.faults.insert(0, why);
        }
    }
}

impl FoundArchive {
    /// What one look at an archive tells.
    fn of(summary: &ArchiveSummary) -> Self {
        let head = summary.head.as_ref().map(|head| head.archive);
        let root = summary.root.clone();
        match summary.status {
            ArchiveStatus::Complete | ArchiveStatus::Encrypted => {
                Self { id: head, root, bytes: Some(summary.bytes), encrypted: Some(summary.encrypted) }
            }
            ArchiveStatus::Incomplete | ArchiveStatus::Damaged => Self { id: head, root, ..Self::default() },
            ArchiveStatus::Unreadable | ArchiveStatus::Replaced => Self::default(),
        }
    }
}

/// Judges all archives of a list of `place`, as the catalog calls that.
///
/// # Errors
/// The catalog can't be read.
pub fn judge_all(catalog: &Catalog, place: &str, listed: &mut [ListedArchive]) -> Result<()> {
    for listed in listed {
        KnownCopy::of_listed(catalog, place, listed)?.judge(&mut listed.summary);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use virtfold_catalog::{Owner, Source};

    fn copy(name: &str, id: u128) -> BackupCopy {
        BackupCopy {
            name: name.to_owned(),
            place: "tape:/dev/nst0".to_owned(),
            archive: Uuid::from_u128(id),
            owner: Owner { uuid: None, name: "web".to_owned(), images: true },
            source: Source::default(),
            host: "h1".to_owned(),
            created: Timestamp::UNIX_EPOCH,
            parent: None,
            bytes: 5,
            root: Some("ab".repeat(32)),
            encrypted: true,
            job: None,
        }
    }

    fn found() -> FoundArchive {
        let root = Some("ab".repeat(32));
        FoundArchive { id: Some(Uuid::from_u128(1)), root, bytes: Some(5), encrypted: Some(true) }
    }

    /// One difference is enough, and each is named; what could not be read is none.
    #[test]
    fn each_difference_is_a_replacement() {
        let known = KnownCopy { copies: vec![copy("/a", 1)], ..KnownCopy::default() };
        assert_eq!(known.contradiction(&found()), None);
        assert_eq!(known.contradiction(&FoundArchive::default()), None);
        for (other, word) in [
            (FoundArchive { id: Some(Uuid::from_u128(2)), ..found() }, "its id"),
            (FoundArchive { root: Some("cd".repeat(32)), ..found() }, "its root"),
            (FoundArchive { bytes: Some(6), ..found() }, "6 bytes"),
            (FoundArchive { encrypted: Some(false), ..found() }, "not encrypted"),
        ] {
            let why = known.contradiction(&other).unwrap();
            assert!(why.contains(word), "{why}");
            assert_eq!(known.expect("/a", &other).unwrap_err().kind(), ErrorKind::Damaged);
        }
        assert_eq!(KnownCopy::default().contradiction(&found()), None, "nothing is known there");
    }

    /// A definition and its disks are read by two openings.
    #[test]
    fn what_is_opened_again_is_what_it_was() {
        let again = KnownCopy::default().opened_before(Some(found()));
        again.expect("/a", &found()).unwrap();
        for other in [
            FoundArchive { id: Some(Uuid::from_u128(2)), ..found() },
            FoundArchive { root: Some("cd".repeat(32)), ..found() },
            FoundArchive { root: None, ..found() },
        ] {
            assert_eq!(again.expect("/a", &other).unwrap_err().kind(), ErrorKind::Damaged);
        }
        KnownCopy::default().opened_before(None).expect("-", &found()).unwrap();
    }

    /// A tape has many, each under its id: none of another id is expected to be it.
    #[test]
    fn on_a_tape_the_one_of_that_id_counts() {
        let state = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(state.path()).unwrap();
        catalog.remember(&[copy("tape:/dev/nst0#1", 1), copy("tape:/dev/nst0#2", 2)]).unwrap();
        let known = KnownCopy::at(&catalog, &"tape:/dev/nst0#latest".parse().unwrap()).unwrap();
        assert_eq!(known.contradiction(&found()), None);
        assert_eq!(known.contradiction(&FoundArchive { id: Some(Uuid::from_u128(3)), ..found() }), None);
        let forged = FoundArchive { root: Some("cd".repeat(32)), ..found() };
        assert!(known.contradiction(&forged).is_some());
    }
}
