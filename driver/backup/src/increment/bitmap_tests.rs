//! Increments by the bitmaps of real qcow2 images against what QEMU reads of them: writes, zeros, discards,
//! sizes that change and come back, and bitmaps that are lost, switched off or not saved.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use proptest::prelude::*;
use uuid::Uuid;

use super::model_tests::restored;
use super::*;
use crate::Control;
use crate::destinations::Destinations;
use crate::options::{BackupKindRule, BackupOptions};
use crate::resume::StateDirectories;
use crate::retention;
use crate::session::{BackupInput, BackupSession, DiskReport, InputDisk};
use virtfold_archive::manifest::BackupSubject;
use virtfold_archive::stream::Compression;
use virtfold_base::units::BlockSize;
use virtfold_catalog::Catalog;
use virtfold_image::{DiskImage, Format, OpenOptions};
use virtfold_medium::Location;

const SIZE: u64 = 4 << 20;

/// An image over another one.
struct World {
    folder: tempfile::TempDir,
    block: Option<BlockSize>,
    archives: Vec<(Uuid, PathBuf)>,
}

impl World {
    fn new(cluster: &str, block: Option<u64>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("backup")).unwrap();
        let world = Self { folder, block: block.and_then(BlockSize::new), archives: Vec::new() };
        world.run("qemu-img", &["create", "-q", "-f", "raw", "base.raw", &SIZE.to_string()]);
        world.run("qemu-io", &["-f", "raw", "-c", "write -P 9 1M 300k", "base.raw"]);
        let cluster = format!("cluster_size={cluster}");
        let made = ["create", "-q", "-f", "qcow2", "-o", &cluster, "-b", "base.raw", "-F", "raw", "a.qcow2"];
        world.run("qemu-img", &made);
        world
    }

    fn run(&self, tool: &str, args: &[&str]) {
        let done = Command::new(tool).args(args).current_dir(self.folder.path()).output().unwrap();
        assert!(done.status.success(), "{tool} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    fn io(&self, commands: &[String]) {
        let commands = commands.iter().flat_map(|command| ["-c", command]);
        self.run(
            "qemu-io",
            &["-d", "unmap", "-f", "qcow2", "a.qcow2"].into_iter().chain(commands).collect::<Vec<_>>(),
        );
    }

    fn try_resize(&self, size: u64) -> Output {
        self.try_img(&["resize", "-q", "--shrink", "-f", "qcow2", "a.qcow2", &size.to_string()])
    }

    fn try_img(&self, args: &[&str]) -> Output {
        Command::new("qemu-img").args(args).current_dir(self.folder.path()).output().unwrap()
    }

    /// A backup with a bitmap that is made just before it.
    fn backup(&mut self) -> DiskReport {
        let made = format!("b{}", self.archives.len());
        self.run("qemu-img", &["bitmap", "--add", "a.qcow2", &made]);
        let path = |name: &str| self.folder.path().join(name);
        let destinations = Destinations::local([Location::from(path("backup").as_path())]);
        let options = BackupOptions {
            compression: Compression::None,
            block_size: self.block,
            kind: BackupKindRule::Incremental,
            ..BackupOptions::default()
        };
        let (state, control) = (StateDirectories::new(path("state")), Control::default());
        let session = BackupSession {
            options: &options,
            destinations: &destinations,
            state: &state,
            control: &control,
        };
        let subject = BackupSubject::Domain { name: "web".to_owned(), uuid: Some(Uuid::from_u128(7)) };
        let parent = session.parent(&subject).unwrap();
        let first = parent
            .parent()
            .map(|parent| self.archives.iter().position(|(id, _)| *id == parent.state.head.archive).unwrap());
        let hint = first.map_or(ChangeHint::Unknown, |first| {
            ChangeHint::Bitmaps((first..=self.archives.len()).map(|number| format!("b{number}")).collect())
        });
        let image = DiskImage::open(&path("a.qcow2"), Format::Qcow2, &OpenOptions::default()).unwrap();
        let disks = vec![InputDisk { target: "vda".to_owned(), image, hint }];
        let (attachments, session_id) = (Vec::new(), None);
        let input = BackupInput {
            subject,
            freeze: None,
            attachments,
            disks,
            parent,
            checkpoint: None,
            session: session_id,
        };
        let report = session.write(input).unwrap().finish(&control).unwrap();
        let copies = retention::copies(&report, &destinations, None).unwrap();
        Catalog::open(&path("state")).unwrap().remember(&copies).unwrap();
        self.archives.push((report.id, PathBuf::from(&report.archive)));
        self.check();
        report.disks.into_iter().next().unwrap()
    }

    /// The newest archive gives back what QEMU reads.
    #[track_caller]
    fn check(&self) {
        let paths: Vec<PathBuf> = self.archives.iter().map(|(_, path)| path.clone()).collect();
        let found = restored(&paths, paths.last().unwrap(), "vda").unwrap();
        self.run("qemu-img", &["convert", "-q", "-f", "qcow2", "-O", "raw", "a.qcow2", "now.raw"]);
        let now = std::fs::read(self.folder.path().join("now.raw")).unwrap();
        assert_eq!(found.len(), now.len());
        let first = found.iter().zip(&now).position(|(found, now)| found != now);
        assert_eq!(first, None, "the first byte that is not as QEMU reads it");
    }
}

fn method(disk: &DiskReport) -> (&str, &str) {
    let changes = disk.changes.as_ref().unwrap();
    (&changes.method, changes.reason.as_deref().unwrap_or_default())
}

