//! The section `jobs`.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Config, Medium, Settings};
use crate::schedule::Schedule;
use crate::values::{
    Attempts, BackupKind, BlockSize, ByteRate, ByteSize, ChainLength, CommandCondition, CommandLine,
    Compression, Count, DetectZeroes, FilePath, Glob, Interval, Layout, List, Name, PauseDuration,
    QuiesceMode, RecipientList, Trigger, Window, Workers,
};

/// What is backed up together, by the same rules.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[schemars(inline)]
pub struct Job {
    /// Whether the service runs the job. A job that is switched off is still checked; `virtfold run JOB` runs
    /// it all the same.
    #[serde(default = "on")]
    pub enabled: bool,
    /// Which domains: those that `names` or `tags` select, or `all`; and of them not those that `except`
    /// selects. They are looked up anew for each run.
    pub domains: Domains,
    /// Which of their disks.
    #[serde(default)]
    pub disks: Disks,
    /// When the job runs; `manual` for a job that only `virtfold run JOB` starts. It may be left out where
    /// `on` names an event that has a backup made, or where the job is not enabled. The words are under
    /// 'Schedules' above.
    #[serde(default)]
    pub schedule: List<Schedule>,
    /// What kind of backup. `incremental`: what changed since the last one that all media of `to` have;
    /// `differential`: since the last full one. Where there is none, the backup is full.
    #[serde(default)]
    pub kind: BackupKind,
    /// How many archives a chain has at most, its full one included; the next backup is full. Not set: 30.
    pub max_chain: Option<ChainLength>,
    /// The names of the media that each archive goes to. They are written to at once: one read, several
    /// copies.
    pub to: List<Name>,
    /// Which backups of a domain `virtfold prune` and the service keep. Not set: all of them.
    pub keep: Option<KeepRules>,
    /// When the service verifies the archives on the job's media, with the words of `schedule`, such as
    /// `weekly`: those that were never verified, and those whose verification is more than 30 days ago
    /// (`virtfold verify PLACE --due 30d`). Encrypted ones need a key that the service does not have, and
    /// tapes somebody who changes them: verify these by hand. Not set: never.
    #[serde(default)]
    pub verify: List<Schedule>,
    /// Events of a domain that have the job run for this domain.
    #[serde(default)]
    pub on: List<Trigger>,
    /// The backup of each domain begins later by a time between 0 and this one: always the same for a job and
    /// a domain, and spread over them.
    #[serde(default)]
    pub jitter: Window,
    /// `service.catch-up` for this job.
    pub catch_up: Option<Window>,
    /// How long the backup of one domain may take; then it is ended, and has failed. Not set: as long as it
    /// takes.
    pub timeout: Option<Interval>,
    /// What is done when the backup of a domain fails. Not set: it is tried once.
    pub retry: Option<Retry>,
    /// A command that is run before the backup of each domain. If it fails, the backup is not made. It gets
    /// `VIRTFOLD_JOB`, `VIRTFOLD_DOMAIN` and `VIRTFOLD_UUID` in its environment. What it prints goes to the
    /// service's log, its last lines also to its failure.
    pub before: Option<Before>,
    /// A command that is run after the backup of each domain. Beside the variables of `before` it gets
    /// `VIRTFOLD_RESULT` (`success` or `failure`), `VIRTFOLD_ARCHIVES` (one a line), and of a failure
    /// `VIRTFOLD_ERROR`, `VIRTFOLD_HINT` (what to do; may be empty) and `VIRTFOLD_EXIT_CODE` (of
    /// `virtfold backup`; empty where that was not begun or was killed).
    pub after: Option<After>,
    /// `defaults.compress` for this job.
    pub compress: Option<Compression>,
    /// `defaults.encrypt-to` for this job. Where a job has this key or `recipients`, neither of `defaults`
    /// counts for it.
    pub encrypt_to: Option<RecipientList>,
    /// `defaults.recipients` for this job. Where a job has this key or `encrypt-to`, neither of `defaults`
    /// counts for it.
    pub recipients: Option<FilePath>,
    /// `defaults.layout` for this job.
    pub layout: Option<Layout>,
    /// `defaults.block-size` for this job.
    pub block_size: Option<BlockSize>,
    /// `defaults.detect-zeroes` for this job.
    pub detect_zeroes: Option<DetectZeroes>,
    /// `defaults.limit-rate` for this job.
    pub limit_rate: Option<ByteRate>,
    /// `defaults.workers` for this job.
    pub workers: Option<Workers>,
    /// `defaults.quiesce` for this job.
    pub quiesce: Option<QuiesceMode>,
    /// `defaults.pause-budget` for this job.
    pub pause_budget: Option<PauseDuration>,
    /// `defaults.overlay-dir` for this job.
    pub overlay_dir: Option<FilePath>,
    /// `defaults.min-free` for this job.
    pub min_free: Option<ByteSize>,
}

fn on() -> bool {
    true
}

/// Which domains.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[schemars(inline)]
pub struct Domains {
    /// Those with these names.
    pub names: List<Glob>,
    /// Those with one of these tags in the `<metadata>` of their XML; 'Tags' above says how to set them.
    pub tags: List<Name>,
    /// All of this host.
    pub all: bool,
    /// Not those with these names.
    pub except: List<Glob>,
}

