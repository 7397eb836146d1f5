//! The service killed at every write of an evening, before and after it was done; the next one goes on with
//! the catalog as it is.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::world::*;
use super::*;

const END: &str = "2026-11-27T06:00:00Z";

fn evening() -> World {
    let mut often = job("often", &["a", "b"], vec![Arc::new(Every(60, 0))]);
    (often.attempts, often.delay) = (3, Duration::from_secs(60));
    let mut once = job("once", &["a", "c"], vec![Arc::new(Every(24 * 60, 90))]);
    once.attempts = 3;
    let jobs = vec![often, once];
    let settings = settings_of(jobs, 2, &[medium("disk", 2)]);
    // Every fifth run fails at first.
    let play = |_: &crate::runner::RunOrder, count: u32| Script { fails: count % 5 == 3, ..minutes(7) };
    World::new("2026-11-27T00:30:00Z", settings, &["a", "b", "c"], play)
}

/// What was backed up: job, domain, and how often it went well.
fn successes(world: &World) -> Vec<(String, String)> {
    let events = world.events();
    let began = |wanted: i64, before: usize| {
        events[..before].iter().rev().find_map(|(_, event)| match event {
            Event::Began { id, job, domain, .. } if *id == wanted => Some((job.clone(), domain.clone())),
            _ => None,
        })
    };
    let ends = events.iter().enumerate().filter_map(|(index, (_, event))| match event {
        Event::Ended { id, well: true } => began(*id, index),
        _ => None,
    });
    let mut all: Vec<_> = ends.collect();
    all.sort();
    all
}

#[test]
fn a_service_killed_at_any_write_loses_nothing_and_does_one_run_twice_at_most() {
    let world = evening();
    let queue = Arc::new(Dying::new(world.catalog(), i64::MAX));
    let mut engine = world.service(queue.clone()).unwrap();
    world.run(&mut engine, END);
    let expected = successes(&world);
    assert_eq!(expected.len(), 2 * 5 + 2);
    for done_first in [false, true] {
        let mut survived = false;
        for at in 0.. {
            let world = evening();
            let queue = Arc::new(Dying { done_first, ..Dying::new(world.catalog(), at) });
            if let Ok(mut engine) = world.service(queue.clone()) {
                world.drive(&mut engine, END, &queue.dead);
                survived = !queue.dead.load(Ordering::SeqCst);
            }
            if survived {
                // Each run is noted when it is due, when it begins and when it has ended.
                assert!(
                    at >= 3 * i64::try_from(expected.len()).unwrap(),
                    "an evening has more writes than {at}"
                );
                break;
            }
            world.crash();
            // A few minutes later somebody starts it again.
            world.clock.set(after(world.clock.now(), Duration::from_secs(120)));
            let mut engine = world.service(Arc::new(world.catalog())).unwrap();
            world.run(&mut engine, END);
            let mut got = successes(&world);
            let case = format!("killed at write {at}, done first: {done_first}: {:?}", world.events());
            // All that was due was done; the run whose end was not noted in time once more.
            let mut missing = expected.clone();
            missing
                .retain(|one| got.iter().position(|other| other == one).map(|at| got.remove(at)).is_none());
            assert_eq!(missing, [], "{case}");
            assert!(got.len() <= 1, "more than once: {got:?}; {case}");
            assert_eq!(world.catalog().open_entries().unwrap(), [], "{case}");
        }
        assert!(survived);
    }
}

/// Each service dies in the middle of the run: of that one, for all that anybody knows.
#[test]
fn a_run_that_every_service_dies_of_is_not_begun_for_ever() {
    let settings =
        settings_of(vec![job("once", &["a"], vec![Arc::new(Every(24 * 60, 90))])], 1, &[medium("disk", 1)]);
    let world = World::new("2026-11-27T00:30:00Z", settings, &["a"], |_, _| minutes(20));
    for minute in (100..180).step_by(10) {
        let mut engine = world.service(Arc::new(world.catalog())).unwrap();
        world.run(&mut engine, &format!("2026-11-27T{:02}:{:02}:00Z", minute / 60, minute % 60));
        world.crash();
    }
    assert_eq!(world.begins("once").len(), 5);
    let last = world.catalog().last_ends(Timestamp::MAX).unwrap();
    assert_eq!((last.len(), last[0].state), (1, EntryState::Failed));
    // The next day's is begun all the same.
    let mut engine = world.service(Arc::new(world.catalog())).unwrap();
    world.run(&mut engine, "2026-11-28T03:00:00Z");
    assert_eq!(world.begins("once").len(), 6);
    assert_eq!(world.catalog().last_ends(Timestamp::MAX).unwrap().len(), 2);
}
