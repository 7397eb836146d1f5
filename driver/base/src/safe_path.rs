//! Opening what lies below directories that others can write to.
//!
//! Whoever can write to a directory can put a link in the place of a file in it, and root would follow. So a
//! path is walked here component by component, each opened relative to the one before it, by one rule:
//!
//! - **A link is followed only where nobody else can have made it**: it and its directory belong to root, or
//!   to the user who runs this, and nobody else may write to that directory. So an image that an
//!   administrator reaches by a link stays usable. Links of `/proc` are the kernel's.
//! - Any other link within a path is an error. At a path's end it is an entry as any other: it is replaced or
//!   removed itself, and what it points at is not touched.
//!
//! A path without any link the kernel opens in one call (`openat2` with `RESOLVE_NO_SYMLINKS`). Where there
//! is one, or the kernel does not know the call (before Linux 5.6, or forbidden by a filter), the walk does
//! it, by the same rule.
//!
//! What is done to an entry then is done relative to the open directory ([`Directory`]): whatever becomes of
//! the names above it meanwhile, it is done in that directory or fails.
//!
//! What decides what this program does has a stricter rule ([`trust`]).
//!
//! Imports: `error`.

pub mod trust;

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind};

/// As many links as the kernel follows in one path.
const MAX_LINKS: usize = 40;
/// What a directory is opened for: its entries, and to be synced.
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// An open directory.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

/// A name in an open directory, whether something has it or not.
#[derive(Debug)]
pub struct Entry {
    directory: Directory,
    name: OsString,
    /// A link of `/proc`, which stands for an open file.
    is_magic: bool,
}

impl Directory {
    /// Opens the directory at `path`; see the module's description for which links are followed.
    ///
    /// # Errors
    /// It is not there, is no directory, may not be entered; a link that others can have made is on the way,
    /// as an [`Error`] of kind `Denied` that [`Error::io`] finds.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::in_one_call(path).or_else(|_| Self::by_walking(path))
    }

    fn in_one_call(path: &Path) -> io::Result<Self> {
        let fd = rustix::fs::openat2(
            CWD,
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::NO_SYMLINKS,
        )?;
        Ok(Self { fd, path: plain(&std::path::absolute(path)?) })
    }

    fn by_walking(path: &Path) -> io::Result<Self> {
        let mut walk = Walk::new(path)?;
        while let Some(name) = walk.rest.pop_front() {
            walk.enter(&name)?;
        }
        Ok(walk.here)
    }

    /// Its path without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What has `name` in it; a link is a link.
    ///
    /// # Errors
    /// It can't be asked.
    pub fn find(&self, name: &OsStr) -> io::Result<Option<Stat>> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens `name` in it, which is no link.
    ///
    /// # Errors
    /// As open(2); `ELOOP` for a link.
    pub fn open_file(&self, name: &OsStr, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        Ok(File::from(rustix::fs::openat(&self.fd, name, flags, mode)?))
    }

    /// The directory `name` in it, which is no link.
    ///
    /// # Errors
    /// As open(2).
    pub fn open_directory(&self, name: &OsStr) -> io::Result<Self> {
        Ok(Self { fd: open_directory(&self.fd, name)?, path: self.path.join(name) })
    }

    /// Makes a directory in it.
    ///
    /// # Errors
    /// As mkdir(2).
    pub fn make_directory(&self, name: &OsStr, mode: u32) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(mode))?)
    }

    /// Renames an entry of it, a link itself and never its target.
    ///
    /// # Errors
    /// As renameat2(2).
    pub fn rename(&self, from: &OsStr, to: &OsStr, flags: RenameFlags) -> rustix::io::Result<()> {
        match flags.is_empty() {
            true => rustix::fs::renameat(&self.fd, from, &self.fd, to),
            false => rustix::fs::renameat_with(&self.fd, from, &self.fd, to, flags),
        }
    }

    /// Gives an entry of it a second name.
    ///
    /// # Errors
    /// As linkat(2).
    pub fn link(&self, from: &OsStr, to: &OsStr) -> rustix::io::Result<()> {
        rustix::fs::linkat(&self.fd, from, &self.fd, to, AtFlags::empty())
    }

    /// Removes an entry of it that is no directory.
    ///
    /// # Errors
    /// As unlink(2).
    pub fn remove_file(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.fd, name, AtFlags::empty())?)
    }

    /// Removes an empty directory in it.
    ///
    /// # Errors
    /// As rmdir(2).
    pub fn remove_directory(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR)?)
    }

    /// The names in it, at most `most` and one more.
    ///
    /// # Errors
    /// It can't be read.
    pub fn names(&self, most: usize) -> io::Result<Vec<OsString>> {
        use std::os::unix::ffi::OsStringExt;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if !matches!(name.as_slice(), b"." | b"..") {
                names.push(OsString::from_vec(name));
            }
            if names.len() > most {
                break;
            }
        }
        Ok(names)
    }

    /// Makes its entries durable.
    ///
    /// # Errors
    /// As fsync(2); a file system that knows no such sync is no error.
    pub fn sync(&self) -> io::Result<()> {
        // One that may be entered and not read was opened without a right to sync it.
        let readable = rustix::fs::openat(&self.fd, ".", DIRECTORY, Mode::empty())?;
        match rustix::fs::fsync(readable) {
            Err(Errno::INVAL) => Ok(()),
            synced => Ok(synced?),
        }
    }

    /// A path that leads into this very directory, for what takes paths only.
    pub fn by_descriptor(&self) -> PathBuf {
        use std::os::fd::AsRawFd;
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }
}

