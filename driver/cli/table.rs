//! `virtfold table`: the tables of a disk in an archive, FIG. 10 to 12 of the method.

use std::io::{BufWriter, Write};

use anyhow::Result;
use serde_json::json;
use virtfold::archive::allocation_csv::AllocationRow;
use virtfold::archive::index::{ArchiveIndex, IndexedDisk};
use virtfold::error::{Error, IoContext};
use virtfold::job::inspect;
use virtfold::medium::Location;

use super::args;
use super::exit::Outcome;
use super::keys::IdentityArgs;
use super::report::{JsonFlag, Style};

/// Print the tables of a disk in an archive
///
/// FIG. 10, the allocation table: what the source had at each guest address A, and where. FIG. 11, the block correspondence
/// table: which guest address A the dense address X holds. FIG. 12, the place of both in the archive: A, X, and
/// the offset in the archive's uncompressed stream. All numbers are bytes.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold table web.tar.zst --disk vda
  virtfold table web.tar.zst --disk vda --csv > vda.csv
  virtfold table web.tar.zst --disk vda --json")]
pub(crate) struct Args {
    /// The archive: a file or s3://BUCKET/KEY
    #[arg(value_parser = args::location())]
    archive: Location,
    /// The disk
    #[arg(long, value_name = "TARGET")]
    disk: String,
    /// Print CSV: table, A, X, length, kind, place
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    #[command(flatten)]
    identity: IdentityArgs,
    #[command(flatten)]
    json: JsonFlag,
}

#[derive(Clone, Copy)]
enum Form {
    Text,
    Csv,
    Json,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let form = match (args.csv, Style::from_flag(&args.json)) {
        (true, _) => Form::Csv,
        (false, Style::Json) => Form::Json,
        (false, Style::Text) => Form::Text,
    };
    let identities = args.identity.load()?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    inspect::with_index(&args.archive, &identities, |index| {
        let disk = index.disk(&args.disk)?;
        Printer { form, out: &mut out }.tables(index, disk)
    })?;
    out.flush().at(writing)?;
    Ok(Outcome::Done)
}

fn writing() -> String {
    "cannot write the table".to_owned()
}

struct Printer<'a, W> {
    form: Form,
    out: &'a mut W,
}

impl<W: Write> Printer<'_, W> {
    fn tables(&mut self, index: &ArchiveIndex<'_>, disk: &IndexedDisk) -> Result<(), Error> {
        if let Form::Csv = self.form {
            self.line("table,guest_offset,dense_offset,length,kind,place")?;
        }
        self.title(
            "FIG. 10: allocation table (A to the source's block)",
            ["A", "length", "kind", "host offset"],
        )?;
        index.allocation(disk, &mut |row| self.allocation(&row))?;
        self.title("FIG. 11: block correspondence table (X to A)", ["X", "A", "length", ""])?;
        for run in disk.table.iter() {
            let run = run?;
            let (a, x, len) = (run.guest, run.dense, run.len);
            self.line(&match self.form {
                Form::Text => format!("{x:>16} {a:>16} {len:>16}"),
                Form::Csv => format!("correspondence,{a},{x},{len},,"),
                Form::Json => {
                    json!({"table": "correspondence", "dense": x.get(), "guest": a.get(), "length": len})
                        .to_string()
                }
            })?;
        }
        self.title("FIG. 12: place in the archive (A, X, stream offset)", ["A", "X", "length", "stream"])?;
        for run in disk.table.iter() {
            let run = run?;
            let (a, x, len) = (run.guest, run.dense, run.len);
            let at = disk.dense_at.saturating_add(x.get());
            self.line(&match self.form {
                Form::Text => format!("{a:>16} {x:>16} {len:>16} {at:>16}"),
                Form::Csv => format!("place,{a},{x},{len},,{at}"),
                Form::Json => {
                    let (a, x, at) = (a.get(), x.get(), at.get());
                    json!({"table": "place", "guest": a, "dense": x, "length": len, "stream": at}).to_string()
                }
            })?;
        }
        Ok(())
    }

    fn allocation(&mut self, row: &AllocationRow) -> Result<(), Error> {
        let (a, len, kind) = (row.guest, row.len, row.kind.name());
        let host = row.host.map(|host| host.get());
        let shown = host.map_or(String::new(), |host| host.to_string());
        self.line(&match self.form {
            Form::Text => format!("{a:>16} {len:>16} {kind:>16} {shown:>16}"),
            Form::Csv => format!("allocation,{a},,{len},{kind},{shown}"),
            Form::Json => {
                json!({"table": "allocation", "guest": a.get(), "length": len, "kind": kind, "host": host})
                    .to_string()
            }
        })
    }

    fn title(&mut self, title: &str, columns: [&str; 4]) -> Result<(), Error> {
        let Form::Text = self.form else { return Ok(()) };
        let [one, two, three, four] = columns;
        self.line(title)?;
        let line = format!("{one:>16} {two:>16} {three:>16} {four:>16}");
        self.line(line.trim_end())
    }

    fn line(&mut self, text: &str) -> Result<(), Error> {
        writeln!(self.out, "{text}").at(writing)
    }
}
