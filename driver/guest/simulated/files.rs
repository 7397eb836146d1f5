//! The simulated host's files.

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use super::{Fault, Operation, Simulated, code, refused};
use crate::error::{Error, ErrorKind, Result};
use crate::guest::host::{HostFiles, ImageUse};

/// A hold on an image; see [`HostFiles::hold`].
#[derive(Debug)]
struct Hold {
    world: Simulated,
    path: PathBuf,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(count) = self.world.lock().world.held.get_mut(&self.path) {
            *count = count.saturating_sub(1);
        }
    }
}

impl Simulated {
    fn use_of(&self, path: &Path) -> ImageUse {
        let state = self.lock();
        if !state.world.images.contains_key(path) {
            return ImageUse::Absent;
        }
        let qemus = state.world.domains.values().filter_map(|d| d.qemu.as_ref());
        let mut found = ImageUse::Free;
        for qemu in qemus {
            let written = qemu.tops.iter().chain(qemu.jobs.values().map(|j| &j.base)).any(|p| p == path);
            if written {
                return ImageUse::Written;
            }
            if qemu.tops.iter().any(|top| state.world.chain(top).iter().any(|p| p == path)) {
                found = ImageUse::Read;
            }
        }
        if state.world.held.get(path).is_some_and(|n| *n > 0) { ImageUse::Read } else { found }
    }
}

impl HostFiles for Simulated {
    fn image_use(&self, path: &Path) -> Result<ImageUse> {
        self.call(Operation::Read, |_| Ok(()))?;
        Ok(self.use_of(path))
    }

    fn hold(&self, path: &Path) -> Result<Box<dyn Debug + Send + Sync>> {
        self.call(Operation::Read, |_| Ok(()))?;
        match self.use_of(path) {
            ImageUse::Absent => {
                Err(Error::new(ErrorKind::NotFound, format!("cannot open '{}'", path.display())))
            }
            ImageUse::Written => Err(in_use(path)),
            ImageUse::Free | ImageUse::Read => {
                *self.lock().world.held.entry(path.to_owned()).or_default() += 1;
                Ok(Box::new(Hold { world: self.clone(), path: path.to_owned() }))
            }
        }
    }

    fn remove(&self, path: &Path) -> Result<()> {
        // As the real one: what is in use is refused before anything is done.
        if self.use_of(path) != ImageUse::Free && !self.is_dead() {
            return Err(in_use(path));
        }
        let missing = || -> Fault { refused(code::SYSTEM, "No such file or directory") };
        self.call(Operation::Remove, |turn| turn.world.images.remove(path).map(drop).ok_or_else(missing))
    }

    fn allocated(&self, path: &Path) -> Result<u64> {
        let missing = || refused(code::SYSTEM, "No such file or directory");
        self.call(Operation::Read, |turn| {
            turn.world.images.get(path).map(|i| i.writes.len() as u64 * 4096).ok_or_else(missing)
        })
    }

    fn free(&self, _directory: &Path) -> Result<u64> {
        self.call(Operation::Read, |turn| Ok(turn.world.free))
    }
}

fn in_use(path: &Path) -> Error {
    Error::new(ErrorKind::InUse, format!("'{}' is in use by a virtual machine", path.display()))
}
