//! Which configurations have changed, without reading any: libvirt keeps each in a file of its own, which it
//! replaces with every change (`virFileRewrite`), and what a saved guest resumes from in another.
//!
//! Two stamps of a domain that are equal show that nobody redefined it in between; by inode and time of
//! change, so that no clock that is set back and no file that is put back can hide a change. A domain without
//! a stamp is not known, and has to be asked for. Whether the files are this libvirt's at all shows only in a
//! change that was certain to come: see [`ConfigStamps::unchanged`].
//!
//! Imports: `error`.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use virtfold_base::error::{IoContext, Result};

/// What stands for the configurations of all domains at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigStamps(BTreeMap<String, Vec<i128>>);

impl ConfigStamps {
    /// Looks at libvirt's files: `NAME.xml` in `configs`, `NAME.save` in `saved`. A directory that is not
    /// there has none.
    ///
    /// # Errors
    /// A directory can't be read.
    pub fn of_files(configs: &Path, saved: &Path) -> Result<Self> {
        let mut stamps = Self::default();
        each_file(configs, "xml", |name, stamp| {
            stamps.0.insert(name, stamp);
        })?;
        each_file(saved, "save", |name, stamp| {
            if let Some(known) = stamps.0.get_mut(&name) {
                known.extend(stamp);
            }
        })?;
        Ok(stamps)
    }

    /// Notes a domain's stamp.
    pub fn note(&mut self, name: String, stamp: u64) {
        self.0.insert(name, vec![i128::from(stamp)]);
    }

    /// The domains whose configuration is as it was at `earlier`. None at all where that of `changed`, which
    /// must have changed meanwhile, seems not to have: then these are not the files of the libvirt at hand.
    pub fn unchanged(&self, earlier: &Self, changed: &str) -> BTreeSet<String> {
        let both = |name: &str| self.0.get(name).zip(earlier.0.get(name));
        if both(changed).is_none_or(|(now, then)| now == then) {
            return BTreeSet::new();
        }
        let same = self.0.keys().filter(|name| both(name).is_some_and(|(now, then)| now == then));
        same.cloned().collect()
    }
}

/// Every file of a directory with this extension: its name without it, and its stamp.
fn each_file(directory: &Path, extension: &str, mut found: impl FnMut(String, Vec<i128>)) -> Result<()> {
    let reading = || format!("cannot read '{}'", directory.display());
    let entries = match fs::read_dir(directory) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.at(reading)?,
    };
    for entry in entries {
        let entry = entry.at(reading)?;
        let path = Path::new(&entry.file_name()).to_owned();
        let (Some(name), true) =
            (path.file_stem().and_then(OsStr::to_str), path.extension() == Some(OsStr::new(extension)))
        else {
            continue;
        };
        let info = match entry.metadata() {
            // Removed since: as if it had never been seen.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            info => info.at(reading)?,
        };
        let stamp = [info.ino().into(), info.ctime().into(), info.ctime_nsec().into(), info.len().into()];
        found(name.to_owned(), stamp.to_vec());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_that_was_rewritten_has_another_stamp() {
        let folder = tempfile::tempdir().unwrap();
        let (configs, saved) = (folder.path().join("qemu"), folder.path().join("save"));
        let look = || ConfigStamps::of_files(&configs, &saved).unwrap();
        assert_eq!(look(), ConfigStamps::default(), "no directory, no stamps");
        fs::create_dir(&configs).unwrap();
        fs::create_dir(&saved).unwrap();
        fs::create_dir(configs.join("networks")).unwrap();
        for name in ["own.xml", "a.b.xml", "c.xml", "saved.xml", "notes.txt"] {
            fs::write(configs.join(name), "<domain/>").unwrap();
        }
        let before = look();
        // As libvirt does it: the same text, and of the same time.
        let replace = |name: &str| {
            fs::write(configs.join("new"), "<domain/>").unwrap();
            let old = fs::File::open(configs.join(name)).unwrap().metadata().unwrap().modified().unwrap();
            fs::File::options().write(true).open(configs.join("new")).unwrap().set_modified(old).unwrap();
            fs::rename(configs.join("new"), configs.join(name)).unwrap();
        };
        assert_eq!(look().unchanged(&before, "own"), BTreeSet::new(), "whose files are these?");
        replace("own.xml");
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(look().unchanged(&before, "own"), names(&["a.b", "c", "saved"]));
        assert_eq!(look().unchanged(&before, "transient"), BTreeSet::new());
        replace("c.xml");
        fs::write(saved.join("saved.save"), "memory").unwrap();
        fs::write(configs.join("fresh.xml"), "<domain/>").unwrap();
        assert_eq!(look().unchanged(&before, "own"), names(&["a.b"]));
    }
}
