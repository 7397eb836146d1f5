//! The verbs that ask the service at its control socket, and what they share: the socket, words for times and
//! entries.

pub(crate) mod cancel;
pub(crate) mod pause;
pub(crate) mod queue;
pub(crate) mod run;
pub(crate) mod status;
pub(crate) mod text;

use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;
use virtfold_hooks::HookOwner;
use virtfold_service::control::{Client, SOCKET};

use super::domain::connection::whose;
use super::exit::ExitStatus;
use super::report::{JsonFlag, OutputFormat, StdoutUse, result};

/// The option that names the socket.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SocketFlag {
    /// The service's control socket [default: /run/virtfold/control.sock, or below $XDG_RUNTIME_DIR for
    /// qemu:///session]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl SocketFlag {
    /// The service.
    fn client(&self) -> Client {
        Client::new(&self.path(whose()))
    }

    /// Where the service of a libvirt listens.
    pub(crate) fn path(&self, whose: HookOwner) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| whose.runtime().join(SOCKET))
    }
}

/// What a verb that only changes something has done.
#[derive(Serialize)]
struct ChangeReport<'a> {
    /// `paused`, `resumed`, `cancelled`.
    done: &'a str,
    /// The job or the entry; nothing for all jobs.
    subject: Option<&'a str>,
}

/// Says that a change was made.
fn changed(json: &JsonFlag, done: &str, subject: Option<&str>, text: &str) -> Result<ExitStatus> {
    result(OutputFormat::from_flag(json), StdoutUse::Free, &ChangeReport { done, subject }, text)?;
    Ok(ExitStatus::Done)
}
