//! One list of assertions that every medium passes, as it is and behind a wrapper that makes it fail; the
//! contract is the module description of `driver/medium/src`.
//!
//! A new medium adds a [`Rig`] and a line at the end.

#[cfg(feature = "object-store")]
mod rigs;
mod wrapped;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::common::rng::Rng;
use virtfold::archive::source::Source;
use virtfold::archive::stream::Sink;
use virtfold::error::{ErrorKind, Result};
use virtfold::medium::{self, FinishedArchive, Location, Medium, PipeMedium};

use rigs::{Apart, Files, Pipes, Tapes};
use wrapped::{Fanned, Fault, Faulty, Limited};

/// What a medium's far end gives away.
#[derive(Debug, PartialEq)]
pub(crate) enum Kept {
    /// Nothing that anybody would take for an archive.
    Nothing,
    /// These bytes, under a name or, for a pipe, up to its end.
    Bytes(Vec<u8>),
}

/// A kind of medium and a way to look at what it keeps.
pub(crate) trait Rig {
    /// A new medium for the archive `name`.
    fn open(&mut self, name: &str) -> Result<Box<dyn Medium>>;
    /// What is there under `name`, once the medium is gone.
    fn kept(&mut self, name: &str) -> Kept;
    /// Whether what it kept has names: then it must not replace one, and must drop what is not finished.
    fn has_names(&self) -> bool;
    /// Whether only one archive can be written at a time: then the next one that is begun meanwhile is told
    /// that.
    fn has_one_writer(&self) -> bool {
        false
    }
    /// What is there beside the archives `known`.
    fn leftovers(&self, known: &[&str]) -> Vec<String>;
    /// The name that [`Medium::finish`] must give.
    fn durable_name(&self, name: &str) -> String;
    /// What it reads back under a name that it gave, at any place; nothing where it can't.
    fn read_back(&self, durable: &FinishedArchive) -> Option<Arc<dyn Source>> {
        let location: Location = durable.name.parse().unwrap();
        (location != Location::Pipe).then(|| medium::open(&location).unwrap())
    }
}

/// Writes of all kinds of lengths, the empty one among them.
fn pieces(seed: u64) -> Vec<Vec<u8>> {
    let mut rng = Rng::of_case("conformance", seed);
    let lengths = [0, 1, 511, 512, 4096, 65_537, 1 << 20, (1 << 20) + 100, 3, 0, 2_500_000];
    lengths.iter().map(|len| rng.bytes(*len)).collect()
}

fn write_all(medium: &mut dyn Medium, pieces: &[Vec<u8>]) {
    pieces.iter().for_each(|piece| medium.write(piece).unwrap());
}

fn keeps_order_and_says_what_is_durable(rig: &mut dyn Rig) {
    let pieces = pieces(1);
    let whole = pieces.concat();
    let mut medium = rig.open("a.tar").unwrap();
    write_all(medium.as_mut(), &pieces);
    let durable = medium.finish().unwrap();
    assert_eq!(
        (durable.name.as_str(), durable.bytes),
        (rig.durable_name("a.tar").as_str(), whole.len() as u64)
    );
    assert!(rig.kept("a.tar") == Kept::Bytes(whole), "other bytes than were written");
    assert_eq!(rig.leftovers(&["a.tar"]), [""; 0]);
}

fn an_empty_archive_is_an_archive(rig: &mut dyn Rig) {
    let medium = rig.open("empty.tar").unwrap();
    assert_eq!(medium.finish().unwrap().bytes, 0);
    assert_eq!(rig.kept("empty.tar"), Kept::Bytes(Vec::new()));
}

fn dropped_without_finish_nothing_is_there(rig: &mut dyn Rig) {
    for count in [0, 1, 7] {
        let pieces = &pieces(2)[..count];
        let mut medium = rig.open("dropped.tar").unwrap();
        write_all(medium.as_mut(), pieces);
        drop(medium);
        // A pipe gives away what went down it, but for the last bytes: where an end record may be.
        let mut went = pieces.concat();
        went.truncate(went.len().saturating_sub(8 << 10));
        let left = if rig.has_names() { Kept::Nothing } else { Kept::Bytes(went) };
        assert!(rig.kept("dropped.tar") == left, "after {count} writes");
        assert_eq!(rig.leftovers(&["a.tar", "empty.tar"]), [""; 0], "after {count} writes");
    }
}

fn nothing_has_its_name_before_finish(rig: &mut dyn Rig) {
    if !rig.has_names() {
        return;
    }
    let mut medium = rig.open("later.tar").unwrap();
    write_all(medium.as_mut(), &pieces(3));
    assert_eq!(rig.kept("later.tar"), Kept::Nothing);
    medium.finish().unwrap();
    assert!(rig.kept("later.tar") == Kept::Bytes(pieces(3).concat()));
}

fn an_existing_archive_is_never_replaced(rig: &mut dyn Rig) {
    if !rig.has_names() {
        return;
    }
    let mut first = rig.open("same.tar").unwrap();
    let second = rig.open("same.tar");
    first.write(b"first").unwrap();
    if rig.has_one_writer() {
        assert_eq!(second.map(|_| ()).unwrap_err().kind(), ErrorKind::InUse);
        first.finish().unwrap();
    } else {
        let mut second = second.unwrap();
        second.write(b"second").unwrap();
        first.finish().unwrap();
        assert_eq!(second.finish().unwrap_err().kind(), ErrorKind::Exists, "taken meanwhile");
    }
    let known = ["a.tar", "empty.tar", "later.tar", "same.tar", "read.tar"];
    // What is finished is not thrown away where it can't have its name: files keep it under the one that it
    // has.
    let unnamed = rig.leftovers(&known);
    assert!(unnamed.len() <= 1, "{unnamed:?}");
    for name in &unnamed {
        assert!(name.contains(".partial") && rig.kept(name) == Kept::Bytes(b"second".to_vec()), "{name}");
    }
    let third = rig.open("same.tar").map(|_| ()).unwrap_err();
    assert_eq!(third.kind(), ErrorKind::Exists, "there already");
    assert_eq!(rig.kept("same.tar"), Kept::Bytes(b"first".to_vec()));
    assert_eq!(rig.leftovers(&known), unnamed);
}

