//! What a configuration says to no effect: keys that are right and fit together, and yet do not do what
//! whoever wrote them wanted. Nothing is refused for it, since a guest may come and go; it is told.
//!
//! - a job names a domain that is not there, or selects none at all (only where the domains are known);
//! - a job's `keep` lets nothing go: its media are tapes, or another job without `keep` backs the same
//!   domains up to the same medium;
//! - a job's `verify` reads nothing: its media are tapes, or its archives are encrypted.

use std::fmt;

use crate::check::place;
use crate::keys::{Config, Domains, Job};
use crate::position::Position;
use crate::suggest::nearest;
use crate::values::{Glob, MediumKind, Name};

/// Something that has no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IneffectiveSetting {
    /// Where the key stands.
    pub place: Position,
    /// The job.
    pub job: String,
    /// The key's path, dotted.
    pub key: String,
    /// What has no effect, and what was meant perhaps.
    pub message: String,
}

impl fmt::Display for IneffectiveSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: `{}`: {}", self.place, self.key, self.message)
    }
}

/// A domain of the host, as jobs select it.
#[derive(Clone, Copy, Debug)]
pub struct NamedGuest<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its tags.
    pub tags: &'a [String],
}

impl Domains {
    /// Whether a domain is left out by its name: somebody wants it to have no backup.
    pub fn leaves_out(&self, name: &str) -> bool {
        self.except.iter().any(|glob| glob.matches(name))
    }
}

