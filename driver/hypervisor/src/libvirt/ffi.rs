//! The calls that `virt` does not wrap, or wraps wrongly, by `virt-sys`; the one file with unsafe code.
//!
//! What every SAFETY comment below relies on: `as_ptr()` of a [`Connect`] or [`Domain`] is valid as long as
//! that object is borrowed; libvirt copies the strings it is given before it returns; its calls may be made
//! from any thread; a call that fails says so by -1 or null and leaves its output alone.
//!
//! Callbacks run on the event loop's thread. They get a pointer to an `Arc<EventHub>` of their own, which
//! libvirt gives back to [`free_hub`] once no callback can use it any more.
//!
//! Imports: `types`, `event_hub`.

#![allow(unsafe_code, reason = "the bindings' gaps; see the module's description")]

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::ptr;
use std::sync::{Arc, OnceLock};

use libvirt::connect::Connect;
use libvirt::domain::Domain;
use libvirt::error::Error as VirtError;
use uuid::Uuid;
use virt_sys as sys;

use crate::event_hub::EventHub;
use crate::types::{BlockJob, BlockJobEnd, BlockJobKind, Checkpoint, CheckpointParts, CommitBase, DomainId};

type Result<T> = std::result::Result<T, VirtError>;

/// An output of -1 is an error, anything else the result.
fn checked(returned: c_int) -> Result<c_int> {
    if returned < 0 { Err(VirtError::last_error()) } else { Ok(returned) }
}

fn c_string(text: &str) -> Result<CString> {
    Ok(CString::new(text)?)
}

/// Takes a string that the caller has to free.
fn taken(text: *mut c_char) -> Result<String> {
    if text.is_null() {
        return Err(VirtError::last_error());
    }
    // SAFETY: libvirt returned a non-null C string that is ours now.
    let owned = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: libvirt allocates with malloc and leaves freeing to the caller; it is not used any more.
    unsafe { nix::libc::free(text.cast()) };
    Ok(owned)
}

/// Silences libvirt and starts the event loop, once in a process and before its first connection.
pub(super) fn prepare() -> Result<()> {
    static ONCE: OnceLock<Result<()>> = OnceLock::new();
    let prepared = ONCE.get_or_init(|| {
        libvirt::error::clear_error_callback();
        start_event_loop()
    });
    prepared.clone()
}

