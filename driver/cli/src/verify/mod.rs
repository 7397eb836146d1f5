//! `virtfold verify`: reads all of an archive and checks every byte.

use std::sync::Arc;

use anyhow::Result;
use jiff::Timestamp;
use virtfold_backup::known_copy::KnownCopy;
use virtfold_backup::parents::ParentSearch;
use virtfold_backup::verify::{self, VerifyReport, VerifyRequest};
use virtfold_backup::verify_chain::{self, ChainReport};
use virtfold_backup::{Control, Progress};
use virtfold_base::error::{Error, sentence};
use virtfold_base::units::Human;
use virtfold_catalog::Catalog;
use virtfold_medium::Location;

use super::Signals;
use super::args;
use super::catalog_fill;
use super::config::ConfigFlag;
use super::confine;
use super::domain::connection::StateFlag;
use super::encryption::IdentityArgs;
use super::exit::ExitStatus;
use super::output::say;
use super::report::{JsonFlag, OutputFormat, ProgressPrinter, StdoutUse, damage, printable, result};
use super::tape::{self, options::ChangeArgs};
use super::trust;

mod due;

/// Read all of an archive and check every byte
///
/// Damage is reported as lost ranges of the disks. What the catalog knows of the archive is compared: another
/// one under its name is 'replaced'. Exit code 3: damaged or replaced; 4: incomplete.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold verify /backup/web-20261122T030000Z-5f1c2d3e.tar.zst
  virtfold verify tape:/dev/nst0#latest
  virtfold verify --json /backup/web-20261122T030000Z-5f1c2d3e.tar.zst
  virtfold verify --chain /backup/web-20261123T030000Z-9a0b1c2d.tar.zst
  virtfold verify /backup --due 30d --share 1/30")]
pub(crate) struct Args {
    /// The archive: a file, s3://BUCKET/KEY or tape:DEVICE#ID; with --due a place: a directory,
    /// s3://BUCKET/PREFIX or tape:DEVICE
    #[arg(value_name = "ARCHIVE|PLACE", value_parser = args::location())]
    pub(super) archive: Location,
    /// Of an increment: verify all that it rests on, too
    #[arg(long, conflicts_with = "due")]
    chain: bool,
    /// An archive that it rests on, where it is neither beside it nor known to the catalog; repeatable
    #[arg(long, value_name = "ARCHIVE", value_parser = args::location(), requires = "chain")]
    parent: Vec<Location>,
    #[command(flatten)]
    pub(super) due: due::DueArgs,
    /// Threads that decompress and check [default: one a core]
    #[arg(long, value_name = "N")]
    pub(super) workers: Option<virtfold_config::Workers>,
    #[command(flatten)]
    pub(super) identity: IdentityArgs,
    #[command(flatten)]
    tape: ChangeArgs,
    #[command(flatten)]
    pub(super) state: StateFlag,
    #[command(flatten)]
    pub(super) config: ConfigFlag,
    #[command(flatten)]
    pub(super) json: JsonFlag,
}

/// Runs the verb.
pub(crate) fn run(args: &Args, signals: &Signals) -> Result<ExitStatus> {
    let style = OutputFormat::from_flag(&args.json);
    if args.due.due.is_some() {
        return due::run(args, signals);
    }
    let request = VerifyRequest {
        archive: args.archive.clone(),
        identities: args.identity.load()?,
        trust: trust::policy(&args.config.trust()?)?,
        workers: args::workers(args.workers),
        known: catalog_fill::known(&args.state.path()?, &args.archive),
    };
    confine::to_archive(&args.archive, &[&args.state.path()?])?;
    let progress = Arc::new(Progress::default());
    let ticker = ProgressPrinter::start(style, StdoutUse::Free, &progress)?;
    let control = Control { cancel: Arc::clone(&signals.stop), progress };
    if args.chain {
        let report = chain(args, &request, &control);
        drop(ticker);
        return chain_result(args, style, report?);
    }
    let report = args.read(&request, &control);
    drop(ticker);
    let mut report = report?;
    record(&mut report, &request.known, &args.state)?;
    damage(style, &report.damage)?;
    result(style, StdoutUse::Free, &report, &text(&report))?;
    Ok(outcome(&report))
}

