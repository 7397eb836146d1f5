//! What a qcow2 header says of other files, read without opening any of them.
//!
//! Imports: `error`, `safe_path`, `file`, `chain`, `qcow2`.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::file::HostFile;
use super::{chain, qcow2};
use virtfold_base::error::{ErrorKind, IoContext, Result};
use virtfold_base::safe_path;

/// The most images of a chain that are looked at.
const MAX_CHAIN: usize = 200;
/// How a qcow2 file begins.
const MAGIC: &[u8] = b"QFI\xfb";

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

/// What the header of the qcow2 image in `file`, which is called `path`, says of other files.
///
/// # Errors
/// `BadImage` where the header contradicts the format; `Unsupported` where it asks for what virtfold does not
/// do, as a backing file that is no file; `Io` as it comes.
pub fn references(file: &File, path: &Path) -> Result<FileReferences> {
    let file = file.try_clone().at(|| format!("cannot read '{}'", path.display()))?;
    let header = qcow2::read_header(&HostFile::new(file, path)?)?;
    let named = |name: &Option<Vec<u8>>, role: &str| {
        name.as_deref().map(|name| chain::beside(name, path, role)).transpose()
    };
    Ok(FileReferences {
        backing: named(&header.backing, "backing file")?,
        backing_format: header.backing_format.map(|format| String::from_utf8_lossy(&format).into_owned()),
        data_file: named(&header.data_file, "external data file")?,
    })
}

/// The files below the qcow2 image at `path`, as the headers say, the next one first: their names, nothing is
/// read by them. One that is no file ends them.
///
/// # Errors
/// One of them can't be read, or contradicts its format.
pub fn files_below(path: &Path) -> Result<Vec<PathBuf>> {
    let mut below = Vec::new();
    let mut next = Some(path.to_owned());
    while let Some(path) = next.take() {
        let opening = || format!("cannot read the header of '{}'", path.display());
        let mut file = safe_path::open(&path).at(opening)?;
        if !below.is_empty() && !begins_as_qcow2(&mut file).at(opening)? {
            break;
        }
        let found = match references(&file, &path) {
            Err(error) if error.kind() == ErrorKind::Unsupported && !below.is_empty() => break,
            found => found.map_err(|e| e.within(opening()))?,
        };
        let raw = found.backing_format.as_deref() == Some("raw");
        let Some(backing) = found.backing else { break };
        below.push(backing.clone());
        next = (!raw && below.len() < MAX_CHAIN).then_some(backing);
    }
    Ok(below)
}

/// For names alone: where no header says the format, QEMU would look, too.
fn begins_as_qcow2(file: &mut File) -> std::io::Result<bool> {
    let mut start = Vec::new();
    file.take(4).read_to_end(&mut start)?;
    Ok(start == MAGIC)
}
