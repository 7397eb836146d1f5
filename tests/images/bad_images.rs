//! Hand-made bad images: each gives a clear error of the right kind, quickly and in bounded memory, and never
//! a panic.
//!
//! Most begin as a good image made by `qemu-img`, with some bytes changed. `qemu-img` and `qemu-io` must be
//! installed; the test setup does that.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use virtfold::error::{Error, ErrorKind, Result};
use virtfold::image::{DiskImage, Format, OpenOptions, map};
use virtfold::units::GuestOffset;

/// Opens, walks, maps and reads all of an image.
fn use_all(path: &Path) -> Result<()> {
    let image = DiskImage::open(path, Format::Qcow2, &OpenOptions::default())?;
    let table = image.allocation()?;
    for row in map::rows(&image, &table)? {
        row?;
    }
    let mut buf = vec![0; 65536];
    for extent in table.iter() {
        let extent = extent?;
        let mut at = extent.guest;
        while extent.place.has_bytes() && at < extent.end() {
            let len = extent.end().since(at).min(65536);
            image.read(&table, at, &mut buf[..usize::try_from(len).unwrap()])?;
            at = at.saturating_add(len);
        }
    }
    Ok(())
}

/// A good image's bytes, and where its tables are.
struct Image {
    bytes: Vec<u8>,
}

impl Image {
    fn u64(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }
    fn put32(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }
    fn put64(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
    /// Where L1 entry 0 is.
    fn l1(&self) -> usize {
        usize::try_from(self.u64(40)).unwrap()
    }
    /// Where L2 entry 0 of the first table is.
    fn l2(&self) -> usize {
        usize::try_from(self.u64(self.l1()) & 0x00ff_ffff_ffff_fe00).unwrap()
    }
    /// Where the stream of the compressed cluster 0 is, and its stored bytes rounded up.
    fn stream(&self) -> usize {
        usize::try_from(self.u64(self.l2()) & ((1 << 54) - 1)).unwrap()
    }
}

struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, tool: &str, args: &[&str]) {
        let output = Command::new(tool).args(args).current_dir(self.dir.path()).output();
        let output = output.unwrap_or_else(|e| panic!("{tool} must be installed for these tests: {e}"));
        assert!(output.status.success(), "{tool} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A disk of 4 MiB in clusters of 64 KiB, the first three recorded.
    fn good(&self, options: &str) -> Image {
        let options = format!("cluster_size=65536{options}");
        self.run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, "good", "4M"]);
        self.run("qemu-io", &["-f", "qcow2", "-c", "write -P 5 0 192k", "good"]);
        Image { bytes: fs::read(self.path("good")).unwrap() }
    }

    /// The same disk with compressed clusters.
    fn packed(&self, kind: &str) -> Image {
        self.good("");
        let options = format!("compression_type={kind}");
        self.run("qemu-img", &["convert", "-c", "-O", "qcow2", "-o", &options, "good", "packed"]);
        Image { bytes: fs::read(self.path("packed")).unwrap() }
    }

    fn error(&self, name: &str, image: &Image) -> Error {
        let path = self.path("bad");
        fs::write(&path, &image.bytes).unwrap();
        let error = use_all(&path).expect_err(name);
        assert!(error.to_string().contains("bad'"), "{name}: '{error}' does not name the image");
        error
    }

    /// Each row: a name, what is done to the image, the kind of error and a word of its sentence.
    fn table(&self, make: impl Fn() -> Image, rows: &[Row]) {
        for (name, change, kind, word) in rows {
            let mut image = make();
            change(&mut image);
            let error = self.error(name, &image);
            assert_eq!(error.kind(), *kind, "{name}: {error:?}");
            assert!(error.to_string().contains(word), "{name}: '{error}' lacks '{word}'");
        }
    }
}

type Row = (&'static str, fn(&mut Image), ErrorKind, &'static str);
use ErrorKind::{BadImage, Unsupported};

