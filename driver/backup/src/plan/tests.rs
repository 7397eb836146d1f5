//! Plans for simulated domains whose disks are real files.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::disks::OpenedDisk;
use super::*;
use crate::options::QuiesceMode;
use virtfold_hypervisor::host_files::LocalFiles;
use virtfold_hypervisor::simulated::{CallPhase, Injected, SimImage, Simulated};
use virtfold_hypervisor::{DomainId, StartMode, is_our_overlay};
use virtfold_image::{Format, ImageAccess};

struct Lab {
    folder: tempfile::TempDir,
    world: Simulated,
}

impl Lab {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), world: Simulated::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn img(&self, words: &str) {
        let mut command = Command::new("qemu-img");
        command.args(words.split_whitespace()).current_dir(self.folder.path());
        assert!(command.status().expect("qemu-img must be installed for these tests").success(), "{words}");
    }

    /// Defines a domain with these `<disk>`s; `@` stands for the folder.
    fn define(&self, name: &str, devices: &str) -> DomainId {
        let devices = devices.replace('@', self.folder.path().to_str().unwrap());
        let text = format!("<domain type='kvm'><name>{name}</name><devices>{devices}</devices></domain>");
        self.world.define(&text).unwrap()
    }

    fn start(&self, id: DomainId) {
        self.world.start(id, StartMode::Running).unwrap();
    }

    fn plan(&self, options: &BackupOptions) -> Plan {
        self.try_plan("web", options).unwrap()
    }

    fn try_plan(&self, domain: &str, options: &BackupOptions) -> virtfold_base::error::Result<Plan> {
        let state_dir = self.path("state");
        let context = PlanContext { options, state_dir: &state_dir, archive_devices: &[] };
        plan(&self.world, &LocalFiles, domain, &context)
    }
}

fn options() -> BackupOptions {
    BackupOptions { min_free: 0, ..BackupOptions::default() }
}

fn disk(target: &str, format: &str, file: &str) -> String {
    format!(
        "<disk type='file'><driver type='{format}'/><source file='@/{file}'/><target dev='{target}'/></disk>"
    )
}

fn sentences(plan: &Plan) -> Vec<String> {
    plan.obstacles.iter().map(|finding| finding.sentence.clone()).collect()
}

/// Everything in a folder with its length.
fn listing(folder: &Path) -> Vec<(PathBuf, u64)> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut found: Vec<_> = entries.map(|e| (e.path(), e.metadata().unwrap().len())).collect();
    found.sort();
    found
}

#[test]
fn a_running_guest_is_planned_and_nothing_is_touched() {
    let lab = Lab::new();
    lab.img("create -q -f qcow2 golden.qcow2 64M");
    lab.img("create -q -f qcow2 -b golden.qcow2 -F qcow2 a.qcow2");
    lab.img("create -q -f raw b.raw 32M");
    let id = lab.define("web", &[disk("vda", "qcow2", "a.qcow2"), disk("vdb", "raw", "b.raw")].concat());
    let qcow2 = |backing| SimImage { format: "qcow2".to_owned(), backing, ..SimImage::default() };
    lab.world.put_image(&lab.path("golden.qcow2"), qcow2(None));
    lab.world.put_image(&lab.path("a.qcow2"), qcow2(Some(lab.path("golden.qcow2"))));
    lab.start(id);
    let before = (listing(lab.folder.path()), lab.world.images());
    let plan = lab.plan(&options());
    assert_eq!((listing(lab.folder.path()), lab.world.images()), before);
    assert_eq!(sentences(&plan), Vec::<String>::new());
    assert!(plan.refusal().is_none());
    assert_eq!((plan.way, plan.domain.state, plan.quiesce.how), ("online", "running", Consistency::Crash));
    let copied: Vec<_> = plan.copied().collect();
    assert_eq!(copied.iter().map(|d| d.target.as_str()).collect::<Vec<_>>(), ["vda", "vdb"]);
    assert_eq!(copied[0].capacity, Some(64 << 20));
    assert_eq!(copied[1].capacity, Some(32 << 20));
    for disk in &copied {
        let overlay = disk.overlay.as_ref().unwrap();
        assert!(is_our_overlay(overlay) && overlay.parent() == Some(lab.folder.path()), "{overlay:?}");
    }
    assert_eq!(plan.room.len(), 1);
    assert_eq!(plan.room[0].estimate, 2 * (16 << 20));
    assert_eq!(serde_json::to_value(&plan).unwrap()["disks"][0]["format"], "qcow2");
    // libvirt knows the chain of a guest that runs.
    assert_eq!(copied[0].below, ChainSource::Known(vec![(lab.path("golden.qcow2"), Format::Qcow2)]));
    assert_eq!(copied[0].open(ImageAccess::Unlocked).unwrap().chain().unwrap().len(), 2);
    assert_eq!(copied[1].below, ChainSource::Known(Vec::new()));
}

