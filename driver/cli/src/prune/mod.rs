//! `virtfold prune`: old backups go, by the rules of the jobs or of the command line.

mod jobs;
mod text;

use anyhow::Result;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use virtfold_backup::RunMode;
use virtfold_backup::host_identity;
use virtfold_backup::mount_check::MountRequirement;
use virtfold_backup::retention::{
    self, HostIdentity, KeepPolicy, KeepPolicyOf, KeepRules, PathPolicy, PruneReport, PruneRequest,
};
use virtfold_backup::trust::TrustPolicy;
use virtfold_base::error::{Error, ErrorKind};
use virtfold_catalog::{Catalog, Owner};
use virtfold_config::Count;
use virtfold_medium::Location;

use super::args;
use super::config::ConfigFlag;
use super::destinations::Terminating;
use super::domain::connection::StateFlag;
use super::encryption::IdentityArgs;
use super::exit::ExitStatus;
use super::mount_check::{Mounted, expected};
use super::output::say;
use super::report::{JsonFlag, OutputFormat, StdoutUse, printable, result};
use super::trust;

/// Remove old backups
///
/// Keeps what the rules name and removes the rest: of the jobs that have 'keep' in the configuration, or of
/// one destination by the rules of the command line. Only this host's archives are removed. A rule keeps the
/// newest backup of each of the last N hours, days, weeks, months or years that have one. Always kept: the
/// newest complete backup, pinned archives ('virtfold pin'), what a kept increment depends on, and what
/// virtfold does not recognise. Nothing is removed from tapes: expired volumes are listed.
#[derive(Debug, clap::Args)]
#[command(override_usage = "virtfold prune [OPTIONS] [JOB]...\n       \
                      virtfold prune [OPTIONS] --place <PLACE> --keep-... <N> [--domain <NAME>]")]
#[command(after_help = "\
Examples:
  virtfold prune --dry-run
  virtfold prune nightly
  virtfold prune --place /backup --keep-last 3 --keep-daily 7 --dry-run
  virtfold prune --place s3://backups/vm --domain web --keep-daily 14 --keep-monthly 12")]
pub(crate) struct Args {
    /// Jobs of the configuration [default: all that have 'keep']
    #[arg(value_name = "JOB", conflicts_with = "place")]
    jobs: Vec<String>,
    /// Print what would be removed and what stays, and why; change nothing
    #[arg(long)]
    dry_run: bool,
    /// A destination instead of the jobs' media: a directory or s3://BUCKET/PREFIX
    #[arg(long, value_name = "PLACE", value_parser = args::location(), help_heading = "Without a configuration")]
    place: Option<Location>,
    /// Only this domain, by name or UUID, or these images, by label; repeatable [default: all of this host]
    #[arg(long, value_name = "NAME", requires = "place", help_heading = "Without a configuration")]
    domain: Vec<String>,
    /// Treat images with one --label as the same although their archives name different paths
    #[arg(long, requires = "place", help_heading = "Without a configuration")]
    moved: bool,
    #[command(flatten)]
    keep: KeepArgs,
    #[command(flatten)]
    identity: IdentityArgs,
    #[command(flatten)]
    state: StateFlag,
    #[command(flatten)]
    config: ConfigFlag,
    #[command(flatten)]
    json: JsonFlag,
}

/// The rules on the command line.
#[derive(Clone, Copy, Debug, clap::Args)]
struct KeepArgs {
    /// Keep the newest N
    #[arg(long, value_name = "N", requires = "place", help_heading = "Without a configuration")]
    keep_last: Option<Count>,
    /// Keep the newest of each of the last N hours that have one
    #[arg(long, value_name = "N", requires = "place", help_heading = "Without a configuration")]
    keep_hourly: Option<Count>,
    /// Keep the newest of each of the last N days that have one
    #[arg(long, value_name = "N", requires = "place", help_heading = "Without a configuration")]
    keep_daily: Option<Count>,
    /// Keep the newest of each of the last N weeks, from Monday, that have one
    #[arg(long, value_name = "N", requires = "place", help_heading = "Without a configuration")]
    keep_weekly: Option<Count>,
    /// Keep the newest of each of the last N months that have one
    #[arg(long, value_name = "N", requires = "place", help_heading = "Without a configuration")]
    keep_monthly: Option<Count>,
    /// Keep the newest of each of the last N years that have one
    #[arg(long, value_name = "N", requires = "place", help_heading = "Without a configuration")]
    keep_yearly: Option<Count>,
    /// Keep all that are at most this much older than the newest but one, for example 14d
    #[arg(long, value_name = "TIME", requires = "place", help_heading = "Without a configuration")]
    keep_within: Option<virtfold_config::Interval>,
}

/// What came of it everywhere.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// Whether nothing was removed because that was asked for.
    dry_run: bool,
    places: Vec<PruneReport>,
    /// The volumes of tapes, by their drives.
    tapes: Vec<Tape>,
    /// Places that could not be looked at.
    failed: Vec<FailedDestination>,
}

/// A place that could not be looked at.
#[derive(Debug, Serialize)]
struct FailedDestination {
    place: String,
    failure: retention::PruneFailure,
}

/// The volumes that archives of a drive may be on.
#[derive(Debug, Serialize)]
struct Tape {
    place: String,
    volumes: Vec<TapeVolume>,
}

