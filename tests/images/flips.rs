//! One flipped byte, anywhere, is found and costs no more than the chunk it lies in; a cut costs what is
//! behind it.
//!
//! Positions are sampled: all kinds of places by plan (head, maps, data, tail), the rest by seed.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::common::archive::Method;
use crate::common::archive::{Damage, assert_same_outside, backup, damage, restore_args, verify};
use crate::common::image::{Format, Image};
use crate::common::rng::{Rng, run_seed};
use crate::common::run::{Outcome, exit, run, text, virtfold};
use crate::common::scratch::Scratch;
use crate::common::{KIB, MIB};

/// Sampled places per archive, besides those by plan.
const RANDOM_FLIPS: u64 = 60;
/// Sampled lengths per archive, besides those by plan.
const RANDOM_CUTS: u64 = 24;

/// An archive and the disk that is in it.
struct Subject {
    scratch: Scratch,
    rng: Rng,
    archive: PathBuf,
    bytes: Vec<u8>,
    disk: Vec<u8>,
    allocated: u64,
    /// Bytes of data in the archive.
    stored: u64,
}

impl Subject {
    /// A disk of `mib` MiB, about half of it data in scattered pieces.
    fn new(label: &str, compress: &str, mib: u64) -> Self {
        let scratch = Scratch::new(label);
        let mut rng = Rng::of_case(label, 0);
        let noise = scratch.join("noise");
        fs::write(&noise, rng.bytes(1 << 20)).unwrap();
        let image = Image::create(scratch.join("source.qcow2"), Format::Qcow2, "", mib * MIB);
        let write = |_| {
            let at = rng.below(mib * 16 - 8) * 64 * KIB;
            format!("write -s {} {at} {}", text(&noise), rng.within(1, 8) * 64 * KIB)
        };
        image.io(&(0..2 * mib).map(write).collect::<Vec<_>>());
        let disk = fs::read(image.convert_to_raw(&scratch.join("source.raw")).path).unwrap();
        let archive = backup(&image, &scratch.folder("archives"), &["--compress", compress]);
        let bytes = fs::read(&archive).unwrap();
        let allocated = image.info()["actual-size"].as_u64().unwrap();
        let stored = run(&mut virtfold(["verify", text(&archive), "--json"])).ok().json_lines();
        let stored = stored.last().and_then(|summary| summary["data"].as_u64()).unwrap();
        Self { scratch, rng, archive, bytes, disk, allocated, stored }
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Bytes of the seek table at the end, 0 where there is none: header, entries, a footer of 9 bytes that
    /// counts them.
    fn seek_table_len(&self) -> u64 {
        let footer = &self.bytes[self.bytes.len() - 9..];
        let (count, rest) = footer.split_at(4);
        if rest[1..] != 0x8F92_EAB1_u32.to_le_bytes() {
            return 0;
        }
        let entry = if rest[0] & 0x80 == 0 { 8 } else { 12 };
        8 + 9 + entry * u64::from(u32::from_le_bytes(count.try_into().unwrap()))
    }

    /// Every byte kind once: the first KiBs (head, maps), the last KiBs (recovery, digests, end), and random
    /// ones.
    fn places(&mut self, random: u64) -> Vec<u64> {
        let len = self.len();
        let mut places: Vec<u64> = (0..24).map(|i| i * 331 % (12 * KIB)).collect();
        places.extend((0..24).map(|i| len - 1 - i * 211));
        places.extend((0..random).map(|_| self.rng.below(len)));
        places.retain(|place| *place < len);
        places.sort_unstable();
        places.dedup();
        places
    }

    /// Restores what can be had of the archive; the outcome and the disk, where there is one.
    fn rescue(&self, archive: &Path) -> (Outcome, Option<Vec<u8>>) {
        let target = self.scratch.join("rescued.raw");
        let to = format!("vda={}", text(&target));
        let mut args = restore_args(text(archive), &to, Format::Raw, Method::Rewrite);
        args.extend(["--partial", "--json"]);
        let outcome = run(&mut virtfold(args));
        let disk = target.exists().then(|| fs::read(&target).unwrap());
        if disk.is_some() {
            fs::remove_file(&target).unwrap();
        }
        (outcome, disk)
    }
}

fn lost(damage: &[Damage]) -> u64 {
    damage.iter().map(|range| range.length).sum()
}

fn flip_everywhere(label: &str, compress: &str, mib: u64) {
    let mut subject = Subject::new(label, compress, mib);
    let file = fs::OpenOptions::new().write(true).open(&subject.archive).unwrap();
    for place in subject.places(RANDOM_FLIPS) {
        let byte = subject.bytes[usize::try_from(place).unwrap()];
        let mask = u8::try_from(1_u64 << subject.rng.below(8)).unwrap();
        file.write_all_at(&[byte ^ mask], place).unwrap();
        let context = format!("{compress}, seed {}, byte {place} of {} ^ {mask}", run_seed(), subject.len());
        check_flip(&subject, &context);
        file.write_all_at(&[byte], place).unwrap();
    }
    verify(&subject.archive).ok();
}

fn check_flip(subject: &Subject, context: &str) {
    let verified = verify(&subject.archive);
    let found = [exit::DAMAGED, exit::INCOMPLETE].map(Some).contains(&verified.code());
    assert!(found, "verify does not find it: {context}\n{verified}");
    let (outcome, disk) = subject.rescue(&subject.archive);
    let codes = [exit::OK, exit::DAMAGED, exit::INCOMPLETE].map(Some);
    assert!(codes.contains(&outcome.code()), "{context}\n{outcome}");
    let Some(disk) = disk else {
        // An archive of a single frame has nothing outside of it, second copies neither.
        assert!(subject.stored < MIB, "nothing was rescued: {context}\n{outcome}");
        assert_ne!(outcome.code(), Some(exit::OK), "{context}\n{outcome}");
        return;
    };
    let damage = damage(&outcome);
    assert!(lost(&damage) <= MIB, "{} bytes are lost for one: {context}\n{outcome}", lost(&damage));
    assert!(outcome.code() != Some(exit::OK) || damage.is_empty(), "0 and yet a loss: {context}\n{outcome}");
    assert_same_outside(&subject.disk, &disk, &damage, &format!("{context}\n{outcome}"));
}

fn cut_everywhere(label: &str, compress: &str, mib: u64) {
    let mut subject = Subject::new(label, compress, mib);
    let cut = subject.scratch.join("cut.tar");
    let mut lengths = subject.places(RANDOM_CUTS);
    lengths.push(0);
    for len in lengths {
        fs::write(&cut, &subject.bytes[..usize::try_from(len).unwrap()]).unwrap();
        let context = format!("{compress}, seed {}, cut at {len} of {}", run_seed(), subject.len());
        check_cut(&subject, &cut, len, &context);
    }
}

fn check_cut(subject: &Subject, cut: &Path, len: u64, context: &str) {
    let verified = verify(cut);
    assert_eq!(verified.code(), Some(exit::INCOMPLETE), "verify: {context}\n{verified}");
    let to = subject.scratch.join("refused.raw");
    let disk = format!("vda={}", text(&to));
    let strict = run(&mut virtfold(restore_args(text(cut), &disk, Format::Raw, Method::Rewrite)));
    if subject.len() - len <= subject.seek_table_len() && strict.code() == Some(exit::OK) {
        // Only the index of the frames is cut: the end record vouches for all of the disk.
        assert!(fs::read(&to).unwrap() == subject.disk, "another disk: {context}\n{strict}");
        fs::remove_file(&to).unwrap();
    } else {
        assert_eq!(strict.code(), Some(exit::INCOMPLETE), "restore without --partial: {context}\n{strict}");
        assert!(!to.exists(), "a half disk under its final name: {context}\n{strict}");
    }
    let (outcome, rescued) = subject.rescue(cut);
    let missing = subject.len() - len;
    let Some(rescued) = rescued else {
        // Without the maps at the front there is nothing to put anywhere.
        assert!(len < 2 * MIB, "nothing was rescued: {context}\n{outcome}");
        assert_eq!(outcome.code(), Some(exit::INCOMPLETE), "{context}\n{outcome}");
        return;
    };
    let damage = damage(&outcome);
    let codes = [exit::OK, exit::DAMAGED, exit::INCOMPLETE].map(Some);
    assert!(codes.contains(&outcome.code()), "{context}\n{outcome}");
    assert!(outcome.code() != Some(exit::OK) || damage.is_empty(), "0 and yet a loss: {context}\n{outcome}");
    let fair = (missing + 2 * MIB).min(subject.allocated + MIB);
    assert!(lost(&damage) <= fair, "{} bytes lost, {missing} cut off: {context}\n{outcome}", lost(&damage));
    assert_same_outside(&subject.disk, &rescued, &damage, &format!("{context}\n{outcome}"));
}

#[test]
fn flips_in_a_small_plain_archive() {
    flip_everywhere("flip-small-plain", "none", 2);
}

#[test]
fn flips_in_a_small_compressed_archive() {
    flip_everywhere("flip-small-zstd", "zstd", 2);
}

#[test]
fn flips_in_a_medium_plain_archive() {
    flip_everywhere("flip-medium-plain", "none", 12);
}

#[test]
fn flips_in_a_medium_compressed_archive() {
    flip_everywhere("flip-medium-zstd", "zstd", 12);
}

#[test]
fn cuts_of_a_plain_archive() {
    cut_everywhere("cut-plain", "none", 6);
}

#[test]
fn cuts_of_a_compressed_archive() {
    cut_everywhere("cut-zstd", "zstd", 6);
}

#[test]
fn bytes_after_the_end_are_found_and_zeros_passed_over() {
    for compress in ["none", "zstd"] {
        let mut subject = Subject::new("appended", compress, 2);
        let more = subject.scratch.join("more.tar");
        for len in [1, 512, 10_240] {
            fs::write(&more, [&subject.bytes[..], &subject.rng.bytes(len)].concat()).unwrap();
            // Of a plain archive nobody can tell what follows its end from what is missing of it.
            let code = if compress == "none" { exit::INCOMPLETE } else { exit::DAMAGED };
            verify(&more).exits(code);
            let to = format!("vda={}", text(&subject.scratch.join("strict.raw")));
            run(&mut virtfold(restore_args(text(&more), &to, Format::Raw, Method::Rewrite))).exits(code);
        }
        // What `dd conv=sync` leaves, and a device that is larger than what is on it.
        for len in [1, 512, 300_000] {
            fs::write(&more, [&subject.bytes[..], &vec![0; len]].concat()).unwrap();
            let told = verify(&more).ok();
            assert!(told.stderr.contains(&format!("{len} zeros behind its end")), "{told}");
            assert_same_disk_from(&subject, &more, &[]);
            let pipe = format!(
                "exec {} restore - --output {} --format raw < {}",
                env!("CARGO_BIN_EXE_virtfold"),
                text(&subject.scratch.folder("piped")),
                text(&more)
            );
            run(std::process::Command::new("sh").args(["-c", &pipe])).ok();
            assert!(fs::read(subject.scratch.join("piped/vda.raw")).unwrap() == subject.disk);
            fs::remove_dir_all(subject.scratch.join("piped")).unwrap();
        }
        let device = crate::common::mount::Loop::attach(&{
            fs::write(
                &more,
                [&subject.bytes[..], &vec![0; (4 << 20) - subject.bytes.len() % (1 << 20)]].concat(),
            )
            .unwrap();
            more.clone()
        });
        verify(device.device()).ok();
        assert_same_disk_from(&subject, device.device(), &["--partial"]);
    }
}

fn assert_same_disk_from(subject: &Subject, archive: &Path, more: &[&str]) {
    let target = subject.scratch.join("whole.raw");
    let to = format!("vda={}", text(&target));
    let args = [&restore_args(text(archive), &to, Format::Raw, Method::Rewrite)[..], more].concat();
    run(&mut virtfold(args)).ok();
    assert!(fs::read(&target).unwrap() == subject.disk);
    fs::remove_file(&target).unwrap();
}

/// What is no archive at all is not called damaged, by no verb.
#[test]
fn what_is_no_archive_is_called_that() {
    let scratch = Scratch::new("no-archive");
    let strange = scratch.join("strange.tar");
    fs::write(&strange, Rng::of_case("no-archive", 0).bytes(5000)).unwrap();
    verify(&strange).exits(exit::BAD_IMAGE);
    let to = format!("vda={}", text(&scratch.join("out.raw")));
    for more in [&[][..], &["--partial"]] {
        let args = [&restore_args(text(&strange), &to, Format::Raw, Method::Rewrite)[..], more].concat();
        run(&mut virtfold(args)).exits(exit::BAD_IMAGE);
    }
}

/// One fault, one code: what is damaged before its cut is incomplete, for each verb.
#[test]
fn verify_and_restore_agree_on_a_code() {
    for compress in ["none", "zstd"] {
        let subject = Subject::new("one-code", compress, 6);
        let broken = subject.scratch.join("broken.tar");
        let len = subject.bytes.len();
        let mut bytes = subject.bytes.clone();
        bytes[len / 2] ^= 1;
        for (bytes, code) in [(&bytes[..], exit::DAMAGED), (&bytes[..len - 6000], exit::INCOMPLETE)] {
            fs::write(&broken, bytes).unwrap();
            verify(&broken).exits(code);
            let to = format!("vda={}", text(&subject.scratch.join("strict.raw")));
            run(&mut virtfold(restore_args(text(&broken), &to, Format::Raw, Method::Rewrite))).exits(code);
            let (partial, _) = subject.rescue(&broken);
            partial.exits(code);
        }
    }
}
