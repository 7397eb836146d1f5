//! Media that processes of their own touch: the library knows what such a process does, the binary which of
//! its verbs is one.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use virtfold_base::error::Result;
use virtfold_medium::process::{self, MediumReply, MediumRequest, ProcessDestination, TerminatingProcesses};

use super::{Destination, ExpectedMount, MediumAccess};

/// Starts a program for each request, which serves it by [`super::LocalMedia`].
#[derive(Clone)]
pub struct MediumProcesses {
    /// The program.
    pub program: PathBuf,
    /// Its arguments before the destination.
    pub arguments: Vec<OsString>,
    /// Variables beside its own environment: credentials of the medium.
    pub environment: Vec<(String, String)>,
    /// Those that were dropped and have not ended yet.
    pub terminating: TerminatingProcesses,
}

impl MediumAccess for MediumProcesses {
    fn open(&self, to: Destination<'_>, request: MediumRequest) -> Result<MediumReply> {
        let mut command = Command::new(&self.program);
        // With `=`: a directory's name may begin with a hyphen.
        let mut location = OsString::from("--to=");
        location.push(to.location.argument());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.args(&self.arguments).arg(location);
        command.args(to.mount.map(ExpectedMount::arguments).unwrap_or_default());
        let Destination { location, cancel, .. } = to;
        let destination = ProcessDestination { command, location, cancel, leaving: &self.terminating };
        process::open(destination, &request)
    }
}
