//! One archive written to several media at once: one read, several copies, each with its own end.
//!
//! Each medium has a thread and a short queue; a writer puts the same bytes into all queues and waits where one is full, so the slowest medium sets the
//! pace and memory is bounded. A medium that fails is dropped and noted, and the others go on; only when none is left is the
//! archive lost. What became of each is in [`Copies`].
//!
//! Imports: `error`, `archive` (its traits for bytes).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::{Durable, Label, Location, Medium, create};
use crate::archive::stream::{Cancel, Sink};
use crate::error::{Error, ErrorKind, Result, sentence};

/// Writes that a medium may be behind.
const QUEUE: usize = 4;

/// What became of the copy on one medium.
#[derive(Debug)]
pub struct Copy {
    /// Where it was to go.
    pub to: Location,
    /// What is durable there, or why nothing is.
    pub result: Result<Durable>,
}

/// What became of the copies, known when the medium has been finished or dropped. Empty where there was but one place to write to.
#[derive(Clone, Debug, Default)]
pub struct Copies(Arc<Mutex<Vec<Copy>>>);

impl Copies {
    /// Takes them out, in the order of the places.
    pub fn take(&self) -> Vec<Copy> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Copy>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a medium that writes the archive `label` to all `places`; for one place it is that medium itself.
///
/// # Errors
/// A place is named twice; no place can be written to.
pub fn create_all(
    places: &[Location],
    label: &Label,
    cancel: &Cancel,
    copies: &Copies,
) -> Result<Box<dyn Medium>> {
    create_all_by(places, copies, |place| create(place, label, cancel))
}

/// As [`create_all`], with the media that `make` makes.
///
/// # Errors
/// As [`create_all`]; for one place those of `make`.
pub fn create_all_by(
    places: &[Location],
    copies: &Copies,
    make: impl Fn(&Location) -> Result<Box<dyn Medium>>,
) -> Result<Box<dyn Medium>> {
    if let [place] = places {
        return make(place);
    }
    if let Some((_, twice)) = places.iter().enumerate().find(|(at, place)| places[..*at].contains(place)) {
        return Err(Error::new(ErrorKind::Usage, format!("the archive is to go to '{twice}' twice")));
    }
    let media = places.iter().map(|place| (place.clone(), make(place)));
    Ok(Box::new(FanOut::new(media, copies)?))
}

/// Several media that get the same bytes.
#[derive(Debug)]
pub struct FanOut {
    branches: Vec<Branch>,
    copies: Copies,
}

/// A medium and its thread.
#[derive(Debug)]
struct Branch {
    to: Location,
    /// Gone when it has failed, or all is said.
    queue: Option<Sender<Message>>,
    thread: Option<JoinHandle<Result<Durable>>>,
}

enum Message {
    Bytes(Arc<[u8]>),
    Finish,
}

impl FanOut {
    /// Writes to `media`. What became of each is noted in `copies`; one that could not be opened is noted at once.
    ///
    /// # Errors
    /// None of them could be opened, or a thread can't be made.
    pub fn new(
        media: impl IntoIterator<Item = (Location, Result<Box<dyn Medium>>)>,
        copies: &Copies,
    ) -> Result<Self> {
        let mut fan = Self { branches: Vec::new(), copies: copies.clone() };
        let mut failed = Vec::new();
        for (to, medium) in media {
            let mut branch = Branch { to, queue: None, thread: None };
            match medium {
                Ok(medium) => branch.start(medium)?,
                Err(error) => failed.push((fan.branches.len(), error)),
            }
            fan.branches.push(branch);
        }
        let is_open = |branch: &Branch| branch.thread.is_some();
        let any = fan.branches.iter().any(is_open);
        for (at, error) in failed {
            fan.note(at, Err(error));
        }
        if any { Ok(fan) } else { Err(fan.nothing_left()) }
    }

    fn note(&self, at: usize, result: Result<Durable>) {
        let Some(branch) = self.branches.get(at) else { return };
        if let Err(error) = &result {
            tracing::warn!("nothing is written to '{}': {}", branch.to, sentence(error));
        }
        self.copies.lock().push(Copy { to: branch.to.clone(), result });
    }

    /// Waits for the end of a branch, and notes what became of it.
    fn end(&mut self, at: usize) {
        let Some(branch) = self.branches.get_mut(at) else { return };
        branch.queue = None;
        if let Some(thread) = branch.thread.take() {
            let panicked = |_| Err(Error::new(ErrorKind::Internal, "the thread of a medium has panicked"));
            let result = thread.join().unwrap_or_else(panicked);
            self.note(at, result);
        }
    }

    fn tell(&mut self, message: impl Fn() -> Message) {
        for at in 0..self.branches.len() {
            let queue = self.branches.get(at).and_then(|branch| branch.queue.as_ref());
            // A thread that has ended has failed.
            if queue.is_some_and(|queue| queue.send(message()).is_err()) {
                self.end(at);
            }
        }
    }

    fn is_over(&self) -> bool {
        self.branches.iter().all(|branch| branch.thread.is_none())
    }

