//! Random disks: a backing chain built by `qemu-img` and `qemu-io` with whatever QEMU can do to one.
//!
//! Everything follows from one [`Rng`]; the [`Recipe`] keeps every command line, so that a failing case can
//! be made again by hand. A layer is written in rounds of random requests, with events between them
//! (internal snapshots, resizes, bitmaps, a killed writer).

use std::fmt;
use std::path::Path;

use super::image::{Format, Image};
use super::qcow2::Options;
use super::rng::Rng;
use super::run::{line_of, run, text, tool};
use super::{KIB, MIB, TIB};

/// Whether the commands of a recipe are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cooking {
    /// Run each: there is a disk in the end.
    Real,
    /// Only write them down: what would be made.
    OnPaper,
}

/// The commands that made a disk.
#[derive(Debug)]
pub(crate) struct Recipe {
    cooking: Cooking,
    lines: Vec<String>,
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(f, "    {line}"))
    }
}

impl Recipe {
    fn run(&mut self, program: &str, args: &[String]) {
        let mut command = tool(program, args);
        self.lines.push(line_of(&command));
        if self.cooking == Cooking::OnPaper {
            return;
        }
        let outcome = run(&mut command);
        // `sigraise 9` ends qemu-io as the killed writer it plays.
        let meant_to_die = args.iter().any(|arg| arg == "sigraise 9") && outcome.code().is_none();
        // QEMU writes no compressed cluster over an allocated one; the other requests are carried out.
        let compressed = args.iter().filter(|arg| arg.starts_with("write -c")).count();
        let refused = outcome.text().lines().filter(|line| line.contains("failed")).count();
        let good = outcome.code() == Some(0) || meant_to_die || refused > 0;
        assert!(good && refused <= compressed, "the recipe fails\n{outcome}\n{self}");
    }
}

/// A random disk: the top of its chain and how it came to be.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) top: Image,
    /// The options of the top image where it is a qcow2.
    pub(crate) options: Option<Options>,
    /// How many files the chain has.
    pub(crate) depth: usize,
    /// Capacity of the top, bytes.
    pub(crate) size: u64,
    pub(crate) recipe: Recipe,
}

impl Disk {
    /// Whether a copy of the whole capacity would take long.
    pub(crate) fn is_huge(&self) -> bool {
        self.size > 256 * MIB
    }
}

/// Makes a random disk in `folder`.
pub(crate) fn random_disk(rng: &mut Rng, folder: &Path) -> Disk {
    let noise = rng.clone().bytes(1 << 20);
    std::fs::write(folder.join("noise"), noise).unwrap();
    disk(rng, folder, Cooking::Real)
}

/// The disk that [`random_disk`] would make.
pub(crate) fn disk_on_paper(rng: &mut Rng) -> Disk {
    disk(rng, Path::new("."), Cooking::OnPaper)
}

fn disk(rng: &mut Rng, folder: &Path, cooking: Cooking) -> Disk {
    let backing_files = rng.pick(&[0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4]);
    let noise = folder.join("noise");
    let mut size = random_size(rng);
    let mut recipe = Recipe { cooking, lines: Vec::new() };
    let mut below: Option<Image> = None;
    let mut options = None;
    for level in 0..=backing_files {
        if level > 0 {
            size = overlay_size(rng, size);
        }
        let raw = level == 0 && rng.chance(if backing_files == 0 { 18 } else { 35 });
        let format = if raw { Format::Raw } else { Format::Qcow2 };
        let image = Image::new(folder.join(format!("layer{level}.{format}")), format);
        options = (!raw).then(|| Options::random(rng, below.as_ref(), size));
        let mut layer =
            Layer { image: image.clone(), size, options: options.clone(), noise: text(&noise).to_owned() };
        layer.create(&mut recipe, below.as_ref());
        layer.fill(rng, &mut recipe);
        size = layer.size;
        below = Some(image);
    }
    Disk { top: below.unwrap(), options, depth: backing_files + 1, size, recipe }
}

/// 1 MiB to 64 MiB, small ones more often; now and then TiBs. Not always a multiple of a cluster.
fn random_size(rng: &mut Rng) -> u64 {
    let whole = if rng.chance(5) {
        rng.within(1, 6) * TIB
    } else {
        (1 << rng.within(0, 5)) * MIB + rng.below(32) * MIB
    };
    match rng.below(100) {
        0..50 => whole,
        50..75 => whole - rng.within(1, 15) * 64 * KIB,
        _ => whole - rng.within(1, 2000) * 512,
    }
}

fn overlay_size(rng: &mut Rng, below: u64) -> u64 {
    let other = match rng.below(100) {
        0..60 => below,
        60..80 => below + rng.within(1, 4000) * 512,
        _ => below - rng.below(below / 1024) * 512,
    };
    other.max(512 * KIB)
}

struct Layer {
    image: Image,
    size: u64,
    options: Option<Options>,
    noise: String,
}

