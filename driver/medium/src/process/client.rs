//! The driver's side: a medium as any, whose every wait ends.

use std::collections::VecDeque;
use std::io::{ErrorKind as IoKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;

use super::protocol::{
    MAX_LINE, MAX_MESSAGE, MediumReply, MediumRequest, MessageTag, ProbeReply, Reply, head,
};
use super::termination::{TerminatingProcess, TerminatingProcesses, ended, last_words, tell_to_end};
use crate::{DurableMarks, FinishedArchive, Location, Medium, Resumed};
use virtfold_archive::stream::{Cancel, Sink};
use virtfold_base::error::{Error, ErrorKind, IoContext, OrInternal, Result};
use virtfold_base::printable::PrintableWriter;

/// How often the run's flag is looked at.
const FLAG: u16 = 50;
/// How long a medium may take to make an archive durable when the run has been told to end: what is nearly
/// there is not thrown away.
const FINISH: Duration = Duration::from_secs(5);
/// How long a medium that is dropped is waited for before it is left behind.
const MOMENT: Duration = Duration::from_millis(300);
/// How long it may take from there to its end.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same for a tape, which has filemarks to write.
const TAPE: Duration = Duration::from_secs(120);
/// How long a look, or the removal of what was left, may take.
const ASK: Duration = Duration::from_secs(10);

/// How long a file system may take for one of many archives: removing a large file takes some of them long.
const ITEM: Duration = Duration::from_secs(120);

/// Where a process is to write, and how it is started.
#[derive(Debug)]
pub struct ProcessDestination<'a> {
    /// The program that calls [`super::serve`], with its arguments.
    pub command: Command,
    /// What it writes to.
    pub location: &'a Location,
    /// Ends the run.
    pub cancel: &'a Cancel,
    /// Where it goes when it is dropped.
    pub leaving: &'a TerminatingProcesses,
}

/// Starts a process that does what is requested. A medium and what was left are waited for as long as the run
/// goes on; each archive of a list or a removal, and a probe, have two minutes; whatever else has some
/// seconds.
///
/// # Errors
/// It can't be started; what it says; there is no reply in time.
pub fn open(destination: ProcessDestination<'_>, request: &MediumRequest) -> Result<MediumReply> {
    let is_path = destination.location.path().is_some();
    let mut link = ProcessConnection::start(destination, request)?;
    let deadline = match request {
        MediumRequest::Create(_) | MediumRequest::Reopen(..) => ReplyDeadline::Flag,
        // These have nothing to take away.
        MediumRequest::ReadBack(_) => {
            link.patience = Duration::ZERO;
            ReplyDeadline::Flag
        }
        MediumRequest::List | MediumRequest::Glance(_) | MediumRequest::Remove(_) => {
            link.patience = Duration::ZERO;
            // A store gives up by itself, in its own time.
            let deadline = if is_path { ReplyDeadline::Work(ITEM) } else { ReplyDeadline::Flag };
            return Ok(MediumReply::Items(Box::new(move |take| link.items(deadline, take))));
        }
        // It may list a store.
        MediumRequest::Probe(_) => {
            link.patience = Duration::ZERO;
            ReplyDeadline::Work(ITEM)
        }
        MediumRequest::Look | MediumRequest::Mount | MediumRequest::Name | MediumRequest::Discard(_) => {
            link.patience = Duration::ZERO;
            ReplyDeadline::Limit(ASK)
        }
    };
    match (link.answer(deadline)?, request) {
        (Reply::Ready, _) => Ok(MediumReply::New(Box::new(MediumProcess { link }))),
        (Reply::At(at), _) => Ok(MediumReply::Resumed(Resumed::From(Box::new(MediumProcess { link }), at))),
        (Reply::Gone(_), MediumRequest::ReadBack(_)) => Ok(MediumReply::Left(None)),
        (Reply::Gone(why), _) => Ok(MediumReply::Resumed(Resumed::NotPossible(why))),
        (Reply::Follows, _) => Ok(MediumReply::Left(Some(Box::new(HandedBack::of(link)?)))),
        (Reply::Known(known), _) => Ok(MediumReply::Known(known)),
        (other, _) => Err(link.unexpected_reply(&other)),
    }
}

/// A medium in a process of its own.
#[derive(Debug)]
struct MediumProcess {
    link: ProcessConnection,
}

/// What another process reads.
struct HandedBack {
    /// Closed before the process is let go: it ends then.
    out: ChildStdout,
    link: ProcessConnection,
}

