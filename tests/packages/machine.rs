//! A copy of this machine that runs: a systemd of its own, as its first process, with a libvirtd, a journal
//! and nothing else. The script `boot` makes it, of this machine's root below an overlay, in namespaces and a
//! control group of its own. It boots in less than a second.

use std::path::Path;
use std::time::Duration;

use crate::ROOT;
use crate::common::run::{Outcome, run, tool, wait_until};
use crate::hold::Hold;

/// A machine; dropped, it is gone with everything in it.
pub(crate) struct Machine {
    hold: Hold,
    /// Its first process, as this machine counts.
    first: String,
}

impl Machine {
    /// Boots one, in which `packages` is /tmp/packages.
    pub(crate) fn boot(name: &str, packages: &Path) -> Self {
        let boot = format!("{ROOT}/tests/packages/boot");
        let hold = Hold::start(&format!("machine-{name}"), &[&boot], packages);
        let first = hold.said.trim().to_owned();
        let machine = Self { hold, first };
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
        let (ended, removed) = self.hold.end();
        if !std::thread::panicking() {
            assert!(ended.unwrap().success(), "the machine's control group is left");
            removed.unwrap();
        }
    }
}
