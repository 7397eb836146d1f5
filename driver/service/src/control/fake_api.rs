//! A desk for tests, of which everything is known.

use std::sync::Mutex;

use super::*;
use virtfold_base::error::{Error, ErrorKind};

/// Answers the same always, and notes what it was asked to do.
#[derive(Default)]
pub(crate) struct FakeControlApi {
    asked: Mutex<Vec<String>>,
}

impl FakeControlApi {
    fn note(&self, what: String) {
        self.asked.lock().unwrap().push(what);
    }

    /// What it was asked to do since this was asked last.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

pub(crate) fn entry(id: i64) -> EntryStatus {
    EntryStatus {
        id: EntryId(id),
        job: "nightly".to_owned(),
        domain: "web \"1\"\n".to_owned(),
        uuid: Some(uuid::Uuid::from_u128(7)),
        state: EntryState::Waiting,
        trigger: EntryOrigin::Event("shutdown".to_owned()),
        due: 1_000,
        not_before: Some(1_060),
        waits_for: None,
        started: None,
        ended: None,
        attempts: 1,
        failure: Some(LastFailure {
            at: 1_001,
            job: "nightly".to_owned(),
            kind: ErrorKind::NoSpace,
            sentence: "no room".to_owned(),
            hint: None,
        }),
        archives: Vec::new(),
    }
}

pub(crate) fn status() -> Status {
    let state = ServiceState::Running;
    let service = ServiceStatus { version: "1".to_owned(), pid: 1, since: 10, now: 20, state };
    let measure = virtfold_backup::metrics::BackupMetrics {
        at: 15,
        seconds: 1.5,
        capacity_bytes: 100,
        read_bytes: 10,
        allocated_bytes: 50,
        changes: vec![virtfold_backup::metrics::DiskMethod {
            disk: "vda".to_owned(),
            method: "compare".to_owned(),
        }],
        archive_bytes: 5,
        thaw_failed: false,
        frozen_ms: Some(1.25),
        snapshot_ms: None,
        pause_ms: Some(40.0),
        tape_underruns: Some(2),
    };
    let progress = RunProgress { phase: "copying".to_owned(), done: 1, total: 2, seconds: 3 };
    Status {
        service,
        libvirt: LibvirtStatus { uri: "qemu:///system".to_owned(), error: None, since: 11 },
        guests: Some(GuestCounts { all: 2, left_out: Vec::new() }),
        paused: true,
        running: vec![RunningEntry { entry: entry(3), progress }],
        queued: 1,
        queued_since: Some(12),
        jobs: vec![JobStatus {
            job: "nightly".to_owned(),
            enabled: true,
            paused: false,
            domains: vec!["web".to_owned()],
            next_due: Some(99),
        }],
        domains: vec![DomainStatus {
            domain: "web".to_owned(),
            uuid: Some(uuid::Uuid::from_u128(8)),
            jobs: vec!["nightly".to_owned()],
            last_success: Some(LastSuccess {
                job: "nightly".to_owned(),
                archives: vec!["/a".to_owned()],
                measure,
            }),
            last_failure: entry(1).failure,
        }],
        replaced: Vec::new(),
        warnings: vec![Warning {
            kind: WarningKind::GuestWithoutJob,
            subject: "db".to_owned(),
            sentence: "'db' is in no job".to_owned(),
        }],
    }
}

impl ControlApi for FakeControlApi {
    fn status(&self) -> Result<Status> {
        Ok(status())
    }
    fn queue(&self) -> Result<Vec<EntryStatus>> {
        Ok(vec![entry(1), entry(2)])
    }
    fn entry(&self, id: EntryId) -> Result<EntryStatus> {
        if id == EntryId(1) { Ok(entry(1)) } else { Err(missing()) }
    }
    fn run(&self, job: &str, domain: Option<&str>) -> Result<Vec<EntryId>> {
        self.note(format!("run {job} {domain:?}"));
        if job == "panic" {
            panic!("a defect");
        }
        if job == "nightly" { Ok(vec![EntryId(1), EntryId(i64::MAX)]) } else { Err(missing()) }
    }
    fn pause(&self, job: Option<&str>) -> Result<()> {
        self.note(format!("pause {job:?}"));
        Ok(())
    }
    fn resume(&self, job: Option<&str>) -> Result<()> {
        self.note(format!("resume {job:?}"));
        Ok(())
    }
    fn cancel(&self, id: EntryId) -> Result<()> {
        self.note(format!("cancel {id}"));
        Ok(())
    }
    fn reload(&self) -> Result<()> {
        self.note("reload".to_owned());
        Err(Error::io("line 3 is wrong", std::io::Error::other("a tab")).with_hint("use spaces"))
    }
}

fn missing() -> Error {
    Error::new(ErrorKind::NotFound, "there is none").with_hint("look at the list")
}
