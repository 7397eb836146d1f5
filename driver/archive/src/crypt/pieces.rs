//! The pieces of an age file, each by its number (age's STREAM: <https://age-encryption.org/v1#payload>).
//!
//! age's own writer begins at the first piece only; an archive that is resumed begins at any of them. age's
//! own reader takes what is behind the last piece as a part of it.
//!
//! Imports: `error`, `stream` (how a seek table ends), this room's envelope.

use std::io::Read;

use chacha20poly1305::aead::{AeadInPlace, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Nonce, Tag};

use super::{Envelope, PIECE, TAG};
use crate::stream::SEEKABLE_MAGIC;
use virtfold_base::error::{Error, ErrorKind, Result};

/// Bytes of an authenticator.
pub(super) const TAG_LEN: usize = 16;
/// Bytes of a full piece with its authenticator.
pub(super) const SEALED_LEN: usize = PieceCipher::PLAIN + TAG_LEN;

/// Where a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Others follow.
    Within,
    /// It is the last one: the archive's end.
    Last,
}

/// Encrypts and decrypts pieces of one archive. `Debug` does not print its key.
pub struct PieceCipher(ChaCha20Poly1305);

impl PieceCipher {
    /// Plain bytes of a full piece.
    pub const PLAIN: usize = 64 << 10;
    /// Bytes of a full piece with its authenticator.
    pub const SEALED: u64 = PIECE + TAG;

    /// The cipher of the archive in `envelope`.
    pub fn new(envelope: &Envelope) -> Self {
        Self::of_key(envelope.key())
    }

    /// The cipher of a payload with this key.
    pub(super) fn of_key(key: &[u8; 32]) -> Self {
        Self(ChaCha20Poly1305::new(key.into()))
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

    /// Decrypts piece `number` in its place; its plain bytes. Nothing, and `sealed` is as it was, where it is
    /// not what was written there.
    pub(super) fn open<'b>(&self, number: u64, place: Place, sealed: &'b mut [u8]) -> Option<&'b mut [u8]> {
        let (plain, tag) = sealed.split_at_mut_checked(sealed.len().checked_sub(TAG_LEN)?)?;
        let nonce = nonce(number, place);
        self.0.decrypt_in_place_detached(&nonce, b"", plain, Tag::from_slice(tag)).ok()?;
        Some(plain)
    }

    /// What the first bytes of a last piece would be in plain, unproven: where an archive may end in it can
    /// be seen in them.
    fn guess(&self, number: u64, sealed: &[u8]) -> Vec<u8> {
        // Zeros become the cipher's own stream.
        let mut plain = vec![0; sealed.len().min(Self::PLAIN)];
        let made = self.0.encrypt_in_place_detached(&nonce(number, Place::Last), b"", &mut plain);
        if made.is_ok() {
            plain.iter_mut().zip(sealed).for_each(|(to, from)| *to ^= from);
        }
        plain
    }

    /// How many bytes at the beginning of `sealed` are the last piece of an archive, with its authenticator;
    /// nothing, where none are. An archive ends at a multiple of 512 or with the magic number of a seek
    /// table, so few ends have to be tried.
    pub(super) fn last_len(&self, number: u64, sealed: &[u8]) -> Option<usize> {
        const BLOCK: usize = 512;
        let plain = self.guess(number, sealed);
        let may_end = |end: &usize| {
            let before = plain.get(..*end).unwrap_or_default();
            // Pieces begin at multiples of 512, too. What ends within the number itself is in the piece
            // before.
            end.is_multiple_of(BLOCK) || *end < SEEKABLE_MAGIC.len() || before.ends_with(&SEEKABLE_MAGIC)
        };
        (1..=plain.len()).filter(may_end).map(|end| end + TAG_LEN).find(|end| {
            let mut piece = sealed.get(..*end).unwrap_or_default().to_vec();
            self.open(number, Place::Last, &mut piece).is_some()
        })
    }
}

impl std::fmt::Debug for PieceCipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PieceCipher")
    }
}

impl Envelope {
    /// How many of the first `most` bytes of `input` are the beginning of an archive in this envelope, in
    /// whole pieces, none of them the last; and how many bytes so many pieces can have at most.
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
        let mut sealed = vec![0; SEALED_LEN];
        for number in 0..pieces {
            let read = input.read_exact(&mut sealed);
            if read.is_err() || cipher.open(number, Place::Within, &mut sealed).is_none() {
                return (head_len + number * PieceCipher::SEALED, whole);
            }
        }
        (whole, whole)
    }
}

/// The nonce of a piece: eleven bytes of its number, the greatest first, and one that says whether it is the
/// last.
fn nonce(number: u64, place: Place) -> Nonce {
    let mut nonce = Nonce::default();
    nonce.iter_mut().skip(3).zip(number.to_be_bytes()).for_each(|(to, from)| *to = from);
    if let Some(flag) = nonce.last_mut() {
        *flag = u8::from(place == Place::Last);
    }
    nonce
}
