//! Chance: guests, people, libvirtd and hosts do what they do between any two steps.

use proptest::prelude::*;

use super::super::RecoveryStatus;
use super::scene::{Scene, Setup};
use virtfold_catalog::Journal;
use virtfold_hypervisor::simulated::{Injected, SimAgent, ThirdPartyAction};
use virtfold_hypervisor::{DomainState, Hypervisor};
use virtfold_hypervisor::{Persistence, StartMode};

fn fate() -> impl Strategy<Value = Injected> {
    prop_oneof![
        Just(Injected::KillDriver),
        Just(Injected::KillLibvirtd),
        Just(Injected::CrashHost),
        prop::sample::select(vec![
            ThirdPartyAction::KillGuests,
            ThirdPartyAction::ShutDown,
            ThirdPartyAction::Start,
            ThirdPartyAction::Save,
            ThirdPartyAction::Snapshot,
            ThirdPartyAction::Redefine,
            ThirdPartyAction::Suspend,
            ThirdPartyAction::Resume,
            ThirdPartyAction::MigrateAway,
            ThirdPartyAction::Eject,
        ])
        .prop_map(Injected::Outside),
    ]
}

fn setup() -> impl Strategy<Value = Setup> {
    let persistence = prop_oneof![Just(Persistence::Persistent), Just(Persistence::Transient)];
    let agent = prop_oneof![Just(SimAgent::Absent), Just(SimAgent::Answers), Just(SimAgent::Hangs)];
    (1..=3usize, persistence, agent, any::<bool>()).prop_map(|(disks, persistence, agent, confined)| Setup {
        disks,
        persistence,
        agent,
        confined,
        start: StartMode::Running,
    })
}

/// Each write is in some image that is still there, whoever won; no golden image is touched; a guest is left
/// neither frozen nor standing by us; what is open is said to be open.
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
        let suspends = |list: &[(usize, Injected)]| list.iter().any(|(_, f)| *f == Injected::Outside(ThirdPartyAction::Suspend));
        let redefined = events.iter().chain(&later).any(|(_, f)| *f == Injected::Outside(ThirdPartyAction::Redefine));
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
        let run = scene.world.domain_state(scene.id).ok();
        prop_assert!(others || !matches!(run, Some(DomainState::Paused(_))), "{:?} {:?}", run, recoveries);
        let open = !scene.journal.open_sessions(None).unwrap().is_empty();
        let said = recoveries.iter().any(|r| matches!(r.verdict, RecoveryStatus::OverlayPending | RecoveryStatus::Undecided | RecoveryStatus::Failed));
        prop_assert_eq!(open, said, "{:?}", recoveries);
        // Nobody set a configuration back: then the guest's own view has every write.
        if !redefined {
            prop_assert_eq!(scene.nothing_lost_or_open(), Ok(()), "{:?}", recoveries);
        }
    }
}
