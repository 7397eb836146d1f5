//! What ends a backup or a restore early - a full disk, a source that can't be read, a kill - leaves nothing
//! that looks complete, and says so with its own exit code. Signals: `signals.rs`; media that hang:
//! `hanging.rs`.
//!
//! Mounts and loop devices need root; without it these tests fail and say so.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::common::MIB;
use crate::common::archive::{
    Method, backup, backup_args, marks_of, records_of, restore, restore_args, verify,
};
use crate::common::image::{Format, Image};
use crate::common::mount::{Loop, Mount};
use crate::common::rng::Rng;
use crate::common::run::{collect, exit, line_of, run, text, tool, virtfold, wait_until};
use crate::common::scratch::{Scratch, names};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Long enough for anything here, even on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A qcow2 with `mib` MiB of incompressible data in a disk of ten times that.
pub(crate) fn noisy_image(rng: &mut Rng, path: PathBuf, mib: u64) -> Image {
    let noise = path.with_extension("noise");
    fs::write(&noise, rng.bytes(usize::try_from(mib * MIB).unwrap())).unwrap();
    let image = Image::create(path, Format::Qcow2, "", 10 * mib * MIB);
    image.io(&[format!("write -s {} 1M {mib}M", text(&noise))]);
    fs::remove_file(noise).unwrap();
    image
}

/// Names that a person or a script would take for finished archives.
pub(crate) fn finished(folder: &Path) -> Vec<PathBuf> {
    let names =
        names(folder).into_iter().filter(|name| !name.starts_with('.') && !name.ends_with(".partial"));
    names.map(|name| folder.join(name)).collect()
}

/// Names of unfinished archives, as the file medium gives them.
pub(crate) fn partial(folder: &Path) -> Vec<PathBuf> {
    let names = names(folder).into_iter().filter(|name| name.starts_with('.') && name.ends_with(".partial"));
    names.map(|name| folder.join(name)).collect()
}

/// Starts a backup that takes some seconds.
pub(crate) fn start_slow_backup(image: &Image, folder: &Path, compress: &str) -> (String, Child) {
    let more = ["--compress", compress, "--limit-rate", "4MiB"];
    let mut command = virtfold(backup_args(image, text(folder), &more));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    (line_of(&command), child)
}

pub(crate) fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

#[test]
fn a_full_medium_has_its_own_code_and_no_final_name() {
    let scratch = Scratch::new("full-medium");
    let image = noisy_image(&mut Rng::of_case("full", 0), scratch.join("source.qcow2"), 12);
    let small = Mount::tmpfs(&scratch.join("small"), 4 * MIB);
    for compress in ["none", "zstd"] {
        let outcome = run(&mut virtfold(backup_args(&image, text(small.path()), &["--compress", compress])));
        let outcome = outcome.exits(exit::NO_SPACE);
        assert_eq!(finished(small.path()), [] as [PathBuf; 0], "{outcome}");
        assert!(
            outcome.stderr.contains(text(small.path())),
            "it does not say which medium is full\n{outcome}"
        );
        for left in partial(small.path()) {
            fs::remove_file(left).unwrap();
        }
    }
}

#[test]
fn a_full_target_has_its_own_code_and_no_final_name() {
    let scratch = Scratch::new("full-target");
    let image = noisy_image(&mut Rng::of_case("full", 1), scratch.join("source.qcow2"), 12);
    let archives = scratch.folder("archives");
    let small = Mount::tmpfs(&scratch.join("small"), 4 * MIB);
    for compress in ["none", "zstd"] {
        let archive = backup(&image, &archives, &["--compress", compress]);
        for (method, format) in
            [(Method::Rewrite, Format::Raw), (Method::Rewrite, Format::Qcow2), (Method::Remap, Format::Qcow2)]
        {
            let target = Image::new(small.path().join("disk"), format);
            let outcome = restore(&archive, &target, method).exits(exit::NO_SPACE);
            assert_eq!(finished(small.path()), [] as [PathBuf; 0], "{outcome}");
            for left in partial(small.path()) {
                fs::remove_file(left).unwrap();
            }
        }
    }
}

