//! What both of the service's sockets do: take connections, a bounded number of them at a time, each in a
//! thread of its own, and end in moments when told to.
//!
//! One thread waits for connections. Where one more is too many, the one that has been idle for longest is
//! closed for it, on a socket that anybody may connect to ([`AcceptLimits::per_peer`]): whoever holds
//! connections open for nothing keeps nobody else out. On others, or where none is idle, the new one is
//! turned away at once. What there is to say of that is said once a minute, however many come. Nobody waits
//! for a peer without a deadline: reads and writes wake up every [`TICK`] to look at the time and at whether
//! the service ends. Dropping the [`Acceptor`] ends all threads and waits for them.
//!
//! Imports: `error`.

use std::io::{self, ErrorKind as Io, Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use virtfold_base::error::{IoContext, Result};

/// How often whoever waits looks whether it should still.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// A socket that connections come from.
pub(super) trait Listener: AsFd + Send + 'static {
    /// A connection.
    type Stream: Stream;
    /// Takes one without waiting.
    fn take(&self) -> io::Result<Self::Stream>;
}

/// How often the same is said.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// A connection.
pub(super) trait Stream: Read + Write + Send + Sized + 'static {
    /// Reads and writes return after [`TICK`] at the latest.
    fn set_tick(&self) -> io::Result<()>;
    /// Whom it is from, where that has an address.
    fn peer(&self) -> Option<IpAddr>;
    /// Another handle of it, to close it by.
    fn second(&self) -> io::Result<Self>;
    /// Ends it in both directions, whoever waits in it.
    fn close(&self) -> io::Result<()>;
}

impl Listener for UnixListener {
    type Stream = UnixStream;
    fn take(&self) -> io::Result<UnixStream> {
        self.accept().map(|(stream, _)| stream)
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;
    fn take(&self) -> io::Result<TcpStream> {
        self.accept().map(|(stream, _)| stream)
    }
}

impl Stream for UnixStream {
    fn set_tick(&self) -> io::Result<()> {
        self.set_read_timeout(Some(TICK)).and_then(|()| self.set_write_timeout(Some(TICK)))
    }

    fn peer(&self) -> Option<IpAddr> {
        None
    }

    fn second(&self) -> io::Result<Self> {
        self.try_clone()
    }

    fn close(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Both)
    }
}

impl Stream for TcpStream {
    fn set_tick(&self) -> io::Result<()> {
        self.set_read_timeout(Some(TICK)).and_then(|()| self.set_write_timeout(Some(TICK)))
    }

    fn peer(&self) -> Option<IpAddr> {
        self.peer_addr().ok().map(|address| address.ip().to_canonical())
    }

    fn second(&self) -> io::Result<Self> {
        self.try_clone()
    }

    fn close(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Both)
    }
}

/// An open connection, as both sides of the acceptor see it.
#[derive(Debug)]
pub(super) struct Connection {
    /// The service ends.
    pub(super) stop: Arc<AtomicBool>,
    /// Since when it waits for its peer; nothing while the peer waits for an answer that is made.
    idle_since: Mutex<Option<Instant>>,
}

impl Connection {
    /// Makes an answer: meanwhile it is not the peer who is waited for.
    pub(super) fn work<T>(&self, make: impl FnOnce() -> T) -> T {
        self.set_idle(None);
        let made = make();
        self.set_idle(Some(Instant::now()));
        made
    }

