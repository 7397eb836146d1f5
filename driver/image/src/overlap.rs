//! Two things in one place of an image file: tables over tables, data over tables, two guest clusters in one
//! host cluster that is counted once. No QEMU makes such an image, and what it would give back is anybody's
//! guess. A cluster of data or an L2 table that several addresses refer to is no fault where its refcount
//! says so: whoever wrote to it would copy it first.
//!
//! Each qcow2 image has maps of its host clusters, a bit each, in pages that are made when something is found
//! there. First its header, L1, refcount table and L2 tables claim theirs, then data clusters as the walk
//! meets them. The maps of a chain may take 32 MiB together (16 TiB of clusters of 64 KiB); an image that
//! needs more is read without the rest of the check. Compressed clusters share host clusters with each other:
//! they are only looked up. In an external data file the place of a cluster is its guest address, which the
//! walk checks by itself.
//!
//! Imports: `error`, `units`, `file`, `layer`, `qcow2`, `allocation_table`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::allocation_table::{Allocation, Extent};
use super::file::HostFile;
use super::layer::Layer;
use super::qcow2::{self, Qcow2, l2};
use super::{DiskImage, file_of};
use virtfold_base::error::{Error, Result};

/// Words of a page: 4 KiB, 32,768 clusters.
const WORDS: usize = 512;
const PAGE: u64 = WORDS as u64 * 64;
/// Pages of all maps together.
const LIMIT: u32 = 8192;

/// Clusters whose references are counted one by one; of those behind them only the second is asked for.
const COUNTED: usize = 1 << 16;

/// What claims clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClusterOwner {
    /// The header, the L1 table, the refcount table: never shared.
    Fixed,
    L2,
    Data,
}

const KINDS: [ClusterOwner; 3] = [ClusterOwner::Fixed, ClusterOwner::L2, ClusterOwner::Data];

/// The host clusters of one image that are of one kind.
#[derive(Debug, Default)]
struct Map {
    pages: HashMap<u64, Box<[u64; WORDS]>>,
}

/// Where the bit of a cluster is in its page.
fn bit(cluster: u64) -> (usize, u64) {
    (usize::try_from(cluster % PAGE / 64).unwrap_or(WORDS), 1 << (cluster % 64))
}

impl Map {
    /// A page, where it is there or may still be made.
    fn page(&mut self, page: u64, budget: &mut u32) -> Option<&mut [u64; WORDS]> {
        match self.pages.entry(page) {
            Entry::Occupied(there) => Some(there.into_mut()),
            Entry::Vacant(free) => {
                *budget = budget.checked_sub(1)?;
                Some(free.insert(Box::new([0; WORDS])))
            }
        }
    }

    /// The first of `from..to`, clusters of one page, that is claimed.
    fn first_claimed(&self, from: u64, to: u64) -> Option<u64> {
        let page = self.pages.get(&(from / PAGE))?;
        (from..to).find(|cluster| {
            let (word, bit) = bit(*cluster);
            page.get(word).is_some_and(|word| word & bit != 0)
        })
    }

    /// Claims `from..to`, clusters of one page; those that were claimed already are added to `again`.
    fn claim(&mut self, from: u64, to: u64, budget: &mut u32, again: &mut Vec<u64>) {
        let Some(words) = self.page(from / PAGE, budget) else { return };
        for cluster in from..to {
            let (word, bit) = bit(cluster);
            match words.get_mut(word) {
                Some(word) if *word & bit == 0 => *word |= bit,
                _ => again.push(cluster),
            }
        }
    }
}

/// One qcow2 image of the chain.
struct Claimed<'a> {
    image: &'a Qcow2,
    file: &'a HostFile,
    /// By [`ClusterOwner`].
    maps: [Map; 3],
    /// How often a cluster was claimed that was claimed more than once.
    shared: HashMap<u64, u64>,
    /// The guest cluster that claimed last: its other parts come right behind it.
    last: Option<u64>,
}

