//! New qcow2 files and block devices, made from a table alone and judged by `qemu-img`: check, compare, map.
//! And what restores leave on devices and on file systems that know little.
//!
//! The tables are random or chosen for their corners; the bytes of each sector tell where it belongs.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::common::archive::{
    Method as BackupMode, assert_same_outside, backup, damage, restore as restored, restore_args, verify,
};
use crate::common::image::{Format, Image};
use crate::common::mount::{Loop, Mount};
use crate::common::rng::Rng;
use crate::common::run::{exit, run, text, tool, virtfold};
use crate::common::scratch::{Scratch, names};
use crate::common::{KIB, MIB};
use virtfold::backup::target::{
    Compat, Method, Qcow2Layout, Qcow2Options, TargetDisk, TargetFormat, TargetSpec,
};
use virtfold::error::{ErrorKind, Result};
use virtfold::partial_file::Overwrite;
use virtfold::table::{Builder, CorrespondenceTable, Run};
use virtfold::units::{GuestOffset, HostOffset};

const GIB: u64 = 1 << 30;

fn table(capacity: u64, runs: &[(u64, u64)]) -> CorrespondenceTable {
    let mut builder = Builder::new(capacity);
    for (guest, len) in runs {
        builder.push(GuestOffset::new(*guest), *len).unwrap();
    }
    builder.finish().unwrap()
}

/// The bytes of a run: every sector begins with its own address, and none is all zeros.
fn bytes_of(run: &Run) -> Vec<u8> {
    let mut bytes = vec![0xa5; usize::try_from(run.len).unwrap()];
    for (index, sector) in bytes.chunks_mut(512).enumerate() {
        let address = (run.guest.get() + index as u64 * 512).to_le_bytes();
        let len = sector.len().min(8);
        sector[..len].copy_from_slice(&address[..len]);
    }
    bytes
}

/// Writes the whole table to the target, in pieces of at most `step`.
fn fill(spec: &TargetSpec, table: &CorrespondenceTable, step: u64) -> Result<()> {
    let mut target = TargetDisk::open(spec, table)?;
    for run in table.iter() {
        let run = run.unwrap();
        let bytes = bytes_of(&run);
        let mut done = 0;
        while done < run.len {
            let len = step.min(run.len - done);
            let (guest, dense) = (run.guest.saturating_add(done), run.dense.saturating_add(done));
            let range = usize::try_from(done).unwrap()..usize::try_from(done + len).unwrap();
            target.write(&Run { guest, len, dense }, &bytes[range])?;
            done += len;
        }
    }
    target.finish()
}

/// What the disk must be, as a raw file with holes.
fn expected(path: &Path, table: &CorrespondenceTable) -> Image {
    let file = File::create(path).unwrap();
    file.set_len(table.capacity().next_multiple_of(512)).unwrap();
    for run in table.iter() {
        let run = run.unwrap();
        file.write_all_at(&bytes_of(&run), run.guest.get()).unwrap();
    }
    Image::new(path, Format::Raw)
}

fn spec(path: &Path, format: TargetFormat, method: Method) -> TargetSpec {
    TargetSpec { path: path.to_owned(), format, method, existing: Overwrite::Refuse }
}

/// Every set of options for clusters of `size` bytes.
fn variants(size: u64) -> Vec<Qcow2Options> {
    let base = Qcow2Options { cluster_size: size, ..Qcow2Options::default() };
    let mut all = vec![
        Qcow2Options { compat: Compat::V2, ..base },
        base,
        Qcow2Options { lazy_refcounts: true, ..base },
    ];
    if size >= 16 * KIB {
        all.push(Qcow2Options { extended_l2: true, ..base });
        all.push(Qcow2Options { extended_l2: true, lazy_refcounts: true, ..base });
    }
    all
}

