//! Metrics of backups in Prometheus' text format (version 0.0.4), and files of them for node_exporter's
//! textfile collector.
//!
//! A run from the command line writes two files for each domain: what its last good backup was like, and when
//! the last one failed. So a failure takes nothing away of what the last success said, and who alerts on the
//! age of the last success needs no second source. Each is replaced at once, whole, and readable by
//! everybody, because node_exporter is not root. Every value there is a gauge: nothing is counted across
//! runs. The service (`service::metrics`) makes its page of the same measures, and counts.
//!
//! - [`names`]: what metrics there are.
//! - [`BackupMetrics`]: what a good backup was like, in numbers.
//! - [`MetricsPage`]: a text of metrics on its way.
//!
//! Imports: `error`, `partial_file`, and the reports of this crate.

pub mod names;
#[cfg(test)]
mod packaging_tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use prometheus::{CounterVec, GaugeVec, Opts, Registry, TextEncoder};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use self::names::{Family, MetricKind};
use crate::domain::DomainReport;
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::partial_file::{Overwrite, PartialFile};

/// The longest file of a domain that is looked at, bytes.
const LONGEST: u64 = 1 << 20;
/// How far ahead a time may be, seconds: clocks are set back by moments all the time.
const AHEAD: i64 = 600;

/// A domain, as the labels have it.
#[derive(Clone, Copy, Debug)]
pub struct DomainLabels<'a> {
    /// Its name.
    pub domain: &'a str,
    /// Its uuid.
    pub uuid: Uuid,
}

/// What a good backup was like, in numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackupMetrics {
    /// When it ended, seconds since 1970.
    pub at: i64,
    /// How long it took, with the unfreeze.
    pub seconds: f64,
    /// The sizes of its disks.
    pub capacity_bytes: u64,
    /// What was copied of them.
    pub read_bytes: u64,
    /// What its disks have recorded.
    #[serde(default)]
    pub allocated_bytes: u64,
    /// Where it was an increment: how the changes of each disk were found.
    #[serde(default)]
    pub changes: Vec<DiskMethod>,
    /// The size of its archive.
    pub archive_bytes: u64,
    /// Whether the guest did not get back onto its disks after it.
    pub thaw_failed: bool,
    /// How long the agent kept the file systems frozen, milliseconds.
    pub frozen_ms: Option<f64>,
    /// How long the snapshot took, milliseconds.
    pub snapshot_ms: Option<f64>,
    /// The longest pause at a pivot, milliseconds.
    pub pause_ms: Option<f64>,
    /// How often a drive had to wait for data; nothing where it did not go to tape.
    pub tape_underruns: Option<u64>,
}

/// How the changes of a disk were found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskMethod {
    /// The disk.
    pub disk: String,
    /// The method.
    pub method: String,
}

impl BackupMetrics {
    /// Of a backup that ended `at`.
    pub fn of(report: &DomainReport, at: i64) -> Self {
        let sum = |of: fn(&crate::session::DiskReport) -> u64| {
            report.backup.disks.iter().map(of).fold(0, u64::saturating_add)
        };
        let freeze = report.freeze.as_ref();
        let tapes = &report.backup.tapes;
        let underruns = || tapes.iter().map(|tape| tape.underruns).fold(0, u64::saturating_add);
        Self {
            at,
            seconds: report.total_seconds,
            capacity_bytes: sum(|disk| disk.capacity),
            read_bytes: sum(|disk| disk.dense_length),
            allocated_bytes: sum(|disk| disk.allocated),
            changes: report.backup.disks.iter().filter_map(DiskMethod::of).collect(),
            archive_bytes: report.backup.archive_bytes,
            thaw_failed: report.thaw_failure.is_some(),
            frozen_ms: freeze.and_then(|freeze| freeze.frozen_ms),
            snapshot_ms: freeze.and_then(|freeze| freeze.snapshot_ms),
            pause_ms: freeze.and_then(|freeze| freeze.pause_ms),
            tape_underruns: (!tapes.is_empty()).then(underruns),
        }
    }

