//! What a confined process can't do. Each runs in a process of its own: this test again.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;

use super::*;

/// The variable that says that this is the process to be confined, and with what.
const INSIDE: &str = "VIRTFOLD_TEST_CONFINED";

/// Runs the test `name` again, in a process that knows what it is for; what it is given, where it is one.
fn inside(name: &str, given: &str) -> Option<String> {
    if let Ok(given) = std::env::var(INSIDE) {
        return Some(given);
    }
    let status = again(name, given);
    assert!(status.success(), "{status}");
    None
}

fn again(name: &str, given: &str) -> std::process::ExitStatus {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("confine::tests::{name}"), "--nocapture"]).env(INSIDE, given);
    command.status().unwrap()
}

#[test]
fn it_opens_what_it_was_given_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("mine")).unwrap();
    std::fs::write(folder.path().join("mine/one"), "one").unwrap();
    std::fs::write(folder.path().join("two"), "two").unwrap();
    let Some(given) = inside("it_opens_what_it_was_given_and_nothing_else", folder.path().to_str().unwrap())
    else {
        assert_eq!(std::fs::read_to_string(folder.path().join("mine/new")).unwrap(), "new");
        return;
    };
    let place = Path::new(&given);
    let found = Confinement::new(Network::Nowhere)
        .path(&place.join("mine"), FileAccess::Write)
        .path(Path::new("/"), FileAccess::Names)
        .apply()
        .unwrap();
    assert!(found.files != Enforced::Not && found.calls == Enforced::Fully, "{found}");
    assert_eq!(std::fs::read_to_string(place.join("mine/one")).unwrap(), "one");
    std::fs::write(place.join("mine/new"), "new").unwrap();
    for closed in [Path::new("/etc/shadow"), Path::new("/etc/passwd"), &place.join("two")] {
        let error = File::open(closed).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{}", closed.display());
        assert!(std::fs::OpenOptions::new().append(true).open(closed).is_err());
    }
    assert!(std::fs::write(place.join("new"), "new").is_err());
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    let error = std::fs::set_permissions(place.join("two"), mode).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    assert!(std::fs::read_dir("/etc").is_ok(), "names can be seen");
    // A thread that it starts is confined as well.
    assert!(std::thread::spawn(|| File::open("/etc/shadow").is_err()).join().unwrap());
    let status = std::fs::read_to_string("/proc/self/status");
    assert!(status.is_err(), "it was not given");
    let kept = rustix::thread::capabilities(None).unwrap();
    let files = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
    assert!(files.contains(kept.permitted) && kept.inheritable.is_empty(), "{kept:?}");
    assert!(rustix::thread::no_new_privs().unwrap());
}

#[test]
fn it_connects_to_its_port_and_no_other() {
    let listeners = [0, 1].map(|_: u8| TcpListener::bind("127.0.0.1:0").unwrap());
    let [open, closed] = listeners.each_ref().map(|one| one.local_addr().unwrap().port());
    let Some(given) = inside("it_connects_to_its_port_and_no_other", &format!("{open} {closed}")) else {
        listeners[0].accept().unwrap();
        listeners[1].set_nonblocking(true).unwrap();
        assert_eq!(listeners[1].accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        return;
    };
    let (open, closed) = given.split_once(' ').unwrap();
    let [open, closed]: [u16; 2] = [open, closed].map(|port| port.parse().unwrap());
    Confinement::new(Network::Ports(vec![open])).apply().unwrap();
    TcpStream::connect(("127.0.0.1", open)).unwrap();
    let error = TcpStream::connect(("127.0.0.1", closed)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{error}");
    assert!(TcpListener::bind("127.0.0.1:0").is_err(), "it serves nobody");
}

#[test]
fn without_a_network_it_has_no_socket() {
    let Some(_) = inside("without_a_network_it_has_no_socket", "") else { return };
    Confinement::new(Network::Nowhere).apply().unwrap();
    let refused = [
        TcpStream::connect("127.0.0.1:1").unwrap_err(),
        std::os::unix::net::UnixStream::connect("/run/none").unwrap_err(),
        std::net::UdpSocket::bind("127.0.0.1:0").unwrap_err(),
    ];
    for error in refused {
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{error}");
    }
}

#[test]
fn a_forbidden_call_ends_it() {
    if let Ok(which) = std::env::var(INSIDE) {
        Confinement::new(Network::Nowhere).path(Path::new("/"), FileAccess::Read).apply().unwrap();
        std::io::stdout().flush().unwrap();
        let outcome = match which.as_str() {
            "execve" => Command::new("/bin/true").exec().to_string(),
            "chroot" => format!("{:?}", nix::unistd::chroot("/")),
            _ => "this one is none".to_owned(),
        };
        println!("{outcome}");
        return;
    }
    for which in ["execve", "chroot"] {
        let status = again("a_forbidden_call_ends_it", which);
        assert_eq!(status.signal(), Some(nix::libc::SIGSYS), "{which}: {status}");
    }
    assert!(again("a_forbidden_call_ends_it", "none").success());
}

#[test]
fn what_a_kernel_lacks_is_said() {
    let Some(_) = inside("what_a_kernel_lacks_is_said", "") else { return };
    let rules = [(nix::libc::SYS_landlock_create_ruleset, Vec::new())].into();
    let unknown = seccompiler::SeccompAction::Errno(nix::libc::ENOSYS.cast_unsigned());
    let machine = std::env::consts::ARCH.try_into().unwrap();
    let filter =
        seccompiler::SeccompFilter::new(rules, seccompiler::SeccompAction::Allow, unknown, machine).unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    rustix::thread::set_no_new_privs(true).unwrap();
    seccompiler::apply_filter(&program).unwrap();
    let here = Confinement::new(Network::Nowhere).apply().unwrap();
    assert_eq!(here, Enforcement { files: Enforced::Not, calls: Enforced::Fully });
    assert!(here.to_string().contains("no Landlock"), "{here}");
}
