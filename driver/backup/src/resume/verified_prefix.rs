//! What a dead process has left of a file, held against what is known of it before anything is added:
//! somebody may have damaged it since.
//!
//! It is another process that reads it, as whatever touches a medium: a guest's disks may be frozen, and the
//! medium may hang. The digests and the key stay here.
//!
//! Each chunk that is to be kept is read and held against its digest; of an encrypted archive, each piece
//! against its authenticator. A chunk or piece of which only a part is there is made again.

use std::io::{BufReader, Read};
use std::sync::atomic::Ordering;

use super::record::ChunkJournal;
use virtfold_archive::crypt::Envelope;
use virtfold_archive::stream::{Cancel, ChunkLog};
use virtfold_base::error::{Error, ErrorKind, OrInternal, Result};

/// Bytes of the file that are read at once.
const BUFFER: usize = 256 << 10;

/// How far a file is what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VerifiedPrefix {
    /// Its first bytes that are right.
    pub(super) right: u64,
    /// Whether something in what the disk was said to have is not.
    pub(super) is_damaged: bool,
}

/// Holds `input`, of which `synced` bytes are on the disk, against what was written.
///
/// # Errors
/// Interrupted; the log can't be read.
pub(super) fn of(
    input: impl Read,
    synced: u64,
    log: &mut ChunkJournal,
    envelope: Option<&Envelope>,
    cancel: &Cancel,
) -> Result<VerifiedPrefix> {
    let input = BufReader::with_capacity(BUFFER, input);
    let (right, whole) = match envelope {
        Some(envelope) => envelope.proven(input, synced),
        None => {
            let whole = log.keep_within(synced)?;
            (chunks(input, log, cancel)?, whole)
        }
    };
    if cancel.load(Ordering::Relaxed) {
        // What was not read for that is not damaged.
        let what = "the backup was told to end while it read what an earlier run had left";
        return Err(Error::new(ErrorKind::Interrupted, what));
    }
    Ok(VerifiedPrefix { right, is_damaged: right < whole })
}

/// How many bytes the chunks have that are kept and are right.
fn chunks(mut input: impl Read, log: &ChunkJournal, cancel: &Cancel) -> Result<u64> {
    let mut right = 0;
    let mut bytes = Vec::new();
    for number in 0..log.kept() {
        if cancel.load(Ordering::Relaxed) {
            break;
        }
        let chunk = log.get(number)?;
        bytes.resize(usize::try_from(chunk.bytes()).ok().or_internal("a chunk is larger than memory")?, 0);
        // What can't be read is not right.
        if input.read_exact(&mut bytes).is_err() || !chunk.is_of(&bytes) {
            break;
        }
        right += chunk.bytes();
    }
    Ok(right)
}
