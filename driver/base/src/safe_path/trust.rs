//! Files that decide what this program does: its configuration, credentials, the commands that it runs.
//!
//! The rule is sshd's for its keys: the file, and each directory above it up to the root, belongs to root or
//! to the user who runs this, and neither group nor others may write to any of them; the group of that user
//! alone, where it is his first one, is no other. A sticky directory such
//! as `/tmp` is open to others and so is everything below it. Links are followed, for no directory on the way
//! lets others make one. What was looked at is what is read: the walk holds each directory open, and the file
//! is checked once it is open.
//!
//! Imports: `safe_path`.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{Group, Uid, User};
use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::Errno;

use super::{Directory, Entry, Walk, is_ours, kind};

/// What helps where a directory is not one's own to change.
const ELSEWHERE: &str = "put the file elsewhere, for example into /etc/virtfold";

/// What others than the owner may do with a file that is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OthersAccess {
    /// Read it.
    MayRead,
    /// Nothing: it holds secrets.
    Nothing,
}

/// A file that others can change, or read where it holds secrets; or that is no file.
#[derive(Debug)]
pub struct Untrusted {
    /// The file, or the directory above it.
    pub path: PathBuf,
    /// The rest of the sentence that begins with the path: owner, mode, and the command that repairs it.
    pub why: String,
}

impl fmt::Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' {}", self.path.display(), self.why)
    }
}

impl std::error::Error for Untrusted {}

impl Untrusted {
    /// It, where an error of this module is one.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref().and_then(|inner| inner.downcast_ref())
    }

    fn error(path: &Path, why: String) -> io::Error {
        io::Error::other(Self { path: path.to_owned(), why })
    }
}

/// Whether root runs this.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Opens the file at `path` for reading, if nobody else can have made it what it is.
///
/// # Errors
/// It is not there or can't be opened; it is [`Untrusted`].
pub fn open(path: &Path, others: OthersAccess) -> io::Result<File> {
    let Entry { directory, name, .. } = locate(path)?;
    directory.open_no_link(&name, others)
}

/// Checks the program at `path`, which is run by its path: nobody else can put another one there.
///
/// # Errors
/// It is not there; it is [`Untrusted`].
pub fn expect(path: &Path) -> io::Result<()> {
    let entry = locate(path)?;
    let found = entry.find()?.ok_or(Errno::NOENT)?;
    check(&entry.path(), &found, OthersAccess::MayRead)
}

fn locate(path: &Path) -> io::Result<Entry> {
    let entry = Entry::at_end_of(Walk { is_trusted_only: true, ..Walk::new(path)? })?;
    expect_directory(&entry.directory)?;
    Ok(entry)
}

impl Directory {
    /// Opens the directory at `path` if others can write neither to it nor to one above it.
    ///
    /// # Errors
    /// As [`Directory::open`]; it is [`Untrusted`].
    pub fn open_trusted_directory(path: &Path) -> io::Result<Self> {
        let mut walk = Walk { is_trusted_only: true, ..Walk::new(path)? };
        while let Some(name) = walk.rest.pop_front() {
            walk.enter(&name)?;
        }
        expect_directory(&walk.here)?;
        Ok(walk.here)
    }

    /// Opens the file `name` in it for reading; the directory is a trusted one.
    ///
    /// # Errors
    /// As [`open`].
    pub fn open_trusted(&self, name: &OsStr, others: OthersAccess) -> io::Result<File> {
        let found = self.find(name)?.ok_or(Errno::NOENT)?;
        match kind(&found) == FileType::Symlink {
            true => open(&self.path.join(name), others),
            false => self.open_no_link(name, others),
        }
    }

