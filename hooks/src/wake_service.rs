//! The service's socket: a datagram wakes it up to read the spool. It carries nothing that the spool doesn't,
//! so it may be lost.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use crate::HookOwner;
use crate::paths::named;

/// Where the service listens: `$VIRTFOLD_SOCKET`, else `/run/virtfold/events.sock`, or a user's in his
/// runtime directory.
pub fn usual_path(whose: HookOwner) -> PathBuf {
    named("VIRTFOLD_SOCKET", || whose.runtime().join("events.sock"))
}

/// Sends one datagram of one byte and never waits.
///
/// # Errors
/// When nobody listens, or whoever listens has too many unread ones; either is nobody's fault.
pub fn nudge(socket: &Path) -> io::Result<()> {
    let ours = UnixDatagram::unbound()?;
    ours.set_nonblocking(true)?;
    ours.send_to(b"\n", socket).map(|_| ())
}
