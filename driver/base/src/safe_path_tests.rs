use std::os::unix::fs::{PermissionsExt, chown, symlink};

use super::*;

/// A user who is nobody here.
const OTHER: u32 = 65_533;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// What both ways say of a directory.
fn both(path: &Path) -> (io::Result<PathBuf>, io::Result<PathBuf>) {
    let path_of = |opened: io::Result<Directory>| opened.map(|directory| directory.path().to_owned());
    (path_of(Directory::open(path)), path_of(Directory::by_walking(path)))
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: io::Result<T>) {
    let error = Error::io("x", result.unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    assert!(format!("{error:?}").contains("others can have made"), "{error:?}");
}

#[test]
fn a_link_of_ones_own_is_followed_and_one_that_others_can_have_made_is_not() {
    let folder = folder();
    let real = std::fs::canonicalize(folder.path()).unwrap();
    std::fs::create_dir(real.join("images")).unwrap();
    symlink("images", real.join("link")).unwrap();
    symlink(real.join("link"), real.join("far")).unwrap();
    for name in ["images", "link", "far", "link/../far/."] {
        let (one, walked) = both(&real.join(name));
        assert_eq!(one.unwrap(), real.join("images"), "{name}");
        assert_eq!(walked.unwrap(), real.join("images"), "{name}");
    }
    // The link is somebody else's.
    std::os::unix::fs::lchown(real.join("link"), Some(OTHER), None).unwrap();
    for name in ["link", "far", "link/x"] {
        let (one, walked) = both(&real.join(name));
        refused(one);
        refused(walked);
    }
    // The link is root's, and its directory is open to others.
    std::os::unix::fs::lchown(real.join("link"), Some(0), None).unwrap();
    for mode in [0o1777, 0o770, 0o703] {
        std::fs::set_permissions(&real, std::fs::Permissions::from_mode(mode)).unwrap();
        refused(both(&real.join("link")).0);
    }
    std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o700)).unwrap();
    chown(&real, Some(OTHER), None).unwrap();
    refused(both(&real.join("link")).0);
}

#[test]
fn what_leads_nowhere_ends() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    symlink("b", at("a")).unwrap();
    symlink("a", at("b")).unwrap();
    std::fs::write(at("file"), "").unwrap();
    assert_eq!(Directory::open(&at("a")).unwrap_err().raw_os_error(), Some(Errno::LOOP.raw_os_error()));
    assert_eq!(Directory::open(&at("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(Directory::open(&at("file/x")).unwrap_err().kind(), io::ErrorKind::NotADirectory);
    assert_eq!(Directory::open(Path::new("")).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert!(Entry::locate(&at("..")).is_err());
}

#[test]
fn an_entry_is_the_link_itself_where_others_can_have_made_it() {
    let folder = folder();
    let real = std::fs::canonicalize(folder.path()).unwrap();
    std::fs::write(real.join("target"), "secret").unwrap();
    symlink("target", real.join("own")).unwrap();
    symlink("target", real.join("theirs")).unwrap();
    std::os::unix::fs::lchown(real.join("theirs"), Some(OTHER), None).unwrap();
    assert_eq!(Entry::locate(&real.join("own")).unwrap().path(), real.join("target"));
    let theirs = Entry::locate(&real.join("theirs")).unwrap();
    assert_eq!(theirs.path(), real.join("theirs"));
    assert!(is_link(&theirs.find().unwrap().unwrap()));
    refused(theirs.open(OFlags::RDONLY));
    refused(open(&real.join("theirs")));
    theirs.directory().remove_file(theirs.name()).unwrap();
    assert_eq!(std::fs::read(real.join("target")).unwrap(), b"secret");
    // A free name has a place, too, behind a link of one's own.
    symlink("free", real.join("dangling")).unwrap();
    let free = Entry::locate(&real.join("dangling")).unwrap();
    assert!(free.find().unwrap().is_none() && free.path() == real.join("free"));
}

#[test]
fn what_is_done_is_done_in_the_directory_that_was_opened() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("theirs")).unwrap();
    std::fs::create_dir(at("victim")).unwrap();
    std::fs::write(at("victim/a"), "victim").unwrap();
    let opened = Directory::open(&at("theirs")).unwrap();
    std::fs::rename(at("theirs"), at("moved")).unwrap();
    symlink("victim", at("theirs")).unwrap();
    drop(opened.open_file("a".as_ref(), OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY).unwrap());
    opened.rename("a".as_ref(), "b".as_ref(), RenameFlags::NOREPLACE).unwrap();
    opened.sync().unwrap();
    assert_eq!(opened.names(9).unwrap(), ["b"]);
    assert!(at("moved/b").exists() && !at("victim/b").exists());
    assert_eq!(std::fs::read(at("victim/a")).unwrap(), b"victim");
}

#[test]
fn open_files_of_proc_are_the_kernels_links() {
    let (reader, _writer) = io::pipe().unwrap();
    use std::os::fd::AsRawFd;
    let path = PathBuf::from(format!("/dev/fd/{}", reader.as_raw_fd()));
    let found = Entry::locate(&path).unwrap().find().unwrap().unwrap();
    assert_eq!(kind(&found), FileType::Fifo);
    let folder = folder();
    let directory = Directory::open(folder.path()).unwrap();
    std::fs::write(folder.path().join("a"), "").unwrap();
    let through = Directory::open(&directory.by_descriptor()).unwrap();
    assert_eq!(through.names(9).unwrap(), ["a"]);
}
