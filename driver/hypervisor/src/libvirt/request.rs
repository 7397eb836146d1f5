//! Requests as libvirt wants them written.
//!
//! Imports: `types`, `domain_xml`.

use std::time::Duration;

use crate::domain_xml::edit::escape;
use crate::types::{CheckpointRequest, SnapshotDisk, SnapshotRequest};

/// `<domainsnapshot>`, every disk with its own word.
pub(super) fn snapshot_xml(request: &SnapshotRequest) -> String {
    let mut xml = String::from("<domainsnapshot>\n  <disks>\n");
    for disk in request.disks() {
        xml.push_str(&match disk {
            SnapshotDisk::External { target, overlay } => format!(
                "    <disk name='{}' snapshot='external' type='file'><driver type='qcow2'/><source file='{}'/></disk>\n",
                escape(target),
                escape(&overlay.to_string_lossy())
            ),
            SnapshotDisk::Skip { target } => format!("    <disk name='{}' snapshot='no'/>\n", escape(target)),
        });
    }
    xml.push_str("  </disks>\n</domainsnapshot>\n");
    xml
}

/// `<domaincheckpoint>`, every disk with its own word.
pub(super) fn checkpoint_xml(request: &CheckpointRequest) -> String {
    let name = escape(&request.name);
    let mut xml = format!("<domaincheckpoint>\n  <name>{name}</name>\n  <disks>\n");
    for target in &request.tracked {
        let target = escape(target);
        xml.push_str(&format!("    <disk name='{target}' checkpoint='bitmap' bitmap='{name}'/>\n"));
    }
    for target in &request.others {
        xml.push_str(&format!("    <disk name='{}' checkpoint='no'/>\n", escape(target)));
    }
    xml.push_str("  </disks>\n</domaincheckpoint>\n");
    xml
}

/// libvirt counts the agent's limits in whole seconds, and takes 0 for 'do not wait'.
pub(super) fn whole_seconds(limit: Duration) -> i32 {
    i32::try_from(limit.as_secs().max(1)).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SnapshotQuiesce;

    #[test]
    fn every_disk_is_in_the_snapshot() {
        let all = ["vda".to_owned(), "sda".to_owned()];
        let overlays = [("vda".to_owned(), "/o's".into())];
        let xml = snapshot_xml(&SnapshotRequest::new(&all, &overlays, SnapshotQuiesce::No).unwrap());
        assert_eq!(
            xml,
            "<domainsnapshot>\n  <disks>\n    <disk name='sda' snapshot='no'/>\n    <disk name='vda' \
             snapshot='external' type='file'><driver type='qcow2'/><source file='/o&apos;s'/></disk>\n  \
             </disks>\n</domainsnapshot>\n"
        );
    }

    #[test]
    fn every_disk_is_in_the_checkpoint() {
        let (tracked, others) = (vec!["vda".to_owned()], vec!["sda".to_owned()]);
        let name = "virtfold-c7a5fdbd-edaf-9455-926a-d65c16db1809".to_owned();
        assert!(crate::is_our_checkpoint(&name));
        assert!(!crate::is_our_checkpoint("virtfold-1") && !crate::is_our_checkpoint("virtnbdbackup.0"));
        assert_eq!(
            checkpoint_xml(&CheckpointRequest { name, tracked, others }),
            "<domaincheckpoint>\n  <name>virtfold-c7a5fdbd-edaf-9455-926a-d65c16db1809</name>\n  <disks>\n    \
             <disk name='vda' checkpoint='bitmap' bitmap='virtfold-c7a5fdbd-edaf-9455-926a-d65c16db1809'/>\n    \
             <disk name='sda' checkpoint='no'/>\n  </disks>\n</domaincheckpoint>\n"
        );
    }

    #[test]
    fn limits_are_at_least_a_second() {
        assert_eq!(whole_seconds(Duration::from_millis(10)), 1);
        assert_eq!(whole_seconds(Duration::from_millis(2900)), 2);
        assert_eq!(whole_seconds(Duration::MAX), i32::MAX);
    }
}
