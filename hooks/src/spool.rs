//! The spool: a directory with one file for each event, between hooks that come and go and a service that may
//! be away.
//!
//! **Names.** `TIME-PID-SIZE.json`, all decimal with leading zeros (20, 10 and 8 digits): TIME is the event's
//! `time`, so names sort by it; SIZE is the file's length in bytes, so that a hook learns from names alone
//! how full the spool is, and a reader knows a cut file. Names that begin with a dot are files not yet
//! finished.
//!
//! **Writing.** A temporary name in the same directory, the bytes, fsync, rename, fsync of the directory. A
//! file under its final name is whole, whatever was killed when.
//!
//! **Full.** A spool holds at most [`Limits::files`] files and [`Limits::bytes`] bytes (hooks at the same
//! time may each go one over). Beyond that nothing old is dropped: the event is counted instead, by one more
//! byte in the file `overflow`, whose length is hence the number of events that were lost. The reader takes
//! that number and looks for itself what guests there are. When even that byte finds no room, an empty
//! `overflow` tells that some were lost.
//!
//! **Reading.** Oldest first, bounded; a file is removed when its event is done with, so an event may come
//! twice but never gets lost. A file that is no event goes to the folder `quarantine`, which keeps the latest
//! [`MAX_QUARANTINE`].
//!
//! The service makes the directory, with mode 0700: XML may hold secrets. A hook that finds none keeps
//! nothing.

mod read;
#[cfg(test)]
mod tests;

pub use read::{Batch, QuarantinedFile, SpooledEvent};

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::HookOwner;
use crate::event::Event;
use crate::paths::named;

/// The most files in `quarantine`.
pub const MAX_QUARANTINE: usize = 100;
/// The most events that `overflow` counts.
const MAX_OVERFLOW: u64 = 1 << 20;
const OVERFLOW: &str = "overflow";

/// How much a spool holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Files, unfinished ones and strangers included.
    pub files: usize,
    /// Bytes of all events together.
    pub bytes: u64,
}

impl Default for Limits {
    /// 4096 files, 128 MiB: weeks of a busy host.
    fn default() -> Self {
        Self { files: 4096, bytes: 128 << 20 }
    }
}

/// What became of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpoolOutcome {
    /// It is in the file of this name.
    Stored(String),
    /// The spool is full; the event was counted.
    Dropped,
}

/// A spool's directory.
#[derive(Clone, Debug)]
pub struct Spool {
    dir: PathBuf,
    limits: Limits,
}

/// Where the spool is: `$VIRTFOLD_SPOOL`, else `/var/spool/virtfold/events`, or a user's in his runtime
/// directory.
pub fn usual_path(whose: HookOwner) -> PathBuf {
    named("VIRTFOLD_SPOOL", || match whose {
        HookOwner::System => "/var/spool/virtfold/events".into(),
        HookOwner::User => whose.runtime().join("events"),
    })
}

impl Spool {
    /// The spool in `dir`, with the usual limits. Nothing is read or made yet.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), limits: Limits::default() }
    }

    /// The same spool with other limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the directory, for root only, where it does not exist: the service's business.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn create(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)
    }

    /// Keeps an event, durably. Its name is its own as long as a process has one event in a microsecond.
    ///
    /// # Errors
    /// When the directory is not there or can't be written; the event is then counted, if that much can be
    /// written.
    pub fn put(&self, event: &Event) -> io::Result<SpoolOutcome> {
        let bytes = event.encode()?;
        let name = file_name(event.time, std::process::id(), bytes.len());
        if self.is_full(bytes.len() as u64)? {
            self.count_lost()?;
            return Ok(SpoolOutcome::Dropped);
        }
        match self.store(&name, &bytes) {
            Ok(()) => Ok(SpoolOutcome::Stored(name)),
            Err(error) => {
                // The first error is the one to tell.
                drop(self.count_lost());
                Err(error)
            }
        }
    }

    fn is_full(&self, more: u64) -> io::Result<bool> {
        let (mut files, mut bytes) = (0_usize, more);
        for entry in fs::read_dir(&self.dir)? {
            files += 1;
            let name = entry?.file_name();
            // An unfinished file is one that another hook is about to finish.
            let name = name.to_str().map_or("", |name| name.trim_start_matches('.'));
            bytes = bytes.saturating_add(size_in_name(name).unwrap_or(0));
            if files >= self.limits.files || bytes > self.limits.bytes {
                return Ok(true);
            }
        }
        Ok(bytes > self.limits.bytes)
    }

    fn store(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let unfinished = Unfinished(self.dir.join(format!(".{name}")));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished.0)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished.0, self.dir.join(name))?;
        // Nothing is left under the first name.
        std::mem::forget(unfinished);
        File::open(&self.dir)?.sync_all()
    }

    fn count_lost(&self) -> io::Result<()> {
        let path = self.dir.join(OVERFLOW);
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        if file.metadata()?.len() < MAX_OVERFLOW {
            file.write_all(b".")?;
        }
        Ok(())
    }
}

/// A file that has not its name yet; dropped, it is removed.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        // What can't be removed now, the reader removes when it is old.
        drop(fs::remove_file(&self.0));
    }
}

fn file_name(time: u64, pid: u32, size: usize) -> String {
    format!("{time:020}-{pid:010}-{size:08}.json")
}

/// The size that a name tells; `None` where it is not an event's name.
fn size_in_name(name: &str) -> Option<u64> {
    let mut parts = name.strip_suffix(".json")?.split('-');
    for digits in [20, 10] {
        parts.next().filter(|part| part.len() == digits && part.bytes().all(|c| c.is_ascii_digit()))?;
    }
    let size = parts.next().filter(|part| part.len() == 8 && part.bytes().all(|c| c.is_ascii_digit()))?;
    if parts.next().is_some() { None } else { size.parse().ok() }
}
