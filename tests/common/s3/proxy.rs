//! A proxy for HTTP/1.1 that hands requests on one by one, each over a connection of its own, keeps a log of
//! them, and fails where it is told to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is taken, not handed on, and answered with this status.
    Status(u16),
    /// The connection goes when so many bytes of its body have been handed on.
    CutRequest(usize),
    /// It is handed on, and its answer is lost.
    LoseAnswer,
    /// The connection goes when so many bytes of the answer have been handed back.
    CutAnswer(usize),
    /// This byte of its body is flipped.
    Flip(usize),
    /// It waits, and is then handed on.
    Delay(Duration),
}

/// A request as the proxy sees it.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    /// Its header fields, in lower case.
    pub(crate) fields: Vec<(String, String)>,
}

impl Request {
    /// A field's value.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether it sends a part.
    pub(crate) fn is_part(&self) -> bool {
        self.method == "PUT" && self.target.contains("partNumber=")
    }

    /// Whether it completes an upload.
    pub(crate) fn is_completion(&self) -> bool {
        self.method == "POST" && self.target.contains("uploadId=")
    }
}

type Matches = Box<dyn Fn(&Request) -> bool + Send>;

struct Rule {
    matches: Matches,
    fault: Fault,
    times: usize,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    log: Vec<Request>,
}

/// The proxy; its threads end with the process.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    state: Arc<Mutex<State>>,
    server: Arc<AtomicU16>,
}

impl Proxy {
    /// Starts one before the server at `server`.
    pub(crate) fn start(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let server = Arc::new(AtomicU16::new(server));
        let there = Arc::clone(&server);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (shared, server) = (Arc::clone(&shared), there.load(Ordering::Relaxed));
                // A connection that fails is what both ends must bear.
                std::thread::spawn(move || drop(hand_on(client, server, &shared)));
            }
        });
        Self { port, state, server }
    }

    /// The next `times` requests that match meet `fault`.
    pub(crate) fn fail(
        &self,
        times: usize,
        fault: Fault,
        matches: impl Fn(&Request) -> bool + Send + 'static,
    ) {
        self.state.lock().unwrap().rules.push(Rule { matches: Box::new(matches), fault, times });
    }

    /// The server is at this port now.
    pub(crate) fn point_to(&self, server: u16) {
        self.server.store(server, Ordering::Relaxed);
    }

    /// Nothing fails any more; how often the faults have not been met.
    pub(crate) fn heal(&self) -> usize {
        self.state.lock().unwrap().rules.drain(..).map(|rule| rule.times).sum()
    }

    /// How often faults are still to be met.
    pub(crate) fn pending(&self) -> usize {
        self.state.lock().unwrap().rules.iter().map(|rule| rule.times).sum()
    }

    /// The requests since the last call.
    pub(crate) fn log(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }
}

fn hand_on(client: TcpStream, server: u16, state: &Mutex<State>) -> std::io::Result<()> {
    let mut from_client = BufReader::new(client.try_clone()?);
    let mut to_client = client;
    let Some((request, head)) = read_head(&mut from_client)? else { return Ok(()) };
    let fault = {
        let mut state = state.lock().unwrap();
        state.log.push(request.clone());
        let rule = state.rules.iter_mut().find(|rule| rule.times > 0 && (rule.matches)(&request));
        rule.map(|rule| {
            rule.times -= 1;
            rule.fault
        })
    };
    let length: usize = request.field("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    from_client.read_exact(&mut body)?;
    match fault {
        Some(Fault::Status(status)) => {
            let answer = format!("HTTP/1.1 {status} Fault\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            return to_client.write_all(answer.as_bytes());
        }
        Some(Fault::Flip(at)) => body[at] ^= 1,
        Some(Fault::Delay(time)) => std::thread::sleep(time),
        _ => {}
    }
    let mut upstream = TcpStream::connect((Ipv4Addr::LOCALHOST, server))?;
    upstream.write_all(&head)?;
    if let Some(Fault::CutRequest(at)) = fault {
        upstream.write_all(&body[..at.min(length)])?;
        upstream.shutdown(Shutdown::Both)?;
        return to_client.shutdown(Shutdown::Both);
    }
    upstream.write_all(&body)?;
    match fault {
        Some(Fault::LoseAnswer) => {
            let mut answer = Vec::new();
            upstream.read_to_end(&mut answer)?;
        }
        Some(Fault::CutAnswer(at)) => {
            std::io::copy(&mut upstream.take(at as u64), &mut to_client)?;
        }
        _ => {
            std::io::copy(&mut upstream, &mut to_client)?;
        }
    }
    to_client.shutdown(Shutdown::Both)
}

/// The head of the next request, as it is to be handed on.
fn read_head(from: &mut impl BufRead) -> std::io::Result<Option<(Request, Vec<u8>)>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let mut first = lines[0].split(' ').map(str::to_owned);
    let (method, target) = (first.next().unwrap(), first.next().unwrap());
    let fields = lines[1..].iter().filter_map(|line| line.split_once(':'));
    let fields = fields.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
    lines.retain(|line| !line.to_ascii_lowercase().starts_with("connection:"));
    lines.push("connection: close".to_owned());
    let head = lines.join("\r\n") + "\r\n\r\n";
    Ok(Some((Request { method, target, fields }, head.into_bytes())))
}
