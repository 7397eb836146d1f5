//! A backup of a domain, run and told.

use std::path::Path;

use anyhow::Result;
use virtfold_backup::attachments::LibvirtDirectories;
use virtfold_backup::domain::{DomainReport, DomainRequest};
use virtfold_backup::freeze::{FreezeContext, FreezeTimings};
use virtfold_backup::metrics::{self, BackupMetrics, DomainLabels};
use virtfold_base::error::{Error, ErrorKind};
use virtfold_catalog::Catalog;
use virtfold_hooks::HookOwner;
use virtfold_hypervisor::host_files::LocalFiles;

use super::connection::Connection;
use crate::Signals;
use crate::backup_command::{BackupCommand, copies, text as archive_text, warn};
use crate::catalog_fill::{self, StateDirPolicy};
use crate::exit::ExitStatus;
use crate::output::say;
use crate::report::{OutputFormat, printable, result};

/// Runs it; says also what came of it.
pub(super) fn run(
    domain: &str,
    command: &BackupCommand<'_>,
    connection: &Connection,
    places: &LibvirtDirectories,
    signals: &Signals,
) -> Result<(ExitStatus, DomainReport)> {
    if command.destinations.locations().is_empty() {
        return Err(Error::new(ErrorKind::Usage, "--to says where the archive goes").into());
    }
    let journal = Catalog::open(&command.state.state)?;
    let host = FreezeContext {
        hypervisor: connection.hypervisor.as_ref(),
        files: &LocalFiles,
        journal: &journal,
        guard: &super::watchdog::program(&connection.uri),
        pace: FreezeTimings { pause_budget: command.options.pause_budget, ..FreezeTimings::default() },
    };
    let guards = &virtfold_hooks::start_lock::usual_path(HookOwner::of(&connection.uri));
    let request = DomainRequest { domain, host: &host, places, guards };
    let report = command.run(signals, |session| session.domain(&request))?;
    warn(&report.backup.disks);
    let freeze = report.freeze.iter().flat_map(|freeze| &freeze.warnings);
    freeze.for_each(|warning| say(&format!("virtfold: warning: {}", printable(warning))));
    result(command.style, command.stdout(), &report, &text(&report))?;
    catalog_fill::backup(&report.backup, command, StateDirPolicy::Create);
    let detached = report.freeze.as_ref().map(|freeze| freeze.detached.as_slice());
    catalog_fill::annotate(report.backup.id, detached.unwrap_or_default(), command);
    let copied = copies(command.style, &report.backup);
    let Some(failure) = &report.thaw_failure else { return Ok((copied, report)) };
    if command.style == OutputFormat::Text {
        say(&format!(
            "virtfold: the archive is good, but '{}' needs attention: {}",
            printable(&report.domain),
            printable(&failure.sentence)
        ));
        say(&format!("hint: {}", printable(&failure.hint)));
    }
    Ok((ExitStatus::Failed(failure.kind), report))
}

/// Writes the metrics of a backup. What they can't say must not look as if nothing had happened: it fails
/// then, with what the backup itself says first.
pub(super) fn measure(
    directory: &Path,
    connection: &Connection,
    domain: &str,
    done: Result<(ExitStatus, DomainReport)>,
) -> Result<ExitStatus> {
    match done {
        Ok((outcome, report)) => {
            let labels = DomainLabels { domain: &report.domain, uuid: report.uuid };
            metrics::succeeded(directory, labels, &BackupMetrics::of(&report, metrics::now()))?;
            Ok(outcome)
        }
        Err(error) => {
            let found = connection.hypervisor.lookup(domain);
            let noted = found.and_then(|info| {
                let labels = DomainLabels { domain: &info.name, uuid: info.id.0 };
                metrics::failed(directory, labels, metrics::now())
            });
            if let Err(other) = noted {
                tracing::error!(%other, "the failure could not be written to the metrics");
            }
            Err(error)
        }
    }
}

fn text(report: &DomainReport) -> String {
    let mut lines = Vec::new();
    for recovery in &report.recovered {
        let done = recovery.done.iter().chain(recovery.disks.iter().flat_map(|disk| &disk.done));
        lines.extend(done.map(|done| format!("recovered: {}", printable(done))));
        let remains = recovery.remains.iter().chain(recovery.disks.iter().flat_map(|disk| &disk.remains));
        lines.extend(remains.map(|remains| format!("remains: {}", printable(remains))));
    }
    lines.extend(report.notes.iter().map(|note| format!("note: {}", printable(note))));
    for disk in &report.left_out {
        lines.push(format!("{}: {}", printable(&disk.target), disk.rule));
    }
    if let Some(freeze) = &report.freeze {
        let how = match (freeze.quiesced, freeze.frozen_ms) {
            (true, Some(frozen)) => format!("file systems frozen for {frozen:.0} ms by the agent"),
            (true, None) => "file systems frozen by the agent".to_owned(),
            (false, _) => "crash-consistent".to_owned(),
        };
        let pause = match (freeze.pause_ms, &report.thaw_failure) {
            (_, Some(_)) => "not back on its disks".to_owned(),
            (Some(pause), None) => format!("longest pause {pause:.0} ms"),
            (None, None) => "never paused".to_owned(),
        };
        let snapshot = freeze.snapshot_ms.map_or_else(String::new, |ms| format!("snapshot in {ms:.0} ms, "));
        lines.push(format!("{} ({}): {how}, {snapshot}{pause}", printable(&report.domain), report.way));
    } else {
        lines.push(format!("{} ({})", printable(&report.domain), report.way));
    }
    lines.push(archive_text(&report.backup));
    lines.join("\n")
}
