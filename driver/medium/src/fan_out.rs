//! One archive written to several media at once: one read, several copies, each with its own end.
//!
//! Each medium has a thread and a short queue; a writer puts the same bytes into all queues and waits where
//! one is full, so the slowest medium sets the pace and memory is bounded. A medium that fails and can go on
//! (a tape) does: it gets again what it lacks, and the others wait and leave that out. One that can't is
//! dropped and noted, and the others go on; only when none is left is the archive lost. What became of each
//! is in [`FinishedArchive::copies`].
//!
//! Imports: `error`, `archive` (its traits for bytes).

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use serde::{Deserialize, Serialize};

use super::{FinishedArchive, Location, Medium};
use virtfold_archive::stream::Sink;
use virtfold_base::error::{Error, ErrorKind, OrInternal, Result, sentence};

/// Writes that a medium may be behind.
const QUEUE: usize = 4;
/// How often it is looked whether a medium has broken while it settles.
const POLL: Duration = Duration::from_millis(5);

/// What came of the copy on one of several media.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyReport {
    /// Where it was to go.
    pub to: String,
    /// The archive's name there, as `restore` takes it; nothing where it failed.
    pub archive: Option<String>,
    /// Why there is none.
    pub failure: Option<String>,
    /// What the administrator can do about that.
    pub hint: Option<String>,
    /// What kind of failure it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<ErrorKind>,
}

/// What came of the copy on one medium.
#[derive(Debug)]
struct MediumOutcome {
    /// Where it was to go.
    to: Location,
    /// What is durable there, or why nothing is.
    result: Result<FinishedArchive>,
}

impl MediumOutcome {
    fn report(&self) -> CopyReport {
        let failure = self.result.as_ref().err();
        CopyReport {
            to: self.to.to_string(),
            archive: self.result.as_ref().ok().map(|finished| finished.name.clone()),
            failure: failure.map(|error| sentence(error)),
            hint: failure.and_then(|error| error.hint().map(ToOwned::to_owned)),
            kind: failure.map(Error::kind),
        }
    }
}

/// Several media that get the same bytes.
#[derive(Debug)]
pub struct FanOut {
    branches: Vec<FanOutThread>,
    /// Of those that have ended.
    outcomes: Vec<MediumOutcome>,
    /// The byte of the archive that comes next.
    at: u64,
    /// The first byte that a medium wants again, and why.
    back: Option<(u64, Error)>,
    /// All is written: nothing is given again.
    is_ending: bool,
}

/// A medium and its thread.
#[derive(Debug)]
struct FanOutThread {
    to: Location,
    /// The byte of the archive that it wants next.
    at: u64,
    /// Gone when it has failed, or all is said.
    queue: Option<Sender<FanOutMessage>>,
    thread: Option<JoinHandle<ThreadResult>>,
}

/// What a thread ends with: the medium, where it broke.
type ThreadResult = (Option<Box<dyn Medium>>, Result<FinishedArchive>);

enum FanOutMessage {
    /// Bytes, from the one of this number on.
    Bytes(Arc<[u8]>, usize),
    /// It says its number when it has settled.
    Settle(Sender<usize>, usize),
    Finish,
}

impl FanOut {
    /// Writes to `media`. What came of each is in [`FinishedArchive::copies`], also of one that could not be
    /// opened.
    ///
    /// # Errors
    /// None of them could be opened, or a thread can't be made.
    pub fn new(media: impl IntoIterator<Item = (Location, Result<Box<dyn Medium>>)>) -> Result<Self> {
        let mut fan =
            Self { branches: Vec::new(), outcomes: Vec::new(), at: 0, back: None, is_ending: false };
        let mut failed = Vec::new();
        for (to, medium) in media {
            let mut branch = FanOutThread { to, at: 0, queue: None, thread: None };
            match medium {
                Ok(medium) => branch.start(medium)?,
                Err(error) => failed.push((fan.branches.len(), error)),
            }
            fan.branches.push(branch);
        }
        let is_open = |branch: &FanOutThread| branch.thread.is_some();
        let any = fan.branches.iter().any(is_open);
        for (at, error) in failed {
            fan.note(at, Err(error));
        }
        if any { Ok(fan) } else { Err(fan.nothing_left()) }
    }

    fn note(&mut self, at: usize, result: Result<FinishedArchive>) {
        let Some(branch) = self.branches.get(at) else { return };
        if let Err(error) = &result {
            tracing::warn!("nothing is written to '{}': {}", branch.to, sentence(error));
        }
        self.outcomes.push(MediumOutcome { to: branch.to.clone(), result });
    }

