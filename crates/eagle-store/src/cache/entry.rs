//! Handles to blobs in the cache. While one is alive its blob is pinned.

use std::{
    fs::File,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use eagle_core::{Bitfield, Digest, Geometry, Metainfo, PieceIndex};
use tracing::warn;

use super::{
    Inner,
    checks::{self, Checks},
};
use crate::{
    policy::EntryId,
    ssi::{BlobReader, PartialBlob, StorageError, check_range},
};

/// Bytes to free at least when the file system is full: evicting for every single piece would walk
/// through the cache one blob at a time, and take the admission lock as often.
const RELIEF_BYTES: u64 = 64 << 20;

/// Keeps an entry from being evicted.
#[derive(Debug)]
pub(super) struct Pin {
    inner: Arc<Inner>,
    digest: Digest,
    id: EntryId,
}

impl Pin {
    /// Owns a pin that the policy has counted.
    pub(super) fn new(inner: &Arc<Inner>, digest: Digest, id: EntryId) -> Self {
        Self { inner: Arc::clone(inner), digest, id }
    }

    pub(super) fn id(&self) -> EntryId {
        self.id
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if self.inner.policy().unpin(self.digest, self.id) {
            self.inner.storage.touch(self.digest);
        }
    }
}

/// A complete blob and the one pin of all who use it.
///
/// What is read from it is right: see [`Checks`]. When it is not, the blob is dropped and the read fails.
#[derive(Debug)]
pub(super) struct SharedBlob {
    // Dropped first: an open file holds the bytes that the pin accounts for.
    reader: Arc<dyn BlobReader>,
    metainfo: Option<Arc<Metainfo>>,
    checks: Arc<Checks>,
    pin: Pin,
}

impl SharedBlob {
    pub(super) fn new(
        reader: Arc<dyn BlobReader>,
        metainfo: Option<Arc<Metainfo>>,
        checks: Arc<Checks>,
        pin: Pin,
    ) -> Self {
        Self { reader, metainfo, checks, pin }
    }

    pub(super) fn entry(&self) -> EntryId {
        self.pin.id
    }

    pub(super) fn checks(&self) -> Arc<Checks> {
        Arc::clone(&self.checks)
    }

    /// The range of bytes, when it lies within the blob.
    fn range(&self, offset: u64, length: usize) -> Result<Range<u64>, StorageError> {
        check_range(self.pin.digest, self.reader.size(), offset, length)
    }

    /// Hashes what is not known of a range.
    async fn prove(&self, range: Range<u64>) -> Result<(), StorageError> {
        if self.checks.unknown(&range).is_none() {
            return Ok(());
        }
        // What does not lead to the digest proves nothing.
        let metainfo = self.metainfo.as_deref().filter(|metainfo| metainfo.leads_to_digest());
        let found = checks::prove(&self.checks, &*self.reader, self.pin.digest, metainfo, range).await?;
        if let Some(metainfo) = found
            && let Err(error) = self.pin.inner.keep_found(self.pin.id, &metainfo).await
        {
            warn!(digest = %self.pin.digest, %error, "the hashes of a blob were found anew and cannot be kept");
        }
        Ok(())
    }

    /// Drops the blob from the cache when this error says that its content is lost; who asks again then gets another copy.
    async fn report(&self, error: StorageError) -> StorageError {
        if error.is_lost_content() {
            self.pin.inner.lost(self.pin.digest, self.pin.id, error.to_string()).await;
        }
        error
    }
}

#[async_trait]
impl BlobReader for SharedBlob {
    fn size(&self) -> u64 {
        self.reader.size()
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        let range = self.range(offset, length)?;
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let read = async {
            self.prove(range.clone()).await?;
            checks::read(&self.checks, &*self.reader, self.pin.digest, range).await
        };
        match read.await {
            Ok(bytes) => Ok(bytes),
            Err(error) => Err(self.report(error).await),
        }
    }

    async fn check(&self, offset: u64, length: usize) -> Result<(), StorageError> {
        let range = self.range(offset, length)?;
        match self.prove(range).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.report(error).await),
        }
    }

    fn file(&self) -> Option<Arc<File>> {
        self.reader.file()
    }
}

/// A complete blob, pinned until the last clone and the last reader are dropped.
#[derive(Debug, Clone)]
pub struct CachedBlob(Arc<SharedBlob>);

