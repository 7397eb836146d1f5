//! What both of the service's sockets do: take connections, a bounded number of them at a time, each in a
//! thread of its own, and end in moments when told to.
//!
//! One thread waits for connections. Whoever is one too many is turned away at once, by that thread. Nobody
//! waits for a peer without a deadline: reads and writes wake up every [`TICK`] to look at the time and at
//! whether the service ends. Dropping the [`Acceptor`] ends all threads and waits for them.
//!
//! Imports: `error`.

use std::io::{self, ErrorKind as Io, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// A connection.
pub(super) trait Stream: Read + Write + Send + 'static {
    /// Reads and writes return after [`TICK`] at the latest.
    fn set_tick(&self) -> io::Result<()>;
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
}

impl Stream for TcpStream {
    fn set_tick(&self) -> io::Result<()> {
        self.set_read_timeout(Some(TICK)).and_then(|()| self.set_write_timeout(Some(TICK)))
    }
}

/// What is done with connections.
pub(super) trait Handler<S>: Send + Sync + 'static {
    /// Serves one to its end.
    fn serve(&self, stream: S, stop: &AtomicBool);
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
    /// Begins to take connections, `most` of them at a time. The listener must not block.
    pub(super) fn start<L: Listener>(
        name: &'static str,
        listener: L,
        most: usize,
        handler: Arc<dyn Handler<L::Stream>>,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let accepting = AcceptLoop { name, most, handler, stop: Arc::clone(&stop), clients: Vec::new() };
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

struct AcceptLoop<S> {
    name: &'static str,
    most: usize,
    handler: Arc<dyn Handler<S>>,
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
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
                    tracing::warn!(%error, "{}: a connection can't be taken", self.name);
                    std::thread::sleep(TICK);
                }
            }
        }
        self.clients.drain(..).for_each(|client| ended(self.name, client));
    }

    fn admit(&mut self, stream: S) {
        for client in self.clients.extract_if(.., |client| client.is_finished()) {
            ended(self.name, client);
        }
        if let Err(error) = stream.set_tick() {
            tracing::warn!(%error, "{}: a connection can't be served", self.name);
            return;
        }
        if self.clients.len() >= self.most {
            tracing::warn!("{}: {} connections are open, one more is turned away", self.name, self.most);
            self.handler.turn_away(stream);
            return;
        }
        let (handler, stop) = (Arc::clone(&self.handler), Arc::clone(&self.stop));
        let thread = std::thread::Builder::new().name(self.name.to_owned());
        match thread.spawn(move || handler.serve(stream, &stop)) {
            Ok(client) => self.clients.push(client),
            Err(error) => tracing::warn!(%error, "{}: a connection can't be served", self.name),
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
