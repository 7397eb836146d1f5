//! The loop: what is due becomes an entry of the queue, what may begin is begun, what ended is noted.
//!
//! One thread does all of this; whatever takes time runs elsewhere and reports by an [`Input`]. Each turn:
//!
//! 1. what ended is noted (`end_runs`);
//! 2. runs that are over their time are asked to end, and ended by force after [`GRACE`] (`end_runs`);
//! 3. each job's schedule is turned into entries up to now (`start_runs`);
//! 4. in the queue's order, entries that nothing speaks against are begun (`start_runs`): one run a domain at
//!    a time, so many on this host, so many on each medium, none while everybody's guests are being brought
//!    home or libvirt can't be reached.
//!
//! Then it waits for an input, or for the next time at which something can change. Where the catalog can't be
//! written nothing is begun, what ended is kept in mind, and it is tried again.
//!
//! Imports: `error`, `catalog` (the queue), `hypervisor` (plain types), `job_spec`, `planner`, `runner`,
//! `clock`, `notify`, `metrics`, `control` (what is said).

mod clock_skew;
mod control_api;
mod end_runs;
mod ends;
mod selections;
mod start_runs;
#[cfg(test)]
mod tests;
mod warnings;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use jiff::Timestamp;

pub use self::control_api::EngineControlApi;
use self::ends::{LastEnds, NextDue};
use self::selections::Selections;
use super::clock::Clock;
use super::control::RunProgress;
use super::job_spec::{GuestFacts, ServiceSettings};
use super::metrics::Metrics;
use super::notify::Notifier;
use super::planner::after;
use super::runner::{Chore, Handle, Runner};
use virtfold_base::error::{Result, sentence};
use virtfold_catalog::queue::{Pauses, Queue, QueueEntry, RunEnd, RunResult};
use virtfold_config::IneffectiveSetting;

/// How long a run that was asked to end may take to bring its guest home.
pub const GRACE: Duration = Duration::from_secs(300);
/// After what time the catalog is tried again.
const AGAIN: Duration = Duration::from_secs(10);
/// After what time it is looked again whether somebody else is done with a domain.
const BUSY: Duration = Duration::from_secs(3);
/// After what time a recovery that could not be done is tried again; at most.
const RECOVER_AGAIN: Duration = Duration::from_secs(60);

/// Says that an event is acted on.
pub type Acknowledge = Box<dyn FnOnce() + Send>;
/// Reads the configuration.
pub type Load = Box<dyn Fn() -> Result<ServiceSettings> + Send>;

/// A question to the engine; it answers by itself.
pub type Question = Box<dyn FnOnce(&mut Engine) + Send>;

/// What happens to the service.
pub enum Input {
    /// How far a run is.
    Progress(i64, RunProgress),
    /// A run ended.
    Ended(i64, RunResult),
    /// All guests were looked at: what a person has to decide, or why it could not be done.
    Recovered(Result<Vec<String>>),
    /// A chore of a job was done, or not.
    ChoreDone(Chore, String, Result<()>),
    /// All guests there are.
    Guests(Vec<GuestFacts>),
    /// Something happened to a guest; the word for it, as jobs have it.
    Event(GuestFacts, String, Acknowledge),
    /// libvirt can't be reached, for a reason; or it can.
    Libvirt(Option<String>),
    /// Somebody asks how things stand: the answer changes nothing, and there is nothing to do after it.
    Look(Question),
    /// Somebody wants something.
    Ask(Question),
    /// The configuration is to be read anew.
    Reload,
    /// The service is to end; the second time, at once.
    Stop,
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Progress(..) => "Progress",
            Self::Ended(..) => "Ended",
            Self::Recovered(_) => "Recovered",
            Self::ChoreDone(..) => "ChoreDone",
            Self::Guests(_) => "Guests",
            Self::Event(..) => "Event",
            Self::Libvirt(_) => "Libvirt",
            Self::Look(_) => "Look",
            Self::Ask(_) => "Ask",
            Self::Reload => "Reload",
            Self::Stop => "Stop",
        })
    }
}

/// Why a run was asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StopReason {
    /// Somebody cancelled it.
    Cancelled,
    /// It took too long.
    TimedOut,
    /// The service ends.
    Stopping,
}

/// A run that was begun.
#[derive(Debug)]
struct ActiveRun {
    entry: QueueEntry,
    media: Vec<String>,
    handle: Box<dyn Handle>,
    progress: RunProgress,
    /// When it is over its time.
    deadline: Option<Instant>,
    /// Why it was asked to end, and when it is ended by force; `None` once it was.
    ending: Option<(StopReason, Option<Instant>)>,
}

/// How far the service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EnginePhase {
    /// Guests are brought home before anything is begun.
    Starting,
    /// It works.
    Working,
    /// It ends; what runs has until then.
    Stopping(Instant),
}

