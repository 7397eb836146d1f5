//! Processes of media that are on their way out: they have what time they need to take away what is there,
//! and nobody waits for them who has a guest to bring back.

use std::os::unix::net::UnixStream;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long a killed process may take to be gone. One that is not stands in the kernel.
const KILLED: Duration = Duration::from_secs(2);
/// How long its last words may take.
const WORDS: Duration = Duration::from_millis(500);
/// Time between two looks.
const POLL: Duration = Duration::from_millis(10);

/// A process that could not be ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbandonedProcess {
    /// Its medium.
    pub place: String,
    /// What it wrote an archive of.
    pub subject: Option<String>,
    /// Its number.
    pub pid: u32,
}

/// A process that is to end.
#[derive(Debug)]
pub(super) struct TerminatingProcess {
    pub(super) child: Child,
    pub(super) place: String,
    pub(super) subject: Option<String>,
    /// When it was told.
    pub(super) since: Instant,
    /// How long it may take.
    pub(super) patience: Duration,
    /// As long as it is open, the driver lives.
    pub(super) socket: UnixStream,
    /// Who passes its standard error on.
    pub(super) words: Option<JoinHandle<()>>,
}

/// The processes that have not ended yet.
#[derive(Clone, Debug, Default)]
pub struct TerminatingProcesses(Arc<Mutex<Vec<TerminatingProcess>>>);

impl TerminatingProcesses {
    pub(super) fn take_in(&self, leaver: TerminatingProcess) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(leaver);
    }

    /// Waits until all have ended, kills those that take too long, and says which could not be ended. To be
    /// called when nothing else is to be done.
    pub fn wait(&self) -> Vec<AbandonedProcess> {
        let leavers = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        leavers.into_iter().filter_map(TerminatingProcess::end).collect()
    }
}

impl TerminatingProcess {
    fn end(mut self) -> Option<AbandonedProcess> {
        let left = self.patience.saturating_sub(self.since.elapsed());
        if ended(&mut self.child, left).is_none() {
            tracing::warn!(
                "the medium '{}' does not answer: process {} is killed",
                self.place,
                self.child.id()
            );
            kill(&mut self.child);
            if ended(&mut self.child, KILLED).is_none() {
                return Some(AbandonedProcess {
                    pid: self.child.id(),
                    place: self.place,
                    subject: self.subject,
                });
            }
        }
        last_words(self.words.take());
        drop(self.socket);
        None
    }
}

/// What a process ended with, if it ends in time.
pub(super) fn ended(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if begun.elapsed() < limit => std::thread::sleep(POLL),
            Ok(None) => return None,
            Err(error) => {
                tracing::warn!(%error, "a process of a medium can't be waited for");
                return None;
            }
        }
    }
}

fn kill(child: &mut Child) {
    if let Err(error) = child.kill() {
        tracing::debug!(%error, "a process of a medium was gone already");
    }
}

/// Tells a process that lives to end.
pub(super) fn tell_to_end(child: &Child) {
    // Not waited for yet, so the number is still its own.
    if let Err(error) = kill_process(Pid::from_child(child), Signal::TERM) {
        tracing::debug!(%error, "a process of a medium was gone already");
    }
}

/// Lets what a process that has ended said last be passed on.
pub(super) fn last_words(words: Option<JoinHandle<()>>) {
    let begun = Instant::now();
    while words.as_ref().is_some_and(|thread| !thread.is_finished()) && begun.elapsed() < WORDS {
        std::thread::sleep(POLL);
    }
}
