//! Evenings in seconds: the engine with a clock that jumps.

mod crashes;
mod model;
mod warnings;
mod world;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use jiff::tz::TimeZone;

use self::world::*;
use super::*;
use crate::control::{ControlApi, Warning, WarningKind};
use crate::job_spec::GuestSelector;
use crate::settings::settings;
use virtfold_base::error::{Error, ErrorKind};
use virtfold_catalog::queue::{EntryReason, EntryState, Pause, WaitingEntries};

const EVENING: &str = "
version: 1
service: {concurrency: 2, catch-up: 6h}
media:
  disk: {to: /backup, concurrency: 2}
  tape: {to: 'tape:/dev/nst0'}
jobs:
  nightly: {domains: {names: 'web*'}, schedule: 'daily 02:30', to: disk}
  hourly: {domains: {names: db}, schedule: hourly, to: disk}
  weekly: {domains: {all: true}, schedule: 'sun 04:00', to: [disk, tape], jitter: 10m}
";

/// The night in which the clock goes back from three to two.
#[test]
fn an_evening_s_schedule_in_seconds() {
    let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
    let config = virtfold_config::parse(EVENING, Path::new("evening.yaml")).unwrap();
    let guests = ["web1", "web2", "web3", "db"];
    let world = World::new("2026-10-24T21:00:00Z", settings(&config, &zone), &guests, |_, _| minutes(20));
    let mut engine = world.service(Arc::new(world.catalog())).unwrap();
    world.run(&mut engine, "2026-10-25T06:00:00Z");
    // Half past two comes twice; the first one counts. Two at once, one for each guest, in the order of their
    // names.
    let nightly = ["25 02:30:00+02:00 web1", "25 02:30:00+02:00 web2", "25 02:50:00+02:00 web3"];
    assert_eq!(world.begins("nightly"), nightly);
    let hourly = world.begins("hourly");
    // Each hour that passes, the doubled one twice.
    let at: Vec<&str> = hourly.iter().map(|line| line.split(' ').nth(1).unwrap()).collect();
    assert_eq!(
        at[..4],
        ["00:00:00+02:00", "01:00:00+02:00", "02:00:00+02:00", "02:00:00+01:00"],
        "{hourly:?}"
    );
    assert_eq!(hourly.len(), 8, "{hourly:?}");
    let weekly = world.begins("weekly");
    assert_eq!(weekly.len(), 4, "{weekly:?}");
    assert_eq!(world.runner.log.lock().unwrap().most, 2);
    let open = world.catalog().open_entries().unwrap();
    assert_eq!(open, []);
}

#[test]
fn what_was_missed_is_made_up_for_once_and_not_too_late() {
    let jobs = || {
        let mut often = job("often", &["a"], vec![Arc::new(Every(60, 0))]);
        often.catch_up = Duration::from_secs(4 * 3600);
        let mut rare = job("rare", &["a"], vec![Arc::new(Every(24 * 60, 60))]);
        rare.catch_up = Duration::from_secs(3600);
        vec![often, rare]
    };
    let settings = settings_of(jobs(), 1, &[medium("disk", 1)]);
    let world = World::new("2026-11-27T00:10:00Z", settings, &["a"], |_, _| minutes(5));
    let mut engine = world.service(Arc::new(world.catalog())).unwrap();
    world.run(&mut engine, "2026-11-27T00:30:00Z");
    assert_eq!(world.events(), [], "a new job has missed nothing");
    drop(engine);
    // Down from half past midnight to four: three hours were missed, and the daily one at one o'clock.
    world.crash();
    world.clock.set("2026-11-27T04:10:00Z".parse().unwrap());
    let mut engine = world.service(Arc::new(world.catalog())).unwrap();
    world.run(&mut engine, "2026-11-27T04:50:00Z");
    let begins = world.begins("often");
    assert_eq!(begins, ["27 05:10:01+01:00 a"]);
    assert_eq!(world.begins("rare"), Vec::<String>::new(), "it would have been more than an hour late");
    let entry = world.catalog().last_ends(Timestamp::MAX).unwrap().remove(0);
    assert_eq!(
        (entry.wanted.reason, entry.wanted.due.to_string()),
        (EntryReason::CatchUp, "2026-11-27T04:00:00Z".into())
    );
    world.run(&mut engine, "2026-11-27T05:30:00Z");
    assert_eq!(world.begins("often").len(), 2, "and then it goes on as planned");
}

