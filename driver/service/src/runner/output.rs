//! What a run of this program says: its progress, its summary, its error; and what a command of the
//! configuration says.
//!
//! Imports: `backup` (events and reports), `metrics` (measures), `control` (plain types), `child_process`,
//! `engine` (its inputs).

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crossbeam_channel::Sender;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use super::child_process::OutputListener;
use crate::control::RunProgress;
use crate::engine::Input;
use virtfold_backup::domain::DomainReport;
use virtfold_backup::events::{ErrorEvent, Event, ProgressEvent};
use virtfold_backup::freeze::{RecoverReport, RecoveryStatus};
use virtfold_backup::metrics::{self, BackupMetrics};
use virtfold_base::error::ErrorKind;

/// Characters of a line of standard error that are kept.
const WIDTH: usize = 2000;

#[derive(Debug)]
struct ParsedOutput<S> {
    summary: Option<S>,
    error: Option<ErrorEvent>,
    /// The last line of standard error: what a run says that dies without an error event.
    last_line: Option<String>,
    phase: Option<(String, Instant)>,
}

/// Hears one process, whose report is an `S`.
#[derive(Debug)]
pub(super) struct RunOutput<S> {
    /// Whose progress it is, and whom to tell.
    progress: Option<(i64, Sender<Input>)>,
    heard: Mutex<ParsedOutput<S>>,
}

impl<S: DeserializeOwned + Clone> RunOutput<S> {
    pub(super) fn new(progress: Option<(i64, Sender<Input>)>) -> Self {
        let heard = ParsedOutput { summary: None, error: None, last_line: None, phase: None };
        Self { progress, heard: Mutex::new(heard) }
    }

    fn heard(&self) -> MutexGuard<'_, ParsedOutput<S>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The summary, where it came to that.
    pub(super) fn summary(&self) -> Option<S> {
        self.heard().summary.clone()
    }

    /// The error that it ended with; where it said none, its last line on standard error with `kind`.
    pub(super) fn error(&self, kind: ErrorKind) -> Option<ErrorEvent> {
        let heard = self.heard();
        let last = || heard.last_line.clone().map(|message| ErrorEvent { kind, message, hint: None });
        heard.error.clone().or_else(last)
    }

    fn progress(&self, event: ProgressEvent) {
        let Some((id, to)) = &self.progress else { return };
        let mut heard = self.heard();
        let since = match &heard.phase {
            Some((known, since)) if *known == event.phase => *since,
            _ => Instant::now(),
        };
        heard.phase = Some((event.phase.clone(), since));
        let seconds = since.elapsed().as_secs();
        let progress = RunProgress { phase: event.phase, done: event.done, total: event.total, seconds };
        if to.send(Input::Progress(*id, progress)).is_err() {
            tracing::debug!("nobody wants to know how far it is");
        }
    }
}

impl<S: DeserializeOwned + Clone + Send> OutputListener for RunOutput<S> {
    fn out(&self, line: &str) {
        match serde_json::from_str::<Event<S>>(line) {
            Ok(Event::Progress(event)) => self.progress(event),
            Ok(Event::Summary(summary)) => self.heard().summary = Some(summary),
            Ok(Event::Error(error)) => self.heard().error = Some(error),
            Ok(Event::Damage(lost)) => tracing::warn!("lost: {lost}"),
            // A report in other words than this program's is never taken for an empty one.
            Err(error) if serde_json::from_str::<Event<IgnoredAny>>(line).is_ok() => {
                let message = format!("its report is not understood: {error}");
                self.heard().error = Some(ErrorEvent { kind: ErrorKind::Internal, message, hint: None });
            }
            Err(_) => tracing::info!("{line}"),
        }
    }

    fn err(&self, line: &str) {
        tracing::info!("{line}");
        self.heard().last_line = Some(line.chars().take(WIDTH).collect());
    }
}

/// Lines of a command that its failure repeats, and characters of each of them.
const REPEATED: usize = 5;
const REPEATED_WIDTH: usize = 300;

/// Hears a command of the configuration: both outputs go to the log, with whose they are, and the last lines
/// to its failure.
#[derive(Debug)]
pub(super) struct CommandOutput {
    job: String,
    domain: String,
    program: String,
    last: Mutex<[VecDeque<String>; 2]>,
}

impl CommandOutput {
    pub(super) fn new(job: &str, domain: &str, program: &str) -> Self {
        let (job, domain, program) = (job.to_owned(), domain.to_owned(), program.to_owned());
        Self { job, domain, program, last: Mutex::default() }
    }

