//! From the configuration to what the service works by: the one place that knows both.
//!
//! A run's options stand on its command line, all of them, so that what a run does is what the service has
//! read, whatever the files say by then.
//!
//! Imports: `job_spec`; `virtfold_config`.

use std::ffi::OsString;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use virtfold_config::keys::{Disks, Domains};
use virtfold_config::{Config, DetectZeroes, Layout, Medium, QuiesceMode, ResolvedJob, Schedule, Trigger};

use super::job_spec::{
    CommandSpec, GuestFacts, GuestSelector, JobSpec, MediumSpec, NextTime, ServiceSettings,
};

#[derive(Debug)]
struct JobSchedule {
    schedule: Schedule,
    zone: TimeZone,
}

impl NextTime for JobSchedule {
    fn next_after(&self, time: Timestamp) -> Option<Timestamp> {
        self.schedule.next_after_in(time, &self.zone)
    }
}

#[derive(Debug)]
struct JobSelector {
    domains: Domains,
    disks: Disks,
}

impl GuestSelector for JobSelector {
    fn guest(&self, guest: &GuestFacts) -> bool {
        self.domains.selects(&guest.name, &guest.tags)
    }

    fn disk(&self, target: &str) -> bool {
        self.disks.selects(target)
    }

    fn leaves_out(&self, guest: &GuestFacts) -> bool {
        self.domains.leaves_out(&guest.name)
    }
}

/// What the service works by; times without a zone of their own are those of `zone`.
pub fn settings(config: &Config, zone: &TimeZone) -> ServiceSettings {
    let service = &config.service;
    let medium = |(name, medium): (_, &Medium)| {
        let name: &virtfold_config::Name = name;
        (name.as_str().to_owned(), medium_spec(name.as_str(), medium, service.concurrency))
    };
    let jobs = config.jobs.keys().filter_map(|name| config.job(name.as_str()));
    ServiceSettings {
        jobs: jobs.map(|job| Arc::new(job_spec(&job, zone))).collect(),
        media: config.media.iter().map(medium).collect(),
        concurrency: service.concurrency.get(),
        stop_timeout: service.stop_timeout.get(),
        config: Some(Arc::new(config.clone())),
        metrics_dir: service.metrics_dir.as_ref().map(|directory| directory.as_path().to_owned()),
    }
}

fn medium_spec(name: &str, medium: &Medium, host: virtfold_config::Concurrency) -> MediumSpec {
    let mut options: Vec<OsString> = Vec::new();
    let mut option = |name: &str, value: Option<&str>| {
        options.extend(value.into_iter().flat_map(|value| [OsString::from(name), value.into()]));
    };
    option("--change-command", medium.change_command.as_ref().map(virtfold_config::NonEmptyText::as_str));
    option("--medium", Some(name));
    option("--pool", medium.pool.as_ref().map(virtfold_config::Name::as_str));
    let mount =
        medium.mounted.map(|mounted| if mounted { "--require-mount=" } else { "--no-require-mount=" });
    options.extend(mount.map(|option| OsString::from(format!("{option}{}", medium.to.as_str()))));
    MediumSpec {
        name: name.to_owned(),
        to: medium.to.as_str().into(),
        options,
        concurrency: medium.concurrency(host),
        environment: medium.environment_file.as_ref().map(|file| file.as_path().to_owned()),
    }
}

fn job_spec(resolved: &ResolvedJob<'_>, zone: &TimeZone) -> JobSpec {
    let job = resolved.job;
    let times = job.schedule.iter().filter(|schedule| !schedule.is_manual());
    let calendar = |schedule: &Schedule| -> Arc<dyn NextTime> {
        Arc::new(JobSchedule { schedule: schedule.clone(), zone: zone.clone() })
    };
    let command =
        |words: &[String], limit| CommandSpec { words: words.iter().map(OsString::from).collect(), limit };
    let on = job.on.iter().map(|trigger| match trigger {
        Trigger::Shutdown => "shutdown",
        Trigger::Started => "started",
        Trigger::Migrated => "migrated",
        Trigger::Defined => "defined",
    });
    JobSpec {
        name: resolved.name.to_owned(),
        enabled: job.enabled,
        pick: Arc::new(JobSelector { domains: job.domains.clone(), disks: job.disks.clone() }),
        calendars: times.map(calendar).collect(),
        // A definition is no reason for a backup; that there is a guest without a job is said anyway.
        on: on.filter(|word| *word != "defined").map(str::to_owned).collect(),
        jitter: job.jitter.get(),
        catch_up: resolved.catch_up.get(),
        media: resolved.media.iter().map(|(name, _)| (*name).to_owned()).collect(),
        options: options(resolved),
        timeout: job.timeout.map(virtfold_config::Interval::get),
        attempts: job.retry.map_or(1, |retry| u32::try_from(retry.attempts.get()).unwrap_or(u32::MAX)),
        delay: job.retry.map(|retry| retry.delay.get()).unwrap_or_default(),
        before: job.before.as_ref().map(|before| command(before.command.as_slice(), before.timeout.get())),
        after: job
            .after
            .as_ref()
            .map(|after| (command(after.command.as_slice(), after.timeout.get()), after.when)),
        prune: job.keep.is_some(),
        verify: job.verify.iter().filter(|schedule| !schedule.is_manual()).map(calendar).collect(),
    }
}

