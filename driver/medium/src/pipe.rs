//! A pipe as a medium, most often standard output, and standard input as a source: for `ssh`, `mbuffer` and
//! whatever else carries a stream.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use nix::poll::{PollFd, PollFlags, poll};

use super::{FinishedArchive, Medium};
use virtfold_archive::stream::{Cancel, Sink};
use virtfold_base::error::{Error, ErrorKind, IoContext, OrInternal, Result};

/// Bytes at the end of an archive that go out when it is finished: the end record, its header and the end of
/// the tar are among them (5632 bytes), or the seek table, or the last piece's authenticator. So whoever
/// reads the pipe has no whole archive before it is vouched for.
const HELD: usize = 8 << 10;

/// An archive on its way down a pipe. Finishing it says that every byte was taken, not that it was kept: only
/// the reader knows, by the archive's end record.
#[derive(Debug)]
pub struct PipeMedium {
    out: File,
    name: &'static str,
    /// The last bytes so far, [`HELD`] of them where there are as many.
    held: Vec<u8>,
    written: u64,
}

impl PipeMedium {
    /// Takes the writing end of a pipe or socket.
    pub fn new(out: OwnedFd) -> Self {
        Self { out: File::from(out), name: "the pipe", held: Vec::new(), written: 0 }
    }

    /// Takes standard output.
    ///
    /// # Errors
    /// When that is a terminal, or closed.
    pub fn stdout() -> Result<Self> {
        let stdout = std::io::stdout();
        if stdout.is_terminal() {
            return Err(Error::new(ErrorKind::Usage, "an archive is not written to a terminal")
                .with_hint("pipe the output somewhere, or say --to DIR"));
        }
        let kind = rustix::fs::fstat(&stdout)
            .map_err(io::Error::from)
            .at(|| "cannot write to standard output".to_owned())?;
        if kind.st_rdev == rustix::fs::makedev(1, 3)
            && rustix::fs::FileType::from_raw_mode(kind.st_mode).is_char_device()
        {
            // Also what a process that was started with a closed standard output has.
            return Err(Error::new(
                ErrorKind::Usage,
                "standard output is closed or /dev/null: the archive would be nowhere",
            )
            .with_hint("pipe it somewhere, or say --to DIR"));
        }
        let out = stdout.as_fd().try_clone_to_owned().at(|| "cannot write to standard output".to_owned())?;
        Ok(Self { out: File::from(out), name: "standard output", held: Vec::new(), written: 0 })
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).at(|| format!("cannot write to {}", self.name))?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

impl Sink for PipeMedium {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let mut held = std::mem::take(&mut self.held);
        if bytes.len() < HELD {
            held.extend_from_slice(bytes);
            let ready = held.len().saturating_sub(HELD);
            self.put(held.get(..ready).or_internal("a pipe holds back more than it has")?)?;
            held.drain(..ready);
        } else {
            let (now, later) = bytes.split_at(bytes.len() - HELD);
            self.put(&held)?;
            self.put(now)?;
            held.clear();
            held.extend_from_slice(later);
        }
        self.held = held;
        Ok(())
    }
}

impl Medium for PipeMedium {
    fn finish(mut self: Box<Self>) -> Result<FinishedArchive> {
        let held = std::mem::take(&mut self.held);
        self.put(&held)?;
        // Where standard output is a file, this is worth something; pipes and sockets answer EINVAL.
        match self.out.sync_all() {
            Err(error) if error.kind() != std::io::ErrorKind::InvalidInput => {
                Err(Error::io(format!("what was written to {} did not reach the disk", self.name), error))
            }
            _ => Ok(FinishedArchive::new("-", self.written)),
        }
    }
}

/// How long a read waits for bytes before it looks whether the run is to end, milliseconds.
const PATIENCE_MS: u16 = 200;

/// An archive that comes in on standard input. A sender that is silent does not keep the run from ending.
#[derive(Debug)]
pub struct PipeSource {
    input: File,
    cancel: Cancel,
}

impl PipeSource {
    /// Takes standard input.
    ///
    /// # Errors
    /// When that is a terminal, or closed.
    pub fn stdin(cancel: Cancel) -> Result<Self> {
        let stdin = io::stdin();
        if stdin.is_terminal() {
            return Err(Error::new(ErrorKind::Usage, "an archive is not read from a terminal")
                .with_hint("pipe it in, or name its file"));
        }
        let input = stdin.as_fd().try_clone_to_owned().at(|| "cannot read standard input".to_owned())?;
        Ok(Self { input: File::from(input), cancel })
    }
}

impl PipeSource {
    /// Whether `error` is what a wait ends with when the run is told to end.
    pub fn was_told_to_end(error: &Error) -> bool {
        let mut cause = std::error::Error::source(error);
        while let Some(inner) = cause {
            let io = inner.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            if io.is_some_and(|io| io.is::<Cancelled>()) {
                return true;
            }
            cause = inner.source();
        }
        false
    }
}

#[derive(Debug)]
struct Cancelled;

impl std::fmt::Display for Cancelled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the run was told to end")
    }
}

impl std::error::Error for Cancelled {}

impl Read for PipeSource {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while !self.cancel.load(Ordering::Relaxed) {
            let mut ready = [PollFd::new(self.input.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, PATIENCE_MS) {
                Ok(0) | Err(nix::Error::EINTR) => {}
                Ok(_) => return self.input.read(buf),
                Err(errno) => return Err(errno.into()),
            }
        }
        Err(io::Error::other(Cancelled))
    }
}
