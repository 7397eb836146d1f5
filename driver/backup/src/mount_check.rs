//! Whether a directory for archives is on the file system that it should be on.
//!
//! A directory whose medium is not mounted is an empty directory of another file system, mostly the host's
//! own: a backup there would look like a good one and fill it. So what a directory is on when it is first
//! used is noted in the catalog, if that was mounted for itself, and from then on it has to be there. A
//! person can say that something has to be mounted there, whichever file system it is, or that nothing has
//! to.
//!
//! Imports: `error`, `catalog`, `medium` (`mount_point`).

use std::path::{Path, PathBuf};

use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_catalog::Catalog;
use virtfold_medium::mount_point::{self, MountPoint};

/// What has to be mounted at a place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MountRequirement {
    /// What was there before; where nothing was, nothing.
    #[default]
    SameAsFirstUse,
    /// Some file system.
    Required,
    /// Nothing.
    NotRequired,
}

/// A place to look at.
#[derive(Clone, Debug)]
pub struct CheckedDirectory<'a> {
    /// The directory.
    pub path: &'a Path,
    /// What the configuration calls it.
    pub medium: Option<&'a str>,
    /// What has to be mounted there.
    pub mounted: MountRequirement,
}

impl CheckedDirectory<'_> {
    fn words(&self) -> String {
        let path = self.path.display();
        self.medium.map_or_else(|| format!("'{path}'"), |name| format!("the medium '{name}' ('{path}')"))
    }

    fn let_go(&self) -> &'static str {
        match self.medium {
            Some(_) => {
                "if it has no mount of its own any more, set 'mounted: false' in its section of the configuration"
            }
            None => "if it has no mount of its own any more, use --no-require-mount",
        }
    }
}

/// Queries what a directory is on: [`mount_point::of`], or `Destinations::mount`, which has another process
/// do it.
pub type Look<'a> = &'a dyn Fn(&Path) -> Result<Option<MountPoint>>;

/// Makes sure that the right file system is there, and notes it where none was known. What is there then,
/// where something has to be: whoever writes there
/// looks again ([`still`]).
///
/// # Errors
/// [`ErrorKind::NotFound`]: it is not mounted; [`ErrorKind::Refused`]: another one is; the catalog can't be
/// read or written; those of `look`.
pub fn check(
    place: &CheckedDirectory<'_>,
    catalog: Option<&Catalog>,
    look: Look<'_>,
) -> Result<Option<MountPoint>> {
    let seen = see(place, catalog, look)?;
    if let (Some(catalog), Some(found)) = (catalog, &seen.found)
        && seen.known.as_ref() != Some(found)
    {
        catalog.remember_mount(&seen.path, found)?;
    }
    Ok(seen.found)
}

/// As [`check`], and nothing is noted.
///
/// # Errors
/// As [`check`].
pub fn agrees(place: &CheckedDirectory<'_>, catalog: Option<&Catalog>, look: Look<'_>) -> Result<()> {
    see(place, catalog, look).map(drop)
}

/// A directory, what it was on, and what it is on where that matters.
#[derive(Default)]
struct Seen {
    path: PathBuf,
    known: Option<MountPoint>,
    found: Option<MountPoint>,
}

fn see(place: &CheckedDirectory<'_>, catalog: Option<&Catalog>, look: Look<'_>) -> Result<Seen> {
    if place.mounted == MountRequirement::NotRequired {
        return Ok(Seen::default());
    }
    let path = std::path::absolute(place.path).at(|| format!("cannot look at {}", place.words()))?;
    let known = catalog.map(|catalog| catalog.mount_of(&path)).transpose()?.flatten();
    let found = judge(place, known.as_ref(), look(place.path)?)?;
    Ok(Seen { path, known, found })
}

/// Makes sure that a directory is still on what it was on when it was checked.
///
/// # Errors
/// As [`check`], in the same words.
pub fn still(place: &CheckedDirectory<'_>, then: &MountPoint) -> Result<()> {
    judge(place, Some(then), mount_point::of(place.path)?).map(drop)
}

/// What is there, where something has to be, or is worth remembering.
fn judge(
    place: &CheckedDirectory<'_>,
    known: Option<&MountPoint>,
    now: Option<MountPoint>,
) -> Result<Option<MountPoint>> {
    let wanted = place.mounted == MountRequirement::Required;
    let Some(now) = now else {
        return match known {
            // Whoever made the directory now would make it on the wrong file system.
            Some(known) => Err(missing(place, &known.point, None)),
            // What is not there at all is told by whoever uses it.
            None => Ok(None),
        };
    };
    let Some(known) = known else {
        return match (now.is_apart(), wanted) {
            (true, _) => Ok(Some(now)),
            (false, false) => Ok(None),
            (false, true) => Err(missing(place, place.path, Some(&now.point))),
        };
    };
    if known.point != now.point {
        return Err(missing(place, &known.point, Some(&now.point)));
    }
    if !wanted && !known.may_be(&now) {
        let words = |mount: &MountPoint| mount.file_system.clone().unwrap_or_default();
        let message = format!(
            "{}: another file system is mounted at '{}' than before: '{}', not '{}'",
            place.words(),
            now.point.display(),
            words(&now),
            words(known)
        );
        let hint = match place.medium {
            Some(_) => {
                "if this one is right, set 'mounted: true' in its section of the configuration, which accepts any file system there"
            }
            None => "if this one is right, use --require-mount, which accepts any file system there",
        };
        return Err(Error::new(ErrorKind::Refused, message).with_hint(hint));
    }
    Ok(Some(now))
}

