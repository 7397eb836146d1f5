//! The other end of the socket: a [`ControlApi`] somewhere else. Each call is a connection of its own, so a
//! client outlives a restart of the service.
//!
//! Imports: `error`, `service::acceptor`.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::lines::{Line, LineReader};
use super::wire::{self, MAX_ANSWER, MAX_REQUEST, Reply, Request, Response, VERSION};
use super::{ControlApi, EntryId, EntryStatus, RequestKind, Status};
use crate::acceptor::{PeerDeadline, Stream};
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};

/// How long an answer is waited for. A desk answers in moments; a busy host may take longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks the service.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// At this socket. Nothing is asked yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    fn ask(&self, ask: RequestKind) -> Result<Reply> {
        let line = wire::line(&Request { version: VERSION, ask }, MAX_REQUEST)?;
        let mut stream = self.connect()?;
        let speaking = || format!("cannot talk to the service at '{}'", self.path.display());
        let never = AtomicBool::new(false);
        let patience = PeerDeadline { until: Instant::now() + PATIENCE, stop: &never };
        stream.set_tick().at(speaking)?;
        // One that turns connections away answers and closes without having read: its answer says more than
        // the broken pipe.
        let written = patience.write(&mut stream, &line);
        let answer = match LineReader::new(MAX_ANSWER).next(&mut stream, &patience) {
            Ok(Line::Whole(answer)) => answer,
            Ok(Line::TooLong) => {
                return Err(Error::new(ErrorKind::Io, "the service's answer is longer than 16 MiB"));
            }
            Ok(Line::End) => {
                written.at(speaking)?;
                return Err(self.gone());
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                let text = format!("no answer from the service at '{}' within 60 s", self.path.display());
                return Err(Error::new(ErrorKind::Refused, text).with_source(error));
            }
            Err(error) => return Err(Error::io(speaking(), error)),
        };
        Response::parse(&answer)
    }

    fn connect(&self) -> Result<UnixStream> {
        let path = self.path.display();
        UnixStream::connect(&self.path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                let text = format!("no service answers at {path}: is virtfold.service running?");
                Error::new(ErrorKind::Refused, text)
                    .with_hint("'systemctl status virtfold' shows why; 'virtfold serve' runs the service")
            }
            io::ErrorKind::PermissionDenied => {
                let text = format!("you may not ask the service at {path}");
                Error::new(ErrorKind::Refused, text)
                    .with_hint("only root and members of the group virtfold may")
            }
            _ => Error::io(format!("cannot talk to the service at '{path}'"), error),
        })
    }

    fn gone(&self) -> Error {
        let text = format!("the service at '{}' ended before it answered", self.path.display());
        Error::new(ErrorKind::Refused, text).with_hint("'virtfold status' shows its state now")
    }

    fn done(&self, ask: RequestKind) -> Result<()> {
        match self.ask(ask)? {
            Reply::Done => Ok(()),
            other => Err(unfit(&other)),
        }
    }
}

fn unfit(reply: &Reply) -> Error {
    tracing::debug!(?reply, "this was not asked");
    Error::new(ErrorKind::Io, "the service answered something that was not asked")
}

impl ControlApi for Client {
    fn status(&self) -> Result<Status> {
        match self.ask(RequestKind::Status)? {
            Reply::Status(status) => Ok(*status),
            other => Err(unfit(&other)),
        }
    }

    fn queue(&self) -> Result<Vec<EntryStatus>> {
        match self.ask(RequestKind::Queue)? {
            Reply::Queue(queue) => Ok(queue),
            other => Err(unfit(&other)),
        }
    }

    fn entry(&self, id: EntryId) -> Result<EntryStatus> {
        match self.ask(RequestKind::Entry { id })? {
            Reply::Entry(entry) => Ok(*entry),
            other => Err(unfit(&other)),
        }
    }

    fn run(&self, job: &str, domain: Option<&str>) -> Result<Vec<EntryId>> {
        match self.ask(RequestKind::Run { job: job.to_owned(), domain: domain.map(str::to_owned) })? {
            Reply::Entries(ids) => Ok(ids),
            other => Err(unfit(&other)),
        }
    }

    fn pause(&self, job: Option<&str>) -> Result<()> {
        self.done(RequestKind::Pause { job: job.map(str::to_owned) })
    }

    fn resume(&self, job: Option<&str>) -> Result<()> {
        self.done(RequestKind::Resume { job: job.map(str::to_owned) })
    }

    fn cancel(&self, id: EntryId) -> Result<()> {
        self.done(RequestKind::Cancel { id })
    }

    fn reload(&self) -> Result<()> {
        self.done(RequestKind::Reload)
    }
}
