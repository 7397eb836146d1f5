//! Which QEMU has a file open, by `/proc`: the second witness beside QEMU's image locks.
//!
//! Locks are not always there to be seen. libvirt gives each guest a `/dev` of its own, and the locks of a block
//! device lie in that node, which is not the one that we open. A QEMU that can't open `/dev/null` at its start, or
//! that was told `locking=off`, takes none at all. An open file can't be hidden so: whatever its name, it is found
//! by device and inode, a block device by its number.
//!
//! Every process counts whose program's name begins with `qemu`, in all process namespaces below ours. Another
//! user's open files are seen by root alone; what can't be read counts as nothing, as without this witness.
//!
//! Imports: `error`.

use std::fs;
use std::io::ErrorKind as IoKind;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags};

use crate::error::{IoContext, Result};

/// What the QEMUs of this host do with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Opened {
    /// None has it open.
    No,
    /// One has it open and can't write to it.
    Read,
    /// One has it open for writing.
    Written,
}

/// What tells one file from another whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    Device { major: u32, minor: u32 },
    File { major: u32, minor: u32, inode: u64 },
}

impl Identity {
    fn of(at: impl AsFd, name: &Path, flags: AtFlags) -> rustix::io::Result<Self> {
        // A server that does not answer is not waited for: device, inode and kind are known without it.
        let flags = flags | AtFlags::STATX_DONT_SYNC;
        let found = rustix::fs::statx(at, name, flags, StatxFlags::BASIC_STATS)?;
        let kind = FileType::from_raw_mode(u32::from(found.stx_mode));
        Ok(if kind == FileType::BlockDevice {
            Self::Device { major: found.stx_rdev_major, minor: found.stx_rdev_minor }
        } else {
            Self::File { major: found.stx_dev_major, minor: found.stx_dev_minor, inode: found.stx_ino }
        })
    }
}

/// What the QEMUs of this host do with the file.
///
/// # Errors
/// The file can't be looked at, or `/proc` can't be read.
pub fn of(file: &fs::File) -> Result<Opened> {
    let wanted = Identity::of(file, Path::new(""), AtFlags::EMPTY_PATH);
    let wanted = wanted.map_err(std::io::Error::from).at(|| "cannot look at an open file".to_owned())?;
    let reading = || "cannot read '/proc'".to_owned();
    let mut most = Opened::No;
    for entry in fs::read_dir("/proc").at(reading)? {
        let place = entry.at(reading)?.path();
        if is_qemu(&place) {
            most = most.max(in_process(&place, wanted).at(reading)?);
        }
    }
    Ok(most)
}

/// Any process but this one that can write to the file, whatever its program.
///
/// # Errors
/// As [`of`].
pub fn other_writer(file: &fs::File) -> Result<Option<u32>> {
    let wanted = Identity::of(file, Path::new(""), AtFlags::EMPTY_PATH);
    let wanted = wanted.map_err(std::io::Error::from).at(|| "cannot look at an open file".to_owned())?;
    let reading = || "cannot read '/proc'".to_owned();
    for entry in fs::read_dir("/proc").at(reading)? {
        let place = entry.at(reading)?.path();
        let number = place.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
        let Some(process) = number.filter(|process| *process != std::process::id()) else { continue };
        if in_process(&place, wanted).at(reading)? == Opened::Written {
            return Ok(Some(process));
        }
    }
    Ok(None)
}

/// Other entries of `/proc` have no program; a process that has ended has none any more.
fn is_qemu(place: &Path) -> bool {
    let program = fs::read_link(place.join("exe")).unwrap_or_default();
    program.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"qemu"))
}

fn in_process(place: &Path, wanted: Identity) -> std::io::Result<Opened> {
    let entries = match fs::read_dir(place.join("fd")) {
        Err(error) if is_out_of_sight(&error) => return Ok(Opened::No),
        entries => entries?,
    };
    let mut most = Opened::No;
    // A process that ends in the midst of this has let go of the rest.
    for entry in entries.map_while(std::result::Result::ok) {
        let found = Identity::of(CWD, &entry.path(), AtFlags::empty());
        if found == Ok(wanted) {
            most = most.max(access(&place.join("fdinfo").join(entry.file_name())));
        }
    }
    Ok(most)
}

/// Another user's process, or one that has ended meanwhile.
fn is_out_of_sight(error: &std::io::Error) -> bool {
    matches!(error.kind(), IoKind::NotFound | IoKind::PermissionDenied)
        || error.raw_os_error() == Some(nix::libc::ESRCH)
}

/// How it is open, by the line of its octal `flags:`. Where that can't be told, the worse.
fn access(info: &Path) -> Opened {
    let text = match fs::read_to_string(info) {
        // It was closed meanwhile.
        Err(error) if is_out_of_sight(&error) => return Opened::No,
        read => read.unwrap_or_default(),
    };
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|octal| i32::from_str_radix(octal.trim(), 8).ok());
    match flags.map(|flags| flags & nix::libc::O_ACCMODE) {
        Some(nix::libc::O_RDONLY) => Opened::Read,
        _ => Opened::Written,
    }
}

#[cfg(any(test, feature = "test-support"))]
#[expect(clippy::unwrap_used, clippy::expect_used, reason = "for tests alone")]
pub mod testing {
    //! A QEMU that takes no locks.

    use std::io::{BufRead, BufReader, Write};
    use std::path::Path;
    use std::process::{Child, Command, Stdio};

    /// One that has `image` open; it ends with its standard input.
    ///
    /// # Panics
    /// Where there is no `qemu-io`.
    pub fn open(image: &Path, more: &[&str]) -> Child {
        let options =
            format!("driver=raw,file.driver=file,file.locking=off,file.filename={}", image.display());
        let mut command = Command::new("qemu-io");
        command.args(more).args(["--image-opts", &options]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("qemu-io must be installed for these tests");
        child.stdin.as_mut().unwrap().write_all(b"read 0 512\n").unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        assert!(said.contains("read 512"), "{said}");
        child
    }
}

#[cfg(test)]
mod tests {
    use super::testing::open;
    use super::*;

    #[test]
    fn an_open_file_is_found_without_a_lock_and_under_another_name() {
        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (directory.path().join("image"), directory.path().join("link"));
        fs::write(&path, [0; 4096]).unwrap();
        fs::hard_link(&path, &link).unwrap();
        let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        assert_eq!(of(&file).unwrap(), Opened::No, "we are no QEMU");
        let mut children = Vec::new();
        for (more, expected) in [(&["-r"][..], Opened::Read), (&[][..], Opened::Written)] {
            children.push(open(&link, more));
            assert_eq!(of(&file).unwrap(), expected);
        }
        for mut child in children {
            drop(child.stdin.take());
            child.wait().unwrap();
        }
        assert_eq!(of(&file).unwrap(), Opened::No);
    }
}
