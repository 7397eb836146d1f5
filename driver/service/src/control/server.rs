//! The service's end of the socket.
//!
//! 1. A lock beside the socket is taken, and held as long as the server lives: whoever has it is the one
//!    service here. A socket that is there then was left
//!    behind by one that was killed.
//! 2. The socket is made in a directory that nobody else can enter, given its mode and group, and moved to
//!    its place: it is never there with rights too many.
//! 3. Each connection is served by a thread, a request after the other.
//!
//! Imports: `error`, `service::acceptor`.

use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{Group, Uid};

use super::lines::{Line, LineReader};
use super::wire::{self, MAX_ANSWER, MAX_REQUEST, Reply, Request, Response};
use super::{ControlApi, RequestKind};
use crate::acceptor::{AcceptLimits, Acceptor, Connection, Handler, PeerDeadline};
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::partial_file;

/// The group whose members may ask, where there is one of this name.
const GROUP: &str = "virtfold";

/// What is bounded.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time.
    pub clients: usize,
    /// How long a connection may wait with its next request, or with taking an answer.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { clients: 32, idle: Duration::from_secs(30) }
    }
}

/// Answers at the socket until it is dropped; then the socket is gone.
#[derive(Debug)]
pub struct Server {
    // Fields are dropped in this order: nobody is served any more, then the socket goes, then the lock.
    acceptor: Option<Acceptor>,
    path: PathBuf,
    _lock: Flock<File>,
}

impl Server {
    /// Listens at `path` and hands what is asked to `desk`. The directory is made where it is missing.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`]: another service listens there; [`ErrorKind::Exists`]: the file is no
    /// socket; the socket can't be made.
    pub fn start(path: &Path, desk: Arc<dyn ControlApi>, limits: Limits) -> Result<Self> {
        Self::start_for(path, GROUP, desk, limits)
    }

    pub(super) fn start_for(
        path: &Path,
        group: &str,
        desk: Arc<dyn ControlApi>,
        limits: Limits,
    ) -> Result<Self> {
        let making = || format!("cannot make the control socket '{}'", path.display());
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or_else(|| Path::new("."));
        if !directory.is_dir() {
            partial_file::at_directory(std::fs::create_dir_all(directory), directory, making)?;
            // Whatever the umask is: the group has to get through to the socket. A directory that is there
            // already is somebody's own matter.
            std::fs::set_permissions(directory, Permissions::from_mode(0o755)).at(making)?;
        }
        let lock = lock(path)?;
        if path.symlink_metadata().is_ok_and(|found| !found.file_type().is_socket()) {
            let text = format!("'{}' exists and is not a socket", path.display());
            return Err(Error::new(ErrorKind::Exists, text));
        }
        let listener = listen(path, directory, group).at(making)?;
        let clerk = ConnectionHandler { desk, limits };
        let admitted = AcceptLimits { total: limits.clients, per_peer: None };
        let acceptor = Acceptor::start("control", listener, admitted, Arc::new(clerk))?;
        Ok(Self { acceptor: Some(acceptor), path: path.to_owned(), _lock: lock })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.acceptor.take());
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, "the control socket '{}' can't be removed", self.path.display());
        }
    }
}

/// Proves that no other service is here.
fn lock(path: &Path) -> Result<Flock<File>> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let locking = || format!("cannot lock '{}'", name.display());
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&name).at(locking)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
            let text = format!("another service listens at '{}'", path.display());
            Err(Error::new(ErrorKind::InUse, text).with_hint("'virtfold status' shows its state"))
        }
        Err((_, error)) => Err(Error::io(locking(), error.into())),
    }
}

fn listen(path: &Path, directory: &Path, group: &str) -> std::io::Result<UnixListener> {
    let private = tempfile::Builder::new().prefix(".control").tempdir_in(directory)?;
    let fresh = private.path().join("s");
    let listener = UnixListener::bind(&fresh)?;
    listener.set_nonblocking(true)?;
    std::fs::set_permissions(&fresh, Permissions::from_mode(0o660))?;
    // Without root only one's own groups can be given, and then the service is one's own.
    if let (true, Some(group)) = (Uid::effective().is_root(), Group::from_name(group)?) {
        nix::unistd::chown(&fresh, None, Some(group.gid))?;
    }
    std::fs::rename(&fresh, path)?;
    Ok(listener)
}

/// Serves connections.
struct ConnectionHandler {
    desk: Arc<dyn ControlApi>,
    limits: Limits,
}

impl Handler<UnixStream> for ConnectionHandler {
    fn serve(&self, mut stream: UnixStream, connection: &Connection) {
        let who = who(&stream);
        match self.talk(&mut stream, &who, &connection.stop) {
            Ok(()) => tracing::trace!(%who, "the connection has ended"),
            Err(error) => tracing::debug!(%who, %error, "the connection has broken"),
        }
    }

    fn turn_away(&self, mut stream: UnixStream) {
        let text = format!("{} connections are open already", self.limits.clients);
        let stop = AtomicBool::new(false);
        // The line fits into the socket's memory; one who does not take even that is not waited for.
        let patience = PeerDeadline { until: Instant::now() + Duration::from_secs(1), stop: &stop };
        if let Err(error) = say(&mut stream, Err(Error::new(ErrorKind::InUse, text)), &patience) {
            tracing::debug!(%error, "a connection that is too many has broken");
        }
    }
}

impl ConnectionHandler {
    fn talk(&self, stream: &mut UnixStream, who: &str, stop: &AtomicBool) -> std::io::Result<()> {
        let mut lines = LineReader::new(MAX_REQUEST);
        let patience = || PeerDeadline { until: Instant::now() + self.limits.idle, stop };
        loop {
            let line = match lines.next(stream, &patience())? {
                Line::End => return Ok(()),
                Line::TooLong => {
                    let text = "the request is longer than 1 MiB";
                    tracing::warn!(%who, "{text}");
                    return say(stream, Err(Error::new(ErrorKind::Usage, text)), &patience());
                }
                Line::Whole(line) => line,
            };
            let result = Request::parse(&line).and_then(|ask| self.ask(who, &ask));
            say(stream, result, &patience())?;
        }
    }

    /// Asks the desk, and notes who wanted what. Names are written with their control characters escaped,
    /// since anything can come in them.
    fn ask(&self, who: &str, ask: &RequestKind) -> Result<Reply> {
        let result = wire::ask(self.desk.as_ref(), ask);
        match &result {
            Err(error) => tracing::warn!(%who, ?ask, ?error, "asked in vain"),
            Ok(_) if ask.is_change() => tracing::info!(%who, ?ask, "asked"),
            Ok(_) => tracing::debug!(%who, ?ask, "asked"),
        }
        result
    }
}

fn say(stream: &mut UnixStream, result: Result<Reply>, patience: &PeerDeadline<'_>) -> std::io::Result<()> {
    let line = wire::line(&Response::new(result), MAX_ANSWER)
        .or_else(|error| wire::line(&Response::new(Err(error)), MAX_ANSWER))
        .map_err(std::io::Error::other)?;
    patience.write(stream, &line)
}

/// Who is at the other end, as the kernel says.
fn who(stream: &UnixStream) -> String {
    match rustix::net::sockopt::socket_peercred(stream) {
        Ok(peer) => {
            let (pid, user, group) = (peer.pid, peer.uid.as_raw(), peer.gid.as_raw());
            format!("process {} of user {user}, group {group}", pid.as_raw_nonzero())
        }
        Err(error) => format!("somebody unknown ({error})"),
    }
}
