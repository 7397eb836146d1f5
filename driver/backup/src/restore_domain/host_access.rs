//! What a definition has of the host beyond the guest's disks, and whether it may.
//!
//! An archive is hostile, and a definition can run programs as root, give files to QEMU's user and hand out
//! devices. So everything that `domain_xml::host_access` does not know as the guest's alone stops the
//! restore before anything is written, unless a person allows its kind. Three things need nobody's word: the
//! files that this restore writes, what the host's own domain of the same uuid has already, element for
//! element, and what it had in an archive that this host has signed. The signature of an archive from a pipe
//! comes last, too late for this; the catalog is no witness, as it can be filled by reading what lies at a
//! destination.
//!
//! Imports: `attachments` (where libvirt keeps things), `domain_xml`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Serialize;

use super::RestoreDomainReport;
use crate::attachments::LibvirtDirectories;
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_hypervisor::domain_xml::DomainXml;
use virtfold_hypervisor::domain_xml::host_access::{self, Granted, HostAccess};

/// More are not told, in a report and in a message.
const REPORTED: usize = 100;
const NAMED: usize = 5;

/// Something that the definition has of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostAccessFinding {
    /// What `--allow` calls it.
    pub kind: &'static str,
    /// The element or attribute.
    pub place: String,
    /// What it says.
    pub value: String,
    /// What it does.
    pub reason: &'static str,
    /// Whether a person allowed it.
    pub allowed: bool,
}

/// What needs nobody's word.
pub(super) fn granted<'a>(
    places: &LibvirtDirectories,
    restored: Vec<PathBuf>,
    own: &'a [DomainXml],
) -> Granted<'a> {
    let channels = vec![places.nvram.with_file_name("channel"), PathBuf::from("/run/libvirt/qemu/channel")];
    Granted { restored, channels, own: own.iter().collect() }
}

/// Where libvirt makes the variables of a guest that has none yet.
pub(super) fn default_nvram(places: &LibvirtDirectories, name: &str) -> [PathBuf; 2] {
    ["fd", "qcow2"].map(|end| places.nvram.join(format!("{name}_VARS.{end}")))
}

/// Drives with a medium that the guest does not have on this host already.
pub(super) fn foreign_media(xml: &DomainXml, own: &[DomainXml]) -> Result<BTreeSet<String>> {
    let granted = Granted { own: own.iter().collect(), ..Granted::default() };
    let found = host_access::check(xml, &granted)?;
    Ok(found.into_iter().filter(|one| one.kind == HostAccess::Cdrom).filter_map(|one| one.disk).collect())
}

/// What a person has to allow, that which is not allowed first.
pub(super) fn look(
    xml: &DomainXml,
    granted: &Granted<'_>,
    allow: &[HostAccess],
) -> Result<Vec<HostAccessFinding>> {
    let found = host_access::check(xml, granted)?;
    let mut found: Vec<_> = found
        .into_iter()
        .map(|one| HostAccessFinding {
            kind: one.kind.name(),
            place: one.place,
            value: one.value,
            reason: one.reason,
            allowed: allow.contains(&one.kind),
        })
        .collect();
    found.sort_by_key(|one| one.allowed);
    found.truncate(REPORTED);
    Ok(found)
}

/// Refuses a definition that has more of the host than it may.
///
/// # Errors
/// [`ErrorKind::Refused`], with the kinds.
pub fn check_allowed(report: &RestoreDomainReport) -> Result<()> {
    let refused: Vec<_> = report.host_access.iter().filter(|one| !one.allowed).collect();
    if refused.is_empty() {
        return Ok(());
    }
    let told = refused.iter().take(NAMED).map(|one| {
        let (place, value) = (one.place.escape_debug(), one.value.escape_debug());
        format!("{place} '{value}' ({})", one.kind)
    });
    let mut told = told.collect::<Vec<_>>().join(", ");
    if refused.len() > NAMED {
        told += &format!(" and {} more", refused.len() - NAMED);
    }
    let kinds: BTreeSet<_> = refused.iter().map(|one| one.kind).collect();
    let allow: Vec<_> = kinds.into_iter().map(|kind| format!("--allow {kind}")).collect();
    let what = format!("the definition of '{}' reaches into this host: {told}", report.domain.escape_debug());
    Err(Error::new(ErrorKind::Refused, what).with_hint(format!(
        "nothing was changed; '--define --plan' says what each does; {} accepts it if you trust the archive; without --define only the disks are restored",
        allow.join(" ")
    )))
}
