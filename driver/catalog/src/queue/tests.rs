//! What is noted is there again; the tables keep their own rules.

use uuid::Uuid;

use super::super::journal::Catalog;
use super::table::OPEN;
use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn wanted(job: &str, domain: u128, second: i64) -> NewEntry {
    NewEntry {
        job: job.to_owned(),
        domain: DomainId(Uuid::from_u128(domain)),
        name: format!("guest {domain}"),
        reason: EntryReason::Schedule,
        due: at(second),
        not_before: at(second + 5),
    }
}

fn result(sentence: &str) -> RunResult {
    RunResult {
        sentence: sentence.to_owned(),
        hint: Some("look".to_owned()),
        exit_code: Some(8),
        kind: Some(ErrorKind::NoSpace),
        archives: vec!["/a b".to_owned()],
        measure: Some(serde_json::json!({"seconds": 1.5})),
    }
}

#[test]
fn an_entry_goes_its_way_and_is_there_after_it_is_opened_again() {
    let state = tempfile::tempdir().unwrap();
    let open = || Catalog::open(state.path()).unwrap();
    let (a, b) = (
        wanted("j", 1, 0),
        NewEntry { reason: EntryReason::Event("shutdown".to_owned()), ..wanted("j", 2, 1) },
    );
    open().fire("j", at(0), &[a.clone(), b.clone()]).unwrap();
    assert_eq!(open().planned().unwrap(), BTreeMap::from([("j".to_owned(), at(0))]));
    let entries = open().open_entries().unwrap();
    assert_eq!(entries.iter().map(|entry| &entry.wanted).collect::<Vec<_>>(), [&a, &b]);
    let [first, second] = [entries[0].id, entries[1].id];
    open().start(first, at(9)).unwrap();
    open().start(first, at(9)).unwrap_err();
    let running = open().entry(first).unwrap();
    assert_eq!((running.state, running.attempts, running.started), (EntryState::Running, 1, Some(at(9))));
    open().end(first, at(10), &RunEnd::Retry(result("full"), at(70))).unwrap();
    let again = open().entry(first).unwrap();
    assert_eq!((again.state, again.wanted.not_before, again.attempts), (EntryState::Waiting, at(70), 1));
    assert_eq!(again.result, Some(result("full")));
    open().end(first, at(11), &RunEnd::Parked).unwrap_err();
    open().start(first, at(80)).unwrap();
    open().end(first, at(90), &RunEnd::Succeeded(RunResult::default())).unwrap();
    open().cancel(second, at(91), "no more").unwrap();
    open().cancel(second, at(91), "no more").unwrap_err();
    assert_eq!(open().open_entries().unwrap(), []);
    assert_eq!(open().entry(second).unwrap().result.unwrap().sentence, "no more");
    assert_eq!(open().entry(99).unwrap_err().kind(), ErrorKind::NotFound);
    let last: Vec<_> =
        open().last_ends(Timestamp::MAX).unwrap().iter().map(|entry| (entry.id, entry.attempts)).collect();
    assert_eq!(last, [(first, 2)]);
}

#[test]
fn one_waits_for_each_job_and_domain_and_a_person_brings_it_to_the_front() {
    let state = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(state.path()).unwrap();
    let first = catalog.add(&wanted("j", 1, 0)).unwrap();
    let other = catalog.add(&wanted("j", 2, 0)).unwrap();
    assert_eq!(catalog.add(&wanted("j", 2, 60)).unwrap(), other);
    let asked = NewEntry { reason: EntryReason::Request, not_before: at(1), ..wanted("j", 2, 70) };
    assert_eq!(catalog.add(&asked).unwrap(), other);
    let order: Vec<i64> = catalog.open_entries().unwrap().iter().map(|entry| entry.id).collect();
    assert_eq!(order, [other, first]);
    assert_eq!(catalog.entry(other).unwrap().wanted.not_before, at(1));
    // One that runs is another matter: the next one waits. But two runs of a domain there can't be.
    catalog.start(first, at(2)).unwrap();
    let next = catalog.add(&wanted("j", 1, 60)).unwrap();
    assert_ne!(next, first);
    catalog.start(next, at(3)).unwrap_err();
    let elsewhere = catalog.add(&wanted("k", 1, 0)).unwrap();
    catalog.start(elsewhere, at(3)).unwrap_err();
    // When it comes again, one of the two is enough.
    catalog.end(first, at(4), &RunEnd::Retry(result("full"), at(9))).unwrap();
    assert_eq!(catalog.entry(next).unwrap().state, EntryState::Cancelled);
}

