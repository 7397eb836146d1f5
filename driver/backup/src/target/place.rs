//! Where no file may be made: a name that was meant for something that is not there.
//!
//! `--disk vda=/dev/vg0/web` with a volume that is not active would make a file of that name in the host's
//! memory, and the disk would be gone with the next boot. The same holds for a link whose target is not
//! there: the file would take the link's name, not its target's.
//!
//! Imports: `error`, `mounts`.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::mounts;

/// Refuses `path`, which does not exist, where a file must not be made there.
///
/// # Errors
/// `NotFound`: it is a dangling link or lies among the device nodes; or its directory is not there.
pub(crate) fn refuse(path: &Path) -> Result<()> {
    if let Ok(target) = path.read_link() {
        let what = format!("'{}' is a link to '{}', which does not exist", path.display(), target.display());
        return Err(Error::new(ErrorKind::NotFound, what)
            .with_hint("create the link's target, or give the path of the file itself"));
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let looking = || format!("cannot look at the directory '{}'", parent.display());
    let real = std::fs::canonicalize(parent).at(looking)?;
    // The one directory there that is for files.
    let among_devices = real.starts_with("/dev") && !real.starts_with("/dev/shm");
    if among_devices || mounts::kind_of(real.metadata().at(looking)?.dev())?.as_deref() == Some("devtmpfs") {
        let what =
            format!("no block device '{}', and a file there would be lost at the next boot", path.display());
        return Err(Error::new(ErrorKind::NotFound, what).with_hint(
            "activate the device first ('lvchange -ay', 'lvcreate', 'iscsiadm'), or use a file elsewhere",
        ));
    }
    Ok(())
}
