//! How long a guest stands still: the largest gap between its writes while it is snapshotted, committed and
//! pivoted by virtfold and, in the same run, by virsh (`snapshot-create-as`, `blockcommit --pivot`); and its
//! write latency while its base is read at full speed.
//!
//! `cargo bench --bench pause` (as root, with what tests/setup-libvirt installs) prints the tables;
//! `-- --rounds N` changes the rounds. The guest is emulated in software and writes as fast as it can, one
//! synced record after the other, so a gap of its own is tens of milliseconds; the first column says how
//! long.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark fails by panicking")]
#![allow(missing_docs, reason = "a benchmark has no public items")]

#[path = "../../tests/common/lab/mod.rs"]
mod lab;

mod ours;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use lab::{Guest, GuestSpec, Lab};

/// Gaps in milliseconds, one a round.
#[derive(Default)]
struct Gaps {
    baseline: Vec<f64>,
    ours: [Vec<f64>; 3],
    virsh: [Vec<f64>; 3],
}

const PHASES: [&str; 3] = ["snapshot", "commit", "pivot"];

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if !words.iter().any(|word| word == "--bench") {
        eprintln!("this is a benchmark: run it with 'cargo bench --bench pause'");
        return;
    }
    let rounds = words.windows(2).find(|w| w[0] == "--rounds").map_or(10, |w| w[1].parse().unwrap());
    println!(
        "| largest gap between writes, ms: median (max) of {rounds} | 1 disk | 4 disks |\n|---|---:|---:|"
    );
    let tables = [1, 4].map(|disks| measure(disks, rounds));
    let row = |name: &str, of: &dyn Fn(&Gaps) -> String| {
        println!("| {name} | {} | {} |", of(&tables[0]), of(&tables[1]));
    };
    row("undisturbed, in a second", &|gaps| shown(&gaps.baseline));
    for (phase, name) in PHASES.iter().enumerate() {
        row(&format!("{name}, virtfold"), &|gaps| shown(&gaps.ours[phase]));
        row(&format!("{name}, virsh"), &|gaps| shown(&gaps.virsh[phase]));
    }
    latency();
}

fn shown(values: &[f64]) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.as_slice() {
        [] => "-".to_owned(),
        values => format!("{:.0} ({:.0})", values[values.len() / 2], values[values.len() - 1]),
    }
}

fn guest_of(lab: &Lab, disks: usize) -> Guest<'_> {
    let guest =
        lab.guest(GuestSpec { disks: vec!["qcow2"; disks], pause_us: Some(0), ..GuestSpec::default() });
    guest.start();
    guest.progress.wait_more(300);
    guest
}

fn measure(disks: usize, rounds: usize) -> Gaps {
    let lab = Lab::start();
    let guest = guest_of(&lab, disks);
    let mut gaps = Gaps::default();
    for round in 0..rounds {
        let from = Instant::now();
        std::thread::sleep(Duration::from_secs(1));
        gaps.baseline.push(gap(&guest, (from, Instant::now())));
        let by_virtfold = || ours::backup(&lab, &guest, Duration::from_millis(500));
        // Who is first changes, so that what one leaves behind for the other falls on both.
        let (ours, virsh) = if round % 2 == 0 {
            (by_virtfold(), by_virsh(&lab, &guest))
        } else {
            let virsh = by_virsh(&lab, &guest);
            (by_virtfold(), virsh)
        };
        // The beats that follow a gap have to be heard first.
        std::thread::sleep(Duration::from_millis(300));
        for phase in 0..PHASES.len() {
            gaps.ours[phase].push(gap(&guest, ours[phase]));
            gaps.virsh[phase].push(gap(&guest, virsh[phase]));
        }
    }
    gaps
}

/// The largest gap of a span and a little around it: a gap that begins inside ends outside.
fn gap(guest: &Guest<'_>, span: (Instant, Instant)) -> f64 {
    let (from, to) = span;
    let around = Duration::from_millis(100);
    let (gap, _) = guest.progress.gap_between(from.checked_sub(around).unwrap(), to + around);
    gap.as_secs_f64() * 1000.0
}

/// Snapshot, commit and pivot as a person does it.
fn by_virsh(lab: &Lab, guest: &Guest<'_>) -> [(Instant, Instant); 3] {
    let disks = guest.spec.disks.len();
    let overlays: Vec<PathBuf> = (0..disks).map(|disk| guest.disk(disk).with_extension("overlay")).collect();
    let mut words: Vec<String> =
        ["snapshot-create-as", guest.name(), "bench", "--disk-only", "--atomic", "--no-metadata"]
            .map(str::to_owned)
            .to_vec();
    for (disk, overlay) in overlays.iter().enumerate() {
        words.push("--diskspec".to_owned());
        words.push(format!("{},snapshot=external,file={}", lab::guest::target(disk), overlay.display()));
    }
    let begun = Instant::now();
    lab.virsh(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let snapshot = (begun, Instant::now());
    std::thread::sleep(Duration::from_millis(500));
    // virsh waits until the job is ready and pivots by itself, so the two phases are told apart by doing them
    // apart.
    let begun = Instant::now();
    for disk in 0..disks {
        let target = lab::guest::target(disk);
        lab.virsh(&["blockcommit", guest.name(), &target, "--active", "--shallow", "--wait"]);
    }
    let commit = (begun, Instant::now());
    let begun = Instant::now();
    for disk in 0..disks {
        lab.virsh(&["blockjob", guest.name(), &lab::guest::target(disk), "--pivot"]);
    }
    let pivot = (begun, Instant::now());
    for overlay in overlays {
        std::fs::remove_file(overlay).unwrap();
    }
    [snapshot, commit, pivot]
}

/// The time from one record to the next while nothing, and while the base, is read.
fn latency() {
    let lab = Lab::start();
    let guest = guest_of(&lab, 1);
    let from = Instant::now();
    std::thread::sleep(Duration::from_secs(5));
    let quiet = (from, Instant::now());
    let from = Instant::now();
    let bytes = ours::read_at_full_speed(&lab, &guest, Duration::from_secs(5));
    let busy = (from, Instant::now());
    std::thread::sleep(Duration::from_millis(300));
    println!("\n| time from write to write, ms | p50 | p99 | max |\n|---|---:|---:|---:|");
    for (name, span) in [("undisturbed".to_owned(), quiet), (format!("base read at {bytes} MiB/s"), busy)] {
        let mut times = guest.progress.times_between(span.0, span.1);
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1000.0;
        println!("| {name} | {:.1} | {:.1} | {:.1} |", at(50), at(99), at(100));
    }
}
