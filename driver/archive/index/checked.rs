//! Reading at any place of a stream, with every byte checked.
//!
//! A framed stream checks its own frames. A plain one is checked a MiB at a time against the digest list of its
//! tail; the last MiB that was checked is kept, for tables are read in small steps. Without that list nothing can be
//! checked, and what is read is what is there.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::Reading;
use crate::archive::stream::{Chunk, Digest, Digests, FRAME, RandomStream, State};
use crate::error::{Error, ErrorKind, Result};
use crate::units::StreamOffset;

/// The digests of a plain stream's body.
pub(super) struct BodyDigests {
    pub(super) digests: Digests,
    pub(super) body_len: u64,
}

pub(super) struct Checked {
    stream: RandomStream,
    /// Of a plain stream, where its tail is sound.
    body: Option<BodyDigests>,
    /// The chunk number and bytes of the last chunk that was checked.
    last: Mutex<Option<(u64, Vec<u8>)>>,
}
