//! What a running guest tells on its virtio-serial port: the number of each record, right after its sync. A
//! thread notes the host's time of each, so a pause of the whole guest shows, which its own clock does not
//! see.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A record's number and when the host heard of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beat {
    pub(crate) number: u64,
    pub(crate) at: Instant,
}

#[derive(Default)]
struct Shared {
    beats: Mutex<Vec<Beat>>,
    command: Mutex<Option<UnixStream>>,
    /// The last that the writer told is that it pauses.
    paused: AtomicBool,
    end: AtomicBool,
}

/// The listener. It connects again when QEMU comes back, and ends when dropped.
pub(crate) struct Progress {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    pub(crate) fn listen(socket: PathBuf) -> Progress {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            while !theirs.end.load(Ordering::Relaxed) {
                match UnixStream::connect(&socket) {
                    Ok(stream) => {
                        listen_once(stream, &theirs);
                        *theirs.command.lock().unwrap() = None;
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(20)),
                }
            }
        });
        Progress { shared, thread: Some(thread) }
    }

    /// The newest record that the guest told of.
    pub(crate) fn last(&self) -> Option<u64> {
        self.shared.beats.lock().unwrap().last().map(|b| b.number)
    }

    /// Waits until the guest has written `more` records from now on; panics after 60 s.
    pub(crate) fn wait_more(&self, more: u64) {
        let from = self.last().map_or(0, |n| n + 1);
        super::wait_for(&format!("record {}", from + more), 60, || self.last() >= Some(from + more));
    }

    /// The largest gap between two records heard of in this span of time, and how many there were.
    pub(crate) fn gap_between(&self, from: Instant, to: Instant) -> (Duration, usize) {
        let beats = self.shared.beats.lock().unwrap();
        let inside: Vec<Beat> = beats.iter().filter(|b| b.at >= from && b.at <= to).copied().collect();
        let gap = inside.windows(2).map(|w| w[1].at - w[0].at).max().unwrap_or_default();
        (gap, inside.len())
    }

    /// The times from record to record in this span of time.
    pub(crate) fn times_between(&self, from: Instant, to: Instant) -> Vec<Duration> {
        let beats = self.shared.beats.lock().unwrap();
        let inside: Vec<Beat> = beats.iter().filter(|b| b.at >= from && b.at <= to).copied().collect();
        inside.windows(2).map(|w| w[1].at - w[0].at).collect()
    }

    /// Whether the writer has paused, as it was told to.
    pub(crate) fn is_paused(&self) -> bool {
        self.shared.paused.load(Ordering::Relaxed)
    }

    /// Sends a line to a guest that is held in its init, as soon as it has its port.
    pub(super) fn say(&self, line: &str) {
        super::wait_for("the guest has its port", 60, || {
            let mut stream = self.shared.command.lock().unwrap();
            stream.as_mut().is_some_and(|stream| stream.write_all(line.as_bytes()).is_ok())
        });
    }

    /// Sends a command to the writer: `q`uit (powers off), `p`ause, `g`o on.
    pub(crate) fn tell(&self, command: u8) {
        let mut stream = self.shared.command.lock().unwrap();
        stream.as_mut().expect("the guest's port is not connected").write_all(&[command]).unwrap();
    }
}

fn listen_once(mut stream: UnixStream, shared: &Shared) {
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    *shared.command.lock().unwrap() = stream.try_clone().ok();
    let (mut buffer, mut line) = ([0; 4096], Vec::new());
    while !shared.end.load(Ordering::Relaxed) {
        let got = match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(got) => got,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(_) => return,
        };
        let at = Instant::now();
        for byte in &buffer[..got] {
            if *byte != b'\n' {
                line.push(*byte);
                continue;
            }
            if let Some(number) = std::str::from_utf8(&line).ok().and_then(|t| t.parse().ok()) {
                shared.beats.lock().unwrap().push(Beat { number, at });
            }
            shared.paused.store(line == b"paused", Ordering::Relaxed);
            line.clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap_or_default();
        }
    }
}