#[test]
fn a_source_that_cannot_be_read_ends_the_backup() {
    // A loop device whose file was cut short gives EIO for what is missing.
    let scratch = Scratch::new("eio");
    let file = scratch.join("device.img");
    fs::write(&file, Rng::of_case("eio", 0).bytes(8 << 20)).unwrap();
    let device = Loop::attach(&file);
    fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(5 * MIB).unwrap();
    let archives = scratch.folder("archives");
    for compress in ["none", "zstd"] {
        let image = Image::new(device.device(), Format::Raw);
        let args = backup_args(&image, text(&archives), &["--compress", compress]);
        let outcome = run(&mut virtfold(args)).exits(exit::FAILURE);
        assert_eq!(finished(&archives), [] as [PathBuf; 0], "{outcome}");
        assert!(outcome.stderr.contains(text(device.device())), "it does not name the device\n{outcome}");
    }
}

#[test]
fn a_block_device_is_a_source_and_a_target() {
    let scratch = Scratch::new("block");
    let mut rng = Rng::of_case("block", 0);
    let (from, to) = (scratch.join("from.img"), scratch.join("to.img"));
    let mut bytes = rng.bytes(8 << 20);
    bytes[2 << 20..5 << 20].fill(0);
    fs::write(&from, &bytes).unwrap();
    fs::write(&to, rng.bytes(8 << 20)).unwrap();
    let (source, target) = (Loop::attach(&from), Loop::attach(&to));
    let image = Image::new(source.device(), Format::Raw);
    let archive = backup(&image, &scratch.folder("archives"), &[]);
    let disk = Image::new(target.device(), Format::Raw);
    restore(&archive, &disk, Method::Rewrite).exits(exit::EXISTS);
    let to_device = format!("vda={}", disk.text());
    let mut args = restore_args(text(&archive), &to_device, Format::Raw, Method::Rewrite);
    args.push("--force");
    run(&mut virtfold(args)).ok();
    run(&mut tool("cmp", [image.text(), disk.text()])).ok();
}

#[test]
fn nothing_is_overwritten_unless_forced() {
    let scratch = Scratch::new("exists");
    let image = noisy_image(&mut Rng::of_case("exists", 0), scratch.join("source.qcow2"), 2);
    let archive = backup(&image, &scratch.folder("archives"), &[]);
    for (method, format) in
        [(Method::Rewrite, Format::Raw), (Method::Rewrite, Format::Qcow2), (Method::Remap, Format::Qcow2)]
    {
        let target = Image::new(scratch.join(format!("{}.{format}", method.name())), format);
        fs::write(&target.path, "precious").unwrap();
        let outcome = restore(&archive, &target, method).exits(exit::EXISTS);
        assert_eq!(fs::read(&target.path).unwrap(), b"precious");
        assert!(outcome.stderr.contains("--force"), "no word of how to go on\n{outcome}");
        let to = format!("vda={}", target.text());
        let mut args = restore_args(text(&archive), &to, format, method);
        args.push("--force");
        run(&mut virtfold(args)).ok();
        target.assert_clean();
        image.assert_same_disk(&target);
    }
}

#[test]
fn an_image_in_use_is_refused_unless_frozen() {
    let scratch = Scratch::new("in-use");
    let image = noisy_image(&mut Rng::of_case("in-use", 0), scratch.join("source.qcow2"), 2);
    let archives = scratch.folder("archives");
    // A writer that holds QEMU's lock until its input ends; it has it when it answers.
    let mut writer = tool("qemu-io", ["-f", "qcow2", image.text()]);
    let mut writer = writer.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    writeln!(writer.stdin.as_mut().unwrap(), "read 0 512").unwrap();
    let mut answer = String::new();
    BufReader::new(writer.stdout.as_mut().unwrap()).read_line(&mut answer).unwrap();
    assert!(answer.contains("read 512/512"), "qemu-io says '{answer}'");
    let outcome = run(&mut virtfold(backup_args(&image, text(&archives), &[])));
    let frozen = run(&mut virtfold(backup_args(&image, text(&archives), &["--frozen"])));
    drop(writer.stdin.take());
    writer.wait().unwrap();
    outcome.exits(exit::IN_USE);
    verify(Path::new(frozen.ok().last_line())).ok();
}

