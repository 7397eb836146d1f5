//! The speed targets, measured: virtfold beside `cp`, `zstd`, `qemu-img` and `tar`, on the same bytes, in one
//! run.
//!
//! `cargo bench --bench speed` makes its data under `target/bench` (kept, and used again by the next run),
//! runs the contenders of each group in turn for three rounds, and prints a table: `target/bench/speed.md`
//! has it too. `-- --only copy,map` runs some groups, `--rounds N` changes the rounds, `--dir PATH` the
//! place, `--data MIB` the size. Mounts need root; without it the groups that need mounts are left out, and
//! the table says so.
//!
//! Rules, the same for all: the source is read once before each run, so that it comes from the page cache;
//! outputs are removed and the file system synced between runs, outside the timed part; what was written is
//! on stable storage at the end of the timed part. virtfold syncs by itself; the others are followed by an
//! fdatasync of their output, which is timed with them and shown apart, so that nothing hides in it.
//!
//! Order of the modules: `data` makes the sources, `contest` runs contenders, `groups` and
//! `increment` say who they are, `fig6` has the group with mounted file systems, `report` prints.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark fails by panicking")]
#![allow(missing_docs, reason = "a benchmark has no public items")]

mod contest;
mod data;
mod fig6;
mod groups;
mod increment;
mod mount;
mod report;

use std::path::{Path, PathBuf};

/// The groups, in their order.
const GROUPS: [&str; 6] = ["copy", "size", "reflink", "map", "increment", "fig6"];
/// Bytes that the default data, its archives and the outputs take at most.
const ROOM: u64 = 30 << 30;

/// What the command line says.
struct Options {
    dir: PathBuf,
    rounds: usize,
    groups: Vec<String>,
    /// Bytes of data in the disks.
    data: u64,
}

fn options(arguments: &[String]) -> Options {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
    let groups = GROUPS.map(str::to_owned).to_vec();
    let mut options = Options { dir: default, rounds: 3, groups, data: 4 << 30 };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| panic!("{word} wants a value"));
        match word.as_str() {
            "--bench" => {}
            "--dir" => options.dir = PathBuf::from(value()),
            "--rounds" => options.rounds = value().parse().expect("--rounds wants a number"),
            "--data" => options.data = value().parse::<u64>().expect("--data wants MiB") << 20,
            "--only" => options.groups = value().split(',').map(str::to_owned).collect(),
            _ => panic!("unknown option {word}; there are --dir, --rounds, --data and --only"),
        }
    }
    for group in &options.groups {
        assert!(GROUPS.contains(&group.as_str()), "there is no group {group}; there are {GROUPS:?}");
    }
    assert!(options.rounds > 0 && options.data >= 256 << 20, "at least one round and 256 MiB of data");
    options
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|word| word == contest::CHILD) {
        contest::child(&arguments[1..]);
        return;
    }
    if !arguments.iter().any(|word| word == "--bench") {
        eprintln!("this is a benchmark: run it with 'cargo bench --bench speed'");
        return;
    }
    let options = options(&arguments);
    std::fs::create_dir_all(&options.dir).expect("the folder for the data");
    let place = data::Place::new(&options.dir, options.data);
    place.require_room(ROOM / 4 * (options.data >> 20) / 1024);
    let mut report = report::Report::begin(&options.dir, options.rounds);
    for group in &options.groups {
        match group.as_str() {
            "copy" => groups::copy(&place, options.rounds, &mut report),
            "size" => groups::size(&place, options.rounds, &mut report),
            "reflink" => groups::reflink(&place, options.rounds, &mut report),
            "map" => groups::map(&place, options.rounds, &mut report),
            "increment" => increment::run_all(&place, options.rounds, &mut report),
            _ => fig6::run(&place, options.rounds, &mut report),
        }
        report.save();
    }
    report.finish();
}
