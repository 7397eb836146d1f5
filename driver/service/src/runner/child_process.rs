//! A child process: its lines, its time, and who may end it meanwhile.
//!
//! A child has a process group of its own, so that a signal meant for the service reaches it only through
//! [`RunningChild`]. A backup is asked and killed alone: the guard that it has started must outlive it. A
//! command of the configuration is ended with everything that it started.
//!
//! Imports: nothing of the crate.

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// How often it is looked whether a child has ended.
const POLL: Duration = Duration::from_millis(20);
/// How long what a child has started may keep its outputs open after its end.
const LINGER: Duration = Duration::from_secs(2);
/// The longest line; the rest of a longer one is left out.
const LINE: u64 = 1 << 20;

/// Hears what a child says.
pub(super) trait OutputListener: Send + Sync {
    /// A line of standard output.
    fn out(&self, line: &str);
    /// A line of standard error.
    fn err(&self, line: &str);
}

/// Whom a signal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SignalScope {
    /// The process alone.
    Process,
    /// It and what it has started.
    Group,
}

/// What a run has going on, for those who want to end it.
#[derive(Debug, Default)]
pub(super) struct RunningChild {
    child: Mutex<Option<(Pid, SignalScope)>>,
    asked: AtomicBool,
    killed: AtomicBool,
}

impl RunningChild {
    /// Asks the run to end.
    pub(super) fn end(&self) {
        self.asked.store(true, Ordering::SeqCst);
        self.signal(Signal::TERM);
    }

    /// Ends it by force.
    pub(super) fn kill(&self) {
        self.asked.store(true, Ordering::SeqCst);
        self.killed.store(true, Ordering::SeqCst);
        self.signal(Signal::KILL);
    }

    /// Whether it was asked to end: then nothing more is begun.
    pub(super) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    /// The number of a child that has ended is somebody else's soon: it is taken back under the same lock.
    fn signal(&self, signal: Signal) {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((pid, reach)) = *child {
            send(pid, reach, signal);
        }
    }

    fn holds(&self, child: Option<(Pid, SignalScope)>) {
        *self.child.lock().unwrap_or_else(PoisonError::into_inner) = child;
        // Somebody may have asked just before.
        if self.killed.load(Ordering::SeqCst) {
            self.signal(Signal::KILL);
        } else if self.is_asked() {
            self.signal(Signal::TERM);
        }
    }

    fn poll(&self, child: &mut Child) -> io::Result<Option<ExitStatus>> {
        let mut held = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let status = child.try_wait()?;
        if status.is_some() {
            *held = None;
        }
        Ok(status)
    }
}

fn send(pid: Pid, reach: SignalScope, signal: Signal) {
    let sent = match reach {
        SignalScope::Process => kill_process(pid, signal),
        SignalScope::Group => kill_process_group(pid, signal),
    };
    if let Err(error) = sent {
        tracing::debug!(%error, "a signal reached nobody");
    }
}

/// How a child ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChildExit {
    /// Its status.
    pub(super) status: ExitStatus,
    /// Whether it was over its time, and killed for that.
    pub(super) overdue: bool,
}

/// Runs a command to its end. The thread that calls this stays until then: some children end with it.
pub(super) fn run(
    mut command: Command,
    hold: &RunningChild,
    reach: SignalScope,
    limit: Option<Duration>,
    hear: &Arc<dyn OutputListener>,
) -> io::Result<ChildExit> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    hold.holds(pid.map(|pid| (pid, reach)));
    let (done, ended) = bounded::<()>(0);
    if let Some(out) = child.stdout.take() {
        listen(out, Arc::clone(hear), |hear, line| hear.out(line), done.clone())?;
    }
    if let Some(err) = child.stderr.take() {
        listen(err, Arc::clone(hear), |hear, line| hear.err(line), done.clone())?;
    }
    drop(done);
    let began = Instant::now();
    let mut overdue = false;
    let status = loop {
        if let Some(status) = hold.poll(&mut child)? {
            break status;
        }
        if !overdue && limit.is_some_and(|limit| began.elapsed() >= limit) {
            overdue = true;
            hold.signal(Signal::KILL);
        }
        std::thread::sleep(POLL);
    };
    // The outputs end when everybody has closed them; nothing is ever sent.
    if let Err(crossbeam_channel::RecvTimeoutError::Timeout) = ended.recv_timeout(LINGER) {
        tracing::debug!("what a child has started lives on");
    }
    Ok(ChildExit { status, overdue })
}

fn listen(
    from: impl Read + Send + 'static,
    hear: Arc<dyn OutputListener>,
    tell: fn(&dyn OutputListener, &str),
    done: Sender<()>,
) -> io::Result<()> {
    let listen = move || {
        let mut from = BufReader::new(from);
        while let Ok(Some(line)) = read_line(&mut from) {
            tell(hear.as_ref(), &line);
        }
        drop(done);
    };
    std::thread::Builder::new().name("listen".to_owned()).spawn(listen).map(|_| ())
}

/// The next line, as far as it is text and not too long.
fn read_line(from: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    if from.take(LINE).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        from.skip_until(b'\n')?;
    }
    Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded() {
        let mut text = vec![b'x'; 3 << 20];
        text.extend(b"\nnext\nlast");
        let mut from = BufReader::new(&text[..]);
        assert_eq!(read_line(&mut from).unwrap().unwrap().len(), 1 << 20);
        assert_eq!(read_line(&mut from).unwrap().as_deref(), Some("next"));
        assert_eq!(read_line(&mut from).unwrap().as_deref(), Some("last"));
        assert_eq!(read_line(&mut from).unwrap(), None);
    }
}