impl CachedBlob {
    pub(super) fn new(shared: Arc<SharedBlob>) -> Self {
        Self(shared)
    }

    /// The blob.
    pub fn digest(&self) -> Digest {
        self.0.pin.digest
    }

    /// Its size, bytes.
    pub fn size(&self) -> u64 {
        self.0.size()
    }

    /// Its content. The reader pins the blob too.
    pub fn reader(&self) -> Arc<dyn BlobReader> {
        Arc::clone(&self.0) as Arc<dyn BlobReader>
    }

    /// Its metainfo, when that was kept.
    pub fn metainfo(&self) -> Option<Arc<Metainfo>> {
        self.0.metainfo.clone()
    }
}

/// A blob that is being written, and its pin.
#[derive(Debug)]
pub(super) struct PartialInner {
    // Dropped first: the storage has to be done with it when the next writer comes.
    blob: Arc<dyn PartialBlob>,
    /// Of the pieces written by this writer; what it recovered is for its user to check.
    checks: Arc<Checks>,
    /// Pieces whose bytes take space already.
    written: Mutex<Bitfield>,
    promise: Promise,
    pin: Pin,
}

/// Bytes that a writer is yet to write, which the cache counts for all writers together.
#[derive(Debug)]
struct Promise {
    inner: Arc<Inner>,
    left: AtomicU64,
}

impl Promise {
    fn new(inner: &Arc<Inner>, bytes: u64) -> Self {
        inner.promised.fetch_add(bytes, Ordering::Relaxed);
        Self { inner: Arc::clone(inner), left: AtomicU64::new(bytes) }
    }

    fn kept(&self, bytes: u64) {
        self.left.fetch_sub(bytes, Ordering::Relaxed);
        self.inner.promised.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.inner.promised.fetch_sub(*self.left.get_mut(), Ordering::Relaxed);
    }
}

impl PartialInner {
    pub(super) fn new(blob: Arc<dyn PartialBlob>, pin: Pin) -> Self {
        let (geometry, written) = (blob.geometry(), blob.recovered());
        let recovered: u64 = written.iter().map(|piece| u64::from(geometry.length(piece))).sum();
        let promise = Promise::new(&pin.inner, geometry.size() - recovered);
        let checks = Arc::new(Checks::new(geometry));
        Self { blob, checks, written: Mutex::new(written), promise, pin }
    }

    /// Bytes that are yet to be written.
    pub(super) fn promised(&self) -> u64 {
        self.promise.left.load(Ordering::Relaxed)
    }

    pub(super) fn checks(&self) -> Arc<Checks> {
        Arc::clone(&self.checks)
    }

    /// Writes a piece and remembers what it was.
    async fn write_piece(&self, piece: PieceIndex, bytes: Bytes) -> Result<(), StorageError> {
        self.checks.forget(piece);
        let (written, sums) =
            tokio::join!(self.blob.write_piece(piece, bytes.clone()), self.checks.sums_later(bytes.clone()));
        written?;
        if let Some(sums) = sums {
            self.checks.note(piece, &sums);
        }
        if self.written.lock().unwrap_or_else(PoisonError::into_inner).insert(piece) {
            self.promise.kept(bytes.len() as u64);
        }
        Ok(())
    }

    pub(super) fn digest(&self) -> Digest {
        self.pin.digest
    }

    pub(super) fn entry(&self) -> EntryId {
        self.pin.id
    }

    pub(super) fn blob(&self) -> &dyn PartialBlob {
        &*self.blob
    }

    /// Refuses metainfo of another blob or geometry.
    pub(super) fn check(&self, metainfo: &Metainfo) -> Result<(), StorageError> {
        let digest = self.digest();
        if metainfo.digest != digest {
            return Err(StorageError::Metainfo { digest, reason: "it is that of another blob" });
        }
        if metainfo.geometry != self.blob.geometry() {
            return Err(StorageError::Metainfo { digest, reason: "the blob is written with another geometry" });
        }
        Ok(())
    }
}

#[async_trait]
impl BlobReader for PartialInner {
    fn size(&self) -> u64 {
        self.blob.size()
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        let range = check_range(self.digest(), self.size(), offset, length)?;
        if range.is_empty() || self.checks.unknown(&range).is_some() {
            return self.blob.read_at(offset, length).await;
        }
        checks::read(&self.checks, &*self.blob, self.digest(), range).await
    }

