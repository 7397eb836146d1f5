//! A world for the engine: a clock that jumps from one event to the next, and runs that take as long as the
//! script says.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use jiff::Timestamp;
use tempfile::TempDir;
use uuid::Uuid;

use super::super::{Engine, EngineParts, Input, Load};
use crate::clock::Clock;
use crate::job_spec::{GuestFacts, GuestSelector, JobSpec, MediumSpec, NextTime, ServiceSettings};
use crate::metrics::Metrics;
use crate::planner::after;
use crate::runner::{Chore, ChoreOrder, Handle, RunOrder, Runner};
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_catalog::Catalog;
use virtfold_catalog::queue::{
    NewEntry, Pause, Pauses, Queue, QueueEntry, RunEnd, RunResult, WaitingEntries,
};
use virtfold_hypervisor::DomainId;

/// What is to come, in order.
#[derive(Debug, Default)]
struct Agenda {
    next: u64,
    inputs: BTreeMap<(Timestamp, u64), Input>,
}

/// The clock: waiting is jumping.
#[derive(Debug)]
pub(super) struct FakeClock {
    now: Mutex<Timestamp>,
    /// The clock that does not leap.
    steady: Mutex<Instant>,
    agenda: Mutex<Agenda>,
}

impl FakeClock {
    pub(super) fn at(&self, time: Timestamp, input: Input) {
        let mut agenda = self.agenda.lock().unwrap();
        agenda.next += 1;
        let key = (time, agenda.next);
        agenda.inputs.insert(key, input);
    }

    pub(super) fn forget(&self, which: impl Fn(&Input) -> bool) {
        self.agenda.lock().unwrap().inputs.retain(|_, input| !which(input));
    }

    pub(super) fn set(&self, time: Timestamp) {
        *self.now.lock().unwrap() = time;
    }

    /// The clock leaps while everything goes on: what is to come comes when it would have come.
    pub(super) fn leap(&self, time: Timestamp) {
        let by = time.duration_since(self.now());
        let mut agenda = self.agenda.lock().unwrap();
        let inputs = std::mem::take(&mut agenda.inputs);
        agenda.inputs = inputs.into_iter().map(|((at, number), input)| ((at + by, number), input)).collect();
        *self.now.lock().unwrap() = time;
    }

    /// Time goes by.
    fn go_to(&self, now: &mut Timestamp, time: Timestamp) {
        *self.steady.lock().unwrap() += Duration::try_from(time.duration_since(*now)).unwrap();
        *now = time;
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Timestamp {
        *self.now.lock().unwrap()
    }

    fn steady(&self) -> Instant {
        *self.steady.lock().unwrap()
    }

    fn wait(&self, inputs: &Receiver<Input>, until: Option<Timestamp>) -> Option<Input> {
        if let Ok(input) = inputs.try_recv() {
            return Some(input);
        }
        let mut agenda = self.agenda.lock().unwrap();
        let mut now = self.now.lock().unwrap();
        let until = until.map(|until| until.max(*now));
        match (agenda.inputs.keys().next().copied(), until) {
            (Some(key), until) if until.is_none_or(|until| key.0 <= until) => {
                let time = key.0.max(*now);
                self.go_to(&mut now, time);
                agenda.inputs.remove(&key)
            }
            (_, Some(until)) => {
                self.go_to(&mut now, until);
                None
            }
            (_, None) => panic!("nothing will ever happen"),
        }
    }
}

/// How a run is to go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Script {
    pub(super) takes: Duration,
    pub(super) fails: bool,
    /// How long the way home takes once it is asked to end; nothing where it does not listen.
    pub(super) home: Option<Duration>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Event {
    Began { id: i64, job: String, domain: String, media: Vec<String> },
    Ended { id: i64, well: bool },
    Killed(i64),
    Pruned(String),
    Verified(String),
}

#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) events: Vec<(Timestamp, Event)>,
    pub(super) alive: BTreeMap<i64, (String, Vec<String>)>,
    pub(super) most: usize,
    pub(super) busy: BTreeSet<DomainId>,
    pub(super) recoveries: usize,
    /// Whether recoveries fail.
    pub(super) blind: bool,
}

type Play = dyn Fn(&RunOrder, u32) -> Script + Send + Sync;

/// A runner that plays a script. It panics where two runs of a domain would be at once.
pub(super) struct FakeRunner {
    clock: Arc<FakeClock>,
    pub(super) log: Arc<Mutex<Log>>,
    play: Box<Play>,
    begun: AtomicI64,
}