/// A clock that was ten years ahead for a while, by the service that ran then or by the one before.
#[test]
fn a_clock_that_was_ahead_holds_nothing_up() {
    for restarted in [false, true] {
        let mut one = job("one", &["a"], vec![Arc::new(Every(60, 0))]);
        (one.attempts, one.delay, one.jitter) = (2, Duration::from_secs(600), Duration::from_secs(300));
        one.timeout = Some(Duration::from_secs(3600));
        let settings = settings_of(vec![one], 1, &[medium("disk", 1)]);
        // The third run, the first one in 2036, goes well; the fourth one fails and is to be tried again, and
        // all that come in the right time fail.
        let play = |_: &_, count| Script { fails: count > 2, ..minutes(1) };
        let world = World::new("2026-11-27T00:10:00Z", settings, &["a"], play);
        let mut engine = world.service(Arc::new(world.catalog())).unwrap();
        world.run(&mut engine, "2026-11-27T02:30:00Z");
        assert_eq!(world.begins("one").len(), 2);
        world.clock.set("2036-01-01T00:10:00Z".parse().unwrap());
        world.run(&mut engine, "2036-01-01T01:08:00Z");
        assert_eq!(world.begins("one").len(), 4, "{:?}", world.begins("one"));
        assert_eq!(world.catalog().open_entries().unwrap().len(), 1, "it waits for another attempt");
        world.clock.set("2026-11-27T03:30:00Z".parse().unwrap());
        if restarted {
            world.crash();
            engine = world.service(Arc::new(world.catalog())).unwrap();
        }
        world.run(&mut engine, "2026-11-27T03:50:00Z");
        let begins = world.begins("one");
        assert_eq!(begins.len(), 5, "what waited begins now: {begins:?}");
        let status = engine.status().unwrap();
        let clock: Vec<&str> = status
            .warnings
            .iter()
            .filter(|warning| warning.kind == WarningKind::Clock)
            .map(|warning| warning.sentence.as_str())
            .collect();
        assert!(
            clock.iter().any(|words| words.contains("the schedule of 'one' was planned up to 2036")),
            "{clock:?}"
        );
        assert!(clock.iter().any(|words| words.contains("a backup of 'a' is dated 2036")), "{clock:?}");
        let last = status.domains[0].last_success.as_ref();
        assert!(last.is_none_or(|success| success.measure.at < status.service.now), "{last:?}");
        assert!(status.domains[0].is_failing(), "{:?}", status.domains);
        world.run(&mut engine, "2026-11-27T06:30:00Z");
        let begins = world.begins("one");
        assert!(begins.iter().filter(|line| line.starts_with("27 ")).count() >= 2 + 1 + 3, "{begins:?}");
        let left: Vec<Warning> = engine.status().unwrap().warnings;
        assert!(!left.iter().any(|warning| warning.sentence.contains("schedule")), "{left:?}");
    }
}