fn start_event_loop() -> Result<()> {
    libvirt::event::event_register_default_impl()?;
    // The default loop sleeps in poll() until something it knew of beforehand happens. The timer wakes it, so
    // that what was registered since is seen.
    // SAFETY: the callback uses no data, and none has to be freed.
    checked(unsafe { sys::virEventAddTimeout(250, Some(on_timer), ptr::null_mut(), None) })?;
    let run = || {
        loop {
            if let Err(error) = libvirt::event::event_run_default_impl() {
                tracing::warn!(%error, "libvirt's event loop stumbled");
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("libvirt".to_owned()).spawn(run) {
        tracing::error!(%error, "no thread for libvirt's events: they will be missed");
    }
    Ok(())
}

unsafe extern "C" fn on_timer(_timer: c_int, _opaque: *mut c_void) {}

/// The domain's state and reason (virDomainState and the reason's own enumeration). `virt` ignores this
/// call's failure.
pub(super) fn state(domain: &Domain) -> Result<(u32, i32)> {
    let (mut state, mut reason): (c_int, c_int) = (0, 0);
    // SAFETY: valid domain; both outputs live until the call returns.
    checked(unsafe { sys::virDomainGetState(domain.as_ptr(), &mut state, &mut reason, 0) })?;
    Ok((u32::try_from(state).unwrap_or(0), reason))
}

/// The one place that starts a commit; see [`CommitBase`].
pub(super) fn commit(domain: &Domain, disk: &str, base: Option<&str>, cap: u64) -> Result<()> {
    let (disk, base) = (c_string(disk)?, base.map(c_string).transpose()?);
    // Without a base libvirt goes to the bottom of the chain unless it is told SHALLOW.
    let shallow = if base.is_none() { sys::VIR_DOMAIN_BLOCK_COMMIT_SHALLOW } else { 0 };
    let flags = sys::VIR_DOMAIN_BLOCK_COMMIT_ACTIVE | sys::VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES | shallow;
    let base = base.as_ref().map_or(ptr::null(), |b| b.as_ptr());
    // SAFETY: valid domain; the strings live until the call returns; null top means the active image.
    let returned =
        unsafe { sys::virDomainBlockCommit(domain.as_ptr(), disk.as_ptr(), base, ptr::null(), cap, flags) };
    checked(returned).map(drop)
}

/// The base as libvirt wants it: null, with SHALLOW, for the image below.
pub(super) fn base_of(base: &CommitBase) -> std::result::Result<Option<&str>, &std::path::Path> {
    match base {
        CommitBase::Shallow => Ok(None),
        CommitBase::Explicit(path) => path.to_str().map(Some).ok_or(path),
    }
}

pub(super) fn block_job(domain: &Domain, disk: &str) -> Result<Option<BlockJob>> {
    let disk = c_string(disk)?;
    let mut info = sys::virDomainBlockJobInfo { type_: 0, bandwidth: 0, cur: 0, end: 0 };
    // SAFETY: valid domain; string and output live until the call returns.
    let found =
        checked(unsafe { sys::virDomainGetBlockJobInfo(domain.as_ptr(), disk.as_ptr(), &mut info, 0) })?;
    let job = BlockJob { kind: block_job_kind(info.type_), current: info.cur, end: info.end };
    Ok((found > 0).then_some(job))
}

fn block_job_kind(number: c_int) -> BlockJobKind {
    match u32::try_from(number).unwrap_or(0) {
        sys::VIR_DOMAIN_BLOCK_JOB_TYPE_PULL => BlockJobKind::Pull,
        sys::VIR_DOMAIN_BLOCK_JOB_TYPE_COPY => BlockJobKind::Copy,
        sys::VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT => BlockJobKind::Commit,
        sys::VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT => BlockJobKind::ActiveCommit,
        sys::VIR_DOMAIN_BLOCK_JOB_TYPE_BACKUP => BlockJobKind::Backup,
        _ => BlockJobKind::Other(number),
    }
}

pub(super) fn end_block_job(domain: &Domain, disk: &str, end: BlockJobEnd) -> Result<()> {
    let disk = c_string(disk)?;
    let flags = match end {
        BlockJobEnd::Pivot => sys::VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT,
        BlockJobEnd::Abort => 0,
    };
    // SAFETY: valid domain; the string lives until the call returns.
    checked(unsafe { sys::virDomainBlockJobAbort(domain.as_ptr(), disk.as_ptr(), flags) }).map(drop)
}

pub(super) fn cap_block_job(domain: &Domain, disk: &str, bytes_per_second: u64) -> Result<()> {
    let disk = c_string(disk)?;
    let flags = sys::VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES;
    // SAFETY: valid domain; the string lives until the call returns.
    let returned =
        unsafe { sys::virDomainBlockJobSetSpeed(domain.as_ptr(), disk.as_ptr(), bytes_per_second, flags) };
    checked(returned).map(drop)
}

pub(super) fn freeze(domain: &Domain) -> Result<u32> {
    // SAFETY: valid domain; null and 0 mean all file systems.
    let frozen = checked(unsafe { sys::virDomainFSFreeze(domain.as_ptr(), ptr::null_mut(), 0, 0) })?;
    Ok(u32::try_from(frozen).unwrap_or(0))
}

pub(super) fn thaw(domain: &Domain) -> Result<u32> {
    // SAFETY: valid domain; null and 0 mean all file systems.
    let thawed = checked(unsafe { sys::virDomainFSThaw(domain.as_ptr(), ptr::null_mut(), 0, 0) })?;
    Ok(u32::try_from(thawed).unwrap_or(0))
}

pub(super) fn set_agent_time_limit(domain: &Domain, seconds: i32) -> Result<()> {
    // SAFETY: valid domain.
    checked(unsafe { sys::virDomainAgentSetResponseTimeout(domain.as_ptr(), seconds, 0) }).map(drop)
}

pub(super) fn managed_save_xml(domain: &Domain) -> Result<String> {
    // SAFETY: valid domain; the string is ours to free.
    taken(unsafe {
        sys::virDomainManagedSaveGetXMLDesc(domain.as_ptr(), sys::VIR_DOMAIN_SAVE_IMAGE_XML_SECURE)
    })
}

pub(super) fn define_managed_save_xml(domain: &Domain, xml: &str) -> Result<()> {
    let xml = c_string(xml)?;
    // SAFETY: valid domain; the string lives until the call returns.
    checked(unsafe { sys::virDomainManagedSaveDefineXML(domain.as_ptr(), xml.as_ptr(), 0) }).map(drop)
}

pub(super) fn backup_xml(domain: &Domain) -> Result<String> {
    // SAFETY: valid domain; the string is ours to free.
    taken(unsafe { sys::virDomainBackupGetXMLDesc(domain.as_ptr(), 0) })
}

pub(super) fn checkpoints(domain: &Domain) -> Result<Vec<Checkpoint>> {
    let mut list: *mut sys::virDomainCheckpointPtr = ptr::null_mut();
    // SAFETY: valid domain; libvirt allocates the list and stores its address.
    let count = checked(unsafe { sys::virDomainListAllCheckpoints(domain.as_ptr(), &mut list, 0) })?;
    let mut found = Vec::new();
    for at in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: the list has `count` valid entries, each ours to free; its name lives as long as the entry;
        // a parent that is not null is ours to free, too.
        unsafe {
            let checkpoint = *list.add(at);
            let parent = sys::virDomainCheckpointGetParent(checkpoint, 0);
            if let Some(name) = checkpoint_name(checkpoint) {
                found.push(Checkpoint { name, parent: checkpoint_name(parent) });
            }
            if !parent.is_null() {
                sys::virDomainCheckpointFree(parent);
            }
            sys::virDomainCheckpointFree(checkpoint);
        }
    }
    // SAFETY: the list is ours, allocated with malloc (or null), and its entries are freed.
    unsafe { nix::libc::free(list.cast()) };
    Ok(found)
}

/// The name of a checkpoint; nothing, where there is none.
fn checkpoint_name(checkpoint: sys::virDomainCheckpointPtr) -> Option<String> {
    if checkpoint.is_null() {
        return None;
    }
    // SAFETY: a valid checkpoint; its name lives as long as it.
    let name = unsafe { sys::virDomainCheckpointGetName(checkpoint) };
    // SAFETY: a name that is not null is a C string.
    (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
}

pub(super) fn create_checkpoint(domain: &Domain, xml: &str) -> Result<()> {
    let xml = c_string(xml)?;
    // SAFETY: valid domain; the string lives until the call returns.
    let made = unsafe { sys::virDomainCheckpointCreateXML(domain.as_ptr(), xml.as_ptr(), 0) };
    if made.is_null() {
        return Err(VirtError::last_error());
    }
    // SAFETY: the checkpoint is ours to free.
    checked(unsafe { sys::virDomainCheckpointFree(made) }).map(drop)
}

pub(super) fn delete_checkpoint(domain: &Domain, name: &str, parts: CheckpointParts) -> Result<()> {
    let name = c_string(name)?;
    let flags = match parts {
        CheckpointParts::All => 0,
        CheckpointParts::Metadata => sys::VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY,
    };
    // SAFETY: valid domain; the string lives until the call returns.
    let found = unsafe { sys::virDomainCheckpointLookupByName(domain.as_ptr(), name.as_ptr(), 0) };
    if found.is_null() {
        return Err(VirtError::last_error());
    }
    // SAFETY: a valid checkpoint that is ours to free.
    let deleted = checked(unsafe { sys::virDomainCheckpointDelete(found, flags) });
    // SAFETY: the checkpoint is ours, and is not used any more.
    unsafe { sys::virDomainCheckpointFree(found) };
    deleted.map(drop)
}

/// Callbacks registered on a connection. They end with it.
#[derive(Debug)]
pub(super) struct EventSubscription {
    ids: Vec<c_int>,
}

/// The type that libvirt casts every domain event's callback to and back from.
type AnyCallback = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);

impl EventSubscription {
    /// Lets `hub` hear of everything on this connection.
    pub(super) fn register(connect: &Connect, hub: &Arc<EventHub>) -> Result<Self> {
        // SAFETY: libvirt casts each of these back to the type that belongs to its event before it calls it.
        let callbacks: [(sys::virDomainEventID, AnyCallback); 3] = unsafe {
            [
                (
                    sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE,
                    std::mem::transmute::<*const (), AnyCallback>(on_lifecycle as *const ()),
                ),
                (
                    sys::VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2,
                    std::mem::transmute::<*const (), AnyCallback>(on_block_job as *const ()),
                ),
                (
                    sys::VIR_DOMAIN_EVENT_ID_BLOCK_THRESHOLD,
                    std::mem::transmute::<*const (), AnyCallback>(on_threshold as *const ()),
                ),
            ]
        };
        let mut watch = Self { ids: Vec::new() };
        for (event, callback) in callbacks {
            let event = c_int::try_from(event).unwrap_or(c_int::MAX);
            match register_event(connect, event, callback, hub) {
                Ok(id) => watch.ids.push(id),
                Err(error) => {
                    watch.end(connect);
                    return Err(error);
                }
            }
        }
        let opaque = Arc::into_raw(Arc::clone(hub)).cast_mut().cast();
        // SAFETY: valid connection; `opaque` is a hub of the callback's own, which `free_hub` takes back.
        let returned = unsafe {
            sys::virConnectRegisterCloseCallback(connect.as_ptr(), Some(on_close), opaque, Some(free_hub))
        };
        if let Err(error) = checked(returned) {
            free_failed(opaque);
            watch.end(connect);
            return Err(error);
        }
        Ok(watch)
    }

    /// Ends the callbacks, so that the connection can be closed: they hold references to it. Failures do not
    /// matter, because the connection may be broken already.
    pub(super) fn end(&self, connect: &Connect) {
        // SAFETY: valid connection; ids that it gave; it ignores a callback that it does not know.
        unsafe {
            for id in &self.ids {
                sys::virConnectDomainEventDeregisterAny(connect.as_ptr(), *id);
            }
            sys::virConnectUnregisterCloseCallback(connect.as_ptr(), Some(on_close));
        }
    }
}

fn register_event(
    connect: &Connect,
    event: c_int,
    callback: AnyCallback,
    hub: &Arc<EventHub>,
) -> Result<c_int> {
    let opaque = Arc::into_raw(Arc::clone(hub)).cast_mut().cast();
    // SAFETY: valid connection; a null domain means all; `opaque` as above.
    let returned = unsafe {
        sys::virConnectDomainEventRegisterAny(
            connect.as_ptr(),
            ptr::null_mut(),
            event,
            Some(callback),
            opaque,
            Some(free_hub),
        )
    };
    checked(returned).inspect_err(|_| free_failed(opaque))
}

/// A registration that failed did not take its hub.
fn free_failed(opaque: *mut c_void) {
    // SAFETY: made by `Arc::into_raw` just before, and nobody else has it.
    unsafe { free_hub(opaque) };
}

unsafe extern "C" fn free_hub(opaque: *mut c_void) {
    // SAFETY: made by `Arc::into_raw`, and given back once.
    drop(unsafe { Arc::from_raw(opaque.cast_const().cast::<EventHub>()) });
}

/// The hub behind a callback's pointer, and the uuid of its domain.
///
/// # Safety
/// `opaque` comes from `Arc::into_raw` and was not freed yet; `domain` is valid.
unsafe fn context<'a>(domain: sys::virDomainPtr, opaque: *mut c_void) -> Option<(&'a EventHub, DomainId)> {
    let mut bytes = [0; 16];
    // SAFETY: the caller's promise; 16 bytes are what a uuid has.
    let (found, hub) = unsafe {
        (sys::virDomainGetUUID(domain, bytes.as_mut_ptr()), &*opaque.cast_const().cast::<EventHub>())
    };
    (found == 0).then(|| (hub, DomainId(Uuid::from_bytes(bytes))))
}

/// # Safety
/// `text` is null or a C string.
unsafe fn text_of(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

unsafe extern "C" fn on_lifecycle(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: libvirt passes a valid domain and the pointer it was given at the registration.
    if let Some((hub, id)) = unsafe { context(domain, opaque) } {
        hub.lifecycle(id, event, detail);
    }
    0
}

unsafe extern "C" fn on_block_job(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    disk: *const c_char,
    kind: c_int,
    status: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: as above; `disk` is a C string.
    let (found, disk) = unsafe { (context(domain, opaque), text_of(disk)) };
    if let Some((hub, id)) = found {
        hub.block_job(id, disk, block_job_kind(kind), status);
    }
}

unsafe extern "C" fn on_threshold(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    disk: *const c_char,
    _path: *const c_char,
    _threshold: c_ulonglong,
    _excess: c_ulonglong,
    opaque: *mut c_void,
) {
    // SAFETY: as above; `disk` is a C string.
    let (found, disk) = unsafe { (context(domain, opaque), text_of(disk)) };
    if let Some((hub, id)) = found {
        hub.threshold(id, disk);
    }
}

unsafe extern "C" fn on_close(_: sys::virConnectPtr, _reason: c_int, opaque: *mut c_void) {
    // SAFETY: the pointer given at the registration.
    unsafe { &*opaque.cast_const().cast::<EventHub>() }.connection_lost();
}

/// Flags of `c_uint` width for the calls of `virt` that take them so.
pub(super) const SNAPSHOT_FLAGS: c_uint = sys::VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    | sys::VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
    | sys::VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA;
