//! A drive in memory that answers as `st` does, with its oddities and with faults: for tests and benchmarks.
//!
//! Clones are handles of one drive: a test keeps one, changes tapes with it and looks at them.
//!
//! Imports: the drive.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::libc;

use super::drive::{Access, Drive, DriveState, TapeCommand};

/// A tape: blocks, and `None` for filemarks.
#[derive(Clone, Debug, Default)]
pub struct SimulatedTape {
    /// What is on it.
    pub objects: Vec<Option<Vec<u8>>>,
    /// Bytes that fit.
    pub capacity: u64,
    /// Bytes before that at which `ENOSPC` begins.
    pub warning: u64,
    /// The write-protect tab.
    pub protected: bool,
}

/// What goes wrong, once, at the object of that number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TapeFault {
    /// Its write fails.
    WriteError(u64),
    /// Its write succeeds, and nothing is written.
    Drop(u64),
    /// It and the blocks before it are lost, so many; the next call says so.
    Deferred(u64, u64),
    /// The drive resets; it is rewound.
    Reset(u64),
    /// It is written, and the drive says that it is full.
    Full(u64),
    /// A bit is wrong when it is read.
    Corrupt(u64),
    /// It can't be read.
    ReadError(u64),
}

#[derive(Debug, Default)]
struct State {
    shelf: Vec<SimulatedTape>,
    loaded: Option<usize>,
    faults: Vec<TapeFault>,
    at: usize,
    used: u64,
    /// The descriptor: whose it is, and what it was opened for.
    open: Option<(u64, Access)>,
    /// The last call wrote a block.
    writing: bool,
    /// The drive has warned, and the next write is refused.
    warned: bool,
    deferred: bool,
    /// The tape was changed, or the drive reset, under the descriptor.
    stale: bool,
    /// The end of data was read once behind a filemark.
    at_end: bool,
    compression: bool,
    /// Motions to a place.
    seeks: u64,
    /// Memory for blocks, there already.
    spare: Vec<Vec<u8>>,
}

/// The drive. A clone is another program at the same drive: while one has it open, the others can't.
#[derive(Debug)]
pub struct SimulatedDrive {
    state: Arc<Mutex<State>>,
    handle: u64,
}

impl Clone for SimulatedDrive {
    fn clone(&self) -> Self {
        Self { state: Arc::clone(&self.state), handle: next_handle() }
    }
}

