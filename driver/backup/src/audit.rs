//! An audit: which archives at a place are authentic, and what their chains miss. It needs public keys alone;
//! the catalog's word, where there is one, stands beside that.
//!
//! Of each subject: what is not authentic, is not whole or can't be opened; two archives with one number or
//! one id; a predecessor that an authentic archive names and that is not there, or has another root. One that
//! `prune` has removed is missed by nobody who asks the catalog that knows it. That the newest one was taken
//! away only the catalog can say ([`CatalogWord::last`]).
//!
//! Invariant: nothing that an archive says counts before its signature is that of a known host.
//!
//! Imports: `archive`, `catalog`, and of this crate `inspect`, `signing`, `trust`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use uuid::Uuid;

use crate::inspect::{ArchiveStatus, ListedArchive};
use crate::signing;
use crate::trust::{Authenticity, TrustPolicy};
use virtfold_archive::sign::ArchiveSignature;
use virtfold_catalog::{ChainEntry, ChainName};

/// What the catalog of this host knows.
#[derive(Clone, Debug, Default)]
pub struct CatalogWord {
    /// The last archive of each chain that goes to the place.
    pub last: Vec<(ChainName, ChainEntry)>,
    /// Archives that `prune` has removed.
    pub pruned: BTreeSet<Uuid>,
}

/// What was found at a place.
#[derive(Clone, Debug, Serialize)]
pub struct AuditReport {
    /// The place.
    pub place: String,
    /// What the archives are of.
    pub subjects: Vec<AuditedSubject>,
    /// Archives of which nobody can tell that.
    pub unknown: Vec<AuditedArchive>,
}

/// The archives of a subject.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AuditedSubject {
    /// Its name in signed archives.
    pub subject: String,
    /// What it is called; nothing where no archive of it is there.
    pub name: Option<String>,
    /// Its archives, by number, then by time.
    pub archives: Vec<AuditedArchive>,
    /// What is missing of its chains, or contradicts itself.
    pub faults: Vec<AuditFault>,
}

/// An archive.
#[derive(Clone, Debug, Serialize)]
pub struct AuditedArchive {
    /// Its name, as `restore` takes it.
    pub archive: String,
    /// Its id, where its head could be read.
    pub id: Option<Uuid>,
    /// When it was made, by its own word.
    pub created: Option<String>,
    /// How it stands.
    pub status: ArchiveStatus,
    /// Who made it, of one that is whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authenticity: Option<Authenticity>,
    /// What is wrong with it.
    pub faults: Vec<String>,
    #[serde(skip)]
    signature: Option<ArchiveSignature>,
    #[serde(skip)]
    root: Option<String>,
}

/// What is wrong with a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditFault {
    /// What kind of fault it is.
    pub kind: AuditFaultKind,
    /// A sentence.
    pub message: String,
}

/// Kinds of faults of chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuditFaultKind {
    /// An archive is named by the one behind it and not there.
    Missing,
    /// Another archive has its id.
    Replaced,
    /// Two archives have one number.
    Forked,
    /// The catalog knows a newer one.
    RolledBack,
}

impl AuditReport {
    /// Whether anything is wrong, but for archives that no identity opens.
    pub fn is_faulty(&self) -> bool {
        let odd = |found: &AuditedArchive| found.status != ArchiveStatus::Encrypted && !found.is_authentic();
        self.archives().any(odd) || self.subjects.iter().any(|subject| !subject.faults.is_empty())
    }

    /// Whether an archive could not be opened, so that nobody knows whose it is.
    pub fn has_unopened(&self) -> bool {
        self.archives().any(|found| found.status == ArchiveStatus::Encrypted)
    }

    fn archives(&self) -> impl Iterator<Item = &AuditedArchive> {
        self.subjects.iter().flat_map(|subject| &subject.archives).chain(&self.unknown)
    }
}

impl AuditedArchive {
    fn of(listed: &ListedArchive, policy: &TrustPolicy) -> Self {
        let summary = &listed.summary;
        let is_whole = summary.status == ArchiveStatus::Complete;
        Self {
            archive: summary.archive.clone(),
            id: summary.head.as_ref().map(|head| head.archive),
            created: summary.head.as_ref().map(|head| head.created.clone()),
            status: summary.status,
            authenticity: is_whole.then(|| policy.judge(summary.signature.as_ref())),
            faults: summary.faults.clone(),
            signature: summary.signature.clone().filter(|_| is_whole),
            root: summary.root.clone(),
        }
    }

    /// Whether a known host has made it.
    pub fn is_authentic(&self) -> bool {
        self.authenticity.as_ref().is_some_and(Authenticity::is_authentic)
    }

