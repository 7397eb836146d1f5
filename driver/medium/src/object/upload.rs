//! An archive on its way into an object store: a multipart upload, streamed.
//!
//! The writer fills a part; a full one goes to a task that sends it, with its digest, while the next is
//! filled. When as many as memory allows are on their way, the writer waits for one. A part that fails for
//! the moment is sent again for as long as the writer has patience: it is in memory until the store has it,
//! so an upload that broke goes on where it broke. The last step, the completion, makes the object appear,
//! whole, and never over another one.
//!
//! An upload that a dead process has left goes on behind the parts that it has noted in a row
//! ([`ObjectMedium::reopen`]). S3 says only when the next part comes that an upload is not there any more;
//! then a new one is begun, and the archive with it ([`Medium::resume_after_failure`]).
//!
//! An answer that was lost is looked up: the upload carries a random mark, which the finished object has,
//! too.

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

use super::object_names::ObjectNames;
use super::parts::{LARGEST, MOST, PartSizes};
use super::store::{Store, StoreResult, persist, runtime, wait};
use super::store_error::{explain, is_gone, is_not_implemented, may_pass};
use super::upload_note;
use crate::{
    ArchiveLabel, DurableMark, DurableMarks, FinishedArchive, Medium, ObjectAddress, PartialArchive, Resumed,
};
use virtfold_archive::stream::{Cancel, Sink};
use virtfold_base::error::{Error, ErrorKind, Result};

/// What the mark of an upload is called in the object's metadata.
const MARK: &str = "virtfold-upload";
/// How long the end of a failed upload may take.
const FAREWELL: Duration = Duration::from_secs(20);

/// How long parts that are on their way may take to arrive before that.
const SETTLING: Duration = Duration::from_secs(5);

/// What a task says when its part is there: which it is, what the store calls it, and the memory that it was
/// in.
type UploadedPart = StoreResult<(usize, PartId, Vec<u8>)>;

/// An archive on its way into an object store.
#[derive(Debug)]
pub struct ObjectMedium {
    upload: Arc<Upload>,
    parts: PartSizes,
    buffer: Vec<u8>,
    /// Memory of parts that were sent: it is used again, for what is given back to the allocator is not
    /// always given back by it.
    spare: Vec<Vec<u8>>,
    sending: JoinSet<UploadedPart>,
    sent: Vec<Option<PartId>>,
    written: u64,
    cancel: Cancel,
    state: UploadState,
    notes: Option<Arc<dyn DurableMarks>>,
    /// An upload of a dead process, of which nothing has been heard yet.
    is_taken_over: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UploadState {
    /// It takes bytes.
    Open,
    /// A part is lost; nothing can become of it.
    Failed,
    /// There is no such upload; another one can be begun.
    Gone,
    /// The object is there.
    Done,
}

/// An upload in the store.
#[derive(Debug)]
struct Upload {
    store: Store,
    keys: ObjectNames,
    id: String,
    mark: String,
    patience: Duration,
    /// Nothing is tried again any more.
    ending: AtomicBool,
}

impl ObjectMedium {
    /// Begins the upload of the archive `label` to a place below `place`. Uploads that runs of this host have
    /// left behind there are cleaned up.
    ///
    /// # Errors
    /// When the store can't be reached or refuses, or the archive is there already.
    pub fn create(place: &ObjectAddress, label: &ArchiveLabel, cancel: &Cancel) -> Result<Self> {
        let parts = PartSizes::for_size(label.estimate);
        let store = Store::open(place, parts.size_of(0))?;
        let keys = ObjectNames::of(place, label)?;
        let upload = wait(cancel, Upload::begin(store, keys))??;
        Ok(Self::with(upload, parts, cancel))
    }

    fn with(upload: Upload, parts: PartSizes, cancel: &Cancel) -> Self {
        Self {
            upload: Arc::new(upload),
            parts,
            buffer: Vec::new(),
            spare: Vec::new(),
            sending: JoinSet::new(),
            sent: Vec::new(),
            written: 0,
            cancel: Arc::clone(cancel),
            state: UploadState::Open,
            notes: None,
            is_taken_over: false,
        }
    }

