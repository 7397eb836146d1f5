//! Scratch folders under the target folder (a real file system with holes, not a RAM disk), or where nobody
//! else can write: configurations are read from nowhere else.

use std::fs;
use std::path::{Path, PathBuf};

use virtfold_base::safe_path::trust::testing::closed;

/// A folder that goes away with its owner, save when the test failed and `VIRTFOLD_KEEP` is set.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// A new empty folder; `label` tells a person whose it is.
    pub(crate) fn new(label: &str) -> Self {
        let root = closed(Path::new(env!("CARGO_TARGET_TMPDIR")));
        let folder = tempfile::Builder::new().prefix(&format!("{label}-")).tempdir_in(root).unwrap();
        Self(folder.keep())
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// A name in the folder.
    pub(crate) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }

    /// A new folder in the folder.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let path = self.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("VIRTFOLD_KEEP").is_some() {
            eprintln!("kept: {}", self.0.display());
        } else if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// The names in a folder, hidden ones too, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