fn next_handle() -> u64 {
    static HANDLES: AtomicU64 = AtomicU64::new(0);
    HANDLES.fetch_add(1, Ordering::Relaxed)
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

impl SimulatedDrive {
    /// A drive with these tapes on its shelf; none is in it.
    pub fn new(shelf: Vec<SimulatedTape>) -> Self {
        let state = State { shelf, compression: true, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), handle: next_handle() }
    }

    /// So many empty tapes of a capacity, with a warning an eighth before the end; the first one is loaded.
    pub fn with_tapes(count: usize, capacity: u64) -> Self {
        let tape = SimulatedTape { capacity, warning: capacity / 8, ..SimulatedTape::default() };
        let drive = Self::new(vec![tape; count]);
        drive.load(0);
        drive
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a tape of the shelf in.
    pub fn load(&self, slot: usize) {
        let mut state = self.lock();
        state.loaded = Some(slot);
        (state.at, state.used, state.stale, state.deferred) = (0, 0, true, false);
    }

    /// The slot of the tape in it.
    pub fn loaded(&self) -> Option<usize> {
        self.lock().loaded
    }

    /// A tape, to be looked at or changed.
    pub fn with_tape<T>(&self, slot: usize, look: impl FnOnce(&mut SimulatedTape) -> T) -> Option<T> {
        self.lock().shelf.get_mut(slot).map(look)
    }

    /// Allocates and touches memory for so many blocks: a drive that is measured has its own.
    pub fn reserve(&self, blocks: usize, length: usize) {
        self.lock().spare.extend((0..blocks).map(|_| vec![1; length]));
    }

    /// Adds a fault.
    pub fn fault(&self, fault: TapeFault) {
        self.lock().faults.push(fault);
    }

    /// Forgets faults that have not happened.
    pub fn clear_faults(&self) {
        self.lock().faults.clear();
    }

    /// Motions to a place or to the end of the data so far, each of which takes a real drive up to minutes.
    pub fn seeks(&self) -> u64 {
        self.lock().seeks
    }

    /// Whether the drive compresses.
    pub fn compresses(&self) -> bool {
        self.lock().compression
    }
}

impl State {
    fn access(&self) -> Option<Access> {
        self.open.map(|(_, access)| access)
    }

    fn tape(&mut self) -> io::Result<&mut SimulatedTape> {
        let slot = self.loaded.ok_or_else(|| errno(libc::ENOMEDIUM))?;
        self.shelf.get_mut(slot).ok_or_else(|| errno(libc::ENOMEDIUM))
    }

    /// What each call begins with.
    fn begin(&mut self) -> io::Result<()> {
        if self.open.is_none() {
            return Err(errno(libc::EBADF));
        }
        if std::mem::take(&mut self.deferred) || self.stale {
            return Err(errno(libc::EIO));
        }
        self.tape().map(drop)
    }

    fn due(&mut self, fits: impl Fn(&TapeFault, u64) -> bool) -> Option<TapeFault> {
        let here = self.at as u64;
        let place = self.faults.iter().position(|fault| fits(fault, here))?;
        Some(self.faults.swap_remove(place))
    }

    fn put(&mut self, object: Option<Vec<u8>>) -> io::Result<()> {
        let at = self.at;
        self.used += object.as_ref().map_or(0, |block| block.len() as u64);
        let tape = self.tape()?;
        tape.objects.truncate(at);
        tape.objects.push(object);
        self.at += 1;
        Ok(())
    }

    fn seek(&mut self, to: usize) -> io::Result<()> {
        let tape = self.tape()?;
        let end = tape.objects.len();
        let used = tape.objects.iter().take(to).flatten().map(|block| block.len() as u64).sum();
        (self.at, self.used, self.at_end) = (to.min(end), used, false);
        (self.writing, self.warned) = (false, false);
        if to > end { Err(errno(libc::EIO)) } else { Ok(()) }
    }

    fn write(&mut self, block: &[u8]) -> io::Result<usize> {
        self.begin()?;
        if self.access() == Some(Access::Read) {
            return Err(errno(libc::EBADF));
        }
        // st refuses the write behind one that was warned of, and takes the next.
        if std::mem::take(&mut self.warned) {
            return Err(errno(libc::ENOSPC));
        }
        let fault = self.due(|fault, here| match fault {
            TapeFault::WriteError(at) | TapeFault::Drop(at) | TapeFault::Reset(at) | TapeFault::Full(at) => {
                *at == here
            }
            TapeFault::Deferred(at, _) => *at == here,
            TapeFault::Corrupt(_) | TapeFault::ReadError(_) => false,
        });
        match fault {
            Some(TapeFault::Drop(_)) => return Ok(block.len()),
            Some(TapeFault::Deferred(_, lost)) => {
                let to = self.at.saturating_sub(usize::try_from(lost).unwrap_or(usize::MAX));
                self.tape()?.objects.truncate(to);
                self.seek(to)?;
                self.deferred = true;
                return Ok(block.len());
            }
            Some(TapeFault::Full(_)) => {
                self.put(Some(block.to_vec()))?;
                return Err(errno(libc::ENOSPC));
            }
            Some(TapeFault::Reset(_)) => {
                self.seek(0)?;
                // The kernel does not know, and closes what it believes to be written with a filemark.
                self.writing = true;
                return Err(errno(libc::EIO));
            }
            Some(_) => return Err(errno(libc::EIO)),
            None => {}
        }
        let (used, len) = (self.used, block.len() as u64);
        let (capacity, warning) = self.tape().map(|tape| (tape.capacity, tape.warning))?;
        if used + len > capacity {
            return Err(errno(libc::ENOSPC));
        }
        let mut kept = self.spare.pop().unwrap_or_default();
        kept.clear();
        kept.extend_from_slice(block);
        self.put(Some(kept))?;
        self.writing = true;
        self.warned = used + len + warning > capacity;
        Ok(block.len())
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.begin()?;
        if self.due(|fault, here| *fault == TapeFault::ReadError(here)).is_some() {
            return Err(errno(libc::EIO));
        }
        let at = self.at;
        let corrupt = self.due(|fault, here| *fault == TapeFault::Corrupt(here)).is_some();
        let ended = self.at_end;
        let objects = &self.tape()?.objects;
        let behind_mark = at.checked_sub(1).is_some_and(|before| objects.get(before) == Some(&None));
        let block = match objects.get(at) {
            None if behind_mark && !ended => {
                self.at_end = true;
                return Ok(0);
            }
            None => return Err(errno(libc::EIO)),
            Some(None) => {
                self.at += 1;
                return Ok(0);
            }
            Some(Some(block)) => block,
        };
        let len = block.len();
        match buf.get_mut(..len) {
            Some(room) => room.copy_from_slice(block),
            None => {
                self.at += 1;
                return Err(errno(libc::ENOMEM));
            }
        }
        if let Some(byte) = buf.get_mut(len / 2).filter(|_| corrupt) {
            *byte ^= 0x10;
        }
        self.at += 1;
        Ok(len)
    }

    fn run(&mut self, motion: TapeCommand) -> io::Result<()> {
        self.begin()?;
        let may_write = self.access() == Some(Access::Write);
        match motion {
            TapeCommand::WriteFilemark | TapeCommand::WriteFilemarkSync | TapeCommand::Erase
                if !may_write =>
            {
                Err(errno(libc::EBADF))
            }
            TapeCommand::WriteFilemark | TapeCommand::WriteFilemarkSync => {
                (self.writing, self.warned) = (false, false);
                self.put(None)
            }
            TapeCommand::Erase => {
                let at = self.at;
                self.tape()?.objects.truncate(at);
                Ok(())
            }
            TapeCommand::Rewind => self.finish_file().and_then(|()| self.seek(0)),
            TapeCommand::EndOfData => {
                self.seeks += 1;
                self.finish_file()?;
                let end = self.tape()?.objects.len();
                self.seek(end)
            }
            TapeCommand::Seek(to) => {
                self.seeks += 1;
                self.finish_file()?;
                self.seek(usize::try_from(to).unwrap_or(usize::MAX))
            }
            TapeCommand::ForwardFile => {
                let at = self.at;
                let objects = &self.tape()?.objects;
                let mark = objects.iter().skip(at).position(Option::is_none);
                let (to, found) = mark.map_or((objects.len(), false), |mark| (at + mark + 1, true));
                self.seek(to)?;
                if found { Ok(()) } else { Err(errno(libc::EIO)) }
            }
            TapeCommand::BackBlock => {
                let to = self.at.checked_sub(1).ok_or_else(|| errno(libc::EIO))?;
                self.seek(to)
            }
            TapeCommand::Eject => {
                self.finish_file()?;
                self.loaded = None;
                Ok(())
            }
            TapeCommand::NoCompression => {
                self.compression = false;
                Ok(())
            }
            TapeCommand::VariableBlocks | TapeCommand::BufferInDrive => Ok(()),
        }
    }

    /// What was written is ended by a filemark when the tape moves, or the descriptor is closed.
    fn finish_file(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.writing) { self.put(None) } else { Ok(()) }
    }

    fn close(&mut self) -> io::Result<()> {
        let Some(_) = self.open else { return Ok(()) };
        let lost = std::mem::take(&mut self.deferred);
        // The kernel writes it on whatever tape is in the drive by now.
        let finished = if self.loaded.is_none() { Ok(()) } else { self.finish_file() };
        self.open = None;
        self.writing = false;
        if lost { Err(errno(libc::EIO)) } else { finished }
    }
}

