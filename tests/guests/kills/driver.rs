//! The driver's part: this test binary again, in a process of its own that can be stopped and killed. It
//! freezes a guest by the library, with a journal around the real one that stops the process (SIGSTOP) before
//! or after one entry.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use virtfold::backup::Control;
use virtfold::backup::freeze::WatchdogProcess;
use virtfold::backup::freeze::{
    AgentFreeze, FreezeContext, FreezeDisk, FreezeRequest, FreezeTimings, with_frozen_disks,
};
use virtfold::catalog::{BaseImage, Catalog, DomainLock, FreezeSession, Journal, JournalEntry};
use virtfold::error::Result;
use virtfold::hypervisor::domain_xml::DomainXml;
use virtfold::hypervisor::host_files::LocalFiles;
use virtfold::hypervisor::libvirt::{Libvirt, LocalUri};
use virtfold::hypervisor::{DomainId, Hypervisor, XmlView, overlay_path};

const ROLE: &str = "VIRTFOLD_KILLS_DRIVER";

/// Where an entry of the journal is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Moment {
    /// The step before it is done, and not noted.
    Before,
    /// The entry is durable, its step not begun.
    After,
}

/// Whether the guest's agent freezes the file systems, within a limit in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ask {
    No,
    Wanted(u64),
    Required(u64),
}

/// What the driver is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Script {
    pub(crate) uri: String,
    pub(crate) domain: String,
    pub(crate) state: PathBuf,
    /// Where overlays go; beside their disks where nothing is said.
    pub(crate) overlays: Option<PathBuf>,
    /// The entry at which it stops, counted from 0.
    pub(crate) stop: Option<(usize, Moment)>,
    /// How long the copy takes.
    pub(crate) copy_ms: u64,
    /// Whether the guest's agent freezes.
    pub(crate) quiesce: Ask,
    /// The entries' names go here, a line each.
    pub(crate) trace: PathBuf,
}

impl Script {
    /// The process that does it.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "kills::driver::part_of_the_driver", "--nocapture"]);
        command.env(ROLE, serde_json::to_string(self).unwrap());
        command
    }
}

/// Not a test: the driver's process.
#[test]
fn part_of_the_driver() {
    if let Ok(text) = std::env::var(ROLE) {
        run(&serde_json::from_str(&text).unwrap());
    }
}

pub(crate) fn open(uri: &str) -> Libvirt {
    Libvirt::open(LocalUri::parse(uri).unwrap()).unwrap()
}

/// The real guard: a process of the real program.
pub(crate) fn guards(uri: &str) -> WatchdogProcess {
    let arguments = ["guard", "--uri", uri].map(Into::into).to_vec();
    WatchdogProcess { program: env!("CARGO_BIN_EXE_virtfold").into(), arguments }
}

/// A budget that a software-emulated guest on a busy machine keeps.
pub(crate) fn pace() -> FreezeTimings {
    FreezeTimings { pause_budget: Duration::from_secs(2), ..FreezeTimings::default() }
}

fn run(script: &Script) {
    let libvirt = open(&script.uri);
    let catalog = Catalog::open(&script.state).unwrap();
    let trace = Mutex::new((0, File::create(&script.trace).unwrap()));
    let journal = Stopping { inner: &catalog, stop: script.stop, trace };
    let guard = guards(&script.uri);
    let host = FreezeContext {
        hypervisor: &libvirt,
        files: &LocalFiles,
        journal: &journal,
        guard: &guard,
        pace: pace(),
    };
    let id = libvirt.lookup(&script.domain).unwrap().id;
    let request = request(&libvirt, id, script);
    let copied = with_frozen_disks(&host, &request, &Control::default(), |_| {
        std::thread::sleep(Duration::from_millis(script.copy_ms));
        Ok(())
    });
    match copied {
        Ok(thawed) => println!("driver: {:?}", thawed.report),
        Err(error) => {
            println!("driver: {error:?}");
            std::process::exit(3);
        }
    }
}

/// Freezes every disk of the domain.
pub(crate) fn request(libvirt: &dyn Hypervisor, id: DomainId, script: &Script) -> FreezeRequest {
    let xml = DomainXml::parse(libvirt.xml(id, XmlView::Live).unwrap()).unwrap();
    let tag = std::process::id();
    let disks = xml.disks.iter().map(|disk| {
        let path = disk.image.source.path().unwrap().to_owned();
        let beside = path.parent().unwrap().to_owned();
        let folder = script.overlays.as_deref().unwrap_or(&beside);
        let overlay = overlay_path(folder, &path, tag);
        let backing = disk.backing.first().and_then(|image| {
            Some((image.source.path()?.to_owned(), image.format.clone().unwrap_or_default()))
        });
        FreezeDisk {
            target: disk.target.clone(),
            alias: disk.alias.clone().unwrap(),
            base: BaseImage {
                identity: identity(&path),
                path,
                format: disk.image.format.clone().unwrap(),
                backing,
            },
            overlay,
        }
    });
    FreezeRequest {
        domain: id,
        disks: disks.collect(),
        targets: xml.targets(),
        tracked: Vec::new(),
        quiesce: match script.quiesce {
            Ask::No => AgentFreeze::Skip,
            Ask::Wanted(limit) => AgentFreeze::Try(Duration::from_millis(limit)),
            Ask::Required(limit) => AgentFreeze::Require(Duration::from_millis(limit)),
        },
        min_free: 1 << 20,
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// A journal that stops its process at one entry.
#[derive(Debug)]
struct Stopping<'a> {
    inner: &'a Catalog,
    stop: Option<(usize, Moment)>,
    trace: Mutex<(usize, File)>,
}

impl Stopping<'_> {
    fn entry(&self, name: &str, write: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut trace = self.trace.lock().unwrap();
        let number = trace.0;
        trace.0 += 1;
        writeln!(trace.1, "{name}").unwrap();
        self.stop_at((number, Moment::Before));
        write()?;
        self.stop_at((number, Moment::After));
        Ok(())
    }

    fn stop_at(&self, here: (usize, Moment)) {
        if self.stop == Some(here) {
            nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGSTOP).unwrap();
        }
    }
}

impl Journal for Stopping<'_> {
    fn lock(&self, domain: DomainId) -> Result<Box<dyn DomainLock>> {
        self.inner.lock(domain)
    }

    fn begin(&self, job: &FreezeSession) -> Result<()> {
        self.entry("begin", || self.inner.begin(job))
    }

    fn record(&self, job: Uuid, changes: &[JournalEntry]) -> Result<()> {
        let names: Vec<String> = changes.iter().map(name).collect();
        self.entry(&names.join(" + "), || self.inner.record(job, changes))
    }

    fn open_sessions(&self, domain: Option<DomainId>) -> Result<Vec<FreezeSession>> {
        self.inner.open_sessions(domain)
    }
}

fn name(change: &JournalEntry) -> String {
    match change {
        JournalEntry::State(state) => format!("{state:?}"),
        JournalEntry::Held(held) => {
            held.map_or_else(|| "let go".to_owned(), |held| format!("to be {held:?}"))
        }
        JournalEntry::Frozen { target, .. } => format!("{target} frozen"),
        JournalEntry::Disk { target, state } => {
            let state = format!("{state:?}");
            format!("{target} {}", state.split([' ', '{']).next().unwrap_or_default())
        }
        JournalEntry::Close(_) => "closed".to_owned(),
    }
}