#[test]
fn a_failure_is_tried_again_and_then_told() {
    let mut one = job("one", &["a"], vec![Arc::new(Every(24 * 60, 60))]);
    (one.attempts, one.delay, one.prune) = (3, Duration::from_secs(600), true);
    let settings = settings_of(vec![one], 1, &[medium("disk", 1)]);
    let play = |_: &_, count| Script { fails: count != 4, ..minutes(1) };
    let world = World::new("2026-11-27T00:00:00Z", settings, &["a"], play);
    let mut engine = world.service(Arc::new(world.catalog())).unwrap();
    world.run(&mut engine, "2026-11-27T12:00:00Z");
    assert_eq!(world.begins("one"), ["27 02:00:00+01:00 a", "27 02:11:00+01:00 a", "27 02:22:00+01:00 a"]);
    let ends = world.catalog().last_ends(Timestamp::MAX).unwrap();
    assert_eq!((ends[0].state, ends[0].attempts), (EntryState::Failed, 3));
    let status = engine.status().unwrap();
    assert!(status.domains[0].is_failing());
    assert!(
        !world.events().iter().any(|(_, event)| matches!(event, Event::Pruned(_))),
        "pruned after a failure"
    );
    // The next day the second attempt is good.
    world.run(&mut engine, "2026-11-28T12:00:00Z");
    let ends = world.catalog().last_ends(Timestamp::MAX).unwrap();
    assert_eq!((ends[1].state, ends[1].attempts), (EntryState::Succeeded, 2));
    assert_eq!(
        world.events().iter().filter(|(_, event)| *event == Event::Pruned("one".to_owned())).count(),
        1
    );
}

/// Verifications have a schedule of their own, which outlives the service; one that was missed is made up
/// for, and what was never planned has missed nothing.
#[test]
fn backups_are_verified_when_that_is_due() {
    let mut one = job("one", &["a"], Vec::new());
    one.verify = vec![Arc::new(Every(24 * 60, 60))];
    let settings = settings_of(vec![one], 1, &[medium("disk", 1)]);
    let world = World::new("2026-11-27T00:00:00Z", settings, &["a"], |_: &_, _| minutes(1));
    let verified = || {
        let is = |event: &Event| *event == Event::Verified("one".to_owned());
        world
            .events()
            .iter()
            .filter(|(_, event)| is(event))
            .map(|(time, _)| time.to_string())
            .collect::<Vec<_>>()
    };
    let mut engine = world.service(Arc::new(world.catalog())).unwrap();
    world.run(&mut engine, "2026-11-27T00:30:00Z");
    assert_eq!(verified(), [] as [&str; 0]);
    world.run(&mut engine, "2026-11-28T12:00:00Z");
    assert_eq!(verified(), ["2026-11-27T01:00:00Z", "2026-11-28T01:00:00Z"]);
    drop(engine);
    let mut engine = world.service(Arc::new(world.catalog())).unwrap();
    world.run(&mut engine, "2026-11-28T13:00:00Z");
    assert_eq!(verified().len(), 2, "it is known to be done");
    assert_eq!(world.begins("one"), [] as [&str; 0], "no backup was due");
}

#[test]
fn a_run_that_takes_too_long_is_asked_and_then_killed() {
    let mut one = job("one", &["a"], vec![Arc::new(Every(24 * 60, 60))]);
    one.timeout = Some(Duration::from_secs(3600));
    let settings = settings_of(vec![one], 1, &[medium("disk", 1)]);
    let play = |_: &_, count| Script { home: (count == 1).then_some(Duration::from_secs(5)), ..minutes(600) };
    let world = World::new("2026-11-27T00:00:00Z", settings, &["a"], play);
    let mut engine = world.service(Arc::new(world.catalog())).unwrap();
    world.run(&mut engine, "2026-11-28T12:00:00Z");
    let killed: Vec<_> =
        world.events().into_iter().filter(|(_, event)| matches!(event, Event::Killed(_))).collect();
    assert_eq!(killed.len(), 1, "only the one that did not listen");
    assert_eq!(killed[0].0.to_string(), "2026-11-27T02:05:00Z");
    let ends = world.catalog().last_ends(Timestamp::MAX).unwrap();
    let result = ends[0].result.as_ref().unwrap();
    assert!(result.sentence.contains("timed out after 3600 s"), "{result:?}");
}