#[test]
fn headers_give_the_chain_where_the_xml_does_not() {
    let lab = Lab::new();
    lab.img("create -q -f qcow2 golden.qcow2 64M");
    lab.img("create -q -f qcow2 -b golden.qcow2 -F qcow2 a.qcow2");
    lab.define("web", &disk("vda", "qcow2", "a.qcow2"));
    let plan = lab.plan(&options());
    assert_eq!((plan.way, plan.quiesce.how), ("offline", Consistency::Offline));
    assert_eq!(plan.disks[0].below, ChainSource::Headers);
    assert_eq!(plan.disks[0].backing.len(), 1);
    assert!(plan.disks[0].backing[0].path.ends_with("golden.qcow2"));
    assert_eq!((&plan.disks[0].overlay, plan.room.len()), (&None, 0));
}

#[test]
fn options_are_checked() {
    let lab = Lab::new();
    lab.img("create -q -f raw a.raw 1M");
    lab.img("create -q -f raw b.raw 1M");
    let id = lab.define("web", &[disk("vda", "raw", "a.raw"), disk("vdb", "raw", "b.raw")].concat());
    let less = BackupOptions { exclude: vec!["vdb".to_owned()], ..options() };
    let plan = lab.plan(&less);
    assert_eq!(plan.copied().count(), 1);
    assert_eq!(plan.disks[1].rule, "left out: excluded");
    let wrong = BackupOptions { exclude: vec!["vdx".to_owned()], ..options() };
    let error = lab.try_plan("web", &wrong).unwrap_err();
    assert_eq!((error.kind(), error.hint()), (ErrorKind::NotFound, Some("its disks are vda, vdb")));
    let missing = lab.try_plan("nobody", &wrong).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    lab.start(id);
    let elsewhere = BackupOptions { overlay_dir: Some(lab.path("none")), ..options() };
    let told = sentences(&lab.plan(&elsewhere));
    assert!(told.len() == 2 && told[0].contains("for the overlay of disk 'vda' does not exist"), "{told:?}");
    let greedy = BackupOptions { min_free: u64::MAX, ..options() };
    let refusal = lab.plan(&greedy).refusal().unwrap();
    assert_eq!(refusal.kind(), ErrorKind::NoSpace);
    assert!(
        refusal
            .to_string()
            .starts_with("'web' can't be backed up now: not enough free space for the overlays of vda, vdb")
    );
    let clean = BackupOptions { quiesce: QuiesceMode::Yes, ..options() };
    assert_eq!(lab.plan(&clean).refusal().unwrap().kind(), ErrorKind::Refused);
}

#[test]
fn overlays_of_images_of_one_name_have_names_of_their_own() {
    let lab = Lab::new();
    for folder in ["one", "two", "overlays"] {
        std::fs::create_dir(lab.path(folder)).unwrap();
    }
    lab.img("create -q -f raw one/disk.raw 1M");
    lab.img("create -q -f raw two/disk.raw 1M");
    let id =
        lab.define("web", &[disk("vda", "raw", "one/disk.raw"), disk("vdb", "raw", "two/disk.raw")].concat());
    lab.start(id);
    let plan = lab.plan(&BackupOptions { overlay_dir: Some(lab.path("overlays")), ..options() });
    let overlays: Vec<_> = plan.disks.iter().map(|d| d.overlay.clone().unwrap()).collect();
    assert_ne!(overlays[0], overlays[1]);
    assert_eq!(plan.room[0].directories, [lab.path("overlays").to_str().unwrap()]);
}

