//! Encrypted archives: standard tools alone get the disks back, no key but the right one does, and what was
//! changed is refused.
//!
//! Needs `age` and `age-keygen` (Debian package `age`).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::common::archive::{
    Method, assert_same_outside, backup, backup_args, damage, restore_args, second_reader,
};
use crate::common::image::{Format, Image};
use crate::common::rng::{Rng, run_seed};
use crate::common::run::{Outcome, exit, pipe, run, text, tool, virtfold};
use crate::common::scratch::{Scratch, names};
use crate::common::{KIB, MIB};

/// What age cuts its payload into, with the authenticator.
const PIECE: usize = 65_552;

/// A key pair in a file.
pub(crate) struct Key {
    pub(crate) path: PathBuf,
    pub(crate) public: String,
    secret: String,
}

impl Key {
    pub(crate) fn new(scratch: &Scratch, name: &str) -> Self {
        let path = scratch.join(name);
        run(&mut tool("age-keygen", ["-o", text(&path)])).ok();
        let public = run(&mut tool("age-keygen", ["-y", text(&path)])).ok().last_line().to_owned();
        let secret = fs::read_to_string(&path).unwrap();
        let secret = secret.lines().find(|line| line.starts_with("AGE-SECRET-KEY-")).unwrap().to_owned();
        Self { path, public, secret }
    }
}

/// A disk of `mib` MiB, a good part of it noise in scattered pieces.
pub(crate) fn disk(scratch: &Scratch, name: &str, mib: u64) -> Image {
    let mut rng = Rng::of_case(name, 0);
    let noise = scratch.join("noise");
    fs::write(&noise, rng.bytes(1 << 20)).unwrap();
    let image = Image::create(scratch.join(name), Format::Qcow2, "", mib * MIB);
    let write = |_| {
        let at = rng.below(mib * 16 - 8) * 64 * KIB;
        format!("write -s {} {at} {}", text(&noise), rng.within(1, 8) * 64 * KIB)
    };
    image.io(&(0..2 * mib).map(write).collect::<Vec<_>>());
    image
}

fn restore_with(archive: &Path, key: &Key, target: &Image, method: Method) -> Outcome {
    let disk = format!("vda={}", target.text());
    let mut args = restore_args(text(archive), &disk, target.format, method);
    args.extend(["--identity", text(&key.path)]);
    run(&mut virtfold(args))
}

fn verify_with(archive: &Path, key: &Key) -> Outcome {
    run(&mut virtfold(["verify", text(archive), "--json", "--identity", text(&key.path)]))
}

#[test]
fn age_and_tar_alone_give_the_disk_back_and_each_key_does() {
    for (compress, end, flags) in [("none", ".tar.age", "-xf"), ("zstd", ".tar.zst.age", "--zstd -xf")] {
        let scratch = Scratch::new(&format!("age-{compress}"));
        let keys = [Key::new(&scratch, "one.key"), Key::new(&scratch, "two.key")];
        let file = scratch.join("recipients");
        fs::write(&file, format!("# the vault\n{}\n", keys[1].public)).unwrap();
        let source = disk(&scratch, "source.qcow2", 12);
        let to_both = ["--compress", compress, "--encrypt-to", &keys[0].public, "--recipients", text(&file)];
        let archive = backup(&source, &scratch.folder("archives"), &to_both);
        assert!(text(&archive).ends_with(end), "{}", archive.display());
        assert_eq!(fs::metadata(&archive).unwrap().permissions().mode() & 0o777, 0o600);
        for (number, key) in keys.iter().enumerate() {
            let plain = scratch.join(format!("plain{number}.tar"));
            run(&mut tool("age", ["-d", "-i", text(&key.path), "-o", text(&plain), text(&archive)])).ok();
            run(&mut virtfold(["verify", text(&plain)])).ok();
            let out = scratch.folder(&format!("out{number}"));
            let args = flags.split(' ').chain([text(&plain), "-C", text(&out)]);
            let said = run(&mut tool("tar", args)).ok();
            assert!(said.stderr.is_empty(), "tar complains\n{said}");
            source.assert_same_disk(&Image::new(out.join("vda.raw"), Format::Raw));
            verify_with(&archive, key).ok();
            second_reader(&archive, &["--identity", text(&key.path)]);
            for (format, method) in [
                (Format::Raw, Method::Rewrite),
                (Format::Qcow2, Method::Rewrite),
                (Format::Qcow2, Method::Remap),
            ] {
                let name = format!("{number}-{}.{}", method.name(), format.name());
                let target = Image::new(scratch.join(name), format);
                restore_with(&archive, key, &target, method).ok();
                source.assert_same_disk(&target);
            }
        }
        // And what age itself encrypted.
        let again = scratch.join(format!("again{end}"));
        let plain = scratch.join("plain0.tar");
        run(&mut tool("age", ["-r", &keys[1].public, "-o", text(&again), text(&plain)])).ok();
        verify_with(&again, &keys[1]).ok();
        verify_with(&again, &keys[0]).exits(exit::LOCKED);
    }
}

