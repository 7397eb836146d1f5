//! Folds a disk image without writing anything, and prints its block correspondence table: which guest
//! address A each dense address X would hold.
//!
//! ```text
//! cargo run --example fold_image -- disk.qcow2 qcow2
//! ```
//!
//! The same four steps begin every backup: open the chain, read its allocation table, take the ranges that
//! have bytes, fold them. All numbers are bytes.

use std::error::Error;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use virtfold::image::{DiskImage, Format, OpenOptions};
use virtfold::table::{Layout, fold};
use virtfold::units::BlockSize;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let (Some(path), Some(format), None) = (args.next(), args.next(), args.next()) else {
        return Err("usage: fold_image IMAGE raw|qcow2".into());
    };
    // The caller names the format. It is never guessed: a guest can write any header on its raw disk.
    let format: Format = format.to_string_lossy().parse()?;

    // Opens the whole chain and refuses it where a QEMU is writing into it.
    let image = DiskImage::open(&PathBuf::from(path), format, &OpenOptions::default())?;
    // One walk: every byte of the disk is in exactly one extent.
    let allocation = image.allocation()?;
    let used = allocation.iter().filter_map(|extent| match extent {
        Ok(extent) => extent.place.has_bytes().then_some(Ok((extent.guest, extent.len))),
        Err(error) => Some(Err(error)),
    });
    let table = fold(used, image.capacity(), BlockSize::DEFAULT, Layout::Compact)?;

    let mut out = BufWriter::new(std::io::stdout().lock());
    writeln!(out, "{:>16} {:>16} {:>16}", "X", "A", "length")?;
    for run in table.iter() {
        let run = run?;
        writeln!(out, "{:>16} {:>16} {:>16}", run.dense, run.guest, run.len)?;
    }
    let (dense, capacity) = (table.dense_len(), table.capacity());
    writeln!(out, "{dense} of {capacity} bytes in {} runs", table.len())?;
    out.flush()?;
    Ok(())
}
