//! Which backups `prune` takes for backups of one thing.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::archive::backup_args;
use crate::common::image::{Format, Image};
use crate::common::run::{Outcome, exit, run, text, tool, virtfold, wait_until};
use crate::common::scratch::{Scratch, names};

/// A place for backups, and a catalog that knows them.
pub(crate) struct World {
    pub(crate) scratch: Scratch,
    pub(crate) place: PathBuf,
}

impl World {
    pub(crate) fn new(label: &str) -> Self {
        let scratch = Scratch::new(label);
        let place = scratch.folder("backup");
        let world = Self { scratch, place };
        // Images are noted in a catalog that is there.
        world.virtfold(&["list", "--remember", text(&world.place)]).ok();
        world
    }

    fn image(&self, name: &str) -> Image {
        self.image_of(name, 7)
    }

    /// An image that holds `byte`.
    pub(crate) fn image_of(&self, name: &str, byte: u8) -> Image {
        let path = self.scratch.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, vec![byte; 64 << 10]).unwrap();
        Image::new(path, Format::Raw)
    }

    pub(crate) fn virtfold(&self, args: &[&str]) -> Outcome {
        run(virtfold(args).env("VIRTFOLD_STATE_DIR", self.scratch.join("state")))
    }

    pub(crate) fn backup(&self, image: &Image, more: &[&str]) -> String {
        self.virtfold(&backup_args(image, text(&self.place), more)).ok().last_line().to_owned()
    }

    fn prune(&self, more: &[&str]) -> Outcome {
        self.virtfold(&[&["prune", "--place", text(&self.place), "--keep-last", "1"], more].concat())
    }

    /// As another host: one with another machine id.
    fn elsewhere(&self, args: &[&str]) -> Outcome {
        let etc = self.scratch.join("etc");
        if !etc.exists() {
            run(&mut tool("cp", ["-a", "/etc", text(&etc)])).ok();
            let id = etc.join("machine-id");
            fs::remove_file(&id).unwrap_or_default();
            fs::write(id, "0123456789abcdef0123456789abcdef\n").unwrap();
        }
        let program = env!("CARGO_BIN_EXE_virtfold");
        let script = "mount --bind \"$0\" /etc && exec \"$@\"";
        let words = ["--mount", "sh", "-c", script, text(&etc), program];
        let mut command = tool("unshare", words.iter().chain(args));
        run(command.env("VIRTFOLD_STATE_DIR", self.scratch.join("elsewhere")))
    }
}

fn there(archive: &str) -> bool {
    Path::new(archive).exists()
}

fn subjects(outcome: &Outcome) -> Vec<Value> {
    let report = outcome.json_lines().pop().unwrap();
    report["places"][0]["subjects"].as_array().unwrap().clone()
}

/// Two guests' images of one file name are two things; each keeps its own newest.
#[test]
fn images_of_one_name_in_two_directories_are_two_things() {
    let world = World::new("prune-two-images");
    let (a, b) = (world.image("vmA/disk.raw"), world.image("vmB/disk.raw"));
    let of_a = [world.backup(&a, &[]), world.backup(&a, &[])];
    let of_b = [world.backup(&b, &[]), world.backup(&b, &[])];
    let done = world.prune(&["--json"]).ok();
    let groups = subjects(&done);
    assert_eq!(groups.len(), 2, "{done}");
    let paths: Vec<&str> = groups.iter().map(|group| group["paths"][0].as_str().unwrap()).collect();
    assert_eq!(paths, [text(&a.path), text(&b.path)]);
    for archives in [of_a, of_b] {
        assert_eq!(archives.iter().filter(|archive| there(archive)).count(), 1, "{done}");
    }
}

/// What a person calls an image is what it is, wherever it lies; where two images got one name nothing goes.
#[test]
fn a_label_is_one_thing_and_its_images_must_agree() {
    let world = World::new("prune-label");
    let (a, b) = (world.image("vmA/disk.raw"), world.image("vmB/disk.raw"));
    let all = [world.backup(&a, &["--label", "web"]), world.backup(&b, &["--label", "web"])];
    let refused = world.prune(&[]).exits(exit::REFUSED);
    for path in [&a.path, &b.path] {
        assert!(refused.stderr.contains(text(path)), "{refused}");
    }
    assert!(refused.stderr.contains("--label") && all.iter().all(|archive| there(archive)), "{refused}");
    world.prune(&["--dry-run"]).exits(exit::REFUSED);
    let done = world.prune(&["--moved"]).ok();
    assert_eq!(all.iter().filter(|archive| there(archive)).count(), 1, "{done}");
}

/// An image that is called by another name of its directory, or from another directory, is the same.
#[test]
fn an_image_is_the_same_however_it_is_called() {
    let world = World::new("prune-spelling");
    let image = world.image("vm/disk.raw");
    std::os::unix::fs::symlink(world.scratch.join("vm"), world.scratch.join("link")).unwrap();
    world.backup(&image, &[]);
    world.backup(&Image::new(world.scratch.join("link/disk.raw"), Format::Raw), &[]);
    let mut inside = virtfold(backup_args(&Image::new("disk.raw", Format::Raw), text(&world.place), &[]));
    inside.env("VIRTFOLD_STATE_DIR", world.scratch.join("state"));
    run(inside.current_dir(world.scratch.join("vm"))).ok();
    world.prune(&[]).ok();
    assert_eq!(names(&world.place).len(), 1);
}

