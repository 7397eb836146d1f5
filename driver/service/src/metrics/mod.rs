//! What Prometheus reads of the service: a page on a port of this host (`http`), or files for node_exporter's
//! textfile collector, or both.
//!
//! Whatever [`super::control::ControlApi::status`] says is on the page as it is said in that moment, so
//! gauges can't lag behind and a restart takes nothing away. The core only tells of runs that have ended
//! ([`Metrics::run_ended`]), which are counted from the service's start.
//!
//! The files: `virtfold-service.prom`, and for each domain the two of a run from the command line
//! ([`virtfold_backup::metrics`]), written when they change. They carry the same metrics under the same
//! names, so both may write to one directory, and no metric is in two files.
//!
//! A domain that is in no job any more is not on the page: nobody is to be woken for a guest that was given
//! up. One that should be in a job is a warning.
//!
//! Imports: `error`, `metrics`, `service::control`, `service::acceptor`.

mod http;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

pub use self::http::Exporter;
use super::control::{DomainStatus, Status, WarningKind};
use virtfold_backup::metrics::{self, BackupMetrics, DomainLabels, MetricsPage, float, names, seconds};
use virtfold_base::error::Result;

/// A run that has ended, with a backup or without. A run that was cancelled or parked is none.
#[derive(Clone, Copy, Debug)]
pub struct RunMetrics<'a> {
    /// The domain.
    pub labels: DomainLabels<'a>,
    /// What it was like; nothing where it failed.
    pub measure: Option<&'a BackupMetrics>,
}

/// What is counted, and what was written.
#[derive(Debug, Default)]
pub struct Metrics {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    domains: BTreeMap<(String, Uuid), EndedRuns>,
    read: u64,
    archived: u64,
    underruns: u64,
    /// The times that each domain's two files say.
    written: BTreeMap<(PathBuf, Uuid), [Option<i64>; 2]>,
    /// Whose files were taken away.
    dropped: BTreeSet<(PathBuf, Uuid)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct EndedRuns {
    well: u64,
    badly: u64,
}

/// Where a page goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PageScope {
    /// All there is.
    Whole,
    /// Without what the domains' own files say.
    Service,
}

impl Metrics {
    /// Counts a run.
    pub fn run_ended(&self, run: &RunMetrics<'_>) {
        let mut counts = self.counts();
        let ended = counts.domains.entry((run.labels.domain.to_owned(), run.labels.uuid)).or_default();
        match run.measure {
            None => ended.badly += 1,
            Some(measure) => {
                ended.well += 1;
                counts.read = counts.read.saturating_add(measure.read_bytes);
                counts.archived = counts.archived.saturating_add(measure.archive_bytes);
                counts.underruns = counts.underruns.saturating_add(measure.tape_underruns.unwrap_or(0));
            }
        }
    }

    /// The page for a scrape.
    ///
    /// # Errors
    /// A defect.
    pub fn page(&self, status: &Status) -> Result<String> {
        self.build(status, PageScope::Whole).text()
    }

    /// Writes the files: that of the service, and those of the domains that have changed.
    ///
    /// # Errors
    /// A file can't be written. The others are.
    pub fn write(&self, status: &Status, directory: &Path) -> Result<()> {
        let mut result = Ok(());
        for domain in shown(status) {
            let written = self.write_domain(domain, status.service.now, directory);
            result = result.and(written);
        }
        result = result.and(self.drop_domains(status, directory));
        let page = self.build(status, PageScope::Service);
        result.and(page.write(&directory.join("virtfold-service.prom")))
    }

    fn write_domain(&self, domain: &DomainStatus, at: i64, directory: &Path) -> Result<()> {
        let Some(uuid) = domain.uuid else { return Ok(()) };
        let labels = DomainLabels { domain: &domain.domain, uuid };
        let key = (directory.to_owned(), uuid);
        let [success, failure] = self.counts().written.get(&key).copied().unwrap_or_default();
        let measure = domain.last_success.as_ref().map(|success| &success.measure);
        metrics::bound(directory, uuid, at)?;
        let now = [measure.map(|measure| measure.at), domain.last_failure.as_ref().map(|last| last.at)];
        if let (Some(measure), true) = (measure, now[0] != success) {
            metrics::succeeded(directory, labels, measure)?;
        }
        if let (Some(at), true) = (now[1], now[1] != failure) {
            metrics::failed(directory, labels, at)?;
        }
        self.counts().written.insert(key, now);
        Ok(())
    }

