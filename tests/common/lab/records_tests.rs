//! The checker must see what is wrong.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::lab::record::{Layout, RECORD, Record};
use crate::lab::records::{Prefix, check};

const LAYOUT: Layout = Layout { disks: 3, slots: 8, stride: 8192 };

/// What the guest's writer does, up to `last`, but for the records that `skip` names.
fn written(last: u64, skip: &[u64]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let files: Vec<File> = (0..3).map(|d| File::create(folder.path().join(d.to_string())).unwrap()).collect();
    files.iter().for_each(|f| f.set_len(8 * 8192).unwrap());
    for number in (0..=last).filter(|n| !skip.contains(n)) {
        let (disk, mut bytes) = (LAYOUT.disk(number), [0; RECORD]);
        let clock_ns = number * 1000 + u64::from(number >= 40) * 5000;
        Record { number, clock_ns, disk, layout: LAYOUT, run: 1 }.encode(&mut bytes);
        files[disk as usize].write_all_at(&bytes, u64::from(LAYOUT.slot(number)) * 8192).unwrap();
    }
    folder
}

fn judge(folder: &tempfile::TempDir) -> Result<Prefix, String> {
    let paths: Vec<_> = (0..3).map(|d| folder.path().join(d.to_string())).collect();
    check(&paths.iter().map(|p| p.as_path()).collect::<Vec<_>>(), LAYOUT)
}

#[test]
fn every_prefix_is_recognised() {
    for last in 0..60 {
        let seen = judge(&written(last, &[])).unwrap();
        assert_eq!(seen.last, Some(last));
    }
    assert_eq!(judge(&written(45, &[])).unwrap().largest_gap_ns, 6000);
}

#[test]
fn a_missing_record_is_seen_wherever_it_lies() {
    for missing in 22..45 {
        let said = judge(&written(45, &[missing])).unwrap_err();
        assert!(said.contains("the newest record is 45"), "{missing}: {said}");
    }
}

#[test]
fn torn_and_misplaced_records_are_seen() {
    let folder = written(45, &[]);
    let file = File::options().read(true).write(true).open(folder.path().join("1")).unwrap();
    let mut bytes = [0; RECORD];
    file.read_exact_at(&mut bytes, 8192).unwrap();
    file.write_all_at(&[1], 8192 + 2000).unwrap();
    assert!(judge(&folder).unwrap_err().contains("torn"));
    file.write_all_at(&bytes, 0).unwrap();
    file.write_all_at(&bytes, 8192).unwrap();
    assert!(judge(&folder).unwrap_err().contains("another place"));
}
