//! The real hypervisor: libvirt's QEMU driver on this host, by the official bindings (`virt`, and `virt-sys`
//! for what they lack).
//!
//! - `uri`: local URIs only. `ffi`: the calls by `virt-sys`, and all unsafe code. `qmp`: QEMU's own answer
//!   about its disks.
//!   `state`: what a domain does, in our words. `qemu_passthrough`: commits that libvirt can't do, because it
//!   does not know the overlay.
//!
//! A connection is made by the first call and made again when it is found broken. A reading call is then
//! repeated, for [`PATIENCE`] at most: libvirtd restarts in a second or two, and guests live on without it. A
//! changing call is never repeated; its error says [`HypervisorError::lost`](super::HypervisorError::lost). A
//! libvirtd that hangs is given up after 15 s by keepalive messages.
//!
//! Imports: `error`, `types`, `call_error`, `event_hub`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use libvirt::connect::Connect;
use libvirt::domain::Domain;
use libvirt::error::Error as VirtError;
use virt_sys as sys;

use super::call_error::{ErrorOrigin, HypervisorError, code};
use super::event_hub::EventHub;
use super::types::{
    Activity, BlockJob, BlockJobEnd, Checkpoint, CheckpointParts, CheckpointRequest, CommitBase,
    CommitRequest, DomainEvent, DomainId, DomainInfo, DomainState, PausedReason, QemuDisk, SnapshotQuiesce,
    SnapshotRequest, StartMode, XmlView, is_our_checkpoint,
};
use super::{ConfigStamps, Hypervisor, LiftedDenials, apparmor, domain_xml};
use virtfold_base::error::{Error, ErrorKind, Result};

mod ffi;
mod qemu_passthrough;
pub(crate) mod qmp;
mod request;
mod state;
mod uri;

pub use uri::LocalUri;

/// How long a reading call waits for a libvirtd that is away.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Where the system's libvirt keeps configurations and what saved guests resume from.
const CONFIGS: &str = "/etc/libvirt/qemu";
const SAVED: &str = "/var/lib/libvirt/qemu/save";

/// libvirt on this host.
#[derive(Debug)]
pub struct Libvirt {
    uri: LocalUri,
    hub: Arc<EventHub>,
    session: Mutex<Option<Arc<Session>>>,
}

/// A connection with its callbacks.
#[derive(Debug)]
struct Session {
    connect: Connect,
    watch: ffi::EventSubscription,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.watch.end(&self.connect);
    }
}

type VirtResult<T> = std::result::Result<T, VirtError>;

impl Libvirt {
    /// Connects.
    ///
    /// # Errors
    /// libvirtd is not there or denies access.
    pub fn open(uri: LocalUri) -> Result<Self> {
        let opened = Self { uri, hub: Arc::default(), session: Mutex::default() };
        opened.session()?;
        Ok(opened)
    }