fn text(command: &str) -> String {
    command.to_owned()
}

#[test]
fn what_bitmaps_mark_is_copied_and_nothing_else() {
    let mut world = World::new("64k", None);
    world.io(&[text("write -P 1 0 2M")]);
    world.backup();
    world.io(&[text("write -P 2 64k 1k"), text("discard 256k 128k"), text("write -z 1M 64k")]);
    let disk = world.backup();
    assert_eq!((method(&disk), disk.dense_length), (("bitmap", ""), 64 << 10));
    let disk = world.backup();
    assert_eq!((method(&disk), disk.dense_length), (("bitmap", ""), 0));
}

/// QEMU's bitmap has lost what it knew of the part that was cut off; the block at the cut is still there.
#[test]
fn a_disk_that_shrank_and_grew_back_is_compared() {
    for (cluster, block) in [("64k", None), ("4k", Some(64 << 10)), ("64k", Some(1 << 20))] {
        let mut world = World::new(cluster, block);
        world.io(&[text("write -P 2 2M 64k")]);
        world.backup();
        for size in [(2 << 20) + (32 << 10), SIZE] {
            assert!(world.try_resize(size).status.success());
        }
        let disk = world.backup();
        assert_eq!(method(&disk), ("compare", "its bitmap calls a block unchanged that is another one now"));
        assert_eq!(method(&world.backup()).0, "bitmap");
    }
}

/// The same name, the same bitmaps, the same image below: and yet another file.
#[test]
fn a_top_image_that_is_another_file_is_compared() {
    let mut world = World::new("64k", None);
    world.io(&[text("write -P 1 0 1M")]);
    world.backup();
    let path = |name: &str| world.folder.path().join(name);
    std::fs::copy(path("a.qcow2"), path("b.qcow2")).unwrap();
    std::fs::rename(path("b.qcow2"), path("a.qcow2")).unwrap();
    let disk = world.backup();
    assert_eq!(method(&disk), ("compare", "its image is another file than in the parent"));
    assert_eq!(method(&world.backup()).0, "bitmap");
}

/// What happens to the image between two backups.
#[derive(Clone, Debug)]
enum Change {
    Io(&'static str, u64, u64),
    Resize(u64),
    ResizeAndBack(u64),
    WriteBelow(u64),
    LoseBitmap,
    SwitchOff,
    Crash(u64),
}

fn change() -> impl Strategy<Value = Change> {
    let io = |command| {
        (0..SIZE / 512, 1..400_u64).prop_map(move |(at, len)| Change::Io(command, at * 512, len * 512))
    };
    let size = || (SIZE / 1024..SIZE / 512).prop_map(|sectors| sectors * 512);
    prop_oneof![
        6 => io("write -P 5"),
        2 => io("write -z"),
        2 => io("discard"),
        1 => size().prop_map(Change::Resize),
        2 => size().prop_map(Change::ResizeAndBack),
        1 => (0..SIZE / 512).prop_map(|sector| Change::WriteBelow(sector * 512)),
        1 => Just(Change::LoseBitmap),
        1 => Just(Change::SwitchOff),
        1 => (0..SIZE / 1024).prop_map(|sector| Change::Crash(sector * 512)),
    ]
}

fn size_of(path: &Path) -> u64 {
    DiskImage::open(path, Format::Qcow2, &OpenOptions::default()).unwrap().capacity()
}

impl World {
    fn apply(&self, change: &Change) {
        let size = size_of(&self.folder.path().join("a.qcow2"));
        let newest = format!("b{}", self.archives.len().saturating_sub(1));
        match *change {
            Change::Io(command, at, len) => {
                let at = at.min(size - 512);
                self.io(&[format!("{command} {at} {}", len.min(size - at))]);
            }
            // QEMU resizes no image that has a bitmap which was not saved.
            Change::Resize(to) => drop(self.try_resize(to)),
            Change::ResizeAndBack(to) => drop((self.try_resize(to), self.try_resize(size))),
            Change::WriteBelow(at) => {
                self.run("qemu-io", &["-f", "raw", "-c", &format!("write -P 8 {at} 512"), "base.raw"]);
            }
            // There is none before the first backup, and a second time there is none any more.
            Change::LoseBitmap => drop(self.try_img(&["bitmap", "--remove", "a.qcow2", &newest])),
            Change::SwitchOff => drop(self.try_img(&["bitmap", "--disable", "a.qcow2", &newest])),
            Change::Crash(at) => {
                let (write, file) = (format!("write -P 4 {at} 512"), "a.qcow2");
                let killed = Command::new("qemu-io")
                    .args(["-f", "qcow2", "-c", &write, "-c", "flush", "-c", "sigraise 9", file])
                    .current_dir(self.folder.path())
                    .output()
                    .unwrap();
                assert!(!killed.status.success());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    /// Whatever happens between two backups, each gives back what QEMU read at its time.
    #[test]
    fn increments_by_bitmaps_give_back_each_point_in_time(
        cluster in prop_oneof![Just("4k"), Just("64k")],
        block in prop_oneof![Just(None), Just(Some(64 << 10)), Just(Some(256 << 10))],
        steps in proptest::collection::vec(proptest::collection::vec(change(), 0..4), 3..5),
    ) {
        let mut world = World::new(cluster, block);
        for changes in &steps {
            changes.iter().for_each(|change| world.apply(change));
            world.backup();
        }
    }
}
