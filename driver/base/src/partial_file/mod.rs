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
//! That the file can be named in the end is tried before anything is written to it: the file is made under
//! another name and given its partial one in the way in which it will get its final one (`rename`).
//!
//! Imports: `error`, `ioctl`.

mod rename;

mod directory;

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

pub use self::directory::{at_directory, expect_directory, file_in_the_way};
pub use self::rename::rename;
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::ioctl;

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
        if existing == Overwrite::Refuse && path.symlink_metadata().is_ok() {
            return Err(exists(path));
        }
        let name = path.file_name().ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("'{}' does not name a file", path.display()))
        })?;
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let hidden = |end: &str| {
            let mut hidden = std::ffi::OsString::from(".");
            hidden.push(name);
            hidden.push(format!(".{}.{end}", unique.get(..8).unwrap_or(&unique)));
            path.with_file_name(hidden)
        };
        let (first, temporary) = (hidden("new.partial"), hidden("partial"));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&first);
        let folder = temporary.parent().unwrap_or(Path::new("."));
        let file = at_directory(file, folder, || format!("cannot create '{}'", temporary.display()))?;
        if let Err(error) = rename(&first, &temporary, existing) {
            remove(&first);
            return Err(error.within(format!("'{}' could not be renamed to its final name", path.display())));
        }
        Self::begin(file, temporary, path, 0)
    }

    /// Goes on with a file that a dead process has left, behind its first `len` bytes; what is behind them is
    /// cut off. `None`, where it is not there, is another file, or is shorter.
    ///
    /// # Errors
    /// When it can't be opened or cut.
    pub fn reopen(left: &LeftoverFile<'_>, len: u64) -> Result<Option<Self>> {
        let cannot = || format!("cannot resume '{}'", left.temporary.display());
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(left.temporary);
        let mut file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(cannot(), error)),
        };
        let found = file.metadata().at(cannot)?;
        if !found.is_file() || (found.dev(), found.ino()) != left.identity || found.len() < len {
            return Ok(None);
        }
        file.set_len(len).at(cannot)?;
        file.seek(SeekFrom::Start(len)).at(cannot)?;
        Self::begin(file, left.temporary.to_owned(), left.path, len).map(Some)
    }

    fn begin(file: File, temporary: PathBuf, path: &Path, len: u64) -> Result<Self> {
        let file = Arc::new(file);
        let flusher = Flusher::start(Arc::clone(&file), len)?;
        Ok(Self { file, temporary, path: path.to_owned(), flusher, committed: false })
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
        self.committed = true;
        rename(&self.temporary, &self.path, existing).map_err(|error| self.unnamed(error))?;
        sync_parent(&self.path)
    }

    /// As [`PartialFile::commit`], of a file that is made again in a moment: where it can't be named it is
    /// gone.
    ///
    /// # Errors
    /// As [`PartialFile::commit`].
    pub fn commit_or_drop(mut self, existing: Overwrite) -> Result<()> {
        self.settle()?;
        rename(&self.temporary, &self.path, existing)?;
        self.committed = true;
        sync_parent(&self.path)
    }

    fn settle(&mut self) -> Result<()> {
        let synced = self.flusher.finish().and_then(|()| self.file.sync_all());
        synced.map_err(|e| self.sync_failed(e))
    }

    fn unnamed(&self, error: Error) -> Error {
        let (from, to) = (self.temporary.display(), self.path.display());
        let hint = format!("nothing is lost: free the name, then run 'mv --no-clobber {from} {to}'");
        error.within(format!("'{to}' is complete but could not be renamed; it is '{from}'")).with_hint(hint)
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if !self.committed {
            remove(&self.temporary);
        }
    }
}

/// Removes an unfinished file.
fn remove(temporary: &Path) {
    if let Err(error) = std::fs::remove_file(temporary) {
        tracing::warn!(file = %temporary.display(), %error, "an unfinished file could not be removed");
    }
}

