//! Least privilege: what a thread, and all that it starts from then on, can't do any more.
//!
//! In this order: no new privileges; of root's capabilities those that were asked for; Landlock for files and
//! TCP ports (an allow-list); seccomp for calls that none of ours makes (`calls`), which end the process,
//! and for sockets where none are needed and changes of modes and owners by name, which are refused. A
//! process is confined as a whole when that is done before it has a second thread. Nothing of it can be taken
//! back.
//!
//! A kernel that lacks a part of it (Landlock before 5.13, ports before 6.7, or switched off) is worked with,
//! and that is said: in the log, and to the caller ([`Enforcement`]), who may refuse.
//!
//! Imports: `error`.

mod calls;

use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::thread::{CapabilitySet, CapabilitySets};

use self::calls::{Programs, forbid};
use crate::error::{Error, ErrorKind, IoContext, Result};

/// The newest rules that are asked for; an older kernel has fewer.
const RULES: ABI = ABI::V6;
/// What a program and its libraries are read from.
const PROGRAMS: [&str; 8] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/nix/store", "/gnu/store", "/etc/ld.so.cache"];
const DEVICES: [&str; 3] = ["/dev/null", "/dev/zero", "/dev/urandom"];

/// What may be done with a file, or with all below a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileAccess {
    /// Read, and the names in directories.
    Read,
    /// Read and write, and make and remove files in directories; nothing that is a program.
    Write,
    /// Nothing but the names in directories.
    Names,
}

impl FileAccess {
    fn rights(self) -> BitFlags<AccessFs> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::IoctlDev;
        let change = AccessFs::WriteFile
            | AccessFs::Truncate
            | AccessFs::MakeReg
            | AccessFs::MakeDir
            | AccessFs::RemoveFile
            | AccessFs::RemoveDir
            | AccessFs::Refer;
        match self {
            Self::Read => read,
            Self::Write => read | change,
            Self::Names => AccessFs::ReadDir.into(),
        }
    }
}

/// Where a process may connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// Nowhere: it gets no socket.
    Nowhere,
    /// To these TCP ports, and to name servers.
    Ports(Vec<u16>),
}

/// What of root's capabilities stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Capabilities {
    /// None but those to pass files' permissions by, which Landlock's list bounds: archives and images belong
    /// to many.
    Files,
    /// All: a program that is started drops them.
    All,
}

/// What is left to a thread.
#[derive(Debug)]
pub struct Confinement {
    rules: Vec<(OwnedFd, BitFlags<AccessFs>)>,
    network: Network,
    programs: Programs,
    capabilities: Capabilities,
}

/// What the kernel enforces of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enforcement {
    /// Landlock's rules: all that were asked for, some, or none.
    pub files: Enforced,
    /// The filter of calls.
    pub calls: Enforced,
}

/// How much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforced {
    /// All of it.
    Fully,
    /// What an older kernel knows.
    Partially,
    /// Nothing: the kernel does not know it.
    Not,
}

impl fmt::Display for Enforcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = match self.files {
            Enforced::Fully => "files and ports (Landlock)",
            Enforced::Partially => "files, and less than this program knows (an older Landlock)",
            Enforced::Not => "no files: this kernel has no Landlock (5.13), or it is switched off",
        };
        let calls = if self.calls == Enforced::Not { "no system calls (seccomp)" } else { "system calls" };
        write!(f, "{files}; {calls}")
    }
}

impl Confinement {
    /// No files, no programs.
    pub fn new(network: Network) -> Self {
        Self { rules: Vec::new(), network, programs: Programs::None, capabilities: Capabilities::Files }
    }

    /// What any program of this host's may read: devices like `/dev/null`, and what it knows of itself.
    #[must_use]
    pub fn with_devices(mut self) -> Self {
        let rights = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev | AccessFs::Truncate;
        DEVICES.iter().for_each(|path| self.allow(Path::new(path), rights));
        self
    }

