//! Reading at rest.

use super::super::*;
use super::scene::{PLAIN, Scene, target};
use virtfold_base::error::ErrorKind;
use virtfold_catalog::SessionOutcome as Ended;
use virtfold_hypervisor::simulated::{Injected, SimImage, ThirdPartyAction};

fn scene() -> Scene {
    let scene = Scene::new(super::scene::Setup { disks: 3, ..PLAIN });
    scene.world.happens(ThirdPartyAction::ShutDown);
    scene
}

fn request(scene: &Scene) -> OfflineRequest {
    let disks =
        scene.request().disks.into_iter().map(|disk| OfflineDisk { target: disk.target, base: disk.base });
    OfflineRequest { domain: scene.id, disks: disks.collect() }
}

fn read(scene: &Scene, copy: impl FnOnce(&Frozen) -> Result<()>) -> Result<()> {
    with_offline_disks(&scene.host(), &request(scene), &Control::default(), copy)
}

#[test]
fn a_domain_at_rest_is_read_and_cannot_start_meanwhile() {
    let scene = scene();
    read(&scene, |frozen| {
        assert_eq!(frozen.disks.iter().map(|d| d.target.clone()).collect::<Vec<_>>(), [0, 1, 2].map(target));
        scene.world.start(scene.id, virtfold_hypervisor::StartMode::Running).unwrap_err();
        Ok(())
    })
    .unwrap();
    assert_eq!(scene.journal.entries().closed[0].1, Ended::Copied);
    scene.world.start(scene.id, virtfold_hypervisor::StartMode::Running).unwrap();
    assert_eq!(read(&scene, |_| Ok(())).unwrap_err().kind(), ErrorKind::InUse);
}

#[test]
fn a_disk_that_was_written_to_meanwhile_is_no_copy() {
    let scene = scene();
    let error = read(&scene, |frozen| {
        let changed = SimImage { writes: [5000].into(), ..scene.world.image(&frozen.disks[1].path).unwrap() };
        scene.world.put_image(&frozen.disks[1].path, changed);
        Ok(())
    });
    assert!(error.unwrap_err().to_string().contains("an image was written to"));
    assert_eq!(scene.journal.entries().closed[0].1, Ended::Failed);
}

#[test]
fn a_domain_that_ran_in_between_is_no_copy() {
    let scene = scene();
    let error = read(&scene, |_| {
        // On a host whose file system has no locks.
        scene.world.drop_holds();
        scene.world.set_pace(scene.id, 0);
        scene.world.happens(ThirdPartyAction::Start);
        scene.world.happens(ThirdPartyAction::ShutDown);
        Ok(())
    });
    assert!(error.unwrap_err().to_string().contains("ran in between"));
}

#[test]
fn a_reading_that_was_broken_off_anywhere_is_just_closed() {
    let points = scene().points(|scene| read(scene, |_| Ok(())).unwrap());
    for index in 0..points.len() {
        for fate in [Injected::KillDriver, Injected::CrashHost] {
            let scene = scene();
            scene.set_fate(index, fate);
            drop(read(&scene, |_| Ok(())));
            scene.revive();
            scene.recover();
            scene.is_home(None).unwrap();
        }
    }
}