impl Entry {
    /// Where `path` really is: the open directory, and the name in it. A link at the end is followed as one
    /// on the way is; one that others can have made is the entry itself.
    ///
    /// # Errors
    /// As [`Directory::open`] for the directory; the path ends in no name.
    pub fn locate(path: &Path) -> io::Result<Self> {
        Self::at_end_of(Walk::new(path)?)
    }

    fn at_end_of(mut walk: Walk) -> io::Result<Self> {
        let nameless = || io::Error::new(io::ErrorKind::InvalidInput, "it does not name a file");
        let mut last = None;
        while let Some(name) = walk.rest.pop_front() {
            let is_last = walk.rest.is_empty() && !matches!(name.as_encoded_bytes(), b"." | b".." | b"/");
            if !is_last {
                walk.enter(&name)?;
                continue;
            }
            let is_link = walk.here.find(&name)?.is_some_and(|found| is_link(&found));
            let way = if is_link { walk.way_of(&name)? } else { LinkTarget::Ends };
            match way {
                LinkTarget::Leads(target) => walk.follow(&target)?,
                LinkTarget::Ends | LinkTarget::Magic => last = Some((name, way == LinkTarget::Magic)),
            }
        }
        let (name, is_magic) = last.ok_or_else(nameless)?;
        Ok(Self { directory: walk.here, name, is_magic })
    }

    /// The directory that it is in.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Its name in the directory.
    pub fn name(&self) -> &OsStr {
        &self.name
    }

    /// Its path without links.
    pub fn path(&self) -> PathBuf {
        self.directory.path.join(&self.name)
    }

    /// What is there; a link is one that others can have made.
    ///
    /// # Errors
    /// It can't be asked.
    pub fn find(&self) -> io::Result<Option<Stat>> {
        match self.is_magic {
            true => Ok(Some(rustix::fs::statat(&self.directory.fd, &self.name, AtFlags::empty())?)),
            false => self.directory.find(&self.name),
        }
    }

    /// Refuses a link, which is one that others can have made: for what opens files by their paths.
    ///
    /// # Errors
    /// As [`Entry::open`] for a link; it can't be asked.
    pub fn expect_no_link(&self) -> io::Result<()> {
        match self.find()?.is_some_and(|found| is_link(&found)) {
            true => Err(foreign_link(&self.path())),
            false => Ok(()),
        }
    }

    /// Opens it.
    ///
    /// # Errors
    /// As open(2); a link, as an [`Error`] of kind `Denied` that [`Error::io`] finds.
    pub fn open(&self, flags: OFlags) -> io::Result<File> {
        if self.is_magic {
            let opened =
                rustix::fs::openat(&self.directory.fd, &self.name, flags | OFlags::CLOEXEC, Mode::empty());
            return Ok(File::from(opened?));
        }
        let opened = self.directory.open_file(&self.name, flags);
        opened.map_err(|error| match error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) {
            true => foreign_link(&self.path()),
            false => error,
        })
    }
}

