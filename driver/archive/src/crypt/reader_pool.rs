//! An encrypted file, read at any place by many threads.
//!
//! The `age` crate's reader stands at one place. Here each thread that reads takes a reader out of a pool,
//! one that stands where it wants to read if there is one, and puts it back; there are never more of them
//! than threads. Each has a piece of 64 KiB in memory, encrypted and plain.
//!
//! A reader that has met an error is dropped: it has lost its place.

use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::sync::{Arc, Mutex, PoisonError};

use age::stream::StreamReader;

use super::open_envelope::{HeaderReader, broken, end_unproven, header_len, unlock};
use super::{Identities, PIECE, TAG};
use crate::source::Source;
use crate::stream::ReadAt;
use virtfold_base::error::{Error, ErrorKind, Result};

/// A file with a place of its own in it.
#[derive(Debug)]
pub(super) struct FileCursor {
    file: Arc<dyn Source>,
    at: u64,
}

impl FileCursor {
    pub(super) fn new(file: &Arc<dyn Source>) -> Self {
        Self { file: Arc::clone(file), at: 0 }
    }
}

impl Read for FileCursor {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        // A file that grows has no more bytes than when it was opened.
        let left = usize::try_from(self.file.len().saturating_sub(self.at)).unwrap_or(usize::MAX);
        let len = buf.len().min(left);
        let wanted = buf.get_mut(..len).unwrap_or_default();
        self.file.read_exact_at(self.at, wanted).map_err(io::Error::other)?;
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for FileCursor {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let place = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.file.len().checked_add_signed(by),
        };
        self.at = place
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "before the file's beginning"))?;
        Ok(self.at)
    }
}

/// A reader of the crate, and the place in the plain bytes where it stands.
struct PooledReader {
    stream: StreamReader<BufReader<HeaderReader<FileCursor>>>,
    at: u64,
}

impl PooledReader {
    fn open(file: &Arc<dyn Source>, identities: &Identities) -> Result<Self> {
        Ok(Self { stream: unlock(FileCursor::new(file), file.name(), identities)?, at: 0 })
    }

    /// Fills `buf`, which is not empty and ends before the last proven byte.
    fn read(&mut self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        if self.at != at {
            if at.is_multiple_of(PIECE) {
                // A seek to a piece's first byte makes the crate look for the end, which a cut file has not.
                // A byte further it reads the piece instead, and going back one byte is then free.
                self.stream.seek(SeekFrom::Start(at + 1))?;
            }
            self.stream.seek(SeekFrom::Start(at))?;
        }
        self.stream.read_exact(buf)?;
        self.at = at + buf.len() as u64;
        Ok(())
    }
}

/// What is in an encrypted file.
pub(super) struct ReaderPool {
    file: Arc<dyn Source>,
    identities: Identities,
    /// Plain bytes that can be read: all of them, or those of the whole pieces before the end that is not
    /// proven.
    len: u64,
    /// Why the end is not proven.
    end: Option<Error>,
    readers: Mutex<Vec<PooledReader>>,
}

impl ReaderPool {
    /// Opens `file`, which begins as an age file, and proves its end.
    ///
    /// # Errors
    /// As [`unlock`]; those of reading it. An end that is not proven is no error here: [`ReaderPool::end`].
    pub(super) fn open(file: Arc<dyn Source>, identities: &Identities) -> Result<Self> {
        let mut reader = PooledReader::open(&file, identities)?;
        // Asking for the end reads and checks the last piece, as the last one.
        let (len, end) = match reader.stream.seek(SeekFrom::End(0)) {
            Ok(len) => (len, None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => (
                whole_pieces(file.as_ref(), header_len(FileCursor::new(&file), file.name())?),
                Some(end_unproven(file.name())),
            ),
            Err(error) => return Err(Error::io(format!("cannot read '{}'", file.name()), error)),
        };
        let identities = identities.clone();
        Ok(Self { file, identities, len, end, readers: Mutex::default() })
    }

    /// Why the end is not proven; nothing where it is.
    pub(super) fn end(&self) -> Option<&Error> {
        self.end.as_ref()
    }

    /// A reader, one that stands in the piece of `at` if there is one.
    fn take(&self, at: u64) -> Result<PooledReader> {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let near = readers.iter().position(|reader| reader.at / PIECE == at / PIECE);
        let found = match near {
            Some(place) => Some(readers.swap_remove(place)),
            None => readers.pop(),
        };
        drop(readers);
        found.map_or_else(|| PooledReader::open(&self.file, &self.identities), Ok)
    }
}

/// Plain bytes in all pieces that are there as a whole, of a file whose end is not proven. What lies behind
/// them is no piece, or the end of one.
fn whole_pieces(file: &dyn Source, header: u64) -> u64 {
    file.len().saturating_sub(header) / (PIECE + TAG) * PIECE
}

impl ReadAt for ReaderPool {
    fn read_exact_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let end = at.checked_add(buf.len() as u64).filter(|end| *end <= self.len);
        if end.is_none() {
            let what = format!(
                "'{}' has no byte {} of its archive",
                self.name(),
                at.saturating_add(buf.len() as u64)
            );
            return Err(Error::new(ErrorKind::Incomplete, what));
        }
        if buf.is_empty() {
            return Ok(());
        }
        let mut reader = self.take(at)?;
        reader.read(at, buf).map_err(|error| broken(self.name(), at, error))?;
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
        Ok(())
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn name(&self) -> &str {
        self.file.name()
    }
}
