//! A volume from end to end: its label, its parts, where the next one goes.
//!
//! Reading it goes from file to file ([`walk`]); the data are jumped over. What is there in which order
//! FORMAT.md says.
//!
//! Imports: `error`, `positioned_drive`, `record`.

use serde::Serialize;
use uuid::Uuid;

use super::positioned_drive::{PositionedDrive, ReadOutcome, WriteOutcome};
use super::record::{
    PartHeader, PartTrailer, RECORD, TapeBlock, TapeRecord, VolumeLabel, check_label, foreign, now,
};
use virtfold_base::error::{Error, ErrorKind, Result};

/// What is at the beginning of a tape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum VolumeContent {
    /// Nothing.
    Blank,
    /// A volume of ours.
    Ours(VolumeLabel),
    /// Somebody else's, or one of ours whose label is damaged or of another version; who, or why.
    Foreign(String),
}

/// A part on a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VolumePart {
    /// The number of its data file on the volume.
    pub file: u64,
    /// Position of its first data block.
    pub start: u64,
    /// Its begin.
    pub begin: PartHeader,
    /// Its end, where it has one.
    pub end: Option<PartTrailer>,
}

impl VolumePart {
    /// Of two parts of one run and one number the one counts that is worth more: how often the run had gone
    /// on, and whether there is an end.
    pub(super) fn worth(&self) -> (u32, bool) {
        (self.begin.earlier.again, self.end.is_some())
    }
}

impl VolumeContents {
    /// Whether a part was written again behind it, when its run went on here: then it is not the archive's.
    pub fn is_superseded(&self, part: &VolumePart) -> bool {
        let same =
            |other: &&VolumePart| other.begin.run == part.begin.run && other.begin.part == part.begin.part;
        self.parts.iter().filter(same).any(|other| (part.worth(), part.file) < (other.worth(), other.file))
    }
}

/// What a volume holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VolumeContents {
    /// Its label.
    pub label: VolumeLabel,
    /// Its parts, in their order.
    pub parts: Vec<VolumePart>,
    /// Blocks and filemarks on it.
    pub blocks: u64,
    /// Files on it that are ended by a filemark.
    pub files: u64,
}

/// What a tape is to be labelled with.
#[derive(Clone, Debug)]
pub struct NewLabel {
    /// What a person calls it.
    pub label: String,
    /// Which volumes it goes with.
    pub pool: String,
    /// Length of data blocks.
    pub block_size: TapeBlock,
    /// Until when its archives are kept.
    pub retain_until: Option<String>,
}

/// Whether something that may be wanted is overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    /// No.
    Refuse,
    /// Yes, a person said so.
    Force,
}

fn buffer() -> Vec<u8> {
    vec![0; TapeBlock::LARGEST]
}

/// Looks at the beginning of a tape.
pub(super) fn face(deck: &mut PositionedDrive) -> Result<VolumeContent> {
    deck.rewind()?;
    let mut buf = buffer();
    let block = match deck.read(&mut buf) {
        Ok(ReadOutcome::End) => return Ok(VolumeContent::Blank),
        Ok(ReadOutcome::Filemark) => {
            return Ok(VolumeContent::Foreign("an unknown program (it begins with a filemark)".to_owned()));
        }
        Ok(ReadOutcome::Block(len)) => buf.get(..len).unwrap_or_default(),
        Err(error) => return Err(error),
    };
    if !TapeRecord::is_one(block) {
        return Ok(VolumeContent::Foreign(foreign(block).to_owned()));
    }
    match TapeRecord::decode(block) {
        Ok(TapeRecord::Label(label)) => Ok(VolumeContent::Ours(label)),
        Ok(_) => Ok(VolumeContent::Foreign("virtfold (it does not begin with a label)".to_owned())),
        Err(error) => Ok(VolumeContent::Foreign(format!("virtfold ({error})"))),
    }
}

