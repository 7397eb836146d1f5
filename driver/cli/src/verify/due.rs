//! `virtfold verify PLACE --due`: what has not been verified for long.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use jiff::Timestamp;
use virtfold_backup::destinations::Destinations;
use virtfold_backup::metrics::{self, VerifyMetrics};
use virtfold_backup::verify_due::{self, DueReport, DueRequest, Share};
use virtfold_backup::{Control, Progress};
use virtfold_base::error::{Error, ErrorKind};
use virtfold_catalog::Catalog;
use virtfold_config::Interval;

use super::Args;
use crate::Signals;
use crate::args;
use crate::confine;
use crate::destinations::Terminating;
use crate::exit::ExitStatus;
use crate::mount_check::{Mounted, expected};
use crate::output::say;
use crate::report::{OutputFormat, ProgressPrinter, StdoutUse, damage, printable, result};
use crate::trust;

/// The options of a verification of a place.
#[derive(Debug, clap::Args)]
pub(crate) struct DueArgs {
    /// Verify the archives of PLACE that the catalog knows and that were not verified for so long: those that
    /// never were first, then the oldest; the results are recorded
    #[arg(long, value_name = "TIME", help_heading = "What is due")]
    pub(crate) due: Option<Interval>,
    /// Stop when this part of the place's bytes has been read, for example 1/30 [default: all that is due]
    #[arg(long, value_name = "N/M", requires = "due", help_heading = "What is due")]
    share: Option<Share>,
    /// Write the results as metrics to this directory, for node_exporter's textfile collector
    #[arg(long, value_name = "DIR", requires = "due", help_heading = "What is due")]
    metrics_dir: Option<PathBuf>,
}

/// Verifies what is due.
pub(crate) fn run(args: &Args, signals: &Signals) -> Result<ExitStatus> {
    let style = OutputFormat::from_flag(&args.json);
    let state = args.state.path()?;
    let catalog = Catalog::open_existing(&state)?.ok_or_else(|| {
        let what =
            format!("there is no catalog in '{}', which knows when archives were verified", state.display());
        let hint = format!("'virtfold list --remember {}' makes one", args.archive);
        Error::new(ErrorKind::NotFound, what).with_hint(hint)
    })?;
    let terminating = Terminating::default();
    let destinations = terminating.one(&args.archive, &args.identity, Vec::new());
    let now = Timestamp::now();
    let request = DueRequest {
        place: place(args, &destinations, &catalog)?,
        older_than: args.due.due.map(Interval::get).unwrap_or_default(),
        share: args.due.share.unwrap_or(Share::ALL),
        identities: args.identity.load()?,
        trust: trust::policy(&args.config.trust()?)?,
        workers: args::workers(args.workers),
        now,
    };
    let directories = [Some(state.as_path()), args.due.metrics_dir.as_deref()];
    confine::to_archive(&args.archive, &directories.into_iter().flatten().collect::<Vec<_>>())?;
    let progress = Arc::new(Progress::default());
    let ticker = ProgressPrinter::start(style, StdoutUse::Free, &progress)?;
    let control = Control { cancel: Arc::clone(&signals.stop), progress };
    let report = verify_due::run(&request, &catalog, &mut |one| args.read(one, &control));
    drop(ticker);
    let report = report?;
    for done in &report.verified {
        damage(style, &done.damage)?;
    }
    result(style, StdoutUse::Free, &report, &text(&report))?;
    if let Some(directory) = &args.due.metrics_dir {
        let unsound = u64::try_from(report.unsound).unwrap_or(u64::MAX);
        let due = u64::try_from(report.left()).unwrap_or(u64::MAX);
        metrics::verified(directory, &report.place, VerifyMetrics { at: metrics::now(), unsound, due })?;
    }
    if style == OutputFormat::Text {
        for failed in &report.failed {
            say(&format!("virtfold: {}", printable(&failed.failure.sentence)));
            failed.failure.hint.iter().for_each(|hint| say(&format!("hint: {}", printable(hint))));
        }
    }
    Ok(end(&report))
}

/// What the catalog calls the place; a directory has to be mounted if it was at its first use.
fn place(args: &Args, destinations: &Destinations<'_>, catalog: &Catalog) -> Result<String, Error> {
    expected(&args.archive, Mounted::AS_FIRST, destinations, Some(catalog))?;
    destinations.name(&args.archive)
}

/// Damage counts before what could not be read.
fn end(report: &DueReport) -> ExitStatus {
    let found = report.verified.iter().map(super::outcome).collect::<Vec<_>>();
    for worst in [ExitStatus::Damaged, ExitStatus::Incomplete] {
        if found.contains(&worst) {
            return worst;
        }
    }
    report.failed.first().map_or(ExitStatus::Done, |failed| ExitStatus::Failed(failed.failure.kind))
}

fn text(report: &DueReport) -> String {
    let mut text = String::new();
    for done in &report.verified {
        text += &super::text(done);
        text.push('\n');
    }
    text += &format!(
        "{}: {} of {} archives were due, {} verified, {} could not be; {} are due still",
        printable(&report.place),
        report.due,
        report.known,
        report.verified.len(),
        report.failed.len(),
        report.left()
    );
    text
}