#[test]
fn shared_files_are_seen_whatever_their_names() {
    let lab = Lab::new();
    lab.img("create -q -f qcow2 golden.qcow2 1M");
    lab.img("create -q -f qcow2 -b golden.qcow2 -F qcow2 a.qcow2");
    std::fs::hard_link(lab.path("a.qcow2"), lab.path("same.qcow2")).unwrap();
    lab.define("web", &[disk("vda", "qcow2", "a.qcow2"), disk("vdb", "qcow2", "same.qcow2")].concat());
    let told = sentences(&lab.plan(&options()));
    assert!(told.len() == 1 && told[0].starts_with("disks 'vda' and 'vdb' share one file"), "{told:?}");
    // A guest that works on the golden image itself.
    std::fs::remove_file(lab.path("same.qcow2")).unwrap();
    lab.define("web", &disk("vda", "qcow2", "a.qcow2"));
    assert!(lab.plan(&options()).obstacles.is_empty());
    let other = lab.define("builder", &disk("vda", "qcow2", "golden.qcow2"));
    lab.start(other);
    let plan = lab.plan(&options());
    let told = sentences(&plan);
    assert!(
        told.len() == 1
            && told[0].ends_with("is written to by the running domain 'builder' as its disk 'vda'")
    );
    assert_eq!(plan.refusal().unwrap().kind(), ErrorKind::InUse);
    lab.world.destroy(other).unwrap();
    assert!(lab.plan(&options()).obstacles.is_empty());
}

