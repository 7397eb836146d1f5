//! An archive on its way into an object store: a multipart upload, streamed.
//!
//! The writer fills a part; a full one goes to a task that sends it, with its digest, while the next is filled. When as many as memory
//! allows are on their way, the writer waits for one. A part that fails for the moment is sent again for as long as the writer has
//! patience: it is in memory until the store has it, so an upload that broke goes on where it broke. The last step, the completion, makes the object
//! appear, whole, and never over another one.
//!
//! An answer that was lost is looked up: the upload carries a random mark, which the finished object has, too.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use object_store::multipart::{MultipartStore, PartId};
use object_store::{
    Attribute, Attributes, Error as StoreError, ObjectStore, ObjectStoreExt, PutMultipartOptions, PutPayload,
};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::fault::{explain, is_not_implemented, may_pass};
use super::keys::Keys;
use super::note;
use super::parts::{LARGEST, MOST, Parts};
use super::store::{Answer, Store, persist, runtime, wait};
use crate::archive::stream::{Cancel, Sink};
use crate::error::{Error, ErrorKind, Result};
use crate::medium::{Durable, Label, Medium, ObjectAddress};

/// What the mark of an upload is called in the object's metadata.
const MARK: &str = "virtfold-upload";
/// How long the end of a failed upload may take.
const FAREWELL: Duration = Duration::from_secs(20);

/// How long parts that are on their way may take to arrive before that.
const SETTLING: Duration = Duration::from_secs(5);

/// What a task says when its part is there: which it is, what the store calls it, and the memory that it was in.
type Sent = Answer<(usize, PartId, Vec<u8>)>;

/// An archive on its way into an object store.
#[derive(Debug)]
pub struct ObjectMedium {
    upload: Arc<Upload>,
    parts: Parts,
    buffer: Vec<u8>,
    /// Memory of parts that were sent: it is used again, for what is given back to the allocator is not always given back by it.
    spare: Vec<Vec<u8>>,
    sending: JoinSet<Sent>,
    sent: Vec<Option<PartId>>,
    written: u64,
    cancel: Cancel,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It takes bytes.
    Open,
    /// A part is lost; nothing can become of it.
    Failed,
    /// The object is there.
    Done,
}

/// An upload in the store.
#[derive(Debug)]
struct Upload {
    store: Store,
    keys: Keys,
    id: String,
    mark: String,
    patience: Duration,
    /// Nothing is tried again any more.
    ending: AtomicBool,
}

impl ObjectMedium {
    /// Begins the upload of the archive `label` to a place below `place`. Uploads that runs of this host have left
    /// behind there are cleaned up.
    ///
    /// # Errors
    /// When the store can't be reached or refuses, or the archive is there already.
    pub fn create(place: &ObjectAddress, label: &Label, cancel: &Cancel) -> Result<Self> {
        let parts = Parts::for_size(label.estimate);
        let store = Store::open(place, parts.size_of(0))?;
        let keys = Keys::of(place, label)?;
        let upload = wait(cancel, Upload::begin(store, keys))??;
        Ok(Self {
            upload: Arc::new(upload),
            parts,
            buffer: Vec::new(),
            spare: Vec::new(),
            sending: JoinSet::new(),
            sent: Vec::new(),
            written: 0,
            cancel: Arc::clone(cancel),
            state: State::Open,
        })
    }

    /// Bytes that the part at hand takes.
    fn part_size(&self) -> Result<usize> {
        let number = self.sent.len() as u64;
        if number >= MOST || self.written >= LARGEST {
            let what = format!("{}: an object has 10,000 parts and 5 TiB at most", self.upload.cannot());
            return Err(Error::new(ErrorKind::NoSpace, what).with_hint("back up the disks one by one"));
        }
        usize::try_from(self.parts.size_of(number))
            .map_err(|_| Error::new(ErrorKind::Internal, "a part is larger than memory can be"))
    }

    /// Sends what is in the buffer; waits until there is room for that.
    fn send(&mut self) -> Result<()> {
        while self.sending.len() >= self.parts.in_flight() {
            self.take_one()?;
        }
        let payload = PutPayload::from(std::mem::take(&mut self.buffer));
        let (upload, number) = (Arc::clone(&self.upload), self.sent.len());
        self.sent.push(None);
        self.sending.spawn_on(async move { upload.part(number, payload).await }, runtime()?.handle());
        Ok(())
    }

