//! `virtfold domains`: what there is to back up.

use anyhow::Result;
use serde::Serialize;
use virtfold::error::{Error, sentence};
use virtfold::guest::host::LocalFiles;
use virtfold::guest::{DomainInfo, Persistence};
use virtfold::job::plan::{self, Finding, Plan, PlannedDisk};
use virtfold::units::Human;

use super::connection::{ConnectFlag, StateFlag};
use crate::cli::config::ConfigFlag;
use crate::cli::exit::Outcome;
use crate::cli::report::{JsonFlag, Stdout, Style, printable, result};

/// List the domains with their disks, and whether each can be backed up
///
/// Looks at every domain as 'backup DOMAIN --plan' does, and touches nothing.
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
    domains: Vec<Entry>,
}

/// A domain in the list.
#[derive(Serialize)]
struct Entry {
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
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let connection = args.connect.open()?;
    let defaults = args.config.load()?.defaults;
    let wishes = super::wishes_of(&defaults, args.state.path()?);
    let all = plan::plan_all(connection.hypervisor.as_ref(), &LocalFiles, &wishes)?;
    let listing = Listing { domains: all.into_iter().map(|(info, plan)| entry(&info, plan)).collect() };
    result(Style::from_flag(&args.json), Stdout::Free, &listing, &text(&listing))?;
    Ok(Outcome::Done)
}

fn entry(info: &DomainInfo, plan: std::result::Result<Plan, Error>) -> Entry {
    let mut entry = Entry {
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
        "{:<width$} {:<states$} {:>7} {:>10} {:>10}  backup\n",
        "name", "state", "disks", "capacity", "allocated"
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
            "{:<width$} {:<states$} {:>7} {:>10} {:>10}  {backup}\n",
            printable(&domain.name),
            domain.state,
            format!("{copied} of {}", domain.disks.len()),
            Human(domain.capacity).to_string(),
            Human(domain.allocated).to_string(),
        );
    }
    text
}