/// A clock that is set in mid-run, forward or back, makes a run neither longer nor shorter.
#[test]
fn a_clock_that_leaps_in_mid_run_has_no_say_in_its_time_limit() {
    for (takes, leap, killed_at) in [
        (20, "2036-01-01T00:00:00Z", None),
        (600, "2036-01-01T00:00:00Z", Some("2036-01-01T01:00:00Z")),
        (600, "2026-11-26T12:00:00Z", Some("2026-11-26T13:00:00Z")),
    ] {
        let mut one = job("one", &["a"], vec![Arc::new(Every(24 * 60, 60))]);
        one.timeout = Some(Duration::from_secs(3600));
        let settings = settings_of(vec![one], 1, &[medium("disk", 1)]);
        let world = World::new("2026-11-27T00:00:00Z", settings, &["a"], move |_, _| Script {
            home: None,
            ..minutes(takes)
        });
        let mut engine = world.service(Arc::new(world.catalog())).unwrap();
        world.run(&mut engine, "2026-11-27T01:05:00Z");
        let began = world.events().iter().filter(|(_, event)| matches!(event, Event::Began { .. })).count();
        assert_eq!(began, 1);
        world.clock.leap(leap.parse().unwrap());
        let until = crate::planner::after(leap.parse().unwrap(), Duration::from_secs(7200));
        world.run(&mut engine, &until.to_string());
        let events = world.events();
        let killed = events.iter().find(|(_, event)| matches!(event, Event::Killed(_)));
        // Sixty minutes from its beginning, less the five before the leap, and the five in which it may bring
        // its guest home.
        assert_eq!(killed.map(|(at, _)| at.to_string()).as_deref(), killed_at, "{events:?}");
        let ended = events.iter().find(|(_, event)| matches!(event, Event::Ended { .. }));
        if killed_at.is_none() {
            assert!(matches!(ended, Some((_, Event::Ended { well: true, .. }))), "{events:?}");
        }
    }
}

#[test]
fn a_stop_waits_then_parks_and_the_next_service_goes_on() {
    let jobs = vec![job("long", &["a"], vec![Arc::new(Every(24 * 60, 60))])];
    let settings = settings_of(jobs, 1, &[medium("disk", 1)]);
    let world = World::new("2026-11-27T00:00:00Z", settings, &["a"], |_, count| {
        minutes(if count == 0 { 600 } else { 1 })
    });
    let mut engine = world.service(Arc::new(world.catalog())).unwrap();
    world.clock.at("2026-11-27T01:10:00Z".parse().unwrap(), Input::Stop);
    world.run(&mut engine, "2026-11-27T03:00:00Z");
    assert!(engine.is_over());
    assert_eq!(world.clock.now().to_string(), "2026-11-27T01:15:05Z");
    drop(engine);
    let open = world.catalog().open_entries().unwrap();
    assert_eq!((open[0].state, open[0].attempts), (EntryState::Parked, 0), "a parked attempt does not count");
    let mut engine = world.service(Arc::new(world.catalog())).unwrap();
    world.run(&mut engine, "2026-11-27T03:00:00Z");
    assert_eq!(world.begins("long").len(), 2);
    assert_eq!(world.catalog().last_ends(Timestamp::MAX).unwrap()[0].state, EntryState::Succeeded);
}

