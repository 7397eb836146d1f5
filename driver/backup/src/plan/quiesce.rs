//! Whether the agent in the guest freezes its file systems around the snapshot. A plan goes by what libvirt
//! says of the agent's channel; it asks the agent nothing, because a hung one would block. The backup itself
//! pings it.

use serde::Serialize;

use super::Finding;
use crate::options::QuiesceMode;
use virtfold_base::error::ErrorKind;
use virtfold_hypervisor::disk_rules::BackupMode;
use virtfold_hypervisor::domain_xml::AgentChannel;

/// How clean the guest's file systems are in the backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// Clean: the agent freezes them.
    #[serde(rename = "agent")]
    FileSystem,
    /// As after a power cut.
    Crash,
    /// As the guest left them when it ended.
    #[serde(rename = "at-rest")]
    Offline,
}

/// The decision, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QuiesceDecision {
    /// How clean.
    pub how: Consistency,
    /// The rule's sentence.
    pub rule: &'static str,
}

/// Decides; the finding says why a wish can't be had.
pub(super) fn decide(
    wish: QuiesceMode,
    way: BackupMode,
    agent: AgentChannel,
) -> (QuiesceDecision, Option<Finding>) {
    let (how, rule, possible) = match (way, wish, agent) {
        (BackupMode::Offline, _, _) => {
            (Consistency::Offline, "the guest is shut off: nothing to freeze", true)
        }
        (_, QuiesceMode::No, _) => (Consistency::Crash, "crash-consistent: the agent is not asked", true),
        (BackupMode::OnlinePaused, _, _) => {
            (Consistency::Crash, "crash-consistent: the agent of a paused guest does not answer", false)
        }
        (_, _, AgentChannel::Absent) => {
            (Consistency::Crash, "crash-consistent: the domain has no channel for qemu-guest-agent", false)
        }
        (_, _, AgentChannel::Present) => {
            (Consistency::Crash, "crash-consistent: no agent is connected to its channel", false)
        }
        (_, QuiesceMode::Auto, AgentChannel::Connected) => {
            (Consistency::FileSystem, "frozen by the agent if it answers, else crash-consistent", true)
        }
        (_, QuiesceMode::Yes, AgentChannel::Connected) => {
            (Consistency::FileSystem, "frozen by the agent; no backup if it does not answer", true)
        }
    };
    let refused =
        (wish == QuiesceMode::Yes && !possible && !matches!(way, BackupMode::NotPossible(_))).then(|| {
            let told =
                format!("--quiesce yes is not possible: {}", rule.trim_start_matches("crash-consistent: "));
            let hint = "start qemu-guest-agent in the guest, or use --quiesce auto";
            Finding::new("quiesce", ErrorKind::Refused, told).with_hint(hint)
        });
    (QuiesceDecision { how, rule }, refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_is_used_where_it_listens_and_asked_for() {
        use AgentChannel::{Absent, Connected, Present};
        use QuiesceMode::{Auto, No, Yes};
        let table = [
            (Auto, BackupMode::Online, Connected, Consistency::FileSystem, false),
            (Auto, BackupMode::Online, Present, Consistency::Crash, false),
            (Auto, BackupMode::Online, Absent, Consistency::Crash, false),
            (Auto, BackupMode::OnlinePaused, Connected, Consistency::Crash, false),
            (Auto, BackupMode::Offline, Absent, Consistency::Offline, false),
            (Yes, BackupMode::Online, Connected, Consistency::FileSystem, false),
            (Yes, BackupMode::Online, Present, Consistency::Crash, true),
            (Yes, BackupMode::Online, Absent, Consistency::Crash, true),
            (Yes, BackupMode::OnlinePaused, Connected, Consistency::Crash, true),
            (Yes, BackupMode::Offline, Absent, Consistency::Offline, false),
            (No, BackupMode::Online, Connected, Consistency::Crash, false),
            (No, BackupMode::OnlinePaused, Absent, Consistency::Crash, false),
        ];
        for (wish, way, agent, how, refused) in table {
            let (decision, finding) = decide(wish, way, agent);
            assert_eq!((decision.how, finding.is_some()), (how, refused), "{wish:?} {way:?} {agent:?}");
        }
        let (_, finding) = decide(Yes, BackupMode::Online, Absent);
        let told = finding.unwrap().sentence;
        assert_eq!(told, "--quiesce yes is not possible: the domain has no channel for qemu-guest-agent");
    }
}
