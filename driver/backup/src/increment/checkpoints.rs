//! The checkpoints that virtfold makes: one with each backup of a running guest, named after the freeze
//! session, so that the journal knows its name before it is there.
//!
//! Those stay whose archive an increment may continue; all others of ours are deleted, where the guest runs.
//! What can't be deleted with its bitmaps (its image is gone, was restored, or never had it) is forgotten.
//! Nothing here fails a backup: without a checkpoint the next one compares.

use std::collections::BTreeSet;
use std::path::Path;

use super::BlockState;
use super::parent::Parent;
use super::query::ChangeHint;
use crate::freeze::{FreezeContext, checkpoint_name};
use virtfold_base::error::{Result, sentence};
use virtfold_hypervisor::{CheckpointParts, DomainId, Hypervisor, is_our_checkpoint};

/// Which bitmaps tell what changed since a parent: those of its checkpoint and of all later ones of ours.
pub(crate) fn hint(hypervisor: &dyn Hypervisor, domain: DomainId, parent: Option<&Parent>) -> ChangeHint {
    let Some(parent) = parent else { return ChangeHint::Unknown };
    let Some(first) = parent.state.checkpoint() else {
        return ChangeHint::NoBitmap("the parent was made without a checkpoint".to_owned());
    };
    let all = match hypervisor.checkpoints(domain) {
        Ok(all) => all,
        Err(error) => return ChangeHint::NoBitmap(sentence(&error)),
    };
    if !all.iter().any(|checkpoint| checkpoint.name == first) {
        return ChangeHint::NoBitmap(format!("the parent's checkpoint '{first}' was deleted"));
    }
    // In a line of checkpoints each has one child at most; a cycle ends with their number.
    let mut names = vec![first.to_owned()];
    let mut last = first;
    for _ in 0..all.len() {
        let Some(next) = all.iter().find(|checkpoint| checkpoint.parent.as_deref() == Some(last)) else {
            break;
        };
        last = &next.name;
        if is_our_checkpoint(last) {
            names.push(last.to_owned());
        }
    }
    ChangeHint::Bitmaps(names)
}

/// The hint for a disk of an image of `format`: what bitmaps there are is nothing to an image without.
pub(crate) fn hint_of(hint: &ChangeHint, format: &str) -> ChangeHint {
    match hint {
        ChangeHint::Bitmaps(_) | ChangeHint::NoBitmap(_) if format != "qcow2" => ChangeHint::Unknown,
        hint => hint.clone(),
    }
}

/// Deletes the checkpoints of ours that no backup will ask for.
pub(crate) fn tidy(host: &FreezeContext<'_>, domain: DomainId, state_dir: &Path) {
    if let Err(error) = try_tidy(host, domain, state_dir) {
        tracing::warn!("checkpoints that are not needed any more could not be deleted: {}", sentence(&error));
    }
}

fn try_tidy(host: &FreezeContext<'_>, domain: DomainId, state_dir: &Path) -> Result<()> {
    let ours = |checkpoint: &virtfold_hypervisor::Checkpoint| is_our_checkpoint(&checkpoint.name);
    let there: Vec<_> = host.hypervisor.checkpoints(domain)?.into_iter().filter(ours).collect();
    if there.is_empty() || !host.hypervisor.domain_state(domain)?.is_active() {
        return Ok(());
    }
    let mut needed: BTreeSet<String> = BlockState::checkpoints(state_dir)?;
    let open = host.journal.open_sessions(Some(domain))?;
    needed.extend(open.iter().map(|session| checkpoint_name(session.id)));
    for checkpoint in there.iter().filter(|checkpoint| !needed.contains(&checkpoint.name)) {
        delete(host.hypervisor, domain, &checkpoint.name)?;
    }
    Ok(())
}

/// Deletes a checkpoint; where its bitmaps can't be deleted, what the hypervisor knows of it.
fn delete(hypervisor: &dyn Hypervisor, domain: DomainId, name: &str) -> Result<()> {
    let Err(error) = hypervisor.delete_checkpoint(domain, name, CheckpointParts::All) else { return Ok(()) };
    if !hypervisor.checkpoints(domain)?.iter().any(|checkpoint| checkpoint.name == name) {
        return Ok(());
    }
    tracing::warn!("the bitmaps of checkpoint '{name}' can't be deleted: {}", sentence(&error));
    hypervisor.delete_checkpoint(domain, name, CheckpointParts::Metadata)
}

/// Forgets the checkpoints of ours of a domain whose disks are replaced.
///
/// # Errors
/// What the hypervisor says.
pub(crate) fn forget(hypervisor: &dyn Hypervisor, domain: DomainId) -> Result<()> {
    for checkpoint in hypervisor.checkpoints(domain)? {
        if is_our_checkpoint(&checkpoint.name) {
            hypervisor.delete_checkpoint(domain, &checkpoint.name, CheckpointParts::Metadata)?;
        }
    }
    Ok(())
}
