//! Exit codes: the one place that maps what happened to a number, and prints errors.

use std::process::ExitCode;

use virtfold_backup::events::ErrorEvent;
use virtfold_base::error::{Error, ErrorKind, sentence};

use super::output::{self, say};
use super::report::{self, StdoutUse, printable};

/// The exit codes, for `--help` and docs/troubleshooting.md.
pub(crate) const HELP: &str = "\
Exit codes:
  0    done
  1    an I/O error, or an internal error of virtfold
  2    invalid command line or configuration
  3    damage: bytes of an archive are not what was written
  4    the archive is incomplete
  5    a source image is damaged or not supported, or a file is no archive of this version
  6    a disk or domain is in use, or a recovery could not finish
  7    the target exists already
  8    no space left
  9    not found
  10   libvirt or the service refused, or can't be reached; a definition that reaches into the host
  11   the archive is encrypted, and none of the given identities opens it
  12   permission denied
  141  the reader of the output closed the pipe
  128 and N  ended by signal N: 130 by SIGINT, 143 by SIGTERM, 129 by SIGHUP

Environment:
  VIRTFOLD_CONFIG       the configuration file (default: /etc/virtfold/config.yaml)
  VIRTFOLD_CONNECT      the libvirt to connect to (default: LIBVIRT_DEFAULT_URI, else qemu:///system)
  VIRTFOLD_STATE_DIR    where the journal of backups is (default: /var/lib/virtfold; for
                        qemu:///session $XDG_STATE_HOME/virtfold, in ~/.local/state)
  VIRTFOLD_LIBVIRT_DIR  libvirt's state directory (default: /var/lib/libvirt)
  VIRTFOLD_GUARDS       directory of start locks (default: /run/virtfold/guards;
                        for qemu:///session in $XDG_RUNTIME_DIR/virtfold)
  VIRTFOLD_KEYS         keys of encrypted archives while they are written, in memory
                        (default: /run/virtfold/keys, an ordinary user's in $XDG_RUNTIME_DIR)
  AWS_ENDPOINT_URL      the object store, for example https://minio:9000 (default: Amazon's)
  AWS_REGION            its region (default: us-east-1)
  AWS_ACCESS_KEY_ID     with AWS_SECRET_ACCESS_KEY the account's keys (default: AWS_PROFILE in
                        ~/.aws/credentials, else the role of the container or machine)
  VIRTFOLD_S3_PATIENCE  how long a broken upload is retried, seconds (default: 900)
  VIRTFOLD_LOG          what is logged to standard error, for example 'debug' (default: warn)
  TMPDIR                directory for tables that don't fit in memory (default: /var/tmp)";

/// The code of a run whose output nobody reads any more: 128 and SIGPIPE, as of other tools.
const UNREAD: u8 = 141;

/// How a run that printed its own result ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitStatus {
    /// All is as it was asked for.
    Done,
    /// Damage was found, or something could not be restored; the verb has said what.
    Damaged,
    /// The archive is incomplete; the verb has said so.
    Incomplete,
    /// The archive needs a later version; the verb has said so.
    Unsupported,
    /// Something failed, or would; the verb has said so.
    Failed(ErrorKind),
}

/// Prints an error with its causes and its hint, and gives the exit code: for programs, too, where the verb's
/// results are for them, and then on `events`. `by_signal` is the code of a run that a signal ended.
pub(crate) fn report(
    outcome: anyhow::Result<ExitStatus>,
    by_signal: u8,
    events: Option<StdoutUse>,
) -> ExitCode {
    let error = match outcome {
        Ok(ExitStatus::Done) => return ExitCode::SUCCESS,
        Ok(ExitStatus::Damaged) => return ExitCode::from(code(ErrorKind::Damaged, by_signal)),
        Ok(ExitStatus::Incomplete) => return ExitCode::from(code(ErrorKind::Incomplete, by_signal)),
        Ok(ExitStatus::Unsupported) => return ExitCode::from(code(ErrorKind::Unsupported, by_signal)),
        Ok(ExitStatus::Failed(kind)) => return ExitCode::from(code(kind, by_signal)),
        Err(error) if output::reader_is_gone(&error) => return ExitCode::from(UNREAD),
        Err(error) => error,
    };
    let full = full(&error);
    let known = error.downcast_ref::<Error>().or(full.as_ref());
    let message = sentence(error.as_ref());
    if let Some(out) = events {
        let (kind, hint) = (known.map_or(ErrorKind::Internal, Error::kind), known.and_then(Error::hint));
        let (message, hint) = (message.clone(), hint.map(ToOwned::to_owned));
        report::error(out, ErrorEvent { kind, message, hint });
    }
    say(&format!("virtfold: {}", printable(&message)));
    if let Some(hint) = known.and_then(Error::hint) {
        say(&format!("hint: {}", printable(hint)));
    }
    ExitCode::from(known.map_or(1, |error| code(error.kind(), by_signal)))
}

/// What is said of a failure of this binary's own that is for want of space: a result that can't be printed.
fn full(error: &anyhow::Error) -> Option<Error> {
    let cause = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>())?;
    let error = Error::io("", std::io::Error::from(cause.kind()));
    (error.kind() == ErrorKind::NoSpace).then_some(error)
}

/// What kind of failure a run of virtfold ended with, by its exit code; the other way round.
pub(crate) fn kind(code: i32) -> ErrorKind {
    match code {
        2 => ErrorKind::Usage,
        3 => ErrorKind::Damaged,
        4 => ErrorKind::Incomplete,
        5 => ErrorKind::BadImage,
        6 => ErrorKind::InUse,
        7 => ErrorKind::Exists,
        8 => ErrorKind::NoSpace,
        9 => ErrorKind::NotFound,
        10 => ErrorKind::Refused,
        11 => ErrorKind::Locked,
        12 => ErrorKind::Denied,
        129..=192 => ErrorKind::Interrupted,
        1 => ErrorKind::Io,
        _ => ErrorKind::Internal,
    }
}

fn code(kind: ErrorKind, by_signal: u8) -> u8 {
    match kind {
        ErrorKind::Io | ErrorKind::Internal => 1,
        ErrorKind::Usage => 2,
        ErrorKind::Damaged => 3,
        ErrorKind::Incomplete => 4,
        ErrorKind::BadImage | ErrorKind::Unsupported => 5,
        ErrorKind::InUse => 6,
        ErrorKind::Exists => 7,
        ErrorKind::NoSpace => 8,
        ErrorKind::NotFound => 9,
        ErrorKind::Refused => 10,
        ErrorKind::Locked => 11,
        ErrorKind::Denied => 12,
        ErrorKind::Interrupted => by_signal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_tells_its_kind() {
        for exit in 0..=143 {
            let kind = kind(exit);
            // Two kinds share a code with another one.
            let back = i32::from(code(kind, 143));
            assert!(back == exit || matches!(exit, 0 | 13..=128 | 129..=142), "{exit} {kind:?}");
        }
    }
}
