//! `virtfold backup`: images, or the disks of a guest, into an archive.

use std::path::PathBuf;

use anyhow::Result;
use virtfold_backup::options::{BackupKindRule, BackupOptions, ChangeDetection, ResumePolicy};
use virtfold_backup::resume::StateDirectories;
use virtfold_backup::session::{self, ImageSpec, ImagesRequest, RawHeaderCheck};
use virtfold_base::error::{Error, ErrorKind};
use virtfold_catalog::Catalog;
use virtfold_config::{Config, Defaults};
use virtfold_image::{Format, ImageAccess};
use virtfold_medium::Location;

use super::Signals;
use super::args;
use super::backup_command::{BackupCommand, by_configuration, copies, stdout_of, text, warn};
use super::catalog_fill::{self, StateDirPolicy};
use super::config::ConfigFlag;
use super::destinations::Terminating;
use super::domain::GuestArgs;
use super::encryption::EncryptArgs;
use super::exit::ExitStatus;
use super::mount_check::MountArgs;
use super::report::{JsonFlag, OutputFormat, StdoutUse, result};
use super::tape::options::WriteArgs;
use super::trust;

/// Back up a domain, or disk images, into one archive
///
/// Copies the allocated blocks of each disk, in order, with the table that says where each belongs. The
/// archive is a tar (with --compress zstd a .tar.zst): `tar --zstd -xf ARCHIVE` restores it without virtfold.
/// An encrypted one is an age file around that: `age -d -i KEYFILE ARCHIVE | tar --zstd -x`.
///
/// A running DOMAIN keeps running: virtfold takes an external snapshot, copies its disks, commits the
/// overlays, and pauses it for a moment only. A DOMAIN that is shut off is read as it is. What an interrupted
/// backup left behind is recovered first.
#[derive(Debug, clap::Args)]
#[command(override_usage = "virtfold backup [OPTIONS] --to <PLACE> <DOMAIN>\n       \
                      virtfold backup [OPTIONS] --to <PLACE> --image <PATH> --format <FORMAT>")]
#[command(after_help = "\
Examples:
  virtfold backup web --to /backup
  virtfold backup web --to /backup --kind incremental
  virtfold backup web --plan
  virtfold backup web --to /backup --exclude vdb --quiesce yes --min-free 10GiB
  virtfold backup --image /srv/vm/web.qcow2 --format qcow2 --to /backup --compress zstd
  virtfold backup --image a.qcow2 --image b.raw --format qcow2 --format raw --to /backup
  virtfold backup web --to s3://backups/vm --to /backup
  virtfold backup web --to tape:/dev/nst0 --change-command '/usr/local/sbin/next-tape %d %n %w'
  virtfold backup web --to /backup --encrypt-to age1k3q...
  virtfold backup --image a.raw --format raw --to - | ssh host 'cat > a.tar.zst'

