//! What is in a place: every archive there is looked at, one after the other or, of an object store, many at
//! once.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::{
    ArchiveStatus, ArchiveSummary, ListedArchive, bare, glance, is_archive_name, summary, unfinished,
    unreadable,
};
use virtfold_archive::crypt::Identities;
use virtfold_archive::stream::{Reorder, guarded};
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::partial_file;
use virtfold_medium::{self as medium, Location};

/// What takes the archives of a list, one after the other, in the order of their names.
type Take<'a> = &'a mut dyn FnMut(ListedArchive) -> Result<()>;

/// Looks at every archive at `location`, finished or not, in the order of their names, with `identities` at
/// those that are encrypted, and gives each to `take`. One that none of them opens is listed as encrypted.
///
/// # Errors
/// When the directory can't be read; those of `take`.
pub fn list(location: &Location, identities: &Identities, take: Take<'_>) -> Result<()> {
    list_named(location, identities, "", take)
}

/// As [`list`], of archives alone that have `part` in their names.
///
/// # Errors
/// As [`list`].
pub(crate) fn list_named(
    location: &Location,
    identities: &Identities,
    part: &str,
    take: Take<'_>,
) -> Result<()> {
    match location {
        Location::Path(directory) => list_directory(directory, identities, part, take),
        Location::Pipe => Err(Error::new(ErrorKind::Usage, "archives from a pipe can't be listed")),
        Location::Object(place) => list_objects(place, identities, part, take),
        Location::Tape(_) => Err(medium::not_here(location)),
    }
}

fn list_directory(directory: &Path, identities: &Identities, part: &str, take: Take<'_>) -> Result<()> {
    // A device holds one archive, at its beginning.
    if directory.metadata().is_ok_and(|found| found.file_type().is_block_device()) {
        let location = Location::from(directory);
        let summary = glance(&location, identities)?;
        return take(ListedArchive::of(location, summary)?);
    }
    let reading = || format!("cannot list '{}'", directory.display());
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in partial_file::at_directory(std::fs::read_dir(directory), directory, reading)? {
        let path = entry.at(reading)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if is_archive_name(&name) && name.contains(part) && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    for path in paths {
        let location = Location::from(path.as_path());
        let summary = match glance(&location, identities) {
            // A backup that ends meanwhile renames its file: what is gone by now was not there.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            summary => summary.unwrap_or_else(|error| unreadable(&location, &error)),
        };
        take(ListedArchive::of(location, unfinished(&path, summary))?)?;
    }
    Ok(())
}

/// Archives of an object store that are looked at together: each takes an answer of the store, or a few.
const AT_ONCE: usize = 32;
/// Archives that were begun to be looked at and not taken yet: so many may have to wait for one before them.
const WINDOW: usize = 4 * AT_ONCE;

/// Looks at every archive below `place`. The next one is begun as soon as one is done, whichever it is.
fn list_objects(
    place: &medium::ObjectAddress,
    identities: &Identities,
    part: &str,
    take: Take<'_>,
) -> Result<()> {
    let mut found = medium::object::list(place)?;
    let name =
        |listed: &medium::ListedObject| listed.address.key.rsplit('/').next().unwrap_or_default().to_owned();
    found.retain(|listed| is_archive_name(&name(listed)) && name(listed).contains(part));
    let (to_do, jobs) = crossbeam_channel::bounded::<(u64, medium::ListedObject)>(WINDOW);
    let (done, looked) = crossbeam_channel::bounded(WINDOW);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(found.len()) {
            let (jobs, done) = (jobs.clone(), done.clone());
            scope.spawn(move || {
                for (number, listed) in jobs {
                    let location = Location::Object(listed.address.clone());
                    let looked = guarded(|| Ok(summary_of_listed(&listed, identities)));
                    let looked = looked.unwrap_or_else(|error| unreadable(&location, &error));
                    if done.send((number, ListedArchive::of(location, looked))).is_err() {
                        return;
                    }
                }
            });
        }
        // Dropped with this closure, whatever ends it: then the threads end, too.
        let (to_do, looked) = (to_do, looked);
        drop((jobs, done));
        let lost = || Error::new(ErrorKind::Internal, "nobody looks at archives any more");
        let mut order = Reorder::new();
        let mut next = (0..).zip(found);
        let mut open = 0;
        loop {
            while open < WINDOW
                && let Some(listed) = next.next()
            {
                to_do.send(listed).map_err(|_| lost())?;
                open += 1;
            }
            if open == 0 {
                return Ok(());
            }
            let (number, found) = looked.recv().map_err(|_| lost())?;
            order.put(number, found);
            while let Some(found) = order.take() {
                take(found?)?;
                open -= 1;
            }
        }
    })
}

fn summary_of_listed(listed: &medium::ListedObject, identities: &Identities) -> ArchiveSummary {
    let location = Location::Object(listed.address.clone());
    let bare = ArchiveSummary { bytes: listed.bytes, ..bare(&location) };
    if listed.is_partial {
        let what = "incomplete, or still being written; the next backup to it resumes or removes what a killed run left";
        return ArchiveSummary { status: ArchiveStatus::Incomplete, faults: vec![what.to_owned()], ..bare };
    }
    let looked = medium::object::open_listed(listed).and_then(|file| summary(&location, file, identities));
    looked.unwrap_or_else(|error| ArchiveSummary {
        status: ArchiveStatus::Unreadable,
        faults: vec![error.to_string()],
        ..bare
    })
}
