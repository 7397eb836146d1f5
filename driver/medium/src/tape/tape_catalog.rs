//! What is remembered of tapes: the writer tells it, the reader asks it. The catalog keeps one; nobody has
//! to.
//!
//! Imports: `error`, `record`, `volume`.

use uuid::Uuid;

use super::record::VolumeLabel;
use super::volume::{VolumeContents, VolumePart};
use virtfold_base::error::Result;

/// A part of an archive, and the volume that it is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartLocation {
    /// The volume.
    pub label: VolumeLabel,
    /// The part.
    pub part: VolumePart,
}

/// The memory of tapes. What it says of a tape is held against the tape; what is on the tape counts.
pub trait TapeCatalog: Send + Sync {
    /// Why nothing more may be written to a volume.
    ///
    /// # Errors
    /// The memory can't be read.
    fn failure(&self, volume: Uuid) -> Result<Option<String>>;

    /// A part is durable on a volume.
    ///
    /// # Errors
    /// The memory can't be written.
    fn committed(&self, placed: &PartLocation) -> Result<()>;

    /// Nothing more may be written to a volume.
    ///
    /// # Errors
    /// The memory can't be written.
    fn failed(&self, label: &VolumeLabel, why: &str) -> Result<()>;

    /// A volume holds exactly this. `replaced` is another volume that was on the same tape until now.
    ///
    /// # Errors
    /// The memory can't be written.
    fn set_contents(&self, contents: &VolumeContents, replaced: Option<Uuid>) -> Result<()>;

    /// A volume is gone.
    ///
    /// # Errors
    /// The memory can't be written.
    fn forget(&self, volume: Uuid) -> Result<()>;

    /// The parts of all archives whose id begins with `id`, by run and in the order of their numbers.
    ///
    /// # Errors
    /// The memory can't be read.
    fn archives(&self, id: &str) -> Result<Vec<PartLocation>>;
}

/// No memory.
#[derive(Clone, Copy, Debug)]
pub struct NoTapeCatalog;

impl TapeCatalog for NoTapeCatalog {
    fn failure(&self, _: Uuid) -> Result<Option<String>> {
        Ok(None)
    }

    fn committed(&self, _: &PartLocation) -> Result<()> {
        Ok(())
    }

    fn failed(&self, _: &VolumeLabel, _: &str) -> Result<()> {
        Ok(())
    }

    fn set_contents(&self, _: &VolumeContents, _: Option<Uuid>) -> Result<()> {
        Ok(())
    }

    fn forget(&self, _: Uuid) -> Result<()> {
        Ok(())
    }

    fn archives(&self, _: &str) -> Result<Vec<PartLocation>> {
        Ok(Vec::new())
    }
}

/// The id in an archive's name: the 8 digits before its endings.
pub fn id_of(archive: &str) -> &str {
    let stem = archive.rsplit_once(".tar").map_or(archive, |(stem, _)| stem);
    let id = stem.rsplit('-').next().unwrap_or_default();
    if id.len() == 8 && id.bytes().all(|b| b.is_ascii_hexdigit()) { id } else { "" }
}

/// Whether an archive's name has an id that begins as `id` does, or the other way round: names hold 8 digits
/// of it.
pub fn has_id(archive: &str, id: &str) -> bool {
    let own = id_of(archive);
    let asked = id.get(..8).unwrap_or(id);
    !asked.is_empty() && own == asked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_in_names() {
        let name = "web.tar-20261122T030000Z-5f1c2d3e.tar.zst.age";
        assert_eq!(id_of("web-20261122T030000Z-5f1c2d3e.tar.zst"), "5f1c2d3e");
        assert_eq!(id_of("a.tar"), "");
        assert!(has_id("web-5f1c2d3e.tar", "5f1c2d3e-0000-4000-8000-000000000000"));
        assert!(
            !has_id("web-5f1c2d3e.tar", "5f1c2d3f")
                && !has_id("web.tar", "")
                && !has_id("web.tar", "5f1c2d3e")
        );
        assert_eq!(id_of(name), "5f1c2d3e");
    }
}
