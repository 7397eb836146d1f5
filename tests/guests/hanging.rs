//! A medium that hangs while a guest is backed up: the guest comes back onto its disks, whatever stands in
//! the kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cli::{backup, everything, overlays, virtfold_in, virtfold_in_within};
use crate::common::MIB;
use crate::common::mount::{FrozenMount, Mount};
use crate::common::run::{Outcome, collect_within, exit, is_there, stands_in_the_kernel, text, virtfold};
use crate::lab::{Guest, GuestSpec, Lab, wait_for};

/// How long the guest's way back may take, on a busy machine. The medium hangs for as long as the test wants.
const BACK: Duration = Duration::from_secs(30);

/// A guest whose backup stands before a frozen medium.
struct Hanging<'a> {
    lab: &'a Lab,
    overlays: PathBuf,
    child: Child,
    _frozen: FrozenMount<'a>,
    /// What stands in the kernel.
    stuck: u32,
}

impl<'a> Hanging<'a> {
    fn start(guest: &'a Guest<'_>, medium: &'a Mount, more: &[&str]) -> Self {
        let (lab, to) = (guest.lab, medium.path().join("archives"));
        let common =
            ["backup", guest.name(), "--to", text(&to), "--compress", "none", "--limit-rate", "2MiB"];
        let mut command = virtfold([&common[..], more].concat());
        command.env("VIRTFOLD_CONNECT", lab.uri()).env("VIRTFOLD_STATE_DIR", lab.folder().join("state"));
        command.env("VIRTFOLD_GUARDS", lab.folder().join("guards"));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let folder = if more.contains(&"--overlay-dir") { lab.small() } else { guest.folder.clone() };
        // What an earlier run left goes before.
        wait_for("the guest is on its overlay", 60, || !overlays(&folder).is_empty());
        wait_for("the archive has begun", 60, || fs::read_dir(&to).unwrap().count() > 0);
        let frozen = medium.freeze();
        let mut stuck = None;
        wait_for("the write stands in the kernel", 30, || {
            stuck = stands_in_the_kernel(child.id());
            stuck.is_some()
        });
        assert!(!overlays(&folder).is_empty(), "the guest is not on its overlay");
        Self { lab, overlays: folder, child, _frozen: frozen, stuck: stuck.unwrap() }
    }

    fn signal(&self, which: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), which).unwrap();
    }

    /// The guest is back while the medium still hangs; how the run ended.
    fn comes_back(self, guest: &Guest<'_>, since: Instant) -> Outcome {
        while !overlays(&self.overlays).is_empty() {
            assert!(since.elapsed() < BACK, "the guest is still on {:?}", overlays(&self.overlays));
            std::thread::sleep(Duration::from_millis(20));
        }
        println!("the guest is back after {:?}", since.elapsed());
        guest.progress.wait_more(20);
        let outcome = collect_within(BACK, "virtfold backup".to_owned(), self.child);
        println!("{outcome}");
        assert!(is_there(self.stuck), "nothing stands in the kernel any more: nothing was tried");
        let said = format!("the copy of 'writer' was abandoned; process {} hangs in the kernel", self.stuck);
        assert!(outcome.stderr.contains(&said), "{outcome}");
        let recovered = virtfold_in(self.lab, &["recover", "--dry-run"]).ok();
        assert!(recovered.text().contains("nothing to recover"), "{recovered}");
        outcome
    }
}

fn fill(folder: &Path, keep: u64) -> PathBuf {
    let stat = nix::sys::statvfs::statvfs(folder).unwrap();
    let free = stat.blocks_available() * stat.fragment_size();
    let filler = folder.join("filler");
    fs::write(&filler, vec![1; usize::try_from(free - keep).unwrap()]).unwrap();
    filler
}

#[test]
fn a_guest_comes_back_while_the_medium_hangs() {
    let lab = Lab::start();
    // It writes slowly, so that its overlay has room.
    let guest = lab.guest(GuestSpec { pause_us: Some(20_000), ..GuestSpec::default() });
    guest.start();
    guest.progress.wait_more(300);
    let before = everything(&guest);
    let file = lab.folder().join("medium.img");
    let medium = Mount::made(&lab.folder().join("medium"), &file, 256 * MIB, &["mkfs.ext4", "-q"]);
    fs::create_dir(medium.path().join("archives")).unwrap();

    let hanging = Hanging::start(&guest, &medium, &[]);
    let told = Instant::now();
    hanging.signal(Signal::SIGTERM);
    hanging.comes_back(&guest, told).exits(exit::SIGTERM);
    assert_eq!(everything(&guest), before);

    let small = lab.small();
    let room = ["--overlay-dir", text(&small), "--min-free", "8MiB"];
    let hanging = Hanging::start(&guest, &medium, &room);
    let told = Instant::now();
    let filler = fill(&small, 6 * MIB);
    let gave_way = hanging.comes_back(&guest, told).exits(exit::NO_SPACE);
    assert!(gave_way.stderr.contains("the backup was aborted"), "{gave_way}");
    fs::remove_file(filler).unwrap();
    assert_eq!(everything(&guest), before);

    // Whoever is killed leaves the guest to a recovery, and no lock to anybody.
    let hanging = Hanging::start(&guest, &medium, &[]);
    hanging.signal(Signal::SIGKILL);
    let Hanging { child, _frozen: frozen, stuck, .. } = hanging;
    assert_eq!(collect_within(BACK, "killed".to_owned(), child).shell_code(), 137);
    assert!(is_there(stuck), "nothing stands in the kernel: nothing was tried");
    let told = Instant::now();
    let recovered = virtfold_in_within(BACK, &lab, &["recover", "writer"]).ok();
    println!("after {:?}\n{recovered}", told.elapsed());
    assert_eq!(everything(&guest), before);
    drop(frozen);

    wait_for("all that stood in the kernel has ended", 30, || !is_there(stuck));
    let (archive, _) = backup(&guest, &["--to", text(&medium.path().join("archives")), "--compress", "none"]);
    virtfold_in(&lab, &["verify", text(&archive)]).ok();
    let left: Vec<_> =
        fs::read_dir(medium.path().join("archives")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(left.len(), 1, "{left:?}");
    guest.progress.wait_more(20);
}
