//! What lies behind an archive: zeros, where media are cut into blocks; on a device, what was there before.
//! Neither is of the archive, and both are told.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::archive::{Method, backup, restore_args, second_reader};
use crate::common::image::{Format, Image};
use crate::common::mount::Loop;
use crate::common::run::{Outcome, exit, run, text, virtfold};
use crate::common::scratch::Scratch;
use crate::encryption::{Key, disk};

/// A kind of archive.
#[derive(Clone, Copy, Debug)]
struct Kind {
    compress: &'static str,
    encrypted: bool,
}

const KINDS: [Kind; 4] = [
    Kind { compress: "none", encrypted: false },
    Kind { compress: "zstd", encrypted: false },
    Kind { compress: "none", encrypted: true },
    Kind { compress: "zstd", encrypted: true },
];

struct Subject {
    scratch: Scratch,
    key: Key,
    archive: PathBuf,
    bytes: Vec<u8>,
    disk: Vec<u8>,
    encrypted: bool,
}

impl Subject {
    fn new(kind: Kind) -> Self {
        let Kind { compress, encrypted } = kind;
        let scratch = Scratch::new(&format!("behind-{compress}-{encrypted}"));
        let key = Key::new(&scratch, "key");
        let source = disk(&scratch, "source.qcow2", 6);
        let raw = fs::read(source.convert_to_raw(&scratch.join("source.raw")).path).unwrap();
        let mut more = vec!["--compress", compress];
        if encrypted {
            more.extend(["--encrypt-to", &key.public]);
        }
        let archive = backup(&source, &scratch.folder("archives"), &more);
        let bytes = fs::read(&archive).unwrap();
        Self { scratch, key, archive, bytes, disk: raw, encrypted }
    }

    /// `args`, with the key where it is wanted.
    fn run(&self, args: &[&str]) -> Outcome {
        let mut args = args.to_vec();
        if self.encrypted {
            args.extend(["--identity", text(&self.key.path)]);
        }
        run(&mut virtfold(args))
    }

    /// `args` with `archive` as standard input.
    fn piped(&self, archive: &Path, args: &[&str]) -> Outcome {
        let key = format!("--identity {}", text(&self.key.path));
        let key = if self.encrypted { key.as_str() } else { "" };
        let program = env!("CARGO_BIN_EXE_virtfold");
        let line = format!("exec {program} {} {key} < {}", args.join(" "), text(archive));
        run(std::process::Command::new("sh").args(["-c", &line]))
    }

    /// Restores from `archive`, and fails unless it is the disk.
    fn restores(&self, archive: &Path, more: &[&str]) {
        let target = self.scratch.join("whole.raw");
        let to = format!("vda={}", text(&target));
        let mut args = restore_args(text(archive), &to, Format::Raw, Method::Rewrite);
        args.extend(more);
        self.run(&args).ok();
        assert!(fs::read(&target).unwrap() == self.disk, "another disk");
        fs::remove_file(&target).unwrap();
    }

    /// A device of `mib` MiB that had an older archive on it before this one: its tail is there still.
    fn used_device(&self, older: &Self, mib: usize, fill: u8) -> Loop {
        let mut bytes = older.bytes.clone();
        assert!(bytes.len() > self.bytes.len(), "the older one is larger");
        bytes[..self.bytes.len()].copy_from_slice(&self.bytes);
        // What was there before that.
        bytes.resize(mib << 20, fill);
        let file = self.scratch.join("device");
        fs::write(&file, bytes).unwrap();
        Loop::attach(&file)
    }
}

#[test]
fn zeros_behind_what_comes_down_a_pipe_are_passed_over_and_told() {
    for kind in KINDS {
        let subject = Subject::new(kind);
        let padded = subject.scratch.join("padded");
        for zeros in [1, 16, 512, 65_552, 300_000] {
            fs::write(&padded, [&subject.bytes[..], &vec![0; zeros]].concat()).unwrap();
            let to = subject.scratch.folder("piped");
            let told =
                subject.piped(&padded, &["restore", "-", "--format", "raw", "--output", text(&to)]).ok();
            assert!(told.stderr.contains(&format!("{zeros} zeros behind its end")), "{kind:?}: {told}");
            assert!(fs::read(to.join("vda.raw")).unwrap() == subject.disk, "{kind:?}, {zeros}");
            fs::remove_dir_all(to).unwrap();
        }
        let key = ["--identity", text(&subject.key.path)];
        second_reader(&padded, if subject.encrypted { &key } else { &[] });
        // Anything else is not.
        for (zeros, more) in [(0, 1), (1, 1), (70_000, 1), (0, 70_000)] {
            let behind = [vec![0; zeros], vec![7; more]].concat();
            fs::write(&padded, [&subject.bytes[..], &behind].concat()).unwrap();
            let to = subject.scratch.folder("none");
            let refused = subject.piped(&padded, &["restore", "-", "--format", "raw", "--output", text(&to)]);
            refused.exits_one_of(&[exit::DAMAGED, exit::INCOMPLETE]);
            assert!(fs::read_dir(to).unwrap().next().is_none(), "{kind:?}");
        }
    }
}