    /// Goes on with the upload that a dead process has left, behind its first parts that are known to be
    /// there. The note of the upload is this process's then: nobody cleans it up.
    ///
    /// # Errors
    /// When the store can't be reached or refuses.
    pub(super) fn reopen(
        place: &ObjectAddress,
        label: &ArchiveLabel,
        cancel: &Cancel,
        remains: &PartialArchive,
    ) -> Result<Resumed> {
        let known = remains.upload.as_ref();
        let Some((id, mark, parts)) =
            known.and_then(|(id, mark, size)| Some((id, mark, PartSizes::of_size(*size)?)))
        else {
            return Ok(Resumed::NotPossible("nothing is known of its upload".to_owned()));
        };
        let store = Store::open(place, parts.size_of(0))?;
        let keys = ObjectNames::of(place, label)?;
        let Some(upload) = wait(cancel, Upload::take_over(store, keys, id, mark))?? else {
            return Ok(Resumed::NotPossible(
                "the object is there, or something else of that name".to_owned(),
            ));
        };
        let mut medium = Self::with(upload, parts, cancel);
        medium.is_taken_over = true;
        for number in 0..MOST {
            match remains.parts.get(&number) {
                Some((id, bytes)) if *bytes == parts.size_of(number) => {
                    medium.sent.push(Some(PartId { content_id: id.clone() }));
                    medium.written += bytes;
                }
                _ => break,
            }
        }
        let at = medium.written;
        Ok(Resumed::From(Box::new(medium), at))
    }

    fn note(&self, mark: &DurableMark) {
        self.notes.iter().for_each(|notes| notes.note(mark));
    }

    fn note_upload(&self) {
        let Upload { id, mark, .. } = self.upload.as_ref();
        self.note(&DurableMark::Upload { id: id.clone(), mark: mark.clone(), part: self.parts.size_of(0) });
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
        let (number, part, mut memory) = match sent {
            Ok(sent) => sent,
            Err(error) => {
                if self.is_taken_over && is_gone(&error) {
                    self.state = UploadState::Gone;
                }
                return Err(explain(self.upload.cannot(), &error));
            }
        };
        self.is_taken_over = false;
        self.note(&DurableMark::Part {
            number: number as u64,
            id: part.content_id.clone(),
            bytes: memory.len() as u64,
        });
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

    /// Sends what there is, and waits until all of it is there.
    fn send_all(&mut self) -> Result<()> {
        if !self.buffer.is_empty() {
            self.send()?;
        }
        while self.take_one()? {}
        Ok(())
    }

    /// Notes that it has failed, unless more is known.
    fn failed(&mut self) {
        if self.state == UploadState::Open {
            self.state = UploadState::Failed;
        }
    }

    /// Begins the upload anew.
    fn begin_again(&mut self) -> Result<()> {
        wait(&self.cancel, self.sending.shutdown())?;
        let (store, keys) = (self.upload.store.clone(), self.upload.keys.clone());
        let upload = wait(&self.cancel, Upload::begin(store, keys))??;
        self.upload = Arc::new(upload);
        self.sending = JoinSet::new();
        self.sent.clear();
        self.buffer.clear();
        (self.written, self.state, self.is_taken_over) = (0, UploadState::Open, false);
        self.note_upload();
        Ok(())
    }

    fn complete(&mut self) -> Result<()> {
        self.send_all()?;
        let lost = || Error::new(ErrorKind::Internal, "a part of the upload was not sent");
        let parts =
            std::mem::take(&mut self.sent).into_iter().collect::<Option<Vec<_>>>().ok_or_else(lost)?;
        wait(&self.cancel, self.upload.complete(&parts, self.written))?
    }
}

impl Sink for ObjectMedium {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if self.state != UploadState::Open {
            return Err(Error::new(ErrorKind::Internal, "a failed upload was written to"));
        }
        let taken = self.take_in(bytes);
        taken.inspect_err(|_| self.failed())
    }
}

impl Medium for ObjectMedium {
    fn sync(&mut self) -> Result<()> {
        let settled = self.send_all();
        settled.inspect_err(|_| self.failed())
    }

    fn resume_after_failure(&mut self) -> Result<Option<u64>> {
        if self.state != UploadState::Gone {
            return Ok(None);
        }
        self.begin_again()?;
        Ok(Some(0))
    }

    fn report_marks(&mut self, notes: Arc<dyn DurableMarks>) -> bool {
        self.notes = Some(notes);
        if self.sent.is_empty() {
            self.note_upload();
        }
        true
    }

