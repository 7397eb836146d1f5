//! What grows with the fleet: lists of many archives in a directory and in an object store whose every answer
//! takes a while, one backup beside ever more guests, the service with a long queue, disks in pieces.
//!
//! `cargo bench --bench fleet` prints the table: CPU seconds, time, and counts of what was asked for.
//! `-- --size N` scales all of it (5000 guests and entries, twice as many archives, twenty times as many
//! pieces), `--delay MS` is the store's delay, `--only archives,guests` some rows.
//!
//! The store is the S3 server of the tests in a process of its own; the hypervisor is the simulated one, so
//! what libvirt itself takes is not in it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark fails by panicking")]
#![allow(missing_docs, reason = "a benchmark has no public items")]

mod archives;
mod guests;
mod line;
mod pieces;
#[path = "../../tests/common/s3/mod.rs"]
mod s3;
mod service;

use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

/// What something took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) cpu: f64,
    pub(crate) wall: f64,
}

/// Runs `work`, and says what it took of the processors in this process or in its children.
pub(crate) fn measured<T>(who: UsageWho, work: impl FnOnce() -> T) -> (T, Cost) {
    let cpu = || {
        let used = getrusage(who).unwrap();
        let seconds = |time: nix::sys::time::TimeVal| {
            Duration::new(time.tv_sec().try_into().unwrap(), u32::try_from(time.tv_usec()).unwrap() * 1000)
        };
        (seconds(used.user_time()) + seconds(used.system_time())).as_secs_f64()
    };
    let (before, start) = (cpu(), Instant::now());
    let done = work();
    (done, Cost { cpu: cpu() - before, wall: start.elapsed().as_secs_f64() })
}

/// Prints a row of the table.
pub(crate) fn row(what: &str, cost: Cost, counts: &str) {
    println!("| {what} | {:.2} | {:.2} | {counts} |", cost.cpu, cost.wall);
}

fn main() {
    s3::serve_if_asked();
    let words: Vec<String> = std::env::args().skip(1).collect();
    if !words.iter().any(|word| word == "--bench") {
        eprintln!("this is a benchmark: run it with 'cargo bench --bench fleet'");
        return;
    }
    let given = |name: &str| words.windows(2).find(|pair| pair[0] == name).map(|pair| pair[1].as_str());
    let number = |name: &str, usual: usize| given(name).map_or(usual, |text| text.parse().unwrap());
    let (size, delay) = (number("--size", 5000), Duration::from_millis(number("--delay", 20) as u64));
    let only = given("--only").map(|text| text.split(',').collect::<Vec<_>>());
    let wanted = |part: &str| only.as_ref().is_none_or(|only| only.contains(&part));
    println!("| | CPU s | s | counts |\n|---|---:|---:|---|");
    if wanted("archives") {
        archives::run(2 * size, delay);
    }
    if wanted("guests") {
        guests::run(size);
    }
    if wanted("service") {
        service::run(size);
    }
    if wanted("pieces") {
        pieces::run(20 * size);
    }
}
