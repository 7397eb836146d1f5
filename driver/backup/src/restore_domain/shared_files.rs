//! What two domains cannot share. libvirt takes it all: the same MAC address twice, the same socket, the same
//! file.

use std::path::{Path, PathBuf};

use super::inventory::Inventory;
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_hypervisor::DomainId;
use virtfold_hypervisor::domain_xml::{Device, DomainXml, ImageSource};

/// Refuses a definition that shares something with a domain other than `replaced`, or with itself.
pub(super) fn check(xml: &DomainXml, inventory: &Inventory, replaced: Option<DomainId>) -> Result<()> {
    let other = |has: &dyn Fn(&DomainXml) -> bool| inventory.other(replaced, has);
    for mac in &xml.macs {
        if let Some(name) = other(&|x| has_mac(x, mac)) {
            return Err(shared(&format!("the MAC address {mac}"), name)
                .with_hint("a copy made with --name NEW gets MAC addresses of its own"));
        }
    }
    for path in xml.channel_paths.iter().filter(|path| !is_generated(path)) {
        if let Some(name) = other(&|x| x.channel_paths.contains(path)) {
            return Err(shared(&format!("the channel or serial line '{}'", path.display()), name)
                .with_hint("change it there, or restore the disks alone, without --define"));
        }
    }
    let writable = xml.disks.iter().filter(|disk| disk.device == Device::Disk && !disk.marks.readonly);
    let mut seen: Vec<(&PathBuf, &str)> = Vec::new();
    for disk in writable {
        let (ImageSource::File(path) | ImageSource::Block(path)) = &disk.image.source else { continue };
        if let Some((_, target)) = seen.iter().find(|(other, _)| *other == path) {
            let what = format!("disks {target} and {} would both be '{}'", disk.target, path.display());
            return Err(Error::new(ErrorKind::Usage, what)
                .with_hint("give one of them another place with --disk TARGET=PATH"));
        }
        seen.push((path, &disk.target));
    }
    Ok(())
}

/// Whether libvirt chose this socket's path: live XML (that of a transient domain) has it, and a definition
/// with it gets another one at each start.
pub(super) fn is_generated(path: &Path) -> bool {
    let below = path.ancestors().find(|path| path.file_name().is_some_and(|name| name == "channel"));
    below.and_then(Path::to_str).is_some_and(|path| path.contains("/libvirt/qemu/"))
}

/// Whether a definition has this MAC address.
pub(super) fn has_mac(xml: &DomainXml, mac: &str) -> bool {
    xml.macs.iter().any(|other| other.eq_ignore_ascii_case(mac))
}

fn shared(what: &str, domain: &str) -> Error {
    Error::new(
        ErrorKind::InUse,
        format!("{what} of the guest in the archive is that of domain '{domain}', too"),
    )
}
