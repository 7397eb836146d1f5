//! Taking archives out of a bucket, many at a time.
//!
//! 1. Each folder that one of them lies in is listed, once: what has another size than was looked at is
//!    another object, and stays.
//! 2. The others go by `DeleteObjects`, up to [`BATCH`] in a request; by a request each where the environment
//!    says that the store does not know that one (`AWS_DISABLE_BULK_DELETE`, which the `object_store` crate
//!    reads).
//!
//! Who has an answer for one of them has it for that one: what fails, fails alone.
//!
//! Imports: `error`; `store`, `store_error` of this room.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, stream};
use object_store::ObjectStore;
use object_store::path::Path;

use super::store::{Store, StoreResult, key, wait};
use super::store_error::{explain, is_not_implemented};
use crate::ObjectAddress;
use virtfold_archive::stream::Cancel;
use virtfold_base::error::{Error, ErrorKind, Result, WireError};

/// Objects that one request takes away: S3's own limit.
const BATCH: usize = 1000;

/// Removes the objects at `wanted`, each of which has so many bytes; see [`crate::remove`]. Says of each, in
/// their order, what became of it.
pub fn remove(wanted: &[(ObjectAddress, u64)]) -> Vec<Result<()>> {
    let mut results: Vec<Option<Result<()>>> = wanted.iter().map(|_| None).collect();
    let buckets: BTreeSet<&str> = wanted.iter().map(|(address, _)| address.bucket.as_str()).collect();
    for bucket in buckets {
        let here = wanted.iter().enumerate().filter(|(_, (address, _))| address.bucket == bucket);
        let here: Vec<(usize, &ObjectAddress, u64)> =
            here.map(|(index, (address, bytes))| (index, address, *bytes)).collect();
        for (index, result) in from_bucket(&here) {
            if let Some(slot) = results.get_mut(index) {
                *slot = Some(result);
            }
        }
    }
    let lost = || Err(Error::new(ErrorKind::Internal, "nothing is known of a removal"));
    results.into_iter().map(|result| result.unwrap_or_else(lost)).collect()
}

fn from_bucket(wanted: &[(usize, &ObjectAddress, u64)]) -> Vec<(usize, Result<()>)> {
    let Some((_, first, _)) = wanted.first() else { return Vec::new() };
    let store = match Store::open(first, super::READ) {
        Ok(store) => store,
        Err(error) => {
            let told = WireError::from(&error);
            return wanted.iter().map(|(index, ..)| (*index, Err(told.clone().into()))).collect();
        }
    };
    let mut known = Folders { store: &store, seen: BTreeMap::new() };
    let mut results = Vec::with_capacity(wanted.len());
    let mut going: Vec<(usize, Path)> = Vec::new();
    for (index, address, bytes) in wanted {
        match key(&address.key).and_then(|key| Ok((known.size(&key)?, key))) {
            Ok((Some(size), key)) if size == *bytes => going.push((*index, key)),
            Ok((Some(_), key)) => results.push((*index, Err(crate::changed(&store.name(&key))))),
            Ok((None, _)) => results.push((*index, Ok(()))),
            Err(error) => results.push((*index, Err(error))),
        }
    }
    for batch in going.chunks(BATCH) {
        results.extend(batch.iter().map(|(index, _)| *index).zip(delete(&store, batch)));
    }
    results
}

/// What lies in the folders that were asked for, each listed once.
struct Folders<'a> {
    store: &'a Store,
    /// A listing that failed has failed for all that lies there: each would be tried for a minute.
    seen: BTreeMap<Option<Path>, std::result::Result<BTreeMap<Path, u64>, WireError>>,
}

impl Folders<'_> {
    /// The bytes of an object; nothing, where it is not there.
    fn size(&mut self, of: &Path) -> Result<Option<u64>> {
        let folder = of.as_ref().rsplit_once('/').map(|(folder, _)| key(folder)).transpose()?;
        let store = self.store;
        let objects = self.seen.entry(folder).or_insert_with_key(|folder| {
            let listing = || -> Result<BTreeMap<Path, u64>> {
                let listed = wait(&Cancel::default(), store.s3.list_with_delimiter(folder.as_ref()))?;
                let listed =
                    listed.map_err(|e| explain(format!("cannot look at '{}'", store.name(of)), &e))?;
                Ok(listed.objects.into_iter().map(|object| (object.location, object.size)).collect())
            };
            listing().map_err(|error| WireError::from(&error))
        });
        match objects {
            Ok(objects) => Ok(objects.get(of).copied()),
            Err(told) => Err(told.clone().into()),
        }
    }
}

/// Takes away what fits into one request.
fn delete(store: &Store, batch: &[(usize, Path)]) -> Vec<Result<()>> {
    let keys: Vec<StoreResult<Path>> = batch.iter().map(|(_, key)| Ok(key.clone())).collect();
    let deleted = store.s3.delete_stream(stream::iter(keys).boxed()).collect::<Vec<_>>();
    let deleted = match wait(&Cancel::default(), deleted) {
        Ok(deleted) => deleted,
        Err(error) => {
            let told = WireError::from(&error);
            return batch.iter().map(|_| Err(told.clone().into())).collect();
        }
    };
    // One answer a key, in their order; or one for all of them, where the request itself failed.
    if deleted.len() == batch.len() {
        return batch.iter().zip(deleted).map(|((_, key), answer)| judged(store, key, answer)).collect();
    }
    let of_all = |key: &Path| match deleted.iter().find_map(|answer| answer.as_ref().err()) {
        Some(error) => Err(refused(store, key, error)),
        None => Err(Error::new(ErrorKind::Io, format!("{}: the store did not say so", cannot(store, key)))),
    };
    batch.iter().map(|(_, key)| of_all(key)).collect()
}

fn judged(store: &Store, key: &Path, answer: StoreResult<Path>) -> Result<()> {
    match answer {
        Ok(_) | Err(object_store::Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(refused(store, key, &error)),
    }
}

fn refused(store: &Store, key: &Path, error: &object_store::Error) -> Error {
    let refused = explain(cannot(store, key), error);
    if is_not_implemented(error) {
        return refused
            .with_hint("AWS_DISABLE_BULK_DELETE=true has each object removed by a request of its own");
    }
    refused
}

fn cannot(store: &Store, key: &Path) -> String {
    format!("cannot remove '{}'", store.name(key))
}
