//! A qcow2 that a hostile guest or a bad cable made: open it, walk its tables, read from every extent.
//!
//! Found when it panics, hangs or outgrows its memory, and when a table that was accepted has gaps.

#![no_main]

use std::fs::File;
use std::io::{Seek, Write};
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use virtfold::image::{AllocationTable, DiskImage, Format, OpenOptions, Use};
use virtfold::units::GuestOffset;

/// Extents that are read from, at most.
const READ: usize = 64;

thread_local! {
    static FILE: File = tempfile::tempfile().expect("a temporary file");
}

fuzz_target!(|data: &[u8]| {
    let file = FILE.with(|file| file.try_clone().expect("a second handle"));
    write(&file, data);
    let options = OpenOptions { usage: Use::Frozen, ..OpenOptions::default() };
    // Backing files are looked for in a folder that is not there.
    let name = Path::new("/nonexistent/fuzz.qcow2");
    let Ok(image) = DiskImage::from_file(file, name, Format::Qcow2, &options) else { return };
    let Ok(table) = image.allocation() else { return };
    check(&image, &table);
});

fn write(mut file: &File, data: &[u8]) {
    file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(data)).expect("the input in a file");
}

fn check(image: &DiskImage, table: &AllocationTable) {
    let mut end = GuestOffset::ZERO;
    let mut buffer = [0; 512];
    for (index, extent) in table.iter().enumerate() {
        let extent = extent.expect("a table that was walked can be read");
        assert_eq!(extent.guest, end, "a gap or an overlap");
        assert!(extent.len > 0, "an empty extent");
        end = extent.end();
        if index < READ {
            let len = usize::try_from(extent.len.min(512)).expect("at most 512");
            // Damage behind the tables (a compressed cluster that is none) is an error, not a panic.
            drop(image.read(table, extent.guest, &mut buffer[..len]));
        }
    }
    assert_eq!(end.get(), image.capacity(), "the table ends elsewhere than the disk");
}
