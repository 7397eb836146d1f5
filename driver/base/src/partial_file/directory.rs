//! Directories that have to be there, and what is said where a file has the name of one.

use std::path::Path;

use crate::error::{Error, ErrorKind, Result};

/// The error of a directory that can't be there, because a file has its name or that of one above it; `None`
/// where none has.
pub fn file_in_the_way(directory: &Path) -> Option<Error> {
    let file = directory.ancestors().find_map(|path| {
        let found = std::fs::metadata(path).ok().filter(|_| !path.as_os_str().is_empty())?;
        Some((path, found))
    });
    let (path, found) = file.filter(|(_, found)| !found.is_dir())?;
    let kind = if found.is_file() { "a file" } else { "a device, pipe or socket" };
    let message = format!("'{}' is {kind}, not a directory", path.display());
    Some(Error::new(ErrorKind::Usage, message).with_hint("use another directory, or move it away"))
}

/// Holds that a directory is there.
///
/// # Errors
/// It is not, or a file has its name.
pub fn expect_directory(directory: &Path) -> Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let missing = || {
        let message = format!("the directory '{}' does not exist", directory.display());
        Error::new(ErrorKind::NotFound, message).with_hint("make it first")
    };
    Err(file_in_the_way(directory).unwrap_or_else(missing))
}

/// Gives what came of making or reading `directory` a sentence, and says it where a file is in the way.
///
/// # Errors
/// The one at hand.
pub fn at_directory<T>(
    done: std::io::Result<T>,
    directory: &Path,
    message: impl Fn() -> String,
) -> Result<T> {
    done.map_err(|error| match file_in_the_way(directory) {
        Some(file) => file.within(message()),
        None => Error::io(message(), error),
    })
}
