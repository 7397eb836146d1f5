//! An object store that means harm: lists without end, prefixes that go deeper and deeper, answers of any
//! length, redirects.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::{PLACE, account};
use crate::common::MIB;
use crate::common::run::{exit, run, virtfold};

/// What it answers to a request, of which it gets the head; whatever else is asked for fails.
type Answer = dyn Fn(&str, &mut TcpStream) -> std::io::Result<()> + Send + Sync;

/// The endpoint.
struct Endpoint {
    port: u16,
    /// The heads of all requests.
    heard: Arc<Mutex<Vec<String>>>,
    ends: Arc<AtomicBool>,
}

impl Endpoint {
    fn start(answer: impl Fn(&str, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (heard, ends) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicBool>::default());
        let (heard_here, ends_here) = (Arc::clone(&heard), Arc::clone(&ends));
        let answer: Arc<Answer> = Arc::new(answer);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if ends_here.load(Ordering::Relaxed) {
                    return;
                }
                let (heard, answer) = (Arc::clone(&heard_here), Arc::clone(&answer));
                std::thread::spawn(move || speak(client, &heard, &*answer));
            }
        });
        Self { port, heard, ends }
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
    }
}

/// One connection, up to its end.
fn speak(mut client: TcpStream, heard: &Mutex<Vec<String>>, answer: &Answer) {
    let mut lines = BufReader::new(client.try_clone().unwrap());
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if lines.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        heard.lock().unwrap().push(head.clone());
        if answer(&head, &mut client).is_err() {
            return;
        }
    }
}

fn answer(client: &mut TcpStream, status: &str, more: &str, body: &[u8]) -> std::io::Result<()> {
    // In one piece: two wait for each other's acknowledgement.
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{more}\r\n", body.len());
    client.write_all(&[head.as_bytes(), body].concat())
}

fn page(inner: &str, next: &str) -> String {
    format!(
        "<?xml version=\"1.0\"?><ListBucketResult><Name>backups</Name><KeyCount>1</KeyCount><MaxKeys>1000</MaxKeys>\
         <IsTruncated>true</IsTruncated>{inner}<NextContinuationToken>{next}</NextContinuationToken></ListBucketResult>"
    )
}

/// virtfold with a session's keys at this endpoint.
fn at(endpoint: &Endpoint, arguments: &[&str]) -> crate::common::run::Outcome {
    let mut command = virtfold(arguments.iter().copied());
    account(&mut command, endpoint.port).env("AWS_SESSION_TOKEN", "session-token-of-the-host");
    run(&mut command)
}

#[test]
fn a_list_without_end_is_ended() {
    // Pages with one object each, and pages with none.
    for inner in [
        "<Contents><Key>h/web/NUMBER.tar</Key><LastModified>2026-11-30T00:00:00.000Z</LastModified><Size>1</Size></Contents>",
        "",
    ] {
        let number = std::sync::atomic::AtomicU64::new(0);
        let endpoint = Endpoint::start(move |_, client| {
            let now = number.fetch_add(1, Ordering::Relaxed).to_string();
            answer(client, "200 OK", "", page(&inner.replace("NUMBER", &now), &now).as_bytes())
        });
        let said = at(&endpoint, &["list", PLACE]).exits(exit::FAILURE);
        assert!(said.stderr.contains("without end"), "{said}");
    }
}

#[test]
fn prefixes_that_go_deeper_and_deeper_are_not_followed() {
    let endpoint = Endpoint::start(|head, client| {
        let path = head.split_whitespace().nth(1).unwrap_or_default();
        let prefix =
            path.split('&').find_map(|part| part.split_once("prefix=")).map_or("", |(_, prefix)| prefix);
        let below = format!("{}a/", prefix.replace("%2F", "/"));
        let inner = format!("<CommonPrefixes><Prefix>{below}</Prefix></CommonPrefixes>");
        let last = page(&inner, "").replace("true</IsTruncated>", "false</IsTruncated>");
        let last = last.replace("<NextContinuationToken></NextContinuationToken>", "");
        answer(client, "200 OK", "", last.as_bytes())
    });
    // It ends, either way: with nothing found, or with an error that says why.
    at(&endpoint, &["list", PLACE]).exits_one_of(&[exit::OK, exit::FAILURE]);
    assert!(endpoint.heard().len() < 100, "{} requests", endpoint.heard().len());
}

#[test]
fn a_range_is_not_answered_with_more_than_it_has() {
    let sent = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = Arc::clone(&sent);
    let endpoint = Endpoint::start(move |head, client| {
        if head.starts_with("HEAD") {
            let more = "etag: \"a\"\r\nlast-modified: Mon, 30 Nov 2026 00:00:00 GMT\r\n";
            write!(client, "HTTP/1.1 200 OK\r\ncontent-length: 1048576\r\n{more}\r\n")?;
            return Ok(());
        }
        let range = head
            .lines()
            .find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
        let range = range.unwrap_or_else(|| "0-1048575".to_owned());
        let more = "etag: \"a\"\r\nlast-modified: Mon, 30 Nov 2026 00:00:00 GMT\r\n";
        let (all, range) = (512 * MIB, format!("content-range: bytes {range}/1048576\r\n"));
        write!(client, "HTTP/1.1 206 Partial Content\r\ncontent-length: {all}\r\n{more}{range}\r\n")?;
        let zeros = vec![0; 1 << 20];
        for _ in 0..512 {
            client.write_all(&zeros)?;
            counted.fetch_add(MIB, Ordering::Relaxed);
        }
        Ok(())
    });
    let said = at(&endpoint, &["verify", &format!("{PLACE}/h/web/a.tar")]).exits(exit::FAILURE);
    assert!(said.stderr.contains("more than was asked for"), "{said}");
    assert!(sent.load(Ordering::Relaxed) < 64 * MIB, "{} MiB were taken", sent.load(Ordering::Relaxed) / MIB);
}

#[test]
fn a_redirect_is_not_followed_and_the_token_goes_nowhere() {
    let thief = Endpoint::start(|_, client| answer(client, "200 OK", "", page("", "").as_bytes()));
    let port = thief.port;
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let endpoint = Endpoint::start(move |_, client| {
            answer(client, status, &format!("location: http://127.0.0.1:{port}/stolen\r\n"), b"")
        });
        for arguments in [&["list", PLACE][..], &["verify", &format!("{PLACE}/h/web/a.tar")]] {
            let said = at(&endpoint, arguments).exits(exit::FAILURE);
            assert!(said.stderr.contains("redirect"), "{said}");
            assert!(!said.stderr.contains("session-token"), "{said}");
        }
        assert!(
            endpoint.heard().iter().any(|head| head.contains("session-token-of-the-host")),
            "it was sent at all"
        );
    }
    assert_eq!(thief.heard(), Vec::<String>::new());
}
