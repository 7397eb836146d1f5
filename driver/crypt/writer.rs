//! A medium that encrypts.

use std::io::{self, Write};

use age::Encryptor;
use age::stream::StreamWriter;

use super::Recipients;
use crate::archive::stream::Sink;
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::medium::{Durable, Medium};

/// A medium that encrypts what it is given and hands it on. It holds one piece of 64 KiB.
///
/// The last piece is written by [`Medium::finish`] alone: what was not finished can't be mistaken for a whole archive.
pub struct Encrypting {
    stream: StreamWriter<Outlet>,
}

impl Encrypting {
    /// Writes the header, with the archive's key for each of the `recipients`, to `medium`.
    ///
    /// # Errors
    /// Those of `medium`.
    pub fn begin(medium: Box<dyn Medium>, recipients: &Recipients) -> Result<Self> {
        let encryptor = Encryptor::with_recipients(recipients.iter())
            .map_err(|e| Error::new(ErrorKind::Internal, "the archive can't be encrypted").with_source(e))?;
        let stream = encryptor.wrap_output(Outlet(medium)).at(writing)?;
        Ok(Self { stream })
    }
}

fn writing() -> String {
    "cannot write the encrypted archive".to_owned()
}

impl Sink for Encrypting {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).at(writing)
    }
}

impl Medium for Encrypting {
    fn finish(self: Box<Self>) -> Result<Durable> {
        let Outlet(medium) = self.stream.finish().at(writing)?;
        medium.finish()
    }
}

/// A medium as the `age` crate writes to it. An error of ours goes through as the cause of an [`io::Error`], from which
/// [`Error::io`] takes kind and hint.
struct Outlet(Box<dyn Medium>);

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