    fn open_no_link(&self, name: &OsStr, others: OthersAccess) -> io::Result<File> {
        let path = self.path.join(name);
        // To open a device can do something, and a pipe's writer may never come: the kind is looked at first.
        let found = self.find(name)?.ok_or(Errno::NOENT)?;
        check(&path, &found, others)?;
        let file = self.open_file(name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        check(&path, &rustix::fs::fstat(&file)?, others)?;
        Ok(file)
    }
}

/// Refuses a directory that others may write to.
pub(super) fn expect_directory(directory: &Directory) -> io::Result<()> {
    owned_and_closed(&directory.path, &rustix::fs::fstat(&directory.fd)?)
}

fn check(path: &Path, found: &Stat, others: OthersAccess) -> io::Result<()> {
    if kind(found) != FileType::RegularFile {
        return Err(Untrusted::error(path, "is not a regular file".to_owned()));
    }
    owned_and_closed(path, found)?;
    if others == OthersAccess::Nothing && found.st_mode & 0o077 != 0 {
        let (shown, state) = (path.display(), state(found));
        let why = format!("holds secrets and is not for its owner alone ({state}); do 'chmod 600 {shown}'");
        return Err(Untrusted::error(path, why));
    }
    Ok(())
}

fn owned_and_closed(path: &Path, found: &Stat) -> io::Result<()> {
    let (shown, state) = (path.display(), state(found));
    if !is_ours(found) {
        let us = rustix::process::geteuid().as_raw();
        // To take a directory away from somebody, his home perhaps, would do more harm than good.
        let repair = match kind(found) == FileType::Directory {
            true => ELSEWHERE.to_owned(),
            false => format!("do 'chown {} {shown}'", user(us)),
        };
        return Err(Untrusted::error(path, format!("belongs to somebody else ({state}); {repair}")));
    }
    let group = found.st_mode & 0o020 != 0 && !is_private_group(found.st_gid);
    let (who, command) = match (group, found.st_mode & 0o002 != 0) {
        (false, false) => return Ok(()),
        (true, false) => ("its group", "g-w"),
        (false, true) => ("everybody", "o-w"),
        (true, true) => ("its group and everybody", "go-w"),
    };
    let repair = match kind(found) == FileType::Directory && found.st_mode & 0o1000 != 0 {
        // A sticky directory is open on purpose: it is the file that has to go.
        true => ELSEWHERE.to_owned(),
        false => format!("do 'chmod {command} {shown}'"),
    };
    Err(Untrusted::error(path, format!("may be written by {who} ({state}); {repair}")))
}

/// Whether a group is that of an ordinary user alone: his first one, of his name, without other members.
/// Where each user has one, umask is 002, and directories that he makes may be written by it.
fn is_private_group(group: u32) -> bool {
    let user = match User::from_uid(Uid::effective()) {
        Ok(Some(user)) if !user.uid.is_root() && user.gid.as_raw() == group => user,
        _ => return false,
    };
    match Group::from_gid(user.gid) {
        Ok(Some(group)) => group.name == user.name && group.mem.iter().all(|member| *member == user.name),
        _ => false,
    }
}

fn state(found: &Stat) -> String {
    format!("owner {}, mode {:04o}", user(found.st_uid), found.st_mode & 0o7777)
}

fn user(id: u32) -> String {
    if id == 0 { "root".to_owned() } else { id.to_string() }
}

#[cfg(any(test, feature = "test-support"))]
#[expect(clippy::expect_used, clippy::panic, reason = "for tests alone")]
pub mod testing {
    //! Where tests write what is read only where nobody else can write.

    use std::path::{Path, PathBuf};

    use super::super::Directory;

    /// `place`, made if it is not there; or, where a checkout lies below `/tmp` or in somebody else's home, a
    /// directory of this user's that nobody else can write to.
    ///
    /// # Panics
    /// None of them can be made.
    pub fn closed(place: &Path) -> PathBuf {
        let home = std::env::home_dir().filter(|_| !super::is_root());
        let own = home.map_or_else(|| PathBuf::from("/var/lib"), |home| home.join(".cache"));
        for place in [place, &own.join("virtfold-tests")] {
            std::fs::create_dir_all(place).expect("a directory for tests");
            let place = std::fs::canonicalize(place).expect("the directory");
            if Directory::open_trusted_directory(&place).is_ok() {
                return place;
            }
        }
        panic!("others can write to '{}' or above it", own.display());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};

    use super::*;

    /// A user who is nobody here.
    const OTHER: u32 = 65_533;

    fn folder() -> tempfile::TempDir {
        let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tmp");
        tempfile::tempdir_in(testing::closed(&place)).unwrap()
    }