impl std::fmt::Debug for FakeRunner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FakeRunner")
    }
}

#[derive(Debug)]
struct FakeHandle {
    id: i64,
    home: Option<Duration>,
    clock: Arc<FakeClock>,
    log: Arc<Mutex<Log>>,
}

impl FakeHandle {
    fn ends(&self, after_this: Duration) {
        let id = self.id;
        self.clock.forget(|input| matches!(input, Input::Ended(other, _) if *other == id));
        self.clock.at(after(self.clock.now(), after_this), Input::Ended(id, failure(ErrorKind::Interrupted)));
    }
}

impl Handle for FakeHandle {
    fn end(&self) {
        if let Some(home) = self.home {
            self.ends(home);
        }
    }

    fn kill(&self) {
        self.log.lock().unwrap().events.push((self.clock.now(), Event::Killed(self.id)));
        self.ends(Duration::from_secs(1));
    }
}

pub(super) fn failure(kind: ErrorKind) -> RunResult {
    RunResult { sentence: "it went wrong".to_owned(), kind: Some(kind), ..RunResult::default() }
}

impl Runner for FakeRunner {
    fn start(&self, order: RunOrder, _: &Sender<Input>) -> Result<Box<dyn Handle>> {
        let count = u32::try_from(self.begun.fetch_add(1, Ordering::SeqCst)).unwrap();
        let script = (self.play)(&order, count);
        let mut log = self.log.lock().unwrap();
        let media: Vec<String> = order.media.iter().map(|medium| medium.name.clone()).collect();
        let domain = order.guest.name.clone();
        let twice = log.alive.values().any(|(other, _)| *other == domain);
        assert!(!twice, "two runs of {domain} at once: {:?}", log.events);
        log.alive.insert(order.id, (domain.clone(), media.clone()));
        log.most = log.most.max(log.alive.len());
        let began = Event::Began { id: order.id, job: order.job.name.clone(), domain, media };
        log.events.push((self.clock.now(), began));
        let result = if script.fails { failure(ErrorKind::Io) } else { RunResult::default() };
        self.clock.at(after(self.clock.now(), script.takes), Input::Ended(order.id, result));
        let (clock, log) = (Arc::clone(&self.clock), Arc::clone(&self.log));
        Ok(Box::new(FakeHandle { id: order.id, home: script.home, clock, log }))
    }

    fn recover(&self, _: &Sender<Input>) {
        let mut log = self.log.lock().unwrap();
        log.recoveries += 1;
        let blind = log.blind.then(|| Error::new(ErrorKind::Io, "it is blind"));
        let outcome = blind.map_or(Ok(Vec::new()), Err);
        self.clock.at(after(self.clock.now(), Duration::from_secs(1)), Input::Recovered(outcome));
    }

    fn chore(&self, order: ChoreOrder, _: &Sender<Input>) {
        let event = match order.chore {
            Chore::Prune => Event::Pruned(order.job.clone()),
            Chore::Verify => Event::Verified(order.job.clone()),
        };
        self.log.lock().unwrap().events.push((self.clock.now(), event));
        let done = Input::ChoreDone(order.chore, order.job, Ok(()));
        self.clock.at(after(self.clock.now(), Duration::from_secs(1)), done);
    }

    fn busy(&self, domain: DomainId) -> Option<String> {
        self.log.lock().unwrap().busy.contains(&domain).then(|| "somebody is at work".to_owned())
    }
}

/// Due every so many minutes since 1970.
#[derive(Clone, Copy, Debug)]
pub(super) struct Every(pub(super) i64, pub(super) i64);

impl NextTime for Every {
    fn next_after(&self, time: Timestamp) -> Option<Timestamp> {
        let (period, offset) = (self.0 * 60, self.1 * 60);
        let rounds = (time.as_second() - offset).div_euclid(period) + 1;
        Timestamp::from_second(rounds * period + offset).ok()
    }
}

#[derive(Debug)]
pub(super) struct Names(pub(super) Vec<String>);

impl GuestSelector for Names {
    fn guest(&self, guest: &GuestFacts) -> bool {
        self.0.contains(&guest.name)
    }

    fn disk(&self, _: &str) -> bool {
        true
    }

    /// Names with a sign in front.
    fn leaves_out(&self, guest: &GuestFacts) -> bool {
        self.0.contains(&format!("!{}", guest.name))
    }
}

pub(super) fn guest(name: &str) -> GuestFacts {
    let mut bytes = [0; 16];
    bytes[..name.len().min(16)].copy_from_slice(&name.as_bytes()[..name.len().min(16)]);
    GuestFacts {
        id: DomainId(Uuid::from_bytes(bytes)),
        name: name.to_owned(),
        tags: Vec::new(),
        disks: Vec::new(),
        trouble: None,
    }
}