    /// What is said when all have failed: the first failure, and that the others failed, too.
    fn nothing_left(&self) -> Error {
        self.in_order();
        let copies = self.copies.lock();
        let failures = || copies.iter().filter_map(|copy| Some((&copy.to, copy.result.as_ref().err()?)));
        let all: Vec<String> = failures().map(|(to, error)| format!("'{to}': {}", sentence(error))).collect();
        let first = failures().next().map(|(_, error)| error);
        let kind = first.map_or(ErrorKind::Internal, Error::kind);
        let error = Error::new(kind, format!("no medium is left to write to: {}", all.join("; ")));
        match first.and_then(Error::hint) {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }

    /// Puts what is noted into the order of the places.
    fn in_order(&self) {
        let place = |copy: &Copy| self.branches.iter().position(|branch| branch.to == copy.to);
        self.copies.lock().sort_by_key(place);
    }
}

impl Branch {
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
fn write(mut medium: Box<dyn Medium>, messages: &Receiver<Message>) -> Result<Durable> {
    for message in messages {
        match message {
            Message::Bytes(bytes) => medium.write(&bytes)?,
            Message::Finish => return medium.finish(),
        }
    }
    Err(Error::new(ErrorKind::Incomplete, "the archive was not finished"))
}

impl Sink for FanOut {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let bytes: Arc<[u8]> = bytes.into();
        self.tell(|| Message::Bytes(Arc::clone(&bytes)));
        if self.is_over() { Err(self.nothing_left()) } else { Ok(()) }
    }
}

impl Medium for FanOut {
    fn finish(mut self: Box<Self>) -> Result<Durable> {
        self.tell(|| Message::Finish);
        (0..self.branches.len()).for_each(|at| self.end(at));
        self.in_order();
        let first = self.copies.lock().iter().find_map(|copy| copy.result.as_ref().ok().cloned());
        first.ok_or_else(|| self.nothing_left())
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
    use std::time::{Duration, Instant};

    use super::*;

    /// Keeps what it gets; fails at its `fails`th write, waits `delay` at each.
    struct Memory {
        kept: Arc<Mutex<Vec<u8>>>,
        writes: usize,
        fails: Option<usize>,
        delay: Duration,
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
        fn finish(self: Box<Self>) -> Result<Durable> {
            let bytes = self.kept.lock().unwrap().len() as u64;
            Ok(Durable { name: "memory".to_owned(), bytes })
        }
    }

    type Kept = Arc<Mutex<Vec<u8>>>;

    fn memory(name: &str, fails: Option<usize>, delay: u64) -> ((Location, Result<Box<dyn Medium>>), Kept) {
        let kept = Kept::default();
        let delay = Duration::from_millis(delay);
        let medium = Memory { kept: Arc::clone(&kept), writes: 0, fails, delay };
        ((Location::Path(name.into()), Ok(Box::new(medium))), kept)
    }

    fn names(copies: &[Copy]) -> Vec<(String, Option<ErrorKind>)> {
        copies.iter().map(|copy| (copy.to.to_string(), copy.result.as_ref().err().map(Error::kind))).collect()
    }

    #[test]
    fn all_get_the_same_and_one_that_fails_fails_alone() {
        let copies = Copies::default();
        let ((a, kept), (b, _), (c, late)) =
            (memory("a", None, 0), memory("b", Some(3), 0), memory("c", None, 1));
        let d = (Location::Path("d".into()), Err(Error::new(ErrorKind::NotFound, "it is not there")));
        let mut fan = Box::new(FanOut::new([a, b, c, d], &copies).unwrap());
        let pieces: Vec<Vec<u8>> = (0..50).map(|i| vec![i; 1000]).collect();
        pieces.iter().for_each(|piece| fan.write(piece).unwrap());
        assert_eq!(fan.finish().unwrap().bytes, 50_000);
        assert_eq!(*kept.lock().unwrap(), pieces.concat());
        assert_eq!(*late.lock().unwrap(), pieces.concat());
        let expected = [
            ("a".to_owned(), None),
            ("b".to_owned(), Some(ErrorKind::NoSpace)),
            ("c".to_owned(), None),
            ("d".to_owned(), Some(ErrorKind::NotFound)),
        ];
        assert_eq!(names(&copies.take()), expected);
    }

    #[test]
    fn when_none_is_left_the_archive_is_lost() {
        let copies = Copies::default();
        let ((a, _), (b, _)) = (memory("a", Some(1), 0), memory("b", Some(2), 0));
        let mut fan = FanOut::new([a, b], &copies).unwrap();
        let error = (0..1000).find_map(|_| fan.write(b"x").err()).unwrap();
        assert_eq!((error.kind(), error.hint()), (ErrorKind::NoSpace, Some("make room")));
        let shown = error.to_string();
        assert!(shown.contains("'a': it is full") && shown.contains("'b': it is full"), "{shown}");
        let missing = || Err(Error::new(ErrorKind::NotFound, "it is not there"));
        let none = FanOut::new([(Location::Pipe, missing())], &Copies::default());
        assert_eq!(none.unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn the_slowest_sets_the_pace() {
        let ((a, _), (b, _)) = (memory("a", None, 0), memory("b", None, 10));
        let mut fan = FanOut::new([a, b], &Copies::default()).unwrap();
        let start = Instant::now();
        (0..20).for_each(|_| fan.write(&[0; 100]).unwrap());
        // All but what its queue holds has gone through.
        assert!(start.elapsed() > Duration::from_millis(120), "{:?}", start.elapsed());
    }
}
