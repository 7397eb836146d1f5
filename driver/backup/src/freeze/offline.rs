//! Reading a domain that is shut off. Its disks are no copy on write then: a guest that starts would change
//! them under the reader. QEMU's locks keep it from starting; that they did is proven at the end, three ways:
//! no event of a start, still shut off, and no image was written to.
//!
//! Imports: `error`, `catalog`, `hypervisor`.

use std::fmt::Debug;

use crossbeam_channel::Receiver;

use super::domain_view::DomainView;
use super::start::NewSession;
use super::{FreezeContext, FreezeReport, Frozen, FrozenDisk, OfflineRequest};
use crate::Control;
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_catalog::{
    FreezeSession, JournalEntry, SessionDisk, SessionKind, SessionOutcome, SessionState, UnfreezeState,
};
use virtfold_hypervisor::host_files::ImageStamp;
use virtfold_hypervisor::{DomainEvent, Lifecycle};

/// Runs `copy` on the disks of a domain that is shut off, and proves that it stayed so.
///
/// # Errors
/// [`ErrorKind::InUse`] when it runs or ran, or an image is in use; whatever `copy` says.
pub fn with_offline_disks<T>(
    host: &FreezeContext<'_>,
    request: &OfflineRequest,
    control: &Control,
    copy: impl FnOnce(&Frozen) -> Result<T>,
) -> Result<T> {
    let _lock = host.journal.lock(request.domain)?;
    let events = host.hypervisor.subscribe()?;
    let beginning = NewSession::look(host, request.domain)?;
    let job = plan(host, request, &beginning)?;
    beginning.journal(host, &job)?;
    let copied = read(host, request, &job.name, &events, || {
        let disks = request.disks.iter().map(|disk| FrozenDisk {
            target: disk.target.clone(),
            path: disk.base.path.clone(),
            format: disk.base.format.clone(),
        });
        let (disks, control) = (disks.collect(), control.clone());
        copy(&Frozen { job: job.id, disks, checkpoint: None, control, report: FreezeReport::default() })
    });
    let outcome = if copied.is_ok() { SessionOutcome::Copied } else { SessionOutcome::Failed };
    let closed = host.journal.record(job.id, &[JournalEntry::Close(outcome)]);
    let value = copied?;
    closed.map(|()| value)
}

fn plan(host: &FreezeContext<'_>, request: &OfflineRequest, beginning: &NewSession) -> Result<FreezeSession> {
    if beginning.view.is_active() {
        return Err(Error::new(ErrorKind::InUse, format!("domain '{}' runs", beginning.info.name)));
    }
    let disks = request.disks.iter().map(|disk| SessionDisk {
        target: disk.target.clone(),
        alias: None,
        base: disk.base.clone(),
        overlay: None,
        frozen: None,
        state: UnfreezeState::Waiting,
    });
    Ok(beginning.job(host, SessionKind::AtRest, SessionState::Reading, disks.collect()))
}

fn read<T>(
    host: &FreezeContext<'_>,
    request: &OfflineRequest,
    name: &str,
    events: &Receiver<DomainEvent>,
    copy: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let holds = request.disks.iter().map(|disk| {
        let held = host.files.hold(&disk.base.path);
        held.map_err(|e| e.within(format!("disk '{}' of domain '{name}' is in use", disk.target)))
    });
    let holds: Vec<Box<dyn Debug + Send + Sync>> = holds.collect::<Result<_>>()?;
    let before = marks(host, request)?;
    let value = copy()?;
    let ran = |what: &str| {
        let message = format!(
            "domain '{name}' was shut off and {what} while its disks were read; the copy is inconsistent"
        );
        Err(Error::new(ErrorKind::InUse, message)
            .with_hint("back it up again; running guests can be backed up, too"))
    };
    if marks(host, request)? != before {
        return ran("an image was written to");
    }
    let view = DomainView::look(host.hypervisor, request.domain)?;
    if view.is_active() {
        return ran("started");
    }
    // A lost event is made up for by the marks and by the locks.
    let started = |event: DomainEvent| matches!(event, DomainEvent::Lifecycle { domain, change: Lifecycle::Started(_) } if domain == request.domain);
    if events.try_iter().any(started) {
        return ran("ran in between");
    }
    drop(holds);
    Ok(value)
}

fn marks(host: &FreezeContext<'_>, request: &OfflineRequest) -> Result<Vec<Option<ImageStamp>>> {
    request.disks.iter().map(|disk| host.files.mark(&disk.base.path)).collect()
}