pub(super) fn job(name: &str, guests: &[&str], calendars: Vec<Arc<dyn NextTime>>) -> JobSpec {
    JobSpec {
        name: name.to_owned(),
        enabled: true,
        pick: Arc::new(Names(guests.iter().map(|name| (*name).to_owned()).collect())),
        calendars,
        on: Vec::new(),
        jitter: Duration::ZERO,
        catch_up: Duration::from_secs(86_400),
        media: vec!["disk".to_owned()],
        options: Vec::new(),
        timeout: None,
        attempts: 1,
        delay: Duration::from_secs(60),
        before: None,
        after: None,
        prune: false,
        verify: Vec::new(),
    }
}

pub(super) fn medium(name: &str, concurrency: usize) -> MediumSpec {
    MediumSpec { name: name.to_owned(), to: "/b".into(), options: Vec::new(), concurrency, environment: None }
}

pub(super) fn settings_of(jobs: Vec<JobSpec>, concurrency: usize, media: &[MediumSpec]) -> ServiceSettings {
    ServiceSettings {
        metrics_dir: None,
        jobs: jobs.into_iter().map(Arc::new).collect(),
        media: media.iter().map(|medium| (medium.name.clone(), medium.clone())).collect(),
        concurrency,
        stop_timeout: Duration::from_secs(300),
        config: None,
    }
}

/// A catalog that dies at a write: before it is done, or after it was done and before anybody hears of it.
#[derive(Debug)]
pub(super) struct Dying {
    pub(super) inner: Catalog,
    pub(super) left: AtomicI64,
    pub(super) done_first: bool,
    pub(super) dead: AtomicBool,
}

impl Dying {
    pub(super) fn new(inner: Catalog, left: i64) -> Self {
        Self { inner, left: AtomicI64::new(left), done_first: false, dead: AtomicBool::new(false) }
    }

    fn write<T>(&self, write: impl FnOnce(&Catalog) -> Result<T>) -> Result<T> {
        let gone = || Error::new(ErrorKind::Io, "the service is dead");
        if self.dead.load(Ordering::SeqCst) {
            return Err(gone());
        }
        if self.left.fetch_sub(1, Ordering::SeqCst) > 0 {
            return write(&self.inner);
        }
        self.dead.store(true, Ordering::SeqCst);
        if self.done_first {
            write(&self.inner)?;
        }
        Err(gone())
    }
}

impl Queue for Dying {
    fn add_all(&self, wanted: &[NewEntry]) -> Result<Vec<i64>> {
        self.write(|queue| queue.add_all(wanted))
    }
    fn fire(&self, job: &str, planned: Timestamp, wanted: &[NewEntry]) -> Result<()> {
        self.write(|queue| queue.fire(job, planned, wanted))
    }
    fn planned(&self) -> Result<BTreeMap<String, Timestamp>> {
        self.inner.planned()
    }
    fn start(&self, id: i64, at: Timestamp) -> Result<()> {
        self.write(|queue| queue.start(id, at))
    }
    fn end(&self, id: i64, at: Timestamp, end: &RunEnd) -> Result<()> {
        self.write(|queue| queue.end(id, at, end))
    }
    fn cancel(&self, id: i64, at: Timestamp, why: &str) -> Result<()> {
        self.write(|queue| queue.cancel(id, at, why))
    }
    fn recall(&self, at: Timestamp) -> Result<Vec<QueueEntry>> {
        self.write(|queue| queue.recall(at))
    }
    fn open_entries(&self) -> Result<Vec<QueueEntry>> {
        self.inner.open_entries()
    }
    fn entry(&self, id: i64) -> Result<QueueEntry> {
        self.inner.entry(id)
    }
    fn open_page(&self, skip: u64, most: usize) -> Result<Vec<QueueEntry>> {
        self.inner.open_page(skip, most)
    }
    fn waiting(&self) -> Result<WaitingEntries> {
        self.inner.waiting()
    }
    fn entries(&self, ids: &[i64]) -> Result<Vec<QueueEntry>> {
        self.inner.entries(ids)
    }
    fn last_end_ids(&self, until: Timestamp) -> Result<Vec<i64>> {
        self.inner.last_end_ids(until)
    }
    fn last_ends_after(&self, time: Timestamp) -> Result<Vec<QueueEntry>> {
        self.inner.last_ends_after(time)
    }
    fn set_pause(&self, job: Option<&str>, to: Pause) -> Result<()> {
        self.write(|queue| queue.set_pause(job, to))
    }
    fn pauses(&self) -> Result<Pauses> {
        self.inner.pauses()
    }
}

