//! What the configuration's jobs keep, where.
//!
//! A place may be the medium of several jobs. What one of them keeps stays, also where only another one is
//! asked for: of each rule the largest number counts, and a job without `keep` keeps all.

use std::collections::BTreeSet;

use anyhow::Result;
use virtfold_backup::retention::{KeepPolicy, KeepRules, PruneFailure};
use virtfold_base::error::{Error, ErrorKind};
use virtfold_catalog::Owner;
use virtfold_config::{Config, Job, Medium, MediumKind};
use virtfold_service::planner::is_ahead;

use super::{FailedDestination, PruneContext, Report, Tape, TapeVolume, Target, count};
use crate::destinations::environment;

/// Prunes the media of the jobs that are asked for.
pub(super) fn prune(ground: &PruneContext<'_>, config: &Config) -> Result<Report> {
    let asked = asked(ground, config)?;
    let mut report = Report { dry_run: ground.args.dry_run, ..Report::default() };
    for (name, medium) in &config.media {
        let name = name.as_str();
        let is_of = |job: &&str| config.jobs.iter().any(|(n, j)| n.as_str() == *job && goes_to(j, name));
        let jobs: Vec<&str> = asked.iter().copied().filter(is_of).collect();
        if jobs.is_empty() {
            continue;
        }
        if let Err(error) = ground.medium(config, &jobs, name, medium, &mut report) {
            let failure =
                PruneFailure::from(&error.within(format!("the medium '{name}' could not be pruned")));
            report.failed.push(FailedDestination { place: medium.to.to_string(), failure });
        }
    }
    Ok(report)
}

/// The jobs that are asked for.
fn asked<'a>(ground: &'a PruneContext<'_>, config: &'a Config) -> Result<Vec<&'a str>, Error> {
    let named: BTreeSet<&str> = ground.args.jobs.iter().map(String::as_str).collect();
    if named.is_empty() {
        let all = config.jobs.iter().filter(|(_, job)| job.keep.is_some()).map(|(name, _)| name.as_str());
        let all: Vec<&str> = all.collect();
        if all.is_empty() {
            return Err(Error::new(
                ErrorKind::Usage,
                "no job of the configuration has 'keep': all backups are kept",
            )
            .with_hint("add 'keep' to a job, or use --place with --keep-..."));
        }
        return Ok(all);
    }
    for name in &named {
        let job = config.jobs.iter().find(|(known, _)| known.as_str() == *name).map(|(_, job)| job);
        let job = job.ok_or_else(|| {
            let known: Vec<&str> = config.jobs.keys().map(virtfold_config::Name::as_str).collect();
            let hint = if known.is_empty() { "it has no jobs".to_owned() } else { known.join(", ") };
            let message = format!("the configuration has no job '{}'", name.escape_debug());
            Error::new(ErrorKind::NotFound, message).with_hint(format!("jobs: {hint}"))
        })?;
        if job.keep.is_none() {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("the job '{name}' has no 'keep': all its backups are kept"),
            )
            .with_hint(format!("add jobs.{name}.keep to the configuration")));
        }
    }
    Ok(named.into_iter().collect())
}

fn goes_to(job: &Job, medium: &str) -> bool {
    job.to.iter().any(|name| name.as_str() == medium)
}

