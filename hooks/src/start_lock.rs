//! Guards: disks that virtfold is reading offline or restoring, so that nobody starts a guest on them.
//!
//! **Format.** A directory with one file for each disk, `PID-TIME-NUMBER.json`: one JSON object, at most
//! [`MAX_GUARD`] bytes, with the keys `version` (1), `uuid` and `name` of the guest (either may be null),
//! `disk` (its path), `file` (null, or which file that was: `{"inode": [device, inode]}` or
//! `{"block": number}`), `access` (`reading` or `restoring`), `reason` (for people) and `pid`.
//!
//! **Alive** is a guard only while its owner holds an OFD write lock on the file. The kernel drops the lock
//! when the last descriptor closes, however the owner ends; so a killed owner never blocks a guest. (An owner
//! that starts other programs must not let them inherit the descriptor; Rust's files are close-on-exec.) The
//! owner makes the file under a name with a dot, locks it, writes it and renames it: under its final name it
//! is locked and whole.
//!
//! **What conflicts.** A guest that is named by uuid or name conflicts always. By path, or by the same file
//! under another path, a disk that is being restored conflicts with every use of it, a disk that is being
//! read only with a guest that would write it: many guests may share an image that backs theirs.
//!
//! Whoever can't read the guards finds none: a defect here must not keep guests from starting.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use serde::{Deserialize, Serialize};

use crate::HookOwner;
use crate::domain::{DiskAccess, HookDomain};
use crate::paths::named;

/// The largest guard, bytes.
pub const MAX_GUARD: usize = 16 << 10;
/// The most guards that are alive, and the most files that are looked at for them. Whoever puts up a guard
/// sweeps first, so that stale ones do not add up.
const MAX_GUARDS: usize = 1024;
const MAX_FILES: usize = 64 << 10;
/// Between its making and its lock a new guard is unlocked under a name with a dot; not for so long.
const ABANDONED: Duration = Duration::from_secs(600);
const VERSION: u32 = 1;

/// Which file a path led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileIdentity {
    /// A file: device and inode.
    Inode(u64, u64),
    /// A block device: its number, whatever node leads to it.
    Block(u64),
}

impl FileIdentity {
    /// The file behind `path`; `None` where there is none. May wait for a file system that does not answer.
    pub fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(match metadata.file_type().is_block_device() {
            true => Self::Block(metadata.rdev()),
            false => Self::Inode(metadata.dev(), metadata.ino()),
        })
    }
}

/// What virtfold does to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LockReason {
    /// It reads the disk while the guest is shut off.
    Reading,
    /// It writes the disk.
    Restoring,
}

/// What a guard says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LockedDisks {
    version: u32,
    /// The guest's uuid, where the disk is a guest's.
    pub uuid: Option<String>,
    /// The guest's name, likewise.
    pub name: Option<String>,
    /// The disk's path.
    pub disk: String,
    file: Option<FileIdentity>,
    /// What virtfold does to it.
    pub access: LockReason,
    /// Why, for people.
    pub reason: String,
    /// The owner's process.
    pub pid: u32,
}

impl LockedDisks {
    /// A guard of `disk` that this process will hold.
    pub fn new(disk: &Path, access: LockReason, reason: impl Into<String>) -> Self {
        Self {
            version: VERSION,
            uuid: None,
            name: None,
            disk: disk.to_string_lossy().into_owned(),
            file: FileIdentity::of(disk),
            access,
            reason: reason.into(),
            pid: std::process::id(),
        }
    }

    /// The same for a disk of this guest, so that the guest can't start whatever its disks are.
    #[must_use]
    pub fn of_guest(mut self, uuid: Option<String>, name: Option<String>) -> Self {
        self.uuid = uuid;
        self.name = name;
        self
    }

    /// Reads a guard's bytes; `None` where they are not one. Any bytes may be given.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let within = bytes.get(..MAX_GUARD).unwrap_or(bytes);
        serde_json::from_slice::<Self>(within).ok().filter(|guard| guard.version == VERSION)
    }

    /// The refusal, for whoever tries to start the guest.
    pub fn refusal(&self) -> String {
        let does = match self.access {
            LockReason::Reading => "is reading",
            LockReason::Restoring => "is restoring",
        };
        format!("virtfold (process {}) {does} '{}': {}", self.pid, self.disk, self.reason)
    }

    fn concerns(&self, name: &str, domain: &HookDomain) -> bool {
        let names = [Some(name), domain.name.as_deref()];
        let uuid = domain.uuid.as_deref();
        self.name.as_deref().is_some_and(|ours| names.contains(&Some(ours)))
            || self.uuid.as_deref().zip(uuid).is_some_and(|(ours, theirs)| ours.eq_ignore_ascii_case(theirs))
    }

    /// Whether virtfold's access and a disk's role go together.
    fn tolerates(&self, role: DiskAccess) -> bool {
        self.access == LockReason::Reading && role == DiskAccess::Read
    }
}

