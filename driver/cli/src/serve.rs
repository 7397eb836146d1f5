//! `virtfold serve`: the service, put together.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use crossbeam_channel::{Sender, unbounded};
use jiff::tz::TimeZone;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use virtfold_base::error::{Error, ErrorKind, sentence};
use virtfold_catalog::{Catalog, DomainLock, Journal};
use virtfold_hypervisor::{DomainId, Hypervisor};
use virtfold_service::clock::HostClock;
use virtfold_service::control::{ControlApi, Limits, Server};
use virtfold_service::engine::{Engine, EngineControlApi, EngineParts, Input, Load};
use virtfold_service::event_bridge::{self, EventBridge, SharedConnection};
use virtfold_service::events::{self, EventThread};
use virtfold_service::metrics::{Exporter, Metrics};
use virtfold_service::runner::{ProcessRunner, RunPaths};
use virtfold_service::settings::settings;

use super::config::ConfigFlag;
use super::control::SocketFlag;
use super::domain::connection::{ConnectFlag, StateFlag};
use super::exit::{self, ExitStatus};

/// How often the files of the metrics are written.
const METRICS_EVERY: Duration = Duration::from_secs(10);

/// Run the service, which makes backups when they are due
///
/// Runs the jobs of the configuration: backs up guests when they are due or when something happens to them,
/// makes up for missed runs, retries, prunes. Each backup is a process of its own. On SIGTERM running backups
/// may finish within `service.stop-timeout`; then they are parked: the guest is put back on its disks, and
/// the next service starts the backup over. SIGHUP reloads the configuration. systemd starts it as
/// virtfold.service.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold serve
  virtfold serve --config ./config.yaml --state-dir ./state --socket ./control.sock
  virtfold status")]
pub(crate) struct Args {
    #[command(flatten)]
    config: ConfigFlag,
    #[command(flatten)]
    socket: SocketFlag,
    #[command(flatten)]
    connect: ConnectFlag,
    #[command(flatten)]
    state: StateFlag,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<ExitStatus> {
    let state = args.state.path_of(args.connect.whose())?;
    let (uri, _) = args.connect.uri();
    let link = link(&args.connect)?;
    let catalog = Arc::new(Catalog::open(&state)?);
    let _only = only_one(&catalog, &state)?;
    catalog.check()?;
    let metrics_dir = Arc::new(Mutex::new(None));
    let load = load(args.config.clone(), Arc::clone(&metrics_dir));
    let paths = RunPaths {
        program: PathBuf::from("/proc/self/exe"),
        uri: uri.clone(),
        state_dir: state.clone(),
        config: args.config.path(),
    };
    let runner = ProcessRunner::new(paths, Arc::clone(&catalog), exit::kind)?;
    let (sender, inputs) = unbounded();
    let metrics = Arc::new(Metrics::default());
    let parts = EngineParts {
        queue: catalog,
        clock: Arc::new(HostClock),
        runner: Arc::new(runner),
        sender: sender.clone(),
        metrics: Arc::clone(&metrics),
    };
    let mut engine = Engine::new(parts, inputs, load, &uri)?;
    signals(sender.clone())?;
    let api: Arc<dyn ControlApi> = Arc::new(EngineControlApi::new(sender.clone()));
    let server = Server::start(&args.socket.path(args.connect.whose()), Arc::clone(&api), Limits::default())?;
    let listen = args.config.load()?.service.metrics_listen;
    let exporter =
        listen.map(|address| Exporter::start(address.get(), Arc::clone(&metrics), Arc::clone(&api)));
    let exporter = exporter.transpose()?;
    report(metrics, api, metrics_dir)?;
    let events = hear(events::EventSettings::usual(&state, args.connect.whose()), link, sender)?;
    engine.run();
    // Whoever still asks hears at once that nobody answers.
    drop(engine);
    drop((server, exporter, events));
    Ok(ExitStatus::Done)
}

/// Ends this process with its parent: the kernel sends SIGTERM, as a person would.
pub(crate) fn end_with(parent: u32) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
        .context("cannot ask the kernel to end this process with its parent")?;
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    if now.and_then(|pid| u32::try_from(pid).ok()) == Some(parent) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Refused, format!("the parent process {parent} has ended")).into())
}

/// The libvirt. An address that can never be used is an error now; one that nobody answers at is tried until
/// somebody does.
fn link(connect: &ConnectFlag) -> Result<SharedConnection> {
    let connect = connect.clone();
    let open =
        move || connect.open().map(|connection| -> Arc<dyn Hypervisor> { Arc::from(connection.hypervisor) });
    let link = event_bridge::link(open);
    match link() {
        Err(error) if matches!(error.kind(), ErrorKind::Usage | ErrorKind::Unsupported) => Err(error.into()),
        _ => Ok(link),
    }
}

/// Two services with one queue would do everything twice.
fn only_one(catalog: &Catalog, state: &Path) -> Result<Box<dyn DomainLock>, Error> {
    let nobody = DomainId(uuid::Uuid::nil());
    catalog.lock(nobody).map_err(|error| {
        let what = format!("another service uses the state directory '{}'", state.display());
        Error::new(error.kind(), what).with_source(error).with_hint("'virtfold status' shows its state")
    })
}

fn load(flag: ConfigFlag, metrics_dir: Arc<Mutex<Option<PathBuf>>>) -> Load {
    Box::new(move || {
        let config = flag.load()?;
        let directory = config.service.metrics_dir.as_ref().map(|dir| dir.as_path().to_owned());
        *metrics_dir.lock().unwrap_or_else(PoisonError::into_inner) = directory;
        Ok(settings(&config, &TimeZone::system()))
    })
}

/// From here on signals are inputs.
fn signals(to: Sender<Input>) -> Result<()> {
    let mut signals =
        signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]).context("cannot catch signals")?;
    thread("signals", move || {
        for signal in signals.forever() {
            let input = if signal == SIGHUP { Input::Reload } else { Input::Stop };
            if to.send(input).is_err() {
                return;
            }
        }
    })
}

/// Writes the files of the metrics, where a directory is set.
fn report(
    metrics: Arc<Metrics>,
    api: Arc<dyn ControlApi>,
    directory: Arc<Mutex<Option<PathBuf>>>,
) -> Result<()> {
    thread("metrics", move || {
        loop {
            std::thread::sleep(METRICS_EVERY);
            let directory = directory.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let Some(directory) = directory else { continue };
            let written = api.status().and_then(|status| metrics.write(&status, &directory));
            if let Err(error) = written {
                tracing::warn!(error = sentence(&error), "the metrics can't be written");
            }
        }
    })
}

/// Begins to hear of guests and of libvirt.
fn hear(places: events::EventSettings, link: SharedConnection, to: Sender<Input>) -> Result<EventThread> {
    let connect = Arc::clone(&link);
    let (events, notices) = EventThread::start(places, Box::new(move || connect()))?;
    let mut bridge = EventBridge::new(Arc::clone(&link), to.clone());
    thread("events", move || bridge.run(&notices))?;
    thread("libvirt", move || event_bridge::watch(&link, &to))?;
    Ok(events)
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map(|_| ()).context("cannot start a thread")
}
