//! Archives on tapes, as the other jobs need them: a drive, who changes volumes, and the catalog that
//! remembers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::inspect::{ArchiveStatus, ArchiveSummary, head_from};
use virtfold_archive::crypt::{self, Identities};
use virtfold_archive::stream::Cancel;
use virtfold_base::error::{ErrorKind, Result};
use virtfold_catalog::{Catalog, NoCatalog};
use virtfold_medium::tape::{
    Changer, CommandChanger, NoChanger, NoTapeCatalog, PromptChanger, StDrive, TapeCatalog, TapeMedium,
    TapeReadOptions, TapeSource, TapeWriteOptions, VolumeAdmin, VolumeContents, VolumePart, id_of,
};
use virtfold_medium::{TapeAddress, TapeArchive};

/// How a tape drive is used.
#[derive(Clone, Debug)]
pub struct TapeOptions {
    /// The drive's device.
    pub device: PathBuf,
    /// Where the catalog is; without it nothing is remembered.
    pub state_dir: Option<PathBuf>,
    /// The command that changes volumes; without it, whoever sits at the terminal.
    pub change_command: Option<String>,
    /// How long that command may take.
    pub change_limit: Duration,
    /// How long to wait for a tape to be ready.
    pub patience: Duration,
    /// The pool that the first volume must be of.
    pub pool: Option<String>,
    /// Bytes of memory between the archive and the drive.
    pub ring: u64,
    /// After so many bytes what is written is committed.
    pub commit_every: u64,
    /// Ends the run.
    pub cancel: Cancel,
}

/// An archive on a volume.
#[derive(Clone, Debug, Serialize)]
pub struct TapeArchiveRow {
    /// Its name, as `restore` takes it.
    pub archive: String,
    /// The name of its file, were it in one.
    pub name: String,
    /// Which of its parts are on the volume.
    pub parts: Vec<u32>,
    /// Whether its last part is here, and ended: it is whole, as far as its volumes are there.
    pub complete: bool,
    /// Its bytes on this volume.
    pub bytes: u64,
    /// The data files on this volume, as `mt fsf` counts them.
    pub files: Vec<u64>,
    /// The volumes before this one.
    pub before: Vec<String>,
}

/// Memory between the archive and the drive, where nothing else is said.
const RING: u64 = 256 << 20;
/// Bytes between two commits, where nothing else is said.
const COMMIT_EVERY: u64 = 64 << 30;
/// How long a tape may take to be ready, where nothing else is said.
const PATIENCE: Duration = Duration::from_secs(120);

impl Default for TapeOptions {
    /// No drive, no catalog, and nobody but the administrator changes volumes.
    fn default() -> Self {
        Self {
            device: PathBuf::new(),
            state_dir: None,
            change_command: None,
            change_limit: Duration::ZERO,
            patience: PATIENCE,
            pool: None,
            ring: RING,
            commit_every: COMMIT_EVERY,
            cancel: Cancel::default(),
        }
    }
}

impl TapeOptions {
    fn drive(&self) -> Box<StDrive> {
        Box::new(StDrive::new(&self.device))
    }

    fn changer(&self) -> Result<Box<dyn Changer>> {
        Ok(match &self.change_command {
            Some(line) => Box::new(CommandChanger::new(line, self.change_limit)?),
            None => match PromptChanger::new() {
                Some(prompt) => Box::new(prompt),
                None => Box::new(NoChanger),
            },
        })
    }

    /// What is remembered, for who writes: the catalog, made where there is none.
    ///
    /// # Errors
    /// The catalog can't be opened.
    pub fn tape_catalog(&self) -> Result<Arc<dyn TapeCatalog>> {
        Ok(match &self.state_dir {
            Some(state_dir) => Arc::new(Catalog::open(state_dir)?),
            None => Arc::new(NoTapeCatalog),
        })
    }

    /// What is remembered, for who only reads: nothing where there is no catalog.
    ///
    /// # Errors
    /// The catalog is there and can't be opened.
    pub fn tape_catalog_if_any(&self) -> Result<Arc<dyn TapeCatalog>> {
        match &self.state_dir {
            Some(state_dir) if !NoCatalog::is_missing(state_dir) => self.tape_catalog(),
            _ => Ok(Arc::new(NoTapeCatalog)),
        }
    }

    /// Begins the archive `name` on the tape in the drive.
    ///
    /// # Errors
    /// Those of [`TapeMedium::begin`] and of the catalog.
    pub fn begin(&self, name: &str) -> Result<TapeMedium> {
        TapeMedium::begin(self.setup()?, name)
    }

    /// Goes on with the archive `name` behind what another process has committed; or says why that can't be.
    ///
    /// # Errors
    /// Those of [`TapeMedium::resume`] and of the catalog.
    pub fn resume(&self, name: &str) -> Result<std::result::Result<(TapeMedium, u64), String>> {
        TapeMedium::resume(self.setup()?, name)
    }

    fn setup(&self) -> Result<TapeWriteOptions> {
        Ok(TapeWriteOptions {
            drive: self.drive(),
            changer: self.changer()?,
            ledger: self.tape_catalog()?,
            pool: self.pool.clone(),
            ring: self.ring,
            commit_every: self.commit_every,
            patience: self.patience,
            cancel: Arc::clone(&self.cancel),
        })
    }

