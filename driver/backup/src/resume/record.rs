//! A record on disk: `resume/ARCHIVE/` in the state directory, its owner's alone.
//!
//! - `origin.json`, `virtfold.json`, `member-N`: what the archive is made of, its head and its other members
//!   as they are in it. They are whole: the directory gets its name when they are durable.
//! - `rows-N`: the rows of each disk's allocation table, as they are in the archive, with a digest behind
//!   them. They are made again from the images in no other way: which parts of a block are holes is what the
//!   file system says, and it says now this, now that ([`SavedAllocation`]).
//! - `chunks`: one entry of 44 bytes for each chunk that was put out, its record and a CRC over that, its
//!   number and the archive's id.
//! - `marks`: what the medium says is durable, a line of JSON each, behind a CRC. The file is locked by the
//!   process that writes the archive.
//!
//! The key of an encrypted archive is not here: it must not get to a disk ([`SavedEnvelope`]).
//!
//! The two logs grow at their ends; what is torn there, or not right, is cut off with all that follows.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::SavedEnvelope;
use super::fingerprint::{Fingerprint, MAX_LEN};
use super::saved_allocation::SavedAllocation;
use virtfold_archive::crypt::Envelope;
use virtfold_archive::manifest::{self, Manifest};
use virtfold_archive::stream::{ChunkLog, ChunkRecord, ChunkRecords, Digest};
use virtfold_archive::writer::{Attachment, DiskTables};
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::partial_file;
use virtfold_medium::{DurableMark, DurableMarks, PartialArchive};

/// Bytes of a chunk's entry.
const ENTRY: usize = 44;
/// The most bytes of marks that are believed.
const MAX_MARKS: u64 = 64 << 20;
/// The longest member beside the disks that is read back, bytes.
const MAX_MEMBER: u64 = 256 << 20;
/// The time between two syncs of marks.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// A record, held by this process. Dropped, it is gone, unless something was left that is to be gone on with.
#[derive(Debug)]
pub(crate) struct ResumeRecord {
    directory: PathBuf,
    pub(super) notes: Arc<DurableMarkFile>,
    /// The key of an encrypted archive.
    key: Option<SavedEnvelope>,
    is_kept: bool,
}

impl ResumeRecord {
    /// It stays when it is dropped.
    pub(super) fn keep_for_resume(&mut self) {
        self.is_kept = true;
    }

    /// Keeps the key of its archive, which goes and stays with it.
    pub(super) fn hold(&mut self, keys: &Path, archive: Uuid, envelope: &Envelope) -> Result<()> {
        self.key = Some(SavedEnvelope::keep(keys, archive, envelope)?);
        Ok(())
    }

    /// The key of its archive; `None` where there is none.
    pub(super) fn envelope(&self) -> Result<Option<Envelope>> {
        self.key.as_ref().map(SavedEnvelope::read).transpose().map(Option::flatten)
    }
}

impl Drop for ResumeRecord {
    fn drop(&mut self) {
        if self.is_kept || self.notes.left.load(Ordering::Relaxed) {
            self.key.iter_mut().for_each(SavedEnvelope::leave);
            return;
        }
        // Before the record: a key that no record knows nobody would ever remove, should this process be
        // killed here.
        drop(self.key.take());
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            tracing::warn!(record = %self.directory.display(), %error, "the record of a backup could not be removed");
        }
    }
}

/// The log of marks, and the lock. A killed process's marks are there in any case; for a power cut's sake
/// they are synced now and then.
#[derive(Debug)]
pub(super) struct DurableMarkFile {
    /// The file, when it was last synced, and whether it still takes marks.
    file: Mutex<(File, Instant, bool)>,
    left: AtomicBool,
}

impl DurableMarkFile {
    fn new(file: File) -> Arc<Self> {
        Arc::new(Self { file: Mutex::new((file, Instant::now(), true)), left: AtomicBool::new(false) })
    }
}

impl Drop for DurableMarkFile {
    fn drop(&mut self) {
        let (file, ..) = self.file.get_mut().unwrap_or_else(PoisonError::into_inner);
        // A process that another thread is just starting has the file open, too, for a moment.
        if let Err(error) = file.unlock() {
            tracing::warn!(%error, "a record's lock could not be given back; it goes with its file");
        }
    }
}