/// The first guard that a guest would run into by its name, its uuid or the paths in its XML. `name` is what
/// libvirt calls it, should the XML be unreadable. Touches no file.
pub fn conflict<'g>(guards: &'g [LockedDisks], name: &str, domain: &HookDomain) -> Option<&'g LockedDisks> {
    guards.iter().find(|guard| {
        let same = |disk: &crate::domain::DiskPath| disk.path == guard.disk && !guard.tolerates(disk.role);
        guard.concerns(name, domain) || domain.disks.iter().any(same)
    })
}

/// The first guard whose file a disk of the guest leads to by another path. Looks at each disk's file, which
/// may wait for a file system that does not answer: give it a time limit.
pub fn conflict_by_file<'g>(guards: &'g [LockedDisks], domain: &HookDomain) -> Option<&'g LockedDisks> {
    if guards.iter().all(|guard| guard.file.is_none()) {
        return None;
    }
    domain.disks.iter().find_map(|disk| {
        let identity = FileIdentity::of(Path::new(&disk.path))?;
        guards.iter().find(|guard| guard.file == Some(identity) && !guard.tolerates(disk.role))
    })
}

/// Where guards are: `$VIRTFOLD_GUARDS`, else `/run/virtfold/guards`, or a user's in his runtime directory.
pub fn usual_path(whose: HookOwner) -> PathBuf {
    named("VIRTFOLD_GUARDS", || whose.runtime().join("guards"))
}

/// A guard that this process holds, until it is dropped or the process ends.
#[derive(Debug)]
pub struct StartLock {
    path: PathBuf,
    /// Holds the lock.
    _file: File,
}

impl StartLock {
    /// Puts up a guard in `dir`, which is made where it does not exist.
    ///
    /// # Errors
    /// When the directory or the file can't be made or locked, or what it says is too long.
    pub fn hold(dir: &Path, what: &LockedDisks) -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let bytes = serde_json::to_vec(what)?;
        if bytes.len() > MAX_GUARD {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a guard's path and reason are too long",
            ));
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let name = format!("{}-{now}-{number}.json", std::process::id());
        let (hidden, path) = (dir.join(format!(".{name}")), dir.join(name));
        // A killed owner of the same number may have left its files.
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&hidden)?;
        fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file()?))?;
        file.write_all(&bytes)?;
        fs::rename(&hidden, &path)?;
        Ok(Self { path, _file: file })
    }
}

impl Drop for StartLock {
    fn drop(&mut self) {
        // A file that stays is not locked any more: it is a stale guard, which `sweep` removes.
        drop(fs::remove_file(&self.path));
    }
}

/// The guards in `dir` that are alive, as far as they can be read.
pub fn alive(dir: &Path) -> Vec<LockedDisks> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let shown = entries.flatten().filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
    shown.take(MAX_FILES).filter_map(|entry| read_alive(&entry.path())).take(MAX_GUARDS).collect()
}

/// Removes the files of owners that are gone, and returns how many there were.
///
/// # Errors
/// When the directory can't be read or a file not removed.
pub fn sweep(dir: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let Some(file) = open(&entry.path()).filter(|file| !is_locked(file)) else { continue };
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        let age = file.metadata()?.modified()?.elapsed().unwrap_or_default();
        if !hidden || age > ABANDONED {
            fs::remove_file(entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn read_alive(path: &Path) -> Option<LockedDisks> {
    let file = open(path)?;
    let mut bytes = Vec::new();
    (&file).take(MAX_GUARD as u64 + 1).read_to_end(&mut bytes).ok()?;
    // Read first, looked at last: the lock may be gone by now, but it is not of another file.
    LockedDisks::parse(&bytes).filter(|_| is_locked(&file))
}

fn open(path: &Path) -> Option<File> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    file.metadata().ok().filter(fs::Metadata::is_file).map(|_| file)
}

fn is_locked(file: &File) -> bool {
    let Ok(mut lock) = whole_file() else { return false };
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)).is_ok() && i32::from(lock.l_type) != libc::F_UNLCK
}

fn whole_file() -> io::Result<libc::flock> {
    let narrow = |value: i32| i16::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::Unsupported));
    let (l_type, l_whence) = (narrow(libc::F_WRLCK)?, narrow(libc::SEEK_SET)?);
    Ok(libc::flock { l_type, l_whence, l_start: 0, l_len: 0, l_pid: 0 })
}

#[cfg(test)]
#[path = "start_lock_tests.rs"]
mod tests;
