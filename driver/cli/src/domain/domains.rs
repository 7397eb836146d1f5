//! `virtfold domains`: what there is to back up.

use anyhow::Result;
use jiff::Timestamp;
use serde::Serialize;
use virtfold_backup::plan::{self, Finding, Plan, PlanContext, PlannedDisk};
use virtfold_base::error::{Error, sentence};
use virtfold_base::units::Human;
use virtfold_catalog::Catalog;
use virtfold_hypervisor::host_files::LocalFiles;
use virtfold_hypervisor::{DomainInfo, Persistence};

use super::connection::{ConnectFlag, StateFlag};
use crate::backup_command::by_configuration;
use crate::config::ConfigFlag;
use crate::exit::ExitStatus;
use crate::report::{JsonFlag, OutputFormat, StdoutUse, printable, result};
use crate::show;

/// List the domains with their disks, and whether each can be backed up
///
/// Checks every domain as 'backup DOMAIN --plan' does, and changes nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold domains
  virtfold domains --connect qemu:///session
  virtfold domains --json")]
pub(crate) struct Args {
    #[command(flatten)]
    connect: ConnectFlag,
    #[command(flatten)]
    state: StateFlag,
    #[command(flatten)]
    config: ConfigFlag,
    #[command(flatten)]
    json: JsonFlag,
}

#[derive(Serialize)]
struct Listing {
    domains: Vec<DomainRow>,
}

/// A domain in the list.
#[derive(Serialize)]
struct DomainRow {
    name: String,
    uuid: String,
    state: &'static str,
    persistent: bool,
    /// Whether a backup would be begun now.
    possible: bool,
    /// `online`, `standing`, `offline`, `not-now`; absent when the domain can't be looked at.
    way: Option<&'static str>,
    /// Bytes of the disks that would be copied.
    capacity: u64,
    allocated: u64,
    disks: Vec<PlannedDisk>,
    obstacles: Vec<Finding>,
    /// Why the domain can't be looked at.
    error: Option<String>,
    /// When its last good backup was made that the catalog knows to be there, in UTC.
    last_backup: Option<String>,
    /// How long ago that was, seconds.
    last_backup_age: Option<i64>,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<ExitStatus> {
    let connection = args.connect.open()?;
    let defaults = args.config.load()?.defaults;
    let options = by_configuration(&defaults)?;
    let state_dir = args.state.path_of(args.connect.whose())?;
    let context = PlanContext { options: &options, state_dir: &state_dir, archive_devices: &[] };
    let all = plan::plan_all(connection.hypervisor.as_ref(), &LocalFiles, &context)?;
    let now = Timestamp::now();
    let last = match Catalog::open_existing(&state_dir)? {
        Some(catalog) => catalog.last_backups(now)?,
        None => Vec::new(),
    };
    let domains = all.into_iter().map(|(info, plan)| {
        let last = last.iter().find(|last| last.domain == info.id.0).map(|last| last.created);
        DomainRow {
            last_backup: last.map(|last| last.to_string()),
            last_backup_age: last.map(|last| now.as_second() - last.as_second()),
            ..entry(&info, plan)
        }
    });
    let listing = Listing { domains: domains.collect() };
    result(OutputFormat::from_flag(&args.json), StdoutUse::Free, &listing, &text(&listing))?;
    Ok(ExitStatus::Done)
}

fn entry(info: &DomainInfo, plan: std::result::Result<Plan, Error>) -> DomainRow {
    let mut entry = DomainRow {
        name: info.name.clone(),
        uuid: info.id.to_string(),
        state: plan::state_words(info.run),
        persistent: info.persistence == Persistence::Persistent,
        possible: false,
        way: None,
        capacity: 0,
        allocated: 0,
        disks: Vec::new(),
        obstacles: Vec::new(),
        error: None,
        last_backup: None,
        last_backup_age: None,
    };
    match plan {
        Ok(plan) => {
            let sum = |bytes: fn(&PlannedDisk) -> Option<u64>| {
                plan.copied().filter_map(bytes).fold(0, u64::saturating_add)
            };
            (entry.capacity, entry.allocated) = (sum(|disk| disk.capacity), sum(|disk| disk.allocated));
            entry.possible = plan.obstacles.is_empty();
            entry.way = Some(plan.way);
            (entry.disks, entry.obstacles) = (plan.disks, plan.obstacles);
        }
        Err(error) => entry.error = Some(sentence(&error)),
    }
    entry
}

fn text(listing: &Listing) -> String {
    if listing.domains.is_empty() {
        return "no domains".to_owned();
    }
    let width = listing.domains.iter().map(|domain| domain.name.chars().count()).max().unwrap_or(0).max(4);
    let states = listing.domains.iter().map(|domain| domain.state.len()).max().unwrap_or(0).max(5);
    let mut text = format!(
        "{:<width$} {:<states$} {:>7} {:>10} {:>10}  {:<36}  backup\n",
        "name", "state", "disks", "capacity", "allocated", "last backup"
    );
    for domain in &listing.domains {
        let copied = domain.disks.iter().filter(|disk| disk.copy).count();
        let mut why: Vec<&str> = domain.obstacles.iter().map(|finding| finding.sentence.as_str()).collect();
        why.extend(domain.error.as_deref());
        let backup = match (domain.way, why.is_empty()) {
            (Some(way), true) => way.to_owned(),
            _ => format!("no: {}", printable(&why.join("; "))),
        };
        text += &format!(
            "{:<width$} {:<states$} {:>7} {:>10} {:>10}  {:<36}  {backup}\n",
            printable(&domain.name),
            domain.state,
            format!("{copied} of {}", domain.disks.len()),
            Human(domain.capacity).to_string(),
            Human(domain.allocated).to_string(),
            last_backup(domain),
        );
    }
    text
}

/// When the last backup was, and how long ago.
fn last_backup(domain: &DomainRow) -> String {
    let (Some(last), Some(age)) = (&domain.last_backup, domain.last_backup_age) else {
        return "-".to_owned();
    };
    let age = match age {
        ..0 => "in the future".to_owned(),
        0..3600 => format!("{} min ago", age / 60),
        3600..172_800 => format!("{} h ago", age / 3600),
        _ => format!("{} d ago", age / 86_400),
    };
    format!("{} ({age})", show::local(last))
}
