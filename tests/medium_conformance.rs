//! One list of assertions that every medium passes; the contract is the module description of `driver/medium`.
//!
//! A new medium adds a [`Rig`] and a line at the end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "a test program has no public items")]

mod common;

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::thread::JoinHandle;

use common::rng::Rng;
use common::scratch::{Scratch, names};
use virtfold::archive::stream::Sink;
use virtfold::error::{ErrorKind, Result};
use virtfold::medium::{Durable, FileMedium, Medium, PipeMedium, RateLimit, RateLimited};

/// What a medium's far end gives away.
#[derive(Debug, PartialEq)]
enum Kept {
    /// Nothing that anybody would take for an archive.
    Nothing,
    /// These bytes, under a name or, for a pipe, up to its end.
    Bytes(Vec<u8>),
}

/// A kind of medium and a way to look at what it keeps.
trait Rig {
    /// A new medium for the archive `name`.
    fn open(&mut self, name: &str) -> Result<Box<dyn Medium>>;
    /// What is there under `name`, once the medium is gone.
    fn kept(&mut self, name: &str) -> Kept;
    /// Whether what it kept has names: then it must not replace one, and must drop what is not finished.
    fn has_names(&self) -> bool;
    /// What is there beside the archives `known`.
    fn leftovers(&self, known: &[&str]) -> Vec<String>;
    /// The name that [`Medium::finish`] must give.
    fn durable_name(&self, name: &str) -> String;
}

struct Files {
    scratch: Scratch,
    folder: PathBuf,
}

impl Files {
    fn new() -> Self {
        let scratch = Scratch::new("conformance");
        let folder = scratch.folder("archives");
        Self { scratch, folder }
    }
}

impl Rig for Files {
    fn open(&mut self, name: &str) -> Result<Box<dyn Medium>> {
        assert!(self.scratch.path().is_dir());
        Ok(Box::new(FileMedium::create(&self.folder.join(name))?))
    }

    fn kept(&mut self, name: &str) -> Kept {
        match std::fs::read(self.folder.join(name)) {
            Ok(bytes) => Kept::Bytes(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Kept::Nothing,
            Err(error) => panic!("{error}"),
        }
    }

    fn has_names(&self) -> bool {
        true
    }

    fn leftovers(&self, known: &[&str]) -> Vec<String> {
        names(&self.folder).into_iter().filter(|name| !known.contains(&name.as_str())).collect()
    }

    fn durable_name(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }
}

/// A pipe with a reader that takes all of it.
#[derive(Default)]
struct Pipes {
    reader: Option<JoinHandle<Vec<u8>>>,
}

impl Rig for Pipes {
    fn open(&mut self, _: &str) -> Result<Box<dyn Medium>> {
        let (mut far, near) = std::io::pipe().unwrap();
        self.reader = Some(std::thread::spawn(move || {
            let mut bytes = Vec::new();
            far.read_to_end(&mut bytes).unwrap();
            bytes
        }));
        Ok(Box::new(PipeMedium::new(OwnedFd::from(near))))
    }

    fn kept(&mut self, _: &str) -> Kept {
        Kept::Bytes(self.reader.take().unwrap().join().unwrap())
    }

    fn has_names(&self) -> bool {
        false
    }

    fn leftovers(&self, _: &[&str]) -> Vec<String> {
        Vec::new()
    }

    fn durable_name(&self, _: &str) -> String {
        "-".to_owned()
    }
}

/// Another kind behind a rate limit.
struct Limited<R>(R);

impl<R: Rig> Rig for Limited<R> {
    fn open(&mut self, name: &str) -> Result<Box<dyn Medium>> {
        let limit = RateLimit::new(256 << 20).unwrap();
        Ok(Box::new(RateLimited::new(self.0.open(name)?, limit)))
    }

    fn kept(&mut self, name: &str) -> Kept {
        self.0.kept(name)
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
    assert_eq!(durable, Durable { name: rig.durable_name("a.tar"), bytes: whole.len() as u64 });
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
        // A pipe gives away what went down it; that there is no end record, the archive itself says.
        let left = if rig.has_names() { Kept::Nothing } else { Kept::Bytes(pieces.concat()) };
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
    let mut second = rig.open("same.tar").unwrap();
    first.write(b"first").unwrap();
    second.write(b"second").unwrap();
    first.finish().unwrap();
    assert_eq!(second.finish().unwrap_err().kind(), ErrorKind::Exists, "taken meanwhile");
    let third = rig.open("same.tar").map(|_| ()).unwrap_err();
    assert_eq!(third.kind(), ErrorKind::Exists, "there already");
    assert_eq!(rig.kept("same.tar"), Kept::Bytes(b"first".to_vec()));
    let known = ["a.tar", "empty.tar", "later.tar", "same.tar"];
    assert_eq!(rig.leftovers(&known), [""; 0]);
}

fn passes_all(rig: &mut dyn Rig) {
    keeps_order_and_says_what_is_durable(rig);
    an_empty_archive_is_an_archive(rig);
    dropped_without_finish_nothing_is_there(rig);
    nothing_has_its_name_before_finish(rig);
    an_existing_archive_is_never_replaced(rig);
}

#[test]
fn files() {
    passes_all(&mut Files::new());
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
fn a_pipe_without_a_reader_is_an_error_and_no_signal() {
    let (far, near) = std::io::pipe().unwrap();
    let mut medium = PipeMedium::new(OwnedFd::from(near));
    drop(far);
    assert_eq!(medium.write(&[0; 100]).unwrap_err().kind(), ErrorKind::Io);
}
