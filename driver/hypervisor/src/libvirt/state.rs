//! What a domain is and does, from libvirt's words to ours.
//!
//! Imports: `types`, `qmp`, `ffi`.

use std::collections::BTreeSet;

use libvirt::connect::Connect;
use libvirt::domain::Domain;
use uuid::Uuid;
use virt_sys as sys;

use super::{VirtResult, ffi, qmp};
use crate::types::{DomainId, DomainInfo, DomainState, PausedReason, Persistence};

pub(super) fn info(domain: &Domain) -> VirtResult<DomainInfo> {
    let persistence = if domain.is_persistent()? { Persistence::Persistent } else { Persistence::Transient };
    let id = DomainId(domain.uuid()?);
    Ok(DomainInfo { id, name: domain.name()?, persistence, run: run(domain)? })
}

/// libvirt does not always know why a guest stands still: where an I/O error stops it in the moment in which
/// it is resumed, the reason is 'unknown'. QEMU knows.
pub(super) fn run(domain: &Domain) -> VirtResult<DomainState> {
    let run = known_to_libvirt(domain)?;
    if run != DomainState::Paused(PausedReason::Other(0)) {
        return Ok(run);
    }
    let status = domain.qemu_monitor_command(qmp::QUERY_STATUS, 0);
    Ok(if status.is_ok_and(|reply| qmp::is_io_error(&reply)) {
        DomainState::Paused(PausedReason::IoError)
    } else {
        run
    })
}

/// The state that libvirt has for it.
pub(super) fn known_to_libvirt(domain: &Domain) -> VirtResult<DomainState> {
    let (state, reason) = ffi::state(domain)?;
    Ok(state_of(state, reason))
}

/// libvirt's virDomainState and virDomainPausedReason.
fn state_of(state: u32, reason: i32) -> DomainState {
    match state {
        sys::VIR_DOMAIN_PAUSED => DomainState::Paused(match u32::try_from(reason).unwrap_or(0) {
            sys::VIR_DOMAIN_PAUSED_USER => PausedReason::User,
            sys::VIR_DOMAIN_PAUSED_IOERROR => PausedReason::IoError,
            sys::VIR_DOMAIN_PAUSED_MIGRATION
            | sys::VIR_DOMAIN_PAUSED_SAVE
            | sys::VIR_DOMAIN_PAUSED_DUMP
            | sys::VIR_DOMAIN_PAUSED_SNAPSHOT
            | sys::VIR_DOMAIN_PAUSED_POSTCOPY
            | sys::VIR_DOMAIN_PAUSED_POSTCOPY_FAILED => PausedReason::Busy,
            sys::VIR_DOMAIN_PAUSED_STARTING_UP => PausedReason::Starting,
            sys::VIR_DOMAIN_PAUSED_CRASHED => PausedReason::Crashed,
            _ => PausedReason::Other(reason),
        }),
        sys::VIR_DOMAIN_PMSUSPENDED => DomainState::PmSuspended,
        sys::VIR_DOMAIN_SHUTDOWN => DomainState::ShuttingDown,
        sys::VIR_DOMAIN_SHUTOFF => DomainState::ShutOff,
        sys::VIR_DOMAIN_CRASHED => DomainState::Crashed,
        _ => DomainState::Running,
    }
}

/// What libvirt's lists by flags say of all domains together: three calls, where each domain would take two.
pub(super) struct ListedStates {
    running: BTreeSet<Uuid>,
    shut_off: BTreeSet<Uuid>,
    persistent: BTreeSet<Uuid>,
}

impl ListedStates {
    pub(super) fn of(connect: &Connect) -> VirtResult<Self> {
        let list =
            |flags| connect.list_all_domains(flags)?.iter().map(Domain::uuid).collect::<VirtResult<_>>();
        Ok(Self {
            running: list(sys::VIR_CONNECT_LIST_DOMAINS_RUNNING)?,
            shut_off: list(sys::VIR_CONNECT_LIST_DOMAINS_SHUTOFF)?,
            persistent: list(sys::VIR_CONNECT_LIST_DOMAINS_PERSISTENT)?,
        })
    }

    /// A domain that changed between two lists, one that stands still, whose reason no list says, and one
    /// that is transient are asked themselves.
    pub(super) fn info(&self, domain: &Domain) -> VirtResult<DomainInfo> {
        let uuid = domain.uuid()?;
        let run = match (self.running.contains(&uuid), self.shut_off.contains(&uuid)) {
            (true, false) => DomainState::Running,
            (false, true) => DomainState::ShutOff,
            _ => return info(domain),
        };
        if !self.persistent.contains(&uuid) {
            return info(domain);
        }
        Ok(DomainInfo { id: DomainId(uuid), name: domain.name()?, persistence: Persistence::Persistent, run })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// libvirt's own simulation, which needs no daemon.
    #[test]
    fn lists_by_flags_say_what_each_domain_says() {
        libvirt::error::clear_error_callback();
        let connect = Connect::open(Some("test:///default")).unwrap();
        let define = |name: &str| {
            let xml = format!(
                "<domain type='test'><name>{name}</name><memory>8192</memory><os><type>hvm</type></os></domain>"
            );
            connect.define_domain_xml_flags(&xml, 0).unwrap()
        };
        let (_off, paused) = (define("off"), define("paused"));
        paused.create().unwrap();
        paused.suspend().unwrap();
        let transient =
            "<domain type='test'><name>gone</name><memory>8192</memory><os><type>hvm</type></os></domain>";
        connect.create_domain_xml(transient, 0).unwrap();
        let listed = ListedStates::of(&connect).unwrap();
        let domains = connect.list_all_domains(0).unwrap();
        assert_eq!(domains.len(), 4, "the test driver has one running domain of its own");
        let mut kinds = BTreeSet::new();
        for domain in &domains {
            let (found, asked) = (listed.info(domain).unwrap(), info(domain).unwrap());
            assert_eq!(found, asked);
            kinds.insert(format!("{:?} {:?}", found.run, found.persistence));
        }
        assert_eq!(kinds.len(), 4, "{kinds:?}");
        // One that has changed since is asked itself.
        paused.destroy().unwrap();
        let stale = domains.iter().find(|d| d.name().unwrap() == "paused").unwrap();
        assert_eq!(listed.info(stale).unwrap().run, DomainState::ShutOff);
    }
}
