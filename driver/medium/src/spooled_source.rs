//! An archive that came front to back, kept in a file without a name so that it can be read at any place.
//!
//! What is damaged is found by the copies and the digests at an archive's end, so a pass that reads it once
//! and keeps nothing saves less than one that can go back.
//!
//! Imports: `error`, `spill_log`; `archive` (the trait `ReadAt`).

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{LostRanges, PipeSource};
use virtfold_archive::source::Source;
use virtfold_archive::stream::ReadAt;
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::spill_log::SpillLog;

/// Bytes that are read at once.
const STEP: usize = 1 << 20;

/// The archive, as far as it came.
#[derive(Debug)]
pub struct SpooledSource {
    spool: SpillLog,
    name: String,
    gaps: OnceLock<LostRanges>,
    broken: Option<Error>,
}

impl SpooledSource {
    /// Takes all of `input`, called `name` in messages, to memory and from there to a file in `directory` (in
    /// `$TMPDIR`, where that is set).
    ///
    /// # Errors
    /// There is no room for it; Interrupted, where `cancel` is set. An input that breaks off is no error
    /// here: [`SpooledSource::broken`].
    pub fn take(
        input: impl Read,
        name: &str,
        directory: Option<PathBuf>,
        cancel: &AtomicBool,
    ) -> Result<Self> {
        let spool = directory.map_or_else(SpillLog::new, SpillLog::near);
        let mut source = Self { spool, name: name.to_owned(), gaps: OnceLock::new(), broken: None };
        source.fill(input, cancel)?;
        Ok(source)
    }

    fn fill(&mut self, mut input: impl Read, cancel: &AtomicBool) -> Result<()> {
        let mut buf = vec![0; STEP];
        loop {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::new(ErrorKind::Interrupted, "the restore was interrupted"));
            }
            match input.read(&mut buf) {
                Ok(0) => return Ok(()),
                Ok(got) => self.append(buf.get(..got).unwrap_or_default())?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let error = Error::io(format!("cannot read '{}' any further", self.name), error);
                    if error.kind() == ErrorKind::Interrupted || PipeSource::was_told_to_end(&error) {
                        return Err(Error::new(ErrorKind::Interrupted, "the restore was interrupted"));
                    }
                    self.broken = Some(error);
                    return Ok(());
                }
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let directory = self.spool.directory();
        self.spool.append(bytes).map_err(|error| {
            let what = format!("'{}' can't be kept while it is looked through", self.name);
            let hint = format!(
                "--partial needs room for the whole archive in '{}'; TMPDIR names another place",
                directory.display()
            );
            error.within(what).with_hint(hint)
        })
    }

    /// From here on bytes in whose place the medium gave zeros can't be read. (Of an encrypted archive zeros
    /// are no less safe, and a reader may take more at once than it needs.)
    pub fn mind(&self, gaps: &LostRanges) {
        self.gaps.get_or_init(|| gaps.clone());
    }

    /// Why the input broke off, where it did.
    pub fn broken(&self) -> Option<&Error> {
        self.broken.as_ref()
    }
}

impl Source for SpooledSource {}

impl ReadAt for SpooledSource {
    fn read_exact_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let end = at.saturating_add(buf.len() as u64);
        if end > self.len() {
            return Err(Error::new(ErrorKind::Incomplete, format!("'{}' has no byte {end}", self.name)));
        }
        if let Some(gap) = self.gaps.get().and_then(|gaps| gaps.within(at..end).into_iter().next()) {
            let what =
                format!("bytes {} to {} of '{}' could not be read from it", gap.start, gap.end, self.name);
            return Err(Error::new(ErrorKind::Damaged, what));
        }
        self.spool.read_at(at, buf)
    }

    fn len(&self) -> u64 {
        self.spool.len()
    }

    fn name(&self) -> &str {
        &self.name
    }
}
