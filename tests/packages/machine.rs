//! A copy of this machine that runs: a systemd of its own, as its first process, with a libvirtd, a journal and nothing else. The script
//! `boot` makes it, of this machine's root below an overlay, in namespaces and a control group of its own. It boots in less than a second.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use crate::ROOT;
use crate::common::run::{Outcome, run, tool, wait_until};

/// A machine; dropped, it is gone with everything in it.
pub(crate) struct Machine {
    holder: Child,
    hold: Option<ChildStdin>,
    folder: PathBuf,
    /// Its first process, as this machine counts.
    first: String,
}

impl Machine {
    /// Boots one, in which `packages` is /tmp/packages.
    pub(crate) fn boot(name: &str, packages: &Path) -> Self {
        let folder = std::env::temp_dir().join(format!("virtfold-machine-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]).arg(format!("{ROOT}/tests/packages/boot"));
        command.arg(&folder).arg(packages).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command.spawn().expect("unshare is missing: tests/setup installs it");
        let hold = holder.stdin.take();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let first = line.trim().to_owned();
        let machine = Self { holder, hold, folder, first };
        let id = machine.first.parse::<u32>();
        assert!(id.is_ok(), "no machine; this wants root, overlayfs and control groups of version 2");
        machine.until("the machine is up", "[ \"$(systemctl is-system-running)\" = running ]");
        machine
    }

    /// Runs a script in it, as root and outside of any unit.
    pub(crate) fn script(&self, script: &str) -> Outcome {
        let namespaces =
            ["--mount", "--pid", "--cgroup", "--ipc", "--uts", "--net", "--root", "--wd", "--target"];
        let mut command = tool("nsenter", namespaces);
        command.arg(&self.first).args(["bash", "-c", script]).env("DEBIAN_FRONTEND", "noninteractive");
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        run(&mut command)
    }

    /// Runs a script in it that has to succeed, and gives what it printed.
    #[track_caller]
    pub(crate) fn says(&self, script: &str) -> String {
        self.script(script).ok().text().trim_end().to_owned()
    }

    /// Waits until a script succeeds.
    #[track_caller]
    pub(crate) fn until(&self, what: &str, script: &str) {
        wait_until(what, Duration::from_secs(60), || self.script(script).code() == Some(0));
    }

    /// What systemd has under a name about the service.
    #[track_caller]
    pub(crate) fn unit(&self, property: &str) -> String {
        self.says(&format!("systemctl show --value -p {property} virtfold"))
    }

    /// All that systemd and the service have said about it.
    pub(crate) fn journal(&self) -> String {
        self.says("journalctl --no-pager -o cat -u virtfold")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let tail = self.script("journalctl --no-pager -n 150 -o short-precise");
            eprintln!("--- the machine's journal\n{}", String::from_utf8_lossy(&tail.stdout));
        }
        drop(self.hold.take());
        let ended = self.holder.wait();
        let removed = std::fs::remove_dir(&self.folder);
        if !std::thread::panicking() {
            assert!(ended.unwrap().success(), "the machine's control group is left");
            removed.unwrap();
        }
    }
}
