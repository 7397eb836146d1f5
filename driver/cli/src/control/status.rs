//! `virtfold status`: how the service stands.

use anyhow::Result;
use virtfold_base::units::Human;
use virtfold_service::control::{ControlApi, DomainStatus, JobStatus, RunningEntry, ServiceState, Status};

use super::SocketFlag;
use super::text::{columns, sentence, span, time, time_and_span};
use crate::exit::ExitStatus;
use crate::report::{JsonFlag, OutputFormat, StdoutUse, printable, result};

/// Show the state of the service: warnings, what runs, what is due, last results
///
/// What needs attention comes first. The exit code is 0 whenever the service answers. Programs read --json,
/// where times are seconds since 1970.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold status
  virtfold status --json | jq '.domains[] | select(.last_success == null) | .domain'")]
pub(crate) struct Args {
    #[command(flatten)]
    socket: SocketFlag,
    #[command(flatten)]
    json: JsonFlag,
}

/// How long entries may wait while nothing runs, seconds.
const STUCK: i64 = 900;

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<ExitStatus> {
    let status = args.socket.client().status()?;
    result(OutputFormat::from_flag(&args.json), StdoutUse::Free, &status, &text(&status))?;
    Ok(ExitStatus::Done)
}

fn text(status: &Status) -> String {
    let now = status.service.now;
    let wrong = wrong(status);
    let mut text = match wrong.len() {
        0 => "everything is fine\n".to_owned(),
        1 => "1 warning:\n".to_owned(),
        count => format!("{count} warnings:\n"),
    };
    for line in wrong {
        text += &format!("  {line}\n");
    }
    text.push('\n');
    text += &columns("", &head(status));
    if !status.running.is_empty() {
        let rows: Vec<_> = status.running.iter().map(|running| run_row(running, now)).collect();
        text += &format!("\nrunning\n{}", columns("  ", &rows));
    }
    if !status.jobs.is_empty() {
        let rows: Vec<_> = status.jobs.iter().map(|job| job_row(job, status)).collect();
        text += &format!("\njobs\n{}", columns("  ", &rows));
    }
    if !status.domains.is_empty() {
        let rows: Vec<_> = status.domains.iter().map(|domain| domain_row(domain, status)).collect();
        text += &format!("\ndomains\n{}", columns("  ", &rows));
    }
    text
}

/// What a person should look at, the worst first.
fn wrong(status: &Status) -> Vec<String> {
    let now = status.service.now;
    let mut lines = Vec::new();
    if let Some(error) = &status.libvirt.error {
        let since = span(now - status.libvirt.since);
        lines.push(format!("libvirt can't be reached for {since}: {}", printable(error)));
    }
    // Nobody is to be troubled by a guest that is backed up no more.
    let counts = |domain: &&DomainStatus| status.guests.is_none() || !domain.jobs.is_empty();
    for domain in status.domains.iter().filter(|domain| domain.is_failing()).filter(counts) {
        let Some(failure) = &domain.last_failure else { continue };
        let ago = span(now - failure.at);
        let hint =
            failure.hint.as_ref().map_or(String::new(), |hint| format!("\n    hint: {}", printable(hint)));
        lines.push(format!("{}: failed {ago} ago: {}{hint}", printable(&domain.domain), sentence(failure)));
    }
    if let Some(since) = status.queued_since.filter(|since| now - since > STUCK && status.running.is_empty())
    {
        lines.push(format!(
            "the queue waits for {}, and nothing runs: 'virtfold queue' shows why",
            span(now - since)
        ));
    }
    lines.extend(status.warnings.iter().map(|warning| printable(&warning.sentence)));
    if status.paused {
        lines.push("all jobs are paused: 'virtfold resume' resumes them".to_owned());
    }
    let paused = status.jobs.iter().filter(|job| job.paused && job.enabled).map(|job| printable(&job.job));
    lines.extend(paused.map(|job| format!("job '{job}' is paused: 'virtfold resume {job}' resumes it")));
    lines
}

