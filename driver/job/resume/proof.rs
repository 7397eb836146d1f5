//! What a dead process has left of a file, held against what is known of it before anything is added: somebody may have damaged it since.
//!
//! Each chunk that is to be kept is read and held against its digest; of an encrypted archive, each piece against its authenticator. A chunk or piece of
//! which only a part is there is made again.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use super::record::Log;
use crate::archive::stream::{Cancel, ChunkLog};
use crate::crypt::Envelope;
use crate::error::{Error, ErrorKind, Result};
use crate::medium::Remains;

/// Bytes of the file that are read at once.
const BUFFER: usize = 256 << 10;

/// How far a file is what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Proof {
    /// Its first bytes that are right.
    pub(super) right: u64,
    /// Whether something in what the disk was said to have is not.
    pub(super) is_damaged: bool,
}

/// Reads what `remains` say is on the disk. Nothing, where there is no file, or it is another one: whoever opens it says so.
///
/// # Errors
/// Interrupted; the log can't be read.
pub(super) fn of(
    remains: &Remains,
    log: &mut Log,
    envelope: Option<&Envelope>,
    cancel: &Cancel,
) -> Result<Option<Proof>> {
    let Some(file) = opened(remains) else { return Ok(None) };
    let input = BufReader::with_capacity(BUFFER, file);
    let synced = remains.synced;
    let proof = match envelope {
        Some(envelope) => {
            let (right, whole) = envelope.proven(input, synced);
            Proof { right, is_damaged: right < whole }
        }
        None => {
            let whole = log.keep_within(synced)?;
            let right = chunks(input, log, cancel)?;
            Proof { right, is_damaged: right < whole }
        }
    };
    Ok(Some(proof))
}

fn opened(remains: &Remains) -> Option<File> {
    let (path, identity) = remains.file.as_ref()?;
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path).ok()?;
    let found = file.metadata().ok()?;
    (found.is_file() && (found.dev(), found.ino()) == *identity).then_some(file)
}

/// How many bytes the chunks have that are kept and are right.
fn chunks(mut input: impl Read, log: &Log, cancel: &Cancel) -> Result<u64> {
    let mut right = 0;
    let mut bytes = Vec::new();
    for number in 0..log.kept() {
        if cancel.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Interrupted, "the backup was interrupted"));
        }
        let chunk = log.get(number)?;
        bytes.resize(usize::try_from(chunk.bytes()).unwrap_or_default(), 0);
        // What can't be read is not right.
        if input.read_exact(&mut bytes).is_err() || !chunk.is_of(&bytes) {
            break;
        }
        right += chunk.bytes();
    }
    Ok(right)
}