#[test]
fn archives_go_through_pipes() {
    let scratch = Scratch::new("age-pipe");
    let key = Key::new(&scratch, "key");
    let source = disk(&scratch, "source.qcow2", 8);
    for compress in ["none", "zstd"] {
        let target = Image::new(scratch.join(format!("{compress}.qcow2")), Format::Qcow2);
        let to = format!("vda={}", target.text());
        let more = ["--compress", compress, "--encrypt-to", &key.public];
        let read = ["restore", "-", "--disk", &to, "--identity", text(&key.path)];
        let (wrote, restored) = pipe(&mut virtfold(backup_args(&source, "-", &more)), &mut virtfold(read));
        wrote.ok();
        restored.ok();
        source.assert_same_disk(&target);
        // Without the key, and through age.
        let (_, refused) = pipe(
            &mut virtfold(backup_args(&source, "-", &more)),
            &mut virtfold(["restore", "-", "--output", text(&scratch.folder("none"))]),
        );
        refused.exits(exit::LOCKED);
        let plain = scratch.join(format!("{compress}.tar"));
        let (_, decrypted) = pipe(
            &mut virtfold(backup_args(&source, "-", &more)),
            &mut tool("age", ["-d", "-i", text(&key.path), "-o", text(&plain)]),
        );
        decrypted.ok();
        run(&mut virtfold(["verify", text(&plain)])).ok();
    }
    assert!(names(&scratch.folder("none")).is_empty());
}

#[test]
fn a_disk_of_several_is_had_without_reading_the_others() {
    let scratch = Scratch::new("age-two");
    let key = Key::new(&scratch, "key");
    let (a, b) = (disk(&scratch, "a.qcow2", 6), disk(&scratch, "b.qcow2", 6));
    let more = ["--image", b.text(), "--compress", "none", "--encrypt-to", &key.public];
    let archive = backup(&a, &scratch.folder("archives"), &more);
    // In the middle of the second disk's bytes.
    let mut bytes = fs::read(&archive).unwrap();
    let place = bytes.len() / 4 * 3;
    bytes[place] ^= 1;
    fs::write(&archive, &bytes).unwrap();
    let target = Image::new(scratch.join("a2.qcow2"), Format::Qcow2);
    restore_with(&archive, &key, &target, Method::Rewrite).ok();
    a.assert_same_disk(&target);
    let other = format!("vdb={}", text(&scratch.join("b2.qcow2")));
    run(&mut virtfold(["restore", text(&archive), "--disk", &other, "--identity", text(&key.path)]))
        .exits(exit::DAMAGED);
    assert!(!scratch.join("b2.qcow2").exists());
    let table = ["table", text(&archive), "--disk", "vdb", "--identity", text(&key.path)];
    assert!(run(&mut virtfold(table)).ok().text().contains("FIG. 12"));
}

