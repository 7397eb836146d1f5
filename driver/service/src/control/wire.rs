//! The lines of the protocol (PROTOCOL.md): requests and answers to bytes and back. Requests are strict,
//! because something is meant by every field; answers may have more than is known here.
//!
//! For fuzzers: [`Request::parse`] and [`Response::parse`] take any bytes.
//!
//! Imports: `error`.

use serde::{Deserialize, Serialize};

use super::{ControlApi, EntryId, EntryStatus, Status};
use virtfold_base::error::{Error, ErrorKind, Result, WireError};

/// The protocol's version.
pub const VERSION: u32 = 1;
/// The longest request, its line feed included.
pub const MAX_REQUEST: usize = 1 << 20;
/// The longest answer, its line feed included: the status of some thirty thousand guests.
pub const MAX_ANSWER: usize = 16 << 20;
/// The longest name of a job or domain.
const MAX_NAME: usize = 1024;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The protocol's version.
    pub version: u32,
    /// What is asked.
    pub ask: RequestKind,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum RequestKind {
    /// [`ControlApi::status`].
    Status,
    /// [`ControlApi::queue`].
    Queue,
    /// [`ControlApi::entry`].
    Entry {
        /// Its number.
        id: EntryId,
    },
    /// [`ControlApi::run`].
    Run {
        /// The job.
        job: String,
        /// The domain; all of the job's without.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        domain: Option<String>,
    },
    /// [`ControlApi::pause`].
    Pause {
        /// The job; all without.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        job: Option<String>,
    },
    /// [`ControlApi::resume`].
    Resume {
        /// The job; all without.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        job: Option<String>,
    },
    /// [`ControlApi::cancel`].
    Cancel {
        /// Its number.
        id: EntryId,
    },
    /// [`ControlApi::reload`].
    Reload,
}

/// An answer: one of both fields is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// The protocol's version.
    pub version: u32,
    /// What was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Reply>,
    /// Why there is no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<WireError>,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// To [`RequestKind::Status`].
    Status(Box<Status>),
    /// To [`RequestKind::Queue`].
    Queue(Vec<EntryStatus>),
    /// To [`RequestKind::Entry`].
    Entry(Box<EntryStatus>),
    /// To [`RequestKind::Run`].
    Entries(Vec<EntryId>),
    /// To whatever only does something.
    Done,
}

/// Reads the version alone, so that another one is not taken for a mistake.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

fn check_version(line: &[u8], whose: &str) -> Result<()> {
    match serde_json::from_slice(line) {
        Ok(Versioned { version: VERSION }) => Ok(()),
        Ok(Versioned { version }) => {
            let text =
                format!("the {whose} is of version {version} of the protocol, this is version {VERSION}");
            Err(Error::new(ErrorKind::Unsupported, text)
                .with_hint("restart virtfold.service after an upgrade"))
        }
        // What is wrong with it is said by the strict look.
        Err(_) => Ok(()),
    }
}

impl RequestKind {
    /// Whether it changes something.
    pub fn is_change(&self) -> bool {
        !matches!(self, Self::Status | Self::Queue | Self::Entry { .. })
    }

    fn names(&self) -> impl Iterator<Item = &String> {
        let (job, domain) = match self {
            Self::Run { job, domain } => (Some(job), domain.as_ref()),
            Self::Pause { job } | Self::Resume { job } => (job.as_ref(), None),
            _ => (None, None),
        };
        job.into_iter().chain(domain)
    }
}

impl Request {
    /// The request of a line.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for another version, else [`ErrorKind::Usage`].
    pub fn parse(line: &[u8]) -> Result<RequestKind> {
        if line.len() > MAX_REQUEST {
            return Err(Error::new(ErrorKind::Usage, "the request is longer than 1 MiB"));
        }
        check_version(line, "request")?;
        let request: Self = serde_json::from_slice(line)
            .map_err(|e| Error::new(ErrorKind::Usage, "invalid request").with_source(e))?;
        if request.ask.names().any(|name| name.is_empty() || name.len() > MAX_NAME) {
            return Err(Error::new(ErrorKind::Usage, "names have 1 to 1024 bytes"));
        }
        Ok(request.ask)
    }
}

impl Response {
    /// To a request.
    pub fn new(result: Result<Reply>) -> Self {
        match result {
            Ok(reply) => Self { version: VERSION, answer: Some(reply), error: None },
            Err(error) => Self { version: VERSION, answer: None, error: Some(WireError::from(&error)) },
        }
    }

    /// The answer of a line.
    ///
    /// # Errors
    /// The one that it carries; [`ErrorKind::Unsupported`] for another version; [`ErrorKind::Io`] where it
    /// makes no sense.
    pub fn parse(line: &[u8]) -> Result<Reply> {
        check_version(line, "service's answer")?;
        let nonsense = || Error::new(ErrorKind::Io, "invalid answer of the service");
        let answer: Self = serde_json::from_slice(line).map_err(|e| nonsense().with_source(e))?;
        match (answer.answer, answer.error) {
            (Some(reply), None) => Ok(reply),
            (None, Some(fault)) => Err(fault.into()),
            _ => Err(nonsense()),
        }
    }
}

/// A line of it, with its line feed.
///
/// # Errors
/// [`ErrorKind::Internal`]: it is longer than `most`.
pub(super) fn line(value: &impl Serialize, most: usize) -> Result<Vec<u8>> {
    let defect = |what: &str| Error::new(ErrorKind::Internal, what);
    let mut line = serde_json::to_vec(value)
        .map_err(|e| defect("a line of the protocol can't be written").with_source(e))?;
    line.push(b'\n');
    if line.len() > most {
        return Err(defect("a line of the protocol is too long"));
    }
    Ok(line)
}

/// Hands a request to the desk.
pub(super) fn ask(desk: &dyn ControlApi, ask: &RequestKind) -> Result<Reply> {
    Ok(match ask {
        RequestKind::Status => Reply::Status(Box::new(desk.status()?)),
        RequestKind::Queue => Reply::Queue(desk.queue()?),
        RequestKind::Entry { id } => Reply::Entry(Box::new(desk.entry(*id)?)),
        RequestKind::Run { job, domain } => Reply::Entries(desk.run(job, domain.as_deref())?),
        RequestKind::Pause { job } => done(desk.pause(job.as_deref())?),
        RequestKind::Resume { job } => done(desk.resume(job.as_deref())?),
        RequestKind::Cancel { id } => done(desk.cancel(*id)?),
        RequestKind::Reload => done(desk.reload()?),
    })
}

fn done((): ()) -> Reply {
    Reply::Done
}
