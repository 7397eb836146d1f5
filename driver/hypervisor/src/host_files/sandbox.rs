//! `qemu-img` where a fault in it, or a header that it believes, is worth little.
//!
//! It runs
//!
//! - not as root: as the owner of the image that it writes to, where that is not root and can open the whole
//!   chain; else as a user that nobody is, who may pass permissions by (`CAP_DAC_OVERRIDE`) because of the
//!   next;
//! - with Landlock: it can open the images that it was given, its own program and libraries, and nothing
//!   else; where the kernel has no Landlock (before 5.13, or switched off), only as the owner and without any
//!   capability;
//! - without sockets of any kind, `io_uring`, tracing, and changes of owners, modes and attributes (seccomp):
//!   `base`'s `confine` does these two;
//!   no program that it starts gets more rights (`no_new_privs`);
//! - with an empty environment but for `PATH`, in a bounded time, and not longer than the thread that waits
//!   for it.
//!
//! Landlock and seccomp hold for a thread and what it starts, so a thread is made for it. Users and
//! capabilities are changed by `setpriv` (util-linux), for a thread of our own with another user's rights
//! would be a thread that this user can signal.
//!
//! Imports: `confine`, `error`.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use virtfold_base::confine::{Confinement, Enforced, Enforcement, FileAccess, Network};
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};

/// Where programs are found.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The users that systemd gives to nobody for longer than a service runs: the one of our number is nobody.
const NOBODY: std::ops::Range<u32> = 61_184..65_520;
/// How much is kept of what it says.
const SAID: usize = 64 << 10;
/// How long one that was killed may take to be gone.
const DYING: Duration = Duration::from_secs(10);
/// A run of `qemu-img`.
pub(super) struct Sandbox<'a> {
    /// Its arguments.
    pub(super) arguments: Vec<OsString>,
    /// What it gets, under the same numbers; the second is the one whose owner it runs as.
    pub(super) images: Vec<(&'a File, FileAccess)>,
    /// The time that it has.
    pub(super) limit: Duration,
}

/// How it ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) success: bool,
    /// What it said.
    pub(super) said: String,
}

/// Whom it runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    /// As whoever runs this, who is not root.
    Same,
    /// As an image's owner, who can open all of them.
    Owner { user: u32, group: u32 },
    /// As nobody, who may open what Landlock lets through.
    Nobody,
}