#[test]
fn what_is_not_there_or_not_an_archive_is_named() {
    let scratch = Scratch::new("not-there");
    let missing = Image::new(scratch.join("missing.qcow2"), Format::Qcow2);
    let archives = scratch.folder("archives");
    let outcome = run(&mut virtfold(backup_args(&missing, text(&archives), &[]))).exits(exit::NOT_FOUND);
    assert!(outcome.stderr.contains("missing.qcow2"), "{outcome}");
    verify(&scratch.join("missing.tar")).exits(exit::NOT_FOUND);
    let rubbish = Image::new(scratch.join("rubbish.qcow2"), Format::Qcow2);
    fs::write(&rubbish.path, [b'x'; 4096]).unwrap();
    run(&mut virtfold(backup_args(&rubbish, text(&archives), &[]))).exits(exit::BAD_IMAGE);
    assert_eq!(names(&archives), [] as [&str; 0], "a refused backup left something behind");
}

#[test]
fn an_encrypted_image_is_refused_in_plain_words() {
    let scratch = Scratch::new("luks");
    let image = Image::new(scratch.join("luks.qcow2"), Format::Qcow2);
    let options = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10";
    let secret = "secret,id=key,data=test";
    let args = ["create", "-q", "--object", secret, "-f", "qcow2", "-o", options, image.text(), "8M"];
    run(&mut tool("qemu-img", args)).ok();
    let outcome = run(&mut virtfold(backup_args(&image, text(&scratch.folder("archives")), &[])));
    let outcome = outcome.exits(exit::BAD_IMAGE);
    assert!(outcome.stderr.contains("encrypt"), "{outcome}");
}

#[test]
fn a_reader_that_goes_away_ends_a_piped_backup() {
    let scratch = Scratch::new("epipe");
    let image = noisy_image(&mut Rng::of_case("epipe", 0), scratch.join("source.qcow2"), 8);
    let mut command = virtfold(backup_args(&image, "-", &[]));
    let line = line_of(&command);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let outcome = collect(line, child);
    assert_eq!(outcome.code(), Some(exit::FAILURE), "{outcome}");
}

/// A backup that was killed when some of its file was on the disk.
pub(crate) fn killed_when_some_is_there(image: &Image, folder: &Path, manner: &[&str]) {
    let more = [manner, &["--limit-rate", "25MiB"]].concat();
    let mut command = virtfold(backup_args(image, text(folder), &more));
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("a part of the file on the disk", PATIENCE, || marks_of(image).contains("synced"));
    signal(&child, Signal::SIGKILL);
    assert_eq!(collect(line_of(&command), child).shell_code(), 137);
}

#[test]
fn a_killed_backup_goes_on_in_the_next_run_and_is_the_same() {
    let scratch = Scratch::new("goes-on");
    let mut rng = Rng::of_case("goes-on", 0);
    let image = noisy_image(&mut rng, scratch.join("goes-on.qcow2"), 100);
    let key = scratch.join("key");
    run(&mut tool("age-keygen", ["-o", text(&key)])).ok();
    let public = run(&mut tool("age-keygen", ["-y", text(&key)])).ok().last_line().to_owned();
    let manners: [&[&str]; 3] = [
        &["--compress", "none"],
        &["--compress", "zstd:1"],
        &["--compress", "zstd:1", "--encrypt-to", &public],
    ];
    for (number, manner) in manners.into_iter().enumerate() {
        let folder = scratch.folder(&number.to_string());
        killed_when_some_is_there(&image, &folder, manner);
        let begun = fs::read(&partial(&folder)[0]).unwrap();
        let done = run(&mut virtfold(backup_args(&image, text(&folder), manner))).ok();
        assert!(done.stderr.contains("resuming") && done.text().contains("resumed at"), "{done}");
        assert_eq!(names(&folder).len(), 1, "{:?}", names(&folder));
        assert!(records_of(&image).is_empty());
        let mut archive = PathBuf::from(done.last_line());
        // What was made again is what the killed one had made, to the byte.
        assert!(fs::read(&archive).unwrap().starts_with(&begun), "{} bytes were there", begun.len());
        if archive.extension().is_some_and(|end| end == "age") {
            let plain = scratch.join("plain.tar.zst");
            run(&mut tool("age", ["-d", "-i", text(&key), "-o", text(&plain), text(&archive)])).ok();
            archive = plain;
        }
        verify(&archive).ok();
        let target = Image::new(scratch.join("back.qcow2"), Format::Qcow2);
        restore(&archive, &target, Method::Rewrite).ok();
        run(tool("qemu-img", ["compare", "-f", "qcow2", "-F", "qcow2"]).arg(&image.path).arg(&target.path))
            .ok();
        fs::remove_file(target.path).unwrap();
    }
}

