//! The process's side: it does what the driver says to a medium, and nothing else.

use std::fs::File;
use std::io::{BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::protocol::{Items, MediumReply, MediumRequest, MessageTag, ProbeReply, Reply, read, say};
use crate::{DurableMark, DurableMarks, Medium, Resumed};
use virtfold_base::error::{Error, ErrorKind, IoContext, Result, WireError, sentence};

/// Bytes of what was left that are handed back at once.
const HAND_BACK: usize = 256 << 10;

/// The end of the socket that answers go into.
type ReplySocket = Arc<Mutex<UnixStream>>;

/// The process's whole life: messages come and answers go by the socket that is standard input. `open` does
/// what the request asks for.
///
/// # Errors
/// Standard input is no socket, or the driver says what nobody understands. What fails at the medium the
/// driver is told.
pub fn serve(open: impl FnOnce(MediumRequest) -> Result<MediumReply>) -> Result<()> {
    let listening = || "cannot listen to the driver".to_owned();
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().at(listening)?);
    let watched = socket.try_clone().at(listening)?;
    let watch = move || {
        // The driver is dead: whatever this process waits for, nobody wants it any more, and what is there is
        // the next run's.
        if is_alone(watched.as_fd(), PollTimeout::NONE) {
            std::process::exit(1);
        }
    };
    std::thread::Builder::new()
        .name("driver".to_owned())
        .spawn(watch)
        .at(|| "cannot start a thread".to_owned())?;
    serve_on(socket, open)
}

/// Whether the driver has closed its end, not only shut it for writing. Waits for that, up to `timeout`.
fn is_alone(socket: BorrowedFd<'_>, timeout: PollTimeout) -> bool {
    let mut watched = [PollFd::new(socket, PollFlags::empty())];
    loop {
        match poll(&mut watched, timeout) {
            Err(nix::errno::Errno::EINTR) => {}
            // Without the driver's signs of life it would be waited for for ever.
            Err(_) => return true,
            Ok(_) => {
                return watched
                    .iter()
                    .any(|one| one.revents().is_some_and(|it| it.contains(PollFlags::POLLHUP)));
            }
        }
    }
}

fn serve_on(socket: UnixStream, open: impl FnOnce(MediumRequest) -> Result<MediumReply>) -> Result<()> {
    let listening = || "cannot listen to the driver".to_owned();
    let mut input = BufReader::new(socket.try_clone().at(listening)?);
    let out: ReplySocket = Arc::new(Mutex::new(socket.try_clone().at(listening)?));
    let mut payload = Vec::new();
    let Some(MessageTag::Request) = read(&mut input, &mut payload)? else {
        return Err(Error::new(ErrorKind::Internal, "the driver did not say what is to be opened"));
    };
    let request = serde_json::from_slice(&payload).map_err(std::io::Error::from).at(listening)?;
    let (reply, medium) = match open(request) {
        Ok(MediumReply::New(medium)) => (Reply::Ready, Some(medium)),
        Ok(MediumReply::Resumed(Resumed::From(medium, at))) => (Reply::At(at), Some(medium)),
        Ok(MediumReply::Resumed(Resumed::NotPossible(why))) => (Reply::Gone(why), None),
        Ok(MediumReply::Left(None)) => (Reply::Gone("its file is not there as it was left".to_owned()), None),
        Ok(MediumReply::Left(Some(input))) => {
            tell(&out, &Reply::Follows);
            return hand_back(input);
        }
        Ok(MediumReply::Known(known)) => (Reply::Known(known), None),
        Ok(MediumReply::Items(items)) => (send_items(items, &out), None),
        Err(error) => (Reply::Failed(WireError::from(&error)), None),
    };
    tell(&out, &reply);
    let Some(medium) = medium else { return Ok(()) };
    let mut desk = MediumServer { medium: Some(medium), out, is_broken: false };
    let ended = desk.work(&mut input, &mut payload);
    if is_alone(socket.as_fd(), PollTimeout::ZERO) {
        // As after SIGKILL: what is there stays for who goes on with it.
        std::mem::forget(desk.medium.take());
    }
    ended
}

