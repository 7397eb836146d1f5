//! Commands that tell their line, exit code and both outputs when something is not as it should be.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// The exit codes of virtfold, as its manual has them.
pub(crate) mod exit {
    pub(crate) const OK: i32 = 0;
    pub(crate) const FAILURE: i32 = 1;
    pub(crate) const USAGE: i32 = 2;
    pub(crate) const DAMAGED: i32 = 3;
    pub(crate) const INCOMPLETE: i32 = 4;
    pub(crate) const BAD_IMAGE: i32 = 5;
    pub(crate) const IN_USE: i32 = 6;
    pub(crate) const EXISTS: i32 = 7;
    pub(crate) const NO_SPACE: i32 = 8;
    pub(crate) const NOT_FOUND: i32 = 9;
    pub(crate) const REFUSED: i32 = 10;
    pub(crate) const LOCKED: i32 = 11;
    pub(crate) const DENIED: i32 = 12;
    pub(crate) const SIGINT: i32 = 130;
    pub(crate) const SIGPIPE: i32 = 141;
    pub(crate) const SIGTERM: i32 = 143;
}

/// A command that was run to its end.
pub(crate) struct Outcome {
    line: String,
    status: ExitStatus,
    /// Its standard output.
    pub(crate) stdout: Vec<u8>,
    /// Its standard error.
    pub(crate) stderr: String,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.stdout[..self.stdout.len().min(4000)];
        write!(
            f,
            "$ {}\n{}\n--- stdout\n{}\n--- stderr\n{}",
            self.line,
            self.status,
            String::from_utf8_lossy(shown),
            self.stderr
        )
    }
}

impl Outcome {
    /// What a command came to that ran elsewhere.
    pub(crate) fn new(line: String, status: ExitStatus, stdout: Vec<u8>, stderr: String) -> Self {
        Self { line, status, stdout, stderr }
    }

    /// The exit code; `None` when a signal ended it.
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The exit code as a shell shows it: 128 + N after signal N.
    pub(crate) fn shell_code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Fails unless the command ended with 0.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        self.exits(exit::OK)
    }

    /// Fails unless the command ended with `code`.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        self.exits_one_of(&[code])
    }

    /// Fails unless the command ended with one of `codes`. Whatever failed must have said why.
    #[track_caller]
    pub(crate) fn exits_one_of(self, codes: &[i32]) -> Self {
        let code = self.code();
        assert!(code.is_some_and(|code| codes.contains(&code)), "expected exit code {codes:?}\n{self}");
        let quiet = self.stderr.trim().is_empty() && self.stdout.is_empty();
        assert!(code == Some(exit::OK) || !quiet, "it failed without a word\n{self}");
        assert!(!self.stderr.contains("panicked at"), "a panic\n{self}");
        self
    }

    /// Standard output as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap_or_else(|e| panic!("stdout is not text: {e}\n{self}"))
    }

    /// The last line of standard output.
    pub(crate) fn last_line(&self) -> &str {
        self.text().lines().last().unwrap_or_else(|| panic!("no line on stdout\n{self}"))
    }

    /// Standard output as one JSON document.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|e| panic!("stdout is not JSON: {e}\n{self}"))
    }

    /// Standard output as JSON lines.
    pub(crate) fn json_lines(&self) -> Vec<Value> {
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("'{line}': {e}\n{self}"));
        self.text().lines().map(parse).collect()
    }
}

/// The command as a person would type it.
pub(crate) fn line_of(command: &Command) -> String {
    let quote = |word: &OsStr| {
        let word = word.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
        if !word.is_empty() && word.chars().all(plain) { word.into_owned() } else { format!("'{word}'") }
    };
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(quote).collect::<Vec<_>>().join(" ")
}

/// Runs a command to its end. A command that cannot start is a failure of the set-up.
pub(crate) fn run(command: &mut Command) -> Outcome {
    let line = line_of(command);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    collect(
        line,
        child
            .unwrap_or_else(|e| panic!("cannot start: {e}; tests/setup installs it\n$ {}", line_of(command))),
    )
}

/// Waits for a child whose outputs are pipes.
pub(crate) fn collect(line: String, child: Child) -> Outcome {
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Outcome { line, status: output.status, stdout: output.stdout, stderr }
}

