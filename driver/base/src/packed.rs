//! A sorted list of small records, packed: what allocation and correspondence tables are made of.
//!
//! Records are delta-coded into pages of 256 records; the first record of each page is kept as it is
//! in an index, so a look-up is a binary search of the index and a walk of one page: O(log n). The pages lie
//! in a [`SpillLog`], so a table of a hundred million records costs megabytes of memory, not gigabytes.
//!
//! Invariants: records are appended in ascending order of their key (the owner's business); a page is
//! decoded only from bytes that this process encoded.
//!
//! Imports: `error`, `spill_log`.

use crate::error::{Error, ErrorKind, Result};
use crate::spill_log::SpillLog;

/// Records in a page.
const PAGE: usize = 256;

/// A record that packs against the one before it.
pub trait Record: Copy {
    /// Appends this record, coded against `prev`.
    fn pack(&self, prev: &Self, out: &mut Vec<u8>);
    /// Takes one record off the front of `input`; `None` where the bytes are not a record.
    fn unpack(prev: &Self, input: &mut &[u8]) -> Option<Self>;
}

#[derive(Clone, Copy, Debug)]
struct PageKey<R> {
    first: R,
    start: u64,
}

/// The list. Appended by one owner, then searched and walked by many threads at once.
#[derive(Debug)]
pub struct PackedList<R> {
    spool: SpillLog,
    index: Vec<PageKey<R>>,
    last: Option<R>,
    count: u64,
    scratch: Vec<u8>,
}

impl<R> Default for PackedList<R> {
    fn default() -> Self {
        Self { spool: SpillLog::new(), index: Vec::new(), last: None, count: 0, scratch: Vec::new() }
    }
}

impl<R: Record> PackedList<R> {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Records in the list.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The last record.
    pub fn last(&self) -> Option<R> {
        self.last
    }

    /// Appends a record.
    ///
    /// # Errors
    /// When the spool can't spill to its temporary file.
    pub fn push(&mut self, record: R) -> Result<()> {
        match self.last {
            Some(prev) if !self.count.is_multiple_of(PAGE as u64) => {
                self.scratch.clear();
                record.pack(&prev, &mut self.scratch);
                self.spool.append(&self.scratch)?;
            }
            _ => self.index.push(PageKey { first: record, start: self.spool.len() }),
        }
        self.last = Some(record);
        self.count += 1;
        Ok(())
    }

    /// Walks the list from its start.
    pub fn iter(&self) -> Iter<'_, R> {
        Iter { list: self, page: 0, decoded: Vec::new(), at: 0 }
    }

    /// Walks the list from the last record for which `reached` holds (from the start where there is none).
    /// `reached` must hold for a prefix of the list, as `|r| r.start <= wanted` does.
    ///
    /// # Errors
    /// When the spool can't be read back.
    pub fn iter_from(&self, reached: impl Fn(&R) -> bool) -> Result<Iter<'_, R>> {
        let mut iter = self.iter();
        iter.seek(reached)?;
        Ok(iter)
    }

    /// The last record for which `reached` holds; see [`PackedList::iter_from`].
    ///
    /// # Errors
    /// When the spool can't be read back.
    pub fn find_last(&self, reached: impl Fn(&R) -> bool) -> Result<Option<R>> {
        self.iter_from(&reached)?.next().transpose().map(|found| found.filter(|r| reached(r)))
    }

    fn decode_page(&self, page: usize, out: &mut Vec<R>) -> Result<()> {
        #[cfg(any(test, feature = "test-support"))]
        testing::count();
        let broken = || Error::new(ErrorKind::Internal, "a packed table does not unpack");
        out.clear();
        let mark = self.index.get(page).ok_or_else(broken)?;
        let end = self.index.get(page + 1).map_or(self.spool.len(), |next| next.start);
        let mut bytes = vec![0; usize::try_from(end - mark.start).map_err(|_| broken())?];
        self.spool.read_at(mark.start, &mut bytes)?;
        let mut prev = mark.first;
        out.push(prev);
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            prev = R::unpack(&prev, &mut rest).ok_or_else(broken)?;
            out.push(prev);
        }
        Ok(())
    }
}

/// A walk along a [`PackedList`]; each step may have to read the spool, hence the results.
#[derive(Debug)]
pub struct Iter<'a, R> {
    list: &'a PackedList<R>,
    /// The page to load next, or, while `decoded` is not used up, the one after it.
    page: usize,
    decoded: Vec<R>,
    at: usize,
}

impl<R: Record> Iter<'_, R> {
    /// Goes to where [`PackedList::iter_from`] begins. A page that is decoded is not decoded again: whoever
    /// looks up many records that lie near each other seeks with one walk, for a page costs as much as some
    /// hundred look-ups.
    ///
    /// # Errors
    /// When the spool can't be read back.
    pub fn seek(&mut self, reached: impl Fn(&R) -> bool) -> Result<()> {
        let page = self.list.index.partition_point(|mark| reached(&mark.first)).saturating_sub(1);
        if self.list.is_empty() {
            return Ok(());
        }
        if self.decoded.is_empty() || self.page != page + 1 {
            self.page = page;
            self.load()?;
        }
        self.at = self.decoded.partition_point(&reached).saturating_sub(1);
        Ok(())
    }

    fn load(&mut self) -> Result<()> {
        let mut decoded = std::mem::take(&mut self.decoded);
        self.list.decode_page(self.page, &mut decoded)?;
        self.decoded = decoded;
        self.page += 1;
        self.at = 0;
        Ok(())
    }
}

