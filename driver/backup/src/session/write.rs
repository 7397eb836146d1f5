//! Steps 1308 to 1310: the archive goes to its medium, and goes on where a medium broke.
//!
//! A medium that breaks and has the first bytes of the archive for good ([`Medium::resume_after_failure`]) is
//! written to again. The archive is made a second time from the same source: chunks that lie wholly in what
//! the medium has are only planned, the chunk that lies across is made and the part of it that is there is
//! left out. The medium gets the same bytes as if nothing had happened. Errors of the source are final.
//!
//! Imports: `error`, `archive`, `medium`, `units`.

use std::sync::Arc;

use crate::Control;
use crate::options::BackupOptions;
use crate::resume::ChunkJournal;
use virtfold_archive::stream::{Sink, StreamOptions};
use virtfold_archive::writer::{ArchiveContents, WrittenArchive, write_archive_from};
use virtfold_base::error::{Error, ErrorKind, Result, sentence};
use virtfold_base::units::Human;
use virtfold_medium::Medium;

/// How often a medium may break without having got further.
const TRIES: u32 = 3;

/// Writes the whole archive to `medium`, up to where it can be finished. The medium has its first `reached`
/// bytes, and `log` knows chunks of these.
pub(super) fn stream(
    contents: &ArchiveContents<'_>,
    options: &BackupOptions,
    control: &Control,
    medium: &mut dyn Medium,
    mut log: ChunkJournal,
    mut reached: u64,
) -> Result<WrittenArchive> {
    let mut tries = 0;
    loop {
        let mut outlet =
            ResumableWriter { medium, leave_out: reached - log.keep_within(reached)?, broke: false };
        let done = attempt(contents, options, control, &mut outlet, &mut log);
        let broke = outlet.broke;
        let error = match done {
            Ok(sealed) => return Ok(sealed),
            Err(error) => error,
        };
        tries += 1;
        if !broke || tries > TRIES || error.kind() == ErrorKind::Interrupted {
            return Err(error);
        }
        let Some(durable) = medium.resume_after_failure().map_err(|e| with_context(e, &error))? else {
            return Err(error);
        };
        if durable > reached {
            tries = 0;
        }
        reached = durable;
        tracing::warn!("{}; resuming at {}", sentence(&error), Human(reached));
    }
}

/// What is said when a medium that broke could not be made ready again.
fn with_context(error: Error, first: &Error) -> Error {
    let message = format!("{}, and the archive could not be resumed", sentence(first));
    error.within(message)
}

/// Makes the archive once, behind the chunks that are kept.
fn attempt(
    contents: &ArchiveContents<'_>,
    options: &BackupOptions,
    control: &Control,
    outlet: &mut ResumableWriter<'_>,
    log: &mut ChunkJournal,
) -> Result<WrittenArchive> {
    let total = contents.head.disks.iter().map(|disk| disk.dense_length + disk.blocks_len()).sum();
    control.progress.enter("copying", total);
    let options = StreamOptions {
        compression: options.compression,
        workers: options.workers,
        archive_id: contents.head.archive,
        cancel: Arc::clone(&control.cancel),
        progress: control.progress.counter(),
    };
    let sealed = write_archive_from(contents, outlet, log, &options)?;
    outlet.settle()?;
    Ok(sealed)
}

/// The medium, with what it has already left out.
struct ResumableWriter<'a> {
    medium: &'a mut dyn Medium,
    /// Bytes that come and that it has.
    leave_out: u64,
    /// It was the medium that failed.
    broke: bool,
}

impl ResumableWriter<'_> {
    fn settle(&mut self) -> Result<()> {
        self.medium.sync().inspect_err(|_| self.broke = true)
    }
}

impl Sink for ResumableWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let there = usize::try_from(self.leave_out).unwrap_or(usize::MAX).min(bytes.len());
        self.leave_out -= there as u64;
        match bytes.get(there..) {
            Some(rest) if !rest.is_empty() => self.medium.write(rest).inspect_err(|_| self.broke = true),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
