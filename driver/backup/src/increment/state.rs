//! What this host knows of the blocks after an archive: `blocks/ARCHIVE` of the state directory.
//!
//! | bytes | |
//! |---|---|
//! | 8 | `VFBLOCKS` |
//! | 4 | length of the head, little-endian as all numbers here, at most 16 MiB |
//! | | the head, JSON ([`StateHead`]) |
//! | for each disk of the head, in order: segments | 8 bytes: the first block's number; 4 bytes: how many blocks, 1 to 4096; their digests, 32 bytes each |
//! | ... and their end | 12 bytes of value 255 |
//! | 32 | BLAKE3 of all before |
//!
//! A block that is not in a segment is zeros. Blocks ascend. The file is root's alone: whoever has it can
//! tell whether a guest's disk holds a block that he knows.
//!
//! It is a memory of what archives hold: lost, the next backup is full. So what is damaged counts as lost.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use virtfold_archive::manifest::MAX_DISKS;
use virtfold_archive::stream::Digest;
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::partial_file::{self, Overwrite, PartialFile};
use virtfold_base::units::BlockSize;

use super::SourceFiles;
use crate::resume::ReadFrom;

const MAGIC: &[u8; 8] = b"VFBLOCKS";
const VERSION: u32 = 1;
const MAX_HEAD: u32 = 16 << 20;
/// Blocks of a segment at most.
const SEGMENT: usize = 4096;
const DIGEST: usize = 32;
const END: [u8; 12] = [0xff; 12];
/// How long each state is kept.
const KEPT: Duration = Duration::from_hours(24);
/// Bytes before the head.
const FRONT: usize = 12;

/// A block that is not zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StateBlock {
    pub(crate) number: u64,
    pub(crate) digest: Digest,
}

/// What the state says beside the blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StateHead {
    version: u32,
    /// The archive.
    pub(crate) archive: Uuid,
    /// Its root, hexadecimal.
    pub(crate) root: String,
    /// Archives in its chain, it and the full one included.
    pub(crate) depth: u32,
    /// The checkpoint that was made with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) checkpoint: Option<String>,
    pub(crate) disks: Vec<StateDisk>,
}

/// A disk of a state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StateDisk {
    pub(crate) target: String,
    pub(crate) capacity: u64,
    /// Bytes of a block.
    pub(crate) block: u64,
    /// The image's files as they were.
    pub(crate) files: Option<SourceFiles>,
}

/// The blocks after an archive.
#[derive(Debug)]
pub struct BlockState {
    file: File,
    path: PathBuf,
    pub(crate) head: StateHead,
    /// Where each disk's segments begin.
    starts: Vec<u64>,
}

fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("blocks")
}

fn wrong(path: &Path) -> Error {
    Error::new(ErrorKind::Damaged, format!("'{}' is damaged", path.display()))
}

impl BlockState {
    /// Opens the state after an archive, and holds it against its digest. Nothing, where there is none.
    ///
    /// # Errors
    /// It can't be read; Damaged: it is not what was written.
    pub fn open(state_dir: &Path, archive: Uuid) -> Result<Option<Self>> {
        let path = folder(state_dir).join(archive.to_string());
        let cannot = || format!("cannot read '{}'", path.display());
        let file = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file.at(cannot)?,
        };
        let len = file.metadata().at(cannot)?.len();
        let body = len.checked_sub(DIGEST as u64).ok_or_else(|| wrong(&path))?;
        let mut walk = Walk {
            input: BufReader::with_capacity(1 << 20, ReadFrom { file: &file, at: 0 }),
            at: 0,
            hasher: blake3::Hasher::new(),
        };
        let parsed = walk.all(body).map_err(|error| error.within(cannot()))?;
        let (head, starts) =
            parsed.filter(|(head, _)| head.archive == archive).ok_or_else(|| wrong(&path))?;
        Ok(Some(Self { file, path, head, starts }))
    }

    /// The checkpoints of all states. Of a state that is damaged it is not needed: no backup can use it.
    ///
    /// # Errors
    /// The folder or a file in it can't be read.
    pub(crate) fn checkpoints(state_dir: &Path) -> Result<BTreeSet<String>> {
        let folder = folder(state_dir);
        let cannot = || format!("cannot look at '{}'", folder.display());
        let names = match fs::read_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            names => names.at(cannot)?,
        };
        let mut found = BTreeSet::new();
        for entry in names {
            let path = entry.at(cannot)?.path();
            let file = match File::open(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                file => file.at(cannot)?,
            };
            let mut walk = Walk {
                input: BufReader::new(ReadFrom { file: &file, at: 0 }),
                at: 0,
                hasher: blake3::Hasher::new(),
            };
            found.extend(walk.head()?.and_then(|head| head.checkpoint));
        }
        Ok(found)
    }

    /// The name of the checkpoint that was made with the archive.
    pub fn checkpoint(&self) -> Option<&str> {
        self.head.checkpoint.as_deref()
    }

    /// A disk, and its number.
    pub(crate) fn disk(&self, target: &str) -> Option<(usize, &StateDisk)> {
        self.head.disks.iter().enumerate().find(|(_, disk)| disk.target == target)
    }

    /// The blocks of disk `index`.
    pub(crate) fn blocks(&self, index: usize) -> StateBlocks<'_> {
        let at = self.starts.get(index).copied().unwrap_or(u64::MAX);
        let input = BufReader::with_capacity(256 << 10, ReadFrom { file: &self.file, at });
        StateBlocks { input, path: &self.path, number: 0, left: 0, ended: self.starts.len() <= index }
    }

    /// Removes all states but those of `kept`.
    ///
    /// # Errors
    /// The directory can't be read.
    pub(crate) fn retain(state_dir: &Path, kept: impl Fn(Uuid) -> bool) -> Result<()> {
        let folder = folder(state_dir);
        let cannot = || format!("cannot look at '{}'", folder.display());
        let names = match fs::read_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            names => names.at(cannot)?,
        };
        for entry in names {
            let entry = entry.at(cannot)?;
            let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
            // A backup that has just ended is not in the catalog yet.
            let is_old = || {
                let modified = entry.metadata().and_then(|found| found.modified()).ok()?;
                modified.elapsed().ok().map(|age| age > KEPT)
            };
            if id.is_some_and(|id| !kept(id)) && is_old() == Some(true) {
                fs::remove_file(entry.path()).at(|| format!("cannot remove '{}'", entry.path().display()))?;
            }
        }
        Ok(())
    }
}