The format of a backing file comes from libvirt or the image's header. No format is ever guessed.")]
pub(crate) struct Args {
    /// The domain, by name or UUID
    #[arg(value_name = "DOMAIN", required_unless_present = "image")]
    domain: Option<String>,
    /// A disk image instead of a domain; repeat it for each disk
    #[arg(long, value_name = "PATH", conflicts_with = "domain", requires = "format")]
    image: Vec<PathBuf>,
    /// The image's format, raw or qcow2: once for all images, or once for each
    #[arg(long, value_name = "FORMAT", requires = "image", value_parser = args::format)]
    format: Vec<Format>,
    /// The disk's name in the archive, once for each image [default: vda, vdb, ...]
    #[arg(long, value_name = "TARGET", requires = "image")]
    name: Vec<String>,
    /// Name for the set of disks [default: the first image's file name]
    #[arg(long, value_name = "NAME", requires = "image")]
    label: Option<String>,
    /// Where the archive goes: a directory, s3://BUCKET/PREFIX, tape:DEVICE, or - for standard output; repeat
    /// it for several copies
    #[arg(long, value_name = "PLACE", required_unless_present = "plan", value_parser = args::location())]
    to: Vec<Location>,
    /// full, incremental (what changed since the last backup that all places of --to have) or differential
    /// (since the last full one) [default: full]
    #[arg(long, value_name = "KIND")]
    kind: Option<virtfold_config::BackupKind>,
    /// How an increment finds what changed: auto, or compare, which reads all that is used [default: auto]
    #[arg(long, value_name = "HOW", value_parser = args::changes)]
    changes: Option<ChangeDetection>,
    /// Archives of a chain at most, its full one included; then the backup is full [default: 30]
    #[arg(long, value_name = "N")]
    max_chain: Option<virtfold_config::ChainLength>,
    /// none, zstd or zstd:LEVEL (1 to 19) [default: the configuration's; zstd]
    #[arg(long, value_name = "HOW")]
    compress: Option<virtfold_config::Compression>,
    /// Copy used blocks (compact), or every block as a conventional all-block copy does (full)
    /// [default: the configuration's; compact]
    #[arg(long, value_enum)]
    layout: Option<LayoutArg>,
    /// The granularity of the copy, 4KiB to 2MiB [default: the configuration's; the cluster size of a qcow2,
    /// 64KiB for raw]
    #[arg(long, value_name = "SIZE")]
    block_size: Option<virtfold_config::BlockSize>,
    /// Read each disk once more before the copy and leave out blocks of zeros: on or off
    /// [default: the configuration's; on for block devices and raw files without holes]
    #[arg(long, value_name = "WHEN", value_parser = args::detect_zeroes)]
    detect_zeroes: Option<virtfold_config::DetectZeroes>,
    /// Write no more than this many bytes a second, for example 100MiB [default: the configuration's; no
    /// limit]
    #[arg(long, value_name = "SIZE")]
    limit_rate: Option<virtfold_config::ByteRate>,
    /// The images do not change during the backup: a QEMU that has them open is accepted
    #[arg(long, requires = "image")]
    frozen: bool,
    /// Accept a raw image although it begins like a qcow2, vmdk or other container
    #[arg(long, requires = "image")]
    force: bool,
    /// Threads that read, digest and compress [default: the configuration's; one a core]
    #[arg(long, value_name = "N")]
    workers: Option<virtfold_config::Workers>,
    /// The job of the configuration that this backup belongs to; recorded in the catalog
    #[arg(long, value_name = "JOB")]
    job: Option<String>,
    /// Do not resume a killed backup of the same: discard its partial archive and start over
    #[arg(long)]
    no_resume: bool,
    #[command(flatten)]
    encrypt: EncryptArgs,
    #[command(flatten)]
    mounts: MountArgs,
    #[command(flatten)]
    tape: WriteArgs,
    #[command(flatten)]
    guest: GuestArgs,
    #[command(flatten)]
    config: ConfigFlag,
    #[command(flatten)]
    json: JsonFlag,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum LayoutArg {
    Compact,
    Full,
}

impl Args {
    /// Whether the archive takes standard output.
    pub(crate) fn stdout_use(&self) -> StdoutUse {
        stdout_of(&self.to)
    }
}

/// Runs the verb.
pub(crate) fn run(args: &Args, signals: &Signals) -> Result<ExitStatus> {
    let config = args.config.load()?;
    let options = options(args, &config)?;
    let state = StateDirectories::new(args.guest.state_dir()?);
    let terminating = Terminating::default();
    let mut destinations = terminating.destinations(&args.to, &args.tape, &state.state, &signals.stop)?;
    if !args.guest.is_plan() {
        let catalog = Catalog::open_existing(&state.state)?;
        let mounts = args.mounts.check(&destinations, &config, catalog.as_ref())?;
        destinations.expect_mounts(mounts);
    }
    let command = BackupCommand {
        options: &options,
        destinations: &destinations,
        state: &state,
        job: args.job.as_deref(),
        style: OutputFormat::from_flag(&args.json),
    };
    match &args.domain {
        Some(domain) => args.guest.run(domain, &command, signals),
        None => images(args, &command, signals),
    }
}

fn images(args: &Args, command: &BackupCommand<'_>, signals: &Signals) -> Result<ExitStatus> {
    if args.to.is_empty() {
        let error = Error::new(ErrorKind::Usage, "--plan is for domains; a backup of images needs --to");
        return Err(error.into());
    }
    let request = ImagesRequest {
        images: image_specs(args)?,
        label: args.label.clone(),
        usage: if args.frozen { ImageAccess::Frozen } else { ImageAccess::Locked },
        containers: if args.force { RawHeaderCheck::Ignore } else { RawHeaderCheck::Refuse },
    };
    let report = command.run(signals, |session| session.images(&request))?;
    warn(&report.disks);
    result(command.style, command.stdout(), &report, &text(&report))?;
    let outcome = copies(command.style, &report);
    // The next increment is told by the catalog what to continue.
    let policy = match command.options.kind {
        BackupKindRule::Full => StateDirPolicy::RequireExisting,
        BackupKindRule::Incremental | BackupKindRule::Differential => StateDirPolicy::Create,
    };
    catalog_fill::backup(&report, command, policy);
    Ok(outcome)
}

fn image_specs(args: &Args) -> Result<Vec<ImageSpec>> {
    let count = args.image.len();
    let per_image = |what: &str, given: usize| {
        Error::new(ErrorKind::Usage, format!("{count} images need {count} times {what}, not {given} times"))
    };
    if args.format.len() != 1 && args.format.len() != count {
        return Err(per_image("--format (or one for all)", args.format.len()).into());
    }
    if !args.name.is_empty() && args.name.len() != count {
        return Err(per_image("--name", args.name.len()).into());
    }
    let formats = args.format.iter().copied().cycle();
    let specs = args.image.iter().zip(formats).enumerate().map(|(index, (path, format))| ImageSpec {
        path: path.clone(),
        format,
        target: args.name.get(index).cloned().unwrap_or_else(|| session::default_target(index)),
    });
    Ok(specs.collect())
}

/// How the backup is made, by the command line and the configuration.
fn options(args: &Args, config: &Config) -> Result<BackupOptions> {
    let defaults = &config.defaults;
    let layout = args.layout.map(|layout| match layout {
        LayoutArg::Compact => virtfold_config::Layout::Compact,
        LayoutArg::Full => virtfold_config::Layout::Full,
    });
    // The command line goes before the configuration; both have one grammar.
    let chosen = Defaults {
        compress: args.compress.unwrap_or(defaults.compress),
        layout: layout.unwrap_or(defaults.layout),
        block_size: args.block_size.or(defaults.block_size),
        detect_zeroes: args.detect_zeroes.or(defaults.detect_zeroes),
        limit_rate: args.limit_rate.or(defaults.limit_rate),
        workers: args.workers.or(defaults.workers),
        ..defaults.clone()
    };
    let rules = by_configuration(&chosen)?;
    let mut options = BackupOptions {
        kind: match args.kind.unwrap_or_default() {
            virtfold_config::BackupKind::Full => BackupKindRule::Full,
            virtfold_config::BackupKind::Incremental => BackupKindRule::Incremental,
            virtfold_config::BackupKind::Differential => BackupKindRule::Differential,
        },
        changes: args.changes.unwrap_or_default(),
        max_chain: args
            .max_chain
            .map_or(rules.max_chain, |length| u32::try_from(length.get()).unwrap_or(u32::MAX)),
        encrypt_to: args.encrypt.recipients(&config.defaults)?,
        signing_key: trust::signing_key(&config.trust)?,
        resume: if args.no_resume { ResumePolicy::Never } else { ResumePolicy::IfPossible },
        ..rules
    };
    args.guest.choose(&mut options)?;
    Ok(options)
}