    /// Puts it on a page.
    pub fn show(&self, labels: DomainLabels<'_>, page: &mut MetricsPage) {
        let uuid = labels.uuid.to_string();
        let own = [labels.domain, &uuid];
        page.set(&names::LAST_SUCCESS, &own, seconds(self.at));
        page.set(&names::LAST_DURATION, &own, self.seconds);
        page.set(&names::LAST_CAPACITY, &own, float(self.capacity_bytes));
        page.set(&names::LAST_READ, &own, float(self.read_bytes));
        page.set(&names::LAST_ARCHIVE, &own, float(self.archive_bytes));
        if self.capacity_bytes > 0 {
            let folded = 1.0 - float(self.read_bytes) / float(self.capacity_bytes);
            page.set(&names::LAST_FOLDED, &own, folded.max(0.0));
        }
        if !self.changes.is_empty() && self.allocated_bytes > 0 {
            let changed = float(self.read_bytes) / float(self.allocated_bytes);
            page.set(&names::LAST_CHANGED, &own, changed.min(1.0));
        }
        for DiskMethod { disk, method } in &self.changes {
            page.set(&names::LAST_CHANGES, &[labels.domain, &uuid, disk, method], 1.0);
        }
        page.set(&names::LAST_THAW_FAILED, &own, if self.thaw_failed { 1.0 } else { 0.0 });
        let phases = [("frozen", self.frozen_ms), ("snapshot", self.snapshot_ms), ("pivot", self.pause_ms)];
        for (phase, ms) in phases {
            if let Some(ms) = ms {
                page.set(&names::LAST_PAUSE, &[labels.domain, &uuid, phase], ms / 1000.0);
            }
        }
        if let Some(underruns) = self.tape_underruns {
            page.set(&names::LAST_UNDERRUNS, &own, float(underruns));
        }
    }
}

impl DiskMethod {
    fn of(disk: &crate::session::DiskReport) -> Option<Self> {
        let method = disk.changes.as_ref()?.method.clone();
        Some(Self { disk: disk.target.clone(), method })
    }
}

/// Writes what a good backup was like, to `virtfold-UUID.prom` in `directory`.
///
/// # Errors
/// When the file can't be written.
pub fn succeeded(directory: &Path, labels: DomainLabels<'_>, measure: &BackupMetrics) -> Result<()> {
    let mut page = MetricsPage::default();
    measure.show(labels, &mut page);
    let [success, _] = names_of(labels.uuid);
    page.write(&directory.join(success))
}

/// Writes that a backup failed, to `virtfold-UUID-failure.prom` in `directory`.
///
/// # Errors
/// When the file can't be written.
pub fn failed(directory: &Path, labels: DomainLabels<'_>, at: i64) -> Result<()> {
    let mut page = MetricsPage::default();
    bound(directory, labels.uuid, at)?;
    page.set(&names::LAST_FAILURE, &[labels.domain, &labels.uuid.to_string()], seconds(at));
    let [_, failure] = names_of(labels.uuid);
    page.write(&directory.join(failure))
}

/// What a verification of a destination came to.
#[derive(Clone, Copy, Debug)]
pub struct VerifyMetrics {
    /// When it ended, seconds since 1970.
    pub at: i64,
    /// Archives there that failed their last verification.
    pub unsound: u64,
    /// Archives there that are due still.
    pub due: u64,
}

/// Writes what a verification came to, to `virtfold-verify-DIGEST.prom` in `directory`: a destination's name
/// is none for a file.
///
/// # Errors
/// When the file can't be written.
pub fn verified(directory: &Path, destination: &str, measure: VerifyMetrics) -> Result<()> {
    let mut page = MetricsPage::default();
    page.set(&names::VERIFY_LAST, &[destination], seconds(measure.at));
    page.set(&names::VERIFY_UNSOUND, &[destination], float(measure.unsound));
    page.set(&names::VERIFY_DUE, &[destination], float(measure.due));
    let digest = blake3::hash(destination.as_bytes()).to_hex();
    let digest = digest.get(..16).unwrap_or_default();
    page.write(&directory.join(format!("virtfold-verify-{digest}.prom")))
}

/// The files of a domain that are there.
pub fn files_of(directory: &Path, uuid: Uuid) -> Vec<PathBuf> {
    names_of(uuid).map(|name| directory.join(name)).into_iter().filter(|path| path.exists()).collect()
}

fn names_of(uuid: Uuid) -> [String; 2] {
    [format!("virtfold-{uuid}.prom"), format!("virtfold-{uuid}-failure.prom")]
}

