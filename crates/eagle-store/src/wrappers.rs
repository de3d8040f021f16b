//! What makes any storage slower, limited or faulty.
//!
//! [`Wrapped`] passes every call on to a storage, after asking a [`Policy`] whether and when. [`RateLimit`] serves
//! configurations; [`Latency`] and [`Faults`] make of a storage in memory what tests of the code above it need.

mod faults;
mod latency;
mod rate_limit;

use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use eagle_core::{Bitfield, Digest, Geometry, Metainfo, PieceIndex};

pub use self::{faults::Faults, latency::Latency, rate_limit::RateLimit};
use crate::ssi::{
    BlobReader, BlobStorage, Claim, Claimant, PartialBlob, ScrubPlace, SpaceOnDisk, StorageError, StoredBlob,
};

/// What is about to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    /// [`BlobStorage::create`].
    Create,
    /// [`BlobStorage::open`].
    Open,
    /// [`BlobReader::read_at`] of a blob of the storage.
    Read,
    /// [`PartialBlob::write_piece`], or a part of what [`BlobStorage::put`] is given.
    Write,
    /// [`PartialBlob::commit`].
    Commit,
    /// [`BlobStorage::put_metainfo`] and [`BlobStorage::metainfo`].
    Metainfo,
    /// [`BlobStorage::remove`].
    Remove,
    /// [`BlobStorage::list`].
    List,
    /// [`BlobStorage::put`], before its first byte.
    Put,
    /// [`BlobStorage::claim`].
    Claim,
}

/// Decides over each call to a storage.
#[async_trait]
pub trait Policy: Debug + Send + Sync + 'static {
    /// Returns when the call may be made; `bytes` of content are read or written by it.
    ///
    /// # Errors
    /// When the call is to fail.
    async fn before(&self, call: Call, bytes: u64) -> Result<(), StorageError>;
}

/// A storage under a policy.
///
/// It gives out no files, by which its blobs could be read past the policy.
#[derive(Debug)]
pub struct Wrapped<P> {
    storage: Arc<dyn BlobStorage>,
    policy: Arc<P>,
}

impl<P: Policy> Wrapped<P> {
    /// Puts a storage under a policy.
    pub fn new(storage: Arc<dyn BlobStorage>, policy: P) -> Self {
        Self::sharing(storage, Arc::new(policy))
    }

    /// Puts a storage under a policy that others hold too, to change it or to share it.
    pub fn sharing(storage: Arc<dyn BlobStorage>, policy: Arc<P>) -> Self {
        Self { storage, policy }
    }

    fn blob<B: ?Sized>(&self, blob: Arc<B>) -> WrappedBlob<B, P> {
        WrappedBlob { blob, policy: Arc::clone(&self.policy) }
    }
}

/// A blob under a policy.
#[derive(Debug)]
struct WrappedBlob<B: ?Sized, P> {
    blob: Arc<B>,
    policy: Arc<P>,
}

#[async_trait]
impl<B: BlobReader + ?Sized, P: Policy> BlobReader for WrappedBlob<B, P> {
    fn size(&self) -> u64 {
        self.blob.size()
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        self.policy.before(Call::Read, length as u64).await?;
        self.blob.read_at(offset, length).await
    }
}

#[async_trait]
impl<P: Policy> PartialBlob for WrappedBlob<dyn PartialBlob, P> {
    fn digest(&self) -> Digest {
        self.blob.digest()
    }

    fn geometry(&self) -> Geometry {
        self.blob.geometry()
    }

    fn recovered(&self) -> Bitfield {
        self.blob.recovered()
    }

    async fn write_piece(&self, piece: PieceIndex, bytes: Bytes) -> Result<(), StorageError> {
        self.policy.before(Call::Write, bytes.len() as u64).await?;
        self.blob.write_piece(piece, bytes).await
    }

    async fn commit(&self) -> Result<Arc<dyn BlobReader>, StorageError> {
        self.policy.before(Call::Commit, 0).await?;
        let (blob, policy) = (self.blob.commit().await?, Arc::clone(&self.policy));
        Ok(Arc::new(WrappedBlob { blob, policy }))
    }
}

/// What [`BlobStorage::put`] reads: to the storage these are writes.
#[derive(Debug)]
struct Given<'a, P> {
    blob: &'a dyn BlobReader,
    policy: &'a P,
}

#[async_trait]
impl<P: Policy> BlobReader for Given<'_, P> {
    fn size(&self) -> u64 {
        self.blob.size()
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        self.policy.before(Call::Write, length as u64).await?;
        self.blob.read_at(offset, length).await
    }
}

#[async_trait]
impl<P: Policy> BlobStorage for Wrapped<P> {
    async fn create(&self, digest: Digest, geometry: Geometry) -> Result<Arc<dyn PartialBlob>, StorageError> {
        self.policy.before(Call::Create, 0).await?;
        Ok(Arc::new(self.blob(self.storage.create(digest, geometry).await?)))
    }

    async fn open(&self, digest: Digest) -> Result<Option<Arc<dyn BlobReader>>, StorageError> {
        self.policy.before(Call::Open, 0).await?;
        let opened = self.storage.open(digest).await?;
        Ok(opened.map(|blob| Arc::new(self.blob(blob)) as Arc<dyn BlobReader>))
    }

    async fn put_metainfo(&self, metainfo: &Metainfo) -> Result<(), StorageError> {
        self.policy.before(Call::Metainfo, 0).await?;
        self.storage.put_metainfo(metainfo).await
    }

    async fn metainfo(&self, digest: Digest) -> Result<Option<Metainfo>, StorageError> {
        self.policy.before(Call::Metainfo, 0).await?;
        self.storage.metainfo(digest).await
    }

    async fn remove(&self, digest: Digest) -> Result<(), StorageError> {
        self.policy.before(Call::Remove, 0).await?;
        self.storage.remove(digest).await
    }

    async fn list(&self) -> Result<Vec<StoredBlob>, StorageError> {
        self.policy.before(Call::List, 0).await?;
        self.storage.list().await
    }

    fn touch(&self, digest: Digest) {
        self.storage.touch(digest);
    }

    async fn scrub_place(&self) -> Option<ScrubPlace> {
        self.storage.scrub_place().await
    }

    async fn keep_scrub_place(&self, place: Option<ScrubPlace>) {
        self.storage.keep_scrub_place(place).await;
    }

    async fn space(&self) -> Result<Option<SpaceOnDisk>, StorageError> {
        self.storage.space().await
    }

    fn is_shared(&self) -> bool {
        self.storage.is_shared()
    }

    async fn put(&self, blob: &dyn BlobReader, metainfo: &Metainfo) -> Result<(), StorageError> {
        self.policy.before(Call::Put, 0).await?;
        self.storage.put(&Given { blob, policy: &*self.policy }, metainfo).await
    }

    async fn claim(&self, digest: Digest, claimant: &mut Claimant) -> Result<Claim, StorageError> {
        self.policy.before(Call::Claim, 0).await?;
        self.storage.claim(digest, claimant).await
    }

    async fn settle(&self) {
        self.storage.settle().await;
    }
}

#[cfg(test)]
mod tests;