    /// Waits for the end of a branch. One whose medium broke and can go on is started again; else it is noted
    /// what became of it.
    fn end(&mut self, at: usize) {
        let Some(branch) = self.branches.get_mut(at) else { return };
        branch.queue = None;
        let Some(thread) = branch.thread.take() else { return };
        let panicked =
            |_| (None, Err(Error::new(ErrorKind::Internal, "the thread of a medium has panicked")));
        let (medium, result) = thread.join().unwrap_or_else(panicked);
        match (medium, result) {
            (Some(medium), Err(error)) if !self.is_ending => self.go_on_with(at, medium, error),
            (_, result) => self.note(at, result),
        }
    }

    /// Has a medium that broke with `error` go on, if it can.
    fn go_on_with(&mut self, at: usize, mut medium: Box<dyn Medium>, error: Error) {
        let went_on = match medium.resume_after_failure() {
            Ok(Some(durable)) => Ok(durable),
            Ok(None) => return self.note(at, Err(error)),
            Err(later) => {
                let what = format!("{}, and the archive could not be resumed", sentence(&error));
                Err(later.within(what))
            }
        };
        let Some(branch) = self.branches.get_mut(at) else { return };
        let started = went_on.and_then(|durable| {
            branch.at = durable;
            branch.start(medium).map(|()| durable)
        });
        match started {
            Ok(durable) if self.back.as_ref().is_none_or(|(first, _)| durable < *first) => {
                let what = format!("'{}' broke", branch.to);
                self.back = Some((durable, error.within(what)));
            }
            Ok(_) => {}
            Err(failed) => self.note(at, Err(failed)),
        }
    }

    /// Tells all branches something, made for where each of them is; `None` is not sent. Returns who was
    /// told.
    fn tell(&mut self, message: impl Fn(usize, &mut FanOutThread) -> Option<FanOutMessage>) -> Vec<usize> {
        let mut told = Vec::new();
        for at in 0..self.branches.len() {
            let Some(branch) = self.branches.get_mut(at).filter(|branch| branch.queue.is_some()) else {
                continue;
            };
            let Some(message) = message(at, branch) else { continue };
            // A thread that has ended has failed.
            match branch.queue.as_ref().map(|queue| queue.send(message)) {
                Some(Ok(())) => told.push(at),
                _ => self.end(at),
            }
        }
        told
    }

    /// An error where there is none to write to, or one that wants something again.
    fn outcome(&mut self) -> Result<()> {
        match &self.back {
            Some((_, why)) => Err(Error::new(why.kind(), sentence(why))),
            None if self.is_over() => Err(self.nothing_left()),
            None => Ok(()),
        }
    }

    fn is_over(&self) -> bool {
        self.branches.iter().all(|branch| branch.thread.is_none())
    }

    /// What is said when all have failed: the first failure, and that the others failed, too.
    fn nothing_left(&mut self) -> Error {
        self.in_order();
        let failures = || self.outcomes.iter().filter_map(|one| Some((&one.to, one.result.as_ref().err()?)));
        let all: Vec<String> = failures().map(|(to, error)| format!("'{to}': {}", sentence(error))).collect();
        let first = failures().next().map(|(_, error)| error);
        let kind = first.map_or(ErrorKind::Internal, Error::kind);
        let error = Error::new(kind, format!("no medium is left to write to: {}", all.join("; ")));
        match first.and_then(Error::hint) {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }

    /// Puts the outcomes into the order of the locations.
    fn in_order(&mut self) {
        let branches = &self.branches;
        let place = |one: &MediumOutcome| branches.iter().position(|branch| branch.to == one.to);
        self.outcomes.sort_by_key(place);
    }
}

impl FanOutThread {
    fn start(&mut self, medium: Box<dyn Medium>) -> Result<()> {
        let (queue, messages) = bounded(QUEUE);
        let thread =
            std::thread::Builder::new().name("medium".to_owned()).spawn(move || write(medium, &messages));
        self.thread = Some(thread.map_err(|e| Error::io("cannot start the thread of a medium", e))?);
        self.queue = Some(queue);
        Ok(())
    }
}

/// A medium's thread: until it fails, is finished, or the writer is gone.
fn write(mut medium: Box<dyn Medium>, messages: &Receiver<FanOutMessage>) -> ThreadResult {
    for message in messages {
        let done = match message {
            FanOutMessage::Bytes(bytes, from) => bytes
                .get(from..)
                .or_internal("a medium is to leave out more than there is")
                .and_then(|bytes| medium.write(bytes)),
            FanOutMessage::Settle(settled, at) => {
                medium.sync().map(|()| settled.send(at).unwrap_or_default())
            }
            FanOutMessage::Finish => return (None, medium.finish()),
        };
        if let Err(error) = done {
            return (Some(medium), Err(error));
        }
    }
    (None, Err(Error::new(ErrorKind::Incomplete, "the archive was not finished")))
}

impl Sink for FanOut {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let (begin, bytes): (u64, Arc<[u8]>) = (self.at, bytes.into());
        self.at += bytes.len() as u64;
        let end = self.at;
        self.tell(|_, branch| {
            // What it has it leaves out.
            let from = usize::try_from(branch.at.saturating_sub(begin)).unwrap_or(usize::MAX);
            branch.at = branch.at.max(end);
            (from < bytes.len()).then(|| FanOutMessage::Bytes(Arc::clone(&bytes), from))
        });
        self.outcome()
    }
}