/// Times in the files of a domain that are still to come, by more than clocks are set back by: a clock was
/// ahead when they were written. They would look like
/// fresh backups until they have come, so they become `now`.
///
/// # Errors
/// A file can't be read or written.
pub fn bound(directory: &Path, uuid: Uuid, now: i64) -> Result<()> {
    for name in names_of(uuid) {
        let path = directory.join(name);
        let reading = || format!("cannot read the metrics '{}'", path.display());
        let file = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            opened => opened.at(reading)?,
        };
        let mut text = String::new();
        file.take(LONGEST).read_to_string(&mut text).at(reading)?;
        if let Some(bound) = bounded(&text, now) {
            tracing::error!(
                "'{}' said a time that is still to come: the clock was ahead when it was written, or is behind now; its time is set to now",
                path.display()
            );
            replace(&path, &bound)?;
        }
    }
    Ok(())
}

/// A text of metrics with no time to come; nothing, where it has none.
fn bounded(text: &str, now: i64) -> Option<String> {
    let times = [&names::LAST_SUCCESS, &names::LAST_FAILURE];
    let is_ahead = |line: &str| {
        let (name, rest) = line.split_once('{')?;
        let value: f64 = rest.rsplit_once("} ")?.1.trim().parse().ok()?;
        let is_time = times.iter().any(|family| family.name == name);
        (is_time && value > seconds(now.saturating_add(AHEAD))).then_some(())
    };
    if !text.lines().any(|line| is_ahead(line).is_some()) {
        return None;
    }
    let lines = text.lines().map(|line| match (is_ahead(line), line.rsplit_once("} ")) {
        (Some(()), Some((start, _))) => format!("{start}}} {}\n", seconds(now)),
        _ => format!("{line}\n"),
    });
    Some(lines.collect())
}