impl Claimed<'_> {
    /// Claims a range of host bytes for `what`.
    fn claim(&mut self, kind: ClusterOwner, host: u64, len: u64, what: &str, budget: &mut u32) -> Result<()> {
        let bits = self.image.header.cluster_bits;
        let end = host.saturating_add(len).div_ceil(1 << bits);
        let (mut at, mut again) = (host >> bits, Vec::new());
        while at < end {
            let to = end.min((at / PAGE + 1) * PAGE);
            for (map, other) in self.maps.iter_mut().zip(KINDS) {
                if other == kind {
                    map.claim(at, to, budget, &mut again);
                } else if let Some(cluster) = map.first_claimed(at, to) {
                    return Err(lies_over(self.file, what, cluster << bits));
                }
            }
            for cluster in again.drain(..) {
                if kind == ClusterOwner::Fixed || !self.is_counted(cluster)? {
                    return Err(lies_over(self.file, what, cluster << bits));
                }
            }
            at = to;
        }
        Ok(())
    }

    /// Whether the refcount of a cluster that was claimed once more has room for that.
    fn is_counted(&mut self, cluster: u64) -> Result<bool> {
        let known = self.shared.len();
        let claims = match self.shared.entry(cluster) {
            Entry::Occupied(claims) => claims.into_mut(),
            Entry::Vacant(_) if known >= COUNTED => &mut 1,
            Entry::Vacant(first) => first.insert(1),
        };
        *claims += 1;
        let claims = *claims;
        Ok(qcow2::refcounts::of(&self.image.header, self.file, cluster)? >= claims)
    }

    fn claim_tables(&mut self, budget: &mut u32) -> Result<()> {
        let header = &self.image.header;
        let (l1, l1_len) = (header.l1_offset, header.l1_entries * 8);
        let (refcounts, refcounts_len) = (header.refcount_offset, header.refcount_table_len);
        let size = header.cluster_size();
        self.claim(ClusterOwner::Fixed, 0, size, "the header", budget)?;
        self.claim(ClusterOwner::Fixed, l1, l1_len, "the L1 table", budget)?;
        // Only inside the file: a refcount table that is not matters to nobody who reads.
        if refcounts.checked_add(refcounts_len).is_some_and(|end| end <= self.file.len) {
            self.claim(ClusterOwner::Fixed, refcounts, refcounts_len, "the refcount table", budget)?;
        }
        let (image, file) = (self.image, self.file);
        l2::each_table(image, file, |table| self.claim(ClusterOwner::L2, table, size, "an L2 table", budget))
    }

    fn is_claimed(&self, cluster: u64) -> bool {
        self.maps.iter().any(|map| map.first_claimed(cluster, cluster + 1).is_some())
    }

    fn claim_extent(&mut self, extent: &Extent, budget: &mut u32) -> Result<()> {
        let bits = self.image.header.cluster_bits;
        match extent.place {
            _ if self.image.has_external_data() => Ok(()),
            Allocation::Data { host, .. } => {
                let guest = extent.guest.get() >> bits;
                let skip = if self.last == Some(guest) { 1_u64 << bits } else { 0 };
                self.last = Some((extent.end().get() - 1) >> bits);
                let from = host.get() & !((1 << bits) - 1);
                let len = (host.get() + extent.len - from).saturating_sub(skip);
                let what = format!("a cluster at guest offset {}", extent.guest);
                self.claim(ClusterOwner::Data, from + skip, len, &what, budget)
            }
            Allocation::Compressed { host, .. } if self.is_claimed(host.get() >> bits) => {
                let at = format!("guest offset {}, host offset {host}", extent.guest);
                Err(qcow2::damaged(self.file, format!("a compressed cluster lies over something else: {at}")))
            }
            _ => Ok(()),
        }
    }
}

fn lies_over(file: &HostFile, what: &str, at: u64) -> Error {
    qcow2::damaged(file, format!("{what} lies over something else: host offset {at}"))
}

/// The claims of a chain.
pub(super) struct Overlaps<'a> {
    layers: Vec<Option<Claimed<'a>>>,
    budget: u32,
}

impl<'a> Overlaps<'a> {
    /// With the tables of every image claimed.
    pub(super) fn of(image: &'a DiskImage) -> Result<Self> {
        let mut budget = LIMIT;
        let mut layers = Vec::new();
        for layer in &image.layers {
            layers.push(match layer {
                Layer::Qcow2(qcow2) => {
                    let file = file_of(&image.files, qcow2.file)?;
                    let mut claimed = Claimed {
                        image: qcow2,
                        file,
                        maps: Default::default(),
                        shared: HashMap::new(),
                        last: None,
                    };
                    claimed.claim_tables(&mut budget)?;
                    Some(claimed)
                }
                Layer::Raw { .. } => None,
            });
        }
        Ok(Self { layers, budget })
    }

    /// Takes the next extent of the walk.
    pub(super) fn check(&mut self, extent: &Extent) -> Result<()> {
        let layer = usize::try_from(extent.depth).ok().and_then(|depth| self.layers.get_mut(depth));
        match layer {
            Some(Some(claimed)) => claimed.claim_extent(extent, &mut self.budget),
            _ => Ok(()),
        }
    }
}
