//! Files that appear whole or not at all.
//!
//! A [`PartialFile`] is written under a name that begins with `.` and ends in `.partial`, in the directory of
//! its final name. [`PartialFile::commit`] makes it durable in this order: data synced, renamed (refusing to
//! replace unless asked), directory synced. A process that dies before the rename leaves a file that says in
//! its name what it is; one that fails removes it. A file that is finished and can't be given its name stays:
//! the error says where it is.
//!
//! A helper thread has what was written put to the disk while the writer goes on, so that the sync at the end
//! is short and the host's dirty pages stay few. What is there it drops from the page cache: the writer then
//! gets the same few pages again and again, which cost less than fresh ones (where memory is full, a third),
//! and the cache stays with the guests, who have a use for it. The thread only writes pages back; it is the
//! commit's sync that makes the file durable. An error that only that thread sees is remembered and fails the
//! commit: the kernel reports a failed write-back once, to whoever asks first.
//!
//! Whoever wants to go on with the file should this process die ([`PartialFile::on_synced`]) has the thread
//! sync it now and then, and is told of how much is surely there; [`PartialFile::reopen`] goes on behind
//! that.
//!
//! All names are those of the directory that was open at the beginning, and no link that others can have made
//! leads to it (`safe_path`). Whoever owns that directory can still put another file under the partial name:
//! whether the file with the final name is the one that was written is asked before the rename and after it,
//! by device and inode, so that nobody else's file takes the place of a good one, or is reported as written.
//!
//! That the file can be named in the end is tried before anything is written to it: the file is made under
//! another name and given its partial one in the way in which it will get its final one (`rename`).
//!
//! Imports: `error`, `ioctl`, `safe_path`.

mod rename;

mod directory;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use rustix::fs::{FileType, OFlags};

pub use self::directory::{at_directory, expect_directory, file_in_the_way};
pub use self::rename::rename;
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::ioctl;
use crate::safe_path::{self, Directory};

/// Bytes written between two write-backs in the background.
const WRITE_BACK_EVERY: u64 = 32 << 20;
/// The time between two syncs for whoever is told of them.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// Is told how many bytes from a file's beginning are on the disk.
pub type OnSynced = Box<dyn Fn(u64) + Send>;

/// A file that a dead process has left unfinished.
#[derive(Clone, Copy, Debug)]
pub struct LeftoverFile<'a> {
    /// The name that it was to have.
    pub path: &'a Path,
    /// The name that it has.
    pub temporary: &'a Path,
    /// Its device and inode.
    pub identity: (u64, u64),
}

/// What a commit does where the final name exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    /// Fail with [`ErrorKind::Exists`].
    Refuse,
    /// Replace it, atomically.
    Replace,
}

/// A file on its way; see the module's description.
#[derive(Debug)]
pub struct PartialFile {
    file: Arc<File>,
    directory: Directory,
    temporary: PathBuf,
    path: PathBuf,
    flusher: Flusher,
    committed: bool,
}

