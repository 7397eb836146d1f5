//! Media that are full, break or are never finished: what is there is never mistaken for a whole archive, and
//! what goes on makes the same bytes.

use std::sync::{Arc, Mutex};

use super::{Lab, Memory, PLAIN, SEALED, kind, noise};
use crate::{EncryptingMedium, FinishedArchive, Medium};
use virtfold_archive::crypt::Envelope;
use virtfold_archive::stream::Sink;
use virtfold_base::error::{Error, ErrorKind, Result, sentence};

#[test]
fn a_full_medium_says_so_through_the_encryption() {
    let lab = Lab::new();
    for room in [10, SEALED, 2 * SEALED] {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let memory = Box::new(Memory(Arc::clone(&kept), room));
        let outcome = EncryptingMedium::begin(memory, &lab.envelope()).and_then(|mut medium| {
            medium.write(&noise(2 * PLAIN))?;
            Box::new(medium).finish()
        });
        let error = outcome.unwrap_err();
        assert_eq!((error.kind(), error.hint()), (ErrorKind::NoSpace, Some("make room")));
        assert_eq!(sentence(&error), "cannot write the encrypted archive: it is full");
    }
}

#[test]
fn what_was_not_finished_is_not_whole() {
    let lab = Lab::new();
    for len in [0, PLAIN, 2 * PLAIN + 9] {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let memory = Box::new(Memory(Arc::clone(&kept), usize::MAX));
        let mut medium = EncryptingMedium::begin(memory, &lab.envelope()).unwrap();
        medium.write(&noise(len)).unwrap();
        drop(medium);
        let left = kept.lock().unwrap().clone();
        assert_eq!(kind(lab.open(&left)), ErrorKind::Incomplete);
        assert_eq!(kind(lab.pipe(&left)), ErrorKind::Incomplete);
    }
}

/// A medium in memory that fails once, at a byte, and then has kept so many bytes for good.
struct Breaks {
    kept: Arc<Mutex<Vec<u8>>>,
    room: Option<usize>,
    durable: usize,
}

impl Sink for Breaks {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let mut kept = self.kept.lock().unwrap();
        if self.room.is_some_and(|room| kept.len() + bytes.len() > room) {
            return Err(Error::new(ErrorKind::Io, "it broke"));
        }
        kept.extend_from_slice(bytes);
        Ok(())
    }
}

impl Medium for Breaks {
    fn resume_after_failure(&mut self) -> Result<Option<u64>> {
        self.room = None;
        let mut kept = self.kept.lock().unwrap();
        let durable = self.durable.min(kept.len());
        kept.truncate(durable);
        Ok(Some(durable as u64))
    }

    fn finish(self: Box<Self>) -> Result<FinishedArchive> {
        Ok(FinishedArchive::new("memory", self.kept.lock().unwrap().len() as u64))
    }
}

fn sealed_with(envelope: &Envelope, plain: &[u8]) -> Vec<u8> {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let memory = Box::new(Memory(Arc::clone(&kept), usize::MAX));
    let mut medium = Box::new(EncryptingMedium::begin(memory, envelope).unwrap());
    medium.write(plain).unwrap();
    medium.finish().unwrap();
    Arc::into_inner(kept).unwrap().into_inner().unwrap()
}

/// Places where something begins or ends, and their neighbours.
fn edges(head: usize, len: usize) -> Vec<usize> {
    let at = [0, head, head + SEALED, head + 2 * SEALED, len];
    let near = at.into_iter().flat_map(|at| [at.saturating_sub(1), at, at + 1, at + 7]);
    near.filter(|at| *at <= len).collect()
}

#[test]
fn a_broken_medium_gets_the_same_bytes_from_any_place_on() {
    let lab = Lab::new();
    let envelope = lab.envelope();
    for len in [0, 1, PLAIN - 1, PLAIN, PLAIN + 1, 2 * PLAIN, 2 * PLAIN + 9] {
        let plain = noise(len);
        let whole = sealed_with(&envelope, &plain);
        assert_eq!(lab.pipe(&whole).unwrap(), plain);
        let places = edges(envelope.head().len(), whole.len());
        for (room, durable) in places.iter().flat_map(|room| places.iter().map(move |at| (*room, *at))) {
            let kept = Arc::new(Mutex::new(Vec::new()));
            let breaks = Breaks { kept: Arc::clone(&kept), room: Some(room), durable };
            // A head that does not go out is nothing to go on behind.
            let Ok(mut medium) = EncryptingMedium::begin(Box::new(breaks), &envelope) else { continue };
            let broke = medium.write(&plain).and_then(|()| medium.sync()).is_err();
            assert_eq!(broke, room < whole.len());
            if broke {
                let from = medium.resume_after_failure().unwrap().unwrap();
                medium.write(&plain[usize::try_from(from).unwrap()..]).unwrap();
                medium.sync().unwrap();
            }
            Box::new(medium).finish().unwrap();
            assert!(
                *kept.lock().unwrap() == whole,
                "{len} bytes, broken at {room}, gone on with at {durable}"
            );
        }
    }
}
