//! virtfold's part: the library's freeze, with a journal around the real one that notes when each entry was
//! made.

use std::fs::File;
use std::io::{Read, Seek};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use uuid::Uuid;
use virtfold::backup::Control;
use virtfold::backup::freeze::WatchdogProcess;
use virtfold::backup::freeze::{
    AgentFreeze, FreezeContext, FreezeDisk, FreezeRequest, FreezeTimings, Frozen, with_frozen_disks,
};
use virtfold::catalog::{
    BaseImage, Catalog, DomainLock, FreezeSession, Journal, JournalEntry, SessionState, UnfreezeState,
};
use virtfold::error::Result;
use virtfold::hypervisor::domain_xml::DomainXml;
use virtfold::hypervisor::host_files::LocalFiles;
use virtfold::hypervisor::libvirt::{Libvirt, LocalUri};
use virtfold::hypervisor::{DomainId, Hypervisor, XmlView, overlay_path};

use crate::lab::{Guest, Lab};

/// A span of time.
pub(crate) type Span = (Instant, Instant);

fn open(uri: &str) -> Libvirt {
    Libvirt::open(LocalUri::parse(uri).unwrap()).unwrap()
}

/// Snapshot, a pause of `copy`, commit and pivot: when each of the three began and ended.
pub(crate) fn backup(lab: &Lab, guest: &Guest<'_>, copy: Duration) -> [Span; 3] {
    let clock = run(lab, guest, |_| std::thread::sleep(copy));
    let of = |phase: Phase, pick: fn(Option<Instant>, Instant) -> Option<Instant>| {
        clock.iter().filter(|(p, _)| *p == phase).fold(None, |best, (_, at)| pick(best, *at)).expect("it was")
    };
    let first = |best: Option<Instant>, at| best.or(Some(at));
    let last = |_, at| Some(at);
    let pivot = of(Phase::Pivoting, first);
    [
        (of(Phase::Planned, last), of(Phase::Snapshotted, first)),
        (of(Phase::Committing, first), pivot),
        (pivot, of(Phase::Pivoted, last)),
    ]
}

/// Reads the base again and again, around the page cache, for `time`; MiB a second.
pub(crate) fn read_at_full_speed(lab: &Lab, guest: &Guest<'_>, time: Duration) -> u64 {
    let mut read = 0_u64;
    run(lab, guest, |frozen| {
        let mut file = File::open(&frozen.disks[0].path).unwrap();
        let mut buffer = vec![0; 1 << 20];
        let begun = Instant::now();
        while begun.elapsed() < time {
            match file.read(&mut buffer).unwrap() {
                0 => {
                    let all = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
                    nix::fcntl::posix_fadvise(&file, 0, 0, all).unwrap();
                    file.rewind().unwrap();
                }
                got => read += got as u64,
            }
        }
    });
    (read >> 20) / time.as_secs().max(1)
}

fn run(lab: &Lab, guest: &Guest<'_>, copy: impl FnOnce(&Frozen)) -> Vec<(Phase, Instant)> {
    let libvirt = open(&lab.uri());
    let catalog = Catalog::open(&lab.folder().join("state")).unwrap();
    let journal = Clock { inner: &catalog, seen: Mutex::default() };
    let arguments = ["guard".into(), "--uri".into(), lab.uri().into()].to_vec();
    let guards = WatchdogProcess { program: env!("CARGO_BIN_EXE_virtfold").into(), arguments };
    let host = FreezeContext {
        hypervisor: &libvirt,
        files: &LocalFiles,
        journal: &journal,
        guard: &guards,
        pace: FreezeTimings::default(),
    };
    let id = libvirt.lookup(guest.name()).unwrap().id;
    let request = request(&libvirt, id);
    with_frozen_disks(&host, &request, &Control::default(), |frozen| {
        copy(frozen);
        Ok(())
    })
    .unwrap();
    journal.seen.into_inner().unwrap()
}

fn request(libvirt: &Libvirt, id: DomainId) -> FreezeRequest {
    let xml = DomainXml::parse(libvirt.xml(id, XmlView::Live).unwrap()).unwrap();
    let disks = xml.disks.iter().map(|disk| {
        let path = disk.image.source.path().unwrap().to_owned();
        let overlay = overlay_path(path.parent().unwrap(), &path, Uuid::new_v4().as_fields().0);
        let format = disk.image.format.clone().unwrap();
        FreezeDisk {
            target: disk.target.clone(),
            alias: disk.alias.clone().unwrap(),
            base: BaseImage { path, format, identity: None, backing: None },
            overlay,
        }
    });
    FreezeRequest {
        domain: id,
        disks: disks.collect(),
        targets: xml.targets(),
        quiesce: AgentFreeze::Skip,
        tracked: Vec::new(),
        min_free: 1 << 20,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Planned,
    Snapshotted,
    Committing,
    Pivoting,
    Pivoted,
    Other,
}

#[derive(Debug)]
struct Clock<'a> {
    inner: &'a Catalog,
    seen: Mutex<Vec<(Phase, Instant)>>,
}

impl Journal for Clock<'_> {
    fn lock(&self, domain: DomainId) -> Result<Box<dyn DomainLock>> {
        self.inner.lock(domain)
    }

    fn begin(&self, job: &FreezeSession) -> Result<()> {
        self.inner.begin(job)?;
        self.seen.lock().unwrap().push((Phase::Planned, Instant::now()));
        Ok(())
    }

    fn record(&self, job: Uuid, changes: &[JournalEntry]) -> Result<()> {
        let now = Instant::now();
        self.seen.lock().unwrap().extend(changes.iter().map(|change| (phase(change), now)));
        self.inner.record(job, changes)
    }

    fn open_sessions(&self, domain: Option<DomainId>) -> Result<Vec<FreezeSession>> {
        self.inner.open_sessions(domain)
    }
}

fn phase(change: &JournalEntry) -> Phase {
    match change {
        JournalEntry::State(SessionState::Snapshotted) => Phase::Snapshotted,
        JournalEntry::State(SessionState::Committing) => Phase::Committing,
        JournalEntry::Disk { state: UnfreezeState::Pivoting { .. }, .. } => Phase::Pivoting,
        JournalEntry::Disk { state: UnfreezeState::Pivoted, .. } => Phase::Pivoted,
        _ => Phase::Other,
    }
}
