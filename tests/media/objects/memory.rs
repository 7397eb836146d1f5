//! 2 GiB go through 64 MiB of memory.

use std::process::Stdio;
use std::time::Duration;

use super::{PLACE, World, key_of};
use crate::common::MIB;
use crate::common::archive::backup_args;
use crate::common::image::{Format, Image};

/// The most memory that the process has had, bytes; nothing when it is gone.
fn peak(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10)
}

/// Backs `image` up; bytes in the store, and of memory.
fn measured(world: &World, image: &Image, more: &[&str]) -> (u64, u64) {
    let mut command = super::virtfold(backup_args(image, PLACE, more));
    super::account(&mut command, world.server.port);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        most = peak(child.id()).unwrap_or(0).max(most);
        std::thread::sleep(Duration::from_millis(20));
    }
    let done = crate::common::run::collect("virtfold backup".to_owned(), child).ok();
    let stored = world.server.object(key_of(done.last_line())).metadata().unwrap().len();
    println!("{} MiB in {} MiB of memory", stored / MIB, most / MIB);
    (stored, most)
}

#[test]
fn two_gib_go_through_64_mib() {
    let world = World::new("s3-memory");
    // Every block of an empty disk: nothing to read, all of it to send.
    let image = Image::create(world.scratch.join("disk.qcow2"), Format::Qcow2, "", 2 << 30);
    let (stored, most) = measured(&world, &image, &["--layout", "full", "--compress", "none"]);
    assert!(stored > 2 << 30 && most < 64 * MIB, "{} MiB in {} MiB", stored / MIB, most / MIB);
}

/// Compressing takes memory of its own, for each worker; what is on its way is as much as before.
#[test]
fn compressed_archives_go_through_little_memory() {
    let world = World::new("s3-memory-zstd");
    let image = world.image("noise.qcow2", 96 * MIB);
    let (stored, most) = measured(&world, &image, &["--workers", "2"]);
    assert!(stored > 96 * MIB && most < 96 * MIB, "{} MiB in {} MiB", stored / MIB, most / MIB);
}