    fn sequence(&self) -> Option<u64> {
        self.signature.as_ref().filter(|_| self.is_authentic()).map(|signature| signature.chain.sequence)
    }
}

/// Whether there are archives that no identity opens. What seems to be missing may be one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unopened {
    None,
    Some,
}

/// Holds the archives of a place against the keys of `policy` and against each other. Those that are still
/// being written are left out.
pub fn audit(place: &str, listed: &[ListedArchive], policy: &TrustPolicy, word: &CatalogWord) -> AuditReport {
    let mut subjects: BTreeMap<String, AuditedSubject> = BTreeMap::new();
    let mut unknown = Vec::new();
    for listed in listed.iter().filter(|listed| !listed.is_partial()) {
        let found = AuditedArchive::of(listed, policy);
        let Some(head) = &listed.summary.head else {
            unknown.push(found);
            continue;
        };
        // What an authentic one is of its signature says; of another one its head, for what that is worth.
        let signed = found.signature.as_ref().filter(|_| found.is_authentic());
        let subject =
            signed.map_or_else(|| signing::subject(head), |signature| signature.chain.subject.clone());
        let group = subjects.entry(subject.clone()).or_default();
        group.subject = subject;
        group.name.get_or_insert_with(|| head.subject.name().to_owned());
        group.archives.push(found);
    }
    for (chain, _) in &word.last {
        let group = subjects.entry(chain.subject.clone()).or_default();
        group.subject.clone_from(&chain.subject);
    }
    let unopened = match unknown.iter().any(|found: &AuditedArchive| found.status == ArchiveStatus::Encrypted)
    {
        true => Unopened::Some,
        false => Unopened::None,
    };
    let mut subjects: Vec<AuditedSubject> = subjects.into_values().collect();
    for subject in &mut subjects {
        subject.archives.sort_by_cached_key(|found| (found.sequence(), found.created.clone()));
        subject.check(word, unopened);
    }
    AuditReport { place: place.to_owned(), subjects, unknown }
}

impl AuditedSubject {
    fn check(&mut self, word: &CatalogWord, unopened: Unopened) {
        let mut faults = Vec::new();
        let authentic: Vec<(&AuditedArchive, &ArchiveSignature)> = self
            .archives
            .iter()
            .filter(|found| found.is_authentic())
            .filter_map(|found| Some((found, found.signature.as_ref()?)))
            .collect();
        let mut numbers: BTreeMap<(&str, u64), &AuditedArchive> = BTreeMap::new();
        for (found, signature) in &authentic {
            let chain = &signature.chain;
            let twin = numbers.entry((&chain.host, chain.sequence)).or_insert(found);
            if twin.id != found.id || twin.root != found.root {
                let message = format!(
                    "'{}' and '{}' are both number {} of {}",
                    twin.archive, found.archive, chain.sequence, chain.host
                );
                faults.push(AuditFault { kind: AuditFaultKind::Forked, message });
            }
            if let Some(previous) = &chain.previous {
                let named = format!(
                    "number {} ({}), which '{}' names",
                    previous.sequence, previous.archive, found.archive
                );
                faults.extend(self.expect(previous.archive, &previous.root, &named, word, unopened));
            }
        }
        for (chain, last) in word.last.iter().filter(|(chain, _)| chain.subject == self.subject) {
            let named = format!(
                "number {} ({}), the last of {} that the catalog knows",
                last.sequence, last.archive, chain.signer
            );
            let fault = self.expect(last.archive, &last.root, &named, word, unopened);
            faults.extend(fault.map(|fault| match fault.kind {
                AuditFaultKind::Missing => AuditFault { kind: AuditFaultKind::RolledBack, ..fault },
                _ => fault,
            }));
        }
        self.faults = faults;
    }

    /// What is wrong with an archive that is said to be there.
    fn expect(
        &self,
        id: Uuid,
        root: &str,
        named: &str,
        word: &CatalogWord,
        unopened: Unopened,
    ) -> Option<AuditFault> {
        let mut there = self.archives.iter().filter(|found| found.id == Some(id)).peekable();
        if there.peek().is_none() {
            let message = format!("{named}, is not there");
            let missing = AuditFault { kind: AuditFaultKind::Missing, message };
            return Some(missing).filter(|_| unopened == Unopened::None && !word.pruned.contains(&id));
        }
        // One that is not whole is told as that.
        let is_other = |found: &AuditedArchive| found.root.as_ref().is_some_and(|found| found != root);
        let other = there.find(|found| is_other(found))?;
        let message = format!("{named}, was replaced: '{}' has another root", other.archive);
        Some(AuditFault { kind: AuditFaultKind::Replaced, message })
    }
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
