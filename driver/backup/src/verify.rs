//! Verification: every byte of an archive is read and checked.
//!
//! One strict pass front to back ([`ArchiveReader`]) decides whether the archive is sound. Where it is not,
//! the archive is opened once more, salvaging, and every disk is read again to say which of its ranges are
//! lost: the pass knows only places in the stream, and only the index can tell disks of a damaged archive.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use super::Control;
use super::inspect::root_text;
use super::known_copy::{FoundArchive, KnownCopy};
use super::restore::{LostRange, note_lost};
use super::trust::{Authenticity, TrustPolicy};
use virtfold_archive::crypt::{ArchiveFile, DecryptingReader, Identities};
use virtfold_archive::index::{ArchiveIndex, DiskPiece, Trust};
use virtfold_archive::manifest::Manifest;
use virtfold_archive::reader::{ArchiveReader, VerifiedArchive, Visitor};
use virtfold_archive::stream::{ReadAt, ReadOptions, read_pipe, tell_zeros};
use virtfold_archive::table::{CorrespondenceTable, Run};
use virtfold_base::error::{ErrorKind, Result, sentence};
use virtfold_base::units::{DenseOffset, GuestOffset};
use virtfold_catalog::{Catalog, Verification, VerifyOutcome};
use virtfold_medium::{self as medium, Location};

/// What to verify.
#[derive(Clone, Debug)]
pub struct VerifyRequest {
    /// The archive.
    pub archive: Location,
    /// What opens it, where it is encrypted.
    pub identities: Identities,
    /// Whose archives are taken.
    pub trust: TrustPolicy,
    /// Threads.
    pub workers: usize,
    /// What the catalog knows of it.
    pub known: KnownCopy,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyReport {
    /// The archive.
    pub archive: String,
    /// Its id, where its head could be read.
    pub id: Option<Uuid>,
    /// Whether every byte is what was written.
    pub sound: bool,
    /// Why it is not the archive that the catalog knows there, though its bytes agree with each other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replaced: Option<String>,
    /// Whether the archive has its end.
    pub complete: bool,
    /// Whether anything can be restored from it.
    pub salvageable: bool,
    /// What is wrong, a sentence each; empty in a sound archive.
    pub faults: Vec<String>,
    /// The ranges of disks that are lost by it.
    #[serde(skip)]
    pub damage: Vec<LostRange>,
    /// The root digest, of a sound archive.
    pub root: Option<String>,
    /// Who made it, of a sound archive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authenticity: Option<Authenticity>,
    /// Bytes of the archive.
    pub bytes: u64,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// Bytes of data in it, of a sound archive.
    pub data: Option<u64>,
    /// How long it took.
    pub seconds: f64,
    /// Whether the catalog has the result.
    pub recorded: bool,
}

/// Runs the verification. Damage is in the report, not an error.
///
/// # Errors
/// When the archive can't be read, is none at all, is encrypted and does not open, or needs a later version;
/// Refused, where it is sound and not signed as it must be.
pub fn run(request: &VerifyRequest, control: &Control) -> Result<VerifyReport> {
    let started = Instant::now();
    let source = ArchiveFile::salvage(medium::open(&request.archive)?, &request.identities)?;
    let options = read_options(request, control);
    let mut report = VerifyReport {
        bytes: source.stored(),
        encrypted: source.is_encrypted(),
        ..VerifyReport::of(request)
    };
    match pass(&source, &options, control) {
        Ok(sound) => report.accept(&sound, request)?,
        Err(error) if error.kind() == ErrorKind::Damaged || error.kind() == ErrorKind::Incomplete => {
            report.complete = error.kind() == ErrorKind::Damaged;
            report.faults.push(if source.is_encrypted() { sentence(&error) } else { error.to_string() });
            survey(&source, &options, control, &mut report)?;
            report.judge(&request.known, FoundArchive { id: report.id, ..FoundArchive::default() });
        }
        Err(error) => return Err(error),
    }
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// As [`run`], over an archive that comes front to back and once from `input`: where it is damaged, it can't
/// be read again to say what that costs. `read` counts its bytes.
///
/// # Errors
/// As [`run`], and those of `input`.
pub fn run_from(request: &VerifyRequest, control: &Control, input: impl Read + Send) -> Result<VerifyReport> {
    let started = Instant::now();
    let name = request.archive.to_string();
    let bytes = AtomicU64::new(0);
    let counted = CountingReader { input, bytes: &bytes };
    let options = read_options(request, control);
    let mut encrypted = false;
    let checked = DecryptingReader::open(counted, &name, &request.identities).and_then(|incoming| {
        encrypted = incoming.is_encrypted();
        sound(incoming, &name, &options, control)
    });
    let mut report = VerifyReport {
        salvageable: false,
        bytes: bytes.load(Ordering::Relaxed),
        encrypted,
        seconds: started.elapsed().as_secs_f64(),
        ..VerifyReport::of(request)
    };
    match checked {
        Ok(sound) => report.accept(&sound, request)?,
        Err(error) if matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Incomplete) => {
            report.complete = error.kind() == ErrorKind::Damaged;
            report.faults.push(sentence(&error));
        }
        Err(error) => return Err(error),
    }
    Ok(report)
}

fn read_options(request: &VerifyRequest, control: &Control) -> ReadOptions {
    let cancel = Arc::clone(&control.cancel);
    ReadOptions { workers: request.workers, cancel, carrier: None, archive_id: None }
}

impl VerifyReport {
    /// Of an archive that nothing is known of yet.
    pub(crate) fn of(request: &VerifyRequest) -> Self {
        Self {
            archive: request.archive.to_string(),
            id: None,
            sound: false,
            replaced: None,
            complete: true,
            salvageable: true,
            faults: Vec::new(),
            damage: Vec::new(),
            root: None,
            authenticity: None,
            bytes: 0,
            encrypted: false,
            data: None,
            seconds: 0.0,
            recorded: false,
        }
    }

