//! `virtfold queue`: what waits and what runs.

use anyhow::Result;
use serde::Serialize;
use virtfold_service::control::{ControlApi, EntryStatus};

use super::SocketFlag;
use super::text::{columns, notes, state, time_and_span};
use crate::exit::ExitStatus;
use crate::report::{JsonFlag, OutputFormat, StdoutUse, printable, result};

/// List waiting and running backups, in the order of the service
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold queue
  virtfold queue --json")]
pub(crate) struct Args {
    #[command(flatten)]
    socket: SocketFlag,
    #[command(flatten)]
    json: JsonFlag,
}

#[derive(Serialize)]
struct Listing {
    entries: Vec<EntryStatus>,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<ExitStatus> {
    let listing = Listing { entries: args.socket.client().queue()? };
    let now = jiff::Timestamp::now().as_second();
    result(OutputFormat::from_flag(&args.json), StdoutUse::Free, &listing, &text(&listing.entries, now))?;
    Ok(ExitStatus::Done)
}

fn text(entries: &[EntryStatus], now: i64) -> String {
    if entries.is_empty() {
        return "the queue is empty and nothing runs".to_owned();
    }
    let mut rows = vec![["id", "state", "job", "domain", "due", ""].map(str::to_owned).to_vec()];
    rows.extend(entries.iter().map(|entry| {
        vec![
            entry.id.to_string(),
            state(entry.state).to_owned(),
            printable(&entry.job),
            printable(&entry.domain),
            time_and_span(entry.due, now),
            notes(entry, now),
        ]
    }));
    columns("", &rows)
}