impl Config {
    /// What has no effect; `host` is all domains of this host, where they are known. Jobs that are switched
    /// off are passed over.
    pub fn advice(&self, host: Option<&[NamedGuest<'_>]>) -> Vec<IneffectiveSetting> {
        let mut all = Vec::new();
        for (name, job) in self.jobs.iter().filter(|(_, job)| job.enabled) {
            if let Some(host) = host {
                self.selection(name, job, host, &mut all);
            }
            if job.keep.is_some() {
                self.keep(name, job, host, &mut all);
            }
            if !job.verify.is_empty() {
                self.verify(name, job, &mut all);
            }
        }
        all
    }

    fn advise(&self, job: &Name, keys: &[&str], message: String, all: &mut Vec<IneffectiveSetting>) {
        let path = [&["jobs", job.as_str()], keys].concat();
        let (place, key) = (place(self, &path), path.join("."));
        all.push(IneffectiveSetting { place, job: job.to_string(), key, message });
    }

    fn selection(&self, name: &Name, job: &Job, host: &[NamedGuest<'_>], all: &mut Vec<IneffectiveSetting>) {
        let before = all.len();
        for glob in job.domains.names.iter().filter_map(Glob::literal) {
            if host.iter().any(|domain| domain.name == glob) {
                continue;
            }
            let known = host.iter().map(|domain| domain.name);
            let meant =
                nearest(glob, known).map_or_else(String::new, |word| format!("; did you mean '{word}'?"));
            let message = format!("this host has no domain '{glob}'{meant}");
            self.advise(name, &["domains", "names"], message, all);
        }
        let selects = |domain: &NamedGuest<'_>| job.domains.selects(domain.name, domain.tags);
        if all.len() == before && !host.iter().any(selects) {
            let message = "it selects no domain of this host, so nothing is backed up".to_owned();
            self.advise(name, &["domains"], message, all);
        }
    }

    fn keep(
        &self,
        name: &Name,
        job: &Job,
        host: Option<&[NamedGuest<'_>]>,
        all: &mut Vec<IneffectiveSetting>,
    ) {
        let media = job.to.iter().filter_map(|medium| self.media.get_key_value(medium));
        let media: Vec<&Name> =
            media.filter(|(_, medium)| medium.to.kind() != MediumKind::Tape).map(|(name, _)| name).collect();
        if media.is_empty() {
            let message = "it has no effect on tapes, from which no single archive is removed; `retain` of the medium says how long volumes are kept";
            self.advise(name, &["keep"], message.to_owned(), all);
        }
        for medium in media {
            for (other, theirs) in &self.jobs {
                if other == name || theirs.keep.is_some() || !theirs.to.contains(medium) {
                    continue;
                }
                let Some(shared) = shared(&job.domains, &theirs.domains, host) else { continue };
                let message = format!(
                    "it has no effect on backups of {shared} in '{medium}': the job '{other}' also writes there and has no `keep`, so all of them are kept; give '{other}' a `keep`, or a medium of its own"
                );
                self.advise(name, &["keep"], message, all);
            }
        }
    }
}

impl Config {
    fn verify(&self, name: &Name, job: &Job, all: &mut Vec<IneffectiveSetting>) {
        let mut media = job.to.iter().filter_map(|medium| self.media.get(medium));
        if media.all(|medium| medium.to.kind() == MediumKind::Tape) {
            let message = "it has no effect on tapes, which somebody has to change; 'virtfold verify tape:DEVICE --due 30d' reads them";
            self.advise(name, &["verify"], message.to_owned(), all);
        }
        let settings = self.job(name.as_str()).map(|resolved| resolved.settings);
        if settings.is_some_and(|settings| settings.encrypt_to.is_some() || settings.recipients.is_some()) {
            let message = "it has no effect on encrypted archives, for the service has no secret key; run 'virtfold verify PLACE --due 30d --identity FILE' where the key is";
            self.advise(name, &["verify"], message.to_owned(), all);
        }
    }
}

/// The domains that two jobs share, in words; `None` where they share none for sure.
fn shared(ours: &Domains, theirs: &Domains, host: Option<&[NamedGuest<'_>]>) -> Option<String> {
    let Some(host) = host else {
        return may_share(ours, theirs).then(|| "the domains that both jobs select".to_owned());
    };
    let both = |domain: &&NamedGuest<'_>| {
        ours.selects(domain.name, domain.tags) && theirs.selects(domain.name, domain.tags)
    };
    let names: Vec<&str> = host.iter().filter(both).map(|domain| domain.name).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// Whether two selections meet on some host, as far as that can be told without one.
fn may_share(one: &Domains, other: &Domains) -> bool {
    let named = |a: &Domains, b: &Domains| {
        a.names
            .iter()
            .filter_map(Glob::literal)
            .any(|name| a.selects::<&str>(name, &[]) && b.selects::<&str>(name, &[]))
    };
    let same = one.names.iter().any(|glob| other.names.contains(glob));
    let tagged = one.tags.iter().any(|tag| other.tags.contains(tag));
    let patterns = |a: &Domains, b: &Domains| {
        a.all && (b.all || !b.tags.is_empty() || b.names.iter().any(|glob| glob.literal().is_none()))
    };
    same || tagged || named(one, other) || named(other, one) || patterns(one, other) || patterns(other, one)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const MEDIA: &str = "version: 1\nmedia:\n  nas: {to: /nas}\n  lto: {to: 'tape:/dev/nst0'}\njobs:\n";

    fn told(jobs: &str, host: Option<&[(&str, &[&str])]>) -> Vec<String> {
        let config = crate::parse(&format!("{MEDIA}{jobs}"), Path::new("c")).unwrap();
        let tags: Vec<Vec<String>> = host
            .iter()
            .flat_map(|host| host.iter())
            .map(|(_, tags)| tags.iter().map(|tag| (*tag).to_owned()).collect())
            .collect();
        let seen = host.map(|host| {
            host.iter().zip(&tags).map(|((name, _), tags)| NamedGuest { name, tags }).collect::<Vec<_>>()
        });
        config.advice(seen.as_deref()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_name_that_no_domain_has_is_told_with_the_one_that_was_meant() {
        let job = "  nightly: {domains: {names: [wbe, 'db-*']}, schedule: daily, to: nas}\n";
        let host: &[(&str, &[&str])] = &[("web", &[]), ("db-1", &[])];
        let expect =
            ["c:6:23: `jobs.nightly.domains.names`: this host has no domain 'wbe'; did you mean 'web'?"];
        assert_eq!(told(job, Some(host)), expect);
        assert_eq!(told(job, None), Vec::<String>::new());
        let off = job.replace("schedule", "enabled: false, schedule");
        assert_eq!(told(&off, Some(host)), Vec::<String>::new());
    }

    #[test]
    fn a_job_without_any_domain_is_told() {
        let job = "  gold: {domains: {tags: gold}, schedule: daily, to: nas}\n";
        let lines = told(job, Some(&[("web", &["golden"])]));
        assert_eq!(
            lines,
            ["c:6:10: `jobs.gold.domains`: it selects no domain of this host, so nothing is backed up"]
        );
        assert_eq!(told(job, Some(&[("web", &["gold"])])), Vec::<String>::new());
    }

    #[test]
    fn a_keep_that_another_job_or_a_tape_undoes_is_told() {
        let jobs = "  nightly: {domains: {all: true, except: scratch}, schedule: daily, to: nas, keep: {last: 3}}\n  web: {domains: {names: web}, schedule: daily, to: [nas, lto]}\n";
        let lines = told(jobs, None);
        assert!(
            lines.len() == 1
                && lines[0]
                    .contains("`jobs.nightly.keep`: it has no effect on backups of the domains that both"),
            "{lines:?}"
        );
        let lines = told(jobs, Some(&[("web", &[]), ("db", &[])]));
        assert!(
            lines.len() == 1
                && lines[0].contains("on backups of web in 'nas': the job 'web' also writes there"),
            "{lines:?}"
        );
        // Nothing is shared with what is left out.
        let apart = jobs.replace("names: web", "names: scratch");
        assert_eq!(told(&apart, None), Vec::<String>::new());
        assert_eq!(told(&apart, Some(&[("web", &[]), ("scratch", &[])])), Vec::<String>::new());
        let both = jobs.replace("[nas, lto]", "[nas, lto], keep: {last: 1}");
        assert_eq!(told(&both, None), Vec::<String>::new());
        let verify = "  nightly: {domains: {all: true}, schedule: daily, to: lto, verify: weekly, encrypt-to: age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p}\n";
        let lines = told(verify, None);
        assert!(
            lines.len() == 2 && lines[0].contains("tapes") && lines[1].contains("secret key"),
            "{lines:?}"
        );
        assert_eq!(told(&verify.replace("lto", "nas"), None).len(), 1);
        let tape = "  nightly: {domains: {all: true}, schedule: daily, to: lto, keep: {last: 3}}\n";
        let lines = told(tape, None);
        assert!(lines.len() == 1 && lines[0].contains("no effect on tapes"), "{lines:?}");
    }
}
