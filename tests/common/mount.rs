//! Loop devices and mounts that are gone when the test is, failed or not.
//!
//! The tests that use them need root and say so: there is no skipping.

use std::fs::OpenOptions;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::run::{run, text, tool, wait_until};

/// How long whoever uses a mount may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Fails with a clear word unless this is root.
pub(crate) fn require_root() {
    let uid = run(&mut tool("id", ["-u"])).ok();
    assert_eq!(uid.text().trim(), "0", "this test mounts file systems: run the tests as root");
}

/// A loop device over a file of the test.
#[derive(Debug)]
pub(crate) struct Loop(PathBuf);

impl Loop {
    /// Attaches `file` to a free loop device.
    pub(crate) fn attach(file: &Path) -> Self {
        require_root();
        let made = run(&mut tool("losetup", ["--find", "--show", text(file)])).ok();
        Self(PathBuf::from(made.text().trim()))
    }

    /// The device.
    pub(crate) fn device(&self) -> &Path {
        &self.0
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = run(&mut tool("losetup", ["--detach", text(&self.0)]));
        if detached.code() != Some(0) {
            eprintln!("a loop device is left behind\n{detached}");
        }
    }
}

/// A mounted file system.
#[derive(Debug)]
pub(crate) struct Mount {
    at: PathBuf,
    // Detached after the unmount: fields drop after `Drop::drop`.
    device: Option<Loop>,
}

impl Mount {
    /// A RAM file system of `size` bytes at the new folder `at`.
    pub(crate) fn tmpfs(at: &Path, size: u64) -> Self {
        require_root();
        std::fs::create_dir_all(at).unwrap();
        let options = format!("size={size},mode=0755");
        run(&mut tool("mount", ["-t", "tmpfs", "-o", &options, "virtfold-test", text(at)])).ok();
        Self { at: at.to_owned(), device: None }
    }

    /// The kernel's file system of device nodes, once more.
    pub(crate) fn devtmpfs(at: &Path) -> Self {
        require_root();
        std::fs::create_dir_all(at).unwrap();
        run(&mut tool("mount", ["-t", "devtmpfs", "virtfold-test", text(at)])).ok();
        Self { at: at.to_owned(), device: None }
    }

    /// A file system made by `mkfs` (its words save the device) in a new file `file` of `size` bytes.
    pub(crate) fn made(at: &Path, file: &Path, size: u64, mkfs: &[&str]) -> Self {
        let image = OpenOptions::new().write(true).create_new(true).open(file).unwrap();
        image.set_len(size).unwrap();
        run(&mut tool(mkfs[0], mkfs[1..].iter().chain([&text(file)]))).ok();
        let device = Loop::attach(file);
        std::fs::create_dir_all(at).unwrap();
        run(&mut tool("mount", [device.device(), at])).ok();
        Self { at: at.to_owned(), device: Some(device) }
    }

    /// An exFAT of `size` bytes in a new file `file`, by FUSE.
    pub(crate) fn exfat(at: &Path, file: &Path, size: u64) -> Self {
        std::fs::File::create_new(file).unwrap().set_len(size).unwrap();
        run(&mut tool("mkfs.exfat", [file])).ok();
        let device = Loop::attach(file);
        std::fs::create_dir_all(at).unwrap();
        run(&mut tool("mount.exfat-fuse", [device.device(), at])).ok();
        Self { at: at.to_owned(), device: Some(device) }
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.at
    }

    /// Bytes that are free, after everything written has its place.
    pub(crate) fn free(&self) -> u64 {
        run(&mut tool("sync", ["-f", text(&self.at)])).ok();
        let stat = nix::sys::statvfs::statvfs(&self.at).unwrap();
        stat.blocks_free() * stat.fragment_size()
    }
}

impl Mount {
    /// Freezes it: whoever writes to it stands in the kernel, and no signal ends that.
    pub(crate) fn freeze(&self) -> FrozenMount<'_> {
        run(&mut tool("fsfreeze", ["--freeze", text(&self.at)])).ok();
        FrozenMount(self)
    }
}

/// A file system that is frozen until this is dropped.
#[derive(Debug)]
pub(crate) struct FrozenMount<'a>(&'a Mount);

impl Mount {
    /// Stops the program that serves it: whoever asks for anything waits, and only SIGKILL ends that.
    pub(crate) fn stop_serving(&self) -> StoppedMount {
        let device = self.device.as_ref().expect("a file system in user space has a device");
        let serves = |process: &Path| {
            let words = std::fs::read(process.join("cmdline")).unwrap_or_default();
            let mut words = words.split(|byte| *byte == 0);
            words.next() == Some(b"mount.exfat-fuse")
                && words.any(|word| word == device.0.as_os_str().as_bytes())
        };
        let mut all = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        let found = all.find(|process| serves(process)).expect("nobody serves it");
        let pid = Pid::from_raw(found.file_name().unwrap().to_str().unwrap().parse().unwrap());
        kill(pid, Signal::SIGSTOP).unwrap();
        StoppedMount(pid)
    }
}

/// A file system in user space whose program is stopped until this is dropped.
#[derive(Debug)]
pub(crate) struct StoppedMount(Pid);

impl Drop for StoppedMount {
    fn drop(&mut self) {
        if let Err(error) = kill(self.0, Signal::SIGCONT) {
            eprintln!("a file system stays stopped: {error}");
        }
    }
}

impl Drop for FrozenMount<'_> {
    fn drop(&mut self) {
        let thawed = run(&mut tool("fsfreeze", ["--unfreeze", text(&self.0.at)]));
        if thawed.code() != Some(0) {
            eprintln!("a file system stays frozen\n{thawed}");
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A killed child may hold the mount for a moment.
        let unmount = || run(&mut tool("umount", [&self.at])).code() == Some(0);
        if !std::thread::panicking() {
            return wait_until("umount", PATIENCE, unmount);
        }
        let since = Instant::now();
        while !unmount() {
            if since.elapsed() > PATIENCE {
                eprintln!("a mount is left behind: {}", self.at.display());
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