    /// The live connection, made anew where the last one broke.
    fn session(&self) -> Result<Arc<Session>> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(live) = session.as_ref().filter(|s| s.connect.is_alive().unwrap_or(false)) {
            return Ok(Arc::clone(live));
        }
        *session = None;
        let made = self.connect().map_err(|e| {
            let doing = format!("cannot connect to libvirt at '{}'", self.uri.as_str());
            fault(&e, ErrorOrigin::Answered)
                .into_error(doing)
                .with_hint("is libvirtd (or virtqemud) running?")
        })?;
        let made = Arc::new(made);
        *session = Some(Arc::clone(&made));
        Ok(made)
    }

    fn connect(&self) -> VirtResult<Session> {
        ffi::prepare()?;
        let connect = Connect::open(Some(self.uri.as_str()))?;
        connect.set_keep_alive(5, 3)?;
        let watch = ffi::EventSubscription::register(&connect, &self.hub)?;
        Ok(Session { connect, watch })
    }

    /// A session, waited for while libvirtd is away.
    fn patient_session(&self, until: Instant) -> Result<Arc<Session>> {
        loop {
            match self.session() {
                Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(200)),
                result => return result,
            }
        }
    }

    /// A call that changes nothing: repeated when the connection breaks.
    fn read<T>(&self, doing: impl Fn() -> String, call: impl Fn(&Connect) -> VirtResult<T>) -> Result<T> {
        let until = Instant::now() + PATIENCE;
        loop {
            let session = self.patient_session(until)?;
            match call(&session.connect) {
                Ok(value) => return Ok(value),
                Err(error) => match answer(&error, &session.connect) {
                    ErrorOrigin::ConnectionLost if Instant::now() < until => {
                        std::thread::sleep(Duration::from_millis(50))
                    }
                    answer => return Err(fault(&error, answer).into_error(doing())),
                },
            }
        }
    }

    /// A call that changes something: made once.
    fn change<T>(
        &self,
        doing: impl Fn() -> String,
        call: impl FnOnce(&Connect) -> VirtResult<T>,
    ) -> Result<T> {
        let session = self.patient_session(Instant::now() + PATIENCE)?;
        call(&session.connect).map_err(|error| {
            let answer = answer(&error, &session.connect);
            let error = fault(&error, answer).into_error(doing());
            match answer {
                ErrorOrigin::Answered => error,
                ErrorOrigin::ConnectionLost => {
                    error.with_hint("the connection broke: it may have been done anyway")
                }
            }
        })
    }

    /// [`Libvirt::read`] for a domain.
    fn ask<T>(
        &self,
        domain: DomainId,
        doing: &'static str,
        call: impl Fn(&Domain) -> VirtResult<T>,
    ) -> Result<T> {
        self.read(|| format!("cannot {doing} of domain {domain}"), |connect| call(&find(connect, domain)?))
    }

    /// [`Libvirt::change`] for a domain.
    fn tell<T>(
        &self,
        domain: DomainId,
        doing: &str,
        call: impl FnOnce(&Domain) -> VirtResult<T>,
    ) -> Result<T> {
        self.change(|| format!("cannot {doing} domain {domain}"), |connect| call(&find(connect, domain)?))
    }
}

fn find(connect: &Connect, domain: DomainId) -> VirtResult<Domain> {
    connect.lookup_domain_by_uuid_string(&domain.to_string())
}

/// Whether libvirtd said no, or nothing. Its RPC layer (virErrorDomain 7) speaks for itself when the
/// connection breaks.
fn answer(error: &VirtError, connect: &Connect) -> ErrorOrigin {
    const FROM_RPC: u32 = sys::VIR_FROM_RPC;
    if error.domain().to_raw() == FROM_RPC || !connect.is_alive().unwrap_or(false) {
        ErrorOrigin::ConnectionLost
    } else {
        ErrorOrigin::Answered
    }
}

fn fault(error: &VirtError, answer: ErrorOrigin) -> HypervisorError {
    let number = |raw: u32| i32::try_from(raw).unwrap_or(code::INTERNAL);
    HypervisorError {
        code: number(error.code().to_raw()),
        domain: number(error.domain().to_raw()),
        text: error.message().to_owned(),
        answer,
    }
}

/// `None` where the call fails with `code`, which means that there is none.
fn absent<T>(result: VirtResult<T>, code: i32) -> VirtResult<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if i32::try_from(error.code().to_raw()) == Ok(code) => Ok(None),
        Err(error) => Err(error),
    }
}

/// libvirt takes QEMU's word for an I/O error's stop also where it comes late (QEMU 10 sends one
/// BLOCK_IO_ERROR a second at most) and the guest runs again. It then believes in a guest that stands still,
/// and no resume helps, because a QEMU that runs has no RESUME to tell. Stopped first, it has.
fn stop_before_resume(domain: &Domain) -> VirtResult<()> {
    if state::known_to_libvirt(domain)? == DomainState::Paused(PausedReason::IoError)
        && qmp::is_running(&domain.qemu_monitor_command(qmp::QUERY_STATUS, 0)?)
    {
        domain.qemu_monitor_command(qmp::STOP, 0)?;
    }
    Ok(())
}