/// As [`collect`], for a child that would hang if what is tested were broken: the test fails when it has not
/// ended within `limit`.
#[track_caller]
pub(crate) fn collect_within(limit: Duration, line: String, child: Child) -> Outcome {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let (done, waits) = std::sync::mpsc::channel();
    let what = line.clone();
    // Waits on by itself where it takes too long: a child that stands in the kernel ends when what it waits
    // for is let go.
    std::thread::spawn(move || done.send(collect(line, child)));
    waits.recv_timeout(limit).unwrap_or_else(|_| {
        kill(pid, Signal::SIGKILL).unwrap_or_default();
        panic!("it still runs after {limit:?}\n$ {what}")
    })
}

/// A program with arguments, no standard input.
pub(crate) fn tool<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).env("LC_ALL", "C").env("TZ", "UTC");
    command
}

/// virtfold as this build made it, no standard input and no settings of the caller's. What it keeps of its
/// runs it keeps beside the tests' other files.
pub(crate) fn virtfold<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = tool(env!("CARGO_BIN_EXE_virtfold"), args);
    for setting in
        ["VIRTFOLD_LOG", "VIRTFOLD_CONFIG", "VIRTFOLD_CONNECT", "VIRTFOLD_LIBVIRT_DIR", "LIBVIRT_DEFAULT_URI"]
    {
        command.env_remove(setting);
    }
    command.env("VIRTFOLD_STATE_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/state"));
    // In memory, as keys must be.
    command.env("VIRTFOLD_KEYS", "/dev/shm/virtfold-tests/keys");
    command
}

/// Runs `first | second`; both outcomes, the first's without its standard output.
pub(crate) fn pipe(first: &mut Command, second: &mut Command) -> (Outcome, Outcome) {
    let (first_line, second_line) = (line_of(first), line_of(second));
    let mut writer = first.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let between = writer.stdout.take().unwrap();
    let reader = second.stdin(between).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The command keeps a copy of the pipe's end; with it open the writer would never see a reader go.
    second.stdin(Stdio::null());
    let reader = collect(format!("{first_line} | {second_line}"), reader);
    (collect(first_line, writer), reader)
}

/// Waits until `done` says so; fails when that takes longer than `limit`.
#[track_caller]
pub(crate) fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < limit, "still waiting after {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Process `parent` or a child of it, where one of them stands in the kernel and no signal reaches it.
///
/// Who reads or writes a disk stands there, too, for a moment: it counts when it stays.
pub(crate) fn stands_in_the_kernel(parent: u32) -> Option<u32> {
    let stands = || one_with_a_thread(parent, |thread| stat(thread).is_some_and(|(state, _)| state == "D"));
    let first = stands()?;
    let stays = (0..20).all(|_| {
        std::thread::sleep(Duration::from_millis(50));
        stands() == Some(first)
    });
    stays.then_some(first)
}

/// Process `parent` or a child of it, where one of them waits for the answer of a file system in user space.
pub(crate) fn waits_for_fuse(parent: u32) -> Option<u32> {
    let wchan = |thread: &Path| std::fs::read_to_string(thread.join("wchan"));
    one_with_a_thread(parent, |thread| wchan(thread).is_ok_and(|place| place == "request_wait_answer"))
}

/// The state of a process or thread, and its parent.
fn stat(path: &Path) -> Option<(String, u32)> {
    let text = std::fs::read_to_string(path.join("stat")).ok()?;
    // Behind the name, which may hold anything.
    let (state, rest) = text.rsplit_once(')')?.1.trim().split_once(' ')?;
    Some((state.to_owned(), rest.split(' ').next()?.parse().ok()?))
}

/// Process `parent` or a child of it, where one of them has a thread that is so.
fn one_with_a_thread(parent: u32, is_so: impl Fn(&Path) -> bool) -> Option<u32> {
    let numbers = |folder: &Path| -> Vec<u32> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    };
    numbers(Path::new("/proc")).into_iter().find(|pid| {
        let process = Path::new("/proc").join(pid.to_string());
        let threads = process.join("task");
        stat(&process).is_some_and(|(_, its)| its == parent || *pid == parent)
            && numbers(&threads).into_iter().any(|thread| is_so(&threads.join(thread.to_string())))
    })
}

/// Whether a process has a thread that has not ended: its first one may have.
pub(crate) fn is_there(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let stat = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("stat")).ok();
    threads
        .filter_map(stat)
        .any(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z")))
}

/// A path as the argument it becomes.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
