//! What reading a stream delivers: chunks, damage, and what was found at the end.
//!
//! Imports: `units`, `error`.

use std::ops::Range;

use uuid::Uuid;

use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::units::StreamOffset;

use super::Cancel;
use super::digest::Digest;

/// A file that can be read at any place, by many threads at once.
pub trait ReadAt: Send + Sync {
    /// Fills `buf` with the bytes at `at`.
    ///
    /// # Errors
    /// When they can't be read, or the file ends before.
    fn read_exact_at(&self, at: u64, buf: &mut [u8]) -> Result<()>;

    /// Bytes in the file.
    fn len(&self) -> u64;

    /// Whether the file has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The file's name, for messages.
    fn name(&self) -> &str;
}

/// How the stream is carried in what is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// As it is.
    Plain,
    /// As Zstandard frames.
    Framed,
}

/// How to read a stream.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// Threads that decompress and check; at least one is used.
    pub workers: usize,
    /// Ends the work with [`virtfold_base::error::ErrorKind::Interrupted`].
    pub cancel: Cancel,
    /// How the stream is carried, where the caller knows; else the first bytes tell.
    pub carrier: Option<Carrier>,
    /// The archive that frames must belong to, where the caller knows; else the first good frame tells.
    pub archive_id: Option<Uuid>,
}

/// A part of the stream, in order and without gaps.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// Where it begins in the stream.
    pub at: StreamOffset,
    /// Its bytes; none when it is damaged.
    pub bytes: &'a [u8],
    /// What is known of them.
    pub state: ChunkState<'a>,
}

/// What is known of a chunk's bytes.
#[derive(Clone, Copy, Debug)]
pub enum ChunkState<'a> {
    /// They have the digest that was written with them, which is this one.
    Intact(Digest),
    /// They have this digest; whether it is the right one the stream's last member tells.
    Unchecked(Digest),
    /// They are lost.
    Damaged(&'a Damage),
}

/// A part of the stream that can't be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// What is lost; empty where bytes of the file belong to no frame, and more than a chunk where several
    /// frames are lost together.
    pub stream: Range<StreamOffset>,
    /// The bytes of the file where it should be.
    pub file: Range<u64>,
    /// What is wrong, to go behind 'chunk at ...:'.
    pub why: String,
}

/// What was found about the seek table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SeekTableState {
    /// A plain stream has none.
    Plain,
    /// It is the table of the frames before it, to the byte.
    Intact,
    /// It is not, for this reason.
    Damaged(String),
    /// The file ends within it.
    Cut,
    /// There is none.
    Missing,
}

/// Where a file ends too early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truncation {
    /// Where the bytes begin that hold no whole frame and no seek table, up to the file's end.
    pub file: u64,
    /// Where the stream breaks off.
    pub stream: StreamOffset,
    /// What is there instead.
    pub why: String,
}

/// What was found once all was seen. Of a plain stream this layer can't tell whether it is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamEnd {
    /// How the stream is carried.
    pub carrier: Carrier,
    /// The archive that the frames name.
    pub archive_id: Option<Uuid>,
    /// Bytes of the stream, damaged ones counted in, up to the end or the cut.
    pub stream_len: u64,
    /// Bytes of the file.
    pub file_len: u64,
    /// The seek table.
    pub table: SeekTableState,
    /// Where the file is cut.
    pub cut: Option<Truncation>,
    /// Bytes of the file behind the seek table, where nothing may be.
    pub trailing: Option<Range<u64>>,
    /// Zeros behind the seek table, which media of whole blocks put there.
    pub padding: u64,
}

impl StreamEnd {
    /// Whether the file ends as it must. Damaged chunks are not counted here.
    pub fn is_whole(&self) -> bool {
        matches!(self.table, SeekTableState::Plain | SeekTableState::Intact)
            && self.cut.is_none()
            && self.trailing.is_none()
    }

    /// Holds the archive that the frames name against the one that the head names.
    ///
    /// # Errors
    /// Damaged, where they are not the same; a plain stream has no frames to name one.
    pub fn check_id(&self, head: Uuid) -> Result<()> {
        match self.archive_id {
            Some(id) if id != head => {
                let message = format!(
                    "the archive is damaged: its frames are those of {id}, its head is that of {head}"
                );
                Err(Error::new(ErrorKind::Damaged, message))
            }
            _ => Ok(()),
        }
    }

    /// Holds what was found at the end of the file `name` against what must be there.
    ///
    /// # Errors
    /// Incomplete, where the file is cut; Damaged, where its seek table is not that of its frames or
    /// something follows.
    pub fn check(&self, name: &str) -> Result<()> {
        let damaged =
            |what: String| Err(Error::new(ErrorKind::Damaged, format!("'{name}' is damaged: {what}")));
        let cut =
            |what: String| Err(Error::new(ErrorKind::Incomplete, format!("'{name}' is incomplete: {what}")));
        match (&self.cut, &self.trailing, &self.table) {
            (Some(place), _, _) => cut(format!("it is cut at byte {} ({})", place.file, place.why)),
            (None, Some(after), _) => {
                damaged(format!("bytes {} to {} follow its end", after.start, after.end))
            }
            (None, None, SeekTableState::Damaged(why)) => damaged(format!("its seek table: {why}")),
            (None, None, SeekTableState::Cut | SeekTableState::Missing) => {
                cut("its seek table is not all there".to_owned())
            }
            (None, None, SeekTableState::Plain | SeekTableState::Intact) => Ok(()),
        }
    }
}
