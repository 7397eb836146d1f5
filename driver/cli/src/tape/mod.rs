//! `virtfold tape`: what is done with a tape apart from archives.

pub(crate) mod options;
mod text;

use std::sync::Arc;

use anyhow::Result;
use clap::Subcommand;
use serde::Serialize;
use virtfold_backup::Progress;
use virtfold_backup::tape::TapeArchiveRow;
use virtfold_base::error::{Error, ErrorKind};
use virtfold_config::parse_size;
use virtfold_medium::Location;
use virtfold_medium::tape::{NewLabel, Overwrite, TapeBlock, TapeCatalog, VolumeLabel};

use self::options::{WaitFlag, tape};
use super::Signals;
use super::args;
use super::domain::connection::StateFlag;
use super::exit::ExitStatus;
use super::report::{JsonFlag, OutputFormat, ProgressPrinter, StdoutUse, result};

/// Manage tapes: status, label, list, verify, erase
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold tape status tape:/dev/nst0
  virtfold tape label tape:/dev/nst0 VF0001
  virtfold backup web --to tape:/dev/nst0
  virtfold tape list tape:/dev/nst0
  virtfold restore tape:/dev/nst0#latest --output /srv/vm

Name the tape by its drive, always the device that does not rewind. Several drives: /dev/tape/by-id/*-nst.")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Status(StatusArgs),
    Label(LabelArgs),
    List(ListArgs),
    Verify(VerifyArgs),
    Erase(EraseArgs),
}

/// What all of them say.
#[derive(Debug, clap::Args)]
struct CommonArgs {
    /// The drive, for example tape:/dev/nst0
    #[arg(value_name = "TAPE", value_parser = args::location())]
    tape: Location,
    #[command(flatten)]
    wait: WaitFlag,
    #[command(flatten)]
    state: StateFlag,
    #[command(flatten)]
    json: JsonFlag,
}

/// Show whether a tape is in the drive, its label and its position
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold tape status tape:/dev/nst0
  virtfold tape status tape:/dev/nst0 --json --tape-wait 1s")]
struct StatusArgs {
    #[command(flatten)]
    common: CommonArgs,
}

/// Write a label on a tape, so that backups can use it
///
/// All data on the tape are lost. A tape that another program wrote, or with archives before their
/// --retain-until, is refused without --force.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold tape label tape:/dev/nst0 VF0001
  virtfold tape label tape:/dev/nst0 VF0002 --pool offsite --block-size 1MiB
  virtfold tape label tape:/dev/nst0 VF0003 --retain-until 2027-12-31T00:00:00Z")]
struct LabelArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// The label, as on the sticker: 1 to 32 letters, digits, '.', '_' or '-'
    #[arg(value_name = "LABEL")]
    label: String,
    /// The pool: an archive that does not fit on one tape continues on others of its pool
    #[arg(long, value_name = "POOL", default_value = "default")]
    pool: String,
    /// Length of the blocks, 64KiB to 1MiB
    #[arg(long, value_name = "SIZE", default_value = "256KiB", value_parser = parse_size)]
    block_size: u64,
    /// Until when its archives are protected, for example 2027-12-31T00:00:00Z [default: until --force]
    #[arg(long, value_name = "TIME")]
    retain_until: Option<String>,
    /// Overwrite whatever is on the tape
    #[arg(long)]
    force: bool,
}

/// List the archives on a tape, and record them in the catalog
///
/// Reads the records between the archives and skips their data. Listing each tape rebuilds a lost catalog.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold tape list tape:/dev/nst0
  virtfold tape list tape:/dev/nst0 --json")]
struct ListArgs {
    #[command(flatten)]
    common: CommonArgs,
}

/// Read and check every block of a tape
///
/// Exit code 3: damaged; 4: an archive is incomplete.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold tape verify tape:/dev/nst0
  virtfold verify tape:/dev/nst0#5f1c2d3e        one archive, on all its tapes")]
struct VerifyArgs {
    #[command(flatten)]
    common: CommonArgs,
}

/// Erase a tape and its label
///
/// Writes an end-of-data mark at the beginning of the tape. Programs can't read the old data any more; a
/// laboratory might.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold tape erase tape:/dev/nst0
  virtfold tape erase tape:/dev/nst0 --force")]
struct EraseArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Erase it whatever is on it
    #[arg(long)]
    force: bool,
}

/// What is on a volume.
#[derive(Debug, Serialize)]
struct Listing {
    label: VolumeLabel,
    archives: Vec<TapeArchiveRow>,
}

/// Runs the verb.
pub(crate) fn run(args: &Args, signals: &Signals) -> Result<ExitStatus> {
    match &args.verb {
        Verb::Status(args) => status(&args.common, signals),
        Verb::Label(args) => label(args, signals),
        Verb::List(args) => list(&args.common, signals),
        Verb::Verify(args) => verify(&args.common, signals),
        Verb::Erase(args) => erase(args, signals),
    }
}

impl CommonArgs {
    fn drive(&self, signals: &Signals) -> Result<virtfold_backup::tape::TapeOptions, Error> {
        Ok(self.wait.drive(tape(&self.tape)?, self.state.path()?, &signals.stop))
    }

    fn print(&self, value: &impl Serialize, text: &str) -> Result<()> {
        result(OutputFormat::from_flag(&self.json), StdoutUse::Free, value, text)
    }
}

fn status(common: &CommonArgs, signals: &Signals) -> Result<ExitStatus> {
    let drive = common.drive(signals)?;
    let memory = drive.tape_catalog_if_any()?;
    let status = drive.volume_admin(memory.as_ref()).status()?;
    common.print(&status, &text::status(&status))?;
    Ok(ExitStatus::Done)
}

fn overwrite(force: &bool) -> Overwrite {
    if *force { Overwrite::Force } else { Overwrite::Refuse }
}

fn label(args: &LabelArgs, signals: &Signals) -> Result<ExitStatus> {
    let drive = args.common.drive(signals)?;
    if let Some(until) = &args.retain_until
        && until.parse::<jiff::Timestamp>().is_err()
    {
        let error = Error::new(ErrorKind::Usage, format!("invalid time '{}'", until.escape_debug()));
        return Err(error.with_hint("write it as 2027-12-31T00:00:00Z").into());
    }
    let new = NewLabel {
        label: args.label.clone(),
        pool: args.pool.clone(),
        block_size: TapeBlock::new(args.block_size)?,
        retain_until: args.retain_until.clone(),
    };
    let memory = drive.tape_catalog()?;
    let label = drive.volume_admin(memory.as_ref()).label(&new, overwrite(&args.force))?;
    args.common.print(&label, &format!("labelled '{}', pool '{}'", label.label, label.pool))?;
    Ok(ExitStatus::Done)
}

fn list(common: &CommonArgs, signals: &Signals) -> Result<ExitStatus> {
    let drive = common.drive(signals)?;
    list_to(&drive, OutputFormat::from_flag(&common.json))
}

/// Lists a tape; also what `virtfold list` does with one.
pub(crate) fn list_to(drive: &virtfold_backup::tape::TapeOptions, style: OutputFormat) -> Result<ExitStatus> {
    let memory: Arc<dyn TapeCatalog> = drive.tape_catalog()?;
    let contents = drive.volume_admin(memory.as_ref()).list()?;
    let listing = Listing { archives: drive.entries(&contents), label: contents.label };
    result(style, StdoutUse::Free, &listing, &text::listing(&listing))?;
    Ok(ExitStatus::Done)
}

fn verify(common: &CommonArgs, signals: &Signals) -> Result<ExitStatus> {
    let drive = common.drive(signals)?;
    let memory = drive.tape_catalog()?;
    let progress = Arc::new(Progress::default());
    progress.enter("verifying", 0);
    let ticker = ProgressPrinter::start(OutputFormat::from_flag(&common.json), StdoutUse::Free, &progress)?;
    let verdict = drive.volume_admin(memory.as_ref()).verify(&|bytes| progress.add(bytes));
    drop(ticker);
    let verdict = verdict?;
    common.print(&verdict, &text::verdict(&verdict))?;
    Ok(match (verdict.sound, verdict.parts.iter().any(|part| part.fault.is_some())) {
        (true, _) => ExitStatus::Done,
        (false, true) => ExitStatus::Damaged,
        (false, false) => ExitStatus::Incomplete,
    })
}

fn erase(args: &EraseArgs, signals: &Signals) -> Result<ExitStatus> {
    let drive = args.common.drive(signals)?;
    let memory = drive.tape_catalog()?;
    drive.volume_admin(memory.as_ref()).erase(overwrite(&args.force))?;
    args.common.print(&serde_json::json!({ "erased": args.common.tape.to_string() }), "erased")?;
    Ok(ExitStatus::Done)
}