#[test]
fn an_archive_on_a_device_ends_where_it_says_whatever_is_behind_it() {
    for kind in KINDS {
        let (subject, older) = (Subject::new(kind), older(kind));
        let device = subject.used_device(&older, 24, 0x5a);
        let name = text(device.device());
        let told = subject.run(&["verify", name]).ok();
        let behind = (24 << 20) - subject.bytes.len();
        assert!(told.stderr.contains(&format!("has {behind} bytes behind")), "{kind:?}: {told}");
        subject.restores(device.device(), &[]);
        subject.restores(device.device(), &["--partial"]);
        let shown = subject.run(&["show", name, "--json"]).ok();
        let original = subject.run(&["show", text(&subject.archive), "--json"]).ok();
        assert_eq!(shown.json()["root"], original.json()["root"], "{kind:?}");
        let listed = subject.run(&["list", name, "--json"]).ok().json();
        assert_eq!(listed["archives"][0]["status"], "complete", "{kind:?}: {listed}");
        // A file is what it is: nobody wrote behind it by its nature.
        let file = subject.scratch.join("device");
        subject.run(&["verify", text(&file)]).exits_one_of(&[exit::DAMAGED, exit::INCOMPLETE]);
    }
}

/// One byte costs no more there than in a file.
#[test]
fn damage_on_a_used_device_costs_what_it_hits() {
    for kind in KINDS {
        let (mut subject, older) = (Subject::new(kind), older(kind));
        let (whole, len) = (subject.bytes.clone(), subject.bytes.len());
        // In the second member's header, in the data, where an encrypted one is halved, in the tail.
        let places = [1600, len / 3, len / 2, len - 3000, len - 1100];
        let cases = places.into_iter().flat_map(|place| [(place, 0x5a), (place, 0)]);
        for (place, fill) in cases {
            subject.bytes = whole.clone();
            subject.bytes[place] ^= 4;
            let device = subject.used_device(&older, 24, fill);
            let target = subject.scratch.join("rescued.raw");
            let to = format!("vda={}", text(&target));
            let mut args = restore_args(text(device.device()), &to, Format::Raw, Method::Rewrite);
            args.extend(["--partial", "--json"]);
            let outcome = subject.run(&args).exits_one_of(&[exit::OK, exit::DAMAGED, exit::INCOMPLETE]);
            let damage = crate::common::archive::damage(&outcome);
            let lost: u64 = damage.iter().map(|range| range.length).sum();
            assert!(lost <= 2 << 20, "{kind:?}, byte {place} of {len}: {lost} bytes are lost\n{outcome}");
            let rescued = fs::read(&target)
                .unwrap_or_else(|e| panic!("{kind:?}, byte {place} of {len}: {e}\n{outcome}"));
            let context = format!("{kind:?}, byte {place} of {len}\n{outcome}");
            crate::common::archive::assert_same_outside(&subject.disk, &rescued, &damage, &context);
            fs::remove_file(&target).unwrap();
        }
    }
}

/// A larger archive of the same kind, of another disk.
fn older(kind: Kind) -> Subject {
    let Kind { compress, encrypted } = kind;
    let scratch = Scratch::new(&format!("behind-older-{compress}-{encrypted}"));
    let key = Key::new(&scratch, "key");
    let source = Image { path: scratch.join("noise.raw"), format: Format::Raw };
    let noise = crate::common::rng::Rng::of_case("behind-older", 0).bytes(12 << 20);
    fs::write(&source.path, &noise).unwrap();
    let mut more = vec!["--compress", compress];
    if encrypted {
        more.extend(["--encrypt-to", &key.public]);
    }
    let archive = backup(&source, &scratch.folder("archives"), &more);
    let bytes = fs::read(&archive).unwrap();
    Subject { scratch, key, archive, bytes, disk: noise, encrypted }
}