    /// Takes the files of domains away that are backed up no more, once: whoever backs one up by hand later
    /// has files again.
    fn drop_domains(&self, status: &Status, directory: &Path) -> Result<()> {
        let kept: BTreeSet<Uuid> = shown(status).filter_map(|domain| domain.uuid).collect();
        let known = status.domains.iter().filter_map(|domain| domain.uuid);
        let gone = known.chain(status.replaced.iter().copied()).filter(|uuid| !kept.contains(uuid));
        let gone = gone.map(|uuid| (directory.to_owned(), uuid));
        let mut counts = self.counts();
        counts.dropped.retain(|(_, uuid)| !kept.contains(uuid));
        for key in gone {
            counts.written.remove(&key);
            if !counts.dropped.contains(&key) {
                metrics::forget(directory, key.1)?;
                counts.dropped.insert(key);
            }
        }
        Ok(())
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn build(&self, status: &Status, extent: PageScope) -> MetricsPage {
        let mut page = MetricsPage::default();
        let now = status.service.now;
        show_service(status, &mut page);
        let counts = self.counts();
        page.set(&names::READ, &[], float(counts.read));
        page.set(&names::ARCHIVED, &[], float(counts.archived));
        page.set(&names::UNDERRUNS, &[], float(counts.underruns));
        for domain in shown(status) {
            let Some(uuid) = domain.uuid else { continue };
            let text = uuid.to_string();
            let labels = [domain.domain.as_str(), &text];
            let ended = counts.domains.get(&(domain.domain.clone(), uuid)).copied().unwrap_or_default();
            page.set(&names::SUCCESSES, &labels, float(ended.well));
            page.set(&names::FAILURES, &labels, float(ended.badly));
            if let Some(success) = &domain.last_success {
                page.set(&names::LAST_SUCCESS_AGE, &labels, seconds((now - success.measure.at).max(0)));
            }
            if extent == PageScope::Service {
                continue;
            }
            if let Some(success) = &domain.last_success {
                success.measure.show(DomainLabels { domain: &domain.domain, uuid }, &mut page);
            }
            if let Some(failure) = &domain.last_failure {
                page.set(&names::LAST_FAILURE, &labels, seconds(failure.at));
            }
        }
        page
    }
}

/// The domains that are backed up. While the guests are not known, all that were are shown.
fn shown(status: &Status) -> impl Iterator<Item = &DomainStatus> {
    let unknown = status.guests.is_none();
    status.domains.iter().filter(move |domain| unknown || !domain.jobs.is_empty())
}

fn show_service(status: &Status, page: &mut MetricsPage) {
    let service = &status.service;
    page.set(&names::BUILD, &[&service.version], 1.0);
    page.set(&names::START, &[], seconds(service.since));
    page.set(&names::LIBVIRT_UP, &[], f64::from(status.libvirt.error.is_none()));
    page.set(&names::RUNNING, &[], float(status.running.len().try_into().unwrap_or(u64::MAX)));
    page.set(&names::QUEUE_DEPTH, &[], float(status.queued));
    let age = status.queued_since.map_or(0, |since| (service.now - since).max(0));
    page.set(&names::QUEUE_AGE, &[], seconds(age));
    for job in &status.jobs {
        let paused = job.enabled && (job.paused || status.paused);
        page.set(&names::JOB_PAUSED, &[&job.job], f64::from(paused));
        if let Some(next) = job.next_due {
            page.set(&names::JOB_NEXT, &[&job.job], seconds(next));
        }
    }
    let count = |kind| {
        let count = status.warnings.iter().filter(|warning| warning.kind == kind).count();
        float(count.try_into().unwrap_or(u64::MAX))
    };
    page.set(&names::GUESTS_WITHOUT_JOB, &[], count(WarningKind::GuestWithoutJob));
    for kind in WarningKind::ALL {
        page.set(&names::WARNINGS, &[kind.name()], count(kind));
    }
}
