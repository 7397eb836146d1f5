//! The media of a backup, each in a process of its own (`cli/medium.rs`).

use std::ffi::OsString;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use virtfold_archive::stream::Cancel;
use virtfold_backup::session::BackupReport;
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_medium::mount_point::MountPoint;
use virtfold_medium::process::{
    self, MediumProcess, MediumRequest, ProbeReply, ProcessDestination, TerminatingProcesses,
};
use virtfold_medium::tape::TapeReport;
use virtfold_medium::{
    self as medium, ArchiveLabel, Location, Medium, MediumOutcomes, PartialArchive, Resumed,
};

use super::options::{WriteArgs, device_only};
use crate::domain::connection::StateFlag;
use crate::medium::{part, program};
use crate::mounted::Expected;

/// Where a backup goes.
#[derive(Debug)]
pub(crate) struct Destinations {
    places: Vec<Location>,
    /// What the processes are told beside the place.
    arguments: Vec<OsString>,
    /// What each of them has to see at its place.
    expected: Vec<Option<Expected>>,
    cancel: Cancel,
    copies: MediumOutcomes,
    /// Filled in when the tapes are finished.
    reports: Mutex<Vec<Arc<Mutex<TapeReport>>>>,
    leaving: TerminatingProcesses,
}

impl Destinations {
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
        let mut arguments = Vec::new();
        for place in places {
            let Location::Tape(address) = place else { continue };
            device_only(address)?;
            arguments = tapes.arguments();
            arguments.extend(StateFlag::argument(&state_dir()?));
        }
        Ok(Self {
            places: places.to_vec(),
            arguments,
            expected: Vec::new(),
            cancel: Arc::clone(cancel),
            copies: MediumOutcomes::default(),
            reports: Mutex::default(),
            leaving: TerminatingProcesses::default(),
        })
    }

    /// Where it goes.
    pub(crate) fn places(&self) -> &[Location] {
        &self.places
    }

    /// From here on each place has to be on what was seen there.
    pub(crate) fn stand_on(&mut self, expected: Vec<Option<Expected>>) {
        self.expected = expected;
    }

    /// What a directory is on; `None` where it is not there.
    ///
    /// # Errors
    /// It can't be looked at; the medium does not answer.
    pub(crate) fn mount(&self, place: &Location) -> Result<Option<MountPoint>> {
        match process::ask(self.process(place, &self.cancel), &MediumRequest::Mount)? {
            ProbeReply::Mount(mount) => Ok(mount),
            other => Err(strange(&other)),
        }
    }

    /// What the catalog calls a place.
    ///
    /// # Errors
    /// It can't be looked at, or is no name for the catalog; the medium does not answer.
    pub(crate) fn name(&self, place: &Location) -> Result<String> {
        match process::ask(self.process(place, &self.cancel), &MediumRequest::Name)? {
            ProbeReply::Name(name) => Ok(name),
            other => Err(strange(&other)),
        }
    }

    /// The device numbers of the file systems that it goes to. One that is not there is an error of its own, later.
    ///
    /// # Errors
    /// A medium does not answer.
    pub(crate) fn devices(&self) -> Result<Vec<u64>> {
        let mut devices = Vec::new();
        for place in self.places.iter().filter(|place| place.path().is_some()) {
            if let ProbeReply::Device(found) =
                process::ask(self.process(place, &self.cancel), &MediumRequest::Look)?
            {
                devices.extend(found);
            }
        }
        Ok(devices)
    }

    /// Opens them for an archive. What they wait for ends with `cancel`: a guest whose overlays run out of room can't wait for the next tape.
    ///
    /// # Errors
    /// Those of [`medium::create_all_by`].
    pub(crate) fn open(&self, label: &ArchiveLabel, cancel: &Cancel) -> Result<Box<dyn Medium>> {
        medium::create_all_by(&self.places, &self.copies, |place| {
            let request = MediumRequest::Create(label.clone());
            let medium = MediumProcess::create(self.process(place, cancel), &request)?;
            self.note(medium.report());
            Ok(Box::new(medium))
        })
    }

    /// Goes on with what a dead process has left of an archive at the only place.
    ///
    /// # Errors
    /// Those of [`MediumProcess::reopen`].
    pub(crate) fn reopen(
        &self,
        place: &Location,
        label: &ArchiveLabel,
        cancel: &Cancel,
        remains: &PartialArchive,
    ) -> Result<Resumed> {
        let request = MediumRequest::Reopen(label.clone(), remains.clone());
        let (reopened, report) = MediumProcess::reopen(self.process(place, cancel), &request)?;
        self.note(report);
        Ok(reopened)
    }

    /// Has another process read what a dead one has left at the only place.
    ///
    /// # Errors
    /// Those of [`process::read_back`].
    pub(crate) fn read_back(
        &self,
        place: &Location,
        cancel: &Cancel,
        remains: &PartialArchive,
    ) -> Result<Option<Box<dyn Read>>> {
        process::read_back(self.process(place, cancel), remains)
    }

    fn note(&self, report: Arc<Mutex<TapeReport>>) {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).push(report);
    }

    fn process<'a>(&'a self, location: &'a Location, cancel: &'a Cancel) -> ProcessDestination<'a> {
        let mut command = program(location, &self.arguments);
        let all = self.places.iter().zip(&self.expected);
        let expected =
            all.filter(|(place, _)| *place == location).find_map(|(_, expected)| expected.as_ref());
        command.args(expected.map(Expected::arguments).unwrap_or_default());
        ProcessDestination { command, location, cancel, leaving: &self.leaving }
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

fn strange(known: &ProbeReply) -> Error {
    Error::new(ErrorKind::Internal, format!("the process of a medium answers {known:?}"))
}

impl Drop for Destinations {
    /// Only now, with the guest on its disks and all said, what is still at work on a medium is waited for.
    fn drop(&mut self) {
        part(&self.leaving);
    }
}
