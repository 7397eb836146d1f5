//! Streams that are damaged or cut anywhere, against the restore of the same as a file.

use super::*;
use crate::destinations::Destinations;
use crate::options::BackupOptions;
use crate::restore::{Selection, VerifyMode, run, run_from, run_over};
use crate::resume::StateDirectories;
use crate::session::{BackupSession, ImageSpec, ImagesRequest};
use crate::target::Method;
use virtfold_archive::stream::Compression;
use virtfold_base::partial_file::Overwrite;
use virtfold_base::units::MIB;
use virtfold_image::Format;
use virtfold_medium::Location;

const DISKS: [(&str, u64); 2] = [("vda", 5), ("vdb", 3)];

/// Two disks without zeros in them, and their archive.
struct Lab {
    folder: tempfile::TempDir,
    archive: Vec<u8>,
}

impl Lab {
    fn new(compression: Compression) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = |(target, mib): (&str, u64)| {
            let path = folder.path().join(format!("{target}.img"));
            let mut bytes = vec![0; usize::try_from(mib * MIB).unwrap()];
            blake3::Hasher::new().update(target.as_bytes()).finalize_xof().fill(&mut bytes);
            bytes.iter_mut().for_each(|byte| *byte |= 1);
            std::fs::write(&path, bytes).unwrap();
            ImageSpec { path, format: Format::Raw, target: target.to_owned() }
        };
        let request = ImagesRequest::of(DISKS.into_iter().map(image).collect());
        let options = BackupOptions { compression, ..BackupOptions::default() };
        let destinations = Destinations::local([Location::Path(folder.path().to_owned())]);
        let (state, control) = (StateDirectories::new(folder.path().join("state")), Control::default());
        let session = BackupSession {
            options: &options,
            destinations: &destinations,
            state: &state,
            control: &control,
        };
        let report = session.images(&request).unwrap();
        let archive = std::fs::read(report.archive).unwrap();
        Self { folder, archive }
    }

    fn request(&self, archive: Location, checking: VerifyMode) -> RestoreRequest {
        RestoreRequest {
            archive,
            identities: virtfold_archive::crypt::Identities::default(),
            selection: Selection::All(self.folder.path().to_owned()),
            format: None,
            method: Method::Rewrite,
            cluster_size: None,
            existing: Overwrite::Replace,
            checking,
            trust: Default::default(),
            workers: 2,
            known: Default::default(),
            parents: Default::default(),
        }
    }

    /// Restores what is intact of a stream. What is not said to be lost has to be what it was, and what is
    /// has to be zeros.
    fn salvage(&self, stream: &[u8]) -> Result<RestoreReport> {
        for (target, _) in DISKS {
            std::fs::remove_file(self.folder.path().join(format!("{target}.raw"))).unwrap_or_default();
        }
        let report =
            run_from(&self.request(Location::Pipe, VerifyMode::Partial), &Control::default(), stream)?;
        for (target, mib) in DISKS {
            let was = std::fs::read(self.folder.path().join(format!("{target}.img"))).unwrap();
            let lost: u64 = report.damage.iter().filter(|l| l.disk == target).map(|l| l.length).sum();
            let Ok(is) = std::fs::read(self.folder.path().join(format!("{target}.raw"))) else {
                assert_eq!(lost, mib * MIB, "{target} is not there");
                continue;
            };
            let mut expected = was.clone();
            for range in report.damage.iter().filter(|range| range.disk == target) {
                let place = |at: u64| usize::try_from(at).unwrap();
                expected[place(range.start)..place(range.start + range.length)].fill(0);
            }
            assert!(is == expected, "{target}: {:?}", report.damage);
        }
        Ok(report)
    }
}

const BOTH: [Compression; 2] = [Compression::None, Compression::Zstd { level: 1 }];

#[test]
fn what_is_whole_comes_back_whole() {
    for compression in BOTH {
        let lab = Lab::new(compression);
        let report = lab.salvage(&lab.archive).unwrap();
        assert!(report.complete && report.verified && report.damage.is_empty() && report.notes.is_empty());
    }
}

#[test]
fn cut_anywhere_it_gives_what_came_and_says_what_did_not() {
    for compression in BOTH {
        let lab = Lab::new(compression);
        let mut before = u64::MAX;
        for cut in (0..lab.archive.len()).step_by(370_001) {
            match lab.salvage(&lab.archive[..cut]) {
                Ok(report) => {
                    assert!(!report.complete && !report.notes.is_empty(), "cut at {cut}");
                    let lost = report.damage.iter().map(|range| range.length).sum();
                    assert!(lost <= before, "cut at {cut}: {lost} lost, with less of it {before}");
                    before = lost;
                }
                Err(error) => {
                    assert!(cut < 2 << 20, "cut at {cut}: {error:?}");
                    assert!(matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Incomplete), "{error:?}");
                }
            }
        }
        assert!(before < 370_001 + (2 << 20), "{before} lost: no more than what was cut off, and its frame");
    }
}

/// One damaged byte costs what it costs from a file.
#[test]
fn a_damaged_byte_costs_as_much_as_from_a_file() {
    for compression in BOTH {
        let lab = Lab::new(compression);
        let file = lab.folder.path().join("broken");
        for at in (0..lab.archive.len()).step_by(610_007) {
            let mut broken = lab.archive.clone();
            broken[at] ^= 0x10;
            let piped = lab.salvage(&broken).unwrap();
            std::fs::write(&file, &broken).unwrap();
            let request = lab.request(Location::Path(file.clone()), VerifyMode::Partial);
            let expected = run(&request, &Control::default()).unwrap();
            assert_eq!(piped.damage, expected.damage, "{compression:?}, byte {at}");
            assert!(
                piped.damage.iter().map(|range| range.length).sum::<u64>() <= MIB,
                "{compression:?}, byte {at}"
            );
        }
    }
}

/// Zeros that a medium puts in the place of what it can't read.
#[test]
fn gaps_of_the_medium_are_lost_and_what_is_behind_them_is_not() {
    let lab = Lab::new(Compression::None);
    let gap = 2 * MIB..2 * MIB + 262_144;
    let place = |at: u64| usize::try_from(at).unwrap();
    let mut holed = lab.archive.clone();
    holed[place(gap.start)..place(gap.end)].fill(0);
    let gaps = LostRanges::default();
    gaps.add(gap.clone());
    let request = lab.request(Location::Pipe, VerifyMode::Partial);
    let report = run_over(&request, &Control::default(), holed.as_slice(), &gaps).unwrap();
    // Of a plain archive a digest vouches for a MiB, so the rest of that goes, too.
    let lost: u64 = report.damage.iter().map(|range| range.length).sum();
    assert!(report.complete && (262_144..=2 * MIB).contains(&lost), "{report:?}");
    // Without the end nobody can tell more than the medium.
    let cut = place(4 * MIB);
    let report = run_over(&request, &Control::default(), &holed[..cut], &gaps).unwrap();
    assert!(!report.complete && !report.verified, "{report:?}");
    let first = &report.damage[0];
    assert!(first.disk == "vda" && (262_144..=MIB).contains(&first.length), "{report:?}");
}
