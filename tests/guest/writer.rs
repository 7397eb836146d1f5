//! What the test guest does: writes numbered, checksummed records round-robin to its disks, each one
//! synced before the next is begun, and tells each number on a virtio-serial port.
//!
//! `writer SLOTS STRIDE PAUSE_US PORT TARGET...`: a target is a block device, or a file on a mounted file
//! system. At its start it looks for the newest record on all of them and goes on behind it, as a database
//! would. The port also takes commands, a letter each: `q` ends the writer, so that init powers the guest
//! off; `p` and `g` pause it, which it tells by the line `paused`, and let it go on.
//!
//! Compiled alone by tests/guest/build, static, for the initramfs.

mod record;

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use record::{Layout, RECORD, Record};

const O_DIRECT: i32 = 0x4000;
const O_NONBLOCK: i32 = 0x800;

/// A page that O_DIRECT takes.
#[repr(align(4096))]
struct Page([u8; RECORD]);

fn main() {
    if let Err(error) = run() {
        println!("writer: FAILED: {error}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [slots, stride, pause, port, targets @ ..] = arguments.as_slice() else {
        return Err("writer SLOTS STRIDE PAUSE_US PORT TARGET...".to_owned());
    };
    let number = |text: &String| text.parse::<u32>().map_err(|e| format!("{text}: {e}"));
    let disks = u32::try_from(targets.len()).map_err(|e| e.to_string())?;
    let layout = Layout { disks, slots: number(slots)?, stride: number(stride)? };
    let pause = Duration::from_micros(u64::from(number(pause)?));
    let mut files = Vec::new();
    for target in targets {
        files.push(open(target)?);
    }
    let mut next = newest(&files, layout)?.map_or(0, |n| n + 1);
    println!("writer: {layout:?}, goes on at {next}");
    let mut port = Port::open(port);
    let (begun, run) = (Instant::now(), run_id());
    let mut page = Page([0; RECORD]);
    loop {
        if !port.obey() {
            println!("writer: told to stop, {next} records written");
            return Ok(());
        }
        let disk = layout.disk(next);
        let clock_ns = begun.elapsed().as_nanos() as u64;
        Record { number: next, clock_ns, disk, layout, run }.encode(&mut page.0);
        let file = &files[disk as usize];
        let at = u64::from(layout.slot(next)) * u64::from(layout.stride);
        file.write_all_at(&page.0, at).map_err(|e| format!("write of record {next}: {e}"))?;
        file.sync_data().map_err(|e| format!("sync of record {next}: {e}"))?;
        port.tell(next);
        if next % 1000 == 0 {
            println!("writer: {next} after {} ms", begun.elapsed().as_millis());
        }
        next += 1;
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
}

/// Devices are written around the page cache; files are left to their file system, which the sync then
/// concerns.
fn open(target: &str) -> Result<File, String> {
    let flags = if target.starts_with("/dev/") { O_DIRECT } else { 0 };
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(flags);
    options.create(flags == 0).open(target).map_err(|e| format!("{target}: {e}"))
}

fn newest(files: &[File], layout: Layout) -> Result<Option<u64>, String> {
    let mut newest = None;
    let mut page = Page([0; RECORD]);
    for file in files {
        for slot in 0..layout.slots {
            let at = u64::from(slot) * u64::from(layout.stride);
            match file.read_exact_at(&mut page.0, at) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(format!("read at {at}: {error}")),
            }
            let found = Record::decode(&page.0).map_err(|e| format!("slot {slot} {e}"))?;
            newest = newest.max(found.map(|r| r.number));
        }
    }
    Ok(newest)
}

/// Guests that come from one saved state have the same random numbers, and are told another one each.
fn run_id() -> u64 {
    let boot_id = || std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let text = std::env::var("RUN").unwrap_or_else(|_| boot_id());
    let hex: String = text.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&hex, 16).unwrap_or(0)
}

/// The way to the host. It never blocks the writer: what nobody reads is dropped.
struct Port {
    port: Option<File>,
}

impl Port {
    fn open(path: &str) -> Port {
        let port = OpenOptions::new().read(true).write(true).custom_flags(O_NONBLOCK).open(path);
        if let Err(error) = &port {
            println!("writer: no port {path}: {error}");
        }
        Port { port: port.ok() }
    }

    fn tell(&mut self, what: impl std::fmt::Display) {
        if let Some(port) = &mut self.port {
            port.write_all(format!("{what}\n").as_bytes()).unwrap_or_default();
        }
    }

    fn command(&mut self) -> Option<u8> {
        let mut byte = [0];
        match self.port.as_mut()?.read(&mut byte) {
            Ok(1) => Some(byte[0]),
            _ => None,
        }
    }

    /// False when the writer is to end.
    fn obey(&mut self) -> bool {
        let mut paused = false;
        loop {
            match self.command() {
                Some(b'q') => return false,
                Some(b'p') => {
                    paused = true;
                    self.tell("paused");
                }
                Some(b'g') => paused = false,
                _ if !paused => return true,
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}
