//! Who the restored guest is.
//!
//! - No name given, and neither its uuid nor its name is known: it is defined **as it was**, uuid and MACs
//!   kept.
//! - No name given, and a domain has both: a **replacement**, of a domain that is shut off, and only where
//!   replacing was asked for. What belongs to the disks' old contents must be gone before: a managed save
//!   (the guest would go on with the old memory on the new disks), snapshots and checkpoints (they name
//!   places in the old disks).
//! - No name given, and only one of the two is known: refused. libvirt would refuse it too, and neither guess
//!   is safe.
//! - A name given: a **copy** with a uuid of its own.

use serde::Serialize;
use uuid::Uuid;

use super::inventory::{HostDomain, Inventory};
use super::{DefineContext, RestoreDomainRequest};
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::partial_file::Overwrite;
use virtfold_hypervisor::domain_xml::DomainXml;
use virtfold_hypervisor::{DomainId, DomainState, is_our_checkpoint};

/// What a restored guest is to the one that was backed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DomainIdentity {
    /// The same, and the host does not know it.
    #[serde(rename = "as-it-was")]
    Original,
    /// Another one with the same contents.
    Copy,
    /// The same, in the place of the one that is there.
    Replacement,
}

/// The domain to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NewDomain {
    pub(super) identity: DomainIdentity,
    pub(super) name: String,
    pub(super) id: DomainId,
}

impl NewDomain {
    /// The domain whose place it takes.
    pub(super) fn replaced(&self) -> Option<DomainId> {
        (self.identity == DomainIdentity::Replacement).then_some(self.id)
    }
}

/// Decides; see the module's description.
pub(super) fn decide(
    xml: &DomainXml,
    request: &RestoreDomainRequest,
    inventory: &Inventory,
    host: &DefineContext<'_>,
) -> Result<NewDomain> {
    if let Some(name) = &request.name {
        check_name(name)?;
        if let Some(other) = inventory.by_name(name) {
            let what = format!("a domain is called '{name}' already ({})", other.info.id);
            return Err(Error::new(ErrorKind::Exists, what).with_hint("give the copy another name"));
        }
        let id =
            std::iter::repeat_with(|| DomainId(Uuid::new_v4())).find(|id| inventory.by_id(*id).is_none());
        let id = id.ok_or_else(|| Error::new(ErrorKind::Internal, "there is no uuid left"))?;
        return Ok(NewDomain { identity: DomainIdentity::Copy, name: name.clone(), id });
    }
    let name = xml.name.clone();
    check_name(&name)?;
    let no_id = || Error::new(ErrorKind::Damaged, format!("the definition of '{name}' has no uuid"));
    let id = xml.id.ok_or_else(|| no_id().with_hint("restore it as a new guest with --name"))?;
    let identity = match (inventory.by_id(id), inventory.by_name(&name)) {
        (None, None) => DomainIdentity::Original,
        (Some(known), _) if known.info.name == name => {
            check_replaceable(known, request.existing, host)?;
            DomainIdentity::Replacement
        }
        (Some(known), _) => {
            return Err(name_or_uuid_conflict(&name, known, "has its uuid under another name"));
        }
        (None, Some(known)) => {
            return Err(name_or_uuid_conflict(&name, known, "has its name and another uuid"));
        }
    };
    Ok(NewDomain { identity, name, id })
}

/// A name becomes part of files' names.
fn check_name(name: &str) -> Result<()> {
    let fits = (1..=200).contains(&name.len()) && !name.starts_with('.');
    if fits && !name.chars().any(|c| c == '/' || c.is_control()) {
        return Ok(());
    }
    let what = format!("'{}' cannot be a restored domain's name", name.escape_debug());
    Err(Error::new(ErrorKind::Usage, what)
        .with_hint("say --name NAME: up to 200 bytes, no '/', not beginning with '.'"))
}

fn name_or_uuid_conflict(name: &str, known: &HostDomain, how: &str) -> Error {
    let what = format!(
        "the guest '{name}' cannot be defined: domain '{}' ({}) {how}",
        known.info.name, known.info.id
    );
    Error::new(ErrorKind::Exists, what).with_hint(
        "restore it as a copy with --name NEW, or undefine or rename the other domain first ('virsh domrename')",
    )
}

/// Whether a domain that is there may give its place.
fn check_replaceable(known: &HostDomain, existing: Overwrite, host: &DefineContext<'_>) -> Result<()> {
    let (name, id) = (&known.info.name, known.info.id);
    if known.info.run != DomainState::ShutOff {
        let what = format!("domain '{name}' is not shut off, and its disks would be replaced under it");
        return Err(Error::new(ErrorKind::InUse, what).with_hint(format!(
            "shut it down first ('virsh shutdown {name}'), or restore a copy with --name NEW"
        )));
    }
    if existing == Overwrite::Refuse {
        return Err(Error::new(ErrorKind::Exists, format!("domain '{name}' exists already"))
            .with_hint("--force replaces it and its disks, --name NEW makes a copy beside it"));
    }
    check_journal(known, host)?;
    if host.hypervisor.managed_save_xml(id)?.is_some() {
        let what = format!(
            "domain '{name}' has a saved state, which would resume with its old memory on the restored disks"
        );
        return Err(Error::new(ErrorKind::InUse, what)
            .with_hint(format!("remove it first: 'virsh managedsave-remove {name}'")));
    }
    let activity = host.hypervisor.activity(id)?;
    let left = [("snapshot", &activity.snapshots), ("checkpoint", &activity.checkpoints)];
    for (kind, names) in left {
        // Ours are forgotten when the domain is defined.
        if let Some(first) = names.iter().find(|name| kind == "snapshot" || !is_our_checkpoint(name)) {
            let what =
                format!("domain '{name}' has the {kind} '{first}', which belongs to its present disks");
            let hint = format!("remove it first: 'virsh {kind}-delete {name} {first} --metadata'");
            return Err(Error::new(ErrorKind::InUse, what).with_hint(hint));
        }
    }
    Ok(())
}

/// Refuses a domain of which a backup was begun and not ended: its base and its overlay are not one yet.
fn check_journal(known: &HostDomain, host: &DefineContext<'_>) -> Result<()> {
    let open = host.journal.map(|journal| journal.open_sessions(Some(known.info.id))).transpose()?;
    if open.is_none_or(|jobs| jobs.is_empty()) {
        return Ok(());
    }
    let name = &known.info.name;
    Err(Error::new(ErrorKind::InUse, format!("a backup of domain '{name}' was begun and has not ended"))
        .with_hint(format!(
            "run 'virtfold recover {name}'; where that can't decide, undefine the domain ('virsh undefine {name} --keep-nvram') and restore again"
        )))
}
