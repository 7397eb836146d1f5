//! What `qemu-img` can't do where it runs.

use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};

use nix::libc;
use seccompiler::{SeccompAction, SeccompFilter};

use super::*;

fn images(owner: u32) -> (tempfile::TempDir, [File; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let open = |name: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        chown(&path, Some(owner), Some(owner)).unwrap();
        std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap()
    };
    let files = [open("one"), open("two")];
    (folder, files)
}

fn run(files: &[File; 2], arguments: &[&str], limit: Duration) -> Result<Ended> {
    let images = files.iter().map(|file| (file, FileAccess::Write)).collect();
    Sandbox { arguments: arguments.iter().map(Into::into).collect(), images, limit }.run()
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn it_reads_and_writes_what_it_was_given_and_nothing_else() {
    use std::os::fd::AsRawFd;
    for owner in [0, 64_055] {
        let (folder, files) = images(owner);
        let own = |n: usize| format!("/dev/fd/{}", files[n].as_raw_fd());
        let copy = |from: &str, to: &str| {
            run(&files, &["convert", "-n", "-f", "raw", "-O", "raw", from, to], MINUTE).unwrap()
        };
        std::fs::write(folder.path().join("two"), vec![9; 1 << 20]).unwrap();
        let done = copy(&own(0), &own(1));
        assert!(done.success, "{owner}: {done:?}");
        assert_eq!(std::fs::read(folder.path().join("two")).unwrap(), vec![7; 1 << 20]);
        // Everybody's, root's own, and one that would be new.
        let everybodys = folder.path().join("everybodys");
        std::fs::write(&everybodys, vec![5; 1 << 20]).unwrap();
        std::fs::set_permissions(&everybodys, std::fs::Permissions::from_mode(0o666)).unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        for name in ["/etc/shadow", "/etc/passwd", everybodys.to_str().unwrap()] {
            let refused = copy(name, &own(1));
            assert!(!refused.success && refused.said.contains("Permission denied"), "{name}: {refused:?}");
            let refused = copy(&own(0), name);
            assert!(!refused.success && refused.said.contains("Permission denied"), "{name}: {refused:?}");
        }
        let new = folder.path().join("new");
        let refused =
            run(&files, &["create", "-q", "-f", "raw", new.to_str().unwrap(), "1M"], MINUTE).unwrap();
        assert!(!refused.success && !new.exists(), "{refused:?}");
    }
}

#[test]
fn it_reaches_no_socket() {
    let (folder, files) = images(0);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let path = folder.path().join("socket");
    let local = std::os::unix::net::UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
    listener.set_nonblocking(true).unwrap();
    local.set_nonblocking(true).unwrap();
    for name in [
        format!("nbd://127.0.0.1:{}", listener.local_addr().unwrap().port()),
        format!("nbd+unix:///?socket={}", path.display()),
    ] {
        let refused = run(&files, &["info", &name], MINUTE).unwrap();
        assert!(!refused.success && refused.said.contains("Permission denied"), "{refused:?}");
    }
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(local.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

/// How the test of the time limit has qemu-img take its time.
const SLOWLY: &[u8] = b"\0-r\x001k\0";

/// The processes below this one that are `qemu-img`.
fn running() -> Vec<std::path::PathBuf> {
    let all = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let parent = format!("PPid:\t{}\n", std::process::id());
    let is_one = |path: &std::path::PathBuf| {
        let status = std::fs::read_to_string(path.join("status")).unwrap_or_default();
        // Other tests of this program start qemu-img, too, and none of them slowly.
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        let is_slow = line.windows(SLOWLY.len()).any(|part| part == SLOWLY);
        status.starts_with("Name:\tqemu-img") && status.contains(&parent) && is_slow
    };
    all.filter(is_one).collect()
}

#[test]
fn it_is_not_root_and_is_ended_in_time() {
    use std::os::fd::AsRawFd;
    for (owner, user, capabilities) in [(64_055, Some(64_055), 0), (0, None, 2)] {
        let (_folder, files) = images(owner);
        let from = format!("/dev/fd/{}", files[0].as_raw_fd());
        let to = format!("/dev/fd/{}", files[1].as_raw_fd());
        // More than one request, and the second has to wait.
        (&files[0]).write_all(&vec![7; 8 << 20]).unwrap();
        files[1].set_len(8 << 20).unwrap();
        let slow = ["convert", "-n", "-f", "raw", "-O", "raw", "-r", "1k", &from, &to];
        let said = std::thread::scope(|scope| {
            let run = scope.spawn(|| run(&files, &slow, Duration::from_secs(2)));
            let place = loop {
                if let Some(place) = running().pop() {
                    break place;
                }
                assert!(!run.is_finished(), "it has ended");
                std::thread::yield_now();
            };
            let status = std::fs::read_to_string(place.join("status")).unwrap();
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
                line.split_whitespace().next().unwrap_or_default().to_owned()
            };
            let uid: u32 = field("Uid:").parse().unwrap();
            assert!(user.map_or(NOBODY.contains(&uid), |user| uid == user), "{status}");
            for name in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
                assert_eq!(u64::from_str_radix(&field(name), 16).unwrap(), capabilities, "{status}");
            }
            assert_eq!((field("NoNewPrivs:").as_str(), field("Seccomp:").as_str()), ("1", "2"), "{status}");
            let environment = std::fs::read_to_string(place.join("environ")).unwrap();
            assert_eq!(environment.split_terminator('\0').count(), 2, "{environment:?}");
            let error = run.join().unwrap().unwrap_err();
            assert!(!place.exists(), "it is gone, and was waited for");
            error.to_string()
        });
        assert!(said.contains("was ended after 2 s"), "{said}");
    }
}

/// Has this thread, and what it starts, meet a kernel without Landlock.
fn without_landlock() {
    let rules = [(libc::SYS_landlock_create_ruleset, Vec::new())].into();
    let unknown = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    let machine = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, unknown, machine).unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

#[test]
fn without_landlock_it_runs_as_the_owner_or_not_at_all() {
    use std::os::fd::AsRawFd;
    let copied = |owner: u32| {
        let (_folder, files) = images(owner);
        let [from, to] = [0, 1].map(|n: usize| format!("/dev/fd/{}", files[n].as_raw_fd()));
        let arguments = ["convert", "-n", "-f", "raw", "-O", "raw", &from, &to];
        run(&files, &arguments, MINUTE).map(|ended| ended.success)
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            without_landlock();
            assert!(copied(64_055).unwrap());
            let error = copied(0).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
            assert!(error.hint().unwrap().contains("chown"), "{error:?}");
        });
    });
}
