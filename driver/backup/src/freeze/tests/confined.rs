//! All commits before the first pivot, all pivots in one pause; and what AppArmor does to guests whose rules
//! are written anew.

use std::time::Duration;

use super::super::*;
use super::cases::{THREE, dies_at, meanwhile, only, remains};
use super::scene::{PLAIN, Scene, Setup};
use virtfold_base::error::sentence;
use virtfold_hypervisor::DomainState;
use virtfold_hypervisor::host_files::HostFiles;
use virtfold_hypervisor::simulated::{CallPhase, Injected, InjectionPoint, Operation, ThirdPartyAction};

const CONFINED: Setup = Setup { confined: true, ..THREE };

/// The calls that were begun, in order, of these kinds.
fn calls(points: &[InjectionPoint], wanted: &[Operation]) -> Vec<Operation> {
    let begun = points.iter().filter(|p| p.when == CallPhase::Before).map(|p| p.operation);
    begun.filter(|operation| wanted.contains(operation)).collect()
}

#[test]
fn disks_are_committed_together_and_pivoted_in_one_pause() {
    use Operation::{Commit, Pivot, Resume, Rules, Suspend};
    for setup in [THREE, CONFINED] {
        let scene = Scene::new(setup);
        let points = scene.points(|scene| drop(scene.backup().unwrap()));
        scene.is_home(Some(DomainState::Running)).unwrap();
        let expected = [Commit, Commit, Commit, Suspend, Pivot, Pivot, Pivot, Resume];
        assert_eq!(calls(&points, &[Commit, Suspend, Pivot, Resume, Rules]), expected);
    }
}

#[test]
fn pivots_that_do_not_fit_into_one_pause_have_another() {
    use Operation::{Pivot, Resume, Suspend};
    let scene = Scene::new(CONFINED);
    let mut host = scene.host();
    host.pace.pause_budget = Duration::from_millis(400);
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let into = std::sync::Arc::clone(&seen);
    scene.world.on_point(move |point| {
        into.lock().unwrap().push(point);
        if point == (InjectionPoint { operation: Pivot, when: CallPhase::Before }) {
            std::thread::sleep(Duration::from_millis(200));
        }
        Injected::Nothing
    });
    let thawed = with_frozen_disks(&host, &scene.request(), &Control::default(), |_| Ok(())).unwrap();
    scene.is_home(Some(DomainState::Running)).unwrap();
    let one = [Suspend, Pivot, Resume];
    assert_eq!(calls(&seen.lock().unwrap(), &[Suspend, Pivot, Resume]), [one, one, one].concat());
    assert!(thawed.report.pause_ms.unwrap() < 400.0, "{:?}", thawed.report);
}

#[test]
fn a_disk_that_cannot_be_committed_keeps_no_other_from_its_base() {
    for setup in [THREE, CONFINED] {
        let scene = dies_at(setup, Operation::Commit, 1);
        let held = scene.world.hold(&scene.bases()[1]).unwrap();
        let recovery = only(scene.recover());
        assert_eq!(recovery.verdict, RecoveryStatus::Failed, "{recovery:#?}");
        assert!(recovery.remains[0].contains("disk 'vdb'"), "{recovery:#?}");
        let [a, _, c] = scene.bases().try_into().unwrap();
        let overlay = scene.overlays().remove(1);
        assert_eq!(scene.world.tops(scene.id), [a, overlay.clone(), c]);
        assert_eq!(scene.leftovers(), [overlay]);
        let done = |n: usize| recovery.disks[n].done.len();
        assert_eq!((done(0), done(1), done(2)), (2, 0, 2), "{recovery:#?}");
        scene.nothing_lost().unwrap();
        scene.lives(Some(DomainState::Running)).unwrap();
        drop(held);
        assert_eq!(only(scene.recover()).verdict, RecoveryStatus::Recovered);
        scene.is_home(Some(DomainState::Running)).unwrap();
    }
}

