//! The plan: everything looked up, placed, checked and edited, and nothing touched.
//!
//! What becomes of each part of the definition:
//!
//! - The disks are those that the guest ran with when it was backed up; where its configuration had others,
//!   that is noted.
//! - Disks in the archive are restored flat, in the format they had; what the definition said of a chain
//!   below them goes.
//! - Drives for CDs and floppies stay, and are emptied, unless the domain of the same uuid that is there has
//!   the very same medium in it or that was allowed. Other disks that are not in the archive stay, too, where
//!   their file is there; where it is not, and for a copy, which must not write to the original's disk, a
//!   person has to leave them out (`--without`). Read-only and shareable disks may be shared with a copy.
//! - NVRAM and TPM state go with the disks; a copy has its own even where the archive has none.
//! - Kernel, initrd and dtb are used where they lie when the host has the same bytes there; else they go
//!   beside the disks.
//! - A copy gets new MACs and sockets of its own. For the guest itself they stay, and one that another domain
//!   has is refused.
//! - The generation id is always new: it is how a guest learns that it was put back.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::archived_domain::ArchivedDomain;
use super::identity::{self, DomainIdentity, NewDomain};
use super::inventory::{Depth, FileUsers, Inventory};
use super::target_paths::{self, PathOccupant, TargetPath, TargetPaths};
use super::{
    DefaultTarget, DefineContext, DefinitionChange, DiskAction, DiskPlan, FilePlan, RestoreDomainReport,
    RestoreDomainRequest,
};
use super::{host_access, shared_files};
use crate::known_copy::FoundArchive;
use crate::restore::{Forecast, Room, shareable, target_format};
use crate::trust::Authenticity;
use virtfold_archive::manifest::Manifest;
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_hypervisor::domain_xml::edit::{Editor, NewImage};
use virtfold_hypervisor::domain_xml::host_access::HostAccess;
use virtfold_hypervisor::domain_xml::{Device, DomainDisk, DomainXml, ImageSource};

/// All that is needed to do it.
pub(super) struct RestorePlan {
    pub(super) report: RestoreDomainReport,
    /// Which archive it is of, where that can be opened again.
    pub(super) archive: Option<FoundArchive>,
    pub(super) who: NewDomain,
    /// The definition.
    pub(super) xml: DomainXml,
    /// The disks to restore: target and place.
    pub(super) disks: Vec<(String, TargetPath)>,
    /// What else to write.
    pub(super) files: Vec<NewFile>,
    /// Storage pools that get new files.
    pub(super) pools: BTreeSet<String>,
}

/// A file or directory to write.
pub(super) struct NewFile {
    pub(super) spot: TargetPath,
    pub(super) content: FileContent,
}

/// What is written.
pub(super) enum FileContent {
    File(Vec<u8>),
    /// Files by name.
    Directory(Vec<(String, Vec<u8>)>),
}

impl FileContent {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::File(bytes) => bytes.len() as u64,
            Self::Directory(files) => files.iter().map(|(_, bytes)| bytes.len() as u64).sum(),
        }
    }
}

/// Makes it.
pub(super) fn make(
    request: &RestoreDomainRequest,
    host: &DefineContext<'_>,
    backup: &ArchivedDomain,
) -> Result<RestorePlan> {
    let inventory = Inventory::read(host.hypervisor)?;
    let who = identity::decide(&backup.xml, request, &inventory, host)?;
    check_targets(request, backup)?;
    let maker = RestorePlanner {
        request,
        host,
        backup,
        inventory: &inventory,
        who: &who,
        report: report(request, backup, &who),
        disks: Vec::new(),
        files: Vec::new(),
        pools: BTreeSet::new(),
        placed: Vec::new(),
        emptied: BTreeSet::new(),
        own: own_definitions(backup, &inventory, &who)?,
    };
    let PlannedDefinition { report, xml, disks, files, pools } = maker.make()?;
    let spots = disks.iter().map(|(target, spot)| (target.as_str(), spot));
    let spots: Vec<_> = spots.chain(files.iter().map(|(what, file)| (what.as_str(), &file.spot))).collect();
    target_paths::check(&spots, request, host, &who, &inventory)?;
    let files = files.into_iter().map(|(_, file)| file).collect();
    let archive = backup.found.clone();
    let mut plan = RestorePlan { report, archive, who, xml, disks, files, pools };
    plan.report.room = forecast(&plan, &backup.head, request, host)?;
    Ok(plan)
}

