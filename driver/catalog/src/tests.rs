//! What is written is there again; what is no catalog is said.

use std::time::Duration;

use super::*;
use virtfold_base::error::ErrorKind;
use virtfold_hypervisor::host_files::ImageStamp;
use virtfold_hypervisor::types::Persistence;
use virtfold_hypervisor::watchdog::GuestHold;

fn mark(seconds: u64) -> ImageStamp {
    ImageStamp { modified: Duration::new(seconds, 7), size: u64::MAX }
}

fn job(domain: DomainId) -> FreezeSession {
    let disk = |target: &str, overlay: Option<&str>| SessionDisk {
        target: target.to_owned(),
        alias: overlay.map(|_| "virtio-disk0".to_owned()),
        base: BaseImage {
            path: "/images/a b.qcow2".into(),
            format: "qcow2".to_owned(),
            identity: Some((u64::MAX, 3)),
            backing: overlay.map(|_| ("/golden".into(), "raw".to_owned())),
        },
        overlay: overlay.map(Into::into),
        frozen: None,
        state: UnfreezeState::Waiting,
    };
    FreezeSession {
        id: Uuid::new_v4(),
        domain,
        name: "web 1".to_owned(),
        persistence: Persistence::Persistent,
        live: Some("<domain/>".to_owned()),
        inactive: None,
        kind: SessionKind::Running,
        created: 1_700_000_000,
        state: SessionState::Planned,
        held: Some(GuestHold::Frozen),
        disks: vec![disk("vda", Some("/o/a.virtfold-00000001.overlay")), disk("vdb", None)],
    }
}

#[test]
fn what_was_noted_is_there_after_it_is_opened_again() {
    let state = tempfile::tempdir().unwrap();
    let state = state.path().join("new").join("state");
    let domain = DomainId(Uuid::new_v4());
    let mut expected = job(domain);
    let catalog = Catalog::open(&state).unwrap();
    catalog.begin(&expected).unwrap();
    catalog.begin(&job(DomainId(Uuid::new_v4()))).unwrap();
    let level = UnfreezeState::Pivoting { level: Some(mark(5)) };
    let changes = [
        JournalEntry::State(SessionState::Committing),
        JournalEntry::Held(None),
        JournalEntry::Frozen { target: "vda".to_owned(), mark: mark(4) },
        JournalEntry::Disk { target: "vdb".to_owned(), state: level },
    ];
    catalog.record(expected.id, &changes).unwrap();
    drop(catalog);
    let mode = std::fs::metadata(state.join("catalog.sqlite")).unwrap().permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600, "it holds passwords");
    expected.state = SessionState::Committing;
    expected.held = None;
    expected.disks[0].frozen = Some(mark(4));
    expected.disks[1].state = level;
    let catalog = Catalog::open(&state).unwrap();
    assert_eq!(catalog.open_sessions(Some(domain)).unwrap(), [expected.clone()]);
    assert_eq!(catalog.open_sessions(None).unwrap().len(), 2);
    catalog.record(expected.id, &[JournalEntry::Close(SessionOutcome::Recovered)]).unwrap();
    assert_eq!(catalog.open_sessions(Some(domain)).unwrap(), []);
    catalog.record(expected.id, &[JournalEntry::Held(None)]).unwrap_err();
}

#[test]
fn changes_are_noted_all_or_none() {
    let state = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(state.path()).unwrap();
    let domain = DomainId(Uuid::new_v4());
    let job = job(domain);
    catalog.begin(&job).unwrap();
    catalog.begin(&job).unwrap_err();
    let nowhere = JournalEntry::Disk { target: "sda".to_owned(), state: UnfreezeState::Done };
    catalog.record(job.id, &[JournalEntry::State(SessionState::ReadDone), nowhere]).unwrap_err();
    assert_eq!(catalog.open_sessions(None).unwrap(), [job]);
    catalog.record(Uuid::new_v4(), &[JournalEntry::Held(None)]).unwrap_err();
}