/// The pass that proves a state.
struct Walk<'a> {
    input: BufReader<ReadFrom<'a>>,
    at: u64,
    hasher: blake3::Hasher,
}

impl Walk<'_> {
    fn take(&mut self, buf: &mut [u8]) -> Result<bool> {
        match self.input.read_exact(buf) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(false),
            done => done.at(|| "it can't be read".to_owned())?,
        }
        self.at += buf.len() as u64;
        self.hasher.update(buf);
        Ok(true)
    }

    /// The head; nothing where it is no state.
    fn head(&mut self) -> Result<Option<StateHead>> {
        let mut front = [0; FRONT];
        if !self.take(&mut front)? || !front.starts_with(MAGIC) {
            return Ok(None);
        }
        let len = front.last_chunk().map_or(u32::MAX, |bytes| u32::from_le_bytes(*bytes));
        if len > MAX_HEAD {
            return Ok(None);
        }
        let mut head = vec![0; usize::try_from(len).unwrap_or_default()];
        if !self.take(&mut head)? {
            return Ok(None);
        }
        let Ok(head) = serde_json::from_slice::<StateHead>(&head) else { return Ok(None) };
        Ok((head.version == VERSION && head.disks.len() <= MAX_DISKS).then_some(head))
    }

    /// Head and places; nothing where it is no state.
    fn all(&mut self, body: u64) -> Result<Option<(StateHead, Vec<u64>)>> {
        let Some(head) = self.head()? else { return Ok(None) };
        let mut starts = Vec::with_capacity(head.disks.len());
        for disk in &head.disks {
            starts.push(self.at);
            if BlockSize::new(disk.block).is_none() || !self.disk(disk)? {
                return Ok(None);
            }
        }
        let whole = self.at == body;
        let proven = self.hasher.finalize();
        let mut digest = [0; DIGEST];
        Ok((whole && self.take(&mut digest)? && proven == digest).then_some((head, starts)))
    }

    fn disk(&mut self, disk: &StateDisk) -> Result<bool> {
        let (mut next, mut digests) = (0, vec![0; SEGMENT * DIGEST]);
        let count = disk.capacity.div_ceil(disk.block);
        loop {
            let mut front = END;
            if !self.take(&mut front)? {
                return Ok(false);
            }
            if front == END {
                return Ok(true);
            }
            let Some((first, blocks)) = segment(&front) else { return Ok(false) };
            let Some(end) = first.checked_add(blocks as u64).filter(|end| first >= next && *end <= count)
            else {
                return Ok(false);
            };
            next = end;
            let digests = digests.get_mut(..blocks * DIGEST).unwrap_or_default();
            if !self.take(digests)? {
                return Ok(false);
            }
        }
    }
}

/// A segment's first block and its number of blocks.
fn segment(front: &[u8; 12]) -> Option<(u64, usize)> {
    let (first, count) = front.split_first_chunk()?;
    let count = usize::try_from(u32::from_le_bytes(*count.first_chunk()?)).ok()?;
    (1..=SEGMENT).contains(&count).then(|| (u64::from_le_bytes(*first), count))
}

/// Walks the blocks of a disk, ascending.
pub(crate) struct StateBlocks<'a> {
    input: BufReader<ReadFrom<'a>>,
    path: &'a Path,
    /// The next block of the segment at hand, and how many are left of it.
    number: u64,
    left: usize,
    ended: bool,
}

