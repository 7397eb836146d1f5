//! Who changes the volume in the drive: a command, a person at a terminal, or nobody.
//!
//! Imports: `error`.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};

use super::positioned_drive::interrupted;
use virtfold_archive::stream::Cancel;
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};

/// How often it is looked whether the command has ended, or the run is to.
const POLL: Duration = Duration::from_millis(50);
const POLL_MS: u16 = 200;

/// A volume that is wanted.
#[derive(Clone, Copy, Debug)]
pub struct VolumeRequest<'a> {
    /// The drive's device.
    pub device: &'a str,
    /// Which volume of the archive it will be, from 1.
    pub number: u32,
    /// The label of the volume that is done with.
    pub old: Option<&'a str>,
    /// The label of the one that is wanted; `None` for any of the pool.
    pub wanted: Option<&'a str>,
    /// The pool.
    pub pool: &'a str,
    /// Why the last one that was put in would not do.
    pub refused: Option<&'a str>,
}

/// Changes volumes. When it returns, a tape is in the drive, or about to be ready.
pub trait Changer: Send {
    /// Puts a volume in. `stop` ends the waiting.
    ///
    /// # Errors
    /// It could not, or not in time.
    fn change(&mut self, change: &VolumeRequest<'_>, stop: &Cancel) -> Result<()>;

    /// Whether it can change anything at all: then the tape in the drive is given out before.
    fn can_change(&self) -> bool {
        true
    }
}

fn wanted(change: &VolumeRequest<'_>) -> String {
    match change.wanted {
        Some(label) => format!("volume '{label}'"),
        None => format!("a volume of the pool '{}' with room on it", change.pool),
    }
}

/// Nobody: where the first volume is not enough, that is the end.
#[derive(Clone, Copy, Debug)]
pub struct NoChanger;

impl Changer for NoChanger {
    fn can_change(&self) -> bool {
        false
    }

    fn change(&mut self, change: &VolumeRequest<'_>, _: &Cancel) -> Result<()> {
        let (kind, why) = match change.refused {
            Some(why) => {
                (ErrorKind::NotFound, format!("the tape in '{}' is the wrong one: {why}", change.device))
            }
            None if change.wanted.is_some() || change.old.is_none() => {
                (ErrorKind::NotFound, format!("'{}' needs {}", change.device, wanted(change)))
            }
            None => {
                let old = change.old.unwrap_or_default();
                (ErrorKind::NoSpace, format!("volume '{old}' in '{}' is at its end", change.device))
            }
        };
        Err(Error::new(kind, why).with_hint(format!(
            "load {} and start again, or use --change-command; at a terminal virtfold asks",
            wanted(change)
        )))
    }
}

/// A command, in the manner of mtx-changer. Its words are split at spaces; in them `%d` is the device, `%n`
/// the number of the volume, `%o` the label of the old volume, `%w` that of the one wanted, `%p` the pool,
/// `%%` a percent sign. A label that is not there is `-`.
#[derive(Clone, Debug)]
pub struct CommandChanger {
    words: Vec<String>,
    limit: Duration,
}

impl CommandChanger {
    /// Takes the command's line, and how long it may take.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for an empty line, or a `%` that means nothing.
    pub fn new(line: &str, limit: Duration) -> Result<Self> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let nothing =
            VolumeRequest { device: "", number: 0, old: None, wanted: None, pool: "", refused: None };
        let bad = words.is_empty() || words.iter().any(|word| expand(word, &nothing).is_none());
        if bad {
            return Err(Error::new(ErrorKind::Usage, "invalid change command").with_hint(
                "%d is the device, %n the volume's number, %o the old label, %w the wanted one, %p the pool, %% a percent sign",
            ));
        }
        Ok(Self { words, limit })
    }
}

fn expand(word: &str, change: &VolumeRequest<'_>) -> Option<String> {
    let mut text = String::new();
    let mut chars = word.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        match chars.next()? {
            'd' => text.push_str(change.device),
            'n' => text.push_str(&change.number.to_string()),
            'o' => text.push_str(change.old.unwrap_or("-")),
            'w' => text.push_str(change.wanted.unwrap_or("-")),
            'p' => text.push_str(change.pool),
            '%' => text.push('%'),
            _ => return None,
        }
    }
    Some(text)
}

impl Changer for CommandChanger {
    fn change(&mut self, change: &VolumeRequest<'_>, stop: &Cancel) -> Result<()> {
        if let Some(why) = change.refused {
            let what = format!("the change command loaded the wrong volume: {why}");
            return Err(Error::new(ErrorKind::NotFound, what)
                .with_hint(format!("it was asked to load {}", wanted(change))));
        }
        let words: Vec<String> = self.words.iter().filter_map(|word| expand(word, change)).collect();
        let Some((program, arguments)) = words.split_first() else {
            return Err(Error::new(ErrorKind::Internal, "the change command is empty"));
        };
        let starting = || format!("cannot run the change command '{program}'");
        let mut command = Command::new(program);
        // Standard output may carry the summary; what the command prints is for people.
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::from(std::io::stderr())).process_group(0);
        let mut child = command.spawn().at(starting)?;
        let until = Instant::now() + self.limit;
        let why = loop {
            if let Some(status) = child.try_wait().at(starting)? {
                match (status.success(), status.signal()) {
                    (true, _) => return Ok(()),
                    (false, Some(signal)) => break format!("was ended by signal {signal}"),
                    (false, None) => break format!("failed with exit code {}", status.code().unwrap_or(1)),
                }
            }
            if stop.load(Ordering::Relaxed) {
                end(&mut child);
                return Err(interrupted());
            }
            if Instant::now() >= until {
                end(&mut child);
                break format!("timed out after {} s", self.limit.as_secs());
            }
            std::thread::sleep(POLL);
        };
        let what = format!("the command '{}' {why}; it was to load {}", words.join(" "), wanted(change));
        Err(Error::new(ErrorKind::Io, what).with_hint("what it printed says why"))
    }
}

