//! What systemd hears of the service (`sd_notify`): that it is ready, reloads, stops, a line for
//! `systemctl status`, and that it lives.
//!
//! The watchdog is the main loop's: each turn calls [`Notifier::beat`], and takes [`Notifier::longest_turn`]
//! at most, a quarter of the watchdog's time. A beat is told where a quarter has passed since the last that
//! was; so systemd hears one at each half of its time at the latest. There is no thread that would go on
//! telling for a loop that is stuck.
//!
//! Started by something else than systemd (no `NOTIFY_SOCKET`), nobody is told anything. What can't be told
//! is logged, and nothing more: the service goes on.
//!
//! Imports: nothing of the crate.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// Tells systemd.
#[derive(Debug)]
pub struct Notifier {
    half: Option<Duration>,
    last: Option<Instant>,
    status: String,
}

impl Notifier {
    /// As the environment says.
    pub fn from_environment() -> Self {
        Self { half: sd_notify::watchdog_enabled().map(|all| all / 2), last: None, status: String::new() }
    }

    /// It works now; also after a reload.
    pub fn ready(&mut self, status: &str) {
        let line = one_line(status);
        tell(&[NotifyState::Ready, NotifyState::Status(&line)]);
        self.status = line;
    }

    /// It begins to read its configuration anew. [`Notifier::ready`] ends that.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(error) => tracing::warn!(%error, "the clock can't be read for systemd"),
        }
    }

    /// It was told to end. `limit` is how long that may take.
    pub fn stopping(&mut self, status: &str, limit: Duration) {
        let line = one_line(status);
        // Some more than is needed: who is killed in between leaves work for a recovery.
        let limit = u32::try_from((limit + Duration::from_secs(10)).as_micros()).unwrap_or(u32::MAX);
        tell(&[NotifyState::Stopping, NotifyState::Status(&line), NotifyState::ExtendTimeoutUsec(limit)]);
        self.status = line;
    }

    /// The line for `systemctl status`; told when it changes.
    pub fn status(&mut self, status: &str) {
        let line = one_line(status);
        if line != self.status {
            tell(&[NotifyState::Status(&line)]);
            self.status = line;
        }
    }

    /// The main loop has come round.
    pub fn beat(&mut self, now: Instant) {
        let Some(half) = self.half else { return };
        if self.last.is_none_or(|last| now.saturating_duration_since(last) >= half / 2) {
            tell(&[NotifyState::Watchdog]);
            self.last = Some(now);
        }
    }

    /// How long the main loop may take for a turn, waiting included; nothing where there is no watchdog.
    pub fn longest_turn(&self) -> Option<Duration> {
        self.half.map(|half| half / 2)
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd can't be told");
    }
}

/// A line feed would begin another message; names of guests are not to write those.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::process::Command;

    use super::*;

    /// Set for the process that tells.
    const TELLS: &str = "VIRTFOLD_TEST_TELLS";

    /// The environment is read in a process of its own, this program again: it can't be changed safely in
    /// this one.
    #[test]
    fn systemd_hears_it() {
        if std::env::var_os(TELLS).is_some() {
            return tells();
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "notify::tests::systemd_hears_it"])
            .env(TELLS, "1")
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "40000000")
            .env_remove("WATCHDOG_PID")
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        socket.set_nonblocking(true).unwrap();
        let mut heard = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(count) = socket.recv(&mut buffer) {
            heard.push(String::from_utf8(buffer[..count].to_vec()).unwrap());
        }
        let reload = heard.remove(5);
        let monotonic = reload.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(monotonic.trim().parse::<u64>().unwrap() > 0);
        let expected = [
            "READY=1\nSTATUS=2 jobs\n",
            "WATCHDOG=1\n",
            "WATCHDOG=1\n",
            "WATCHDOG=1\n",
            "STATUS=backs up web READY=1\n",
            "STOPPING=1\nSTATUS=ends\nEXTEND_TIMEOUT_USEC=70000000\n",
        ];
        assert_eq!(heard, expected);
    }

    fn tells() {
        let mut notifier = Notifier::from_environment();
        assert_eq!(notifier.longest_turn(), Some(Duration::from_secs(10)));
        let start = Instant::now();
        notifier.ready("2 jobs");
        // At 0, 11 and 22 s; the others come too soon.
        for second in [0, 3, 9, 11, 20, 22, 31] {
            notifier.beat(start + Duration::from_secs(second));
        }
        notifier.status("backs up web\nREADY=1");
        notifier.status("backs up web\nREADY=1");
        notifier.reloading();
        notifier.stopping("ends", Duration::from_secs(60));
    }

    #[test]
    fn without_systemd_nobody_is_told() {
        let mut notifier = Notifier { half: None, last: None, status: String::new() };
        notifier.beat(Instant::now());
        assert_eq!((notifier.last, notifier.longest_turn()), (None, None));
    }
}
