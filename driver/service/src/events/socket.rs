//! The socket that hooks wake the service by. What a datagram says does not matter; the spool says it.
//!
//! Imports: `error`; `virtfold_hooks` (nudge).

use std::fs::{self, Permissions};
use std::io::ErrorKind as Io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};

use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::partial_file;

/// How long the thread may be unaware of its end, where it can't be woken.
const LISTEN: Duration = Duration::from_secs(1);

/// Listens until it is dropped.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    /// Which file it is: a service that came later may have put another in its place.
    inode: u64,
    nudges: Receiver<()>,
    /// Dropped, it tells the thread to end.
    alive: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Socket {
    /// Binds the socket, in place of one that a service left that is gone. Only one service may run; its lock
    /// is not taken here.
    ///
    /// # Errors
    /// The socket can't be made, or something else has its name.
    pub(super) fn bind(path: &Path) -> Result<Self> {
        let message = || format!("cannot listen on '{}'", path.display());
        if let Some(directory) = path.parent() {
            partial_file::at_directory(fs::create_dir_all(directory), directory, message)?;
        }
        match fs::symlink_metadata(path) {
            Ok(there) if there.file_type().is_socket() => fs::remove_file(path).at(message)?,
            Ok(_) => {
                return Err(Error::new(ErrorKind::Exists, format!("'{}' is not a socket", path.display())));
            }
            Err(error) if error.kind() == Io::NotFound => {}
            Err(error) => return Err(Error::io(message(), error)),
        }
        let socket = UnixDatagram::bind(path).at(message)?;
        fs::set_permissions(path, Permissions::from_mode(0o600)).at(message)?;
        socket.set_read_timeout(Some(LISTEN)).at(message)?;
        let inode = fs::symlink_metadata(path).at(message)?.ino();
        let ((nudge, nudges), (alive, ended)) = (bounded(1), bounded(0));
        let listen = move || listen(&socket, &nudge, &ended);
        let thread = std::thread::Builder::new().name("nudges".to_owned()).spawn(listen).at(message)?;
        Ok(Self { path: path.to_owned(), inode, nudges, alive: Some(alive), thread: Some(thread) })
    }

    /// Has something whenever the spool may have something new; many nudges may be one.
    pub(super) fn nudges(&self) -> &Receiver<()> {
        &self.nudges
    }
}

fn listen(socket: &UnixDatagram, nudge: &Sender<()>, ended: &Receiver<()>) {
    let mut byte = [0; 1];
    loop {
        let heard = socket.recv(&mut byte);
        if ended.try_recv() == Err(TryRecvError::Disconnected) {
            return;
        }
        match heard {
            Ok(_) if nudge.is_full() => {}
            Ok(_) if nudge.send(()).is_err() => return,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), Io::Interrupted | Io::WouldBlock | Io::TimedOut) => {}
            Err(error) => {
                tracing::error!(%error, "the hooks' socket fails; the spool is looked at now and then");
                return;
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        drop(self.alive.take());
        // A nudge of our own ends the wait at once.
        if let Err(error) = virtfold_hooks::wake_service::nudge(&self.path) {
            tracing::debug!(%error, "the hooks' socket ends a little later");
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of the hooks' socket failed");
        }
        let is_ours = fs::symlink_metadata(&self.path).is_ok_and(|there| there.ino() == self.inode);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, socket = %self.path.display(), "the hooks' socket could not be removed");
        }
    }
}
