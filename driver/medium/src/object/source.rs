//! An archive in an object store, to be read at any place.
//!
//! It is read in blocks of one MiB (of 256 KiB where a list looks at it), each by a request for its range. A
//! block that follows one that was just read is taken for part of a row, and the next ones are asked for in
//! advance; so one pass front to back, or many threads that go through it together, have several requests on
//! their way. Blocks that were read stay for a while. Memory is bounded by the number of blocks.
//!
//! Each request says which version of the object it is for: one that was replaced meanwhile is an error, not
//! a mixture. Where neither a list nor a look has told the version, the first answer does.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use object_store::path::Path;
use object_store::{Error as StoreError, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt};

use super::READ;
use super::store::{Store, StoreResult, key, persist, runtime, wait};
use super::store_error::explain;
use crate::ListedObject;
use crate::ObjectAddress;
use virtfold_archive::source::Source;
use virtfold_archive::stream::{Cancel, ReadAt};
use virtfold_base::error::{Error, ErrorKind, Result};

/// Bytes of a block.
const BLOCK: u64 = READ;
/// Bytes of a block of an archive that a list looks at: mostly head and end are all that is read of it.
const GLANCED: u64 = 256 << 10;
/// Blocks that are asked for in advance.
const AHEAD: u64 = 12;
/// Blocks in memory.
const KEPT: usize = 24;
/// How long a block is tried to be read.
const PATIENCE: Duration = Duration::from_secs(60);

/// An archive in an object store.
#[derive(Debug)]
pub struct ObjectSource {
    object: Arc<ObjectInfo>,
    name: String,
    /// Bytes of a block.
    block: u64,
    /// The latest at the back.
    blocks: Mutex<VecDeque<Arc<CachedBlock>>>,
}

#[derive(Debug)]
struct ObjectInfo {
    store: Store,
    key: Path,
    len: u64,
    version: OnceLock<String>,
}

/// A block, there or on its way.
#[derive(Debug)]
struct CachedBlock {
    number: u64,
    content: Mutex<BlockState>,
    arrived: Condvar,
}

