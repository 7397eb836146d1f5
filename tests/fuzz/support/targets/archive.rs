//! Whole archives: opened strictly, salvaged, and read in one pass. What the pass calls sound opens and gives
//! the same bytes; nothing that strict reading gives is lost in salvage.

use super::super::{
    DiskBytes, Memory, flags, frame, frames, no_defect, options, seal, survey_pass, tar_sums,
};
use uuid::Uuid;
use virtfold::archive::index::{ArchiveIndex, DiskPiece, Trust};
use virtfold::archive::manifest::Manifest;
use virtfold::units::DenseOffset;

const REPAIR: u8 = 1;
const SEAL: u8 = 2;
const FRAME: u8 = 4;
/// Dense bytes that are kept; more are counted and not compared.
const KEPT: u64 = 8 << 20;

/// One input.
pub fn run(data: &[u8]) {
    let Some((flags, data)) = flags(data) else { return };
    let mut archive = data.to_vec();
    if flags & REPAIR != 0 {
        tar_sums(&mut archive);
        frames(&mut archive);
    }
    if flags & SEAL != 0
        && let Some(sealed) = seal(&archive)
    {
        let id = if flags & FRAME != 0 { Some(id_of(&archive)) } else { None };
        archive = match id {
            Some(id) => frame(&sealed, archive.len(), id),
            None => sealed,
        };
    }
    let sound = no_defect(survey_pass(&archive));
    let strict = read_all(&archive, Trust::Strict);
    let salvaged = read_all(&archive, Trust::Salvage);
    if let Some(sound) = sound {
        let strict = strict.as_ref().expect("what one pass calls sound can be opened");
        assert!(&sound.disks == strict, "one archive, one content");
    }
    if let Some(strict) = strict {
        assert!(salvaged.as_ref() == Some(&strict), "salvage gives what strict reading gives");
    }
}

/// The id that the head names, so that frames and head agree.
fn id_of(body: &[u8]) -> Uuid {
    let text = body.split(|byte| *byte == 0).find(|part| part.first() == Some(&b'{'));
    text.and_then(|text| Manifest::parse(text).ok()).map_or(Uuid::nil(), |head| head.archive)
}

fn read_all(archive: &[u8], trust: Trust) -> Option<Vec<DiskBytes>> {
    let source = Memory(archive);
    let index = no_defect(ArchiveIndex::open(&source, &options(), trust))?;
    let mut all = Vec::new();
    for disk in index.disks() {
        let dense_len = disk.table.dense_len();
        let mut bytes = DiskBytes::default();
        let mut at = 0;
        let whole = DenseOffset::ZERO..DenseOffset::new(dense_len);
        no_defect(index.read_dense(disk, whole, &mut |piece, data| {
            assert_eq!(piece.dense.get(), at, "pieces come in order");
            at += piece.len;
            match data {
                DiskPiece::Bytes(data) if at <= KEPT && !bytes.lost => bytes.push(piece, data),
                DiskPiece::Bytes(data) => assert_eq!(data.len() as u64, piece.len),
                DiskPiece::Lost => bytes.lost = true,
            }
            Ok(())
        }))
        .expect("damage is no error");
        assert_eq!(at, dense_len, "every byte is given or lost");
        no_defect(index.allocation(disk, &mut |_| Ok(())));
        all.push(bytes);
    }
    Some(all)
}