impl Medium for FanOut {
    fn sync(&mut self) -> Result<()> {
        // Each has a queue of its own, and all settle at once.
        let (said, settled) = bounded(self.branches.len());
        let mut waiting = self.tell(|at, _| Some(FanOutMessage::Settle(said.clone(), at)));
        while !waiting.is_empty() {
            if let Ok(at) = settled.recv_timeout(POLL) {
                waiting.retain(|other| *other != at);
                continue;
            }
            // One whose thread has ended broke. What it was asked may lie in its queue for ever.
            let has_ended = |at: &usize| {
                let thread = self.branches.get(*at).and_then(|branch| branch.thread.as_ref());
                thread.is_none_or(JoinHandle::is_finished)
            };
            let (broke, others): (Vec<usize>, Vec<usize>) = waiting.into_iter().partition(has_ended);
            waiting = others;
            broke.into_iter().for_each(|at| self.end(at));
        }
        self.outcome()
    }

    fn resume_after_failure(&mut self) -> Result<Option<u64>> {
        let Some((first, _)) = self.back.take() else { return Ok(None) };
        self.at = first;
        Ok(Some(first))
    }

    fn finish(mut self: Box<Self>) -> Result<FinishedArchive> {
        self.is_ending = true;
        self.tell(|_, _| Some(FanOutMessage::Finish));
        (0..self.branches.len()).for_each(|at| self.end(at));
        self.in_order();
        let finished = || self.outcomes.iter().filter_map(|one| one.result.as_ref().ok());
        let Some(first) = finished().next() else { return Err(self.nothing_left()) };
        Ok(FinishedArchive {
            name: first.name.clone(),
            bytes: first.bytes,
            tapes: finished().flat_map(|one| one.tapes.iter().cloned()).collect(),
            copies: self.outcomes.iter().map(MediumOutcome::report).collect(),
        })
    }
}

