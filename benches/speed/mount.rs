//! Loop devices and mounts that are gone when they are no longer needed.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::data::{text, tool};

/// A mounted file system over a loop device.
pub(crate) struct Mount {
    at: PathBuf,
    device: String,
}

impl Mount {
    /// Whether this program may mount.
    pub(crate) fn allowed() -> bool {
        nix::unistd::geteuid().is_root()
    }

    /// Mounts the file system in `file`.
    pub(crate) fn of(at: &Path, file: &Path, how: &str) -> Self {
        std::fs::create_dir_all(at).unwrap();
        // Past the page cache of the file below, as a guest's disk is: else all of it would be in memory
        // twice.
        let device = tool(&["losetup", "--find", "--show", "--direct-io=on", &text(file)]).trim().to_owned();
        let mount = Self { at: at.to_owned(), device };
        tool(&["mount", "-o", how, &mount.device, &text(at)]);
        mount
    }

    /// A new file system in the new file `file` of `size` bytes.
    pub(crate) fn made(at: &Path, file: &Path, size: u64, mkfs: &[&str]) -> Self {
        File::create(file).unwrap().set_len(size).unwrap();
        tool(&[mkfs, &[&text(file)]].concat());
        Self::of(at, file, "rw")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        for command in [["umount", &text(&self.at)], ["losetup", "--detach"]] {
            let mut words = command.to_vec();
            if command[0] == "losetup" {
                words.push(&self.device);
            }
            match std::process::Command::new(words[0]).args(&words[1..]).status() {
                Ok(status) if status.success() => {}
                _ => eprintln!("left behind: {} at {}", self.device, self.at.display()),
            }
        }
    }
}
