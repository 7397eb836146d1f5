//! Lists the disks of an archive, or copies one of them to a new raw file.
//!
//! ```text
//! cargo run -p virtfold-archive --example read_archive -- web.tar.zst
//! cargo run -p virtfold-archive --example read_archive -- web.tar.zst vda vda.raw
//! ```
//!
//! The archive is opened by its index: head and tables are read, the disks' bytes are not, until one is asked
//! for. Every byte that comes out was checked against its digest. `virtfold restore` does more: it writes
//! under a temporary name, syncs, makes qcow2 files and gets what is intact out of a damaged archive.

use std::error::Error;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use virtfold_archive::error::{Error as Failure, ErrorKind, IoContext};
use virtfold_archive::index::{ArchiveIndex, DiskPiece, Trust};
use virtfold_archive::source::FileSource;
use virtfold_archive::stream::{Cancel, ReadOptions};
use virtfold_archive::units::{DenseOffset, Human};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (archive, wanted) = match args.as_slice() {
        [archive] => (archive, None),
        [archive, disk, path] => (archive, Some((disk, path))),
        _ => return Err("usage: read_archive ARCHIVE [DISK NEW_FILE]".into()),
    };
    let source = FileSource::open(Path::new(archive))?;
    let options = ReadOptions { workers: 2, cancel: Cancel::default(), carrier: None, archive_id: None };
    // Strict: the first contradiction is an error.
    let index = ArchiveIndex::open(&source, &options, Trust::Strict)?;
    match wanted {
        None => list(&index),
        Some((disk, path)) => copy(&index, disk, Path::new(path))?,
    }
    Ok(())
}

fn list(index: &ArchiveIndex<'_>) {
    let head = index.head();
    println!("{} of {}", head.subject.name().escape_debug(), head.created);
    for disk in index.disks() {
        let (dense, capacity) = (Human(disk.table.dense_len()), Human(disk.table.capacity()));
        println!("{}: {dense} of {capacity} in {} runs", disk.disk.target, disk.table.len());
    }
}

fn copy(index: &ArchiveIndex<'_>, name: &str, path: &Path) -> Result<(), Failure> {
    let shown = path.display();
    let disk = index.disk(name)?;
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    let file = file.at(|| format!("cannot create '{shown}'"))?;
    // What the table does not hold reads as zeros: a hole.
    file.set_len(disk.table.capacity()).at(|| format!("cannot set the size of '{shown}'"))?;
    let whole = DenseOffset::ZERO..DenseOffset::new(disk.table.dense_len());
    index.read_dense(disk, whole, &mut |piece, data| match data {
        DiskPiece::Bytes(bytes) => {
            file.write_all_at(bytes, piece.guest.get()).at(|| format!("cannot write '{shown}'"))
        }
        DiskPiece::Lost => {
            let message = format!("{} bytes of disk {name} at {} are damaged", piece.len, piece.guest);
            Err(Failure::new(ErrorKind::Damaged, message))
        }
    })?;
    file.sync_all().at(|| format!("cannot sync '{shown}'"))
}
