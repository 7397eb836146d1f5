//! The table: times, targets, and what machine it was.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::contest::{Result, Sample, median, mib};
use crate::data::{text, tool};

/// What a ratio must be.
#[derive(Clone, Copy)]
pub(crate) enum Limit {
    AtMost(f64),
    Below(f64),
}

impl Limit {
    fn met(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::Below(limit) => value < limit,
        }
    }

    fn words(self) -> String {
        match self {
            Self::AtMost(limit) => format!("<= {limit:.2}"),
            Self::Below(limit) => format!("< {limit:.2}"),
        }
    }
}

/// One contender against another.
pub(crate) struct Ratio<'a> {
    what: String,
    ours: &'a Result,
    theirs: &'a Result,
}

impl<'a> Ratio<'a> {
    pub(crate) fn new(what: &str, ours: &'a Result, theirs: &'a Result) -> Self {
        Self { what: what.to_owned(), ours, theirs }
    }

    fn of(&self, ours: impl Fn(&Sample) -> f64, theirs: impl Fn(&Sample) -> f64) -> f64 {
        self.ours.median(ours) / self.theirs.median(theirs)
    }

    /// The fastest run of each: what noise, which only adds, has touched least.
    fn fastest(&self) -> f64 {
        let best = |result: &Result| result.samples.iter().map(Sample::total).fold(f64::INFINITY, f64::min);
        best(self.ours) / best(self.theirs)
    }
}

/// The report as it grows.
pub(crate) struct Report {
    file: PathBuf,
    head: String,
    times: String,
    targets: String,
    missed: Vec<String>,
}

/// A target in words, and whether it is met.
struct Goal<'a> {
    target: &'a str,
    met: bool,
}

impl Report {
    pub(crate) fn begin(dir: &Path, rounds: usize) -> Self {
        let head = format!("{}Median of {rounds} rounds.\n", machine(dir));
        Self {
            file: dir.join("speed.md"),
            head,
            times: String::new(),
            targets: String::new(),
            missed: Vec::new(),
        }
    }

    /// A group's times.
    pub(crate) fn times(&mut self, title: &str, results: &[Result]) {
        let text = &mut self.times;
        writeln!(text, "\n### {title}\n").unwrap();
        writeln!(text, "| | seconds | of it the sync after it | slowest | CPU seconds | peak MiB |").unwrap();
        writeln!(text, "|---|---:|---:|---:|---:|---:|").unwrap();
        for result in results {
            let worst = result.samples.iter().map(Sample::total).fold(0.0, f64::max);
            writeln!(
                text,
                "| {} | {:.2} | {:.2} | {worst:.2} | {:.2} | {:.0} |",
                result.name,
                result.median(Sample::total),
                result.median(|sample| sample.sync),
                result.median(|sample| sample.cpu),
                mib(result.peak())
            )
            .unwrap();
        }
    }

    /// A line of the table of targets.
    fn target(&mut self, what: &str, columns: [String; 4], goal: Goal<'_>) {
        let Goal { target, met } = goal;
        let verdict = if met { "yes" } else { "**no**" };
        let [value, fastest, unsynced, cpu] = columns;
        let line = format!("| {what} | {value} | {target} | {verdict} | {fastest} | {unsynced} | {cpu} |");
        writeln!(self.targets, "{line}").unwrap();
        if !met {
            self.missed.push(format!("{what}: {value}, target {target}"));
        }
    }

    /// A ratio of times against its target.
    pub(crate) fn ratio(&mut self, ratio: &Ratio<'_>, limit: Limit) {
        let value = ratio.of(Sample::total, Sample::total);
        let unsynced = ratio.of(Sample::total, |sample| sample.run);
        let cpu = ratio.of(|sample| sample.cpu, |sample| sample.cpu);
        let columns = [value, ratio.fastest(), unsynced, cpu].map(|value| format!("{value:.2}"));
        self.target(&ratio.what, columns, Goal { target: &limit.words(), met: limit.met(value) });
    }

