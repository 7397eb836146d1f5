//! The way to a tape: a backup of an image to a drive in memory, against the same backup to a file in memory
//! (`/dev/shm`), in turn, in one run.
//!
//! `cargo bench --bench tape` prints the ratio of the rates, which is to be 0.9 at least;
//! `-- --rounds N --mib N` changes the rounds and the size.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark fails by panicking")]
#![allow(missing_docs, reason = "a benchmark has no public items")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtfold::archive::stream::{Cancel, Compression};
use virtfold::backup::Control;
use virtfold::backup::destinations::Destinations;
use virtfold::backup::options::BackupOptions;
use virtfold::backup::resume::StateDirectories;
use virtfold::backup::session::{BackupReport, BackupSession, ImageSpec, ImagesRequest};
use virtfold::image::{Format, ImageAccess};
use virtfold::medium::tape::{
    NewLabel, NoChanger, NoTapeCatalog, Overwrite, SimulatedDrive, TapeBlock, TapeMedium, TapeWriteOptions,
    VolumeAdmin,
};
use virtfold::medium::{FileMedium, Location};

const LEAST: f64 = 0.9;

fn number(arguments: &[String], name: &str, default: u64) -> u64 {
    let place = arguments.iter().position(|word| word == name);
    place.map_or(default, |place| arguments[place + 1].parse().expect("a number"))
}

fn image(folder: &Path, mib: u64) -> PathBuf {
    let path = folder.join("bench.raw");
    let mut noise = vec![0; usize::try_from(mib << 20).unwrap()];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    std::fs::write(&path, noise).unwrap();
    path
}

fn back_up(image: &Path, destinations: &Destinations<'_>) -> BackupReport {
    let spec = ImageSpec { path: image.to_owned(), format: Format::Raw, target: "vda".to_owned() };
    let request = ImagesRequest { usage: ImageAccess::Frozen, ..ImagesRequest::of(vec![spec]) };
    let options = BackupOptions { compression: Compression::None, ..BackupOptions::default() };
    // What counts as a pipe leaves no record, and needs no state directory.
    let (state, control) = (StateDirectories::new("/nowhere"), Control::default());
    BackupSession { options: &options, destinations, state: &state, control: &control }
        .images(&request)
        .unwrap()
}

fn to_file(image: &Path, folder: &Path) -> f64 {
    let start = Instant::now();
    let destinations = Destinations::custom(Location::Pipe, |label, _| {
        Ok(Box::new(FileMedium::create(&folder.join(&label.name))?))
    });
    let report = back_up(image, &destinations);
    let seconds = start.elapsed().as_secs_f64();
    std::fs::remove_file(report.archive).unwrap();
    seconds
}

fn to_tape(image: &Path, mib: u64) -> (f64, u64) {
    let drive = SimulatedDrive::with_tapes(1, (mib << 20) * 2);
    let care = VolumeAdmin::new(Box::new(drive.clone()), &NoTapeCatalog, Duration::ZERO, Cancel::default());
    let new = NewLabel {
        label: "BENCH".to_owned(),
        pool: "default".to_owned(),
        block_size: TapeBlock::default(),
        retain_until: None,
    };
    care.label(&new, Overwrite::Refuse).unwrap();
    let block = TapeBlock::default().get();
    drive.reserve(usize::try_from(mib << 20).unwrap() / block + 64, block);
    let setup = TapeWriteOptions {
        drive: Box::new(drive),
        changer: Box::new(NoChanger),
        ledger: Arc::new(NoTapeCatalog),
        pool: None,
        ring: 64 << 20,
        commit_every: 64 << 30,
        patience: Duration::ZERO,
        cancel: Cancel::default(),
    };
    let start = Instant::now();
    let destinations =
        Destinations::custom(Location::Pipe, |label, _| Ok(Box::new(TapeMedium::begin(setup, &label.name)?)));
    let report = back_up(image, &destinations);
    (start.elapsed().as_secs_f64(), report.tapes[0].underruns)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.iter().any(|word| word == "--bench") {
        eprintln!("this is a benchmark: run it with 'cargo bench --bench tape'");
        return;
    }
    let (rounds, mib) = (number(&arguments, "--rounds", 5), number(&arguments, "--mib", 1024));
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let image = image(folder.path(), mib);
    let (mut files, mut tapes, mut waits) = (Vec::new(), Vec::new(), 0);
    for _ in 0..rounds {
        files.push(to_file(&image, folder.path()));
        let (seconds, underruns) = to_tape(&image, mib);
        tapes.push(seconds);
        waits += underruns;
    }
    let (file, tape) = (median(files), median(tapes));
    let ratio = file / tape;
    println!(
        "{mib} MiB to a file in memory: {file:.2} s; to a tape in memory: {tape:.2} s, {waits} underruns in {rounds} rounds"
    );
    println!("the tape's rate is {ratio:.2} of the file's; {LEAST} at least is wanted");
    assert!(ratio >= LEAST, "too slow");
}
