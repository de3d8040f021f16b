//! Reading a blob by ranges.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use eagle_core::Digest;

use super::objects::Objects;
use crate::ssi::{BlobReader, StorageError, check_range};

/// A blob in the bucket.
#[derive(Debug)]
pub(super) struct ObjectReader {
    pub(super) objects: Arc<Objects>,
    pub(super) digest: Digest,
    pub(super) size: u64,
}

#[async_trait]
impl BlobReader for ObjectReader {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        let range = check_range(self.digest, self.size, offset, length)?;
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        self.objects.range(&self.objects.names.data(self.digest), self.size, range).await
    }
}
