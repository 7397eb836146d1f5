//! One list of assertions that every medium passes, as it is and behind a wrapper that makes it fail; the contract is the module
//! description of `driver/medium`.
//!
//! A new medium adds a [`Rig`] and a line at the end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "a test program has no public items")]

mod common;
#[cfg(feature = "object-store")]
#[path = "common/s3/mod.rs"]
mod s3;

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use common::rng::Rng;
use common::scratch::{Scratch, names};
use virtfold::archive::stream::{Cancel, Sink};
use virtfold::catalog::Catalog;
use virtfold::error::{Error, ErrorKind, Result};
use virtfold::medium::tape::{
    Change, Changer, Ledger, NewLabel, Overwrite, Placed, SimulatedDrive, SimulatedTape, TapeBlock, TapeCare,
    TapeMedium, TapeSetup,
};
use virtfold::medium::{
    self, Copies, Durable, FanOut, FileMedium, Location, Medium, PipeMedium, RateLimit, RateLimited, Source,
};

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
    /// Whether only one archive can be written at a time: then the next one that is begun meanwhile is told that.
    fn has_one_writer(&self) -> bool {
        false
    }
    /// What is there beside the archives `known`.
    fn leftovers(&self, known: &[&str]) -> Vec<String>;
    /// The name that [`Medium::finish`] must give.
    fn durable_name(&self, name: &str) -> String;
    /// What it reads back under a name that it gave, at any place; nothing where it can't.
    fn read_back(&self, durable: &Durable) -> Option<Arc<dyn Source>> {
        let location: Location = durable.name.parse().unwrap();
        (location != Location::Pipe).then(|| medium::open(&location).unwrap())
    }
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

    fn has_one_writer(&self) -> bool {
        self.0.has_one_writer()
    }

    fn read_back(&self, durable: &Durable) -> Option<Arc<dyn Source>> {
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
}

/// What a wrapped medium does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// This write fails and writes nothing.
    Write(usize),
    /// This write writes half of its bytes, and fails.
    Half(usize),
    /// What was written can't be made durable.
    Finish,
}

/// A medium that fails where it is told to, as the device below it would.
struct Faulty {
    inner: Box<dyn Medium>,
    fault: Fault,
    writes: usize,
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
    fn finish(self: Box<Self>) -> Result<Durable> {
        match self.fault {
            Fault::Finish => Err(broken()),
            _ => self.inner.finish(),
        }
    }
}

/// Another kind, and a pipe that nobody reads the end of, written to together.
struct Fanned<R>(R);

impl<R: Rig> Rig for Fanned<R> {
    fn open(&mut self, name: &str) -> Result<Box<dyn Medium>> {
        let first = self.0.open(name)?;
        let (far, near) = std::io::pipe().unwrap();
        drop(far);
        let second: Box<dyn Medium> = Box::new(PipeMedium::new(OwnedFd::from(near)));
        let media = [(Location::Path("first".into()), Ok(first)), (Location::Pipe, Ok(second))];
        // The one without a reader fails alone.
        Ok(Box::new(FanOut::new(media, &Copies::default())?))
    }

    fn kept(&mut self, name: &str) -> Kept {
        self.0.kept(name)
    }

    fn has_one_writer(&self) -> bool {
        self.0.has_one_writer()
    }

    fn read_back(&self, durable: &Durable) -> Option<Arc<dyn Source>> {
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
}

/// Tapes of 3 MiB in a simulated drive, so that archives go over several. What is kept is what the catalog knows, read from the tapes' own blocks.
struct Tapes {
    scratch: Scratch,
    drive: SimulatedDrive,
    opened: Vec<String>,
}

/// Puts in the tape behind the one that was in last.
struct NextTape(SimulatedDrive, usize);

impl Changer for NextTape {
    fn change(&mut self, change: &Change<'_>, _: &Cancel) -> Result<()> {
        assert_eq!(change.refused, None);
        self.1 += 1;
        self.0.load(self.1);
        Ok(())
    }
}

impl Tapes {
    const COUNT: usize = 60;

    fn new() -> Self {
        let drive = SimulatedDrive::with_tapes(Self::COUNT, 3 << 20);
        let rig = Self { scratch: Scratch::new("conformance"), drive, opened: Vec::new() };
        let catalog = rig.catalog();
        for slot in (0..Self::COUNT).rev() {
            rig.drive.load(slot);
            let care =
                TapeCare::new(Box::new(rig.drive.clone()), &catalog, Duration::ZERO, Cancel::default());
            let new = NewLabel {
                label: format!("T{slot}"),
                pool: "default".to_owned(),
                block_size: TapeBlock::default(),
                retain_until: None,
            };
            care.label(&new, Overwrite::Refuse).unwrap();
        }
        rig
    }

    fn catalog(&self) -> Catalog {
        Catalog::open(&self.scratch.join("state")).unwrap()
    }

