//! A line to a server on which each answer takes a while; counts connections and requests.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// What went over the line.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    connections: AtomicU64,
    requests: AtomicU64,
}

impl Traffic {
    /// Connections and requests since the last time.
    pub(crate) fn take(&self) -> (u64, u64) {
        (self.connections.swap(0, Ordering::Relaxed), self.requests.swap(0, Ordering::Relaxed))
    }
}

/// Opens a line to the server at `server`; its port, and what goes over it. Its threads end with the process.
pub(crate) fn open(server: u16, delay: Duration) -> (u16, Arc<Traffic>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let traffic = Arc::new(Traffic::default());
    let counted = Arc::clone(&traffic);
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            counted.connections.fetch_add(1, Ordering::Relaxed);
            let counted = Arc::clone(&counted);
            let upstream = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).unwrap();
            std::thread::spawn(move || carry(client, upstream, &counted, delay));
        }
    });
    (port, traffic)
}

/// What comes first after an answer is the next request: it waits.
fn carry(client: TcpStream, upstream: TcpStream, traffic: &Traffic, delay: Duration) {
    for end in [&client, &upstream] {
        end.set_nodelay(true).unwrap();
    }
    let answered = AtomicBool::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            hand_on(&upstream, &client, || answered.store(true, Ordering::Relaxed));
        });
        hand_on(&client, &upstream, || {
            if answered.swap(false, Ordering::Relaxed) {
                traffic.requests.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(delay);
            }
        });
    });
}

/// Hands bytes on until one end is gone.
fn hand_on(mut from: &TcpStream, mut to: &TcpStream, seen: impl Fn()) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        seen();
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    // The other direction ends with this one; who is gone already needs no word.
    drop((from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)));
}
