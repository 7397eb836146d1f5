//! Random hosts against a naive model: what is due is wished for, a wish is fulfilled by one run, a failure
//! is a wish again.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::world::*;
use super::*;

#[derive(Clone, Debug)]
struct Host {
    jobs: Vec<RandomJob>,
    concurrency: usize,
    disk: usize,
    tape: usize,
    takes: Vec<u64>,
    fails: u32,
}

#[derive(Clone, Debug)]
struct RandomJob {
    every: i64,
    offset: i64,
    guests: Vec<usize>,
    to_tape: bool,
    jitter: u64,
    attempts: u32,
}

fn hosts() -> impl Strategy<Value = Host> {
    let job = (
        20..300_i64,
        0..200_i64,
        prop::collection::vec(0..5_usize, 1..5),
        any::<bool>(),
        0..900_u64,
        1..4_u32,
    );
    let job = job.prop_map(|(every, offset, guests, to_tape, jitter, attempts)| RandomJob {
        every,
        offset,
        guests,
        to_tape,
        jitter,
        attempts,
    });
    let jobs = prop::collection::vec(job, 1..4);
    (jobs, 1..4_usize, 1..3_usize, prop::collection::vec(1..40_u64, 5), 2..9_u32).prop_map(
        |(jobs, concurrency, disk, takes, fails)| Host { jobs, concurrency, disk, tape: 1, takes, fails },
    )
}

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const BEGIN: &str = "2026-11-27T00:00:30Z";
const END: &str = "2026-11-27T09:00:00Z";

fn name(job: usize) -> String {
    format!("job{job}")
}

fn build(host: &Host) -> World {
    let jobs = host.jobs.iter().enumerate().map(|(index, random)| {
        let guests: Vec<&str> = random.guests.iter().map(|guest| NAMES[*guest]).collect();
        let mut made = job(&name(index), &guests, vec![Arc::new(Every(random.every, random.offset))]);
        made.jitter = Duration::from_secs(random.jitter);
        made.attempts = random.attempts;
        made.media =
            if random.to_tape { vec!["disk".to_owned(), "tape".to_owned()] } else { vec!["disk".to_owned()] };
        made
    });
    let media = [medium("disk", host.disk), medium("tape", host.tape)];
    let settings = settings_of(jobs.collect(), host.concurrency, &media);
    let (takes, fails) = (host.takes.clone(), host.fails);
    let play = move |order: &crate::runner::RunOrder, count: u32| {
        let which = NAMES.iter().position(|name| *name == order.guest.name).unwrap();
        Script { fails: count % fails == 1, ..minutes(takes[which]) }
    };
    World::new(BEGIN, settings, &NAMES, play)
}

/// Replays what happened, and holds each step against what was wished for.
fn check(host: &Host, world: &World) {
    let begin: Timestamp = BEGIN.parse().unwrap();
    let end: Timestamp = END.parse().unwrap();
    let mut steps: Vec<(Timestamp, u8, Step)> = Vec::new();
    for (index, random) in host.jobs.iter().enumerate() {
        let calendar = Every(random.every, random.offset);
        let mut time = begin;
        while let Some(next) =
            crate::job_spec::NextTime::next_after(&calendar, time).filter(|next| *next < end)
        {
            let mut guests = random.guests.clone();
            guests.sort_unstable();
            guests.dedup();
            steps.extend(guests.iter().map(|guest| (next, 1, Step::Due(index, *guest))));
            time = next;
        }
    }
    // Of one moment: what ended, then what is due, then what begins.
    for (at, event) in world.events() {
        let order = if matches!(event, Event::Ended { .. }) { 0 } else { 2 };
        steps.push((at, order, Step::Happened(event)));
    }
    steps.sort_by_key(|(at, order, _)| (*at, *order));
    let mut naive = Naive { host, wishes: BTreeMap::new(), alive: BTreeMap::new() };
    for (at, _, step) in &steps {
        naive.step(*at, step);
    }
    // A wish may only be open at the end where there was not enough time, or others had it.
    let open = world.catalog().open_entries().unwrap().len();
    assert_eq!(naive.wishes.len() + naive.alive.len(), open);
}

#[derive(Debug)]
enum Step {
    Due(usize, usize),
    Happened(Event),
}

struct Naive<'a> {
    host: &'a Host,
    /// By job and guest: since when, and how often it was tried.
    wishes: BTreeMap<(String, String), (Timestamp, u32)>,
    alive: BTreeMap<i64, (String, String, u32, Vec<String>)>,
}

impl Naive<'_> {
    fn step(&mut self, at: Timestamp, step: &Step) {
        match step {
            Step::Due(job, guest) => {
                self.wishes.entry((name(*job), NAMES[*guest].to_owned())).or_insert((at, 0));
            }
            Step::Happened(Event::Began { id, job, domain, media }) => {
                let wish = self.wishes.remove(&(job.clone(), domain.clone()));
                let (since, tried) =
                    wish.unwrap_or_else(|| panic!("nobody wished for {job} of {domain} at {at}"));
                assert!(since <= at);
                assert!(!self.alive.values().any(|(_, other, ..)| other == domain), "twice: {domain}");
                self.alive.insert(*id, (job.clone(), domain.clone(), tried + 1, media.clone()));
                assert!(self.alive.len() <= self.host.concurrency);
                let on = |name: &str| {
                    self.alive.values().filter(|(.., media)| media.iter().any(|m| m == name)).count()
                };
                assert!(on("disk") <= self.host.disk && on("tape") <= self.host.tape);
            }
            Step::Happened(Event::Ended { id, well }) => {
                let (job, domain, tried, _) = self.alive.remove(id).unwrap();
                let index: usize = job[3..].parse().unwrap();
                if !well && tried < self.host.jobs[index].attempts {
                    // A newer wish that waits is fulfilled with it.
                    self.wishes.insert((job, domain), (at, tried));
                }
            }
            Step::Happened(_) => panic!("nobody is killed or pruned here"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn what_is_due_is_done_once_and_within_the_limits(host in hosts()) {
        let world = build(&host);
        let mut engine = world.service(Arc::new(world.catalog())).unwrap();
        world.run(&mut engine, END);
        check(&host, &world);
    }
}
