//! Media: where the stream of an archive goes and where it comes from. Media know bytes, not disks.
//!
//! The contract of a [`Medium`]: bytes are written strictly in order ([`Sink::write`]); nothing counts as kept
//! until [`Medium::finish`] has returned, and what it returns says what is durable and under which name. A
//! medium that is dropped without it leaves nothing that looks like a whole archive. A failed write is never
//! repeated in place: the run is over.
//!
//! Imports: `error`, `durable`, `archive` (its traits for bytes).

mod file;
mod pipe;
mod rate;
mod source;

use serde::Serialize;

pub use self::file::FileMedium;
pub use self::pipe::{PipeMedium, PipeSource};
pub use self::rate::{RateLimit, RateLimited};
pub use self::source::FileSource;
use crate::archive::stream::Sink;
use crate::error::Result;

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
