//! Which libvirt to speak to: a local one only, because the disks are read as files of this host.
//!
//! Imports: `error`.

use virtfold_base::error::{Error, ErrorKind, Result};

/// A URI that leads to a libvirt on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalUri(String);

impl LocalUri {
    /// The system's libvirt.
    pub const SYSTEM: &'static str = "qemu:///system";

    /// Checks a URI as libvirt takes it: `qemu:///system`, `qemu:///session`,
    /// `qemu+unix:///system?socket=/path`.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a remote one and for other hypervisors, [`ErrorKind::Usage`]
    /// for what is no URI.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse = |kind, why: &str| {
            let error = Error::new(kind, format!("'{}' cannot be used: {why}", text.escape_debug()));
            Err(error.with_hint("use qemu:///system or qemu:///session"))
        };
        let Some((scheme, rest)) = text.split_once("://") else {
            return refuse(ErrorKind::Usage, "not a libvirt URI (aliases are not supported)");
        };
        let (driver, transport) = scheme.split_once('+').unwrap_or((scheme, "unix"));
        if driver != "qemu" {
            return refuse(ErrorKind::Unsupported, "only QEMU's domains can be backed up");
        }
        let host = rest.split(['/', '?']).next().unwrap_or_default();
        if transport != "unix" || !host.is_empty() {
            let why =
                "it is remote, but virtfold reads the disks as files of the host they are on; run it there";
            return refuse(ErrorKind::Unsupported, why);
        }
        let path = rest.split('?').next().unwrap_or_default();
        if !matches!(path, "/system" | "/session") {
            return refuse(ErrorKind::Unsupported, "only the paths /system and /session are known");
        }
        if text.contains(['\0', '\n', '#']) {
            return refuse(ErrorKind::Usage, "it has characters that are invalid in a URI");
        }
        Ok(Self(text.to_owned()))
    }

    /// As libvirt takes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_ones_pass_and_remote_ones_say_why_not() {
        for local in [
            "qemu:///system",
            "qemu:///session",
            "qemu+unix:///system?socket=/run/x",
            "qemu:///system?mode=direct",
        ] {
            assert_eq!(LocalUri::parse(local).unwrap().as_str(), local);
        }
        for remote in [
            "qemu+ssh://root@host/system",
            "qemu+ssh:///system",
            "qemu://localhost/system",
            "qemu+tls://h/system",
            "qemu+unix://h/system",
        ] {
            let error = LocalUri::parse(remote).unwrap_err();
            assert!(error.to_string().contains("it is remote"), "{error}");
            assert_eq!(error.kind(), ErrorKind::Unsupported);
        }
        for other in ["xen:///system", "test:///default", "qemu:///embed?root=/x", "qemu:///", "work", ""] {
            assert!(LocalUri::parse(other).is_err(), "{other}");
        }
    }
}
