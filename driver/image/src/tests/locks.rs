//! Images in use: a `qemu-io` that has one open for writing, and one that tries while we have it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use super::Lab;
use crate::{DiskImage, Format, ImageAccess, OpenOptions};
use virtfold_base::error::ErrorKind;

/// A `qemu-io` that has written to `image` and keeps it open for writing.
fn writer(lab: &Lab, image: &str) -> Child {
    let mut child = Command::new("qemu-io")
        .args(["-f", "qcow2"])
        .arg(lab.path(image))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("qemu-io must be installed for these tests");
    child.stdin.as_mut().unwrap().write_all(b"write 0 512\n").unwrap();
    let mut said = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
    assert!(said.contains("wrote 512"), "{said}");
    child
}

fn stop(mut child: Child) {
    child.stdin.as_mut().unwrap().write_all(b"quit\n").unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_writer_is_noticed_wherever_in_the_chain_it_is() {
    let lab = Lab::new();
    lab.img("create -q -f qcow2 base.qcow2 1M");
    lab.img("create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
    let child = writer(&lab, "base.qcow2");
    let open = |usage| {
        let options = OpenOptions { usage, ..OpenOptions::default() };
        DiskImage::open(&lab.path("top.qcow2"), Format::Qcow2, &options)
    };
    let error = open(ImageAccess::Locked).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    assert!(error.to_string().contains("base.qcow2"), "{error}");
    assert!(error.hint().unwrap().contains("--frozen"));
    assert!(open(ImageAccess::Frozen).is_ok());
    stop(child);
    assert!(open(ImageAccess::Locked).is_ok());
}

#[test]
fn a_writer_without_locks_is_noticed() {
    let lab = Lab::new();
    lab.img("create -q -f raw disk.raw 1M");
    let open = || DiskImage::open(&lab.path("disk.raw"), Format::Raw, &OpenOptions::default());
    let image = open().unwrap();
    let mut qemu = virtfold_base::openers::testing::open(&lab.path("disk.raw"), &[]);
    assert_eq!(open().unwrap_err().kind(), ErrorKind::InUse);
    let error = image.check_unchanged().unwrap_err();
    assert!(error.to_string().contains("open for writing in a running QEMU"), "{error}");
    drop(qemu.stdin.take());
    assert!(qemu.wait().unwrap().success());
    image.check_unchanged().unwrap();
}

#[test]
fn no_writer_can_begin_while_an_image_is_open() {
    let lab = Lab::new();
    lab.img("create -q -f raw base.raw 1M");
    lab.img("create -q -f qcow2 -b base.raw -F raw top.qcow2");
    let image = DiskImage::open(&lab.path("top.qcow2"), Format::Qcow2, &OpenOptions::default()).unwrap();
    for (format, name) in [("raw", "base.raw"), ("qcow2", "top.qcow2")] {
        let tried = Command::new("qemu-io")
            .args(["-f", format, "-c", "write 0 512"])
            .arg(lab.path(name))
            .output()
            .expect("qemu-io must be installed for these tests");
        let said = String::from_utf8_lossy(&tried.stderr).into_owned();
        assert!(said.contains("lock"), "{name} could be opened for writing: {said}");
    }
    lab.img("map -f qcow2 top.qcow2");
    drop(image);
    lab.io("qcow2", "top.qcow2", &["write 0 512"]);
}

/// A process that another thread is just starting has a copy of each descriptor for a moment: that must not
/// keep a QEMU away.
#[test]
fn an_image_that_is_closed_is_free_whoever_has_its_file_open_still() {
    let lab = Lab::new();
    lab.img("create -q -f qcow2 a.qcow2 1M");
    let path = lab.path("a.qcow2");
    let file = crate::file::HostFile::open(&path).unwrap();
    assert_eq!(crate::locks::hold(&file, ImageAccess::Locked).unwrap(), None);
    let twin = file.file.try_clone().unwrap();
    let other = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    assert!(crate::image_lock::is_locked(&other).unwrap());
    drop(file);
    assert!(!crate::image_lock::is_locked(&other).unwrap());
    stop(writer(&lab, "a.qcow2"));
    drop(twin);
}