/// Makes the disk by each method that fits, and lets QEMU judge it.
fn judge(scratch: &Scratch, table: &CorrespondenceTable, options: Qcow2Options, step: u64) {
    let raw = expected(&scratch.join("expected.raw"), table);
    let layout = Qcow2Layout::plan(table, options).unwrap();
    let dense = layout.is_dense(table).unwrap();
    let path = scratch.join("made.qcow2");
    for method in [Method::Rewrite, Method::Remap] {
        let made = fill(&spec(&path, TargetFormat::Qcow2(options), method), table, step);
        if method == Method::Remap && !dense {
            assert_eq!(made.unwrap_err().kind(), ErrorKind::Usage);
            continue;
        }
        made.unwrap();
        let image = Image::new(&path, Format::Qcow2);
        image.assert_clean();
        image.assert_same_disk(&raw);
        assert_options(&image, options);
        assert_map(&image, &layout);
        assert!(path.metadata().unwrap().len() <= layout.file_len().next_multiple_of(512));
        std::fs::remove_file(&path).unwrap();
    }
}

fn assert_options(image: &Image, options: Qcow2Options) {
    let info = image.info();
    assert_eq!(info["cluster-size"], options.cluster_size);
    let data = &info["format-specific"]["data"];
    let v3 = options.compat == Compat::V3;
    assert_eq!(data["compat"], if v3 { "1.1" } else { "0.10" });
    if v3 {
        assert_eq!(data["lazy-refcounts"], options.lazy_refcounts);
        assert_eq!(data["extended-l2"], options.extended_l2);
        assert_eq!(data["corrupt"], false);
    }
    assert_eq!(info["dirty-flag"], false);
}

/// QEMU finds each cluster where the layout says.
fn assert_map(image: &Image, layout: &Qcow2Layout) {
    let rows = run(&mut tool("qemu-img", ["map", "--output=json", "-f", "qcow2", image.text()])).ok().json();
    for row in rows.as_array().unwrap() {
        let (start, length) = (row["start"].as_u64().unwrap(), row["length"].as_u64().unwrap());
        let host = |guest: u64| layout.host(GuestOffset::new(guest)).unwrap().map(HostOffset::get);
        // QEMU's one row of a disk without length.
        if length == 0 {
            continue;
        }
        if row["data"] == true {
            let offset = row["offset"].as_u64().unwrap();
            assert_eq!(host(start), Some(offset), "{row}");
            assert_eq!(
                host(start + (length - 1) / 512 * 512),
                Some(offset + (length - 1) / 512 * 512),
                "{row}"
            );
        } else {
            assert_eq!((host(start), host(start + length - 1)), (None, None), "{row}");
            assert_eq!(row["present"], false, "{row}");
        }
    }
}

/// Random runs of whole blocks, the last one clipped.
fn random_table(rng: &mut Rng, capacity: u64, block: u64) -> CorrespondenceTable {
    let blocks = capacity.div_ceil(block);
    let mut runs = Vec::new();
    let mut at = rng.below(4);
    while at < blocks && runs.len() < 40 {
        let len = rng.within(1, 6).min(blocks - at);
        let start = at * block;
        runs.push((start, (len * block).min(capacity - start)));
        at += len + rng.within(1, (blocks / 12).max(2));
    }
    table(capacity, &runs)
}

fn every_variant_of(size: u64) {
    let scratch = Scratch::new(&format!("target-{size}"));
    let mut rng = Rng::of_case("targets", size);
    for options in variants(size) {
        // Not a multiple of the cluster, nor always of a sector.
        let capacity =
            (size * 40).min(6 * MIB) + rng.below(size.max(2048) / 512) * 512 + rng.pick(&[0, 0, 100]);
        // Blocks of the cluster's size or more give remaps; smaller ones are widened.
        for block in [size.max(4096), 4096, 64 * KIB] {
            let table = random_table(&mut rng, capacity, block);
            let step = rng.pick(&[512, 5000, MIB]);
            judge(&scratch, &table, options, step);
        }
    }
}