/// What the plan needs, file system by file system.
fn forecast(
    plan: &RestorePlan,
    head: &Manifest,
    request: &RestoreDomainRequest,
    host: &DefineContext<'_>,
) -> Result<Vec<Room>> {
    let mut forecast = Forecast::new(host.files);
    for (target, spot) in plan.disks.iter().filter(|(_, spot)| spot.found != PathOccupant::Device) {
        let Some(disk) = head.disk(target) else { continue };
        forecast.disk(&spot.real, disk, target_format(&request.writing.wanted(), disk)?)?;
    }
    for file in &plan.files {
        forecast.file(&file.spot.real, file.content.len())?;
    }
    Ok(forecast.rooms(shareable(head, &request.archive, request.writing.method)?))
}

fn report(request: &RestoreDomainRequest, backup: &ArchivedDomain, who: &NewDomain) -> RestoreDomainReport {
    let claims = backup.xml.claims.iter().map(|claim| format!("the definition claims {claim}"));
    RestoreDomainReport {
        archive: request.archive.to_string(),
        guest: backup.xml.name.clone(),
        domain: who.name.clone(),
        uuid: who.id.to_string(),
        identity: who.identity,
        disks: Vec::new(),
        files: Vec::new(),
        macs: Vec::new(),
        channels: Vec::new(),
        host_access: Vec::new(),
        room: Vec::new(),
        notes: backup.notes.iter().cloned().chain(claims).collect(),
        authenticity: None,
        defined: false,
        started: false,
        verified: false,
        seconds: 0.0,
    }
}

/// Refuses targets that the guest does not have.
fn check_targets(request: &RestoreDomainRequest, backup: &ArchivedDomain) -> Result<()> {
    let unknown = |target: &str, has: Vec<&str>| {
        let what = format!("the archive's guest has no disk called {}", target.escape_debug());
        Err(Error::new(ErrorKind::NotFound, what).with_hint(format!("it has: {}", has.join(", "))))
    };
    if let Some(target) = request.without.iter().find(|target| backup.xml.disk(target).is_none()) {
        return unknown(target, backup.xml.disks.iter().map(|disk| disk.target.as_str()).collect());
    }
    let in_archive =
        |target: &String| backup.head.disk(target).is_some() && !request.without.contains(target);
    if let Some((target, _)) = request.disks.iter().find(|(target, _)| !in_archive(target)) {
        return unknown(target, backup.head.disks.iter().map(|disk| disk.target.as_str()).collect());
    }
    Ok(())
}

/// What this host has of the archive's guest already, or had when it signed the archive: its definitions, for
/// a copy with its channels moved.
fn own_definitions(
    backup: &ArchivedDomain,
    inventory: &Inventory,
    who: &NewDomain,
) -> Result<Vec<DomainXml>> {
    let known = backup.xml.id.and_then(|id| inventory.by_id(id));
    let mut own: Vec<_> = known.map(|known| known.xmls.clone()).unwrap_or_default();
    if matches!(backup.authenticity, Authenticity::Signed { by_this_host: true, .. }) {
        own.push(backup.xml.clone());
    }
    if who.identity == DomainIdentity::Copy {
        for at in 0..own.len() {
            let Some(xml) = own.get(at) else { continue };
            let mut edit = Editor::new(xml)?;
            edit.set_channel_paths(|path| channel_of_copy(path, who))?;
            let moved = edit.finish()?;
            own.push(moved);
        }
    }
    Ok(own)
}

/// Where a copy has its socket or file in place of the original's.
fn channel_of_copy(path: &Path, who: &NewDomain) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let own = path.is_absolute() && !shared_files::is_generated(path);
    own.then(|| path.with_file_name(format!("{}-{name}", who.name)))
}

/// A file to write, and what it is.
type NamedFile = (String, NewFile);

