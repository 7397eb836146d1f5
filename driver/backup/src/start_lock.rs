//! Guards of disks that a job needs for itself: libvirt's hook refuses to start a guest on them, as long as
//! they are held.
//!
//! Imports: `error`; `virtfold_hooks`.

use std::path::Path;

use uuid::Uuid;
use virtfold_hooks::start_lock::{self, LockReason, LockedDisks, StartLock};

use virtfold_base::error::{Error, Result};

/// Removes the guards of owners that were killed, and puts up one for each disk of a domain (its uuid and
/// name). `reason` is what who starts the guest reads.
///
/// # Errors
/// The directory of guards can't be written to.
pub(super) fn hold<'a>(
    directory: &Path,
    uuid: Uuid,
    name: &str,
    access: LockReason,
    reason: &str,
    disks: impl Iterator<Item = &'a Path>,
) -> Result<Vec<StartLock>> {
    match start_lock::sweep(directory) {
        Ok(0) => {}
        Ok(swept) => tracing::debug!(swept, "guards of owners that are gone"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(%error, "stale start locks could not be removed"),
    }
    let hold = |disk: &Path| {
        let what = LockedDisks::new(disk, access, reason.to_owned());
        let what = what.of_guest(Some(uuid.to_string()), Some(name.to_owned()));
        StartLock::hold(directory, &what).map_err(|e| {
            Error::io(format!("cannot create a start lock in '{}'", directory.display()), e)
                .with_hint("VIRTFOLD_GUARDS sets the directory of start locks; libvirt's hook needs the same")
        })
    };
    disks.map(hold).collect()
}
