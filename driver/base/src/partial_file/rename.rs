//! Giving a finished file its name without taking another one's place, on whatever file system.
//!
//! Three ways, each for where the one before is not known: a rename that refuses to replace
//! (`RENAME_NOREPLACE`); a hard link and the old name taken away (NFS); a placeholder (exFAT, FUSE, Gluster).
//! The placeholder is made only where nothing has the name, and is replaced only while it is still there,
//! empty. A process that dies in between leaves an empty file under the name, which nobody takes for a whole
//! one.
//!
//! All of it is done in an open directory: whoever can rename or link that one gains nothing.
//!
//! Imports: `error`, `safe_path`.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::fs::{FileType, OFlags, RenameFlags};
use rustix::io::Errno;

use super::{Overwrite, exists};
use crate::error::{Error, IoContext, Result};
use crate::safe_path::{self, Directory};

/// Renames `from`, a file or directory in `directory`, to `to`. A link that has the name is replaced itself.
pub fn rename(directory: &Directory, from: &OsStr, to: &OsStr, existing: Overwrite) -> Result<()> {
    let renaming = || {
        let (from, to) = (directory.path().join(from), directory.path().join(to));
        format!("cannot rename '{}' to '{}'", from.display(), to.display())
    };
    if existing == Overwrite::Replace {
        return directory.rename(from, to, RenameFlags::empty()).at(renaming);
    }
    match directory.rename(from, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => Err(exists(&directory.path().join(to))),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => match link(directory, from, to)? {
            LinkOutcome::Done => Ok(()),
            LinkOutcome::Unknown => by_placeholder(directory, from, to),
        },
        Err(errno) => Err(Error::io(renaming(), errno.into())),
    }
}

/// Whether the file system knows hard links.
enum LinkOutcome {
    Done,
    Unknown,
}

fn link(directory: &Directory, from: &OsStr, to: &OsStr) -> Result<LinkOutcome> {
    let path = |name: &OsStr| directory.path().join(name);
    match directory.link(from, to) {
        Ok(()) => {}
        Err(Errno::EXIST) => return Err(exists(&path(to))),
        // EPERM: directories, other people's files, and most file systems without links.
        Err(Errno::PERM | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::MLINK) => {
            return Ok(LinkOutcome::Unknown);
        }
        Err(errno) => {
            let what = format!("cannot link '{}' to '{}'", path(from).display(), path(to).display());
            return Err(Error::io(what, errno.into()));
        }
    }
    // It has its name: a second one harms nothing.
    if let Err(error) = directory.remove_file(from) {
        tracing::warn!(file = %path(from).display(), %error, "the name of an unfinished file could not be removed");
    }
    Ok(LinkOutcome::Done)
}

fn by_placeholder(directory: &Directory, from: &OsStr, to: &OsStr) -> Result<()> {
    let placeholder = Placeholder::make(directory, from, to)?;
    let renamed = match placeholder.is_there() {
        true => directory.rename(from, to, RenameFlags::empty()),
        false => return Err(exists(&placeholder.path())),
    };
    renamed.inspect_err(|_| placeholder.remove()).at(|| {
        let from = directory.path().join(from);
        format!("cannot rename '{}' to '{}'", from.display(), placeholder.path().display())
    })
}

/// A file or directory of ours under the name, empty.
struct Placeholder<'a> {
    directory: &'a Directory,
    name: &'a OsStr,
    /// Open as long as it counts: some file systems number files anew when nobody has them open.
    held: File,
    identity: (u64, u64),
}

impl<'a> Placeholder<'a> {
    /// Of the kind that `like` is.
    fn make(directory: &'a Directory, like: &OsStr, name: &'a OsStr) -> Result<Self> {
        let making = || format!("cannot create '{}'", directory.path().join(name).display());
        let looking = || format!("cannot look at '{}'", directory.path().join(like).display());
        let found = directory.find(like).at(looking)?;
        let made = if found.is_some_and(|found| safe_path::kind(&found) == FileType::Directory) {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            directory.make_directory(name, 0o777).and_then(|()| directory.open_file(name, flags))
        } else if found.is_some() {
            directory.open_file(name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)
        } else {
            return Err(Error::io(looking(), Errno::NOENT.into()));
        };
        let held = match made {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(exists(&directory.path().join(name)));
            }
            made => made.at(making)?,
        };
        let found = held.metadata().at(making)?;
        Ok(Self { directory, name, held, identity: (found.dev(), found.ino()) })
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join(self.name)
    }

    /// Whether the name is still the placeholder's, and nothing is in it.
    fn is_there(&self) -> bool {
        let empty = self.held.metadata().is_ok_and(|now| now.is_dir() || now.len() == 0);
        let found = self.directory.find(self.name).unwrap_or_default();
        empty && found.is_some_and(|found| safe_path::identity(&found) == self.identity)
    }

    /// Takes it away where it is still there; a directory that is not empty stays by itself.
    fn remove(&self) {
        if !self.is_there() {
            return;
        }
        let removed = self.directory.remove_file(self.name);
        if let Err(error) = removed.or_else(|_| self.directory.remove_directory(self.name)) {
            tracing::warn!(file = %self.path().display(), %error, "an empty file could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn name(text: &str) -> &OsStr {
        OsStr::new(text)
    }

    #[test]
    fn a_placeholder_takes_no_name_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::open(folder.path()).unwrap();
        let at = |name: &str| folder.path().join(name);
        let moved = |from, to| by_placeholder(&directory, name(from), name(to));
        std::fs::write(at("a"), b"a").unwrap();
        moved("a", "b").unwrap();
        assert_eq!(std::fs::read(at("b")).unwrap(), b"a");
        std::fs::write(at("c"), b"theirs").unwrap();
        assert_eq!(moved("b", "c").unwrap_err().kind(), ErrorKind::Exists);
        assert_eq!(std::fs::read(at("c")).unwrap(), b"theirs");
        assert!(moved("nothing", "d").is_err() && !at("d").exists());
        std::fs::create_dir_all(at("dir/inner")).unwrap();
        moved("dir", "moved").unwrap();
        assert!(at("moved/inner").is_dir() && !at("dir").exists());
        assert_eq!(moved("b", "moved").unwrap_err().kind(), ErrorKind::Exists);
    }

    #[test]
    fn a_placeholder_that_somebody_has_filled_or_replaced_stays() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::open(folder.path()).unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        std::fs::write(&from, b"x").unwrap();
        let placeholder = Placeholder::make(&directory, name("from"), name("to")).unwrap();
        assert!(placeholder.is_there());
        std::fs::write(&to, b"theirs").unwrap();
        assert!(!placeholder.is_there());
        placeholder.remove();
        assert_eq!(std::fs::read(&to).unwrap(), b"theirs");
        std::fs::remove_file(&to).unwrap();
        let placeholder = Placeholder::make(&directory, name("from"), name("to")).unwrap();
        std::fs::rename(&from, &to).unwrap();
        assert!(!placeholder.is_there(), "another file has the name");
    }
}