#[test]
fn history_is_bounded() {
    let state = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(state.path()).unwrap();
    let connection = rusqlite::Connection::open(state.path().join("catalog.sqlite")).unwrap();
    let many = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {HISTORY})
         INSERT INTO freeze_session (id, domain, name, persistence, kind, created, state, outcome, closed)
         SELECT i, '', '', '', '', 0, 'closed', 'copied', i FROM n"
    );
    connection.execute_batch(&many).unwrap();
    let job = job(DomainId(Uuid::new_v4()));
    catalog.begin(&job).unwrap();
    catalog.record(job.id, &[JournalEntry::Close(SessionOutcome::Failed)]).unwrap();
    let count = "SELECT count(*), count(*) FILTER (WHERE id = '1') FROM freeze_session";
    let counted = connection.query_row(count, [], |row| Ok((row.get::<_, u32>(0)?, row.get::<_, u32>(1)?)));
    assert_eq!(counted.unwrap(), (HISTORY, 0));
}

#[test]
fn what_is_no_catalog_is_never_replaced() {
    let state = tempfile::tempdir().unwrap();
    let path = state.path().join("catalog.sqlite");
    for contents in [
        &b""[..],
        b"not a database, whatever its name says, and longer than a header of SQLite has to be .......",
    ] {
        std::fs::write(&path, contents).unwrap();
        let error = Catalog::open(state.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
        assert!(error.hint().is_some());
        assert_eq!(std::fs::read(&path).unwrap(), contents);
    }
    std::fs::remove_file(&path).unwrap();
    drop(Catalog::open(state.path()).unwrap());
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let error = Catalog::open(state.path()).unwrap_err();
    assert!(format!("{error:?}").contains("version 99"), "{error:?}");
}

/// A catalog of more than one page, and its file.
fn of_some_pages(state: &std::path::Path) -> std::path::PathBuf {
    let catalog = Catalog::open(state).unwrap();
    for _ in 0..20 {
        catalog.begin(&job(DomainId(Uuid::new_v4()))).unwrap();
    }
    state.join("catalog.sqlite")
}

#[test]
fn a_cut_catalog_is_damage() {
    let state = tempfile::tempdir().unwrap();
    let path = of_some_pages(state.path());
    let whole = std::fs::metadata(&path).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(whole / 2).unwrap();
    assert_eq!(Catalog::open(state.path()).unwrap_err().kind(), ErrorKind::Damaged);
}

/// All of a catalog is read once a week, not by each run.
#[test]
fn a_catalog_is_checked_weekly_and_when_it_is_asked() {
    let state = tempfile::tempdir().unwrap();
    let path = of_some_pages(state.path());
    // A page of what is read by nobody here.
    let page = {
        let connection = rusqlite::Connection::open(&path).unwrap();
        let root = "SELECT rootpage FROM sqlite_schema WHERE name = 'tape_run'";
        connection.query_row(root, [], |row| row.get::<_, i64>(0)).unwrap()
    };
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 64], u64::try_from(page - 1).unwrap() * 4096)
        .unwrap();
    let catalog = Catalog::open(state.path()).unwrap();
    assert_eq!(catalog.check().unwrap_err().kind(), ErrorKind::Damaged);
    let set_back = "UPDATE integrity SET checked = checked - 7 * 24 * 3600";
    catalog.connection().execute(set_back, []).unwrap();
    drop(catalog);
    assert_eq!(Catalog::open(state.path()).unwrap_err().kind(), ErrorKind::Damaged);
}

#[test]
fn a_domain_has_one_run_at_a_time() {
    let state = tempfile::tempdir().unwrap();
    let (one, other) = (Catalog::open(state.path()).unwrap(), Catalog::open(state.path()).unwrap());
    let [a, b] = [(); 2].map(|()| DomainId(Uuid::new_v4()));
    let held = one.lock(a).unwrap();
    let error = other.lock(a).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    other.lock(b).unwrap();
    drop(held);
    other.lock(a).unwrap();
}
