//! The media of a backup: tapes by their drives, everything else by its place.

use std::sync::{Arc, Mutex, PoisonError};

use virtfold::archive::stream::Cancel;
use virtfold::error::{Error, Result};
use virtfold::job::backup::BackupReport;
use virtfold::job::tape::TapeUse;
use virtfold::medium::tape::TapeReport;
use virtfold::medium::{self, Copies, Label, Location, Medium, Remains, Reopened};

use super::options::WriteArgs;

/// Where a backup goes.
#[derive(Debug)]
pub(crate) struct Media {
    places: Vec<Location>,
    tapes: Vec<(Location, TapeUse)>,
    copies: Copies,
    /// Filled in when the tapes are finished.
    reports: Mutex<Vec<Arc<Mutex<TapeReport>>>>,
}

impl Media {
    /// Takes the places; the catalog of tapes is in `state_dir`.
    ///
    /// # Errors
    /// One of them is an archive on a tape; there is no state directory, and it is needed.
    pub(crate) fn new(
        places: &[Location],
        tapes: &WriteArgs,
        state_dir: impl Fn() -> std::result::Result<std::path::PathBuf, Error>,
        cancel: &Cancel,
    ) -> Result<Self> {
        let drives = places.iter().filter_map(|place| match place {
            Location::Tape(address) => {
                let drive = state_dir().and_then(|state| tapes.drive(address, state, cancel));
                Some(drive.map(|drive| (place.clone(), drive)))
            }
            _ => None,
        });
        Ok(Self {
            places: places.to_vec(),
            tapes: drives.collect::<Result<_>>()?,
            copies: Copies::default(),
            reports: Mutex::default(),
        })
    }

    /// Where it goes.
    pub(crate) fn places(&self) -> &[Location] {
        &self.places
    }

    /// Opens them for an archive. What they wait for ends with `cancel`: a guest whose overlays run out of room can't wait for the next tape.
    ///
    /// # Errors
    /// Those of [`medium::create_all_by`].
    pub(crate) fn open(&self, label: &Label, cancel: &Cancel) -> Result<Box<dyn Medium>> {
        medium::create_all_by(&self.places, &self.copies, |place| {
            let Some((_, drive)) = self.tapes.iter().find(|(tape, _)| tape == place) else {
                return medium::create(place, label, cancel);
            };
            let medium = drive.begin(&label.name, cancel)?;
            self.reports.lock().unwrap_or_else(PoisonError::into_inner).push(medium.report());
            Ok(Box::new(medium))
        })
    }

    /// Goes on with what a dead process has left of an archive at the only place.
    ///
    /// # Errors
    /// Those of [`medium::reopen`] and [`TapeUse::go_on_with`].
    pub(crate) fn reopen(
        &self,
        place: &Location,
        label: &Label,
        cancel: &Cancel,
        remains: &Remains,
    ) -> Result<Reopened> {
        let Some((_, drive)) = self.tapes.iter().find(|(tape, _)| tape == place) else {
            return medium::reopen(place, label, cancel, remains);
        };
        Ok(match drive.go_on_with(&label.name, cancel)? {
            Ok((medium, at)) => {
                self.reports.lock().unwrap_or_else(PoisonError::into_inner).push(medium.report());
                Reopened::At(Box::new(medium), at)
            }
            Err(why) => Reopened::Gone(why),
        })
    }

    /// A report with what became of the copies and of the tapes.
    pub(crate) fn complete(&self, report: BackupReport) -> BackupReport {
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        let tapes = reports.iter().map(|one| one.lock().unwrap_or_else(PoisonError::into_inner).clone());
        // A tape that failed has no report; that it failed is among the copies.
        let tapes = tapes.filter(|tape| !tape.volumes.is_empty()).collect();
        BackupReport { tapes, ..report.with(&self.copies) }
    }
}
