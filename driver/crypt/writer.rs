//! A medium that encrypts.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use age::Encryptor;
use age::stream::StreamWriter;

use super::Recipients;
use crate::archive::stream::Sink;
use crate::error::{Error, ErrorKind, Result};
use crate::medium::{Durable, Medium};

/// A medium that encrypts what it is given and hands it on. It holds one piece of 64 KiB.
///
/// The last piece is written by [`Medium::finish`] alone: what was not finished can't be mistaken for a whole archive.
pub struct Encrypting {
    stream: StreamWriter<Outlet>,
    failure: Failure,
}

impl Encrypting {
    /// Writes the header, with the archive's key for each of the `recipients`, to `medium`.
    ///
    /// # Errors
    /// Those of `medium`.
    pub fn begin(medium: Box<dyn Medium>, recipients: &Recipients) -> Result<Self> {
        let encryptor = Encryptor::with_recipients(recipients.iter())
            .map_err(|e| Error::new(ErrorKind::Internal, "the archive can't be encrypted").with_source(e))?;
        let failure = Failure::default();
        let outlet = Outlet { medium, failure: failure.clone() };
        let stream = encryptor.wrap_output(outlet).map_err(|e| failure.of(e))?;
        Ok(Self { stream, failure })
    }
}

impl Sink for Encrypting {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).map_err(|e| self.failure.of(e))
    }
}

impl Medium for Encrypting {
    fn finish(self: Box<Self>) -> Result<Durable> {
        let Self { stream, failure } = *self;
        let outlet = stream.finish().map_err(|e| failure.of(e))?;
        outlet.medium.finish()
    }
}

/// What the medium said, kept beside the `age` crate, which hands on that something failed and not always what.
#[derive(Clone, Debug, Default)]
struct Failure(Arc<Mutex<Option<Error>>>);

impl Failure {
    /// The error behind `error`.
    fn of(&self, error: io::Error) -> Error {
        const WHAT: &str = "cannot write the encrypted archive";
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(said) => said.within(WHAT),
            None => Error::io(WHAT, error),
        }
    }
}

/// A medium as the `age` crate writes to it.
struct Outlet {
    medium: Box<dyn Medium>,
    failure: Failure,
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.medium.write(bytes).map_err(|error| {
            let told = io::Error::other(error.to_string());
            *self.failure.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            told
        })?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
