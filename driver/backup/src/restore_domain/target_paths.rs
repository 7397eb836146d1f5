//! Where things go, and whether they may.
//!
//! A disk goes, the first that fits: to the path that a person gave it; into the directory or pool that a
//! person gave for the rest; where it was. A copy's disks are called `NAME-TARGET.FORMAT`, others keep their
//! file name. A path out of the archive is used only
//!
//! - where the domain that is replaced has this very path, or
//! - for files, in a directory where domains of this host have their disks or NVRAM, or in libvirt's own.
//!
//! For an archive is hostile, and could name `/etc/cron.d/x` or the host's own disk.
//!
//! Then, whatever names it: what is there is replaced only where that was asked for, never while a QEMU has
//! it open, and never while another domain has it anywhere in its chains.

use std::collections::BTreeSet;
use std::io::ErrorKind as IoKind;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::FileType;

use super::identity::{DomainIdentity, NewDomain};
use super::inventory::{Depth, FileUsers, Inventory, UsedFile};
use super::{DefaultTarget, DefineContext, RestoreDomainRequest};
use crate::restore::DistinctFiles;
use crate::target::refuse_new;
use virtfold_archive::manifest;
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::partial_file::Overwrite;
use virtfold_base::safe_path::{self, Entry};
use virtfold_hypervisor::domain_xml::{ChainEntry, DomainDisk, ImageSource};
use virtfold_hypervisor::host_files::ImageUse;
use virtfold_hypervisor::is_our_overlay;

/// What is at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PathOccupant {
    Nothing,
    File,
    Directory,
    Device,
    /// A link that others can have made: it is replaced itself.
    Link,
}

/// A place for something.
#[derive(Clone, Debug)]
pub(super) struct TargetPath {
    /// As the definition names it.
    pub(super) path: PathBuf,
    /// The file itself, where that is behind a link that nobody but root can have made.
    pub(super) real: PathBuf,
    /// What is there now.
    pub(super) found: PathOccupant,
}

impl TargetPath {
    /// What the archive does not have, and the guest makes at its first start, must not be there from
    /// somebody else.
    pub(super) fn must_be_free(&self, what: &str) -> Result<()> {
        if self.found == PathOccupant::Nothing {
            return Ok(());
        }
        let text = format!(
            "'{}' exists already, where {what} shall be made at its first start",
            self.path.display()
        );
        Err(Error::new(ErrorKind::Exists, text)
            .with_hint("move it away, or restore somewhere else with --output"))
    }

    /// As [`TargetPath::look`], where the directory may be missing and is then made later.
    pub(super) fn look_or_free(path: &Path) -> Result<Self> {
        if path.parent().is_some_and(Path::exists) {
            return Self::look(path);
        }
        Ok(Self { path: path.to_owned(), real: path.to_owned(), found: PathOccupant::Nothing })
    }

    /// Looks what is at `path`, whose directory must be there.
    pub(super) fn look(path: &Path) -> Result<Self> {
        let mut path = std::path::absolute(path).at(|| format!("cannot resolve '{}'", path.display()))?;
        let (directory, name) = (path.parent(), path.file_name());
        let nameless = || Error::new(ErrorKind::Usage, format!("'{}' does not name a file", path.display()));
        let (directory, name) = directory.zip(name).ok_or_else(nameless)?;
        let plain = existing_directory(directory)?.join(name);
        if path.components().any(|part| part == Component::ParentDir) {
            path.clone_from(&plain);
        }
        let looking = || format!("cannot look at '{}'", path.display());
        let entry = Entry::locate(&path).at(looking)?;
        let (real, found) = match entry.find().at(looking)? {
            Some(found) => {
                let found = match safe_path::kind(&found) {
                    FileType::RegularFile => PathOccupant::File,
                    FileType::Directory => PathOccupant::Directory,
                    FileType::BlockDevice => PathOccupant::Device,
                    FileType::Symlink => PathOccupant::Link,
                    _ => return Err(not_a_place(&path)),
                };
                (entry.path(), found)
            }
            // A link that leads nowhere is something, too.
            None if path.symlink_metadata().is_ok() => return Err(not_a_place(&path)),
            None => {
                refuse_new(&plain)?;
                (plain, PathOccupant::Nothing)
            }
        };
        Ok(Self { path, real, found })
    }
}

fn open_directory(directory: &Path) -> std::io::Result<safe_path::Directory> {
    safe_path::Directory::open(directory)
}

fn not_a_place(path: &Path) -> Error {
    let what = format!("'{}' is neither a file nor a block device", path.display());
    Error::new(ErrorKind::Usage, what)
}

