//! Every crash point of a backup, and of the recovery after it.

use std::collections::BTreeSet;

use super::scene::{PLAIN, Scene, Setup};
use virtfold_hypervisor::simulated::{CallPhase, Injected, InjectionPoint, Operation, SimAgent};
use virtfold_hypervisor::{Persistence, StartMode};

pub(super) const FATES: [Injected; 4] =
    [Injected::KillDriver, Injected::KillLibvirtd, Injected::KillGuests, Injected::CrashHost];

fn setups() -> Vec<Setup> {
    let mut setups = Vec::new();
    for disks in [1, 3] {
        for persistence in [Persistence::Persistent, Persistence::Transient] {
            for (start, agent) in [
                (StartMode::Running, SimAgent::Absent),
                (StartMode::Running, SimAgent::Answers),
                (StartMode::Running, SimAgent::Hangs),
                (StartMode::Paused, SimAgent::Absent),
            ] {
                // Where there are several disks AppArmor gets between them.
                setups.push(Setup { disks, persistence, start, agent, confined: disks > 1 });
            }
        }
    }
    setups
}

/// libvirtd that dies in QEMU's switch back loses track of the disk until the guest's next start; nothing
/// else may.
fn is_stuck(point: InjectionPoint, fate: Injected) -> bool {
    fate == Injected::KillLibvirtd
        && point == InjectionPoint { operation: Operation::Pivot, when: CallPhase::Late }
}

/// Whether nothing else covers this point: a question changes nothing, so the world after it is the one
/// before it, and a driver that dies there dies after the last change or before the next one. What is left is
/// a lost answer and a guest that ends.
pub(super) fn is_apart(point: InjectionPoint, fate: Injected) -> bool {
    let question = matches!(point.operation, Operation::Read | Operation::Look);
    !question
        || point.when == CallPhase::Before && matches!(fate, Injected::KillLibvirtd | Injected::KillGuests)
}

/// What must hold at the end; a stuck disk is home after the guest's next start.
pub(super) fn check(scene: &Scene, path: &[(InjectionPoint, Injected)]) -> Result<(), String> {
    let killed = path.iter().any(|(_, fate)| matches!(fate, Injected::KillGuests | Injected::CrashHost));
    let stuck = path.iter().any(|(point, fate)| is_stuck(*point, *fate));
    let expected = (!killed).then(|| scene.expected());
    if stuck && !killed {
        scene.nothing_lost()?;
        scene.lives(expected)?;
        assert_eq!(scene.world.tops(scene.id), scene.bases());
        scene.world.happens(virtfold_hypervisor::simulated::ThirdPartyAction::ShutDown);
        if scene.setup.persistence == Persistence::Persistent {
            scene.world.happens(virtfold_hypervisor::simulated::ThirdPartyAction::Start);
        }
        scene.recover();
        return scene.is_home(None);
    }
    scene.is_home(expected)
}

#[test]
fn nothing_is_lost_at_any_crash_point() {
    let mut runs = 0;
    for setup in setups() {
        let plain = Scene::new(setup);
        let points = plain.points(|scene| drop(scene.backup().unwrap()));
        plain.is_home(Some(plain.expected())).unwrap();
        for (index, point) in points.iter().enumerate() {
            for fate in FATES {
                if setup.disks > 1 && !is_apart(*point, fate) {
                    continue;
                }
                let scene = Scene::new(setup);
                scene.set_fate(index, fate);
                let outcome = scene.backup().map(|t| t.report);
                scene.revive();
                let recoveries = scene.recover();
                runs += 1;
                if let Err(why) = check(&scene, &[(*point, fate)]) {
                    panic!("{setup:?} {fate:?} at {index} {point:?}: {why}\n{outcome:?}\n{recoveries:#?}");
                }
            }
        }
    }
    println!("{runs} crashes");
}

#[test]
fn nothing_is_lost_where_the_driver_dies_after_any_entry() {
    for setup in setups() {
        for writes in 1.. {
            let scene = Scene::new(setup);
            scene.journal.die_after(writes);
            let outcome = scene.backup().map(|t| t.report);
            if outcome.is_ok() {
                break;
            }
            scene.revive();
            let recoveries = scene.recover();
            if let Err(why) = check(&scene, &[]) {
                panic!("{setup:?} after entry {writes}: {why}\n{outcome:?}\n{recoveries:#?}");
            }
        }
    }
}

/// The recovery is broken off at every point of its own, and run again.
#[test]
fn a_recovery_can_be_broken_off_anywhere() {
    let mut runs = 0;
    for (setup, stride) in [
        (PLAIN, 1),
        (Setup { persistence: Persistence::Transient, agent: SimAgent::Answers, ..PLAIN }, 1),
        (Setup { disks: 3, ..PLAIN }, 5),
        (Setup { disks: 2, confined: true, ..PLAIN }, 11),
    ] {
        let mut seen = BTreeSet::new();
        let points = Scene::new(setup).points(|scene| drop(scene.backup().unwrap()));
        for (index, point) in points.iter().enumerate() {
            for first in FATES.into_iter().filter(|fate| is_apart(*point, *fate)) {
                let crashed = Scene::new(setup);
                crashed.set_fate(index, first);
                let outcome = crashed.backup().map(|t| t.report);
                crashed.revive();
                // Most points are questions, which change nothing that the recovery could see.
                if !seen.insert(crashed.fork().fingerprint()) {
                    continue;
                }
                let inner = crashed.fork().points(|scene| drop(scene.recover()));
                for (at, inner_point) in inner.iter().enumerate().step_by(stride) {
                    for second in FATES.into_iter().filter(|fate| is_apart(*inner_point, *fate)) {
                        let scene = crashed.fork();
                        scene.set_fate(at, second);
                        let broken = scene.recover();
                        scene.revive();
                        let recoveries = scene.recover();
                        runs += 1;
                        if let Err(why) = check(&scene, &[(*point, first), (*inner_point, second)]) {
                            panic!(
                                "{setup:?} {first:?} at {index} {point:?}, then {second:?} at {at} {inner_point:?}: \
                                 {why}\n{outcome:?}\n{broken:#?}\n{recoveries:#?}"
                            );
                        }
                    }
                }
            }
        }
    }
    println!("{runs} crashes");
}
