//! A real drive, by Linux's `st` driver.
//!
//! Imports: `ioctl`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;

use super::drive::{Access, Drive, DriveState, TapeCommand};
use virtfold_base::ioctl::{self, TapeOp};

/// The major number of SCSI tapes, and the bit of the minor number that says that closing does not rewind.
const MAJOR: u64 = 9;
const NO_REWIND: u64 = 0x80;

// linux/mtio.h, what MTIOCGET's mt_gstat says.
const ONLINE: u64 = 0x0100_0000;
const PROTECTED: u64 = 0x0400_0000;
const DOOR_OPEN: u64 = 0x0004_0000;

/// A `/dev/nstN`.
#[derive(Debug)]
pub struct StDrive {
    path: PathBuf,
    name: String,
    file: Option<File>,
}

impl StDrive {
    /// Names the device; it is opened later.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), name: path.display().to_string(), file: None }
    }

    fn file(&mut self) -> io::Result<&mut File> {
        self.file.as_mut().ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    fn op(&mut self, op: TapeOp, count: i32) -> io::Result<()> {
        ioctl::tape(self.file()?, op, count)
    }
}

impl Drive for StDrive {
    fn name(&self) -> &str {
        &self.name
    }

    fn open(&mut self, access: Access) -> io::Result<()> {
        self.close()?;
        let mut options = OpenOptions::new();
        options.read(true).write(access == Access::Write).custom_flags(libc::O_NONBLOCK);
        let kind = std::fs::metadata(&self.path)?;
        let device = kind.rdev();
        let is_st =
            u64::from(libc::major(device)) == MAJOR && u64::from(libc::minor(device)) & NO_REWIND != 0;
        if !std::os::unix::fs::FileTypeExt::is_char_device(&kind.file_type()) || !is_st {
            let what = "it is not a non-rewinding SCSI tape device such as /dev/nst0";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        self.file = Some(options.open(&self.path)?);
        Ok(())
    }

    fn write_no_more(&mut self) {
        // st writes a filemark when a descriptor is closed that wrote last. A read, whatever comes of it,
        // makes it one that read last.
        if let Ok(file) = self.file()
            && let Err(error) = file.read(&mut [0; 1])
        {
            tracing::debug!(%error, "a read behind a failed write");
        }
    }

    fn close(&mut self) -> io::Result<()> {
        match self.file.take() {
            Some(file) => nix::unistd::close(file).map_err(Into::into),
            None => Ok(()),
        }
    }

    fn state(&mut self) -> io::Result<DriveState> {
        let bits = ioctl::tape_state(self.file()?)?;
        Ok(DriveState {
            online: bits & ONLINE != 0,
            empty: bits & DOOR_OPEN != 0,
            protected: bits & PROTECTED != 0,
        })
    }

    fn write(&mut self, block: &[u8]) -> io::Result<usize> {
        self.file()?.write(block)
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.file()?.read(buf)
    }

    fn run(&mut self, motion: TapeCommand) -> io::Result<()> {
        // MTSETDRVBUFFER: the drive's buffer is mode 1; MT_ST_CLEARBOOLEANS takes the kernel's write buffer,
        // its writes in the background and its read-ahead away, and leaves the other options.
        const BUFFERED: i32 = 1;
        const CLEAR: i32 = 0x4000_0000 | 0x1 | 0x2 | 0x4;
        match motion {
            TapeCommand::Rewind => self.op(TapeOp::Rewind, 1),
            TapeCommand::WriteFilemarkSync => self.op(TapeOp::WriteMarks, 1),
            TapeCommand::WriteFilemark => self.op(TapeOp::WriteMarksAtOnce, 1),
            TapeCommand::EndOfData => self.op(TapeOp::EndOfData, 1),
            TapeCommand::ForwardFile => self.op(TapeOp::ForwardFiles, 1),
            TapeCommand::BackBlock => self.op(TapeOp::BackBlocks, 1),
            TapeCommand::Seek(to) => {
                let to = i32::try_from(to).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
                self.op(TapeOp::Seek, to)
            }
            TapeCommand::Erase => self.op(TapeOp::Erase, 0),
            TapeCommand::Eject => self.op(TapeOp::Offline, 1),
            TapeCommand::VariableBlocks => self.op(TapeOp::SetBlock, 0),
            TapeCommand::BufferInDrive => {
                self.op(TapeOp::SetBuffer, BUFFERED)?;
                self.op(TapeOp::SetBuffer, CLEAR)
            }
            TapeCommand::NoCompression => self.op(TapeOp::Compression, 0),
        }
    }

    fn position(&mut self) -> io::Result<u64> {
        ioctl::tape_position(self.file()?)
    }
}
