//! The checkpoint just before the snapshot: it is there and known, or the backup says that it is not.

use super::super::*;
use super::cases::THREE;
use super::scene::{PLAIN, Scene, Setup};
use virtfold_hypervisor::simulated::{CallPhase, Injected, InjectionPoint, Operation};
use virtfold_hypervisor::{DomainState, StartMode};

/// A backup that asks for a checkpoint of its first disk: the one that it was told of, and its warnings.
fn backup(scene: &Scene) -> (Option<String>, Vec<String>) {
    let tracked = scene.request().targets.into_iter().take(1).collect();
    let request = FreezeRequest { tracked, ..scene.request() };
    let thawed = with_frozen_disks(&scene.host(), &request, &Control::default(), |frozen| {
        assert!(frozen.checkpoint.as_ref().is_none_or(|name| *name == checkpoint_name(frozen.job)));
        Ok(frozen.checkpoint.clone())
    });
    let Unfrozen { value, report } = thawed.unwrap();
    (value, report.warnings)
}

fn there(scene: &Scene) -> Vec<String> {
    scene.world.checkpoints(scene.id).unwrap().into_iter().map(|checkpoint| checkpoint.name).collect()
}

/// libvirtd dies once, before or after it made the checkpoint.
fn dies_once(when: CallPhase) -> Scene {
    let scene = Scene::new(THREE);
    let mut alive = true;
    scene.world.on_point(move |point| {
        let now = point == InjectionPoint { operation: Operation::Checkpoint, when };
        if now && std::mem::take(&mut alive) { Injected::KillLibvirtd } else { Injected::Nothing }
    });
    scene
}

#[test]
fn the_checkpoint_is_there_before_the_disks_are_frozen() {
    for start in [StartMode::Running, StartMode::Paused] {
        let scene = Scene::new(Setup { start, ..PLAIN });
        let points = scene.points(|scene| drop(backup(scene)));
        let first = |operation| points.iter().position(|point| point.operation == operation).unwrap();
        assert!(first(Operation::Checkpoint) < first(Operation::Snapshot));
        let (name, warnings) = backup(&scene);
        assert_eq!((there(&scene).pop(), warnings), (name, Vec::new()));
        scene.is_home(Some(scene.expected())).unwrap();
    }
}

#[test]
fn a_backup_without_its_checkpoint_is_as_good_and_says_so() {
    let scene = dies_once(CallPhase::Before);
    let (name, warnings) = backup(&scene);
    assert_eq!((name, there(&scene)), (None, Vec::new()));
    assert!(warnings[0].contains("no checkpoint could be made"), "{warnings:?}");
    scene.is_home(Some(DomainState::Running)).unwrap();
}

#[test]
fn a_checkpoint_whose_answer_is_lost_is_looked_for() {
    let scene = dies_once(CallPhase::After);
    let (name, warnings) = backup(&scene);
    assert_eq!((vec![name.unwrap()], warnings), (there(&scene), Vec::new()));
    scene.is_home(Some(DomainState::Running)).unwrap();
}