    /// The last lines of each output; nothing where it printed nothing.
    pub(super) fn last(&self) -> Option<String> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<&str> = last.iter().flatten().map(String::as_str).collect();
        (!lines.is_empty()).then(|| lines.join(" | "))
    }

    fn hear(&self, output: usize, line: &str) {
        let line = line.trim();
        if line.is_empty() {
            return;
        }
        tracing::info!(job = self.job, domain = self.domain, "{}: {line}", self.program);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(last) = last.get_mut(output) else { return };
        if last.len() == REPEATED {
            last.pop_front();
        }
        last.push_back(line.chars().take(REPEATED_WIDTH).collect());
    }
}

impl OutputListener for CommandOutput {
    fn out(&self, line: &str) {
        self.hear(0, line);
    }

    fn err(&self, line: &str) {
        self.hear(1, line);
    }
}

/// What a summary says of a failure.
pub(super) fn failure_in(summary: &DomainReport) -> Option<String> {
    let copy = summary.backup.copies.iter().find_map(|copy| {
        let why = copy.failure.as_ref()?;
        Some(format!("no copy in '{}': {why}", copy.to))
    });
    let unfreeze = || {
        let failure = summary.thaw_failure.as_ref()?;
        Some(format!("the archive is good, but the guest needs attention: {}", failure.sentence))
    };
    copy.or_else(unfreeze)
}

/// The archives of a backup that are there, as `restore` takes them.
pub(super) fn archives_in(summary: &DomainReport) -> Vec<String> {
    let copies = &summary.backup.copies;
    match copies.is_empty() {
        true => vec![summary.backup.archive.clone()],
        false => copies.iter().filter_map(|copy| copy.archive.clone()).collect(),
    }
}

/// What a person has to decide, out of a recovery's summary.
pub(super) fn needs_administrator(summary: &RecoverReport) -> Vec<String> {
    let open = |verdict| matches!(verdict, RecoveryStatus::Undecided | RecoveryStatus::Failed);
    let domains = summary.domains.iter().filter(|domain| open(domain.verdict));
    let sentence = |domain: &virtfold_backup::freeze::Recovery| {
        let disks = domain.disks.iter().flat_map(|disk| &disk.remains);
        let remains: Vec<&str> = domain.remains.iter().chain(disks).map(String::as_str).collect();
        format!("the guest '{}' needs attention: {}", domain.name, remains.join("; "))
    };
    domains.map(sentence).collect()
}

/// What a good backup was like, out of its summary, which ends now.
pub(super) fn measure_in(summary: &DomainReport) -> Value {
    let measure = BackupMetrics::of(summary, metrics::now());
    serde_json::to_value(measure).unwrap_or(Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_the_event_s_and_else_the_last_line() {
        let said = RunOutput::<RecoverReport>::new(None);
        assert_eq!(said.error(ErrorKind::Io), None);
        said.err("line 1");
        said.err("thread panicked");
        let last = said.error(ErrorKind::Io).unwrap();
        assert_eq!((last.kind, last.message.as_str()), (ErrorKind::Io, "thread panicked"));
        said.out(r#"{"event":"error","kind":"no-space","message":"it is full","hint":"make room"}"#);
        let error = said.error(ErrorKind::Io).unwrap();
        assert_eq!((error.kind, error.hint.as_deref()), (ErrorKind::NoSpace, Some("make room")));
        said.out("no JSON");
        assert_eq!(said.summary(), None);
        said.out(r#"{"event":"summary","domains":[]}"#);
        assert_eq!(said.summary(), Some(RecoverReport { domains: Vec::new() }));
    }

    #[test]
    fn a_report_in_other_words_is_an_error() {
        let said = RunOutput::<RecoverReport>::new(None);
        said.out(r#"{"event":"summary","guests":[]}"#);
        assert_eq!(said.summary(), None);
        let error = said.error(ErrorKind::Io).unwrap();
        assert_eq!(error.kind, ErrorKind::Internal);
        assert!(error.message.contains("`domains`"), "{error:?}");
    }

    #[test]
    fn progress_is_passed_on() {
        let (to, from) = crossbeam_channel::unbounded();
        let said = RunOutput::<IgnoredAny>::new(Some((7, to)));
        said.out(r#"{"event":"progress","phase":"copying","done":5,"total":10,"bytes_per_second":1,"seconds_left":null}"#);
        let Input::Progress(7, progress) = from.recv().unwrap() else { panic!() };
        assert_eq!((progress.phase.as_str(), progress.done, progress.total), ("copying", 5, 10));
    }
}
