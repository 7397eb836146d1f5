//! The header extensions of qcow2: type, length, bytes, padded to eight, up to the end mark or to where the
//! backing file's name begins. Version 2 images have them too.
//!
//! Four matter: the backing file's format, the external data file's name, the names of feature bits, and
//! where the bitmaps are. The encryption header is known and not needed.
//!
//! Imports: `header`.

use super::header_error::{HeaderError, bad};

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const BITMAPS: u32 = 0x2385_2875;
const DATA_FILE: u32 = 0x4441_5441;
/// One row of the feature name table: type, bit, 46 bytes of name.
const NAME_ROW: usize = 48;

/// The name of an incompatible feature bit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Incompatible {
    pub(super) bit: u8,
    pub(super) name: String,
}

/// What the extensions say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Extensions {
    pub(super) backing_format: Option<Vec<u8>>,
    pub(super) data_file: Option<Vec<u8>>,
    pub(super) names: Vec<Incompatible>,
    /// As it stands; empty where there are two.
    pub(super) bitmaps: Option<Vec<u8>>,
}

impl Extensions {
    /// Parses the extensions in `first` (the first cluster) from `start` on; they may not reach past `end`.
    /// A file that ends before `end` has no more of them.
    pub(super) fn parse(first: &[u8], start: u64, end: u64) -> Result<Self, HeaderError> {
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        let end = usize::try_from(end).unwrap_or(usize::MAX).min(first.len());
        let mut rest = first.get(start..end).unwrap_or_default();
        let mut found = Self::default();
        while let Some((head, after)) = rest.split_first_chunk::<8>() {
            let [a, b, c, d, e, f, g, h] = *head;
            let (kind, len) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
            if kind == END {
                break;
            }
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            let Some(body) = after.get(..len) else {
                return bad(format!("its header extension {kind:#010x} is longer than the header"));
            };
            found.take(kind, body)?;
            rest = after.get(len.next_multiple_of(8)..).unwrap_or_default();
        }
        Ok(found)
    }

    fn take(&mut self, kind: u32, body: &[u8]) -> Result<(), HeaderError> {
        match kind {
            BACKING_FORMAT if body.len() > 15 => return bad("its backing file's format is too long a word"),
            BACKING_FORMAT => self.backing_format = Some(body.to_vec()),
            DATA_FILE => self.data_file = Some(body.to_vec()),
            BITMAPS if self.bitmaps.is_some() => self.bitmaps = Some(Vec::new()),
            BITMAPS => self.bitmaps = Some(body.to_vec()),
            FEATURE_NAMES => self.names = body.chunks_exact(NAME_ROW).filter_map(name_row).collect(),
            _ => {}
        }
        Ok(())
    }
}

/// A row of the feature name table, where it is about an incompatible bit.
fn name_row(row: &[u8]) -> Option<Incompatible> {
    let (&[kind, bit], name) = row.split_first_chunk::<2>()?;
    let name = name.split(|byte| *byte == 0).next()?;
    // The name goes to a terminal: control characters of a hostile image must not.
    let name = String::from_utf8_lossy(name).chars().filter(|c| !c.is_control()).collect();
    (kind == 0).then_some(Incompatible { bit, name })
}
