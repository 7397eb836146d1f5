//! The real libvirt through our facade: connection, lists, XML, errors, events, and the whole way of a disk
//! from snapshot to pivot under a guest that writes.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::lab::records::{check, check_images, take_from_ext4};
use crate::lab::{Guest, GuestSpec, Lab, wait_for};
use virtfold::error::ErrorKind;
use virtfold::hypervisor::disk_rules::{DiskChoice, DomainFacts};
use virtfold::hypervisor::domain_xml::{AgentChannel, DomainXml};
use virtfold::hypervisor::host_files::{HostFiles, ImageUse, LocalFiles};
use virtfold::hypervisor::libvirt::{Libvirt, LocalUri};
use virtfold::hypervisor::{
    BlockJobEnd, BlockJobKind, BlockJobStatus, CommitBase, CommitRequest, DomainEvent, DomainId, DomainState,
    Hypervisor, HypervisorError, Lifecycle, PausedReason, Persistence, SnapshotQuiesce, SnapshotRequest,
    StartMode, StartedDetail, XmlView, code, is_our_overlay, overlay_path,
};

fn open(lab: &Lab) -> Libvirt {
    Libvirt::open(LocalUri::parse(&lab.uri()).unwrap()).unwrap()
}

fn xml(libvirt: &Libvirt, id: DomainId, config: XmlView) -> DomainXml {
    DomainXml::parse(libvirt.xml(id, config).unwrap()).unwrap()
}

/// The file that each view of the domain gives for a disk: live XML, configuration, QEMU.
fn files(libvirt: &Libvirt, id: DomainId, target: &str) -> [PathBuf; 3] {
    let (live, config) = (xml(libvirt, id, XmlView::Live), xml(libvirt, id, XmlView::Inactive));
    let alias = live.disk(target).unwrap().alias.clone().unwrap();
    let qemu = libvirt.query_block(id).unwrap();
    let of = |xml: &DomainXml| xml.disk(target).unwrap().image.source.path().unwrap().to_owned();
    [of(&live), of(&config), qemu.into_iter().find(|q| q.alias == alias).unwrap().file.unwrap()]
}

fn snapshot(libvirt: &Libvirt, guest: &Guest<'_>, id: DomainId, quiesce: SnapshotQuiesce) -> Vec<PathBuf> {
    let all = xml(libvirt, id, XmlView::Live).targets();
    let disks = guest.images();
    let overlays: Vec<_> = disks.iter().map(|(path, _)| overlay_path(&guest.folder, path, 7)).collect();
    let wanted: Vec<_> =
        overlays.iter().enumerate().map(|(n, o)| (crate::lab::guest::target(n), o.clone())).collect();
    let request = SnapshotRequest::new(&all, &wanted, quiesce).unwrap();
    libvirt.snapshot(id, &request).unwrap();
    overlays
}

/// Commits and pivots every disk as the state machine does: level, suspended, pivoted, resumed.
fn thaw(libvirt: &Libvirt, guest: &Guest<'_>, id: DomainId) {
    let events = libvirt.subscribe().unwrap();
    let targets: Vec<_> = (0..guest.spec.disks.len()).map(crate::lab::guest::target).collect();
    for target in &targets {
        let base = CommitBase::Shallow;
        libvirt.commit(id, &CommitRequest { target: target.clone(), base, bytes_per_second: 0 }).unwrap();
    }
    let mut waiting = targets.clone();
    while !waiting.is_empty() {
        let event = events.recv_timeout(Duration::from_secs(60)).expect("all block jobs get ready");
        if let DomainEvent::BlockJob { target, kind, status: BlockJobStatus::Ready, .. } = event {
            assert_eq!(kind, BlockJobKind::ActiveCommit);
            waiting.retain(|t| *t != target);
        }
    }
    // A pause for each disk: together they would be one long one.
    for target in &targets {
        libvirt.suspend(id).unwrap();
        assert_eq!(libvirt.domain_state(id).unwrap(), DomainState::Paused(PausedReason::User));
        wait_for("the job is level", 20, || libvirt.block_job(id, target).unwrap().unwrap().is_level());
        libvirt.end_block_job(id, target, BlockJobEnd::Pivot).unwrap();
        assert_eq!(libvirt.block_job(id, target).unwrap(), None);
        libvirt.resume(id).unwrap();
    }
}

