//! `virtfold recover`: ends what a backup that was broken off left behind.

use anyhow::Result;
use virtfold_backup::RunMode;
use virtfold_backup::domain::discard_records;
use virtfold_backup::freeze::{
    FreezeContext, FreezeTimings, RecoverReport, RecoverScope, RecoveryStatus, recover,
};
use virtfold_base::error::{Error, ErrorKind};
use virtfold_catalog::{Catalog, Journal, NoCatalog};
use virtfold_hypervisor::host_files::LocalFiles;
use virtfold_hypervisor::{DomainId, Hypervisor};

use super::connection::{ConnectFlag, StateFlag};
use crate::destinations::Terminating;
use crate::exit::ExitStatus;
use crate::report::{JsonFlag, OutputFormat, StdoutUse, printable, result};

/// Put guests back on their disks after an interrupted backup
///
/// Queries QEMU and libvirt, reads the overlays and the journal, then commits each overlay into its disk and
/// removes it. It never removes an overlay that holds data which the disk lacks. If it can't decide, it
/// reports what it found and changes nothing. A backup recovers its own domain first.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold recover --dry-run
  virtfold recover web
  virtfold recover --json")]
pub(crate) struct Args {
    /// The domain, by name or UUID [default: all]
    #[arg(value_name = "DOMAIN")]
    domain: Option<String>,
    /// Print what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    connect: ConnectFlag,
    #[command(flatten)]
    state: StateFlag,
    #[command(flatten)]
    json: JsonFlag,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<ExitStatus> {
    let connection = args.connect.open()?;
    let state = args.state.path_of(args.connect.whose())?;
    let journal: Box<dyn Journal> = match args.dry_run && NoCatalog::is_missing(&state) {
        true => Box::new(NoCatalog),
        false => Box::new(Catalog::open(&state)?),
    };
    let journal = journal.as_ref();
    let host = FreezeContext {
        hypervisor: connection.hypervisor.as_ref(),
        files: &LocalFiles,
        journal,
        guard: &super::watchdog::program(&connection.uri),
        pace: FreezeTimings::default(),
    };
    let which = match &args.domain {
        None => RecoverScope::All,
        Some(domain) => RecoverScope::Domain(find(host.hypervisor, journal, domain)?),
    };
    let mode = if args.dry_run { RunMode::DryRun } else { RunMode::Apply };
    let report = RecoverReport { domains: recover(&host, which, mode)? };
    if mode == RunMode::Apply {
        let terminating = Terminating::default();
        // Nobody goes on with an archive whose guest is home.
        discard_records(&host, &state, &terminating.anywhere(&state))?;
    }
    result(OutputFormat::from_flag(&args.json), StdoutUse::Free, &report, &text(&report))?;
    Ok(outcome(&report))
}

/// A domain that the hypervisor knows, or one that is gone and that the journal knows.
fn find(hypervisor: &dyn Hypervisor, journal: &dyn Journal, domain: &str) -> Result<DomainId, Error> {
    let missing = match hypervisor.lookup(domain) {
        Ok(info) => return Ok(info.id),
        Err(error) if error.kind() == ErrorKind::NotFound => error,
        Err(error) => return Err(error),
    };
    let by_uuid = domain.parse::<DomainId>().ok();
    let jobs = journal.open_sessions(None)?;
    let known = jobs.iter().find(|job| job.name == domain || Some(job.domain) == by_uuid);
    known.map(|job| job.domain).ok_or(missing)
}

/// The worst of them decides.
fn outcome(report: &RecoverReport) -> ExitStatus {
    let has = |verdict| report.domains.iter().any(|domain| domain.verdict == verdict);
    if has(RecoveryStatus::Failed) || has(RecoveryStatus::Undecided) {
        return ExitStatus::Failed(ErrorKind::Io);
    }
    let left = [RecoveryStatus::Busy, RecoveryStatus::OverlayPending, RecoveryStatus::NeedsAttention]
        .into_iter()
        .any(has);
    if left { ExitStatus::Failed(ErrorKind::InUse) } else { ExitStatus::Done }
}

fn text(report: &RecoverReport) -> String {
    if report.domains.is_empty() {
        return "nothing to recover".to_owned();
    }
    let mut lines = Vec::new();
    for domain in &report.domains {
        let verdict = match domain.verdict {
            RecoveryStatus::Recovered => "recovered",
            RecoveryStatus::NeedsAttention => "on its own disks; check what remains",
            RecoveryStatus::OverlayPending => "on its own disks; an overlay can be removed later",
            RecoveryStatus::Busy => "in use by another virtfold process",
            RecoveryStatus::Undecided => "unchanged: an administrator has to decide",
            RecoveryStatus::Failed => "failed",
            RecoveryStatus::Planned => "would be recovered",
        };
        // An overlay that rests on no guest's image is of none.
        let whose = match domain.domain.is_empty() {
            true => "an overlay".to_owned(),
            false => format!("{} ({})", printable(&domain.name), domain.domain),
        };
        lines.push(format!("{whose}: {verdict}"));
        let done = if domain.verdict == RecoveryStatus::Planned { "would" } else { "done" };
        lines.extend(told(done, "", [&domain.found, &domain.done, &domain.remains]));
        for disk in &domain.disks {
            let of = format!("{}: ", printable(&disk.target));
            lines.extend(told(done, &of, [&disk.found, &disk.done, &disk.remains]));
        }
    }
    lines.join("\n")
}

fn told(word: &str, of: &str, [found, done, remains]: [&Vec<String>; 3]) -> Vec<String> {
    let all = [("found", found), (word, done), ("remains", remains)];
    let lines = all.iter().flat_map(|(word, list)| list.iter().map(move |what| (word, what)));
    lines.map(|(word, what)| format!("  {word:<8} {of}{}", printable(what))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtfold_backup::freeze::DiskRecovery;
    use virtfold_backup::freeze::Recovery;

    fn report(verdict: RecoveryStatus, disk: [&[&str]; 3]) -> RecoverReport {
        let [found, done, remains] = disk.map(|list| list.iter().map(|text| (*text).to_owned()).collect());
        let base = "/i/a.qcow2".to_owned();
        let disk = DiskRecovery { target: "vda".to_owned(), base, overlay: None, found, done, remains };
        let recovery = Recovery {
            domain: "u".to_owned(),
            name: "web".to_owned(),
            job: None,
            verdict,
            found: Vec::new(),
            done: Vec::new(),
            remains: Vec::new(),
            disks: vec![disk],
        };
        RecoverReport { domains: vec![recovery] }
    }

    #[test]
    fn what_remains_is_said_and_is_no_success() {
        let done = report(RecoveryStatus::Recovered, [&["it was there"], &["remove it"], &[]]);
        assert_eq!(
            text(&done),
            "web (u): recovered\n  found    vda: it was there\n  done     vda: remove it"
        );
        assert_eq!(outcome(&done), ExitStatus::Done);
        let aside = report(RecoveryStatus::NeedsAttention, [&[], &["put it aside"], &["look at it"]]);
        assert_eq!(
            text(&aside),
            "web (u): on its own disks; check what remains\n  done     vda: put it aside\n  remains  vda: look at it"
        );
        let later = report(RecoveryStatus::OverlayPending, [&[], &[], &["somebody has it open"]]);
        assert_eq!(
            text(&later),
            "web (u): on its own disks; an overlay can be removed later\n  remains  vda: somebody has it open"
        );
        for (verdict, kind) in [
            (RecoveryStatus::NeedsAttention, ErrorKind::InUse),
            (RecoveryStatus::OverlayPending, ErrorKind::InUse),
            (RecoveryStatus::Busy, ErrorKind::InUse),
            (RecoveryStatus::Undecided, ErrorKind::Io),
            (RecoveryStatus::Failed, ErrorKind::Io),
        ] {
            let one = report(verdict, [&[], &[], &["something"]]);
            assert_eq!(outcome(&one), ExitStatus::Failed(kind), "{verdict:?}");
            let json = serde_json::to_value(&one).unwrap();
            assert_eq!(json["domains"][0]["disks"][0]["remains"][0], "something");
            assert_ne!(json["domains"][0]["verdict"], "recovered");
        }
        assert_eq!(outcome(&report(RecoveryStatus::Planned, [&[], &["remove it"], &[]])), ExitStatus::Done);
    }
}