    fn chmod(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[track_caller]
    fn refused(path: &Path, others: OthersAccess) -> String {
        let error = open(path, others).unwrap_err();
        Untrusted::of(&error).unwrap_or_else(|| panic!("{error}")).to_string()
    }

    #[test]
    fn a_file_and_each_directory_above_it_are_for_their_owner_to_write() {
        let folder = folder();
        let inner = folder.path().join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        let file = inner.join("file");
        std::fs::write(&file, "text").unwrap();
        let read = |path: &Path| {
            let mut text = String::new();
            open(path, OthersAccess::MayRead).unwrap().read_to_string(&mut text).unwrap();
            text
        };
        assert_eq!(read(&file), "text");
        for victim in [&file, &inner, &folder.path().join("a")] {
            let before = std::fs::metadata(victim).unwrap().permissions().mode();
            for (open_to, who) in [(0o020, "its group"), (0o002, "everybody"), (0o022, "its group and every")]
            {
                chmod(victim, before | open_to);
                let said = refused(&file, OthersAccess::MayRead);
                assert!(
                    said.starts_with(&format!("'{}' may be written by {who}", victim.display())),
                    "{said}"
                );
                let mode = format!("{:04o}", (before | open_to) & 0o7777);
                assert!(
                    said.contains(&mode) && said.contains("do 'chmod ") && said.contains("owner "),
                    "{said}"
                );
            }
            chmod(victim, 0o1777);
            refused(&file, OthersAccess::MayRead);
            chmod(victim, before);
            chown(victim, Some(OTHER), None).unwrap();
            let said = refused(&file, OthersAccess::MayRead);
            let repair = if victim.is_dir() { ELSEWHERE } else { "do 'chown root " };
            assert!(said.contains("owner 65533") && said.contains(repair), "{said}");
            chown(victim, Some(0), None).unwrap();
        }
        assert_eq!(read(&file), "text");
    }

    #[test]
    fn what_lies_in_a_directory_for_everybody_is_not_trusted_though_it_is_sticky() {
        let file = tempfile::NamedTempFile::new_in("/tmp").unwrap();
        let said = refused(file.path(), OthersAccess::MayRead);
        assert!(
            said.starts_with("'/tmp' may be written by") && said.contains("put the file elsewhere"),
            "{said}"
        );
    }

    #[test]
    fn secrets_are_for_their_owner_alone() {
        let folder = folder();
        let file = folder.path().join("keys");
        std::fs::write(&file, "").unwrap();
        for mode in [0o640, 0o604, 0o610, 0o601] {
            chmod(&file, mode);
            let said = refused(&file, OthersAccess::Nothing);
            assert!(said.contains("do 'chmod 600 "), "{said}");
            open(&file, OthersAccess::MayRead).unwrap();
        }
        chmod(&file, 0o400);
        open(&file, OthersAccess::Nothing).unwrap();
    }

    #[test]
    fn a_link_leads_where_its_target_is_trusted_and_no_further() {
        let folder = folder();
        let (closed, exposed) = (folder.path().join("closed"), folder.path().join("exposed"));
        for directory in [&closed, &exposed] {
            std::fs::create_dir(directory).unwrap();
            std::fs::write(directory.join("file"), "").unwrap();
        }
        let link = closed.join("link");
        symlink("file", &link).unwrap();
        open(&link, OthersAccess::MayRead).unwrap();
        let inside = Directory::open_trusted_directory(&closed).unwrap();
        inside.open_trusted(OsStr::new("link"), OthersAccess::MayRead).unwrap();
        lchown(&link, Some(OTHER), None).unwrap();
        assert!(open(&link, OthersAccess::MayRead).is_err());
        std::fs::remove_file(&link).unwrap();
        symlink(exposed.join("file"), &link).unwrap();
        chmod(&exposed, 0o777);
        let said = refused(&link, OthersAccess::MayRead);
        assert!(said.contains("exposed' may be written by"), "{said}");
        assert!(inside.open_trusted(OsStr::new("link"), OthersAccess::MayRead).is_err());
        // A way through the kernel's links says nothing of what is above.
        use std::os::fd::AsRawFd;
        let held = File::open(&closed).unwrap();
        let path = PathBuf::from(format!("/proc/self/fd/{}/file", held.as_raw_fd()));
        assert!(open(&path, OthersAccess::MayRead).is_err());
    }

    #[test]
    fn what_is_no_file_is_refused_before_it_is_opened() {
        let folder = folder();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        assert!(refused(&pipe, OthersAccess::MayRead).ends_with("is not a regular file"));
        assert!(refused(folder.path(), OthersAccess::MayRead).ends_with("is not a regular file"));
        let gone = open(&folder.path().join("gone"), OthersAccess::MayRead).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
        expect(Path::new("/bin/sh")).unwrap();
    }
}