    /// The middle one of the ratios of pairs that ran next to each other, against its target.
    pub(crate) fn pairs(&mut self, ratio: &Ratio<'_>, limit: Limit) {
        let middle = |of: fn(&Sample) -> f64| {
            let pairs = ratio.ours.samples.iter().zip(&ratio.theirs.samples);
            median(pairs.map(|(ours, theirs)| of(ours) / of(theirs)).collect())
        };
        let (value, cpu) = (middle(Sample::total), middle(|sample| sample.cpu));
        let columns = [value, ratio.fastest(), value, cpu].map(|value| format!("{value:.2}"));
        self.target(&ratio.what, columns, Goal { target: &limit.words(), met: limit.met(value) });
    }

    /// A median time against its target.
    pub(crate) fn seconds(&mut self, what: &str, result: &Result, limit: f64) {
        let value = result.median(Sample::total);
        let fastest = result.samples.iter().map(Sample::total).fold(f64::INFINITY, f64::min);
        let columns = [format!("{value:.2} s"), format!("{fastest:.2} s"), String::new(), String::new()];
        self.target(what, columns, Goal { target: &format!("< {limit:.0} s"), met: value < limit });
    }

    /// Peak memory of virtfold's runs.
    pub(crate) fn peak<'r>(&mut self, what: &str, ours: impl Iterator<Item = &'r Result>) {
        let peak = mib(ours.map(Result::peak).max().unwrap_or(0));
        let columns = [format!("{peak:.0} MiB"), String::new(), String::new(), String::new()];
        self.target(
            &format!("peak memory, {what}, 2 workers"),
            columns,
            Goal { target: "< 96 MiB", met: peak < 96.0 },
        );
    }

    /// A size against its target; without one the limit is infinite.
    #[allow(clippy::cast_precision_loss, reason = "a ratio")]
    pub(crate) fn size(&mut self, what: &str, ours: u64, theirs: u64, limit: f64) {
        let value = ours as f64 / theirs as f64;
        let columns = [format!("{value:.5}"), String::new(), String::new(), String::new()];
        let target = if limit.is_finite() { format!("<= {limit}") } else { "none".to_owned() };
        self.target(what, columns, Goal { target: &target, met: value <= limit });
    }

    pub(crate) fn skipped(&mut self, group: &str, why: &str) {
        writeln!(self.times, "\n### {group}\n\nNot measured: {why}.").unwrap();
        eprintln!("group {group} left out: {why}");
    }

    /// Free words below the times.
    pub(crate) fn add(&mut self, text: &str) {
        self.times.push_str(text);
    }

    fn text(&self) -> String {
        let mut text = format!("## Speed\n\n{}", self.head);
        if !self.targets.is_empty() {
            text +=
                "\n| | measured | target | met | fastest runs | against it without its sync | CPU time |\n";
            text += "|---|---:|---:|---|---:|---:|---:|\n";
            text += &self.targets;
        }
        text + &self.times
    }

    pub(crate) fn save(&self) {
        std::fs::write(&self.file, self.text()).expect("write the report");
    }

    pub(crate) fn finish(&self) {
        println!("{}", self.text());
        println!("in {}", self.file.display());
        for missed in &self.missed {
            println!("missed: {missed}");
        }
    }
}

/// What a reader must know of the machine to make sense of the figures.
fn machine(dir: &Path) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or_else(String::new, |(_, value)| value.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory: u64 = field(&read("/proc/meminfo"), "MemTotal")
        .split(' ')
        .next()
        .and_then(|kib| kib.parse().ok())
        .unwrap_or(0);
    let version = |words: &[&str]| tool(words).lines().next().unwrap_or_default().to_owned();
    let mut facts = String::new();
    writeln!(
        facts,
        "{cores} cores ({}), {} GiB of memory, Linux {}, {}; load at the start {}.  ",
        field(&read("/proc/cpuinfo"), "model name"),
        (memory + (1 << 19)) >> 20,
        read("/proc/sys/kernel/osrelease").trim(),
        tool(&["stat", "-f", "-c", "%T", &text(dir)]).trim(),
        read("/proc/loadavg").split(' ').next().unwrap_or_default()
    )
    .unwrap();
    writeln!(
        facts,
        "{}; {}; {}.  ",
        version(&["cp", "--version"]),
        version(&["qemu-img", "--version"]),
        version(&["zstd", "--version"])
    )
    .unwrap();
    facts
}
