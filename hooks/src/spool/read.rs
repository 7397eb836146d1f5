//! The reader's side of the spool: the service's.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::OFlag;

use super::{MAX_QUARANTINE, OVERFLOW, Spool, size_in_name};
use crate::event::{Event, MAX_FILE};

/// The most names that are looked at in one go.
const MAX_NAMES: usize = 100_000;
/// The most bytes that are read in one go; one event may go over it.
const BATCH_BYTES: usize = 32 << 20;
/// An unfinished file of this age belongs to a hook that was killed.
const ABANDONED: Duration = Duration::from_secs(600);
const QUARANTINE: &str = "quarantine";

/// An event and the file that it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpooledEvent {
    /// The file's name in the spool.
    pub name: String,
    /// What it says.
    pub event: Event,
}

/// A file that is no event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuarantinedFile {
    /// Its name, as far as it is text.
    pub name: String,
    /// What is wrong with it.
    pub why: String,
}

/// What one read found.
#[derive(Debug, Default)]
pub struct Batch {
    /// Events, oldest first.
    pub events: Vec<SpooledEvent>,
    /// Files that were moved to the quarantine.
    pub quarantined: Vec<QuarantinedFile>,
    /// Whether there is more to read after these are removed.
    pub more: bool,
}

impl Spool {
    /// Reads the oldest events, at most `most`. They stay in the spool until [`Spool::remove`].
    ///
    /// # Errors
    /// When the directory or a file can't be read.
    pub fn read(&self, most: usize) -> io::Result<Batch> {
        let mut batch = Batch::default();
        let mut bytes = 0_usize;
        for name in self.names(&mut batch)? {
            if batch.events.len() >= most || bytes > BATCH_BYTES {
                batch.more = true;
                break;
            }
            match self.read_file(&name) {
                Ok(Ok((event, len))) => {
                    bytes = bytes.saturating_add(len);
                    batch.events.push(SpooledEvent { name, event });
                }
                Ok(Err(why)) => self.quarantine(name.as_ref(), why, &mut batch),
                // Another reader has removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(batch)
    }

    /// Removes the file of an event that is done with. That it is gone already is no error.
    ///
    /// # Errors
    /// When it can't be removed.
    pub fn remove(&self, spooled: &SpooledEvent) -> io::Result<()> {
        gone(fs::remove_file(self.dir.join(&spooled.name)))
    }

    /// Takes the count of events that found no room: `None` where there were none, 0 where not even counting
    /// was possible.
    ///
    /// # Errors
    /// When the marker can't be read or removed.
    pub fn take_overflow(&self) -> io::Result<Option<u64>> {
        let (marker, taken) = (self.dir.join(OVERFLOW), self.dir.join(".overflow.taken"));
        match fs::rename(&marker, &taken) {
            // A reader that was killed after its rename left the other name.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        match fs::symlink_metadata(&taken) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(metadata) => {
                fs::remove_file(&taken)?;
                Ok(Some(metadata.len()))
            }
        }
    }

    /// The names of events, sorted. Strangers go to the quarantine, and abandoned files away.
    fn names(&self, batch: &mut Batch) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)?.take(MAX_NAMES) {
            let name = entry?.file_name();
            match name.to_str() {
                Some(OVERFLOW | QUARANTINE | ".overflow.taken") => {}
                Some(hidden) if hidden.starts_with('.') => self.remove_abandoned(hidden)?,
                Some(text) if size_in_name(text).is_some() => names.push(text.to_owned()),
                _ => self.quarantine(name.as_ref(), "its name is not an event's".to_owned(), batch),
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn remove_abandoned(&self, name: &str) -> io::Result<()> {
        let path = self.dir.join(name);
        let age = match fs::symlink_metadata(&path) {
            Err(error) => return gone(Err(error)),
            Ok(metadata) => metadata.modified()?.elapsed().unwrap_or_default(),
        };
        if age > ABANDONED { gone(fs::remove_file(path)) } else { Ok(()) }
    }

    /// The event and its length, or why the file is none.
    fn read_file(&self, name: &str) -> io::Result<Result<(Event, usize), String>> {
        let path = self.dir.join(name);
        if !fs::symlink_metadata(&path)?.is_file() {
            return Ok(Err("it is not a regular file".to_owned()));
        }
        let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
        let file: File = OpenOptions::new().read(true).custom_flags(flags).open(&path)?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes)?;
        let told = size_in_name(name);
        if told != Some(bytes.len() as u64) {
            return Ok(Err(format!(
                "it has {} bytes, but its name tells {}",
                bytes.len(),
                told.unwrap_or(0)
            )));
        }
        Ok(Event::parse(&bytes).map(|event| (event, bytes.len())).map_err(|error| error.to_string()))
    }

    /// Moves a file away and notes it. Where it can't be moved, the note says so, and the next read finds it
    /// again: one bad file must not keep the others from being read.
    fn quarantine(&self, name: &Path, why: String, batch: &mut Batch) {
        let why = match self.move_away(name) {
            Ok(()) => why,
            Err(error) => format!("{why}; it cannot be moved away: {error}"),
        };
        batch.quarantined.push(QuarantinedFile { name: name.to_string_lossy().into_owned(), why });
    }

    fn move_away(&self, name: &Path) -> io::Result<()> {
        let to = self.dir.join(QUARANTINE);
        match fs::create_dir(&to) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        gone(fs::rename(self.dir.join(name), to.join(name)))?;
        let mut kept = Vec::new();
        for entry in fs::read_dir(&to)? {
            let entry = entry?;
            // A folder is not of the spool's making.
            if !entry.file_type()?.is_dir() {
                kept.push(entry.path());
            }
        }
        kept.sort();
        kept.iter()
            .take(kept.len().saturating_sub(MAX_QUARANTINE))
            .try_for_each(|old| gone(fs::remove_file(old)))
    }
}

/// That something is gone is what was wanted.
fn gone(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