impl Hypervisor for Libvirt {
    fn domains(&self) -> Result<Vec<DomainInfo>> {
        let list = |connect: &Connect| {
            let domains = connect.list_all_domains(0)?;
            let listed = state::ListedStates::of(connect)?;
            // A domain may end while it is looked at.
            let infos = domains.iter().map(|d| absent(listed.info(d), code::NO_DOMAIN));
            infos.filter_map(VirtResult::transpose).collect::<VirtResult<Vec<_>>>()
        };
        let mut domains = self.read(|| "cannot list the domains".to_owned(), list)?;
        domains.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(domains)
    }

    fn check(&self) -> Result<()> {
        self.read(|| "libvirt does not answer".to_owned(), |connect| connect.lib_version().map(drop))
    }

    fn lookup(&self, name_or_uuid: &str) -> Result<DomainInfo> {
        let by_uuid = name_or_uuid.parse::<DomainId>().ok();
        let find_it = |connect: &Connect| match by_uuid {
            // A name may look like a uuid.
            Some(id) => absent(find(connect, id), code::NO_DOMAIN)?
                .map_or_else(|| connect.lookup_domain_by_name(name_or_uuid), Ok),
            None => connect.lookup_domain_by_name(name_or_uuid),
        };
        let doing = || format!("there is no domain '{}'", name_or_uuid.escape_debug());
        self.read(doing, |connect| state::info(&find_it(connect)?))
    }

    fn domain_state(&self, domain: DomainId) -> Result<DomainState> {
        self.ask(domain, "read the state", state::run)
    }

    fn xml(&self, domain: DomainId, config: XmlView) -> Result<String> {
        let flags = match config {
            XmlView::Live => sys::VIR_DOMAIN_XML_SECURE,
            XmlView::Inactive => sys::VIR_DOMAIN_XML_SECURE | sys::VIR_DOMAIN_XML_INACTIVE,
        };
        let found = self.ask(domain, "read the XML", |d| {
            let there = config == XmlView::Inactive || d.is_active()?;
            Ok(if there { Some(d.xml_desc(flags)?) } else { None })
        })?;
        // libvirt gives the configuration where a domain does not run; that would be taken for what runs.
        let off =
            || Error::new(ErrorKind::NotFound, format!("domain {domain} has no live XML: it does not run"));
        found.ok_or_else(off)
    }

    fn config_stamps(&self) -> Result<ConfigStamps> {
        // A session's are elsewhere, and so may be those behind a socket of its own.
        if self.uri.as_str() != LocalUri::SYSTEM {
            return Ok(ConfigStamps::default());
        }
        ConfigStamps::of_files(Path::new(CONFIGS), Path::new(SAVED))
    }

    fn define(&self, xml: &str) -> Result<DomainId> {
        let doing = || "cannot define the domain".to_owned();
        let define = |connect: &Connect| {
            connect.define_domain_xml_flags(xml, sys::VIR_DOMAIN_DEFINE_VALIDATE)?.uuid().map(DomainId)
        };
        self.change(doing, define)
    }

    fn undefine(&self, domain: DomainId) -> Result<()> {
        let flags = sys::VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | sys::VIR_DOMAIN_UNDEFINE_KEEP_TPM;
        self.tell(domain, "undefine", |d| d.undefine_flags(flags))
    }

    fn start(&self, domain: DomainId, start: StartMode) -> Result<()> {
        let flags = match start {
            StartMode::Running => 0,
            StartMode::Paused => sys::VIR_DOMAIN_START_PAUSED,
        };
        self.tell(domain, "start", |d| d.create_with_flags(flags)).map(drop)
    }

    fn destroy(&self, domain: DomainId) -> Result<()> {
        self.tell(domain, "destroy", Domain::destroy)
    }

    fn managed_save_xml(&self, domain: DomainId) -> Result<Option<String>> {
        self.ask(domain, "read the managed save image", |d| {
            let there = d.has_managed_save(0)?;
            Ok(if there { Some(ffi::managed_save_xml(d)?) } else { None })
        })
    }

    fn define_managed_save_xml(&self, domain: DomainId, xml: &str) -> Result<()> {
        self.tell(domain, "change the managed save image of", |d| ffi::define_managed_save_xml(d, xml))
    }

