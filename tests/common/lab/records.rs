//! The checker: do the disks hold exactly the records 0..=N, one N for all of them?
//!
//! Works on raw bytes, so that a restored image, `qemu-img convert`'s output and a file taken out of an ext4
//! file system are all judged alike. tests/guest/record.rs says where each record lies.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use super::record::{Layout, ODD, RECORD, Record};
use super::run;

/// What consistent disks hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prefix {
    /// The newest record; `None` when nothing was written at all.
    pub(crate) last: Option<u64>,
    /// The largest time between two records that are still there and follow each other, by the guest's clock
    /// (which stands still while the guest is suspended), in ns. [`super::progress`] measures by the host's
    /// clock.
    pub(crate) largest_gap_ns: u64,
}

/// Judges raw images, given in the order of the guest's disks.
///
/// # Errors
/// The first thing that is wrong, as a sentence.
pub(crate) fn check(disks: &[&Path], layout: Layout) -> Result<Prefix, String> {
    let mut found = Vec::new();
    for (disk, path) in disks.iter().enumerate() {
        let name = path.display();
        let slots = read_slots(path, layout).map_err(|e| format!("{name}: {e}"))?;
        for (slot, record) in slots.iter().enumerate() {
            let Some(record) = record else { continue };
            let place = (layout.disk(record.number) as usize, layout.slot(record.number) as usize);
            if record.layout != layout || place != (disk, slot) {
                return Err(format!("{name}: slot {slot} holds a record of another place: {record:?}"));
            }
        }
        found.push(slots);
    }
    let last = found.iter().flatten().flatten().map(|r| r.number).max();
    let Some(last) = last else { return Ok(Prefix { last: None, largest_gap_ns: 0 }) };
    for (disk, slots) in found.iter().enumerate() {
        for (slot, record) in slots.iter().enumerate() {
            let (seen, wanted) = (record.map(|r| r.number), newest(layout, disk, slot, last));
            if seen != wanted {
                return Err(format!(
                    "the newest record is {last}, so slot {slot} of {} should hold {wanted:?}, but holds {seen:?}",
                    disks[disk].display()
                ));
            }
        }
    }
    let records = found.iter().flatten().flatten().copied().collect();
    Ok(Prefix { last: Some(last), largest_gap_ns: largest_gap(records) })
}

/// As [`check`], for images of any format that `qemu-img` reads.
pub(crate) fn check_images(images: &[(&Path, &str)], layout: Layout) -> Result<Prefix, String> {
    let folder = tempfile::tempdir().unwrap();
    let mut raw = Vec::new();
    for (disk, (path, format)) in images.iter().enumerate() {
        let target = folder.path().join(format!("{disk}.raw"));
        run(Command::new("qemu-img")
            .args(["convert", "-U", "-f", format, "-O", "raw"])
            .arg(path)
            .arg(&target));
        raw.push(target);
    }
    check(&raw.iter().map(|p| p.as_path()).collect::<Vec<_>>(), layout)
}

/// Takes the records' file out of a raw image with an ext4 file system, which must be clean as it stands.
///
/// # Errors
/// What e2fsck says.
pub(crate) fn take_from_ext4(raw: &Path, target: &Path) -> Result<(), String> {
    let check = Command::new("e2fsck").args(["-f", "-n"]).arg(raw).output().unwrap();
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    if !check.status.success() || said.contains("recover") {
        return Err(format!("e2fsck: {}: {said}", check.status));
    }
    run(Command::new("debugfs").arg("-R").arg(format!("dump /records {}", target.display())).arg(raw));
    Ok(())
}

fn read_slots(path: &Path, layout: Layout) -> Result<Vec<Option<Record>>, String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    let length = file.metadata().map_err(|e| e.to_string())?.len();
    let mut bytes = [0; RECORD];
    let mut slots = Vec::new();
    for slot in 0..layout.slots {
        let at = u64::from(slot) * u64::from(layout.stride);
        // A file that ends before a slot holds nothing there; one that ends inside of it is torn.
        if at >= length {
            slots.push(None);
            continue;
        }
        file.read_exact_at(&mut bytes, at).map_err(|e| format!("slot {slot}: {e}"))?;
        slots.push(Record::decode(&bytes).map_err(|e| format!("slot {slot} {e}"))?);
    }
    Ok(slots)
}

/// The newest record that a slot of a disk holds once all of 0..=`last` are written.
fn newest(layout: Layout, disk: usize, slot: usize, last: u64) -> Option<u64> {
    let (disks, slots) = (u64::from(layout.disks), u64::from(layout.slots));
    // Rounds count the records of one disk. The odd factor is undone to find the first one in this slot.
    let first = (slot as u64).wrapping_mul(inverse(ODD)) % slots;
    let rounds = last.checked_sub(disk as u64)? / disks;
    let laps = rounds.checked_sub(first)? / slots;
    Some((first + laps * slots) * disks + disk as u64)
}

/// The inverse of an odd number modulo 2^64, by Newton's iteration.
fn inverse(odd: u64) -> u64 {
    (0..6).fold(odd, |x, _| x.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(x))))
}

fn largest_gap(mut records: Vec<Record>) -> u64 {
    records.sort_by_key(|r| r.number);
    let neighbours = records.windows(2).filter(|w| w[1].number == w[0].number + 1 && w[1].run == w[0].run);
    neighbours.map(|w| w[1].clock_ns.saturating_sub(w[0].clock_ns)).max().unwrap_or(0)
}
