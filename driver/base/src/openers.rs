//! Which QEMU has a file open, by `/proc`: the second witness beside QEMU's image locks.
//!
//! Locks are not always there to be seen. libvirt gives each guest a `/dev` of its own, and the locks of a
//! block device lie in that node, which is not the one that we open. A QEMU that can't open `/dev/null` at
//! its start, or that was told `locking=off`, takes none at all. An open file can't be hidden so: whatever
//! its name, it is found by device and inode, a block device by its number.
//!
//! One pass ([`OpenFiles::look`]) reads what all of them have open, and answers for any number of files: with
//! thousands of guests it is the pass that costs. It is of the moment in which it was made. Whoever takes
//! locks first and looks then makes one after the locks ([`of`]); a plan, which is held against the host
//! again before anything is copied, asks one for all it wants to know.
//!
//! Every process counts whose program's name begins with `qemu`, in all process namespaces below ours.
//! Another user's open files are seen by root alone; what can't be read counts as nothing, as without this
//! witness.
//!
//! Imports: `error`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind as IoKind, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags};
use uuid::Uuid;

use crate::error::{IoContext, Result};

/// The longest command line that is read, bytes.
const MAX_COMMAND: u64 = 2 << 20;

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

/// What tells one file from another whatever its name, as `stat` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileId {
    /// A block device, by its number.
    Device(u64),
    /// Another file.
    File {
        /// The device that it lies on.
        device: u64,
        /// Its inode.
        inode: u64,
    },
}

impl FileId {
    fn of(at: impl AsFd, name: &Path, flags: AtFlags) -> rustix::io::Result<Self> {
        // A server that does not answer is not waited for: device, inode and kind are known without it.
        let flags = flags | AtFlags::STATX_DONT_SYNC;
        let found = rustix::fs::statx(at, name, flags, StatxFlags::BASIC_STATS)?;
        let kind = FileType::from_raw_mode(u32::from(found.stx_mode));
        let number = rustix::fs::makedev;
        Ok(if kind == FileType::BlockDevice {
            Self::Device(number(found.stx_rdev_major, found.stx_rdev_minor))
        } else {
            Self::File { device: number(found.stx_dev_major, found.stx_dev_minor), inode: found.stx_ino }
        })
    }
}

/// What the QEMUs of this host do with the file.
///
/// # Errors
/// The file can't be looked at, or `/proc` can't be read.
pub fn of(file: &fs::File) -> Result<Opened> {
    let wanted = identity(file)?;
    let mut most = Opened::No;
    each_qemu(&mut |place| {
        most = most.max(in_process(place, wanted)?);
        Ok(())
    })?;
    Ok(most)
}

fn identity(file: &fs::File) -> Result<FileId> {
    let found = FileId::of(file, Path::new(""), AtFlags::EMPTY_PATH);
    found.map_err(std::io::Error::from).at(|| "cannot look at an open file".to_owned())
}

/// What all QEMUs of this host have open, seen in one pass.
#[derive(Clone, Debug, Default)]
pub struct OpenFiles {
    /// Who has a file open for writing, as far as he says which guest he is.
    writers: BTreeMap<FileId, BTreeSet<Uuid>>,
    guests: BTreeSet<Uuid>,
}

