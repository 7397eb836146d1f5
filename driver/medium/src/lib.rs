//! Media: where the stream of an archive goes and where it comes from. Media know bytes, not disks.
//!
//! # Writing: [`Medium`]
//!
//! A medium is made for one archive (`backup::destinations`), takes its bytes strictly in order
//! ([`Sink::write`]) and is finished once ([`Medium::finish`]).
//!
//! - **What is durable when.** Nothing counts as kept until `finish` has returned; then all of it does, under
//!   the name that it says ([`FinishedArchive`]). A
//!   medium that has no such proof says so by its name: `-` vouches for nothing behind the pipe.
//! - **Finishing is not optional.** A medium that is dropped without it, or whose process dies, leaves
//!   nothing that looks like a whole archive: no
//!   file or object under its final name, on a pipe not the last 8 KiB, where the end record is. What it
//!   leaves under other names says what it is, and `list` shows it as unfinished.
//! - **Nothing is replaced.** Where archives have names, one that is there already, or appears meanwhile, is
//!   an error
//!   ([`ErrorKind::Exists`]), and stays as it is.
//! - **What may be retried.** By the caller no call: what can be repeated without risk the medium repeats
//!   itself, out of the bytes that it keeps until they are
//!   durable; it bounds both memory and time, and ends when the run is told to end. A failed `finish` is
//!   final, and so is a failed write or [`Medium::sync`] but for one thing:
//! - **What may be gone on with.** After a failed write or `sync` the caller may ask
//!   [`Medium::resume_after_failure`]. A medium that has the archive's first bytes
//!   for good, up to a place D that is not behind what it was given, makes itself ready again (a tape: the
//!   next volume is in the drive), says D, and takes as its next bytes those from D on. The caller has them
//!   from a source that has not changed: the archive's chunks before D are not made again, the others are
//!   made as they were (`backup::session`). A medium that can't says `None`, and is dropped.
//! - **Only where the very last step of `finish` fails** (the sync of a directory, the look at an object) may
//!   the archive exist in spite of the error; it
//!   is then whole.
//!
//! A process that dies leaves a medium that another one may be able to go on with: [`Medium::report_marks`],
//! `Destinations::resume`.
//!
//! # Reading: [`Source`], or [`std::io::Read`] front to back
//!
//! A medium that can be read at any place, by many threads, is a [`Source`] ([`open`]): `show`, `table`,
//! `verify` and a restore of single disks read no more of it than they need. One that comes once, front to
//! back, is any `Read`; its errors carry the library's. What is read is believed only as far as the archive's
//! own digests go. Reading may be repeated.
//!
//! # Removing: [`remove`]
//!
//! An archive goes whole, and its being gone is durable when the call returns. Whoever has it open reads on
//! to its end in a file, and fails on an object. One that is not what was looked at stays. Tapes have nothing
//! to remove: a volume expires.
//!
//! Every medium passes the one suite of `tests/media/medium_conformance`, and the same behind a wrapper that
//! makes it fail.
//!
//! Imports: `error`, `spill_log`, `partial_file`, `ioctl`, `archive` (its traits for bytes).

mod encrypting_medium;
#[cfg(test)]
mod encrypting_medium_tests;
mod fan_out;
mod file;
mod location;
mod lost_ranges;
pub mod mount_point;
#[cfg_attr(not(feature = "object-store"), path = "object_disabled.rs")]
pub mod object;
mod partial_archive;
mod pipe;
mod probe;
pub mod process;
mod rate_limit;
mod spooled_source;
pub mod tape;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use self::encrypting_medium::EncryptingMedium;
pub use self::fan_out::{CopyReport, FanOut};
pub use self::file::FileMedium;
pub use self::location::{Location, LocationError, ObjectAddress, TapeAddress, TapeArchive};
pub use self::lost_ranges::LostRanges;
pub use self::partial_archive::{DurableMark, DurableMarks, PartialArchive, Resumed};
pub use self::pipe::{PipeMedium, PipeSource};
pub use self::probe::probe;
pub use self::rate_limit::{RateLimit, RateLimited};
pub use self::spooled_source::SpooledSource;
use self::tape::TapeReport;
use virtfold_archive::source::{FileSource, Source};
use virtfold_archive::stream::Sink;
use virtfold_base::error::{Error, ErrorKind, Result};

/// A sequential medium that an archive is written to; the module's description is the contract.
pub trait Medium: Sink {
    /// Waits until all that was written is as safe as it can be before [`Medium::finish`], which does the
    /// same where this was not called: called behind the last write, where one that fails can still be gone
    /// on with. A medium that writes behind its caller's back (a ring of memory, parts on their way) has to
    /// say here what failed.
    ///
    /// # Errors
    /// As for a write.
    fn sync(&mut self) -> Result<()> {
        Ok(())
    }

