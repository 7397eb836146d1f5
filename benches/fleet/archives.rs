//! `list` of many small archives, in a directory and in a store.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::resource::UsageWho;

use crate::{line, measured, row, s3};

/// Archives of one guest.
const OF_A_GUEST: usize = 100;

pub(crate) fn run(count: usize, delay: Duration) {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let directory = folder.path().join("directory");
    std::fs::create_dir(&directory).unwrap();
    let store = folder.path().join("store");
    let server = s3::Server::start(&store);
    fill(folder.path(), &directory, &store.join(s3::BUCKET), count);
    let (bytes, cost) = measured(UsageWho::RUSAGE_CHILDREN, || list(directory.to_str().unwrap(), 0));
    row(&format!("list of {count}, a directory"), cost, &format!("{bytes} bytes of JSON"));
    let (port, traffic) = line::open(server.port, delay);
    let (_, cost) = measured(UsageWho::RUSAGE_CHILDREN, || list("s3://backups/vm", port));
    let (connections, requests) = traffic.take();
    let what = format!("list of {count}, a store {} ms away", delay.as_millis());
    row(&what, cost, &format!("{requests} requests, {connections} connections"));
}

/// Archives of a few KiB, all of them the same file.
fn fill(folder: &Path, directory: &Path, bucket: &Path, count: usize) {
    let image = folder.join("image.raw");
    let noise: Vec<u8> = (0..8192_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(&image, noise).unwrap();
    let mut backup = Command::new(env!("CARGO_BIN_EXE_virtfold"));
    backup.args(["backup", "--format", "raw", "--compress", "zstd", "--image"]).arg(&image);
    let done =
        backup.arg("--to").arg(directory).arg("--state-dir").arg(folder.join("state")).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let made = std::fs::read_dir(directory).unwrap().next().unwrap().unwrap().path();
    let first = directory.join("guest0-0.tar.zst");
    std::fs::rename(made, &first).unwrap();
    for number in 0..count {
        let (guest, of_it) = (number / OF_A_GUEST, number % OF_A_GUEST);
        let name = format!("guest{guest}-{of_it}.tar.zst");
        if number > 0 {
            std::fs::hard_link(&first, directory.join(&name)).unwrap();
        }
        let place = bucket.join(format!("vm/host/guest{guest}"));
        std::fs::create_dir_all(&place).unwrap();
        std::fs::hard_link(&first, place.join(name)).unwrap();
    }
}

/// The bytes that it prints.
fn list(place: &str, port: u16) -> u64 {
    let mut command = Command::new(env!("CARGO_BIN_EXE_virtfold"));
    s3::account(command.args(["list", "--json", place]), port);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let printed = std::io::copy(child.stdout.as_mut().unwrap(), &mut std::io::sink()).unwrap();
    assert!(child.wait().unwrap().success());
    printed
}