#[test]
fn clusters_of_512_bytes_to_4_kib() {
    [512, KIB, 2 * KIB, 4 * KIB].into_iter().for_each(every_variant_of);
}

#[test]
fn clusters_of_8_to_64_kib() {
    [8 * KIB, 16 * KIB, 32 * KIB, 64 * KIB].into_iter().for_each(every_variant_of);
}

#[test]
fn clusters_of_128_kib_to_2_mib() {
    [128 * KIB, 256 * KIB, 512 * KIB, MIB, 2 * MIB].into_iter().for_each(every_variant_of);
}

#[test]
fn disks_without_data_and_without_length() {
    let scratch = Scratch::new("target-empty");
    for capacity in [0, 512, 64 * KIB, 10 * MIB + 512, 5 << 40] {
        for options in variants(64 * KIB) {
            judge(&scratch, &table(capacity, &[]), options, MIB);
        }
    }
}

#[test]
fn many_l2_tables_first_and_last_bytes() {
    let scratch = Scratch::new("target-l2");
    let small = Qcow2Options { cluster_size: 512, ..Qcow2Options::default() };
    // A table maps 32 KiB: 2048 tables in use, one cluster each.
    let runs: Vec<(u64, u64)> = (0..2048).map(|n| (n * 32 * KIB + n % 64 * 512, 512)).collect();
    judge(&scratch, &table(64 * MIB, &runs), small, MIB);
    // Neighbours across the border of two tables; one run over three of them; the ends of a large disk.
    let large = 4 << 40;
    let runs = [(0, 512), (32 * KIB - 512, 1024), (96 * KIB, 96 * KIB)];
    judge(&scratch, &table(MIB, &runs), small, 700);
    let runs = [(0, 64 * KIB), (512 * MIB - 64 * KIB, 128 * KIB), (large - 64 * KIB, 64 * KIB)];
    judge(&scratch, &table(large, &runs), Qcow2Options::default(), MIB);
}

fn refused(capacity: u64, runs: &[(u64, u64)], options: Qcow2Options) -> bool {
    match Qcow2Layout::plan(&table(capacity, runs), options) {
        Ok(_) => false,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Usage, "{error:?}");
            true
        }
    }
}

/// Whether `qemu-img` makes such an image.
fn qemu_refuses(scratch: &Scratch, capacity: u64, options: &str) -> bool {
    let path = scratch.join("qemu.qcow2");
    let size = capacity.to_string();
    let made = run(&mut tool("qemu-img", ["create", "-q", "-f", "qcow2", "-o", options, text(&path), &size]));
    made.code() != Some(0)
}

#[test]
fn l1_tables_beyond_qemus_limit_are_refused_where_qemu_refuses() {
    let scratch = Scratch::new("target-limit");
    // 32 MiB of L1 are 4 Mi entries; one maps 32 KiB, 4 MiB with clusters of 512 B or 8 KiB.
    for (size, extended, entry) in
        [(512, false, 32 * KIB), (8 * KIB, false, 8 * MIB), (16 * KIB, true, 16 * MIB)]
    {
        let options = Qcow2Options { cluster_size: size, extended_l2: extended, ..Qcow2Options::default() };
        let limit = (4 << 20) * entry;
        let word = format!("cluster_size={size},extended_l2={}", if extended { "on" } else { "off" });
        for (capacity, too_large) in [(limit, false), (limit + 512, true)] {
            assert_eq!(refused(capacity, &[], options), too_large, "{size}: {capacity}");
            assert_eq!(qemu_refuses(&scratch, capacity, &word), too_large, "QEMU, {size}: {capacity}");
        }
    }
    // The largest disk that fits is one that QEMU opens.
    let options = Qcow2Options { cluster_size: 512, ..Qcow2Options::default() };
    judge(&scratch, &table(128 * GIB, &[(128 * GIB - 4096, 4096)]), options, MIB);
}