const HEADERS: &[Row] = &[
    ("empty", |i| i.bytes.clear(), BadImage, "begin"),
    ("three bytes", |i| i.bytes.truncate(3), BadImage, "begin"),
    ("cut in the header", |i| i.bytes.truncate(70), BadImage, "ends within its header"),
    ("no magic", |i| i.put32(0, 0x5146_4900), BadImage, "begin"),
    ("version 1", |i| i.put32(4, 1), Unsupported, "version 1"),
    ("version 4", |i| i.put32(4, 4), Unsupported, "version 4"),
    ("clusters of 256 bytes", |i| i.put32(20, 8), BadImage, "2^8"),
    ("clusters of 4 MiB", |i| i.put32(20, 22), BadImage, "2^22"),
    ("clusters of 2^(2^32-1)", |i| i.put32(20, u32::MAX), BadImage, "2^"),
    ("capacity 2^64-1", |i| i.put64(24, u64::MAX), BadImage, "capacity"),
    ("capacity 2^62", |i| i.put64(24, 1 << 62), BadImage, "L1 table"),
    ("LUKS", |i| i.put32(32, 2), Unsupported, "LUKS"),
    ("AES", |i| i.put32(32, 1), Unsupported, "AES"),
    ("encryption 3", |i| i.put32(32, 3), Unsupported, "method 3"),
    ("L1 of 2^31 entries", |i| i.put32(36, 1 << 31), BadImage, "32 MiB"),
    ("L1 of no entries", |i| i.put32(36, 0), BadImage, "too short"),
    ("L1 at no cluster", |i| i.put64(40, 0x30008), BadImage, "not at a cluster"),
    ("L1 at 0", |i| i.put64(40, 0), BadImage, "not at a cluster"),
    ("L1 behind the end", |i| i.put64(40, 1 << 40), BadImage, "outside the file"),
    ("L1 at the last cluster", |i| i.put64(40, !0xffff), BadImage, "outside the file"),
    ("refcount table of 2^32 clusters", |i| i.put32(56, u32::MAX), BadImage, "refcount table"),
    ("refcount table at no cluster", |i| i.put64(48, 77), BadImage, "refcount table"),
    ("refcounts of 2^7 bits", |i| i.put32(96, 7), BadImage, "refcounts"),
    ("header of 72 bytes", |i| i.put32(100, 72), BadImage, "header length"),
    ("header longer than its cluster", |i| i.put32(100, 65537), BadImage, "header length"),
    ("unknown feature", |i| i.put64(72, 1 << 40), Unsupported, "bit 40"),
    ("external data without a name", |i| i.put64(72, 4), BadImage, "does not name"),
    (
        "subclusters in small clusters",
        |i| {
            i.put32(20, 9);
            i.put64(72, 16);
        },
        BadImage,
        "16 KiB",
    ),
    ("compression without its bit", |i| i.bytes[104] = 1, BadImage, "compression"),
    ("extension past the cluster", |i| i.put32(116, u32::MAX), BadImage, "extension"),
    (
        "name behind the cluster",
        |i| {
            i.put64(8, 1 << 20);
            i.put32(16, 5);
        },
        BadImage,
        "outside the first cluster",
    ),
    (
        "name too long",
        |i| {
            i.put64(8, 512);
            i.put32(16, 1024);
        },
        BadImage,
        "too long",
    ),
    (
        "name of 2^32 bytes",
        |i| {
            i.put64(8, 512);
            i.put32(16, u32::MAX);
        },
        BadImage,
        "too long",
    ),
];

