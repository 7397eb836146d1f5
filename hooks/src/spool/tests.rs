use super::*;
use crate::event::{EventXml, Hook};
use std::collections::BTreeSet;

fn spool() -> (tempfile::TempDir, Spool) {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::at(dir.path().join("events"));
    spool.create().unwrap();
    (dir, spool)
}

fn event(name: &str) -> Event {
    Event::now(
        Hook::Qemu,
        &[name.to_owned(), "started".to_owned()],
        EventXml::from_bytes(b"<domain/>".to_vec()),
    )
}

#[test]
fn events_come_back_in_order_until_they_are_removed() {
    let (_dir, spool) = spool();
    let names: Vec<String> = (0..20).map(|i| format!("vm{i}")).collect();
    for (at, name) in names.iter().enumerate() {
        let mut event = event(name);
        event.time = 1_000 + at as u64;
        assert!(matches!(spool.put(&event).unwrap(), SpoolOutcome::Stored(_)));
    }
    let first = spool.read(5).unwrap();
    assert!(first.more && first.quarantined.is_empty());
    let seen: Vec<_> = first.events.iter().map(|spooled| spooled.event.object.clone()).collect();
    assert_eq!(seen, names[..5]);
    assert_eq!(spool.read(5).unwrap().events, first.events);
    for spooled in &first.events {
        spool.remove(spooled).unwrap();
        spool.remove(spooled).unwrap();
    }
    let rest = spool.read(100).unwrap();
    assert!(!rest.more);
    assert_eq!(rest.events.len(), 15);
    assert_eq!(rest.events[0].event.object, "vm5");
}

#[test]
fn a_full_spool_keeps_the_old_and_counts_the_new() {
    let (_dir, spool) = spool();
    assert_eq!(spool.take_overflow().unwrap(), None);
    let small = spool.clone().with_limits(Limits { files: 3, bytes: 1 << 20 });
    let put: Vec<_> = (0..7).map(|i| small.put(&event(&format!("vm{i}"))).unwrap()).collect();
    assert_eq!(put.iter().filter(|put| **put == SpoolOutcome::Dropped).count(), 4);
    let kept = spool.read(100).unwrap().events;
    assert_eq!(kept.len(), 3);
    assert!(kept.iter().all(|spooled| ["vm0", "vm1", "vm2"].contains(&spooled.event.object.as_str())));
    assert_eq!(spool.take_overflow().unwrap(), Some(4));
    assert_eq!(spool.take_overflow().unwrap(), None);
    let size = event("vm0").encode().unwrap().len() as u64;
    let tight = spool.clone().with_limits(Limits { files: 100, bytes: 4 * size });
    assert!(matches!(tight.put(&event("vm8")).unwrap(), SpoolOutcome::Stored(_)));
    assert_eq!(tight.put(&event("vm9")).unwrap(), SpoolOutcome::Dropped);
    assert_eq!(spool.take_overflow().unwrap(), Some(1));
}

#[test]
fn what_is_no_event_goes_to_the_quarantine_and_the_rest_is_read() {
    let (_dir, spool) = spool();
    let SpoolOutcome::Stored(good) = spool.put(&event("vm")).unwrap() else { panic!("full") };
    let bytes = fs::read(spool.dir().join(&good)).unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(spool.dir().join(name), bytes).unwrap();
    put(&file_name(1, 1, bytes.len()), &bytes[..bytes.len() - 1]);
    put(&file_name(2, 1, 2), b"{}");
    put(&file_name(3, 1, 4), b"\xff\xff\xff\xff");
    put("stranger.txt", b"");
    put(".unfinished", b"");
    std::os::unix::fs::symlink("/etc/passwd", spool.dir().join(file_name(4, 1, 1))).unwrap();
    fs::create_dir(spool.dir().join(file_name(5, 1, 1))).unwrap();
    let batch = spool.read(100).unwrap();
    assert_eq!(batch.events.len(), 1);
    let why: BTreeSet<_> = batch.quarantined.iter().map(|q| q.why.as_str()).collect();
    assert_eq!(batch.quarantined.len(), 6, "{why:?}");
    assert!(why.contains("it is not a regular file") && why.contains("its name is not an event's"));
    assert!(spool.dir().join(".unfinished").exists());
    assert!(spool.read(100).unwrap().quarantined.is_empty());
    for i in 0..150 {
        put(&file_name(100 + i, 1, 1), b"x");
    }
    assert_eq!(spool.read(1000).unwrap().quarantined.len(), 150);
    let kept = fs::read_dir(spool.dir().join("quarantine")).unwrap().count();
    assert!(kept <= MAX_QUARANTINE + 1, "{kept}");
}

#[test]
fn abandoned_files_go_when_they_are_old() {
    let (_dir, spool) = spool();
    let old = spool.dir().join(".00000000000000000001-0000000001-00000001.json");
    let file = File::create(&old).unwrap();
    assert_eq!(spool.read(10).unwrap().events, []);
    assert!(old.exists());
    file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(3600)).unwrap();
    assert_eq!(spool.read(10).unwrap().events, []);
    assert!(!old.exists());
}

#[test]
fn a_spool_that_is_not_there_is_an_error_and_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::at(dir.path().join("events"));
    assert_eq!(spool.put(&event("vm")).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert!(!spool.dir().exists());
}

#[test]
fn many_writers_at_once_lose_nothing() {
    let (_dir, spool) = spool();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let spool = &spool;
            scope.spawn(move || {
                for i in 0..25 {
                    // One process and perhaps one microsecond: distinct times keep the names apart, as pids
                    // do.
                    let mut event = event(&format!("{thread}-{i}"));
                    event.time = thread * 1000 + i;
                    let put = spool.put(&event).unwrap();
                    assert!(matches!(put, SpoolOutcome::Stored(_)));
                }
            });
        }
    });
    let seen: BTreeSet<_> = spool.read(1000).unwrap().events.into_iter().map(|s| s.event.object).collect();
    assert_eq!(seen.len(), 200);
}
