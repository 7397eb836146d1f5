//! The metrics that virtfold exports: names, kinds, labels and what they mean, in one place. Whatever shows a
//! metric takes it from here; a test holds the dashboard, the alert rules and the list in
//! `packaging/README.md` against [`ALL`].

/// What kind of metric it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// A value that goes up and down.
    Gauge,
    /// A count since the service started.
    Counter,
}

/// A metric.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// What it means.
    pub help: &'static str,
    /// What kind it is.
    pub kind: MetricKind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
}

const NONE: &[&str] = &[];
const DOMAIN: &[&str] = &["domain", "uuid"];
const DESTINATION: &[&str] = &["destination"];

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Family {
    Family { name, help, kind: MetricKind::Gauge, labels }
}

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Family {
    Family { name, help, kind: MetricKind::Counter, labels }
}

/// Declares the metrics and the list of all of them.
macro_rules! families {
    ($($id:ident = $kind:ident($name:literal, $labels:expr, $help:literal);)*) => {
        $(
            #[doc = $help]
            pub const $id: Family = $kind($name, $labels, $help);
        )*
        /// All of them, in the order in which people look for them.
        pub const ALL: &[&Family] = &[$(&$id),*];
    };
}

families! {
    LAST_SUCCESS = gauge("virtfold_backup_last_success_timestamp_seconds", DOMAIN, "When the last good backup ended.");
    LAST_SUCCESS_AGE = gauge("virtfold_backup_last_success_age_seconds", DOMAIN, "How long ago the last good backup ended, when this was written.");
    LAST_DURATION = gauge("virtfold_backup_last_duration_seconds", DOMAIN, "How long it took, with the unfreeze.");
    LAST_CAPACITY = gauge("virtfold_backup_last_capacity_bytes", DOMAIN, "The sizes of its disks.");
    LAST_READ = gauge("virtfold_backup_last_read_bytes", DOMAIN, "What was copied of them.");
    LAST_ARCHIVE = gauge("virtfold_backup_last_archive_bytes", DOMAIN, "The size of its archive.");
    LAST_FOLDED = gauge("virtfold_backup_last_folded_ratio", DOMAIN, "The part of its disks that was not copied: nothing is recorded there, or it has not changed: 0 to 1.");
    LAST_CHANGED = gauge("virtfold_backup_last_changed_ratio", DOMAIN, "Where it was an increment, the part of what its disks have recorded that changed: 0 to 1.");
    LAST_CHANGES = gauge("virtfold_backup_last_changes", &["domain", "uuid", "disk", "method"], "Where it was an increment: 1; how it was found what changed on a disk is a label.");
    LAST_THAW_FAILED = gauge("virtfold_backup_last_thaw_failed", DOMAIN, "1 where the guest did not get back onto its disks after it.");
    LAST_PAUSE = gauge("virtfold_backup_last_pause_seconds", &["domain", "uuid", "phase"], "How long the guest could not write, or a part of it.");
    LAST_UNDERRUNS = gauge("virtfold_backup_last_tape_underruns", DOMAIN, "How often a tape drive had to wait for data, where it went to tape.");
    LAST_FAILURE = gauge("virtfold_backup_last_failure_timestamp_seconds", DOMAIN, "When the last backup failed that did.");
    SUCCESSES = counter("virtfold_backup_successes_total", DOMAIN, "Good backups since the service started.");
    FAILURES = counter("virtfold_backup_failures_total", DOMAIN, "Backups that failed since the service started.");
    READ = counter("virtfold_backup_read_bytes_total", NONE, "What good backups read of disks since the service started.");
    ARCHIVED = counter("virtfold_backup_archived_bytes_total", NONE, "The sizes of the archives since the service started.");
    UNDERRUNS = counter("virtfold_tape_underruns_total", NONE, "How often a tape drive had to wait for data since the service started.");
    VERIFY_LAST = gauge("virtfold_verify_last_timestamp_seconds", DESTINATION, "When archives of a destination were verified last ('verify --due').");
    VERIFY_UNSOUND = gauge("virtfold_verify_unsound_archives", DESTINATION, "Archives there that failed their last verification, or were replaced.");
    VERIFY_DUE = gauge("virtfold_verify_due_archives", DESTINATION, "Archives there that were still due to be verified after it.");
    RUNNING = gauge("virtfold_running", NONE, "Backups that run.");
    QUEUE_DEPTH = gauge("virtfold_queue_depth", NONE, "Entries of the queue that wait.");
    QUEUE_AGE = gauge("virtfold_queue_oldest_age_seconds", NONE, "How long ago the entry was due that waits longest; 0 where none waits.");
    JOB_NEXT = gauge("virtfold_job_next_run_timestamp_seconds", &["name"], "When a job is due next; absent where it has no schedule.");
    JOB_PAUSED = gauge("virtfold_job_paused", &["name"], "1 where a job is paused, by name or with all.");
    GUESTS_WITHOUT_JOB = gauge("virtfold_guests_without_job", NONE, "Guests that no job backs up.");
    WARNINGS = gauge("virtfold_warnings", &["kind"], "What 'virtfold status' warns of, by kind.");
    LIBVIRT_UP = gauge("virtfold_libvirt_up", NONE, "1 where libvirt can be reached.");
    START = gauge("virtfold_service_start_timestamp_seconds", NONE, "When the service started.");
    BUILD = gauge("virtfold_build_info", &["version"], "1; the version is a label.");
}