/// What the maker made.
struct PlannedDefinition {
    report: RestoreDomainReport,
    xml: DomainXml,
    disks: Vec<(String, TargetPath)>,
    files: Vec<NamedFile>,
    pools: BTreeSet<String>,
}

pub(super) struct RestorePlanner<'a> {
    request: &'a RestoreDomainRequest,
    pub(super) host: &'a DefineContext<'a>,
    pub(super) backup: &'a ArchivedDomain,
    inventory: &'a Inventory,
    pub(super) who: &'a NewDomain,
    report: RestoreDomainReport,
    disks: Vec<(String, TargetPath)>,
    files: Vec<NamedFile>,
    pools: BTreeSet<String>,
    /// Files that the definition names and that are the restore's, written or not.
    pub(super) placed: Vec<PathBuf>,
    /// Drives that are emptied.
    emptied: BTreeSet<String>,
    /// The host's own definitions of the archive's guest; for a copy also as a copy has them.
    pub(super) own: Vec<DomainXml>,
}

impl RestorePlanner<'_> {
    fn make(mut self) -> Result<PlannedDefinition> {
        let mut edit = Editor::new(&self.backup.xml)?;
        edit.set_generation(&Uuid::new_v4().to_string());
        // However the archive spells them, these are the ones that were looked for on the host.
        edit.rename(&self.who.name)?.set_id(self.who.id)?;
        if self.who.identity == DomainIdentity::Copy {
            self.new_macs(&mut edit)?;
            self.new_channels(&mut edit)?;
        }
        let mut placer = TargetPaths::new(self.request, self.host, self.who, self.inventory)?;
        if !self.request.allow.contains(&HostAccess::Cdrom) {
            self.emptied = host_access::foreign_media(&self.backup.xml, &self.own)?;
        }
        for disk in &self.backup.xml.disks {
            self.disk(disk, &mut placer, &mut edit)?;
        }
        if self.disks.is_empty() {
            return Err(Error::new(ErrorKind::Usage, "no disk is left to restore"));
        }
        let home = placer.home(self.disks.iter().map(|(_, spot)| spot));
        self.nvram(&placer, &home, &mut edit)?;
        self.tpm(&placer, &home, &mut edit)?;
        self.boot(&placer, &home, &mut edit)?;
        let xml = edit.finish()?;
        shared_files::check(&xml, self.inventory, self.who.replaced())?;
        self.placed.extend(self.disks.iter().map(|(_, spot)| spot.path.clone()));
        self.placed.extend(host_access::default_nvram(self.host.places, &self.who.name));
        let placed = std::mem::take(&mut self.placed);
        let granted = host_access::granted(self.host.places, placed, &self.own);
        self.report.host_access = host_access::look(&xml, &granted, &self.request.allow)?;
        for (what, file) in &self.files {
            self.report.files.push(FilePlan {
                what: what.trim_start_matches("the ").to_owned(),
                path: file.spot.path.display().to_string(),
                bytes: file.content.len(),
                replaces: file.spot.found != PathOccupant::Nothing,
            });
        }
        self.note_left_behind(&xml);
        if let DefaultTarget::Pool(pool) = &self.request.rest {
            self.pools.insert(pool.clone());
        }
        Ok(PlannedDefinition {
            report: self.report,
            xml,
            disks: self.disks,
            files: self.files,
            pools: self.pools,
        })
    }

    fn new_macs(&mut self, edit: &mut Editor<'_>) -> Result<()> {
        let mut taken = BTreeSet::new();
        let mut made = Vec::new();
        for _ in &self.backup.xml.macs {
            // 52:54:00 is what libvirt and QEMU use; the rest is chance.
            let mut fresh = std::iter::repeat_with(|| {
                let [a, b, c, ..] = *Uuid::new_v4().as_bytes();
                format!("52:54:00:{a:02x}:{b:02x}:{c:02x}")
            });
            let free = |mac: &String| {
                !taken.contains(mac)
                    && self.inventory.other(None, |x| shared_files::has_mac(x, mac)).is_none()
            };
            let mac = fresh.by_ref().take(10_000).find(free);
            let mac = mac.ok_or_else(|| Error::new(ErrorKind::Internal, "there is no MAC address left"))?;
            taken.insert(mac.clone());
            made.push(mac);
        }
        let mut next = made.iter();
        edit.set_macs(|| next.next().cloned().unwrap_or_default());
        let changes = self.backup.xml.macs.iter().zip(&made);
        self.report.macs =
            changes.map(|(from, to)| DefinitionChange { from: from.clone(), to: to.clone() }).collect();
        Ok(())
    }

    fn new_channels(&mut self, edit: &mut Editor<'_>) -> Result<()> {
        let changes = std::cell::RefCell::new(Vec::<DefinitionChange>::new());
        edit.set_channel_paths(|path| {
            let new = channel_of_copy(path, self.who)?;
            let change = DefinitionChange { from: path.display().to_string(), to: new.display().to_string() };
            let mut changes = changes.borrow_mut();
            if !changes.contains(&change) {
                changes.push(change);
            }
            Some(new)
        })?;
        self.report.channels = changes.into_inner();
        Ok(())
    }

    fn disk(&mut self, disk: &DomainDisk, placer: &mut TargetPaths<'_>, edit: &mut Editor<'_>) -> Result<()> {
        let target = &disk.target;
        let (mut path, mut format, mut replaces) = (None, None, false);
        let head = self.backup.head.disk(target);
        let action = if self.request.without.contains(target) {
            edit.remove_disk(target)?;
            DiskAction::Remove
        } else if let Some(head) = head {
            check_whole(disk)?;
            let wanted = self.request.writing.format.map(|format| format.to_string());
            let made = wanted.unwrap_or_else(|| head.source.format.clone());
            let spot = placer.disk(disk, head, &made)?;
            if spot.found == PathOccupant::Directory {
                let what = format!("disk {target} cannot be '{}': it is a directory", spot.path.display());
                return Err(Error::new(ErrorKind::Usage, what));
            }
            let image = match spot.found {
                PathOccupant::Device => NewImage::Block(&spot.path),
                _ => NewImage::File(&spot.path),
            };
            edit.set_disk(target, image, &made)?;
            if spot.found == PathOccupant::Device {
                let what = format!(
                    "disk {target} is written to the block device '{}' in place: what is on it is lost at once",
                    spot.path.display()
                );
                self.report.notes.push(what);
            }
            if let ImageSource::Volume { pool, volume } = &disk.image.source {
                let text = "the definition names it by its path now";
                self.report
                    .notes
                    .push(format!("disk {target} was volume '{volume}' of pool '{pool}': {text}"));
                if self.request.rest == DefaultTarget::OriginalPath {
                    self.pools.insert(pool.clone());
                }
            }
            path = Some(spot.path.display().to_string());
            replaces = spot.found != PathOccupant::Nothing;
            format = Some(made);
            self.disks.push((target.clone(), spot));
            DiskAction::Restore
        } else {
            path = self.kept(disk, edit)?;
            DiskAction::Keep
        };
        let head = head.filter(|_| action == DiskAction::Restore);
        let (capacity, data) = (head.map(|head| head.capacity), head.map(|head| head.dense_length));
        let target = target.clone();
        self.report.disks.push(DiskPlan { target, action, path, format, capacity, data, replaces });
        Ok(())
    }

    /// A disk that is not in the archive: whether the definition may keep it; what it is then.
    fn kept(&mut self, disk: &DomainDisk, edit: &mut Editor<'_>) -> Result<Option<String>> {
        let image = disk.image.source.path().map(|path| path.display().to_string());
        if disk.image.source == ImageSource::Empty {
            return Ok(None);
        }
        if self.emptied.contains(&disk.target) {
            edit.eject(&disk.target)?;
            let medium = image.map_or_else(String::new, |path| format!(", '{path}',"));
            self.report.notes.push(format!(
                "drive {} is emptied: the medium that was in it{medium} is not in the archive (--allow cdrom keeps it)",
                disk.target
            ));
            return Ok(None);
        }
        self.check_kept(disk)?;
        Ok(image)
    }

    fn check_kept(&mut self, disk: &DomainDisk) -> Result<()> {
        let target = &disk.target;
        let hint = format!("--without {target} takes the disk out of the definition");
        let resolved = match &disk.image.source {
            ImageSource::File(path) | ImageSource::Block(path) => Some(path.clone()),
            ImageSource::Volume { pool, volume } => self.host.hypervisor.volume_path(pool, volume).ok(),
            _ => None,
        };
        let local = matches!(
            disk.image.source,
            ImageSource::File(_) | ImageSource::Block(_) | ImageSource::Volume { .. }
        );
        let missing = local && !resolved.as_ref().is_some_and(|path| path.exists());
        if matches!(disk.device, Device::Cdrom | Device::Floppy) {
            if missing {
                self.report.notes.push(format!(
                    "the medium in drive {target} is not on this host: eject it before a start ('virsh change-media {} {target} --eject --config')",
                    self.who.name
                ));
            }
            return Ok(());
        }
        let shared = disk.marks.readonly || disk.marks.shareable;
        if self.who.identity == DomainIdentity::Copy && !shared {
            let what =
                format!("disk {target} is not in the archive, and a copy must not write to the original's");
            return Err(Error::new(ErrorKind::Usage, what).with_hint(hint));
        }
        if missing {
            let what = format!("disk {target} is not in the archive, and it is not on this host");
            return Err(
                Error::new(ErrorKind::NotFound, what).with_hint(format!("put it back first; or {hint}"))
            );
        }
        if let (Some(path), false) = (&resolved, shared) {
            let used =
                self.inventory.files(self.who.replaced(), (self.host.hypervisor, Depth::Definitions))?;
            if let Some(user) = FileUsers::of(&used).of_file(path) {
                let what = format!(
                    "disk {target} is not in the archive, and its '{}' belongs to {}",
                    path.display(),
                    user.what
                );
                return Err(Error::new(ErrorKind::InUse, what).with_hint(hint));
            }
        }
        self.report.notes.push(format!("disk {target} is not in the archive: it stays what it is now"));
        Ok(())
    }

    pub(super) fn file(&mut self, what: &str, spot: TargetPath, content: FileContent) -> Result<()> {
        let fits = match (spot.found, &content) {
            (PathOccupant::Nothing | PathOccupant::Link, _)
            | (PathOccupant::File, FileContent::File(_))
            | (PathOccupant::Directory, FileContent::Directory(_)) => true,
            (_, FileContent::Directory(_)) | (PathOccupant::Device | PathOccupant::Directory, _) => false,
        };
        if !fits {
            let what =
                format!("the {what} cannot be put to '{}': something else is there", spot.path.display());
            return Err(Error::new(ErrorKind::Exists, what).with_hint("restore somewhere else with --output"));
        }
        self.placed.push(spot.path.clone());
        self.files.push((format!("the {what}"), NewFile { spot, content }));
        Ok(())
    }

    /// Says which disks of a replaced domain nobody uses any more.
    fn note_left_behind(&mut self, xml: &DomainXml) {
        let Some(known) = self.who.replaced().and_then(|id| self.inventory.by_id(id)) else { return };
        let old = known.xmls.iter().flat_map(|xml| &xml.disks).filter_map(|disk| disk.image.source.path());
        let used = |path: &Path| xml.disks.iter().any(|disk| disk.image.source.path() == Some(path));
        for path in old.filter(|path| !used(path) && path.exists()) {
            let text = "was a disk of the domain that is replaced; it stays, and nothing uses it any more";
            self.report.notes.push(format!("'{}' {text}", path.display()));
        }
    }
}

/// An archive of a guest that had a part of a file as its disk has the whole file.
fn check_whole(disk: &DomainDisk) -> Result<()> {
    if !disk.marks.sliced {
        return Ok(());
    }
    let target = &disk.target;
    let what = format!(
        "disk {target} was a part of its file (<slices>), and the archive has the whole file: the guest would read it at the wrong place"
    );
    Err(Error::new(ErrorKind::Unsupported, what).with_hint(format!(
        "restore the disks without --define, cut the part out, and give the guest that; or take it out with --without {target}"
    )))
}
