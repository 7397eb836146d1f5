//! The payload of an age file: its key, and where it ends in a file that has something else behind it.
//!
//! The header is read, and its authenticator checked, by the `age` crate; an identity that looks on learns
//! the file key from it.
//!
//! Where it ends only its pieces tell: those before the last are of this payload and not the last one, what
//! follows it is of another key. So the last one is found by halving; where damage misleads that, by looking
//! at all of them.
//!
//! Imports: `error`; `archive` (the trait `ReadAt`).

use std::io::{self, BufRead, BufReader, Read};
use std::sync::{Arc, Mutex, PoisonError};

use age::secrecy::ExposeSecret;
use age::{DecryptError, Decryptor};
use age_core::format::{FileKey, Stanza};

use super::Identities;
use super::envelope::{NONCE, copy_of, payload_key};
use super::open_envelope::{MAX_HEADER, explain, refuse};
use super::pieces::{PieceCipher, Place, SEALED_LEN};
use super::reader_pool;
use crate::source::Source;
use crate::stream::ReadAt;
use virtfold_base::error::{Error, ErrorKind, Result};

/// An opened payload.
#[derive(Debug)]
pub(super) struct Payload {
    /// What opens its pieces.
    pub(super) pieces: PieceCipher,
    /// Bytes before the first one.
    head: u64,
}

impl Payload {
    /// Reads the header of the age file `input`, called `name`, and not a byte more.
    ///
    /// # Errors
    /// As [`unlock`](super::open_envelope::unlock).
    pub(super) fn open(input: impl BufRead, name: &str, identities: &Identities) -> Result<Self> {
        let mut kept = Kept { input, bytes: Vec::new() };
        let decryptor = Decryptor::new_buffered(&mut kept).map_err(|e| explain(e, name))?;
        refuse(&decryptor, name, identities)?;
        let file_key = Mutex::new(None);
        let seen: Vec<Seen<'_>> =
            identities.iter().map(|inner| Seen { inner, file_key: &file_key }).collect();
        let opened = decryptor.decrypt(seen.iter().map(|seen| seen as &dyn age::Identity));
        drop(opened.map_err(|e| explain(e, name))?);
        let file_key = file_key.lock().unwrap_or_else(PoisonError::into_inner).take();
        let none = || Error::new(ErrorKind::Internal, format!("'{name}' can't be decrypted"));
        let (file_key, nonce) = file_key.zip(kept.bytes.last_chunk::<NONCE>()).ok_or_else(none)?;
        let key = payload_key(&file_key, nonce);
        Ok(Self { pieces: PieceCipher::of_key(key.expose_secret()), head: kept.bytes.len() as u64 })
    }

    /// Where the payload ends in `file`, which may have anything behind it; nothing, where its last piece
    /// can't be had.
    ///
    /// # Errors
    /// Those of opening it, and of reading it.
    pub(super) fn end_in(file: &Arc<dyn Source>, identities: &Identities) -> Result<Option<u64>> {
        let payload =
            Self::open(BufReader::new(reader_pool::FileCursor::new(file)), file.name(), identities)?;
        let count = file.len().saturating_sub(payload.head) / SEALED_LEN as u64;
        let (mut known, mut unknown) = (0, count);
        while known < unknown {
            let middle = known + (unknown - known) / 2;
            match payload.is_within(file.as_ref(), middle)? {
                true => known = middle + 1,
                false => unknown = middle,
            }
        }
        if let Some(end) = payload.end_of(file.as_ref(), known)? {
            return Ok(Some(end));
        }
        let mut last = 0;
        for number in 0..count {
            if payload.is_within(file.as_ref(), number)? {
                last = number + 1;
            }
        }
        payload.end_of(file.as_ref(), last)
    }

    fn place(&self, number: u64) -> u64 {
        self.head.saturating_add(number.saturating_mul(SEALED_LEN as u64))
    }

    /// The piece, or what there is of it before the end of `file`.
    fn sealed(&self, file: &dyn ReadAt, number: u64) -> Result<Vec<u8>> {
        let at = self.place(number);
        let left = file.len().saturating_sub(at).min(SEALED_LEN as u64);
        let mut sealed = vec![0; usize::try_from(left).unwrap_or(0)];
        file.read_exact_at(at, &mut sealed)?;
        Ok(sealed)
    }

    /// Whether the piece is of this payload, and not the last one.
    fn is_within(&self, file: &dyn ReadAt, number: u64) -> Result<bool> {
        let mut sealed = self.sealed(file, number)?;
        Ok(self.pieces.open(number, Place::Within, &mut sealed).is_some())
    }

    /// Where the last piece ends, if it is this one.
    fn end_of(&self, file: &dyn ReadAt, number: u64) -> Result<Option<u64>> {
        let sealed = self.sealed(file, number)?;
        let len = self.pieces.last_len(number, &sealed);
        Ok(len.map(|len| self.place(number).saturating_add(len as u64)))
    }
}

/// Keeps what is read through it, which is no more than a header may have.
struct Kept<R> {
    input: R,
    bytes: Vec<u8>,
}

impl<R: BufRead> BufRead for Kept<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let room = MAX_HEADER.saturating_sub(self.bytes.len());
        if room == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is longer than 64 KiB"));
        }
        let there = self.input.fill_buf()?;
        Ok(there.get(..room).unwrap_or(there))
    }

    fn consume(&mut self, len: usize) {
        let there = self.input.fill_buf().unwrap_or_default();
        self.bytes.extend_from_slice(there.get(..len).unwrap_or_default());
        self.input.consume(len);
    }
}

impl<R: BufRead> Read for Kept<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let there = self.fill_buf()?;
        let len = there.len().min(buf.len());
        buf.iter_mut().zip(there).for_each(|(to, from)| *to = *from);
        self.consume(len);
        Ok(len)
    }
}

/// An identity that keeps the file key that another one finds.
struct Seen<'a> {
    inner: &'a dyn age::Identity,
    file_key: &'a Mutex<Option<FileKey>>,
}

impl Seen<'_> {
    fn keep(&self, found: Option<Unwrapped>) -> Option<Unwrapped> {
        if let Some(Ok(file_key)) = &found {
            *self.file_key.lock().unwrap_or_else(PoisonError::into_inner) = Some(copy_of(file_key));
        }
        found
    }
}

type Unwrapped = std::result::Result<FileKey, DecryptError>;

impl age::Identity for Seen<'_> {
    fn unwrap_stanza(&self, stanza: &Stanza) -> Option<Unwrapped> {
        self.keep(self.inner.unwrap_stanza(stanza))
    }

    fn unwrap_stanzas(&self, stanzas: &[Stanza]) -> Option<Unwrapped> {
        self.keep(self.inner.unwrap_stanzas(stanzas))
    }
}
