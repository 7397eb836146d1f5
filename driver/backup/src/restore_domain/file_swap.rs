//! New files take the places of old ones, all of them or none.
//!
//! Everything is first made beside its place, whole and durable, as `.NAME.XXXXXXXX.restoring`. [`FileSwap::run`] then
//! exchanges the names one after the other: the old file, where there is one, lies under the hidden name afterwards and
//! has lost nothing. [`FileSwap::undo`] exchanges them back; [`FileSwap::settle`] removes the old ones. Dropped before that, a switch
//! undoes itself; killed, it leaves hidden files that say in their name what they are.
//!
//! A new file gets owner and mode of the one that it replaces.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::target_paths::{PathOccupant, TargetPath};
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::partial_file::{self, Overwrite};

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
    staged: PathBuf,
    to: PathBuf,
    found: PathOccupant,
    state: SwapState,
}

/// The exchange; see the module's description.
#[derive(Debug)]
pub(super) struct FileSwap {
    tag: String,
    moves: Vec<SwapEntry>,
    /// Directories that were made for it.
    made: Vec<PathBuf>,
    settled: bool,
}

impl FileSwap {
    pub(super) fn new() -> Self {
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let tag = unique.get(..8).unwrap_or(&unique).to_owned();
        Self { tag, moves: Vec::new(), made: Vec::new(), settled: false }
    }

    /// The hidden name under which what belongs to `spot` is to be made.
    pub(super) fn stage(&mut self, spot: &TargetPath) -> PathBuf {
        let name = spot.real.file_name().unwrap_or_default().to_string_lossy();
        // A file's name has room for 255 bytes.
        let short: String = name
            .chars()
            .scan(0, |len, c| {
                *len += c.len_utf8();
                (*len <= 200).then_some(c)
            })
            .collect();
        let staged = spot.real.with_file_name(format!(".{short}.{}.restoring", self.tag));
        let (to, found) = (spot.real.clone(), spot.found);
        self.moves.push(SwapEntry { staged: staged.clone(), to, found, state: SwapState::Staged });
        staged
    }

    /// Makes a directory and those above it that are not there; gone again if all of it is undone.
    pub(super) fn make_directory(&mut self, directory: &Path) -> Result<()> {
        let missing: Vec<_> = directory.ancestors().take_while(|path| !path.exists()).collect();
        for path in missing.into_iter().rev() {
            // swtpm's user must be able to reach its own directory below.
            let made = std::fs::DirBuilder::new().mode(0o711).create(path);
            made.at(|| format!("cannot make the directory '{}'", path.display()))?;
            self.made.push(path.to_owned());
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
        for directory in self.made.iter().rev() {
            // It stays where somebody else has put something into it.
            if let Err(error) = std::fs::remove_dir(directory) {
                tracing::debug!(directory = %directory.display(), %error, "a directory stays");
            }
        }
        first
    }

    /// Leaves everything as it is, because nobody knows whether it counts; the paths of the old files.
    pub(super) fn leave(&mut self) -> Vec<String> {
        self.settled = true;
        let old = self.moves.iter().filter(|step| step.state == SwapState::Exchanged);
        old.map(|step| step.staged.display().to_string()).collect()
    }

    /// Removes the old files: the new ones count. A sentence for each that could not be removed.
    pub(super) fn settle(mut self) -> Vec<String> {
        self.settled = true;
        let mut notes = Vec::new();
        for step in self.moves.iter().filter(|step| step.state == SwapState::Exchanged) {
            if let Err(error) = remove(&step.staged) {
                notes.push(format!(
                    "'{}', which was replaced, could not be removed: {error}",
                    step.staged.display()
                ));
            }
        }
        notes
    }

    /// Makes the names durable.
    fn sync(&self) -> Result<()> {
        for step in &self.moves {
            sync_directory(step.to.parent().unwrap_or(Path::new("/")))?;
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
    fn advance(&mut self) -> Result<()> {
        if self.found == PathOccupant::Nothing {
            partial_file::rename(&self.staged, &self.to, Overwrite::Refuse)?;
            self.state = SwapState::Placed;
            return Ok(());
        }
        if self.found == PathOccupant::File {
            self.take_owner()?;
        }
        self.exchange()?;
        self.state = SwapState::Exchanged;
        Ok(())
    }

    fn back(&mut self) -> Result<()> {
        match self.state {
            SwapState::Staged => {}
            // To the hidden name: what is then left of it says what it is.
            SwapState::Placed => std::fs::rename(&self.to, &self.staged)
                .at(|| format!("cannot take '{}' away again", self.to.display()))?,
            SwapState::Exchanged => self.exchange().map_err(|e| {
                let (to, staged) = (self.to.display(), self.staged.display());
                e.within(format!("'{to}' could not be put back: it is '{staged}' now"))
                    .with_hint(format!("mv '{staged}' '{to}'"))
            })?,
        }
        self.state = SwapState::Staged;
        match remove(&self.staged) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(format!("cannot remove '{}'", self.staged.display()), error))
            }
            _ => Ok(()),
        }
    }

    /// Lets the two names change places.
    fn exchange(&self) -> Result<()> {
        let cwd = rustix::fs::CWD;
        let done =
            rustix::fs::renameat_with(cwd, &self.staged, cwd, &self.to, rustix::fs::RenameFlags::EXCHANGE);
        match done {
            // NFS knows no exchange: a second name for the old file, and the new one over the first.
            Err(rustix::io::Errno::INVAL) if self.found == PathOccupant::File => {
                let mut aside = self.staged.clone().into_os_string();
                aside.push(".old");
                let steps = std::fs::hard_link(&self.to, &aside)
                    .and_then(|()| std::fs::rename(&self.staged, &self.to))
                    .and_then(|()| std::fs::rename(&aside, &self.staged));
                steps.at(|| format!("cannot put '{}' into its place", self.to.display()))
            }
            done => done.at(|| format!("cannot put '{}' into its place", self.to.display())),
        }
    }

    fn take_owner(&self) -> Result<()> {
        let old = std::fs::metadata(&self.to).at(|| format!("cannot examine '{}'", self.to.display()))?;
        let new =
            std::fs::metadata(&self.staged).at(|| format!("cannot examine '{}'", self.staged.display()))?;
        if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
            std::os::unix::fs::chown(&self.staged, Some(old.uid()), Some(old.gid())).at(|| {
                format!("cannot give '{}' the owner of '{}'", self.staged.display(), self.to.display())
            })?;
        }
        std::fs::set_permissions(&self.staged, old.permissions())
            .at(|| format!("cannot set the mode of '{}'", self.staged.display()))
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    if path.symlink_metadata()?.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
}

/// Makes a directory's entries durable.
pub(super) fn sync_directory(directory: &Path) -> Result<()> {
    let opened = std::fs::File::open(directory).at(|| format!("cannot open '{}'", directory.display()))?;
    opened.sync_all().at(|| format!("cannot sync the directory '{}'", directory.display()))
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
            let staged = switch.stage(&TargetPath::look(&folder.join(name)).unwrap());
            std::fs::write(staged, "new").unwrap();
        }
        let staged = switch.stage(&TargetPath::look(&folder.join("directory")).unwrap());
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
