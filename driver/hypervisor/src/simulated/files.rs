//! The simulated host's files.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::state::SimHost;
use super::{CallPhase, HypervisorError, Operation, Simulated, code, refused};
use crate::host_files::{HostFiles, ImageStamp, ImageUse, OfflineCommit};
use crate::is_our_overlay;
use crate::types::DomainId;
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::openers::OpenFiles;

/// How far files' times are apart from one call to the next. They never are whole seconds, as those of a
/// coarse file system.
const TICK: Duration = Duration::from_micros(20_001);

/// A hold on an image; see [`HostFiles::hold`].
#[derive(Debug)]
struct SimImageLock {
    world: Simulated,
    path: PathBuf,
}

impl Drop for SimImageLock {
    fn drop(&mut self) {
        if let Some(count) = self.world.lock().world.held.get_mut(&self.path) {
            *count = count.saturating_sub(1);
        }
    }
}

impl SimHost {
    fn use_of(&self, path: &Path) -> ImageUse {
        if !self.images.contains_key(path) {
            return ImageUse::Absent;
        }
        if self.elsewhere.contains(path) {
            return ImageUse::Written;
        }
        let mut found = ImageUse::Free;
        for qemu in self.domains.values().filter_map(|d| d.qemu.as_ref()) {
            let bases = qemu.jobs.values().map(|j| &j.base);
            let written = qemu.tops.iter().chain(bases).chain(&qemu.unused).any(|p| p == path);
            if written {
                return ImageUse::Written;
            }
            if qemu.tops.iter().any(|top| self.chain(top).iter().any(|p| p == path)) {
                found = ImageUse::Read;
            }
        }
        let below = |top: &PathBuf| self.chain(top).iter().any(|p| p == path);
        let held = self.held.get(path).is_some_and(|n| *n > 0);
        if held || self.elsewhere.iter().any(below) { ImageUse::Read } else { found }
    }

    /// As the real ones: what is in use is refused before anything is done.
    fn free_file(&self, path: &Path) -> std::result::Result<(), HypervisorError> {
        match self.use_of(path) {
            ImageUse::Free => Ok(()),
            ImageUse::Absent => Err(refused(code::SYSTEM, "No such file or directory")),
            _ => Err(refused(code::BLOCK_COPY_ACTIVE, "the image is in use by a virtual machine")),
        }
    }
}

impl HostFiles for Simulated {
    fn image_use(&self, path: &Path) -> Result<ImageUse> {
        self.call(Operation::Look, |turn| Ok(turn.world.use_of(path)))
    }

    fn open_files(&self) -> Result<OpenFiles> {
        let tops: Vec<(DomainId, Vec<PathBuf>)> = self.call(Operation::Look, |turn| {
            let running = turn.world.domains.iter().filter(|_| turn.world.qemus_are_seen);
            Ok(running.filter_map(|(id, d)| Some((*id, d.qemu.as_ref()?.tops.clone()))).collect())
        })?;
        let mut seen = OpenFiles::default();
        for (id, tops) in tops {
            // Images that are in memory alone have no identity, and nobody else has them open.
            let files: Vec<_> = tops.iter().filter_map(|top| std::fs::File::open(top).ok()).collect();
            seen.note(id.0, &files)?;
        }
        Ok(seen)
    }

    fn hold(&self, path: &Path) -> Result<Box<dyn Debug + Send + Sync>> {
        let usage = self.call(Operation::Hold, |turn| {
            let usage = turn.world.use_of(path);
            if matches!(usage, ImageUse::Free | ImageUse::Read) {
                *turn.world.held.entry(path.to_owned()).or_default() += 1;
            }
            Ok(usage)
        })?;
        match usage {
            ImageUse::Absent => {
                Err(Error::new(ErrorKind::NotFound, format!("cannot open '{}'", path.display())))
            }
            ImageUse::Written => {
                let message = format!("'{}' is in use by a virtual machine", path.display());
                Err(Error::new(ErrorKind::InUse, message))
            }
            ImageUse::Free | ImageUse::Read => {
                Ok(Box::new(SimImageLock { world: self.clone(), path: path.to_owned() }))
            }
        }
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.call(Operation::Remove, |turn| {
            turn.world.free_file(path)?;
            turn.world.images.remove(path);
            Ok(())
        })
    }

