//! `virtfold show`: what an archive holds.

use anyhow::Result;
use serde::Serialize;
use virtfold_archive::crypt::Identities;
use virtfold_archive::manifest::{Disk, Manifest};
use virtfold_backup::inspect::{self, ArchiveStatus, ArchiveSummary};
use virtfold_backup::parents::{self, Chain, ParentSearch};
use virtfold_backup::trust::Authenticity;
use virtfold_base::error::ErrorKind;
use virtfold_base::units::Human;
use virtfold_catalog::Catalog;
use virtfold_medium::Location;

use super::Signals;
use super::args;
use super::catalog_fill;
use super::config::ConfigFlag;
use super::confine;
use super::domain::connection::StateFlag;
use super::encryption::IdentityArgs;
use super::exit::ExitStatus;
use super::report::{JsonFlag, OutputFormat, StdoutUse, printable, result};
use super::tape::{self, options::WaitFlag};
use super::trust;

/// Show what an archive holds
///
/// Reads only the archive's tables; `virtfold verify` reads all of it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold show /backup/web-20261122T030000Z-5f1c2d3e.tar.zst
  virtfold show tape:/dev/nst0#5f1c2d3e
  virtfold show --json /backup/web-20261122T030000Z-5f1c2d3e.tar.zst")]
pub(crate) struct Args {
    /// The archive: a file or s3://BUCKET/KEY
    #[arg(value_parser = args::location())]
    archive: Location,
    #[command(flatten)]
    identity: IdentityArgs,
    #[command(flatten)]
    wait: WaitFlag,
    #[command(flatten)]
    state: StateFlag,
    #[command(flatten)]
    config: ConfigFlag,
    #[command(flatten)]
    json: JsonFlag,
}

/// An archive, and what the catalog knows of it beside that.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    glance: &'a ArchiveSummary,
    /// Who made it, of a complete one.
    #[serde(skip_serializing_if = "Option::is_none")]
    authenticity: Option<Authenticity>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
    /// What it rests on, of an increment that can be read at any place.
    #[serde(skip_serializing_if = "Option::is_none")]
    chain: Option<Chain>,
}

/// Runs the verb.
pub(crate) fn run(args: &Args, signals: &Signals) -> Result<ExitStatus> {
    let identities = args.identity.load()?;
    let policy = trust::policy(&args.config.trust()?)?;
    let state = args.state.path()?;
    confine::to_archive(&args.archive, &[&state])?;
    let mut known = catalog_fill::notes(&Catalog::open_existing(&state));
    let mut glance = match &args.archive {
        Location::Tape(address) => {
            let drive = args.wait.drive(address, state.clone(), &signals.stop);
            drive.summary(tape::options::archive(address)?, &identities)?
        }
        location => inspect::glance(location, &identities)?,
    };
    catalog_fill::known(&state, &args.archive).judge(&mut glance);
    let id = glance.head.as_ref().map(|head| head.archive);
    let notes = id.and_then(|id| known.remove(&id)).unwrap_or_default();
    let authenticity = trust::judge(&policy, &glance);
    let mut text = text(&glance);
    authenticity.iter().for_each(|found| text += &format!("signature  {found}\n"));
    notes.iter().for_each(|note| text += &format!("note       {}\n", printable(note)));
    let chain = chain(args, &glance, &identities)?;
    chain.iter().for_each(|chain| text += &chain_text(chain));
    result(
        OutputFormat::from_flag(&args.json),
        StdoutUse::Free,
        &Shown { glance: &glance, authenticity, notes, chain },
        &text,
    )?;
    Ok(outcome(glance.status))
}

/// What an increment rests on; on a tape nobody can look for it.
fn chain(args: &Args, glance: &ArchiveSummary, identities: &Identities) -> Result<Option<Chain>> {
    let head = glance.head.as_ref().filter(|head| head.parent.is_some());
    let Some(head) = head.filter(|_| !matches!(args.archive, Location::Tape(_))) else { return Ok(None) };
    let search = ParentSearch { given: Vec::new(), state: Some(args.state.path()?) };
    Ok(Some(parents::chain(&args.archive, head, identities, &search)?))
}