impl Layer {
    fn create(&self, recipe: &mut Recipe, below: Option<&Image>) {
        let mut args = words(&["create", "-q", "-f", self.image.format.name()]);
        if let Some(below) = below {
            // By name alone, so that the reader must look beside the overlay.
            let name = below.path.file_name().unwrap().to_str().unwrap();
            args.extend(words(&["-b", name, "-F", below.format.name()]));
        }
        if let Some(options) = &self.options {
            args.extend(words(&["-o", &options.to_text(self.image.text())]));
        }
        args.extend(words(&[self.image.text(), &self.size.to_string()]));
        recipe.run("qemu-img", &args);
    }

    fn fill(&mut self, rng: &mut Rng, recipe: &mut Recipe) {
        let rounds = rng.within(1, 3);
        for round in 0..rounds {
            let mut requests = if round == 0 { self.compressed_requests(rng) } else { Vec::new() };
            requests.extend((0..rng.within(0, 24)).map(|_| self.request(rng)));
            let killed = round + 1 == rounds && rng.chance(8);
            if killed {
                requests.extend(words(&["flush", "sigraise 9"]));
            }
            self.io(recipe, requests, if killed { "writeback" } else { "unsafe" });
            if round + 1 < rounds {
                self.event(rng, recipe, round);
            }
        }
    }

    fn io(&self, recipe: &mut Recipe, requests: Vec<String>, cache: &str) {
        if requests.is_empty() {
            return;
        }
        let mut args = words(&["-f", self.image.format.name(), "-d", "unmap", "-t", cache]);
        args.extend(requests.into_iter().flat_map(|request| ["-c".to_owned(), request]));
        args.push(self.image.text().to_owned());
        recipe.run("qemu-io", &args);
    }

    fn cluster(&self) -> u64 {
        self.options.as_ref().map_or(64 * KIB, |options| options.cluster_size)
    }

    /// One qemu-io command that writes somewhere.
    fn request(&self, rng: &mut Rng) -> String {
        let grain = rng.pick(&[self.cluster(), self.cluster(), 4 * KIB, 512, 1]);
        let (at, len) = self.range(rng, grain);
        let pattern = rng.within(1, 255);
        match rng.below(100) {
            0..40 => format!("write -P {pattern} {at} {len}"),
            40..60 => format!("write -s {} {at} {len}", self.noise),
            60..70 => format!("write -z {at} {len}"),
            70..78 => format!("write -z -u {at} {len}"),
            _ => format!("discard {at} {len}"),
        }
    }

    /// Compressed writes come first: QEMU 10.0 makes images that it then calls corrupt when large ones follow
    /// other requests, and it never compresses over an allocated cluster.
    fn compressed_requests(&self, rng: &mut Rng) -> Vec<String> {
        let cluster = self.cluster();
        let may = self.options.as_ref().is_some_and(|options| !options.data_file) && self.size >= cluster;
        let count = if may && rng.chance(45) { rng.within(1, 12) } else { 0 };
        let request = |_| {
            let at = rng.below(self.size / cluster);
            let clusters = rng.within(1, 9).min(self.size / cluster - at);
            let source = if rng.chance(30) {
                format!("-s {}", self.noise)
            } else {
                format!("-P {}", rng.within(1, 255))
            };
            format!("write -c {source} {} {}", at * cluster, clusters * cluster)
        };
        (0..count).map(request).collect()
    }

    /// A range that starts at a multiple of `grain`, near the ends more often than chance has it.
    fn range(&self, rng: &mut Rng, grain: u64) -> (u64, u64) {
        let longest = (self.size / 4).clamp(grain.min(self.size), (2 * MIB).max(grain));
        let units = 1 + rng.below((longest / grain).max(1)).min(rng.below(longest / grain + 1));
        let len = (units * grain).min(self.size);
        let last = self.size - len;
        let at = match rng.below(100) {
            0..6 => 0,
            6..14 => last,
            _ => rng.below(last + 1),
        };
        let at = at / grain * grain;
        (at, len)
    }

    fn event(&mut self, rng: &mut Rng, recipe: &mut Recipe, round: u64) {
        let image = self.image.text().to_owned();
        let Some(options) = self.options.clone() else {
            return self.resize(rng, recipe);
        };
        match rng.below(100) {
            0..40 if options.takes_snapshots() && round == 0 => {
                recipe.run("qemu-img", &words(&["snapshot", "-c", &format!("s{round}"), &image]));
            }
            40..60 if options.is_v3() => {
                recipe.run(
                    "qemu-img",
                    &words(&["bitmap", "-f", "qcow2", "--add", &image, &format!("b{round}")]),
                );
            }
            60.. => self.resize(rng, recipe),
            _ => {}
        }
    }

    fn resize(&mut self, rng: &mut Rng, recipe: &mut Recipe) {
        let old_snapshots = self.options.as_ref().is_some_and(|options| !options.is_v3());
        if old_snapshots || self.size > TIB {
            return;
        }
        let shrink = rng.chance(50) && self.size > 2 * MIB;
        let step = rng.within(1, 2000) * 512;
        let size = if shrink { self.size - step } else { self.size + step };
        let mut args = words(&["resize", "-q", "-f", self.image.format.name()]);
        if shrink {
            args.push("--shrink".to_owned());
        }
        args.extend(words(&[self.image.text(), &size.to_string()]));
        recipe.run("qemu-img", &args);
        self.size = size;
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
