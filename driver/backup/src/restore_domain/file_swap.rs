//! New files take the places of old ones, all of them or none.
//!
//! Everything is first made beside its place, whole and durable, as `.NAME.XXXXXXXX.restoring`.
//! [`FileSwap::run`] then exchanges the names one after the other: the old file, where there is one, lies
//! under the hidden name afterwards and has lost nothing. [`FileSwap::undo`] exchanges them back;
//! [`FileSwap::settle`] removes the old ones. Dropped before that, a switch undoes itself; killed, it leaves
//! hidden files that say in their name what they are.
//!
//! A new file gets owner and mode of the one that it replaces.
//!
//! All of it is done in the directories as they were opened (`safe_path`), which QEMU's and swtpm's users may
//! write to: a link that is in the place of a file is replaced itself, what it points at is not touched, and
//! only what this process's user has made is put in place.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::target_paths::{PathOccupant, TargetPath};
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::partial_file::{self, Overwrite};
use virtfold_base::safe_path::{self, Directory, identity};

/// How far one of them is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SwapState {
    /// Under the hidden name, or not made yet.
    Staged,
    /// In its place, which was free.
    Placed,
    /// In its place, and the old one under the hidden name.
    Exchanged,
}

#[derive(Debug)]
struct SwapEntry {
    /// Both are in it.
    directory: Directory,
    staged: OsString,
    to: OsString,
    found: PathOccupant,
    state: SwapState,
}

/// The exchange; see the module's description.
#[derive(Debug)]
pub(super) struct FileSwap {
    tag: String,
    moves: Vec<SwapEntry>,
    /// Directories that were made for it, in those that hold them.
    made: Vec<(Directory, OsString)>,
    settled: bool,
}

impl FileSwap {
    pub(super) fn new() -> Self {
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let tag = unique.get(..8).unwrap_or(&unique).to_owned();
        Self { tag, moves: Vec::new(), made: Vec::new(), settled: false }
    }

    /// The hidden name under which what belongs to `spot` is to be made.
    ///
    /// # Errors
    /// Its directory can't be opened.
    pub(super) fn stage(&mut self, spot: &TargetPath) -> Result<PathBuf> {
        let name = spot.real.file_name().unwrap_or_default().to_string_lossy();
        // A file's name has room for 255 bytes.
        let short: String = name
            .chars()
            .scan(0, |len, c| {
                *len += c.len_utf8();
                (*len <= 200).then_some(c)
            })
            .collect();
        let staged = OsString::from(format!(".{short}.{}.restoring", self.tag));
        let folder = spot.real.parent().unwrap_or(Path::new("/"));
        let directory = Directory::open(folder).at(|| format!("cannot open '{}'", folder.display()))?;
        let path = directory.path().join(&staged);
        let (to, found) = (spot.real.file_name().unwrap_or_default().to_owned(), spot.found);
        self.moves.push(SwapEntry { directory, staged, to, found, state: SwapState::Staged });
        Ok(path)
    }

    /// Makes a directory and those above it that are not there; gone again if all of it is undone.
    pub(super) fn make_directory(&mut self, directory: &Path) -> Result<()> {
        let cannot = |path: &Path| format!("cannot make the directory '{}'", path.display());
        let mut missing = Vec::new();
        let mut above = directory;
        let mut here = loop {
            match Directory::open(above) {
                Ok(there) => break there,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    let (Some(parent), Some(name)) = (above.parent(), above.file_name()) else {
                        return Err(Error::io(cannot(directory), error));
                    };
                    missing.push(name.to_owned());
                    above = parent;
                }
                Err(error) => return Err(Error::io(cannot(directory), error)),
            }
        };
        for name in missing.into_iter().rev() {
            // swtpm's user must be able to reach its own directory below.
            let made = here.make_directory(&name, 0o711).and_then(|()| here.open_directory(&name));
            let made = made.at(|| cannot(directory))?;
            self.made.push((std::mem::replace(&mut here, made), name));
        }
        Ok(())
    }

    /// Exchanges all names. On an error all of them are as before, and the error says so where they are not.
    pub(super) fn run(&mut self) -> Result<()> {
        for step in &mut self.moves {
            if let Err(error) = step.advance() {
                return Err(self.undone(error));
            }
        }
        self.sync().map_err(|error| self.undone(error))
    }

    /// Puts everything back, and says with `error` where that failed.
    pub(super) fn undone(&mut self, error: Error) -> Error {
        match self.undo() {
            Ok(()) => error,
            Err(worse) => worse.with_source(error),
        }
    }

    /// Puts everything back and removes what was new.
    fn undo(&mut self) -> Result<()> {
        self.settled = true;
        let mut first = Ok(());
        for step in self.moves.iter_mut().rev() {
            let back = step.back();
            first = first.and(back);
        }
        let first = first.and_then(|()| self.sync());
        for (directory, name) in self.made.iter().rev() {
            // It stays where somebody else has put something into it.
            if let Err(error) = directory.remove_directory(name) {
                let path = directory.path().join(name);
                tracing::debug!(directory = %path.display(), %error, "a directory stays");
            }
        }
        first
    }

    /// Leaves everything as it is, because nobody knows whether it counts; the paths of the old files.
    pub(super) fn leave(&mut self) -> Vec<String> {
        self.settled = true;
        let old = self.moves.iter().filter(|step| step.state == SwapState::Exchanged);
        old.map(|step| step.path(&step.staged).display().to_string()).collect()
    }

    /// Removes the old files: the new ones count. A sentence for each that could not be removed.
    pub(super) fn settle(mut self) -> Vec<String> {
        self.settled = true;
        let mut notes = Vec::new();
        for step in self.moves.iter().filter(|step| step.state == SwapState::Exchanged) {
            if let Err(error) = step.remove() {
                notes.push(format!(
                    "'{}', which was replaced, could not be removed: {error}",
                    step.path(&step.staged).display()
                ));
            }
        }
        notes
    }

    /// Makes the names durable.
    fn sync(&self) -> Result<()> {
        for step in &self.moves {
            let cannot = || format!("cannot sync the directory '{}'", step.directory.path().display());
            step.directory.sync().at(cannot)?;
        }
        Ok(())
    }
}

