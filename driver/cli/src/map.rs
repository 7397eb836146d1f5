//! `virtfold map`: the allocation table of an image.

use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use virtfold_image::map::{Row, rows};
use virtfold_image::{DiskImage, Format, ImageAccess, OpenOptions};

use super::args;
use super::confine;
use super::exit::ExitStatus;
use super::output;
use super::report::{JsonFlag, OutputFormat};

/// Print the allocation table of a disk image
///
/// The same rows as `qemu-img map --output=json`, read from the tables alone. If the image is in use, the
/// output may be out of date.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold map /srv/vm/web.qcow2 --format qcow2
  virtfold map /srv/vm/web.raw --format raw --json")]
pub(crate) struct Args {
    /// The disk image
    image: PathBuf,
    /// Its format, raw or qcow2; it is never guessed
    #[arg(long, value_name = "FORMAT", value_parser = args::format)]
    format: Format,
    #[command(flatten)]
    json: JsonFlag,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<ExitStatus> {
    confine::to_images()?;
    let options = OpenOptions { usage: ImageAccess::Unlocked, ..OpenOptions::default() };
    let image = DiskImage::open(&args.image, args.format, &options)?;
    let table = image.allocation()?;
    let mut out = BufWriter::new(output::raw());
    match OutputFormat::from_flag(&args.json) {
        OutputFormat::Json => {
            let mut before = "[";
            for row in rows(&image, &table)? {
                let row = serde_json::to_string(&row?).context("cannot write a row as JSON")?;
                writeln!(out, "{before}{row}").context("cannot write the table")?;
                before = ",";
            }
            writeln!(out, "{}", if before == "[" { "[]" } else { "]" }).context("cannot write the table")?;
        }
        OutputFormat::Text => {
            writeln!(out, "{:>16} {:>16} {:>16} {:>5}  kind", "guest", "length", "host", "depth")
                .context("cannot write the table")?;
            for row in rows(&image, &table)? {
                let row = row?;
                let host = row.offset.map_or_else(|| "-".to_owned(), |host| host.to_string());
                let kind = kind(&row);
                writeln!(out, "{:>16} {:>16} {host:>16} {:>5}  {kind}", row.start, row.length, row.depth)
                    .context("cannot write the table")?;
            }
        }
    }
    out.flush().context("cannot write the table")?;
    Ok(ExitStatus::Done)
}

fn kind(row: &Row) -> &'static str {
    match (row.present, row.data, row.zero) {
        (false, _, _) => "unallocated",
        (true, _, true) => "zero",
        (true, true, false) if row.compressed => "compressed",
        (true, true, false) => "data",
        (true, false, false) => "reserved",
    }
}