/// Where the host shows what its QEMUs have open, a plan asks libvirt for nothing of each guest that runs.
#[test]
fn a_plan_on_a_full_host_takes_as_many_calls_as_on_an_empty_one() {
    let lab = Lab::new();
    lab.world.show_qemus();
    lab.img("create -q -f qcow2 golden.qcow2 1M");
    lab.img("create -q -f qcow2 -b golden.qcow2 -F qcow2 a.qcow2");
    let web = lab.define("web", &disk("vda", "qcow2", "a.qcow2"));
    let qcow2 = |backing| SimImage { format: "qcow2".to_owned(), backing, ..SimImage::default() };
    lab.world.put_image(&lab.path("golden.qcow2"), qcow2(None));
    lab.world.put_image(&lab.path("a.qcow2"), qcow2(Some(lab.path("golden.qcow2"))));
    let calls = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counter = std::sync::Arc::clone(&calls);
    lab.world.on_point(move |point| {
        if point.when == CallPhase::Before {
            counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        Injected::Nothing
    });
    let taken = || {
        let (options, state_dir) = (options(), lab.path("state"));
        let context = PlanContext { options: &options, state_dir: &state_dir, archive_devices: &[] };
        let plan = plan(&lab.world, &lab.world, "web", &context).unwrap();
        assert_eq!(sentences(&plan), Vec::<String>::new());
        calls.swap(0, std::sync::atomic::Ordering::Relaxed)
    };
    let alone = taken();
    for number in 0..20 {
        lab.img(&format!("create -q -f raw other{number}.raw 1M"));
        let other = lab.define(&format!("other{number}"), &disk("vda", "raw", &format!("other{number}.raw")));
        lab.start(other);
    }
    calls.store(0, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(taken(), alone);
    // One of them that works on the golden image is seen all the same, and named.
    let builder = lab.define("builder", &disk("vdb", "qcow2", "golden.qcow2"));
    lab.start(builder);
    let golden = std::fs::metadata(lab.path("golden.qcow2")).unwrap();
    let identity = (golden.dev(), golden.ino());
    let opened = OpenedDisk { target: "vda".to_owned(), path: lab.path("golden.qcow2"), identity };
    let others = OtherWriters::of(&lab.world, &lab.world).unwrap();
    let found = others.findings(&lab.world, web, std::slice::from_ref(&opened)).unwrap();
    let named = "is written to by the running domain 'builder' as its disk 'vdb'";
    assert!(found.len() == 1 && found[0].sentence.ends_with(named), "{found:?}");
    assert!(others.findings(&lab.world, builder, &[opened]).unwrap().is_empty(), "its own image");
}

#[test]
fn images_that_cannot_be_read_stop_it_before_anything_is_touched() {
    let lab = Lab::new();
    std::fs::write(lab.path("rubbish.qcow2"), [7; 4096]).unwrap();
    lab.img("create -q -f raw b.raw 1M");
    let devices = [
        disk("vda", "qcow2", "rubbish.qcow2"),
        disk("vdb", "raw", "missing.raw"),
        disk("vdc", "raw", "b.raw"),
    ];
    lab.define("web", &devices.concat());
    let plan = lab.plan(&options());
    let told = sentences(&plan);
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told[0].starts_with("disk 'vda': ") && told[1].starts_with("disk 'vdb': cannot open"),
        "{told:?}"
    );
    // All of them in one error, so that a person need not try again for each.
    let refusal = plan.refusal().unwrap();
    assert!(refusal.to_string().contains("vda") && refusal.to_string().contains("vdb"));
}

#[test]
fn what_libvirt_says_of_the_chain_counts() {
    let table = [
        ("<backingStore/>", Ok(0)),
        (
            "<backingStore type='file'><format type='raw'/><source file='/g'/><backingStore/></backingStore>",
            Ok(1),
        ),
        ("<backingStore type='file'><source file='/g'/><backingStore/></backingStore>", Err("headers")),
        ("", Err("headers")),
        (
            "<backingStore type='network'><format type='raw'/><source protocol='nbd' name='x'/><backingStore/></backingStore>",
            Err("an image below its top one is not a local file"),
        ),
        (
            "<backingStore type='file'><format type='vmdk'/><source file='/g'/><backingStore/></backingStore>",
            Err("the image '/g' below its top one has the format 'vmdk'"),
        ),
    ];
    for (chain, expected) in table {
        let text = format!(
            "<domain><name>x</name><devices><disk type='file'><driver type='qcow2'/><source file='/a'/>{chain}\
             <target dev='vda'/></disk></devices></domain>"
        );
        let xml = DomainXml::parse(text).unwrap();
        let planned = PlannedDisk::new(&xml.disks[0], DiskRule::Include);
        let seen = match &planned.below {
            ChainSource::Headers => Err("headers"),
            ChainSource::Known(links) => Ok(links.len()),
            ChainSource::Unreadable(why) => Err(why.as_str()),
        };
        assert_eq!(seen, expected, "{chain}");
    }
}

#[test]
fn all_domains_are_planned_and_one_that_fails_has_its_error() {
    let lab = Lab::new();
    lab.img("create -q -f raw a.raw 1M");
    lab.define("web", &disk("vda", "raw", "a.raw"));
    lab.define("empty", "");
    let (options, state_dir) = (options(), lab.path("state"));
    let context = PlanContext { options: &options, state_dir: &state_dir, archive_devices: &[] };
    let all = plan_all(&lab.world, &LocalFiles, &context).unwrap();
    let seen: Vec<_> =
        all.iter().map(|(info, plan)| (info.name.as_str(), plan.as_ref().unwrap().obstacles.len())).collect();
    assert_eq!(seen, [("empty", 1), ("web", 0)]);
    assert_eq!(sentences(all[0].1.as_ref().unwrap()), ["no disk to copy"]);
}

#[test]
fn volumes_are_looked_up() {
    let lab = Lab::new();
    lab.img("create -q -f raw vol.raw 1M");
    let text = "<domain><name>x</name><devices><disk type='volume'><driver type='raw'/><source pool='p' volume='vol.raw'/>\
                <target dev='vda'/></disk></devices></domain>";
    let mut xml = DomainXml::parse(text).unwrap();
    let failed = volumes::resolve(&lab.world, &mut xml);
    assert!(failed.len() == 1 && failed[0].1.sentence.starts_with("disk 'vda': "), "{failed:?}");
    lab.world.add_pool("p", lab.folder.path());
    lab.world.put_image(&lab.path("vol.raw"), Default::default());
    assert!(volumes::resolve(&lab.world, &mut xml).is_empty());
    assert_eq!(xml.disks[0].image.source.path(), Some(lab.path("vol.raw").as_path()));
}
