//! Labels, begins and ends: the records of FORMAT.md, and who else writes on tapes.
//!
//! Imports: `error`.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use virtfold_base::error::{Error, ErrorKind, Result};

/// Bytes of a record.
pub(super) const RECORD: usize = 4096;
const BODY: usize = RECORD - blake3::OUT_LEN;
const MAGIC: &str = "virtfold tape ";
const VERSION: &str = "1";
/// The longest label and name of a pool, bytes.
const MAX_LABEL: usize = 32;
/// Labels of earlier volumes in a begin.
pub(super) const BEFORE: usize = 64;

/// Length of a data block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct TapeBlock(usize);

impl TapeBlock {
    /// The largest: every drive and every reader takes it.
    pub const LARGEST: usize = 1 << 20;
    const SMALLEST: usize = 64 << 10;

    /// A multiple of 4096 from 64 KiB to 1 MiB.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for any other length.
    pub fn new(bytes: u64) -> Result<Self> {
        match usize::try_from(bytes) {
            Ok(len) if len % 4096 == 0 && (Self::SMALLEST..=Self::LARGEST).contains(&len) => Ok(Self(len)),
            _ => {
                let what = format!("invalid block size {bytes} for tapes");
                Err(Error::new(ErrorKind::Usage, what).with_hint("use a multiple of 4KiB from 64KiB to 1MiB"))
            }
        }
    }

    /// Bytes.
    pub fn get(self) -> usize {
        self.0
    }
}

impl Default for TapeBlock {
    fn default() -> Self {
        Self(256 << 10)
    }
}

impl TryFrom<u64> for TapeBlock {
    type Error = Error;

    fn try_from(bytes: u64) -> Result<Self> {
        Self::new(bytes)
    }
}

impl From<TapeBlock> for u64 {
    fn from(block: TapeBlock) -> Self {
        block.0 as Self
    }
}

/// A volume's name or its pool's: 1 to 32 of `A-Z a-z 0-9 . _ -`.
///
/// # Errors
/// [`ErrorKind::Usage`] for any other text.
pub fn check_label(text: &str) -> Result<()> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if (1..=MAX_LABEL).contains(&text.len()) && text.bytes().all(allowed) {
        return Ok(());
    }
    let what = format!("invalid volume label or pool '{}'", text.escape_debug());
    Err(Error::new(ErrorKind::Usage, what).with_hint("use 1 to 32 letters, digits, '.', '_' or '-'"))
}

/// File 0 of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeLabel {
    /// New with each labelling.
    pub volume: Uuid,
    /// What a person calls it.
    pub label: String,
    /// Which volumes it goes with.
    pub pool: String,
    /// Length of data blocks.
    pub block_size: TapeBlock,
    /// When it was labelled.
    pub created: String,
    /// Until when its archives are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain_until: Option<String>,
    /// Who wrote it.
    pub tool: String,
}

/// What stands before a data file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartHeader {
    /// The volume that it was written to.
    pub volume: Uuid,
    /// The same for all parts of an archive.
    pub run: Uuid,
    /// The archive's name.
    pub archive: String,
    /// From 1.
    pub part: u32,
    /// Bytes of the archive in the parts before.
    pub offset: u64,
    /// Where the parts before are.
    #[serde(flatten)]
    pub earlier: EarlierParts,
    /// Length of the data blocks.
    pub block_size: TapeBlock,
    /// When it was begun.
    pub created: String,
}

/// What a begin says of the parts before it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlierParts {
    /// Labels of the other volumes with parts before this one, the last 64.
    #[serde(rename = "before")]
    pub volumes: Vec<String>,
    /// The number of the first part on each of them. Without these, each holds one part.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub firsts: Vec<u32>,
    /// How often the run had gone on behind a volume that failed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub again: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl EarlierParts {
    /// The other volumes, the last first, each with the lowest number of its parts that is known; `part` is
    /// the number that this belongs to.
    pub(super) fn backwards(&self, part: u32) -> impl Iterator<Item = (u32, &String)> {
        let count = self.volumes.len();
        let said = self.firsts.len() == count;
        let first = move |place: usize| match self.firsts.get(place).filter(|_| said) {
            Some(first) => *first,
            None => part.saturating_sub(u32::try_from(count - place).unwrap_or(u32::MAX)),
        };
        self.volumes.iter().enumerate().rev().map(move |(place, label)| (first(place), label))
    }
}