impl Sandbox<'_> {
    /// Whether what is started gets the images.
    fn set_flags(&self, flags: rustix::io::FdFlags) -> Result<()> {
        let set = |(image, _): &(&File, FileAccess)| rustix::io::fcntl_setfd(image, flags);
        self.images.iter().try_for_each(set).at(|| "cannot hand an image on to qemu-img".to_owned())
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// It can't be started, or not in this way; it took too long.
    pub(super) fn run(&self) -> Result<Ended> {
        let identity = self.identity()?;
        self.set_flags(rustix::io::FdFlags::empty())?;
        let ended = std::thread::scope(|scope| {
            let thread = scope.spawn(|| self.confined(identity));
            thread.join().unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "a thread panicked")))
        });
        // What other threads start is to have no image open for writing.
        self.set_flags(rustix::io::FdFlags::CLOEXEC)?;
        let (mut child, said) = ended?;
        // The thread is gone, and with it whatever it has not seen end.
        let late = || {
            let what = format!("qemu-img was ended after {} s", self.limit.as_secs());
            Error::new(ErrorKind::Io, what)
                .with_hint("look at the storage of these images, then run 'virtfold recover'")
        };
        let Some(said) = said else {
            // One that stands in the kernel is left behind.
            if wait_until(&child, Instant::now() + DYING)? {
                child.wait().at(|| "cannot wait for qemu-img".to_owned())?;
            }
            return Err(late());
        };
        let status = child.wait().at(|| "cannot wait for qemu-img".to_owned())?;
        Ok(Ended { success: status.success(), said })
    }

    fn identity(&self) -> Result<Identity> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Identity::Same);
        }
        let mut found = Vec::new();
        for (image, reach) in &self.images {
            found.push((image.metadata().at(|| "cannot examine an image".to_owned())?, *reach));
        }
        let Some((base, _)) = found.get(1) else {
            return Err(Error::new(ErrorKind::Internal, "there is no image to write to"));
        };
        let (user, group) = (base.uid(), base.gid());
        let opens = |image: &std::fs::Metadata, reach: FileAccess| {
            let wanted = if reach == FileAccess::Write { 0o6 } else { 0o4 };
            let shift = match () {
                () if image.uid() == user => 6,
                () if image.gid() == group => 3,
                () => 0,
            };
            image.mode() >> shift & wanted == wanted
        };
        let all = found.iter().all(|(image, reach)| opens(image, *reach));
        Ok(if user != 0 && all { Identity::Owner { user, group } } else { Identity::Nobody })
    }

    /// Restricts this thread, starts `qemu-img` in it, and waits; nothing is said where it has not ended in
    /// time.
    fn confined(&self, identity: Identity) -> Result<(Child, Option<String>)> {
        let enforced = self.restrict()?;
        if enforced.calls == Enforced::Not {
            let what = "this kernel has no seccomp, and qemu-img does not run without it";
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        if identity == Identity::Nobody && enforced.files == Enforced::Not {
            let what = "this kernel has no Landlock, and qemu-img does not run as root without it";
            return Err(Error::new(ErrorKind::Unsupported, what).with_hint(
                "let all images of the chain belong to QEMU's user (chown), then run 'virtfold recover'",
            ));
        }
        let mut command = command(identity);
        command.args(&self.arguments).env_clear().env("PATH", PATH).env("LC_ALL", "C");
        let started = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child =
            started.at(|| "cannot run qemu-img (package qemu-utils) by setpriv (util-linux)".to_owned())?;
        let end = Instant::now() + self.limit;
        let said = match child.stderr.take() {
            Some(mut pipe) => read_until(&mut pipe, end)?,
            None => None,
        };
        let ended = said.is_some() && wait_until(&child, end)?;
        if !ended && identity == Identity::Same {
            child.kill().at(|| "cannot end qemu-img".to_owned())?;
        }
        Ok((child, said.filter(|_| ended)))
    }

    /// What `qemu-img` can do.
    fn restrict(&self) -> Result<Enforcement> {
        let mut rules = Confinement::new(Network::Nowhere).with_programs().with_devices();
        for (image, access) in &self.images {
            rules = rules.file(image, *access)?;
        }
        rules.apply()
    }
}

fn command(identity: Identity) -> Command {
    let (user, group, capabilities) = match identity {
        Identity::Same => return Command::new("qemu-img"),
        Identity::Owner { user, group } => (user, group, "-all"),
        Identity::Nobody => {
            let nobody = NOBODY.start + std::process::id() % (NOBODY.end - NOBODY.start);
            (nobody, nobody, "-all,+dac_override")
        }
    };
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={user}")).arg(format!("--regid={group}")).arg("--clear-groups");
    command.arg(format!("--inh-caps={capabilities}")).arg(format!("--ambient-caps={capabilities}"));
    command.args(["--no-new-privs", "--pdeathsig=KILL", "--", "qemu-img"]);
    command
}

/// The time that is left, for poll(2); nothing where there is none.
fn left(end: Instant) -> Option<Timespec> {
    let left = end.checked_duration_since(Instant::now())?;
    Timespec::try_from(left).ok()
}

/// All that comes from `pipe` until it is closed; nothing where that is not in time.
fn read_until(pipe: &mut (impl Read + std::os::fd::AsFd), end: Instant) -> Result<Option<String>> {
    let reading = || "cannot hear what qemu-img says".to_owned();
    let (mut said, mut buf) = (Vec::new(), [0; 4096]);
    loop {
        let Some(left) = left(end) else { return Ok(None) };
        if poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(&left)).at(reading)? == 0 {
            return Ok(None);
        }
        let len = pipe.read(&mut buf).at(reading)?;
        if len == 0 {
            return Ok(Some(String::from_utf8_lossy(&said).trim().to_owned()));
        }
        let room = SAID.saturating_sub(said.len()).min(len);
        said.extend_from_slice(buf.get(..room).unwrap_or_default());
    }
}

/// Whether the child has ended by then.
fn wait_until(child: &Child, end: Instant) -> Result<bool> {
    let waiting = || "cannot wait for qemu-img".to_owned();
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or_else(|| Error::new(ErrorKind::Internal, waiting()))?;
    let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).at(waiting)?;
    let Some(left) = left(end) else { return Ok(false) };
    Ok(poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&left)).at(waiting)? > 0)
}

#[cfg(test)]
#[path = "sandbox_tests.rs"]
mod tests;
