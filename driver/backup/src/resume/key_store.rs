//! Envelopes of archives that are being made, in memory that outlives the process and not the host.
//!
//! A process that is killed takes the key of its archive along, and nobody could make the archive's bytes
//! again. So its envelope lies in a file of its owner's alone, in a directory that has to be in a file system
//! in memory (`/run`): what lay on a disk could be found there after it was removed, and the host is not to
//! be able to read its old backups. The file goes when the archive is finished or given up.
//!
//! Imports: `error`.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use age::secrecy::{ExposeSecret, ExposeSecretMut, SecretBox};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, fstatfs};
use rustix::fs::{Mode, OFlags};
use uuid::Uuid;

use virtfold_archive::crypt::Envelope;
use virtfold_hooks::HookOwner;

use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::partial_file;

/// `RAMFS_MAGIC` of linux/magic.h.
const RAMFS: FsType = FsType(0x8584_58f6);

/// An envelope in a file, which goes when this is dropped.
#[derive(Debug)]
pub struct SavedEnvelope {
    path: PathBuf,
    stays: bool,
}

impl SavedEnvelope {
    /// Where envelopes are kept: `VIRTFOLD_KEYS`, or `/run/virtfold/keys`; an ordinary user's in his runtime
    /// directory.
    pub fn usual_directory() -> PathBuf {
        let said = std::env::var_os("VIRTFOLD_KEYS").filter(|value| !value.is_empty());
        let said = said.map_or_else(|| HookOwner::caller().runtime().join("keys"), PathBuf::from);
        // Whoever goes on may be somewhere else.
        std::path::absolute(&said).unwrap_or(said)
    }

    /// Keeps the envelope of an archive in `directory`, which is made where it is not there.
    ///
    /// # Errors
    /// The directory can't be used, is not in memory, or others can use it; the file can't be written.
    pub fn keep(directory: &Path, archive: Uuid, envelope: &Envelope) -> Result<Self> {
        make(directory)?;
        let path = path(directory, archive);
        let cannot = || format!("cannot keep a key in '{}'", path.display());
        let opened = open(directory).at(cannot)?;
        check(&opened, directory)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(&opened, name(archive), flags, Mode::RUSR | Mode::WUSR);
        let mut made = made.map(File::from).map_err(io::Error::from).at(cannot)?;
        let kept = Self { path: path.clone(), stays: false };
        made.write_all(envelope.encode().expose_secret()).at(cannot)?;
        Ok(kept)
    }

    /// What another process may have kept of an archive in `directory`.
    pub fn of(directory: &Path, archive: Uuid) -> Self {
        Self { path: path(directory, archive), stays: false }
    }

    /// The envelope; `None` where it is not there.
    ///
    /// # Errors
    /// As [`SavedEnvelope::keep`]; the file can't be read or is none.
    pub fn read(&self) -> Result<Option<Envelope>> {
        let path = &self.path;
        let cannot = || format!("cannot read '{}'", path.display());
        let directory = path.parent().unwrap_or(Path::new("/"));
        let Some(opened) = if_any(open(directory)).at(cannot)? else { return Ok(None) };
        check(&opened, directory)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&opened, path.file_name().unwrap_or_default(), flags, Mode::empty());
        let Some(file) = if_any(file.map(File::from).map_err(io::Error::from)).at(cannot)? else {
            return Ok(None);
        };
        // One buffer that never moves and is wiped, so that no copy of a key is left behind.
        let mut bytes = SecretBox::new(Box::new(Vec::with_capacity(Envelope::MAX_LEN + 1)));
        file.take(Envelope::MAX_LEN as u64 + 1).read_to_end(bytes.expose_secret_mut()).at(cannot)?;
        let damaged = || Error::new(ErrorKind::Damaged, format!("'{}' is damaged", path.display()));
        Envelope::parse(bytes.expose_secret()).ok_or_else(damaged).map(Some)
    }

    /// It stays when this is dropped.
    pub fn leave(&mut self) {
        self.stays = true;
    }
}

impl Drop for SavedEnvelope {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(key = %self.path.display(), %error, "the key of an archive could not be removed: remove it");
        }
    }
}

fn path(directory: &Path, archive: Uuid) -> PathBuf {
    directory.join(name(archive))
}

fn name(archive: Uuid) -> String {
    format!("{archive}.key")
}

