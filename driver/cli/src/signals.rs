//! Signals as flags: a run that has a guest to bring back is ended by none of them before it has done so.
//!
//! Every signal that would end the process and can be caught asks the run to end; a second one ends the
//! process at once. Three are no such wish: SIGPIPE is ignored by Rust's runtime, and the write fails;
//! SIGXFSZ says that a write went over a limit, and the write that failed says so better; SIGHUP is left
//! alone where it was ignored from the beginning, as `nohup` has it. What a processor's fault raises
//! (SIGSEGV, SIGBUS, SIGILL, SIGFPE) can't be gone on behind: the pause's watchdog and the next run do the
//! rest, as after SIGKILL.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result};
use nix::libc;

/// What asks a run to end, beside the real-time signals.
const ENDING: [i32; 16] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGTERM,
    libc::SIGSTKFLT,
    libc::SIGXCPU,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSYS,
];

/// `stop` is set by the first signal that asks the run to end, `signal` says which.
#[derive(Clone, Debug, Default)]
pub(crate) struct Signals {
    /// Ends the run at the next piece of work.
    pub(crate) stop: Arc<AtomicBool>,
    signal: Arc<AtomicUsize>,
}

impl Signals {
    /// From here on the signals only set the flags.
    pub(super) fn install(&self) -> Result<()> {
        let is_ignored = |signal| signal == libc::SIGHUP && ignored_from_the_beginning(signal);
        for signal in ENDING.into_iter().chain(real_time()).filter(|signal| !is_ignored(*signal)) {
            let number = usize::try_from(signal).context("signal numbers are positive")?;
            // The second signal ends the process at once; the partial file then stays under its partial name.
            signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&self.stop))
                .and_then(|_| signal_hook::flag::register_usize(signal, Arc::clone(&self.signal), number))
                .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&self.stop)))
                .with_context(|| format!("cannot catch signal {signal}"))?;
        }
        // A handler and not the signal's being ignored, which programs that are started would inherit.
        signal_hook::flag::register(libc::SIGXFSZ, Arc::default()).context("cannot catch SIGXFSZ")?;
        Ok(())
    }

    /// From here on the signals only ask the run to end, however often they come. For a process that the one
    /// that started it ends in other ways, too.
    pub(super) fn take_as_wishes(&self) -> Result<()> {
        for signal in ENDING.into_iter().chain(real_time()) {
            let caught = signal_hook::flag::register(signal, Arc::clone(&self.stop));
            caught.with_context(|| format!("cannot catch signal {signal}"))?;
        }
        signal_hook::flag::register(libc::SIGXFSZ, Arc::default()).context("cannot catch SIGXFSZ")?;
        Ok(())
    }

    /// The exit code of a run that a signal ended: 128 + its number.
    pub(super) fn exit_code(&self) -> u8 {
        u8::try_from(128 + self.signal.load(Ordering::Relaxed)).unwrap_or(1)
    }
}

fn real_time() -> RangeInclusive<i32> {
    libc::SIGRTMIN()..=libc::SIGRTMAX()
}

/// Whether whoever started this process had it ignore a signal. Asked before a handler is there.
fn ignored_from_the_beginning(signal: i32) -> bool {
    // Without /proc nobody can tell; then it is caught.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    let bit = u32::try_from(signal - 1).ok().and_then(|bit| 1_u64.checked_shl(bit)).unwrap_or_default();
    mask & bit != 0
}