impl Drop for FanOut {
    /// Lets each medium end as one that was not finished.
    fn drop(&mut self) {
        self.branches.iter_mut().for_each(|branch| branch.queue = None);
        for branch in &mut self.branches {
            // What became of it was to be nothing.
            drop(branch.thread.take().map(JoinHandle::join));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Instant;

    use super::*;

    /// Keeps what it gets; fails at its `fails`th write, waits `delay` at each. Behind a failure it may have
    /// kept so many bytes, and go on.
    struct Memory {
        kept: Arc<Mutex<Vec<u8>>>,
        writes: usize,
        fails: Option<usize>,
        delay: Duration,
        durable: Option<usize>,
        settled: Option<Result<()>>,
    }

    impl Sink for Memory {
        fn write(&mut self, bytes: &[u8]) -> Result<()> {
            std::thread::sleep(self.delay);
            self.writes += 1;
            if Some(self.writes) == self.fails {
                return Err(Error::new(ErrorKind::NoSpace, "it is full").with_hint("make room"));
            }
            self.kept.lock().unwrap().extend_from_slice(bytes);
            Ok(())
        }
    }

    impl Medium for Memory {
        fn sync(&mut self) -> Result<()> {
            self.settled.take().unwrap_or(Ok(()))
        }

        fn resume_after_failure(&mut self) -> Result<Option<u64>> {
            let Some(durable) = self.durable.take() else { return Ok(None) };
            self.kept.lock().unwrap().truncate(durable);
            Ok(Some(durable as u64))
        }

        fn finish(self: Box<Self>) -> Result<FinishedArchive> {
            let bytes = self.kept.lock().unwrap().len() as u64;
            Ok(FinishedArchive::new("memory", bytes))
        }
    }

    type Kept = Arc<Mutex<Vec<u8>>>;

    fn memory(name: &str, fails: Option<usize>, delay: u64) -> ((Location, Result<Box<dyn Medium>>), Kept) {
        let kept = Kept::default();
        let delay = Duration::from_millis(delay);
        let medium =
            Memory { kept: Arc::clone(&kept), writes: 0, fails, delay, durable: None, settled: None };
        ((Location::Path(name.into()), Ok(Box::new(medium))), kept)
    }

    fn names(finished: &FinishedArchive) -> Vec<(String, Option<ErrorKind>)> {
        let one = |copy: &CopyReport| {
            assert_eq!(copy.archive.is_none(), copy.failure.is_some());
            (copy.to.clone(), copy.kind)
        };
        finished.copies.iter().map(one).collect()
    }

    #[test]
    fn all_get_the_same_and_one_that_fails_fails_alone() {
        let ((a, kept), (b, _), (c, late)) =
            (memory("a", None, 0), memory("b", Some(3), 0), memory("c", None, 1));
        let d = (Location::Path("d".into()), Err(Error::new(ErrorKind::NotFound, "it is not there")));
        let mut fan = Box::new(FanOut::new([a, b, c, d]).unwrap());
        let pieces: Vec<Vec<u8>> = (0..50).map(|i| vec![i; 1000]).collect();
        pieces.iter().for_each(|piece| fan.write(piece).unwrap());
        let finished = fan.finish().unwrap();
        assert_eq!(finished.bytes, 50_000);
        assert_eq!(*kept.lock().unwrap(), pieces.concat());
        assert_eq!(*late.lock().unwrap(), pieces.concat());
        let expected = [
            ("a".to_owned(), None),
            ("b".to_owned(), Some(ErrorKind::NoSpace)),
            ("c".to_owned(), None),
            ("d".to_owned(), Some(ErrorKind::NotFound)),
        ];
        assert_eq!(names(&finished), expected);
    }

    /// As `backup::session` writes: what is wanted again is given again.
    fn write_all(fan: &mut FanOut, whole: &[u8]) -> usize {
        let (mut from, mut again) = (0, 0);
        loop {
            let done = whole[from..].chunks(1000).try_for_each(|piece| fan.write(piece));
            let Err(error) = done.and_then(|()| fan.sync()) else { return again };
            let Some(first) = fan.resume_after_failure().unwrap() else { panic!("{error}") };
            (from, again) = (usize::try_from(first).unwrap(), again + 1);
        }
    }

    #[test]
    fn what_goes_on_gets_again_what_it_lacks_and_the_others_leave_that_out() {
        let whole: Vec<u8> = (0..50_000_u32).map(|n| n.to_be_bytes()[3]).collect();
        // Fails at a write, or when all is written; with anything from nothing to all of it for good.
        for (fails, durable) in [(Some(1), 0), (Some(7), 4500), (Some(50), 49_000), (None, 0), (None, 50_000)]
        {
            let ((a, kept), (b, gone)) = (memory("a", None, 0), memory("b", Some(20), 0));
            let tape = Kept::default();
            let settled = fails.is_none().then(|| Err(Error::new(ErrorKind::Io, "it broke")));
            let medium = Memory {
                kept: Arc::clone(&tape),
                writes: 0,
                fails,
                delay: Duration::ZERO,
                durable: Some(durable),
                settled,
            };
            let c: (Location, Result<Box<dyn Medium>>) = (Location::Path("c".into()), Ok(Box::new(medium)));
            let mut fan = Box::new(FanOut::new([a, b, c]).unwrap());
            assert_eq!(write_all(&mut fan, &whole), 1, "{fails:?}");
            let finished = fan.finish().unwrap();
            assert_eq!(finished.bytes, 50_000);
            let expected =
                [("a".to_owned(), None), ("b".to_owned(), Some(ErrorKind::NoSpace)), ("c".to_owned(), None)];
            assert_eq!(names(&finished), expected, "{fails:?}");
            assert!(*kept.lock().unwrap() == whole && *tape.lock().unwrap() == whole, "{fails:?} {durable}");
            assert!(gone.lock().unwrap().len() < whole.len());
        }
    }

    #[test]
    fn when_none_is_left_the_archive_is_lost() {
        let ((a, _), (b, _)) = (memory("a", Some(1), 0), memory("b", Some(2), 0));
        let mut fan = FanOut::new([a, b]).unwrap();
        let error = (0..1000).find_map(|_| fan.write(b"x").err()).unwrap();
        assert_eq!((error.kind(), error.hint()), (ErrorKind::NoSpace, Some("make room")));
        let shown = error.to_string();
        assert!(shown.contains("'a': it is full") && shown.contains("'b': it is full"), "{shown}");
        let missing = || Err(Error::new(ErrorKind::NotFound, "it is not there"));
        let none = FanOut::new([(Location::Pipe, missing())]);
        assert_eq!(none.unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn the_slowest_sets_the_pace() {
        let ((a, _), (b, _)) = (memory("a", None, 0), memory("b", None, 10));
        let mut fan = FanOut::new([a, b]).unwrap();
        let start = Instant::now();
        (0..20).for_each(|_| fan.write(&[0; 100]).unwrap());
        // All but what its queue holds has gone through.
        assert!(start.elapsed() > Duration::from_millis(120), "{:?}", start.elapsed());
    }
}
