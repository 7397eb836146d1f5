//! What a run of this program says: its progress, its summary, its last words; and what a command of the
//! configuration says.
//!
//! Imports: `metrics` (measures), `control` (plain types), `child_process`, `engine` (its inputs).

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crossbeam_channel::Sender;
use serde_json::Value;

use super::child_process::OutputListener;
use crate::control::RunProgress;
use crate::engine::Input;
use virtfold_backup::metrics::{self, BackupMetrics};

/// Lines of standard error that are kept.
const KEPT: usize = 30;
/// Characters of each of them.
const WIDTH: usize = 2000;

#[derive(Debug, Default)]
struct ParsedOutput {
    summary: Option<Value>,
    errors: VecDeque<String>,
    phase: Option<(String, Instant)>,
}

/// Hears one process.
#[derive(Debug)]
pub(super) struct RunOutput {
    /// Whose progress it is, and whom to tell.
    progress: Option<(i64, Sender<Input>)>,
    heard: Mutex<ParsedOutput>,
}

impl RunOutput {
    pub(super) fn new(progress: Option<(i64, Sender<Input>)>) -> Self {
        Self { progress, heard: Mutex::default() }
    }

    fn heard(&self) -> MutexGuard<'_, ParsedOutput> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The summary, where it came to that.
    pub(super) fn summary(&self) -> Option<Value> {
        self.heard().summary.clone()
    }

    /// The sentence and the hint that it ended with.
    pub(super) fn last_words(&self) -> (Option<String>, Option<String>) {
        let heard = self.heard();
        let word = |start: &str| {
            let lines = heard.errors.iter().rev().filter(|line| !line.starts_with("virtfold: warning: "));
            lines.filter_map(|line| line.strip_prefix(start)).map(str::to_owned).next()
        };
        let sentence = word("virtfold: ").or_else(|| heard.errors.back().cloned());
        (sentence, word("hint: "))
    }

    fn progress(&self, event: &Value) {
        let Some((id, to)) = &self.progress else { return };
        let phase = event["phase"].as_str().unwrap_or_default().to_owned();
        let mut heard = self.heard();
        let since = match &heard.phase {
            Some((known, since)) if *known == phase => *since,
            _ => Instant::now(),
        };
        heard.phase = Some((phase.clone(), since));
        let number = |key: &str| event[key].as_u64().unwrap_or(0);
        let seconds = since.elapsed().as_secs();
        let progress = RunProgress { phase, done: number("done"), total: number("total"), seconds };
        if to.send(Input::Progress(*id, progress)).is_err() {
            tracing::debug!("nobody wants to know how far it is");
        }
    }
}

impl OutputListener for RunOutput {
    fn out(&self, line: &str) {
        let Ok(event) = serde_json::from_str::<Value>(line) else { return };
        match event["event"].as_str() {
            Some("progress") => self.progress(&event),
            Some("summary") => self.heard().summary = Some(event),
            _ => {}
        }
    }

    fn err(&self, line: &str) {
        tracing::info!("{line}");
        let mut heard = self.heard();
        if heard.errors.len() == KEPT {
            heard.errors.pop_front();
        }
        heard.errors.push_back(line.chars().take(WIDTH).collect());
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
pub(super) fn failure_in(summary: &Value) -> Option<String> {
    let copies = summary["copies"].as_array().map(Vec::as_slice).unwrap_or_default();
    let copy = copies.iter().find_map(|copy| {
        let why = copy["failure"].as_str()?;
        Some(format!("no copy in '{}': {why}", copy["to"].as_str().unwrap_or("?")))
    });
    let home = || {
        let why = summary["thaw_failure"]["sentence"].as_str()?;
        Some(format!("the archive is good, but the guest needs attention: {why}"))
    };
    copy.or_else(home)
}

/// What a good backup was like, out of its summary, which ends now.
pub(super) fn measure_in(summary: &Value) -> Value {
    let disks = summary["disks"].as_array().map(Vec::as_slice).unwrap_or_default();
    let sum = |key: &str| disks.iter().filter_map(|disk| disk[key].as_u64()).fold(0, u64::saturating_add);
    let freeze = |key: &str| summary["freeze"][key].as_f64();
    let tapes = summary["tapes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let underruns =
        || tapes.iter().filter_map(|tape| tape["underruns"].as_u64()).fold(0, u64::saturating_add);
    let measure = BackupMetrics {
        at: metrics::now(),
        seconds: summary["total_seconds"].as_f64().unwrap_or(0.0),
        capacity_bytes: sum("capacity"),
        read_bytes: sum("dense_length"),
        archive_bytes: summary["archive_bytes"].as_u64().unwrap_or(0),
        thaw_failed: !summary["thaw_failure"].is_null(),
        frozen_ms: freeze("frozen_ms"),
        snapshot_ms: freeze("snapshot_ms"),
        pause_ms: freeze("pause_ms"),
        tape_underruns: (!tapes.is_empty()).then(underruns),
    };
    serde_json::to_value(measure).unwrap_or(Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_the_error_s() {
        let said = RunOutput::new(None);
        for number in 0..100 {
            said.err(&format!("line {number}"));
        }
        for line in ["virtfold: the disk is gone: no such file", "hint: look", "virtfold: warning: so what"] {
            said.err(line);
        }
        let (sentence, hint) = said.last_words();
        assert_eq!(sentence.as_deref(), Some("the disk is gone: no such file"));
        assert_eq!(hint.as_deref(), Some("look"));
        assert_eq!(said.heard().errors.len(), KEPT);
        said.out("no JSON");
        said.out(r#"{"event":"summary","archive":"/a"}"#);
        assert_eq!(said.summary().unwrap()["archive"], "/a");
    }

    #[test]
    fn progress_is_passed_on() {
        let (to, from) = crossbeam_channel::unbounded();
        let said = RunOutput::new(Some((7, to)));
        said.out(r#"{"event":"progress","phase":"copying","done":5,"total":10}"#);
        let Input::Progress(7, progress) = from.recv().unwrap() else { panic!() };
        assert_eq!((progress.phase.as_str(), progress.done, progress.total), ("copying", 5, 10));
    }
}
