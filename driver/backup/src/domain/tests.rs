//! Backups of simulated domains whose disks are real files: what is left when something goes wrong at each
//! end of the copy.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::freeze::{FreezeTimings, StartWatchdog, Watchdog};
use crate::inspect;
use crate::resume::StateDirectories;
use crate::{Control, RunMode};
use virtfold_archive::crypt::Identities;
use virtfold_archive::index::ArchiveIndex;
use virtfold_archive::manifest::BackupSubject;
use virtfold_archive::stream::{Compression, Sink};
use virtfold_catalog::{Catalog, Journal};
use virtfold_hypervisor::simulated::{CallPhase, Injected, Operation, Simulated};
use virtfold_hypervisor::watchdog::{GuestHold, WatchdogOutcome};
use virtfold_hypervisor::{Hypervisor, StartMode, is_our_overlay};
use virtfold_medium::{DurableMarks, FileMedium, FinishedArchive, Location, Medium};

/// A guard that only says that it is there.
#[derive(Debug)]
struct Idle;

impl StartWatchdog for Idle {
    fn start(&self, _domain: DomainId) -> Result<Box<dyn Watchdog>> {
        Ok(Box::new(Idle))
    }
}

impl Watchdog for Idle {
    fn arm(&mut self, _held: GuestHold, _budget: Duration) -> Result<()> {
        Ok(())
    }

    fn disarm(&mut self) -> Result<WatchdogOutcome> {
        Ok(WatchdogOutcome::InTime)
    }
}

struct Lab {
    folder: tempfile::TempDir,
    world: Simulated,
    journal: Catalog,
    options: BackupOptions,
    places: LibvirtDirectories,
    id: DomainId,
}

impl Lab {
    /// A domain with two raw disks.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = Simulated::new();
        let path = |name: &str| folder.path().join(name);
        let mut devices = String::new();
        for target in ["vda", "vdb"] {
            std::fs::write(path(target), vec![1; 65536]).unwrap();
            devices += &format!(
                "<disk type='file'><driver type='raw'/><source file='{}'/><target dev='{target}'/></disk>",
                path(target).display()
            );
        }
        let id =
            world.define(&format!("<domain><name>w/eb</name><devices>{devices}</devices></domain>")).unwrap();
        for (target, inode) in [("vda", 2), ("vdb", 3)] {
            world.set_identity(&path(target), inode);
        }
        let options =
            BackupOptions { compression: Compression::None, min_free: 0, ..BackupOptions::default() };
        std::fs::create_dir(path("archives")).unwrap();
        let journal = Catalog::open(&path("state")).unwrap();
        let places = LibvirtDirectories::system(&path("libvirt"));
        Self { world, journal, options, places, id, folder }
    }

    fn running() -> Self {
        let lab = Self::new();
        lab.world.start(lab.id, StartMode::Running).unwrap();
        lab
    }

    /// Backs up; `meanwhile` is done when the images are open and the archive begins.
    fn backup(&self, meanwhile: impl FnOnce()) -> Result<DomainReport> {
        self.backup_to(|path| {
            meanwhile();
            Ok(Box::new(FileMedium::create(path)?))
        })
    }

    fn state(&self) -> StateDirectories {
        StateDirectories { state: self.folder.path().join("state"), keys: "/dev/shm".into() }
    }

    /// Backs up to the medium that `open` makes for a path.
    fn backup_to(&self, open: impl FnOnce(&Path) -> Result<Box<dyn Medium>>) -> Result<DomainReport> {
        let archives = self.folder.path().join("archives");
        let destinations = Destinations::custom(Location::from(archives.as_path()), |label, _| {
            open(&archives.join(&label.name))
        });
        let pace = FreezeTimings { poll: Duration::from_millis(1), ..FreezeTimings::default() };
        let (world, journal) = (&self.world, &self.journal);
        let host = FreezeContext { hypervisor: world, files: world, journal, guard: &Idle, pace };
        let guards = self.folder.path().join("guards");
        let request = DomainRequest { domain: "w/eb", host: &host, places: &self.places, guards: &guards };
        let (state, control) = (self.state(), Control::default());
        let options = &self.options;
        BackupSession { options, destinations: &destinations, state: &state, control: &control }
            .domain(&request)
    }

    /// A backup whose driver dies when all of its archive is written: what it leaves is put back when the
    /// panic that it died of has cleaned up.
    fn dies(&self) {
        let root = self.folder.path();
        let places = ["resume", "archives"].map(|name| {
            let there = if name == "resume" { root.join("state") } else { root.to_owned() };
            (there.join(name), root.join("aside").join(name))
        });
        let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let places = places.clone();
            self.backup_to(|path| Ok(Box::new(Dying { inner: FileMedium::create(path)?, places })))
        }));
        assert!(died.is_err());
        places.iter().for_each(|(place, aside)| link_all(aside, place));
        std::fs::remove_dir_all(root.join("aside")).unwrap();
    }

    fn archives(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.folder.path().join("archives")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// The guest is on its own disks in every view, and nothing is left to do.
    fn assert_home(&self) {
        assert!(self.world.images().iter().all(|path| !is_our_overlay(path)), "{:?}", self.world.images());
        assert!(self.journal.open_sessions(None).unwrap().is_empty());
    }
}