impl<R: Record> Iterator for Iter<'_, R> {
    type Item = Result<R>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at == self.decoded.len() {
            if self.page >= self.list.index.len() {
                return None;
            }
            if let Err(error) = self.load() {
                self.page = usize::MAX;
                self.decoded.clear();
                self.at = 0;
                return Some(Err(error));
            }
        }
        let record = self.decoded.get(self.at).copied();
        self.at += 1;
        record.map(Ok)
    }
}

/// Appends `value` as a little-endian base-128 varint.
pub fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    loop {
        let low = value.to_le_bytes()[0] & 0x7f;
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

/// Takes a varint off the front of `input`; `None` where it is cut or longer than 64 bits.
pub fn take_varint(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = input.split_first()?;
        *input = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Appends the signed distance from `from` to `to` (wrapping), small for near values.
pub fn put_delta(from: u64, to: u64, out: &mut Vec<u8>) {
    let distance = to.wrapping_sub(from).cast_signed();
    put_varint(((distance << 1) ^ (distance >> 63)).cast_unsigned(), out);
}

/// Takes off what [`put_delta`] appended and returns `to`.
pub fn take_delta(from: u64, input: &mut &[u8]) -> Option<u64> {
    let coded = take_varint(input)?;
    let distance = (coded >> 1) ^ (coded & 1).wrapping_neg();
    Some(from.wrapping_add(distance))
}

#[cfg(any(test, feature = "test-support"))]
pub mod testing {
    //! Counts, for tests of what a walk costs.

    use std::cell::Cell;

    thread_local! {
        static DECODED: Cell<u64> = const { Cell::new(0) };
    }

    pub(super) fn count() {
        DECODED.with(|decoded| decoded.set(decoded.get() + 1));
    }

    /// Pages that this thread has decoded so far, of all lists.
    pub fn decoded_pages() -> u64 {
        DECODED.with(Cell::get)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Pair(u64, u64);

    impl Record for Pair {
        fn pack(&self, prev: &Self, out: &mut Vec<u8>) {
            put_varint(self.0 - prev.0, out);
            put_delta(prev.1, self.1, out);
        }
        fn unpack(prev: &Self, input: &mut &[u8]) -> Option<Self> {
            Some(Self(prev.0 + take_varint(input)?, take_delta(prev.1, input)?))
        }
    }

    proptest! {
        #[test]
        fn varints_and_deltas_round_trip(a in any::<u64>(), b in any::<u64>()) {
            let mut out = Vec::new();
            put_varint(a, &mut out);
            put_delta(a, b, &mut out);
            let mut input = out.as_slice();
            prop_assert_eq!(take_varint(&mut input), Some(a));
            prop_assert_eq!(take_delta(a, &mut input), Some(b));
            prop_assert!(input.is_empty());
        }

        #[test]
        fn behaves_as_a_sorted_vec(steps in proptest::collection::vec((1_u64..1000, any::<u64>()), 0..2000),
                                   probes in proptest::collection::vec(any::<u64>(), 20)) {
            let mut list = PackedList::new();
            let mut model = Vec::new();
            let mut key = 0;
            for (step, value) in steps {
                key += step;
                list.push(Pair(key, value)).unwrap();
                model.push(Pair(key, value));
            }
            let all: Vec<Pair> = list.iter().map(|r| r.unwrap()).collect();
            prop_assert_eq!(&all, &model);
            let mut walk = list.iter();
            for probe in probes {
                let wanted = probe % (key + 10);
                walk.seek(|p| p.0 <= wanted).unwrap();
                let sought: Vec<Pair> = walk.by_ref().take(300).map(|r| r.unwrap()).collect();
                let behind = model.partition_point(|p| p.0 <= wanted).saturating_sub(1);
                prop_assert_eq!(&sought[..], &model[behind..model.len().min(behind + 300)]);
                let expect = model.iter().rev().find(|p| p.0 <= wanted).copied();
                prop_assert_eq!(list.find_last(|p| p.0 <= wanted).unwrap(), expect);
                let from = model.partition_point(|p| p.0 <= wanted).saturating_sub(1);
                let rest: Vec<Pair> = list.iter_from(|p| p.0 <= wanted).unwrap().map(|r| r.unwrap()).collect();
                prop_assert_eq!(&rest[..], &model[from..]);
            }
        }
    }

    #[test]
    fn a_walk_that_seeks_decodes_each_page_once() {
        let mut list = PackedList::new();
        (0..10_000).for_each(|key| list.push(Pair(key, key)).unwrap());
        let before = testing::decoded_pages();
        let mut walk = list.iter();
        for key in 0..10_000 {
            walk.seek(|pair| pair.0 <= key).unwrap();
            assert_eq!(walk.next().unwrap().unwrap(), Pair(key, key));
        }
        assert_eq!(testing::decoded_pages() - before, 10_000_u64.div_ceil(PAGE as u64));
    }

    #[test]
    fn cut_varints_are_no_values() {
        assert_eq!(take_varint(&mut [0x80, 0x80].as_slice()), None);
        assert_eq!(take_varint(&mut [0xff; 11].as_slice()), None);
    }
}
