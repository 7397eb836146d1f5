//! Where archives go: [`Destinations`] creates, resumes, lists, removes and queries on every medium, be it a
//! file, a pipe, an object or a tape.
//!
//! Who touches a medium is a [`MediumAccess`]: this process ([`LocalMedia`]), or a process for each medium
//! ([`MediumProcesses`]), which does what `LocalMedia` does and can be abandoned where its medium hangs. A
//! new kind of medium is an arm in `local`; who brings a medium of its own gives it to
//! [`Destinations::custom`].
//!
//! Invariants: what a directory has to be mounted on ([`ExpectedMount`]) is checked by the process that
//! touches it, right before it does. The archive is the same on every destination.
//!
//! Imports: `error`, `catalog`, `medium`, and of this crate `inspect`, `mount_check`, `tape`; `session`,
//! `domain` and `resume` import it.

mod local;
mod processes;

use std::cell::RefCell;
use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use virtfold_archive::stream::Cancel;
use virtfold_base::error::{Error, ErrorKind, Result, WireError};
use virtfold_catalog::{Catalog, destination_name};
use virtfold_medium::mount_point::MountPoint;
use virtfold_medium::process::{MediumReply, MediumRequest, ProbeReply, StoredArchive};
use virtfold_medium::{ArchiveLabel, FanOut, Location, Medium, PartialArchive, Resumed};

pub use self::local::LocalMedia;
pub use self::processes::MediumProcesses;
use crate::inspect::{ArchiveSummary, ListedArchive};
use crate::mount_check::{CheckedDirectory, MountRequirement, still};

/// Archives that one process removes: a request has an end.
const REMOVED_AT_ONCE: usize = 32;

/// A destination, as who touches it needs it.
#[derive(Clone, Copy, Debug)]
pub struct Destination<'a> {
    /// Where it is.
    pub location: &'a Location,
    /// What a directory has to be mounted on.
    pub mount: Option<&'a ExpectedMount>,
    /// Ends what is waited for.
    pub cancel: &'a Cancel,
}

/// Who touches media.
pub trait MediumAccess {
    /// Does what is requested.
    ///
    /// # Errors
    /// The medium's; it does not answer.
    fn open(&self, to: Destination<'_>, request: MediumRequest) -> Result<MediumReply>;
}

/// The file system that a directory was on when the backup began. It may be gone since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedMount {
    /// Where it was mounted.
    pub mount_point: PathBuf,
    /// Which file system it was.
    pub file_system: Option<String>,
    /// What has to be there now.
    pub requirement: MountRequirement,
    /// What the configuration calls the directory.
    pub medium: Option<String>,
}

impl ExpectedMount {
    /// What was found mounted at a directory when it was checked.
    pub fn of(found: MountPoint, directory: &CheckedDirectory<'_>) -> Self {
        let requirement = match directory.mounted {
            // Whoever accepts any file system accepts another one later.
            MountRequirement::Required => MountRequirement::Required,
            _ => MountRequirement::SameAsFirstUse,
        };
        Self {
            mount_point: found.point,
            file_system: found.file_system,
            requirement,
            medium: directory.medium.map(ToOwned::to_owned),
        }
    }

    /// Makes sure that it is there.
    ///
    /// # Errors
    /// Those of [`still`].
    pub fn check(&self, path: &Path) -> Result<()> {
        let directory = CheckedDirectory { path, medium: self.medium.as_deref(), mounted: self.requirement };
        let then = MountPoint { point: self.mount_point.clone(), file_system: self.file_system.clone() };
        still(&directory, &then)
    }

    /// The options that say it to the process of the medium.
    pub fn arguments(&self) -> Vec<OsString> {
        let values = [
            ("--mount-point=", Some(self.mount_point.as_os_str().to_owned())),
            ("--file-system=", self.file_system.as_ref().map(OsString::from)),
            ("--called=", self.medium.as_ref().map(OsString::from)),
        ];
        let mut arguments = Vec::new();
        for (name, value) in values.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            let mut argument = OsString::from(name);
            argument.push(value);
            arguments.push(argument);
        }
        let any = self.requirement == MountRequirement::Required;
        arguments.extend(any.then(|| "--any-file-system".into()));
        arguments
    }
}

/// Where an archive goes: one copy to each location, out of one read.
pub struct Destinations<'a> {
    locations: Vec<Location>,
    access: Box<dyn MediumAccess + 'a>,
    /// What each location has to be mounted on, in their order.
    mounts: Vec<Option<ExpectedMount>>,
    /// Ends the run, and with it what is asked before and after the copy.
    cancel: Cancel,
    /// Where the catalog is, which knows what other directories were mounted on.
    state_dir: Option<PathBuf>,
}

impl fmt::Debug for Destinations<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Destinations").field("locations", &self.locations).finish_non_exhaustive()
    }
}