/// What the engine works with.
#[derive(Debug)]
pub struct EngineParts {
    /// The queue.
    pub queue: Arc<dyn Queue>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Who runs things.
    pub runner: Arc<dyn Runner>,
    /// Its inputs: where they come in.
    pub sender: Sender<Input>,
    /// Counts what ended.
    pub metrics: Arc<Metrics>,
}

/// libvirt, as it was last seen.
#[derive(Debug)]
struct LibvirtState {
    uri: String,
    error: Option<String>,
    since: Timestamp,
}

/// The service's loop.
pub struct Engine {
    parts: EngineParts,
    inputs: Receiver<Input>,
    load: Load,
    systemd: Notifier,
    settings: ServiceSettings,
    phase: EnginePhase,
    since: Timestamp,
    libvirt: LibvirtState,
    guests: Option<Vec<GuestFacts>>,
    /// Which jobs have which of them, the last ends of each, and when jobs are due next: for questions.
    selections: Selections,
    last_ends: LastEnds,
    next_due: NextDue,
    running: BTreeMap<i64, ActiveRun>,
    /// What ended and is not noted yet.
    ended: Vec<(i64, RunEnd)>,
    /// Up to when schedules are entries, as the catalog has it; read again after each failure.
    planned: Option<BTreeMap<String, Timestamp>>,
    /// From when to when no schedule is due, so that not each turn asks each of them; until anything is heard
    /// that may change that.
    quiet: Option<(Timestamp, Timestamp)>,
    pauses: Pauses,
    /// A recovery runs; or when it is tried again, and how often it failed.
    recovering: bool,
    recover_at: Option<Timestamp>,
    recover_failures: u32,
    /// What a person has to decide, and why that could not be found out.
    undecided: Vec<String>,
    unrecovered: Option<String>,
    /// What jobs say to no effect.
    remarks: Vec<IneffectiveSetting>,
    /// Chores of jobs to be done; those that are, one of each kind; and why the last ones failed.
    chores: BTreeSet<(Chore, String)>,
    doing: BTreeMap<Chore, String>,
    chore_failures: BTreeMap<(Chore, String), String>,
    /// Jobs whose schedules had been planned by a clock that was ahead, until they are due again.
    clock_was_ahead: BTreeMap<String, Timestamp>,
    /// What is wrong with the catalog, and with the configuration in the files.
    trouble: Option<String>,
    bad_configuration: Option<String>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("phase", &self.phase)
            .field("running", &self.running)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// A service that has not begun yet. What an earlier one left running or parked waits again; `uri` is for
    /// the status.
    ///
    /// # Errors
    /// The catalog can't be used; the configuration's.
    pub fn new(parts: EngineParts, inputs: Receiver<Input>, load: Load, uri: &str) -> Result<Self> {
        let settings = load()?;
        let now = parts.clock.now();
        end_runs::recall(&parts, now)?;
        let pauses = parts.queue.pauses()?;
        Ok(Self {
            parts,
            inputs,
            load,
            systemd: Notifier::from_environment(),
            settings,
            phase: EnginePhase::Starting,
            since: now,
            libvirt: LibvirtState { uri: uri.to_owned(), error: None, since: now },
            guests: None,
            selections: Selections::default(),
            last_ends: LastEnds::default(),
            next_due: NextDue::default(),
            running: BTreeMap::new(),
            ended: Vec::new(),
            planned: None,
            quiet: None,
            pauses,
            recovering: false,
            recover_at: Some(now),
            recover_failures: 0,
            undecided: Vec::new(),
            unrecovered: None,
            remarks: Vec::new(),
            chores: BTreeSet::new(),
            doing: BTreeMap::new(),
            chore_failures: BTreeMap::new(),
            clock_was_ahead: BTreeMap::new(),
            trouble: None,
            bad_configuration: None,
        })
    }

    /// Works until it is told to stop, and nothing runs any more.
    pub fn run(&mut self) {
        let mut wake = self.turn();
        self.systemd.ready(&self.line());
        while !self.is_over() {
            self.systemd.beat(std::time::Instant::now());
            let beat = self.systemd.longest_turn().map(|longest| after(self.parts.clock.now(), longest));
            let until = wake.into_iter().chain(beat).min();
            let input = self.parts.clock.wait(&self.inputs, until);
            let matters = input.is_none_or(|input| self.take(input));
            if matters {
                wake = self.turn();
            }
        }
    }

    /// Whether nothing is left to do.
    fn is_over(&self) -> bool {
        // What ended and can't be noted is found by the next service as what ran.
        matches!(self.phase, EnginePhase::Stopping(_)) && self.running.is_empty()
    }

    /// One turn; says when the next one is due, whatever happens until then.
    fn turn(&mut self) -> Option<Timestamp> {
        let now = self.parts.clock.now();
        self.systemd.status(&self.line());
        self.bound(now);
        self.press(self.parts.clock.steady());
        match self.work(now) {
            Ok(wake) => {
                self.trouble = None;
                wake
            }
            Err(error) => {
                tracing::error!(error = sentence(&error), "the queue can't be worked on");
                self.trouble = Some(sentence(&error));
                self.planned = None;
                Some(after(now, AGAIN))
            }
        }
    }