/// The label of a tape that has to be ours.
pub(super) fn label_of(deck: &mut PositionedDrive) -> Result<VolumeLabel> {
    let name = deck.name().to_owned();
    match face(deck)? {
        VolumeContent::Ours(label) => Ok(label),
        VolumeContent::Blank => {
            Err(Error::new(ErrorKind::NotFound, format!("the tape in '{name}' is blank: it has no label"))
                .with_hint(format!("label it first: 'virtfold tape label tape:{name} LABEL'")))
        }
        VolumeContent::Foreign(who) => Err(not_ours(&name, &who)),
    }
}

fn not_ours(name: &str, who: &str) -> Error {
    Error::new(ErrorKind::Exists, format!("the tape in '{name}' was written by {who}"))
        .with_hint("use another tape; 'virtfold tape label --force' overwrites it, and its data are lost")
}

/// Reads what a volume holds, from file to file. The tape is at the end then; the flag says what an append
/// has to write first.
pub(super) fn walk(deck: &mut PositionedDrive) -> Result<(VolumeContents, VolumeEnd)> {
    let label = label_of(deck)?;
    let mut walk = VolumeWalk { buf: buffer(), file: 0, parts: Vec::new(), tail: VolumeEnd::Clean };
    if deck.forward_file()? {
        walk.file = 1;
        walk.records(deck, &label)?;
    } else {
        walk.tail = VolumeEnd::Open;
    }
    let contents = VolumeContents { label, parts: walk.parts, blocks: deck.at(), files: walk.file };
    Ok((contents, walk.tail))
}

/// What is missing at the end of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VolumeEnd {
    /// Nothing: the last file has its filemark.
    Clean,
    /// A filemark.
    Open,
    /// A filemark, and an empty data file.
    OpenBegin,
    /// An empty data file.
    Begin,
}

impl VolumeEnd {
    /// Filemarks that make it clean.
    fn marks(self) -> u32 {
        match self {
            Self::Clean => 0,
            Self::Open | Self::Begin => 1,
            Self::OpenBegin => 2,
        }
    }
}

struct VolumeWalk {
    buf: Vec<u8>,
    /// The file that the tape is at the beginning of.
    file: u64,
    parts: Vec<VolumePart>,
    tail: VolumeEnd,
}

impl VolumeWalk {
    /// From the file behind the label to the end.
    fn records(&mut self, deck: &mut PositionedDrive, label: &VolumeLabel) -> Result<()> {
        loop {
            let len = match deck.read(&mut self.buf)? {
                ReadOutcome::End => return Ok(()),
                ReadOutcome::Filemark => {
                    self.file += 1;
                    continue;
                }
                ReadOutcome::Block(len) => len,
            };
            let at = deck.at() - 1;
            let record = TapeRecord::decode(self.buf.get(..len).unwrap_or_default());
            let place =
                || format!("file {} of volume '{}', at block {at}, can't be read", self.file, label.label);
            match record.map_err(|e| e.within(place()))? {
                TapeRecord::End(end) => self.end(deck, end)?,
                TapeRecord::Begin(begin) if begin.volume == label.volume => {
                    if !self.begin(deck, begin)? {
                        return Ok(());
                    }
                }
                _ => {
                    let what = format!("{} in the wrong place, or of another volume", place());
                    return Err(Error::new(ErrorKind::Damaged, what));
                }
            }
            if self.tail != VolumeEnd::Clean {
                return Ok(());
            }
        }
    }

    fn end(&mut self, deck: &mut PositionedDrive, end: PartTrailer) -> Result<()> {
        let fits = |part: &&mut VolumePart| part.begin.run == end.run && part.begin.part == end.part;
        if let Some(part) = self.parts.last_mut().filter(fits) {
            part.end = Some(end);
        }
        if deck.forward_file()? {
            self.file += 1;
        } else {
            self.tail = VolumeEnd::Open;
        }
        Ok(())
    }

    /// A begin and its data file; false at the end of the tape.
    fn begin(&mut self, deck: &mut PositionedDrive, begin: PartHeader) -> Result<bool> {
        if !deck.forward_file()? {
            self.tail = VolumeEnd::OpenBegin;
            return Ok(false);
        }
        self.file += 1;
        let start = deck.at();
        self.parts.push(VolumePart { file: self.file, start, begin, end: None });
        if deck.forward_file()? {
            self.file += 1;
            return Ok(true);
        }
        self.tail = if deck.at() == start { VolumeEnd::Begin } else { VolumeEnd::Open };
        Ok(false)
    }
}

