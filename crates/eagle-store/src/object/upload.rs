//! From a reader to an object.

use std::sync::Arc;

use eagle_core::Digest;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::{PutMode, PutPayload};
use tracing::warn;

use super::{
    heartbeat::{Heartbeat, Of, Upload},
    objects::Objects,
};
use crate::ssi::{BlobReader, StorageError};

/// Shortest part, bytes: S3 wants 5 MiB at least, and 8 keep a link busy between two requests.
const PART: u64 = 8 << 20;
/// Most parts of one upload, of S3 and Google Cloud Storage; Azure allows more.
const MAX_PARTS: u64 = 10_000;
/// Bytes of parts in memory for one upload, unless a single part is longer (a blob over 80 GB).
pub(super) const IN_FLIGHT: u64 = 32 << 20;

/// Length of the parts of a blob, all alike but the last, as some stores want it.
fn part_length(size: u64) -> u64 {
    PART.max(size.div_ceil(MAX_PARTS).next_multiple_of(1 << 20))
}

/// Writes the bytes of a blob as its data object. When it fails or the future is dropped, nothing of
/// it is to be seen, and its parts are removed by a task.
pub(super) async fn upload(objects: &Arc<Objects>, digest: Digest, blob: &dyn BlobReader) -> Result<(), StorageError> {
    let path = objects.names.data(digest);
    // The semaphore is never closed.
    let _permit = objects.uploads.acquire().await.map_err(|_| StorageError::Stopped)?;
    let size = blob.size();
    let length = part_length(size);
    if size <= length {
        let bytes = blob.read_at(0, usize::try_from(size).unwrap_or(usize::MAX)).await?;
        return objects.put_bytes(&path, bytes, PutMode::Overwrite).await.map(drop);
    }
    let failed = |action, error| objects.failed(action, &path, &error);
    let id = objects.store.create_multipart(&path).await.map_err(|error| failed("begin to upload", error))?;
    let record = Upload { path: path.to_string(), id: id.clone() };
    let record_path = objects.names.upload(digest, rand::random());
    let heartbeat = match Heartbeat::begin(objects, record_path, Of::Upload(record), PutMode::Overwrite).await {
        Ok(Some(heartbeat)) => heartbeat,
        not_begun => {
            if let Err(error) = objects.store.abort_multipart(&path, &id).await {
                warn!(%error, blob = %digest, "an upload that did not begin was not aborted");
            }
            return Err(not_begun.err().unwrap_or(StorageError::Stopped));
        }
    };
    let parts = stream::iter(0..size.div_ceil(length))
        .map(|number| {
            let (path, id) = (&path, &id);
            async move {
                let offset = number * length;
                let bytes = usize::try_from(length.min(size - offset)).unwrap_or(usize::MAX);
                let bytes = blob.read_at(offset, bytes).await?;
                let number = usize::try_from(number).unwrap_or(usize::MAX);
                let put = objects.store.put_part(path, id, number, PutPayload::from(bytes)).await;
                put.map_err(|error| failed("upload a part of", error))
            }
        })
        .buffered(usize::try_from((IN_FLIGHT / length).max(1)).unwrap_or(1))
        .try_collect::<Vec<_>>()
        .await?;
    let completed = objects.store.complete_multipart(&path, &id, parts).await;
    completed.map_err(|error| failed("complete the upload of", error))?;
    heartbeat.completed();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_fit_the_stores() {
        for size in [1, PART, PART + 1, PART * MAX_PARTS, PART * MAX_PARTS + 1, 4 << 40] {
            let length = part_length(size);
            assert!(length >= PART && size.div_ceil(length) <= MAX_PARTS, "{size}: {length}");
        }
        assert_eq!(part_length(PART * MAX_PARTS), PART);
    }
}
