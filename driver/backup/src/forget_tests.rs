//! Against a simulated hypervisor and a real catalog.

use jiff::Timestamp;
use uuid::Uuid;

use super::*;
use crate::RunMode;
use virtfold_catalog::queue::{EntryReason, NewEntry, Queue, RunEnd, RunResult};
use virtfold_catalog::{
    BackupCopy, FreezeSession, JournalEntry, Owner, SessionKind, SessionOutcome, SessionState, Source,
};
use virtfold_hypervisor::simulated::{SimAgent, SimSpec, Simulated};
use virtfold_hypervisor::types::Persistence;

struct Scene {
    _state: tempfile::TempDir,
    catalog: Catalog,
    world: Simulated,
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn id(number: u128) -> DomainId {
    DomainId(Uuid::from_u128(number))
}

impl Scene {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(state.path()).unwrap();
        Self { _state: state, catalog, world: Simulated::new() }
    }

    /// A run in the queue; it waits.
    fn waits(&self, domain: DomainId, name: &str) -> i64 {
        let (job, name) = ("nightly".to_owned(), name.to_owned());
        let wanted =
            NewEntry { job, domain, name, reason: EntryReason::Schedule, due: at(10), not_before: at(10) };
        self.catalog.add(&wanted).unwrap()
    }

    fn ran(&self, domain: DomainId, name: &str) {
        let run = self.waits(domain, name);
        self.catalog.start(run, at(11)).unwrap();
        self.catalog.end(run, at(12), &RunEnd::Failed(RunResult::default())).unwrap();
    }

    /// An open job of the journal.
    fn begins(&self, domain: DomainId, name: &str) -> Uuid {
        let job = FreezeSession {
            id: Uuid::new_v4(),
            domain,
            name: name.to_owned(),
            persistence: Persistence::Persistent,
            live: None,
            inactive: None,
            kind: SessionKind::AtRest,
            created: 5,
            state: SessionState::Planned,
            held: None,
            disks: Vec::new(),
        };
        self.catalog.begin(&job).unwrap();
        job.id
    }

    fn has_archive(&self, domain: DomainId, name: &str) {
        let copy = BackupCopy {
            name: format!("/backup/{}", domain.0),
            place: "/backup".to_owned(),
            archive: Uuid::new_v4(),
            owner: Owner { uuid: Some(domain.0), name: name.to_owned(), images: false },
            source: Source::default(),
            host: "h".to_owned(),
            created: at(3),
            parent: None,
            bytes: 7,
            root: None,
            encrypted: false,
            job: None,
        };
        self.catalog.remember(&[copy]).unwrap();
    }

    fn forget(&self, domain: &str, mode: RunMode) -> Result<Vec<Forgotten>> {
        run(domain, mode, &self.world, &self.catalog)
    }

    fn refused(&self, domain: &str) -> (ErrorKind, String) {
        let error = self.forget(domain, RunMode::Apply).unwrap_err();
        (error.kind(), format!("{error}; {}", error.hint().unwrap_or_default()))
    }
}

#[test]
fn what_is_gone_is_forgotten_and_its_archives_are_not() {
    let scene = Scene::new();
    let (web, db) = (id(1), id(2));
    for (domain, name) in [(web, "web"), (db, "db")] {
        scene.ran(domain, name);
        scene.waits(domain, name);
        let job = scene.begins(domain, name);
        scene.catalog.record(job, &[JournalEntry::Close(SessionOutcome::Copied)]).unwrap();
        scene.has_archive(domain, name);
    }
    let would = scene.forget("web", RunMode::DryRun).unwrap();
    let known = Forgotten { domain: "web".to_owned(), uuid: web.0, runs: 2, history: 1, archives: 1 };
    assert_eq!(would, std::slice::from_ref(&known));
    assert_eq!(scene.catalog.last_ends(Timestamp::MAX).unwrap().len(), 2, "a dry run does nothing");
    assert_eq!(scene.forget("web", RunMode::Apply).unwrap(), [known]);
    let left = scene.catalog.last_ends(Timestamp::MAX).unwrap();
    assert_eq!(left.iter().map(|entry| entry.wanted.domain).collect::<Vec<_>>(), [db]);
    assert_eq!(scene.catalog.open_entries().unwrap().len(), 1);
    assert_eq!(scene.catalog.copies_at("/backup").unwrap().len(), 2);
    // A second time there are the archives alone.
    let again = scene.forget(&web.to_string(), RunMode::Apply).unwrap();
    assert_eq!((again[0].runs, again[0].history, again[0].archives), (0, 0, 1));
    assert_eq!(scene.refused("nobody").0, ErrorKind::NotFound);
}

#[test]
fn what_is_there_or_not_ended_is_not_forgotten() {
    let scene = Scene::new();
    let disks = vec![("vda".to_owned(), "/i/a.qcow2".into())];
    let there = scene.world.add(&SimSpec { name: "web".to_owned(), disks, agent: SimAgent::Absent }).unwrap();
    scene.ran(there, "web");
    let (kind, words) = scene.refused("web");
    assert!(kind == ErrorKind::InUse && words.contains("exists") && words.contains("undefine"), "{words}");
    assert_eq!(scene.refused(&there.to_string()).0, ErrorKind::InUse);
    // One of that name was defined anew: the earlier one goes by its uuid.
    scene.ran(id(7), "web");
    assert!(scene.refused("web").1.contains(&id(7).to_string()));
    assert_eq!(scene.forget(&id(7).to_string(), RunMode::Apply).unwrap()[0].runs, 1);
    // Renamed since it was backed up.
    scene.world.add(&SimSpec { name: "new".to_owned(), disks: vec![], agent: SimAgent::Absent }).unwrap();
    let renamed = virtfold_hypervisor::Hypervisor::lookup(&scene.world, "new").unwrap().id;
    scene.ran(renamed, "old");
    assert_eq!(scene.refused("old").0, ErrorKind::InUse);

    let gone = id(9);
    let run = scene.waits(gone, "gone");
    scene.catalog.start(run, at(20)).unwrap();
    assert!(scene.refused("gone").1.contains("virtfold cancel"));
    scene.catalog.end(run, at(21), &RunEnd::Succeeded(RunResult::default())).unwrap();
    let job = scene.begins(gone, "gone");
    assert!(scene.refused("gone").1.contains("virtfold recover"));
    scene.catalog.record(job, &[JournalEntry::Close(SessionOutcome::Recovered)]).unwrap();
    let lock = scene.catalog.lock(gone).unwrap();
    assert_eq!(scene.refused("gone").0, ErrorKind::InUse);
    drop(lock);
    assert_eq!(
        scene.catalog.last_ends(Timestamp::MAX).unwrap().iter().filter(|e| e.wanted.domain == gone).count(),
        1
    );
    assert_eq!(scene.forget("gone", RunMode::Apply).unwrap()[0].runs, 1);
}
