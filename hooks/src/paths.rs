//! Where a libvirt's hooks and its virtfold meet: below `/run` and `/var` for the host's, and below the
//! user's runtime directory for that of a user's session. libvirt gives hooks neither `XDG_RUNTIME_DIR` nor
//! `XDG_STATE_HOME`, so `/run/user/UID` counts where it is there.

use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

/// Whose libvirt it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookOwner {
    /// The host's (`qemu:///system`), also for root.
    System,
    /// This user's (`qemu:///session`).
    User,
}

impl HookOwner {
    /// That of a program which libvirt itself has called.
    pub fn caller() -> Self {
        if geteuid().is_root() { Self::System } else { Self::User }
    }

    /// That of a libvirt URI. Root's session is the host's libvirt: so libvirt itself has it.
    pub fn of(uri: &str) -> Self {
        let is_session = uri.split('?').next().unwrap_or_default().ends_with("/session");
        if is_session { Self::caller() } else { Self::System }
    }

    /// What ends with the boot, or with the user's last session: `/run/virtfold`, or `virtfold` in the user's
    /// runtime directory.
    pub fn runtime(self) -> PathBuf {
        self.runtime_in(Path::new("/run"), std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from))
    }

    fn runtime_in(self, run: &Path, said: Option<PathBuf>) -> PathBuf {
        if self == Self::System {
            return run.join("virtfold");
        }
        let usual = run.join("user").join(geteuid().to_string());
        let said = said.filter(|said| said.is_absolute() && !usual.is_dir());
        said.unwrap_or(usual).join("virtfold")
    }
}

/// The place that a variable names; else the usual one.
pub(crate) fn named(variable: &str, usual: impl FnOnce() -> PathBuf) -> PathBuf {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map_or_else(usual, PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_s_things_are_where_a_hook_looks_too() {
        let run = tempfile::tempdir().unwrap();
        let said = || Some(PathBuf::from("/somewhere"));
        let usual = run.path().join("user").join(geteuid().to_string());
        assert_eq!(HookOwner::System.runtime_in(run.path(), said()), run.path().join("virtfold"));
        assert_eq!(HookOwner::User.runtime_in(run.path(), said()), Path::new("/somewhere/virtfold"));
        assert_eq!(HookOwner::User.runtime_in(run.path(), None), usual.join("virtfold"));
        assert_eq!(HookOwner::User.runtime_in(run.path(), Some("relative".into())), usual.join("virtfold"));
        std::fs::create_dir_all(&usual).unwrap();
        assert_eq!(HookOwner::User.runtime_in(run.path(), said()), usual.join("virtfold"));
    }

    #[test]
    fn a_uri_says_whose_it_is() {
        for uri in [
            "qemu:///system",
            "qemu+unix:///system?socket=/run/x",
            "qemu:///system?mode=direct",
            "/session?x/system",
        ] {
            assert!(HookOwner::of(uri) == HookOwner::System || uri.starts_with("/session"), "{uri}");
        }
        assert_eq!(HookOwner::of("qemu:///session"), HookOwner::caller());
        assert_eq!(HookOwner::of("qemu+unix:///session?socket=/x/system"), HookOwner::caller());
    }
}
