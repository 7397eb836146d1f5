//! `virtfold forget`: guests that are gone.

use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;
use virtfold_backup::forget::{self, Forgotten};
use virtfold_backup::{RunMode, metrics};
use virtfold_base::error::{Error, ErrorKind};
use virtfold_catalog::Catalog;

use super::config::ConfigFlag;
use super::domain::connection::{ConnectFlag, StateFlag};
use super::exit::ExitStatus;
use super::report::{JsonFlag, OutputFormat, StdoutUse, printable, result};

/// Forget a guest that no longer exists: its runs, its failures and its metrics
///
/// The guest leaves the status, the metrics and their alerts, and the journal. Its archives are kept, and the
/// catalog still knows them: 'prune' and 'list' work as before. Refused while libvirt has the domain, while a
/// backup of it runs, and after an interrupted backup until 'recover' has run.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold forget --dry-run old-web
  virtfold forget old-web
  virtfold forget 3b51a0a6-3c5a-4c1e-9d0b-2b4f6f1f8f11
  virtfold forget --metrics-dir /var/lib/prometheus/node-exporter old-web")]
pub(crate) struct Args {
    /// The domain that no longer exists: its name (all that had it), or its uuid
    #[arg(value_name = "DOMAIN")]
    domain: String,
    /// Print what would be forgotten and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Also remove its files of metrics from this directory [default: service.metrics-dir of the
    /// configuration]
    #[arg(long, value_name = "DIR")]
    metrics_dir: Option<PathBuf>,
    #[command(flatten)]
    connect: ConnectFlag,
    #[command(flatten)]
    state: StateFlag,
    #[command(flatten)]
    config: ConfigFlag,
    #[command(flatten)]
    json: JsonFlag,
}

#[derive(Serialize)]
struct Report {
    /// Whether it is done.
    forgotten: bool,
    domains: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    #[serde(flatten)]
    known: Forgotten,
    /// Its files of metrics.
    metrics: Vec<String>,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<ExitStatus> {
    let metrics_dir = match &args.metrics_dir {
        Some(directory) => Some(directory.clone()),
        None => {
            args.config.load()?.service.metrics_dir.as_ref().map(|directory| directory.as_path().to_owned())
        }
    };
    let state = args.state.path_of(args.connect.whose())?;
    let catalog = Catalog::open_existing(&state)?.ok_or_else(|| nothing(&args.domain))?;
    let report = args.forget(&catalog, metrics_dir)?;
    result(OutputFormat::from_flag(&args.json), StdoutUse::Free, &report, &text(&report))?;
    Ok(ExitStatus::Done)
}

impl Args {
    fn forget(&self, catalog: &Catalog, metrics_dir: Option<PathBuf>) -> Result<Report, Error> {
        let connection = self.connect.open()?;
        let mode = if self.dry_run { RunMode::DryRun } else { RunMode::Apply };
        let mut domains = Vec::new();
        for known in forget::run(&self.domain, mode, connection.hypervisor.as_ref(), catalog)? {
            let mut files = Vec::new();
            if let Some(directory) = &metrics_dir {
                files = metrics::files_of(directory, known.uuid);
                if mode == RunMode::Apply {
                    metrics::forget(directory, known.uuid)?;
                }
            }
            let metrics = files.iter().map(|path| path.display().to_string()).collect();
            domains.push(Entry { known, metrics });
        }
        Ok(Report { forgotten: mode == RunMode::Apply, domains })
    }
}

fn nothing(domain: &str) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("the catalog does not know domain '{domain}': there is no catalog here"),
    )
}

fn text(report: &Report) -> String {
    let verb = if report.forgotten { "forgotten" } else { "would be forgotten" };
    let line = |entry: &Entry| {
        let Forgotten { domain, uuid, runs, history, archives } = &entry.known;
        format!(
            "{} ({uuid}): {verb}: {runs} runs, {history} closed sessions, {} metrics files; {archives} archives are kept",
            printable(domain),
            entry.metrics.len()
        )
    };
    report.domains.iter().map(line).collect::<Vec<_>>().join("\n")
}
