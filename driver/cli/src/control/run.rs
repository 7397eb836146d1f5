//! `virtfold run`: a job now.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use virtfold_base::error::{Error, ErrorKind};
use virtfold_service::control::{Client, ControlApi, EntryState, EntryStatus};

use super::SocketFlag;
use super::text::{sentence, span, state};
use crate::exit::ExitStatus;
use crate::output::say;
use crate::report::{JsonFlag, OutputFormat, StdoutUse, printable, result};

/// How often the service is asked how far it is.
const EVERY: Duration = Duration::from_secs(1);
/// How long a service that does not answer is waited for: a restart takes less.
const RESTART: Duration = Duration::from_secs(300);

/// Run a job now, for all its domains or for one
///
/// Puts them at the head of the queue, whatever the schedule says, even if the job is paused. The service
/// does the work: ending this command does not end the backups; 'virtfold cancel' does.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold run nightly
  virtfold run nightly web --wait")]
pub(crate) struct Args {
    /// The job
    #[arg(value_name = "JOB")]
    job: String,
    /// The domain, by name or UUID [default: all of the job]
    #[arg(value_name = "DOMAIN")]
    domain: Option<String>,
    /// Wait until all have ended; the exit code is that of the first backup that failed
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    socket: SocketFlag,
    #[command(flatten)]
    json: JsonFlag,
}

/// What was asked for, and with --wait what came of it.
#[derive(Serialize)]
struct Report {
    entries: Vec<EntryStatus>,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<ExitStatus> {
    let (client, style) = (args.socket.client(), OutputFormat::from_flag(&args.json));
    let ids = client.run(&args.job, args.domain.as_deref())?;
    let mut entries = Vec::new();
    for id in &ids {
        entries.push(client.entry(*id)?);
    }
    if args.wait {
        let mut tell = |entry: &EntryStatus| {
            // How each ended is the result, and comes at the end.
            if style == OutputFormat::Text && !entry.state.is_end() {
                say(&line(entry));
            }
        };
        wait(&client, &mut entries, &mut tell)?;
    }
    let report = Report { entries };
    result(style, StdoutUse::Free, &report, &text(&args.job, &report.entries))?;
    Ok(if args.wait { outcome(&report.entries) } else { ExitStatus::Done })
}

/// Waits until all have ended, over restarts of the service, too. `tell` hears of each change.
fn wait(
    client: &Client,
    entries: &mut [EntryStatus],
    tell: &mut impl FnMut(&EntryStatus),
) -> Result<(), Error> {
    entries.iter().for_each(&mut *tell);
    let mut heard = Instant::now();
    while let Some(entry) = entries.iter_mut().find(|entry| !entry.state.is_end()) {
        std::thread::sleep(EVERY);
        match client.entry(entry.id) {
            Ok(now) => {
                heard = Instant::now();
                let changed = (now.state, now.attempts) != (entry.state, entry.attempts);
                *entry = now;
                if changed {
                    tell(entry);
                }
            }
            Err(error) if is_passing(&error) && heard.elapsed() < RESTART => {
                tracing::debug!(%error, "the service does not answer; retrying");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether the service may answer later.
fn is_passing(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Refused | ErrorKind::InUse)
}

/// The first that did not succeed decides.
fn outcome(entries: &[EntryStatus]) -> ExitStatus {
    let failed = entries.iter().find(|entry| entry.state != EntryState::Succeeded);
    let kind = failed.map(|entry| match (&entry.failure, entry.state) {
        // Interrupted is an end by a signal to this process, and this one has had none.
        (Some(failure), EntryState::Failed) if failure.kind != ErrorKind::Interrupted => failure.kind,
        _ => ErrorKind::Refused,
    });
    kind.map_or(ExitStatus::Done, ExitStatus::Failed)
}

fn text(job: &str, entries: &[EntryStatus]) -> String {
    if entries.is_empty() {
        return format!("job '{}' has no domains now", printable(job));
    }
    entries.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn line(entry: &EntryStatus) -> String {
    let of = format!("{} {} {}", entry.id, printable(&entry.job), printable(&entry.domain));
    let took = match (entry.started, entry.ended) {
        (Some(started), Some(ended)) => format!(" in {}", span(ended - started)),
        _ => String::new(),
    };
    let more = match (entry.state, &entry.failure) {
        (EntryState::Succeeded, _) => format!("{took}: {}", printable(&entry.archives.join(", "))),
        (EntryState::Waiting, Some(failure)) => {
            format!(", will be retried; it failed: {}", sentence(failure))
        }
        (EntryState::Failed, Some(failure)) => format!("{took}: {}", sentence(failure)),
        _ => String::new(),
    };
    let hint = entry.failure.as_ref().and_then(|failure| failure.hint.as_ref());
    let hint = hint.filter(|_| entry.state == EntryState::Failed);
    let hint = hint.map_or(String::new(), |hint| format!("\nhint: {}", printable(hint)));
    format!("{of}: {}{more}{hint}", state(entry.state))
}
