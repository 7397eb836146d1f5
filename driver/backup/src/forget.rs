//! Forgetting a guest that is gone: its runs, its last failure, its place in status and metrics. Its archives
//! stay, and what is known of them: they go by the rules of pruning, or by hand.
//!
//! Nothing is forgotten of a guest that is there, has a run going, or whose disks a broken-off backup has not
//! brought home: libvirt, the domain's lock and the journal are asked, in this order.
//!
//! Imports: `error`, `catalog`, `hypervisor`.

use serde::Serialize;
use uuid::Uuid;

use crate::RunMode;
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_catalog::{Catalog, Journal, KnownDomain};
use virtfold_hypervisor::{DomainId, Hypervisor};

/// What is forgotten of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Forgotten {
    /// What it was called last.
    pub domain: String,
    /// Its uuid.
    pub uuid: Uuid,
    /// Runs in the queue that had ended, or waited.
    pub runs: u64,
    /// Closed jobs of the journal.
    pub history: u64,
    /// Copies of its archives that the catalog knows to be there: they stay.
    pub archives: u64,
}

/// Forgets the guests that were called `domain`, or the one of that uuid.
///
/// # Errors
/// [`ErrorKind::InUse`]: it is there, or something of it is not ended; [`ErrorKind::NotFound`]: nothing is
/// known of it; libvirt can't be asked, the catalog not be used.
pub fn run(
    domain: &str,
    mode: RunMode,
    hypervisor: &dyn Hypervisor,
    catalog: &Catalog,
) -> Result<Vec<Forgotten>> {
    let known = catalog.known_domains(domain)?;
    refuse_present(domain, hypervisor, &known)?;
    if known.is_empty() {
        let what = format!("the catalog does not know domain '{domain}'");
        return Err(
            Error::new(ErrorKind::NotFound, what).with_hint("'virtfold status' lists the domains it knows")
        );
    }
    // All are looked at before the first is forgotten.
    let locks = known.iter().map(|known| catalog.lock(known.id)).collect::<Result<Vec<_>>>()?;
    let forgotten = known.iter().map(|known| look(known, catalog)).collect::<Result<Vec<_>>>()?;
    if mode == RunMode::Apply {
        known.iter().try_for_each(|known| catalog.forget_domain(known.id))?;
    }
    drop(locks);
    Ok(forgotten)
}

/// Refuses what libvirt has: under this name, or by now under another one.
fn refuse_present(domain: &str, hypervisor: &dyn Hypervisor, known: &[KnownDomain]) -> Result<()> {
    let names = known.iter().map(|known| known.id.to_string());
    for name in std::iter::once(domain.to_owned()).chain(names) {
        let info = match hypervisor.lookup(&name) {
            Ok(info) => info,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let others: Vec<String> =
            known.iter().filter(|known| known.id != info.id).map(|known| known.id.to_string()).collect();
        let hint = match others.is_empty() {
            true => {
                "'virsh undefine' removes it; 'except' in a job leaves a domain out of its backups".to_owned()
            }
            false => {
                format!("to forget an earlier domain of that name, give its uuid: {}", others.join(", "))
            }
        };
        let message = format!(
            "domain '{}' ({}) exists; only a domain that no longer exists can be forgotten",
            info.name, info.id
        );
        return Err(Error::new(ErrorKind::InUse, message).with_hint(hint));
    }
    Ok(())
}

/// What is known of it; nothing of it may be going on.
fn look(known: &KnownDomain, catalog: &Catalog) -> Result<Forgotten> {
    let KnownDomain { id, name } = known;
    if !catalog.open_sessions(Some(*id))?.is_empty() {
        let message = format!("a backup of '{name}' ({id}) was interrupted, and its freeze session is open");
        return Err(
            Error::new(ErrorKind::InUse, message).with_hint(format!("run 'virtfold recover {id}' first"))
        );
    }
    let traces = catalog.traces(*id)?;
    if traces.running > 0 {
        let message = format!("the queue has a running backup of '{name}' ({id})");
        return Err(Error::new(ErrorKind::InUse, message)
            .with_hint("'virtfold queue' shows it, 'virtfold cancel' stops it"));
    }
    let DomainId(uuid) = *id;
    let (runs, history, archives) = (traces.runs, traces.history, traces.archives);
    Ok(Forgotten { domain: name.clone(), uuid, runs, history, archives })
}

#[cfg(test)]
#[path = "forget_tests.rs"]
mod tests;