impl DurableMarks for DurableMarkFile {
    fn note(&self, mark: &DurableMark) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let (open, synced, takes) = &mut *file;
        if !*takes {
            return;
        }
        let mut written = encode_mark(mark).and_then(|line| open.write_all(&line));
        if synced.elapsed() >= SYNC_EVERY {
            written = written.and_then(|()| open.sync_data());
            *synced = Instant::now();
        }
        if let Err(error) = written {
            // Behind half a line nothing would be read.
            tracing::warn!(%error, "if this backup is interrupted, it resumes from here at best");
            *takes = false;
        }
    }

    fn left_behind(&self) {
        self.left.store(true, Ordering::Relaxed);
    }
}

pub(super) fn encode_mark(mark: &DurableMark) -> std::io::Result<Vec<u8>> {
    let json = serde_json::to_string(mark)?;
    Ok(format!("{:08x} {json}\n", crc32c::crc32c(json.as_bytes())).into_bytes())
}

fn decode_mark(line: &[u8]) -> Option<DurableMark> {
    let line = std::str::from_utf8(line).ok()?;
    let (crc, json) = line.strip_suffix('\n')?.split_once(' ')?;
    let is_right = crc.len() == 8 && u32::from_str_radix(crc, 16).ok()? == crc32c::crc32c(json.as_bytes());
    serde_json::from_str(json).ok().filter(|_| is_right)
}

/// Reads marks; also how many bytes of them are right.
pub fn read_marks(bytes: &[u8]) -> (PartialArchive, u64) {
    let mut remains = PartialArchive::default();
    let mut right = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let Some(mark) = decode_mark(line) else { break };
        remains.take(mark);
        right += line.len() as u64;
    }
    (remains, right)
}

/// A chunk's entry.
fn entry(archive: Uuid, number: u64, chunk: &ChunkRecord) -> [u8; ENTRY] {
    let record = chunk.encode();
    let crc = crc32c::crc32c(archive.as_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(crc, &number.to_le_bytes()), &record);
    let mut out = [0; ENTRY];
    out.iter_mut().zip(record.into_iter().chain(crc.to_le_bytes())).for_each(|(to, from)| *to = from);
    out
}

/// Reads entries of chunks until one is torn or wrong; also how many bytes of them are right.
///
/// # Errors
/// When they can't be read, or don't fit anywhere.
pub fn read_chunks(archive: Uuid, mut input: impl Read) -> Result<(ChunkRecords, u64)> {
    let mut chunks = ChunkRecords::default();
    loop {
        let mut bytes = [0; ENTRY];
        match input.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(Error::io("cannot read the record of a backup", error)),
        }
        let chunk = bytes.first_chunk().and_then(ChunkRecord::decode);
        let Some(chunk) = chunk.filter(|chunk| entry(archive, chunks.len(), chunk) == bytes) else { break };
        chunks.push(&chunk)?;
    }
    let right = chunks.len() * ENTRY as u64;
    Ok((chunks, right))
}

/// The chunks of an archive, in memory, and where there is a record, in it.
#[derive(Debug, Default)]
pub struct ChunkJournal {
    chunks: ChunkRecords,
    file: Option<(File, Uuid)>,
}

impl ChunkJournal {
    /// A log of the archive's chunks from its beginning, which goes into `file`, too.
    pub(super) fn to(file: File, archive: Uuid) -> Self {
        Self { chunks: ChunkRecords::default(), file: Some((file, archive)) }
    }

    /// As [`ChunkRecords::keep_within`].
    ///
    /// # Errors
    /// As there.
    pub fn keep_within(&mut self, durable: u64) -> Result<u64> {
        self.chunks.keep_within(durable)
    }
}

impl ChunkLog for ChunkJournal {
    fn kept(&self) -> u64 {
        self.chunks.kept()
    }

    fn get(&self, number: u64) -> Result<ChunkRecord> {
        self.chunks.get(number)
    }

