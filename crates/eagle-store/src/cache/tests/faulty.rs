//! A storage that fails when told to.

use std::{
    collections::HashSet,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use eagle_core::{Digest, Geometry, Metainfo, PieceIndex};
use rustix::io::Errno;

use crate::{
    memory::MemoryStorage,
    ssi::{BlobReader, BlobStorage, PartialBlob, SpaceOnDisk, StorageError, StoredBlob},
};

/// A storage in memory that fails when told to, and counts reads.
#[derive(Debug, Default)]
pub(super) struct Faulty {
    memory: MemoryStorage,
    pub(super) unremovable: Mutex<HashSet<Digest>>,
    /// The storage is full as long as this blob is there.
    pub(super) full_with: Mutex<Option<Digest>>,
    pub(super) full: Arc<AtomicBool>,
    pub(super) reads: Arc<AtomicU64>,
    pub(super) fail_create: AtomicBool,
    /// What the operating system says when a blob is opened.
    pub(super) unopenable: Mutex<Option<Errno>>,
    pub(super) fail_metainfo: AtomicBool,
    /// The file system's size, and what others have on it; none when absent.
    pub(super) disk: Mutex<Option<(u64, u64)>>,
}

#[derive(Debug)]
struct FaultyBlob<B: ?Sized> {
    blob: Arc<B>,
    full: Arc<AtomicBool>,
    reads: Arc<AtomicU64>,
}

fn out_of_space() -> StorageError {
    StorageError::io("write", Path::new("here"), std::io::ErrorKind::StorageFull.into())
}

#[async_trait]
impl<B: BlobReader + ?Sized> BlobReader for FaultyBlob<B> {
    fn size(&self) -> u64 {
        self.blob.size()
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.blob.read_at(offset, length).await
    }
}

#[async_trait]
impl PartialBlob for FaultyBlob<dyn PartialBlob> {
    fn digest(&self) -> Digest {
        self.blob.digest()
    }

    fn geometry(&self) -> Geometry {
        self.blob.geometry()
    }

    fn recovered(&self) -> eagle_core::Bitfield {
        self.blob.recovered()
    }

    async fn write_piece(&self, piece: PieceIndex, bytes: Bytes) -> Result<(), StorageError> {
        if self.full.load(Ordering::Relaxed) { Err(out_of_space()) } else { self.blob.write_piece(piece, bytes).await }
    }

    async fn commit(&self) -> Result<Arc<dyn BlobReader>, StorageError> {
        self.blob.commit().await
    }
}

#[async_trait]
impl BlobStorage for Faulty {
    async fn create(&self, digest: Digest, geometry: Geometry) -> Result<Arc<dyn PartialBlob>, StorageError> {
        if self.fail_create.load(Ordering::Relaxed) {
            return Err(out_of_space());
        }
        let (full, reads) = (Arc::clone(&self.full), Arc::clone(&self.reads));
        Ok(Arc::new(FaultyBlob { blob: self.memory.create(digest, geometry).await?, full, reads }))
    }

    async fn open(&self, digest: Digest) -> Result<Option<Arc<dyn BlobReader>>, StorageError> {
        let (full, reads) = (Arc::clone(&self.full), Arc::clone(&self.reads));
        if let Some(errno) = *self.unopenable.lock().unwrap() {
            return Err(StorageError::io("open", Path::new("it"), errno.into()));
        }
        let opened = self.memory.open(digest).await?;
        Ok(opened.map(|blob| Arc::new(FaultyBlob { blob, full, reads }) as Arc<dyn BlobReader>))
    }

    async fn put_metainfo(&self, metainfo: &Metainfo) -> Result<(), StorageError> {
        if self.fail_metainfo.load(Ordering::Relaxed) {
            return Err(out_of_space());
        }
        self.memory.put_metainfo(metainfo).await
    }

    async fn metainfo(&self, digest: Digest) -> Result<Option<Metainfo>, StorageError> {
        self.memory.metainfo(digest).await
    }

    async fn remove(&self, digest: Digest) -> Result<(), StorageError> {
        if self.unremovable.lock().unwrap().contains(&digest) {
            return Err(StorageError::io("remove", Path::new("it"), std::io::ErrorKind::PermissionDenied.into()));
        }
        if *self.full_with.lock().unwrap() == Some(digest) {
            self.full.store(false, Ordering::Relaxed);
        }
        // Lets others come between, as a disk would.
        for _ in 0..5 {
            tokio::task::yield_now().await;
        }
        self.memory.remove(digest).await
    }

    async fn list(&self) -> Result<Vec<StoredBlob>, StorageError> {
        self.memory.list().await
    }

    async fn space(&self) -> Result<Option<SpaceOnDisk>, StorageError> {
        let Some((total, others)) = *self.disk.lock().unwrap() else { return Ok(None) };
        let stored: u64 = self.memory.list().await?.iter().map(|blob| blob.size).sum();
        Ok(Some(SpaceOnDisk { total, available: total.saturating_sub(others + stored) }))
    }

    fn touch(&self, digest: Digest) {
        self.memory.touch(digest);
    }
}
