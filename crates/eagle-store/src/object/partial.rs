//! A blob on its way into the bucket: in the staging directory until it is whole.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use eagle_core::{Bitfield, Digest, Geometry, PieceIndex};
use tokio::sync::Mutex;

use super::{Inner, Marker, reader::ObjectReader, upload};
use crate::ssi::{BlobReader, BlobStorage as _, PartialBlob, StorageError};

/// What the writer of a blob and its removal share.
#[derive(Debug, Default)]
pub(super) struct Writer(Mutex<Phase>);

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Writing,
    Complete,
    Removed,
}

impl Writer {
    /// Waits for a commit that is about to be seen; one that comes later fails.
    pub(super) async fn removed(&self) {
        let mut phase = self.0.lock().await;
        if *phase == Phase::Writing {
            *phase = Phase::Removed;
        }
    }
}

/// The writer of a blob.
#[derive(Debug)]
pub(super) struct ObjectPartial {
    pub(super) inner: Arc<Inner>,
    pub(super) staged: Arc<dyn PartialBlob>,
    pub(super) writer: Arc<Writer>,
}

impl ObjectPartial {
    fn reader(&self) -> Arc<dyn BlobReader> {
        let objects = Arc::clone(&self.inner.objects);
        Arc::new(ObjectReader { objects, digest: self.digest(), size: self.size() })
    }
}

#[async_trait]
impl BlobReader for ObjectPartial {
    fn size(&self) -> u64 {
        self.staged.size()
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        self.staged.read_at(offset, length).await
    }

    fn file(&self) -> Option<Arc<std::fs::File>> {
        self.staged.file()
    }
}

#[async_trait]
impl PartialBlob for ObjectPartial {
    fn digest(&self) -> Digest {
        self.staged.digest()
    }

    fn geometry(&self) -> Geometry {
        self.staged.geometry()
    }

    fn recovered(&self) -> Bitfield {
        self.staged.recovered()
    }

    async fn write_piece(&self, piece: PieceIndex, bytes: Bytes) -> Result<(), StorageError> {
        self.staged.write_piece(piece, bytes).await
    }

    async fn commit(&self) -> Result<Arc<dyn BlobReader>, StorageError> {
        let (digest, size, objects) = (self.digest(), self.size(), &self.inner.objects);
        match *self.writer.0.lock().await {
            Phase::Complete => return Ok(self.reader()),
            Phase::Removed => return Err(StorageError::Removed { digest }),
            Phase::Writing => {}
        }
        // From here on no piece changes.
        let whole = self.staged.commit().await?;
        upload::upload(objects, digest, &*whole).await?;
        let mut phase = self.writer.0.lock().await;
        if *phase == Phase::Removed {
            drop(phase);
            objects.delete(&objects.names.data(digest)).await?;
            return Err(StorageError::Removed { digest });
        }
        objects.mark(digest, Marker { size }).await?;
        *phase = Phase::Complete;
        drop(phase);
        self.inner.staging().await?.remove(digest).await?;
        Ok(self.reader())
    }
}