/// Sends each item, and says how they ended.
fn send_items(items: Items, out: &ReplySocket) -> Reply {
    // One that can't be sent ends it: a list that lacks an archive must not look whole.
    let sent =
        items(&mut |item| say(&mut *out.lock().unwrap_or_else(PoisonError::into_inner), &Reply::Item(item)));
    match sent {
        Ok(()) => Reply::Known(ProbeReply::Done),
        Err(error) => Reply::Failed(WireError::from(&error)),
    }
}

/// Passes what was left of a file on to the driver, until it has enough.
fn hand_back(input: Box<dyn Read>) -> Result<()> {
    let handing = || "cannot hand back what is there".to_owned();
    let mut out = File::from(std::io::stdout().as_fd().try_clone_to_owned().at(handing)?);
    match std::io::copy(&mut BufReader::with_capacity(HAND_BACK, input), &mut out) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        // What can't be read is not right: the driver has it made again.
        done => done.map(drop).at(handing),
    }
}

/// Answers the driver. One that does not listen any more is dead, which is found out elsewhere.
fn tell(out: &ReplySocket, answer: &Reply) {
    if let Err(error) = say(&mut *out.lock().unwrap_or_else(PoisonError::into_inner), answer) {
        tracing::debug!("{}", sentence(&error));
    }
}

/// A medium at work.
struct MediumServer {
    medium: Option<Box<dyn Medium>>,
    out: ReplySocket,
    /// Data is not wanted until it is gone on with.
    is_broken: bool,
}

impl MediumServer {
    /// Until the medium is finished, or the driver says nothing more.
    fn work(&mut self, input: &mut BufReader<UnixStream>, payload: &mut Vec<u8>) -> Result<()> {
        while let Some(word) = read(input, payload)? {
            let Some(medium) = self.medium.as_mut() else { return Ok(()) };
            let done = match word {
                MessageTag::Data if self.is_broken => continue,
                MessageTag::Data => medium.write(payload).map(|()| None),
                MessageTag::Keep => {
                    let notes = Arc::new(RemoteDurableMarks(Arc::clone(&self.out)));
                    Ok(Some(Reply::Kept(medium.report_marks(notes))))
                }
                MessageTag::Settle if self.is_broken => continue,
                MessageTag::Settle => medium.sync().map(|()| Some(Reply::Settled)),
                MessageTag::GoOn => medium.resume_after_failure().map(|at| Some(Reply::Resumed(at))),
                // What broke is not finished: the driver shuts the socket.
                MessageTag::Finish if self.is_broken => continue,
                MessageTag::Finish => return self.finish(),
                MessageTag::Request => return Err(Error::new(ErrorKind::Internal, "a request came twice")),
            };
            match done {
                Ok(None) => {}
                Ok(Some(answer)) => {
                    self.is_broken = self.is_broken && !matches!(answer, Reply::Resumed(Some(_)));
                    tell(&self.out, &answer);
                }
                Err(error) => {
                    self.is_broken = true;
                    tell(&self.out, &Reply::Failed(WireError::from(&error)));
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        let Some(medium) = self.medium.take() else { return Ok(()) };
        let answer = match medium.finish() {
            Ok(finished) => Reply::Finished(finished),
            Err(error) => Reply::Failed(WireError::from(&error)),
        };
        tell(&self.out, &answer);
        Ok(())
    }
}

/// Marks on their way to the driver, who keeps them.
#[derive(Debug)]
struct RemoteDurableMarks(ReplySocket);

impl DurableMarks for RemoteDurableMarks {
    fn note(&self, mark: &DurableMark) {
        tell(&self.0, &Reply::Mark(mark.clone()));
    }

    fn left_behind(&self) {
        tell(&self.0, &Reply::Left);
    }
}