#[test]
fn lists_xml_and_refusals() {
    let lab = Lab::start();
    let guest =
        lab.guest(GuestSpec { name: "an unusable name".to_owned(), pause_us: None, ..GuestSpec::default() });
    let libvirt = open(&lab);
    let listed = libvirt.domains().unwrap();
    assert_eq!(listed.len(), 1);
    let id = listed[0].id;
    assert_eq!((listed[0].name.as_str(), listed[0].run), (guest.name(), DomainState::ShutOff));
    assert_eq!(listed[0].persistence, Persistence::Persistent);
    assert_eq!(libvirt.lookup(guest.name()).unwrap(), listed[0]);
    assert_eq!(libvirt.lookup(&id.to_string()).unwrap(), listed[0]);
    let missing = libvirt.lookup("nobody").unwrap_err();
    assert_eq!(
        (missing.kind(), HypervisorError::code_of(&missing)),
        (ErrorKind::NotFound, Some(code::NO_DOMAIN))
    );
    assert!(!HypervisorError::lost(&missing));
    let off = libvirt.xml(id, XmlView::Live).unwrap_err();
    assert_eq!(off.kind(), ErrorKind::NotFound);
    let config = xml(&libvirt, id, XmlView::Inactive);
    assert_eq!(config.disks[0].image.source.path(), Some(guest.disk(0).as_path()));
    assert_eq!(libvirt.activity(id).unwrap(), Default::default());
    assert_eq!(libvirt.managed_save_xml(id).unwrap(), None);
    let nowhere = lab.folder().join("not there/overlay");
    let request =
        SnapshotRequest::new(&config.targets(), &[("vda".into(), nowhere)], SnapshotQuiesce::No).unwrap();
    libvirt.snapshot(id, &request).unwrap_err();
    assert_eq!(
        HypervisorError::code_of(&libvirt.query_block(id).unwrap_err()),
        Some(code::OPERATION_INVALID)
    );
    // The name belongs to another uuid.
    let clash = config.text().replace(&id.to_string(), "00000000-0000-4000-8000-000000000001");
    assert_eq!(HypervisorError::code_of(&libvirt.define(&clash).unwrap_err()), Some(code::OPERATION_FAILED));
    assert_eq!(libvirt.define(config.text()).unwrap(), id);
    let bad = libvirt.define(&config.text().replace("<devices>", "<devices><nonsense/>")).unwrap_err();
    assert!(format!("{bad:?}").contains("nonsense") || format!("{bad:?}").contains("schema"), "{bad:?}");
    pools(&lab, &libvirt);
    libvirt.undefine(id).unwrap();
    assert_eq!(libvirt.domains().unwrap(), []);
    assert_eq!(libvirt.domain_state(id).unwrap_err().kind(), ErrorKind::NotFound);
}

fn pools(lab: &Lab, libvirt: &Libvirt) {
    let directory = lab.folder().join("pool");
    std::fs::create_dir(&directory).unwrap();
    lab.virsh(&["pool-create-as", "files", "dir", "--target", &directory.to_string_lossy()]);
    assert_eq!(libvirt.pool_directory("files").unwrap(), directory);
    std::fs::write(directory.join("disk.raw"), [0; 4096]).unwrap();
    assert_eq!(libvirt.volume_path("files", "disk.raw").unwrap_err().kind(), ErrorKind::NotFound);
    libvirt.refresh_pool("files").unwrap();
    assert_eq!(libvirt.volume_path("files", "disk.raw").unwrap(), directory.join("disk.raw"));
    assert_eq!(libvirt.pool_directory("none").unwrap_err().kind(), ErrorKind::NotFound);
}

