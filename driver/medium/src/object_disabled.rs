//! Object stores in a build without the feature `object-store`: they are known by name, and say that they are
//! not there.

use std::sync::Arc;

use super::{ArchiveLabel, ListedObject, Medium, ObjectAddress, PartialArchive, Resumed};
use virtfold_archive::source::Source;
use virtfold_archive::stream::Cancel;
use virtfold_base::error::{Error, ErrorKind, Result};

fn absent<T>(address: &ObjectAddress) -> Result<T> {
    Err(Error::new(
        ErrorKind::Unsupported,
        format!("'{address}': this virtfold was built without object stores"),
    )
    .with_hint("build it with the feature 'object-store'"))
}

/// Nothing is listed.
///
/// # Errors
/// Unsupported.
pub fn list(place: &ObjectAddress) -> Result<Vec<ListedObject>> {
    absent(place)
}

/// Nothing is opened.
///
/// # Errors
/// Unsupported.
pub fn open(address: &ObjectAddress) -> Result<Arc<dyn Source>> {
    absent(address)
}

/// Nothing is made.
///
/// # Errors
/// Unsupported.
pub fn create(place: &ObjectAddress, _: &ArchiveLabel, _: &Cancel) -> Result<Box<dyn Medium>> {
    absent(place)
}

/// Nothing is opened.
///
/// # Errors
/// Unsupported.
pub fn open_listed(listed: &ListedObject) -> Result<Arc<dyn Source>> {
    absent(&listed.address)
}

/// Nothing is removed.
pub fn remove(wanted: &[(ObjectAddress, u64)]) -> Vec<Result<()>> {
    wanted.iter().map(|(address, _)| absent(address)).collect()
}

/// The place itself: nothing in it can be read anyway.
pub fn host_folder(place: &ObjectAddress, _: &str) -> ObjectAddress {
    place.clone()
}

/// Nothing is gone on with.
///
/// # Errors
/// Unsupported.
pub fn reopen(place: &ObjectAddress, _: &ArchiveLabel, _: &Cancel, _: &PartialArchive) -> Result<Resumed> {
    absent(place)
}
