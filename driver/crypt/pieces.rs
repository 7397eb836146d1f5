//! The pieces of an age file, each by its number (age's STREAM: <https://age-encryption.org/v1#payload>).
//!
//! age's own writer begins at the first piece only; an archive that is resumed begins at any of them.
//!
//! Imports: `error`, this room's envelope.

use std::io::Read;

use chacha20poly1305::aead::{AeadInPlace, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Nonce, Tag};

use super::{Envelope, PIECE, TAG};
use crate::error::{Error, ErrorKind, Result};

/// Bytes of an authenticator.
const TAG_LEN: usize = 16;

/// Where a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Others follow.
    Within,
    /// It is the last one: the archive's end.
    Last,
}

/// Encrypts pieces of one archive.
pub struct PieceCipher(ChaCha20Poly1305);

impl PieceCipher {
    /// Plain bytes of a full piece.
    pub const PLAIN: usize = 64 << 10;
    /// Bytes of a full piece with its authenticator.
    pub const SEALED: u64 = PIECE + TAG;

    /// The cipher of the archive in `envelope`.
    pub fn new(envelope: &Envelope) -> Self {
        Self(ChaCha20Poly1305::new(envelope.key().into()))
    }

    /// Encrypts piece `number` in its place and puts its authenticator behind it.
    ///
    /// # Errors
    /// Internal: the piece is longer than a piece can be.
    pub fn seal(&self, number: u64, place: Place, piece: &mut Vec<u8>) -> Result<()> {
        self.0
            .encrypt_in_place(&nonce(number, place), b"", piece)
            .map_err(|_| Error::new(ErrorKind::Internal, "a piece can't be encrypted"))
    }

    /// Decrypts the bytes of piece `number`, which is not the last, in their place; whether `tag` vouches for them.
    fn opens(&self, number: u64, piece: &mut [u8], tag: &[u8]) -> bool {
        let nonce = nonce(number, Place::Within);
        self.0.decrypt_in_place_detached(&nonce, b"", piece, Tag::from_slice(tag)).is_ok()
    }
}

impl Envelope {
    /// How many of the first `most` bytes of `input` are the beginning of an archive in this envelope, in whole pieces, none of
    /// them the last; and how many bytes so many pieces can have at most.
    pub fn proven(&self, mut input: impl Read, most: u64) -> (u64, u64) {
        let head = self.head();
        let head_len = head.len() as u64;
        let Some(behind) = most.checked_sub(head_len) else { return (0, 0) };
        let pieces = behind / PieceCipher::SEALED;
        let whole = head_len + pieces * PieceCipher::SEALED;
        let mut first = vec![0; head.len()];
        if input.read_exact(&mut first).is_err() || first.as_slice() != head.as_ref() {
            return (0, whole);
        }
        let cipher = PieceCipher::new(self);
        let mut sealed = vec![0; PieceCipher::PLAIN + TAG_LEN];
        for number in 0..pieces {
            let read = input.read_exact(&mut sealed);
            let (piece, tag) = sealed.split_at_mut(PieceCipher::PLAIN);
            if read.is_err() || !cipher.opens(number, piece, tag) {
                return (head_len + number * PieceCipher::SEALED, whole);
            }
        }
        (whole, whole)
    }
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