    /// Waits for a part; whether there was one.
    fn take_one(&mut self) -> Result<bool> {
        let Some(done) = wait(&self.cancel, self.sending.join_next())? else { return Ok(false) };
        let sent = done.map_err(|e| {
            Error::new(ErrorKind::Internal, "a task that sends a part has ended").with_source(e)
        })?;
        let (number, part, mut memory) = sent.map_err(|e| explain(self.upload.cannot(), &e))?;
        if let Some(place) = self.sent.get_mut(number) {
            *place = Some(part);
        }
        memory.clear();
        self.spare.push(memory);
        Ok(true)
    }

    fn take_in(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let size = self.part_size()?;
            if self.buffer.capacity() < size {
                self.buffer = self.spare.pop().unwrap_or_default();
                self.buffer.reserve_exact(size);
            }
            let (now, later) = bytes.split_at(bytes.len().min(size - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            self.written += now.len() as u64;
            bytes = later;
            if self.buffer.len() == size {
                self.send()?;
            }
        }
        Ok(())
    }

    fn complete(&mut self) -> Result<()> {
        if !self.buffer.is_empty() {
            self.send()?;
        }
        while self.take_one()? {}
        let lost = || Error::new(ErrorKind::Internal, "a part of the upload was not sent");
        let parts =
            std::mem::take(&mut self.sent).into_iter().collect::<Option<Vec<_>>>().ok_or_else(lost)?;
        wait(&self.cancel, self.upload.complete(&parts, self.written))?
    }
}

impl Sink for ObjectMedium {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if self.state == State::Failed {
            return Err(Error::new(ErrorKind::Internal, "a failed upload was written to"));
        }
        self.take_in(bytes).inspect_err(|_| self.state = State::Failed)
    }
}

impl Medium for ObjectMedium {
    fn finish(mut self: Box<Self>) -> Result<Durable> {
        if self.state == State::Failed {
            return Err(Error::new(ErrorKind::Internal, "a failed upload was finished"));
        }
        self.complete()?;
        self.state = State::Done;
        Ok(Durable { name: self.upload.name(), bytes: self.written })
    }
}

impl Drop for ObjectMedium {
    /// Aborts what is not finished. Where the store can't be reached, the next backup to the same place does.
    fn drop(&mut self) {
        let Ok(runtime) = runtime() else { return };
        let done = self.state == State::Done;
        let farewell = async {
            // A part that arrives behind the abort may stay for ever, so what is on its way is let arrive.
            self.upload.ending.store(true, Ordering::Relaxed);
            let settled = async { while self.sending.join_next().await.is_some() {} };
            if tokio::time::timeout(SETTLING, settled).await.is_err() {
                self.sending.shutdown().await;
            }
            if done { self.upload.forget().await } else { self.upload.abort().await }
        };
        if runtime.block_on(async { tokio::time::timeout(FAREWELL, farewell).await }).is_err() {
            tracing::warn!("the store does not answer: parts of '{}' may be left in it", self.upload.name());
        }
    }
}

impl Upload {
    async fn begin(store: Store, keys: Keys) -> Result<Self> {
        let name = store.name(&keys.archive);
        let cannot = |e: StoreError| explain(format!("cannot write '{name}'"), &e);
        match store.s3.head(&keys.archive).await {
            Ok(_) => {
                return Err(Error::new(ErrorKind::Exists, format!("'{name}' is there already")));
            }
            Err(StoreError::NotFound { .. }) => {}
            // Whoever may only write is not told what is there; the completion's condition holds all the same.
            Err(StoreError::PermissionDenied { .. }) => {}
            Err(error) => return Err(cannot(error)),
        }
        note::clean(&store, &keys).await;
        let mark = Uuid::new_v4().to_string();
        let mut attributes = Attributes::new();
        attributes.insert(Attribute::Metadata(Cow::Borrowed(MARK)), mark.clone().into());
        let options = PutMultipartOptions { attributes, ..PutMultipartOptions::default() };
        let id = store.s3.create_multipart_opts(&keys.archive, options).await.map_err(cannot)?;
        let upload =
            Self { store, keys, id, mark, patience: super::patience()?, ending: AtomicBool::new(false) };
        if let Err(error) = note::leave(&upload.store, &upload.keys, &upload.id).await {
            upload.abort().await;
            return Err(explain(format!("cannot note the upload of '{name}'"), &error));
        }
        Ok(upload)
    }