    fn note(&mut self, number: u64, chunk: &ChunkRecord) -> Result<()> {
        let is_new = number == self.chunks.len();
        self.chunks.note(number, chunk)?;
        let Some((file, archive)) = self.file.as_mut().filter(|_| is_new) else { return Ok(()) };
        if let Err(error) = file.write_all(&entry(*archive, number, chunk)) {
            tracing::warn!(%error, "if this backup is interrupted, it resumes from here at best");
            self.file = None;
        }
        Ok(())
    }
}

/// Where records lie.
fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("resume")
}

/// What is saved of an archive: its head, its other members, its disks' tables.
pub(super) type RecordParts<'a> = (&'a Manifest, &'a [Attachment], &'a [&'a dyn DiskTables]);

/// Begins a record.
pub(super) fn begin(
    state_dir: &Path,
    origin: &Fingerprint,
    (head, attachments, tables): RecordParts<'_>,
) -> Result<(ResumeRecord, ChunkJournal)> {
    let folder = folder(state_dir);
    let cannot = || format!("cannot keep a record in '{}'", folder.display());
    if !state_dir.is_dir() {
        DirBuilder::new().recursive(true).mode(0o711).create(state_dir).at(cannot)?;
    }
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
    partial_file::at_directory(made, &folder, cannot)?;
    let directory = folder.join(origin.archive.to_string());
    let fresh = folder.join(format!("{}.new", origin.archive));
    DirBuilder::new().mode(0o700).create(&fresh).at(cannot)?;
    let made = fill(&fresh, origin, (head, attachments, tables));
    let (marks, chunks) = match made {
        Ok(made) => made,
        Err(error) => {
            fs::remove_dir_all(&fresh).unwrap_or_default();
            return Err(error.within(cannot()));
        }
    };
    fs::rename(&fresh, &directory).at(cannot)?;
    File::open(&folder).and_then(|folder| folder.sync_all()).at(cannot)?;
    let record = ResumeRecord { directory, notes: DurableMarkFile::new(marks), key: None, is_kept: false };
    Ok((record, ChunkJournal::to(chunks, origin.archive)))
}

fn fill(
    directory: &Path,
    origin: &Fingerprint,
    (head, attachments, tables): RecordParts<'_>,
) -> Result<(File, File)> {
    let make = |name: &str, bytes: &[u8]| -> Result<File> {
        let path = directory.join(name);
        let cannot = || format!("cannot write '{}'", path.display());
        let opened = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let mut file = opened.at(cannot)?;
        file.write_all(bytes).at(cannot)?;
        file.sync_all().at(cannot)?;
        Ok(file)
    };
    make("origin.json", &origin.encode()?)?;
    make("virtfold.json", &head.encode()?)?;
    for (index, attachment) in attachments.iter().enumerate() {
        make(&format!("member-{index}"), &attachment.content)?;
    }
    for (index, tables) in tables.iter().enumerate() {
        SavedAllocation::write(&directory.join(format!("rows-{index}")), *tables)?;
    }
    let chunks = make("chunks", b"")?;
    let marks = make("marks", b"")?;
    lock(&marks, directory)?;
    File::open(directory).and_then(|directory| directory.sync_all()).at(|| "cannot sync it".to_owned())?;
    Ok((marks, chunks))
}

/// Whether this process has the record now; else another one has it.
fn lock(marks: &File, directory: &Path) -> Result<bool> {
    match marks.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(e)) => Err(Error::io(format!("cannot lock '{}'", directory.display()), e)),
    }
}

/// A record that lies there, of a living process or a dead one.
pub(super) struct RecordInUse {
    directory: PathBuf,
    pub(super) origin: Fingerprint,
}

/// A dead process's record, with all that is in it.
pub(super) struct SavedRecord {
    pub(super) record: ResumeRecord,
    pub(super) origin: Fingerprint,
    pub(super) head: Manifest,
    pub(super) attachments: Vec<Attachment>,
    pub(super) rows: Vec<SavedAllocation>,
    pub(super) log: ChunkJournal,
    pub(super) remains: PartialArchive,
}

