//! The cases: every entry of the journal, one event.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use virtfold::backup::RunMode;
use virtfold::backup::freeze::{FreezeContext, RecoverScope, Recovery, RecoveryStatus, recover};
use virtfold::catalog::{Catalog, Journal};
use virtfold::hypervisor::host_files::LocalFiles;
use virtfold::hypervisor::{Hypervisor, XmlView, is_our_overlay};

use super::driver::{Ask, Moment, Script, guards, open, pace};
use crate::lab::records::check_images;
use crate::lab::{Guest, GuestSpec, Lab, run as tool, wait_for};

/// What happens while the driver is stopped, before it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Nothing,
    LibvirtdKilled,
    GuestDestroyed,
    GuestShutDown,
    Full,
}

/// How often an entry that was not come to is tried again: a backup that needs fewer turns to end has fewer
/// entries.
const ATTEMPTS: usize = 3;

/// How a case went.
enum Seen {
    /// The driver was done before it came to this entry.
    NotReached,
    /// All is well; the recovery's words.
    Whole(Recovery),
}

/// Runs the event against every entry; panics with all that went wrong.
pub(crate) fn run(event: Event) {
    let rounds = std::env::var("VIRTFOLD_SOAK").ok().and_then(|n| n.parse::<usize>().ok()).unwrap_or(1);
    let only = std::env::var("VIRTFOLD_SOAK_ENTRY").ok().and_then(|n| n.parse::<usize>().ok());
    let mut bench = Bench::new(event);
    let names = bench.names();
    println!("{event:?}: {} entries: {names:?}", names.len());
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    let mut failures = Vec::new();
    for round in 0..rounds {
        for (entry, name) in names.iter().enumerate() {
            // The two moments take turns, from entry to entry and from round to round.
            let moment = if (entry + round) % 2 == 0 { Moment::Before } else { Moment::After };
            if only.is_some_and(|only| only != entry) {
                continue;
            }
            let said = format!("{event:?}, {moment:?} entry {entry} ({name}), round {round}");
            let from = Instant::now();
            let seen =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| bench.tried((entry, moment))));
            let verdict = match seen {
                Ok(Ok(Seen::Whole(recovery))) => {
                    println!("{said}: {:?} {:?} in {:?}", recovery.verdict, recovery.done, from.elapsed());
                    if recovery.job.is_some() { "whole" } else { "whole, with nothing to recover" }
                }
                Ok(Ok(Seen::NotReached)) => "not reached",
                Ok(Err(why)) => failed(&mut failures, &mut bench, format!("{said}: {why}")),
                Err(panic) => {
                    let text = panic.downcast_ref::<String>().cloned();
                    let why = text.unwrap_or_else(|| "a panic".to_owned());
                    failed(&mut failures, &mut bench, format!("{said}: {why}"))
                }
            };
            *counts.entry(verdict).or_default() += 1;
        }
    }
    println!("{event:?}: {counts:?}, {} guests stopped by the full file system", bench.stopped.get());
    assert!(failures.is_empty(), "{} of {counts:?} failed:\n{}", failures.len(), failures.join("\n"));
    if only.is_none() {
        exercised(&counts, bench.stopped.get(), event, names.len() * rounds);
    }
}

/// Nothing failed; was there enough that could have?
fn exercised(counts: &BTreeMap<&str, u32>, stopped: u32, event: Event, cases: usize) {
    let of = |verdict: &str| counts.get(verdict).map_or(0, |count| usize::try_from(*count).unwrap());
    assert!(cases >= 12, "a backup of two disks makes more than {cases} entries");
    let reached = cases - of("not reached");
    assert!(reached * 8 >= cases * 7, "only {reached} of {cases} entries were reached: {counts:?}");
    assert!(of("whole") * 3 >= cases, "hardly any recovery had something to do: {counts:?}");
    assert!(event != Event::Full || stopped > 0, "no guest ever ran into the full file system");
}

fn failed(failures: &mut Vec<String>, bench: &mut Bench, why: String) -> &'static str {
    println!("FAILED {why}");
    failures.push(why);
    // What a failed case leaves behind must not fail the next.
    let stopped = bench.stopped.get();
    *bench = Bench::new(bench.event);
    bench.stopped.set(stopped);
    "failed"
}

/// A lab with one guest. The guest borrows the lab, which is leaked for the time of the process and ended by
/// [`Drop`].
struct Bench {
    event: Event,
    lab: &'static Lab,
    guest: Option<Guest<'static>>,
    golden: PathBuf,
    golden_digest: String,
    /// How many guests an I/O error stopped, because their overlays were full.
    stopped: Cell<u32>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.guest = None;
        self.lab.end();
    }
}

