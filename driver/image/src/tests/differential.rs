//! One test a feature of the format.

use super::Lab;
use crate::Format::{Qcow2, Raw};
use crate::{Allocation, DiskImage, OpenOptions};
use virtfold_base::units::GuestOffset;

/// Writes, discards, zero writes and compressed writes over a 4 MiB disk.
const MIXED: &[&str] = &[
    "write -P 1 0 70k",
    "write -P 2 1M 3000k",
    "write -z 1100k 200k",
    "write -z -u 1500k 128k",
    "discard 2M 256k",
    "write -P 3 3071k 2k",
    "write -P 4 4095k 1k",
];

/// An image of 4 MiB with `options`, written into.
fn mixed(lab: &Lab, name: &str, options: &str) {
    lab.img(&format!("create -q -f qcow2 -o {options} {name} 4M"));
    lab.io("qcow2", name, MIXED);
}

#[test]
fn every_cluster_size() {
    let lab = Lab::new();
    for bits in 9..=21 {
        for compat in ["0.10", "1.1"] {
            let name = format!("{compat}-{bits}.qcow2");
            mixed(&lab, &name, &format!("compat={compat},cluster_size={}", 1 << bits));
            lab.agree(&name, Qcow2);
        }
    }
}

#[test]
fn empty_and_tiny_disks() {
    let lab = Lab::new();
    for size in ["0", "512", "1536", "65536", "66048"] {
        let name = format!("{size}.qcow2");
        lab.img(&format!("create -q -f qcow2 {name} {size}"));
        lab.agree(&name, Qcow2);
        if size != "0" {
            lab.io("qcow2", &name, &["write -P 9 0 512"]);
            lab.agree(&name, Qcow2);
        }
    }
}

#[test]
fn extended_l2() {
    let lab = Lab::new();
    for bits in 14..=21 {
        let name = format!("x{bits}.qcow2");
        mixed(&lab, &name, &format!("extended_l2=on,cluster_size={}", 1 << bits));
        lab.img(&format!("resize -q -f qcow2 {name} 8M"));
        lab.io("qcow2", &name, &["write -P 7 600k 2k", "write -z 700k 64k", "write -c -P 8 6M 2M"]);
        lab.agree(&name, Qcow2);
    }
}

#[test]
fn compressed_clusters() {
    let lab = Lab::new();
    for (kind, cluster) in [
        ("zlib", 512),
        ("zlib", 65536),
        ("zlib", 2 << 20),
        ("zstd", 4096),
        ("zstd", 65536),
        ("zstd", 2 << 20),
    ] {
        let name = format!("{kind}-{cluster}.qcow2");
        mixed(&lab, "source.qcow2", "cluster_size=65536");
        lab.img(&format!(
            "convert -c -f qcow2 -O qcow2 -o compression_type={kind},cluster_size={cluster} source.qcow2 {name}"
        ));
        lab.agree(&name, Qcow2);
        lab.io("qcow2", &name, &["write -P 11 1M 5k"]);
        lab.agree(&name, Qcow2);
        lab.img(&format!("create -q -f qcow2 -b {name} -F qcow2 -o cluster_size=4096 over.qcow2 6M"));
        lab.io("qcow2", "over.qcow2", &["write -P 12 8k 4k", "write -z 1M 12k"]);
        lab.agree("over.qcow2", Qcow2);
    }
}

#[test]
fn refcount_widths_and_lazy_refcounts() {
    let lab = Lab::new();
    for bits in [1, 2, 4, 8, 16, 32, 64] {
        for more in ["", ",preallocation=metadata"] {
            let name = format!("r{bits}{}.qcow2", more.len());
            mixed(&lab, &name, &format!("refcount_bits={bits}{more}"));
            lab.agree(&name, Qcow2);
        }
    }
    mixed(&lab, "lazy.qcow2", "lazy_refcounts=on");
    lab.agree("lazy.qcow2", Qcow2);
}

#[test]
fn preallocated_metadata_is_holes() {
    let lab = Lab::new();
    for kind in ["metadata", "falloc", "full"] {
        for more in ["", ",extended_l2=on", ",cluster_size=4096"] {
            let name = format!("{kind}{}.qcow2", more.len());
            lab.img(&format!("create -q -f qcow2 -o preallocation={kind}{more} {name} 16M"));
            lab.agree(&name, Qcow2);
            lab.io("qcow2", &name, &["write -P 1 1M 100k", "write -P 2 9M 1M"]);
            lab.agree(&name, Qcow2);
        }
    }
    let image = DiskImage::open(&lab.path("metadata0.qcow2"), Qcow2, &OpenOptions::default()).unwrap();
    let table = image.allocation().unwrap();
    assert!(table.allocated() < 2 << 20, "holes are not to be copied: {}", table.allocated());
    assert!(table.iter().any(|extent| matches!(extent.unwrap().place, Allocation::Hole { .. })));
}

#[test]
fn external_data_files() {
    let lab = Lab::new();
    for raw in ["off", "on"] {
        for more in ["", ",extended_l2=on", ",preallocation=metadata"] {
            let name = format!("d{raw}{}.qcow2", more.len());
            let options = format!("data_file={name}.data,data_file_raw={raw}{more}");
            mixed(&lab, &name, &options);
            lab.agree(&name, Qcow2);
        }
    }
}

