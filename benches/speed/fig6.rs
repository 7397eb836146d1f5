//! FIG. 6 of the specification, measured: all-block and file-by-file backup of a disk that is 20 % and 80 %
//! full, and virtfold beside them. The disk is an ext4 file system with the files of `/usr` and random ones.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::contest::{self, Contender, Result, Sample};
use crate::data::{Place, Rng, files_of, text, tool};
use crate::groups::{virtfold, words};
use crate::mount::Mount;
use crate::report::Report;

/// Four fifths of the disk are as much as the other groups have as data: it all fits into memory and beside
/// them.
fn capacity(place: &Place) -> u64 {
    place.data * 5 / 4
}

/// A raw disk with an ext4 file system, `percent` of it used.
fn disk(place: &Place, percent: u64) -> PathBuf {
    place.made(&place.sized(&format!("fs{percent}.raw")), |path| {
        let at = place.dir.join("fs");
        let size = capacity(place);
        let mount = Mount::made(&at, path, size, &["mkfs.ext4", "-q", "-m", "0"]);
        fill(&at, size * percent / 100);
        drop(mount);
    })
}

/// Copies files of `/usr`, and random bytes for a quarter, until `bytes` are used.
fn fill(at: &Path, bytes: u64) {
    let used = || {
        let stat = nix::sys::statvfs::statvfs(at).unwrap();
        (stat.blocks() - stat.blocks_free()) * stat.fragment_size()
    };
    let mut files = Vec::new();
    files_of(Path::new("/usr"), &mut files);
    let mut rng = Rng(20_060_101);
    let mut noise = vec![0; 4 << 20];
    let (mut number, mut written, mut random) = (0_usize, 0, 0);
    // The file system's own figures lag behind: they are asked again when the count comes near.
    while used() + (64 << 20) < bytes {
        let goal = written + (bytes - used()) / 2;
        while written < goal {
            if random * 4 < written {
                rng.fill(&mut noise);
                let mut file = File::create(at.join(format!("random{number}"))).unwrap();
                file.write_all(&noise).unwrap();
                random += noise.len() as u64;
                written += noise.len() as u64;
            }
            let (source, len) = &files[number % files.len()];
            let folder = at.join(format!("copy{}/{}", number / files.len(), number % 1000));
            std::fs::create_dir_all(&folder).unwrap();
            if std::fs::copy(source, folder.join(number.to_string())).is_ok() {
                written += len;
            }
            number += 1;
        }
        tool(&["sync", "-f", &text(at)]);
    }
}

fn contest(place: &Place, percent: u64, rounds: usize) -> Vec<Result> {
    let disk = disk(place, percent);
    let at = place.dir.join("fs");
    let mount = Mount::of(&at, &disk, "ro,noload");
    let out = place.out();
    let (tar, all) = (out.join("files.tar"), out.join("all.raw"));
    let folded = |name: &str, how: &str| {
        let line = format!("backup --image {{}} --format raw --to {{}} --workers 2 --compress {how}");
        Contender::new(name, virtfold(&line, &[&disk, &out])).reads(&disk)
    };
    let contenders = [
        Contender::new(
            "file by file (tar of the mounted file system)",
            words(&["tar", "-C", &text(&at), "-cf", &text(&tar), "."]),
        )
        .reads(&at)
        .synced(&tar),
        Contender::new(
            "all-block (cp of the whole disk)",
            words(&["cp", "--sparse=never", &text(&disk), &text(&all)]),
        )
        .reads(&disk)
        .synced(&all),
        folded("virtfold", "none"),
        folded("virtfold with zstd level 1", "zstd:1"),
    ];
    let results = contest::run(&contenders, rounds, &out);
    drop(mount);
    results
}

/// The group.
pub(crate) fn run_group(place: &Place, rounds: usize, report: &mut Report) {
    let shares = [20, 80];
    let results = shares.map(|percent| contest(place, percent, rounds));
    for (percent, results) in shares.iter().zip(&results) {
        let gib = capacity(place) >> 30;
        report.times(&format!("FIG. 6: a disk of {gib} GiB, {percent} % full"), results);
    }
    let mut text = "\n| FIG. 6, seconds | 20 % full | 80 % full |\n|---|---:|---:|\n".to_owned();
    for (first, second) in results[0].iter().zip(&results[1]) {
        let seconds = |result: &Result| result.median(Sample::total);
        text += &format!("| {} | {:.2} | {:.2} |\n", first.name, seconds(first), seconds(second));
    }
    report.add(&text);
}

/// The group, where it may mount.
pub(crate) fn run(place: &Place, rounds: usize, report: &mut Report) {
    if Mount::allowed() {
        run_group(place, rounds, report);
    } else {
        report.skipped("fig6", "it mounts a file system, which needs root");
    }
}
