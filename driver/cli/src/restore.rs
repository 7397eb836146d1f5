//! `virtfold restore`: disks out of an archive, or a guest (`restore_domain`).

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use virtfold_backup::known_copy::KnownCopy;
use virtfold_backup::parents::ParentSearch;
use virtfold_backup::restore::{self, RestorePlan, RestoreReport, RestoreRequest, Selection, VerifyMode};
use virtfold_backup::restore_domain::WriteOptions;
use virtfold_backup::tape::TapeOptions;
use virtfold_backup::target::Method;
use virtfold_backup::{Control, Progress};
use virtfold_base::error::{Error, ErrorKind};
use virtfold_base::partial_file::Overwrite;
use virtfold_base::units::Human;
use virtfold_config::parse_size;
use virtfold_hypervisor::host_files::LocalFiles;
use virtfold_image::Format;
use virtfold_medium::{Location, LostRanges, TapeArchive};

use super::Signals;
use super::args;
use super::catalog_fill;
use super::config::ConfigFlag;
use super::encryption::IdentityArgs;
use super::exit::ExitStatus;
use super::free_space;
use super::report::{JsonFlag, OutputFormat, ProgressPrinter, StdoutUse, damage, printable, result};
use super::restore_domain::{CommonArgs, DefineArgs};
use super::tape::{self, options::ChangeArgs};
use super::trust;

/// Restore disks, or a whole guest, from an archive
///
/// A disk appears under its name only when all of it is written, checked and durable.
///
/// --define restores the whole guest: disks, NVRAM, TPM state, and last its definition. It keeps its UUID and
/// MAC addresses; an existing domain is replaced only with --force, and only if it is shut off. --name makes
/// a copy that can run beside it. Disks go to --disk, to --output or --pool, or to their original paths. A
/// definition that reaches into the host (a script, a device, a directory) needs --allow.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold restore web.tar.zst --disk vda=/srv/vm/web.qcow2
  virtfold restore web.tar.zst --output /srv/vm --format raw
  virtfold restore web.tar.zst --output /srv/vm --plan
  virtfold restore web.tar --disk vda=/srv/vm/web.qcow2 --format qcow2 --method remap
  virtfold restore web.tar.zst --disk vda=/dev/vg0/web --format raw --force
  ssh host 'cat web.tar.zst' | virtfold restore - --output /srv/vm
  virtfold restore web.tar.zst.age --identity backup.key --output /srv/vm
  virtfold restore tape:/dev/nst0#latest --output /srv/vm
  virtfold restore s3://backups/vm/host1/web/web-....tar.zst --disk vda=/srv/vm/web.qcow2
  virtfold restore broken.tar.zst --output /rescue --partial
  virtfold restore web.tar.zst --define --plan
  virtfold restore web.tar.zst --define --force --start
  virtfold restore web.tar.zst --define --name web-test --output /srv/vm --start
  virtfold restore web.tar.zst --define --output /srv/vm --allow host-device,filesystem
  virtfold restore tape:/dev/nst0#latest --define --force")]