    /// After a failed write or [`Medium::sync`], and only then: makes the medium ready to be written to
    /// again. `Some(D)`: the archive's first D bytes, counted from its beginning over all attempts, are
    /// durable or will be so by what the medium does itself; the next write has the bytes from D on. Whatever
    /// it was given behind D it forgets. `None`: nothing can be done, and the error that was there stands.
    ///
    /// It may take as long as a person needs to change a tape, ends when the run is told to end, and must not
    /// wait for want of room: a guest's overlays may lie on the same file system. A caller gives up when D
    /// does not grow in a few attempts.
    ///
    /// # Errors
    /// When making it ready fails; it is then over, with this error.
    fn resume_after_failure(&mut self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// From here on says to `notes` what is durable, so that another process can go on with it
    /// should this one die. Called once, before the first write. Whether the medium can do that.
    fn report_marks(&mut self, _notes: Arc<dyn DurableMarks>) -> bool {
        false
    }

    /// Makes everything durable under its final name.
    ///
    /// # Errors
    /// When any of it is not durable. Only where the very last step fails, the sync of a directory,
    /// does the archive exist under its final name.
    fn finish(self: Box<Self>) -> Result<FinishedArchive>;
}

/// What a medium is told of an archive before its first byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveLabel {
    /// Its file name: what it is of, when, its id and what it is. No two archives have the same.
    pub name: String,
    /// Its id.
    pub id: Uuid,
    /// The host that makes it.
    pub host: String,
    /// What it is of: the domain's name, or what the set of images is called. It may hold anything.
    pub subject: String,
    /// About how many bytes it will have, rather more than less. To plan with, not to rely on.
    pub estimate: u64,
}

/// A name as a part of a place's name, `max` bytes at most: odd characters become `_`, and it is neither
/// empty nor hidden.
pub fn name_part(name: &str, max: usize, is_odd: impl Fn(char) -> bool) -> String {
    let safe: String = name.chars().map(|c| if is_odd(c) { '_' } else { c }).collect();
    let mut end = safe.len().min(max);
    while !safe.is_char_boundary(end) {
        end -= 1;
    }
    let cut = safe.get(..end).unwrap_or_default();
    if cut.is_empty() || cut.starts_with('.') {
        format!("_{}", cut.trim_start_matches('.'))
    } else {
        cut.to_owned()
    }
}

/// What a finished medium vouches for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishedArchive {
    /// The archive's name, as `restore` takes it; `-` for a pipe, which vouches for nothing behind it.
    pub name: String,
    /// Bytes written.
    pub bytes: u64,
    /// What came of the tapes that it is on.
    #[serde(default)]
    pub tapes: Vec<TapeReport>,
    /// What came of each copy, where it was to go to several media. They are written to from one process, so
    /// no other has to know.
    #[serde(skip)]
    pub copies: Vec<CopyReport>,
}

impl FinishedArchive {
    /// One copy, on no tape.
    pub fn new(name: impl Into<String>, bytes: u64) -> Self {
        Self { name: name.into(), bytes, tapes: Vec::new(), copies: Vec::new() }
    }
}

/// Opens the archive at `location` to be read at any place.
///
/// # Errors
/// When it is not there or can't be opened; Usage, where the medium has but one way, front to back.
pub fn open(location: &Location) -> Result<Arc<dyn Source>> {
    match location {
        Location::Path(path) => Ok(Arc::new(FileSource::open(path)?)),
        Location::Pipe => {
            Err(Error::new(ErrorKind::Usage, "this needs an archive in a file, for it reads at many places")
                .with_hint("write it to a file first; 'virtfold restore -' takes a pipe"))
        }
        Location::Tape(_) => {
            Err(Error::new(ErrorKind::Usage, format!("'{location}': this reads at many places, and a tape has but one way"))
                .with_hint("'restore', 'verify', 'show' and 'table' take a tape; for anything else copy the archive into a file with dd"))
        }
        Location::Object(address) => object::open(address),
    }
}

/// Removes archives, each of which has so many bytes. Says of each, in their order, what became of it: one
/// that is gone already is no error; one that is not a regular file or object of that size stays; what fails,
/// fails alone. Those of an object store go in few requests, in no order.
pub fn remove(wanted: &[(Location, u64)]) -> Vec<Result<()>> {
    let object = |(location, bytes): &(Location, u64)| match location {
        Location::Object(address) => Some((address.clone(), *bytes)),
        _ => None,
    };
    let objects: Vec<(ObjectAddress, u64)> = wanted.iter().filter_map(object).collect();
    let mut removed = object::remove(&objects).into_iter();
    let lost = || Err(Error::new(ErrorKind::Internal, "nothing is known of a removal"));
    let each = wanted.iter().map(|(location, bytes)| match location {
        Location::Path(path) => file::remove(path, *bytes),
        Location::Object(_) => removed.next().unwrap_or_else(lost),
        Location::Pipe | Location::Tape(_) => {
            Err(Error::new(ErrorKind::Usage, format!("nothing can be removed from '{location}'")))
        }
    });
    each.collect()
}

/// Something in a bucket that an archive is or becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedObject {
    /// The archive.
    pub address: ObjectAddress,
    /// Bytes of the object.
    pub bytes: u64,
    /// What the store calls this version of it, where its lists say so.
    pub version: Option<String>,
    /// Whether it is not there yet, and somebody has begun to upload it.
    pub is_partial: bool,
}

/// The error where something else lies under an archive's name than was looked at.
fn changed(location: &impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Io, format!("'{location}' is not what was looked at, and stays"))
}

/// What is said where a medium is not in this build.
pub fn not_here(location: &Location) -> Error {
    Error::new(ErrorKind::Unsupported, format!("'{location}': this virtfold has no such medium"))
}