const TABLES: &[Row] = &[
    ("cut in its data", |i| i.bytes.truncate(0x60000), BadImage, "behind the end"),
    ("cut in its L1", |i| i.bytes.truncate(0x30004), BadImage, "outside the file"),
    ("cut in its L2", |i| i.bytes.truncate(0x40010), BadImage, "behind the end"),
    ("L2 behind the end", |i| i.put64(i.l1(), 1 << 50), BadImage, "behind the end"),
    (
        "L2 at no cluster",
        |i| {
            let at = i.len() & !0xffff;
            i.put64(i.l1(), (at - 65536) | 512);
        },
        BadImage,
        "an L2 table",
    ),
    ("L2 over the L1", |i| i.put64(i.l1(), 0x30000), BadImage, "lies over something else"),
    ("L2 over the refcount table", |i| i.put64(i.l1(), 0x10000), BadImage, "lies over something else"),
    ("data behind the end", |i| i.put64(i.l2(), 1 << 50), BadImage, "behind the end"),
    (
        "data just behind the end",
        |i| i.put64(i.l2(), i.len().next_multiple_of(65536)),
        BadImage,
        "behind the end",
    ),
    ("data at no cluster", |i| i.put64(i.l2(), 0x50200), BadImage, "not a multiple"),
    ("data over the L2", |i| i.put64(i.l2(), i.l2() as u64), BadImage, "lies over something else"),
    ("data over the L1", |i| i.put64(i.l2(), 0x30000), BadImage, "lies over something else"),
    (
        "two clusters in one place",
        |i| {
            let one = i.u64(i.l2());
            i.put64(i.l2() + 16, one);
        },
        BadImage,
        "lies over",
    ),
    ("compressed behind the end", |i| i.put64(i.l2(), 1 << 62 | 1 << 50), BadImage, "behind the end"),
    ("compressed over the L1", |i| i.put64(i.l2(), 1 << 62 | 0x30000), BadImage, "lies over something else"),
    ("zero cluster at no cluster", |i| i.put64(i.l2(), 0x50201), BadImage, "not a multiple"),
    (
        "two L1 entries, one L2",
        |i| {
            let one = i.u64(i.l1());
            i.put64(24, 1 << 30);
            i.put32(36, 2);
            i.put64(i.l1() + 8, one);
        },
        BadImage,
        "lies over something else",
    ),
    (
        "zero cluster in version 2",
        |i| {
            i.put32(4, 2);
            i.put64(i.l2(), 1);
        },
        BadImage,
        "version 2",
    ),
];

const SUBCLUSTERS: &[Row] = &[
    ("allocated and zero", |i| i.put64(i.l2() + 8, u64::MAX), BadImage, "both allocated and zero"),
    ("allocated nowhere", |i| i.put64(i.l2(), 0), BadImage, "in a cluster that is not"),
];

const STREAMS: &[Row] = &[
    (
        "garbage",
        |i| {
            let at = i.stream();
            i.bytes[at..at + 64].fill(0xff);
        },
        BadImage,
        "compressed cluster",
    ),
    (
        "cut short",
        |i| {
            let at = i.stream();
            i.bytes.truncate(at + 9);
        },
        BadImage,
        "",
    ),
    (
        "nothing",
        |i| {
            let at = i.stream();
            i.bytes[at..at + 64].fill(0);
        },
        BadImage,
        "compressed cluster",
    ),
];

#[test]
fn headers() {
    let lab = Lab::new();
    lab.table(|| lab.good(""), HEADERS);
}

#[test]
fn tables() {
    let lab = Lab::new();
    lab.table(|| lab.good(""), TABLES);
    lab.table(|| lab.good(",extended_l2=on"), SUBCLUSTERS);
}

#[test]
fn compressed_streams() {
    let lab = Lab::new();
    for kind in ["zlib", "zstd"] {
        lab.table(|| lab.packed(kind), STREAMS);
    }
}

/// A Zstandard frame that says it holds `len` bytes in one segment, and goes on with run-length blocks.
fn zstd_bomb(len: u64) -> Vec<u8> {
    let mut bytes = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
    bytes.extend(len.to_le_bytes());
    for _ in 0..100 {
        // A run-length block of 128 KiB: type 1, size 2^17.
        bytes.extend(&((1_u32 << 17 << 3) | 2).to_le_bytes()[..3]);
        bytes.push(0x55);
    }
    bytes
}