impl Drop for FileSwap {
    fn drop(&mut self) {
        if !self.settled
            && let Err(error) = self.undo()
        {
            tracing::error!(%error, "what was replaced could not be put back");
        }
    }
}

impl SwapEntry {
    fn path(&self, name: &OsStr) -> PathBuf {
        self.directory.path().join(name)
    }

    fn advance(&mut self) -> Result<()> {
        let ours = self.expect_ours()?;
        if self.found == PathOccupant::Nothing {
            partial_file::rename(&self.directory, &self.staged, &self.to, Overwrite::Refuse)?;
            self.state = SwapState::Placed;
        } else {
            if self.found == PathOccupant::File {
                self.take_owner(ours)?;
            }
            self.exchange()?;
            self.state = SwapState::Exchanged;
        }
        // By then another file may have had the hidden name.
        match self.find(&self.to)? {
            Some(placed) if identity(&placed) == ours => Ok(()),
            _ => Err(self.not_ours(&self.to)),
        }
    }

    /// What is about to be put in place, by device and inode: it was made by this process's user, and has no
    /// other name.
    fn expect_ours(&self) -> Result<(u64, u64)> {
        let user = rustix::process::geteuid().as_raw();
        let is_ours = |found: &Stat| match safe_path::kind(found) {
            FileType::RegularFile => found.st_uid == user && found.st_nlink == 1,
            FileType::Directory => found.st_uid == user,
            _ => false,
        };
        let found = self.find(&self.staged)?.filter(is_ours);
        found.as_ref().map(identity).ok_or_else(|| self.not_ours(&self.staged))
    }

    fn find(&self, name: &OsStr) -> Result<Option<Stat>> {
        self.directory.find(name).at(|| format!("cannot examine '{}'", self.path(name).display()))
    }

    fn not_ours(&self, name: &OsStr) -> Error {
        let path = self.path(name);
        let what =
            format!("'{}' is not what was restored: it was renamed or replaced meanwhile", path.display());
        let folder = self.directory.path().display();
        Error::new(ErrorKind::Denied, what).with_hint(format!(
            "another process that may write to '{folder}' did that; restore to a directory of your own"
        ))
    }