impl Drive for SimulatedDrive {
    fn name(&self) -> &str {
        "/dev/simulated"
    }

    fn open(&mut self, access: Access) -> io::Result<()> {
        let mut state = self.lock();
        if state.open.is_some_and(|(handle, _)| handle != self.handle) {
            return Err(errno(libc::EBUSY));
        }
        state.close()?;
        state.stale = false;
        if access == Access::Write && state.tape().is_ok_and(|tape| tape.protected) {
            return Err(errno(libc::EROFS));
        }
        state.open = Some((self.handle, access));
        Ok(())
    }

    fn write_no_more(&mut self) {
        self.lock().writing = false;
    }

    fn close(&mut self) -> io::Result<()> {
        let mut state = self.lock();
        match state.open {
            Some((handle, _)) if handle == self.handle => state.close(),
            _ => Ok(()),
        }
    }

    fn state(&mut self) -> io::Result<DriveState> {
        let mut state = self.lock();
        let tape = state.tape().map(|tape| tape.protected);
        Ok(DriveState { online: tape.is_ok(), empty: tape.is_err(), protected: tape.unwrap_or(false) })
    }

    fn write(&mut self, block: &[u8]) -> io::Result<usize> {
        self.lock().write(block)
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.lock().read(buf)
    }

    fn run(&mut self, motion: TapeCommand) -> io::Result<()> {
        self.lock().run(motion)
    }

    fn position(&mut self) -> io::Result<u64> {
        let state = self.lock();
        match state.open {
            Some(_) if state.loaded.is_some() => Ok(state.at as u64),
            _ => Err(errno(libc::EIO)),
        }
    }
}
