//! What a qcow2 header says of other files.
//!
//! Imports: `error`, `file`, `format`, `chain`, `container`, `qcow2`.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::file::HostFile;
use super::format::MAX_CHAIN;
use super::{chain, container, qcow2};
use virtfold_base::error::{ErrorKind, IoContext, Result};

/// The files that a header names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileReferences {
    /// The image below.
    pub backing: Option<PathBuf>,
    /// Its format, where the header has it.
    pub backing_format: Option<String>,
    /// Where the data is, if not in the image's own file.
    pub data_file: Option<PathBuf>,
}

/// What the header of the qcow2 image in `file`, which is called `path`, says of other files. Whoever calls
/// it holds none of QEMU's image locks by this very file: they go with the copy of it that is read here.
///
/// # Errors
/// `BadImage` where the header contradicts the format; `Unsupported` where it asks for what virtfold does not
/// do, as a backing file that is no file; `Io` as it comes.
pub fn references(file: &File, path: &Path) -> Result<FileReferences> {
    let file = file.try_clone().at(|| format!("cannot read '{}'", path.display()))?;
    named_by(&HostFile::new(file, path)?, path)
}

fn named_by(file: &HostFile, path: &Path) -> Result<FileReferences> {
    let header = qcow2::read_header(file)?;
    let named = |name: &Option<Vec<u8>>, role: &str| {
        name.as_deref().map(|name| chain::beside(name, path, role)).transpose()
    };
    Ok(FileReferences {
        backing: named(&header.backing, "backing file")?,
        backing_format: header.backing_format.map(|format| String::from_utf8_lossy(&format).into_owned()),
        data_file: named(&header.data_file, "external data file")?,
    })
}

/// The files below the qcow2 image at `path`, as the headers say, the next one first. Of each the header is
/// read, where it begins as qcow2 does; one that is no file ends them.
///
/// # Errors
/// One of them can't be read, or contradicts its format.
pub fn files_below(path: &Path) -> Result<Vec<PathBuf>> {
    let mut below = Vec::new();
    let mut next = Some(path.to_owned());
    while let Some(path) = next.take() {
        let header = HostFile::open(&path).and_then(|file| {
            // For names alone: where no header says the format, QEMU would look, too.
            let is_qcow2 = below.is_empty() || container::of(&file)? == Some("qcow2");
            is_qcow2.then(|| named_by(&file, &path)).transpose()
        });
        let found = match header {
            Err(error) if error.kind() == ErrorKind::Unsupported && !below.is_empty() => break,
            found => {
                found.map_err(|e| e.within(format!("cannot read the header of '{}'", path.display())))?
            }
        };
        let Some(FileReferences { backing: Some(backing), backing_format, .. }) = found else { break };
        below.push(backing.clone());
        let is_raw = backing_format.as_deref() == Some("raw");
        next = (!is_raw && below.len() < MAX_CHAIN).then_some(backing);
    }
    Ok(below)
}
