//! Other people's readers of qcow2 see the same guest bytes: in images that QEMU made, and in those that
//! virtfold makes.
//!
//! `imago` reads all that is tried here. `qcow2-rs` is asked only for what it reads right: version 3,
//! clusters of 64 KiB, data, zeros and zlib, whole clusters of capacity (DECISIONS.md has what it does with
//! the rest). They are dependencies of the tests alone: nothing of them, nor of the features they choose, is
//! in what is shipped.

use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use crate::common::image::{Format as CommonFormat, Image};
use crate::common::rng::Rng;
use crate::common::run::text;
use crate::common::scratch::Scratch;
use crate::common::{KIB, MIB};
use imago::file::File as ImagoFile;
use imago::qcow2::Qcow2 as ImagoQcow2;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};
use qcow2_rs::dev::Qcow2DevParams;
use qcow2_rs::helpers::Qcow2IoBuf;
use qcow2_rs::utils::qcow2_setup_dev_sync;
use virtfold::backup::folded_disk::FoldedDisk;
use virtfold::backup::target::{Method, Qcow2Options, TargetDisk, TargetFormat, TargetSpec};
use virtfold::image::{DiskImage, Format, OpenOptions};
use virtfold::partial_file::Overwrite;
use virtfold::table::{Layout, Run};
use virtfold::units::GuestOffset;

const CAPACITY: u64 = 12 * MIB;
/// Not a divisor of anything.
const STEP: usize = 700 * 512;

fn ours(image: &Path) -> Vec<u8> {
    let image = DiskImage::open(image, Format::Qcow2, &OpenOptions::default()).unwrap();
    let table = image.allocation().unwrap();
    let mut bytes = vec![1; usize::try_from(image.capacity()).unwrap()];
    image.read(&table, GuestOffset::ZERO, &mut bytes).unwrap();
    bytes
}

fn by_imago(image: &Path) -> Vec<u8> {
    let opened =
        ImagoQcow2::<ImagoFile>::builder_path(image).open(PermissiveImplicitOpenGate::default()).unwrap();
    let disk = FormatAccess::new(opened);
    let mut bytes = vec![2; usize::try_from(disk.size()).unwrap()];
    for (index, piece) in bytes.chunks_mut(STEP).enumerate() {
        disk.read(piece, (index * STEP) as u64).unwrap();
    }
    bytes
}

/// Drives a future whose input and output is synchronous: it is never long before it is ready.
fn drive<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
}

fn by_qcow2_rs(image: &Path) -> Vec<u8> {
    let params = Qcow2DevParams::new(9, None, None, true, false);
    let disk = qcow2_setup_dev_sync(image, &params).unwrap();
    drive(disk.qcow2_prep_io()).unwrap();
    let mut bytes = vec![3; usize::try_from(disk.info.virtual_size()).unwrap()];
    for (index, piece) in bytes.chunks_mut(STEP).enumerate() {
        let mut aligned = Qcow2IoBuf::<u8>::new(piece.len());
        let got = drive(disk.read_at(&mut aligned, (index * STEP) as u64)).unwrap();
        assert_eq!(got, piece.len());
        piece.copy_from_slice(&aligned);
    }
    bytes
}

/// Random writes of all kinds; compressed ones first, as QEMU wants them.
fn requests(rng: &mut Rng, noise: &Path) -> Vec<String> {
    let cluster = 64 * KIB;
    let mut requests: Vec<String> = (0..rng.below(6))
        .map(|_| {
            format!("write -c -P {} {} 64k", rng.within(1, 255), rng.below(CAPACITY / cluster) * cluster)
        })
        .collect();
    for _ in 0..30 {
        let at = rng.below(CAPACITY / 512 - 400) * 512;
        let len = rng.within(1, 400) * 512;
        requests.push(match rng.below(10) {
            0..4 => format!("write -s {} {at} {len}", text(noise)),
            4..7 => format!("write -P {} {at} {len}", rng.within(1, 255)),
            7..9 => format!("write -z {at} {len}"),
            _ => format!("discard {at} {len}"),
        });
    }
    requests
}

/// The same disk in a new qcow2 of virtfold's own making.
fn refold(image: &Path, target: &Path) {
    let opened = DiskImage::open(image, Format::Qcow2, &OpenOptions::default()).unwrap();
    let disk = FoldedDisk::fold("vda".to_owned(), opened, None, Layout::Compact).unwrap();
    let spec = TargetSpec {
        path: target.to_owned(),
        format: TargetFormat::Qcow2(Qcow2Options::default()),
        method: Method::Remap,
        existing: Overwrite::Refuse,
    };
    let mut made = TargetDisk::open(&spec, &disk.table).unwrap();
    for run in disk.table.iter() {
        let run: Run = run.unwrap();
        let mut bytes = vec![0; usize::try_from(run.len).unwrap()];
        disk.image.read(&disk.allocation, run.guest, &mut bytes).unwrap();
        made.write(&run, &bytes).unwrap();
    }
    made.finish().unwrap();
}

#[track_caller]
fn assert_same(left: &[u8], right: &[u8], context: &str) {
    assert_eq!(left.len(), right.len(), "{context}: capacity");
    // The whole first: byte by byte, not being optimised, it would take most of the test's time.
    if left != right {
        let wrong = left.iter().zip(right).position(|(a, b)| a != b);
        panic!("{context}: the first byte that differs is {wrong:?}");
    }
}

#[test]
fn three_readers_see_one_disk() {
    for case in 0..16 {
        let scratch = Scratch::new(&format!("readers-{case}"));
        let mut rng = Rng::of_case("second-readers", case);
        let noise = scratch.join("noise");
        std::fs::write(&noise, rng.bytes(1 << 18)).unwrap();
        let image = Image::create(scratch.join("a.qcow2"), CommonFormat::Qcow2, "cluster_size=64k", CAPACITY);
        image.io(&requests(&mut rng, &noise));
        let again = scratch.join("again.qcow2");
        refold(&image.path, &again);
        for path in [&image.path, &again] {
            let context = format!("case {case}, {}", path.display());
            let known = ours(path);
            assert_same(&known, &by_imago(path), &format!("imago, {context}"));
            assert_same(&known, &by_qcow2_rs(path), &format!("qcow2-rs, {context}"));
        }
        assert_same(&ours(&image.path), &ours(&again), &format!("refolded, case {case}"));
    }
}

#[test]
fn imago_sees_the_same_with_other_clusters_and_a_backing_file() {
    for (case, size) in ["512", "4k", "2M"].into_iter().enumerate() {
        let scratch = Scratch::new(&format!("imago-{size}"));
        let mut rng = Rng::of_case("imago", case as u64);
        let noise = scratch.join("noise");
        std::fs::write(&noise, rng.bytes(1 << 18)).unwrap();
        let options = format!("cluster_size={size}");
        let base = Image::create(scratch.join("base.qcow2"), CommonFormat::Qcow2, &options, CAPACITY);
        let uncompressed = |rng: &mut Rng| {
            let all = requests(rng, &noise);
            all.into_iter().filter(|request| !request.contains("-c")).collect::<Vec<_>>()
        };
        base.io(&uncompressed(&mut rng));
        let options = format!("{options},backing_file={},backing_fmt=qcow2", text(&base.path));
        let top = Image::create(scratch.join("top.qcow2"), CommonFormat::Qcow2, &options, CAPACITY);
        top.io(&uncompressed(&mut rng));
        for path in [&base.path, &top.path] {
            assert_same(
                &ours(path),
                &by_imago(path),
                &format!("imago, clusters of {size}, {}", path.display()),
            );
        }
    }
}
