//! What reads archives and images can do less than who started it.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::run::virtfold;

/// A process that waits for its input.
struct Waiting {
    child: Child,
    input: UnixStream,
}

impl Waiting {
    fn start(command: &mut Command) -> Self {
        let (input, theirs) = UnixStream::pair().unwrap();
        let child = command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).spawn().unwrap();
        Self { child, input }
    }

    /// Waits until no thread of it can get new privileges, all have a filter of calls, and none has more
    /// capabilities than those to open files.
    fn is_confined_soon(&mut self) {
        let end = Instant::now() + Duration::from_secs(30);
        let mut seen = String::new();
        while Instant::now() < end {
            assert!(self.child.try_wait().unwrap().is_none(), "it has ended");
            seen = self.look();
            let threads = seen.matches("Name:").count();
            let all = |line: &str| threads > 0 && seen.matches(line).count() == threads;
            if all("NoNewPrivs:\t1") && all("Seccomp:\t2") {
                // CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH.
                let masks = seen.lines().filter_map(|line| line.strip_prefix("CapPrm:\t"));
                let more = masks.filter(|mask| u64::from_str_radix(mask, 16).unwrap() & !0b110 != 0);
                assert_eq!(more.count(), 0, "{seen}");
                return;
            }
            std::thread::yield_now();
        }
        panic!("not confined: {seen}");
    }

    fn look(&self) -> String {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        tasks
            .map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default())
            .collect()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.input.flush().unwrap();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn who_reads_an_archive_is_confined_before_its_first_byte() {
    Waiting::start(&mut virtfold(["table", "-", "--disk", "vda"])).is_confined_soon();
    Waiting::start(&mut virtfold(["verify", "-"])).is_confined_soon();
}
