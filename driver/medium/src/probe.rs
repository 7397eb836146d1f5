//! Whether a medium can be used, tried before anything depends on it. Nothing is left there, and no tape is
//! moved.

use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use super::{Location, object};
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::partial_file::{self, Overwrite, PartialFile};
use virtfold_base::units::Human;

/// The name of the file that is begun, and taken away.
const TRIAL: &str = "virtfold-check";

/// Tries a medium; says in words how it stands. `host` is this host's name, as its archives have it.
///
/// # Errors
/// It can't be used, and why.
pub fn probe(location: &Location, host: &str) -> Result<String> {
    match location {
        Location::Path(directory) => try_directory(directory),
        Location::Object(place) => {
            let found = object::list(&object::host_folder(place, host))?;
            let whole = found.iter().filter(|listed| !listed.is_partial).count();
            Ok(format!(
                "it answers, and has {whole} archives of this host; whether it takes one only a backup shows"
            ))
        }
        Location::Tape(address) => try_drive(&address.device),
        Location::Pipe => Err(Error::new(ErrorKind::Usage, "a pipe can't be a medium of a job")),
    }
}

fn try_directory(directory: &Path) -> Result<String> {
    partial_file::expect_directory(directory)?;
    // Dropped, it takes its file away.
    drop(PartialFile::create(&directory.join(TRIAL), Overwrite::Replace)?);
    let room = rustix::fs::statvfs(directory);
    let room = room.at(|| format!("cannot look at the file system of '{}'", directory.display()))?;
    let free = Human(room.f_bavail.saturating_mul(room.f_frsize));
    Ok(format!("it can be written, and has {free} free"))
}

/// A drive is opened without waiting for a tape; somebody who is at work with it has it for himself.
fn try_drive(device: &Path) -> Result<String> {
    let shown = device.display();
    let found = std::fs::metadata(device).at(|| format!("there is no drive '{shown}'"))?;
    if !found.file_type().is_char_device() {
        return Err(Error::new(ErrorKind::Usage, format!("'{shown}' is not a tape drive")));
    }
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    match std::fs::OpenOptions::new().read(true).custom_flags(flags).open(device) {
        Ok(_) => Ok("the drive is there; 'virtfold tape status' says what is in it".to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
            Ok("the drive is there, and somebody uses it now".to_owned())
        }
        Err(error) => Err(Error::io(format!("cannot open the drive '{shown}'"), error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_tried_and_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let said = probe(&Location::from(folder.path()), "h").unwrap();
        assert!(said.starts_with("it can be written, and has "), "{said}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        for path in [file.clone(), file.join("below")] {
            let error = probe(&Location::from(path.as_path()), "h").unwrap_err();
            assert!(error.to_string().contains("is a file, not a directory"), "{error}");
        }
        let error = probe(&Location::from(folder.path().join("nowhere").as_path()), "h").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let drive = |device: &str| probe(&format!("tape:{device}").parse().unwrap(), "h");
        assert_eq!(drive("/dev/no-such-nst").unwrap_err().kind(), ErrorKind::NotFound);
        let no_drive = folder.path().join("nst0");
        std::fs::write(&no_drive, "x").unwrap();
        assert!(drive(no_drive.to_str().unwrap()).unwrap_err().to_string().contains("not a tape drive"));
    }
}
