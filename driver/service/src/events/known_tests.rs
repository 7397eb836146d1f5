use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use virtfold_hypervisor::{BlockJobStatus, DomainId, Run};

fn time(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
}

fn uuid(guest: u8) -> Uuid {
    Uuid::from_bytes([guest; 16])
}

fn heard(source: Source, guest: u8, trigger: Trigger, seconds: u64) -> Heard {
    let name = (source == Source::Hook).then(|| format!("vm{guest}"));
    Heard { name, uuid: Some(uuid(guest)), what: What::Happened(trigger), at: time(seconds), source }
}

fn info(guest: u8, run: Run, persistence: Persistence) -> DomainInfo {
    DomainInfo { id: DomainId(uuid(guest)), name: format!("vm{guest}"), persistence, run }
}

fn off(guest: u8) -> DomainInfo {
    info(guest, Run::ShutOff, Persistence::Persistent)
}

fn on(guest: u8) -> DomainInfo {
    info(guest, Run::Running, Persistence::Persistent)
}

/// Hears a word and takes it in, as when it was delivered.
fn told(known: &mut Known, heard: Heard) -> Option<Trigger> {
    let event = known.hear(heard)?;
    known.learn(&event);
    Some(event.trigger)
}

fn found(known: &mut Known, domains: &[DomainInfo]) -> Vec<(String, Trigger)> {
    let events = known.differences(domains, time(500));
    events.iter().for_each(|event| known.learn(event));
    known.adopt(domains);
    assert_eq!(known.differences(domains, time(500)), []);
    events.into_iter().map(|event| (event.domain, event.trigger)).collect()
}

fn with(domains: &[DomainInfo]) -> Known {
    let mut known = Known::default();
    assert_eq!(found(&mut known, domains), [], "what is found first is taken as it is");
    known
}

#[test]
fn the_second_word_of_the_same_thing_says_nothing_new() {
    for (first, second) in [(Source::Hook, Source::Libvirt), (Source::Libvirt, Source::Hook)] {
        let mut known = with(&[off(1), off(2)]);
        assert_eq!(told(&mut known, heard(first, 1, Trigger::Started, 0)), Some(Trigger::Started));
        assert_eq!(told(&mut known, heard(first, 2, Trigger::Started, 0)), Some(Trigger::Started));
        assert_eq!(told(&mut known, heard(second, 1, Trigger::Started, 1)), None);
        assert_eq!(told(&mut known, heard(second, 1, Trigger::Started, 2)), Some(Trigger::Started));
        assert_eq!(
            told(&mut known, heard(second, 2, Trigger::Started, 31)),
            Some(Trigger::Started),
            "too late"
        );
        assert_eq!(found(&mut known, &[on(1), on(2)]), []);
    }
}

#[test]
fn what_a_reconcile_found_is_no_news_from_either_source() {
    let mut known = with(&[off(1)]);
    assert_eq!(found(&mut known, &[on(1)]), [("vm1".to_owned(), Trigger::Started)]);
    assert_eq!(told(&mut known, heard(Source::Libvirt, 1, Trigger::Started, 499)), None);
    assert_eq!(told(&mut known, heard(Source::Hook, 1, Trigger::Started, 498)), None);
    assert_eq!(told(&mut known, heard(Source::Hook, 1, Trigger::Shutdown, 501)), Some(Trigger::Shutdown));
}

#[test]
fn a_reconcile_finds_what_nobody_told() {
    let mut known = with(&[off(1), on(2), on(3), off(4)]);
    let transient = info(5, Run::Running, Persistence::Transient);
    let events = found(&mut known, &[on(1), off(2), transient, off(6)]);
    let expected = [
        ("vm1", Trigger::Started),
        ("vm2", Trigger::Ended),
        ("vm5", Trigger::Started),
        ("vm6", Trigger::Defined),
        ("vm3", Trigger::Ended),
        ("vm3", Trigger::Undefined),
        ("vm4", Trigger::Undefined),
    ];
    assert_eq!(events, expected.map(|(name, trigger)| (name.to_owned(), trigger)));
}

