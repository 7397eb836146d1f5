//! The service, put together: who holds what, what is started in which order, and how it all ends.
//!
//! The lock of the state directory comes first, so that there is one service for a queue; the threads that
//! bring inputs (signals, the control socket, guests' events) come when the engine exists.
//!
//! Imports: everything of the service; `catalog`, `hypervisor`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Sender, unbounded};
use jiff::tz::TimeZone;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use virtfold_base::error::{Error, ErrorKind, Result, sentence};
use virtfold_catalog::{Catalog, DomainLock, Journal};
use virtfold_config::Config;
use virtfold_hooks::HookOwner;
use virtfold_hypervisor::{DomainId, Hypervisor};

use super::clock::HostClock;
use super::control::{ControlApi, Limits, Server};
use super::engine::{Engine, EngineControlApi, EngineParts, Input, Load};
use super::event_bridge::{self, EventBridge, SharedConnection};
use super::events::{EventSettings, EventThread};
use super::metrics::{Exporter, Metrics};
use super::runner::{ProcessRunner, RunPaths};
use super::settings::settings;

/// How often the files of the metrics are written.
const METRICS_EVERY: Duration = Duration::from_secs(10);

/// What a service needs of its host. The two functions may be called at any time, by any thread.
pub struct ServeRequest {
    /// The programs and places of its runs; their state directory is the service's.
    pub paths: RunPaths,
    /// Whose libvirt it works for.
    pub whose: HookOwner,
    /// The control socket.
    pub socket: PathBuf,
    /// What an exit code of a run says.
    pub kind_of: fn(i32) -> ErrorKind,
    /// Reads the configuration.
    pub load: Box<dyn Fn() -> Result<Config> + Send + Sync>,
    /// Opens the connection to libvirt.
    pub connect: Box<dyn Fn() -> Result<Arc<dyn Hypervisor>> + Send + Sync>,
}

impl std::fmt::Debug for ServeRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServeRequest").field("paths", &self.paths).field("socket", &self.socket).finish()
    }
}

/// Serves until SIGTERM or SIGINT. SIGHUP reads the configuration again.
///
/// # Errors
/// Another service has the state directory; the catalog, the socket, the configuration or libvirt's address
/// is of no use. A libvirt that does not answer yet is no error.
pub fn serve(request: ServeRequest) -> Result<()> {
    let ServeRequest { paths, whose, socket, kind_of, load, connect } = request;
    let state = paths.state_dir.clone();
    let link = link(connect)?;
    let catalog = Arc::new(Catalog::open(&state)?);
    let _only = only_one(&catalog, &state)?;
    catalog.check()?;
    let listen = load()?.service.metrics_listen;
    let metrics_dir = Arc::new(Mutex::new(None));
    let uri = paths.uri.clone();
    let (sender, inputs) = unbounded();
    let metrics = Arc::new(Metrics::default());
    let parts = EngineParts {
        runner: Arc::new(ProcessRunner::new(paths, Arc::clone(&catalog), kind_of)?),
        queue: catalog,
        clock: Arc::new(HostClock),
        sender: sender.clone(),
        metrics: Arc::clone(&metrics),
    };
    let mut engine = Engine::new(parts, inputs, noting(load, Arc::clone(&metrics_dir)), &uri)?;
    signals(sender.clone())?;
    let api: Arc<dyn ControlApi> = Arc::new(EngineControlApi::new(sender.clone()));
    let server = Server::start(&socket, Arc::clone(&api), Limits::default())?;
    let exporter =
        listen.map(|address| Exporter::start(address.get(), Arc::clone(&metrics), Arc::clone(&api)));
    let exporter = exporter.transpose()?;
    write_metrics(metrics, api, metrics_dir)?;
    let events = hear(EventSettings::usual(&state, whose), link, sender)?;
    engine.run();
    // Whoever still asks hears at once that nobody answers.
    drop(engine);
    drop((server, exporter, events));
    Ok(())
}

/// The libvirt. An address that can never be used is an error now; one that nobody answers at is tried until
/// somebody does.
fn link(open: impl Fn() -> Result<Arc<dyn Hypervisor>> + Send + Sync + 'static) -> Result<SharedConnection> {
    let link = event_bridge::link(open);
    match link() {
        Err(error) if matches!(error.kind(), ErrorKind::Usage | ErrorKind::Unsupported) => Err(error),
        _ => Ok(link),
    }
}

/// Two services with one queue would do everything twice.
fn only_one(catalog: &Catalog, state: &Path) -> Result<Box<dyn DomainLock>> {
    let nobody = DomainId(uuid::Uuid::nil());
    catalog.lock(nobody).map_err(|error| {
        let what = format!("another service uses the state directory '{}'", state.display());
        Error::new(error.kind(), what).with_source(error).with_hint("'virtfold status' shows its state")
    })
}

/// Each configuration that is read says where the files of the metrics go.
fn noting(
    load: impl Fn() -> Result<Config> + Send + 'static,
    metrics_dir: Arc<Mutex<Option<PathBuf>>>,
) -> Load {
    Box::new(move || {
        let config = load()?;
        let directory = config.service.metrics_dir.as_ref().map(|dir| dir.as_path().to_owned());
        *metrics_dir.lock().unwrap_or_else(PoisonError::into_inner) = directory;
        Ok(settings(&config, &TimeZone::system()))
    })
}

/// From here on signals are inputs.
fn signals(to: Sender<Input>) -> Result<()> {
    let signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]);
    let mut signals = signals.map_err(|error| Error::io("cannot catch signals", error))?;
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
fn write_metrics(
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
fn hear(places: EventSettings, link: SharedConnection, to: Sender<Input>) -> Result<EventThread> {
    let connect = Arc::clone(&link);
    let (events, notices) = EventThread::start(places, Box::new(move || connect()))?;
    let mut bridge = EventBridge::new(Arc::clone(&link), to.clone());
    thread("events", move || bridge.run(&notices))?;
    thread("libvirt", move || event_bridge::watch(&link, &to))?;
    Ok(events)
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map(|_| ()).map_err(|error| Error::io(format!("cannot start the thread '{name}'"), error))
}
