//! Reading a domain that is shut off. Its disks are no copy on write then: a guest that starts would change them under the reader. QEMU's
//! locks keep it from starting; that they did is proven at the end, three ways: no event of a start, still shut off, and no
//! image was written to.
//!
//! Imports: `error`, `catalog`, `guest`.

use std::fmt::Debug;

use crossbeam_channel::Receiver;
use uuid::Uuid;

use super::freeze::now;
use super::sight::Sight;
use super::{FreezeReport, Frozen, FrozenDisk, Host, RestRequest};
use crate::catalog::{Change, DiskJob, DiskState, Job, JobState, Kind, Outcome};
use crate::error::{Error, ErrorKind, Result};
use crate::guest::host::Mark;
use crate::guest::{Event, Lifecycle};
use crate::job::Control;

/// Runs `copy` on the disks of a domain that is shut off, and proves that it stayed so.
///
/// # Errors
/// [`ErrorKind::InUse`] when it runs or ran, or an image is in use; whatever `copy` says.
pub fn at_rest<T>(
    host: &Host<'_>,
    request: &RestRequest,
    control: &Control,
    copy: impl FnOnce(&Frozen) -> Result<T>,
) -> Result<T> {
    let _lock = host.journal.lock(request.domain)?;
    let events = host.hypervisor.subscribe()?;
    let job = plan(host, request)?;
    host.journal.begin(&job)?;
    let copied = read(host, (request, &job.name), &events, || {
        let disks = request.disks.iter().map(|disk| FrozenDisk {
            target: disk.target.clone(),
            path: disk.base.path.clone(),
            format: disk.base.format.clone(),
        });
        copy(&Frozen { disks: disks.collect(), control: control.clone(), report: FreezeReport::default() })
    });
    let outcome = if copied.is_ok() { Outcome::Copied } else { Outcome::Failed };
    let closed = host.journal.record(job.id, &[Change::Close(outcome)]);
    let value = copied?;
    closed.map(|()| value)
}

fn plan(host: &Host<'_>, request: &RestRequest) -> Result<Job> {
    if !host.journal.open_jobs(Some(request.domain))?.is_empty() {
        let message = format!("an earlier backup of domain {} is not cleaned up", request.domain);
        return Err(Error::new(ErrorKind::InUse, message).with_hint("run `virtfold recover`"));
    }
    let sight = Sight::look(host.hypervisor, request.domain)?;
    let missing = || Error::new(ErrorKind::NotFound, format!("there is no domain {}", request.domain));
    let info = sight.info.as_ref().ok_or_else(missing)?;
    if sight.is_active() {
        return Err(Error::new(ErrorKind::InUse, format!("domain '{}' runs", info.name)));
    }
    let disks = request.disks.iter().map(|disk| DiskJob {
        target: disk.target.clone(),
        alias: None,
        base: disk.base.clone(),
        overlay: None,
        frozen: None,
        state: DiskState::Waiting,
    });
    Ok(Job {
        id: Uuid::new_v4(),
        domain: request.domain,
        name: info.name.clone(),
        persistence: info.persistence,
        live: None,
        inactive: sight.config.as_ref().map(|xml| xml.text().to_owned()),
        kind: Kind::AtRest,
        created: now(host),
        state: JobState::Reading,
        held: None,
        disks: disks.collect(),
    })
}

fn read<T>(
    host: &Host<'_>,
    (request, name): (&RestRequest, &str),
    events: &Receiver<Event>,
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
            "domain '{name}' was shut off and {what} while its disks were read; the copy is of no one moment"
        );
        Err(Error::new(ErrorKind::InUse, message)
            .with_hint("back it up again; a running guest is backed up as well"))
    };
    if marks(host, request)? != before {
        return ran("an image was written to");
    }
    let sight = Sight::look(host.hypervisor, request.domain)?;
    if sight.is_active() {
        return ran("started");
    }
    // A lost event is made up for by the marks and by the locks.
    let started = |event: Event| matches!(event, Event::Lifecycle { domain, change: Lifecycle::Started } if domain == request.domain);
    if events.try_iter().any(started) {
        return ran("ran in between");
    }
    drop(holds);
    Ok(value)
}

fn marks(host: &Host<'_>, request: &RestRequest) -> Result<Vec<Option<Mark>>> {
    request.disks.iter().map(|disk| host.files.mark(&disk.base.path)).collect()
}
