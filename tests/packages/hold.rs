//! A process that holds mounts and namespaces for as long as its standard input is open.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

/// A folder, and the process that holds what is mounted in it.
pub(crate) struct Hold {
    pub(crate) folder: PathBuf,
    /// What the process said when it was ready.
    pub(crate) said: String,
    holder: Child,
    input: Option<ChildStdin>,
}

impl Hold {
    /// Starts `command`, in a mount namespace of its own, with a new folder and `packages` as its last
    /// arguments; waits until it has said a line.
    pub(crate) fn start(name: &str, command: &[&str], packages: &Path) -> Self {
        let folder = std::env::temp_dir().join(format!("virtfold-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--propagation", "private"]).args(command);
        unshare.arg(&folder).arg(packages).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = unshare.spawn().expect("unshare is missing: tests/setup installs it");
        let input = holder.stdin.take();
        let mut said = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut said).unwrap();
        Self { folder, said, holder, input }
    }

    pub(crate) fn id(&self) -> u32 {
        self.holder.id()
    }

    /// Lets go of everything; how the process ended, and whether the folder could be removed.
    pub(crate) fn end(&mut self) -> (std::io::Result<ExitStatus>, std::io::Result<()>) {
        drop(self.input.take());
        (self.holder.wait(), std::fs::remove_dir(&self.folder))
    }
}