    fn work(&mut self, now: Timestamp) -> Result<Option<Timestamp>> {
        self.note_ends(now)?;
        let mut wakes = Vec::new();
        if self.recover_at.is_some_and(|at| at <= now) {
            (self.recover_at, self.recovering) = (None, true);
            self.parts.runner.recover(&self.parts.sender);
        }
        wakes.push(self.recover_at);
        if self.phase == EnginePhase::Working {
            wakes.push(self.fire(now)?);
            wakes.push(self.begin(now)?);
            self.begin_chores();
        }
        // Last: what was begun has a time to end, too.
        let left = |at: Instant| at.saturating_duration_since(self.parts.clock.steady());
        wakes.push(self.next_press().map(|at| after(now, left(at))));
        Ok(wakes.into_iter().flatten().min())
    }

    /// Takes an input in; says whether there may be something to do.
    fn take(&mut self, input: Input) -> bool {
        let now = self.parts.clock.now();
        if !matches!(input, Input::Progress(..) | Input::Look(_) | Input::Ended(..) | Input::ChoreDone(..)) {
            self.quiet = None;
        }
        match input {
            Input::Progress(id, progress) => {
                if let Some(active) = self.running.get_mut(&id) {
                    active.progress = progress;
                }
                return false;
            }
            Input::Ended(id, result) => self.ended(id, result, now),
            Input::Recovered(outcome) => self.recovered(outcome, now),
            Input::ChoreDone(chore, job, outcome) => self.chore_done(chore, job, outcome),
            Input::Guests(guests) => {
                self.guests = Some(guests);
                self.review();
            }
            Input::Event(guest, word, receipt) => self.event(&guest, &word, receipt, now),
            Input::Libvirt(error) => self.libvirt(error, now),
            Input::Look(question) => {
                question(self);
                return false;
            }
            Input::Ask(question) => question(self),
            Input::Reload => {
                if let Err(error) = self.reload() {
                    tracing::error!(
                        error = sentence(&error),
                        "the configuration was not loaded; the old one stays in use"
                    );
                }
            }
            Input::Stop => self.stop(),
        }
        true
    }

    fn recovered(&mut self, outcome: Result<Vec<String>>, now: Timestamp) {
        self.recovering = false;
        match outcome {
            Ok(undecided) => {
                for sentence in &undecided {
                    tracing::warn!("{sentence}");
                }
                self.undecided = undecided;
                self.unrecovered = None;
                self.recover_failures = 0;
                if self.phase == EnginePhase::Starting {
                    self.phase = EnginePhase::Working;
                }
            }
            Err(error) => {
                tracing::error!(error = sentence(&error), "guests could not be looked at; it is tried again");
                self.unrecovered = Some(sentence(&error));
                self.recover_failures = self.recover_failures.saturating_add(1);
                let wait = Duration::from_secs(1 << self.recover_failures.min(6)).min(RECOVER_AGAIN);
                self.recover_at = Some(after(now, wait));
            }
        }
    }

    fn libvirt(&mut self, error: Option<String>, now: Timestamp) {
        match (&self.libvirt.error, &error) {
            (None, Some(why)) => {
                tracing::warn!("libvirt can't be reached, nothing is begun until it can: {why}")
            }
            (Some(_), None) => {
                tracing::info!("libvirt can be reached again");
                // Whatever it left is put in order before anything is begun.
                if !self.recovering {
                    self.recover_at = Some(now);
                }
            }
            _ => {}
        }
        if self.libvirt.error.is_some() != error.is_some() {
            self.libvirt.since = now;
        }
        self.libvirt.error = error;
    }

    /// How everything stands, in a line.
    fn line(&self) -> String {
        let what = match self.phase {
            EnginePhase::Starting => "guests are brought in order",
            EnginePhase::Working if self.libvirt.error.is_some() => "libvirt can't be reached",
            EnginePhase::Working => "works",
            EnginePhase::Stopping(_) => "ends",
        };
        let runs = self.running.values().map(|active| active.entry.wanted.name.as_str()).collect::<Vec<_>>();
        match runs.is_empty() {
            true => format!("{what}; nothing runs"),
            false => format!("{what}; backs up {}", runs.join(", ")),
        }
    }

    /// Reads the configuration anew.
    fn reload(&mut self) -> Result<()> {
        self.systemd.reloading();
        let done = self.read_settings();
        self.systemd.ready(&self.line());
        done
    }

    fn read_settings(&mut self) -> Result<()> {
        match (self.load)() {
            Ok(settings) => {
                tracing::info!("the configuration was read");
                self.settings = settings;
                self.selections.forget();
                self.next_due = NextDue::default();
                self.bad_configuration = None;
                self.review();
                Ok(())
            }
            Err(error) => {
                self.bad_configuration = Some(sentence(&error));
                Err(error)
            }
        }
    }
}