/// A well-formed frame with a window of 1 MiB and `blocks` run-length blocks of 64 KiB.
fn zstd_long_frame(blocks: u32) -> Vec<u8> {
    let mut bytes = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 10 << 3];
    for block in 1..=blocks {
        let is_last = u32::from(block == blocks);
        bytes.extend(&((65536_u32 << 3) | 2 | is_last).to_le_bytes()[..3]);
        bytes.push(0x55);
    }
    bytes
}

#[test]
fn a_zstd_frame_longer_than_its_cluster_is_damage() {
    let lab = Lab::new();
    for (blocks, is_good) in [(1, true), (2, false), (100, false)] {
        let mut image = lab.packed("zstd");
        let (at, l2) = (image.stream(), image.l2());
        let frame = zstd_long_frame(blocks);
        image.bytes.resize(image.bytes.len().max(at + 1024), 0);
        image.bytes[at..at + frame.len()].copy_from_slice(&frame);
        image.put64(l2, image.u64(l2) | 1 << 54);
        // The other clusters lie in the bytes that were written over: only cluster 0 counts.
        image.put64(l2 + 8, 0);
        image.put64(l2 + 16, 0);
        if is_good {
            fs::write(lab.path("bad"), &image.bytes).unwrap();
            use_all(&lab.path("bad")).unwrap();
        } else {
            assert!(lab.error("long", &image).to_string().contains("more than a cluster"));
        }
    }
}

#[test]
fn a_zstd_bomb_costs_one_cluster() {
    let lab = Lab::new();
    for len in [65536_u64, 1 << 32, 1 << 62] {
        let mut image = lab.packed("zstd");
        let at = image.stream();
        let bomb = zstd_bomb(len);
        image.bytes.resize(image.bytes.len().max(at + 1024), 0);
        image.bytes[at..at + bomb.len()].copy_from_slice(&bomb);
        // Two sectors are stored, at the least.
        let l2 = image.l2();
        image.put64(l2, image.u64(l2) | 1 << 54);
        let error = lab.error("bomb", &image);
        assert_eq!(error.kind(), BadImage, "{error:?}");
    }
}

/// A chain's images, each made with a backing name that nobody checks.
fn overlay(lab: &Lab, name: &str, backing: &str, format: &str) {
    let format = if format.is_empty() { vec![] } else { vec!["-F", format] };
    let base = ["create", "-q", "-u", "-f", "qcow2", "-b", backing];
    let args = [&base[..], &format, &[name, "1M"]].concat();
    // Without a format QEMU itself refuses; then it is taken out of the header below.
    lab.run("qemu-img", &args);
}

fn refused(lab: &Lab, name: &str) -> Error {
    let error = use_all(&lab.path(name)).expect_err(name);
    assert!(error.to_string().contains(name), "'{error}' does not name {name}");
    error
}

#[test]
fn chains() {
    let lab = Lab::new();
    overlay(&lab, "a", "b", "qcow2");
    overlay(&lab, "b", "a", "qcow2");
    let error = refused(&lab, "a");
    assert_eq!(error.kind(), BadImage);
    assert!(error.to_string().contains("loop"), "{error}");
    overlay(&lab, "self", "./self", "qcow2");
    assert!(refused(&lab, "self").to_string().contains("loop"));
    for (backing, format, kind, word) in [
        ("gone", "raw", ErrorKind::NotFound, "backing file"),
        ("json:{\"driver\":\"qcow2\"}", "qcow2", Unsupported, "not a file"),
        ("nbd://host/disk", "raw", Unsupported, "not a file"),
        ("nbd:unix:/run/x", "raw", Unsupported, "not a file"),
        ("https://host/disk", "raw", Unsupported, "not a file"),
        ("disk.vmdk", "vmdk", Unsupported, "'vmdk'"),
        ("/dev/zero", "raw", Unsupported, "backing file"),
        ("/", "raw", Unsupported, "backing file"),
    ] {
        overlay(&lab, "top", backing, format);
        let error = refused(&lab, "top");
        assert_eq!(error.kind(), kind, "{backing}: {error:?}");
        assert!(error.to_string().contains(word), "{backing}: '{error}' lacks '{word}'");
    }
}