    fn finish(mut self: Box<Self>) -> Result<FinishedArchive> {
        if self.state != UploadState::Open {
            return Err(Error::new(ErrorKind::Internal, "a failed upload was finished"));
        }
        self.complete()?;
        self.state = UploadState::Done;
        Ok(FinishedArchive::new(self.upload.name(), self.written))
    }
}

impl Drop for ObjectMedium {
    /// Aborts what is not finished. Where the store can't be reached, the next backup to the same place does.
    fn drop(&mut self) {
        let Ok(runtime) = runtime() else { return };
        let done = self.state == UploadState::Done;
        let farewell = async {
            // A part that arrives behind the abort may stay for ever, so what is on its way is let arrive.
            self.upload.ending.store(true, Ordering::Relaxed);
            let settled = async { while self.sending.join_next().await.is_some() {} };
            if tokio::time::timeout(SETTLING, settled).await.is_err() {
                self.sending.shutdown().await;
            }
            if done {
                self.upload.forget().await;
                true
            } else {
                self.upload.abort().await
            }
        };
        let gone = runtime.block_on(async { tokio::time::timeout(FAREWELL, farewell).await });
        if !matches!(gone, Ok(true)) {
            self.notes.iter().for_each(|notes| notes.left_behind());
        }
        if gone.is_err() {
            tracing::warn!("the store does not answer: parts of '{}' may be left in it", self.upload.name());
        }
    }
}

/// Whether there is an object of the archive's name.
async fn is_taken(store: &Store, keys: &ObjectNames) -> Result<bool> {
    match store.s3.head(&keys.archive).await {
        Ok(_) => Ok(true),
        Err(StoreError::NotFound { .. }) => Ok(false),
        // Whoever may only write is not told what is there; the completion's condition holds all the same.
        Err(StoreError::PermissionDenied { .. }) => Ok(false),
        Err(error) => Err(explain(format!("cannot write '{}'", store.name(&keys.archive)), &error)),
    }
}

impl Upload {
    async fn begin(store: Store, keys: ObjectNames) -> Result<Self> {
        let name = store.name(&keys.archive);
        let cannot = |e: StoreError| explain(format!("cannot write '{name}'"), &e);
        if is_taken(&store, &keys).await? {
            return Err(Error::new(ErrorKind::Exists, format!("'{name}' is there already")));
        }
        upload_note::clean(&store, &keys).await;
        let mark = Uuid::new_v4().to_string();
        let mut attributes = Attributes::new();
        attributes.insert(Attribute::Metadata(Cow::Borrowed(MARK)), mark.clone().into());
        let options = PutMultipartOptions { attributes, ..PutMultipartOptions::default() };
        let id = store.s3.create_multipart_opts(&keys.archive, options).await.map_err(cannot)?;
        let upload =
            Self { store, keys, id, mark, patience: super::patience()?, ending: AtomicBool::new(false) };
        if let Err(error) = upload_note::leave(&upload.store, &upload.keys, &upload.id).await {
            upload.abort().await;
            return Err(explain(format!("cannot note the upload of '{name}'"), &error));
        }
        Ok(upload)
    }

    /// Makes the upload of a dead process this one's; nothing where its object is there already.
    async fn take_over(store: Store, keys: ObjectNames, id: &str, mark: &str) -> Result<Option<Self>> {
        if is_taken(&store, &keys).await? {
            return Ok(None);
        }
        let name = store.name(&keys.archive);
        // First the note: then the clean-up finds nobody dead here.
        let noted = upload_note::leave(&store, &keys, id).await;
        noted.map_err(|e| explain(format!("cannot note the upload of '{name}'"), &e))?;
        upload_note::clean(&store, &keys).await;
        let (id, mark, ending) = (id.to_owned(), mark.to_owned(), AtomicBool::new(false));
        Ok(Some(Self { store, keys, id, mark, patience: super::patience()?, ending }))
    }

    fn name(&self) -> String {
        self.store.name(&self.keys.archive)
    }

    fn cannot(&self) -> String {
        format!("cannot write '{}'", self.name())
    }

    async fn part(&self, number: usize, payload: PutPayload) -> UploadedPart {
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
                return Err(Error::new(ErrorKind::Exists, format!("'{}' exists already", self.name()))
                    .with_hint("nothing is ever replaced in an object store"));
            }
            Err(StoreError::NotFound { .. }) => {
                let what = format!("{}: its upload is gone from the store", self.cannot());
                return Err(Error::new(ErrorKind::Io, what)
                    .with_hint("did a rule of the bucket, or an administrator, abort it? a rule for incomplete uploads should leave them a week"));
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

    /// Takes the parts away, and the note; whether the parts are gone.
    async fn abort(&self) -> bool {
        match self.store.s3.abort_multipart(&self.keys.archive, &self.id).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => {
                self.forget().await;
                true
            }
            Err(error) => {
                let what = format!("parts of '{}' are left in the store", self.name());
                tracing::warn!("{}", explain(what, &error));
                false
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
