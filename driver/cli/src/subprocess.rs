//! This program again, with the variables of a medium: credentials are a process's environment, so a medium with a file of its own
//! has a process of its own.

use std::process::{Command, Output, Stdio};

use virtfold_base::error::{Error, ErrorKind, IoContext};
use virtfold_config::Medium;

/// Runs this program as it was called, for the one medium `name`, with `more` options.
///
/// # Errors
/// The variables can't be read; the program can't be started.
pub(crate) fn with_variables_of((name, medium): (&str, &Medium), more: &[&str]) -> Result<Output, Error> {
    let environment = medium.environment().map_err(|error| {
        Error::new(ErrorKind::Usage, "its environment file can't be read").with_source(error)
    })?;
    let program = std::env::current_exe().at(|| "cannot tell where this program is".to_owned())?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).args(["--medium", name]).args(more);
    command.envs(environment.as_slice().iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.output().at(|| "cannot start this program again".to_owned())
}
