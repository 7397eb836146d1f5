//! Archives that were changed on purpose, each part consistent with itself; and targets that would eat each
//! other.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::MIB;
use crate::common::archive::{Method, backup, restore_args, verify};
use crate::common::image::{Format, Image};
use crate::common::rng::Rng;
use crate::common::run::{exit, run, text, virtfold};
use crate::common::scratch::Scratch;

/// Where a frame's header has what; FORMAT.md, 'Stream and frames'.
const HEADER: usize = 100;
const STORED_LEN: usize = 56;
const STORED_CRC: usize = 60;
const DIGEST: usize = 64;
const HEADER_CRC: usize = 96;

/// A raw disk of `mib` MiB of noise and its archive.
fn subject(scratch: &Scratch, mib: usize, more: &[&str]) -> (Image, PathBuf) {
    let path = scratch.join("source.raw");
    fs::write(&path, Rng::of_case("forgeries", 0).bytes(mib << 20)).unwrap();
    let image = Image { path, format: Format::Raw };
    let archive = backup(&image, &scratch.folder("archives"), more);
    (image, archive)
}

fn number(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// The archive with other data in its frame number `wanted`, and everything that the frame and the seek table
/// say of themselves made to fit. The tail stays as it is.
fn forge_frame(archive: &[u8], wanted: usize) -> Vec<u8> {
    let mut at = 0;
    for _ in 0..wanted {
        at += HEADER + number(archive, at + STORED_LEN);
    }
    let old_len = number(archive, at + STORED_LEN);
    let mut data = zstd::decode_all(&archive[at + HEADER..at + HEADER + old_len]).unwrap();
    data[1000..1010].fill(0x55);
    let stored = zstd::bulk::compress(&data, 1).unwrap();
    let stored_len = u32::try_from(stored.len()).unwrap().to_le_bytes();

    let mut header = archive[at..at + HEADER].to_vec();
    header[STORED_LEN..STORED_LEN + 4].copy_from_slice(&stored_len);
    header[STORED_CRC..STORED_CRC + 4].copy_from_slice(&crc32c::crc32c(&stored).to_le_bytes());
    header[DIGEST..DIGEST + 32].copy_from_slice(blake3::hash(&data).as_bytes());
    let crc = crc32c::crc32c(&header[..HEADER_CRC]).to_le_bytes();
    header[HEADER_CRC..].copy_from_slice(&crc);

    let mut forged = [&archive[..at], &header, &stored, &archive[at + HEADER + old_len..]].concat();
    // The table's footer has the number of entries, two for each chunk, eight bytes each.
    let entries = number(&forged, forged.len() - 9);
    let entry = forged.len() - 9 - entries * 8 + (2 * wanted + 1) * 8;
    assert_eq!(number(&forged, entry), old_len, "the seek table is not where this test thinks");
    forged[entry..entry + 4].copy_from_slice(&stored_len);
    forged
}

fn restore_to(archive: &Path, target: &Path, more: &[&str]) -> crate::common::run::Outcome {
    let disk = format!("vda={}", text(target));
    let mut args = restore_args(text(archive), &disk, Format::Raw, Method::Rewrite);
    args.extend(more);
    run(&mut virtfold(args))
}

#[test]
fn a_frame_that_vouches_for_itself_is_not_believed() {
    let scratch = Scratch::new("forged-frame");
    let (_, archive) = subject(&scratch, 6, &["--compress", "zstd:1"]);
    let forged = scratch.join("forged.tar.zst");
    fs::write(&forged, forge_frame(&fs::read(&archive).unwrap(), 2)).unwrap();
    verify(&forged).exits(exit::DAMAGED);
    let target = scratch.join("restored.raw");
    restore_to(&forged, &target, &[]).exits(exit::DAMAGED);
    assert!(!target.exists(), "forged data under a final name");
    let partial = restore_to(&forged, &target, &["--partial", "--json"]).exits(exit::DAMAGED);
    let lost = crate::common::archive::damage(&partial);
    assert!(!lost.is_empty() && lost.iter().map(|range| range.length).sum::<u64>() <= MIB, "{partial}");
}

#[test]
fn two_disks_never_share_a_target_and_none_replaces_the_archive() {
    let scratch = Scratch::new("same-target");
    let (image, _) = subject(&scratch, 1, &["--compress", "none"]);
    let folder = scratch.folder("two");
    let mut args = vec!["backup", "--to", text(&folder), "--compress", "none", "--format", "raw"];
    args.extend(["--image", image.text(), "--image", image.text()]);
    let archive = PathBuf::from(run(&mut virtfold(args)).ok().last_line());
    let before = fs::read(&archive).unwrap();

    let (file, link) = (folder.join("disk"), folder.join("link"));
    fs::write(&file, b"there").unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let dotted = folder.join(".").join("new");
    for (one, other) in [(&file, &link), (&folder.join("new"), &dotted)] {
        let (vda, vdb) = (format!("vda={}", text(one)), format!("vdb={}", text(other)));
        run(&mut virtfold(["restore", text(&archive), "--disk", &vda, "--disk", &vdb, "--force"]))
            .exits(exit::USAGE);
    }
    assert_eq!(fs::read(&file).unwrap(), b"there");
    restore_to(&archive, &archive, &["--force"]).exits(exit::USAGE);
    assert_eq!(fs::read(&archive).unwrap(), before, "the archive was replaced by its disk");
}

#[test]
fn a_closed_standard_output_is_no_medium() {
    let scratch = Scratch::new("closed-stdout");
    let (image, _) = subject(&scratch, 1, &[]);
    let command = format!(
        "exec {} backup --image {} --format raw --to - >&-",
        env!("CARGO_BIN_EXE_virtfold"),
        image.text()
    );
    run(std::process::Command::new("sh").args(["-c", &command])).exits(exit::USAGE);
}