    fn name(&self) -> String {
        self.store.name(&self.keys.archive)
    }

    fn cannot(&self) -> String {
        format!("cannot write '{}'", self.name())
    }

    async fn part(&self, number: usize, payload: PutPayload) -> Sent {
        let what = || format!("part {} of '{}' was not taken", number + 1, self.name());
        let part = persist(self.patience, what, || async {
            if self.ending.load(Ordering::Relaxed) {
                return Err(StoreError::NotSupported { source: "the upload has ended".into() });
            }
            self.store.s3.put_part(&self.keys.archive, &self.id, number, payload.clone()).await
        });
        let part = part.await?;
        let first = payload.into_iter().next();
        // Nobody else has it any more, so this copies nothing.
        Ok((number, part, first.map(Vec::from).unwrap_or_default()))
    }

    /// Makes the object appear, and makes sure that it has.
    async fn complete(&self, parts: &[PartId], bytes: u64) -> Result<()> {
        let what = || format!("'{}' could not be completed", self.name());
        let attempt = || async {
            match self.store.s3.complete_multipart(&self.keys.archive, &self.id, parts.to_vec()).await {
                Ok(_) => Ok(()),
                // The answer to an earlier attempt may have been lost.
                Err(error) if self.is_there(bytes).await == Some(true) => {
                    tracing::debug!(%error, "the object is there in spite of the answer");
                    Ok(())
                }
                Err(error) => Err(error),
            }
        };
        match persist(self.patience, what, attempt).await {
            Ok(()) => {}
            Err(StoreError::Precondition { .. } | StoreError::AlreadyExists { .. }) => {
                return Err(Error::new(ErrorKind::Exists, format!("'{}' is there already", self.name()))
                    .with_hint("nothing is ever replaced in an object store"));
            }
            Err(StoreError::NotFound { .. }) => {
                let what = format!("{}: its upload is gone from the store", self.cannot());
                return Err(Error::new(ErrorKind::Io, what)
                    .with_hint("did a rule of the bucket, or a person, abort it? a rule for incomplete uploads should leave them a week"));
            }
            Err(error) if is_not_implemented(&error) => {
                let what = format!("{}: the store knows no conditions", self.cannot());
                return Err(Error::new(ErrorKind::Unsupported, what).with_hint(
                    "AWS_CONDITIONAL_PUT=disabled leaves them out; names of archives are unique all the same",
                ));
            }
            Err(error) => return Err(explain(self.cannot(), &error)),
        }
        match self.is_there(bytes).await {
            Some(false) => {
                let what = format!("'{}' is not in the store as it was written", self.name());
                Err(Error::new(ErrorKind::Io, what).with_hint("run 'virtfold verify' on it"))
            }
            _ => Ok(()),
        }
    }

    /// Whether the object is the one that this upload has made; nothing where the store does not say.
    async fn is_there(&self, bytes: u64) -> Option<bool> {
        let options = object_store::GetOptions { head: true, ..object_store::GetOptions::default() };
        match self.store.s3.get_opts(&self.keys.archive, options).await {
            Ok(found) => {
                let mark = found.attributes.get(&Attribute::Metadata(Cow::Borrowed(MARK)));
                let ours = mark.is_none_or(|mark| mark.as_ref() == self.mark);
                Some(ours && found.meta.size == bytes)
            }
            Err(StoreError::NotFound { .. }) => Some(false),
            Err(error) => {
                tracing::debug!(%error, passing = may_pass(&error), "the object can't be looked at");
                None
            }
        }
    }

    /// Takes the parts away, and the note.
    async fn abort(&self) {
        match self.store.s3.abort_multipart(&self.keys.archive, &self.id).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => self.forget().await,
            Err(error) => {
                let what = format!("parts of '{}' are left in the store", self.name());
                tracing::warn!("{}", explain(what, &error));
            }
        }
    }

    /// Takes the note away.
    async fn forget(&self) {
        if let Err(error) = self.store.s3.delete(&self.keys.note).await {
            tracing::debug!(%error, "the note of an upload is left in the store");
        }
    }
}
