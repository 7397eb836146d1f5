//! The section `media`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{
    ByteRate, Concurrency, FilePath, Interval, MediumAddress, MediumKind, Name, NonEmptyText,
};

/// A place for archives.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[schemars(inline)]
pub struct Medium {
    /// Where archives go, as `--to` has it: a directory, `s3://BUCKET/PREFIX` or `tape:DEVICE`. No two media
    /// may go to the same place.
    pub to: MediumAddress,
    /// How many backups write to it at once. Not set: 1 for a tape (which can't have more), else as many as
    /// the host runs.
    pub concurrency: Option<Concurrency>,
    /// The most bytes that are written to it in a second by one backup. Not set: no limit. A backup that goes
    /// to several media goes at the lowest rate of theirs and its job's, since it is one read.
    pub limit_rate: Option<ByteRate>,
    /// Object stores: a file with the variables that hold the credentials, one `NAME=VALUE` a line, such as
    /// `AWS_ACCESS_KEY_ID`. It is for its owner alone (mode 0600), and variables that change what programs
    /// run (`LD_*`, `PATH` and the like) are refused in it. Not set: the service's own environment, or the
    /// machine's role. The media of one job have one environment: where two files give a variable different
    /// values, the job's backups fail.
    pub environment_file: Option<FilePath>,
    /// Directories: whether a file system has to be mounted there, or above it, for a backup to be made:
    /// `true`, whichever it is; `false`, none has to. Not set: the one that was mounted there when the
    /// directory was first used, if there was one.
    pub mounted: Option<bool>,
    /// Tapes: the command that puts the next volume in: `%d` is the device, `%n` the volume's number, `%o`
    /// the old label, `%w` the wanted one (`-` for any), `%p` the pool. Not set: a backup ends when the tape
    /// is full.
    pub change_command: Option<NonEmptyText>,
    /// Tapes: only volumes of this pool are written to. Not set: the pool of the tape in the drive.
    pub pool: Option<Name>,
    /// Tapes: how long a volume is kept from the last archive on it: before that `prune` does not call it
    /// expired. What keeps `tape label` and `tape erase` from overwriting it is its label's `--retain-until`.
    /// Not set: as the volume's label says.
    pub retain: Option<Interval>,
}

impl Medium {
    /// How many backups write to it at once, on a host that runs `host` at once.
    pub fn concurrency(&self, host: Concurrency) -> usize {
        match (self.concurrency, self.to.kind()) {
            (_, MediumKind::Tape) => 1,
            (given, _) => given.unwrap_or(host).get(),
        }
    }
}
