//! Freezing.

use super::{FreezeRequest, Frozen, Host, Thawed};
use crate::error::{Error, ErrorKind, Result};
use crate::job::Control;

/// Freezes the disks of a running domain, runs `copy` on the frozen bases, and brings the guest back onto them.
///
/// # Errors
/// Whatever failed, `copy` among it. The guest is then back on its disks, unless the sentence says otherwise.
pub fn frozen<T>(
    _host: &Host<'_>,
    _request: &FreezeRequest,
    _control: &Control,
    _copy: impl FnOnce(&Frozen) -> Result<T>,
) -> Result<Thawed<T>> {
    Err(Error::new(ErrorKind::Unsupported, "not yet"))
}
