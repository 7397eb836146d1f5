//! Two things in one place of an image file: tables over tables, data over tables, two guest clusters in one
//! host cluster. No QEMU makes such an image, and what it would give back is anybody's guess.
//!
//! Each qcow2 image has a map of its host clusters, a bit each, in pages that are made when something is found
//! there. First its header, L1, refcount table and L2 tables claim theirs, then data clusters as the walk meets them.
//! The maps of a chain may take 32 MiB together (16 TiB of clusters of 64 KiB); an image that needs more is read
//! without the rest of the check. Compressed clusters share host clusters with each other: they are only looked up.
//! In an external data file the place of a cluster is its guest address, which the walk checks by itself.
//!
//! Imports: `error`, `units`, `file`, `layer`, `qcow2`, `table`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::file::HostFile;
use super::layer::Layer;
use super::qcow2::{self, Qcow2, l2};
use super::table::{Extent, Place};
use super::{DiskImage, file_of};
use crate::error::Result;

/// Words of a page: 4 KiB, 32,768 clusters.
const WORDS: usize = 512;
const PAGE: u64 = WORDS as u64 * 64;
/// Pages of all maps together.
const LIMIT: u32 = 8192;

/// The host clusters of one image.
#[derive(Debug, Default)]
struct Map {
    pages: HashMap<u64, Box<[u64; WORDS]>>,
}

impl Map {
    /// Claims clusters `from..to`. One that was claimed already ends it and is the answer.
    fn claim(&mut self, from: u64, to: u64, budget: &mut u32) -> Option<u64> {
        let mut at = from;
        while at < to {
            let page = at / PAGE;
            let end = to.min((page + 1) * PAGE);
            if let Some(words) = self.page(page, budget) {
                for cluster in at..end {
                    let index = usize::try_from(cluster % PAGE / 64).unwrap_or(WORDS);
                    let bit = 1 << (cluster % 64);
                    match words.get_mut(index) {
                        Some(word) if *word & bit == 0 => *word |= bit,
                        _ => return Some(cluster),
                    }
                }
            }
            at = end;
        }
        None
    }

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

    fn is_claimed(&self, cluster: u64) -> bool {
        let word = self.pages.get(&(cluster / PAGE)).zip(usize::try_from(cluster % PAGE / 64).ok());
        word.and_then(|(page, at)| page.get(at)).is_some_and(|word| word >> (cluster % 64) & 1 == 1)
    }
}

/// One qcow2 image of the chain.
struct Claimed<'a> {
    image: &'a Qcow2,
    file: &'a HostFile,
    map: Map,
    /// The guest cluster that claimed last: its other parts come right behind it.
    last: Option<u64>,
}

impl Claimed<'_> {
    /// Claims a range of host bytes for `what`.
    fn claim(&mut self, host: u64, len: u64, what: &str, budget: &mut u32) -> Result<()> {
        let bits = self.image.header.cluster_bits;
        let end = host.saturating_add(len).div_ceil(1 << bits);
        match self.map.claim(host >> bits, end, budget) {
            None => Ok(()),
            Some(cluster) => {
                let at = cluster << bits;
                let what = format!("{what} lies over something else: host offset {at}");
                Err(qcow2::damaged(self.file, what))
            }
        }
    }

    fn claim_tables(&mut self, budget: &mut u32) -> Result<()> {
        let header = &self.image.header;
        let (l1, l1_len) = (header.l1_offset, header.l1_entries * 8);
        let (refcounts, refcounts_len) = (header.refcount_offset, header.refcount_table_len);
        let size = header.cluster_size();
        self.claim(0, size, "the header", budget)?;
        self.claim(l1, l1_len, "the L1 table", budget)?;
        // Only inside the file: a refcount table that is not matters to nobody who reads.
        if refcounts.checked_add(refcounts_len).is_some_and(|end| end <= self.file.len) {
            self.claim(refcounts, refcounts_len, "the refcount table", budget)?;
        }
        let (image, file) = (self.image, self.file);
        l2::each_table(image, file, |table| self.claim(table, size, "an L2 table", budget))
    }

    fn claim_extent(&mut self, extent: &Extent, budget: &mut u32) -> Result<()> {
        let bits = self.image.header.cluster_bits;
        match extent.place {
            _ if self.image.has_external_data() => Ok(()),
            Place::Data { host, .. } => {
                let guest = extent.guest.get() >> bits;
                let skip = if self.last == Some(guest) { 1_u64 << bits } else { 0 };
                self.last = Some((extent.end().get() - 1) >> bits);
                let from = host.get() & !((1 << bits) - 1);
                let len = (host.get() + extent.len - from).saturating_sub(skip);
                let what = format!("a cluster at guest offset {}", extent.guest);
                self.claim(from + skip, len, &what, budget)
            }
            Place::Compressed { host, .. } if self.map.is_claimed(host.get() >> bits) => {
                let at = format!("guest offset {}, host offset {host}", extent.guest);
                Err(qcow2::damaged(self.file, format!("a compressed cluster lies over something else: {at}")))
            }
            _ => Ok(()),
        }
    }
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
                    let mut claimed = Claimed { image: qcow2, file, map: Map::default(), last: None };
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
