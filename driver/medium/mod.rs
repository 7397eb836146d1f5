//! Media: where the stream of an archive goes and where it comes from. Media know bytes, not disks.
//!
//! The contract of a [`Medium`]: bytes are written strictly in order ([`Sink::write`]); nothing counts as kept
//! until [`Medium::finish`] has returned, and what it returns says what is durable and under which name. A
//! medium that is dropped without it leaves nothing that looks like a whole archive. A failed write is never
//! repeated in place: the run is over.
//!
//! Imports: `error`, `durable`, `ioctl`, `archive` (its traits for bytes).

mod file;
mod location;
mod pipe;
mod rate;
mod source;
pub mod tape;

use std::sync::Arc;

use serde::Serialize;

pub use self::file::FileMedium;
pub use self::location::{Location, LocationError, ObjectAddress, TapeAddress, TapeArchive};
pub use self::pipe::{PipeMedium, PipeSource};
pub use self::rate::{RateLimit, RateLimited};
pub use self::source::{FileSource, Source};
use crate::archive::stream::Sink;
use crate::error::{Error, ErrorKind, Result};

/// A sequential medium that an archive is written to; the module's description is the contract.
pub trait Medium: Sink {
    /// Makes everything durable under its final name.
    ///
    /// # Errors
    /// When any of it is not durable. Only where the very last step fails, the sync of a directory, does the archive
    /// exist under its final name.
    fn finish(self: Box<Self>) -> Result<Durable>;
}

/// What a finished medium vouches for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Durable {
    /// The archive's name, as `restore` takes it; `-` for a pipe, which vouches for nothing behind it.
    pub name: String,
    /// Bytes written.
    pub bytes: u64,
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
                .with_hint("'restore --output', 'restore --disk', 'verify' and 'show' take a tape; for anything else copy the archive into a file with dd"))
        }
        Location::Object(_) => Err(not_here(location)),
    }
}

/// Opens a medium for the archive `name` at `location`.
///
/// # Errors
/// The place is not there or can't be written; standard output is a terminal.
pub fn create(location: &Location, name: &str) -> Result<Box<dyn Medium>> {
    Ok(match location {
        Location::Pipe => Box::new(PipeMedium::stdout()?),
        Location::Path(directory) if !directory.is_dir() => {
            let message = format!("the directory '{}' is not there", directory.display());
            return Err(Error::new(ErrorKind::NotFound, message).with_hint("make it first"));
        }
        Location::Path(directory) => Box::new(FileMedium::create(&directory.join(name))?),
        Location::Tape(_) => {
            let what = format!("'{location}': a tape needs its drive, its catalog and who changes volumes");
            return Err(Error::new(ErrorKind::Internal, what));
        }
        Location::Object(_) => return Err(not_here(location)),
    })
}

/// What is said where a medium is not in this build.
pub(crate) fn not_here(location: &Location) -> Error {
    Error::new(ErrorKind::Unsupported, format!("'{location}': this virtfold has no such medium"))
}
