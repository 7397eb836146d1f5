//! What a hypervisor answered when it said no: libvirt's code, domain and text, kept as the source of our
//! error.
//!
//! The numbers are libvirt's (virErrorNumber in libvirt/virterror.h), because that is what people look up;
//! the simulated hypervisor uses the same.
//!
//! Imports: `error`.

use std::error::Error as StdError;
use std::fmt;

use virtfold_base::error::{Error, ErrorKind, says_full};

/// libvirt's error numbers that decide something here.
pub mod code {
    /// VIR_ERR_INTERNAL_ERROR: also what a broken connection gives.
    pub const INTERNAL: i32 = 1;
    /// VIR_ERR_NO_CONNECT.
    pub const NO_CONNECT: i32 = 5;
    /// VIR_ERR_OPERATION_FAILED: among others a uuid or name that belongs to another domain, and an open
    /// chain.
    pub const OPERATION_FAILED: i32 = 9;
    /// VIR_ERR_INVALID_ARG: also a block job on a chain that is not what the XML says.
    pub const INVALID_ARG: i32 = 8;
    /// VIR_ERR_SYSTEM_ERROR: also 'End of file while reading data'.
    pub const SYSTEM: i32 = 38;
    /// VIR_ERR_RPC.
    pub const RPC: i32 = 39;
    /// VIR_ERR_NO_DOMAIN.
    pub const NO_DOMAIN: i32 = 42;
    /// VIR_ERR_NO_STORAGE_POOL.
    pub const NO_POOL: i32 = 49;
    /// VIR_ERR_NO_STORAGE_VOL.
    pub const NO_VOLUME: i32 = 50;
    /// VIR_ERR_OPERATION_INVALID: the domain is not in the state that the call needs.
    pub const OPERATION_INVALID: i32 = 55;
    /// VIR_ERR_CONFIG_UNSUPPORTED: what the disk or the snapshot is cannot be done.
    pub const CONFIG_UNSUPPORTED: i32 = 67;
    /// VIR_ERR_OPERATION_TIMEOUT: another job holds the domain's lock.
    pub const OPERATION_TIMEOUT: i32 = 68;
    /// VIR_ERR_BLOCK_COPY_ACTIVE: a block job is in the way, or not ready for a pivot.
    pub const BLOCK_COPY_ACTIVE: i32 = 83;
    /// VIR_ERR_OPERATION_UNSUPPORTED.
    pub const OPERATION_UNSUPPORTED: i32 = 84;
    /// VIR_ERR_AGENT_UNRESPONSIVE: no agent, or one that does not answer.
    pub const AGENT_UNRESPONSIVE: i32 = 86;
    /// VIR_ERR_NO_DOMAIN_CHECKPOINT.
    pub const NO_CHECKPOINT: i32 = 103;
    /// VIR_ERR_NO_DOMAIN_BACKUP.
    pub const NO_BACKUP: i32 = 104;
    /// VIR_ERR_AGENT_COMMAND_TIMEOUT: the agent's time limit was over.
    pub const AGENT_COMMAND_TIMEOUT: i32 = 112;
}

/// Whether the hypervisor answered at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorOrigin {
    /// It answered no: nothing was done, as far as it knows.
    Answered,
    /// The connection broke before an answer: whether it was done is not known. Look.
    ConnectionLost,
}

/// A hypervisor's no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HypervisorError {
    /// One of [`code`], or another of libvirt's.
    pub code: i32,
    /// libvirt's number of the part that said it (virErrorDomain).
    pub domain: i32,
    /// What it said.
    pub text: String,
    /// Whether it answered.
    pub answer: ErrorOrigin,
}

impl HypervisorError {
    /// The fault behind an error, where there is one.
    pub fn of(error: &Error) -> Option<&HypervisorError> {
        let mut cause: Option<&(dyn StdError + 'static)> = error.source();
        while let Some(inner) = cause {
            if let Some(fault) = inner.downcast_ref() {
                return Some(fault);
            }
            cause = inner.source();
        }
        None
    }

    /// libvirt's error number behind an error.
    pub fn code_of(error: &Error) -> Option<i32> {
        Self::of(error).map(|f| f.code)
    }

    /// Whether the call behind an error may have been done although it failed.
    pub fn lost(error: &Error) -> bool {
        Self::of(error).is_some_and(|f| f.answer == ErrorOrigin::ConnectionLost)
    }

    /// Puts the fault under a sentence that says what was being done to which domain.
    pub fn into_error(self, doing: impl Into<String>) -> Error {
        let kind = match (self.answer, self.code) {
            (ErrorOrigin::ConnectionLost, _) => ErrorKind::Io,
            (_, code::NO_DOMAIN | code::NO_POOL | code::NO_VOLUME) => ErrorKind::NotFound,
            (_, code::BLOCK_COPY_ACTIVE | code::OPERATION_TIMEOUT) => ErrorKind::InUse,
            (_, code::CONFIG_UNSUPPORTED | code::OPERATION_UNSUPPORTED) => ErrorKind::Unsupported,
            _ if says_full(&self.text) => ErrorKind::NoSpace,
            _ => ErrorKind::Refused,
        };
        Error::new(kind, doing).with_source(self)
    }
}

impl fmt::Display for HypervisorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (libvirt error {}, domain {})", self.text.trim_end(), self.code, self.domain)
    }
}

impl StdError for HypervisorError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_found_under_any_number_of_sentences() {
        let fault = HypervisorError {
            code: 42,
            domain: 10,
            text: "Domain not found\n".into(),
            answer: ErrorOrigin::Answered,
        };
        let error = fault.into_error("cannot look up 'x'").within("the backup of 'x' failed");
        assert_eq!(HypervisorError::code_of(&error), Some(code::NO_DOMAIN));
        let text = "cannot create overlay: No space left on device".into();
        let full = HypervisorError { code: 38, domain: 10, text, answer: ErrorOrigin::Answered }
            .into_error("cannot freeze 'x'");
        assert!(full.kind() == ErrorKind::NoSpace && full.hint().is_some());
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(!HypervisorError::lost(&error));
        let shown = format!("{error:?}");
        assert!(shown.ends_with("Domain not found (libvirt error 42, domain 10)"), "{shown}");
        assert!(HypervisorError::of(&Error::new(ErrorKind::Usage, "x")).is_none());
    }
}
