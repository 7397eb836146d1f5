//! `virtfold cancel`: takes an entry out of the queue, or ends it.

use anyhow::Result;
use virtfold_service::control::{ControlApi, EntryId, EntryState};

use super::{SocketFlag, changed};
use crate::exit::ExitStatus;
use crate::report::JsonFlag;

/// Remove an entry from the queue, or stop it if it runs
///
/// A running backup stops after its current chunk. The guest's disks are put back on their bases, and no
/// archive is left. Until then 'virtfold queue' shows it as 'ending'.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold queue
  virtfold cancel 17")]
pub(crate) struct Args {
    /// The entry's number, as 'virtfold queue' and 'virtfold status' show it
    #[arg(value_name = "ID")]
    id: EntryId,
    #[command(flatten)]
    socket: SocketFlag,
    #[command(flatten)]
    json: JsonFlag,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<ExitStatus> {
    let client = args.socket.client();
    client.cancel(args.id)?;
    let id = args.id.to_string();
    let text = match client.entry(args.id)?.state {
        EntryState::Ending | EntryState::Running => {
            format!("{id} is stopping; 'virtfold queue' shows it until the guest is back on its disks")
        }
        _ => format!("{id} is cancelled"),
    };
    changed(&args.json, "cancelled", Some(&id), &text)
}