/// `None` for what is not there.
fn if_any<T>(opened: io::Result<T>) -> io::Result<Option<T>> {
    match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

fn cannot_use(directory: &Path) -> String {
    format!("cannot keep keys in '{}'", directory.display())
}

/// Makes the directory where it is not there.
fn make(directory: &Path) -> Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let cannot = || cannot_use(directory);
    if let Some(parent) = directory.parent() {
        partial_file::at_directory(
            DirBuilder::new().recursive(true).mode(0o755).create(parent),
            parent,
            cannot,
        )?;
    }
    partial_file::at_directory(
        DirBuilder::new().recursive(true).mode(0o700).create(directory),
        directory,
        cannot,
    )
}

/// Opens the directory itself. What is looked at is then what is used: its name, or a link in its place,
/// somebody else may exchange.
fn open(directory: &Path) -> io::Result<File> {
    let flags = nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW;
    OpenOptions::new().read(true).custom_flags(flags).open(directory)
}

/// Sees to it that the directory is in memory and nobody else's.
fn check(opened: &File, directory: &Path) -> Result<()> {
    let cannot = || cannot_use(directory);
    let found = opened.metadata().at(cannot)?;
    let kind = fstatfs(opened).map_err(io::Error::from).at(cannot)?.filesystem_type();
    let why = if kind != TMPFS_MAGIC && kind != RAMFS {
        "it is not in memory (tmpfs)"
    } else if found.uid() != nix::unistd::geteuid().as_raw() || found.mode() & 0o077 != 0 {
        "others could use it"
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Usage, format!("{}: {why}", cannot())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use virtfold_archive::crypt::Recipients;

    #[test]
    fn another_process_goes_on_with_an_envelope_that_was_kept_in_memory() {
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let folder = memory.path().join("a/keys");
        let archive = Uuid::new_v4();
        assert!(SavedEnvelope::of(&folder, archive).read().unwrap().is_none());
        let identity = age::x25519::Identity::generate();
        let recipients = Recipients::gather(&[identity.to_public().to_string()], None).unwrap().unwrap();
        let envelope = Envelope::new(&recipients).unwrap();
        let mut kept = SavedEnvelope::keep(&folder, archive, &envelope).unwrap();
        kept.leave();
        drop(kept);
        assert!(SavedEnvelope::of(&folder, Uuid::new_v4()).read().unwrap().is_none());
        let kept = SavedEnvelope::of(&folder, archive);
        let found = kept.read().unwrap().unwrap();
        assert!(found.encode().expose_secret() == envelope.encode().expose_secret());
        let file = folder.join(format!("{archive}.key"));
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
        assert!(!format!("{found:?}{kept:?}").contains("key:"));
        drop(kept);
        assert!(!file.exists());
        // Neither on a disk, nor where others look, nor what is none.
        let disk = tempfile::tempdir_in("/var/tmp").unwrap();
        let refused = SavedEnvelope::keep(disk.path(), archive, &envelope).unwrap_err().to_string();
        assert!(refused.contains("it is not in memory"), "{refused}");
        std::fs::write(&file, b"virtfold key 1").unwrap();
        let mut left = SavedEnvelope::of(&folder, archive);
        left.leave();
        assert_eq!(left.read().unwrap_err().kind(), ErrorKind::Damaged);
        let whole = envelope.encode();
        let whole = whole.expose_secret();
        for len in [whole.len() - 1, whole.len() - 32, whole.len() - 33, whole.len() / 2] {
            std::fs::write(&file, &whole[..len]).unwrap();
            assert_eq!(left.read().unwrap_err().kind(), ErrorKind::Damaged, "{len}");
        }
        // Nor behind a link, which somebody else could exchange.
        std::fs::write(&file, whole).unwrap();
        assert!(left.read().unwrap().is_some());
        let link = memory.path().join("link");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        SavedEnvelope::keep(&link, Uuid::new_v4(), &envelope).unwrap_err();
        let mut linked = SavedEnvelope::of(&link, archive);
        linked.leave();
        linked.read().unwrap_err();
        std::fs::rename(&file, memory.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(memory.path().join("elsewhere"), &file).unwrap();
        left.read().unwrap_err();
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o755)).unwrap();
        let refused = left.read().unwrap_err().to_string();
        assert!(refused.contains("others could use it"), "{refused}");
    }
}