impl PartialFile {
    /// Starts a file that will be `path`, readable by its owner only.
    ///
    /// # Errors
    /// When `path` exists and may not be replaced, or the directory can't be written.
    pub fn create(path: &Path, existing: Overwrite) -> Result<Self> {
        let name = path.file_name().ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("'{}' does not name a file", path.display()))
        })?;
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let hidden = |end: &str| {
            let mut hidden = OsString::from(".");
            hidden.push(name);
            hidden.push(format!(".{}.{end}", unique.get(..8).unwrap_or(&unique)));
            hidden
        };
        let (first, partial) = (hidden("new.partial"), hidden("partial"));
        let temporary = path.with_file_name(&partial);
        let (folder, cannot) = (parent(path), || format!("cannot create '{}'", temporary.display()));
        let directory = at_directory(Directory::open(folder), folder, cannot)?;
        if existing == Overwrite::Refuse && directory.find(name).at(cannot)?.is_some() {
            return Err(exists(path));
        }
        let file = directory.open_file(&first, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL);
        let file = at_directory(file, folder, cannot)?;
        if let Err(error) = rename(&directory, &first, &partial, existing) {
            remove(&directory, &first);
            return Err(error.within(format!("'{}' could not be renamed to its final name", path.display())));
        }
        Self::begin(file, directory, temporary, path, 0)
    }

    /// Goes on with a file that a dead process has left, behind its first `len` bytes; what is behind them is
    /// cut off. `None`, where it is not there, is another file, or is shorter.
    ///
    /// # Errors
    /// When it can't be opened or cut.
    pub fn reopen(left: &LeftoverFile<'_>, len: u64) -> Result<Option<Self>> {
        let cannot = || format!("cannot resume '{}'", left.temporary.display());
        let name = file_name(left.temporary);
        let opened = Directory::open(parent(left.temporary)).and_then(|directory| {
            Ok((directory.open_file(name, OFlags::RDWR | OFlags::NONBLOCK)?, directory))
        });
        let (mut file, directory) = match opened {
            Ok(opened) => opened,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(cannot(), error)),
        };
        let found = file.metadata().at(cannot)?;
        if !found.is_file() || (found.dev(), found.ino()) != left.identity || found.len() < len {
            return Ok(None);
        }
        file.set_len(len).at(cannot)?;
        file.seek(SeekFrom::Start(len)).at(cannot)?;
        Self::begin(file, directory, left.temporary.to_owned(), left.path, len).map(Some)
    }

    fn begin(file: File, directory: Directory, temporary: PathBuf, path: &Path, len: u64) -> Result<Self> {
        let file = Arc::new(file);
        let flusher = Flusher::start(Arc::clone(&file), len)?;
        Ok(Self { file, directory, temporary, path: path.to_owned(), flusher, committed: false })
    }

    /// The name that the file has until it is committed.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Device and inode.
    ///
    /// # Errors
    /// When the file can't be asked.
    pub fn identity(&self) -> Result<(u64, u64)> {
        let found = self.file.metadata().at(|| format!("cannot look at '{}'", self.temporary.display()))?;
        Ok((found.dev(), found.ino()))
    }

    /// Has the file synced now and then, and `tell` told of how much of it is on the disk.
    pub fn on_synced(&self, tell: OnSynced) {
        *lock(&self.flusher.shared.tell) = Some(tell);
    }

    /// The file to write to.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The name that the file will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells that `bytes` more have been written, so that their way to the disk can begin.
    ///
    /// # Errors
    /// When an earlier write did not reach the disk.
    pub fn wrote(&mut self, bytes: u64) -> Result<()> {
        self.flusher.wrote(bytes).map_err(|e| self.sync_failed(e))
    }

    fn sync_failed(&self, source: std::io::Error) -> Error {
        Error::io(format!("cannot sync '{}' to disk", self.path.display()), source)
    }

    /// Makes the file durable under its final name.
    ///
    /// # Errors
    /// When anything of it fails; the final name then does not exist, or is what it was. A file that
    /// is on the disk and can't be named stays under its partial name, which the error says. Only where the
    /// very last step fails, the sync of the directory, is the file there, whole, under a name that a power
    /// cut may undo.
    pub fn commit(mut self, existing: Overwrite) -> Result<()> {
        self.settle()?;
        self.expect_name(&self.temporary)?;
        self.committed = true;
        self.rename(existing).map_err(|error| self.unnamed(error))?;
        self.expect_name(&self.path)?;
        self.sync_directory()
    }

    /// As [`PartialFile::commit`], of a file that is made again in a moment: where it can't be named it is
    /// gone.
    ///
    /// # Errors
    /// As [`PartialFile::commit`].
    pub fn commit_or_drop(mut self, existing: Overwrite) -> Result<()> {
        self.settle()?;
        self.expect_name(&self.temporary)?;
        self.rename(existing)?;
        self.committed = true;
        self.expect_name(&self.path)?;
        self.sync_directory()
    }

    fn settle(&mut self) -> Result<()> {
        let synced = self.flusher.finish().and_then(|()| self.file.sync_all());
        synced.map_err(|e| self.sync_failed(e))
    }

    fn rename(&self, existing: Overwrite) -> Result<()> {
        let (from, to) = (file_name(&self.temporary), file_name(&self.path));
        rename(&self.directory, from, to, existing)
    }

    /// The file of that name is this one.
    fn expect_name(&self, path: &Path) -> Result<()> {
        let looking = || format!("cannot look at '{}'", path.display());
        let there = self.directory.find(file_name(path)).at(looking)?;
        let identity = self.identity()?;
        if there.is_some_and(|there| safe_path::identity(&there) == identity) {
            return Ok(());
        }
        let what = match there {
            Some(_) => format!("'{}' is another file than the one that was written", path.display()),
            None => format!("'{}', which was written, is not there any more", path.display()),
        };
        let folder = parent(path).display();
        Err(Error::new(ErrorKind::Denied, what).with_hint(format!(
            "another process that may write to '{folder}' has renamed or replaced it: do not use what is there; let the directory belong to who runs this, \
             and run it again"
        )))
    }

    fn sync_directory(&self) -> Result<()> {
        let folder = parent(&self.path);
        self.directory.sync().at(|| format!("cannot sync the directory '{}'", folder.display()))
    }

    fn unnamed(&self, error: Error) -> Error {
        let (from, to) = (self.temporary.display(), self.path.display());
        let hint = format!("nothing is lost: free the name, then run 'mv --no-clobber {from} {to}'");
        error.within(format!("'{to}' is complete but could not be renamed; it is '{from}'")).with_hint(hint)
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if !self.committed && self.expect_name(&self.temporary).is_ok() {
            remove(&self.directory, file_name(&self.temporary));
        }
    }
}