    fn snapshot(&self, domain: DomainId, request: &SnapshotRequest) -> Result<()> {
        let xml = request::snapshot_xml(request);
        let quiesce = match request.quiesce() {
            SnapshotQuiesce::ByAgent => sys::VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE,
            SnapshotQuiesce::No => 0,
        };
        let take = |d: &Domain| d.create_snapshot_xml(&xml, ffi::SNAPSHOT_FLAGS | quiesce);
        self.tell(domain, "take a snapshot of", take).map(drop)
    }

    fn commit(&self, domain: DomainId, request: &CommitRequest) -> Result<()> {
        let base = ffi::base_of(&request.base).map_err(|path| {
            Error::new(ErrorKind::Unsupported, format!("'{}' is not UTF-8", path.display()))
        })?;
        let doing = format!("commit disk '{}' of", request.target);
        let commit = |d: &Domain| ffi::commit(d, &request.target, base, request.bytes_per_second);
        let started = self.tell(domain, &doing, commit);
        let refused = started.as_ref().err().and_then(HypervisorError::code_of) == Some(code::INVALID_ARG);
        match request.base {
            CommitBase::Shallow if refused => {
                self.commit_behind(domain, &request.target)?.map_or(started, Ok)
            }
            _ => started,
        }
    }

    fn lift_denial(&self, domain: DomainId, image: &Path) -> Result<Option<LiftedDenials>> {
        apparmor::lift(Path::new(apparmor::RULES), domain, image)
    }

    fn restore_denial(&self, _: DomainId, denial: &LiftedDenials) -> Result<()> {
        apparmor::restore(denial)
    }

    fn block_job(&self, domain: DomainId, target: &str) -> Result<Option<BlockJob>> {
        match self.ask(domain, "read the block jobs", |d| ffi::block_job(d, target))? {
            Some(job) => Ok(Some(job)),
            None => self.job_behind(domain, target),
        }
    }

    fn end_block_job(&self, domain: DomainId, target: &str, end: BlockJobEnd) -> Result<()> {
        let doing = match end {
            BlockJobEnd::Pivot => format!("pivot disk '{target}' of"),
            BlockJobEnd::Abort => format!("abort the block job of disk '{target}' of"),
        };
        let ended = self.tell(domain, &doing, |d| ffi::end_block_job(d, target, end));
        match &ended {
            Err(error) if !HypervisorError::lost(error) => {
                self.end_behind(domain, target, end)?.map_or(ended, Ok)
            }
            _ => ended,
        }
    }

    fn cap_block_job(&self, domain: DomainId, target: &str, bytes_per_second: u64) -> Result<()> {
        let capped = self.tell(domain, "set the speed of a block job of", |d| {
            ffi::cap_block_job(d, target, bytes_per_second)
        });
        match &capped {
            // A commit that libvirt knows nothing of never has a limit.
            Err(error) if !HypervisorError::lost(error) && bytes_per_second == 0 => {
                self.job_behind(domain, target)?.map_or(capped, |_| Ok(()))
            }
            _ => capped,
        }
    }

    fn set_block_threshold(&self, domain: DomainId, target: &str, bytes: u64) -> Result<()> {
        self.tell(domain, "set a write threshold for", |d| d.set_block_threshold(target, bytes, 0))
    }

    fn suspend(&self, domain: DomainId) -> Result<()> {
        self.tell(domain, "suspend", Domain::suspend).map(drop)
    }

    fn resume(&self, domain: DomainId) -> Result<()> {
        self.tell(domain, "resume", |d| {
            stop_before_resume(d)?;
            d.resume()
        })
        .map(drop)
    }

    fn set_agent_time_limit(&self, domain: DomainId, limit: Duration) -> Result<()> {
        self.tell(domain, "set the agent's time limit of", |d| {
            ffi::set_agent_time_limit(d, request::whole_seconds(limit))
        })
    }