#[test]
fn only_the_first_definition_is_a_new_guest() {
    let mut known = with(&[off(1)]);
    assert_eq!(told(&mut known, heard(Source::Libvirt, 1, Trigger::Defined, 0)), Some(Trigger::Redefined));
    assert_eq!(told(&mut known, heard(Source::Libvirt, 2, Trigger::Defined, 0)), Some(Trigger::Defined));
    assert_eq!(told(&mut known, heard(Source::Libvirt, 2, Trigger::Defined, 1)), Some(Trigger::Redefined));
    // A transient guest that is defined later is new then, too.
    assert_eq!(told(&mut known, heard(Source::Hook, 3, Trigger::Started, 2)), Some(Trigger::Started));
    assert_eq!(told(&mut known, heard(Source::Libvirt, 3, Trigger::Defined, 3)), Some(Trigger::Defined));
    assert_eq!(told(&mut known, heard(Source::Libvirt, 3, Trigger::Undefined, 4)), Some(Trigger::Undefined));
    assert_eq!(told(&mut known, heard(Source::Libvirt, 3, Trigger::Shutdown, 5)), Some(Trigger::Shutdown));
    assert_eq!(known.name(uuid(3)), None);
}

#[test]
fn an_arrival_is_not_a_boot() {
    let arrives = |how| Heard { what: What::Arrives(how), ..heard(Source::Hook, 1, Trigger::Started, 0) };
    let mut known = with(&[off(1)]);
    assert_eq!(told(&mut known, arrives(Trigger::Migrated)), None);
    assert_eq!(told(&mut known, heard(Source::Hook, 1, Trigger::Started, 1)), Some(Trigger::Migrated));
    assert_eq!(told(&mut known, heard(Source::Libvirt, 1, Trigger::Migrated, 1)), None);
    assert_eq!(told(&mut known, heard(Source::Hook, 1, Trigger::Shutdown, 2)), Some(Trigger::Shutdown));
    assert_eq!(told(&mut known, heard(Source::Hook, 1, Trigger::Started, 3)), Some(Trigger::Started));
    // One that came to nothing does not name the start after it.
    assert_eq!(told(&mut known, heard(Source::Hook, 1, Trigger::Saved, 4)), Some(Trigger::Saved));
    assert_eq!(told(&mut known, arrives(Trigger::Restored)), None);
    assert_eq!(told(&mut known, heard(Source::Hook, 1, Trigger::NotStarted, 5)), Some(Trigger::NotStarted));
    assert_eq!(told(&mut known, heard(Source::Hook, 1, Trigger::Started, 6)), Some(Trigger::Started));
}

#[test]
fn block_jobs_are_told_one_by_one_and_a_guest_without_a_uuid_goes_by_its_name() {
    let mut known = with(&[on(1)]);
    let job = Trigger::BlockJob { target: "vda".to_owned(), status: BlockJobStatus::Failed };
    for _ in 0..2 {
        assert_eq!(told(&mut known, heard(Source::Libvirt, 1, job.clone(), 0)), Some(job.clone()));
    }
    let nameless = Heard { uuid: None, ..heard(Source::Hook, 1, Trigger::Destroyed, 1) };
    assert_eq!(known.hear(nameless.clone()).and_then(|event| event.uuid), Some(uuid(1)));
    assert_eq!(told(&mut known, nameless), Some(Trigger::Destroyed));
    assert_eq!(told(&mut known, heard(Source::Libvirt, 1, Trigger::Destroyed, 1)), None);
}

#[test]
fn what_is_known_survives() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guests.json");
    let mut known = with(&[on(1), off(2)]);
    known.save(&path).unwrap();
    let mut known = Known::load(&path).unwrap();
    assert_eq!(
        found(&mut known, &[off(1), on(2)]),
        [("vm1".to_owned(), Trigger::Ended), ("vm2".to_owned(), Trigger::Started)]
    );
    std::fs::write(&path, "{\"version\":2,\"guests\":{}}").unwrap();
    assert_eq!(Known::load(&path).unwrap_err().kind(), ErrorKind::Unsupported);
    std::fs::write(&path, "{\"version\":1,").unwrap();
    assert_eq!(Known::load(&path).unwrap_err().kind(), ErrorKind::Damaged);
    assert!(!Known::load(&folder.path().join("none")).unwrap().has_seen);
}

/// Starts and ends of two guests, in turn, and who told of each (bit 0 the hook, bit 1 libvirt).
fn history() -> impl Strategy<Value = Vec<(u8, u8)>> {
    proptest::collection::vec((1_u8..=2, 0_u8..4), 1..40)
}

/// Both sources' words, each source in its own order, one guest's in time. The sources of `whole`, bits as in a history, tell of everything.
fn words(history: &[(u8, u8)], whole: u8) -> ([VecDeque<Heard>; 2], [bool; 3], usize) {
    let (mut runs, mut queues) = ([false; 3], [VecDeque::new(), VecDeque::new()]);
    for (at, (guest, by)) in history.iter().enumerate() {
        let state = &mut runs[usize::from(*guest)];
        let trigger = if *state { Trigger::Shutdown } else { Trigger::Started };
        *state = !*state;
        for (bit, source) in [Source::Hook, Source::Libvirt].into_iter().enumerate() {
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