impl<'a> Destinations<'a> {
    /// These locations, touched by `access`; `cancel` ends the run.
    pub fn new(locations: Vec<Location>, access: impl MediumAccess + 'a, cancel: &Cancel) -> Self {
        let mounts = vec![None; locations.len()];
        Self { locations, access: Box::new(access), mounts, cancel: Arc::clone(cancel), state_dir: None }
    }

    /// These locations, touched by this process; tapes without a catalog.
    pub fn local(locations: impl IntoIterator<Item = Location>) -> Self {
        Self::new(locations.into_iter().collect(), LocalMedia::default(), &Cancel::default())
    }

    /// A medium that the caller makes, once, for an archive that counts as being at `location`: what is left
    /// there of an earlier run is resumed by this process.
    pub fn custom<F>(location: Location, make: F) -> Self
    where
        F: FnOnce(&ArchiveLabel, &Cancel) -> Result<Box<dyn Medium>> + 'a,
    {
        let access = CustomMedium { make: RefCell::new(Some(make)), others: LocalMedia::default() };
        Self::new(vec![location], access, &Cancel::default())
    }

    /// Where the archive goes.
    pub fn locations(&self) -> &[Location] {
        &self.locations
    }

    /// From here on each location has to be mounted as it was seen, in their order.
    pub fn expect_mounts(&mut self, mounts: Vec<Option<ExpectedMount>>) {
        self.mounts = mounts;
    }

    /// From here on the catalog says what a directory beside these locations has to be mounted on.
    pub fn consult_catalog(&mut self, state_dir: &Path) {
        self.state_dir = Some(state_dir.to_owned());
    }

    /// What a directory is on; `None` where it is not there.
    ///
    /// # Errors
    /// It can't be queried; the medium does not answer.
    pub fn mount(&self, location: &Location) -> Result<Option<MountPoint>> {
        match self.ask(location, MediumRequest::Mount)? {
            ProbeReply::Mount(mount) => Ok(mount),
            _ => Err(unexpected(location)),
        }
    }

    /// What the catalog calls a destination.
    ///
    /// # Errors
    /// It can't be queried, or is an invalid name for the catalog; the medium does not answer.
    pub fn name(&self, location: &Location) -> Result<String> {
        // Only a directory's has to be looked up at the medium.
        if location.path().is_none() {
            return destination_name(location);
        }
        match self.ask(location, MediumRequest::Name)? {
            ProbeReply::Name(name) => Ok(name),
            _ => Err(unexpected(location)),
        }
    }

    /// The device numbers of the file systems that it goes to. A directory that is not there is an error
    /// later, where it is used.
    ///
    /// # Errors
    /// A medium does not answer.
    pub fn devices(&self) -> Result<Vec<u64>> {
        let mut devices = Vec::new();
        for location in self.locations.iter().filter(|location| location.path().is_some()) {
            if let ProbeReply::Device(found) = self.ask(location, MediumRequest::Look)? {
                devices.extend(found);
            }
        }
        Ok(devices)
    }

    /// Begins the archive at each location. What the media wait for ends with `cancel`: a guest whose
    /// overlays run out of space can't wait for the next tape.
    ///
    /// # Errors
    /// A location is named twice; none can be written to: with one location its medium's error.
    pub fn create(&self, label: &ArchiveLabel, cancel: &Cancel) -> Result<Box<dyn Medium>> {
        let make =
            |location: &Location| match self.open(location, MediumRequest::Create(label.clone()), cancel)? {
                MediumReply::New(medium) => Ok(medium),
                _ => Err(unexpected(location)),
            };
        if let [location] = self.locations.as_slice() {
            return make(location);
        }
        let mut all = self.locations.iter().enumerate();
        if let Some((_, twice)) =
            all.find(|(at, location)| self.locations.iter().take(*at).any(|l| l == *location))
        {
            let what = format!("the archive is to go to '{twice}' twice");
            return Err(Error::new(ErrorKind::Usage, what));
        }
        let media = self.locations.iter().map(|location| (location.clone(), make(location)));
        Ok(Box::new(FanOut::new(media)?))
    }

    /// The location, where it is one whose archive another process can resume.
    pub fn resumable(&self) -> Option<&Location> {
        match self.locations.as_slice() {
            [location] if *location != Location::Pipe => Some(location),
            _ => None,
        }
    }

    /// Resumes what a dead process has left of the archive `label`.
    ///
    /// # Errors
    /// The destination can't be queried now: what is there stays.
    pub fn resume(&self, label: &ArchiveLabel, cancel: &Cancel, left: &PartialArchive) -> Result<Resumed> {
        let location = self.resumable().ok_or_else(not_resumable)?;
        let request = MediumRequest::Reopen(label.clone(), left.clone());
        match self.open(location, request, cancel)? {
            MediumReply::Resumed(resumed) => Ok(resumed),
            _ => Err(unexpected(location)),
        }
    }