/// Opens the file at `path` for reading, without waiting for a FIFO's other end, and following no link that
/// others can have made.
///
/// # Errors
/// Those of [`Entry::locate`] and [`Entry::open`].
pub fn open(path: &Path) -> io::Result<File> {
    Entry::locate(path)?.open(OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
}

/// Opens a disk's image: a regular file or a block device; nothing where there is something else. What it is,
/// is asked first, for opening some devices does something (a watchdog, a tape), and the name may come from a
/// header. Whoever opens it looks again: a name may change in between.
///
/// # Errors
/// Those of [`Entry::locate`] and [`Entry::open`]; it is not there.
pub fn open_image(path: &Path, access: OFlags) -> io::Result<Option<File>> {
    // A path without a name at its end is a directory's: `/`, `..`.
    if path.file_name().is_none() {
        return Ok(None);
    }
    let entry = Entry::locate(path)?;
    let found = entry.find()?.ok_or(Errno::NOENT)?;
    match kind(&found) {
        FileType::RegularFile | FileType::BlockDevice | FileType::Symlink => {
            entry.open(access | OFlags::NONBLOCK | OFlags::NOCTTY).map(Some)
        }
        _ => Ok(None),
    }
}

/// Whether it is a link.
pub fn is_link(found: &Stat) -> bool {
    kind(found) == FileType::Symlink
}

/// What tells it from another: device and inode.
pub fn identity(found: &Stat) -> (u64, u64) {
    (found.st_dev, found.st_ino)
}

/// What kind of thing it is.
pub fn kind(found: &Stat) -> FileType {
    FileType::from_raw_mode(found.st_mode)
}

/// Where a link leads.
#[derive(Debug, PartialEq, Eq)]
enum LinkTarget {
    Leads(OsString),
    /// It is the kernel's, and has no path.
    Magic,
    /// Nowhere: others can have made it.
    Ends,
}

/// A path on its way.
struct Walk {
    here: Directory,
    rest: VecDeque<OsString>,
    links: usize,
    /// It goes through no directory that others may write to, and no link of `/proc`.
    is_trusted_only: bool,
}

impl Walk {
    fn new(path: &Path) -> io::Result<Self> {
        if path.as_os_str().is_empty() {
            return Err(Errno::NOENT.into());
        }
        let path = std::path::absolute(path)?;
        Ok(Self { here: root()?, rest: components(&path), links: 0, is_trusted_only: false })
    }

    /// Goes into the directory `name`, or to where a link of that name leads.
    fn enter(&mut self, name: &OsStr) -> io::Result<()> {
        if self.is_trusted_only {
            trust::expect_directory(&self.here)?;
        }
        if name == "/" {
            self.here = root()?;
            return Ok(());
        }
        let error = match open_directory(&self.here.fd, name) {
            Ok(fd) => {
                let path = plain(&self.here.path.join(name));
                self.here = Directory { fd, path };
                return Ok(());
            }
            Err(error) => error,
        };
        if !self.here.find(name)?.is_some_and(|found| is_link(&found)) {
            return Err(error.into());
        }
        match self.way_of(name)? {
            LinkTarget::Leads(target) => self.follow(&target),
            LinkTarget::Magic => {
                let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
                let fd = rustix::fs::openat(&self.here.fd, name, flags, Mode::empty())?;
                self.here = Directory { fd, path: self.here.path.join(name) };
                Ok(())
            }
            LinkTarget::Ends => Err(foreign_link(&self.here.path.join(name))),
        }
    }

    /// Whose link it is, and where it leads.
    fn way_of(&self, name: &OsStr) -> io::Result<LinkTarget> {
        const PROC: u64 = 0x9fa0;
        if rustix::fs::fstatfs(&self.here.fd)?.f_type.cast_unsigned() == PROC {
            return Ok(if self.is_trusted_only { LinkTarget::Ends } else { LinkTarget::Magic });
        }
        let directory = rustix::fs::fstat(&self.here.fd)?;
        let link = rustix::fs::statat(&self.here.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if !is_ours(&directory) || !is_ours(&link) || directory.st_mode & 0o022 != 0 {
            return Ok(LinkTarget::Ends);
        }
        let target = rustix::fs::readlinkat(&self.here.fd, name, Vec::new())?;
        use std::os::unix::ffi::OsStringExt;
        Ok(LinkTarget::Leads(OsString::from_vec(target.into_bytes())))
    }

    fn follow(&mut self, target: &OsStr) -> io::Result<()> {
        self.links += 1;
        if self.links > MAX_LINKS || target.is_empty() {
            return Err(Errno::LOOP.into());
        }
        let mut rest = components(Path::new(target));
        rest.append(&mut self.rest);
        self.rest = rest;
        Ok(())
    }
}

fn root() -> io::Result<Directory> {
    Ok(Directory { fd: rustix::fs::open("/", DIRECTORY, Mode::empty())?, path: PathBuf::from("/") })
}

/// A directory that is no link. Opened for reading, which mounts what is mounted on demand; where that is not
/// allowed, to go through it only.
fn open_directory(at: impl AsFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    match rustix::fs::openat(&at, name, DIRECTORY, Mode::empty()) {
        Err(Errno::ACCESS) => {
            let flags = DIRECTORY.difference(OFlags::RDONLY).union(OFlags::PATH);
            rustix::fs::openat(&at, name, flags, Mode::empty())
        }
        opened => opened,
    }
}

/// Root's, or that of the user who runs this.
fn is_ours(found: &Stat) -> bool {
    found.st_uid == 0 || found.st_uid == rustix::process::geteuid().as_raw()
}

fn components(path: &Path) -> VecDeque<OsString> {
    path.components().map(|part| part.as_os_str().to_owned()).collect()
}

/// A path without `.` and `..`; nothing in it is a link.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}

fn foreign_link(link: &Path) -> io::Error {
    let what = format!("'{}' is a link that others can have made, and is not followed", link.display());
    io::Error::other(Error::new(ErrorKind::Denied, what).with_hint(
        "name the place itself; or let the link and its directory belong to root, and nobody else write to that directory",
    ))
}

#[cfg(test)]
#[path = "safe_path_tests.rs"]
mod tests;
