//! S3 object stores as a medium: `s3://BUCKET/PREFIX`.
//!
//! - Writing ([`ObjectMedium`]): a multipart upload, its parts sent in parallel from bounded memory
//!   (`parts`), each with its SHA-256, which the store checks. The object appears when the upload is
//!   completed, whole and never over another one.
//! - Reading ([`ObjectSource`]): ranges, several at a time.
//! - Removing (`remove`): many in one request.
//! - `object_names`: `PREFIX/HOST/SUBJECT/NAME`, so that hosts can share a bucket without locks; [`list()`]
//!   sees all of them.
//! - `upload_note`: what is on its way, so that what a dead writer has left can be cleaned up, unless
//!   somebody goes on with it (`ObjectMedium::reopen`).
//! - `limits`: what a store may answer, be it one that means harm.
//! - `store`: the connection, and the asynchronous runtime, which stays within this room. `credentials`,
//!   `store_error`: keys, and what failures mean.
//!
//! What is durable when: nothing before [`Medium::finish`] has returned; then all of it, for the store has
//! answered, and was asked again what it has. What may be retried: a part, by this room itself, for as long
//! as its patience lasts; nothing by its caller.
//!
//! Keys of the account come from the environment (`AWS_*`), from the shared credentials file or from the
//! machine; they are in no address, message or log.
//!
//! Imports: `error`, `units`, `archive` (its traits for bytes).

mod credentials;
mod limits;
mod object_names;
mod parts;
mod remove;
mod source;
mod store;
mod store_error;
mod upload;
mod upload_note;

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use object_store::{ObjectMeta, ObjectStore};

pub use self::remove::remove;
pub use self::source::ObjectSource;
pub use self::upload::ObjectMedium;
use crate::{ArchiveLabel, ListedObject, Medium, ObjectAddress, PartialArchive, Resumed};
use virtfold_archive::source::Source;
use virtfold_archive::stream::Cancel;
use virtfold_base::error::{Error, ErrorKind, Result};

/// The largest request of those that read, list or remove: they share a client.
const READ: u64 = virtfold_base::units::MIB;
/// How long a part is tried, where the environment does not say.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// The variable that says it, in seconds.
const PATIENCE_VARIABLE: &str = "VIRTFOLD_S3_PATIENCE";

/// Opens the archive at `address`.
///
/// # Errors
/// Those of [`ObjectSource::open`].
pub fn open(address: &ObjectAddress) -> Result<Arc<dyn Source>> {
    Ok(Arc::new(ObjectSource::open(address)?))
}

/// Begins the archive `label` below `place`.
///
/// # Errors
/// Those of [`ObjectMedium::create`].
pub fn create(place: &ObjectAddress, label: &ArchiveLabel, cancel: &Cancel) -> Result<Box<dyn Medium>> {
    Ok(Box::new(ObjectMedium::create(place, label, cancel)?))
}

/// Goes on with the upload of the archive `label` below `place`.
///
/// # Errors
/// Those of `ObjectMedium::reopen`.
pub fn reopen(
    place: &ObjectAddress,
    label: &ArchiveLabel,
    cancel: &Cancel,
    remains: &PartialArchive,
) -> Result<Resumed> {
    ObjectMedium::reopen(place, label, cancel, remains)
}

/// Opens the archive that a list has shown. The list told its size, so that nothing is asked for but its
/// bytes.
///
/// # Errors
/// Its key can be none; what the environment says of the store makes no sense. Whether it is still there
/// shows when it is read.
pub fn open_listed(listed: &ListedObject) -> Result<Arc<dyn Source>> {
    Ok(Arc::new(ObjectSource::listed(listed)?))
}

/// Everything below `place` in the order of its keys; what it is, its name tells. One request for each
/// thousand of them.
///
/// # Errors
/// When the store can't be reached or refuses.
pub fn list(place: &ObjectAddress) -> Result<Vec<ListedObject>> {
    let store = store::Store::open(place, READ)?;
    let folder = if place.key.is_empty() { None } else { Some(store::key(&place.key)?) };
    let objects = store.s3.list(folder.as_ref()).try_collect::<Vec<ObjectMeta>>();
    let objects = store::wait(&Cancel::default(), objects)?
        .map_err(|e| store_error::explain(format!("cannot list '{place}'"), &e))?;
    let mut found: Vec<ListedObject> = objects.into_iter().map(|object| listed(place, object)).collect();
    found.sort_by(|a, b| (&a.address.key, a.is_partial).cmp(&(&b.address.key, b.is_partial)));
    // A note whose archive is there was left behind by a writer that could not take it away.
    found.dedup_by(|later, first| later.address == first.address);
    Ok(found)
}

/// Where below `place` the archives of a host are.
pub fn host_folder(place: &ObjectAddress, host: &str) -> ObjectAddress {
    let key = object_names::host_folder(&place.key, host);
    ObjectAddress { bucket: place.bucket.clone(), key }
}

fn listed(place: &ObjectAddress, object: ObjectMeta) -> ListedObject {
    let noted = object_names::noted(object.location.as_ref());
    let is_partial = noted.is_some();
    let key = noted.unwrap_or_else(|| object.location.to_string());
    let bytes = if is_partial { 0 } else { object.size };
    ListedObject {
        address: ObjectAddress { bucket: place.bucket.clone(), key },
        bytes,
        version: object.e_tag,
        is_partial,
    }
}

/// How long a part that fails for the moment is tried again.
///
/// # Errors
/// The variable makes no sense.
fn patience() -> Result<Duration> {
    let Some(text) = std::env::var_os(PATIENCE_VARIABLE) else { return Ok(PATIENCE) };
    let seconds = text.to_str().and_then(|text| text.parse().ok());
    seconds.map(Duration::from_secs).ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("{PATIENCE_VARIABLE} is not a number of seconds"))
            .with_hint("how long an upload that broke is tried again, for example 900")
    })
}