/// A damaged newest archive pushes nothing out once `verify` has said so, and neither does one that was not
/// verified since.
#[test]
fn a_damaged_newest_archive_pushes_no_good_one_out() {
    let world = World::new("prune-damaged");
    let image = world.image("vm/disk.raw");
    // Its middle is data of the disk alone.
    fs::write(&image.path, vec![7; 4 << 20]).unwrap();
    let good = world.backup(&image, &["--label", "web", "--compress", "none"]);
    world.virtfold(&["verify", &good]).ok();
    // Archives of one second have no order.
    let second = || jiff::Timestamp::now().as_second();
    let began = second();
    wait_until("the next second", std::time::Duration::from_secs(10), || second() != began);
    let newest = world.backup(&image, &["--label", "web", "--compress", "none"]);
    let told = world.prune(&[]).ok();
    assert!(there(&good) && there(&newest), "{told}");
    let mut bytes = fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&newest, bytes).unwrap();
    world.virtfold(&["verify", &newest]).exits(exit::DAMAGED);
    let dry = world.prune(&["--dry-run"]).ok();
    for why in ["newest verified", "failed its verification of"] {
        assert!(dry.text().contains(why), "{dry}");
    }
    world.prune(&[]).ok();
    assert!(there(&good) && there(&newest));
}

/// Two hosts of one name: each prunes its own.
#[test]
fn two_hosts_of_one_name_are_two() {
    let world = World::new("prune-two-hosts");
    let image = world.image("vm/disk.raw");
    let ours = world.backup(&image, &[]);
    let theirs = world.elsewhere(&backup_args(&image, text(&world.place), &[])).ok().last_line().to_owned();
    let again = world.backup(&image, &[]);
    let done = world.prune(&[]).ok();
    // Both may be of one second: which of them is the newest is not said.
    let left = || [&ours, &again].iter().filter(|archive| there(archive)).count();
    assert!(left() == 1 && there(&theirs), "{done}");
    assert!(done.text().contains("left alone: 1 archive of other hosts"), "{done}");
    // Over there it is the other way round, once its catalog knows what it has.
    world.elsewhere(&["list", "--remember", text(&world.place)]).ok();
    let done = world.elsewhere(&["prune", "--place", text(&world.place), "--keep-last", "1"]).ok();
    assert!(there(&theirs) && left() == 1, "{done}");
}

/// A pinned archive stays until it is let go, and everybody says why.
#[test]
fn a_pinned_archive_stays() {
    let world = World::new("prune-pin");
    let image = world.image("vm/disk.raw");
    let (old, new) = (world.backup(&image, &[]), world.backup(&image, &[]));
    // Both may be of one second: what goes is whichever does not stay.
    let dry = world.prune(&["--dry-run", "--json"]).ok();
    let told = subjects(&dry);
    let goes =
        told[0]["archives"].as_array().unwrap().iter().find(|entry| entry["action"] == "remove").unwrap();
    let goes = goes["archive"].as_str().unwrap().to_owned();
    assert!([&old, &new].contains(&&goes));
    world.virtfold(&["unpin", &goes]).exits(exit::NOT_FOUND);
    world.virtfold(&["pin", &goes]).ok();
    let listed = world.virtfold(&["list", text(&world.place)]).ok();
    assert!(listed.text().contains(&format!("{goes}  (pinned)")), "{listed}");
    let dry = world.prune(&["--dry-run"]).ok();
    assert!(dry.text().lines().any(|line| line.contains("keep") && line.ends_with("pinned")), "{dry}");
    world.prune(&[]).ok();
    assert!(there(&goes));
    world.virtfold(&["unpin", &goes]).ok();
    world.prune(&[]).ok();
    assert!(!there(&goes) && [old, new].iter().filter(|archive| there(archive)).count() == 1);
}

/// What is due is read, the results are noted, and nothing is due then; the metrics say what was found.
#[test]
fn what_is_due_is_verified_and_noted() {
    let world = World::new("verify-due");
    let image = world.image("vm/disk.raw");
    let [_, bad] = [(); 2].map(|()| world.backup(&image, &["--label", "web", "--compress", "none"]));
    let mut bytes = fs::read(&bad).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&bad, bytes).unwrap();
    let metrics = world.scratch.folder("metrics");
    let verify = ["verify", text(&world.place), "--due", "30d", "--metrics-dir", text(&metrics)];
    let found = world.virtfold(&verify).exits(exit::DAMAGED);
    assert!(found.text().contains("2 of 2 archives were due, 2 verified"), "{found}");
    let told = fs::read_to_string(metrics.join(&names(&metrics)[0])).unwrap();
    assert!(
        told.contains(&format!("unsound_archives{{destination=\"{}\"}} 1", text(&world.place))),
        "{told}"
    );
    let again = world.virtfold(&verify).ok();
    assert!(again.text().contains("0 of 2 archives were due"), "{again}");
    let elsewhere = world.scratch.folder("elsewhere-place");
    let unknown = world.virtfold(&["verify", text(&elsewhere), "--due", "30d"]).exits(exit::NOT_FOUND);
    assert!(unknown.stderr.contains("list --remember"), "{unknown}");
    world.virtfold(&["verify", &bad, "--share", "1/30"]).exits(exit::USAGE);
}