#[test]
fn what_ran_and_what_was_parked_waits_again() {
    let state = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(state.path()).unwrap();
    let ids = [1, 2, 3].map(|domain| catalog.add(&wanted("j", domain, 0)).unwrap());
    catalog.start(ids[0], at(1)).unwrap();
    catalog.start(ids[1], at(1)).unwrap();
    catalog.end(ids[1], at(2), &RunEnd::Parked).unwrap();
    let double = catalog.add(&wanted("j", 1, 60)).unwrap();
    drop(catalog);
    let catalog = Catalog::open(state.path()).unwrap();
    let ran: Vec<i64> = catalog.recall(at(3)).unwrap().iter().map(|entry| entry.id).collect();
    assert_eq!(ran, [ids[0]]);
    let waiting: Vec<_> =
        catalog.open_entries().unwrap().iter().map(|entry| (entry.id, entry.state, entry.attempts)).collect();
    let expected = [(ids[0], 1), (ids[1], 0), (ids[2], 0)];
    assert_eq!(waiting, expected.map(|(id, attempts)| (id, EntryState::Waiting, attempts)));
    assert_eq!(catalog.entry(double).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(catalog.recall(at(4)).unwrap(), []);
}

#[test]
fn an_entry_that_no_service_survives_fails() {
    let state = tempfile::tempdir().unwrap();
    let id = Catalog::open(state.path()).unwrap().add(&wanted("j", 1, 0)).unwrap();
    // The service is killed in each attempt, and its successor recalls what ran.
    let killed = |second| {
        let catalog = Catalog::open(state.path()).unwrap();
        catalog.start(id, at(second)).unwrap();
        drop(catalog);
        let ran = Catalog::open(state.path()).unwrap().recall(at(second + 1)).unwrap();
        assert_eq!(ran.len(), 1);
        (ran[0].state, ran[0].attempts)
    };
    for attempt in 1..INTERRUPTED {
        assert_eq!(killed(10), (EntryState::Waiting, attempt));
    }
    // An attempt whose end is noted begins the count anew: what kills the service is not this entry.
    let catalog = Catalog::open(state.path()).unwrap();
    catalog.start(id, at(20)).unwrap();
    catalog.end(id, at(21), &RunEnd::Retry(result("full"), at(22))).unwrap();
    for attempt in 1..INTERRUPTED {
        assert_eq!(killed(30), (EntryState::Waiting, INTERRUPTED + attempt));
    }
    // Tomorrow's run is another wish; it comes while the last attempt runs, and stays.
    catalog.start(id, at(40)).unwrap();
    let next = catalog.add(&wanted("j", 1, 60)).unwrap();
    let ran = catalog.recall(at(41)).unwrap();
    let failed = ran[0].result.clone().unwrap();
    assert_eq!(
        (ran[0].state, ran[0].ended, failed.kind),
        (EntryState::Failed, Some(at(41)), Some(ErrorKind::Interrupted))
    );
    assert!(failed.sentence.contains("killed during each of 5 attempts"), "{}", failed.sentence);
    let open: Vec<_> = catalog.open_entries().unwrap().iter().map(|entry| (entry.id, entry.state)).collect();
    assert_eq!(open, [(next, EntryState::Waiting)]);
    assert_eq!(catalog.last_ends(Timestamp::MAX).unwrap()[0].id, id);
}

#[test]
fn pauses_are_counted_apart_and_history_is_bounded() {
    let state = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(state.path()).unwrap();
    for (job, to) in [(None, Pause::On), (Some("j"), Pause::On), (Some("j"), Pause::On), (None, Pause::Off)] {
        catalog.set_pause(job, to).unwrap();
    }
    let pauses = catalog.pauses().unwrap();
    assert_eq!(pauses, Pauses { all: false, jobs: vec!["j".to_owned()] });
    assert!(pauses.holds("j") && !pauses.holds("k"));
    let connection = rusqlite::Connection::open(state.path().join("catalog.sqlite")).unwrap();
    let many = format!(
        "INSERT INTO queue (job, domain, name, reason, due, not_before, state, attempts, started, ended)
         WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {HISTORY})
         SELECT CASE i WHEN 0 THEN 'rare' ELSE 'j' END, '00000000-0000-0000-0000-000000000001', 'g', 'schedule', i, i,
         'succeeded', 1, i, i FROM n"
    );
    connection.execute_batch(&many).unwrap();
    let id = catalog.add(&wanted("j", 1, 0)).unwrap();
    catalog.start(id, at(1)).unwrap();
    catalog.end(id, at(2), &RunEnd::Succeeded(RunResult::default())).unwrap();
    let count = "SELECT count(*), count(*) FILTER (WHERE job = 'rare') FROM queue";
    let counted = connection.query_row(count, [], |row| Ok((row.get::<_, u32>(0)?, row.get::<_, u32>(1)?)));
    assert_eq!(counted.unwrap(), (HISTORY + 1, 1), "the last of each job and domain stays");
}

