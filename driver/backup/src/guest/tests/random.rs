//! Chance: guests, people, libvirtd and hosts do what they do between any two steps.

use proptest::prelude::*;

use super::super::Verdict;
use super::scene::{Scene, Setup};
use virtfold_catalog::Journal;
use virtfold_hypervisor::simulated::{Agent, Fate, Outside};
use virtfold_hypervisor::{Hypervisor, Run};
use virtfold_hypervisor::{Persistence, Start};

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        Just(Fate::KillDriver),
        Just(Fate::KillLibvirtd),
        Just(Fate::CrashHost),
        prop::sample::select(vec![
            Outside::KillGuests,
            Outside::ShutDown,
            Outside::Start,
            Outside::Save,
            Outside::Snapshot,
            Outside::Redefine,
            Outside::Suspend,
            Outside::Resume,
            Outside::MigrateAway,
            Outside::Eject,
        ])
        .prop_map(Fate::Outside),
    ]
}

fn setup() -> impl Strategy<Value = Setup> {
    let persistence = prop_oneof![Just(Persistence::Persistent), Just(Persistence::Transient)];
    let agent = prop_oneof![Just(Agent::Absent), Just(Agent::Answers), Just(Agent::Hangs)];
    (1..=3usize, persistence, agent, any::<bool>()).prop_map(|(disks, persistence, agent, confined)| Setup {
        disks,
        persistence,
        agent,
        confined,
        start: Start::Running,
    })
}

/// Each write is in some image that is still there, whoever won; no golden image is touched; a guest is left neither frozen nor
/// standing by us; what is open is said to be open.
fn holds(scene: &Scene) -> Result<(), String> {
    if scene.world.image(&super::scene::golden()).is_none_or(|image| image.writes.len() != 1) {
        return Err("the golden image was written to".to_owned());
    }
    let everything = scene.world.holds(&scene.world.images());
    let lost: Vec<u64> = (0..scene.world.written(scene.id)).filter(|n| !everything.contains(n)).collect();
    if !lost.is_empty() {
        return Err(format!("nowhere: {lost:?}"));
    }
    if scene.world.was_clobbered() {
        return Err("a stale overlay was committed".to_owned());
    }
    if scene.world.is_frozen(scene.id) {
        return Err("frozen".to_owned());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_every_write_is_somewhere(
        setup in setup(),
        events in prop::collection::vec((0..120usize, fate()), 1..6),
        later in prop::collection::vec((0..80usize, fate()), 0..4),
    ) {
        let scene = Scene::new(setup);
        let suspends = |list: &[(usize, Fate)]| list.iter().any(|(_, f)| *f == Fate::Outside(Outside::Suspend));
        let redefined = events.iter().chain(&later).any(|(_, f)| *f == Fate::Outside(Outside::Redefine));
        scene.set_fates(events.clone());
        drop(scene.backup());
        scene.revive();
        scene.set_fates(later.clone());
        scene.recover();
        scene.revive();
        let mut recoveries = scene.recover();
        if !recoveries.is_empty() {
            recoveries = scene.recover();
        }
        let others = suspends(&events) || suspends(&later);
        prop_assert_eq!(holds(&scene), Ok(()), "{:?}", recoveries);
        let run = scene.world.run_state(scene.id).ok();
        prop_assert!(others || !matches!(run, Some(Run::Paused(_))), "{:?} {:?}", run, recoveries);
        let open = !scene.journal.open_jobs(None).unwrap().is_empty();
        let said = recoveries.iter().any(|r| matches!(r.verdict, Verdict::Later | Verdict::Undecided | Verdict::Failed));
        prop_assert_eq!(open, said, "{:?}", recoveries);
        // Nobody set a configuration back: then the guest's own view has every write.
        if !redefined {
            prop_assert_eq!(scene.nothing_lost_or_open(), Ok(()), "{:?}", recoveries);
        }
    }
}