#[test]
fn what_can_t_be_gone_on_with_starts_anew_and_leaves_nothing() {
    let scratch = Scratch::new("anew");
    let mut rng = Rng::of_case("anew", 0);
    let image = noisy_image(&mut rng, scratch.join("anew.qcow2"), 64);
    let folder = scratch.folder("archives");
    let plain = ["--compress", "none"];
    let spoil_record = || {
        let marks = records_of(&image)[0].join("marks");
        let whole = fs::read(&marks).unwrap();
        fs::write(&marks, &whole[..whole.len() / 3]).unwrap();
    };
    /// What is said, what is done to the image or the record before, and the options.
    type Case<'a> = (&'a str, &'a dyn Fn(), &'a [&'a str]);
    let cases: [Case<'_>; 4] = [
        ("has changed since", &|| image.io(&["write -P 9 1M 64k"]), &plain),
        ("compressed in another way", &|| (), &["--compress", "zstd:1"]),
        ("a new start was requested", &|| (), &["--compress", "none", "--no-resume"]),
        ("nothing is known of its file", &spoil_record, &plain),
    ];
    for (why, change, more) in cases {
        killed_when_some_is_there(&image, &folder, &plain);
        change();
        let done = run(&mut virtfold(backup_args(&image, text(&folder), more))).ok();
        assert!(done.stderr.contains(why), "{why}\n{done}");
        assert!(records_of(&image).is_empty(), "{why}");
        let left = partial(&folder);
        assert_eq!(left.len(), usize::from(why.starts_with("nothing")), "{why}: {left:?}");
        verify(Path::new(done.last_line())).ok();
    }
}

/// Another run of the same while the first one lives is a backup of its own.
#[test]
fn what_a_living_run_writes_is_left_alone() {
    let scratch = Scratch::new("living");
    let mut rng = Rng::of_case("living", 0);
    let image = noisy_image(&mut rng, scratch.join("living.qcow2"), 12);
    let folder = scratch.folder("archives");
    let (line, child) = start_slow_backup(&image, &folder, "none");
    wait_until("the backup's record", PATIENCE, || !records_of(&image).is_empty());
    let second = backup(&image, &folder, &["--compress", "none"]);
    let first = collect(line, child).ok();
    assert_ne!(first.last_line(), text(&second));
    assert_eq!(names(&folder).len(), 2);
}

/// A guest with more disks than the soft limit has open files: the hard limit is what counts.
#[test]
fn more_images_than_the_soft_limit_of_open_files() {
    let scratch = Scratch::new("many-images");
    let mut script = "ulimit -Sn 40; exec \"$0\" backup --to \"$1\"".to_owned();
    for number in 0..60 {
        let path = scratch.join(format!("disk{number}.raw"));
        fs::write(&path, [7; 4096]).unwrap();
        script += &format!(" --format raw --image '{}'", text(&path));
    }
    let to = scratch.join("to");
    fs::create_dir(&to).unwrap();
    let mut command = tool("bash", ["-c", &script, env!("CARGO_BIN_EXE_virtfold"), text(&to)]);
    run(command.env("VIRTFOLD_STATE_DIR", scratch.join("state"))).ok();
    assert_eq!(finished(&to).len(), 1);
}