#[test]
fn refcount_tables_beyond_qemus_limit_are_refused() {
    // 8 MiB are 1 Mi blocks of 256 refcounts of clusters of 512 B: 128 GiB of file, its own tables counted
    // in.
    let options = Qcow2Options { cluster_size: 512, ..Qcow2Options::default() };
    assert!(refused(128 * GIB, &[(0, 128 * GIB)], options));
    let fits = table(128 * GIB, &[(0, 124 * GIB)]);
    let layout = Qcow2Layout::plan(&fits, options).unwrap();
    assert!(layout.file_len() <= 128 * GIB && layout.file_len() > 125 * GIB, "{}", layout.file_len());
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let base = Qcow2Options::default();
    for bad in [
        Qcow2Options { cluster_size: 256, ..base },
        Qcow2Options { cluster_size: 4 * MIB, ..base },
        Qcow2Options { cluster_size: 3000, ..base },
        Qcow2Options { compat: Compat::V2, extended_l2: true, ..base },
        Qcow2Options { compat: Compat::V2, lazy_refcounts: true, ..base },
        Qcow2Options { cluster_size: 8 * KIB, extended_l2: true, ..base },
    ] {
        assert!(refused(MIB, &[], bad), "{bad:?}");
    }
}

/// A loop device of `len` bytes that are all 0x5a.
fn dirty_device(scratch: &Scratch, name: &str, len: u64) -> (PathBuf, Loop) {
    let file = scratch.join(name);
    std::fs::write(&file, vec![0x5a; usize::try_from(len).unwrap()]).unwrap();
    let device = Loop::attach(&file);
    (file, device)
}

fn device_spec(device: &Loop, format: TargetFormat, existing: Overwrite) -> TargetSpec {
    TargetSpec { path: device.device().to_owned(), format, method: Method::Rewrite, existing }
}

#[test]
fn a_block_device_must_be_forced_and_reads_as_zeros_in_the_gaps() {
    let scratch = Scratch::new("target-device");
    let (_, device) = dirty_device(&scratch, "disk", 8 * MIB);
    let runs = [(64 * KIB, 64 * KIB), (MIB, 3 * MIB), (6 * MIB - 4096, 4096)];
    let table = table(6 * MIB, &runs);
    let kept = fill(&device_spec(&device, TargetFormat::Raw, Overwrite::Refuse), &table, MIB).unwrap_err();
    assert_eq!(kept.kind(), ErrorKind::Exists);
    assert!(kept.hint().unwrap().contains("--force"));
    let contents = |len: usize| {
        let mut bytes = vec![0; len];
        File::open(device.device()).unwrap().read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    assert!(contents(8 << 20).iter().all(|byte| *byte == 0x5a), "a refused restore wrote something");
    fill(&device_spec(&device, TargetFormat::Raw, Overwrite::Replace), &table, 100_000).unwrap();
    let raw = expected(&scratch.join("expected.raw"), &table);
    let (left, right) = (contents(6 << 20), std::fs::read(&raw.path).unwrap());
    assert!(
        left == right,
        "the device has other bytes, first at {:?}",
        left.iter().zip(&right).position(|(a, b)| a != b)
    );
    assert!(
        contents(8 << 20)[6 << 20..].iter().all(|byte| *byte == 0),
        "behind the disk's end the guest would find what was there before"
    );
}

#[test]
fn a_qcow2_on_a_block_device_is_one_that_qemu_opens() {
    let scratch = Scratch::new("target-qcow2-device");
    let (_, device) = dirty_device(&scratch, "disk", 8 * MIB);
    let table = table(20 * MIB, &[(0, 64 * KIB), (5 * MIB, 2 * MIB)]);
    for method in [Method::Rewrite, Method::Remap] {
        let format = TargetFormat::Qcow2(Qcow2Options::default());
        let spec = TargetSpec { method, ..device_spec(&device, format, Overwrite::Replace) };
        fill(&spec, &table, MIB).unwrap();
        let image = Image::new(device.device(), Format::Qcow2);
        image.assert_clean();
        image.assert_same_disk(&expected(&scratch.join("expected.raw"), &table));
    }
}

#[test]
fn devices_that_are_too_small_or_in_use_are_refused() {
    let scratch = Scratch::new("target-refused");
    let (_, small) = dirty_device(&scratch, "small", MIB);
    let table = table(MIB + 512, &[(0, 4096)]);
    let error = fill(&device_spec(&small, TargetFormat::Raw, Overwrite::Replace), &table, MIB).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.to_string().contains("1048576"), "{error}");

    let file = scratch.join("mounted.img");
    let mount = Mount::made(&scratch.join("mnt"), &file, 16 * MIB, &["mkfs.ext4", "-q"]);
    let found = run(&mut tool("findmnt", ["-n", "-o", "SOURCE", text(mount.path())])).ok();
    let path = PathBuf::from(found.text().trim());
    let spec =
        TargetSpec { path, format: TargetFormat::Raw, method: Method::Rewrite, existing: Overwrite::Replace };
    assert_eq!(fill(&spec, &table, MIB).unwrap_err().kind(), ErrorKind::InUse);
    std::fs::write(mount.path().join("alive"), b"yes").unwrap();
}

