//! Frozen bases of a driver that died while it copied, taken over by the next one; and when they must not be.

use std::collections::BTreeSet;

use super::super::*;
use super::crashes::{FATES, check, is_apart};
use super::scene::{PLAIN, Scene, Setup};
use virtfold_base::error::{Error, ErrorKind};
use virtfold_catalog::{JournalEntry, SessionState};
use virtfold_hypervisor::StartMode;
use virtfold_hypervisor::simulated::{Injected, SimAgent, ThirdPartyAction};

const SETUPS: [Setup; 4] = [
    PLAIN,
    Setup { agent: SimAgent::Answers, ..PLAIN },
    Setup { start: StartMode::Paused, ..PLAIN },
    Setup { persistence: virtfold_hypervisor::Persistence::Transient, disks: 3, ..PLAIN },
];

/// A backup whose driver dies in its copy, and what the bases held then.
fn dies_in_the_copy(setup: Setup) -> (Scene, BTreeSet<u64>) {
    let scene = Scene::new(setup);
    let mut seen = BTreeSet::new();
    let ended =
        with_frozen_disks(&scene.host(), &scene.request(), &Control::default(), |frozen| -> Result<()> {
            seen = scene.frozen_moment(frozen);
            scene.world.kill_driver();
            Err(Error::new(ErrorKind::Interrupted, "the driver was killed here"))
        });
    assert!(ended.is_err());
    scene.revive();
    // The guest writes on into its overlays.
    drop(scene.world.domains());
    (scene, seen)
}

/// Takes over what is there, if anything is.
fn take_over_scene(scene: &Scene) -> Option<TakeOver<BTreeSet<u64>>> {
    let host = scene.host();
    let job = interrupted_session(&host, scene.id).ok().flatten()?;
    let request = TakeOverRequest { job, report: FreezeReport::default(), min_free: 1 << 20 };
    take_over(&host, &request, &Control::default(), |frozen| scene.copy(frozen)).ok()
}

#[test]
fn the_copy_goes_on_and_the_guest_comes_home() {
    for setup in SETUPS {
        let (scene, seen) = dies_in_the_copy(setup);
        let Some(TakeOver::Done(Ok(thawed))) = take_over_scene(&scene) else { panic!("{setup:?}") };
        assert_eq!(thawed.value, seen, "{setup:?}: another moment");
        scene.is_home(Some(scene.expected())).unwrap();
        let ends: Vec<_> = scene.journal.entries().closed.iter().map(|(_, end)| *end).collect();
        assert_eq!(ends, [virtfold_catalog::SessionOutcome::Copied]);
        assert!(take_over_scene(&scene).is_none(), "there is nothing more to take over");
    }
}

/// What a recovery has begun is a recovery's.
#[test]
fn only_a_job_whose_bases_are_being_read_is_taken_over() {
    let (scene, _) = dies_in_the_copy(PLAIN);
    let job = scene.journal.open_sessions(None).unwrap().remove(0);
    for state in [SessionState::Planned, SessionState::ReadDone, SessionState::Committing] {
        let scene = scene.fork();
        scene.journal.record(job.id, &[JournalEntry::State(state)]).unwrap();
        assert!(take_over_scene(&scene).is_none(), "{state:?}");
        scene.recover();
        scene.is_home(Some(scene.expected())).unwrap();
    }
    scene.journal.record(job.id, &[JournalEntry::Held(Some(GuestHold::Paused))]).unwrap();
    assert!(take_over_scene(&scene).is_none());
}

#[test]
fn what_is_not_as_it_was_left_is_not_taken_over() {
    let base_written = |scene: &Scene| {
        let base = scene.bases().remove(0);
        let (_, inode) = scene.world.identity(&base).unwrap().unwrap();
        let mut image = scene.world.image(&base).unwrap();
        image.writes.insert(1 << 40);
        scene.world.put_image(&base, image);
        scene.world.set_identity(&base, inode);
    };
    let base_replaced = |scene: &Scene| {
        let base = scene.bases().remove(0);
        scene.world.put_image_as_old_as(&base, scene.world.image(&base).unwrap(), &base);
    };
    let happens = |what: ThirdPartyAction| move |scene: &Scene| scene.world.happens(what);
    let locked = |scene: &Scene| std::mem::forget(scene.journal.lock(scene.id).unwrap());
    type Case<'a> = (&'a str, &'a dyn Fn(&Scene));
    let cases: [Case<'_>; 8] = [
        ("written to", &base_written),
        ("another base image", &base_replaced),
        ("another state", &happens(ThirdPartyAction::ShutDown)),
        ("another state", &happens(ThirdPartyAction::KillGuests)),
        ("another state", &happens(ThirdPartyAction::Suspend)),
        ("another state", &happens(ThirdPartyAction::Save)),
        ("not on its overlay", &happens(ThirdPartyAction::Snapshot)),
        ("is working", &locked),
    ];
    for (why, change) in cases {
        let (scene, _) = dies_in_the_copy(PLAIN);
        change(&scene);
        let before = scene.fingerprint();
        let Some(TakeOver::Refused(said)) = take_over_scene(&scene) else { panic!("{why}") };
        assert!(said.contains(why), "{why}: {said}");
        assert_eq!(scene.fingerprint(), before, "{why}: something was done");
    }
}

/// A copy that fails brings the guest home all the same.
#[test]
fn a_copy_that_fails_when_it_goes_on_brings_the_guest_home() {
    let (scene, _) = dies_in_the_copy(PLAIN);
    let host = scene.host();
    let job = interrupted_session(&host, scene.id).unwrap().unwrap();
    let request = TakeOverRequest { job, report: FreezeReport::default(), min_free: 1 << 20 };
    let failed = take_over(&host, &request, &Control::default(), |_| -> Result<()> {
        Err(Error::new(ErrorKind::NoSpace, "the medium is full"))
    });
    let Ok(TakeOver::Done(Err(error))) = failed else { panic!("{failed:?}") };
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    scene.is_home(Some(scene.expected())).unwrap();
}

/// Every crash point of a backup that was taken over, and of what follows: it is taken over again where it
/// can be, else recovered.
#[test]
fn nothing_is_lost_at_any_crash_point_after_that() {
    let mut runs = 0;
    for setup in SETUPS {
        let (left, seen) = dies_in_the_copy(setup);
        let points = left.fork().points(|scene| drop(take_over_scene(scene)));
        assert!(!points.is_empty());
        for (index, point) in points.iter().enumerate() {
            for fate in FATES.into_iter().filter(|fate| setup.disks == 1 || is_apart(*point, *fate)) {
                let scene = left.fork();
                scene.set_fate(index, fate);
                let first = take_over_scene(&scene);
                scene.revive();
                let second = take_over_scene(&scene);
                for done in [&first, &second] {
                    if let Some(TakeOver::Done(Ok(thawed))) = done {
                        assert_eq!(
                            thawed.value, seen,
                            "{setup:?} {fate:?} at {index} {point:?}: another moment"
                        );
                    }
                }
                let recoveries = scene.recover();
                runs += 1;
                if let Err(why) = check(&scene, &[(*point, fate)]) {
                    panic!(
                        "{setup:?} {fate:?} at {index} {point:?}: {why}\n{first:?}\n{second:?}\n{recoveries:#?}"
                    );
                }
            }
        }
    }
    println!("{runs} crashes");
    assert!(matches!(FATES[0], Injected::KillDriver));
}