#[test]
fn a_backing_file_without_a_format_is_refused() {
    let lab = Lab::new();
    fs::write(lab.path("base"), [0; 65536]).unwrap();
    overlay(&lab, "top", "base", "raw");
    let mut bytes = fs::read(lab.path("top")).unwrap();
    let extension = 0xe279_2aca_u32.to_be_bytes();
    let at = bytes.windows(4).position(|four| four == extension).unwrap();
    bytes[at..at + 4].copy_from_slice(&0x7777_7777_u32.to_be_bytes());
    fs::write(lab.path("top"), bytes).unwrap();
    let error = refused(&lab, "top");
    assert_eq!(error.kind(), Unsupported);
    assert!(error.to_string().contains("which format"), "{error}");
    assert!(error.hint().unwrap().contains("rebase"));
}

#[test]
fn a_raw_disk_with_a_qcow2_header_stays_raw() {
    let lab = Lab::new();
    overlay(&lab, "forged", "/etc/passwd", "raw");
    lab.run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "forged", "-F", "raw", "top"]);
    let image = DiskImage::open(&lab.path("top"), Format::Qcow2, &OpenOptions::default()).unwrap();
    let table = image.allocation().unwrap();
    let mut magic = [0; 4];
    image.read(&table, GuestOffset::ZERO, &mut magic).unwrap();
    assert_eq!(magic, [b'Q', b'F', b'I', 0xfb], "the guest's own bytes are its disk");
}

#[test]
fn marks_are_warnings() {
    let lab = Lab::new();
    let mut image = lab.good("");
    image.put64(72, 3);
    fs::write(lab.path("bad"), &image.bytes).unwrap();
    let opened = DiskImage::open(&lab.path("bad"), Format::Qcow2, &OpenOptions::default()).unwrap();
    let warnings = opened.source().warnings.join("; ");
    assert!(warnings.contains("dirty") && warnings.contains("corrupt"), "{warnings}");
    use_all(&lab.path("bad")).unwrap();
}

#[test]
fn a_fifo_does_not_block() {
    let lab = Lab::new();
    lab.run("mkfifo", &["pipe"]);
    let error = refused(&lab, "pipe");
    assert_eq!(error.kind(), Unsupported);
}

#[test]
fn shared_tables_are_damage_with_external_data_too() {
    let lab = Lab::new();
    let mut image = lab.good(",data_file=good.data");
    let (l1, one) = (image.l1(), image.u64(image.l1()));
    image.put64(24, 1 << 30);
    image.put32(36, 2);
    image.put64(l1 + 8, one);
    assert!(lab.error("shared", &image).to_string().contains("lies over something else"));
}

#[test]
fn external_data_must_lie_at_its_guest_offset() {
    let lab = Lab::new();
    let mut image = lab.good(",data_file=good.data");
    let l2 = image.l2();
    let (one, two) = (image.u64(l2), image.u64(l2 + 8));
    image.put64(l2, two);
    image.put64(l2 + 8, one);
    let error = lab.error("swapped", &image);
    assert_eq!(error.kind(), BadImage);
    assert!(error.to_string().contains("not its guest offset"), "{error}");
    let mut image = lab.good(",data_file=good.data");
    fs::remove_file(lab.path("good.data")).unwrap();
    let l2 = image.l2();
    image.put64(l2, 0);
    assert_eq!(lab.error("no data file", &image).kind(), ErrorKind::NotFound);
}
