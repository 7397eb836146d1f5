//! `virtfold backup`: images into an archive.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use virtfold::archive::stream::Compression;
use virtfold::error::{Error, ErrorKind};
use virtfold::image::{Format, Use};
use virtfold::job::backup::{self, BackupReport, BackupRequest, Destination, ImageSpec};
use virtfold::job::{Control, Progress};
use virtfold::medium::RateLimit;
use virtfold::table::Layout;
use virtfold::units::{BlockSize, Human};

use super::Signals;
use super::args;
use super::exit::Outcome;
use super::report::{JsonFlag, Stdout, Style, Ticker, result};

/// Back up disk images into one archive
///
/// Copies the allocated blocks of each image, in order, with the table that says where each belongs. The archive
/// is a tar (with --compress zstd a .tar.zst): `tar --zstd -xf ARCHIVE` restores it with no virtfold at hand.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold backup --image /srv/vm/web.qcow2 --format qcow2 --to /backup --compress zstd
  virtfold backup --image a.qcow2 --image b.raw --format qcow2 --format raw --to /backup
  virtfold backup --image a.raw --format raw --to - | ssh host 'cat > a.tar'

A backing file's format comes from the image's header; no format is ever guessed.")]
pub(crate) struct Args {
    /// A disk image; give it once for each disk
    #[arg(long, value_name = "PATH", required = true)]
    image: Vec<PathBuf>,
    /// The image's format, raw or qcow2: once for all images, or once for each
    #[arg(long, value_name = "FORMAT", required = true, value_parser = args::format)]
    format: Vec<Format>,
    /// The disk's name in the archive, once for each image [default: vda, vdb, ...]
    #[arg(long, value_name = "TARGET")]
    name: Vec<String>,
    /// What the set of disks is called [default: the first image's file name]
    #[arg(long, value_name = "NAME")]
    label: Option<String>,
    /// The directory for the archive, or - for standard output
    #[arg(long, value_name = "DIR|-")]
    to: PathBuf,
    /// none, zstd or zstd:LEVEL (1 to 19)
    #[arg(long, value_name = "HOW", default_value = "none", value_parser = args::compression)]
    compress: Compression,
    /// Copy used blocks (compact), or every block as a conventional all-block copy does (full)
    #[arg(long, value_enum, default_value = "compact")]
    layout: LayoutArg,
    /// The granularity of the copy, 4KiB to 2MiB [default: a qcow2's cluster size, 64KiB for raw]
    #[arg(long, value_name = "SIZE", value_parser = args::block_size)]
    block_size: Option<BlockSize>,
    /// Write no more than this many bytes a second, for example 100MiB
    #[arg(long, value_name = "SIZE", value_parser = args::rate)]
    limit_rate: Option<RateLimit>,
    /// The images do not change during the backup: a QEMU that has them open is accepted
    #[arg(long)]
    frozen: bool,
    /// Threads that read, digest and compress [default: one a core]
    #[arg(long, value_name = "N", value_parser = args::workers)]
    workers: Option<usize>,
    #[command(flatten)]
    json: JsonFlag,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum LayoutArg {
    Compact,
    Full,
}

/// Runs the verb.
pub(crate) fn run(args: Args, signals: &Signals) -> Result<Outcome> {
    let style = Style::from_flag(&args.json);
    let request = request(args)?;
    let out = match request.destination {
        Destination::Stdout => Stdout::Archive,
        Destination::Directory(_) => Stdout::Free,
    };
    let progress = Arc::new(Progress::default());
    let ticker = Ticker::start(style, out, &progress)?;
    let report = backup::run(&request, &Control { cancel: Arc::clone(&signals.stop), progress });
    drop(ticker);
    let report = report?;
    for warning in report.disks.iter().flat_map(|disk| &disk.warnings) {
        eprintln!("virtfold: warning: {warning}");
    }
    result(style, out, &report, &text(&report))?;
    Ok(Outcome::Done)
}

fn request(args: Args) -> Result<BackupRequest> {
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
    let names = args.name.into_iter().map(Some).chain(std::iter::repeat(None));
    let images = args.image.into_iter().zip(formats).zip(names).enumerate();
    let images = images
        .map(|(index, ((path, format), name))| ImageSpec {
            path,
            format,
            target: name.unwrap_or_else(|| backup::default_target(index)),
        })
        .collect();
    let destination =
        if args.to.as_os_str() == "-" { Destination::Stdout } else { Destination::Directory(args.to) };
    Ok(BackupRequest {
        images,
        label: args.label,
        destination,
        compression: args.compress,
        layout: match args.layout {
            LayoutArg::Compact => Layout::Compact,
            LayoutArg::Full => Layout::Full,
        },
        block_size: args.block_size,
        limit_rate: args.limit_rate,
        usage: if args.frozen { Use::Frozen } else { Use::Checked },
        workers: args.workers.unwrap_or_else(args::default_workers),
    })
}

fn text(report: &BackupReport) -> String {
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
    text += &format!("archive {} written in {:.1} s\n", Human(report.archive_bytes), report.seconds);
    text + &report.archive
}