impl PruneContext<'_> {
    fn medium(
        &self,
        config: &Config,
        jobs: &[&str],
        name: &str,
        medium: &Medium,
        report: &mut Report,
    ) -> Result<(), Error> {
        if medium.to.kind() == MediumKind::Tape {
            report.tapes.push(self.tape(medium)?);
            return Ok(());
        }
        let target = Target {
            place: &medium.to.as_str().parse()?,
            medium: Some(name),
            mounted: crate::mount_check::requirement(medium),
            environment: environment(medium)?,
        };
        let wanted = |owner: &Owner| self.kept(config, jobs, name, owner);
        report.places.push(self.prune(&target, &wanted)?);
        Ok(())
    }

    /// What is kept of a subject at a medium. Where a job that has it keeps all, all of it stays, and that is
    /// said.
    fn kept(
        &self,
        config: &Config,
        asked: &[&str],
        medium: &str,
        owner: &Owner,
    ) -> Result<KeepPolicy, Error> {
        let mut kept: Option<KeepRules> = None;
        let mut keeps_all = None;
        let mut is_asked = false;
        for (name, job) in config.jobs.iter().filter(|(_, job)| goes_to(job, medium)) {
            let has = self.has(name.as_str(), job, owner)?;
            is_asked |= has == JobMembership::Yes && asked.contains(&name.as_str());
            match (has, job.keep) {
                (JobMembership::No, _) | (JobMembership::Maybe, None) => {}
                (JobMembership::Yes, None) => keeps_all = Some(name.as_str()),
                (_, Some(keep)) => kept = Some(kept.unwrap_or_default().and(rules(&keep))),
            }
        }
        Ok(match (is_asked, keeps_all, kept) {
            (false, ..) | (_, None, None) => KeepPolicy::NotSelected,
            (true, Some(other), _) => KeepPolicy::KeepAll(format!(
                "the job '{other}' also backs '{}' up to '{medium}' and has no 'keep': all of them are kept",
                owner.name
            )),
            (true, None, Some(keep)) => KeepPolicy::Rules(keep),
        })
    }

    /// Whether a job has a domain. Which tags a domain has libvirt knows; what was backed up for the job the
    /// catalog knows, also of domains that are not there any more.
    fn has(&self, name: &str, job: &Job, owner: &Owner) -> Result<JobMembership, Error> {
        if owner.images {
            return Ok(JobMembership::No);
        }
        if job.domains.selects::<&str>(&owner.name, &[]) {
            return Ok(JobMembership::Yes);
        }
        let tags: Vec<&str> = job.domains.tags.iter().map(virtfold_config::Name::as_str).collect();
        if tags.is_empty() || !job.domains.selects(&owner.name, &tags) {
            return Ok(JobMembership::No);
        }
        let known = self.catalog.as_ref().map(|catalog| catalog.is_of_job(owner, name)).transpose()?;
        Ok(if known == Some(true) { JobMembership::Yes } else { JobMembership::Maybe })
    }

    fn tape(&self, medium: &Medium) -> Result<Tape, Error> {
        let known = self.catalog.as_ref().map(virtfold_catalog::Catalog::volumes).transpose()?;
        let retain = medium.retain.map(virtfold_config::Interval::get);
        let pool = medium.pool.as_ref().map(virtfold_config::Name::as_str);
        let ours = known.into_iter().flatten().filter(|volume| pool.is_none_or(|pool| volume.pool == pool));
        let volumes = ours.map(|volume| {
            let until = volume.until(retain, self.now);
            TapeVolume {
                ahead: volume.last.is_some_and(|last| is_ahead(last, self.now)),
                expired: until.is_some_and(|until| until < self.now),
                free: volume.retain_until.is_some_and(|until| until < self.now),
                label: volume.label,
                pool: volume.pool,
                last: volume.last.map(|time| time.to_string()),
                until: until.map(|time| time.to_string()),
                failed: volume.failed,
            }
        });
        Ok(Tape { place: medium.to.to_string(), volumes: volumes.collect() })
    }
}

/// Whether a job has a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JobMembership {
    Yes,
    /// By a tag that it may have: what the job keeps stays, and nothing goes for its sake.
    Maybe,
    No,
}

