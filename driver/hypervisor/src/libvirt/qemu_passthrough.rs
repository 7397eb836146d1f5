//! Commits of overlays that QEMU has and libvirt knows nothing of.
//!
//! A libvirtd that dies after QEMU took a snapshot and before it wrote that down believes afterwards that the
//! guest is on the base. It then refuses to commit, because it sees nothing to commit, and the guest could
//! not leave its overlay before it is shut down. So QEMU itself is told, by libvirt's monitor, to commit into
//! the image below and to go back to it. After that both agree again.
//!
//! Only an overlay of virtfold's own is committed so, only into the image right below, and only where
//! libvirt's live XML does not have it. The job is `virtfold-TARGET`; one that a dead driver left is found by
//! that name. libvirt lets jobs be that it did not start.
//!
//! The commands are QEMU's (qapi/block-core.json: block-commit, query-block-jobs, block-job-complete,
//! block-job-cancel).
//!
//! Imports: `error`, `types`, `domain_xml`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Libvirt, qmp};
use crate::domain_xml::DomainXml;
use crate::types::{BlockJob, BlockJobEnd, BlockJobKind, DomainId, XmlView};
use crate::{Hypervisor, is_our_overlay};
use virtfold_base::error::{Error, ErrorKind, Result};

/// How long a job takes to end once it was told to. Nothing is left to copy then.
const ENDING: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(2);

fn name_of(target: &str) -> String {
    format!("virtfold-{target}")
}

impl Libvirt {
    /// What QEMU returns. A command that changes something is not repeated when the connection breaks.
    fn command(&self, domain: DomainId, command: &str) -> Result<Value> {
        let reply = self.tell(domain, "command the QEMU of", |d| d.qemu_monitor_command(command, 0))?;
        qmp::answer(&reply).map_err(|why| {
            Error::new(ErrorKind::InUse, format!("the QEMU of domain {domain} refuses")).with_source(why)
        })
    }

    /// Starts a commit; `None` where it is not that QEMU has an overlay of ours that libvirt does not know.
    pub(super) fn commit_behind(&self, domain: DomainId, target: &str) -> Result<Option<()>> {
        let xml = DomainXml::parse(self.xml(domain, XmlView::Live)?)?;
        let Some(disk) = xml.disk(target) else { return Ok(None) };
        let qemu = self.query_block(domain)?;
        let seen = qemu.iter().find(|seen| Some(&seen.alias) == disk.alias.as_ref());
        let Some((seen, top)) = seen.and_then(|seen| Some((seen, seen.file.as_ref()?))) else {
            return Ok(None);
        };
        let known = disk.image.source.path() == Some(top.as_path());
        let Some(base) = seen.backing.first().filter(|_| is_our_overlay(top) && !known) else {
            return Ok(None);
        };
        let nodes = self.command(domain, qmp::QUERY_NODES)?;
        let devices = self.command(domain, qmp::QUERY_BLOCK)?;
        let (Some(top), Some(base)) = (qmp::root_node(&devices, &seen.alias), qmp::format_node(&nodes, base))
        else {
            return Ok(None);
        };
        tracing::warn!(%domain, target, "libvirt does not know the overlay; QEMU commits it directly");
        let arguments = json!({"job-id": name_of(target), "device": top, "base-node": base});
        let start = json!({"execute": "block-commit", "arguments": arguments});
        self.command(domain, &start.to_string()).map(|_| Some(()))
    }

    /// The commit that was started so.
    pub(super) fn job_behind(&self, domain: DomainId, target: &str) -> Result<Option<BlockJob>> {
        let jobs = self.command(domain, r#"{"execute":"query-block-jobs"}"#)?;
        Ok(read_job(&jobs, &name_of(target)))
    }

    /// Ends it; `None` where there is none.
    pub(super) fn end_behind(&self, domain: DomainId, target: &str, end: BlockJobEnd) -> Result<Option<()>> {
        if self.job_behind(domain, target)?.is_none() {
            return Ok(None);
        }
        let verb = match end {
            BlockJobEnd::Pivot => "block-job-complete",
            BlockJobEnd::Abort => "block-job-cancel",
        };
        let end = json!({"execute": verb, "arguments": {"device": name_of(target)}});
        self.command(domain, &end.to_string())?;
        let until = Instant::now() + ENDING;
        while self.job_behind(domain, target)?.is_some() {
            if Instant::now() > until {
                let message = format!("the commit of disk '{target}' of domain {domain} does not end");
                return Err(Error::new(ErrorKind::Io, message));
            }
            std::thread::sleep(POLL);
        }
        Ok(Some(()))
    }
}

/// A job among those of `query-block-jobs`. As with libvirt's own, one that is not ready is not at its end,
/// and one that is ready has begun.
fn read_job(jobs: &Value, name: &str) -> Option<BlockJob> {
    let job = jobs.as_array()?.iter().find(|job| job["device"] == name)?;
    let (current, end) = (job["offset"].as_u64().unwrap_or(0), job["len"].as_u64().unwrap_or(0));
    let (current, end) = match (job["ready"] == true, current == end) {
        (true, true) => (current.max(1), end.max(1)),
        (false, true) => (current, end.saturating_add(1)),
        (_, false) => (current, end),
    };
    Some(BlockJob { kind: BlockJobKind::ActiveCommit, current, end })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_level_when_it_is_ready_and_at_its_end() {
        let read = |ready: bool, offset: u64, len: u64| {
            let jobs = json!([{"device": "other"},
                {"device": "virtfold-vda", "type": "commit", "ready": ready, "offset": offset, "len": len}]);
            read_job(&jobs, "virtfold-vda").unwrap()
        };
        assert!(read(true, 0, 0).is_level() && read(true, 5, 5).is_level());
        for (ready, offset, len) in [(false, 0, 0), (false, 5, 5), (false, 3, 5), (true, 3, 5)] {
            assert!(!read(ready, offset, len).is_level(), "{ready} {offset} {len}");
        }
        assert_eq!(read_job(&json!([]), "virtfold-vda"), None);
        assert_eq!(read_job(&json!({}), "virtfold-vda"), None);
    }
}
