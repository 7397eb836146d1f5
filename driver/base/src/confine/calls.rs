//! The calls that end a process, and those that it is refused.
//!
//! What no program of ours makes ends it: somebody else has its words then. What libraries try and can do
//! without (`io_uring`, sockets of odd kinds, any socket where none is needed) is refused as by permissions.
//! On x86-64 each is listed by its number of the x32 ABI, too, which is another way to the same call.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use super::{Enforced, Network};
use crate::error::{Error, ErrorKind, Result};

/// Whether other programs are started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Programs {
    /// None.
    None,
    /// Those that Landlock's list has.
    Some,
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// What ends the process.
const KILLED: &[i64] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
    libc::SYS_open_by_handle_at,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
];
const PROGRAMS: &[i64] = &[libc::SYS_execve, libc::SYS_execveat];
/// What libraries try.
const REFUSED: &[i64] = &[libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];
/// What changes who may do what with a file that was not opened: Landlock knows no rules for these, and a
/// process of root's owns much. (`fchmodat2` has this number on all machines.)
const CHANGES_BY_NAME: &[i64] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
    libc::SYS_fchmodat,
    FCHMODAT2,
    libc::SYS_fchownat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
];
const FCHMODAT2: i64 = 452;
/// The same of an open file: a program that is not ours and is given its files has no use for it.
const CHANGES: &[i64] = &[libc::SYS_fchmod, libc::SYS_fchown, libc::SYS_fsetxattr, libc::SYS_fremovexattr];
/// Libc, name servers and object stores.
const FAMILIES: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
/// What the numbers of the x32 ABI have beside those of x86-64.
#[cfg(target_arch = "x86_64")]
const X32: i64 = 0x4000_0000;

/// Puts the filters before this thread's calls.
pub(super) fn forbid(programs: Programs, network: &Network) -> Result<Enforced> {
    let mut killed = every(KILLED);
    if programs == Programs::None {
        killed.append(&mut every(PROGRAMS));
    }
    let mut refused = every(REFUSED);
    refused.append(&mut every(CHANGES_BY_NAME));
    if programs == Programs::Some {
        refused.append(&mut every(CHANGES));
    }
    match network {
        Network::Nowhere => refused.append(&mut every(&[libc::SYS_socket])),
        Network::Ports(_) => refused.append(&mut with(&[libc::SYS_socket], &other_families()?)),
    }
    if apply(refused, SeccompAction::Errno(libc::EACCES.cast_unsigned()))? == Enforced::Not {
        return Ok(Enforced::Not);
    }
    apply(killed, SeccompAction::KillProcess)
}

fn failed(error: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::Io, "cannot confine this process (seccomp)").with_source(error.to_string())
}

/// These calls, whatever their arguments.
fn every(calls: &[i64]) -> Rules {
    with(calls, &[])
}

/// These calls where a rule fits.
fn with(calls: &[i64], rules: &[SeccompRule]) -> Rules {
    let mut found: Rules = calls.iter().map(|call| (*call, rules.to_vec())).collect();
    #[cfg(target_arch = "x86_64")]
    found.extend(calls.iter().map(|call| (*call | X32, rules.to_vec())));
    found.retain(|call, _| *call >= 0);
    found
}

/// Sockets of any other family.
fn other_families() -> Result<Vec<SeccompRule>> {
    let is_not = |family: &i32| {
        let family = u64::from(family.cast_unsigned());
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family)
    };
    let conditions = FAMILIES.iter().map(is_not).collect::<std::result::Result<Vec<_>, BackendError>>();
    let rule = conditions.and_then(SeccompRule::new).map_err(|e| failed(&e))?;
    Ok(vec![rule])
}

fn apply(rules: Rules, action: SeccompAction) -> Result<Enforced> {
    let machine = std::env::consts::ARCH.try_into().map_err(|e: BackendError| failed(&e))?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, machine).map_err(|e| failed(&e))?;
    let program: BpfProgram = filter.try_into().map_err(|e: BackendError| failed(&e))?;
    match seccompiler::apply_filter(&program) {
        Ok(()) => Ok(Enforced::Fully),
        // The kernel has none.
        Err(seccompiler::Error::Seccomp(e) | seccompiler::Error::Prctl(e))
            if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) =>
        {
            Ok(Enforced::Not)
        }
        Err(error) => Err(failed(&error)),
    }
}