fn rules(keep: &virtfold_config::keys::KeepRules) -> KeepRules {
    KeepRules {
        last: count(keep.last),
        hourly: count(keep.hourly),
        daily: count(keep.daily),
        weekly: count(keep.weekly),
        monthly: count(keep.monthly),
        yearly: count(keep.yearly),
        within: keep.within.map(virtfold_config::Interval::get),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use jiff::Timestamp;
    use jiff::tz::TimeZone;
    use virtfold_backup::RunMode;
    use virtfold_backup::retention::HostIdentity;
    use virtfold_catalog::{BackupCopy, Catalog};

    use super::super::Args;
    use super::*;
    use crate::destinations::Terminating;

    const JOBS: &str = "
version: 1
media:
  nas: { to: /backup }
jobs:
  nightly: { domains: { all: true, except: scratch }, schedule: manual, to: nas, keep: { daily: 7, monthly: 2 } }
  weekly: { domains: { names: web }, schedule: manual, to: nas, keep: { weekly: 52, daily: 3 } }
  archive: { domains: { names: db }, schedule: manual, to: nas }
  gold: { domains: { tags: gold }, schedule: manual, to: nas, keep: { yearly: 9 } }
";

    #[derive(Parser)]
    struct JobKeepPolicies {
        #[command(flatten)]
        args: Args,
    }

    fn owner(name: &str) -> Owner {
        Owner { uuid: Some(uuid::Uuid::from_u128(name.len() as u128)), name: name.to_owned(), images: false }
    }

    #[test]
    fn what_any_job_keeps_at_a_medium_stays() {
        let state = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(state.path()).unwrap();
        let copy = BackupCopy {
            name: "/backup/a.tar".to_owned(),
            place: "/backup".to_owned(),
            archive: uuid::Uuid::nil(),
            owner: owner("scratch"),
            source: Default::default(),
            host: "h".to_owned(),
            created: Timestamp::UNIX_EPOCH,
            parent: None,
            bytes: 1,
            root: None,
            encrypted: false,
            job: Some("gold".to_owned()),
        };
        catalog.remember(&[copy]).unwrap();
        let args = JobKeepPolicies::parse_from(["prune"]).args;
        let ground = PruneContext {
            catalog: Some(catalog),
            host: HostIdentity { name: "h".to_owned(), id: None },
            terminating: Terminating::default(),
            now: Timestamp::UNIX_EPOCH,
            zone: TimeZone::UTC,
            mode: RunMode::DryRun,
            trust: Default::default(),
            args: &args,
        };
        let config = virtfold_config::parse(JOBS, std::path::Path::new("jobs.yaml")).unwrap();
        assert_eq!(asked(&ground, &config).unwrap(), ["gold", "nightly", "weekly"]);
        let kept = |jobs: &[&str], name: &str| ground.kept(&config, jobs, "nas", &owner(name)).unwrap();
        let gold = KeepRules { yearly: Some(9), ..KeepRules::default() };
        let nightly = KeepRules { daily: Some(7), monthly: Some(2), ..gold };
        // A domain that may have the tag: what its job would keep stays, too.
        assert_eq!(kept(&["nightly"], "mail"), KeepPolicy::Rules(nightly));
        assert_eq!(kept(&["nightly"], "web"), KeepPolicy::Rules(KeepRules { weekly: Some(52), ..nightly }));
        assert_eq!(kept(&["weekly"], "web"), KeepPolicy::Rules(KeepRules { weekly: Some(52), ..nightly }));
        assert_eq!(kept(&["weekly"], "mail"), KeepPolicy::NotSelected);
        let why = "the job 'archive' also backs 'db' up to 'nas' and has no 'keep': all of them are kept";
        assert_eq!(kept(&["nightly"], "db"), KeepPolicy::KeepAll(why.to_owned()));
        assert_eq!(kept(&["gold"], "mail"), KeepPolicy::NotSelected, "nobody knows that it has the tag");
        assert_eq!(
            kept(&["gold", "nightly"], "scratch"),
            KeepPolicy::Rules(gold),
            "it was backed up for the job"
        );
        let images = Owner { images: true, ..owner("web") };
        assert_eq!(ground.kept(&config, &["nightly"], "nas", &images).unwrap(), KeepPolicy::NotSelected);
    }
}