#[test]
fn internal_snapshots_and_bitmaps() {
    let lab = Lab::new();
    mixed(&lab, "s.qcow2", "cluster_size=4096");
    lab.img("snapshot -c one s.qcow2");
    lab.io("qcow2", "s.qcow2", &["write -P 33 64k 1M", "discard 3M 64k"]);
    lab.img("snapshot -c two s.qcow2");
    lab.img("bitmap --add s.qcow2 b0");
    lab.io("qcow2", "s.qcow2", &["write -P 34 64k 8k", "write -z 1M 64k"]);
    lab.agree("s.qcow2", Qcow2);
    lab.img("bitmap --remove s.qcow2 b0");
    lab.img("snapshot -a one s.qcow2");
    lab.agree("s.qcow2", Qcow2);
}

#[test]
fn resized_images() {
    let lab = Lab::new();
    mixed(&lab, "r.qcow2", "cluster_size=65536");
    for size in ["5000k", "300M", "1001k"] {
        lab.img(&format!("resize -q --shrink -f qcow2 r.qcow2 {size}"));
        lab.agree("r.qcow2", Qcow2);
    }
}

#[test]
fn chains_of_different_sizes_and_formats() {
    let lab = Lab::new();
    std::fs::write(lab.path("base.raw"), vec![7; 1_000_100]).unwrap();
    lab.agree("base.raw", Raw);
    lab.img("create -q -f qcow2 -b base.raw -F raw -o cluster_size=2M one.qcow2 5M");
    lab.agree("one.qcow2", Qcow2);
    lab.io("qcow2", "one.qcow2", &["write -P 1 3M 300k"]);
    lab.agree("one.qcow2", Qcow2);
    lab.img("create -q -f qcow2 -b one.qcow2 -F qcow2 -o cluster_size=512 two.qcow2 4M");
    lab.io("qcow2", "two.qcow2", &["write -P 2 1000k 5k", "write -z 3M 1k", "write -P 3 512 512"]);
    lab.agree("two.qcow2", Qcow2);
    lab.img("create -q -f qcow2 -b two.qcow2 -F qcow2 -o extended_l2=on,cluster_size=16k three.qcow2 9M");
    lab.agree("three.qcow2", Qcow2);
    lab.io("qcow2", "three.qcow2", &["write -P 4 4M 1k", "write -P 5 1M 512", "write -P 6 8M 10k"]);
    lab.agree("three.qcow2", Qcow2);
}

#[test]
fn deep_chains_are_walked_without_recursion() {
    let lab = Lab::new();
    lab.img("create -q -f qcow2 0.qcow2 4M");
    for i in 1..40 {
        lab.img(&format!("create -q -f qcow2 -b {}.qcow2 -F qcow2 {i}.qcow2 4M", i - 1));
        lab.io("qcow2", &format!("{i}.qcow2"), &[&format!("write -P {i} {}k 65k", i * 97)]);
    }
    lab.agree("39.qcow2", Qcow2);
    let shallow = OpenOptions { max_depth: 10, ..OpenOptions::default() };
    assert!(DiskImage::open(&lab.path("39.qcow2"), Qcow2, &shallow).is_err());
}

#[test]
fn sparse_raw_files() {
    let lab = Lab::new();
    lab.img("create -q -f raw s.raw 64M");
    lab.agree("s.raw", Raw);
    lab.io("raw", "s.raw", &["write -P 1 5M 100k", "write -P 2 63M 1M", "write -P 3 0 512"]);
    lab.agree("s.raw", Raw);
    std::fs::write(lab.path("odd.raw"), vec![3; 12_345]).unwrap();
    lab.agree("odd.raw", Raw);
}

#[test]
fn many_threads_read_and_read_ahead_at_once() {
    let lab = Lab::new();
    mixed(&lab, "t.qcow2", "cluster_size=4096");
    lab.img("convert -c -O qcow2 -o cluster_size=2M t.qcow2 base.qcow2");
    lab.img("create -q -f qcow2 -b base.qcow2 -F qcow2 -o cluster_size=512 top.qcow2");
    lab.io("qcow2", "top.qcow2", &["write -P 8 100k 3k", "write -P 9 2000k 100k"]);
    lab.img("convert -O raw top.qcow2 judge.raw");
    let want = std::fs::read(lab.path("judge.raw")).unwrap();
    let image = DiskImage::open(&lab.path("top.qcow2"), Qcow2, &OpenOptions::default()).unwrap();
    let table = image.allocation().unwrap();
    let (image, table, want) = (&image, &table, &want);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for at in (thread * 65536..want.len()).step_by(4 * 65536) {
                    let place = GuestOffset::new(at as u64);
                    image.prefetch(table, &[(place, 65536)]).unwrap();
                    let mut got = vec![0xa5; 65536];
                    image.read(table, place, &mut got).unwrap();
                    assert!(got == want[at..at + 65536], "the bytes at {at} differ");
                }
            });
        }
    });
    let end = GuestOffset::new(image.capacity());
    assert!(image.read(table, end, &mut [0]).is_err());
    assert!(image.read(table, end, &mut []).is_ok());
    assert!(image.prefetch(table, &[(GuestOffset::ZERO, image.capacity() + 1)]).is_err());
}