impl Domains {
    /// Whether a domain with this name and these tags is one of them.
    pub fn selects<T: AsRef<str>>(&self, name: &str, tags: &[T]) -> bool {
        let named = |globs: &List<Glob>| globs.iter().any(|glob| glob.matches(name));
        let tagged = || self.tags.iter().any(|tag| tags.iter().any(|has| has.as_ref() == tag.as_str()));
        (self.all || named(&self.names) || tagged()) && !named(&self.except)
    }

    /// Whether nothing is selected, whatever domains there are.
    pub(crate) fn is_empty(&self) -> bool {
        !self.all && self.names.is_empty() && self.tags.is_empty()
    }
}

/// Which disks of a domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[schemars(inline)]
pub struct Disks {
    /// Only disks with these targets, such as `vda`. Empty: all.
    pub include: List<Glob>,
    /// Not disks with these targets.
    pub exclude: List<Glob>,
}

impl Disks {
    /// Whether the disk with this target is one of them.
    pub fn selects(&self, target: &str) -> bool {
        let named = |globs: &List<Glob>| globs.iter().any(|glob| glob.matches(target));
        (self.include.is_empty() || named(&self.include)) && !named(&self.exclude)
    }
}

/// Which backups of a domain are kept: those that one of the rules keeps. At least one must be there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[schemars(inline)]
pub struct KeepRules {
    /// So many of the newest.
    pub last: Option<Count>,
    /// The newest of each of the last so many hours that have one.
    pub hourly: Option<Count>,
    /// The newest of each of the last so many days that have one.
    pub daily: Option<Count>,
    /// The newest of each of the last so many weeks (from Monday) that have one.
    pub weekly: Option<Count>,
    /// The newest of each of the last so many months that have one.
    pub monthly: Option<Count>,
    /// The newest of each of the last so many years that have one.
    pub yearly: Option<Count>,
    /// All that are not older than the newest but one by more than this time, such as `14d`. (Counted from
    /// there, a host that was off or a clock that leapt loses nothing.)
    pub within: Option<Interval>,
}

impl KeepRules {
    /// Whether no rule is there.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What is done when the backup of a domain fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[schemars(inline)]
pub struct Retry {
    /// How often it is tried in all.
    pub attempts: Attempts,
    /// How long to wait before it is tried again.
    #[serde(default = "five_minutes")]
    pub delay: Interval,
}

fn five_minutes() -> Interval {
    Interval::from_secs(300)
}

/// A command before a backup.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[schemars(inline)]
pub struct Before {
    /// The program, by its absolute path, and its arguments. No shell sees them.
    pub command: CommandLine,
    /// How long it may take; then it is ended, and has failed.
    #[serde(default = "five_minutes")]
    pub timeout: Interval,
}

/// A command after a backup.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[schemars(inline)]
pub struct After {
    /// The program, by its absolute path, and its arguments. No shell sees them.
    pub command: CommandLine,
    /// How long it may take; then it is ended. Its failure is reported and changes nothing about the backup.
    #[serde(default = "five_minutes")]
    pub timeout: Interval,
    /// After which backups.
    #[serde(default)]
    pub when: CommandCondition,
}

/// A job with everything that counts for it.
#[derive(Clone, Debug)]
pub struct ResolvedJob<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its own keys.
    pub job: &'a Job,
    /// What its backups do.
    pub settings: Settings,
    /// How late a missed run may begin.
    pub catch_up: Window,
    /// Its media by name, in the order of `to`, each once.
    pub media: Vec<(&'a str, &'a Medium)>,
}

impl Config {
    /// The job of this name, with everything that counts for it; `None` where there is no such job.
    pub fn job(&self, name: &str) -> Option<ResolvedJob<'_>> {
        let (name, job) = self.jobs.get_key_value(name)?;
        let mut seen = BTreeSet::new();
        let named = job.to.iter().filter(|name| seen.insert(name.as_str()));
        let media = named.filter_map(|name| self.media.get_key_value(name));
        Some(ResolvedJob {
            name: name.as_str(),
            job,
            settings: job.settings(&self.defaults),
            catch_up: job.catch_up.unwrap_or(self.service.catch_up),
            media: media.map(|(name, medium)| (name.as_str(), medium)).collect(),
        })
    }
}

impl Job {
    fn settings(&self, defaults: &Settings) -> Settings {
        // Both keys of encryption go together: one that stayed would let others read what this job writes.
        let own_keys = self.encrypt_to.is_some() || self.recipients.is_some();
        let keys = if own_keys {
            (&self.encrypt_to, &self.recipients)
        } else {
            (&defaults.encrypt_to, &defaults.recipients)
        };
        Settings {
            compress: self.compress.unwrap_or(defaults.compress),
            encrypt_to: keys.0.clone(),
            recipients: keys.1.clone(),
            layout: self.layout.unwrap_or(defaults.layout),
            block_size: self.block_size.or(defaults.block_size),
            detect_zeroes: self.detect_zeroes.or(defaults.detect_zeroes),
            limit_rate: self.limit_rate.or(defaults.limit_rate),
            workers: self.workers.or(defaults.workers),
            quiesce: self.quiesce.unwrap_or(defaults.quiesce),
            pause_budget: self.pause_budget.unwrap_or(defaults.pause_budget),
            overlay_dir: self.overlay_dir.clone().or_else(|| defaults.overlay_dir.clone()),
            min_free: self.min_free.unwrap_or(defaults.min_free),
        }
    }
}
