//! The page by HTTP/1.1: `GET /metrics` and nothing else, on a port of this host alone.
//!
//! A request's head has 8 KiB at most and 5 s to come; eight are served at a time, four of one address, each
//! with one answer, and then the connection is closed. Whoever asks for nothing makes room for the next.
//! `Host` has to be an address or `localhost`: a page of the web that has its own name lead here, to let a
//! browser read what is served, is refused. `httparse` reads the head; a server that can more would have more
//! to be attacked.
//!
//! Imports: `error`, `service::control`, `service::acceptor`.

use std::io;
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Metrics;
use crate::acceptor::{AcceptLimits, Acceptor, Connection, Handler, OnceAMinute, PeerDeadline};
use crate::control::ControlApi;
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};

/// A scraper takes one; a second scraper and a person are no reason to be refused.
const CLIENTS: AcceptLimits = AcceptLimits { total: 8, per_peer: Some(4) };
const MAX_HEAD: usize = 8 << 10;
const MAX_HEADERS: usize = 64;
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves the page until it is dropped.
#[derive(Debug)]
pub struct Exporter {
    address: SocketAddr,
    _acceptor: Acceptor,
}

impl Exporter {
    /// Listens at an address of this host.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`]: the address is not one of this host alone; somebody else has the port.
    pub fn start(address: SocketAddr, metrics: Arc<Metrics>, desk: Arc<dyn ControlApi>) -> Result<Self> {
        if !address.ip().is_loopback() {
            let text = format!("refusing to serve metrics at {address}: other hosts could read them");
            return Err(
                Error::new(ErrorKind::Usage, text).with_hint("use a loopback address: 127.0.0.1:9758")
            );
        }
        let listening = || format!("cannot serve metrics at {address}");
        let listener = TcpListener::bind(address).at(listening)?;
        listener.set_nonblocking(true).at(listening)?;
        let address = listener.local_addr().at(listening)?;
        let handler = MetricsHandler { metrics, desk, failed: Mutex::default() };
        let acceptor = Acceptor::start("metrics", listener, CLIENTS, Arc::new(handler))?;
        Ok(Self { address, _acceptor: acceptor })
    }

    /// Where it listens; the port is chosen where it was given as 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

struct MetricsHandler {
    metrics: Arc<Metrics>,
    desk: Arc<dyn ControlApi>,
    failed: Mutex<OnceAMinute>,
}

/// What is answered.
struct Response {
    status: &'static str,
    headers: &'static str,
    body: String,
}

impl Response {
    fn error(status: &'static str) -> Self {
        Self { status, headers: "", body: format!("{status}\n") }
    }
}

impl Handler<TcpStream> for MetricsHandler {
    fn serve(&self, mut stream: TcpStream, connection: &Connection) {
        let patience = PeerDeadline { until: Instant::now() + PATIENCE, stop: &connection.stop };
        if let Err(error) = self.talk(&mut stream, connection, &patience) {
            tracing::debug!(%error, "a request for the metrics has broken");
        }
    }

    fn turn_away(&self, mut stream: TcpStream) {
        let stop = AtomicBool::new(false);
        let patience = PeerDeadline { until: Instant::now() + Duration::from_secs(1), stop: &stop };
        if let Err(error) = respond(&mut stream, &Response::error("503 Service Unavailable"), &patience) {
            tracing::debug!(%error, "a request for the metrics that is too many has broken");
        }
    }
}

impl MetricsHandler {
    fn talk(
        &self,
        stream: &mut TcpStream,
        connection: &Connection,
        patience: &PeerDeadline<'_>,
    ) -> io::Result<()> {
        let mut head = Vec::new();
        let response = loop {
            let mut chunk = [0; 1024];
            let count = patience.read(stream, &mut chunk)?;
            head.extend_from_slice(chunk.get(..count).unwrap_or_default());
            match wanted(&head) {
                Some(Ok(())) => break connection.work(|| self.page()),
                Some(Err(response)) => break response,
                None if count == 0 => break Response::error("400 Bad Request"),
                None => {}
            }
        };
        respond(stream, &response, patience)?;
        // What the peer still sends is read and dropped for a moment: closed on unread bytes, the connection
        // would break before the answer is read.
        stream.shutdown(Shutdown::Write)?;
        let mut rest = 64_u32;
        let mut chunk = [0; 1024];
        while rest > 0 && patience.read(stream, &mut chunk)? > 0 {
            rest -= 1;
        }
        Ok(())
    }

    fn page(&self) -> Response {
        match self.desk.status().and_then(|status| self.metrics.page(&status)) {
            Ok(body) => Response {
                status: "200 OK",
                headers: "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n",
                body,
            },
            Err(error) => {
                let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                if failed.due(Instant::now()).is_some() {
                    tracing::warn!(?error, "the metrics can't be told");
                }
                Response::error("500 Internal Server Error")
            }
        }
    }
}

/// Whether the head, as far as it has come, asks for the page; nothing while it is not whole.
fn wanted(head: &[u8]) -> Option<std::result::Result<(), Response>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Err(httparse::Error::TooManyHeaders) => {
            Some(Err(Response::error("431 Request Header Fields Too Large")))
        }
        Err(_) => Some(Err(Response::error("400 Bad Request"))),
        Ok(httparse::Status::Partial) if head.len() >= MAX_HEAD => {
            Some(Err(Response::error("431 Request Header Fields Too Large")))
        }
        Ok(httparse::Status::Partial) => None,
        Ok(httparse::Status::Complete(_)) if !names_this_host(request.headers, request.version) => {
            Some(Err(Response::error("421 Misdirected Request")))
        }
        Ok(httparse::Status::Complete(_)) if request.path != Some("/metrics") => {
            Some(Err(Response::error("404 Not Found")))
        }
        Ok(httparse::Status::Complete(_)) if request.method != Some("GET") => {
            let refusal = Response::error("405 Method Not Allowed");
            Some(Err(Response { headers: "Allow: GET\r\n", ..refusal }))
        }
        Ok(httparse::Status::Complete(_)) => Some(Ok(())),
    }
}

/// Whether `Host` says an address or `localhost`, with a port or without. HTTP/1.0 needs none: browsers don't
/// speak it.
fn names_this_host(headers: &[httparse::Header<'_>], version: Option<u8>) -> bool {
    let mut hosts = headers.iter().filter(|header| header.name.eq_ignore_ascii_case("host"));
    match (hosts.next(), hosts.next()) {
        (None, _) => version == Some(0),
        (Some(_), Some(_)) => false,
        (Some(host), None) => std::str::from_utf8(host.value).is_ok_and(|host| is_this_host(host.trim())),
    }
}

fn is_this_host(host: &str) -> bool {
    let is_port = |port: &str| port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(rest) = host.strip_prefix('[') {
        let parts = rest.split_once(']');
        return parts.is_some_and(|(address, port)| {
            address.parse::<Ipv6Addr>().is_ok() && port.strip_prefix(':').map_or(port.is_empty(), is_port)
        });
    }
    let (name, port) = host.split_once(':').unwrap_or((host, ""));
    is_port(port) && (name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok())
}

fn respond(stream: &mut TcpStream, response: &Response, patience: &PeerDeadline<'_>) -> io::Result<()> {
    let Response { status, headers, body } = response;
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n");
    patience.write(stream, head.as_bytes())?;
    patience.write(stream, body.as_bytes())
}
