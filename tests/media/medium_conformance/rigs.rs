//! The media themselves, each with a look at what it keeps.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use virtfold::archive::source::Source;
use virtfold::archive::stream::Cancel;
use virtfold::backup::destinations::{Destinations, MediumProcesses};
use virtfold::catalog::Catalog;
use virtfold::error::Result;
#[cfg(feature = "object-store")]
use virtfold::medium::ObjectAddress;
use virtfold::medium::process::TerminatingProcesses;
use virtfold::medium::tape::{
    Changer, NewLabel, Overwrite, PartLocation, SimulatedDrive, SimulatedTape, TapeBlock, TapeCatalog,
    TapeMedium, TapeWriteOptions, VolumeAdmin, VolumeRequest,
};
use virtfold::medium::{ArchiveLabel, Location};
use virtfold::medium::{FileMedium, FinishedArchive, Medium, PipeMedium};

use super::{Kept, Rig};
use crate::common::scratch::{Scratch, names};

/// What an archive is called to a medium that makes names of it.
fn label(name: &str) -> ArchiveLabel {
    ArchiveLabel {
        name: name.to_owned(),
        id: uuid::Uuid::nil(),
        host: "host".to_owned(),
        subject: "web".to_owned(),
        estimate: 0,
    }
}

/// What a file keeps.
fn kept_in(file: &Path) -> Kept {
    match std::fs::read(file) {
        Ok(bytes) => Kept::Bytes(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Kept::Nothing,
        Err(error) => panic!("{error}"),
    }
}

/// Files in a directory.
pub(crate) struct Files {
    scratch: Scratch,
    folder: PathBuf,
}

impl Files {
    pub(crate) fn new() -> Self {
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
        kept_in(&self.folder.join(name))
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

/// Files that another process writes.
pub(crate) struct Apart {
    files: Files,
    location: Location,
    leaving: TerminatingProcesses,
}

impl Apart {
    pub(crate) fn new() -> Self {
        let files = Files::new();
        let location = Location::Path(files.folder.clone());
        Self { files, location, leaving: TerminatingProcesses::default() }
    }
}

impl Rig for Apart {
    fn open(&mut self, name: &str) -> Result<Box<dyn Medium>> {
        let processes = MediumProcesses {
            program: env!("CARGO_BIN_EXE_virtfold").into(),
            arguments: vec!["medium".into()],
            environment: Vec::new(),
            terminating: self.leaving.clone(),
        };
        let cancel = Cancel::default();
        Destinations::new(vec![self.location.clone()], processes, &cancel).create(&label(name), &cancel)
    }

    fn kept(&mut self, name: &str) -> Kept {
        assert_eq!(self.leaving.wait(), []);
        self.files.kept(name)
    }

    fn has_names(&self) -> bool {
        true
    }

    fn leftovers(&self, known: &[&str]) -> Vec<String> {
        self.files.leftovers(known)
    }

    fn durable_name(&self, name: &str) -> String {
        self.files.durable_name(name)
    }
}

/// A pipe with a reader that takes all of it.
#[derive(Default)]
pub(crate) struct Pipes {
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

/// Tapes of 3 MiB in a simulated drive, so that archives go over several. What is kept is what the catalog
/// knows, read from the tapes' own blocks.
pub(crate) struct Tapes {
    scratch: Scratch,
    drive: SimulatedDrive,
    opened: Vec<String>,
}

/// Puts in the tape behind the one that was in last.
struct NextTape(SimulatedDrive, usize);

impl Changer for NextTape {
    fn change(&mut self, change: &VolumeRequest<'_>, _: &Cancel) -> Result<()> {
        assert_eq!(change.refused, None);
        self.1 += 1;
        self.0.load(self.1);
        Ok(())
    }
}

impl Tapes {
    const COUNT: usize = 60;

    pub(crate) fn new() -> Self {
        let drive = SimulatedDrive::with_tapes(Self::COUNT, 3 << 20);
        let rig = Self { scratch: Scratch::new("conformance"), drive, opened: Vec::new() };
        let catalog = rig.catalog();
        for slot in (0..Self::COUNT).rev() {
            rig.drive.load(slot);
            let care =
                VolumeAdmin::new(Box::new(rig.drive.clone()), &catalog, Duration::ZERO, Cancel::default());
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
        let setup = TapeWriteOptions {
            drive: Box::new(self.drive.clone()),
            changer: Box::new(NextTape(self.drive.clone(), slot)),
            ledger: Arc::new(self.catalog()),
            pool: None,
            ring: 1 << 20,
            commit_every: 200_000,
            patience: Duration::ZERO,
            cancel: Cancel::default(),
        };
        Ok(Box::new(TapeMedium::begin(setup, &format!("{name}-{}.tar", Self::id(name)))?))
    }

    fn kept(&mut self, name: &str) -> Kept {
        let mut placed = self.catalog().archives(&Self::id(name)).unwrap();
        let last = |placed: &PartLocation| placed.part.end.as_ref().is_some_and(|end| end.last);
        let Some(run) = placed.iter().find(|placed| last(placed)).map(|placed| placed.part.begin.run) else {
            return Kept::Nothing;
        };
        placed.retain(|placed| placed.part.begin.run == run);
        let mut bytes = Vec::new();
        for PartLocation { label, part } in placed {
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

    fn read_back(&self, _: &FinishedArchive) -> Option<Arc<dyn Source>> {
        None
    }
}

/// Objects in a real store over HTTP. The medium is the library's, in this process; the store's address and
/// keys are in the environment, which [`objects`] sets before it does anything else, in a process of its own.
#[cfg(feature = "object-store")]
pub(crate) struct Objects {
    pub(crate) server: crate::s3::Server,
}

#[cfg(feature = "object-store")]
impl Objects {
    fn place() -> ObjectAddress {
        ObjectAddress { bucket: crate::s3::BUCKET.into(), key: "here".into() }
    }
}

#[cfg(feature = "object-store")]
impl Rig for Objects {
    fn open(&mut self, name: &str) -> Result<Box<dyn Medium>> {
        let cancel = Cancel::default();
        Destinations::local([Location::Object(Self::place())]).create(&label(name), &cancel)
    }

    fn kept(&mut self, name: &str) -> Kept {
        kept_in(&self.server.object(&format!("here/host/web/{name}")))
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
        format!("s3://{}/here/host/web/{name}", crate::s3::BUCKET)
    }
}