fn link_all(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() { link_all(&path, &to) } else { std::fs::hard_link(&path, to).unwrap() }
    }
}

/// A medium that dies at its end.
struct Dying {
    inner: FileMedium,
    /// What it leaves, and where that is kept.
    places: [(PathBuf, PathBuf); 2],
}

impl Sink for Dying {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.inner.write(bytes)
    }
}

impl Medium for Dying {
    fn report_marks(&mut self, notes: Arc<dyn DurableMarks>) -> bool {
        self.inner.report_marks(notes)
    }

    fn sync(&mut self) -> Result<()> {
        self.places.iter().for_each(|(place, aside)| link_all(place, aside));
        panic!("the driver dies here");
    }

    fn finish(self: Box<Self>) -> Result<FinishedArchive> {
        Box::new(self.inner).finish()
    }
}

#[test]
fn a_copy_that_was_killed_goes_on_and_the_guest_comes_home() {
    let lab = Lab::running();
    lab.dies();
    let jobs = lab.journal.open_sessions(None).unwrap();
    assert_eq!(jobs.len(), 1);
    // Its domain's XML is the one of the snapshot.
    let report = lab.backup(|| panic!("it was begun anew")).unwrap();
    assert_eq!(
        (report.way.as_str(), report.backup.resumed_at, report.backup.disks.len()),
        ("online", Some(0), 2)
    );
    assert!(report.thaw_failure.is_none() && report.freeze.is_some());
    lab.assert_home();
    assert_eq!(lab.archives().len(), 1);
    assert_eq!(std::fs::read_dir(lab.folder.path().join("state/resume")).unwrap().count(), 0);
}

#[test]
fn a_killed_copy_whose_base_was_written_to_is_not_gone_on_with() {
    let lab = Lab::running();
    lab.dies();
    let path = lab.folder.path().join("vda");
    let image = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    image.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    // The simulated world knows nothing of that: the guest comes home, and is backed up anew.
    let report = lab.backup(|| {}).unwrap();
    assert_eq!(report.backup.resumed_at, None);
    lab.assert_home();
    assert_eq!(lab.archives().len(), 1, "what can't be gone on with was left");
    assert_eq!(std::fs::read_dir(lab.folder.path().join("state/resume")).unwrap().count(), 0);
}

#[test]
fn a_recovery_discards_what_it_makes_useless() {
    let lab = Lab::running();
    lab.dies();
    let host = FreezeContext {
        hypervisor: &lab.world,
        files: &lab.world,
        journal: &lab.journal,
        guard: &Idle,
        pace: FreezeTimings { poll: Duration::from_millis(1), ..FreezeTimings::default() },
    };
    discard_records(&host, &lab.state().state, &Destinations::local([])).unwrap();
    assert_eq!(lab.archives().len(), 1, "its job is open");
    recover(&host, RecoverScope::All, RunMode::Apply).unwrap();
    discard_records(&host, &lab.state().state, &Destinations::local([])).unwrap();
    lab.assert_home();
    assert!(lab.archives().is_empty(), "{:?}", lab.archives());
}