    /// Opens an archive to be read front to back.
    ///
    /// # Errors
    /// Those of [`TapeSource::open`] and of the catalog.
    pub fn open(&self, which: &TapeArchive) -> Result<TapeSource> {
        let reading = TapeReadOptions {
            drive: self.drive(),
            changer: self.changer()?,
            ledger: self.tape_catalog_if_any()?,
            patience: self.patience,
            cancel: Arc::clone(&self.cancel),
        };
        TapeSource::open(reading, which)
    }

    /// Looks after the tape in the drive.
    pub fn volume_admin<'a>(&self, memory: &'a dyn TapeCatalog) -> VolumeAdmin<'a> {
        VolumeAdmin::new(self.drive(), memory, self.patience, Arc::clone(&self.cancel))
    }

    /// Looks at an archive: its head, and whether its end is known.
    ///
    /// # Errors
    /// The tape can't be read, or does not hold it.
    pub fn summary(&self, which: &TapeArchive, identities: &Identities) -> Result<ArchiveSummary> {
        let source = self.open(which)?;
        let name = source.archive().to_owned();
        let vouched = source.complete();
        let mut glance = ArchiveSummary {
            archive: self.name_of(&name),
            status: if vouched.is_some() { ArchiveStatus::Complete } else { ArchiveStatus::Incomplete },
            faults: Vec::new(),
            bytes: vouched.unwrap_or(0),
            encrypted: crypt::is_encrypted_name(&name),
            head: None,
            root: None,
            signature: None,
        };
        if vouched.is_none() {
            glance.faults.push("its end is not known to be on a tape".to_owned());
        }
        match head_from(source, &name, identities) {
            Ok(head) => glance.head = Some(head),
            Err(error) => {
                glance.status = match error.kind() {
                    ErrorKind::Locked => ArchiveStatus::Encrypted,
                    ErrorKind::Damaged => ArchiveStatus::Damaged,
                    ErrorKind::Incomplete => ArchiveStatus::Incomplete,
                    ErrorKind::Unsupported => ArchiveStatus::Unreadable,
                    _ => return Err(error),
                };
                glance.faults.push(error.to_string());
            }
        }
        Ok(glance)
    }

    /// An archive's name as `restore` takes it.
    fn name_of(&self, archive: &str) -> String {
        let which = match id_of(archive) {
            "" => None,
            id => Some(TapeArchive::Id(id.to_owned())),
        };
        TapeAddress { device: self.device.clone(), archive: which }.to_string()
    }

    /// The archives on a volume, in the order of their beginnings. What was written again does not count.
    pub fn entries(&self, contents: &VolumeContents) -> Vec<TapeArchiveRow> {
        let mut entries: Vec<(uuid::Uuid, TapeArchiveRow)> = Vec::new();
        for part in contents.parts.iter().filter(|part| !contents.is_superseded(part)) {
            let VolumePart { begin, end, file, .. } = part;
            // Another archive may lie between the parts of one that went on.
            let at = entries.iter().position(|(run, _)| *run == begin.run).unwrap_or(entries.len());
            if at == entries.len() {
                let entry = TapeArchiveRow {
                    archive: self.name_of(&begin.archive),
                    name: begin.archive.clone(),
                    parts: Vec::new(),
                    complete: false,
                    bytes: 0,
                    files: Vec::new(),
                    before: begin.earlier.volumes.clone(),
                };
                entries.push((begin.run, entry));
            }
            if let Some((_, entry)) = entries.get_mut(at) {
                entry.parts.push(begin.part);
                entry.files.push(*file);
                entry.bytes += end.as_ref().map_or(0, |end| end.bytes);
                entry.complete |= end.as_ref().is_some_and(|end| end.last);
            }
        }
        entries.into_iter().map(|(_, entry)| entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use virtfold_medium::tape::{EarlierParts, PartHeader, PartTrailer, TapeBlock, VolumeLabel};

    /// A part of ten bytes.
    fn part(file: u64, run: Uuid, number: u32, again: u32, last: Option<bool>) -> VolumePart {
        let volume = Uuid::nil();
        let begin = PartHeader {
            volume,
            run,
            archive: format!("a-{run}.tar"),
            part: number,
            offset: 0,
            earlier: EarlierParts { again, ..EarlierParts::default() },
            block_size: TapeBlock::default(),
            created: String::new(),
        };
        let end = last.map(|last| PartTrailer {
            volume,
            run,
            part: number,
            file,
            start: 0,
            blocks: 1,
            bytes: 10,
            digest: String::new(),
            total: 10,
            last,
        });
        VolumePart { file, start: 0, begin, end }
    }

    #[test]
    fn an_archive_that_went_on_behind_another_one_is_listed_once() {
        let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
        let parts = vec![
            part(2, one, 1, 0, Some(false)),
            part(5, one, 2, 0, None),
            part(7, other, 1, 0, Some(true)),
            part(10, one, 2, 1, Some(true)),
        ];
        let label = VolumeLabel {
            volume: Uuid::nil(),
            label: "T0".to_owned(),
            pool: "default".to_owned(),
            block_size: TapeBlock::default(),
            created: String::new(),
            retain_until: None,
            tool: String::new(),
        };
        let contents = VolumeContents { label, parts, blocks: 0, files: 0 };
        let drive = TapeOptions { device: "/dev/nst0".into(), ..TapeOptions::default() };
        let entries = drive.entries(&contents);
        let seen = entries.iter().map(|e| (e.parts.as_slice(), e.files.as_slice(), e.bytes, e.complete));
        let whole = [(&[1, 2][..], &[2, 10][..], 20, true), (&[1][..], &[7][..], 10, true)];
        assert!(seen.eq(whole), "{entries:?}");
    }
}