/// The directory's own path.
pub(super) fn existing_directory(directory: &Path) -> Result<PathBuf> {
    let gone = || {
        let what = format!("the directory '{}' is not there", directory.display());
        Error::new(ErrorKind::NotFound, what).with_hint("make it first, or name another with --output")
    };
    match open_directory(directory) {
        Ok(opened) => Ok(opened.path().to_owned()),
        Err(error) if matches!(error.kind(), IoKind::NotFound | IoKind::NotADirectory) => Err(gone()),
        Err(error) => Err(Error::io(format!("cannot open '{}'", directory.display()), error)),
    }
}

/// Gives places.
pub(super) struct TargetPaths<'a> {
    request: &'a RestoreDomainRequest,
    host: &'a DefineContext<'a>,
    who: &'a NewDomain,
    /// The directory for what was not given a place.
    directory: Option<PathBuf>,
    /// What all domains use, the replaced one among them.
    used: Vec<UsedFile>,
    /// Directories that a path out of the archive may lie in.
    trusted: BTreeSet<PathBuf>,
    /// File names of the archive's disks, to find those that two have.
    names: Vec<String>,
}

impl<'a> TargetPaths<'a> {
    pub(super) fn new(
        request: &'a RestoreDomainRequest,
        host: &'a DefineContext<'a>,
        who: &'a NewDomain,
        inventory: &Inventory,
    ) -> Result<Self> {
        let directory = match &request.rest {
            DefaultTarget::OriginalPath => None,
            DefaultTarget::Directory(directory) => Some(existing_directory(directory)?),
            DefaultTarget::Pool(pool) => Some(existing_directory(&host.hypervisor.pool_directory(pool)?)?),
        };
        let used = inventory.files(None, (host.hypervisor, Depth::Definitions))?;
        let files = used.iter().filter(|used| !used.path.starts_with("/dev"));
        let mut trusted: BTreeSet<_> = files.filter_map(|used| real_parent(&used.path)).collect();
        let own = [&host.places.images, &host.places.nvram];
        trusted.extend(own.iter().filter_map(|path| Some(open_directory(path).ok()?.path().to_owned())));
        Ok(Self { request, host, who, directory, used, trusted, names: Vec::new() })
    }

    /// The place of a disk out of the archive.
    pub(super) fn disk(
        &mut self,
        disk: &DomainDisk,
        head: &manifest::Disk,
        format: &str,
    ) -> Result<TargetPath> {
        let given = self.request.disks.iter().find(|(target, _)| *target == disk.target);
        if let Some((_, path)) = given {
            return TargetPath::look(path);
        }
        let made = format!("{}-{}.{format}", self.who.name, disk.target);
        if let Some(directory) = &self.directory {
            let kept = own_name(disk).filter(|name| {
                self.who.identity != DomainIdentity::Copy
                    && format == head.source.format
                    && !self.names.contains(name)
            });
            let name = kept.unwrap_or(made);
            let spot = TargetPath::look(&directory.join(&name));
            self.names.push(name);
            return spot;
        }
        let was = self.original(disk)?;
        if self.who.identity == DomainIdentity::Copy {
            let beside = was.parent().unwrap_or(Path::new("/")).join(made);
            self.check_trust(&beside, &disk.target)?;
            return TargetPath::look(&beside);
        }
        self.check_trust(&was, &disk.target)?;
        TargetPath::look(&was)
    }

    /// Where the disk was when it was backed up.
    fn original(&self, disk: &DomainDisk) -> Result<PathBuf> {
        let image = original_image(disk);
        let path = match &image.source {
            ImageSource::File(path) | ImageSource::Block(path) => Some(path.clone()),
            ImageSource::Volume { pool, volume } => Some(self.volume(pool, volume)?),
            _ => None,
        };
        let plain = |path: &PathBuf| {
            path.is_absolute() && !path.components().any(|part| part == Component::ParentDir)
        };
        path.filter(plain).ok_or_else(|| {
            let what = format!("the definition does not say where disk {} was", disk.target);
            Error::new(ErrorKind::Usage, what)
                .with_hint(format!("say where it goes: --output DIR, or --disk {}=PATH", disk.target))
        })
    }

    fn volume(&self, pool: &str, volume: &str) -> Result<PathBuf> {
        let hypervisor = self.host.hypervisor;
        hypervisor.volume_path(pool, volume).or_else(|error| {
            let plain = Path::new(volume).file_name().is_some_and(|name| name == volume);
            if error.kind() != ErrorKind::NotFound || !plain {
                return Err(error);
            }
            hypervisor.pool_directory(pool).map(|directory| directory.join(volume))
        })
    }