/// Prints the largest gap between two of the guest's writes since `from`.
fn gap(guest: &Guest<'_>, phase: &str, from: Instant) {
    guest.progress.wait_more(5);
    let (gap, count) = guest.progress.gap_between(from, Instant::now());
    println!("{phase}: {:?}, {count} records, largest gap {gap:?}", from.elapsed());
}

/// What speaks against a backup of the domain.
fn obstacles(libvirt: &Libvirt, id: DomainId) -> Vec<String> {
    let (live, inactive) = (xml(libvirt, id, XmlView::Live), xml(libvirt, id, XmlView::Inactive));
    let (qemu, activity) = (libvirt.query_block(id).unwrap(), libvirt.activity(id).unwrap());
    let facts = DomainFacts {
        run: libvirt.domain_state(id).unwrap(),
        live: Some(&live),
        inactive: Some(&inactive),
        qemu: &qemu,
        activity: &activity,
    };
    facts.obstacles(|_| DiskChoice::Wanted).iter().map(ToString::to_string).collect()
}

#[test]
fn a_writing_guest_is_frozen_and_thawed_and_survives_libvirtds_end() {
    let lab = Lab::start();
    let guest = lab.guest(GuestSpec { disks: vec!["qcow2", "raw"], ..GuestSpec::default() });
    let libvirt = open(&lab);
    let events = libvirt.subscribe().unwrap();
    guest.boot();
    let id = libvirt.lookup(guest.name()).unwrap().id;
    let started = DomainEvent::Lifecycle { domain: id, change: Lifecycle::Started(StartedDetail::Boot) };
    wait_for("the event of the start", 5, || events.try_iter().any(|e| e == started));
    assert_eq!(obstacles(&libvirt, id), Vec::<String>::new());
    let begun = Instant::now();
    guest.progress.wait_more(300);

    gap(&guest, "nothing", begun);
    let from = Instant::now();
    let overlays = snapshot(&libvirt, &guest, id, SnapshotQuiesce::No);
    gap(&guest, "snapshot", from);
    for (n, overlay) in overlays.iter().enumerate() {
        let target = crate::lab::guest::target(n);
        assert_eq!(files(&libvirt, id, &target), [overlay, overlay, overlay].map(Clone::clone));
        assert!(is_our_overlay(overlay));
    }
    let said = obstacles(&libvirt, id);
    assert!(said.len() == 2 && said[0].contains("still has the overlay"), "{said:?}");
    // The base is frozen: of one point in time, and the same after the guest went on.
    let files_of_it = guest.images();
    let images: Vec<_> = files_of_it.iter().map(|(p, f)| (p.as_path(), *f)).collect();
    let frozen = check_images(&images, guest.layout()).unwrap();
    guest.progress.wait_more(300);
    assert_eq!(check_images(&images, guest.layout()).unwrap(), frozen);

    // libvirtd dies and comes back: reading calls wait for it, changing ones are lost at most, events come
    // again.
    gap(&guest, "copies and checks", from);
    let from = Instant::now();
    lab.kill();
    let back = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_secs(2));
            lab.restart();
        });
        libvirt.domain_state(id)
    });
    assert_eq!(back.unwrap(), DomainState::Running);
    gap(&guest, "libvirtd killed and started", from);
    assert!(events.try_iter().any(|e| e == DomainEvent::ConnectionLost));

    let from = Instant::now();
    thaw(&libvirt, &guest, id);
    gap(&guest, "commit, suspend, pivot, resume", from);
    for (n, (base, _)) in images.iter().enumerate() {
        let target = crate::lab::guest::target(n);
        assert_eq!(files(&libvirt, id, &target), [base, base, base].map(|p| p.to_path_buf()));
        assert_eq!(xml(&libvirt, id, XmlView::Live).disk(&target).unwrap().backing, []);
    }
    overlays.iter().for_each(|overlay| std::fs::remove_file(overlay).unwrap());
    guest.progress.wait_more(300);
    let pivoted = |e: DomainEvent| matches!(e, DomainEvent::BlockJob { domain, status: BlockJobStatus::Completed, .. } if domain == id);
    wait_for("the event of the pivot", 5, || events.try_iter().any(pivoted));
    guest.power_off();
    let last = check_images(&images, guest.layout()).unwrap();
    assert_eq!(last.last, guest.progress.last());
    assert!(last.last > frozen.last);
}