/// What stands behind a data file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartTrailer {
    /// As in the begin.
    pub volume: Uuid,
    /// As in the begin.
    pub run: Uuid,
    /// As in the begin.
    pub part: u32,
    /// Number of the data file on the volume.
    pub file: u64,
    /// Position of the first data block.
    pub start: u64,
    /// Blocks of the data file.
    pub blocks: u64,
    /// Bytes of the data file.
    pub bytes: u64,
    /// BLAKE3 of the data file, hexadecimal.
    pub digest: String,
    /// Bytes of the archive up to here.
    pub total: u64,
    /// Whether the archive ends here.
    pub last: bool,
}

/// Any record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TapeRecord {
    /// File 0.
    Label(VolumeLabel),
    /// Before a data file.
    Begin(PartHeader),
    /// Behind one.
    End(PartTrailer),
}

impl TapeRecord {
    /// The block.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] where it does not fit, which the bounds of its texts exclude.
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let (kind, json) = match self {
            Self::Label(label) => ("label", serde_json::to_string(label)),
            Self::Begin(begin) => ("begin", serde_json::to_string(begin)),
            Self::End(end) => ("end", serde_json::to_string(end)),
        };
        let cannot = |what: &str| Error::new(ErrorKind::Internal, format!("a {kind} of a tape {what}"));
        let json = json.map_err(|e| cannot("can't be written").with_source(e))?;
        let mut block = format!("{MAGIC}{kind} {VERSION}\n{json}\n").into_bytes();
        if block.len() > BODY {
            return Err(cannot("is too long"));
        }
        block.resize(BODY, 0);
        let digest = blake3::hash(&block);
        block.extend_from_slice(digest.as_bytes());
        Ok(block)
    }

    /// Whether a block says that it is a record, of whatever version.
    pub(super) fn is_one(block: &[u8]) -> bool {
        block.starts_with(MAGIC.as_bytes())
    }

    /// Reads a block.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when it is none, or its digest is wrong; [`ErrorKind::Unsupported`] for other
    /// versions.
    pub(super) fn decode(block: &[u8]) -> Result<Self> {
        let damaged = |what: &str| Error::new(ErrorKind::Damaged, format!("a record on the tape {what}"));
        let Some((body, digest)) = block.split_at_checked(BODY).filter(|_| block.len() == RECORD) else {
            return Err(damaged("has not its length"));
        };
        if blake3::hash(body).as_bytes().as_slice() != digest {
            return Err(damaged("is not what was written"));
        }
        let text = body.split(|byte| *byte == 0).next().unwrap_or_default();
        let text = std::str::from_utf8(text).map_err(|e| damaged("is not text").with_source(e))?;
        let mut lines = text.lines();
        let head = lines.next().and_then(|line| line.strip_prefix(MAGIC)).unwrap_or_default();
        let (kind, version) = head.split_once(' ').ok_or_else(|| damaged("does not say what it is"))?;
        if version != VERSION {
            let what = format!("the tape's format has version {}", version.escape_debug());
            return Err(Error::new(ErrorKind::Unsupported, what).with_hint("use a later virtfold"));
        }
        let json = lines.next().unwrap_or_default();
        let read = match kind {
            "label" => serde_json::from_str(json).map(Self::Label),
            "begin" => serde_json::from_str(json).map(Self::Begin),
            "end" => serde_json::from_str(json).map(Self::End),
            _ => return Err(damaged("is of an unknown kind")),
        };
        read.map_err(|e| damaged("can't be understood").with_source(e))
    }
}

/// The name of the writer of a foreign volume, by its first block.
pub(super) fn foreign(block: &[u8]) -> &'static str {
    const PROXMOX: [u8; 8] = [0xdc, 0xbd, 0xaf, 0xca, 0xeb, 0xa0, 0xa5, 0x28];
    let has = |at: usize, what: &[u8]| block.get(at..).is_some_and(|rest| rest.starts_with(what));
    if has(0, b"VOL1") {
        return if has(24, b"LTFS") { "LTFS" } else { "a program with ANSI labels" };
    }
    match () {
        () if has(12, b"BB0") => "Bacula or Bareos",
        () if has(0, b"AMANDA: ") => "Amanda",
        () if has(0, &PROXMOX) => "Proxmox Backup Server",
        () if has(257, b"ustar") => "tar",
        () => "an unknown program",
    }
}

