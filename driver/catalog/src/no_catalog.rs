//! The journal of a state directory that has no catalog yet, for who only looks: nothing is open in it, and
//! nothing is made.

use std::path::Path;

use uuid::Uuid;

use super::{DomainLock, FreezeSession, Journal, JournalEntry};
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_hypervisor::DomainId;

/// No catalog.
#[derive(Clone, Copy, Debug)]
pub struct NoCatalog;

impl NoCatalog {
    /// Whether a state directory has no catalog. One that can't be looked at may have one.
    pub fn is_missing(state: &Path) -> bool {
        let found = state.join("catalog.sqlite").symlink_metadata();
        found.is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
    }
}

impl DomainLock for NoCatalog {}

impl Journal for NoCatalog {
    fn lock(&self, _domain: DomainId) -> Result<Box<dyn DomainLock>> {
        Ok(Box::new(NoCatalog))
    }

    fn begin(&self, _job: &FreezeSession) -> Result<()> {
        Err(none())
    }

    fn record(&self, _job: Uuid, _changes: &[JournalEntry]) -> Result<()> {
        Err(none())
    }

    fn open_sessions(&self, _domain: Option<DomainId>) -> Result<Vec<FreezeSession>> {
        Ok(Vec::new())
    }
}

fn none() -> Error {
    Error::new(ErrorKind::Internal, "there is no catalog")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Catalog;

    #[test]
    fn a_look_makes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        assert!(NoCatalog::is_missing(&state));
        assert_eq!(NoCatalog.open_sessions(None).unwrap(), []);
        drop(NoCatalog.lock(DomainId(Uuid::nil())).unwrap());
        NoCatalog.record(Uuid::nil(), &[]).unwrap_err();
        assert!(!state.exists());
        Catalog::open(&state).unwrap();
        assert!(!NoCatalog::is_missing(&state));
    }
}