/// Goes to where the next part goes, and makes the end clean. Returns the number of the file that begins
/// there.
pub(super) fn go_to_end(deck: &mut PositionedDrive, label: &VolumeLabel) -> Result<u64> {
    let end = deck.end_of_data()?;
    let next = if end == 2 { Some(1) } else { behind_end(deck, label, end)? };
    let next = match next {
        Some(next) => next,
        None => {
            let (contents, tail) = walk(deck)?;
            deck.end_of_data()?;
            (0..tail.marks()).try_for_each(|_| deck.commit())?;
            contents.files + u64::from(tail.marks())
        }
    };
    deck.check("looking for the end of the data")?;
    Ok(next)
}

/// The number of the next file, where the last one of the tape is an end with its filemark. The tape is at
/// the end then.
fn behind_end(deck: &mut PositionedDrive, label: &VolumeLabel, end: u64) -> Result<Option<u64>> {
    let Some(at) = end.checked_sub(2).filter(|at| *at > 0) else { return Ok(None) };
    deck.seek(at)?;
    let mut buf = buffer();
    let ReadOutcome::Block(RECORD) = deck.read(&mut buf)? else { return Ok(None) };
    let Ok(TapeRecord::End(last)) = TapeRecord::decode(buf.get(..RECORD).unwrap_or_default()) else {
        return Ok(None);
    };
    let whole = last.volume == label.volume
        && deck.read(&mut buf)? == ReadOutcome::Filemark
        && deck.end_of_data()? == end;
    Ok(last.file.checked_add(2).filter(|_| whole))
}

/// Fails unless a tape may be overwritten.
pub(super) fn may_overwrite(deck: &mut PositionedDrive, overwrite: Overwrite) -> Result<()> {
    if overwrite == Overwrite::Force {
        return Ok(());
    }
    let name = deck.name().to_owned();
    let label = match face(deck)? {
        VolumeContent::Blank => return Ok(()),
        VolumeContent::Foreign(who) => return Err(not_ours(&name, &who)),
        VolumeContent::Ours(label) => label,
    };
    let until = label.retain_until.as_deref();
    let expired = until.is_some_and(|until| {
        until.parse::<jiff::Timestamp>().is_ok_and(|until| until < jiff::Timestamp::now())
    });
    // What is behind the label: two positions are the label and its filemark.
    if expired || deck.end_of_data()? <= 2 {
        return Ok(());
    }
    let kept =
        until.map_or_else(|| "which are kept".to_owned(), |until| format!("which are kept until {until}"));
    let what = format!("volume '{}' in '{name}' holds archives, {kept}", label.label);
    Err(Error::new(ErrorKind::Exists, what).with_hint("use another tape, or --force: its data are then lost"))
}

/// Writes a new label; everything on the tape is gone then.
pub(super) fn label(deck: &mut PositionedDrive, new: &NewLabel) -> Result<VolumeLabel> {
    check_label(&new.label)?;
    check_label(&new.pool)?;
    let label = VolumeLabel {
        volume: Uuid::new_v4(),
        label: new.label.clone(),
        pool: new.pool.clone(),
        block_size: new.block_size,
        created: now(),
        retain_until: new.retain_until.clone(),
        tool: concat!("virtfold ", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    deck.rewind()?;
    if deck.write(&TapeRecord::Label(label.clone()).encode()?, "writing a label")? != WriteOutcome::Written {
        let what = format!("the tape in '{}' is full after its label", deck.name());
        return Err(Error::new(ErrorKind::NoSpace, what).with_hint("it is worn out; use another tape"));
    }
    deck.commit()?;
    // What was written is believed when it was read.
    match face(deck)? {
        VolumeContent::Ours(read) if read == label => Ok(label),
        _ => {
            let what = format!("the label in '{}' does not read as it was written", deck.name());
            Err(Error::new(ErrorKind::Damaged, what).with_hint("clean the drive, or use another tape"))
        }
    }
}