#[derive(Debug)]
enum BlockState {
    Pending,
    Ready(Vec<u8>),
    Failed(Arc<StoreError>),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ObjectSource {
    /// Opens the archive at `address`.
    ///
    /// # Errors
    /// When it is not there, or the store can't be reached or refuses.
    pub fn open(address: &ObjectAddress) -> Result<Self> {
        let name = address.to_string();
        if address.key.is_empty() {
            let what = format!("'{name}' is a bucket and no archive");
            return Err(Error::new(ErrorKind::Usage, what)
                .with_hint(format!("'virtfold list {name}' lists the archives in it")));
        }
        let object_key = key(&address.key)?;
        let store = Store::open(address, READ)?;
        let found = wait(&Cancel::default(), store.s3.head(&object_key))?
            .map_err(|e| explain(format!("cannot open '{name}'"), &e))?;
        Ok(Self { block: BLOCK, ..Self::of(store, object_key, name, found.size, found.e_tag) })
    }

    /// The archive that a list has shown: nothing is asked of the store.
    ///
    /// # Errors
    /// As of [`ObjectSource::open`], but for those of asking.
    pub fn listed(listed: &ListedObject) -> Result<Self> {
        let address = &listed.address;
        let store = Store::open(address, READ)?;
        Ok(Self::of(store, key(&address.key)?, address.to_string(), listed.bytes, listed.version.clone()))
    }

    fn of(store: Store, key: Path, name: String, len: u64, version: Option<String>) -> Self {
        let version = version.map(OnceLock::from).unwrap_or_default();
        Self {
            object: Arc::new(ObjectInfo { store, key, len, version }),
            name,
            block: GLANCED,
            blocks: Mutex::default(),
        }
    }

    /// The block, which may be on its way; those behind it are asked for where it is one of a row.
    fn block(&self, number: u64) -> Result<Arc<CachedBlock>> {
        let mut blocks = lock(&self.blocks);
        let is_row = number > 0 && blocks.iter().any(|block| block.number == number - 1);
        let wanted = self.fetch(&mut blocks, number)?;
        if is_row {
            let last = self.object.len.div_ceil(self.block);
            for next in (number + 1..last).take(usize::try_from(AHEAD).unwrap_or(1)) {
                self.fetch(&mut blocks, next)?;
            }
        }
        Ok(wanted)
    }

    fn fetch(&self, blocks: &mut VecDeque<Arc<CachedBlock>>, number: u64) -> Result<Arc<CachedBlock>> {
        if let Some(place) = blocks.iter().position(|block| block.number == number) {
            let known = blocks.remove(place);
            return known
                .inspect(|block| blocks.push_back(Arc::clone(block)))
                .ok_or_else(|| Error::new(ErrorKind::Internal, "a block is gone"));
        }
        while blocks.len() >= KEPT {
            blocks.pop_front();
        }
        let content = Mutex::new(BlockState::Pending);
        let block = Arc::new(CachedBlock { number, content, arrived: Condvar::new() });
        let (object, arriving) = (Arc::clone(&self.object), Arc::clone(&block));
        let start = number * self.block;
        let range = start..(start + self.block).min(self.object.len);
        runtime()?.spawn(async move {
            let content = match object.range(range).await {
                Ok(bytes) => BlockState::Ready(bytes),
                Err(error) => BlockState::Failed(Arc::new(error)),
            };
            *lock(&arriving.content) = content;
            arriving.arrived.notify_all();
        });
        blocks.push_back(Arc::clone(&block));
        Ok(block)
    }

    /// Copies what the block has from `from` on into `into`.
    fn copy(&self, block: &CachedBlock, from: usize, into: &mut [u8]) -> Result<()> {
        let mut content = lock(&block.content);
        while matches!(*content, BlockState::Pending) {
            content = block.arrived.wait(content).unwrap_or_else(PoisonError::into_inner);
        }
        match &*content {
            BlockState::Ready(bytes) => {
                let there = bytes.get(from..from + into.len()).ok_or_else(|| {
                    Error::new(ErrorKind::Io, format!("the store sent less of '{}' than it has", self.name))
                })?;
                into.copy_from_slice(there);
                Ok(())
            }
            BlockState::Failed(error) => {
                // Whoever reads it again asks again.
                lock(&self.blocks).retain(|other| other.number != block.number);
                let at = block.number * self.block;
                if matches!(**error, StoreError::Precondition { .. }) {
                    let what = format!("'{}' was replaced while it was read", self.name);
                    return Err(Error::new(ErrorKind::Io, what).with_hint("read it again"));
                }
                Err(explain(format!("cannot read '{}' at offset {at}", self.name), error))
            }
            BlockState::Pending => Err(Error::new(ErrorKind::Internal, "a block has not arrived")),
        }
    }
}

impl ObjectInfo {
    async fn range(&self, range: std::ops::Range<u64>) -> StoreResult<Vec<u8>> {
        let what = || format!("'{}' can't be read", self.store.name(&self.key));
        persist(PATIENCE, what, || {
            let options = GetOptions {
                range: Some(GetRange::Bounded(range.clone())),
                if_match: self.version.get().cloned(),
                ..GetOptions::default()
            };
            async move {
                let answer = self.store.s3.get_opts(&self.key, options).await?;
                self.expect_same(&answer.meta)?;
                Ok(answer.bytes().await?.to_vec())
            }
        })
        .await
    }

    /// Refuses bytes of another version than those before were of.
    fn expect_same(&self, answered: &ObjectMeta) -> StoreResult<()> {
        let version = answered.e_tag.as_ref();
        let is_same = version.is_none_or(|version| self.version.get_or_init(|| version.clone()) == version);
        if is_same && answered.size == self.len {
            return Ok(());
        }
        let source = "another object has its key now".into();
        Err(StoreError::Precondition { path: self.key.to_string(), source })
    }
}

impl ReadAt for ObjectSource {
    fn read_exact_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let end = at.checked_add(buf.len() as u64).filter(|end| *end <= self.object.len);
        if end.is_none() {
            let what = format!("cannot read '{}' at offset {at}: it ends before", self.name);
            return Err(Error::new(ErrorKind::Io, what));
        }
        let (mut at, mut rest) = (at, buf);
        while !rest.is_empty() {
            let within = at % self.block;
            let len = (self.block - within).min(rest.len() as u64);
            let (from, len) = (usize::try_from(within).unwrap_or(0), usize::try_from(len).unwrap_or(0));
            let (now, later) = rest.split_at_mut(len);
            let block = self.block(at / self.block)?;
            self.copy(&block, from, now)?;
            at += len as u64;
            rest = later;
        }
        Ok(())
    }

    fn len(&self) -> u64 {
        self.object.len
    }

    fn name(&self) -> &str {
        &self.name
    }
}

impl Source for ObjectSource {}