    fn back(&mut self) -> Result<()> {
        match self.state {
            SwapState::Staged => {}
            // To the hidden name: what is then left of it says what it is.
            SwapState::Placed => self
                .directory
                .rename(&self.to, &self.staged, RenameFlags::empty())
                .at(|| format!("cannot take '{}' away again", self.path(&self.to).display()))?,
            SwapState::Exchanged => self.exchange().map_err(|e| {
                let (to, staged) = (self.path(&self.to), self.path(&self.staged));
                let (to, staged) = (to.display(), staged.display());
                e.within(format!("'{to}' could not be put back: it is '{staged}' now"))
                    .with_hint(format!("mv '{staged}' '{to}'"))
            })?,
        }
        self.state = SwapState::Staged;
        match self.remove() {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(format!("cannot remove '{}'", self.path(&self.staged).display()), error))
            }
            _ => Ok(()),
        }
    }

    /// Lets the two names change places.
    fn exchange(&self) -> Result<()> {
        let directory = &self.directory;
        let done = directory.rename(&self.staged, &self.to, RenameFlags::EXCHANGE);
        let done = match done {
            // NFS knows no exchange: a second name for the old file, and the new one over the first.
            Err(Errno::INVAL) if matches!(self.found, PathOccupant::File | PathOccupant::Link) => {
                let mut aside = self.staged.clone();
                aside.push(".old");
                directory
                    .link(&self.to, &aside)
                    .and_then(|()| directory.rename(&self.staged, &self.to, RenameFlags::empty()))
                    .and_then(|()| directory.rename(&aside, &self.staged, RenameFlags::empty()))
            }
            done => done,
        };
        done.at(|| format!("cannot put '{}' into its place", self.path(&self.to).display()))
    }

    /// Gives the new file, which is `ours`, owner and mode of the old one.
    fn take_owner(&self, ours: (u64, u64)) -> Result<()> {
        let (to, staged) = (self.path(&self.to), self.path(&self.staged));
        let examining = || format!("cannot examine '{}'", staged.display());
        let new = self.directory.open_file(&self.staged, OFlags::RDONLY | OFlags::NONBLOCK);
        let new = new.at(examining)?;
        let is = rustix::fs::fstat(&new).at(examining)?;
        if identity(&is) != ours {
            return Err(self.not_ours(&self.staged));
        }
        let had = self.find(&self.to)?;
        // It is gone, or a link by now: the exchange says so, or replaces it.
        let Some(old) = had.filter(|old| safe_path::kind(old) == FileType::RegularFile) else {
            return Ok(());
        };
        if (old.st_uid, old.st_gid) != (is.st_uid, is.st_gid) {
            std::os::unix::fs::fchown(&new, Some(old.st_uid), Some(old.st_gid))
                .at(|| format!("cannot give '{}' the owner of '{}'", staged.display(), to.display()))?;
        }
        rustix::fs::fchmod(&new, Mode::from_raw_mode(old.st_mode & 0o7777))
            .at(|| format!("cannot set the mode of '{}'", staged.display()))
    }

    /// Removes what has the hidden name.
    fn remove(&self) -> std::io::Result<()> {
        let found = self.directory.find(&self.staged)?.ok_or(Errno::NOENT)?;
        match safe_path::kind(&found) {
            FileType::Directory => std::fs::remove_dir_all(self.directory.by_descriptor().join(&self.staged)),
            _ => self.directory.remove_file(&self.staged),
        }
    }
}

/// What is told when libvirt does not say whether the domain was defined.
pub(super) fn unknown(error: Error, old: &[String]) -> Error {
    let kept = match old {
        [] => String::new(),
        old => format!("; what was there before is kept as {}", old.join(", ")),
    };
    let what = format!(
        "nobody answers whether the domain was defined; its restored files are in their places{kept}"
    );
    Error::new(ErrorKind::Io, what).with_source(error).with_hint(
        "look with 'virsh dumpxml' once libvirt answers; where the domain is not as restored, restore again with --force",
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// An old file, an old directory, a free place; new ones for all of them.
    fn prepared(folder: &Path) -> FileSwap {
        std::fs::write(folder.join("old"), "old").unwrap();
        std::fs::set_permissions(folder.join("old"), std::fs::Permissions::from_mode(0o640)).unwrap();
        std::fs::create_dir(folder.join("directory")).unwrap();
        std::fs::write(folder.join("directory/old"), "old").unwrap();
        let mut switch = FileSwap::new();
        switch.make_directory(&folder.join("made/deep")).unwrap();
        for name in ["old", "free", "made/deep/file"] {
            let staged = switch.stage(&TargetPath::look(&folder.join(name)).unwrap()).unwrap();
            std::fs::write(staged, "new").unwrap();
        }
        let staged = switch.stage(&TargetPath::look(&folder.join("directory")).unwrap()).unwrap();
        std::fs::create_dir(&staged).unwrap();
        std::fs::write(staged.join("new"), "new").unwrap();
        switch
    }

    #[test]
    fn all_take_their_places_and_the_old_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        let mut switch = prepared(folder.path());
        switch.run().unwrap();
        assert_eq!(switch.settle(), Vec::<String>::new());
        assert_eq!(names(folder.path()), ["directory", "free", "made", "old"]);
        assert_eq!(read(&folder.path().join("old")), "new");
        let mode = std::fs::metadata(folder.path().join("old")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        assert_eq!(names(&folder.path().join("directory")), ["new"]);
        assert_eq!(read(&folder.path().join("made/deep/file")), "new");
    }

    #[test]
    fn a_failure_in_the_midst_puts_all_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut switch = prepared(folder.path());
        // Somebody else takes the free place.
        std::fs::write(folder.path().join("free"), "theirs").unwrap();
        assert_eq!(switch.run().unwrap_err().kind(), ErrorKind::Exists);
        drop(switch);
        assert_eq!(names(folder.path()), ["directory", "free", "old"]);
        assert_eq!(read(&folder.path().join("old")), "old");
        assert_eq!(read(&folder.path().join("free")), "theirs");
        assert_eq!(names(&folder.path().join("directory")), ["old"]);
    }

    #[test]
    fn dropped_it_undoes_itself_and_left_alone_it_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut switch = prepared(folder.path());
        switch.run().unwrap();
        drop(switch);
        assert_eq!(names(folder.path()), ["directory", "old"]);
        let folder = tempfile::tempdir().unwrap();
        let mut switch = prepared(folder.path());
        switch.run().unwrap();
        assert_eq!(switch.leave().len(), 2);
        drop(switch);
        assert_eq!(names(folder.path()).len(), 6);
        assert_eq!(read(&folder.path().join("old")), "new");
    }
}