/// The options of a job's backups, as a person would type them.
fn options(resolved: &ResolvedJob<'_>) -> Vec<OsString> {
    let settings = &resolved.settings;
    let rates = resolved.media.iter().filter_map(|(_, medium)| medium.limit_rate).chain(settings.limit_rate);
    let slowest = rates.min_by_key(|rate| rate.get());
    let mut options: Vec<OsString> = Vec::new();
    let mut option = |name: &str, value: Option<OsString>| {
        options.extend(value.into_iter().flat_map(|value| [OsString::from(name), value]));
    };
    let layout = match settings.layout {
        Layout::Compact => "compact",
        Layout::Full => "full",
    };
    let quiesce = match settings.quiesce {
        QuiesceMode::Auto => "auto",
        QuiesceMode::Yes => "yes",
        QuiesceMode::No => "no",
    };
    option("--kind", Some(resolved.job.kind.to_string().into()));
    option("--max-chain", resolved.job.max_chain.map(|length| length.to_string().into()));
    option("--compress", Some(settings.compress.to_string().into()));
    option("--layout", Some(layout.into()));
    option("--block-size", settings.block_size.map(|size| size.to_string().into()));
    option(
        "--detect-zeroes",
        settings.detect_zeroes.map(|detect| match detect {
            DetectZeroes::On => "on".into(),
            DetectZeroes::Off => "off".into(),
        }),
    );
    option("--limit-rate", slowest.map(|rate| rate.to_string().into()));
    option("--workers", settings.workers.map(|workers| workers.to_string().into()));
    option("--quiesce", Some(quiesce.into()));
    option("--pause-budget", Some(settings.pause_budget.to_string().into()));
    option("--overlay-dir", settings.overlay_dir.as_ref().map(|dir| dir.as_path().into()));
    option("--min-free", Some(settings.min_free.to_string().into()));
    let recipients =
        settings.encrypt_to.as_ref().map(virtfold_config::RecipientList::as_slice).unwrap_or_default();
    for recipient in recipients {
        option("--encrypt-to", Some(recipient.into()));
    }
    option("--recipients", settings.recipients.as_ref().map(|file| file.as_path().into()));
    if recipients.is_empty() && settings.recipients.is_none() {
        options.push("--no-encryption".into());
    }
    options
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use virtfold_hypervisor::DomainId;

    const TEXT: &str = "
version: 1
defaults: {compress: 'zstd:1', encrypt-to: [age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p]}
service: {concurrency: 3, stop-timeout: 90s, catch-up: 2h}
media:
  disk: {to: /backup, limit-rate: 10MiB, mounted: true}
  tape: {to: 'tape:/dev/nst0', pool: weekly, change-command: '/sbin/next %d'}
jobs:
  nightly:
    domains: {tags: [gold], except: ['test-*']}
    disks: {exclude: ['vdb']}
    schedule: ['daily 02:00', 'sun 12:00']
    to: [disk, tape]
    jitter: 10m
    limit-rate: 20MiB
    timeout: 6h
    retry: {attempts: 3, delay: 1m}
    before: {command: [/bin/true, a b]}
    keep: {last: 3}
    verify: weekly
  off:
    domains: {all: true}
    schedule: manual
    on: [shutdown]
    to: disk
";

    #[test]
    fn a_configuration_becomes_what_the_service_works_by() {
        let config = virtfold_config::parse(TEXT, Path::new("test.yaml")).unwrap();
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let made = settings(&config, &zone);
        assert_eq!((made.concurrency, made.stop_timeout), (3, Duration::from_secs(90)));
        assert_eq!((made.media["disk"].concurrency, made.media["tape"].concurrency), (3, 1));
        assert_eq!(
            made.media["tape"].options,
            ["--change-command", "/sbin/next %d", "--medium", "tape", "--pool", "weekly"]
        );
        assert_eq!(made.media["disk"].options, ["--medium", "disk", "--require-mount=/backup"]);
        let job = made.job("nightly").unwrap();
        let guest = |name: &str, tags: &[&str]| GuestFacts {
            id: DomainId(uuid::Uuid::nil()),
            name: name.to_owned(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            disks: Vec::new(),
            trouble: None,
        };
        assert!(job.pick.guest(&guest("web", &["gold"])) && !job.pick.guest(&guest("web", &[])));
        assert!(!job.pick.guest(&guest("test-1", &["gold"])));
        assert!(job.pick.leaves_out(&guest("test-1", &[])) && !job.pick.leaves_out(&guest("web", &[])));
        assert!(job.pick.disk("vda") && !job.pick.disk("vdb"));
        // The night in which the clock goes back: two o'clock comes twice, and once is enough.
        let evening: Timestamp = "2026-10-24T20:00:00Z".parse().unwrap();
        let first = job.next_after(evening).unwrap();
        assert_eq!(first.to_string(), "2026-10-25T00:00:00Z");
        assert_eq!(job.next_after(first).unwrap().to_string(), "2026-10-25T11:00:00Z");
        assert_eq!(job.verify_after(evening).unwrap().to_string(), "2026-10-25T23:00:00Z", "Monday");
        assert_eq!((job.attempts, job.delay, job.prune), (3, Duration::from_secs(60), true));
        assert_eq!(
            (job.catch_up, job.timeout),
            (Duration::from_secs(7200), Some(Duration::from_secs(21600)))
        );
        assert_eq!(job.before.as_ref().unwrap().words, ["/bin/true", "a b"]);
        let options: Vec<&str> = job.options.iter().map(|option| option.to_str().unwrap()).collect();
        let line = options.join(" ");
        assert!(line.contains("--compress zstd:1") && line.contains("--limit-rate 10MiB"), "{line}");
        assert!(line.contains("--encrypt-to age1ql3") && !line.contains("--no-encryption"), "{line}");
        let off = made.job("off").unwrap();
        assert_eq!((off.next_after(evening), off.on.as_slice()), (None, ["shutdown".to_owned()].as_slice()));
    }
}