    /// What a dead process has left of a file, to read; nothing, where it is not there.
    ///
    /// # Errors
    /// The medium does not answer.
    pub fn read_back(&self, cancel: &Cancel, left: &PartialArchive) -> Result<Option<Box<dyn Read>>> {
        let location = self.resumable().ok_or_else(not_resumable)?;
        match self.open(location, MediumRequest::ReadBack(left.clone()), cancel)? {
            MediumReply::Left(input) => Ok(input),
            _ => Err(unexpected(location)),
        }
    }

    /// All archives at a location, finished or not, in the order of their names.
    ///
    /// # Errors
    /// It can't be read; the medium does not answer.
    pub fn list(&self, location: &Location) -> Result<Vec<ListedArchive>> {
        let mut all = Vec::new();
        self.items(location, MediumRequest::List, &mut |item| {
            all.push(item);
            Ok(())
        })?;
        Ok(all)
    }

    /// An archive of a location, as one look at it tells.
    ///
    /// # Errors
    /// It is not there or can't be read; the medium does not answer.
    pub fn glance(&self, location: &Location, archive: &Location) -> Result<ArchiveSummary> {
        let mut found = None;
        self.items(location, MediumRequest::Glance(archive.clone()), &mut |summary| {
            found = Some(summary);
            Ok(())
        })?;
        found.ok_or_else(|| unexpected(location))
    }

    /// Removes archives of a location, in their order. `done` gets what came of each.
    ///
    /// # Errors
    /// The medium does not answer: of those that `done` did not get nobody knows.
    pub fn remove(
        &self,
        location: &Location,
        archives: &[StoredArchive],
        done: &mut dyn FnMut(Result<()>),
    ) -> Result<()> {
        for some in archives.chunks(REMOVED_AT_ONCE) {
            let request = MediumRequest::Remove(some.to_vec());
            let mut answered = 0;
            self.items(location, request, &mut |failure: Option<WireError>| {
                done(failure.map_or(Ok(()), |failure| Err(failure.into())));
                answered += 1;
                Ok(())
            })?;
            if answered != some.len() {
                return Err(unexpected(location));
            }
        }
        Ok(())
    }

    /// Whether a location can be used, in words. `host` is what archives call this host.
    ///
    /// # Errors
    /// It can't be used; the medium does not answer.
    pub fn probe(&self, location: &Location, host: &str) -> Result<String> {
        match self.ask(location, MediumRequest::Probe(host.to_owned()))? {
            ProbeReply::Usable(how) => Ok(how),
            _ => Err(unexpected(location)),
        }
    }

    /// Removes what a dead process has left and nobody resumes, wherever that is. The next upload to a bucket
    /// removes the parts of uploads that nobody finished.
    ///
    /// # Errors
    /// The medium does not answer, or is not mounted: what is there stays.
    pub fn discard(&self, left: &PartialArchive) -> Result<()> {
        let Some((temporary, _)) = &left.file else { return Ok(()) };
        let directory = Location::from(temporary.parent().unwrap_or(Path::new("/")));
        // Not the run's: a run that is told to end cleans up all the same.
        let cancel = Cancel::default();
        let request = MediumRequest::Discard(left.clone());
        if self.locations.contains(&directory) {
            return self.open(&directory, request, &cancel).map(drop);
        }
        let mount = self.known_mount(&directory)?;
        let destination = Destination { location: &directory, mount: mount.as_ref(), cancel: &cancel };
        self.access.open(destination, request).map(drop)
    }

    /// What a directory that is none of these was mounted on when it was last used.
    fn known_mount(&self, directory: &Location) -> Result<Option<ExpectedMount>> {
        let (Some(state_dir), Some(path)) = (&self.state_dir, directory.path()) else { return Ok(None) };
        let catalog = Catalog::open_existing(state_dir)?;
        let known = catalog.map(|catalog| catalog.mount_of(path)).transpose()?.flatten();
        let directory = CheckedDirectory { path, medium: None, mounted: MountRequirement::SameAsFirstUse };
        Ok(known.map(|mount| ExpectedMount::of(mount, &directory)))
    }

    fn items<T: DeserializeOwned>(
        &self,
        location: &Location,
        request: MediumRequest,
        take: &mut dyn FnMut(T) -> Result<()>,
    ) -> Result<()> {
        let MediumReply::Items(items) = self.open(location, request, &self.cancel)? else {
            return Err(unexpected(location));
        };
        items(&mut |item| {
            let item =
                serde_json::from_value(item).map_err(|error| unexpected(location).with_source(error))?;
            take(item)
        })
    }