    /// Lets it start programs that are installed, which are confined as it is.
    #[must_use]
    pub fn with_programs(mut self) -> Self {
        PROGRAMS.iter().for_each(|path| self.allow(Path::new(path), AccessFs::from_read(RULES)));
        self.programs = Programs::Some;
        self.capabilities = Capabilities::All;
        self
    }

    /// Allows a path; what is not there can't be opened either.
    #[must_use]
    pub fn path(mut self, path: &Path, access: FileAccess) -> Self {
        self.allow(path, access.rights());
        self
    }

    /// Allows an open file.
    ///
    /// # Errors
    /// The descriptor can't be duplicated.
    pub fn file(mut self, file: &File, access: FileAccess) -> Result<Self> {
        let own = file.as_fd().try_clone_to_owned().at(|| "cannot hand a file on".to_owned())?;
        self.rules.push((own, access.rights()));
        Ok(self)
    }

    fn allow(&mut self, path: &Path, rights: BitFlags<AccessFs>) {
        // By `.` what is to be mounted on a directory at its first use is, and not what lies below that.
        if let Ok(opened) = PathFd::new(path.join(".")).or_else(|_| PathFd::new(path))
            && let Ok(own) = opened.as_fd().try_clone_to_owned()
        {
            self.rules.push((own, rights));
        }
    }

    /// Confines this thread, and all that it starts from now on.
    ///
    /// # Errors
    /// The kernel knows how and refuses.
    pub fn apply(self) -> Result<Enforcement> {
        rustix::thread::set_no_new_privs(true).at(|| "cannot give up new privileges".to_owned())?;
        let files = self.restrict_files()?;
        if self.capabilities == Capabilities::Files {
            drop_capabilities()?;
        }
        let calls = forbid(self.programs, &self.network)?;
        let found = Enforcement { files, calls };
        if files == Enforced::Not || calls == Enforced::Not {
            tracing::warn!("this process is confined less than it should be: {found}");
        } else {
            tracing::debug!("confined: {found}");
        }
        Ok(found)
    }

    fn restrict_files(&self) -> Result<Enforced> {
        let failed = |e: landlock::RulesetError| {
            Error::new(ErrorKind::Io, "cannot confine this process (Landlock)").with_source(e)
        };
        let handled = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(RULES))
            .and_then(|rules| rules.handle_access(AccessNet::from_all(RULES)))
            .and_then(|rules| rules.scope(Scope::from_all(RULES)));
        let mut rules = handled.and_then(Ruleset::create).map_err(failed)?;
        for (path, rights) in &self.rules {
            let kind = File::from(path.try_clone().at(|| "cannot hand a file on".to_owned())?).metadata();
            let is_directory = kind.at(|| "cannot examine a file".to_owned())?.is_dir();
            let rights = if is_directory { *rights } else { *rights & AccessFs::from_file(RULES) };
            if !rights.is_empty() {
                rules = rules.add_rule(PathBeneath::new(path, rights)).map_err(failed)?;
            }
        }
        if let Network::Ports(ports) = &self.network {
            for port in ports {
                let rule = NetPort::new(*port, AccessNet::ConnectTcp);
                rules = rules.add_rule(rule).map_err(failed)?;
            }
        }
        Ok(match rules.restrict_self().map_err(failed)?.ruleset {
            RulesetStatus::FullyEnforced => Enforced::Fully,
            RulesetStatus::PartiallyEnforced => Enforced::Partially,
            RulesetStatus::NotEnforced => Enforced::Not,
        })
    }
}

fn drop_capabilities() -> Result<()> {
    let dropping = || "cannot give up capabilities".to_owned();
    let now = rustix::thread::capabilities(None).at(dropping)?;
    let kept = now.permitted & (CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH);
    let sets = CapabilitySets {
        effective: now.effective & kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).at(dropping)
}

#[cfg(test)]
mod tests;