#[test]
fn what_a_person_asks_for_goes_first_and_a_pause_holds_the_rest() {
    let jobs = vec![
        job("one", &["a", "b"], vec![Arc::new(Every(60, 0))]),
        job("two", &["c"], vec![Arc::new(Every(60, 0))]),
    ];
    let settings = settings_of(jobs, 1, &[medium("disk", 1)]);
    let world = World::new("2026-11-27T00:30:00Z", settings, &["a", "b", "c", "d"], |_, _| minutes(1));
    let mut engine = world.service(Arc::new(world.catalog())).unwrap();
    world.run(&mut engine, "2026-11-27T00:40:00Z");
    engine.pause(None, Pause::On).unwrap();
    assert_eq!(engine.pause(Some("nobody"), Pause::On).unwrap_err().kind(), ErrorKind::NotFound);
    world.run(&mut engine, "2026-11-27T02:30:00Z");
    assert_eq!(world.events(), []);
    let ids = engine.request("one", Some("b")).unwrap();
    assert_eq!(engine.request("one", Some("b")).unwrap(), ids, "one that waits is enough");
    assert_eq!(engine.request("one", Some("c")).unwrap_err().kind(), ErrorKind::NotFound);
    world.run(&mut engine, "2026-11-27T02:40:00Z");
    assert_eq!(world.begins("one").len(), 1);
    drop(engine);
    // A pause holds over a restart; what was missed is made up for when it ends.
    let mut engine = world.service(Arc::new(world.catalog())).unwrap();
    world.run(&mut engine, "2026-11-27T02:50:00Z");
    assert_eq!((world.begins("one").len(), engine.status().unwrap().paused), (1, true));
    engine.pause(None, Pause::Off).unwrap();
    world.run(&mut engine, "2026-11-27T02:59:00Z");
    assert_eq!((world.begins("one").len(), world.begins("two").len()), (3, 1));
    let status = engine.status().unwrap();
    let without: Vec<&str> = status.warnings.iter().map(|warning| warning.subject.as_str()).collect();
    assert_eq!(without, ["d"]);
    assert_eq!(status.jobs[0].domains, ["a", "b"]);
}

#[test]
fn events_become_entries_and_are_done_with_when_they_are_in_the_queue() {
    let mut one = job("one", &["a"], Vec::new());
    one.on = vec!["shutdown".to_owned()];
    let settings = settings_of(vec![one], 1, &[medium("disk", 1)]);
    let world = World::new("2026-11-27T00:00:00Z", settings, &["a"], |_, _| minutes(1));
    let mut engine = world.service(Arc::new(world.catalog())).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let event = |word: &str| {
        let done = Arc::clone(&done);
        let receipt: Acknowledge = Box::new(move || done.store(true, std::sync::atomic::Ordering::SeqCst));
        Input::Event(guest("a"), word.to_owned(), receipt)
    };
    world.clock.at("2026-11-27T01:00:00Z".parse().unwrap(), event("started"));
    world.clock.at("2026-11-27T02:00:00Z".parse().unwrap(), event("shutdown"));
    world.run(&mut engine, "2026-11-27T03:00:00Z");
    assert_eq!(world.begins("one"), ["27 03:00:00+01:00 a"]);
    assert!(done.load(std::sync::atomic::Ordering::SeqCst));
    let entry = world.catalog().last_ends(Timestamp::MAX).unwrap().remove(0);
    assert_eq!(entry.wanted.reason, EntryReason::Event("shutdown".to_owned()));
}

#[test]
fn nothing_begins_while_libvirt_is_away_or_somebody_else_is_at_work() {
    let jobs = vec![job("one", &["a"], vec![Arc::new(Every(60, 0))])];
    let settings = settings_of(jobs, 1, &[medium("disk", 1)]);
    let world = World::new("2026-11-27T00:30:00Z", settings, &["a"], |_, _| minutes(1));
    let mut engine = world.service(Arc::new(world.catalog())).unwrap();
    let at = |time: &str, input| world.clock.at(time.parse().unwrap(), input);
    at("2026-11-27T00:50:00Z", Input::Libvirt(Some("it is gone".to_owned())));
    at("2026-11-27T01:20:00Z", Input::Libvirt(None));
    world.run(&mut engine, "2026-11-27T01:10:00Z");
    assert_eq!(world.events(), []);
    assert_eq!(engine.status().unwrap().libvirt.error.as_deref(), Some("it is gone"));
    world.run(&mut engine, "2026-11-27T01:40:00Z");
    assert_eq!(world.begins("one"), ["27 02:20:01+01:00 a"], "after a recovery");
    assert_eq!(world.runner.log.lock().unwrap().recoveries, 2);
    world.runner.log.lock().unwrap().busy.insert(guest("a").id);
    world.run(&mut engine, "2026-11-27T02:10:00Z");
    assert_eq!(world.begins("one").len(), 1);
    let waits = engine.parts.queue.open_entries().unwrap();
    assert_eq!(engine.told(&waits[0]).waits_for.as_deref(), Some("somebody is at work"));
    world.runner.log.lock().unwrap().busy.clear();
    world.run(&mut engine, "2026-11-27T02:20:00Z");
    assert_eq!(world.begins("one").len(), 2);
}