    fn ask(&self, location: &Location, request: MediumRequest) -> Result<ProbeReply> {
        match self.open(location, request, &self.cancel)? {
            MediumReply::Known(reply) => Ok(reply),
            _ => Err(unexpected(location)),
        }
    }

    fn open(&self, location: &Location, request: MediumRequest, cancel: &Cancel) -> Result<MediumReply> {
        let mut known = self.locations.iter().zip(&self.mounts);
        let mount = known.find(|(known, _)| *known == location).and_then(|(_, mount)| mount.as_ref());
        self.access.open(Destination { location, mount, cancel }, request)
    }
}

fn unexpected(location: &Location) -> Error {
    Error::new(ErrorKind::Internal, format!("'{location}' was asked for one thing and answers another"))
}

fn not_resumable() -> Error {
    Error::new(ErrorKind::Internal, "an archive without a destination of its own was resumed")
}

/// A medium that the caller makes.
struct CustomMedium<F> {
    make: RefCell<Option<F>>,
    others: LocalMedia,
}

impl<F> MediumAccess for CustomMedium<F>
where
    F: FnOnce(&ArchiveLabel, &Cancel) -> Result<Box<dyn Medium>>,
{
    fn open(&self, to: Destination<'_>, request: MediumRequest) -> Result<MediumReply> {
        let MediumRequest::Create(label) = &request else { return self.others.open(to, request) };
        let make = self.make.take();
        let make = make.ok_or_else(|| Error::new(ErrorKind::Internal, "a medium was asked for twice"))?;
        make(label, to.cancel).map(MediumReply::New)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(name: &str) -> ArchiveLabel {
        ArchiveLabel {
            name: name.to_owned(),
            id: uuid::Uuid::nil(),
            host: "h".to_owned(),
            subject: "web".to_owned(),
            estimate: 0,
        }
    }

    fn write(medium: &mut dyn Medium) {
        medium.write(b"12345").unwrap();
        medium.sync().unwrap();
    }

    #[test]
    fn an_archive_goes_to_each_destination_and_what_came_of_each_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let directory = |name: &str| Location::from(folder.path().join(name).as_path());
        std::fs::create_dir(folder.path().join("a")).unwrap();
        let both = Destinations::local([directory("a"), directory("missing")]);
        let mut medium = both.create(&label("x.tar"), &Cancel::default()).unwrap();
        write(medium.as_mut());
        let finished = medium.finish().unwrap();
        assert_eq!(finished.bytes, 5);
        let kinds: Vec<_> = finished.copies.iter().map(|copy| (copy.archive.is_some(), copy.kind)).collect();
        assert_eq!(kinds, [(true, None), (false, Some(ErrorKind::NotFound))]);
        let twice = Destinations::local([directory("a"), directory("a")]);
        let error = twice.create(&label("y.tar"), &Cancel::default()).err().unwrap();
        assert!(error.kind() == ErrorKind::Usage && error.to_string().contains("twice"), "{error}");
        assert_eq!(twice.devices().unwrap().len(), 2);
    }

    #[test]
    fn a_tape_that_is_none_is_an_error_of_its_own_not_a_defect() {
        let tape: Location = "tape:/dev/null".parse().unwrap();
        let error = Destinations::local([tape]).create(&label("x.tar"), &Cancel::default()).err().unwrap();
        assert_ne!(error.kind(), ErrorKind::Internal, "{error}");
    }

    #[test]
    fn what_was_left_where_nothing_is_mounted_now_is_not_taken_for_gone() {
        use std::os::unix::fs::MetadataExt;
        let (folder, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let temporary = folder.path().join(".x.tar.0000.partial");
        std::fs::write(&temporary, "12345").unwrap();
        let found = temporary.metadata().unwrap();
        let identity = (found.dev(), found.ino());
        let left = PartialArchive { file: Some((temporary.clone(), identity)), ..Default::default() };
        let mut nowhere = Destinations::local([]);
        nowhere.consult_catalog(state.path());
        let elsewhere = MountPoint { point: "/elsewhere".into(), file_system: None };
        Catalog::open(state.path()).unwrap().remember_mount(folder.path(), &elsewhere).unwrap();
        assert_eq!(nowhere.discard(&left).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(temporary.exists());
        // A location of the run is as the run has checked it.
        Destinations::local([Location::from(folder.path())]).discard(&left).unwrap();
        assert!(!temporary.exists());
    }

    #[test]
    fn what_is_not_mounted_any_more_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let location = Location::from(folder.path());
        let mut one = Destinations::local([location.clone()]);
        let expected = ExpectedMount {
            mount_point: "/elsewhere".into(),
            file_system: None,
            requirement: MountRequirement::SameAsFirstUse,
            medium: Some("nas".to_owned()),
        };
        one.expect_mounts(vec![Some(expected)]);
        let error = one.create(&label("x.tar"), &Cancel::default()).err().unwrap();
        assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("'nas'"), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