#[test]
fn the_queue_is_read_in_pages_counted_and_searched_by_its_last_ends() {
    let state = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(state.path()).unwrap();
    assert_eq!(catalog.waiting().unwrap(), WaitingEntries::default());
    let all: Vec<NewEntry> =
        (0..10).map(|domain| wanted("j", domain, 100 - i64::try_from(domain).unwrap())).collect();
    let ids = catalog.add_all(&all).unwrap();
    assert_eq!(catalog.add_all(&all).unwrap(), ids, "they wait already");
    assert_eq!(catalog.waiting().unwrap(), WaitingEntries { count: 10, since: Some(at(91)) });
    let order: Vec<i64> = catalog.open_entries().unwrap().iter().map(|entry| entry.id).collect();
    let page = |skip, most| -> Vec<i64> {
        catalog.open_page(skip, most).unwrap().iter().map(|entry| entry.id).collect()
    };
    assert_eq!([page(0, 4), page(4, 4), page(8, 4), page(10, 4)].concat(), order);
    for (number, id) in order.iter().take(3).enumerate() {
        catalog.start(*id, at(200)).unwrap();
        let ended = at(300 + i64::try_from(number).unwrap());
        catalog.end(*id, ended, &RunEnd::Succeeded(result("done"))).unwrap();
    }
    assert_eq!(catalog.waiting().unwrap().count, 7);
    assert_eq!(catalog.last_end_ids(at(301)).unwrap().len(), 2);
    let mut ahead: Vec<i64> =
        catalog.last_ends_after(at(300)).unwrap().iter().map(|entry| entry.id).collect();
    ahead.sort_unstable_by(|a, b| b.cmp(a));
    assert_eq!(ahead, order[1..3]);
    assert_eq!(catalog.entries(&[order[0], 99]).unwrap().len(), 1);
    // What is asked for again and again is answered from an index, and so is each page.
    let connection = catalog.connection();
    let steps = |query: &str| -> Vec<String> {
        let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {query}")).unwrap();
        plan.query_map([], |row| row.get(3)).unwrap().map(std::result::Result::unwrap).collect()
    };
    let pages = steps(&format!("SELECT id FROM queue {OPEN} LIMIT 64 OFFSET 0"));
    assert_eq!(pages.len(), 1, "{pages:?}");
    assert!(pages[0].contains("queue_open"), "{pages:?}");
    let ends = steps(
        "SELECT max(id) FROM queue WHERE state IN ('succeeded', 'failed') AND ended <= 5 GROUP BY job, domain, state",
    );
    assert!(ends[0].contains("COVERING INDEX queue_last"), "{ends:?}");
}