pub(crate) struct Args {
    /// The archive: a file, s3://BUCKET/KEY, tape:DEVICE#ID, or - for standard input
    #[arg(value_name = "ARCHIVE|-", value_parser = args::location())]
    archive: Location,
    /// An archive that this one, an increment, rests on, where it is neither beside it nor known to the
    /// catalog; repeatable
    #[arg(long, value_name = "ARCHIVE", value_parser = args::location())]
    parent: Vec<Location>,
    /// Restore this disk to this file or block device; repeat it for each disk
    #[arg(long, value_name = "TARGET=PATH", value_parser = args::disk, required_unless_present_any = ["output", "define"])]
    disk: Vec<(String, PathBuf)>,
    /// Restore all disks into this directory, as TARGET.raw or TARGET.qcow2; with --define, those that --disk
    /// does not name
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// The format of the restored disks, raw or qcow2 [default: the source's]
    #[arg(long, value_name = "FORMAT", value_parser = args::format)]
    format: Option<Format>,
    /// Write each block to its original address (rewrite), or keep the dense order and add new tables (remap,
    /// qcow2 only)
    #[arg(long, value_enum, default_value = "rewrite")]
    method: MethodArg,
    /// The cluster size of a new qcow2 [default: the source's, or 64KiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    cluster_size: Option<u64>,
    /// Replace existing files, write to block devices; with --define, replace the existing domain
    #[arg(long)]
    force: bool,
    /// Restore what is intact of a damaged or truncated archive, and list what is lost (exit code 3 or 4)
    #[arg(long)]
    partial: bool,
    /// Do not read and check data that a remap shares with the archive (XFS, Btrfs); `virtfold verify` checks
    /// it
    #[arg(long, conflicts_with = "partial")]
    unverified: bool,
    /// Threads that read, decompress and check [default: one a core]
    #[arg(long, value_name = "N")]
    workers: Option<virtfold_config::Workers>,
    #[command(flatten)]
    identity: IdentityArgs,
    #[command(flatten)]
    tape: ChangeArgs,
    #[command(flatten)]
    define: DefineArgs,
    #[command(flatten)]
    config: ConfigFlag,
    #[command(flatten)]
    json: JsonFlag,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum MethodArg {
    Rewrite,
    Remap,
}

/// Runs the verb.
pub(crate) fn run(args: Args, signals: &Signals) -> Result<ExitStatus> {
    let style = OutputFormat::from_flag(&args.json);
    let tape = match &args.archive {
        Location::Tape(address) => {
            let drive = args.tape.drive(address, args.define.state_dir()?, &signals.stop);
            Some((drive, tape::options::archive(address)?.clone()))
        }
        _ => None,
    };
    let state = args.define.state_dir()?;
    let known = catalog_fill::known(&state, &args.archive);
    let parents = ParentSearch { given: args.parent.clone(), state: Some(state) };
    if args.define.define {
        let common = CommonArgs {
            writing: writing(&args),
            existing: existing(&args),
            identities: args.identity.load()?,
            trust: trust::policy(&args.config.trust()?)?,
            archive: args.archive,
            tape,
            disks: args.disk,
            output: args.output,
            known,
            parents,
        };
        return args.define.run(common, style, signals);
    }
    let is_plan = args.define.plan;
    let request = RestoreRequest { parents, ..request(args, known)? };
    if is_plan {
        return plan(&request, tape.as_ref(), style, signals);
    }
    let progress = Arc::new(Progress::default());
    let ticker = ProgressPrinter::start(style, StdoutUse::Free, &progress)?;
    let control = Control { cancel: Arc::clone(&signals.stop), progress };
    let report = match &tape {
        Some((drive, which)) => drive.open(which).and_then(|mut source| {
            let gaps = if request.checking == VerifyMode::Partial {
                source.salvage()
            } else {
                LostRanges::default()
            };
            restore::run_over(&request, &control, source, &gaps)
        }),
        None => restore::run(&request, &control),
    };
    drop(ticker);
    let report = report?;
    damage(style, &report.damage)?;
    result(style, StdoutUse::Free, &report, &text(&report))?;
    Ok(match (report.complete, report.damage.is_empty() && report.notes.is_empty()) {
        (false, _) => ExitStatus::Incomplete,
        (true, false) => ExitStatus::Damaged,
        (true, true) => ExitStatus::Done,
    })
}

/// Says what would be done.
fn plan(
    request: &RestoreRequest,
    tape: Option<&(TapeOptions, TapeArchive)>,
    style: OutputFormat,
    signals: &Signals,
) -> Result<ExitStatus> {
    let control = Control { cancel: Arc::clone(&signals.stop), progress: Arc::new(Progress::default()) };
    let plan = match tape {
        Some((drive, which)) => restore::plan_from(request, &LocalFiles, drive.open(which)?)?,
        None => restore::plan(request, &control, &LocalFiles)?,
    };
    result(style, StdoutUse::Free, &plan, &plan_text(&plan))?;
    free_space::check(&plan.room)?;
    Ok(ExitStatus::Done)
}

fn plan_text(plan: &RestorePlan) -> String {
    let mut text = String::new();
    for disk in &plan.disks {
        let (data, capacity, path) = (Human(disk.data), Human(disk.capacity), printable(&disk.path));
        let verb = if disk.replaces { "would replace" } else { "would be written to" };
        text +=
            &format!("{}: {data} of {capacity} {verb} {path} ({})\n", printable(&disk.target), disk.format);
    }
    text + &free_space::text(&plan.room) + "nothing was changed"
}

fn writing(args: &Args) -> WriteOptions {
    WriteOptions {
        format: args.format,
        method: match args.method {
            MethodArg::Rewrite => Method::Rewrite,
            MethodArg::Remap => Method::Remap,
        },
        cluster_size: args.cluster_size,
        checking: match (args.partial, args.unverified) {
            (true, _) => VerifyMode::Partial,
            (false, true) => VerifyMode::Unverified,
            (false, false) => VerifyMode::All,
        },
        workers: args::workers(args.workers),
    }
}

fn existing(args: &Args) -> Overwrite {
    if args.force { Overwrite::Replace } else { Overwrite::Refuse }
}

fn request(args: Args, known: KnownCopy) -> Result<RestoreRequest> {
    let (writing, existing) = (writing(&args), existing(&args));
    let selection = match args.output {
        Some(_) if !args.disk.is_empty() => {
            let what = "--output and --disk can't be combined";
            return Err(Error::new(ErrorKind::Usage, what).with_hint("use one of the two").into());
        }
        Some(directory) => Selection::All(directory),
        None => Selection::Disks(args.disk),
    };
    Ok(RestoreRequest {
        identities: args.identity.load()?,
        trust: trust::policy(&args.config.trust()?)?,
        archive: args.archive,
        selection,
        format: writing.format,
        method: writing.method,
        cluster_size: writing.cluster_size,
        existing,
        checking: writing.checking,
        workers: writing.workers,
        known,
        parents: ParentSearch::default(),
    })
}

fn text(report: &RestoreReport) -> String {
    let mut text = String::new();
    for disk in &report.disks {
        let how = if disk.shared { "shared with the archive in" } else { "written to" };
        text += &format!(
            "{}: {} of {} {how} {} ({}, {})\n",
            disk.target,
            Human(disk.data),
            Human(disk.capacity),
            disk.path,
            disk.format,
            disk.method,
        );
    }
    if report.unread {
        text += "the data were not checked: run 'virtfold verify' on the archive\n";
    } else if !report.verified {
        text += "the archive's digests are lost: the restored data could not be checked\n";
    }
    for parent in &report.parents {
        text += &format!("with {} of {}\n", printable(&parent.archive), printable(&parent.created));
    }
    for disk in &report.removed {
        text += &format!("disk {} is in an older archive only and was not restored\n", printable(disk));
    }
    for note in &report.notes {
        text += &format!("fault: {}\n", printable(note));
    }
    if !report.complete {
        text += "the archive is incomplete: what is listed as lost is missing in the disks\n";
    }
    text += &format!("{}\n", report.authenticity);
    text + &format!("restored in {:.1} s", report.seconds)
}