    fn quarantine(&self, path: &Path) -> Result<PathBuf> {
        let mut name = path.as_os_str().to_os_string();
        name.push(".quarantined");
        let to = PathBuf::from(name);
        self.call(Operation::Quarantine, |turn| {
            turn.world.free_file(path)?;
            if let Some(image) = turn.world.images.remove(path) {
                turn.world.images.insert(to.clone(), image);
            }
            Ok(())
        })?;
        Ok(to)
    }

    fn mark(&self, path: &Path) -> Result<Option<ImageStamp>> {
        self.call(Operation::Look, |turn| {
            let touched = turn.world.touched.get(path).copied().unwrap_or(0);
            let modified = TICK * u32::try_from(touched).unwrap_or(u32::MAX);
            let image = turn.world.images.get(path);
            Ok(image.map(|i| ImageStamp { modified, size: i.writes.len() as u64 * 4096 }))
        })
    }

    fn identity(&self, path: &Path) -> Result<Option<(u64, u64)>> {
        let world = &self.lock().world;
        Ok(world.inodes.get(path).filter(|_| world.images.contains_key(path)).map(|inode| (1, *inode)))
    }

    fn now(&self) -> Duration {
        TICK * u32::try_from(self.lock().world.clock).unwrap_or(u32::MAX)
    }

    fn has_snapshots(&self, path: &Path) -> Result<bool> {
        Ok(self.lock().world.inner.contains(path))
    }

    fn offline_commit(&self, commit: &OfflineCommit<'_>) -> Result<()> {
        let (overlay, base) = (commit.overlay, commit.base);
        self.call(Operation::CommitFile, |turn| {
            turn.world.free_file(overlay)?;
            turn.world.free_file(base)?;
            let image = turn.world.images.get(overlay).cloned().unwrap_or_default();
            if image.backing.as_deref() != Some(base) {
                return Err(refused(code::INVALID_ARG, "the base is not the image below"));
            }
            if turn.world.is_full(base) && !image.writes.is_empty() {
                return Err(refused(code::SYSTEM, "No space left on device"));
            }
            turn.world.note_commit(overlay, base);
            let (first, rest) = image.writes.iter().partition::<Vec<u64>, _>(|write| **write % 2 == 0);
            first.iter().for_each(|write| turn.world.write(base, *write));
            if !turn.reaches(CallPhase::Half) {
                rest.iter().for_each(|write| turn.world.write(base, *write));
            }
            Ok(())
        })
    }

    fn is_empty(&self, overlay: &Path) -> Result<bool> {
        let missing = || refused(code::SYSTEM, "No such file or directory");
        self.call(Operation::Look, |turn| {
            turn.world.images.get(overlay).map(|i| i.writes.is_empty()).ok_or_else(missing)
        })
    }

    fn same(&self, overlay: &Path, base: &Path, _: &str) -> Result<bool> {
        self.call(Operation::Look, |turn| {
            turn.world.free_file(overlay)?;
            turn.world.free_file(base)?;
            Ok(turn.world.view(overlay) == turn.world.view(base))
        })
    }

    fn below(&self, path: &Path) -> Result<Vec<PathBuf>> {
        self.call(Operation::Look, |turn| Ok(turn.world.chain(path).into_iter().skip(1).collect()))
    }

    fn overlays(&self, directory: &Path) -> Result<Vec<PathBuf>> {
        if self.lock().world.missing.contains(directory) {
            return Err(Error::new(ErrorKind::NotFound, format!("cannot read '{}'", directory.display())));
        }
        self.call(Operation::Look, |turn| {
            let in_it = |p: &&PathBuf| p.parent() == Some(directory) && is_our_overlay(p);
            Ok(turn.world.images.keys().filter(in_it).cloned().collect())
        })
    }

    fn allocated(&self, path: &Path) -> Result<u64> {
        let missing = || refused(code::SYSTEM, "No such file or directory");
        self.call(Operation::Look, |turn| {
            turn.world.images.get(path).map(|i| i.writes.len() as u64 * 4096).ok_or_else(missing)
        })
    }

    fn free(&self, directory: &Path) -> Result<u64> {
        self.call(Operation::Look, |turn| {
            Ok(if turn.world.full.contains(directory) { 0 } else { turn.world.free })
        })
    }
}
