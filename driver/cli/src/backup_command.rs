//! What a backup of images and one of a domain have in common: how it is run, and what is said of it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use virtfold_archive::stream::Compression;
use virtfold_archive::table::Layout;
use virtfold_backup::destinations::Destinations;
use virtfold_backup::options::{
    BackupKindRule, BackupOptions, ChangeDetection, DetectZeroes, MAX_CHAIN, QuiesceMode, ResumePolicy,
};
use virtfold_backup::resume::StateDirectories;
use virtfold_backup::session::{BackupReport, BackupSession, DiskReport};
use virtfold_backup::{Control, Progress};
use virtfold_base::error::Error;
use virtfold_base::units::{BlockSize, Human};
use virtfold_config::Defaults;
use virtfold_medium::{Location, RateLimit};

use super::Signals;
use super::args;
use super::exit::ExitStatus;
use super::output::say;
use super::report::{OutputFormat, ProgressPrinter, StdoutUse, printable};

/// A backup as the command line says it: what images and domains have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct BackupCommand<'a> {
    pub(super) options: &'a BackupOptions,
    pub(super) destinations: &'a Destinations<'a>,
    pub(super) state: &'a StateDirectories,
    /// The job of the configuration that it is for.
    pub(super) job: Option<&'a str>,
    pub(super) style: OutputFormat,
}

impl BackupCommand<'_> {
    /// Does the work, with its progress printed.
    pub(super) fn run<T>(
        &self,
        signals: &Signals,
        work: impl FnOnce(&BackupSession<'_>) -> std::result::Result<T, Error>,
    ) -> Result<T> {
        let Self { options, destinations, state, .. } = *self;
        let progress = Arc::new(Progress::default());
        let ticker = ProgressPrinter::start(self.style, self.stdout(), &progress)?;
        let control = Control { cancel: Arc::clone(&signals.stop), progress };
        let report = work(&BackupSession { options, destinations, state, control: &control });
        drop(ticker);
        Ok(report?)
    }

    /// Whether the archive takes standard output.
    pub(super) fn stdout(&self) -> StdoutUse {
        stdout_of(self.destinations.locations())
    }
}

pub(super) fn stdout_of(destinations: &[Location]) -> StdoutUse {
    if destinations.contains(&Location::Pipe) { StdoutUse::Archive } else { StdoutUse::Free }
}

/// How a backup is made where the configuration alone says it; encryption and signature aside.
///
/// # Errors
/// Internal only.
pub(super) fn by_configuration(defaults: &Defaults) -> std::result::Result<BackupOptions, Error> {
    let block_size = defaults.block_size.map(virtfold_config::BlockSize::get);
    let limit_rate = defaults.limit_rate.map(virtfold_config::ByteRate::get);
    Ok(BackupOptions {
        compression: match defaults.compress {
            virtfold_config::Compression::None => Compression::None,
            virtfold_config::Compression::Zstd { level } => Compression::Zstd { level },
        },
        encrypt_to: None,
        signing_key: None,
        kind: BackupKindRule::Full,
        changes: ChangeDetection::Auto,
        max_chain: MAX_CHAIN,
        layout: match defaults.layout {
            virtfold_config::Layout::Compact => Layout::Compact,
            virtfold_config::Layout::Full => Layout::Full,
        },
        block_size: block_size
            .map(|bytes| BlockSize::new(bytes).ok_or_else(|| args::mismatch("block size")))
            .transpose()?,
        detect_zeroes: match defaults.detect_zeroes {
            None => DetectZeroes::Auto,
            Some(virtfold_config::DetectZeroes::On) => DetectZeroes::On,
            Some(virtfold_config::DetectZeroes::Off) => DetectZeroes::Off,
        },
        limit_rate: limit_rate
            .map(|rate| RateLimit::new(rate).ok_or_else(|| args::mismatch("rate")))
            .transpose()?,
        workers: args::workers(defaults.workers),
        resume: ResumePolicy::IfPossible,
        exclude: Vec::new(),
        quiesce: match defaults.quiesce {
            virtfold_config::QuiesceMode::Auto => QuiesceMode::Auto,
            virtfold_config::QuiesceMode::Yes => QuiesceMode::Yes,
            virtfold_config::QuiesceMode::No => QuiesceMode::No,
        },
        pause_budget: Duration::from_millis(defaults.pause_budget.millis()),
        overlay_dir: defaults.overlay_dir.as_ref().map(|dir| dir.as_path().to_owned()),
        min_free: defaults.min_free.get(),
    })
}

/// Says which copies have failed, and how the run ends for that.
pub(super) fn copies(style: OutputFormat, report: &BackupReport) -> ExitStatus {
    for copy in &report.copies {
        if let (OutputFormat::Text, Some(failure)) = (style, &copy.failure) {
            say(&format!("virtfold: no copy in '{}': {}", printable(&copy.to), printable(failure)));
            copy.hint.iter().for_each(|hint| say(&format!("hint: {}", printable(hint))));
        }
    }
    let failed = report.copies.iter().find_map(|copy| copy.kind);
    failed.map_or(ExitStatus::Done, ExitStatus::Failed)
}

/// Prints what was doubtful about the sources.
pub(super) fn warn(disks: &[DiskReport]) {
    for warning in disks.iter().flat_map(|disk| &disk.warnings) {
        say(&format!("virtfold: warning: {}", printable(warning)));
    }
}

/// The archive and its disks, for people.
pub(super) fn text(report: &BackupReport) -> String {
    let mut text = String::new();
    for disk in &report.disks {
        text += &format!(
            "{}: capacity {}, allocated {}, copied {} in {} runs\n",
            disk.target,
            Human(disk.capacity),
            Human(disk.allocated),
            Human(disk.dense_length),
            disk.runs
        );
    }
    if let Some(parent) = report.parent {
        text += &format!("incremental, continues {parent}\n");
        for disk in &report.disks {
            let Some(changes) = &disk.changes else { continue };
            let reason = changes.reason.as_ref().map(|reason| format!(" ({})", printable(reason)));
            let reason = reason.unwrap_or_default();
            text += &format!(
                "disk {}: changes found by method '{}'{reason}\n",
                disk.target,
                printable(&changes.method)
            );
        }
    }
    if let Some(reason) = &report.full_reason {
        text += &format!("full, though an increment was asked for: {}\n", printable(reason));
    }
    if let Some(at) = report.resumed_at {
        text += &format!("resumed at {}, where an earlier run was interrupted\n", Human(at));
    }
    let encrypted = if report.encrypted { ", encrypted," } else { "" };
    text +=
        &format!("archive {}{encrypted} written in {:.1} s\n", Human(report.archive_bytes), report.seconds);
    if let Some(signed) = &report.signed {
        text += &format!("signed by {}, number {} of its subject\n", signed.host, signed.sequence);
    }
    for tape in &report.tapes {
        let underruns = match tape.underruns {
            0 => "the drive never waited".to_owned(),
            count => format!("the drive waited for data {count} times"),
        };
        text += &format!("on volume {}; {underruns}\n", tape.volumes.join(", "));
        for failed in &tape.failed {
            let holds = match tape.volumes.contains(failed) {
                true => "it holds a sound part of the archive: keep it",
                false => "it holds nothing of the archive",
            };
            text += &format!("volume {failed} failed and is not used any more; {holds}\n");
        }
    }
    let names = report.copies.iter().filter_map(|copy| copy.archive.as_deref());
    let names: Vec<&str> = names.collect();
    text + &if names.is_empty() { report.archive.clone() } else { names.join("\n") }
}
