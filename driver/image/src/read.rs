//! Reading guest bytes: the table's extents, each fetched from where it lies straight into the caller's
//! buffer.
//!
//! One read of the host file an extent, zeros for what is not recorded; a compressed cluster is inflated into
//! the buffer when all of it is wanted and into a scratch cluster otherwise, which serves its other parts
//! too. Nothing is shared between readers, so any number of threads read at once.
//!
//! Imports: `error`, `units`, `file`, `layer`, `qcow2`, `allocation_table`, `read_ahead`.

use super::allocation_table::{Allocation, AllocationTable, Extent, ExtentIter};
use super::file::FileIndex;
use super::layer::Layer;
use super::read_ahead::{ask, merge};
use super::{DiskImage, file_of, qcow2};
use virtfold_base::error::{Error, ErrorKind, OrInternal, Result};
use virtfold_base::units::{GuestOffset, HostOffset};

/// Host ranges that lie closer than this are asked for as one.
const NEAR: u64 = 64 << 10;

/// The last cluster inflated by one reader.
#[derive(Default)]
struct ClusterCache {
    stored: Vec<u8>,
    cluster: Vec<u8>,
    /// Where `cluster` comes from.
    of: Option<(FileIndex, HostOffset)>,
}

/// A compressed place, taken apart.
#[derive(Clone, Copy)]
struct Stream {
    file: FileIndex,
    host: HostOffset,
    stored: u32,
    skip: u32,
}

/// Reads one range after the other; see [`DiskImage::reader`].
pub struct ImageReader<'a> {
    image: &'a DiskImage,
    extents: ExtentIter<'a>,
    scratch: ClusterCache,
}

impl ImageReader<'_> {
    /// As [`DiskImage::read`].
    ///
    /// # Errors
    /// As [`DiskImage::read`].
    pub fn read(&mut self, at: GuestOffset, buf: &mut [u8]) -> Result<()> {
        let end = self.image.checked_end(at, buf.len() as u64)?;
        let mut rest = buf;
        self.extents.seek(|extent| extent.guest <= at)?;
        while !rest.is_empty() {
            let extent = self.extents.next().transpose()?.and_then(|extent| extent.clip(at, end));
            let extent = extent.or_internal("an allocation table has a gap")?;
            let len = usize::try_from(extent.len).unwrap_or(usize::MAX).min(rest.len());
            let (part, after) = rest.split_at_mut(len);
            self.image.fetch(&extent, part, &mut self.scratch)?;
            rest = after;
        }
        Ok(())
    }
}

impl DiskImage {
    /// Fills `buf` with the guest's bytes at `at`, by the `table` that [`DiskImage::allocation`] of this
    /// image made. Any number of threads may read at once.
    ///
    /// # Errors
    /// `Usage` when the range is not on the disk, `BadImage` where the image contradicts its table or a
    /// compressed cluster does not inflate, `Io` when the host file can't be read.
    pub fn read(&self, table: &AllocationTable, at: GuestOffset, buf: &mut [u8]) -> Result<()> {
        self.reader(table).read(at, buf)
    }

    /// A reader of many ranges, for one thread: it keeps its place in the table.
    pub fn reader<'a>(&'a self, table: &'a AllocationTable) -> ImageReader<'a> {
        ImageReader { image: self, extents: table.iter(), scratch: ClusterCache::default() }
    }

    fn checked_end(&self, at: GuestOffset, len: u64) -> Result<GuestOffset> {
        let end = at.checked_add(len).filter(|end| end.get() <= self.capacity);
        end.ok_or_else(|| {
            let what = format!("{len} bytes at {at} are not on the disk of {} bytes", self.capacity);
            Error::new(ErrorKind::Usage, what)
        })
    }

    fn fetch(&self, extent: &Extent, part: &mut [u8], scratch: &mut ClusterCache) -> Result<()> {
        match extent.place {
            Allocation::Unallocated { .. } | Allocation::Zero { .. } | Allocation::Hole { .. } => {
                part.fill(0)
            }
            Allocation::Data { file, host } => file_of(&self.files, file)?.read(host, part)?,
            Allocation::Compressed { file, host, stored, skip } => {
                self.inflate(extent, Stream { file, host, stored, skip }, part, scratch)?;
            }
        }
        Ok(())
    }

    fn inflate(
        &self,
        extent: &Extent,
        stream: Stream,
        part: &mut [u8],
        scratch: &mut ClusterCache,
    ) -> Result<()> {
        let layer = usize::try_from(extent.depth).ok().and_then(|depth| self.layers.get(depth));
        let Some(Layer::Qcow2(image)) = layer else {
            return Err(Error::new(ErrorKind::Internal, "an allocation table is used with another image"));
        };
        let file = file_of(&self.files, stream.file)?;
        let size = usize::try_from(image.header.cluster_size()).unwrap_or(0);
        let broken = |what: String| {
            let where_ = format!("guest offset {}, host offset {}", extent.guest, stream.host);
            qcow2::damaged(file, format_args!("a compressed cluster: {what}: {where_}"))
        };
        if scratch.of != Some((stream.file, stream.host)) {
            scratch.of = None;
            scratch.stored.resize(usize::try_from(stream.stored).unwrap_or(0), 0);
            file.read(stream.host, &mut scratch.stored)?;
            let kind = image.header.compression;
            if part.len() == size {
                return qcow2::compressed::inflate(kind, &scratch.stored, part).map_err(broken);
            }
            scratch.cluster.resize(size, 0);
            qcow2::compressed::inflate(kind, &scratch.stored, &mut scratch.cluster).map_err(broken)?;
            scratch.of = Some((stream.file, stream.host));
        }
        let wanted = scratch.cluster.get(usize::try_from(stream.skip).unwrap_or(usize::MAX)..);
        let wanted = wanted.and_then(|from| from.get(..part.len()));
        part.copy_from_slice(wanted.ok_or_else(|| broken("it is shorter than its extent".to_owned()))?);
        Ok(())
    }

    /// Tells the kernel that `ranges` (guest address, bytes) will be read soon. The host ranges behind them
    /// are asked for file by file in host order, near ones as one: a disk that turns reads them in one sweep.
    ///
    /// # Errors
    /// `Usage` when a range is not on the disk, `Io` when the kernel refuses.
    pub fn prefetch(&self, table: &AllocationTable, ranges: &[(GuestOffset, u64)]) -> Result<()> {
        let mut wanted: Vec<(FileIndex, u64, u64)> = Vec::new();
        let mut extents = table.iter();
        for (at, len) in ranges {
            let end = self.checked_end(*at, *len)?;
            extents.seek(|extent| extent.guest <= *at)?;
            for extent in extents.by_ref() {
                let Some(extent) = extent?.clip(*at, end) else { break };
                match extent.place {
                    Allocation::Data { file, host } => wanted.push((file, host.get(), extent.len)),
                    Allocation::Compressed { file, host, stored, .. } => {
                        wanted.push((file, host.get(), u64::from(stored)));
                    }
                    Allocation::Unallocated { .. } | Allocation::Zero { .. } | Allocation::Hole { .. } => {}
                }
            }
        }
        wanted.sort_unstable();
        for (file, at, len) in merge(&wanted, NEAR) {
            ask(file_of(&self.files, file)?, at, len)?;
        }
        Ok(())
    }
}