impl Bench {
    fn new(event: Event) -> Self {
        let lab: &'static Lab = Box::leak(Box::new(Lab::start()));
        let golden = lab.folder().join("golden.qcow2");
        tool(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&golden).arg("192M"));
        let spec = GuestSpec {
            disks: vec!["qcow2", "raw"],
            golden: Some(golden.clone()),
            slots: 256,
            ..GuestSpec::default()
        };
        let guest = lab.guest(spec);
        let golden_digest = digest(&golden);
        Self { event, lab, guest: Some(guest), golden, golden_digest, stopped: Cell::new(0) }
    }

    fn guest(&self) -> &Guest<'static> {
        self.guest.as_ref().unwrap()
    }

    fn script(&self, stop: Option<(usize, Moment)>) -> Script {
        Script {
            uri: self.lab.uri(),
            domain: self.guest().name().to_owned(),
            state: self.lab.folder().join("state"),
            overlays: (self.event == Event::Full).then(|| self.lab.small()),
            stop,
            copy_ms: 50,
            quiesce: Ask::No,
            trace: self.lab.folder().join("trace"),
        }
    }

    /// The entries of an undisturbed backup.
    fn names(&self) -> Vec<String> {
        self.running();
        let script = self.script(None);
        tool(&mut quiet(script.command()));
        std::fs::read_to_string(script.trace).unwrap().lines().map(str::to_owned).collect()
    }

    fn running(&self) {
        if self.guest().state() == "shut off" {
            self.guest().start();
        }
        self.guest().progress.wait_more(3);
    }

    /// A case, and again where its entry was not come to.
    fn tried(&self, stop: (usize, Moment)) -> Result<Seen, String> {
        for _ in 1..ATTEMPTS {
            match self.case(stop)? {
                Seen::NotReached => {}
                seen @ Seen::Whole(_) => return Ok(seen),
            }
        }
        self.case(stop)
    }

    fn case(&self, stop: (usize, Moment)) -> Result<Seen, String> {
        self.running();
        let from = Instant::now();
        let script = self.script(Some(stop));
        let child = quiet(script.command()).spawn().unwrap();
        let stopped = Stopped::wait(child)?;
        let Some(stopped) = stopped else { return Ok(Seen::NotReached) };
        let filler = self.happen();
        stopped.kill();
        if self.event == Event::LibvirtdKilled {
            self.lab.restart();
        }
        let recovery = self.recover()?;
        let to = Instant::now();
        if let Some(filler) = filler {
            std::fs::remove_file(filler).unwrap();
        }
        self.is_whole().map_err(|why| format!("{why}\nafter {recovery:?}"))?;
        if self.event == Event::Nothing {
            let (gap, _) = self.guest().progress.gap_between(from, to);
            let limit = pace().pause_budget + Duration::from_secs(1);
            if gap > limit {
                return Err(format!("the guest stood still for {gap:?}, more than {limit:?}"));
            }
        }
        Ok(Seen::Whole(recovery))
    }

    /// The event. Returns a file that fills the overlays' file system.
    fn happen(&self) -> Option<PathBuf> {
        let guest = self.guest();
        match self.event {
            Event::Nothing => {}
            Event::LibvirtdKilled => self.lab.kill(),
            Event::GuestDestroyed => {
                self.lab.virsh(&["destroy", guest.name()]);
                assert_eq!(guest.state(), "shut off");
            }
            Event::GuestShutDown => guest.power_off(),
            Event::Full => {
                let (filler, ran) = (self.lab.small().join("filler"), guest.state() == "running");
                fill(&filler);
                // Long enough for the guest to run into it, where it writes there at all.
                let limit = Instant::now() + Duration::from_secs(2);
                while guest.state() == "running" && Instant::now() < limit {
                    std::thread::sleep(Duration::from_millis(50));
                }
                let ran_into_it = ran && guest.state() == "paused";
                self.stopped.set(self.stopped.get() + u32::from(ran_into_it));
                return Some(filler);
            }
        }
        None
    }

    fn recover(&self) -> Result<Recovery, String> {
        let (libvirt, guard) = (open(&self.lab.uri()), guards(&self.lab.uri()));
        let catalog = Catalog::open(&self.lab.folder().join("state")).map_err(|e| format!("{e:?}"))?;
        let id = libvirt.lookup(self.guest().name()).unwrap().id;
        let host = FreezeContext {
            hypervisor: &libvirt,
            files: &LocalFiles,
            journal: &catalog,
            guard: &guard,
            pace: pace(),
        };
        let ended = recover(&host, RecoverScope::Domain(id), RunMode::Apply).map_err(|e| format!("{e:?}"))?;
        let bad =
            |r: &&Recovery| !matches!(r.verdict, RecoveryStatus::Recovered | RecoveryStatus::OverlayPending);
        if let Some(bad) = ended.iter().find(bad) {
            return Err(format!("recovery: {bad:?}"));
        }
        let open = catalog.open_sessions(Some(id)).map_err(|e| format!("{e:?}"))?;
        if let (Some(job), true) =
            (open.first(), ended.iter().all(|r| r.verdict == RecoveryStatus::Recovered))
        {
            return Err(format!("a job is still open: {job:?}"));
        }
        let nothing = Recovery {
            domain: id.to_string(),
            name: self.guest().name().to_owned(),
            job: None,
            verdict: RecoveryStatus::Recovered,
            found: Vec::new(),
            done: vec!["nothing".to_owned()],
            remains: Vec::new(),
            disks: Vec::new(),
        };
        Ok(ended.into_iter().next().unwrap_or(nothing))
    }

    /// The guest is on its own disks with every record that it told of; nothing of virtfold's is left.
    fn is_whole(&self) -> Result<(), String> {
        let guest = self.guest();
        let off = guest.state() == "shut off";
        if !off {
            if guest.state() != "running" {
                let state = self.lab.virsh(&["domstate", "--reason", guest.name()]);
                let ask = ["qemu-monitor-command", guest.name(), r#"{"execute":"query-status"}"#];
                return Err(format!("the guest is {}; {}", state.trim(), self.lab.virsh(&ask)));
            }
            guest.progress.wait_more(10);
            guest.progress.tell(b'p');
            wait_for("the guest pauses its writer", 10, || guest.progress.is_paused());
        }
        let told = guest.progress.last();
        self.chains(XmlView::Inactive)?;
        if !off {
            self.chains(XmlView::Live)?;
        }
        let images = guest.images();
        let images: Vec<_> = images.iter().map(|(path, format)| (path.as_path(), *format)).collect();
        let prefix = check_images(&images, guest.layout())?;
        if prefix.last < told {
            return Err(format!("the guest told of record {told:?}, the disks end with {:?}", prefix.last));
        }
        if !off {
            guest.progress.tell(b'g');
        }
        for folder in [guest.folder.as_path(), &self.lab.small()] {
            let left = leftovers(folder);
            if !left.is_empty() {
                return Err(format!("left behind: {left:?}"));
            }
        }
        (digest(&self.golden) == self.golden_digest)
            .then_some(())
            .ok_or("the golden image changed".to_owned())
    }

    /// Each disk is the image that it was made with, and the chain below it has its length.
    fn chains(&self, config: XmlView) -> Result<(), String> {
        let mut words = vec!["dumpxml", self.guest().name()];
        words.extend((config == XmlView::Inactive).then_some("--inactive"));
        let text = self.lab.virsh(&words);
        let xml = virtfold::hypervisor::domain_xml::DomainXml::parse(text).map_err(|e| format!("{e:?}"))?;
        for (number, disk) in xml.disks.iter().enumerate() {
            let path = disk.image.source.path();
            if path != Some(self.guest().disk(number).as_path()) || disk.mirror.is_some() {
                return Err(format!("{words:?}: disk {} is {:?}, {:?}", disk.target, path, disk.mirror));
            }
            if config == XmlView::Live && disk.backing.len() != usize::from(number == 0) {
                return Err(format!("disk {} has the chain {:?}", disk.target, disk.backing));
            }
        }
        Ok(())
    }
}

