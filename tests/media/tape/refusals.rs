//! Tapes that are not written to: those of others, kept ones, protected ones, wrong ones, none.

use super::bench::{Bench, TAPE, name_of};
use super::drive::Object;
use crate::common::run::exit;

fn block(at: usize, what: &[u8]) -> Vec<u8> {
    let mut block = vec![b' '; 1024];
    block[at..at + what.len()].copy_from_slice(what);
    block
}

#[test]
fn tapes_of_others_are_known_and_kept() {
    let mut bench = Bench::new(1, 64);
    let image = bench.image("disk.raw", 1);
    let pbs = [0xdc, 0xbd, 0xaf, 0xca, 0xeb, 0xa0, 0xa5, 0x28];
    let mut ltfs = b"VOL1ABC001L             LTFS         ".to_vec();
    ltfs.resize(80, b' ');
    let kinds: [(Vec<u8>, &str); 8] = [
        (block(0, b"VOL1ABC001"), "ANSI"),
        (ltfs, "LTFS"),
        (block(12, b"BB02"), "Bareos"),
        (block(0, b"AMANDA: TAPESTART DATE 20261122 TAPE A01"), "Amanda"),
        (block(0, &pbs), "Proxmox"),
        (block(257, b"ustar\0"), "tar"),
        (vec![0x5a; 2 << 20], "unknown"),
        (vec![1], "unknown"),
    ];
    for (first, who) in kinds {
        let objects = vec![Object::Block(first), Object::Mark, Object::Block(vec![3; 100]), Object::Mark];
        bench.unit(|unit| unit.cartridge(0).objects.clone_from(&objects));
        bench.unit(|unit| unit.insert(0));
        let all = [&["tape", "label", TAPE, "T0"][..], &["tape", "erase", TAPE], &["tape", "list", TAPE]];
        for args in all.into_iter().take(if who == "ANSI" { 3 } else { 1 }) {
            let refused = bench.virtfold(args).exits(exit::EXISTS);
            assert!(refused.stderr.contains(who), "{who}\n{refused}");
        }
        bench.backup(&image, &[]).exits(exit::EXISTS);
        assert_eq!(bench.objects(0), objects, "{who}: it was written to");
    }
    let status = bench.virtfold(&["tape", "status", TAPE]).ok();
    assert!(status.text().contains("an unknown program"), "{status}");
    bench.virtfold(&["tape", "erase", TAPE, "--force"]).ok();
    assert_eq!(bench.objects(0), []);
}

#[test]
fn tapes_that_will_not_do_are_said() {
    let mut bench = Bench::new(3, 3);
    let image = bench.image("disk.raw", 1);
    // No label.
    bench.backup(&image, &[]).exits(exit::NOT_FOUND);
    (0..2).rev().for_each(|slot| bench.label(slot));
    bench.unit(|unit| unit.insert(2));
    bench.virtfold(&["tape", "label", TAPE, "T2", "--pool", "other"]).ok();
    bench.unit(|unit| unit.insert(0));
    // Of another pool, at the beginning and in the middle.
    bench.backup(&image, &["--pool", "other"]).exits(exit::USAGE);
    let archive = name_of(&bench.backup(&image, &[]).ok());
    for args in [&["tape", "label", TAPE, "X"][..], &["tape", "erase", TAPE]] {
        let kept = bench.virtfold(args).exits(exit::EXISTS);
        assert!(kept.stderr.contains("holds archives"), "{kept}");
    }
    let large = bench.image("large.raw", 6);
    let change = bench.change();
    let wrong = bench.backup(&large, &[&change]).exits(exit::USAGE);
    assert!(wrong.stderr.contains("of the pool 'other'"), "{wrong}");
    // No more tapes.
    bench.unit(|unit| unit.insert(1));
    let full = bench.backup(&large, &[]).exits(exit::NO_SPACE);
    assert!(full.stderr.contains("volume 'T1'"), "{full}");
    // The command fails.
    bench.unit(|unit| unit.insert(1));
    let failed = bench.backup(&large, &["--change-command", "false"]).exits(exit::FAILURE);
    assert!(failed.stderr.contains("exit code 1"), "{failed}");
    bench.unit(|unit| unit.insert(1));
    let slow = bench.backup(&large, &["--change-command", "sleep 1000", "--change-timeout", "1s"]);
    assert!(slow.exits_one_of(&[exit::FAILURE]).stderr.contains("timed out after"));
    // Write-protected: read, and not written.
    bench.unit(|unit| {
        unit.cartridge(0).protected = true;
        unit.insert(0);
    });
    let protected = bench.backup(&image, &[]).exits(exit::FAILURE);
    assert!(protected.stderr.contains("write-protected"), "{protected}");
    bench.assert_restores(&archive, &image, &[]);
    // None.
    bench.unit(|unit| unit.eject());
    bench.backup(&image, &["--tape-wait", "500ms"]).exits_one_of(&[exit::NOT_FOUND, exit::USAGE]);
    let none = bench.virtfold(&["tape", "status", TAPE]).ok();
    assert!(none.text().contains("tape       none"), "{none}");
    bench.virtfold(&["tape", "status", "tape:/dev/nst7"]).exits(exit::NOT_FOUND);
    bench.virtfold(&["tape", "status", "tape:/dev/null"]).exits(exit::FAILURE);
    bench.virtfold(&["tape", "status", "tape:/dev/st0"]).exits(exit::USAGE);
    // Somebody else's.
    bench.unit(|unit| unit.insert(1));
    let script = format!(
        "exec 9</dev/nst0; VIRTFOLD_STATE_DIR=/tmp/s '{}' tape status {TAPE} --tape-wait 1s",
        env!("CARGO_BIN_EXE_virtfold")
    );
    bench.sh(&script).exits(exit::IN_USE);
}