#[test]
fn files_that_exist_are_replaced_only_when_asked_and_only_whole() {
    let scratch = Scratch::new("target-existing");
    let folder = scratch.folder("disks");
    let path = folder.join("a.raw");
    std::fs::write(&path, b"theirs").unwrap();
    let table = table(MIB, &[(4096, 4096)]);
    let mut wanted = spec(&path, TargetFormat::Raw, Method::Rewrite);
    assert_eq!(fill(&wanted, &table, MIB).unwrap_err().kind(), ErrorKind::Exists);
    wanted.existing = Overwrite::Replace;
    drop(TargetDisk::open(&wanted, &table).unwrap());
    assert_eq!(std::fs::read(&path).unwrap(), b"theirs");
    assert_eq!(names(&folder), ["a.raw"]);
    fill(&wanted, &table, MIB).unwrap();
    assert_eq!(path.metadata().unwrap().len(), MIB);

    let directory = spec(&folder, TargetFormat::Raw, Method::Rewrite);
    assert_eq!(fill(&directory, &table, MIB).unwrap_err().kind(), ErrorKind::Usage);
    let remap = spec(&folder.join("b.raw"), TargetFormat::Raw, Method::Remap);
    assert_eq!(fill(&remap, &table, MIB).unwrap_err().kind(), ErrorKind::Usage);
    // Somebody else takes the name while the disk is written.
    let late = spec(&folder.join("c.raw"), TargetFormat::Raw, Method::Rewrite);
    let target = TargetDisk::open(&late, &table).unwrap();
    OpenOptions::new().write(true).create_new(true).open(&late.path).unwrap();
    let error = target.finish().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists);
    // What is written is kept, under the name that the error says.
    let left = names(&folder);
    assert_eq!((left.len(), &left[1..]), (3, &["a.raw".to_owned(), "c.raw".to_owned()][..]));
    assert!(left[0].ends_with(".partial") && error.to_string().contains(&left[0]), "{error}");
}

#[test]
fn no_file_is_made_where_a_device_or_a_link_s_target_is_missing() {
    let scratch = Scratch::new("target-nowhere");
    let table = table(MIB, &[(4096, 4096)]);
    let link = scratch.join("link.raw");
    std::os::unix::fs::symlink(scratch.join("away/disk.raw"), &link).unwrap();
    // The same file system by another name.
    let elsewhere = Mount::devtmpfs(&scratch.join("devices"));
    let name = format!("virtfold-{}", std::process::id());
    let up = scratch.join(format!("../../../../../../../../../../../dev/{name}"));
    for existing in [Overwrite::Refuse, Overwrite::Replace] {
        for path in [&link, &Path::new("/dev").join(&name), &up, &elsewhere.path().join(&name)] {
            let spec = TargetSpec { existing, ..spec(path, TargetFormat::Raw, Method::Rewrite) };
            let error = fill(&spec, &table, MIB).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
            assert!(error.hint().is_some() && spec.check().is_err(), "{error}");
            assert!(std::fs::metadata(path).is_err(), "{}", path.display());
        }
    }
    assert!(link.is_symlink());
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    fill(&spec(&memory.path().join("a.raw"), TargetFormat::Raw, Method::Rewrite), &table, MIB).unwrap();
}