fn chain_text(chain: &Chain) -> String {
    let mut text = String::new();
    for parent in &chain.parents {
        let (archive, size) = (printable(&parent.archive), Human(parent.bytes));
        text += &format!("rests on   {archive} of {} ({size})\n", local(&parent.created));
    }
    if let Some(gap) = &chain.gap {
        text += &format!("fault      {}\n", printable(gap));
    }
    text
}

/// The exit code that a status asks for.
pub(crate) fn outcome(status: ArchiveStatus) -> ExitStatus {
    match status {
        ArchiveStatus::Complete => ExitStatus::Done,
        ArchiveStatus::Incomplete => ExitStatus::Incomplete,
        ArchiveStatus::Damaged | ArchiveStatus::Replaced => ExitStatus::Damaged,
        ArchiveStatus::Encrypted => ExitStatus::Failed(ErrorKind::Locked),
        ArchiveStatus::Unreadable => ExitStatus::Unsupported,
    }
}

fn text(glance: &ArchiveSummary) -> String {
    let mut text = format!("archive    {}\n", printable(&glance.archive));
    let scope = if glance.status == ArchiveStatus::Complete {
        " (by its tables; 'virtfold verify' checks all)"
    } else {
        ""
    };
    text += &format!("status     {}{scope}\n", glance.status);
    for fault in &glance.faults {
        let label = if glance.status == ArchiveStatus::Encrypted { "note" } else { "fault" };
        text += &format!("{label:<10} {}\n", printable(fault));
    }
    text += &format!("size       {}\n", Human(glance.bytes));
    if glance.encrypted && glance.status != ArchiveStatus::Encrypted {
        text += "encrypted  as an age file\n";
    }
    if let Some(head) = &glance.head {
        text += &described(head);
    }
    if let Some(root) = &glance.root {
        text += &format!("root       {root}\n");
    }
    text
}

fn described(head: &Manifest) -> String {
    let compression = match head.compression.level {
        Some(level) => format!("{} level {level}", head.compression.method),
        None => head.compression.method.clone(),
    };
    let mut text = format!("name       {}\n", head.subject.name().escape_debug());
    text += &format!("id         {}\n", head.archive);
    text += &format!("created    {} on {} by {}\n", local(&head.created), head.host, head.tool);
    text += &format!("compressed {compression}\n");
    if let Some(freeze) = &head.freeze {
        text += &format!("frozen     by {} for {} ms\n", printable(&freeze.method), freeze.pause_ms);
    }
    for disk in &head.disks {
        text += &disk_text(disk);
    }
    text
}

fn disk_text(disk: &Disk) -> String {
    let mut text = format!(
        "disk {}   {} of {} in {} runs, blocks of {}, from {}",
        disk.target,
        Human(disk.dense_length),
        Human(disk.capacity),
        disk.runs,
        Human(disk.block_size),
        disk.source.format.escape_debug(),
    );
    if let Some(options) = &disk.source.qcow2 {
        text += &format!(
            " (compat {}, clusters of {}",
            options.compat.escape_debug(),
            Human(options.cluster_size)
        );
        text += if options.extended_l2 { ", extended L2" } else { "" };
        text += if options.lazy_refcounts { ", lazy refcounts)" } else { ")" };
    }
    for link in &disk.source.backing {
        text += &format!("\n           on {} ({})", link.path.escape_debug(), link.format.escape_debug());
    }
    for warning in &disk.source.warnings {
        text += &format!("\n           warning: {}", warning.escape_debug());
    }
    text.push('\n');
    text
}

/// The time of a backup in this host's local time, with its offset.
pub(crate) fn local(created: &str) -> String {
    let zone = jiff::tz::TimeZone::system();
    let parsed: Result<jiff::Timestamp, _> = created.parse();
    parsed.map_or_else(
        |_| created.escape_debug().to_string(),
        |time| time.to_zoned(zone).strftime("%Y-%m-%d %H:%M:%S %:z").to_string(),
    )
}
