//! An archive that comes front to back, encrypted or not.
//!
//! Of an encrypted one each piece is decrypted as it comes. The last one may have zeros behind it, as media
//! of whole blocks put there: what looks like one piece is then the last and zeros. Where it ends its
//! authenticator proves, which may end with zeros itself.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};
use std::ops::Range;

use super::Identities;
use super::open_envelope::{FileKind, PROBE, broken, end_unproven, kind_of};
use super::payload::Payload;
use super::pieces::{Place, SEALED_LEN, TAG_LEN};
use crate::stream::tell_zeros;
use virtfold_base::error::{IoContext, Result};

/// The first bytes, which were looked at, and the rest.
type PrefixedReader<R> = Chain<Cursor<Vec<u8>>, R>;

/// What an archive holds, as it comes; its errors are [`io::Error`]s whose cause is the library's, where it
/// is about encryption.
pub struct DecryptingReader<R>(ReaderKind<R>);

enum ReaderKind<R> {
    Plain(PrefixedReader<R>),
    Encrypted(Box<DecryptedStream<R>>),
}

struct DecryptedStream<R> {
    input: BufReader<PrefixedReader<R>>,
    payload: Payload,
    name: String,
    /// The piece at hand, and which of its plain bytes were not given out yet.
    piece: Vec<u8>,
    left: Range<usize>,
    /// The number of the next one; nothing behind the last.
    next: Option<u64>,
    /// Plain bytes in the pieces before it.
    at: u64,
}

impl<R: Read> DecryptingReader<R> {
    /// Looks at the first bytes of `input`, called `name` in messages, and opens it with `identities` where
    /// it is encrypted.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`](virtfold_base::error::ErrorKind::Locked), where no identity opens it; Damaged,
    /// Incomplete, Unsupported, where its beginning is; those of `input`.
    pub fn open(mut input: R, name: &str, identities: &Identities) -> Result<Self> {
        let mut first = Vec::with_capacity(PROBE);
        input.by_ref().take(PROBE as u64).read_to_end(&mut first).at(|| format!("cannot read '{name}'"))?;
        let kind = kind_of(&first, name)?;
        let whole = Cursor::new(first).chain(input);
        Ok(Self(match kind {
            FileKind::Plain => ReaderKind::Plain(whole),
            FileKind::Encrypted => {
                let mut input = BufReader::with_capacity(SEALED_LEN, whole);
                let payload = Payload::open(&mut input, name, identities)?;
                let piece = Vec::with_capacity(SEALED_LEN);
                let name = name.to_owned();
                ReaderKind::Encrypted(Box::new(DecryptedStream {
                    input,
                    payload,
                    name,
                    piece,
                    left: 0..0,
                    next: Some(0),
                    at: 0,
                }))
            }
        }))
    }

    /// Whether it is encrypted.
    pub fn is_encrypted(&self) -> bool {
        matches!(self.0, ReaderKind::Encrypted(_))
    }
}

impl<R: Read> Read for DecryptingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            ReaderKind::Plain(whole) => whole.read(buf),
            ReaderKind::Encrypted(opened) => opened.read(buf),
        }
    }
}

impl<R: Read> DecryptedStream<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.left.is_empty()
            && let Some(number) = self.next
        {
            self.advance(number)?;
        }
        let known = self.piece.get(self.left.clone()).unwrap_or_default();
        let len = known.len().min(buf.len());
        buf.iter_mut().zip(known).for_each(|(to, from)| *to = *from);
        self.left.start += len;
        Ok(len)
    }

    /// Decrypts the next piece.
    fn advance(&mut self, number: u64) -> io::Result<()> {
        self.piece.clear();
        self.input.by_ref().take(SEALED_LEN as u64).read_to_end(&mut self.piece)?;
        if self.piece.is_empty() {
            return Err(io::Error::other(broken(&self.name, self.at, io::ErrorKind::UnexpectedEof.into())));
        }
        let is_full = self.piece.len() == SEALED_LEN;
        let within = if is_full { self.opened(number, Place::Within, SEALED_LEN) } else { None };
        let (plain, next) = match within {
            Some(plain) => (plain, Some(number + 1)),
            None => (self.last(number)?, None),
        };
        self.left = 0..plain;
        self.at += plain as u64;
        self.next = next;
        Ok(())
    }

    /// Decrypts the first `len` bytes of what came as a piece; says how many plain ones it has.
    fn opened(&mut self, number: u64, place: Place, len: usize) -> Option<usize> {
        let sealed = self.piece.get_mut(..len)?;
        self.payload.pieces.open(number, place, sealed).map(|plain| plain.len())
    }

    /// Decrypts the last piece, which may have zeros behind it; says how many plain bytes it has.
    fn last(&mut self, number: u64) -> io::Result<usize> {
        let len = self.piece.len();
        let content = self.piece.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        // The authenticator may end with zeros of its own.
        let ends = (content.max(TAG_LEN)..=len).take(TAG_LEN + 1).chain([len]);
        for end in ends {
            let Some(plain) = self.opened(number, Place::Last, end) else { continue };
            // Only an archive without a byte has a piece without one.
            let is_alone = plain > 0 || number == 0;
            let behind = if is_alone { self.zeros()? } else { None };
            let Some(behind) = behind else { break };
            tell_zeros(&self.name, (len - end) as u64 + behind);
            return Ok(plain);
        }
        // A piece that fails and has the end of the input behind it may be whole but for its end.
        let error = match len < SEALED_LEN || self.input.fill_buf()?.is_empty() {
            true => end_unproven(&self.name),
            false => broken(&self.name, self.at, io::ErrorKind::InvalidData.into()),
        };
        Err(io::Error::other(error))
    }

    /// How many bytes follow, all of them zeros; nothing, where others are among them.
    fn zeros(&mut self) -> io::Result<Option<u64>> {
        let mut count = 0;
        loop {
            let more = match self.input.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                more => more?,
            };
            if more.iter().any(|byte| *byte != 0) {
                return Ok(None);
            }
            let len = more.len();
            if len == 0 {
                return Ok(Some(count));
            }
            count += len as u64;
            self.input.consume(len);
        }
    }
}