    fn set_idle(&self, since: Option<Instant>) {
        *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    fn idle_since(&self) -> Option<Instant> {
        *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many connections are open at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct AcceptLimits {
    /// All.
    pub(super) total: usize,
    /// Those of one address, where idle ones make room; nothing: whoever is one too many is turned away.
    pub(super) per_peer: Option<usize>,
}

/// Says a thing at most once a minute, and then how often it was.
#[derive(Debug, Default)]
pub(super) struct OnceAMinute {
    said: Option<Instant>,
    unsaid: u64,
}

impl OnceAMinute {
    /// Whether it is to be said now; and how often it was not said since it was said last.
    pub(super) fn due(&mut self, now: Instant) -> Option<u64> {
        if self.said.is_some_and(|said| now.saturating_duration_since(said) < SAY_EVERY) {
            self.unsaid = self.unsaid.saturating_add(1);
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

/// What is done with connections.
pub(super) trait Handler<S>: Send + Sync + 'static {
    /// Serves one to its end.
    fn serve(&self, stream: S, connection: &Connection);
    /// Turns away one that is too many, at once.
    fn turn_away(&self, stream: S);
}

/// Takes connections until it is dropped.
#[derive(Debug)]
pub(super) struct Acceptor {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Acceptor {
    /// Begins to take connections. The listener must not block.
    pub(super) fn start<L: Listener>(
        name: &'static str,
        listener: L,
        limits: AcceptLimits,
        handler: Arc<dyn Handler<L::Stream>>,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let accepting = AcceptLoop {
            name,
            limits,
            handler,
            stop: Arc::clone(&stop),
            clients: Vec::new(),
            full: OnceAMinute::default(),
            failed: OnceAMinute::default(),
        };
        let thread = std::thread::Builder::new().name(name.to_owned());
        let thread =
            thread.spawn(move || accepting.run(&listener)).at(|| format!("cannot start thread '{name}'"))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that takes connections has failed");
        }
    }
}

/// Drops the second handle of a connection with the thread that serves it, however that ends: a peer sees the
/// end when both are gone.
struct SecondHandle<S>(Arc<Mutex<Option<S>>>);

impl<S> Drop for SecondHandle<S> {
    fn drop(&mut self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// A connection that is served.
struct Client<S> {
    thread: JoinHandle<()>,
    connection: Arc<Connection>,
    /// To close it by.
    second: Arc<Mutex<Option<S>>>,
    peer: Option<IpAddr>,
    is_closed: bool,
}

struct AcceptLoop<S> {
    name: &'static str,
    limits: AcceptLimits,
    handler: Arc<dyn Handler<S>>,
    stop: Arc<AtomicBool>,
    clients: Vec<Client<S>>,
    full: OnceAMinute,
    failed: OnceAMinute,
}

impl<S: Stream> AcceptLoop<S> {
    fn run<L: Listener<Stream = S>>(mut self, listener: &L) {
        while !self.stop.load(Ordering::Relaxed) {
            if !is_ready(listener) {
                continue;
            }
            match listener.take() {
                Ok(stream) => self.admit(stream),
                Err(error) if error.kind() == Io::WouldBlock => {}
                Err(error) => {
                    // Too many open files, or a peer that has gone already. Neither ends the service.
                    self.fail("a connection can't be taken", &error);
                    std::thread::sleep(TICK);
                }
            }
        }
        self.clients.drain(..).for_each(|client| ended(self.name, client.thread));
    }

    fn admit(&mut self, stream: S) {
        self.reap();
        if let Err(error) = stream.set_tick() {
            return self.fail("a connection can't be served", &error);
        }
        let peer = stream.peer();
        if !self.has_room(peer) {
            return self.handler.turn_away(stream);
        }
        match self.serve(stream, peer) {
            Ok(client) => self.clients.push(client),
            Err(error) => self.fail("a connection can't be served", &error),
        }
    }

    fn serve(&self, stream: S, peer: Option<IpAddr>) -> io::Result<Client<S>> {
        let idle_since = Mutex::new(Some(Instant::now()));
        let connection = Arc::new(Connection { stop: Arc::clone(&self.stop), idle_since });
        let second = Arc::new(Mutex::new(Some(stream.second()?)));
        let (handler, served) = (Arc::clone(&self.handler), Arc::clone(&connection));
        let handle = SecondHandle(Arc::clone(&second));
        let thread = std::thread::Builder::new().name(self.name.to_owned()).spawn(move || {
            let _second = handle;
            handler.serve(stream, &served);
        })?;
        Ok(Client { thread, connection, second, peer, is_closed: false })
    }

    /// Whether one more of `peer` may be served; closes what has been idle for longest where that helps.
    fn has_room(&mut self, peer: Option<IpAddr>) -> bool {
        let AcceptLimits { total, per_peer } = self.limits;
        let open = || self.clients.iter().filter(|client| !client.is_closed);
        let is_full = open().count() >= total;
        let has_many = per_peer.is_some_and(|most| open().filter(|one| one.peer == peer).count() >= most);
        if !is_full && !has_many {
            return true;
        }
        let may_close = per_peer.is_some() && self.clients.len() < 2 * total;
        let idle = self.clients.iter_mut().filter(|client| may_close && !client.is_closed);
        let idle = idle.filter(|client| !has_many || client.peer == peer);
        let idle = idle.filter_map(|client| Some((client.connection.idle_since()?, client)));
        let closed = match idle.min_by_key(|(since, _)| *since) {
            Some((_, client)) => {
                client.is_closed = true;
                let second = client.second.lock().unwrap_or_else(PoisonError::into_inner).take();
                second.map_or(Ok(()), |stream| stream.close())
            }
            None => Err(Io::WouldBlock.into()),
        };
        if let Some(unsaid) = self.full.due(Instant::now()) {
            let open = self.clients.iter().filter(|client| !client.is_closed).count();
            let done = if closed.is_ok() {
                "the one that was idle for longest is closed"
            } else {
                "one more is turned away"
            };
            tracing::warn!(
                "{}: {open} connections are open: {done} ({unsaid} more in the minutes before)",
                self.name
            );
        }
        // One that has gone by itself has made room, too.
        closed.is_ok() || closed.is_err_and(|error| error.kind() == Io::NotConnected)
    }

    /// Takes leave of threads that have ended. Those of closed connections do so in moments; where there are
    /// many of them, they are waited for that long.
    fn reap(&mut self) {
        let until = Instant::now() + TICK;
        loop {
            for client in self.clients.extract_if(.., |client| client.thread.is_finished()) {
                ended(self.name, client.thread);
            }
            let closed = self.clients.iter().filter(|client| client.is_closed).count();
            if closed < self.limits.total || Instant::now() >= until {
                return;
            }
            std::thread::sleep(TICK / 100);
        }
    }

    fn fail(&mut self, what: &str, error: &io::Error) {
        if let Some(unsaid) = self.failed.due(Instant::now()) {
            tracing::warn!(%error, "{}: {what} ({unsaid} more in the minutes before)", self.name);
        }
    }
}

fn ended(name: &str, client: JoinHandle<()>) {
    if client.join().is_err() {
        tracing::error!("{name}: serving a connection has failed");
    }
}

/// Whether a connection waits; looks for [`TICK`].
fn is_ready(listener: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    let tick = PollTimeout::try_from(TICK).unwrap_or(PollTimeout::ZERO);
    match poll(&mut fds, tick) {
        Ok(ready) => ready > 0,
        Err(nix::errno::Errno::EINTR) => false,
        Err(error) => {
            tracing::warn!(%error, "connections can't be waited for");
            std::thread::sleep(TICK);
            false
        }
    }
}

/// How long to go on with a peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct PeerDeadline<'a> {
    /// Until when.
    pub(super) until: Instant,
    /// Or until this is set.
    pub(super) stop: &'a AtomicBool,
}

impl PeerDeadline<'_> {
    fn check(&self) -> io::Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::new(Io::ConnectionAborted, "the service ends"));
        }
        if Instant::now() >= self.until {
            return Err(Io::TimedOut.into());
        }
        Ok(())
    }

    /// Reads what comes; 0 at the end.
    pub(super) fn read(&self, stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.check()?;
            match stream.read(buffer) {
                Err(error) if is_tick(&error) => {}
                done => return done,
            }
        }
    }

    /// Writes all of it.
    pub(super) fn write(&self, stream: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.check()?;
            match stream.write(bytes) {
                Ok(0) => return Err(Io::WriteZero.into()),
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(error) if is_tick(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn is_tick(error: &io::Error) -> bool {
    matches!(error.kind(), Io::WouldBlock | Io::TimedOut | Io::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_once_a_minute_is_counted_meanwhile() {
        let (mut rare, start) = (OnceAMinute::default(), Instant::now());
        let told: Vec<_> = [0, 1, 59, 60, 61, 200].map(|s| rare.due(start + Duration::from_secs(s))).into();
        assert_eq!(told, [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