impl OpenFiles {
    /// Makes the pass.
    ///
    /// # Errors
    /// `/proc` can't be read.
    pub fn look() -> Result<Self> {
        let mut all = Self::default();
        each_qemu(&mut |place| {
            let Some(guest) = guest_of(place) else { return Ok(()) };
            let visibility = each_file(place, &mut |found, info| {
                if access(info) == Opened::Written {
                    all.writers.entry(found).or_default().insert(guest);
                }
            })?;
            if visibility == Visibility::Seen {
                all.guests.insert(guest);
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// Notes a guest whose QEMU was seen, and what it writes to.
    ///
    /// # Errors
    /// A file can't be looked at.
    pub fn note(&mut self, guest: Uuid, written: &[fs::File]) -> Result<()> {
        for file in written {
            self.writers.entry(identity(file)?).or_default().insert(guest);
        }
        self.guests.insert(guest);
        Ok(())
    }

    /// Whether the QEMU of a guest was among them, and could be looked at.
    pub fn has_seen(&self, guest: Uuid) -> bool {
        self.guests.contains(&guest)
    }

    /// The guests whose QEMU has a file open for writing; the file by device and inode, or as a block device
    /// by its own number.
    pub fn writers(&self, file: FileId) -> impl Iterator<Item = Uuid> + '_ {
        self.writers.get(&file).into_iter().flatten().copied()
    }
}

/// Whether a process could be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Visibility {
    Seen,
    Passed,
}

/// The guest that a QEMU of libvirt's says it is.
fn guest_of(place: &Path) -> Option<Uuid> {
    let mut line = Vec::new();
    let file = fs::File::open(place.join("cmdline")).ok()?;
    file.take(MAX_COMMAND).read_to_end(&mut line).ok()?;
    let mut words = line.split(|byte| *byte == 0).skip_while(|word| *word != b"-uuid");
    let uuid = words.nth(1)?;
    std::str::from_utf8(uuid).ok()?.parse().ok()
}

/// Goes through all processes that are a QEMU's.
fn each_qemu(look: &mut dyn FnMut(&Path) -> std::io::Result<()>) -> Result<()> {
    for place in processes()? {
        let place = place?;
        if is_qemu(&place) {
            look(&place).at(reading)?;
        }
    }
    Ok(())
}

/// What `/proc` has: the processes, and more.
fn processes() -> Result<impl Iterator<Item = Result<PathBuf>>> {
    Ok(fs::read_dir("/proc").at(reading)?.map(|entry| Ok(entry.at(reading)?.path())))
}

fn reading() -> String {
    "cannot read '/proc'".to_owned()
}

/// Any process but this one that can write to the file, whatever its program.
///
/// # Errors
/// As [`of`].
pub fn other_writer(file: &fs::File) -> Result<Option<u32>> {
    let wanted = identity(file)?;
    for place in processes()? {
        let place = place?;
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

/// How a process has the file open.
fn in_process(place: &Path, wanted: FileId) -> std::io::Result<Opened> {
    let mut most = Opened::No;
    each_file(place, &mut |found, info| {
        if found == wanted {
            most = most.max(access(info));
        }
    })?;
    Ok(most)
}

/// Goes through the files that a process has open; `take` gets each one's identity, and where the kernel says
/// how it is open.
fn each_file(place: &Path, take: &mut dyn FnMut(FileId, &Path)) -> std::io::Result<Visibility> {
    let entries = match fs::read_dir(place.join("fd")) {
        Err(error) if is_out_of_sight(&error) => return Ok(Visibility::Passed),
        entries => entries?,
    };
    // A process that ends in the midst of this has let go of the rest.
    for entry in entries.map_while(std::result::Result::ok) {
        if let Ok(found) = FileId::of(CWD, &entry.path(), AtFlags::empty()) {
            take(found, &place.join("fdinfo").join(entry.file_name()));
        }
    }
    Ok(Visibility::Seen)
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
    use std::os::unix::fs::MetadataExt;

    use super::testing::open;
    use super::*;

    #[test]
    fn one_pass_tells_which_guest_writes_to_what() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        fs::write(&path, [0; 4096]).unwrap();
        let guest = Uuid::from_u128(0xfee7);
        // A process with the name and the arguments of libvirt's QEMUs that has the file open.
        let program = directory.path().join("qemu-system-none");
        fs::copy("/usr/bin/tail", &program).unwrap();
        let image = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut command = std::process::Command::new(&program);
        command.args(["-f", "/dev/null", "--", "-uuid", &guest.to_string()]).stdin(image);
        let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
        let found = fs::metadata(&path).unwrap();
        let file = FileId::File { device: found.dev(), inode: found.ino() };
        let start = std::time::Instant::now();
        let seen = loop {
            let seen = OpenFiles::look().unwrap();
            if seen.has_seen(guest) || start.elapsed().as_secs() > 20 {
                break seen;
            }
            std::thread::yield_now();
        };
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(seen.writers(file).collect::<Vec<_>>(), [guest]);
        assert!(!seen.has_seen(Uuid::nil()));
        assert!(!OpenFiles::look().unwrap().has_seen(guest), "it has ended");
    }

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
