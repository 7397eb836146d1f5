//! The sources: bytes like those of real disks, laid into disks of 100 GiB and 10 TiB, and a disk of
//! scattered clusters. All of it is the same in every run on a machine; what exists already is used again.
//!
//! Three quarters of the bytes are files of `/usr`, in the order of their names, so that they compress as
//! files do; one quarter is random, a piece of 16 MiB in each 64 MiB.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::Whence;

/// The cluster size of all images here.
pub(crate) const CLUSTER: u64 = 64 << 10;
/// Clusters of the disk that is mapped.
const SCATTERED: u64 = 50_000;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// SplitMix64.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        u64::try_from((u128::from(self.next()) * u128::from(end)) >> 64).unwrap()
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            let random = self.next().to_le_bytes();
            word.copy_from_slice(&random[..word.len()]);
        }
    }
}

/// Where the data are.
pub(crate) struct Place {
    pub(crate) dir: PathBuf,
    /// Bytes of data in each disk.
    pub(crate) data: u64,
}

/// Runs a tool that must work.
pub(crate) fn tool(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).env("LC_ALL", "C").output();
    let output = output.unwrap_or_else(|e| panic!("cannot run {words:?}: {e}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?} failed: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn text(path: &Path) -> String {
    path.to_str().expect("a path that is text").to_owned()
}

/// Calls `each` with all bytes of a file that are no hole, and where they are.
pub(crate) fn each_data(path: &Path, mut each: impl FnMut(u64, &[u8])) {
    let file = File::open(path).unwrap();
    let len = file.metadata().unwrap().len().cast_signed();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < len {
        let Ok(start) = nix::unistd::lseek(&file, at, Whence::SeekData) else { break };
        let end = nix::unistd::lseek(&file, start, Whence::SeekHole).unwrap();
        at = start;
        while at < end {
            let count = usize::try_from(end - at).unwrap().min(buffer.len());
            file.read_exact_at(&mut buffer[..count], at.cast_unsigned()).unwrap();
            each(at.cast_unsigned(), &buffer[..count]);
            at += i64::try_from(count).unwrap();
        }
    }
}

/// The regular files below `folder`, in the order of their names, for ever.
pub(crate) fn files_of(folder: &Path, list: &mut Vec<(PathBuf, u64)>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        let Ok(meta) = path.symlink_metadata() else { continue };
        if meta.is_dir() {
            files_of(&path, list);
        } else if meta.is_file() && meta.len() > 0 {
            list.push((path, meta.len()));
        }
    }
}

/// Reads through the files of `/usr`, and from the first again.
pub(crate) struct UsrBytes {
    files: Vec<(PathBuf, u64)>,
    next: usize,
    open: Option<File>,
}

impl UsrBytes {
    pub(crate) fn new() -> Self {
        let mut files = Vec::new();
        files_of(Path::new("/usr"), &mut files);
        assert!(!files.is_empty(), "/usr has no files to take bytes from");
        Self { files, next: 0, open: None }
    }

    pub(crate) fn fill(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let Some(file) = &mut self.open else {
                self.open = File::open(&self.files[self.next % self.files.len()].0).ok();
                self.next += 1;
                continue;
            };
            match file.read(bytes) {
                Ok(count) if count > 0 => bytes = &mut bytes[count..],
                _ => self.open = None,
            }
        }
    }
}

impl Place {
    pub(crate) fn new(dir: &Path, data: u64) -> Self {
        Self { dir: dir.to_owned(), data }
    }

    /// A name that says how much data is behind it.
    pub(crate) fn sized(&self, name: &str) -> String {
        format!("{}m-{name}", self.data >> 20)
    }

    pub(crate) fn out(&self) -> PathBuf {
        self.dir.join("out")
    }

    /// Fails unless the file system has `bytes` free, what is there already counted in.
    pub(crate) fn require_room(&self, bytes: u64) {
        let used: u64 = std::fs::read_dir(&self.dir)
            .unwrap()
            .filter_map(|entry| Some(entry.ok()?.metadata().ok()?.blocks() * 512))
            .sum();
        let stat = nix::sys::statvfs::statvfs(&self.dir).unwrap();
        let free = stat.blocks_available() * stat.fragment_size();
        assert!(
            free + used >= bytes,
            "'{}' has {} MiB free and the benchmark needs {} MiB; give it another folder with --dir",
            self.dir.display(),
            free >> 20,
            bytes.saturating_sub(used) >> 20
        );
    }

