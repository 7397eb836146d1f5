//! What Linux's `st` driver does, held against the real one: the assumptions that the code is built on. The
//! case runs itself again in the machine, where it drives `/dev/nst0` by the library's own calls.

use std::path::Path;

use nix::libc;
use virtfold::medium::tape::{Access, Drive, StDrive, TapeCommand};

use super::bench::Bench;
use super::drive::{Cartridge, Fault, Object};
use crate::common::run::{run, tool};

const INSIDE: &str = "VIRTFOLD_TEST_INSIDE";
const BLOCK: usize = 64 << 10;

/// Runs the case of this name in the machine.
fn inside(bench: &mut Bench, case: &str) {
    let mut command =
        tool(std::env::current_exe().unwrap().to_str().unwrap(), ["--exact", case, "--nocapture"]);
    command.env(INSIDE, "1");
    let done = bench.run(&command).ok();
    assert!(done.text().contains("1 passed"), "{done}");
}

fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

fn open() -> StDrive {
    let mut drive = StDrive::new(Path::new("/dev/nst0"));
    drive.open(Access::Write).unwrap();
    for motion in [TapeCommand::VariableBlocks, TapeCommand::BufferInDrive, TapeCommand::Rewind] {
        drive.run(motion).unwrap();
    }
    drive
}

/// Writes so many blocks, which the drive takes.
fn write(drive: &mut StDrive, count: usize) {
    for _ in 0..count {
        assert_eq!(drive.write(&[1; BLOCK]).unwrap(), BLOCK);
    }
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

/// Ends of tapes, filemarks, blocks that are too long, positions.
#[test]
fn ends_and_marks() {
    if !is_inside() {
        return inside(
            &mut Bench::with(vec![Cartridge::new(1 << 20, 256 << 10)]),
            "tape::st::ends_and_marks",
        );
    }
    let mut drive = open();
    // Filemarks, and the end of data behind one: 0, then EIO.
    drive.write(&[1; 4096]).unwrap();
    drive.run(TapeCommand::WriteFilemark).unwrap();
    drive.write(&[2; 100_000]).unwrap();
    drive.run(TapeCommand::WriteFilemarkSync).unwrap();
    assert_eq!(drive.position().unwrap(), 4);
    drive.run(TapeCommand::Rewind).unwrap();
    let mut buf = vec![0; 1 << 20];
    assert_eq!(drive.read(&mut buf).unwrap(), 4096);
    assert_eq!((drive.read(&mut buf).unwrap(), drive.position().unwrap()), (0, 2));
    // A buffer that is too small: ENOMEM, and the tape is behind the block.
    assert_eq!(errno(drive.read(&mut buf[..4096])), libc::ENOMEM);
    assert_eq!(drive.position().unwrap(), 3);
    drive.run(TapeCommand::BackBlock).unwrap();
    assert_eq!(drive.read(&mut buf).unwrap(), 100_000);
    assert_eq!((drive.read(&mut buf).unwrap(), drive.position().unwrap()), (0, 4));
    assert_eq!((drive.read(&mut buf).unwrap(), drive.position().unwrap()), (0, 4));
    assert_eq!(errno(drive.read(&mut buf)), libc::EIO);
    // The end of data without a filemark is EIO at once, and nothing lies behind it.
    drive.run(TapeCommand::Seek(2)).unwrap();
    drive.write(&[3; 10]).unwrap();
    // close() and a rewind write a filemark by themselves.
    drive.run(TapeCommand::Rewind).unwrap();
    drive.run(TapeCommand::EndOfData).unwrap();
    assert_eq!(drive.position().unwrap(), 4);
    drive.write(&[3; 10]).unwrap();
    drive.close().unwrap();
    let mut drive = open();
    drive.run(TapeCommand::EndOfData).unwrap();
    assert_eq!(drive.position().unwrap(), 6);
    // Early warning: the write that crosses it succeeds, the next is refused, then some more succeed.
    drive.run(TapeCommand::Rewind).unwrap();
    let mut refused = 0;
    let mut at = 0;
    for _ in 0..30 {
        match drive.write(&[4; BLOCK]) {
            Ok(len) => at += u64::from(len == BLOCK),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
                refused += 1;
            }
        }
        assert_eq!(drive.position().unwrap(), at, "the position tells what is written");
    }
    assert!(at > 12 && refused > 3, "{at} written, {refused} refused");
    drive.run(TapeCommand::WriteFilemarkSync).unwrap();
    assert_eq!(drive.position().unwrap(), at + 1, "a filemark can be written at the end");
    where_the_kernel_thinks_it_is(drive);
}

