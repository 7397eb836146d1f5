//! The options of verbs that use a tape drive.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use virtfold_archive::stream::Cancel;
use virtfold_backup::tape::TapeOptions;
use virtfold_base::error::{Error, ErrorKind};
use virtfold_config::parse_size;
use virtfold_medium::{Location, TapeAddress, TapeArchive};

/// What verbs say that change volumes.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ChangeArgs {
    /// The command that loads the next tape: %d is the device, %n the volume's number, %o the old label, %w
    /// the wanted label (- for any), %p the pool [default: ask at the terminal]
    #[arg(long, value_name = "COMMAND", help_heading = "Tapes")]
    change_command: Option<String>,
    /// How long that command may take
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = time, help_heading = "Tapes")]
    change_timeout: Duration,
    #[command(flatten)]
    wait: WaitFlag,
}

/// What verbs say that need a tape.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct WaitFlag {
    /// How long to wait for a tape to be ready
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = time, help_heading = "Tapes")]
    tape_wait: Duration,
}

/// What a backup to tape says.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct WriteArgs {
    #[command(flatten)]
    change: ChangeArgs,
    /// Start only on a tape of this pool [default: the pool of the tape in the drive]
    #[arg(long, value_name = "POOL", help_heading = "Tapes")]
    pool: Option<String>,
    /// Memory that keeps the drive streaming
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = parse_size, help_heading = "Tapes")]
    tape_buffer: u64,
    /// Commit after each SIZE: if a tape fails, the backup continues from the last commit on the next tape
    #[arg(long, value_name = "SIZE", default_value = "64GiB", value_parser = parse_size, help_heading = "Tapes")]
    tape_commit_every: u64,
}

impl WaitFlag {
    /// The drive without anybody who changes volumes.
    pub(crate) fn drive(&self, address: &TapeAddress, state_dir: PathBuf, cancel: &Cancel) -> TapeOptions {
        TapeOptions {
            device: address.device.clone(),
            state_dir: Some(state_dir),
            patience: self.tape_wait,
            cancel: Arc::clone(cancel),
            ..TapeOptions::default()
        }
    }
}

impl ChangeArgs {
    /// The drive, to read from.
    pub(crate) fn drive(&self, address: &TapeAddress, state_dir: PathBuf, cancel: &Cancel) -> TapeOptions {
        TapeOptions {
            change_command: self.change_command.clone(),
            change_limit: self.change_timeout,
            ..self.wait.drive(address, state_dir, cancel)
        }
    }
}

impl WriteArgs {
    /// The options that say the same.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let millis = |time: Duration| format!("{}ms", time.as_millis());
        let said = [
            ("--change-command", self.change.change_command.clone()),
            ("--change-timeout", Some(millis(self.change.change_timeout))),
            ("--tape-wait", Some(millis(self.change.wait.tape_wait))),
            ("--pool", self.pool.clone()),
            ("--tape-buffer", Some(self.tape_buffer.to_string())),
            ("--tape-commit-every", Some(self.tape_commit_every.to_string())),
        ];
        // With `=`: a value may begin with a hyphen.
        said.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?).into())).collect()
    }

    /// The drive, to write to.
    ///
    /// # Errors
    /// The address names an archive.
    pub(crate) fn drive(
        &self,
        address: &TapeAddress,
        state_dir: PathBuf,
        cancel: &Cancel,
    ) -> Result<TapeOptions, Error> {
        device_only(address)?;
        Ok(TapeOptions {
            pool: self.pool.clone(),
            ring: self.tape_buffer,
            commit_every: self.tape_commit_every,
            ..self.change.drive(address, state_dir, cancel)
        })
    }
}

/// Fails where an address names an archive and only a drive makes sense.
pub(crate) fn device_only(address: &TapeAddress) -> Result<(), Error> {
    match address.archive {
        None => Ok(()),
        Some(_) => Err(Error::new(ErrorKind::Usage, format!("'{address}' names an archive, not a tape"))
            .with_hint("remove # and what follows")),
    }
}

/// The tape that a verb of tapes is about.
pub(super) fn tape(location: &Location) -> Result<&TapeAddress, Error> {
    let Location::Tape(address) = location else {
        return Err(Error::new(ErrorKind::Usage, format!("'{location}' is not a tape"))
            .with_hint("write tape:/dev/nst0"));
    };
    device_only(address)?;
    Ok(address)
}

/// The archive that an address names.
///
/// # Errors
/// It names none.
pub(crate) fn archive(address: &TapeAddress) -> Result<&TapeArchive, Error> {
    address.archive.as_ref().ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("'{address}' is a tape, not an archive on it"))
            .with_hint(format!("'virtfold list {address}' shows the names; {address}#latest is the last one"))
    })
}

/// A time as people write it: `500ms`, `90s`, `2m`, `1h`.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| "write a time as 500ms, 90s, 2m or 1h".to_owned())?;
    let factor = match unit {
        "ms" => return Ok(Duration::from_millis(number)),
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("write a time as 500ms, 90s, 2m or 1h".to_owned()),
    };
    number.checked_mul(factor).map(Duration::from_secs).ok_or_else(|| "that is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct TapeOptionsOnly {
        #[command(flatten)]
        tape: WriteArgs,
    }

    #[test]
    fn what_another_process_is_told_is_what_was_said() {
        use clap::Parser;
        let said =
            ["x", "--change-command=-odd %d", "--change-timeout=90s", "--tape-wait=1500ms", "--pool=p q"];
        let sizes = ["--tape-buffer=1MiB", "--tape-commit-every=7"];
        for said in [&said[..1], &[&said[..], &sizes[..]].concat()] {
            let first = TapeOptionsOnly::try_parse_from(said).unwrap();
            let again = [vec!["x".into()], first.tape.arguments()].concat();
            let second = TapeOptionsOnly::try_parse_from(&again).unwrap();
            assert_eq!(format!("{first:?}"), format!("{second:?}"), "{again:?}");
        }
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(time("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(time("1h"), Ok(Duration::from_secs(3600)));
        for bad in ["", "5", "m", "-1s", "1d", "99999999999999999999s", "9999999999999999999h"] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }
}
