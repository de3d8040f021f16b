//! Reading a blob in order from a storage that answers late.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};

use crate::ssi::{BlobReader, StorageError};

/// Bytes of one read: long enough that an object store's time to answer, tens of milliseconds, does not
/// matter for a link of a few hundred MB/s with [`DEPTH`] of them under way.
const CHUNK: u64 = 4 << 20;
/// Reads under way: 16 MiB for each blob that is read.
const DEPTH: usize = 4;

/// The bytes of `range`, in order, with the next few reads under way while one is used. A read past the end of the
/// blob is an error of the stream.
pub fn read_ahead(
    reader: Arc<dyn BlobReader>,
    range: Range<u64>,
) -> impl Stream<Item = Result<Bytes, StorageError>> + Send + Unpin {
    let Range { start, end } = range;
    let chunks = end.saturating_sub(start).div_ceil(CHUNK);
    let reads = stream::iter(0..chunks).map(move |chunk| {
        let reader = Arc::clone(&reader);
        let offset = start + chunk * CHUNK;
        let length = usize::try_from(CHUNK.min(end - offset)).unwrap_or(usize::MAX);
        async move { reader.read_at(offset, length).await }
    });
    reads.buffered(DEPTH).boxed()
}

#[cfg(test)]
mod tests {
    use eagle_core::{Digest, Geometry};
    use futures::TryStreamExt as _;

    use super::*;
    use crate::{
        MemoryStorage,
        conformance::{Sample, store},
        wrappers::{Latency, Wrapped},
    };

    #[tokio::test(start_paused = true)]
    async fn reads_wait_side_by_side_and_come_in_order() {
        let chunk = usize::try_from(CHUNK).unwrap();
        let sample = Sample::new(8 * chunk + 5, 1);
        let delay = std::time::Duration::from_secs(1);
        let storage = Wrapped::new(Arc::new(MemoryStorage::new()), Latency::new(delay));
        let reader = store(
            &storage,
            &Sample { geometry: Geometry::new(sample.bytes.len() as u64, 16 << 20).unwrap(), ..sample.clone() },
        )
        .await;
        let began = tokio::time::Instant::now();
        let parts: Vec<Bytes> = read_ahead(Arc::clone(&reader), 3..reader.size()).try_collect().await.unwrap();
        assert_eq!(Digest::of(&parts.concat()), Digest::of(&sample.bytes[3..]));
        let waits = began.elapsed().as_secs();
        assert!((2..9).contains(&waits), "nine reads, four at a time: {waits} s");
        assert!(read_ahead(Arc::clone(&reader), 5..5).next().await.is_none());
        assert!(read_ahead(reader, 0..u64::MAX / 2).any(async |read| read.is_err()).await);
    }
}