#[test]
fn list_and_show_name_what_they_cannot_open() {
    let scratch = Scratch::new("age-list");
    let (key, other) = (Key::new(&scratch, "key"), Key::new(&scratch, "other"));
    let archives = scratch.folder("archives");
    let archive = backup(&disk(&scratch, "source.qcow2", 2), &archives, &["--encrypt-to", &key.public]);
    let status = |args: &[&str]| {
        let listed = run(&mut virtfold([&["list", "--json", text(&archives)], args].concat())).ok();
        let glance = listed.json()["archives"][0].clone();
        assert_eq!(glance["encrypted"], true);
        (glance["status"].as_str().unwrap().to_owned(), glance["head"].is_null())
    };
    assert_eq!(status(&[]), ("encrypted".to_owned(), true));
    assert_eq!(status(&["--identity", text(&other.path)]), ("encrypted".to_owned(), true));
    let both = ["--identity", text(&other.path), "--identity", text(&key.path)];
    assert_eq!(status(&both), ("complete".to_owned(), false));
    for verb in
        [&["show"][..], &["verify"], &["table", "--disk", "vda"], &["restore", "--disk", "vda=/nowhere/x"]]
    {
        run(&mut virtfold([verb, &[text(&archive)]].concat())).exits(exit::LOCKED);
        let wrong = ["--identity", text(&other.path)];
        run(&mut virtfold([verb, &[text(&archive)], &wrong].concat())).exits(exit::LOCKED);
    }
    run(&mut virtfold(["show", text(&archive), "--identity", text(&key.path)])).ok();
    let bytes = fs::read(&archive).unwrap();
    fs::write(&archive, &bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(status(&both), ("incomplete".to_owned(), true));
}

#[test]
fn keys_are_guarded_and_never_told() {
    let scratch = Scratch::new("age-keys");
    let key = Key::new(&scratch, "key");
    let source = disk(&scratch, "source.qcow2", 2);
    let archives = scratch.folder("archives");
    // Everything that is said, at the loudest.
    let mut loud = virtfold(backup_args(&source, text(&archives), &["--json", "--encrypt-to", &key.public]));
    let done = run(loud.env("VIRTFOLD_LOG", "trace")).ok();
    let summary = done.json_lines().pop().unwrap();
    assert_eq!(summary["encrypted"], true);
    let archive = PathBuf::from(summary["archive"].as_str().unwrap());
    let mut loud = virtfold(["verify", "--json", text(&archive), "--identity", text(&key.path)]);
    let checked = run(loud.env("VIRTFOLD_LOG", "trace")).ok();
    for outcome in [&done, &checked] {
        assert!(!format!("{outcome}").contains(&key.secret), "a key is told");
    }
    // Key files that others can use, or that are something else.
    for mode in [0o640, 0o604, 0o644] {
        fs::set_permissions(&key.path, fs::Permissions::from_mode(mode)).unwrap();
        let refused = verify_with(&archive, &key).exits(exit::USAGE);
        assert!(refused.stderr.contains("chmod 600"), "{refused}");
    }
    fs::set_permissions(&key.path, fs::Permissions::from_mode(0o600)).unwrap();
    verify_with(&archive, &key).ok();
    let rubbish = scratch.join("rubbish.key");
    fs::write(&rubbish, &key.secret[..key.secret.len() - 1]).unwrap();
    fs::set_permissions(&rubbish, fs::Permissions::from_mode(0o600)).unwrap();
    let refused =
        run(&mut virtfold(["verify", text(&archive), "--identity", text(&rubbish)])).exits(exit::USAGE);
    assert!(!refused.stderr.contains("AGE-SECRET-KEY-1Q") && !refused.stderr.contains(&key.secret[20..60]));
    // A secret key in the place of a public one is not repeated.
    for secret in [key.secret.clone(), key.secret.to_lowercase()] {
        let refused = run(&mut virtfold(backup_args(&source, text(&archives), &["--encrypt-to", &secret])));
        let refused = refused.exits(exit::USAGE);
        assert!(!refused.stderr.contains(&secret) && refused.stderr.contains("secret key"));
    }
    run(&mut virtfold(backup_args(&source, text(&archives), &["--encrypt-to", "age1nobody"])))
        .exits(exit::USAGE);
    assert_eq!(names(&archives).len(), 1);
}

#[test]
fn the_configuration_says_whom_to_encrypt_to() {
    let scratch = Scratch::new("age-config");
    let (key, other) = (Key::new(&scratch, "key"), Key::new(&scratch, "other"));
    let file = scratch.join("recipients");
    fs::write(&file, &other.public).unwrap();
    let config = scratch.join("config.yaml");
    let yaml =
        format!("version: 1\ndefaults:\n  encrypt-to: {}\n  recipients: {}\n", key.public, text(&file));
    fs::write(&config, yaml).unwrap();
    let source = disk(&scratch, "source.qcow2", 2);
    let made = |name: &str, more: &[&str]| {
        backup(&source, &scratch.folder(name), &[&["--config", text(&config)], more].concat())
    };
    let by_config = made("config", &[]);
    verify_with(&by_config, &key).ok();
    verify_with(&by_config, &other).ok();
    let by_option = made("option", &["--encrypt-to", &other.public]);
    verify_with(&by_option, &key).exits(exit::LOCKED);
    verify_with(&by_option, &other).ok();
    let plain = made("plain", &["--no-encryption"]);
    assert!(text(&plain).ends_with(".tar.zst"));
}

/// An encrypted archive, the disk in it, and ways to spoil it.
struct Subject {
    scratch: Scratch,
    key: Key,
    rng: Rng,
    archive: PathBuf,
    bytes: Vec<u8>,
    disk: Vec<u8>,
}

impl Subject {
    fn new(label: &str, compress: &str) -> Self {
        let scratch = Scratch::new(label);
        let key = Key::new(&scratch, "key");
        let source = disk(&scratch, "source.qcow2", 6);
        let raw = fs::read(source.convert_to_raw(&scratch.join("source.raw")).path).unwrap();
        let more = ["--compress", compress, "--encrypt-to", &key.public];
        let made = backup(&source, &scratch.folder("archives"), &more);
        let bytes = fs::read(&made).unwrap();
        let archive = scratch.join("spoilt.tar.age");
        Self { rng: Rng::of_case(label, 0), scratch, key, archive, bytes, disk: raw }
    }

    /// Looks at `bytes` as an archive: all of it must be refused, or nothing of the disk be concerned;
    /// `verify` refuses in any case.
    fn refuse(&self, bytes: &[u8], context: &str) {
        fs::write(&self.archive, bytes).unwrap();
        let codes = [exit::DAMAGED, exit::INCOMPLETE, exit::BAD_IMAGE, exit::LOCKED];
        verify_with(&self.archive, &self.key).exits_one_of(&codes);
        let target = Image::new(self.scratch.join("strict.raw"), Format::Raw);
        let strict = restore_with(&self.archive, &self.key, &target, Method::Rewrite);
        if strict.code() == Some(exit::OK) {
            assert!(fs::read(&target.path).unwrap() == self.disk, "another disk: {context}\n{strict}");
            fs::remove_file(&target.path).unwrap();
        } else {
            strict.exits_one_of(&codes);
            assert!(!target.path.exists(), "a half disk under its name: {context}");
        }
        let to = format!("vda={}", text(&self.scratch.join("rescued.raw")));
        let mut args = restore_args(text(&self.archive), &to, Format::Raw, Method::Rewrite);
        args.extend(["--partial", "--json", "--identity", text(&self.key.path)]);
        let outcome = run(&mut virtfold(args));
        let rescued = self.scratch.join("rescued.raw");
        if rescued.exists() {
            let lost = damage(&outcome);
            assert!(outcome.code() != Some(exit::OK) || lost.is_empty(), "{context}\n{outcome}");
            assert_same_outside(&self.disk, &fs::read(&rescued).unwrap(), &lost, context);
            fs::remove_file(&rescued).unwrap();
        } else {
            outcome.exits_one_of(&codes);
        }
    }

    fn spoil(&mut self) {
        let len = self.bytes.len();
        let below = |rng: &mut Rng, n: usize| usize::try_from(rng.below(n as u64)).unwrap();
        let mut places = vec![0, 25, 100, len / 3, len - PIECE, len - 1];
        places.extend((0..8).map(|_| below(&mut self.rng, len)));
        for place in places {
            let mut bad = self.bytes.clone();
            bad[place] ^= 1 << (place % 8);
            self.refuse(&bad, &format!("seed {}, byte {place} of {len}", run_seed()));
        }
        let mut cuts = vec![0, 10, 150, PIECE, len - PIECE, len - 1];
        cuts.extend((0..4).map(|_| below(&mut self.rng, len)));
        for cut in cuts {
            self.refuse(&self.bytes[..cut], &format!("seed {}, cut at {cut} of {len}", run_seed()));
        }
        // Whatever the header's length: pieces are moved as a whole when so many bytes are.
        let (from, piece) = (self.bytes.len() % PIECE + PIECE, PIECE);
        let mut swapped = self.bytes.clone();
        let (a, b) = swapped[from..].split_at_mut(piece);
        a.swap_with_slice(&mut b[..piece]);
        self.refuse(&swapped, "two pieces exchanged");
        self.refuse(&[&self.bytes[..from], &self.bytes[from + piece..]].concat(), "a piece left out");
        self.refuse(&[&self.bytes[..from + piece], &self.bytes[from..]].concat(), "a piece doubled");
        self.refuse(&[&self.bytes[..], b"more"].concat(), "something follows");
        // Zeros are what media of whole blocks put there.
        let padded = self.scratch.join(self.archive.file_name().unwrap());
        fs::write(&padded, [&self.bytes[..], &[0; 70_000]].concat()).unwrap();
        let told = verify_with(&padded, &self.key).ok();
        assert!(told.stderr.contains("70000 zeros behind its end"), "{told}");
    }
}

#[test]
fn a_spoilt_plain_archive_is_refused() {
    Subject::new("age-spoilt-plain", "none").spoil();
}

#[test]
fn a_spoilt_compressed_archive_is_refused() {
    Subject::new("age-spoilt-zstd", "zstd").spoil();
}
