//! The note of an upload that is on its way, and what becomes of those whose writer has died.
//!
//! Parts of an upload that nobody completes or aborts cost money for ever, and no list shows them. So each
//! upload has a note in the bucket from before its first part until its end. Before a new upload a host reads
//! the notes of its own subject and aborts the uploads of writers that are surely dead: the note is of this
//! machine, and of an earlier boot, or of a process that is not there any more. Of others nothing is known,
//! and they are left alone: hosts with the same name may share a bucket.
//!
//! A writer that may not list or delete goes on without: the store's own rule for incomplete uploads does the
//! rest.

use std::path::Path as FilePath;

use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};

use super::object_names::ObjectNames;
use super::store::{Store, StoreResult};

/// No note is longer, bytes.
const MAX_NOTE: u64 = 4096;
/// What a machine's id is hashed for: the id itself is to stay on the machine.
const PURPOSE: &str = "virtfold 2026-11-22 note of an upload: machine";

/// Who uploads what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct UploadNote {
    /// The upload's id, as the store gave it.
    pub(super) upload: String,
    /// Who uploads.
    writer: UploaderProcess,
}

/// A process of a machine, so that the same machine can tell later whether it is alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct UploaderProcess {
    machine: String,
    boot: String,
    /// The namespace that the number is of.
    space: String,
    process: u32,
    /// When it started, in the kernel's ticks since boot.
    started: u64,
}

impl UploaderProcess {
    /// This process; nothing where the system does not say who it is.
    fn this() -> Option<Self> {
        let process = std::process::id();
        let boot = read("/proc/sys/kernel/random/boot_id")?;
        // A container may have no id of its own; then it is another machine after each boot, and its notes
        // are left alone.
        let machine = read("/etc/machine-id").unwrap_or_else(|| boot.clone());
        let machine = blake3::Hash::from_bytes(blake3::derive_key(PURPOSE, machine.as_bytes()));
        Some(Self {
            machine: machine.to_hex().chars().take(32).collect(),
            boot,
            space: std::fs::read_link("/proc/self/ns/pid").ok()?.to_string_lossy().into_owned(),
            process,
            started: started(process)?,
        })
    }

    /// Whether it is surely dead, as `this` process sees it.
    fn is_dead(&self, this: &Self) -> bool {
        if self.machine != this.machine || self == this {
            return false;
        }
        self.boot != this.boot || self.space == this.space && started(self.process) != Some(self.started)
    }
}

fn read(path: impl AsRef<FilePath>) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// When the process started; nothing where there is none, or where it is dead and nobody has asked what
/// became of it: a container's first process may never do that.
fn started(process: u32) -> Option<u64> {
    let stat = read(format!("/proc/{process}/stat"))?;
    // The name, in parentheses, may hold anything; behind it the state, and the start as the 20th field.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
}

/// Leaves a note of the upload `id`.
///
/// # Errors
/// When it can't be written.
pub(super) async fn leave(store: &Store, keys: &ObjectNames, id: &str) -> StoreResult<()> {
    let Some(writer) = UploaderProcess::this() else { return Ok(()) };
    let note = UploadNote { upload: id.to_owned(), writer };
    let text = serde_json::to_vec(&note).unwrap_or_default();
    store.s3.put(&keys.note, text.into()).await.map(drop)
}

/// Aborts the uploads of dead writers of this machine, and takes their notes away. What does not work is left
/// for the next time.
pub(super) async fn clean(store: &Store, keys: &ObjectNames) {
    let Some(this) = UploaderProcess::this() else { return };
    let found = match store.s3.list_with_delimiter(Some(&keys.notes)).await {
        Ok(found) => found.objects,
        Err(error) => {
            tracing::debug!(%error, "the notes of earlier uploads can't be listed");
            return;
        }
    };
    for object in found {
        if object.size > MAX_NOTE {
            continue;
        }
        if let Err(error) = clean_one(store, &object.location, &this).await {
            tracing::debug!(%error, "an earlier upload can't be cleaned up");
        }
    }
}

async fn clean_one(store: &Store, note: &Path, this: &UploaderProcess) -> StoreResult<()> {
    let text = store.s3.get(note).await?.bytes().await?;
    let Ok(known) = serde_json::from_slice::<UploadNote>(&text) else { return Ok(()) };
    let Some(archive) = super::object_names::noted(note.as_ref()).filter(|_| known.writer.is_dead(this))
    else {
        return Ok(());
    };
    match store.s3.abort_multipart(&Path::parse(archive)?, &known.upload).await {
        // It was completed, or somebody else has aborted it.
        Ok(()) | Err(StoreError::NotFound { .. }) => {}
        Err(error) => return Err(error),
    }
    tracing::info!(note = note.as_ref(), "aborted the upload of an interrupted run");
    store.s3.delete(note).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dead_processes_of_this_machine_are_dead() {
        let this = UploaderProcess::this().unwrap();
        assert!(!this.is_dead(&this));
        let other = UploaderProcess { process: 1, started: started(1).unwrap(), ..this.clone() };
        assert!(!other.is_dead(&this), "it lives");
        assert!(
            UploaderProcess { started: other.started + 1, ..other.clone() }.is_dead(&this),
            "its number was given again"
        );
        assert!(UploaderProcess { boot: "earlier".into(), ..other.clone() }.is_dead(&this));
        let gone = UploaderProcess { process: u32::MAX, ..other.clone() };
        assert!(gone.is_dead(&this));
        assert!(!UploaderProcess { space: "pid:[1]".into(), ..gone.clone() }.is_dead(&this), "a container's");
        assert!(!UploaderProcess { machine: "other".into(), ..gone }.is_dead(&this), "another machine's");
    }

    #[test]
    fn a_process_that_nobody_waits_for_is_dead_when_it_has_ended() {
        let this = UploaderProcess::this().unwrap();
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let writer =
            UploaderProcess { process: child.id(), started: started(child.id()).unwrap(), ..this.clone() };
        assert!(!writer.is_dead(&this), "it waits for its input");
        drop(child.stdin.take());
        while !writer.is_dead(&this) {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        child.wait().unwrap();
    }
}
