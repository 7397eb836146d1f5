//! The service with a long queue, and with many jobs.

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, unbounded};
use jiff::tz::TimeZone;
use nix::sys::resource::UsageWho;
use uuid::Uuid;
use virtfold_base::error::Result;
use virtfold_catalog::Catalog;
use virtfold_catalog::queue::RunResult;
use virtfold_hypervisor::DomainId;
use virtfold_service::clock::HostClock;
use virtfold_service::control::{ControlApi, Status};
use virtfold_service::engine::{Engine, EngineControlApi, EngineParts, Input};
use virtfold_service::job_spec::GuestFacts;
use virtfold_service::metrics::Metrics;
use virtfold_service::runner::{ChoreOrder, Handle, RunOrder, Runner};
use virtfold_service::settings::settings;

use crate::{Cost, measured, row};

/// A runner whose runs are done at once.
#[derive(Debug)]
struct AtOnce;

#[derive(Debug)]
struct Done;

impl Handle for Done {
    fn end(&self) {}
    fn kill(&self) {}
}

impl Runner for AtOnce {
    fn start(&self, order: RunOrder, reports: &Sender<Input>) -> Result<Box<dyn Handle>> {
        let result = RunResult { sentence: "done".to_owned(), ..RunResult::default() };
        reports.send(Input::Ended(order.id, result)).unwrap();
        Ok(Box::new(Done))
    }

    fn recover(&self, reports: &Sender<Input>) {
        reports.send(Input::Recovered(Ok(Vec::new()))).unwrap();
    }

    fn chore(&self, order: ChoreOrder, reports: &Sender<Input>) {
        reports.send(Input::ChoreDone(order.chore, order.job, Ok(()))).unwrap();
    }

    fn busy(&self, _: DomainId) -> Option<String> {
        None
    }
}

struct Service {
    api: EngineControlApi,
    sender: Sender<Input>,
    metrics: Arc<Metrics>,
    thread: JoinHandle<()>,
    _state: tempfile::TempDir,
}

impl Service {
    /// A service that knows its guests, and has put everything in order.
    fn start(config: &str, guests: usize) -> Self {
        let state = tempfile::tempdir_in("/dev/shm").unwrap();
        let config = virtfold_config::parse(config, Path::new("fleet.yaml")).unwrap();
        let (sender, inputs) = unbounded();
        let metrics = Arc::new(Metrics::default());
        let parts = EngineParts {
            queue: Arc::new(Catalog::open(state.path()).unwrap()),
            clock: Arc::new(HostClock),
            runner: Arc::new(AtOnce),
            sender: sender.clone(),
            metrics: Arc::clone(&metrics),
        };
        let load = Box::new(move || Ok(settings(&config, &TimeZone::UTC)));
        let mut engine = Engine::new(parts, inputs, load, "test:///").unwrap();
        sender.send(Input::Guests((0..guests).map(guest).collect())).unwrap();
        let thread = std::thread::spawn(move || engine.run());
        let service =
            Self { api: EngineControlApi::new(sender.clone()), sender, metrics, thread, _state: state };
        while service.status().guests.is_none() {
            std::thread::yield_now();
        }
        service
    }

    fn status(&self) -> Status {
        self.api.status().unwrap()
    }

    fn end(self) {
        self.sender.send(Input::Stop).unwrap();
        self.thread.join().unwrap();
    }
}

fn guest(number: usize) -> GuestFacts {
    GuestFacts {
        id: DomainId(Uuid::from_u128(number as u128 + 1)),
        name: format!("guest{number}"),
        tags: vec![format!("tag{}", number % 7)],
        disks: Vec::new(),
        trouble: None,
    }
}

pub(crate) fn run(size: usize) {
    queue(size);
    jobs(size, size / 10);
}

/// One `run` of all guests, and questions until all is done.
fn queue(guests: usize) {
    let head = "version: 1\nservice: {concurrency: 4}\nmedia: {disk: {to: /backup, concurrency: 4}}\n";
    let service = Service::start(
        &format!("{head}jobs: {{all: {{domains: {{all: true}}, to: disk, schedule: manual}}}}\n"),
        guests,
    );
    let (entries, cost) = measured(UsageWho::RUSAGE_SELF, || service.api.run("all", None).unwrap());
    assert_eq!(entries.len(), guests);
    row(&format!("'run' of {guests} guests"), cost, "");
    let mut longest = Duration::ZERO;
    let mut questions = 0_u64;
    let ((), cost) = measured(UsageWho::RUSAGE_SELF, || {
        loop {
            let asked = Instant::now();
            let status = service.status();
            longest = longest.max(asked.elapsed());
            questions += 1;
            if status.queued == 0 && status.running.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    let counts = format!("{questions} times 'status', {} ms at most", longest.as_millis());
    row(&format!("{guests} runs from the queue"), cost, &counts);
    service.end();
}

/// A page of the metrics.
fn jobs(jobs: usize, guests: usize) {
    let mut config = String::from("version: 1\nmedia: {disk: {to: /backup}}\njobs:\n");
    for job in 0..jobs {
        writeln!(
            config,
            "  job{job}: {{domains: {{names: 'guest{}*'}}, to: disk, schedule: 'daily 02:30'}}",
            job % 10
        )
        .unwrap();
    }
    let service = Service::start(&config, guests);
    let page = || service.metrics.page(&service.status()).unwrap().len();
    let (_, first) = measured(UsageWho::RUSAGE_SELF, page);
    const PAGES: u32 = 10;
    let (bytes, cost) = measured(UsageWho::RUSAGE_SELF, || (0..PAGES).map(|_| page()).max().unwrap());
    let each = |total: f64| total / f64::from(PAGES);
    let cost = Cost { cpu: each(cost.cpu), wall: each(cost.wall) };
    let counts = format!("{bytes} bytes; the first one {:.2} CPU s", first.cpu);
    row(&format!("a scrape, {jobs} jobs x {guests} guests"), cost, &counts);
    service.end();
}
