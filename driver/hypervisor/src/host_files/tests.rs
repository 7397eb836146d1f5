//! Locks of real files and of real QEMUs.

use super::*;

#[test]
fn locks_tell_writers_from_readers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let files = LocalFiles;
    assert_eq!(files.image_use(&path).unwrap(), ImageUse::Absent);
    std::fs::write(&path, [0; 512]).unwrap();
    assert_eq!(files.image_use(&path).unwrap(), ImageUse::Free);
    let held = files.hold(&path).unwrap();
    let again = files.hold(&path).unwrap();
    assert_eq!(files.image_use(&path).unwrap(), ImageUse::Read);
    assert_eq!(files.remove(&path).unwrap_err().kind(), ErrorKind::InUse);
    drop((held, again));
    // What a QEMU writer holds: 101 in use.
    let writer = File::open(&path).unwrap();
    fcntl(&writer, FcntlArg::F_OFD_SETLK(&lock(libc::F_RDLCK, WRITER))).unwrap();
    assert_eq!(files.image_use(&path).unwrap(), ImageUse::Written);
    assert_eq!(files.hold(&path).unwrap_err().kind(), ErrorKind::InUse);
    assert_eq!(files.remove(&path).unwrap_err().kind(), ErrorKind::InUse);
    drop(writer);
    assert!(files.allocated(&path).unwrap() <= 4096);
    assert!(files.free(directory.path()).unwrap() > 0);
    files.remove(&path).unwrap();
    assert_eq!(files.image_use(&path).unwrap(), ImageUse::Absent);
}

/// QEMU takes none where it has no `/dev/null` at its start; those on a block device in a `/dev` of its own
/// are not seen here.
#[test]
fn a_qemu_without_locks_is_seen() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    std::fs::write(&path, [0; 4096]).unwrap();
    for (more, expected) in [(&["-r"][..], ImageUse::Read), (&[][..], ImageUse::Written)] {
        let mut qemu = virtfold_base::openers::testing::open(&path, more);
        assert_eq!(LocalFiles.image_use(&path).unwrap(), expected);
        assert_eq!(LocalFiles.hold(&path).is_ok(), expected == ImageUse::Read);
        assert_eq!(LocalFiles.remove(&path).unwrap_err().kind(), ErrorKind::InUse);
        assert_eq!(LocalFiles.quarantine(&path).unwrap_err().kind(), ErrorKind::InUse);
        drop(qemu.stdin.take());
        qemu.wait().unwrap();
        assert_eq!(LocalFiles.image_use(&path).unwrap(), ImageUse::Free);
    }
}

#[test]
fn what_a_killed_libvirtd_left_is_empty_and_what_cannot_be_read_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("overlay");
    for blank in [0, 512, BLANK - 1] {
        std::fs::write(&path, vec![0; blank]).unwrap();
        assert!(LocalFiles.is_empty(&path).unwrap());
    }
    std::fs::write(&path, vec![0; BLANK]).unwrap();
    LocalFiles.is_empty(&path).unwrap_err();
    std::fs::write(&path, b"no image").unwrap();
    LocalFiles.is_empty(&path).unwrap_err();
}

#[test]
fn internal_snapshots_are_seen_in_the_header() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("overlay.qcow2");
    let files = LocalFiles;
    assert!(!files.has_snapshots(&path).unwrap());
    for (arguments, expected) in [
        (["create", "-qf", "qcow2"], false),
        (["snapshot", "-qc", "s1"], true),
        (["snapshot", "-qd", "s1"], false),
    ] {
        let size = (arguments[0] == "create").then_some("1M");
        let mut command = std::process::Command::new("qemu-img");
        assert!(command.args(arguments).arg(&path).args(size).status().unwrap().success());
        assert_eq!(files.has_snapshots(&path).unwrap(), expected, "{arguments:?}");
    }
    std::fs::write(&path, [0xff; 64]).unwrap();
    assert!(!files.has_snapshots(&path).unwrap(), "no qcow2");
}

#[test]
fn a_file_in_anothers_place_has_another_identity() {
    let directory = tempfile::tempdir().unwrap();
    let (path, new) = (directory.path().join("image"), directory.path().join("new"));
    let files = LocalFiles;
    assert_eq!(files.identity(&path).unwrap(), None);
    std::fs::write(&path, [1]).unwrap();
    let before = files.identity(&path).unwrap();
    std::fs::write(&path, [2]).unwrap();
    assert_eq!(files.identity(&path).unwrap(), before);
    std::fs::write(&new, [1]).unwrap();
    std::fs::rename(&new, &path).unwrap();
    assert_ne!(files.identity(&path).unwrap(), before);
}

#[test]
fn overlays_are_put_aside_under_free_names() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.virtfold-0000beef.overlay");
    let files = LocalFiles;
    let mut names = Vec::new();
    for n in 0..3 {
        std::fs::write(&path, [n]).unwrap();
        names.push(files.quarantine(&path).unwrap());
    }
    let read: Vec<_> = names.iter().map(|name| std::fs::read(name).unwrap()).collect();
    assert_eq!(read, [[0], [1], [2]]);
    assert!(names[0].to_str().unwrap().ends_with(".overlay.quarantined"));
    std::fs::write(&path, [9]).unwrap();
    let held = files.hold(&path).unwrap();
    assert_eq!(files.quarantine(&path).unwrap_err().kind(), ErrorKind::InUse);
    drop(held);
    // A fresh one may be somebody's who is at work.
    assert_eq!(files.overlays(directory.path()).unwrap(), Vec::<PathBuf>::new());
    let old = std::time::SystemTime::now() - 2 * FRESH;
    File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
    assert_eq!(files.overlays(directory.path()).unwrap(), [path]);
}

#[test]
fn a_mark_shows_that_a_file_was_written_to() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let files = LocalFiles;
    assert_eq!(files.mark(&path).unwrap(), None);
    std::fs::write(&path, [0; 512]).unwrap();
    let before = files.mark(&path).unwrap().unwrap();
    assert_eq!(files.mark(&path).unwrap(), Some(before));
    std::thread::sleep(Duration::from_millis(20));
    std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut f| std::io::Write::write_all(&mut f, &[1]))
        .unwrap();
    assert_ne!(files.mark(&path).unwrap(), Some(before));
    assert_eq!(files.mark(Path::new("/dev/null")).unwrap(), None);
}
