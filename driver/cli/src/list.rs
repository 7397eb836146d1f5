//! `virtfold list`: the archives in a place.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;
use virtfold_backup::destinations::Destinations;
use virtfold_backup::inspect::{ArchiveStatus, ArchiveSummary, ListedArchive};
use virtfold_backup::known_copy::judge_all;
use virtfold_backup::retention::{self, CatalogFillReport};
use virtfold_backup::trust::{Authenticity, TrustPolicy};
use virtfold_base::error::{Error, sentence};
use virtfold_base::units::Human;
use virtfold_catalog::Catalog;
use virtfold_medium::Location;

use super::Signals;
use super::args;
use super::catalog_fill;
use super::config::ConfigFlag;
use super::destinations::Terminating;
use super::domain::connection::StateFlag;
use super::encryption::IdentityArgs;
use super::exit::ExitStatus;
use super::mount_check::{Mounted, expected};
use super::output::say;
use super::report::{JsonFlag, OutputFormat, StdoutUse, printable, result};
use super::show;
use super::tape::{self, options::WaitFlag};
use super::trust;

/// List the archives in a directory, an object store or on a tape
///
/// Lists incomplete and damaged archives as such, as encrypted what no --identity opens, and as replaced
/// what is not the archive that the catalog knows under its name (exit code 3).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold list /backup
  virtfold list tape:/dev/nst0
  virtfold list --json /backup
  virtfold list s3://backups/vm
  virtfold list --remember /backup")]
pub(crate) struct Args {
    /// A directory, s3://BUCKET/PREFIX (all hosts below it) or tape:DEVICE
    #[arg(value_name = "PLACE", value_parser = args::location())]
    directory: Location,
    /// Record the archives in the catalog, and what is gone; this rebuilds a lost catalog by scanning
    #[arg(long)]
    remember: bool,
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

/// An archive, and who made it, of a complete one.
#[derive(Serialize)]
struct ListedSummary<'a> {
    #[serde(flatten)]
    summary: &'a ArchiveSummary,
    #[serde(skip_serializing_if = "Option::is_none")]
    authenticity: Option<Authenticity>,
}

#[derive(Serialize)]
struct Listing<'a> {
    archives: Vec<ListedSummary<'a>>,
    /// The ids of those that a person keeps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pinned: Vec<Uuid>,
    /// What the catalog knows of some beside what they say, by their ids.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    notes: BTreeMap<Uuid, Vec<String>>,
    /// How many are dated in the future.
    #[serde(skip_serializing_if = "Option::is_none")]
    future: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remembered: Option<CatalogFillReport>,
}

/// Runs the verb.
pub(crate) fn run(args: &Args, signals: &Signals) -> Result<ExitStatus> {
    if let Location::Tape(address) = &args.directory {
        let drive = args.wait.drive(address, args.state.path()?, &signals.stop);
        return tape::list_to(&drive, OutputFormat::from_flag(&args.json));
    }
    args.identity.load()?;
    let terminating = Terminating::default();
    let mut destinations = terminating.one(&args.directory, &args.identity, Vec::new());
    let state = args.state.path()?;
    let mut catalog = Catalog::open_existing(&state);
    if args.remember {
        let known = catalog?;
        let mount = expected(&args.directory, Mounted::AS_FIRST, &destinations, known.as_ref())?;
        destinations.expect_mounts(vec![mount]);
        catalog = Ok(known);
    }
    let mut listed = destinations.list(&args.directory)?;
    let style = OutputFormat::from_flag(&args.json);
    let noted = if args.remember {
        let name = destinations.name(&args.directory)?;
        // One that is new is not made for a place that can't be listed.
        let known = catalog?.map_or_else(|| Catalog::open(&state), Ok)?;
        let noted = retention::fill_catalog(&name, &mut listed, &known)?;
        catalog = Ok(Some(known));
        Some(noted)
    } else {
        compare(args, &destinations, &mut listed, &catalog);
        None
    };
    let archives: Vec<ArchiveSummary> = listed.into_iter().map(|listed| listed.summary).collect();
    let pins = pins(args, &catalog)?;
    let policy = trust::policy(&args.config.trust()?)?;
    let mut text = text(&archives, &pins, &policy);
    let now = Timestamp::now();
    let is_ahead = |glance: &&ArchiveSummary| created(glance).is_some_and(|created| created > now);
    let future = Some(archives.iter().filter(is_ahead).count()).filter(|count| *count > 0);
    if let Some(future) = future {
        text += &format!(
            "\n{future} of them are dated in the future: a clock is or was wrong. They don't count as the newest"
        );
    }
    if let Some(noted) = noted {
        text += &recorded(noted);
    }
    let replaced = || archives.iter().filter(|glance| glance.status == ArchiveStatus::Replaced);
    for glance in replaced() {
        let why = glance.faults.first().map_or("", String::as_str);
        text += &format!("\nfault: {}: {}", printable(&glance.archive), printable(why));
    }
    let ids = || archives.iter().filter_map(|glance| glance.head.as_ref()).map(|head| head.archive);
    let mut notes = catalog_fill::notes(&catalog);
    let there: BTreeSet<Uuid> = ids().collect();
    notes.retain(|id, _| there.contains(id));
    text += &noted_text(&archives, &notes);
    let pinned = ids().filter(|id| pins.contains(id)).collect();
    let listed = archives
        .iter()
        .map(|summary| ListedSummary { authenticity: trust::judge(&policy, summary), summary });
    let listing = Listing { archives: listed.collect(), pinned, notes, future, remembered: noted };
    result(style, StdoutUse::Free, &listing, &text)?;
    Ok(if replaced().next().is_some() { ExitStatus::Damaged } else { ExitStatus::Done })
}