/// Overlays and what was made of them.
pub(crate) fn leftovers(folder: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    files.filter(|p| is_our_overlay(p) || p.to_string_lossy().contains(".virtfold-")).collect()
}

fn digest(path: &Path) -> String {
    blake3::hash(&std::fs::read(path).unwrap()).to_hex().to_string()
}

fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).unwrap();
    let noise = vec![0x5A; 64 << 10];
    while file.write_all(&noise).is_ok() {}
    while file.write_all(&[0x5A]).is_ok() {}
    file.sync_all().unwrap_or_default();
}

pub(crate) fn quiet(mut command: Command) -> Command {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// A driver that has stopped itself.
struct Stopped(Child);

impl Stopped {
    /// Waits until it has; `None` when it ended instead.
    fn wait(child: Child) -> Result<Option<Self>, String> {
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let limit = Instant::now() + Duration::from_secs(120);
        let child = Self(child);
        loop {
            match waitpid(pid, Some(WaitPidFlag::WUNTRACED | WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Stopped(..)) => return Ok(Some(child)),
                Ok(WaitStatus::Exited(_, 0)) => return Ok(None),
                Ok(WaitStatus::StillAlive) if Instant::now() < limit => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                other => {
                    child.kill();
                    return Err(format!("the driver, instead of stopping: {other:?}"));
                }
            }
        }
    }

    fn kill(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        kill(pid, Signal::SIGKILL).unwrap_or_default();
        self.0.wait().map(drop).unwrap_or_default();
    }
}