#[test]
fn a_broken_configuration_is_told_and_the_old_one_goes_on() {
    let jobs = vec![job("one", &["a"], vec![Arc::new(Every(60, 0))])];
    let settings = settings_of(jobs, 1, &[medium("disk", 1)]);
    let world = World::new("2026-11-27T00:30:00Z", settings, &["a"], |_, _| minutes(1));
    let mut engine = world.service(Arc::new(world.catalog())).unwrap();
    engine.load = Box::new(|| Err(Error::new(ErrorKind::Usage, "line 3 makes no sense")));
    world.clock.at("2026-11-27T00:40:00Z".parse().unwrap(), Input::Reload);
    world.run(&mut engine, "2026-11-27T01:10:00Z");
    assert_eq!(world.begins("one").len(), 1);
    assert!(engine.status().unwrap().warnings[0].sentence.contains("line 3"));
    // A job that is gone takes its entries along.
    engine.settings.concurrency = 0;
    engine.request("one", None).unwrap();
    let none = settings_of(Vec::new(), 1, &[]);
    engine.load = Box::new(move || Ok(none.clone()));
    engine.reload().unwrap();
    world.run(&mut engine, "2026-11-27T02:10:00Z");
    assert_eq!(engine.parts.queue.open_entries().unwrap(), []);
    assert_eq!(engine.status().unwrap().warnings[0].kind, WarningKind::GuestWithoutJob);
}

#[test]
fn entries_are_cancelled_waiting_or_running() {
    let jobs = vec![job("one", &["a", "b"], Vec::new())];
    let settings = settings_of(jobs, 1, &[medium("disk", 1)]);
    let world = World::new("2026-11-27T00:30:00Z", settings, &["a", "b"], |_, _| minutes(10));
    let mut engine = world.service(Arc::new(world.catalog())).unwrap();
    world.run(&mut engine, "2026-11-27T00:31:00Z");
    let ids = engine.request("one", None).unwrap();
    world.run(&mut engine, "2026-11-27T00:32:00Z");
    ids.iter().for_each(|id| engine.cancel(id.0).unwrap());
    world.run(&mut engine, "2026-11-27T00:40:00Z");
    for id in ids {
        assert_eq!(engine.parts.queue.entry(id.0).unwrap().state, EntryState::Cancelled);
        assert_eq!(engine.cancel(id.0).unwrap_err().kind(), ErrorKind::Exists);
    }
    assert_eq!(world.begins("one").len(), 1);
}

#[test]
fn a_desk_is_answered_between_two_turns_and_not_after_the_end() {
    let jobs = vec![job("one", &["a"], Vec::new())];
    let settings = settings_of(jobs, 1, &[medium("disk", 1)]);
    let world = World::new("2026-11-27T00:30:00Z", settings, &["a"], |_, _| minutes(10));
    let mut engine = world.service(Arc::new(world.catalog())).unwrap();
    let desk = EngineControlApi::new(engine.parts.sender.clone());
    let asking = std::thread::spawn(move || {
        let entries = desk.queue().unwrap();
        (entries, desk)
    });
    let question =
        engine.inputs.recv().and_then(|first| engine.take(first).then(|| engine.inputs.recv()).unwrap());
    engine.take(question.unwrap());
    let (entries, desk) = asking.join().unwrap();
    assert_eq!(entries, []);
    drop(engine);
    assert_eq!(desk.status().unwrap_err().kind(), ErrorKind::Refused);
}

/// A selection that counts how often it is asked.
#[derive(Debug)]
struct Counting(Names, Arc<AtomicU64>);

