//! A pipe, most often standard output, as a medium: for `ssh`, `mbuffer` and whatever else reads a stream.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};

use super::{Durable, Medium};
use crate::archive::stream::Sink;
use crate::error::{Error, ErrorKind, IoContext, Result};

/// An archive on its way down a pipe. Finishing it says that every byte was taken, not that it was kept: only
/// the reader knows, by the archive's end record.
#[derive(Debug)]
pub struct PipeMedium {
    out: File,
    name: &'static str,
    written: u64,
}

impl PipeMedium {
    /// Takes the writing end of a pipe or socket.
    pub fn new(out: OwnedFd) -> Self {
        Self { out: File::from(out), name: "the pipe", written: 0 }
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
        let out = stdout.as_fd().try_clone_to_owned().at(|| "cannot write to standard output".to_owned())?;
        Ok(Self { out: File::from(out), name: "standard output", written: 0 })
    }
}

impl Sink for PipeMedium {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).at(|| format!("cannot write to {}", self.name))?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

impl Medium for PipeMedium {
    fn finish(self: Box<Self>) -> Result<Durable> {
        // Where standard output is a file, this is worth something; pipes and sockets answer EINVAL.
        match self.out.sync_all() {
            Err(error) if error.kind() != std::io::ErrorKind::InvalidInput => {
                Err(Error::io(format!("what was written to {} did not reach the disk", self.name), error))
            }
            _ => Ok(Durable { name: "-".to_owned(), bytes: self.written }),
        }
    }
}