/// Takes the files of a domain away, where there are any.
///
/// # Errors
/// When one can't be removed.
pub fn forget(directory: &Path, uuid: Uuid) -> Result<()> {
    for name in names_of(uuid) {
        let path = directory.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(format!("cannot remove '{}'", path.display()), error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Now, in seconds since 1970.
pub fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// Metrics are floats; bytes beyond 2^53 lose their last bits, which no graph shows.
#[allow(clippy::cast_precision_loss, reason = "the format has floats only")]
pub fn float(number: u64) -> f64 {
    number as f64
}

/// As [`float`], of a time or of a length of time.
#[allow(clippy::cast_precision_loss, reason = "the format has floats only")]
pub fn seconds(time: i64) -> f64 {
    time as f64
}

/// The values of a metric.
#[derive(Debug)]
enum Values {
    Gauge(GaugeVec),
    Counter(CounterVec),
}

/// A text of metrics on its way. The first error is kept until it is asked for.
#[derive(Debug, Default)]
pub struct MetricsPage {
    registry: Registry,
    values: BTreeMap<&'static str, Values>,
    failed: Option<prometheus::Error>,
}

impl MetricsPage {
    /// Gives a metric a value, with the values of its labels in their order.
    pub fn set(&mut self, family: &Family, labels: &[&str], value: f64) {
        let done = self.try_set(family, labels, value);
        self.failed = self.failed.take().or(done.err());
    }

    fn try_set(&mut self, family: &Family, labels: &[&str], value: f64) -> prometheus::Result<()> {
        if !self.values.contains_key(family.name) {
            let options = Opts::new(family.name, family.help);
            let values = match family.kind {
                MetricKind::Gauge => {
                    let gauge = GaugeVec::new(options, family.labels)?;
                    self.registry.register(Box::new(gauge.clone()))?;
                    Values::Gauge(gauge)
                }
                MetricKind::Counter => {
                    let counter = CounterVec::new(options, family.labels)?;
                    self.registry.register(Box::new(counter.clone()))?;
                    Values::Counter(counter)
                }
            };
            self.values.insert(family.name, values);
        }
        match self.values.get(family.name) {
            Some(Values::Gauge(gauge)) => gauge.get_metric_with_label_values(labels)?.set(value),
            Some(Values::Counter(counter)) => counter.get_metric_with_label_values(labels)?.inc_by(value),
            None => {}
        }
        Ok(())
    }

    /// The text.
    ///
    /// # Errors
    /// A defect: a metric that is declared or used wrongly.
    pub fn text(self) -> Result<String> {
        let wrong =
            |error| Error::new(ErrorKind::Internal, "the metrics can't be written").with_source(error);
        match self.failed {
            Some(error) => Err(wrong(error)),
            None => TextEncoder::new().encode_to_string(&self.registry.gather()).map_err(wrong),
        }
    }

    /// Writes it to a file, at once and readable by everybody.
    ///
    /// # Errors
    /// Those of [`MetricsPage::text`]; the file can't be written.
    pub fn write(self, path: &Path) -> Result<()> {
        let making = || format!("cannot write the metrics '{}'", path.display());
        let text = self.text().map_err(|error| error.within(making()))?;
        replace(path, &text)
    }
}

/// Puts a text in a file's place, at once and readable by everybody.
fn replace(path: &Path, text: &str) -> Result<()> {
    let making = || format!("cannot write the metrics '{}'", path.display());
    let file = PartialFile::create(path, Overwrite::Replace)?;
    std::io::Write::write_all(&mut file.file(), text.as_bytes()).at(making)?;
    file.file().set_permissions(std::fs::Permissions::from_mode(0o644)).at(making)?;
    file.commit_or_drop(Overwrite::Replace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_a_gauge_with_labels_that_are_escaped() {
        let directory = tempfile::tempdir().unwrap();
        let labels = DomainLabels { domain: "a\"b\\c\nd", uuid: Uuid::nil() };
        failed(directory.path(), labels, 17).unwrap();
        failed(directory.path(), labels, 18).unwrap();
        let path = directory.path().join(format!("virtfold-{}-failure.prom", Uuid::nil()));
        let text = std::fs::read_to_string(&path).unwrap();
        let whole = "# HELP virtfold_backup_last_failure_timestamp_seconds When the last backup failed that did.\n\
                     # TYPE virtfold_backup_last_failure_timestamp_seconds gauge\n\
                     virtfold_backup_last_failure_timestamp_seconds{domain=\"a\\\"b\\\\c\\nd\",\
                     uuid=\"00000000-0000-0000-0000-000000000000\"} 18\n";
        assert_eq!(text, whole);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        let nowhere = failed(&directory.path().join("nowhere"), labels, 1).unwrap_err();
        assert!(nowhere.to_string().contains("nowhere"), "{nowhere}");
    }

    /// A clock that was ten years ahead for a backup must not have the next ten years look well.
    #[test]
    fn a_time_to_come_does_not_hide_that_nothing_succeeds() {
        let directory = tempfile::tempdir().unwrap();
        let labels = DomainLabels { domain: "a} 9", uuid: Uuid::nil() };
        let measure = BackupMetrics {
            at: 2_082_758_400,
            seconds: 1.5,
            capacity_bytes: 4_000_000_000,
            read_bytes: 3_000_000_000,
            allocated_bytes: 4_000_000_000,
            changes: vec![DiskMethod { disk: "vda".into(), method: "compare".into() }],
            archive_bytes: 1,
            thaw_failed: false,
            frozen_ms: None,
            snapshot_ms: None,
            pause_ms: None,
            tape_underruns: None,
        };
        let path = directory.path().join(format!("virtfold-{}.prom", Uuid::nil()));
        let said = || {
            let text = std::fs::read_to_string(&path).unwrap();
            let line = text.lines().find(|line| line.starts_with(names::LAST_SUCCESS.name)).unwrap();
            assert!(text.contains("last_capacity_bytes{domain=\"a} 9\""), "{text}");
            assert!(
                text.contains("last_changes{disk=\"vda\",") && text.contains("method=\"compare\""),
                "{text}"
            );
            let changed = text.lines().find(|line| line.starts_with(names::LAST_CHANGED.name)).unwrap();
            assert!(changed.ends_with(" 0.75"), "{changed}");
            (line.rsplit_once(' ').unwrap().1.parse::<i64>().unwrap(), text)
        };
        bound(directory.path(), Uuid::nil(), 1).unwrap();
        succeeded(directory.path(), labels, &measure).unwrap();
        bound(directory.path(), Uuid::nil(), measure.at - 600).unwrap();
        let (_, before) = said();
        failed(directory.path(), labels, 1_795_000_000).unwrap();
        assert_eq!(said().0, 1_795_000_000);
        assert_eq!(said().1, before.replace("2082758400", "1795000000"));
        // Once: it grows old from then on.
        failed(directory.path(), labels, 1_796_000_000).unwrap();
        assert_eq!(said().0, 1_795_000_000);
    }

    #[test]
    fn a_metric_used_wrongly_is_a_defect_and_no_half_page() {
        let mut page = MetricsPage::default();
        page.set(&names::LIBVIRT_UP, &[], 1.0);
        page.set(&names::JOB_PAUSED, &[], 1.0);
        assert_eq!(page.text().unwrap_err().kind(), ErrorKind::Internal);
    }

    #[test]
    fn no_name_is_given_twice() {
        let mut names: Vec<_> = names::ALL.iter().map(|family| family.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), names::ALL.len());
    }
}