impl GuestSelector for Counting {
    fn guest(&self, guest: &GuestFacts) -> bool {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.guest(guest)
    }

    fn disk(&self, target: &str) -> bool {
        self.0.disk(target)
    }

    fn leaves_out(&self, guest: &GuestFacts) -> bool {
        self.0.leaves_out(guest)
    }
}

#[test]
fn questions_take_no_turn_and_hold_no_job_against_a_guest() {
    let names: Vec<String> = (0..20).map(|number| format!("guest{number:03}")).collect();
    let guests: Vec<&str> = names.iter().map(String::as_str).collect();
    let asked = Arc::new(AtomicU64::new(0));
    let mut all = job("all", &guests, vec![Arc::new(Every(60, 0))]);
    all.pick = Arc::new(Counting(Names(names.clone()), Arc::clone(&asked)));
    let settings = settings_of(vec![all], 4, &[medium("disk", 4)]);
    let world = World::new("2026-11-27T00:30:00Z", settings, &guests, |_, _| minutes(1));
    let queue = Arc::new(Dying::new(world.catalog(), i64::MAX));
    let mut engine = world.service(queue.clone()).unwrap();
    world.run(&mut engine, "2026-11-27T01:30:00Z");
    asked.store(0, Ordering::Relaxed);
    let status = engine.status().unwrap();
    assert_eq!((status.jobs[0].domains.len(), status.domains.len()), (20, 20));
    let (answer, answered) = crossbeam_channel::unbounded();
    let has_turn = engine.take(Input::Look(Box::new(move |engine| answer.send(engine.status()).unwrap())));
    assert_eq!(answered.recv().unwrap().unwrap(), status);
    assert!(!has_turn, "a question is no reason to go through schedules and the queue");
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    // A guest with another name is looked at anew, and the others are not.
    world.clock.at("2026-11-27T01:31:00Z".parse().unwrap(), {
        let mut guests = world.guests.clone();
        guests[3].name = "renamed".to_owned();
        Input::Guests(guests)
    });
    world.run(&mut engine, "2026-11-27T01:32:00Z");
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    assert_eq!(engine.status().unwrap().jobs[0].domains.len(), 19);
    // All guests go into the queue in one transaction.
    let left = queue.left.load(Ordering::SeqCst);
    assert_eq!(engine.request("all", None).unwrap().len(), 19);
    assert_eq!(left - queue.left.load(Ordering::SeqCst), 1);
}

#[test]
fn a_long_queue_is_taken_in_its_order_and_to_its_end() {
    let names: Vec<String> = (0..200).map(|number| format!("guest{number:03}")).collect();
    let guests: Vec<&str> = names.iter().map(String::as_str).collect();
    // Every third entry is of a job that is gone: they make room for those behind them.
    let (kept, gone): (Vec<&str>, Vec<&str>) =
        guests.iter().partition(|name| !name.ends_with(['0', '3', '6']));
    let jobs = vec![job("kept", &kept, Vec::new()), job("gone", &gone, Vec::new())];
    let world =
        World::new("2026-11-27T00:30:00Z", settings_of(jobs, 0, &[medium("disk", 9)]), &guests, |_, _| {
            minutes(1)
        });
    let mut engine = world.service(Arc::new(world.catalog())).unwrap();
    world.run(&mut engine, "2026-11-27T00:31:00Z");
    engine.request("gone", None).unwrap();
    engine.request("kept", None).unwrap();
    engine.settings = settings_of(vec![job("kept", &kept, Vec::new())], 3, &[medium("disk", 9)]);
    world.run(&mut engine, "2026-11-27T03:00:00Z");
    let begun: Vec<String> =
        world.begins("kept").iter().map(|line| line.rsplit(' ').next().unwrap().to_owned()).collect();
    assert_eq!(begun, kept);
    assert_eq!(engine.parts.queue.open_entries().unwrap(), []);
    assert_eq!(engine.parts.queue.waiting().unwrap(), WaitingEntries::default());
}