/// A host: its clock, its guests, its catalog on the disk.
pub(super) struct World {
    pub(super) clock: Arc<FakeClock>,
    pub(super) runner: Arc<FakeRunner>,
    pub(super) state: TempDir,
    pub(super) settings: Arc<Mutex<ServiceSettings>>,
    pub(super) guests: Vec<GuestFacts>,
}

impl World {
    pub(super) fn new(
        begin: &str,
        settings: ServiceSettings,
        guests: &[&str],
        play: impl Fn(&RunOrder, u32) -> Script + Send + Sync + 'static,
    ) -> Self {
        let now = Mutex::new(begin.parse().unwrap());
        let clock = FakeClock { now, steady: Mutex::new(Instant::now()), agenda: Mutex::default() };
        let clock = Arc::new(clock);
        let runner = FakeRunner {
            clock: Arc::clone(&clock),
            log: Arc::default(),
            play: Box::new(play),
            begun: AtomicI64::new(0),
        };
        // In memory where there is such a place: what is tested is not the disk.
        let memory = Some(PathBuf::from("/dev/shm")).filter(|place| place.is_dir());
        let state = memory.map_or_else(tempfile::tempdir, tempfile::tempdir_in).unwrap();
        World {
            clock,
            runner: Arc::new(runner),
            state,
            settings: Arc::new(Mutex::new(settings)),
            guests: guests.iter().map(|name| guest(name)).collect(),
        }
    }

    pub(super) fn catalog(&self) -> Catalog {
        Catalog::open(self.state.path()).unwrap()
    }

    /// A service of this host, which knows the guests at once.
    pub(super) fn service(&self, queue: Arc<dyn Queue>) -> Result<Engine> {
        let (sender, inputs) = unbounded();
        sender.send(Input::Guests(self.guests.clone())).unwrap();
        let (clock, runner) = (self.clock.clone(), self.runner.clone());
        let parts = EngineParts { queue, clock, runner, sender, metrics: Arc::new(Metrics::default()) };
        let settings = Arc::clone(&self.settings);
        let load: Load = Box::new(move || Ok(settings.lock().unwrap().clone()));
        Engine::new(parts, inputs, load, "test:///")
    }

    /// The service's loop, until a time or until it is over or `dead`.
    pub(super) fn drive(&self, engine: &mut Engine, until: &str, dead: &AtomicBool) {
        let until: Timestamp = until.parse().unwrap();
        let mut wake = engine.turn();
        while !engine.is_over() && !dead.load(Ordering::SeqCst) {
            let next = wake.map_or(until, |wake| wake.min(until));
            let input = self.clock.wait(&engine.inputs, Some(next));
            if let Some(Input::Ended(id, result)) = &input {
                let mut log = self.runner.log.lock().unwrap();
                log.alive.remove(id);
                log.events.push((self.clock.now(), Event::Ended { id: *id, well: result.kind.is_none() }));
            }
            if input.is_none() && self.clock.now() >= until {
                return;
            }
            if input.is_none_or(|input| engine.take(input)) {
                wake = engine.turn();
            }
        }
    }

    pub(super) fn run(&self, engine: &mut Engine, until: &str) {
        self.drive(engine, until, &AtomicBool::new(false));
    }

    /// The service is killed, and its children with it.
    pub(super) fn crash(&self) {
        self.clock.forget(|_| true);
        self.runner.log.lock().unwrap().alive.clear();
    }

    pub(super) fn events(&self) -> Vec<(Timestamp, Event)> {
        self.runner.log.lock().unwrap().events.clone()
    }

    /// When runs of a job began, as `HH:MM:SS domain`, in this zone.
    pub(super) fn begins(&self, job: &str) -> Vec<String> {
        let zone = jiff::tz::TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let line = |(at, event): (Timestamp, Event)| match event {
            Event::Began { job: of, domain, .. } if of == job => {
                Some(format!("{} {domain}", at.to_zoned(zone.clone()).strftime("%d %H:%M:%S%:z")))
            }
            _ => None,
        };
        self.events().into_iter().filter_map(line).collect()
    }
}

/// Runs that take so many minutes and go well.
pub(super) fn minutes(minutes: u64) -> Script {
    Script { takes: Duration::from_secs(minutes * 60), fails: false, home: Some(Duration::from_secs(5)) }
}