/// The time now, as records have it.
pub(super) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label() -> VolumeLabel {
        VolumeLabel {
            volume: Uuid::new_v4(),
            label: "VF0001".to_owned(),
            pool: "default".to_owned(),
            block_size: TapeBlock::default(),
            created: now(),
            retain_until: None,
            tool: "virtfold 0".to_owned(),
        }
    }

    fn begin() -> PartHeader {
        PartHeader {
            volume: Uuid::new_v4(),
            run: Uuid::new_v4(),
            archive: "a".repeat(255),
            part: u32::MAX,
            offset: 1 << 52,
            earlier: EarlierParts {
                volumes: vec!["L".repeat(MAX_LABEL); BEFORE],
                firsts: vec![u32::MAX; BEFORE],
                again: u32::MAX,
            },
            block_size: TapeBlock::default(),
            created: now(),
        }
    }

    #[test]
    fn records_come_back_and_the_longest_fits() {
        let end = PartTrailer {
            volume: Uuid::new_v4(),
            run: Uuid::new_v4(),
            part: 2,
            file: 4,
            start: 5,
            blocks: 6,
            bytes: 7,
            digest: "0".repeat(64),
            total: 8,
            last: true,
        };
        for record in [TapeRecord::Label(label()), TapeRecord::Begin(begin()), TapeRecord::End(end)] {
            let block = record.encode().unwrap();
            assert_eq!(block.len(), RECORD);
            assert!(TapeRecord::is_one(&block));
            assert_eq!(TapeRecord::decode(&block).unwrap(), record);
        }
    }

    #[test]
    fn a_begin_says_on_which_volume_each_earlier_part_is() {
        let earlier = |firsts: &[u32]| EarlierParts {
            volumes: vec!["A".to_owned(), "B".to_owned()],
            firsts: firsts.to_vec(),
            again: 0,
        };
        let backwards = |earlier: &EarlierParts, part| {
            earlier.backwards(part).map(|(first, label)| (first, label.clone())).collect::<Vec<_>>()
        };
        let expected = |b, a| vec![(b, "B".to_owned()), (a, "A".to_owned())];
        assert_eq!(backwards(&earlier(&[1, 5]), 9), expected(5, 1));
        // As the first tapes have it: a part on each.
        assert_eq!(backwards(&earlier(&[]), 3), expected(2, 1));
        assert_eq!(backwards(&earlier(&[7]), 1), expected(0, 0));
    }

    #[test]
    fn a_wrong_bit_is_damage_and_another_version_is_said() {
        let block = TapeRecord::Label(label()).encode().unwrap();
        for at in [0, 20, 100, 3000, BODY, RECORD - 1] {
            let mut broken = block.clone();
            broken[at] ^= 1;
            assert_eq!(TapeRecord::decode(&broken).unwrap_err().kind(), ErrorKind::Damaged, "byte {at}");
        }
        assert_eq!(TapeRecord::decode(&block[..100]).unwrap_err().kind(), ErrorKind::Damaged);
        assert_eq!(TapeRecord::decode(&[]).unwrap_err().kind(), ErrorKind::Damaged);
        let mut later =
            String::from_utf8(block[..BODY].to_vec()).unwrap().replace("label 1\n", "label 2\n").into_bytes();
        later.extend_from_slice(blake3::hash(&later).as_bytes());
        assert_eq!(TapeRecord::decode(&later).unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn who_else_writes_on_tapes() {
        let block = |at: usize, what: &[u8]| [&vec![b' '; at], what, &[0; 512]].concat();
        assert_eq!(foreign(&block(0, b"VOL1ABC001")), "a program with ANSI labels");
        assert_eq!(foreign(&[&b"VOL1ABC001L             "[..], b"LTFS     "].concat()), "LTFS");
        assert_eq!(foreign(&block(12, b"BB02")), "Bacula or Bareos");
        assert_eq!(foreign(&block(0, b"AMANDA: TAPESTART DATE X TAPE A")), "Amanda");
        assert_eq!(
            foreign(&block(0, &[0xdc, 0xbd, 0xaf, 0xca, 0xeb, 0xa0, 0xa5, 0x28])),
            "Proxmox Backup Server"
        );
        assert_eq!(foreign(&block(257, b"ustar\0")), "tar");
        assert_eq!(foreign(b"hello"), "an unknown program");
        assert_eq!(foreign(b""), "an unknown program");
    }

    #[test]
    fn lengths_and_labels_are_bounded() {
        assert_eq!(TapeBlock::default().get(), 256 << 10);
        assert!(TapeBlock::new(1 << 20).is_ok() && TapeBlock::new(64 << 10).is_ok());
        for bad in [0, 4096, (64 << 10) + 1, 2 << 20, u64::MAX] {
            assert_eq!(TapeBlock::new(bad).unwrap_err().kind(), ErrorKind::Usage, "{bad}");
        }
        check_label("VF-0001.L8_x").unwrap();
        for bad in ["", "a b", "ä", "a/b", &"x".repeat(33)] {
            check_label(bad).unwrap_err();
        }
    }
}
