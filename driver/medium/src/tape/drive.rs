//! What a tape drive does, as Linux's `st` driver gives it: the raw calls, with their errors as they come.
//! Everything that judges them is above (`positioned_drive`).
//!
//! Imports: nothing of the crate.

use std::io;

/// What a drive is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading only: a write-protected tape will do.
    Read,
    /// Reading and writing.
    Write,
}

/// What a drive is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TapeCommand {
    /// To the beginning.
    Rewind,
    /// Write a filemark and wait until all that was written is on the medium (`MTWEOF`).
    WriteFilemarkSync,
    /// Write a filemark; the drive goes on streaming (`MTWEOFI`).
    WriteFilemark,
    /// To the end of what is recorded.
    EndOfData,
    /// Behind the next filemark.
    ForwardFile,
    /// One block back.
    BackBlock,
    /// To this block.
    Seek(u64),
    /// Erase from here on, quickly: mark the end of data.
    Erase,
    /// Give the tape out.
    Eject,
    /// Blocks as long as each write.
    VariableBlocks,
    /// Buffer in the drive, none in the kernel.
    BufferInDrive,
    /// Compression in the drive off.
    NoCompression,
}

/// How a drive stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriveState {
    /// A tape is in it, and ready.
    pub online: bool,
    /// No tape is in it.
    pub empty: bool,
    /// The tape is write-protected.
    pub protected: bool,
}

/// A tape drive. Positions count blocks and filemarks from 0.
///
/// The errors are the kernel's; what they mean for the data is not said here. A drive that is dropped is
/// closed.
pub trait Drive: Send {
    /// The device, for messages.
    fn name(&self) -> &str;

    /// Opens it, without waiting for a tape; what was open is closed.
    ///
    /// # Errors
    /// `EBUSY`: somebody else has it. `EROFS`: the tape is write-protected.
    fn open(&mut self, access: Access) -> io::Result<()>;

    /// Makes closing write nothing: after a failed write the tape may stand anywhere, after a reset at its
    /// beginning, and the filemark that the kernel writes by itself would destroy what is there. Moves the
    /// tape.
    fn write_no_more(&mut self);

    /// Closes it. Where the last call wrote a block, the kernel writes a filemark.
    ///
    /// # Errors
    /// When what was written is not on the medium.
    fn close(&mut self) -> io::Result<()>;

    /// How it stands. Positions are not part of it: only [`Drive::position`] is to be trusted with them.
    ///
    /// # Errors
    /// The drive does not answer.
    fn state(&mut self) -> io::Result<DriveState>;

    /// Writes one block.
    ///
    /// # Errors
    /// `ENOSPC`: the end is near or reached; the position tells whether the block is on the tape. Any other:
    /// never write again.
    fn write(&mut self, block: &[u8]) -> io::Result<usize>;

    /// Reads one block; 0 at a filemark, and at the end of data behind one.
    ///
    /// # Errors
    /// `ENOMEM`: the block is longer than `buf`, and the tape is behind it. `EIO`: a medium error, or the end
    /// of data.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize>;

    /// Does what it is told.
    ///
    /// # Errors
    /// It could not.
    fn run(&mut self, motion: TapeCommand) -> io::Result<()>;

    /// Where the drive itself says that it stands.
    ///
    /// # Errors
    /// The drive does not answer.
    fn position(&mut self) -> io::Result<u64>;
}
