//! QEMU's user has written into the headers of a base and an overlay, and root commits.

use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use super::*;

/// QEMU's user.
const QEMU: u32 = 64_055;

fn tool(name: &str, arguments: &[&str], path: &Path) {
    let output = Command::new(name).args(arguments).arg(path).output().unwrap();
    assert!(output.status.success(), "{name} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn io(path: &Path, what: &str) {
    tool("qemu-io", &["-f", "qcow2", "-c", what], path);
}

/// A golden image, a base and an overlay of QEMU's user, in a directory that this user may write; and a file
/// of root's.
struct Images {
    folder: tempfile::TempDir,
    identity: (u64, u64),
}

const SECRET: &[u8] = &[b's'; 65_536];

impl Images {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let images = Self { folder, identity: (0, 0) };
        tool("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "size=8M"], &images.at("golden"));
        for (below, image) in [("golden", "base"), ("base", "overlay")] {
            let below = images.at(below);
            let below = below.to_str().unwrap();
            tool("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below], &images.at(image));
        }
        io(&images.at("golden"), "write -P 1 0 64k");
        io(&images.at("base"), "write -P 2 1M 64k");
        io(&images.at("overlay"), "write -P 3 2M 64k");
        std::fs::write(images.at("victim"), SECRET).unwrap();
        std::fs::set_permissions(images.at("victim"), std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::set_permissions(images.folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        images.owned([QEMU; 3]).noted()
    }

    /// Gives golden image, base and overlay these owners; nobody else may open them.
    fn owned(self, owners: [u32; 3]) -> Self {
        for (name, owner) in ["golden", "base", "overlay"].iter().zip(owners) {
            chown(self.at(name), Some(owner), Some(owner)).unwrap();
            std::fs::set_permissions(self.at(name), std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        self
    }

    fn noted(mut self) -> Self {
        let found = std::fs::metadata(self.at("base")).unwrap();
        self.identity = (found.dev(), found.ino());
        self
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn commit(&self) -> Result<()> {
        let (overlay, base, golden) = (self.at("overlay"), self.at("base"), self.at("golden"));
        commit(&OfflineCommit {
            overlay: &overlay,
            base: &base,
            format: "qcow2",
            identity: Some(self.identity),
            backing: Some((&golden, "qcow2")),
            noted: i64::MAX,
        })
    }

    /// Nothing was committed, and root's file is as it was.
    #[track_caller]
    fn refused(&self, said: &str) {
        let before = std::fs::read(self.at("base")).unwrap();
        let error = self.commit().unwrap_err();
        let text = format!("{error:?} {}", error.hint().unwrap_or_default());
        assert_eq!(error.kind(), ErrorKind::BadImage, "{text}");
        assert!(text.contains(said) && text.contains("base"), "{text}");
        assert_eq!(std::fs::read(self.at("victim")).unwrap(), SECRET);
        assert_eq!(std::fs::read(self.at("base")).unwrap(), before);
    }
}

#[test]
fn an_overlay_is_committed_whoever_owns_the_images() {
    for owners in [[QEMU; 3], [0; 3], [QEMU, QEMU, 0], [QEMU, 0, QEMU], [0, QEMU, QEMU]] {
        let images = Images::new().owned(owners);
        let golden = std::fs::read(images.at("golden")).unwrap();
        images.commit().unwrap_or_else(|error| panic!("{owners:?}: {error:?}"));
        for what in ["read -P 1 0 64k", "read -P 2 1M 64k", "read -P 3 2M 64k"] {
            io(&images.at("base"), what);
        }
        assert_eq!(std::fs::read(images.at("golden")).unwrap(), golden);
        let owner = std::fs::metadata(images.at("base")).unwrap().uid();
        assert_eq!(owner, owners[1]);
        images.commit().unwrap();
    }
}

/// Makes `image` one with an external data file: root's.
fn plant(images: &Images, image: &str, backing: &[&str]) {
    let path = images.at(image);
    let options = format!("data_file={},size=8M", images.at("spares").display());
    let mut arguments = vec!["create", "-q", "-f", "qcow2", "-o", &options];
    arguments.extend(backing);
    tool("qemu-img", &arguments, &path);
    // The tool that made it was not to touch root's file, so its name comes last.
    let bytes = std::fs::read(&path).unwrap();
    let text: Vec<u8> = bytes
        .windows(6)
        .position(|window| window == b"spares")
        .map_or_else(Vec::new, |at| [&bytes[..at], b"victim", &bytes[at + 6..]].concat());
    std::fs::write(&path, text).unwrap();
}

#[test]
fn an_external_data_file_in_a_header_is_not_written_to() {
    let images = Images::new();
    let golden = images.at("golden");
    plant(&images, "base", &["-F", "qcow2", "-b", golden.to_str().unwrap()]);
    images.noted().refused("external data file");
    let images = Images::new();
    let base = images.at("base");
    plant(&images, "overlay", &["-F", "qcow2", "-b", base.to_str().unwrap()]);
    images.refused("external data file");
}

#[test]
fn another_backing_file_than_the_journal_s_is_not_committed_into_or_read() {
    for (image, below, format) in [
        ("overlay", "golden", "qcow2"),
        ("base", "victim", "raw"),
        ("base", "golden", "raw"),
        ("base", "", ""),
    ] {
        let images = Images::new();
        let below = if below.is_empty() { String::new() } else { images.at(below).display().to_string() };
        let with_format = ["rebase", "-u", "-f", "qcow2", "-b", &below, "-F", format];
        let arguments = if below.is_empty() { &with_format[..6] } else { &with_format[..] };
        tool("qemu-img", arguments, &images.at(image));
        images.refused("another backing file");
    }
}

#[test]
fn another_file_in_the_place_of_the_base_is_not_written_to() {
    let images = Images::new();
    std::fs::copy(images.at("base"), images.at("copy")).unwrap();
    std::fs::rename(images.at("copy"), images.at("base")).unwrap();
    images.refused("another file than when the backup began");
    // A link that QEMU's user made in a directory of its own.
    let images = Images::new();
    std::fs::rename(images.at("base"), images.at("kept")).unwrap();
    std::os::unix::fs::symlink("victim", images.at("base")).unwrap();
    std::os::unix::fs::lchown(images.at("base"), Some(QEMU), None).unwrap();
    let error = images.commit().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    assert_eq!(std::fs::read(images.at("victim")).unwrap(), SECRET);
}

#[test]
fn a_base_that_another_process_can_write_to_is_not_committed_into() {
    let images = Images::new();
    let mut holder = Command::new("cat");
    let base = std::fs::OpenOptions::new().write(true).open(images.at("base")).unwrap();
    let mut holder = holder.stdin(std::process::Stdio::piped()).stdout(base).spawn().unwrap();
    let error = images.commit().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse, "{error:?}");
    drop(holder.stdin.take());
    holder.wait().unwrap();
    images.commit().unwrap();
}

/// The header was changed after it was read: what `qemu-img` believes then reaches nothing.
#[test]
fn what_is_put_into_a_header_at_the_last_moment_reaches_no_other_file() {
    for owner in [QEMU, 0] {
        let images = Images::new().owned([owner; 3]);
        let chain = {
            let open = |name: &str, reach| OpenImage::open(&images.at(name), "qcow2", reach).unwrap();
            [
                open("overlay", FileAccess::Write),
                open("base", FileAccess::Write),
                open("golden", FileAccess::Read),
            ]
        };
        let golden = images.at("golden");
        plant(&images, "base", &["-F", "qcow2", "-b", golden.to_str().unwrap()]);
        let ended = run(&chain, "none").unwrap();
        assert!(!ended.success && ended.said.contains("Permission denied"), "{ended:?}");
        assert_eq!(std::fs::read(images.at("victim")).unwrap(), SECRET);
    }
}
