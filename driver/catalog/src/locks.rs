//! A lock for each domain, `locks/UUID.lock`, and one for whoever prunes, `locks/prune.lock`: locked by
//! flock(2) for as long as a run lasts. The kernel drops it when the process ends. The file's contents, the
//! process's number, are for messages only; the file itself stays, because removing it would let two runs
//! lock two files of one name.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use rustix::fs::OFlags;

use super::DomainLock;
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::safe_path::Entry;
use virtfold_hypervisor::DomainId;

/// Longest contents that are read.
const CONTENTS: u64 = 64;

#[derive(Debug)]
struct DomainLockFile {
    file: File,
}

impl Drop for DomainLockFile {
    fn drop(&mut self) {
        // Closing alone would not do: a process that another thread is just starting has the descriptor, too,
        // until it is that program.
        if let Err(error) = self.file.unlock() {
            tracing::warn!(%error, "a lock could not be given back; it goes with its file");
        }
    }
}

impl DomainLock for DomainLockFile {}

/// Takes a domain's lock.
pub(super) fn take(directory: &Path, domain: DomainId) -> Result<Box<dyn DomainLock>> {
    let hint = "wait until it ends, or end it and run `virtfold recover`";
    take_file(&directory.join(format!("{domain}.lock")), &format!("domain {domain}"), hint)
}

/// Takes the lock of whoever prunes.
pub(super) fn take_prune(directory: &Path) -> Result<Box<dyn DomainLock>> {
    take_file(&directory.join("prune.lock"), "removing old backups", "wait for its end")
}

fn take_file(path: &Path, what: &str, hint: &str) -> Result<Box<dyn DomainLock>> {
    let opening = || format!("cannot open the lock '{}'", path.display());
    let opened = Entry::locate(path).and_then(|entry| entry.open(OFlags::RDWR | OFlags::CREATE));
    let mut file = opened.at(opening)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(busy(what, file).with_hint(hint)),
        Err(TryLockError::Error(e)) => return Err(Error::io(opening(), e)),
    }
    file.set_len(0).at(opening)?;
    file.rewind().at(opening)?;
    writeln!(file, "{}", std::process::id()).at(opening)?;
    Ok(Box::new(DomainLockFile { file }))
}

fn busy(what: &str, file: File) -> Error {
    let mut contents = String::new();
    let holder = file.take(CONTENTS).read_to_string(&mut contents);
    let number = holder.ok().and_then(|_| contents.trim().parse::<u32>().ok());
    let who = number.map_or_else(|| "another process".to_owned(), |n| format!("process {n}"));
    Error::new(ErrorKind::InUse, format!("{who} of virtfold is working on {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planted_link_is_not_emptied_for_a_lock() {
        let folder = tempfile::tempdir().unwrap();
        let (victim, link) = (folder.path().join("victim"), folder.path().join("a.lock"));
        std::fs::write(&victim, "root's own").unwrap();
        std::os::unix::fs::symlink(&victim, &link).unwrap();
        std::os::unix::fs::lchown(&link, Some(65_533), None).unwrap();
        assert_eq!(take_file(&link, "it", "wait").unwrap_err().kind(), ErrorKind::Denied);
        assert_eq!(std::fs::read(&victim).unwrap(), b"root's own");
    }

    /// A process that is just being started has a copy of each descriptor until it is its own program.
    #[test]
    fn a_lock_is_free_when_it_is_dropped_whoever_has_its_file_open_still() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.lock");
        let file = File::create_new(&path).unwrap();
        file.try_lock().unwrap();
        let twin = file.try_clone().unwrap();
        assert_eq!(take_file(&path, "it", "wait").unwrap_err().kind(), ErrorKind::InUse);
        drop(DomainLockFile { file });
        take_file(&path, "it", "wait").unwrap();
        drop(twin);
    }
}