#[test]
fn a_cd_that_is_ejected_in_the_copy_keeps_no_guest_on_its_overlay() {
    for setup in [CONFINED, Setup { disks: 1, ..CONFINED }] {
        let scene = Scene::new(setup);
        meanwhile(&scene, |scene| scene.world.happens(ThirdPartyAction::Eject)).unwrap();
        scene.is_home(Some(DomainState::Running)).unwrap();
    }
}

#[test]
fn a_cd_that_is_ejected_at_any_moment_keeps_no_guest_on_its_overlay() {
    let points = Scene::new(CONFINED).points(|scene| drop(scene.backup().unwrap()));
    for (index, point) in points.iter().enumerate() {
        let scene = Scene::new(CONFINED);
        scene.set_fate(index, Injected::Outside(ThirdPartyAction::Eject));
        scene.backup().unwrap_or_else(|e| panic!("{point:?} at {index}: {e:?}"));
        scene.is_home(Some(DomainState::Running)).unwrap();
    }
}

#[test]
fn a_guest_that_was_started_on_its_overlays_is_freed() {
    for operation in [Operation::Hold, Operation::Commit, Operation::Suspend, Operation::Pivot] {
        let scene = dies_at(CONFINED, operation, 1);
        scene.world.happens(ThirdPartyAction::ShutDown);
        scene.world.happens(ThirdPartyAction::Start);
        let recovery = only(scene.recover());
        assert_eq!(recovery.verdict, RecoveryStatus::Recovered, "{operation:?}: {recovery:#?}");
        for disk in &recovery.disks {
            assert!(disk.found.iter().any(|text| text.contains("AppArmor")), "{operation:?}: {recovery:#?}");
            assert!(
                disk.done.iter().any(|text| text.contains("lift that denial")),
                "{operation:?}: {recovery:#?}"
            );
        }
        scene.is_home(Some(DomainState::Running)).unwrap();
    }
}

#[test]
fn a_denial_that_was_lifted_is_put_back() {
    let scene = dies_at(Setup { disks: 1, ..CONFINED }, Operation::Commit, 1);
    scene.world.happens(ThirdPartyAction::Eject);
    let denied = || scene.world.lift_denial(scene.id, &scene.bases()[0]).unwrap();
    scene.world.restore_denial(scene.id, &denied().unwrap()).unwrap();
    // The base is held, so the commit fails for another reason, too.
    let held = scene.world.hold(&scene.bases()[0]).unwrap();
    assert_eq!(only(scene.recover()).verdict, RecoveryStatus::Failed);
    let again = denied().expect("the denial is there again");
    scene.world.restore_denial(scene.id, &again).unwrap();
    drop(held);
    assert_eq!(only(scene.recover()).verdict, RecoveryStatus::Recovered);
    scene.is_home(Some(DomainState::Running)).unwrap();
}

#[test]
fn where_the_rules_cannot_be_edited_the_hint_says_what_helps() {
    let scene = dies_at(CONFINED, Operation::Commit, 1);
    scene.world.happens(ThirdPartyAction::Eject);
    scene.world.lock_rules();
    let recovery = only(scene.recover());
    assert_eq!(recovery.verdict, RecoveryStatus::Failed);
    let said = &recovery.remains[0];
    assert!(said.contains("AppArmor keeps QEMU from writing to '/images/0.qcow2'"), "{said}");
    assert!(said.contains("shut the guest down") && !said.contains("full"), "{said}");
    scene.nothing_lost().unwrap();
    scene.lives(Some(DomainState::Running)).unwrap();
    scene.world.happens(ThirdPartyAction::ShutDown);
    let recovery = only(scene.recover());
    assert_eq!((recovery.verdict, remains(&recovery)), (RecoveryStatus::Recovered, String::new()));
    scene.is_home(Some(DomainState::ShutOff)).unwrap();
}

#[test]
fn a_full_base_is_called_that() {
    let scene = Scene::new(PLAIN);
    meanwhile(&scene, |scene| {
        scene.world.domains().unwrap();
        scene.world.set_room(std::path::Path::new("/images"), virtfold_hypervisor::simulated::SimSpace::None);
    })
    .map_err(|error| {
        assert!(error.hint().unwrap().contains("file system full"), "{}", sentence(&error));
    })
    .unwrap_err();
}