/// What the kernel says of the place is not to be trusted: behind MTSEEK it knows neither file nor block.
fn where_the_kernel_thinks_it_is(mut drive: StDrive) {
    drive.run(TapeCommand::Seek(3)).unwrap();
    drive.close().unwrap();
    let status = run(&mut tool("mt", ["-f", "/dev/nst0", "status"])).ok();
    let status = status.text().to_lowercase().replace([' ', '='], "");
    assert!(status.contains("filenumber-1") && status.contains("blocknumber-1"), "{status}");
    drive.open(Access::Read).unwrap();
    assert_eq!(drive.position().unwrap(), 3);
}

/// ENOSPC for a block that is on the tape; the end of data that no filemark ends.
#[test]
fn what_an_error_does_not_say() {
    if !is_inside() {
        let mut bench = Bench::new(1, 64);
        bench.unit(|unit| {
            unit.cartridge(0).objects = vec![Object::Block(vec![7; 4096])];
            unit.faults = vec![Fault::Full(3)];
        });
        return inside(&mut bench, "tape::st::what_an_error_does_not_say");
    }
    let mut drive = open();
    let mut buf = vec![0; BLOCK];
    assert_eq!(drive.read(&mut buf).unwrap(), 4096);
    // It looks like a medium error: only that nothing lies behind tells.
    assert_eq!(errno(drive.read(&mut buf)), libc::EIO);
    assert_eq!(drive.position().unwrap(), 1);
    drive.run(TapeCommand::EndOfData).unwrap();
    assert_eq!(drive.position().unwrap(), 1);
    write(&mut drive, 2);
    assert_eq!(errno(drive.write(&[1; BLOCK])), libc::ENOSPC);
    assert_eq!(drive.position().unwrap(), 4, "it is written all the same");
}

/// A reset: EIO, and whoever writes again writes at the beginning of the tape.
#[test]
fn resets() {
    if !is_inside() {
        let mut bench = Bench::new(1, 64);
        bench.unit(|unit| unit.faults = vec![Fault::Reset(5)]);
        return inside(&mut bench, "tape::st::resets");
    }
    let mut drive = open();
    write(&mut drive, 5);
    assert_eq!(errno(drive.write(&[1; BLOCK])), libc::EIO);
    assert_ne!(drive.position().ok(), Some(5), "the drive is not where the writer thinks");
}

/// A lost block shows in the drive's position alone.
#[test]
fn silent_losses() {
    if !is_inside() {
        let mut bench = Bench::new(1, 64);
        bench.unit(|unit| unit.faults = vec![Fault::SilentDrop(2)]);
        return inside(&mut bench, "tape::st::silent_losses");
    }
    let mut drive = open();
    write(&mut drive, 4);
    drive.run(TapeCommand::WriteFilemarkSync).unwrap();
    assert_eq!(drive.position().unwrap(), 4, "four blocks and a filemark were told to be written");
}

/// A deferred error is told once, and then all looks fine.
#[test]
fn deferred_errors() {
    if !is_inside() {
        let mut bench = Bench::new(1, 64);
        bench.unit(|unit| {
            unit.faults = vec![Fault::Deferred { at: 4, lost: 2 }, Fault::Deferred { at: 6, lost: 1 }];
        });
        return inside(&mut bench, "tape::st::deferred_errors");
    }
    let mut drive = open();
    write(&mut drive, 5);
    assert_eq!(errno(drive.run(TapeCommand::WriteFilemarkSync)), libc::EIO);
    drive.run(TapeCommand::WriteFilemarkSync).unwrap();
    assert_eq!(drive.position().unwrap(), 3, "two of five blocks are there, and the filemark");
    // Where nothing else comes, it is close() that tells.
    write(&mut drive, 4);
    assert_eq!(errno(drive.close()), libc::EIO);
}

/// A drive without a tape answers at once; somebody else's does, too.
#[test]
fn opens() {
    if !is_inside() {
        let mut bench = Bench::new(1, 64);
        bench.unit(|unit| unit.eject());
        return inside(&mut bench, "tape::st::opens");
    }
    let mut drive = StDrive::new(Path::new("/dev/nst0"));
    // Who opens it in the usual way is made to wait, up to two minutes.
    let waits = run(&mut tool("timeout", ["1", "dd", "if=/dev/nst0", "of=/dev/null", "count=1"]));
    assert_eq!(waits.code(), Some(124), "{waits}");
    drive.open(Access::Write).unwrap();
    let state = drive.state().unwrap();
    assert!(!state.online && state.empty, "{state:?}");
    let mut other = StDrive::new(Path::new("/dev/nst0"));
    assert_eq!(errno(other.open(Access::Read)), libc::EBUSY);
}