/// Whatever was on the device before, and wherever the rest of an archive is lost.
#[test]
fn what_a_partial_restore_has_not_got_reads_as_zeros() {
    let scratch = Scratch::new("partial-zeros");
    let source = scratch.join("source.raw");
    fs::write(&source, Rng::of_case("partial-zeros", 0).bytes(6 << 20)).unwrap();
    let image = Image::new(&source, Format::Raw);
    let whole = fs::read(backup(&image, &scratch.folder("archives"), &["--compress", "none"])).unwrap();
    let mut flipped = whole.clone();
    flipped[3 << 20] ^= 1;
    let cut = whole[..7 << 19].to_vec();
    let (old, file) = (scratch.join("device.img"), scratch.join("file.raw"));
    for (what, bytes) in [("flipped", flipped), ("cut", cut)] {
        let archive = scratch.join(what);
        fs::write(&archive, bytes).unwrap();
        for by_pipe in [false, true] {
            fs::write(&old, vec![0xee; 6 << 20]).unwrap();
            fs::write(&file, vec![0xee; 6 << 20]).unwrap();
            let device = Loop::attach(&old);
            for target in [device.device(), &file] {
                let disk = format!("vda={}", text(target));
                let name = if by_pipe { "-" } else { text(&archive) };
                let mut args = restore_args(name, &disk, Format::Raw, BackupMode::Rewrite);
                args.extend(["--partial", "--force", "--json"]);
                let mut command = virtfold(args);
                command.stdin(fs::File::open(&archive).unwrap());
                let outcome = run(&mut command);
                let context = format!("{what}, {by_pipe}\n{outcome}");
                assert!(matches!(outcome.code(), Some(exit::DAMAGED | exit::INCOMPLETE)), "{context}");
                let lost = damage(&outcome);
                assert!(!lost.is_empty(), "{context}");
                let restored = fs::read(target).unwrap();
                assert_same_outside(&fs::read(&source).unwrap(), &restored, &lost, &context);
                for range in lost {
                    let range = usize::try_from(range.start).unwrap()
                        ..usize::try_from(range.start + range.length).unwrap();
                    assert!(restored[range].iter().all(|byte| *byte == 0), "{context}");
                }
            }
        }
    }
}

/// exFAT knows neither renames that refuse to replace nor hard links.
#[test]
fn a_file_system_without_links_takes_archives_and_disks() {
    let scratch = Scratch::new("exfat");
    let image = Image::new(scratch.join("source.raw"), Format::Raw);
    fs::write(&image.path, Rng::of_case("exfat", 0).bytes(3 << 20)).unwrap();
    let mount = Mount::exfat(&scratch.join("mnt"), &scratch.join("fs.img"), 64 * MIB);
    let first = backup(&image, mount.path(), &[]);
    let second = backup(&image, mount.path(), &["--compress", "none"]);
    assert_eq!(names(mount.path()).len(), 2, "{:?}", names(mount.path()));
    for archive in [first, second] {
        verify(&archive).ok();
        let target = Image::new(mount.path().join("back.qcow2"), Format::Qcow2);
        restored(&archive, &target, BackupMode::Rewrite).ok();
        image.assert_same_disk(&target);
        restored(&archive, &target, BackupMode::Rewrite).exits(exit::EXISTS);
        fs::remove_file(target.path).unwrap();
    }
    let left: Vec<_> = names(mount.path()).into_iter().filter(|name| name.starts_with('.')).collect();
    assert_eq!(left, [] as [&str; 0]);
}