/// What the catalog knows of archives beside what they say.
fn noted_text(archives: &[ArchiveSummary], notes: &BTreeMap<Uuid, Vec<String>>) -> String {
    let mut text = String::new();
    for glance in archives {
        let known = glance.head.as_ref().and_then(|head| notes.get(&head.archive));
        for note in known.into_iter().flatten() {
            text += &format!("\nnote: {}: {}", printable(&glance.archive), printable(note));
        }
    }
    text
}

/// What the catalog was told.
fn recorded(noted: CatalogFillReport) -> String {
    let mut text = format!(
        "\n{} of them are recorded in the catalog; {} encrypted ones are not",
        noted.known, noted.unread
    );
    if noted.replaced > 0 {
        text += &format!(
            "; {} replaced: the catalog keeps what was written there. Give those that you put there yourself another name",
            noted.replaced
        );
    }
    text
}

/// Compares what is there with the catalog, where there is one that can be read.
fn compare(
    args: &Args,
    destinations: &Destinations<'_>,
    listed: &mut [ListedArchive],
    catalog: &Result<Option<Catalog>, Error>,
) {
    match catalog {
        Ok(None) => {}
        Ok(Some(catalog)) => {
            let judged =
                destinations.name(&args.directory).and_then(|name| judge_all(catalog, &name, listed));
            judged.unwrap_or_else(|error| catalog_fill::not_compared(&args.directory, &error));
        }
        Err(error) => catalog_fill::not_compared(&args.directory, error),
    }
}

fn created(glance: &ArchiveSummary) -> Option<Timestamp> {
    glance.head.as_ref().and_then(|head| head.created.parse().ok())
}

/// What is pinned, where there is a catalog that can be read: a list is for whoever may read the place.
fn pins(args: &Args, catalog: &Result<Option<Catalog>, Error>) -> Result<BTreeSet<Uuid>> {
    let unknown = |error: &Error| {
        say(&format!("virtfold: pinned archives can't be determined: {}", printable(&sentence(error))));
        BTreeSet::new()
    };
    match catalog {
        Ok(None) => Ok(BTreeSet::new()),
        Ok(Some(catalog)) if args.remember => Ok(catalog.pins()?),
        Ok(Some(catalog)) => Ok(catalog.pins().unwrap_or_else(|error| unknown(&error))),
        Err(error) => Ok(unknown(error)),
    }
}

fn text(archives: &[ArchiveSummary], pins: &BTreeSet<Uuid>, policy: &TrustPolicy) -> String {
    if archives.is_empty() {
        return "no archives".to_owned();
    }
    let mut text = format!(
        "{:<26} {:<10} {:>10} {:>10} {:>5}  archive\n",
        "created", "status", "size", "capacity", "disks"
    );
    for glance in archives {
        let (created, capacity, disks) = match &glance.head {
            Some(head) => {
                let capacity = head.disks.iter().map(|disk| disk.capacity).fold(0, u64::saturating_add);
                (show::local(&head.created), Human(capacity).to_string(), head.disks.len().to_string())
            }
            None => ("-".to_owned(), "-".to_owned(), "-".to_owned()),
        };
        text += &format!(
            "{created:<26} {:<10} {:>10} {capacity:>10} {disks:>5}  {}{}{}\n",
            glance.status.to_string(),
            Human(glance.bytes).to_string(),
            printable(&glance.archive),
            if glance.head.as_ref().is_some_and(|head| pins.contains(&head.archive)) {
                "  (pinned)"
            } else {
                ""
            },
            match trust::judge(policy, glance) {
                // The list says of each archive what is proven; of all others, that nothing is.
                None | Some(Authenticity::Unsigned) => String::new(),
                Some(found) => format!("  ({found})"),
            },
        );
    }
    text
}
