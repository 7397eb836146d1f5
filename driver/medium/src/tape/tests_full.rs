//! Volumes that are full at any byte: an archive that finds no room goes on to the next volume, wherever that
//! is.

use std::sync::Arc;

use super::tests::{Bench, bytes, id};
use super::*;

/// The second archive begins within the last bytes of a volume, at each of them: its begin has room, or has
/// none, or its end has none.
#[test]
fn an_archive_that_begins_at_the_very_end_goes_on_to_the_next_volume() {
    const FIRST: u64 = 100_000;
    const RECORD: u64 = 4096;
    // Label, begin and end, and the data.
    let full = 3 * RECORD + FIRST;
    for room in (0..4 * RECORD).step_by(512) {
        for second in [0, 1, 5000] {
            let bench = Bench::new(3, 1 << 20);
            bench.drive.with_tape(0, |tape| (tape.capacity, tape.warning) = (full + room, 0));
            bench.drive.load(0);
            let archives = [bytes(FIRST, 1), bytes(second, 2), bytes(20_000, 3)];
            for (number, archive) in archives.iter().enumerate() {
                let from = bench.drive.loaded().unwrap();
                let rest: Vec<usize> = (from + 1..3).collect();
                let written = bench.write(&format!("a-0000000{number}.tar"), archive, &rest);
                assert!(written.is_ok(), "{room} bytes of room, {second} bytes: {written:?}");
            }
            for (number, archive) in archives.iter().enumerate() {
                bench.drive.load(0);
                let ledger = Arc::clone(&bench.notes) as Arc<dyn TapeCatalog>;
                let parts = ledger.archives(&format!("0000000{number}")).unwrap();
                let slots: Vec<usize> =
                    parts.iter().map(|part| part.label.label[1..].parse().unwrap()).collect();
                bench.drive.load(slots[0]);
                let read = bench.read_from(&id(&format!("0000000{number}")), &slots[1..], ledger).unwrap();
                assert!(read == *archive, "{room} bytes of room, archive {number}");
            }
        }
    }
}
