use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use virtfold_hypervisor::{BlockJobStatus, DomainId, DomainState};

fn time(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
}

fn uuid(guest: u8) -> Uuid {
    Uuid::from_bytes([guest; 16])
}

fn heard(source: EventSource, guest: u8, trigger: GuestEventKind, seconds: u64) -> EventReport {
    let name = (source == EventSource::Hook).then(|| format!("vm{guest}"));
    EventReport {
        name,
        uuid: Some(uuid(guest)),
        what: EventReportKind::Happened(trigger),
        at: time(seconds),
        source,
    }
}

fn info(guest: u8, run: DomainState, persistence: Persistence) -> DomainInfo {
    DomainInfo { id: DomainId(uuid(guest)), name: format!("vm{guest}"), persistence, run }
}

fn off(guest: u8) -> DomainInfo {
    info(guest, DomainState::ShutOff, Persistence::Persistent)
}

fn on(guest: u8) -> DomainInfo {
    info(guest, DomainState::Running, Persistence::Persistent)
}

/// Hears a word and takes it in, as when it was delivered.
fn told(known: &mut GuestStates, heard: EventReport) -> Option<GuestEventKind> {
    let event = known.hear(heard)?;
    known.learn(&event);
    Some(event.trigger)
}

fn found(known: &mut GuestStates, domains: &[DomainInfo]) -> Vec<(String, GuestEventKind)> {
    let events = known.differences(domains, time(500));
    events.iter().for_each(|event| known.learn(event));
    known.adopt(domains);
    assert_eq!(known.differences(domains, time(500)), []);
    events.into_iter().map(|event| (event.domain, event.trigger)).collect()
}

fn with(domains: &[DomainInfo]) -> GuestStates {
    let mut known = GuestStates::default();
    assert_eq!(found(&mut known, domains), [], "what is found first is taken as it is");
    known
}

#[test]
fn the_second_word_of_the_same_thing_says_nothing_new() {
    for (first, second) in
        [(EventSource::Hook, EventSource::Libvirt), (EventSource::Libvirt, EventSource::Hook)]
    {
        let mut known = with(&[off(1), off(2)]);
        assert_eq!(
            told(&mut known, heard(first, 1, GuestEventKind::Started, 0)),
            Some(GuestEventKind::Started)
        );
        assert_eq!(
            told(&mut known, heard(first, 2, GuestEventKind::Started, 0)),
            Some(GuestEventKind::Started)
        );
        assert_eq!(told(&mut known, heard(second, 1, GuestEventKind::Started, 1)), None);
        assert_eq!(
            told(&mut known, heard(second, 1, GuestEventKind::Started, 2)),
            Some(GuestEventKind::Started)
        );
        assert_eq!(
            told(&mut known, heard(second, 2, GuestEventKind::Started, 31)),
            Some(GuestEventKind::Started),
            "too late"
        );
        assert_eq!(found(&mut known, &[on(1), on(2)]), []);
    }
}

#[test]
fn what_a_reconcile_found_is_no_news_from_either_source() {
    let mut known = with(&[off(1)]);
    assert_eq!(found(&mut known, &[on(1)]), [("vm1".to_owned(), GuestEventKind::Started)]);
    assert_eq!(told(&mut known, heard(EventSource::Libvirt, 1, GuestEventKind::Started, 499)), None);
    assert_eq!(told(&mut known, heard(EventSource::Hook, 1, GuestEventKind::Started, 498)), None);
    assert_eq!(
        told(&mut known, heard(EventSource::Hook, 1, GuestEventKind::Shutdown, 501)),
        Some(GuestEventKind::Shutdown)
    );
}

#[test]
fn a_reconcile_finds_what_nobody_told() {
    let mut known = with(&[off(1), on(2), on(3), off(4)]);
    let transient = info(5, DomainState::Running, Persistence::Transient);
    let events = found(&mut known, &[on(1), off(2), transient, off(6)]);
    let expected = [
        ("vm1", GuestEventKind::Started),
        ("vm2", GuestEventKind::Ended),
        ("vm5", GuestEventKind::Started),
        ("vm6", GuestEventKind::Defined),
        ("vm3", GuestEventKind::Ended),
        ("vm3", GuestEventKind::Undefined),
        ("vm4", GuestEventKind::Undefined),
    ];
    assert_eq!(events, expected.map(|(name, trigger)| (name.to_owned(), trigger)));
}

