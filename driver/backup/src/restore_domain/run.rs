//! Doing what the plan says, in the order that the room's description gives.

use std::io::Read;
use std::path::Path;
use std::time::Instant;

use virtfold_hooks::start_lock::LockReason;

use super::archived_domain::{ArchivedDomain, PARTIAL, ReplayReader};
use super::file_swap::{self, FileSwap};
use super::host_access;
use super::inventory::Inventory;
use super::plan::{self, FileContent, NewFile, RestorePlan};
use super::target_paths::{self, PathOccupant};
use super::{
    AfterDefine, DefineContext, DomainIdentity, RestoreDomainReport, RestoreDomainRequest, standard_input,
};
use crate::increment;
use crate::restore::{self, RestoreReport, RestoreRequest, Selection};
use crate::{Control, start_lock};
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::partial_file::{Overwrite, PartialFile};
use virtfold_base::safe_path::Entry;
use virtfold_hypervisor::{DomainId, DomainState, HypervisorError, StartMode, XmlView};
use virtfold_medium::Location;

/// Restores the guest.
///
/// # Errors
/// Everything that [`super::plan()`] refuses; what the archive, the disks and the hypervisor say. Unless the
/// error says otherwise, nothing has changed then, but for block devices, which are written in place; a guest
/// that was restored and does not start is defined and stays so.
pub fn run(
    request: &RestoreDomainRequest,
    host: &DefineContext<'_>,
    control: &Control,
) -> Result<RestoreDomainReport> {
    if request.archive == Location::Pipe {
        return run_from(request, host, control, standard_input(control)?);
    }
    let backup = ArchivedDomain::open(request, control)?;
    run_with(request, host, &backup, &mut |disks| restore::run(disks, control))
}

/// As [`run()`], from an archive that comes front to back from `input`, in one pass; the request's archive is
/// its name in messages.
///
/// # Errors
/// As [`run()`], and those of `input`.
pub fn run_from(
    request: &RestoreDomainRequest,
    host: &DefineContext<'_>,
    control: &Control,
    input: impl Read + Send,
) -> Result<RestoreDomainReport> {
    let mut input = ReplayReader::new(input);
    let backup = ArchivedDomain::read(request, control, &mut input)?;
    let mut input = Some(input);
    let mut disks = |disks: &RestoreRequest| match input.take() {
        Some(input) => restore::run_from(disks, control, input.again()),
        None => Err(Error::new(ErrorKind::Internal, "an archive that comes once was read twice")),
    };
    run_with(request, host, &backup, &mut disks)
}

/// Restores disks.
type RestoreDisks<'a> = dyn FnMut(&RestoreRequest) -> Result<RestoreReport> + 'a;

fn run_with(
    request: &RestoreDomainRequest,
    host: &DefineContext<'_>,
    backup: &ArchivedDomain,
    disks: &mut RestoreDisks<'_>,
) -> Result<RestoreDomainReport> {
    let started = Instant::now();
    let mut plan = plan::make(request, host, backup)?;
    host_access::check_allowed(&plan.report)?;
    // A copy's uuid is new: nobody else is at work on it.
    let journal = host.journal.filter(|_| plan.who.identity != DomainIdentity::Copy);
    let _locked = journal.map(|journal| journal.lock(plan.who.id)).transpose()?;
    let reason = format!("'{}' is being restored from a backup", plan.who.name);
    let paths = plan.disks.iter().map(|(_, spot)| spot.path.as_path());
    let (id, name) = (plan.who.id.0, &plan.who.name);
    let guards = start_lock::hold(host.guards, id, name, LockReason::Restoring, &reason, paths)?;
    // From here on nobody starts a guest on these disks; somebody may have just before.
    check_again(&plan, host)?;
    let mut switch = FileSwap::new();
    let written = write_disks(&plan, request, &mut switch, disks)?;
    for file in &plan.files {
        write_file(file, &mut switch)?;
    }
    check_again(&plan, host)?;
    switch.run()?;
    define(&plan, host, &mut switch)?;
    plan.report.notes.extend(switch.settle());
    plan.report.defined = true;
    plan.report.verified = written.verified;
    plan.report.notes.extend(written.notes);
    plan.report.authenticity = Some(written.authenticity);
    for pool in &plan.pools {
        let Err(error) = host.hypervisor.refresh_pool(pool) else { continue };
        // The guest is whole; the pool's list is only for looking at.
        plan.report.notes.push(format!(
            "pool '{pool}' does not show the new files yet: {}",
            virtfold_base::error::sentence(&error)
        ));
    }
    drop(guards);
    if request.afterwards == AfterDefine::Start {
        start(&plan, host)?;
        plan.report.started = true;
    }
    plan.report.seconds = started.elapsed().as_secs_f64();
    Ok(plan.report)
}