impl HandedBack {
    fn of(mut link: ProcessConnection) -> Result<Self> {
        let out = link.child.as_mut().and_then(|child| child.stdout.take());
        let out = out.ok_or_else(|| link.gone())?;
        rustix::io::ioctl_fionbio(&out, true)
            .map_err(std::io::Error::from)
            .at(|| format!("cannot read what is left in '{}'", link.place))?;
        Ok(Self { out, link })
    }
}

impl Read for HandedBack {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            if self.link.is_told() {
                return Err(std::io::Error::other(self.link.unanswered()));
            }
            match self.out.read(buffer) {
                Err(e) if e.kind() == IoKind::WouldBlock => {
                    let mut out = [PollFd::new(self.out.as_fd(), PollFlags::POLLIN)];
                    match poll(&mut out, PollTimeout::from(FLAG)) {
                        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                done => return done,
            }
        }
    }
}

impl Sink for MediumProcess {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        bytes.chunks(MAX_MESSAGE).try_for_each(|piece| self.link.say(MessageTag::Data, piece))
    }
}

impl Medium for MediumProcess {
    fn sync(&mut self) -> Result<()> {
        self.link.say(MessageTag::Settle, &[])?;
        match self.link.answer(ReplyDeadline::Flag)? {
            Reply::Settled => Ok(()),
            other => Err(self.link.unexpected_reply(&other)),
        }
    }

    fn resume_after_failure(&mut self) -> Result<Option<u64>> {
        if self.link.is_over {
            return Ok(None);
        }
        self.link.say(MessageTag::GoOn, &[])?;
        match self.link.answer(ReplyDeadline::Flag)? {
            Reply::Resumed(at) => Ok(at),
            other => Err(self.link.unexpected_reply(&other)),
        }
    }

    fn report_marks(&mut self, notes: Arc<dyn DurableMarks>) -> bool {
        self.link.notes = Some(notes);
        let asked = self.link.say(MessageTag::Keep, &[]).and_then(|()| self.link.answer(ReplyDeadline::Flag));
        // Where it fails the first write says so.
        matches!(asked, Ok(Reply::Kept(true)))
    }

    fn finish(mut self: Box<Self>) -> Result<FinishedArchive> {
        self.link.say(MessageTag::Finish, &[])?;
        match self.link.answer(ReplyDeadline::Behind(FINISH))? {
            Reply::Finished(finished) => {
                self.link.is_finished = true;
                Ok(finished)
            }
            other => Err(self.link.unexpected_reply(&other)),
        }
    }
}

/// How long an answer is waited for.
#[derive(Clone, Copy, Debug)]
enum ReplyDeadline {
    /// Until the run is told to end.
    Flag,
    /// So long behind that.
    Behind(Duration),
    /// So long.
    Limit(Duration),
    /// So long, and no longer than the run goes on.
    Work(Duration),
}

/// The process, and what is said between the two.
#[derive(Debug)]
struct ProcessConnection {
    /// Gone when it was left behind.
    child: Option<Child>,
    socket: UnixStream,
    place: String,
    /// What the archive is of.
    subject: Option<String>,
    patience: Duration,
    cancel: Cancel,
    leaving: TerminatingProcesses,
    words: Option<JoinHandle<()>>,
    /// Who is told of marks.
    notes: Option<Arc<dyn DurableMarks>>,
    /// What came of a line that is not whole.
    heard: Vec<u8>,
    /// Bytes of it that have no line's end.
    searched: usize,
    answers: VecDeque<Reply>,
    /// When the run was told to end, and the process with it.
    told: Option<Instant>,
    /// A message was broken off, or the process is gone: nothing can be said any more.
    is_over: bool,
    /// All is durable.
    is_finished: bool,
}

