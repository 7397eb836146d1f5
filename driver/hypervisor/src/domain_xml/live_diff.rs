//! A running guest whose disks are not those of its configuration: plugged in or taken off for this run
//! alone, or changed for the next one.
//!
//! A backup copies what runs. So a guest is defined anew with the disks that it ran with
//! ([`with_live_disks`]), and with everything else as its configuration has it: the live XML has much that is
//! of its run and host alone (a spelled-out CPU, ports, terminals). Drives for CDs and floppies are as in the
//! configuration: what lies in them is not the guest's.
//!
//! Imports: `error`.

use roxmltree::Node;

use super::edit::Editor;
use super::{Device, DomainDisk, DomainXml, child, children, open};
use virtfold_base::error::Result;

/// A disk that is not the same now and at the next start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskDifference<'a> {
    /// Of the running guest alone.
    Live(&'a DomainDisk),
    /// Of the configuration alone.
    Next(&'a DomainDisk),
    /// Another image now than at the next start.
    Other(&'a DomainDisk),
}

impl<'a> DiskDifference<'a> {
    /// The disk; where both have it, as it runs.
    pub fn disk(self) -> &'a DomainDisk {
        match self {
            Self::Live(disk) | Self::Next(disk) | Self::Other(disk) => disk,
        }
    }
}

/// Where the disks of the guest that runs and of its configuration differ.
pub fn changed_disks<'a>(live: &'a DomainXml, next: &'a DomainXml) -> Vec<DiskDifference<'a>> {
    let lasting = |disk: &&DomainDisk| matches!(disk.device, Device::Disk | Device::Lun);
    let running = live.disks.iter().filter(lasting).filter_map(|disk| match next.disk(&disk.target) {
        None => Some(DiskDifference::Live(disk)),
        Some(other) if other.image.source != disk.image.source => Some(DiskDifference::Other(disk)),
        Some(_) => None,
    });
    let later = next.disks.iter().filter(lasting).filter(|disk| live.disk(&disk.target).is_none());
    running.chain(later.map(DiskDifference::Next)).collect()
}

/// The configuration with the disks of the guest that ran.
///
/// # Errors
/// XML that can't be edited.
pub fn with_live_disks(next: &DomainXml, live: &DomainXml) -> Result<DomainXml> {
    let document = open(live.text())?;
    let devices = child(document.root_element(), "devices");
    let mut editor = Editor::new(next)?;
    for changed in changed_disks(live, next) {
        let target = changed.disk().target.as_str();
        if !matches!(changed, DiskDifference::Live(_)) {
            editor.remove_disk(target)?;
        }
        if !matches!(changed, DiskDifference::Next(_)) {
            let is_it =
                |disk: &Node<'_, '_>| child(*disk, "target").and_then(|t| t.attribute("dev")) == Some(target);
            let disk = devices.and_then(|devices| children(devices, "disk").find(is_it));
            if let Some(disk) = disk {
                editor.add_device(&lasting_part(disk, live.text()))?;
            }
        }
    }
    editor.finish()
}

/// A disk's element without what libvirt gave it for its run. Its place on a bus of disks stays, that on the
/// machine's own is chosen anew: what else is there may differ.
fn lasting_part(disk: Node<'_, '_>, text: &str) -> String {
    let of_its_run = |node: &Node<'_, '_>| match node.tag_name().name() {
        "alias" | "backingStore" | "mirror" => true,
        "address" => node.attribute("type") != Some("drive"),
        _ => false,
    };
    let mut kept = String::new();
    let mut at = disk.range().start;
    for node in disk.children().filter(of_its_run) {
        kept.push_str(text.get(at..node.range().start).unwrap_or_default());
        at = node.range().end;
    }
    kept.push_str(text.get(at..disk.range().end).unwrap_or_default());
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(disks: &str) -> DomainXml {
        DomainXml::parse(format!(
            "<domain type='kvm'><name>x</name><devices><emulator>/e</emulator>{disks}</devices></domain>"
        ))
        .unwrap()
    }

    fn disk(target: &str, file: &str, more: &str) -> String {
        format!(
            "<disk type='file'><driver type='raw'/><source file='{file}'/><target dev='{target}'/>{more}</disk>"
        )
    }

    #[test]
    fn a_guest_is_defined_with_the_disks_that_it_ran_with() {
        let cd = |file: &str| {
            format!("<disk type='file' device='cdrom'><source file='{file}'/><target dev='sdz'/></disk>")
        };
        let pci = "<backingStore/><alias name='a'/><address type='pci' slot='0x07'/>";
        let drive = "<address type='drive' unit='3'/>";
        let live =
            [disk("vda", "/a", pci), disk("vdb", "/b", pci), disk("sda", "/s", drive), cd("/one")].concat();
        let next =
            [disk("vda", "/a", ""), disk("vdb", "/new", ""), cd("/two"), disk("vdc", "/c", "")].concat();
        let (live, next) = (domain(&live), domain(&next));
        let changed = changed_disks(&live, &next);
        let seen: Vec<_> = changed
            .iter()
            .map(|c| (c.disk().target.as_str(), c.disk().image.source.path().unwrap().to_str().unwrap()))
            .collect();
        assert_eq!(seen, [("vdb", "/b"), ("sda", "/s"), ("vdc", "/c")]);
        assert!(matches!(
            changed[..],
            [DiskDifference::Other(_), DiskDifference::Live(_), DiskDifference::Next(_)]
        ));
        let made = with_live_disks(&next, &live).unwrap();
        let expected =
            [disk("vda", "/a", ""), cd("/two"), disk("vdb", "/b", ""), disk("sda", "/s", drive)].concat();
        assert_eq!(made.text(), domain(&expected).text());
        assert_eq!(with_live_disks(&next, &next).unwrap().text(), next.text());
        // What was all there is was taken off, or all there is was plugged in.
        assert_eq!(
            with_live_disks(&domain(&disk("vda", "/a", "")), &domain("")).unwrap().text(),
            domain("").text()
        );
        assert_eq!(
            with_live_disks(&domain(""), &domain(&disk("vda", "/a", pci))).unwrap().text(),
            domain(&disk("vda", "/a", "")).text()
        );
    }
}
