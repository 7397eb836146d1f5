//! One backup on a host with ever more guests, all of them running.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::resource::UsageWho;
use virtfold_backup::Control;
use virtfold_backup::attachments::LibvirtDirectories;
use virtfold_backup::destinations::Destinations;
use virtfold_backup::domain::{DomainReport, DomainRequest};
use virtfold_backup::freeze::{FreezeContext, FreezeTimings, StartWatchdog, Watchdog};
use virtfold_backup::options::BackupOptions;
use virtfold_backup::resume::StateDirectories;
use virtfold_backup::session::BackupSession;
use virtfold_base::error::Result;
use virtfold_catalog::Catalog;
use virtfold_hypervisor::simulated::{CallPhase, Injected, Simulated};
use virtfold_hypervisor::watchdog::{GuestHold, WatchdogOutcome};
use virtfold_hypervisor::{DomainId, Hypervisor, StartMode};
use virtfold_medium::{FileMedium, Location};

use crate::{measured, row};

/// A watchdog that only says that it is there.
#[derive(Debug)]
struct Idle;

impl StartWatchdog for Idle {
    fn start(&self, _: DomainId) -> Result<Box<dyn Watchdog>> {
        Ok(Box::new(Idle))
    }
}

impl Watchdog for Idle {
    fn arm(&mut self, _: GuestHold, _: Duration) -> Result<()> {
        Ok(())
    }

    fn disarm(&mut self) -> Result<WatchdogOutcome> {
        Ok(WatchdogOutcome::InTime)
    }
}

pub(crate) fn run(most: usize) {
    for (what, start) in [("shut off", None), ("running", Some(StartMode::Running))] {
        for others in [most / 100, most / 10, most] {
            let folder = tempfile::tempdir_in("/dev/shm").unwrap();
            let world = host(folder.path(), others);
            if let Some(start) = start {
                let id = world.lookup("web").unwrap().id;
                world.start(id, start).unwrap();
            }
            let calls = Arc::new(AtomicU64::new(0));
            let counted = Arc::clone(&calls);
            world.on_point(move |point| {
                counted.fetch_add(u64::from(point.when == CallPhase::Before), Ordering::Relaxed);
                Injected::Nothing
            });
            let (report, cost) = measured(UsageWho::RUSAGE_SELF, || backup(folder.path(), &world));
            assert!(report.thaw_failure.is_none());
            let calls = calls.load(Ordering::Relaxed);
            row(&format!("backup of one guest, {what}, beside {others}"), cost, &format!("{calls} calls"));
        }
    }
}

/// A host with a guest whose image is a file, and others, which run.
fn host(folder: &Path, others: usize) -> Simulated {
    let world = Simulated::new();
    world.show_qemus();
    let define = |name: &str, image: &Path| {
        let disk = format!(
            "<disk type='file'><driver type='raw'/><source file='{}'/><target dev='vda'/></disk>",
            image.display()
        );
        world.define(&format!("<domain><name>{name}</name><devices>{disk}</devices></domain>")).unwrap()
    };
    for number in 0..others {
        let id = define(&format!("other{number}"), Path::new(&format!("/nowhere/other{number}.raw")));
        world.start(id, StartMode::Running).unwrap();
        world.set_pace(id, 0);
    }
    let image = folder.join("web.raw");
    std::fs::write(&image, vec![1; 65536]).unwrap();
    define("web", &image);
    world.set_identity(&image, 1 << 40);
    world
}

fn backup(folder: &Path, world: &Simulated) -> DomainReport {
    let state = StateDirectories { state: folder.join("state"), keys: "/dev/shm".into() };
    let journal = Catalog::open(&state.state).unwrap();
    let archives = folder.join("archives");
    std::fs::create_dir(&archives).unwrap();
    let none = virtfold_archive::stream::Compression::None;
    let options = BackupOptions { compression: none, min_free: 0, workers: 1, ..BackupOptions::default() };
    let pace = FreezeTimings { poll: Duration::from_millis(1), ..FreezeTimings::default() };
    let host = FreezeContext { hypervisor: world, files: world, journal: &journal, guard: &Idle, pace };
    let (places, guards) = (LibvirtDirectories::system(&folder.join("libvirt")), folder.join("guards"));
    let request = DomainRequest { domain: "web", host: &host, places: &places, guards: &guards };
    let destinations = Destinations::custom(Location::from(archives.as_path()), |label, _| {
        Ok(Box::new(FileMedium::create(&archives.join(&label.name))?))
    });
    let control = Control::default();
    BackupSession { options: &options, destinations: &destinations, state: &state, control: &control }
        .domain(&request)
        .unwrap()
}
