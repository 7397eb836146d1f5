//! The private libvirtd (or virtqemud, as VIRTFOLD_TEST_DAEMON says): started, killed, restarted, ended. See
//! tests/guest/daemon for how it is kept apart.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;

use super::run;

/// A running private libvirtd. Dropping it ends libvirtd and every guest, and removes the folder.
pub(crate) struct Lab {
    folder: PathBuf,
    child: Child,
    pipe: Mutex<Option<(ChildStdin, BufReader<ChildStdout>)>>,
}

impl Lab {
    /// Starts one; panics with the reason where it can't.
    pub(crate) fn start() -> Lab {
        assert!(nix::unistd::geteuid().is_root(), "tests with real guests need root");
        let unique = uuid::Uuid::new_v4().simple().to_string();
        // Short, because the path of a Unix socket has room for 107 bytes.
        let folder = std::env::temp_dir().join(format!("vf-lab-{}", &unique[..12]));
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guest/daemon");
        let mut command = Command::new(script);
        command.arg(&folder).stdin(Stdio::piped()).stdout(Stdio::piped());
        // A Ctrl-C is for the tests; the daemon then ends in its own order, by the closed pipe.
        let mut child = command.process_group(0).spawn().unwrap_or_else(|e| panic!("{script}: {e}"));
        let pipe = child.stdin.take().zip(child.stdout.take().map(BufReader::new));
        let lab = Lab { folder, child, pipe: Mutex::new(pipe) };
        lab.answer("the first start");
        lab
    }

    /// Where everything of it lies.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The URI under which clients outside of its namespaces reach it.
    pub(crate) fn uri(&self) -> String {
        let daemon = std::env::var("VIRTFOLD_TEST_DAEMON");
        let socket =
            if daemon.is_ok_and(|name| name == "virtqemud") { "virtqemud-sock" } else { "libvirt-sock" };
        format!("qemu+unix:///system?socket={}/run/{socket}", self.folder.display())
    }

    /// A file system of 48 MiB, mounted before any guest starts.
    pub(crate) fn small(&self) -> PathBuf {
        self.folder.join("small")
    }

    /// SIGKILL for libvirtd; guests live on. [`Lab::restart`] brings it back.
    pub(crate) fn kill(&self) {
        self.command("kill");
    }

    /// SIGTERM for libvirtd.
    pub(crate) fn stop(&self) {
        self.command("stop");
    }

    /// Starts libvirtd after [`Lab::kill`] or [`Lab::stop`] and waits until it listens.
    pub(crate) fn restart(&self) {
        self.command("start");
    }

    /// Sends a signal (`KILL`, `STOP`) to the QEMU process of a domain.
    pub(crate) fn signal_qemu(&self, domain: &str, signal: &str) {
        let pid = std::fs::read_to_string(self.folder.join(format!("run/qemu/{domain}.pid"))).unwrap();
        self.command(&format!("signal {signal} {}", pid.trim()));
    }

    /// Runs virsh against it; panics where virsh fails.
    pub(crate) fn virsh(&self, arguments: &[&str]) -> String {
        run(Command::new("virsh").args(["-q", "-c", &self.uri()]).args(arguments))
    }

    /// Whether the guest's agent answers within two seconds.
    pub(crate) fn agent_answers(&self, domain: &str) -> bool {
        let mut ping = Command::new("virsh");
        ping.args(["-q", "-c", &self.uri(), "qemu-agent-command", "--timeout", "2", domain]);
        ping.arg(r#"{"execute":"guest-ping"}"#).output().unwrap().status.success()
    }

    /// Ends libvirtd and every guest. For a lab that is never dropped.
    pub(crate) fn end(&self) {
        if let Ok(mut pipe) = self.pipe.lock() {
            pipe.take();
        }
    }

    fn command(&self, line: &str) {
        if let Some((stdin, _)) = self.pipe.lock().unwrap().as_mut() {
            writeln!(stdin, "{line}").unwrap();
        }
        self.answer(line);
    }

    fn answer(&self, to: &str) {
        let mut line = String::new();
        if let Some((_, stdout)) = self.pipe.lock().unwrap().as_mut() {
            stdout.read_line(&mut line).unwrap();
        }
        assert_eq!(line.trim_end(), "done", "the private libvirtd's answer to {to}; run tests/setup-libvirt");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.end();
        if let Err(error) = self.child.wait() {
            eprintln!("the private libvirtd can't be waited for: {error}");
        }
    }
}
