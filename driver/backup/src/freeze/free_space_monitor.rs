//! Watches the host while a copy runs: when room gets short around an overlay the backup is aborted for lack
//! of free space, because a full disk stops guests.
//!
//! The copy has a cancel flag of its own. The watch sets it when the person's is set, and when room gets
//! short; the latter is remembered, so that both can be told apart.
//!
//! Imports: `error`, `hypervisor` (host files).

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use crate::Control;
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_hypervisor::host_files::HostFiles;

/// How often the person's flag is looked at.
const FLAG: Duration = Duration::from_millis(50);

/// What is watched.
#[derive(Debug)]
pub(super) struct FreeSpaceMonitor<'a> {
    pub(super) files: &'a dyn HostFiles,
    /// Directories of the overlays.
    pub(super) directories: Vec<PathBuf>,
    /// Bytes that have to stay free in each.
    pub(super) min_free: u64,
    /// Time between two looks.
    pub(super) every: Duration,
}

impl FreeSpaceMonitor<'_> {
    /// Runs `work` under watch. Its own error comes first, unless it was cancelled for want of room.
    pub(super) fn over<T>(&self, control: &Control, work: impl FnOnce(&Control) -> Result<T>) -> Result<T> {
        let cancel = Arc::new(AtomicBool::new(control.cancel.load(Ordering::Relaxed)));
        let inner = Control { cancel: Arc::clone(&cancel), progress: Arc::clone(&control.progress) };
        let short = Mutex::new(None);
        let (stop, stopped) = bounded::<()>(0);
        let result = std::thread::scope(|scope| {
            let watch = || self.run(control, &cancel, &stopped, &short);
            let watching = std::thread::Builder::new().name("room".to_owned()).spawn_scoped(scope, watch);
            watching.at(|| "cannot start a thread".to_owned())?;
            let result = work(&inner);
            drop(stop);
            result
        });
        match short.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) if result.is_err() => Err(error),
            _ => result,
        }
    }

    fn run(
        &self,
        control: &Control,
        cancel: &AtomicBool,
        stopped: &Receiver<()>,
        short: &Mutex<Option<Error>>,
    ) {
        let mut next = Instant::now().checked_add(self.every);
        loop {
            match stopped.recv_timeout(FLAG) {
                Err(RecvTimeoutError::Timeout) => {}
                _ => return,
            }
            if control.cancel.load(Ordering::Relaxed) {
                cancel.store(true, Ordering::Relaxed);
            }
            if next.is_some_and(|at| Instant::now() < at) {
                continue;
            }
            next = Instant::now().checked_add(self.every);
            if let Some(error) = self.look() {
                tracing::warn!(?error, "the backup is aborted for lack of free space");
                *short.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                cancel.store(true, Ordering::Relaxed);
                return;
            }
        }
    }

    fn look(&self) -> Option<Error> {
        for directory in &self.directories {
            match self.files.free(directory) {
                Ok(free) if free < self.min_free => {
                    let message = format!(
                        "the backup was aborted: only {} MiB were free in '{}', and a guest stops when its overlay can't grow",
                        free >> 20,
                        directory.display()
                    );
                    let hint =
                        "free space there, or move the overlays with --overlay-dir, or lower --min-free";
                    return Some(Error::new(ErrorKind::NoSpace, message).with_hint(hint));
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(?error, "the free space for the overlay can't be determined"),
            }
        }
        None
    }
}