    /// Whether the archive may name this path.
    fn is_trusted(&self, path: &Path) -> bool {
        let replaced = self.who.replaced();
        let own = |used: &&UsedFile| Some(used.id) == replaced && used.path == path;
        let device = path.starts_with("/dev")
            || std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device());
        self.used.iter().find(own).is_some()
            || (!device && real_parent(path).is_some_and(|directory| self.trusted.contains(&directory)))
    }

    fn check_trust(&self, path: &Path, target: &str) -> Result<()> {
        if self.is_trusted(path) {
            return Ok(());
        }
        let what = format!(
            "the archive wants disk {target} at '{}', where no guest of this host has its disks",
            path.display()
        );
        Err(Error::new(ErrorKind::Usage, what)
            .with_hint(format!("say where it goes: --output DIR, or --disk {target}=PATH")))
    }

    /// The directory for files beside the disks: the one that was given, or that of the first disk in a file.
    pub(super) fn home<'s>(&self, mut disks: impl Iterator<Item = &'s TargetPath>) -> PathBuf {
        let file = disks.find(|spot| spot.found != PathOccupant::Device).and_then(|spot| spot.path.parent());
        let found = self.directory.as_deref().or(file);
        found.unwrap_or(&self.host.places.nvram).to_owned()
    }

    /// The place of a file that the definition names: the old one where the archive may name it, else `made`
    /// in `home`.
    pub(super) fn file(&self, was: Option<&Path>, home: &Path, made: &str) -> Result<TargetPath> {
        let stays = self.who.identity != DomainIdentity::Copy && self.directory.is_none();
        match was.filter(|path| stays && path.is_absolute() && self.is_trusted(path)) {
            Some(path) => TargetPath::look(path),
            None => TargetPath::look(&home.join(made)),
        }
    }
}

/// The image that the disk had before a backup put an overlay on it.
fn original_image(disk: &DomainDisk) -> &ChainEntry {
    let overlay = disk.image.source.path().is_some_and(is_our_overlay);
    disk.backing.first().filter(|_| overlay).unwrap_or(&disk.image)
}

/// The file name that a disk had, where that is a plain one.
fn own_name(disk: &DomainDisk) -> Option<String> {
    let name = match &original_image(disk).source {
        ImageSource::File(path) => path.file_name()?.to_str()?.to_owned(),
        ImageSource::Volume { volume, .. } => volume.clone(),
        _ => return None,
    };
    let plain =
        (1..=200).contains(&name.len()) && !name.starts_with('.') && !is_our_overlay(Path::new(&name));
    (plain && !name.chars().any(|c| c == '/' || c.is_control())).then_some(name)
}

fn real_parent(path: &Path) -> Option<PathBuf> {
    open_directory(path.parent()?).ok().map(|directory| directory.path().to_owned())
}

/// Refuses what exists and may not be replaced, what a QEMU has open, what another domain rests on, and one
/// place for two things.
pub(super) fn check(
    spots: &[(&str, &TargetPath)],
    request: &RestoreDomainRequest,
    host: &DefineContext<'_>,
    who: &NewDomain,
    inventory: &Inventory,
) -> Result<()> {
    let found = |spot: &TargetPath| spot.found != PathOccupant::Nothing;
    let depth = if spots.iter().any(|(_, spot)| found(spot)) { Depth::Headers } else { Depth::Definitions };
    let mut used = inventory.files(who.replaced(), (host.hypervisor, depth))?;
    used.extend(inventory.boot_files(who.replaced()));
    let (mut before, users) = (DistinctFiles::default(), FileUsers::of(&used));
    for (what, spot) in spots {
        let shown = spot.path.display();
        if let Some((other, _)) = before.insert(&spot.real).and_then(|number| spots.get(number)) {
            return Err(Error::new(ErrorKind::Usage, format!("{other} and {what} would both be '{shown}'"))
                .with_hint("give them places of their own with --disk TARGET=PATH"));
        }
        if let Some(user) = users.of_file(&spot.path) {
            return Err(Error::new(ErrorKind::InUse, format!("'{shown}' belongs to {}", user.what))
                .with_hint("restore somewhere else with --output or --disk"));
        }
        if found(spot) && request.existing == Overwrite::Refuse {
            return Err(Error::new(
                ErrorKind::Exists,
                format!("'{shown}' exists already, where {what} shall be"),
            )
            .with_hint("--force replaces it; --output or --disk restores somewhere else"));
        }
        check_unused(host, spot)?;
    }
    Ok(())
}

/// Refuses a file that a QEMU has open.
pub(super) fn check_unused(host: &DefineContext<'_>, spot: &TargetPath) -> Result<()> {
    if !matches!(spot.found, PathOccupant::File | PathOccupant::Device) {
        return Ok(());
    }
    match host.files.image_use(&spot.real)? {
        ImageUse::Absent | ImageUse::Free => Ok(()),
        ImageUse::Read | ImageUse::Written => {
            let what = format!("'{}' is in use by a running QEMU", spot.path.display());
            Err(Error::new(ErrorKind::InUse, what)
                .with_hint("shut the guest down first, or restore somewhere else with --output or --disk"))
        }
    }
}