    fn id(name: &str) -> String {
        let digits = name.bytes().fold(7_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
        format!("{digits:08x}")
    }
}

impl Rig for Tapes {
    fn open(&mut self, name: &str) -> Result<Box<dyn Medium>> {
        self.opened.push(name.to_owned());
        let slot = self.drive.loaded().unwrap();
        let setup = TapeSetup {
            drive: Box::new(self.drive.clone()),
            changer: Box::new(NextTape(self.drive.clone(), slot)),
            ledger: Arc::new(self.catalog()),
            pool: None,
            ring: 1 << 20,
            patience: Duration::ZERO,
            cancel: Cancel::default(),
        };
        Ok(Box::new(TapeMedium::begin(setup, &format!("{name}-{}.tar", Self::id(name)))?))
    }

    fn kept(&mut self, name: &str) -> Kept {
        let mut placed = self.catalog().archives(&Self::id(name)).unwrap();
        let last = |placed: &Placed| placed.part.end.as_ref().is_some_and(|end| end.last);
        let Some(run) = placed.iter().find(|placed| last(placed)).map(|placed| placed.part.begin.run) else {
            return Kept::Nothing;
        };
        placed.retain(|placed| placed.part.begin.run == run);
        let mut bytes = Vec::new();
        for Placed { label, part } in placed {
            let slot = label.label[1..].parse().unwrap();
            let start = usize::try_from(part.start).unwrap();
            let data = |tape: &mut SimulatedTape| {
                tape.objects[start..].iter().map_while(Clone::clone).flatten().collect::<Vec<u8>>()
            };
            bytes.extend(self.drive.with_tape(slot, data).unwrap());
        }
        Kept::Bytes(bytes)
    }

    fn has_names(&self) -> bool {
        true
    }

    fn has_one_writer(&self) -> bool {
        true
    }

    fn leftovers(&self, known: &[&str]) -> Vec<String> {
        let catalog = self.catalog();
        let whole = |name: &&String| {
            let placed = catalog.archives(&Self::id(name)).unwrap();
            placed.iter().any(|placed| placed.part.end.as_ref().is_some_and(|end| end.last))
        };
        self.opened.iter().filter(|name| !known.contains(&name.as_str())).filter(whole).cloned().collect()
    }

    fn durable_name(&self, name: &str) -> String {
        format!("tape:/dev/simulated#{}", Self::id(name))
    }

    fn read_back(&self, _: &Durable) -> Option<Arc<dyn Source>> {
        None
    }
}

/// Objects in a real store over HTTP. The medium is the library's, in this process; the store's address and keys are in the environment, which
/// [`objects`] sets before it does anything else, in a process of its own.
#[cfg(feature = "object-store")]
struct Objects {
    server: s3::Server,
}

#[cfg(feature = "object-store")]
impl Objects {
    fn place() -> virtfold::medium::ObjectAddress {
        virtfold::medium::ObjectAddress { bucket: s3::BUCKET.into(), key: "here".into() }
    }
}

#[cfg(feature = "object-store")]
impl Rig for Objects {
    fn open(&mut self, name: &str) -> Result<Box<dyn Medium>> {
        let label = medium::Label {
            name: name.to_owned(),
            id: uuid::Uuid::nil(),
            host: "host".to_owned(),
            subject: "web".to_owned(),
            estimate: 0,
        };
        let cancel = virtfold::archive::stream::Cancel::default();
        medium::create(&Location::Object(Self::place()), &label, &cancel)
    }

    fn kept(&mut self, name: &str) -> Kept {
        match std::fs::read(self.server.object(&format!("here/host/web/{name}"))) {
            Ok(bytes) => Kept::Bytes(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Kept::Nothing,
            Err(error) => panic!("{error}"),
        }
    }

    fn has_names(&self) -> bool {
        true
    }

    fn leftovers(&self, known: &[&str]) -> Vec<String> {
        let name = |key: &String| known.contains(&key.trim_start_matches("here/host/web/"));
        let keys = self.server.keys().into_iter().filter(|key| !name(key));
        keys.chain(self.server.unfinished()).collect()
    }

    fn durable_name(&self, name: &str) -> String {
        format!("s3://{}/here/host/web/{name}", s3::BUCKET)
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
    let third = rig.open("same.tar").map(|_| ()).unwrap_err();
    assert_eq!(third.kind(), ErrorKind::Exists, "there already");
    assert_eq!(rig.kept("same.tar"), Kept::Bytes(b"first".to_vec()));
    let known = ["a.tar", "empty.tar", "later.tar", "same.tar"];
    assert_eq!(rig.leftovers(&known), [""; 0]);
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
    an_existing_archive_is_never_replaced(rig);
    what_is_durable_reads_back_at_every_place(rig);
    what_failed_leaves_nothing(rig);
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
        let server = s3::Server::there(std::path::Path::new(&root), port);
        passes_all(&mut Objects { server });
        return;
    }
    let scratch = Scratch::new("conformance-objects");
    let root = scratch.join("store");
    let server = s3::Server::start(&root);
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "objects", "--nocapture"]).env(ROLE, &root);
    command.env("VIRTFOLD_TEST_PORT", server.port.to_string());
    common::run::run(s3::account(&mut command, server.port)).ok();
}

#[test]
fn a_pipe_without_a_reader_is_an_error_and_no_signal() {
    let (far, near) = std::io::pipe().unwrap();
    let mut medium = PipeMedium::new(OwnedFd::from(near));
    drop(far);
    assert_eq!(medium.write(&[0; 100]).unwrap_err().kind(), ErrorKind::Io);
}