#[test]
fn only_the_first_definition_is_a_new_guest() {
    let mut known = with(&[off(1)]);
    assert_eq!(
        told(&mut known, heard(EventSource::Libvirt, 1, GuestEventKind::Defined, 0)),
        Some(GuestEventKind::Redefined)
    );
    assert_eq!(
        told(&mut known, heard(EventSource::Libvirt, 2, GuestEventKind::Defined, 0)),
        Some(GuestEventKind::Defined)
    );
    assert_eq!(
        told(&mut known, heard(EventSource::Libvirt, 2, GuestEventKind::Defined, 1)),
        Some(GuestEventKind::Redefined)
    );
    // A transient guest that is defined later is new then, too.
    assert_eq!(
        told(&mut known, heard(EventSource::Hook, 3, GuestEventKind::Started, 2)),
        Some(GuestEventKind::Started)
    );
    assert_eq!(
        told(&mut known, heard(EventSource::Libvirt, 3, GuestEventKind::Defined, 3)),
        Some(GuestEventKind::Defined)
    );
    assert_eq!(
        told(&mut known, heard(EventSource::Libvirt, 3, GuestEventKind::Undefined, 4)),
        Some(GuestEventKind::Undefined)
    );
    assert_eq!(
        told(&mut known, heard(EventSource::Libvirt, 3, GuestEventKind::Shutdown, 5)),
        Some(GuestEventKind::Shutdown)
    );
    assert_eq!(known.name(uuid(3)), None);
}

#[test]
fn an_arrival_is_not_a_boot() {
    let arrives = |how| EventReport {
        what: EventReportKind::Arrives(how),
        ..heard(EventSource::Hook, 1, GuestEventKind::Started, 0)
    };
    let mut known = with(&[off(1)]);
    assert_eq!(told(&mut known, arrives(GuestEventKind::Migrated)), None);
    assert_eq!(
        told(&mut known, heard(EventSource::Hook, 1, GuestEventKind::Started, 1)),
        Some(GuestEventKind::Migrated)
    );
    assert_eq!(told(&mut known, heard(EventSource::Libvirt, 1, GuestEventKind::Migrated, 1)), None);
    assert_eq!(
        told(&mut known, heard(EventSource::Hook, 1, GuestEventKind::Shutdown, 2)),
        Some(GuestEventKind::Shutdown)
    );
    assert_eq!(
        told(&mut known, heard(EventSource::Hook, 1, GuestEventKind::Started, 3)),
        Some(GuestEventKind::Started)
    );
    // One that came to nothing does not name the start after it.
    assert_eq!(
        told(&mut known, heard(EventSource::Hook, 1, GuestEventKind::Saved, 4)),
        Some(GuestEventKind::Saved)
    );
    assert_eq!(told(&mut known, arrives(GuestEventKind::Restored)), None);
    assert_eq!(
        told(&mut known, heard(EventSource::Hook, 1, GuestEventKind::NotStarted, 5)),
        Some(GuestEventKind::NotStarted)
    );
    assert_eq!(
        told(&mut known, heard(EventSource::Hook, 1, GuestEventKind::Started, 6)),
        Some(GuestEventKind::Started)
    );
}

#[test]
fn block_jobs_are_told_one_by_one_and_a_guest_without_a_uuid_goes_by_its_name() {
    let mut known = with(&[on(1)]);
    let job = GuestEventKind::BlockJob { target: "vda".to_owned(), status: BlockJobStatus::Failed };
    for _ in 0..2 {
        assert_eq!(told(&mut known, heard(EventSource::Libvirt, 1, job.clone(), 0)), Some(job.clone()));
    }
    let nameless = EventReport { uuid: None, ..heard(EventSource::Hook, 1, GuestEventKind::Destroyed, 1) };
    assert_eq!(known.hear(nameless.clone()).and_then(|event| event.uuid), Some(uuid(1)));
    assert_eq!(told(&mut known, nameless), Some(GuestEventKind::Destroyed));
    assert_eq!(told(&mut known, heard(EventSource::Libvirt, 1, GuestEventKind::Destroyed, 1)), None);
}