    /// Makes `path` by `make`, which is given a temporary name, unless it exists.
    pub(crate) fn made(&self, name: &str, make: impl FnOnce(&Path)) -> PathBuf {
        let path = self.dir.join(name);
        if !path.exists() {
            eprintln!("making {}", path.display());
            let temporary = path.with_extension("part");
            if temporary.exists() {
                std::fs::remove_file(&temporary).unwrap();
            }
            make(&temporary);
            std::fs::rename(&temporary, &path).unwrap();
        }
        path
    }

    /// Just the bytes.
    pub(crate) fn payload(&self) -> PathBuf {
        self.made(&self.sized("payload"), |path| {
            let mut out = File::create(path).unwrap();
            let (mut usr, mut rng) = (UsrBytes::new(), Rng(20_030_624));
            let mut piece = vec![0; 16 << 20];
            for number in 0..self.data / (16 << 20) {
                if number % 4 == 3 {
                    rng.fill(&mut piece)
                } else {
                    usr.fill(&mut piece)
                }
                // A cluster of zeros would be none once qemu-img has seen it.
                for cluster in piece.chunks_mut(usize::try_from(CLUSTER).unwrap()) {
                    if cluster.iter().all(|byte| *byte == 0) {
                        cluster[0] = 1;
                    }
                }
                out.write_all(&piece).unwrap();
            }
            out.sync_all().unwrap();
        })
    }

    /// Where the payload's pieces lie in a disk of `capacity` bytes: pieces of 64 KiB to 64 MiB, with gaps
    /// that fill the disk.
    fn extents(&self, capacity: u64) -> Vec<(u64, u64)> {
        let mut rng = Rng(20_040_614);
        let mut left = self.data / CLUSTER;
        let mut pieces = Vec::new();
        while left > 0 {
            // Each doubling as likely as the next.
            let scale = 1 << rng.below(11);
            let len = (scale + rng.below(scale)).min(1024).min(left);
            pieces.push((len, 1 + rng.below(1000)));
            left -= len;
        }
        let gaps: u64 = pieces.iter().map(|piece| piece.1).sum();
        let unit = (capacity - self.data) / CLUSTER / gaps;
        let mut at = 0;
        let place = |(len, gap): (u64, u64)| {
            at += gap * unit;
            let start = at;
            at += len;
            (start * CLUSTER, len * CLUSTER)
        };
        pieces.into_iter().map(place).collect()
    }

    /// A qcow2 of `capacity` bytes with the payload in it, as `qemu-img convert` writes it.
    fn laid_out(&self, name: &str, capacity: u64) -> PathBuf {
        let payload = self.payload();
        self.made(&self.sized(name), |path| {
            let flat = path.with_extension("flat");
            let (from, to) = (File::open(&payload).unwrap(), File::create(&flat).unwrap());
            to.set_len(capacity).unwrap();
            let mut buffer = vec![0; 64 << 20];
            let mut dense = 0;
            for (guest, len) in self.extents(capacity) {
                let piece = &mut buffer[..usize::try_from(len).unwrap()];
                from.read_exact_at(piece, dense).unwrap();
                to.write_all_at(piece, guest).unwrap();
                dense += len;
            }
            let words = ["qemu-img", "convert", "-S", "64k", "-f", "raw", "-O", "qcow2"];
            tool(&[&words[..], &[&text(&flat), &text(path)]].concat());
            std::fs::remove_file(flat).unwrap();
        })
    }

    pub(crate) fn disk_100g(&self) -> PathBuf {
        self.laid_out("100g.qcow2", 100 * GIB)
    }

    pub(crate) fn disk_10t(&self) -> PathBuf {
        self.laid_out("10t.qcow2", 10 * TIB)
    }

    /// A qcow2 of 10 TiB whose clusters were written in random order all over it.
    pub(crate) fn scattered(&self) -> PathBuf {
        self.made("scattered.qcow2", |path| {
            tool(&["qemu-img", "create", "-q", "-f", "qcow2", &text(path), &(10 * TIB).to_string()]);
            let mut qemu_io = Command::new("qemu-io")
                .args(["-f", "qcow2", "-t", "unsafe", &text(path)])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .expect("qemu-io");
            let mut commands = std::io::BufWriter::new(qemu_io.stdin.take().unwrap());
            let mut rng = Rng(20_050_101);
            for number in 0..SCATTERED {
                let cluster = rng.below(10 * TIB / CLUSTER);
                writeln!(commands, "write -q -P {} {} 64k", number % 255 + 1, cluster * CLUSTER).unwrap();
            }
            drop(commands);
            assert!(qemu_io.wait().unwrap().success(), "qemu-io failed");
            OpenOptions::new().write(true).open(path).unwrap().sync_all().unwrap();
        })
    }
}
