//! `virtfold table`: the tables of a disk in an archive, FIG. 10 to 12 of the method.

use std::io::{BufWriter, Write};
use std::sync::Arc;

use anyhow::Result;
use serde_json::json;
use virtfold_archive::allocation_csv::AllocationRow;
use virtfold_archive::table::CorrespondenceTable;
use virtfold_backup::inspect::{self, TableVisitor};
use virtfold_base::error::{Error, IoContext};
use virtfold_base::units::StreamOffset;
use virtfold_medium::{Location, PipeSource};

use super::Signals;
use super::args;
use super::confine;
use super::domain::connection::StateFlag;
use super::encryption::IdentityArgs;
use super::exit::ExitStatus;
use super::output;
use super::report::{JsonFlag, OutputFormat};
use super::tape::{self, options::ChangeArgs};

/// Print the tables of a disk in an archive
///
/// FIG. 10, the allocation table: what the source had at each guest address A, and where. FIG. 11, the block
/// correspondence table: which guest address A the dense address X holds. FIG. 12, the place of both in the
/// archive: A, X, and the offset in the archive's uncompressed stream. All numbers are bytes.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold table web.tar.zst --disk vda
  virtfold table web.tar.zst --disk vda --csv > vda.csv
  virtfold table web.tar.zst --disk vda --json
  virtfold table tape:/dev/nst0#5f1c2d3e --disk vda")]
pub(crate) struct Args {
    /// The archive: a file, s3://BUCKET/KEY, tape:DEVICE#ID, or - for standard input
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
    tape: ChangeArgs,
    #[command(flatten)]
    state: StateFlag,
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
pub(crate) fn run(args: &Args, signals: &Signals) -> Result<ExitStatus> {
    let form = match (args.csv, OutputFormat::from_flag(&args.json)) {
        (true, _) => Form::Csv,
        (false, OutputFormat::Json) => Form::Json,
        (false, OutputFormat::Text) => Form::Text,
    };
    let identities = args.identity.load()?;
    confine::to_archive(&args.archive, &[])?;
    let mut out = BufWriter::new(output::raw());
    let mut printer = Printer { form, out: &mut out };
    printer.begin()?;
    match &args.archive {
        Location::Tape(address) => {
            let drive = args.tape.drive(address, args.state.path()?, &signals.stop);
            let source = drive.open(tape::options::archive(address)?)?;
            let name = source.archive().to_owned();
            inspect::tables_from(source, &name, &identities, &args.disk, &mut printer)?;
        }
        Location::Pipe => {
            let input = PipeSource::stdin(Arc::clone(&signals.stop))?;
            inspect::tables_from(input, "standard input", &identities, &args.disk, &mut printer)?;
        }
        location => inspect::with_index(location, &identities, |index| {
            let disk = index.disk(&args.disk)?;
            index.allocation(disk, &mut |row| printer.allocation(&row))?;
            printer.correspondence(&disk.table, disk.dense_at)
        })?,
    }
    out.flush().at(writing)?;
    Ok(ExitStatus::Done)
}

fn writing() -> String {
    "cannot write the table".to_owned()
}

struct Printer<'a, W> {
    form: Form,
    out: &'a mut W,
}

impl<W: Write> Printer<'_, W> {
    fn begin(&mut self) -> Result<(), Error> {
        if let Form::Csv = self.form {
            self.line("table,guest_offset,dense_offset,length,kind,place")?;
        }
        self.title(
            "FIG. 10: allocation table (A to the source's block)",
            ["A", "length", "kind", "host offset"],
        )
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

impl<W: Write> TableVisitor for Printer<'_, W> {
    fn correspondence(&mut self, table: &CorrespondenceTable, dense_at: StreamOffset) -> Result<(), Error> {
        self.title("FIG. 11: block correspondence table (X to A)", ["X", "A", "length", ""])?;
        for run in table.iter() {
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
        for run in table.iter() {
            let run = run?;
            let (a, x, len) = (run.guest, run.dense, run.len);
            let at = dense_at.saturating_add(x.get());
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
}