/// A volume and how long it is kept.
#[derive(Debug, Serialize)]
struct TapeVolume {
    label: String,
    pool: String,
    /// When its last archive was begun.
    last: Option<String>,
    /// Until when it is kept; nothing: until somebody says --force.
    until: Option<String>,
    expired: bool,
    /// Whether its last archive is dated in the future: it counts as written now.
    ahead: bool,
    /// Whether its own label says so, too: then it can be taken without --force.
    free: bool,
    failed: Option<String>,
}

/// What all places are pruned by.
struct PruneContext<'a> {
    catalog: Option<Catalog>,
    host: HostIdentity,
    terminating: Terminating,
    now: Timestamp,
    zone: TimeZone,
    mode: RunMode,
    trust: TrustPolicy,
    args: &'a Args,
}

/// A destination to prune.
struct Target<'a> {
    place: &'a Location,
    /// What the configuration calls it.
    medium: Option<&'a str>,
    /// What has to be mounted there.
    mounted: MountRequirement,
    /// Its variables.
    environment: Vec<(String, String)>,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<ExitStatus> {
    let state = args.state.path()?;
    // What is wrong with them is wrong with all destinations.
    args.identity.load()?;
    let ground = PruneContext {
        catalog: Catalog::open_existing(&state)?,
        host: HostIdentity { name: host_identity::name()?, id: host_identity::id()? },
        terminating: Terminating::default(),
        now: Timestamp::now(),
        zone: TimeZone::system(),
        mode: if args.dry_run { RunMode::DryRun } else { RunMode::Apply },
        trust: trust::policy(&args.config.load()?.trust)?,
        args,
    };
    let report = match &args.place {
        Some(place) => {
            let mut report = Report { dry_run: args.dry_run, ..Report::default() };
            let wanted = ground.by_hand()?;
            let mounted = MountRequirement::SameAsFirstUse;
            let target = Target { place, medium: None, mounted, environment: Vec::new() };
            report.places.push(ground.prune(&target, &wanted)?);
            report
        }
        None => jobs::prune(&ground, &args.config.load()?)?,
    };
    let style = OutputFormat::from_flag(&args.json);
    result(style, StdoutUse::Free, &report, &text::report(&report))?;
    Ok(report.end(style))
}

impl PruneContext<'_> {
    /// Prunes a destination. Only other processes touch it: a medium may hang, and the locks are here.
    fn prune(&self, target: &Target<'_>, wanted: &KeepPolicyOf<'_>) -> Result<PruneReport, Error> {
        let Target { place, medium, mounted, ref environment } = *target;
        let mut destinations = self.terminating.one(place, &self.args.identity, environment.clone());
        // What is not mounted is not gone.
        let mount = expected(place, Mounted { medium, mounted }, &destinations, self.catalog.as_ref())?;
        destinations.expect_mounts(vec![mount]);
        let request = PruneRequest {
            place,
            destinations: &destinations,
            host: &self.host,
            wanted,
            now: self.now,
            zone: &self.zone,
            mode: self.mode,
            paths: if self.args.moved { PathPolicy::MayDiffer } else { PathPolicy::MustAgree },
            trust: &self.trust,
        };
        retention::prune(&request, self.catalog.as_ref())
    }

    /// The rules of the command line.
    fn by_hand(&self) -> Result<impl Fn(&Owner) -> Result<KeepPolicy, Error>, Error> {
        let keep = self.args.keep.rules();
        if keep.is_empty() {
            return Err(Error::new(
                ErrorKind::Usage,
                "no rule is given, so all but the newest would be removed",
            )
            .with_hint("for example --keep-last 3 --keep-daily 7"));
        }
        if let Some(tape @ Location::Tape(_)) = &self.args.place {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("nothing is removed from '{tape}': a tape expires"),
            )
            .with_hint("'virtfold tape label' and 'tape erase' reuse a volume after its --retain-until"));
        }
        let domains = self.args.domain.clone();
        let asked = move |owner: &Owner| {
            let is = |name: &String| {
                *name == owner.name || owner.uuid.is_some_and(|uuid| *name == uuid.to_string())
            };
            domains.is_empty() || domains.iter().any(is)
        };
        Ok(move |owner: &Owner| {
            Ok(if asked(owner) { KeepPolicy::Rules(keep) } else { KeepPolicy::NotSelected })
        })
    }
}

/// A number of the configuration's, for the library.
fn count(number: Option<Count>) -> Option<u32> {
    number.map(|number| u32::try_from(number.get()).unwrap_or(u32::MAX))
}

impl KeepArgs {
    fn rules(self) -> KeepRules {
        KeepRules {
            last: count(self.keep_last),
            hourly: count(self.keep_hourly),
            daily: count(self.keep_daily),
            weekly: count(self.keep_weekly),
            monthly: count(self.keep_monthly),
            yearly: count(self.keep_yearly),
            within: self.keep_within.map(virtfold_config::Interval::get),
        }
    }
}

impl Report {
    /// Says what failed, and how the run ends for that.
    fn end(&self, style: OutputFormat) -> ExitStatus {
        let places = self.failed.iter().map(|place| &place.failure);
        let failures: Vec<_> = places.chain(self.places.iter().flat_map(PruneReport::failures)).collect();
        if style == OutputFormat::Text {
            for failure in &failures {
                say(&format!("virtfold: {}", printable(&failure.sentence)));
                failure.hint.iter().for_each(|hint| say(&format!("hint: {}", printable(hint))));
            }
        }
        failures.first().map_or(ExitStatus::Done, |failure| ExitStatus::Failed(failure.kind))
    }
}
