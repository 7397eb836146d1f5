//! What no single value can know: whether keys fit together. Each fault is told at the key that is to be
//! changed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::error::ConfigError;
use crate::keys::{Config, Job, Medium};
use crate::position::Position;
use crate::suggest::nearest;
use crate::values::{MediumKind, Name, Trigger};

/// Checks a configuration whose keys are each right by themselves.
///
/// # Errors
/// The first fault: of the media, then of the jobs, by name.
pub(crate) fn check(config: &Config) -> Result<(), ConfigError> {
    let mut places: BTreeMap<&str, &Name> = BTreeMap::new();
    for (name, medium) in &config.media {
        if let Some(other) = places.insert(medium.to.as_str().trim_end_matches('/'), name) {
            let why = format!("the medium '{other}' goes to the same place; give each its own");
            return Err(config.refusal(&["media", name.as_str(), "to"], why));
        }
        check_medium(config, name, medium)?;
    }
    for (name, job) in &config.jobs {
        check_job(config, name, job)?;
    }
    Ok(())
}

fn check_medium(config: &Config, name: &Name, medium: &Medium) -> Result<(), ConfigError> {
    let kind = medium.to.kind();
    let refuse = |key, why: &str| Err(config.refusal(&["media", name.as_str(), key], why.to_owned()));
    if kind != MediumKind::Tape {
        for (key, set) in [
            ("change-command", medium.change_command.is_some()),
            ("pool", medium.pool.is_some()),
            ("retain", medium.retain.is_some()),
        ] {
            if set {
                return refuse(key, "only a tape has this key");
            }
        }
    } else if medium.concurrency.is_some_and(|number| number.get() > 1) {
        return refuse("concurrency", "a tape takes one backup at a time; write 1, or omit the key");
    }
    if medium.mounted.is_some() && kind != MediumKind::Directory {
        return refuse("mounted", "only a directory has this key");
    }
    if medium.environment_file.is_some() && kind != MediumKind::ObjectStore {
        return refuse("environment-file", "only an object store has this key");
    }
    Ok(())
}

fn check_job(config: &Config, name: &Name, job: &Job) -> Result<(), ConfigError> {
    let path = |keys: &[&'static str]| [&["jobs", name.as_str()], keys].concat();
    let refuse = |keys: &[&'static str], why: &str| Err(config.refusal(&path(keys), why.to_owned()));
    if job.domains.is_empty() {
        return refuse(&["domains"], "it selects nothing; set names or tags, or all: true");
    }
    if job.domains.all && !(job.domains.names.is_empty() && job.domains.tags.is_empty()) {
        return refuse(
            &["domains", "all"],
            "names and tags select nothing beside all; leave one of them out",
        );
    }
    if job.to.is_empty() {
        return refuse(&["to"], "it names no medium");
    }
    for (at, medium) in job.to.iter().enumerate() {
        if job.to[..at].contains(medium) {
            return refuse(&["to"], &format!("'{medium}' is named twice"));
        }
        if !config.media.contains_key(medium) {
            return Err(unknown_medium(config, &path(&["to"]), medium));
        }
    }
    if job.keep.is_some_and(|keep| keep.is_empty()) {
        return refuse(&["keep"], "it has no rule, so nothing would be kept; omit it to keep all");
    }
    if job.schedule.len() > 1 && job.schedule.iter().any(crate::schedule::Schedule::is_manual) {
        return refuse(&["schedule"], "'manual' can't be combined with other words");
    }
    // `defined` has no backup made; it only warns.
    let triggered = job.on.iter().any(|trigger| *trigger != Trigger::Defined);
    if job.enabled && job.schedule.is_empty() && !triggered {
        let why = "nothing would start it; set schedule, or on to an event that has a backup made, or write 'schedule: manual' for a job that only 'virtfold run' starts";
        return refuse(&[], why);
    }
    Ok(())
}

fn unknown_medium(config: &Config, path: &[&str], medium: &Name) -> ConfigError {
    let known: Vec<&str> = config.media.keys().map(Name::as_str).collect();
    let meant = nearest(medium.as_str(), known.iter().copied()).map(str::to_owned);
    let message = match (&meant, known.is_empty()) {
        (Some(_), _) => format!("there is no medium '{medium}'"),
        (None, true) => format!("there is no medium '{medium}'; the section media is empty"),
        (None, false) => format!("there is no medium '{medium}'; known: {}", known.join(", ")),
    };
    ConfigError::BadValue { place: place(config, path), key: path.join("."), message, meant }
}

impl Config {
    /// An error about the value of a key, for whoever knows more of it than this crate does. Its place is
    /// that of the key, or of the nearest section around it that a file has.
    pub fn refusal(&self, path: &[&str], message: String) -> ConfigError {
        ConfigError::BadValue { place: place(self, path), key: path.join("."), message, meant: None }
    }
}

/// Where a key stands, or the nearest section around it that a file has.
pub(crate) fn place(config: &Config, path: &[&str]) -> Position {
    let path: Vec<String> = path.iter().map(|key| (*key).to_owned()).collect();
    let around = (0..=path.len()).rev().find_map(|end| config.origins.get(&path[..end]));
    around.cloned().unwrap_or_else(|| Position { file: Arc::from(Path::new("")), line: 1, column: 1 })
}
