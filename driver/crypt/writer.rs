//! A medium that encrypts.
//!
//! Pieces are numbered, and each is encrypted by its number alone (age's STREAM): so the archive can be gone on with at any piece. It begins with the
//! piece before the one that is wanted: whether that was the last is known only when something follows it.

use std::io::Read;
use std::sync::Arc;

use chacha20poly1305::aead::{AeadInPlace, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Nonce, Tag};

use super::{Envelope, PIECE, TAG};
use crate::archive::stream::Sink;
use crate::error::{Error, ErrorKind, Result};
use crate::medium::{Durable, Medium, Notes};

/// Plain bytes of a full piece, and bytes of it with its authenticator.
const PLAIN: usize = 64 << 10;
const TAG_LEN: usize = 16;
const SEALED: u64 = PIECE + TAG;
const WHAT: &str = "cannot write the encrypted archive";

/// A medium that encrypts what it is given and hands it on. It holds one piece of 64 KiB.
///
/// The last piece is written by [`Medium::settle`] and [`Medium::finish`] alone: what was not finished can't be mistaken for a whole archive.
pub struct Encrypting {
    medium: Box<dyn Medium>,
    envelope: Envelope,
    cipher: ChaCha20Poly1305,
    /// Plain bytes of the piece that is being filled, and its number.
    piece: Vec<u8>,
    number: u64,
    /// Encrypted bytes that are made again and that the medium has.
    leave_out: u64,
    /// The last piece has been written.
    closed: bool,
}

impl Encrypting {
    /// Writes the head of `envelope`, and behind it all that comes, to `medium`.
    ///
    /// # Errors
    /// Those of `medium`.
    pub fn begin(medium: Box<dyn Medium>, envelope: &Envelope) -> Result<Self> {
        Ok(Self::go_on_with(medium, envelope, 0)?.0)
    }

    /// Goes on with an archive of which `medium` has the first `durable` encrypted bytes; also says from which byte of the archive on it wants them.
    ///
    /// # Errors
    /// Those of `medium`.
    pub fn go_on_with(medium: Box<dyn Medium>, envelope: &Envelope, durable: u64) -> Result<(Self, u64)> {
        let mut this = Self {
            medium,
            envelope: envelope.clone(),
            cipher: ChaCha20Poly1305::new(envelope.key().into()),
            piece: Vec::with_capacity(PLAIN + 16),
            number: 0,
            leave_out: 0,
            closed: false,
        };
        let wanted = this.stand_at(durable)?;
        Ok((this, wanted))
    }

    /// Stands where the medium has `durable` bytes; the byte of the archive from which it wants them.
    fn stand_at(&mut self, durable: u64) -> Result<u64> {
        let head = Arc::clone(self.envelope.head());
        self.piece.clear();
        self.closed = false;
        let head_len = head.len() as u64;
        let behind = durable.saturating_sub(head_len);
        // One piece too far back where it falls between two: whether the one before was the last, its bytes alone don't tell.
        self.number = behind.saturating_sub(1) / SEALED;
        self.leave_out = behind - self.number * SEALED;
        let missing = usize::try_from(durable).ok().and_then(|at| head.get(at..));
        if let Some(missing) = missing.filter(|missing| !missing.is_empty()) {
            self.medium.write(missing).map_err(|e| e.within(WHAT))?;
        }
        Ok(self.number * PIECE)
    }

    /// Encrypts the piece and hands it on.
    fn seal(&mut self, place: Place) -> Result<()> {
        let nonce = nonce(self.number, place);
        // A buffer that grows would leave plain bytes behind; this one has room for the authenticator.
        self.cipher
            .encrypt_in_place(&nonce, b"", &mut self.piece)
            .map_err(|_| Error::new(ErrorKind::Internal, "a piece can't be encrypted"))?;
        self.number += 1;
        let there = usize::try_from(self.leave_out).unwrap_or(usize::MAX).min(self.piece.len());
        self.leave_out -= there as u64;
        let rest = self.piece.get(there..).unwrap_or_default();
        if !rest.is_empty() {
            self.medium.write(rest).map_err(|e| e.within(WHAT))?;
        }
        self.piece.clear();
        Ok(())
    }

    /// Writes the last piece, which is empty only where the archive is.
    fn close(&mut self) -> Result<()> {
        if self.closed {
            return Ok(());
        }
        self.seal(Place::Last)?;
        self.closed = true;
        Ok(())
    }
}

impl Envelope {
    /// How many of the first `most` bytes of `input` are the beginning of an archive in this envelope, in whole pieces, none of them the last; and how many
    /// bytes so many pieces can have at most.
    pub(crate) fn proven(&self, mut input: impl Read, most: u64) -> (u64, u64) {
        let head = self.head();
        let head_len = head.len() as u64;
        let Some(behind) = most.checked_sub(head_len) else { return (0, 0) };
        let whole = head_len + behind / SEALED * SEALED;
        let mut first = vec![0; head.len()];
        if input.read_exact(&mut first).is_err() || first.as_slice() != head.as_ref() {
            return (0, whole);
        }
        let cipher = ChaCha20Poly1305::new(self.key().into());
        let mut sealed = vec![0; PLAIN + TAG_LEN];
        for number in 0..behind / SEALED {
            let read = input.read_exact(&mut sealed);
            let (piece, tag) = sealed.split_at_mut(PLAIN);
            let nonce = nonce(number, Place::Within);
            let opened = cipher.decrypt_in_place_detached(&nonce, b"", piece, Tag::from_slice(tag));
            if read.is_err() || opened.is_err() {
                return (head_len + number * SEALED, whole);
            }
        }
        (whole, whole)
    }
}

/// Where a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Within,
    Last,
}

/// The nonce of a piece: eleven bytes of its number, the greatest first, and one that says whether it is the last.
fn nonce(number: u64, place: Place) -> Nonce {
    let mut nonce = Nonce::default();
    nonce.iter_mut().skip(3).zip(number.to_be_bytes()).for_each(|(to, from)| *to = from);
    if let Some(flag) = nonce.last_mut() {
        *flag = u8::from(place == Place::Last);
    }
    nonce
}

impl Sink for Encrypting {
    fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        if self.closed {
            return Err(Error::new(ErrorKind::Internal, "the encrypted archive has its end already"));
        }
        while !bytes.is_empty() {
            if self.piece.len() == PLAIN {
                self.seal(Place::Within)?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(PLAIN - self.piece.len()));
            self.piece.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }
}

impl Medium for Encrypting {
    fn settle(&mut self) -> Result<()> {
        self.close()?;
        self.medium.settle()
    }

    fn go_on(&mut self) -> Result<Option<u64>> {
        let Some(durable) = self.medium.go_on()? else { return Ok(None) };
        self.stand_at(durable).map(Some)
    }

    fn keep(&mut self, notes: Arc<dyn Notes>) -> bool {
        self.medium.keep(notes)
    }

    fn finish(mut self: Box<Self>) -> Result<Durable> {
        self.close()?;
        self.medium.finish()
    }
}