    fn file(&self) -> Option<Arc<File>> {
        self.blob.file()
    }
}

/// A blob that is being written.
///
/// When the last clone and the last reader are dropped without a commit, the blob stays partial: it
/// counts, can be taken up by [`super::Cache::create`], and can be evicted.
#[derive(Debug, Clone)]
pub struct PartialEntry(Arc<PartialInner>);

impl PartialEntry {
    pub(super) fn new(inner: PartialInner) -> Self {
        Self(Arc::new(inner))
    }

    /// The blob.
    pub fn digest(&self) -> Digest {
        self.0.digest()
    }

    /// Its size and piece length.
    pub fn geometry(&self) -> Geometry {
        self.0.blob.geometry()
    }

    /// Pieces that were there already when this was created; their hashes are for the caller to check.
    pub fn recovered(&self) -> Bitfield {
        self.0.blob.recovered()
    }

    /// Writes one piece, see [`PartialBlob::write_piece`]. When the file system is full although the
    /// cache is below its limit, others are evicted and the write is tried once more.
    ///
    /// # Errors
    /// As [`PartialBlob::write_piece`]; [`StorageError::OutOfSpace`] when nothing could be evicted, or
    /// that did not help.
    pub async fn write_piece(&self, piece: PieceIndex, bytes: Bytes) -> Result<(), StorageError> {
        let error = match self.0.write_piece(piece, bytes.clone()).await {
            Err(error) if error.is_out_of_space() => error,
            other => return other,
        };
        let inner = Arc::clone(&self.0.pin.inner);
        let wanted = RELIEF_BYTES.max(bytes.len() as u64);
        if !self.0.pin.inner.finish(async move { inner.relieve(wanted).await }).await? {
            return Err(error);
        }
        self.0.write_piece(piece, bytes).await
    }

    /// The pieces written so far. The reader pins the blob too.
    pub fn reader(&self) -> Arc<dyn BlobReader> {
        Arc::clone(&self.0) as Arc<dyn BlobReader>
    }

    /// Metainfo kept with the blob, by [`PartialEntry::put_metainfo`] or an earlier process, when it
    /// has this geometry.
    pub async fn metainfo(&self) -> Option<Metainfo> {
        match self.0.pin.inner.storage.metainfo(self.digest()).await {
            Ok(metainfo) => metainfo.filter(|metainfo| metainfo.geometry == self.geometry()),
            Err(error) => {
                warn!(digest = %self.digest(), %error, "the metainfo of a partial blob cannot be read");
                None
            }
        }
    }

    /// Keeps metainfo with the partial blob, so that who takes it up later can check its pieces.
    ///
    /// # Errors
    /// When it is that of another blob or geometry, or when the storage is full or fails.
    pub async fn put_metainfo(&self, metainfo: &Metainfo) -> Result<(), StorageError> {
        self.0.check(metainfo)?;
        self.0.pin.inner.storage.put_metainfo(metainfo).await
    }

    /// Makes the blob complete, together with its metainfo. The caller has checked its digest. Metainfo that the storage
    /// does not take is known as long as somebody uses the blob, and no reason not to keep it.
    ///
    /// # Errors
    /// When pieces are missing, when the blob was removed meanwhile, when the metainfo is another
    /// blob's, or when the storage fails; the blob is then still partial, and [`PartialEntry::discard`] gives its space back.
    pub async fn commit(&self, metainfo: Option<Metainfo>) -> Result<CachedBlob, StorageError> {
        let (inner, partial) = (Arc::clone(&self.0.pin.inner), Arc::clone(&self.0));
        self.0.pin.inner.finish(async move { inner.commit(partial, metainfo).await }).await?
    }

    /// Throws the blob away; every clone gets [`StorageError::Removed`] from then on, and another
    /// writer may begin anew. Does nothing once it is complete or removed.
    pub async fn discard(&self) {
        let (inner, digest, id) = (Arc::clone(&self.0.pin.inner), self.digest(), self.0.entry());
        // A failure has been logged, and leaves a partial blob that can be evicted.
        let _ = self.0.pin.inner.finish(async move { inner.discard(digest, id).await }).await;
    }
}
