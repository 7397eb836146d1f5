//! Random images: options, chains and writes drawn from a seed, each compared with what QEMU says.
//!
//! A failure names its seed. `VIRTFOLD_IMAGE_SEEDS=FROM..TO` runs others than the usual ones.

use super::Lab;
use crate::Format;

/// A small generator, so that a seed means the same images for ever (splitmix64's constants).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[usize::try_from(self.roll(of.len() as u64)).unwrap()]
    }
}

/// The options of one image.
fn options(dice: &mut Dice, backing: Option<&str>) -> String {
    let mut options = vec![];
    let extended = dice.roll(4) == 0;
    let old = !extended && dice.roll(5) == 0;
    let least = if extended { 14 } else { 9 };
    options.push(format!("cluster_size={}", 1_u64 << (least + dice.roll(22 - least))));
    if extended {
        options.push("extended_l2=on".into());
    }
    if old {
        options.push("compat=0.10".into());
    } else {
        options.push(format!("compression_type={}", dice.pick(&["zlib", "zstd"])));
        options.push(format!("refcount_bits={}", dice.pick(&["4", "8", "16", "32", "64"])));
        options.push(format!("lazy_refcounts={}", dice.pick(&["off", "on"])));
    }
    if backing.is_none() {
        options.push(format!("preallocation={}", dice.pick(&["off", "off", "metadata", "falloc"])));
    }
    options.join(",")
}

/// Some writes, discards and zero writes over `size` bytes, in sectors.
fn commands(dice: &mut Dice, size: u64) -> Vec<String> {
    let sectors = size / 512;
    (0..=dice.roll(12))
        .map(|_| {
            let at = dice.roll(sectors);
            let most = dice.pick(&["3", "40", "600"]).parse::<u64>().unwrap();
            let len = (1 + dice.roll(most)).min(sectors - at) * 512;
            let word =
                dice.pick(&["write -P 1", "write -P 77", "write -P 0", "write -z", "write -z -u", "discard"]);
            format!("{word} {} {len}", at * 512)
        })
        .collect()
}

fn one(seed: u64) {
    let mut dice = Dice(seed);
    let lab = Lab::new();
    let mut below: Option<(String, &str)> = None;
    for depth in 0..=dice.roll(3) {
        let size = (1 + dice.roll(12_000)) * 512;
        let name = format!("{depth}.img");
        if depth == 0 && dice.roll(4) == 0 {
            lab.img(&format!("create -q -f raw {name} {size}"));
            below = Some((name.clone(), "raw"));
        } else {
            let backing =
                below.as_ref().map(|(name, format)| format!("-b {name} -F {format}")).unwrap_or_default();
            let options = options(&mut dice, below.as_ref().map(|(name, _)| name.as_str()));
            lab.img(&format!("create -q -f qcow2 {backing} -o {options} {name} {size}"));
            below = Some((name.clone(), "qcow2"));
        }
        let format = below.as_ref().unwrap().1;
        for round in 0..=dice.roll(2) {
            let commands = commands(&mut dice, size);
            lab.io(format, &name, &commands.iter().map(String::as_str).collect::<Vec<_>>());
            if format == "qcow2" && dice.roll(3) == 0 && lab.img(&format!("snapshot -l {name}")).len() < 2000
            {
                lab.img(&format!("snapshot -c s{round} {name}"));
            }
        }
    }
    let (name, format) = below.unwrap();
    lab.agree(&name, format.parse::<Format>().unwrap());
    // The same disk as one compressed image.
    let kind = dice.pick(&["zlib", "zstd"]);
    let cluster = 1_u64 << (9 + dice.roll(13));
    lab.img(&format!(
        "convert -c -f {format} -O qcow2 -o compression_type={kind},cluster_size={cluster} {name} packed.qcow2"
    ));
    lab.agree("packed.qcow2", Format::Qcow2);
}

#[test]
fn random_images_agree_with_qemu() {
    let range = std::env::var("VIRTFOLD_IMAGE_SEEDS").unwrap_or_else(|_| "0..40".to_owned());
    let (from, to) = range.split_once("..").expect("VIRTFOLD_IMAGE_SEEDS is FROM..TO");
    for seed in from.parse().unwrap()..to.parse().unwrap() {
        if let Err(cause) = std::panic::catch_unwind(|| one(seed)) {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(cause);
        }
    }
}