impl ProcessConnection {
    fn start(place: ProcessDestination<'_>, request: &MediumRequest) -> Result<Self> {
        let ProcessDestination { mut command, location, cancel, leaving } = place;
        let starting = || format!("cannot start the process that writes to '{location}'");
        let (ours, theirs) = UnixStream::pair().at(starting)?;
        ours.set_nonblocking(true).at(starting)?;
        let out = match request {
            MediumRequest::ReadBack(_) => Stdio::piped(),
            _ if *location == Location::Pipe => Stdio::inherit(),
            _ => Stdio::null(),
        };
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(out).stderr(Stdio::piped());
        let mut child = command.spawn().at(starting)?;
        // The command holds the other end, which would outlive the process.
        drop(command);
        let words = child.stderr.take().map(pass_on).transpose()?;
        let patience = if matches!(location, Location::Tape(_)) { TAPE } else { PATIENCE };
        let mut link = Self {
            child: Some(child),
            socket: ours,
            place: location.to_string(),
            subject: request.subject().map(ToOwned::to_owned),
            patience,
            cancel: Arc::clone(cancel),
            leaving: leaving.clone(),
            words,
            notes: None,
            heard: Vec::new(),
            searched: 0,
            answers: VecDeque::new(),
            told: None,
            is_over: false,
            is_finished: false,
        };
        let request = serde_json::to_vec(request).map_err(std::io::Error::from).at(starting)?;
        link.say(MessageTag::Request, &request)?;
        Ok(link)
    }

    /// Sends a message, however long the process takes to read it, as long as the run goes on.
    fn say(&mut self, word: MessageTag, payload: &[u8]) -> Result<()> {
        if self.is_over {
            return Err(self.gone());
        }
        let head = head(word, payload.len())?;
        let whole = self.send(&head).and_then(|()| self.send(payload));
        whole.inspect_err(|_| self.is_over = true)?;
        self.take_in()?;
        // To anything else it is the answer.
        let failed = if word == MessageTag::Data { self.broken() } else { None };
        failed.map_or(Ok(()), Err)
    }

    /// What the process said of a write that failed.
    fn broken(&mut self) -> Option<Error> {
        match self.answers.front() {
            Some(Reply::Failed(_)) => match self.answers.pop_front() {
                Some(Reply::Failed(failure)) => Some(failure.into()),
                _ => None,
            },
            _ => None,
        }
    }

    fn send(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            match self.socket.write(bytes) {
                Ok(sent) => bytes = bytes.get(sent..).or_internal("a socket took more than there was")?,
                Err(e) if e.kind() == IoKind::Interrupted => {}
                Err(e) if e.kind() == IoKind::WouldBlock => {
                    self.hear(PollFlags::POLLIN | PollFlags::POLLOUT)?;
                    if self.is_told() {
                        return Err(self.unanswered());
                    }
                }
                Err(_) => {
                    // Its last words say why.
                    let heard = self.hear(PollFlags::POLLIN);
                    return Err(self.broken().or(heard.err()).unwrap_or_else(|| self.gone()));
                }
            }
        }
        Ok(())
    }

    /// Takes item after item, up to the last one.
    fn items(mut self, deadline: ReplyDeadline, take: &mut dyn FnMut(Value) -> Result<()>) -> Result<()> {
        loop {
            match self.answer(deadline)? {
                Reply::Item(item) => take(item)?,
                Reply::Known(ProbeReply::Done) => return Ok(()),
                other => return Err(self.unexpected_reply(&other)),
            }
        }
    }

    /// The next answer. A failure is an error.
    fn answer(&mut self, wait: ReplyDeadline) -> Result<Reply> {
        let since = Instant::now();
        loop {
            match self.answers.pop_front() {
                Some(Reply::Failed(failure)) => return Err(failure.into()),
                Some(answer) => return Ok(answer),
                None => {}
            }
            self.hear(PollFlags::POLLIN)?;
            if !self.answers.is_empty() {
                continue;
            }
            let told = self.is_told();
            let is_late = match wait {
                ReplyDeadline::Flag => told,
                ReplyDeadline::Behind(grace) => self.told.is_some_and(|at| at.elapsed() > grace),
                ReplyDeadline::Limit(limit) => since.elapsed() > limit,
                ReplyDeadline::Work(limit) => told || since.elapsed() > limit,
            };
            if is_late {
                self.is_over = true;
                return Err(self.unanswered());
            }
        }
    }

    /// Whether the run is to end; the process is told so, too.
    fn is_told(&mut self) -> bool {
        if self.told.is_none() && self.cancel.load(Ordering::Relaxed) {
            self.told = Some(Instant::now());
            self.child.iter().for_each(tell_to_end);
        }
        self.told.is_some()
    }

    /// Waits a moment for what can be done, and takes in what is said.
    fn hear(&mut self, wanted: PollFlags) -> Result<()> {
        let mut socket = [PollFd::new(self.socket.as_fd(), wanted)];
        match poll(&mut socket, PollTimeout::from(FLAG)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).at(|| format!("cannot wait for '{}'", self.place)),
        }
        self.take_in()
    }

    /// Takes in what was said until now.
    fn take_in(&mut self) -> Result<()> {
        let mut bytes = [0; 4096];
        loop {
            match self.socket.read(&mut bytes) {
                Ok(0) => break,
                Ok(count) => self.heard.extend(bytes.get(..count).unwrap_or_default()),
                Err(e) if e.kind() == IoKind::Interrupted => {}
                Err(e) if e.kind() == IoKind::WouldBlock => return self.understand(),
                Err(_) => break,
            }
        }
        self.understand()?;
        self.is_over = true;
        if self.answers.is_empty() { Err(self.gone()) } else { Ok(()) }
    }

    /// Takes in the lines that are whole. Marks are kept at once.
    fn understand(&mut self) -> Result<()> {
        while let Some(end) = self.line_end() {
            let line: Vec<u8> = self.heard.drain(..=end).collect();
            let answer = serde_json::from_slice(&line).map_err(std::io::Error::from);
            match answer
                .at(|| format!("the process that writes to '{}' says what nobody understands", self.place))?
            {
                Reply::Mark(mark) => self.notes.iter().for_each(|notes| notes.note(&mark)),
                Reply::Left => self.notes.iter().for_each(|notes| notes.left_behind()),
                answer => self.answers.push_back(answer),
            }
        }
        if self.heard.len() <= MAX_LINE {
            return Ok(());
        }
        let what = format!("the process that writes to '{}' says too much", self.place);
        Err(Error::new(ErrorKind::Internal, what))
    }

    /// Where the first line ends. What was searched before is not searched again: a line may be long.
    fn line_end(&mut self) -> Option<usize> {
        let rest = self.heard.get(self.searched..).unwrap_or_default();
        let found = rest.iter().position(|byte| *byte == b'\n').map(|at| self.searched + at);
        self.searched = if found.is_some() { 0 } else { self.heard.len() };
        found
    }

    fn unexpected_reply(&self, answer: &Reply) -> Error {
        let what = format!("the process that writes to '{}' answers {answer:?}", self.place);
        Error::new(ErrorKind::Internal, what)
    }

    fn gone(&mut self) -> Error {
        let what = format!("the process that writes to '{}' has ended", self.place);
        let error = Error::new(ErrorKind::Io, what);
        match self.child.as_mut().and_then(|child| ended(child, MOMENT)) {
            Some(status) => error.with_source(status.to_string()),
            None => error,
        }
    }

    fn unanswered(&self) -> Error {
        match self.told {
            Some(_) => {
                let what = format!("the backup was told to end while it waited for '{}'", self.place);
                Error::new(ErrorKind::Interrupted, what)
            }
            None => {
                let what = format!("'{}' does not answer", self.place);
                Error::new(ErrorKind::Io, what).with_hint("see whether it is mounted and its server is there")
            }
        }
    }
}

