//! A machine with a kernel of its own: Linux as a user-mode process (Debian's user-mode-linux) over this
//! host's own file system, read-only. No KVM, no network, a second to boot. For what needs a kernel of a
//! certain kind: a tape drive behind `st`, AppArmor.
//!
//! The test's scratch folder is mounted in it for writing, under the same path. A command is a file in there
//! that the machine's init sees and runs; its outputs and exit code come back the same way. Every file has a
//! name of its own, so that no cache can hold an old one. Temporary files go into the machine's own /run: the
//! project may lie in /tmp.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::run::{Outcome, line_of, run, tool, wait_until};

/// How long a boot may take, and a command.
const BOOT: Duration = Duration::from_secs(120);
const COMMAND: Duration = Duration::from_secs(240);

/// A running machine. Dropped, it is killed as by a power cut.
pub(crate) struct Machine {
    folder: PathBuf,
    child: Child,
    commands: u32,
}

/// A command that runs in the machine.
pub(crate) struct Running {
    folder: PathBuf,
    number: u32,
    line: String,
}

/// What a machine is like.
pub(crate) struct Kind<'a> {
    /// Its memory, as the kernel's `mem=` has it.
    pub(crate) memory: &'a str,
    /// More arguments of the kernel.
    pub(crate) arguments: Vec<String>,
    /// What its init does before it takes commands; a shell's words. It may `exit` where something is
    /// missing: then the machine does not come up.
    pub(crate) prelude: &'a str,
}

impl Machine {
    /// Boots one; `folder` is the test's.
    pub(crate) fn boot(folder: &Path, kind: &Kind<'_>) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "tests with a machine of their own need root");
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let own = folder.join(format!("m-{}", &unique[..8]));
        fs::create_dir(&own).unwrap();
        let init = own.join("init");
        fs::write(&init, init_script(folder, &own, kind.prelude)).unwrap();
        fs::set_permissions(&init, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let console = fs::File::create(own.join("console")).unwrap();
        let mut command = Command::new("linux.uml");
        command
            .env("LD_PRELOAD", registers())
            .arg(format!("mem={}", kind.memory))
            .args(["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "quiet", "panic=-1"])
            .args(["con=null", "con0=null,fd:1"])
            .arg(format!("uml_dir={}/", own.display()))
            .arg(format!("init={}", init.display()))
            .args(&kind.arguments)
            .stdin(Stdio::null())
            .stdout(console.try_clone().unwrap())
            .stderr(console)
            .process_group(0);
        let child = command.spawn().unwrap_or_else(|e| {
            panic!("cannot start linux.uml: {e}; the package user-mode-linux has it, tests/setup installs it")
        });
        let mut machine = Self { folder: own, child, commands: 0 };
        let start = Instant::now();
        while !machine.folder.join("up").exists() {
            let ended = machine.child.try_wait().unwrap();
            let late = start.elapsed() > BOOT;
            assert!(ended.is_none() && !late, "the machine does not come up\n{}", machine.console());
            std::thread::sleep(Duration::from_millis(10));
        }
        machine
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.join("console")).unwrap()).into_owned()
    }

    /// Starts a command in the machine; its arguments and its own settings of the environment go with it.
    pub(crate) fn start(&mut self, command: &Command) -> Running {
        self.commands += 1;
        let number = self.commands;
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let mut script = String::new();
        for (name, value) in command.get_envs() {
            let name = name.to_str().unwrap();
            script += &match value {
                Some(value) => format!("export {name}={}\n", quoted(value)),
                None => format!("unset {name}\n"),
            };
        }
        script += &format!("exec {} < /dev/null\n", words.map(quoted).collect::<Vec<_>>().join(" "));
        fs::write(self.folder.join(format!("new.{number}")), script).unwrap();
        fs::rename(self.folder.join(format!("new.{number}")), self.folder.join(format!("go.{number}")))
            .unwrap();
        Running { folder: self.folder.clone(), number, line: line_of(command) }
    }

    /// Runs a command in the machine to its end.
    pub(crate) fn run(&mut self, command: &Command) -> Outcome {
        let running = self.start(command);
        let limit = Instant::now() + COMMAND;
        while !running.has_ended() {
            let gone = self.child.try_wait().unwrap().is_some();
            assert!(!gone, "the machine died\n$ {}\n{}", running.line, self.console());
            assert!(
                Instant::now() < limit,
                "no end after {COMMAND:?}\n$ {}\n{}",
                running.line,
                running.shown()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        running.outcome()
    }

    /// Ends the machine as a power cut does.
    pub(crate) fn cut(self) {
        drop(self);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let group = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        // It may have ended by itself.
        killpg(group, Signal::SIGKILL).unwrap_or_default();
        self.child.wait().unwrap();
        if std::thread::panicking() {
            eprintln!("--- the machine's console\n{}", self.console());
        }
    }
}

impl Running {
    fn file(&self, kind: &str) -> PathBuf {
        self.folder.join(format!("{kind}.{}", self.number))
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.file("rc").exists()
    }

    /// Waits for its end.
    pub(crate) fn wait(self) -> Outcome {
        wait_until(&self.line, COMMAND, || self.has_ended());
        self.outcome()
    }

    fn shown(&self) -> String {
        let text =
            |kind| String::from_utf8_lossy(&fs::read(self.file(kind)).unwrap_or_default()).into_owned();
        format!("--- stdout\n{}--- stderr\n{}", text("out"), text("err"))
    }

    fn outcome(self) -> Outcome {
        let code: i32 = fs::read_to_string(self.file("rc")).unwrap().trim().parse().unwrap();
        let stderr = String::from_utf8_lossy(&fs::read(self.file("err")).unwrap()).into_owned();
        let stdout = fs::read(self.file("out")).unwrap();
        Outcome::new(self.line, ExitStatus::from_raw(code << 8), stdout, stderr)
    }
}

/// The library that makes the machine run on processors with more registers than it knows of; its source says
/// how.
fn registers() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let (library, own) =
            (folder.join("xstate.so"), folder.join(format!("xstate-{}", std::process::id())));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/xstate.c");
        let mut command = tool("cc", ["-O1", "-Wall", "-shared", "-fPIC", "-o"]);
        run(command.arg(&own).arg(source)).ok();
        fs::rename(own, &library).unwrap();
        library
    })
}

fn quoted(word: &OsStr) -> String {
    format!("'{}'", word.to_str().unwrap().replace('\'', r"'\''"))
}

fn init_script(folder: &Path, own: &Path, prelude: &str) -> String {
    let (folder, own) = (folder.display(), own.display());
    format!(
        r#"#!/bin/bash
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc; mount -t sysfs sys /sys
mount -t tmpfs tmp /run; mkdir /run/tmp; export TMPDIR=/run/tmp
mount -t hostfs none '{folder}' -o '{folder}' || echo 'the folder is not mounted'
cd '{own}'
{prelude}
cd '{own}'; : > up
n=1
while :; do
  if [ -e go.$n ]; then
    ( bash ./go.$n > out.$n 2> err.$n; echo $? > new-rc.$n; mv new-rc.$n rc.$n ) &
    n=$((n+1))
  else
    sleep 0.02
  fi
done
"#
    )
}