fn sync_parent(path: &Path) -> Result<()> {
    let parent = parent(path);
    let directory = File::open(parent).at(|| format!("cannot open '{}'", parent.display()))?;
    match directory.sync_all() {
        // A file system that knows no such sync.
        Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => Ok(()),
        synced => synced.at(|| format!("cannot sync the directory '{}'", parent.display())),
    }
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
    let is_it = |found: &std::fs::Metadata| found.is_file() && (found.dev(), found.ino()) == identity;
    if temporary.symlink_metadata().is_ok_and(|found| is_it(&found)) {
        remove(temporary);
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
        f.write_str("Shared")
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
mod tests {
    use super::*;
    use std::io::Write;

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn appears_only_by_commit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.tar");
        let mut partial = PartialFile::create(&path, Overwrite::Refuse).unwrap();
        partial.file().write_all(b"data").unwrap();
        partial.wrote(WRITE_BACK_EVERY).unwrap();
        let seen = names(directory.path());
        assert!(
            seen.len() == 1 && seen[0].starts_with(".a.tar.") && seen[0].ends_with(".partial"),
            "{seen:?}"
        );
        partial.commit(Overwrite::Refuse).unwrap();
        assert_eq!(names(directory.path()), ["a.tar"]);
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }

    #[test]
    fn a_dropped_one_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        drop(PartialFile::create(&directory.path().join("a"), Overwrite::Refuse).unwrap());
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn goes_on_behind_what_is_on_the_disk() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.tar");
        let mut partial = PartialFile::create(&path, Overwrite::Refuse).unwrap();
        let told = Arc::new(AtomicU64::new(0));
        let heard = Arc::clone(&told);
        partial.on_synced(Box::new(move |bytes| heard.store(bytes, Ordering::SeqCst)));
        let (temporary, identity) = (partial.temporary().to_owned(), partial.identity().unwrap());
        std::thread::sleep(SYNC_EVERY);
        let start = Instant::now();
        while told.load(Ordering::SeqCst) == 0 {
            assert!(start.elapsed() < Duration::from_secs(30));
            partial.file().write_all(b"12").unwrap();
            partial.wrote(2).unwrap();
            // As if it had been a lot.
            partial.flusher.due = WRITE_BACK_EVERY;
        }
        let len = told.load(Ordering::SeqCst);
        // As a process that dies: nothing is removed.
        partial.committed = true;
        drop(partial);
        let left = LeftoverFile { path: &path, temporary: &temporary, identity };
        let other = LeftoverFile { identity: (identity.0, identity.1 + 1), ..left };
        assert!(PartialFile::reopen(&other, len).unwrap().is_none(), "another file");
        assert!(PartialFile::reopen(&left, 1 << 30).unwrap().is_none(), "too short");
        let partial = PartialFile::reopen(&left, len).unwrap().unwrap();
        partial.file().write_all(b"end").unwrap();
        partial.commit(Overwrite::Refuse).unwrap();
        let all = std::fs::read(&path).unwrap();
        assert_eq!((all.len() as u64, &all[all.len() - 5..]), (len + 3, b"12end".as_slice()));
        assert!(PartialFile::reopen(&left, len).unwrap().is_none(), "it is not there");
    }

    #[test]
    fn only_that_file_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        std::fs::write(&path, b"theirs").unwrap();
        let found = path.metadata().unwrap();
        remove_partial(&path, (found.dev(), found.ino() + 1));
        assert!(path.exists());
        remove_partial(&path, (found.dev(), found.ino()));
        assert!(!path.exists());
        remove_partial(&path, (0, 0));
    }

    #[test]
    fn never_replaces_unless_asked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let late = PartialFile::create(&path, Overwrite::Refuse).unwrap();
        std::fs::write(&path, b"theirs").unwrap();
        let early = PartialFile::create(&path, Overwrite::Refuse).unwrap_err();
        assert_eq!(early.kind(), ErrorKind::Exists);
        let left = late.temporary().to_owned();
        let error = late.commit(Overwrite::Refuse).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exists);
        assert!(error.to_string().contains(left.to_str().unwrap()) && error.hint().is_some(), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"theirs");
        std::fs::remove_file(left).expect("what is finished stays");
        let small = PartialFile::create(&directory.path().join("b"), Overwrite::Refuse).unwrap();
        std::fs::write(directory.path().join("b"), b"theirs").unwrap();
        assert_eq!(small.commit_or_drop(Overwrite::Refuse).unwrap_err().kind(), ErrorKind::Exists);
        std::fs::remove_file(directory.path().join("b")).unwrap();
        PartialFile::create(&path, Overwrite::Replace).unwrap().commit(Overwrite::Replace).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
        assert_eq!(names(directory.path()), ["a"]);
    }
}
