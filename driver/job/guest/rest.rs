//! Reading a domain that is shut off.

use super::{Frozen, Host, RestRequest};
use crate::error::{Error, ErrorKind, Result};
use crate::job::Control;

/// Runs `copy` on the disks of a domain that is shut off, and proves that it stayed so.
///
/// # Errors
/// It ran, or runs; whatever `copy` says.
pub fn at_rest<T>(
    _host: &Host<'_>,
    _request: &RestRequest,
    _control: &Control,
    _copy: impl FnOnce(&Frozen) -> Result<T>,
) -> Result<T> {
    Err(Error::new(ErrorKind::Unsupported, "not yet"))
}