impl StateBlocks<'_> {
    fn step(&mut self) -> Result<Option<StateBlock>> {
        let cannot = || format!("cannot read '{}'", self.path.display());
        if self.left == 0 {
            let mut front = END;
            self.input.read_exact(&mut front).at(cannot)?;
            if front == END {
                self.ended = true;
                return Ok(None);
            }
            (self.number, self.left) = segment(&front).ok_or_else(|| wrong(self.path))?;
        }
        let mut digest = [0; DIGEST];
        self.input.read_exact(&mut digest).at(cannot)?;
        let number = self.number;
        self.number = self.number.saturating_add(1);
        self.left -= 1;
        Ok(Some(StateBlock { number, digest: Digest::from_bytes(digest) }))
    }
}

impl Iterator for StateBlocks<'_> {
    type Item = Result<StateBlock>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let step = self.step().transpose();
        self.ended |= !matches!(step, Some(Ok(_)));
        step
    }
}

/// What a state is going to say beside the blocks.
pub(crate) struct NewState<'a> {
    pub(crate) state_dir: &'a Path,
    pub(crate) archive: Uuid,
    pub(crate) root: String,
    pub(crate) depth: u32,
    pub(crate) checkpoint: Option<String>,
    pub(crate) disks: Vec<StateDisk>,
}

/// A state that is written and not yet kept. Dropped, it is gone.
#[derive(Debug)]
pub(crate) struct PendingState(PartialFile);

impl PendingState {
    /// Writes the state; `blocks` gives each disk's, in the order of the head.
    ///
    /// # Errors
    /// It can't be written; those of `blocks`.
    pub(crate) fn write<'b>(
        new: NewState<'_>,
        blocks: &mut dyn FnMut(usize) -> Result<Box<dyn Iterator<Item = Result<StateBlock>> + 'b>>,
    ) -> Result<Self> {
        let folder = folder(new.state_dir);
        let making = || format!("cannot keep the state of blocks in '{}'", folder.display());
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        partial_file::at_directory(made, &folder, making)?;
        let partial = PartialFile::create(&folder.join(new.archive.to_string()), Overwrite::Replace)?;
        let NewState { archive, root, depth, checkpoint, disks, .. } = new;
        let count = disks.len();
        let head = StateHead { version: VERSION, archive, root, depth, checkpoint, disks };
        let head = serde_json::to_vec(&head).map_err(|e| {
            Error::new(ErrorKind::Internal, "a state of blocks can't be written").with_source(e)
        })?;
        let len = u32::try_from(head.len()).ok().filter(|len| *len <= MAX_HEAD);
        let len = len.ok_or_else(|| Error::new(ErrorKind::Unsupported, "a state of blocks is too long"))?;
        let mut out =
            Output { out: BufWriter::with_capacity(1 << 20, partial.file()), hasher: blake3::Hasher::new() };
        let written = (|| {
            out.put(MAGIC)?;
            out.put(&len.to_le_bytes())?;
            out.put(&head)?;
            for index in 0..count {
                out.disk(blocks(index)?)?;
            }
            let digest = out.hasher.finalize();
            out.put(digest.as_bytes())?;
            out.out.flush().at(making)
        })();
        drop(out);
        written.map_err(|error: Error| error.within(making()))?;
        Ok(Self(partial))
    }

    /// Keeps it, durably.
    ///
    /// # Errors
    /// It can't be named.
    pub(crate) fn keep(self) -> Result<()> {
        self.0.commit_or_drop(Overwrite::Replace)
    }
}

struct Output<'a> {
    out: BufWriter<&'a File>,
    hasher: blake3::Hasher,
}

impl Output<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.out.write_all(bytes).at(|| "it can't be written".to_owned())
    }

    fn disk(&mut self, blocks: impl Iterator<Item = Result<StateBlock>>) -> Result<()> {
        let (mut first, mut pending) = (0_u64, Vec::with_capacity(SEGMENT * DIGEST));
        for block in blocks {
            let StateBlock { number, digest } = block?;
            let held = (pending.len() / DIGEST) as u64;
            if held > 0 && (first + held != number || pending.len() == SEGMENT * DIGEST) {
                self.segment(first, &mut pending)?;
            }
            if pending.is_empty() {
                first = number;
            }
            pending.extend_from_slice(digest.as_bytes());
        }
        self.segment(first, &mut pending)?;
        self.put(&END)
    }

    fn segment(&mut self, first: u64, digests: &mut Vec<u8>) -> Result<()> {
        let count = u32::try_from(digests.len() / DIGEST).unwrap_or_default();
        if count > 0 {
            self.put(&first.to_le_bytes())?;
            self.put(&count.to_le_bytes())?;
            self.put(digests)?;
            digests.clear();
        }
        Ok(())
    }
}
