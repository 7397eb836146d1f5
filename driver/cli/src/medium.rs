//! `virtfold medium`: the process that touches a medium, which its driver can abandon. Hidden: the driver
//! starts it. Standard input is the socket to the driver; nothing here reads or closes it before the medium
//! does.

use anyhow::Result;
use virtfold_backup::destinations::{Destination, LocalMedia, MediumAccess};
use virtfold_medium::Location;
use virtfold_medium::process;

use super::args;
use super::domain::connection::StateFlag;
use super::encryption::IdentityArgs;
use super::exit::ExitStatus;
use super::mount_check::ExpectedArgs;
use super::signals::Signals;
use super::tape::options::WriteArgs;

/// Do with a medium what the driver says (started by virtfold itself)
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The destination
    #[arg(long, value_name = "PLACE", value_parser = args::location())]
    to: Location,
    #[command(flatten)]
    tape: WriteArgs,
    #[command(flatten)]
    state: StateFlag,
    #[command(flatten)]
    identity: IdentityArgs,
    #[command(flatten)]
    expected: ExpectedArgs,
}

/// Runs the verb.
pub(crate) fn run(args: &Args, signals: &Signals) -> Result<ExitStatus> {
    signals.take_as_wishes()?;
    process::serve(|request| {
        let mut media = LocalMedia { identities: args.identity.load()?, ..LocalMedia::default() };
        if let Location::Tape(address) = &args.to {
            media.tape = args.tape.drive(address, args.state.path()?, &signals.stop)?;
        }
        let mount = args.expected.mount();
        media.open(Destination { location: &args.to, mount: mount.as_ref(), cancel: &signals.stop }, request)
    })?;
    Ok(ExitStatus::Done)
}
