//! The guard: a process of its own that thaws or resumes a guest when the pause budget is over or the driver
//! is dead, whatever the driver does.
//!
//! The driver starts it ([`WatchdogClient::start`]: the same binary with a hidden verb, which calls
//! [`serve`]) before it touches the guest, and speaks to it over a socket pair, a line at a time:
//!
//! | driver | guard | |
//! |---|---|---|
//! | | `ready` | the guard has its own connection |
//! | `arm frozen 1500` | `armed` | from now on there are 1500 ms; only now may the driver freeze (or, `paused`, suspend) |
//! | `disarm` | `intime` or `fired` | whether the guard has stepped in |
//! | end of the socket | | the driver is dead: what is armed is undone at once, then the guard ends |
//!
//! A driver that was held up may freeze the guest after the budget is over. So a guard that has fired goes on
//! undoing, every [`AGAIN`], until it is disarmed. After the driver's death it undoes once more a moment
//! after it succeeded, because libvirtd finishes calls of dead clients.
//!
//! The guard can only be as quick as libvirt's lock of the domain. So the driver should freeze, take a plain
//! snapshot and thaw, in three calls, rather than have libvirt quiesce inside the snapshot; and set the
//! agent's time limit first.
//!
//! Imports: `error`, `types`, and the trait.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use super::types::{DomainId, DomainState, PausedReason};
use super::{Hypervisor, HypervisorError, code, config_repair};
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};

/// How often a guard that has fired undoes again.
pub const AGAIN: Duration = Duration::from_millis(200);
/// How long a guard whose driver is dead tries before it gives up.
const PATIENCE: Duration = Duration::from_secs(300);
/// The agent's time limit while thawing.
const AGENT_LIMIT: Duration = Duration::from_secs(2);
/// How long the driver waits for the guard's answers; an undoing call of it may be on its way.
const ANSWER: Duration = Duration::from_secs(60);

/// What the driver does to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestHold {
    /// Its file systems are frozen.
    Frozen,
    /// Its processors stand still.
    Paused,
}

/// Whether the guest was held longer than its budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchdogOutcome {
    /// The driver was in time.
    InTime,
    /// The guard stepped in: what was done to the guest after that moment was done to a guest that ran.
    Expired,
}

/// The driver's end.
#[derive(Debug)]
pub struct WatchdogClient {
    child: Child,
    socket: BufReader<UnixStream>,
}

impl WatchdogClient {
    /// Starts `command`, which must call [`serve`], and waits until it is ready.
    ///
    /// # Errors
    /// It does not start or does not get ready.
    pub fn start(mut command: Command) -> Result<Self> {
        let starting = || "cannot start the pause watchdog".to_owned();
        let (ours, theirs) = UnixStream::pair().at(starting)?;
        ours.set_read_timeout(Some(ANSWER)).at(starting)?;
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
        // A Ctrl-C meant for the driver must not reach the guard.
        let child = command.process_group(0).spawn().at(starting)?;
        // The command holds the other end, which would outlive the guard.
        drop(command);
        let mut guard = Self { child, socket: BufReader::new(ours) };
        match guard.answer()?.as_str() {
            "ready" => Ok(guard),
            other => Err(Error::new(ErrorKind::Internal, starting()).with_source(other.to_owned())),
        }
    }

    /// Begins the budget; returns once the guard watches. Then, and not before, the guest may be held.
    ///
    /// # Errors
    /// The guard is gone; the guest must then not be touched.
    pub fn arm(&mut self, held: GuestHold, budget: Duration) -> Result<ArmedWatchdog<'_>> {
        let word = match held {
            GuestHold::Frozen => "frozen",
            GuestHold::Paused => "paused",
        };
        self.say(&format!("arm {word} {}", budget.as_millis()))?;
        match self.answer()?.as_str() {
            "armed" => Ok(ArmedWatchdog { guard: self }),
            other => Err(gone().with_source(other.to_owned())),
        }
    }

    /// Ends the budget, after the guest was let go; for who does not keep the [`ArmedWatchdog`].
    ///
    /// # Errors
    /// The guard is gone.
    pub fn disarm(&mut self) -> Result<WatchdogOutcome> {
        self.say("disarm")?;
        match self.answer()?.as_str() {
            "intime" => Ok(WatchdogOutcome::InTime),
            "fired" => Ok(WatchdogOutcome::Expired),
            other => Err(gone().with_source(other.to_owned())),
        }
    }

    fn say(&mut self, line: &str) -> Result<()> {
        writeln!(self.socket.get_mut(), "{line}").map_err(|e| gone().with_source(e))
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        self.socket.read_line(&mut line).map_err(|e| gone().with_source(e))?;
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for WatchdogClient {
    fn drop(&mut self) {
        if let Err(error) = self.socket.get_ref().shutdown(std::net::Shutdown::Both) {
            tracing::debug!(%error, "the guard's socket was closed already");
        }
        if let Err(error) = self.child.wait() {
            tracing::warn!(%error, "the guard can't be waited for");
        }
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Internal, "the pause watchdog does not answer")
}

/// A running budget. Dropped without [`ArmedWatchdog::disarm`], it runs out and the guard fires.
#[derive(Debug)]
#[must_use = "a budget that is not disarmed expires"]
pub struct ArmedWatchdog<'a> {
    guard: &'a mut WatchdogClient,
}

