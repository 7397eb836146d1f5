//! Giving a finished file its name without taking another one's place, on whatever file system.
//!
//! Three ways, each for where the one before is not known: a rename that refuses to replace (`RENAME_NOREPLACE`); a hard link and the old name
//! taken away (NFS); a placeholder (exFAT, FUSE, Gluster). The placeholder is made only where nothing has the name, and is replaced
//! only while it is still there, empty. A process that dies in between leaves an empty file under the name, which nobody takes for a whole one.
//!
//! Imports: `error`.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::{Overwrite, exists};
use crate::error::{Error, IoContext, Result};

/// Renames `from`, a file or directory, to `to`.
pub fn rename(from: &Path, to: &Path, existing: Overwrite) -> Result<()> {
    let renaming = || format!("cannot rename '{}' to '{}'", from.display(), to.display());
    if existing == Overwrite::Replace {
        return std::fs::rename(from, to).at(renaming);
    }
    let cwd = rustix::fs::CWD;
    match rustix::fs::renameat_with(cwd, from, cwd, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => Err(exists(to)),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => match link(from, to)? {
            LinkOutcome::Done => Ok(()),
            LinkOutcome::Unknown => by_placeholder(from, to),
        },
        Err(errno) => Err(Error::io(renaming(), errno.into())),
    }
}

/// Whether the file system knows hard links.
enum LinkOutcome {
    Done,
    Unknown,
}

fn link(from: &Path, to: &Path) -> Result<LinkOutcome> {
    match rustix::fs::link(from, to) {
        Ok(()) => {}
        Err(Errno::EXIST) => return Err(exists(to)),
        // EPERM: directories, other people's files, and most file systems without links.
        Err(Errno::PERM | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::MLINK) => {
            return Ok(LinkOutcome::Unknown);
        }
        Err(errno) => {
            let what = format!("cannot link '{}' to '{}'", from.display(), to.display());
            return Err(Error::io(what, errno.into()));
        }
    }
    // It has its name: a second one harms nothing.
    if let Err(error) = std::fs::remove_file(from) {
        tracing::warn!(file = %from.display(), %error, "the name of an unfinished file could not be removed");
    }
    Ok(LinkOutcome::Done)
}

fn by_placeholder(from: &Path, to: &Path) -> Result<()> {
    let placeholder = Placeholder::make(from, to)?;
    let renamed = match placeholder.is_there() {
        true => std::fs::rename(from, to),
        false => return Err(exists(to)),
    };
    renamed
        .inspect_err(|_| placeholder.remove())
        .at(|| format!("cannot rename '{}' to '{}'", from.display(), to.display()))
}

/// A file or directory of ours under the name, empty.
struct Placeholder<'a> {
    path: &'a Path,
    /// Open as long as it counts: some file systems number files anew when nobody has them open.
    held: File,
    identity: (u64, u64),
}

impl<'a> Placeholder<'a> {
    /// Of the kind that `like` is.
    fn make(like: &Path, path: &'a Path) -> Result<Self> {
        let making = || format!("cannot create '{}'", path.display());
        let found = like.symlink_metadata().at(|| format!("cannot look at '{}'", like.display()))?;
        let made = if found.is_dir() {
            std::fs::create_dir(path).and_then(|()| File::open(path))
        } else {
            OpenOptions::new().write(true).create_new(true).open(path)
        };
        let held = match made {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Err(exists(path)),
            made => made.at(making)?,
        };
        let found = held.metadata().at(making)?;
        Ok(Self { path, held, identity: (found.dev(), found.ino()) })
    }

    /// Whether the name is still the placeholder's, and nothing is in it.
    fn is_there(&self) -> bool {
        let empty = self.held.metadata().is_ok_and(|now| now.is_dir() || now.len() == 0);
        let found = self.path.symlink_metadata();
        empty && found.is_ok_and(|found| (found.dev(), found.ino()) == self.identity)
    }

    /// Takes it away where it is still there; a directory that is not empty stays by itself.
    fn remove(&self) {
        if !self.is_there() {
            return;
        }
        let removed = std::fs::remove_file(self.path).or_else(|_| std::fs::remove_dir(self.path));
        if let Err(error) = removed {
            tracing::warn!(file = %self.path.display(), %error, "an empty file could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_placeholder_takes_no_name_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("a"), b"a").unwrap();
        by_placeholder(&at("a"), &at("b")).unwrap();
        assert_eq!(std::fs::read(at("b")).unwrap(), b"a");
        std::fs::write(at("c"), b"theirs").unwrap();
        assert_eq!(by_placeholder(&at("b"), &at("c")).unwrap_err().kind(), ErrorKind::Exists);
        assert_eq!(std::fs::read(at("c")).unwrap(), b"theirs");
        assert!(by_placeholder(&at("nothing"), &at("d")).is_err() && !at("d").exists());
        std::fs::create_dir_all(at("dir/inner")).unwrap();
        by_placeholder(&at("dir"), &at("moved")).unwrap();
        assert!(at("moved/inner").is_dir() && !at("dir").exists());
        assert_eq!(by_placeholder(&at("b"), &at("moved")).unwrap_err().kind(), ErrorKind::Exists);
    }

    #[test]
    fn a_placeholder_that_somebody_has_filled_or_replaced_stays() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        std::fs::write(&from, b"x").unwrap();
        let placeholder = Placeholder::make(&from, &to).unwrap();
        assert!(placeholder.is_there());
        std::fs::write(&to, b"theirs").unwrap();
        assert!(!placeholder.is_there());
        placeholder.remove();
        assert_eq!(std::fs::read(&to).unwrap(), b"theirs");
        std::fs::remove_file(&to).unwrap();
        let placeholder = Placeholder::make(&from, &to).unwrap();
        std::fs::rename(&from, &to).unwrap();
        assert!(!placeholder.is_there(), "another file has the name");
    }
}