#[test]
fn what_is_known_survives() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guests.json");
    let mut known = with(&[on(1), off(2)]);
    known.save(&path).unwrap();
    let mut known = GuestStates::load(&path).unwrap();
    assert_eq!(
        found(&mut known, &[off(1), on(2)]),
        [("vm1".to_owned(), GuestEventKind::Ended), ("vm2".to_owned(), GuestEventKind::Started)]
    );
    std::fs::write(&path, "{\"version\":2,\"guests\":{}}").unwrap();
    assert_eq!(GuestStates::load(&path).unwrap_err().kind(), ErrorKind::Unsupported);
    std::fs::write(&path, "{\"version\":1,").unwrap();
    assert_eq!(GuestStates::load(&path).unwrap_err().kind(), ErrorKind::Damaged);
    assert!(!GuestStates::load(&folder.path().join("none")).unwrap().has_seen);
}

/// Starts and ends of two guests, in turn, and who told of each (bit 0 the hook, bit 1 libvirt).
fn history() -> impl Strategy<Value = Vec<(u8, u8)>> {
    proptest::collection::vec((1_u8..=2, 0_u8..4), 1..40)
}

/// Both sources' words, each source in its own order, one guest's in time. The sources of `whole`, bits as in
/// a history, tell of everything.
fn words(history: &[(u8, u8)], whole: u8) -> ([VecDeque<EventReport>; 2], [bool; 3], usize) {
    let (mut runs, mut queues) = ([false; 3], [VecDeque::new(), VecDeque::new()]);
    for (at, (guest, by)) in history.iter().enumerate() {
        let state = &mut runs[usize::from(*guest)];
        let trigger = if *state { GuestEventKind::Shutdown } else { GuestEventKind::Started };
        *state = !*state;
        for (bit, source) in [EventSource::Hook, EventSource::Libvirt].into_iter().enumerate() {
            if (by | whole) & (1 << bit) != 0 {
                queues[bit].push_back(heard(source, *guest, trigger.clone(), at as u64 / 4));
            }
        }
    }
    (queues, runs, history.len())
}

proptest! {
    #[test]
    fn whatever_comes_first_each_event_is_told_once(history in history(), order in proptest::collection::vec(any::<bool>(), 80)) {
        let (mut queues, runs, count) = words(&history, 3);
        let mut known = with(&[off(1), off(2)]);
        let mut told_of = 0;
        for hook_first in order.into_iter().chain([true; 40]).chain([false; 40]) {
            if let Some(word) = queues[usize::from(!hook_first)].pop_front() {
                told_of += usize::from(told(&mut known, word).is_some());
            }
        }
        prop_assert_eq!(told_of, count);
        let truth = [1_u8, 2].map(|guest| if runs[usize::from(guest)] { on(guest) } else { off(guest) });
        prop_assert_eq!(known.differences(&truth, time(500)), []);
    }

    #[test]
    fn whatever_is_missed_a_reconcile_knows_who_runs(history in history(), order in proptest::collection::vec(any::<bool>(), 80)) {
        let (mut queues, runs, _) = words(&history, 0);
        let mut known = with(&[off(1), off(2)]);
        for hook_first in order.into_iter().chain([true; 40]).chain([false; 40]) {
            if let Some(word) = queues[usize::from(!hook_first)].pop_front() {
                told(&mut known, word);
            }
        }
        let truth = [1_u8, 2].map(|guest| if runs[usize::from(guest)] { on(guest) } else { off(guest) });
        let before: Vec<bool> = [1, 2].iter().map(|guest| known.guests[&uuid(*guest)].runs).collect();
        let events = found(&mut known, &truth);
        for guest in [1_u8, 2] {
            let told_of = events.iter().any(|(name, _)| *name == format!("vm{guest}"));
            prop_assert_eq!(told_of, before[usize::from(guest) - 1] != runs[usize::from(guest)]);
        }
    }
}