    fn ping_agent(&self, domain: DomainId, limit: Duration) -> Result<()> {
        let ping = |d: &Domain| {
            d.qemu_agent_command(r#"{"execute":"guest-ping"}"#, request::whole_seconds(limit), 0)
        };
        self.tell(domain, "reach the agent of", ping).map(drop)
    }

    fn freeze(&self, domain: DomainId) -> Result<u32> {
        self.tell(domain, "freeze the file systems of", ffi::freeze)
    }

    fn thaw(&self, domain: DomainId) -> Result<u32> {
        self.tell(domain, "thaw the file systems of", ffi::thaw)
    }

    fn is_thawed(&self, domain: DomainId, limit: Duration) -> Result<bool> {
        let status = |d: &Domain| {
            d.qemu_agent_command(r#"{"execute":"guest-fsfreeze-status"}"#, request::whole_seconds(limit), 0)
        };
        let reply = self.tell(domain, "ask the agent for the file systems of", status)?;
        Ok(qmp::is_thawed(&reply))
    }

    fn query_block(&self, domain: DomainId) -> Result<Vec<QemuDisk>> {
        let reply =
            self.ask(domain, "ask QEMU for the disks", |d| d.qemu_monitor_command(qmp::QUERY_BLOCK, 0))?;
        qmp::read_query_block(&reply)
    }

    fn close_unused(&self, domain: DomainId, image: &Path) -> Result<()> {
        self.tell(domain, "close an unused image of", |d| {
            // The format's node holds the protocol's, which can only be closed after it.
            for _ in 0..qmp::LAYERS {
                let nodes = qmp::nodes_of(&d.qemu_monitor_command(qmp::QUERY_NODES, 0)?, image);
                for node in nodes {
                    d.qemu_monitor_command(&qmp::close_node(&node), 0)?;
                }
            }
            Ok(())
        })
    }

    fn checkpoints(&self, domain: DomainId) -> Result<Vec<Checkpoint>> {
        self.ask(domain, "list the checkpoints", ffi::checkpoints)
    }

    fn create_checkpoint(&self, domain: DomainId, request: &CheckpointRequest) -> Result<()> {
        let xml = request::checkpoint_xml(request);
        self.tell(domain, "make a checkpoint of", |d| ffi::create_checkpoint(d, &xml))
    }

    fn delete_checkpoint(&self, domain: DomainId, name: &str, parts: CheckpointParts) -> Result<()> {
        if !is_our_checkpoint(name) {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("the checkpoint '{name}' is not virtfold's"),
            ));
        }
        self.tell(domain, "delete a checkpoint of", |d| ffi::delete_checkpoint(d, name, parts))
    }

    fn activity(&self, domain: DomainId) -> Result<Activity> {
        self.ask(domain, "read the jobs", |d| {
            // A domain that does not run has no backup; libvirt then says that the operation is not valid.
            let backup = if d.is_active()? { absent(ffi::backup_xml(d), code::NO_BACKUP)? } else { None };
            let snapshots = d.list_all_snapshots(0)?.iter().map(|s| s.name()).collect::<VirtResult<_>>()?;
            let checkpoints = ffi::checkpoints(d)?.into_iter().map(|checkpoint| checkpoint.name).collect();
            Ok(Activity { backup, checkpoints, snapshots })
        })
    }

    fn volume_path(&self, pool: &str, volume: &str) -> Result<PathBuf> {
        let doing = || format!("cannot find volume '{volume}' of pool '{pool}'");
        let look = |connect: &Connect| {
            connect.lookup_storage_pool_by_name(pool)?.lookup_storage_vol_by_name(volume)?.path()
        };
        self.read(doing, look).map(PathBuf::from)
    }

    fn pool_directory(&self, pool: &str) -> Result<PathBuf> {
        let doing = || format!("cannot find pool '{pool}'");
        let xml = self.read(doing, |connect| connect.lookup_storage_pool_by_name(pool)?.xml_desc(0))?;
        domain_xml::pool_directory(&xml, pool)
    }

    fn refresh_pool(&self, pool: &str) -> Result<()> {
        let doing = || format!("cannot refresh pool '{pool}'");
        self.change(doing, |connect| connect.lookup_storage_pool_by_name(pool)?.refresh(0)).map(drop)
    }

    fn subscribe(&self) -> Result<Receiver<DomainEvent>> {
        let receiver = self.hub.subscribe();
        self.session()?;
        Ok(receiver)
    }
}