/// Removes an unfinished file.
fn remove(directory: &Directory, name: &OsStr) {
    if let Err(error) = directory.remove_file(name) {
        let file = directory.path().join(name);
        tracing::warn!(file = %file.display(), %error, "an unfinished file could not be removed");
    }
}

fn file_name(path: &Path) -> &OsStr {
    path.file_name().unwrap_or_default()
}

fn exists(path: &Path) -> Error {
    Error::new(ErrorKind::Exists, format!("'{}' exists already", path.display()))
}

/// The directory that holds `path`.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Takes an unfinished file away, if it is that one.
pub fn remove_partial(temporary: &Path, identity: (u64, u64)) {
    let Ok(directory) = Directory::open(parent(temporary)) else { return };
    let name = file_name(temporary);
    let is_it = |found: &rustix::fs::Stat| {
        safe_path::kind(found) == FileType::RegularFile && safe_path::identity(found) == identity
    };
    if directory.find(name).unwrap_or_default().is_some_and(|found| is_it(&found)) {
        remove(&directory, name);
    }
}

/// The thread that writes back behind the writer.
#[derive(Debug)]
struct Flusher {
    due: u64,
    wake: Option<Sender<()>>,
    shared: Arc<FlushState>,
    thread: Option<JoinHandle<()>>,
}

/// What the writer and the thread tell each other.
struct FlushState {
    /// Bytes that were written.
    written: AtomicU64,
    failed: Mutex<Option<std::io::Error>>,
    tell: Mutex<Option<OnSynced>>,
}

impl std::fmt::Debug for FlushState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FlushState")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Flusher {
    /// For a file that has `len` bytes.
    fn start(file: Arc<File>, len: u64) -> Result<Self> {
        let (wake, woken) = bounded::<()>(1);
        let shared = Arc::new(FlushState {
            written: AtomicU64::new(len),
            failed: Mutex::default(),
            tell: Mutex::default(),
        });
        let theirs = Arc::clone(&shared);
        let run = move || {
            let mut synced = Instant::now();
            for () in woken {
                if let Err(error) = theirs.flush(&file, &mut synced) {
                    lock(&theirs.failed).get_or_insert(error);
                }
            }
        };
        let thread = std::thread::Builder::new().name("flush".to_owned()).spawn(run);
        let thread = thread.at(|| "cannot start a thread".to_owned())?;
        Ok(Self { due: 0, wake: Some(wake), shared, thread: Some(thread) })
    }

    fn failure(&self) -> std::io::Result<()> {
        match lock(&self.shared.failed).take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn wrote(&mut self, bytes: u64) -> std::io::Result<()> {
        self.shared.written.fetch_add(bytes, Ordering::Release);
        self.due += bytes;
        if self.due >= WRITE_BACK_EVERY {
            self.due = 0;
            if let Some(wake) = &self.wake {
                // A full channel means that a write-back is due already, and it will cover these bytes.
                wake.try_send(()).unwrap_or_default();
            }
        }
        self.failure()
    }

    fn finish(&mut self) -> std::io::Result<()> {
        self.wake = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            return Err(std::io::Error::other("the write-back thread panicked"));
        }
        self.failure()
    }
}

impl FlushState {
    /// Writes back; syncs, where somebody wants to be told and it is time.
    fn flush(&self, file: &File, synced: &mut Instant) -> std::io::Result<()> {
        let written = self.written.load(Ordering::Acquire);
        ioctl::write_back(file)?;
        if synced.elapsed() >= SYNC_EVERY
            && let Some(tell) = &*lock(&self.tell)
        {
            file.sync_data()?;
            *synced = Instant::now();
            // Never behind a failure that was seen before: those pages are clean and not on the disk.
            if lock(&self.failed).is_none() {
                tell(written);
            }
        }
        drop_cached(file);
        Ok(())
    }
}

/// Lets the kernel forget the pages of `file` that are on the disk already; dirty ones stay. Where it does
/// not want to, nothing is lost.
fn drop_cached(file: &File) {
    if let Err(error) = posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED) {
        tracing::debug!(%error, "written pages stay in the cache");
    }
}

#[cfg(test)]
mod tests;
