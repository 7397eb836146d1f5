//! The first bytes of formats that keep a disk: what a raw image must not begin with unless the caller
//! insists.
//!
//! Nothing is opened by what is found here. It only asks back whoever says 'raw'.
//!
//! Imports: `error`, `units`, `file`.

use super::file::HostFile;
use virtfold_base::error::Result;
use virtfold_base::units::HostOffset;

/// Name, place and bytes.
const MAGICS: [(&str, usize, &[u8]); 8] = [
    ("qcow2", 0, b"QFI\xfb"),
    ("qed", 0, b"QED\0"),
    ("vmdk", 0, b"KDMV"),
    ("vmdk", 0, b"# Disk DescriptorFile"),
    ("vhdx", 0, b"vhdxfile"),
    ("vpc", 0, b"conectix"),
    ("vdi", 0x40, &[0x7f, 0x10, 0xda, 0xbe]),
    ("parallels", 0, b"WithoutFreeSpace"),
];

/// The format that the file begins like.
pub(super) fn of(file: &HostFile) -> Result<Option<&'static str>> {
    let mut first = vec![0; usize::try_from(file.len.min(512)).unwrap_or(0)];
    file.read(HostOffset::ZERO, &mut first)?;
    let begins = |(_, at, magic): &&(&'static str, usize, &[u8])| {
        first.get(*at..).is_some_and(|bytes| bytes.starts_with(magic))
    };
    Ok(MAGICS.iter().find(begins).map(|(name, _, _)| *name))
}
