//! A copy of this machine to install things in: its root below an overlay, in a mount namespace that ends
//! with the test. `/run` is empty, so that the packages' scripts find no systemd, and `/tmp` is the room's
//! own.

use std::path::Path;

use crate::common::run::{Outcome, run, tool};
use crate::hold::Hold;

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
pub(crate) struct Room(Hold);

impl Room {
    /// Makes one, in which `packages` is /tmp/packages.
    pub(crate) fn new(name: &str, packages: &Path) -> Self {
        let hold = Hold::start(&format!("room-{name}"), &["bash", "-c", ENTER, "room"], packages);
        assert_eq!(hold.said, "ready\n", "no room; this wants root and overlayfs");
        Self(hold)
    }

    /// Runs a script in it.
    pub(crate) fn script(&self, script: &str) -> Outcome {
        let pid = self.0.id().to_string();
        let root = self.0.folder.join("root");
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
        let (ended, removed) = self.0.end();
        if !std::thread::panicking() {
            ended.unwrap();
            removed.unwrap();
        }
    }
}