impl ArmedWatchdog<'_> {
    /// Ends the budget, after the guest was let go.
    ///
    /// # Errors
    /// The guard is gone.
    pub fn disarm(self) -> Result<WatchdogOutcome> {
        self.guard.disarm()
    }
}

/// The guard's whole life: commands come and answers go by the socket that is standard input. Signals that
/// end the driver do not end it.
///
/// # Errors
/// Standard input is no socket, or the guest could not be resumed.
pub fn serve(hypervisor: &dyn Hypervisor, domain: DomainId) -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGPIPE, SIGTERM};
    for signal in [SIGHUP, SIGINT, SIGPIPE, SIGTERM] {
        let ignored = signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)));
        ignored.at(|| "cannot ignore signals".to_owned())?;
    }
    let socket = std::io::stdin().as_fd().try_clone_to_owned();
    serve_on(UnixStream::from(socket.at(|| "standard input is closed".to_owned())?), hypervisor, domain)
}

/// [`serve`] on any socket.
///
/// # Errors
/// The guest could not be let go.
pub fn serve_on(socket: UnixStream, hypervisor: &dyn Hypervisor, domain: DomainId) -> Result<()> {
    let listening = || "cannot listen to the driver".to_owned();
    // A connection of its own, before it is needed.
    hypervisor.domain_state(domain)?;
    let commands = listen(socket.try_clone().at(listening)?)?;
    let mut watch = WatchdogLoop { socket, hypervisor, domain, armed: None };
    watch.say("ready");
    watch.run(&commands)
}

