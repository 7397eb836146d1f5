//! Metrics of backups as files for node_exporter's textfile collector, in Prometheus' text format (version 0.0.4).
//!
//! Two files for each domain: what its last good backup was like, and when the last one failed. So a failure takes nothing away of what
//! the last success said, and who alerts on the age of the last success needs no second source. Each is replaced at once, whole, and
//! readable by everybody, because node_exporter is not root. Every value is a gauge: nothing is counted across runs.
//!
//! Imports: `error`, `durable`, and the reports of `job`.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{Encoder, GaugeVec, Opts, Registry, TextEncoder};
use uuid::Uuid;

use crate::durable::{Existing, PartialFile};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::job::domain::DomainReport;

/// A domain, as the labels have it.
#[derive(Clone, Copy, Debug)]
pub struct Labels<'a> {
    /// Its name.
    pub domain: &'a str,
    /// Its uuid.
    pub uuid: Uuid,
}

/// Writes what a backup was like that ended now with a good archive, to `virtfold-UUID.prom` in `directory`.
///
/// # Errors
/// When the file can't be written.
pub fn succeeded(directory: &Path, report: &DomainReport) -> Result<()> {
    let labels = Labels { domain: &report.domain, uuid: report.uuid };
    let sum =
        |of: fn(&crate::job::backup::DiskReport) -> u64| report.backup.disks.iter().map(of).sum::<u64>();
    let mut page = Page::new(labels);
    page.gauge("last_success_timestamp_seconds", "When the last good backup ended.", now());
    page.gauge(
        "last_duration_seconds",
        "How long it took, the guest's way back included.",
        report.total_seconds,
    );
    page.gauge("last_capacity_bytes", "The sizes of its disks.", float(sum(|disk| disk.capacity)));
    page.gauge("last_read_bytes", "What was read of them.", float(sum(|disk| disk.dense_length)));
    page.gauge("last_archive_bytes", "The size of its archive.", float(report.backup.archive_bytes));
    page.gauge(
        "last_thaw_failed",
        "1 where the guest did not get back onto its disks after it.",
        if report.thaw_failure.is_some() { 1.0 } else { 0.0 },
    );
    if let Some(freeze) = &report.freeze {
        let phases =
            [("frozen", freeze.frozen_ms), ("snapshot", freeze.snapshot_ms), ("pivot", freeze.pause_ms)];
        let measured: Vec<_> =
            phases.into_iter().filter_map(|(phase, ms)| Some((phase, ms? / 1000.0))).collect();
        page.phases("last_pause_seconds", "How long the guest could not write, or a part of it.", &measured);
    }
    page.write(&directory.join(format!("virtfold-{}.prom", labels.uuid)))
}

/// Writes that a backup failed now, to `virtfold-UUID-failure.prom` in `directory`.
///
/// # Errors
/// When the file can't be written.
pub fn failed(directory: &Path, labels: Labels<'_>) -> Result<()> {
    let mut page = Page::new(labels);
    page.gauge("last_failure_timestamp_seconds", "When the last backup failed that did.", now());
    page.write(&directory.join(format!("virtfold-{}-failure.prom", labels.uuid)))
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64().floor()
}

/// Gauges are floats; bytes beyond 2^53 lose their last bits, which no graph shows.
#[allow(clippy::cast_precision_loss, reason = "the format has floats only")]
fn float(bytes: u64) -> f64 {
    bytes as f64
}

/// A file on its way. The first error is kept until it is written.
struct Page<'a> {
    labels: Labels<'a>,
    registry: Registry,
    failed: Option<prometheus::Error>,
}

impl<'a> Page<'a> {
    fn new(labels: Labels<'a>) -> Self {
        Self { labels, registry: Registry::new(), failed: None }
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.add((name, help), &[], &[("", value)]);
    }

    fn phases(&mut self, name: &str, help: &str, values: &[(&str, f64)]) {
        self.add((name, help), &["phase"], values);
    }

    fn add(&mut self, (name, help): (&str, &str), more: &[&str], values: &[(&str, f64)]) {
        let uuid = self.labels.uuid.to_string();
        let added = GaugeVec::new(
            Opts::new(format!("virtfold_backup_{name}"), help),
            &[&["domain", "uuid"], more].concat(),
        )
        .and_then(|gauge| {
            for (label, value) in values {
                let own = [self.labels.domain, &uuid];
                let labels = own.into_iter().chain(more.iter().map(|_| *label)).collect::<Vec<_>>();
                gauge.get_metric_with_label_values(&labels)?.set(*value);
            }
            self.registry.register(Box::new(gauge))
        });
        self.failed = self.failed.take().or(added.err());
    }

    fn write(self, path: &Path) -> Result<()> {
        let making = || format!("cannot write the metrics '{}'", path.display());
        let mut text = Vec::new();
        let encoded = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        if let Some(error) = self.failed.or(encoded.err()) {
            return Err(Error::new(ErrorKind::Internal, making()).with_source(error));
        }
        let file = PartialFile::create(path, Existing::Replace)?;
        std::io::Write::write_all(&mut file.file(), &text).at(making)?;
        file.file().set_permissions(std::fs::Permissions::from_mode(0o644)).at(making)?;
        file.commit(Existing::Replace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_a_gauge_with_labels_that_are_escaped() {
        let directory = tempfile::tempdir().unwrap();
        let labels = Labels { domain: "a\"b\\c\nd", uuid: Uuid::nil() };
        failed(directory.path(), labels).unwrap();
        failed(directory.path(), labels).unwrap();
        let path = directory.path().join(format!("virtfold-{}-failure.prom", Uuid::nil()));
        let text = std::fs::read_to_string(&path).unwrap();
        let start = "# HELP virtfold_backup_last_failure_timestamp_seconds When the last backup failed that did.\n\
                     # TYPE virtfold_backup_last_failure_timestamp_seconds gauge\n\
                     virtfold_backup_last_failure_timestamp_seconds{domain=\"a\\\"b\\\\c\\nd\",\
                     uuid=\"00000000-0000-0000-0000-000000000000\"} 1";
        assert!(text.starts_with(start), "{text}");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        let nowhere = failed(&directory.path().join("nowhere"), labels).unwrap_err();
        assert!(nowhere.to_string().contains("nowhere"), "{nowhere}");
    }
}
