//! A copy of this machine to install things in: its root below an overlay, in a mount namespace that ends with the test. `/run` is
//! empty, so that the packages' scripts find no systemd, and `/tmp` is the room's own.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::common::run::{Outcome, run, tool};

const ENTER: &str = r#"
set -eu
room=$1
mount -t tmpfs -o mode=755 room "$room"
mkdir "$room/upper" "$room/work" "$room/root"
mount -t overlay -o "lowerdir=/,upperdir=$room/upper,workdir=$room/work" overlay "$room/root"
mount -t proc proc "$room/root/proc"
mount --rbind /dev "$room/root/dev"
mount -t tmpfs -o mode=755 run "$room/root/run"
mount -t tmpfs -o mode=1777 tmp "$room/root/tmp"
# Machines for containers leave documents away.
grep -ls path-exclude "$room/root/etc/dpkg/dpkg.cfg.d/"* | xargs -r rm
# The index of man pages is made anew after each package, and costs more than all else.
rm -f "$room/root/var/lib/man-db/auto-update"
mkdir "$room/root/tmp/packages"
mount --bind "$2" "$room/root/tmp/packages"
echo ready
read -r _ || true
"#;

/// A room; dropped, it is gone with everything in it.
pub(crate) struct Room {
    holder: Child,
    hold: Option<ChildStdin>,
    folder: PathBuf,
}

impl Room {
    /// Makes one, in which `packages` is /tmp/packages.
    pub(crate) fn new(name: &str, packages: &Path) -> Self {
        let folder = std::env::temp_dir().join(format!("virtfold-room-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "bash", "-c", ENTER, "room"]);
        command.arg(&folder).arg(packages).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command.spawn().expect("unshare is missing: tests/setup installs it");
        let hold = holder.stdin.take();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "no room; this wants root and overlayfs");
        Self { holder, hold, folder }
    }

    /// Runs a script in it.
    pub(crate) fn script(&self, script: &str) -> Outcome {
        let pid = self.holder.id().to_string();
        let root = self.folder.join("root");
        let mut command = tool("nsenter", ["--mount", "--target", &pid, "chroot"]);
        command.arg(root).args(["bash", "-c", script]).env("DEBIAN_FRONTEND", "noninteractive");
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        run(&mut command)
    }

    /// Runs a script in it that has to succeed, and gives what it printed.
    #[track_caller]
    pub(crate) fn says(&self, script: &str) -> String {
        self.script(script).ok().text().trim_end().to_owned()
    }

    /// Type and mode of a path, `gone` where there is none, and what a link points to.
    pub(crate) fn stat(&self, path: &str) -> String {
        let script = format!(
            "if [ -L {path} ]; then readlink {path}; elif [ -e {path} ]; then stat -c '%F %a %U:%G' {path}; else echo gone; fi"
        );
        self.says(&script)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        drop(self.hold.take());
        let ended = self.holder.wait();
        let removed = std::fs::remove_dir(&self.folder);
        if !std::thread::panicking() {
            ended.unwrap();
            removed.unwrap();
        }
    }
}
