//! Increments beside full backups of the same disk and a plain read of its bytes.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::contest::{Contender, clear, run};
use crate::data::{CLUSTER, Place, text, tool};
use crate::groups::{virtfold, words};
use crate::report::{Limit, Ratio, Report};

/// A part of the disk's data that changes.
const CHANGED: u64 = 100;

/// A state directory and a destination with a full backup of a disk.
struct Chain {
    state: PathBuf,
    place: PathBuf,
}

impl Chain {
    fn of(disk: &Path, under: &Path) -> Self {
        clear(under);
        let chain = Self { state: under.join("state"), place: under.join("archives") };
        for folder in [&chain.state, &chain.place] {
            std::fs::create_dir(folder).unwrap();
        }
        let command = chain.backup(disk, "full");
        tool(&command.iter().map(String::as_str).collect::<Vec<_>>());
        chain
    }

    fn backup(&self, disk: &Path, kind: &str) -> Vec<String> {
        let line = format!(
            "backup --image {{}} --format qcow2 --label disk --to {{}} --state-dir {{}} --workers 2 --compress none --kind {kind}"
        );
        virtfold(&line, &[disk, &self.place, &self.state])
    }

    /// The largest archive that is no full one, bytes.
    fn increment(&self) -> u64 {
        let sizes =
            std::fs::read_dir(&self.place).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
        let mut sizes: Vec<u64> = sizes.collect();
        sizes.sort_unstable();
        sizes[sizes.len() - 2]
    }
}

/// Increments of one per cent, by comparison, and of a disk that did not change. Each continues the full one,
/// so that all rounds do the same.
pub(crate) fn run_all(place: &Place, rounds: usize, report: &mut Report) {
    let (payload, disk, out) = (place.payload(), place.disk_100g(), place.out());
    let changing = place.dir.join("changing.qcow2");
    tool(&["cp", "--sparse=always", &text(&disk), &text(&changing)]);
    let moving = Chain::of(&changing, &place.dir.join("chain-moving"));
    let resting = Chain::of(&disk, &place.dir.join("chain-resting"));
    let changed = change(&changing, place.data / CLUSTER / CHANGED);
    let backup = |name: &str, command: Vec<String>, disk: &Path| Contender::new(name, command).reads(disk);
    let full = "backup --image {} --format qcow2 --to {} --workers 2 --compress none";
    let contenders = [
        backup("full backup", virtfold(full, &[&changing, &out]), &changing),
        backup("increment of 1 %, by comparison", moving.backup(&changing, "differential"), &changing),
        backup("increment of nothing, files unchanged", resting.backup(&disk, "differential"), &disk),
        Contender::new("cat of the bytes", words(&["cat", &text(&payload)])).reads(&payload),
    ];
    let results = run(&contenders, rounds, &out);
    report.times("Increments of a 100 GiB disk", &results);
    report.ratio(
        &Ratio::new("comparison, against cat of the bytes", &results[1], &results[3]),
        Limit::AtMost(1.15),
    );
    report.ratio(
        &Ratio::new("comparison, against the full backup", &results[1], &results[0]),
        Limit::Below(1.0),
    );
    report.seconds("increment of nothing", &results[2], 1.0);
    report.size("increment's archive, against the changed clusters", moving.increment(), changed, 1.1);
    report.peak("increments", results[1..3].iter());
    for path in [&moving.place, &resting.place] {
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }
    std::fs::remove_file(changing).unwrap();
}

/// Writes to so many clusters of the file that hold data, evenly spread over them; returns their bytes. The
/// file's clusters are changed where they lie, behind its tables.
fn change(disk: &Path, clusters: u64) -> u64 {
    let map = tool(&["qemu-img", "map", "--output=json", "-f", "qcow2", &text(disk)]);
    let extents: Vec<serde_json::Value> = serde_json::from_str(&map).unwrap();
    let mut places = Vec::new();
    for extent in extents.iter().filter(|extent| extent["data"] == true) {
        let (at, len) = (extent["offset"].as_u64().unwrap(), extent["length"].as_u64().unwrap());
        places.extend((at..at + len).step_by(usize::try_from(CLUSTER).unwrap()));
    }
    let step = (places.len() / usize::try_from(clusters).unwrap()).max(1);
    let file = std::fs::OpenOptions::new().write(true).open(disk).unwrap();
    let chosen: Vec<u64> = places.into_iter().step_by(step).collect();
    for at in &chosen {
        file.write_all_at(b"changed", *at).unwrap();
    }
    file.sync_all().unwrap();
    chosen.len() as u64 * CLUSTER
}