#[test]
fn the_agent_freezes_a_clean_file_system() {
    let lab = Lab::start();
    let spec = GuestSpec { ext4: true, agent: true, disks: vec!["raw"], ..GuestSpec::default() };
    let guest = lab.guest(spec);
    let libvirt = open(&lab);
    let id = libvirt.lookup(guest.name()).unwrap().id;
    assert_eq!(xml(&libvirt, id, XmlView::Inactive).agent, AgentChannel::Present);
    guest.start();
    wait_for("the agent answers", 60, || libvirt.ping_agent(id, Duration::from_secs(2)).is_ok());
    assert_eq!(xml(&libvirt, id, XmlView::Live).agent, AgentChannel::Connected);
    libvirt.set_agent_time_limit(id, Duration::from_secs(5)).unwrap();
    guest.progress.wait_more(50);
    assert_eq!(libvirt.freeze(id).unwrap(), 1);
    let frozen_at = guest.progress.last();
    std::thread::sleep(Duration::from_millis(500));
    assert!(guest.progress.last() <= frozen_at.map(|n| n + 1), "a frozen guest writes on");
    assert_eq!(libvirt.thaw(id).unwrap(), 1);
    guest.progress.wait_more(50);
    assert_eq!(libvirt.thaw(id).unwrap(), 0);

    let overlays = snapshot(&libvirt, &guest, id, SnapshotQuiesce::ByAgent);
    guest.progress.wait_more(50);
    let taken = lab.folder().join("records");
    take_from_ext4(&guest.disk(0), &taken).unwrap();
    let frozen = check(&[&taken], guest.layout()).unwrap();
    assert!(frozen.last.is_some());
    thaw(&libvirt, &guest, id);
    std::fs::remove_file(&overlays[0]).unwrap();
    guest.progress.wait_more(50);
    libvirt.destroy(id).unwrap();
    libvirt.start(id, StartMode::Paused).unwrap();
    assert_eq!(libvirt.domain_state(id).unwrap(), DomainState::Paused(PausedReason::User));
    libvirt.destroy(id).unwrap();
}

#[test]
fn managed_save_keeps_an_xml_of_its_own() {
    let lab = Lab::start();
    let guest = lab.guest(GuestSpec { disks: vec!["qcow2"], ..GuestSpec::default() });
    let libvirt = open(&lab);
    guest.start();
    let id = libvirt.lookup(guest.name()).unwrap().id;
    lab.virsh(&["managedsave", guest.name()]);
    let saved = DomainXml::parse(libvirt.managed_save_xml(id).unwrap().unwrap()).unwrap();
    assert_eq!(saved.disks[0].image.source.path(), Some(guest.disk(0).as_path()));
    let moved = guest.folder.join("moved.qcow2");
    std::fs::rename(guest.disk(0), &moved).unwrap();
    let mut edit = virtfold::hypervisor::domain_xml::edit::Editor::new(&saved).unwrap();
    edit.set_disk("vda", virtfold::hypervisor::domain_xml::edit::NewImage::File(&moved), "qcow2").unwrap();
    libvirt.define_managed_save_xml(id, edit.finish().unwrap().text()).unwrap();
    libvirt.start(id, StartMode::Running).unwrap();
    guest.progress.wait_more(100);
    assert_eq!(libvirt.query_block(id).unwrap()[0].file, Some(moved));
    libvirt.destroy(id).unwrap();
}

/// Has QEMU open an image behind libvirt's back, as libvirt does it before a snapshot.
fn open_behind(lab: &Lab, guest: &Guest<'_>, image: &std::path::Path, number: u32) {
    let storage = serde_json::json!({"driver": "file", "filename": image, "node-name": format!("libvirt-{number}-storage")});
    let format = serde_json::json!({"driver": "qcow2", "backing": null, "file": format!("libvirt-{number}-storage"),
        "node-name": format!("libvirt-{number}-format")});
    for node in [storage, format] {
        command(lab, guest, "blockdev-add", &node);
    }
}