fn missing(place: &CheckedDirectory<'_>, point: &Path, on: Option<&Path>) -> Error {
    let on = on.map_or_else(
        || "it is not there".to_owned(),
        |on| format!("it is on the file system of '{}'", on.display()),
    );
    let message =
        format!("{} is not mounted: {on}; nothing is mounted at '{}'", place.words(), point.display());
    Error::new(ErrorKind::NotFound, message).with_hint(format!(
        "mount it ('mount {}') and try again; {}",
        point.display(),
        place.let_go()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(point: &str, file_system: &str) -> MountPoint {
        MountPoint { point: point.into(), file_system: Some(file_system.to_owned()) }
    }

    fn kind(
        mounted: MountRequirement,
        known: Option<&MountPoint>,
        now: Option<&MountPoint>,
    ) -> Option<ErrorKind> {
        let place = CheckedDirectory { path: Path::new("/mnt/nas/vm"), medium: Some("nas"), mounted };
        judge(&place, known, now.cloned()).err().map(|error| error.kind())
    }

    #[test]
    fn what_was_mounted_has_to_be() {
        let (root, nas, other) = (mount("/", "a"), mount("/mnt/nas", "b"), mount("/mnt/nas", "c"));
        for (mounted, known, now, expect) in [
            (MountRequirement::SameAsFirstUse, None, Some(&root), None),
            (MountRequirement::SameAsFirstUse, None, Some(&nas), None),
            (MountRequirement::SameAsFirstUse, Some(&nas), Some(&nas), None),
            (MountRequirement::SameAsFirstUse, Some(&nas), Some(&root), Some(ErrorKind::NotFound)),
            (MountRequirement::SameAsFirstUse, Some(&nas), None, Some(ErrorKind::NotFound)),
            (MountRequirement::SameAsFirstUse, Some(&nas), Some(&other), Some(ErrorKind::Refused)),
            (
                MountRequirement::SameAsFirstUse,
                Some(&nas),
                Some(&mount("/mnt", "b")),
                Some(ErrorKind::NotFound),
            ),
            (MountRequirement::Required, None, Some(&root), Some(ErrorKind::NotFound)),
            (MountRequirement::Required, None, Some(&nas), None),
            (MountRequirement::Required, Some(&nas), Some(&other), None),
            (MountRequirement::Required, Some(&nas), Some(&root), Some(ErrorKind::NotFound)),
        ] {
            assert_eq!(kind(mounted, known, now), expect, "{mounted:?} {known:?} {now:?}");
        }
    }

    #[test]
    fn it_is_noted_at_the_first_use_and_told_by_name() {
        let state = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(state.path()).unwrap();
        let path = Path::new("/proc/self");
        let place = |medium, mounted| CheckedDirectory { path, medium, mounted };
        let check = |place: &CheckedDirectory<'_>| check(place, Some(&catalog), &mount_point::of);
        let found = check(&place(None, MountRequirement::SameAsFirstUse)).unwrap();
        assert_eq!(catalog.mount_of(path).unwrap(), found);
        still(&place(None, MountRequirement::SameAsFirstUse), &found.unwrap()).unwrap();
        // Whoever only looks notes nothing.
        let other =
            CheckedDirectory { path: Path::new("/proc/1"), ..place(None, MountRequirement::SameAsFirstUse) };
        agrees(&other, Some(&catalog), &mount_point::of).unwrap();
        assert_eq!(catalog.mount_of(other.path).unwrap(), None);
        catalog.remember_mount(path, &mount("/elsewhere", "x")).unwrap();
        agrees(&place(None, MountRequirement::SameAsFirstUse), Some(&catalog), &mount_point::of).unwrap_err();
        let error = check(&place(Some("nas"), MountRequirement::SameAsFirstUse)).unwrap_err();
        let later =
            still(&place(Some("nas"), MountRequirement::Required), &mount("/elsewhere", "x")).unwrap_err();
        let words = error.to_string();
        assert_eq!((later.kind(), later.to_string()), (error.kind(), words.clone()));
        assert!(words.contains("the medium 'nas' ('/proc/self') is not mounted"), "{words}");
        assert!(
            words.contains("'/elsewhere'") && error.hint().unwrap().contains("mount /elsewhere"),
            "{words}"
        );
        assert_eq!(check(&place(None, MountRequirement::NotRequired)).unwrap(), None);
    }
}
