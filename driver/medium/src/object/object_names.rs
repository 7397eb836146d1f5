//! Where in a bucket an archive lies: `PREFIX/HOST/SUBJECT/NAME`.
//!
//! So hosts that share a bucket never write to the same place, and nobody needs a lock. While an archive is
//! on its way there is a note beside it, `PREFIX/HOST/SUBJECT/.partial/NAME`, which says whose upload it is:
//! an upload that is not complete is no object, and lists don't show it.

use object_store::path::Path;

use super::store::key;
use crate::{ArchiveLabel, ObjectAddress, name_part};
use virtfold_base::error::Result;

/// The part of the key that notes have before their name.
const PARTIAL: &str = ".partial";
/// The longest part made of a host's or a domain's name, bytes.
const MAX_PART: usize = 128;

/// The places of one archive.
#[derive(Clone, Debug)]
pub(super) struct ObjectNames {
    /// The archive's.
    pub(super) archive: Path,
    /// Its note's, while it is on its way.
    pub(super) note: Path,
    /// Where the notes of this host and subject are.
    pub(super) notes: Path,
}

impl ObjectNames {
    /// The places of the archive `label` below `place`.
    ///
    /// # Errors
    /// When a name in it can be no part of a key.
    pub(super) fn of(place: &ObjectAddress, label: &ArchiveLabel) -> Result<Self> {
        let folder = format!("{}/{}", host_folder(&place.key, &label.host), part(&label.subject));
        Ok(Self {
            archive: key(&format!("{folder}/{}", label.name))?,
            note: key(&format!("{folder}/{PARTIAL}/{}", label.name))?,
            notes: key(&format!("{folder}/{PARTIAL}"))?,
        })
    }
}

/// What the keys of a host begin with, below the place `key`.
pub(super) fn host_folder(key: &str, host: &str) -> String {
    let host = part(host);
    if key.is_empty() { host } else { format!("{key}/{host}") }
}

/// The key of the archive that a note is about, if `text` is the key of a note.
pub(super) fn noted(text: &str) -> Option<String> {
    let (folder, name) = text.rsplit_once('/')?;
    let folder = folder.strip_suffix(PARTIAL)?;
    (folder.is_empty() || folder.ends_with('/')).then(|| format!("{folder}{name}"))
}

/// A name as a part of a key: what a key must not have, and what tools trip over, becomes `_`.
fn part(name: &str) -> String {
    let odd = |c: char| c.is_control() || "/\\#?%*{}^[]`~<>|\"'".contains(c);
    name_part(name, MAX_PART, odd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(place: &str, host: &str, subject: &str) -> ObjectNames {
        let place = ObjectAddress { bucket: "bucket".into(), key: place.into() };
        let label = ArchiveLabel {
            name: "web-1.tar".into(),
            id: uuid::Uuid::nil(),
            host: host.into(),
            subject: subject.into(),
            estimate: 0,
        };
        ObjectNames::of(&place, &label).unwrap()
    }

    #[test]
    fn hosts_and_domains_have_places_of_their_own() {
        let web = keys("backups/daily", "h1", "web");
        assert_eq!(web.archive.as_ref(), "backups/daily/h1/web/web-1.tar");
        assert_eq!(web.note.as_ref(), "backups/daily/h1/web/.partial/web-1.tar");
        assert_eq!(noted(web.note.as_ref()).as_deref(), Some(web.archive.as_ref()));
        assert_eq!(keys("", "h1", "web").archive.as_ref(), "h1/web/web-1.tar");
        assert_eq!(noted(".partial/a").as_deref(), Some("a"));
        assert_eq!(noted("x.partial/a"), None);
        assert_eq!(noted("a/b"), None);
    }

    #[test]
    fn any_name_makes_a_part_that_leads_nowhere_else() {
        assert_eq!(keys("", "a/../b", "..").archive.as_ref(), "a_.._b/_/web-1.tar");
        assert_eq!(keys("", "", ".partial").archive.as_ref(), "_/_partial/web-1.tar");
        assert_eq!(keys("", "h", "Büro 1\n").archive.as_ref(), "h/Büro 1_/web-1.tar");
        assert_eq!(part(&"é".repeat(100)).len(), 128);
    }
}