/// Whether the world is still the one that was planned for.
fn check_again(plan: &RestorePlan, host: &DefineContext<'_>) -> Result<()> {
    let inventory = Inventory::read(host.hypervisor)?;
    let (by_id, by_name) = (inventory.by_id(plan.who.id), inventory.by_name(&plan.who.name));
    let unchanged = match plan.who.identity {
        DomainIdentity::Replacement => by_id.is_some_and(|known| known.info.run == DomainState::ShutOff),
        DomainIdentity::Original | DomainIdentity::Copy => by_id.is_none() && by_name.is_none(),
    };
    if !unchanged {
        let what = match plan.who.identity {
            DomainIdentity::Replacement => "was started or undefined",
            DomainIdentity::Original | DomainIdentity::Copy => "was defined by another program",
        };
        return Err(Error::new(
            ErrorKind::InUse,
            format!("domain '{}' {what} during the restore", plan.who.name),
        )
        .with_hint("nothing was replaced; look at it, and restore again"));
    }
    let files = plan.files.iter().map(|file| &file.spot);
    plan.disks
        .iter()
        .map(|(_, spot)| spot)
        .chain(files)
        .try_for_each(|spot| target_paths::check_unused(host, spot))
}

/// Restores all disks beside their places; block devices in place.
fn write_disks(
    plan: &RestorePlan,
    request: &RestoreDomainRequest,
    switch: &mut FileSwap,
    disks: &mut RestoreDisks<'_>,
) -> Result<RestoreReport> {
    let mut devices = false;
    let mut selected = Vec::new();
    for (target, spot) in &plan.disks {
        let path = match spot.found {
            PathOccupant::Device => {
                devices = true;
                spot.real.clone()
            }
            _ => switch.stage(spot)?,
        };
        selected.push((target.clone(), path));
    }
    let writing = request.writing;
    let request = RestoreRequest {
        archive: request.archive.clone(),
        identities: request.identities.clone(),
        selection: Selection::Disks(selected),
        format: writing.format,
        method: writing.method,
        cluster_size: writing.cluster_size,
        existing: if devices { Overwrite::Replace } else { Overwrite::Refuse },
        checking: writing.checking,
        trust: request.trust.clone(),
        workers: writing.workers,
        known: request.known.clone().opened_before(plan.archive.clone()),
        parents: request.parents.clone(),
    };
    disks(&request).map_err(|error| match error.kind() {
        ErrorKind::Damaged | ErrorKind::Incomplete if error.hint().is_none() => error.with_hint(PARTIAL),
        _ => error,
    })
}

/// Writes a file or a directory beside its place.
fn write_file(file: &NewFile, switch: &mut FileSwap) -> Result<()> {
    if let Some(directory) = file.spot.real.parent() {
        switch.make_directory(directory)?;
    }
    let staged = switch.stage(&file.spot)?;
    match &file.content {
        FileContent::File(bytes) => write_new(&staged, bytes),
        FileContent::Directory(files) => {
            let making = || format!("cannot make the directory '{}'", staged.display());
            let entry = Entry::locate(&staged).at(making)?;
            entry.directory().make_directory(entry.name(), 0o700).at(making)?;
            for (name, bytes) in files {
                write_new(&staged.join(name), bytes)?;
            }
            let made = entry.directory().open_directory(entry.name());
            let synced = made.and_then(|directory| directory.sync());
            synced.at(|| format!("cannot sync the directory '{}'", staged.display()))
        }
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    let new = PartialFile::create(path, Overwrite::Refuse)?;
    let mut file = new.file();
    file.write_all(bytes).at(|| format!("cannot write '{}'", path.display()))?;
    new.commit_or_drop(Overwrite::Refuse)
}

/// Defines the domain; on a clear no everything is put back. A call whose answer got lost is made again: the
/// same definition twice is the same as once.
fn define(plan: &RestorePlan, host: &DefineContext<'_>, switch: &mut FileSwap) -> Result<()> {
    let define = || {
        // Our checkpoints name bitmaps of the disks that are replaced.
        let forgotten = plan.who.replaced().map(|known| increment::forget(host.hypervisor, known));
        forgotten.transpose()?;
        host.hypervisor.define(plan.xml.text())
    };
    let mut result = define();
    let mut doubtful = false;
    if result.as_ref().is_err_and(HypervisorError::lost) {
        doubtful = true;
        result = define();
    }
    let Err(error) = result else { return Ok(()) };
    doubtful &= plan.who.identity == DomainIdentity::Replacement || is_there(plan, host);
    if doubtful || (HypervisorError::lost(&error) && is_there(plan, host)) {
        return Err(file_swap::unknown(error, &switch.leave()));
    }
    let what = format!("domain '{}' cannot be defined; nothing was replaced", plan.who.name);
    Err(switch.undone(error.within(what)))
}

/// Whether the domain is there, or nobody can tell.
fn is_there(plan: &RestorePlan, host: &DefineContext<'_>) -> bool {
    let known = host.hypervisor.xml(plan.who.id, XmlView::Inactive);
    !known.is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

fn start(plan: &RestorePlan, host: &DefineContext<'_>) -> Result<()> {
    let id: DomainId = plan.who.id;
    let Err(error) = host.hypervisor.start(id, StartMode::Running) else { return Ok(()) };
    if HypervisorError::lost(&error) && host.hypervisor.domain_state(id).is_ok_and(DomainState::is_active) {
        return Ok(());
    }
    let name = &plan.who.name;
    Err(error.within(format!("domain '{name}' is restored and defined, and does not start")).with_hint(
        format!("see why, then start it with 'virsh start {name}'; its disks need not be restored again"),
    ))
}
