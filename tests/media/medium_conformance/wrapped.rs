//! Media around media: another kind held to a rate, among several, or made to fail.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use virtfold::archive::source::Source;
use virtfold::archive::stream::{Cancel, Sink};
use virtfold::error::{Error, ErrorKind, Result};
use virtfold::medium::{FanOut, FinishedArchive, Location, Medium, PipeMedium, RateLimit, RateLimited};

use super::{Kept, Rig};

/// What a wrapper leaves to the kind inside.
macro_rules! of_the_kind_inside {
    () => {
        fn kept(&mut self, name: &str) -> Kept {
            self.0.kept(name)
        }

        fn has_one_writer(&self) -> bool {
            self.0.has_one_writer()
        }

        fn read_back(&self, durable: &FinishedArchive) -> Option<Arc<dyn Source>> {
            self.0.read_back(durable)
        }

        fn has_names(&self) -> bool {
            self.0.has_names()
        }

        fn leftovers(&self, known: &[&str]) -> Vec<String> {
            self.0.leftovers(known)
        }

        fn durable_name(&self, name: &str) -> String {
            self.0.durable_name(name)
        }
    };
}

/// Another kind behind a rate limit.
pub(crate) struct Limited<R>(pub(crate) R);

impl<R: Rig> Rig for Limited<R> {
    fn open(&mut self, name: &str) -> Result<Box<dyn Medium>> {
        let limit = RateLimit::new(256 << 20).unwrap();
        Ok(Box::new(RateLimited::new(self.0.open(name)?, limit, &Cancel::default())))
    }

    of_the_kind_inside!();
}

/// Another kind, and a pipe that nobody reads the end of, written to together.
pub(crate) struct Fanned<R>(pub(crate) R);

impl<R: Rig> Rig for Fanned<R> {
    fn open(&mut self, name: &str) -> Result<Box<dyn Medium>> {
        let first = self.0.open(name)?;
        let (far, near) = std::io::pipe().unwrap();
        drop(far);
        let second: Box<dyn Medium> = Box::new(PipeMedium::new(OwnedFd::from(near)));
        let media = [(Location::Path("first".into()), Ok(first)), (Location::Pipe, Ok(second))];
        // The one without a reader fails alone.
        Ok(Box::new(FanOut::new(media)?))
    }

    of_the_kind_inside!();
}

/// What a wrapped medium does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// This write fails and writes nothing.
    Write(usize),
    /// This write writes half of its bytes, and fails.
    Half(usize),
    /// What was written can't be made durable.
    Finish,
}

/// A medium that fails where it is told to, as the device below it would.
pub(crate) struct Faulty {
    pub(crate) inner: Box<dyn Medium>,
    pub(crate) fault: Fault,
    pub(crate) writes: usize,
}

fn broken() -> Error {
    Error::new(ErrorKind::Io, "the device is broken")
}

impl Sink for Faulty {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writes += 1;
        match self.fault {
            Fault::Write(at) if at == self.writes => Err(broken()),
            Fault::Half(at) if at == self.writes => {
                self.inner.write(&bytes[..bytes.len() / 2])?;
                Err(broken())
            }
            _ => self.inner.write(bytes),
        }
    }
}

impl Medium for Faulty {
    fn finish(self: Box<Self>) -> Result<FinishedArchive> {
        match self.fault {
            Fault::Finish => Err(broken()),
            _ => self.inner.finish(),
        }
    }
}
