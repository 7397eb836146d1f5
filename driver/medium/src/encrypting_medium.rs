//! A medium that encrypts.
//!
//! Pieces are numbered, and each is encrypted by its number alone (age's STREAM): so the archive can be gone
//! on with at any piece. It begins with the piece before the one that is wanted: whether that was the last is
//! known only when something follows it.

use std::sync::Arc;

use super::{DurableMarks, FinishedArchive, Medium};
use virtfold_archive::crypt::{Envelope, PieceCipher, Place};
use virtfold_archive::stream::Sink;
use virtfold_base::error::{Error, ErrorKind, OrInternal, Result};

/// Plain bytes of a full piece, and bytes of it with its authenticator.
const PLAIN: usize = PieceCipher::PLAIN;
const SEALED: u64 = PieceCipher::SEALED;
const WHAT: &str = "cannot write the encrypted archive";

/// A medium that encrypts what it is given and hands it on. It holds one piece of 64 KiB.
///
/// The last piece is written by [`Medium::sync`] and [`Medium::finish`] alone: what was not finished can't be
/// mistaken for a whole archive.
pub struct EncryptingMedium {
    medium: Box<dyn Medium>,
    envelope: Envelope,
    cipher: PieceCipher,
    /// Plain bytes of the piece that is being filled, and its number.
    piece: Vec<u8>,
    number: u64,
    /// Encrypted bytes that are made again and that the medium has.
    leave_out: u64,
    /// The last piece has been written.
    closed: bool,
}

impl EncryptingMedium {
    /// Writes the head of `envelope`, and behind it all that comes, to `medium`.
    ///
    /// # Errors
    /// Those of `medium`.
    pub fn begin(medium: Box<dyn Medium>, envelope: &Envelope) -> Result<Self> {
        Ok(Self::resume(medium, envelope, 0)?.0)
    }

    /// Goes on with an archive of which `medium` has the first `durable` encrypted bytes; also says from
    /// which byte of the archive on it wants them.
    ///
    /// # Errors
    /// Those of `medium`.
    pub fn resume(medium: Box<dyn Medium>, envelope: &Envelope, durable: u64) -> Result<(Self, u64)> {
        let mut this = Self {
            medium,
            envelope: envelope.clone(),
            cipher: PieceCipher::new(envelope),
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
        // One piece too far back where it falls between two: whether the one before was the last, its bytes
        // alone don't tell.
        self.number = behind.saturating_sub(1) / SEALED;
        self.leave_out = behind - self.number * SEALED;
        let missing = usize::try_from(durable).ok().and_then(|at| head.get(at..));
        if let Some(missing) = missing.filter(|missing| !missing.is_empty()) {
            self.medium.write(missing).map_err(|e| e.within(WHAT))?;
        }
        Ok(self.number * PLAIN as u64)
    }

    /// Encrypts the piece and hands it on.
    fn seal(&mut self, place: Place) -> Result<()> {
        // A buffer that grows would leave plain bytes behind; this one has room for the authenticator.
        self.cipher.seal(self.number, place, &mut self.piece)?;
        self.number += 1;
        let there = usize::try_from(self.leave_out).unwrap_or(usize::MAX).min(self.piece.len());
        self.leave_out -= there as u64;
        let rest = self.piece.get(there..).or_internal("a piece is shorter than what is left out of it")?;
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

impl Sink for EncryptingMedium {
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

impl Medium for EncryptingMedium {
    fn sync(&mut self) -> Result<()> {
        self.close()?;
        self.medium.sync()
    }

    fn resume_after_failure(&mut self) -> Result<Option<u64>> {
        let Some(durable) = self.medium.resume_after_failure()? else { return Ok(None) };
        self.stand_at(durable).map(Some)
    }

    fn report_marks(&mut self, notes: Arc<dyn DurableMarks>) -> bool {
        self.medium.report_marks(notes)
    }

    fn finish(mut self: Box<Self>) -> Result<FinishedArchive> {
        self.close()?;
        self.medium.finish()
    }
}