    /// Notes the result in the catalog, where that knows the archive: `known` is what it does.
    ///
    /// # Errors
    /// The catalog can't be written.
    pub fn record(&mut self, known: &KnownCopy, catalog: &Catalog, now: Timestamp) -> Result<()> {
        if let Some(copy) = known.copy(self.id) {
            let outcome = if self.sound { VerifyOutcome::Sound } else { VerifyOutcome::Failed };
            let done = Verification { checked: now, root: self.root.clone(), outcome };
            self.recorded = catalog.record_verification(&copy.name, &done)?;
        }
        Ok(())
    }

    /// Every byte agrees with the root: then it is sound, if it is the archive that was written there. What
    /// must not be taken is refused, unless it was replaced: that is noted in the catalog, and a refusal is
    /// not.
    fn accept(&mut self, archive: &VerifiedArchive, request: &VerifyRequest) -> Result<()> {
        (self.sound, self.id) = (true, Some(archive.head.archive));
        self.root = Some(root_text(archive.root));
        self.data = Some(archive.end.totals.dense);
        let (root, bytes, encrypted) = (self.root.clone(), Some(self.bytes), Some(self.encrypted));
        self.judge(&request.known, FoundArchive { id: self.id, root, bytes, encrypted });
        let authenticity = request.trust.judge(archive.signature().as_ref());
        self.authenticity = Some(authenticity.clone());
        if self.replaced.is_none() {
            request.trust.admit(&self.archive, authenticity)?;
        }
        Ok(())
    }

    fn judge(&mut self, known: &KnownCopy, found: FoundArchive) {
        self.replaced = known.contradiction(&found);
        self.sound &= self.replaced.is_none();
        self.faults.extend(self.replaced.clone());
    }
}

/// Counts what is read through it.
struct CountingReader<'a, R> {
    input: R,
    bytes: &'a AtomicU64,
}

impl<R: Read> Read for CountingReader<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let got = self.input.read(buf)?;
        self.bytes.fetch_add(got as u64, Ordering::Relaxed);
        Ok(got)
    }
}

/// The strict pass over a file.
fn pass(source: &ArchiveFile, options: &ReadOptions, control: &Control) -> Result<VerifiedArchive> {
    sound(source.front_to_back()?, source.name(), options, control)
}

/// The strict pass.
fn sound(
    input: impl Read + Send,
    name: &str,
    options: &ReadOptions,
    control: &Control,
) -> Result<VerifiedArchive> {
    let mut watcher = VerifyVisitor { control };
    let mut reader = ArchiveReader::new(&mut watcher);
    let end = read_pipe(input, name, options, |chunk| reader.chunk(&chunk))?;
    end.check(name)?;
    let sound = reader.finish()?;
    end.check_id(sound.head.archive)?;
    tell_zeros(name, end.padding + sound.padding);
    Ok(sound)
}

/// Says what of the disks is lost.
fn survey(
    source: &ArchiveFile,
    options: &ReadOptions,
    control: &Control,
    report: &mut VerifyReport,
) -> Result<()> {
    let index = match ArchiveIndex::open(source, options, Trust::Salvage) {
        Ok(index) => index,
        Err(error) if error.kind() == ErrorKind::Damaged || error.kind() == ErrorKind::Incomplete => {
            report.faults.push(format!("nothing can be restored from it: {error}"));
            report.salvageable = false;
            report.complete &= error.kind() == ErrorKind::Damaged;
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    report.id = Some(index.head().archive);
    // What is both is incomplete, as a restore says.
    report.complete &= index.is_complete() && source.proven().is_ok();
    report.faults.extend(index.notes().iter().cloned());
    if !index.is_checked() {
        report.faults.push("its digests are lost: the rest can't be checked".to_owned());
    }
    control.progress.enter(
        "surveying",
        index.disks().iter().map(|disk| disk.table.dense_len()).fold(0, u64::saturating_add),
    );
    for disk in &index.head().disks {
        let Ok(found) = index.disk(&disk.target) else {
            note_lost(&mut report.damage, &disk.target, GuestOffset::ZERO, disk.capacity);
            continue;
        };
        let whole = DenseOffset::ZERO..DenseOffset::new(found.table.dense_len());
        index.read_dense(found, whole, &mut |piece, data| {
            control.progress.add(piece.len);
            if matches!(data, DiskPiece::Lost) {
                note_lost(&mut report.damage, &disk.target, piece.guest, piece.len);
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Counts, and wants nothing.
struct VerifyVisitor<'a> {
    control: &'a Control,
}

impl Visitor for VerifyVisitor<'_> {
    fn head(&mut self, head: &Manifest) -> Result<()> {
        self.control
            .progress
            .enter("verifying", head.disks.iter().map(|disk| disk.dense_length).fold(0, u64::saturating_add));
        Ok(())
    }

    fn disk(&mut self, _: usize, _: &CorrespondenceTable) -> Result<()> {
        Ok(())
    }

    fn data(&mut self, _: usize, piece: &Run, _: &[u8]) -> Result<()> {
        self.control.progress.add(piece.len);
        Ok(())
    }
}