#[test]
fn a_running_domain_goes_into_an_archive_with_all_that_belongs_to_it() {
    let lab = Lab::running();
    let report = lab.backup(|| {}).unwrap();
    lab.assert_home();
    assert_eq!((report.way.as_str(), report.backup.disks.len()), ("online", 2));
    assert!(report.thaw_failure.is_none());
    let archives = lab.archives();
    assert_eq!(archives.len(), 1);
    let name = archives[0].file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("w_eb-"), "{name}");
    inspect::with_index(&archives[0].as_path().into(), &Identities::default(), |index: &ArchiveIndex<'_>| {
        let head = index.head();
        assert_eq!(head.subject, BackupSubject::Domain { name: "w/eb".to_owned(), uuid: Some(lab.id.0) });
        assert_eq!(head.freeze.as_ref().map(|f| f.method.as_str()), Some("snapshot"));
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_domain_at_rest_is_read_as_it_is() {
    let lab = Lab::new();
    let report = lab.backup(|| {}).unwrap();
    assert_eq!((report.way.as_str(), report.freeze), ("offline", None));
    assert_eq!(lab.archives().len(), 1);
    lab.assert_home();
}

#[test]
fn an_image_that_changes_under_the_copy_leaves_no_archive() {
    let lab = Lab::running();
    let victim = lab.folder.path().join("vda");
    let error = lab
        .backup(|| {
            let mut image = lab.world.image(&victim).unwrap();
            image.writes.insert(1 << 40);
            lab.world.put_image(&victim, image);
        })
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    assert!(error.to_string().contains("was changed while it was copied"), "{error}");
    assert_eq!(lab.archives(), Vec::<PathBuf>::new());
    // What somebody wrote into the base is not written over: the guest runs on in its overlays until a person
    // has decided.
    assert_eq!(lab.journal.open_sessions(None).unwrap().len(), 1);
    assert!(lab.world.images().iter().any(|path| is_our_overlay(path)));
    println!("{error:?}; {:?}", error.hint());
}

#[test]
fn a_good_copy_stays_when_the_way_back_fails() {
    let lab = Lab::running();
    lab.world.on_point(|point| {
        let commit = point.operation == Operation::Commit && point.when == CallPhase::Before;
        if commit { Injected::KillDriver } else { Injected::Nothing }
    });
    let report = lab.backup(|| {}).unwrap();
    let failure = report.thaw_failure.unwrap();
    assert!(!failure.sentence.is_empty() && !failure.hint.is_empty());
    assert_eq!(lab.archives().len(), 1);
    // The next run brings the guest back first.
    lab.world.revive();
    let report = lab.backup(|| {}).unwrap();
    assert!(report.thaw_failure.is_none() && !report.recovered.is_empty(), "{:?}", report.recovered);
    assert_eq!(lab.archives().len(), 2);
    lab.assert_home();
}

#[test]
fn what_speaks_against_it_ends_it_before_anything_is_touched() {
    let lab = Lab::running();
    let images = lab.world.images();
    let options = BackupOptions { min_free: u64::MAX, ..lab.options.clone() };
    let lab = Lab { options, ..lab };
    let error = lab.backup(|| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert_eq!((lab.world.images(), lab.archives()), (images, Vec::new()));
    lab.assert_home();
}

#[test]
fn a_domain_that_is_read_at_rest_is_guarded_against_its_start() {
    let lab = Lab::new();
    let guards = lab.folder.path().join("guards");
    let mut held = Vec::new();
    lab.backup(|| held = virtfold_hooks::start_lock::alive(&guards)).unwrap();
    let mut disks: Vec<_> = held.iter().map(|guard| (guard.disk.clone(), guard.name.clone())).collect();
    disks.sort();
    let path = |name: &str| lab.folder.path().join(name).display().to_string();
    let expected = ["vda", "vdb"].map(|disk| (path(disk), Some("w/eb".to_owned())));
    assert_eq!(disks, expected);
    assert_eq!(virtfold_hooks::start_lock::alive(&guards), []);
}

/// What libvirt and the host are asked for a backup does not grow with the other guests.
#[test]
fn a_backup_on_a_full_host_takes_as_many_calls_as_on_an_empty_one() {
    let calls = |others: u32| {
        let lab = Lab::new();
        lab.world.show_qemus();
        for number in 0..others {
            let disk =
                format!("<disk type='file'><source file='/nowhere/{number}'/><target dev='vda'/></disk>");
            let xml = format!("<domain><name>other{number}</name><devices>{disk}</devices></domain>");
            let id = lab.world.define(&xml).unwrap();
            lab.world.start(id, StartMode::Running).unwrap();
        }
        let made = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let counter = Arc::clone(&made);
        lab.world.on_point(move |point| {
            let begins = point.when == CallPhase::Before;
            counter.fetch_add(u32::from(begins), std::sync::atomic::Ordering::Relaxed);
            Injected::Nothing
        });
        lab.backup(|| {}).unwrap();
        made.load(std::sync::atomic::Ordering::Relaxed)
    };
    assert_eq!(calls(1), calls(20));
}