fn chain(args: &Args, request: &VerifyRequest, control: &Control) -> Result<ChainReport> {
    let state = args.state.path()?;
    let known = |archive: &Location| catalog_fill::known(&state, archive);
    let search = ParentSearch { given: args.parent.clone(), state: Some(state.clone()) };
    Ok(verify_chain::run(request, &search, &known, control)?)
}

/// Says what came of a chain, and notes it in the catalog for each archive.
fn chain_result(args: &Args, style: OutputFormat, mut report: ChainReport) -> Result<ExitStatus> {
    let state = args.state.path()?;
    let mut text_of_all = String::new();
    let mut worst = ExitStatus::Done;
    for archive in &mut report.archives {
        let known = archive.archive.parse().map(|place| catalog_fill::known(&state, &place));
        record(archive, &known.unwrap_or_default(), &args.state)?;
        damage(style, &archive.damage)?;
        text_of_all += &format!("{}\n", text(archive));
        if !archive.sound {
            worst = outcome(archive);
        }
    }
    if let Some(gap) = &report.gap {
        text_of_all += &format!("fault: {}\n", printable(gap));
        worst = ExitStatus::Incomplete;
    }
    for archive in &report.dependent {
        text_of_all += &format!("{}: has no more than what changed since\n", printable(archive));
    }
    text_of_all += if report.sound { "the chain is sound" } else { "the chain is not sound" };
    result(style, StdoutUse::Free, &report, &text_of_all)?;
    Ok(worst)
}

impl Args {
    /// Reads all of an archive.
    pub(super) fn read(&self, request: &VerifyRequest, control: &Control) -> Result<VerifyReport, Error> {
        match &request.archive {
            Location::Tape(address) => {
                let drive = self.tape.drive(address, self.state.path()?, &control.cancel);
                let source = tape::options::archive(address).and_then(|which| drive.open(which));
                source.and_then(|source| verify::run_from(request, control, source))
            }
            _ => verify::run(request, control),
        }
    }
}

/// How the verb ends for a report.
pub(super) fn outcome(report: &VerifyReport) -> ExitStatus {
    match (report.sound, report.complete) {
        (true, _) => ExitStatus::Done,
        (false, true) => ExitStatus::Damaged,
        (false, false) => ExitStatus::Incomplete,
    }
}

/// Notes the result in the catalog. That it can't be noted is said, and changes nothing of it.
fn record(report: &mut VerifyReport, known: &KnownCopy, state: &StateFlag) -> Result<()> {
    if known.copy(report.id).is_none() {
        return Ok(());
    }
    let noted = Catalog::open_existing(&state.path()?).and_then(|catalog| match catalog {
        Some(catalog) => report.record(known, &catalog, Timestamp::now()),
        None => Ok(()),
    });
    if let Err(error) = noted {
        say(&format!(
            "virtfold: the result could not be recorded in the catalog: {}",
            printable(&sentence(&error))
        ));
    }
    Ok(())
}

pub(super) fn text(report: &VerifyReport) -> String {
    let mut text = String::new();
    for fault in &report.faults {
        text += &format!("fault: {}\n", printable(fault));
    }
    let verdict = match (report.sound, report.complete) {
        (true, _) => "sound",
        (false, true) if report.replaced.is_some() => "replaced",
        (false, true) => "damaged",
        (false, false) => "incomplete",
    };
    text += &format!(
        "{}: {verdict}, {} read in {:.1} s",
        printable(&report.archive),
        Human(report.bytes),
        report.seconds
    );
    if let Some(authenticity) = &report.authenticity {
        text += &format!("\n{authenticity}");
    }
    if !report.sound && report.salvageable && report.replaced.is_none() {
        text += "\n'virtfold restore --partial' restores what is intact";
    }
    text
}
