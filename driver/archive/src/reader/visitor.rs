//! Who takes what an archive holds.

use crate::allocation_csv::AllocationRow;
use crate::end_record::EndRecord;
use crate::manifest::Manifest;
use crate::sign::{ArchiveSignature, PublicKey};
use crate::table::{CorrespondenceTable, Run};
use virtfold_base::error::Result;
use virtfold_base::units::StreamOffset;

/// What a whole, sound archive is known to hold.
#[derive(Debug)]
pub struct VerifiedArchive {
    /// Its head.
    pub head: Manifest,
    /// Its end record.
    pub end: EndRecord,
    /// The root digest, as the record says and the bytes confirm.
    pub root: [u8; 32],
    /// Of a signed one, whose signature is sound: the key. Who signs with it, by its own word, the end record
    /// says.
    pub signer: Option<PublicKey>,
    /// Zeros that a plain one has behind its end.
    pub padding: u64,
}

impl VerifiedArchive {
    /// Its signature, where it is signed.
    pub fn signature(&self) -> Option<ArchiveSignature> {
        let (chain, key) = self.end.chain.clone().zip(self.signer.clone())?;
        Some(ArchiveSignature { chain, key })
    }
}

/// Takes what an archive holds, in the order in which it stands there.
pub trait Visitor {
    /// The head.
    ///
    /// # Errors
    /// Whatever the visitor has against it; ends the pass.
    fn head(&mut self, head: &Manifest) -> Result<()>;

    /// A member begins that is neither head, table, disk nor tail (`domain.xml`, ...), of so many bytes. They
    /// come before the disks.
    ///
    /// # Errors
    /// As [`Visitor::head`].
    fn other(&mut self, _name: &str, _size: u64) -> Result<()> {
        Ok(())
    }

    /// Content of that member.
    ///
    /// # Errors
    /// As [`Visitor::head`].
    fn content(&mut self, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }

    /// A row of the allocation table of disk number `index`; they come before the disk.
    ///
    /// # Errors
    /// As [`Visitor::head`].
    fn allocation(&mut self, _index: usize, _row: &AllocationRow) -> Result<()> {
        Ok(())
    }

    /// The bytes of disk number `index` begin there; comes before [`Visitor::disk`].
    fn dense_at(&mut self, _index: usize, _at: StreamOffset) {}

    /// Disk number `index` begins; all of its table is known.
    ///
    /// # Errors
    /// As [`Visitor::head`].
    fn disk(&mut self, index: usize, table: &CorrespondenceTable) -> Result<()>;

    /// The bytes of `piece`, which lies in one run of the disk's table.
    ///
    /// # Errors
    /// As [`Visitor::head`].
    fn data(&mut self, index: usize, piece: &Run, bytes: &[u8]) -> Result<()>;
}
