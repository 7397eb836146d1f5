//! What a run says to programs: events, one JSON object a line, each with its kind in `event`.
//!
//! The program prints them with `--json`; the service reads those of its own runs. Both use the types here,
//! so that a field that is renamed on one side does not read as zero on the other.
//!
//! Imports: `error`, and the reports of this crate.

use serde::{Deserialize, Serialize};

use super::ProgressSnapshot;
use super::restore::LostRange;
use virtfold_base::error::{Error, ErrorKind, sentence};

/// One line. `S` is the report of the verb; whoever does not want it reads [`serde::de::IgnoredAny`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event<S> {
    /// How far it is, every second.
    Progress(ProgressEvent),
    /// Bytes that are lost.
    Damage(LostRange),
    /// Why the verb failed. It is the last one, behind the summary where there is one.
    Error(ErrorEvent),
    /// What came of it.
    Summary(S),
}

/// How far a run is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressEvent {
    /// What is being done, a word.
    pub phase: String,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all; zero while not known.
    pub total: u64,
    /// The mean rate since the phase began.
    pub bytes_per_second: u64,
    /// What is left at that rate.
    pub seconds_left: Option<u64>,
}

impl From<&ProgressSnapshot> for ProgressEvent {
    fn from(now: &ProgressSnapshot) -> Self {
        let (bytes_per_second, left) = now.pace();
        let (phase, seconds_left) = (now.phase.to_owned(), left.map(|left| left.as_secs()));
        Self { phase, done: now.done, total: now.total, bytes_per_second, seconds_left }
    }
}

/// Why a run failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorEvent {
    /// What kind of failure it is.
    pub kind: ErrorKind,
    /// The error and its causes.
    pub message: String,
    /// What can be done about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl From<&Error> for ErrorEvent {
    fn from(error: &Error) -> Self {
        let hint = error.hint().map(ToOwned::to_owned);
        Self { kind: error.kind(), message: sentence(error), hint }
    }
}

impl From<ErrorEvent> for Error {
    fn from(event: ErrorEvent) -> Self {
        let error = Self::new(event.kind, event.message);
        match event.hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;
    use std::time::Duration;

    use serde::de::{DeserializeOwned, IgnoredAny};
    use serde_json::{Value, json};

    use super::*;
    use crate::domain::{DomainReport, SkippedDisk, UnfreezeFailure};
    use crate::freeze::{DiskRecovery, FreezeReport, RecoverReport, Recovery, RecoveryStatus};
    use crate::session::{BackupReport, CopyReport, DiskReport};
    use virtfold_archive::layout::BackupKind;
    use virtfold_medium::tape::TapeReport;

    /// What is written reads back as it was, and has the words that programs know.
    fn round_trip<S: Serialize + DeserializeOwned + Debug>(event: &Event<S>) -> Value {
        let line = serde_json::to_string(event).unwrap();
        let back: Event<S> = serde_json::from_str(&line).unwrap();
        assert_eq!(format!("{back:?}"), format!("{event:?}"));
        // Whoever does not want the report reads the rest.
        serde_json::from_str::<Event<IgnoredAny>>(&line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn recovery() -> Recovery {
        let words = |word: &str| vec![word.to_owned()];
        Recovery {
            domain: "0".into(),
            name: "web".into(),
            job: Some("1".into()),
            verdict: RecoveryStatus::NeedsAttention,
            found: words("found"),
            done: words("done"),
            remains: words("remains"),
            disks: vec![DiskRecovery {
                target: "vda".into(),
                base: "/a".into(),
                overlay: Some("/b".into()),
                found: words("found"),
                done: words("done"),
                remains: words("remains"),
            }],
        }
    }

    fn backup() -> BackupReport {
        let copy = CopyReport {
            to: "/b".into(),
            archive: None,
            failure: Some("full".into()),
            hint: Some("make room".into()),
            kind: Some(ErrorKind::NoSpace),
        };
        BackupReport {
            archive: "/a/x.tar".into(),
            id: uuid::Uuid::from_u128(7),
            archive_bytes: 1 << 60,
            encrypted: true,
            resumed_at: Some(4096),
            kind: BackupKind::Full,
            parent: None,
            full_reason: None,
            root: "ab".into(),
            signed: None,
            seconds: 1.5,
            tapes: vec![TapeReport { volumes: vec!["T0".into()], underruns: 3, ..TapeReport::default() }],
            disks: vec![DiskReport {
                target: "vda".into(),
                capacity: u64::MAX,
                allocated: 2,
                dense_length: 3,
                runs: 4,
                changes: None,
                warnings: vec!["none".into()],
            }],
            copies: vec![copy],
            head: None,
        }
    }

    #[test]
    fn every_event_reads_back_as_it_was() {
        let snapshot =
            ProgressSnapshot { phase: "copying", total: 300, done: 100, elapsed: Duration::from_secs(2) };
        let progress = round_trip(&Event::<Value>::Progress((&snapshot).into()));
        assert_eq!(
            progress,
            json!({"event": "progress", "phase": "copying", "done": 100, "total": 300, "bytes_per_second": 50, "seconds_left": 4})
        );
        let lost = round_trip(&Event::<Value>::Damage(LostRange { disk: "vda".into(), start: 1, length: 2 }));
        assert_eq!(lost, json!({"event": "damage", "disk": "vda", "start": 1, "length": 2}));
        let error = Error::new(ErrorKind::NoSpace, "it is full").with_source("why").with_hint("make room");
        let error = round_trip(&Event::<Value>::Error((&error).into()));
        assert_eq!(
            error,
            json!({"event": "error", "kind": "no-space", "message": "it is full: why", "hint": "make room"})
        );
    }

    #[test]
    fn every_report_that_the_service_reads_comes_back_as_it_was() {
        let told = round_trip(&Event::Summary(backup()));
        assert_eq!((&told["event"], &told["copies"][0]["kind"]), (&json!("summary"), &json!("no-space")));
        let domain = DomainReport {
            domain: "web".into(),
            uuid: uuid::Uuid::from_u128(9),
            way: "online".into(),
            freeze: Some(FreezeReport { quiesced: true, pause_ms: Some(2.25), ..FreezeReport::default() }),
            left_out: vec![SkippedDisk { target: "sda".into(), rule: "a CD".into() }],
            notes: vec!["a note".into()],
            recovered: vec![recovery()],
            thaw_failure: Some(UnfreezeFailure {
                sentence: "stuck".into(),
                hint: "look".into(),
                kind: ErrorKind::InUse,
            }),
            total_seconds: 3.5,
            backup: backup(),
        };
        let told = round_trip(&Event::Summary(domain));
        assert_eq!((&told["archive"], &told["freeze"]["pause_ms"]), (&json!("/a/x.tar"), &json!(2.25)));
        let told = round_trip(&Event::Summary(RecoverReport { domains: vec![recovery()] }));
        assert_eq!(told["domains"][0]["verdict"], "attention");
    }
}