fn command(lab: &Lab, guest: &Guest<'_>, verb: &str, arguments: &serde_json::Value) {
    let line = serde_json::json!({"execute": verb, "arguments": arguments}).to_string();
    let reply = lab.virsh(&["qemu-monitor-command", guest.name(), &line]);
    assert!(reply.contains("\"return\""), "{line}: {reply}");
}

#[test]
fn what_a_libvirtd_leaves_that_dies_in_a_snapshot_is_undone() {
    let lab = Lab::start();
    let guest = lab.guest(GuestSpec { disks: vec!["qcow2", "raw"], ..GuestSpec::default() });
    let libvirt = open(&lab);
    guest.start();
    let id = libvirt.lookup(guest.name()).unwrap().id;
    let host = LocalFiles;
    for (n, (base, format)) in guest.images().into_iter().enumerate() {
        let target = crate::lab::guest::target(n);
        let overlay = overlay_path(&guest.folder, &base, 7);
        let mut create = std::process::Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2", "-F", format, "-b"]).arg(&base).arg(&overlay);
        crate::lab::run(&mut create);
        // Before QEMU took it: an image that is open for nothing.
        open_behind(&lab, &guest, &overlay, 90);
        assert_eq!(host.image_use(&overlay).unwrap(), ImageUse::Written);
        libvirt.close_unused(id, &overlay).unwrap();
        assert_eq!(host.image_use(&overlay).unwrap(), ImageUse::Free);
        libvirt.close_unused(id, &base).unwrap();
        assert_eq!(host.image_use(&base).unwrap(), ImageUse::Written, "what is used is never closed");

        // After: the guest writes to an overlay that libvirt knows nothing of. The names of the nodes are
        // free again.
        open_behind(&lab, &guest, &overlay, 90);
        let blocks = lab.virsh(&["qemu-monitor-command", guest.name(), r#"{"execute":"query-block"}"#]);
        let blocks: serde_json::Value = serde_json::from_str(&blocks).unwrap();
        let of_it = blocks["return"].as_array().unwrap().iter();
        let node = of_it.map(|b| &b["inserted"]).find(|i| i["file"] == base.to_str().unwrap()).unwrap();
        let arguments = serde_json::json!({"node": node["node-name"], "overlay": "libvirt-90-format"});
        command(&lab, &guest, "blockdev-snapshot", &arguments);
        guest.progress.wait_more(100);
        assert_eq!(files(&libvirt, id, &target), [&base, &base, &overlay].map(Clone::clone));
        let request =
            CommitRequest { target: target.clone(), base: CommitBase::Shallow, bytes_per_second: 0 };
        libvirt.commit(id, &request).unwrap();
        libvirt.cap_block_job(id, &target, 0).unwrap();
        libvirt.suspend(id).unwrap();
        wait_for("the job is level", 20, || libvirt.block_job(id, &target).unwrap().unwrap().is_level());
        // As after the death of a driver.
        open(&lab).end_block_job(id, &target, BlockJobEnd::Pivot).unwrap();
        assert_eq!(libvirt.block_job(id, &target).unwrap(), None);
        libvirt.resume(id).unwrap();
        assert_eq!(files(&libvirt, id, &target), [&base, &base, &base].map(Clone::clone));
        libvirt.close_unused(id, &overlay).unwrap();
        assert_eq!(host.image_use(&overlay).unwrap(), ImageUse::Free);
        std::fs::remove_file(&overlay).unwrap();
    }
    // Nothing of it is in the way of libvirt's own.
    let overlays = snapshot(&libvirt, &guest, id, SnapshotQuiesce::No);
    guest.progress.wait_more(100);
    thaw(&libvirt, &guest, id);
    overlays.iter().for_each(|overlay| std::fs::remove_file(overlay).unwrap());
    guest.power_off();
    let images = guest.images();
    let images: Vec<_> = images.iter().map(|(p, f)| (p.as_path(), *f)).collect();
    assert_eq!(check_images(&images, guest.layout()).unwrap().last, guest.progress.last());
}