/// All records that can be read. One that can't be is nobody's to go on with.
pub(super) fn all(state_dir: &Path) -> Result<Vec<RecordInUse>> {
    let folder = folder(state_dir);
    let cannot = || format!("cannot read '{}'", folder.display());
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        // A person who may not see the records has none there.
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied) => {
            return Ok(Vec::new());
        }
        Err(e) => return Err(Error::io(cannot(), e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let directory = entry.at(cannot)?.path();
        let name = directory.file_name().and_then(|name| name.to_str()).map(ToOwned::to_owned);
        if name.is_none_or(|name| Uuid::parse_str(&name).is_err()) {
            continue;
        }
        match read(&directory.join("origin.json"), MAX_LEN).and_then(|bytes| Fingerprint::parse(&bytes)) {
            Ok(origin) => found.push(RecordInUse { directory, origin }),
            Err(error) => tracing::debug!(%error, record = %directory.display(), "a record is left alone"),
        }
    }
    found.sort_by(|a, b| a.directory.cmp(&b.directory));
    Ok(found)
}

/// All of a file, which has `most` bytes at most.
fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    let cannot = || format!("cannot read '{}'", path.display());
    let file = File::open(path).at(cannot)?;
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).at(cannot)?;
    if bytes.len() as u64 > most {
        return Err(Error::new(ErrorKind::Damaged, format!("'{}' is too long", path.display())));
    }
    Ok(bytes)
}

impl RecordInUse {
    /// Takes the record over; `None` where its process lives, or it is gone or damaged. A damaged one is
    /// removed.
    pub(super) fn open(self) -> Result<Option<SavedRecord>> {
        let path = self.directory.join("marks");
        let marks = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(marks) => marks,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(format!("cannot open '{}'", path.display()), e)),
        };
        if !lock(&marks, &self.directory)? || !path.exists() {
            return Ok(None);
        }
        let (directory, origin) = (self.directory.clone(), self.origin.clone());
        self.load(marks).map(Some).or_else(|error| {
            tracing::warn!(
                "the record of '{}' can't be used: {}",
                origin.name,
                virtfold_base::error::sentence(&error)
            );
            // Goes before the record.
            drop(origin.key());
            fs::remove_dir_all(&directory).at(|| format!("cannot remove '{}'", directory.display()))?;
            Ok(None)
        })
    }

    fn load(self, mut marks: File) -> Result<SavedRecord> {
        let Self { directory, origin } = self;
        let cannot = || format!("cannot read '{}'", directory.display());
        let wrong = || Error::new(ErrorKind::Damaged, format!("'{}' is damaged", directory.display()));
        let head = read(&directory.join("virtfold.json"), manifest::MAX_LEN)?;
        if Digest::of(&head) != origin.head {
            return Err(wrong());
        }
        let head = Manifest::parse(&head)?;
        let mut attachments = Vec::new();
        for (index, (name, len, digest)) in origin.members.iter().enumerate() {
            let content = read(&directory.join(format!("member-{index}")), MAX_MEMBER.min(*len))?;
            if Digest::of(&content) != *digest {
                return Err(wrong());
            }
            attachments.push(Attachment { name: name.clone(), content });
        }
        let rows = |index| SavedAllocation::open(&directory.join(format!("rows-{index}")));
        let rows = (0..head.disks.len()).map(rows).collect::<Result<_>>()?;
        let mut bytes = Vec::new();
        Read::by_ref(&mut marks).take(MAX_MARKS).read_to_end(&mut bytes).at(cannot)?;
        let (remains, right) = read_marks(&bytes);
        cut(&mut marks, right).at(cannot)?;
        let opened = OpenOptions::new().read(true).write(true).open(directory.join("chunks"));
        let mut file = opened.at(cannot)?;
        let (chunks, right) = read_chunks(origin.archive, BufReader::new(&file))?;
        cut(&mut file, right).at(cannot)?;
        let log = ChunkJournal { chunks, file: Some((file, origin.archive)) };
        let record =
            ResumeRecord { directory, notes: DurableMarkFile::new(marks), key: origin.key(), is_kept: false };
        Ok(SavedRecord { record, origin, head, attachments, rows, log, remains })
    }
}

/// Cuts off what is not right, and goes to the end.
fn cut(file: &mut File, right: u64) -> std::io::Result<()> {
    file.set_len(right)?;
    file.seek(SeekFrom::Start(right)).map(drop)
}
