//! `virtfold audit`: which archives of a place are authentic, and what is missing of their chains.

use std::path::PathBuf;

use anyhow::Result;
use virtfold_archive::sign::AllowedSigners;
use virtfold_backup::audit::{self, AuditReport, AuditedArchive, AuditedSubject, CatalogWord};
use virtfold_backup::trust::{Authenticity, TrustPolicy};
use virtfold_base::error::{Error, ErrorKind, sentence};
use virtfold_catalog::Catalog;
use virtfold_medium::Location;

use super::args;
use super::config::ConfigFlag;
use super::destinations::Terminating;
use super::domain::connection::StateFlag;
use super::encryption::IdentityArgs;
use super::exit::ExitStatus;
use super::output::say;
use super::report::{JsonFlag, OutputFormat, StdoutUse, printable, result};
use super::trust;

/// Tell which archives are authentic, and which are missing
///
/// Reads each archive's end and needs public keys alone. Lists for each guest or image what is signed by a
/// host that is known, what is unsigned or signed with an unknown key, two archives with one number, and
/// those that an authentic one names as the one before it and that are not there. Where this host's catalog
/// knows the place, the newest archive has to be there, too, and what 'prune' removed is not missing. Exit
/// code 3: something is wrong; 11: nothing is, but an encrypted archive could not be opened.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold audit /backup
  virtfold audit /backup --signers ./allowed_signers
  virtfold audit s3://backups/vm --identity backup.key --json")]
pub(crate) struct Args {
    /// A directory or s3://BUCKET/PREFIX
    #[arg(value_name = "PLACE", value_parser = args::location())]
    place: Location,
    /// The public keys that count, as lines of 'virtfold key show' [default: the configuration's]
    #[arg(long, value_name = "FILE")]
    signers: Option<PathBuf>,
    #[command(flatten)]
    identity: IdentityArgs,
    #[command(flatten)]
    state: StateFlag,
    #[command(flatten)]
    config: ConfigFlag,
    #[command(flatten)]
    json: JsonFlag,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<ExitStatus> {
    if let Location::Tape(_) | Location::Pipe = &args.place {
        let what = format!("'{}' can't be audited: signatures stand at the ends of archives", args.place);
        let hint = "'virtfold verify' reads an archive of a tape, and says whose it is";
        return Err(Error::new(ErrorKind::Unsupported, what).with_hint(hint).into());
    }
    args.identity.load()?;
    let policy = policy(args)?;
    let terminating = Terminating::default();
    let destinations = terminating.one(&args.place, &args.identity, Vec::new());
    let listed = destinations.list(&args.place)?;
    let name = destinations.name(&args.place)?;
    let report = audit::audit(&name, &listed, &policy, &word(args, &name));
    result(OutputFormat::from_flag(&args.json), StdoutUse::Free, &report, &text(&report))?;
    Ok(match (report.is_faulty(), report.has_unopened()) {
        (true, _) => ExitStatus::Damaged,
        (false, true) => ExitStatus::Failed(ErrorKind::Locked),
        (false, false) => ExitStatus::Done,
    })
}

fn policy(args: &Args) -> Result<TrustPolicy, Error> {
    let Some(path) = &args.signers else { return trust::policy(&args.config.trust()?) };
    let none = || Error::new(ErrorKind::NotFound, format!("'{}' is not there", path.display()));
    let signers = AllowedSigners::load(path)?.ok_or_else(none)?;
    Ok(TrustPolicy { signers, ..TrustPolicy::default() })
}

/// What the catalog says, where there is one that can be read: an audit is for whoever may read the archives.
fn word(args: &Args, place: &str) -> CatalogWord {
    let read = || -> Result<Option<CatalogWord>, Error> {
        let Some(catalog) = Catalog::open_existing(&args.state.path()?)? else { return Ok(None) };
        let mut last = catalog.chains()?;
        last.retain(|(chain, _)| chain.destination.split('\n').any(|goes_to| goes_to == place));
        Ok(Some(CatalogWord { last, pruned: catalog.pruned_archives(place)? }))
    };
    match read() {
        Ok(word) => word.unwrap_or_default(),
        Err(error) => {
            say(&format!("virtfold: the catalog has no say: {}", printable(&sentence(&error))));
            CatalogWord::default()
        }
    }
}

fn text(report: &AuditReport) -> String {
    if report.subjects.is_empty() && report.unknown.is_empty() {
        return "no archives".to_owned();
    }
    let mut text = String::new();
    report.subjects.iter().for_each(|subject| text += &subject_text(subject));
    if !report.unknown.is_empty() {
        text += "of an unknown subject\n";
        report.unknown.iter().for_each(|found| text += &archive_text(found));
    }
    let authentic = report.subjects.iter().flat_map(|subject| &subject.archives);
    let authentic = authentic.filter(|found| found.is_authentic()).count();
    let verdict = match (report.is_faulty(), report.has_unopened()) {
        (true, _) => "something is wrong",
        (false, true) => "some could not be opened",
        (false, false) => "nothing is wrong",
    };
    text + &format!("{}: {authentic} authentic; {verdict}", printable(&report.place))
}

fn subject_text(subject: &AuditedSubject) -> String {
    let name = subject.name.as_deref().unwrap_or("nothing is there of it");
    let mut text = format!("{} ({})\n", printable(name), printable(&subject.subject));
    subject.archives.iter().for_each(|found| text += &archive_text(found));
    for fault in &subject.faults {
        text += &format!("  fault: {}\n", printable(&fault.message));
    }
    text
}

fn archive_text(found: &AuditedArchive) -> String {
    let said = match &found.authenticity {
        Some(Authenticity::Signed { host, sequence, .. }) => format!("signed by {host}, number {sequence}"),
        Some(other) => other.to_string(),
        None => found.status.to_string(),
    };
    format!("  {said}: {}\n", printable(&found.archive))
}