fn what_is_durable_reads_back_at_every_place(rig: &mut dyn Rig) {
    let whole = pieces(4).concat();
    let mut medium = rig.open("read.tar").unwrap();
    write_all(medium.as_mut(), &pieces(4));
    let durable = medium.finish().unwrap();
    if let Kept::Bytes(kept) = rig.kept("read.tar") {
        assert!(kept == whole);
    }
    let Some(source) = rig.read_back(&durable) else { return };
    assert_eq!(source.len(), whole.len() as u64);
    let mut rng = Rng::of_case("conformance", 5);
    let size = source.len();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let from = rng.below(size);
            let (source, whole) = (&source, &whole);
            scope.spawn(move || {
                for at in [from, 0, size - 1, from / 2] {
                    let len = (size - at).min(1_500_000);
                    let mut read = vec![0; usize::try_from(len).unwrap()];
                    source.read_exact_at(at, &mut read).unwrap();
                    let at = usize::try_from(at).unwrap();
                    assert!(read == whole[at..at + read.len()], "at {at}");
                }
            });
        }
    });
    source.read_exact_at(size - 1, &mut [0; 2]).expect_err("it ends there");
}

fn what_failed_leaves_nothing(rig: &mut dyn Rig) {
    let known = ["a.tar", "empty.tar", "later.tar", "same.tar", "read.tar"];
    for fault in [Fault::Write(1), Fault::Write(8), Fault::Half(8), Fault::Half(11), Fault::Finish] {
        let mut medium: Box<dyn Medium> =
            Box::new(Faulty { inner: rig.open("broken.tar").unwrap(), fault, writes: 0 });
        let failed = pieces(6).iter().try_for_each(|piece| medium.write(piece));
        let error = match failed {
            Ok(()) => medium.finish().unwrap_err(),
            Err(error) => {
                drop(medium);
                error
            }
        };
        assert_eq!(error.to_string(), "the device is broken", "{fault:?}");
        if rig.has_names() {
            assert_eq!(rig.kept("broken.tar"), Kept::Nothing, "{fault:?}");
        } else {
            // What went down the pipe ends before the archive does.
            let Kept::Bytes(kept) = rig.kept("broken.tar") else { panic!("{fault:?}") };
            let whole = pieces(6).concat();
            assert!(whole.starts_with(&kept) && (fault == Fault::Finish || kept.len() < whole.len()));
        }
        assert_eq!(rig.leftovers(&known), [""; 0], "{fault:?}");
    }
}

fn passes_all(rig: &mut dyn Rig) {
    keeps_order_and_says_what_is_durable(rig);
    an_empty_archive_is_an_archive(rig);
    dropped_without_finish_nothing_is_there(rig);
    nothing_has_its_name_before_finish(rig);
    what_is_durable_reads_back_at_every_place(rig);
    what_failed_leaves_nothing(rig);
    // The last: it may leave what the others must not find.
    an_existing_archive_is_never_replaced(rig);
}

#[test]
fn files() {
    passes_all(&mut Files::new());
}

#[test]
fn files_that_another_process_writes() {
    passes_all(&mut Apart::new());
}

#[test]
fn pipes() {
    passes_all(&mut Pipes::default());
}

#[test]
fn files_held_to_a_rate() {
    passes_all(&mut Limited(Files::new()));
}

#[test]
fn pipes_held_to_a_rate() {
    passes_all(&mut Limited(Pipes::default()));
}

#[test]
fn tapes() {
    passes_all(&mut Tapes::new());
}

#[test]
fn tapes_held_to_a_rate() {
    passes_all(&mut Limited(Tapes::new()));
}

#[test]
fn files_among_several() {
    passes_all(&mut Fanned(Files::new()));
}

#[test]
fn pipes_among_several() {
    passes_all(&mut Fanned(Pipes::default()));
}

/// The environment is a process's own: the suite runs in one that has the store's address and keys.
#[cfg(feature = "object-store")]
#[test]
fn objects() {
    const ROLE: &str = "VIRTFOLD_TEST_CONFORMANCE_STORE";
    if let Some(root) = std::env::var_os(ROLE) {
        // The server was started by the process before; here is its folder to look into.
        let port = std::env::var("VIRTFOLD_TEST_PORT").unwrap().parse().unwrap();
        let server = crate::s3::Server::there(std::path::Path::new(&root), port);
        passes_all(&mut rigs::Objects { server });
        return;
    }
    let scratch = crate::common::scratch::Scratch::new("conformance-objects");
    let root = scratch.join("store");
    let server = crate::s3::Server::start(&root);
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "medium_conformance::objects", "--nocapture"]).env(ROLE, &root);
    command.env("VIRTFOLD_TEST_PORT", server.port.to_string());
    crate::common::run::run(crate::s3::account(&mut command, server.port)).ok();
}

#[test]
fn a_pipe_without_a_reader_is_an_error_and_no_signal() {
    let (far, near) = std::io::pipe().unwrap();
    let mut medium = PipeMedium::new(OwnedFd::from(near));
    drop(far);
    assert_eq!(medium.write(&[0; 10_000]).unwrap_err().kind(), ErrorKind::Io);
}