fn head(status: &Status) -> Vec<Vec<String>> {
    let (service, now) = (&status.service, status.service.now);
    let state = match service.state {
        ServiceState::Starting => "starting",
        ServiceState::Running => "running",
        ServiceState::Stopping => "stopping",
    };
    let version = printable(&service.version);
    let mut rows = vec![
        vec![
            "service".to_owned(),
            format!("virtfold {version}, process {}, {state}", service.pid),
            format!("since {}", time_and_span(service.since, now)),
        ],
        vec![
            "libvirt".to_owned(),
            printable(&status.libvirt.uri),
            match status.libvirt.error {
                None => format!("since {}", time_and_span(status.libvirt.since, now)),
                Some(_) => format!("gone since {}", time_and_span(status.libvirt.since, now)),
            },
        ],
    ];
    if let Some(guests) = &status.guests {
        let names = || guests.left_out.iter().map(|name| printable(name)).collect::<Vec<_>>().join(", ");
        let left_out = match guests.left_out.len() {
            0 => String::new(),
            count => format!("{count} excluded on purpose: {}", names()),
        };
        rows.push(vec!["guests".to_owned(), guests.all.to_string(), left_out]);
    }
    let oldest = status.queued_since.map_or(String::new(), |since| {
        let due = if since > now { "the first due" } else { "the oldest due" };
        format!("{due} {}", time_and_span(since, now))
    });
    rows.push(vec!["queue".to_owned(), format!("{} waiting", status.queued), oldest]);
    rows
}

fn run_row(running: &RunningEntry, now: i64) -> Vec<String> {
    let (entry, progress) = (&running.entry, &running.progress);
    let percent = (u128::from(progress.done) * 100).checked_div(u128::from(progress.total));
    let far = percent.map_or(String::new(), |percent| {
        format!(", {} of {} ({percent} %)", Human(progress.done), Human(progress.total))
    });
    let since = entry.started.map_or(String::new(), |at| format!("since {} ({})", time(at), span(now - at)));
    vec![
        entry.id.to_string(),
        printable(&entry.job),
        printable(&entry.domain),
        format!("{}{far}", printable(&progress.phase)),
        since,
    ]
}

fn job_row(job: &JobStatus, status: &Status) -> Vec<String> {
    let next = match job.next_due {
        _ if !job.enabled => "switched off".to_owned(),
        _ if job.paused || status.paused => "paused".to_owned(),
        None => "no schedule".to_owned(),
        Some(at) => format!("next {}", time_and_span(at, status.service.now)),
    };
    let count = match job.domains.len() {
        1 => "1 domain".to_owned(),
        count => format!("{count} domains"),
    };
    vec![printable(&job.job), count, next]
}

fn domain_row(domain: &DomainStatus, status: &Status) -> Vec<String> {
    let now = status.service.now;
    let is_left_out = status.guests.as_ref().is_some_and(|guests| guests.left_out.contains(&domain.domain));
    let state = match (domain.is_failing(), &domain.last_success) {
        _ if domain.jobs.is_empty() && status.guests.is_some() => "-",
        (true, _) => "FAILING",
        (false, Some(_)) => "ok",
        (false, None) => "new",
    };
    let last = domain.last_success.as_ref().map_or_else(
        || "no good backup yet".to_owned(),
        |success| format!("last good backup {}", time_and_span(success.measure.at, now)),
    );
    let size = domain.last_success.as_ref().map_or(String::new(), |success| {
        let (bytes, took) = (Human(success.measure.archive_bytes), success.measure.seconds);
        format!("{bytes} in {took:.0} s")
    });
    let jobs = match domain.jobs.is_empty() {
        true if is_left_out => "excluded on purpose".to_owned(),
        true => "in no job any more".to_owned(),
        false => printable(&domain.jobs.join(", ")),
    };
    vec![printable(&domain.domain), state.to_owned(), last, size, jobs]
}