/// Ends the command and what it started.
fn end(child: &mut Child) {
    let group = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(group) = group
        && let Err(error) = rustix::process::kill_process_group(group, rustix::process::Signal::KILL)
    {
        tracing::warn!(%error, "the change command could not be ended");
    }
    if let Err(error) = child.wait() {
        tracing::warn!(%error, "the change command could not be waited for");
    }
}

/// A person at the terminal, whatever the standard streams are.
#[derive(Debug)]
pub struct PromptChanger {
    terminal: File,
}

impl PromptChanger {
    /// The terminal of this process, where it has one.
    pub fn new() -> Option<Self> {
        let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty").ok()?;
        Some(Self { terminal })
    }

    fn line(&mut self, stop: &Cancel) -> Result<()> {
        let reading = || "cannot read from the terminal".to_owned();
        let mut byte = [0];
        loop {
            if stop.load(Ordering::Relaxed) {
                return Err(interrupted());
            }
            let mut ready = [PollFd::new(self.terminal.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, POLL_MS) {
                Ok(0) | Err(nix::Error::EINTR) => continue,
                done => done.at(reading)?,
            };
            match self.terminal.read(&mut byte).at(reading)? {
                0 => return Err(interrupted()),
                _ if byte == *b"\n" => return Ok(()),
                _ => {}
            }
        }
    }
}

impl Changer for PromptChanger {
    fn change(&mut self, change: &VolumeRequest<'_>, stop: &Cancel) -> Result<()> {
        let refused = change.refused.map(|why| format!("Can't continue: {why}.\n")).unwrap_or_default();
        let old = change.old.map(|old| format!(" Volume '{old}' is done with.")).unwrap_or_default();
        let (number, device, what) = (change.number, change.device, wanted(change));
        let text =
            format!("\n{refused}Volume {number}:{old} Please put {what} into {device}, and press Enter. ");
        self.terminal.write_all(text.as_bytes()).at(|| "cannot write to the terminal".to_owned())?;
        self.line(stop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGE: VolumeRequest<'static> = VolumeRequest {
        device: "/dev/nst0",
        number: 2,
        old: Some("A"),
        wanted: None,
        pool: "p",
        refused: None,
    };

    fn command(line: &str, limit: Duration) -> Result<()> {
        CommandChanger::new(line, limit)?.change(&CHANGE, &Cancel::default())
    }

    #[test]
    fn a_command_gets_its_arguments_and_its_exit_code_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("change");
        let told = directory.path().join("told");
        std::fs::write(&path, format!("echo \"$@\" > {}; exit $2", told.display())).unwrap();
        let line = |rest: &str| format!("sh {} {rest}", path.display());
        command(&line("%d 0 %n %o %w %p%%"), Duration::from_secs(20)).unwrap();
        assert_eq!(std::fs::read_to_string(&told).unwrap(), "/dev/nst0 0 2 A - p%\n");
        let error = command(&line("x 7"), Duration::from_secs(20)).unwrap_err();
        assert!(error.to_string().contains("exit code 7"), "{error}");
        assert_eq!(
            command("/nowhere/at/all", Duration::from_secs(1)).unwrap_err().kind(),
            ErrorKind::NotFound
        );
    }

    #[test]
    fn it_has_its_time_and_is_ended() {
        let error = command("sleep 1000", Duration::from_millis(100)).unwrap_err();
        assert!(error.to_string().contains("timed out"), "{error}");
        let stop = Cancel::default();
        stop.store(true, Ordering::Relaxed);
        let mut changer = CommandChanger::new("sleep 1000", Duration::from_secs(100)).unwrap();
        assert_eq!(changer.change(&CHANGE, &stop).unwrap_err().kind(), ErrorKind::Interrupted);
        let refused = VolumeRequest { refused: Some("it is blank"), ..CHANGE };
        assert!(changer.change(&refused, &Cancel::default()).unwrap_err().to_string().contains("blank"));
    }

    #[test]
    fn a_command_that_makes_no_sense_is_said_before_anything_is_written() {
        for line in ["", "  ", "x %z", "x %"] {
            assert_eq!(command(line, Duration::ZERO).unwrap_err().kind(), ErrorKind::Usage, "{line}");
        }
        assert_eq!(NoChanger.change(&CHANGE, &Cancel::default()).unwrap_err().kind(), ErrorKind::NoSpace);
        let wanted = VolumeRequest { wanted: Some("B"), ..CHANGE };
        assert_eq!(NoChanger.change(&wanted, &Cancel::default()).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
