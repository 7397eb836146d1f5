//! Runs contenders in turn and measures them.
//!
//! Each run goes through this program once more ([`child`]): a small process that starts the contender,
//! waits, syncs the output, and tells times and peak memory of that one contender. The caller's own memory
//! and the runs before have no part in the figures.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

/// The first argument that makes this program the measuring child.
pub(crate) const CHILD: &str = "--measured-child";

/// Seconds, bytes.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Sample {
    /// From start to end, without the sync afterwards.
    pub(crate) run: f64,
    /// The sync afterwards.
    pub(crate) sync: f64,
    /// User and system time of the contender's processes.
    pub(crate) cpu: f64,
    /// Peak resident memory of the largest of its processes.
    pub(crate) peak: u64,
}

impl Sample {
    /// Until the data was on stable storage.
    pub(crate) fn total(&self) -> f64 {
        self.run + self.sync
    }
}

/// One that takes part.
pub(crate) struct Contender {
    pub(crate) name: String,
    /// Read once before each run.
    pub(crate) source: Vec<PathBuf>,
    /// Program and arguments.
    pub(crate) command: Vec<String>,
    /// Where standard output goes; nowhere without it.
    pub(crate) stdout: Option<PathBuf>,
    /// The file to be synced behind a contender that does not do so itself.
    pub(crate) sync: Option<PathBuf>,
    /// Looks at what came out of the first round, untimed.
    pub(crate) check: Option<Box<dyn Fn()>>,
}

impl Contender {
    pub(crate) fn new(name: &str, command: Vec<String>) -> Self {
        Self { name: name.to_owned(), source: Vec::new(), command, stdout: None, sync: None, check: None }
    }

    pub(crate) fn reads(mut self, source: &Path) -> Self {
        self.source.push(source.to_owned());
        self
    }

    pub(crate) fn synced(mut self, output: &Path) -> Self {
        self.sync = Some(output.to_owned());
        self
    }

    pub(crate) fn stdout(mut self, output: &Path) -> Self {
        self.stdout = Some(output.to_owned());
        self
    }

    pub(crate) fn checked(mut self, check: impl Fn() + 'static) -> Self {
        self.check = Some(Box::new(check));
        self
    }
}

/// A contender's runs.
#[derive(Clone, Debug)]
pub(crate) struct Result {
    pub(crate) name: String,
    pub(crate) samples: Vec<Sample>,
}

/// The middle one of some values, or the mean of the two in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

impl Result {
    pub(crate) fn median(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        median(self.samples.iter().map(of).collect())
    }

    pub(crate) fn peak(&self) -> u64 {
        self.samples.iter().map(|sample| sample.peak).max().unwrap_or(0)
    }
}

/// Runs all contenders `rounds` times, one after the other and then from the first again. `out` is the folder
/// that they write to: empty when a run begins.
pub(crate) fn run(contenders: &[Contender], rounds: usize, out: &Path) -> Vec<Result> {
    let empty = |contender: &Contender| Result { name: contender.name.clone(), samples: Vec::new() };
    let mut results: Vec<Result> = contenders.iter().map(empty).collect();
    for round in 0..rounds {
        for (contender, result) in contenders.iter().zip(&mut results) {
            turn(contender, result, out);
            if let (0, Some(check)) = (round, &contender.check) {
                check();
            }
        }
    }
    clear(out);
    results
}

/// Runs two contenders `pairs` times; who is first changes with each pair, so that what the one leaves behind
/// for the next (memory that is taken, a disk that still writes) falls on both alike.
pub(crate) fn duel(contenders: &[Contender; 2], pairs: usize, out: &Path) -> [Result; 2] {
    let mut results = contenders.each_ref().map(|c| Result { name: c.name.clone(), samples: Vec::new() });
    for pair in 0..pairs {
        for place in [pair % 2, 1 - pair % 2] {
            turn(&contenders[place], &mut results[place], out);
        }
    }
    clear(out);
    results
}

/// One run of one contender.
fn turn(contender: &Contender, result: &mut Result, out: &Path) {
    clear(out);
    for source in &contender.source {
        warm(source);
    }
    let sample = measure(contender);
    result.samples.push(sample);
    eprintln!(
        "round {}: {:<44} {:8.3} s + sync {:6.3} s, cpu {:7.3} s, peak {:5.1} MiB",
        result.samples.len(),
        contender.name,
        sample.run,
        sample.sync,
        sample.cpu,
        mib(sample.peak)
    );
}

#[allow(clippy::cast_precision_loss, reason = "shown with one digit")]
pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Empties `out` and lets everything that is still on its way to the disk arrive.
pub(crate) fn clear(out: &Path) {
    if out.exists() {
        std::fs::remove_dir_all(out).expect("remove the output");
    }
    std::fs::create_dir_all(out).expect("make the output's folder");
    nix::unistd::syncfs(File::open(out).unwrap()).expect("sync the file system");
}

/// Reads a file, or all files of a folder.
pub(crate) fn warm(path: &Path) {
    let kind = path.symlink_metadata().unwrap().file_type();
    if kind.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            warm(&entry.unwrap().path());
        }
    } else if kind.is_file() {
        crate::data::each_data(path, |_, _| {});
    }
}

fn measure(contender: &Contender) -> Sample {
    let mut words = vec![
        CHILD.to_owned(),
        contender.stdout.as_ref().map_or_else(String::new, |path| path.display().to_string()),
        contender.sync.as_ref().map_or_else(String::new, |path| path.display().to_string()),
    ];
    words.extend(contender.command.iter().cloned());
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(words).stdin(Stdio::null()).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{} failed: {:?}", contender.name, contender.command);
    serde_json::from_slice(&output.stdout).expect("the child's figures")
}

/// The measuring child: `STDOUT SYNC PROGRAM ARGUMENT...`, the first two may be empty.
pub(crate) fn child(words: &[String]) {
    let (stdout, sync, program) = (&words[0], &words[1], &words[2]);
    let out = match stdout.as_str() {
        "" => Stdio::null(),
        path => Stdio::from(File::create(path).unwrap()),
    };
    let errors = tempfile::tempfile().unwrap();
    let mut command = Command::new(program);
    command.args(&words[3..]).stdout(out).stderr(errors.try_clone().unwrap()).env("LC_ALL", "C");
    let start = Instant::now();
    let status = command.status().unwrap_or_else(|e| panic!("cannot run {program}: {e}"));
    let run = start.elapsed().as_secs_f64();
    if !sync.is_empty() {
        File::open(sync).unwrap().sync_data().unwrap();
    }
    let total = start.elapsed().as_secs_f64();
    if !status.success() {
        let mut errors = errors;
        std::io::Seek::rewind(&mut errors).unwrap();
        eprintln!("{}", std::io::read_to_string(errors).unwrap_or_default());
        std::process::exit(1);
    }
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let cpu = usage.user_time() + usage.system_time();
    let peak = u64::try_from(usage.max_rss()).unwrap() << 10;
    #[allow(clippy::cast_precision_loss, reason = "microseconds of a run")]
    let sample = Sample { run, sync: total - run, cpu: cpu.num_microseconds() as f64 / 1e6, peak };
    println!("{}", serde_json::to_string(&sample).unwrap());
}