impl Drop for ProcessConnection {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        if !self.is_finished {
            tell_to_end(&child);
        }
        if let Err(error) = self.socket.shutdown(std::net::Shutdown::Write) {
            tracing::debug!(%error, "the socket of a medium was closed already");
        }
        let since = Instant::now();
        let status = ended(&mut child, MOMENT);
        // The last that it says.
        let heard = self.hear(PollFlags::POLLIN);
        tracing::trace!(?heard, ?status, "the process of a medium ended");
        if !self.is_finished && !status.is_some_and(|status| status.success()) {
            // What is there may not have been taken away.
            self.notes.iter().for_each(|notes| notes.left_behind());
        }
        if status.is_some() {
            last_words(self.words.take());
            return;
        }
        match self.socket.try_clone() {
            Ok(socket) => self.leaving.take_in(TerminatingProcess {
                child,
                place: std::mem::take(&mut self.place),
                subject: self.subject.take(),
                since,
                patience: self.patience,
                socket,
                words: self.words.take(),
            }),
            Err(error) => tracing::warn!(%error, "process {} is left alone", child.id()),
        }
    }
}

/// Passes a process's standard error on: one that is abandoned must not hold ours open. What it says is its
/// own, and that of the command that changes tapes.
fn pass_on(mut from: std::process::ChildStderr) -> Result<JoinHandle<()>> {
    let pass = move || {
        if let Err(error) = std::io::copy(&mut from, &mut PrintableWriter::new(std::io::stderr())) {
            tracing::debug!(%error, "what the process of a medium says goes nowhere");
        }
    };
    std::thread::Builder::new().name("words".to_owned()).spawn(pass).at(|| "cannot start a thread".to_owned())
}