/// Lines as they come. The channel's end is the driver's.
fn listen(socket: UnixStream) -> Result<Receiver<String>> {
    let (sender, receiver) = bounded(16);
    let read = move || {
        for line in BufReader::new(socket).lines() {
            let Ok(line) = line else { return };
            if sender.send(line).is_err() {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("driver".to_owned()).spawn(read);
    thread.at(|| "cannot start a thread".to_owned()).map(|_| receiver)
}

/// A budget as the guard has it.
#[derive(Clone, Copy, Debug)]
struct PauseDeadline {
    held: GuestHold,
    until: Instant,
    fired: bool,
}

struct WatchdogLoop<'a> {
    socket: UnixStream,
    hypervisor: &'a dyn Hypervisor,
    domain: DomainId,
    armed: Option<PauseDeadline>,
}

impl WatchdogLoop<'_> {
    fn run(&mut self, commands: &Receiver<String>) -> Result<()> {
        loop {
            let wait = match self.armed {
                None => Duration::from_secs(3600),
                Some(budget) => budget.until.saturating_duration_since(Instant::now()),
            };
            match commands.recv_timeout(wait) {
                Ok(line) => self.obey(&line),
                Err(RecvTimeoutError::Timeout) => self.expire(),
                Err(RecvTimeoutError::Disconnected) => return self.driver_is_dead(),
            }
        }
    }

    fn obey(&mut self, line: &str) {
        let mut words = line.split(' ');
        match (words.next(), words.next(), words.next().and_then(|w| w.parse().ok())) {
            (Some("arm"), Some(held @ ("frozen" | "paused")), Some(millis)) => {
                let held = if held == "frozen" { GuestHold::Frozen } else { GuestHold::Paused };
                let until = Instant::now() + Duration::from_millis(millis);
                self.armed = Some(PauseDeadline { held, until, fired: false });
                self.say("armed");
            }
            (Some("disarm"), None, None) => {
                let fired = self.armed.take().is_some_and(|b| b.fired);
                self.say(if fired { "fired" } else { "intime" });
            }
            _ => self.say("what?"),
        }
    }

    /// A driver that does not listen any more is found out by the end of its socket.
    fn say(&mut self, line: &str) {
        if let Err(error) = writeln!(self.socket, "{line}") {
            tracing::debug!(%error, "the driver does not listen");
        }
    }

    fn expire(&mut self) {
        let Some(mut budget) = self.armed else { return };
        if !budget.fired {
            tracing::warn!(domain = %self.domain, held = ?budget.held, "the pause budget is over");
        }
        budget.fired = true;
        if let Err(error) = release(self.hypervisor, self.domain, budget.held) {
            tracing::warn!(domain = %self.domain, ?error, "the guest could not be resumed yet");
        }
        budget.until = Instant::now() + AGAIN;
        self.armed = Some(budget);
    }

    fn driver_is_dead(&mut self) -> Result<()> {
        let Some(budget) = self.armed else { return Ok(()) };
        tracing::warn!(domain = %self.domain, held = ?budget.held, "the driver is dead");
        let limit = Instant::now() + PATIENCE;
        let mut succeeded = 0;
        loop {
            match release(self.hypervisor, self.domain, budget.held) {
                Ok(()) if succeeded == 1 => return Ok(()),
                Ok(()) => {
                    succeeded = 1;
                    // Long enough for libvirtd to finish what the driver asked for last.
                    std::thread::sleep(Duration::from_secs(1));
                }
                Err(error) if Instant::now() > limit => return Err(error),
                Err(_) => std::thread::sleep(AGAIN),
            }
        }
    }
}

/// Lets a guest go: thaws its file systems, or resumes it when it stands still because somebody asked for it.
/// A guest that does not run, or is not there any more, is let go already. A guest that stands still for
/// another reason (a full disk) is left so.
///
/// A guest that stands still may have been pivoted by a libvirtd that died before it wrote that down. As long
/// as it stands, overlay and base are the same, whatever the configuration says; once it goes on they are
/// not, so the configuration is set right first. Where that can't be done it goes on all the same: a guest
/// that stands still for good helps nobody.
///
/// # Errors
/// What the hypervisor says.
pub fn release(hypervisor: &dyn Hypervisor, domain: DomainId, held: GuestHold) -> Result<()> {
    release_guest(hypervisor, domain, held).map(drop)
}

/// How a guest was let go.
#[derive(Debug)]
pub enum ReleaseOutcome {
    /// As it should be.
    Cleanly,
    /// Its agent said no to the thaw, and says that nothing is frozen all the same: its hook failed, as a
    /// rule.
    DespiteAgentError(Error),
}

/// As [`release`], which says how it went.
///
/// # Errors
/// What the hypervisor says.
pub fn release_guest(
    hypervisor: &dyn Hypervisor,
    domain: DomainId,
    held: GuestHold,
) -> Result<ReleaseOutcome> {
    let run = match hypervisor.domain_state(domain) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(ReleaseOutcome::Cleanly),
        run => run?,
    };
    match (held, run) {
        (_, run) if !run.is_active() => Ok(ReleaseOutcome::Cleanly),
        (GuestHold::Paused, DomainState::Paused(PausedReason::User)) => {
            if let Err(error) = config_repair::repair_config(hypervisor, domain) {
                tracing::warn!(%domain, ?error, "the configuration could not be compared with what QEMU does");
            }
            hypervisor.resume(domain).map(|()| ReleaseOutcome::Cleanly)
        }
        (GuestHold::Paused, _) => Ok(ReleaseOutcome::Cleanly),
        (GuestHold::Frozen, _) => {
            hypervisor.set_agent_time_limit(domain, AGENT_LIMIT)?;
            let Err(error) = hypervisor.thaw(domain) else { return Ok(ReleaseOutcome::Cleanly) };
            // One that does not answer is not asked again.
            let silent = [Some(code::AGENT_UNRESPONSIVE), Some(code::AGENT_COMMAND_TIMEOUT)];
            let answered =
                !silent.contains(&HypervisorError::code_of(&error)) && !HypervisorError::lost(&error);
            match answered.then(|| hypervisor.is_thawed(domain, AGENT_LIMIT)) {
                Some(Ok(true)) => Ok(ReleaseOutcome::DespiteAgentError(error)),
                _ => Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests;
