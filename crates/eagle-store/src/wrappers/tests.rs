use std::{io, num::NonZeroU64, time::Duration};

use tokio::time::Instant;

use super::*;
use crate::{
    FsStorage, MemoryStorage,
    conformance::{self, Fixture, Sample, store},
};

/// A storage in memory under a policy, which is made anew when it is opened again.
struct Memory<P> {
    storage: Arc<MemoryStorage>,
    policy: fn() -> P,
}

#[async_trait]
impl<P: Policy> Fixture for Memory<P> {
    async fn open(&self) -> Arc<dyn BlobStorage> {
        Arc::new(Wrapped::new(Arc::clone(&self.storage) as _, (self.policy)()))
    }
}

async fn conforms<P: Policy>(policy: fn() -> P) {
    conformance::run(|| Box::new(Memory { storage: Arc::default(), policy })).await;
}

#[tokio::test(start_paused = true)]
async fn conform() {
    conforms(|| Latency::new(Duration::from_millis(200))).await;
    conforms(|| RateLimit::new(NonZeroU64::new(100_000).unwrap())).await;
    conforms(Faults::default).await;
}

#[tokio::test]
async fn gives_no_file_to_read_past_it() {
    let directory = tempfile::TempDir::new().unwrap();
    let storage = Arc::new(FsStorage::open(directory.path()).await.unwrap());
    let sample = Sample::new(100, 1);
    assert!(store(&*storage, &sample).await.file().is_some());
    let wrapped = Wrapped::new(storage, Faults::default());
    assert!(wrapped.open(sample.digest).await.unwrap().unwrap().file().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_rate_holds_over_all_blobs() {
    let limit = Arc::new(RateLimit::new(NonZeroU64::new(1 << 20).unwrap()));
    let storage = Wrapped::sharing(Arc::new(MemoryStorage::new()), Arc::clone(&limit));
    let began = Instant::now();
    let samples = [Sample::new(2 << 20, 1), Sample::new(2 << 20, 2)];
    let source = MemoryStorage::new();
    for sample in &samples {
        let blob = store(&source, sample).await;
        storage.put(&*blob, &sample.metainfo()).await.unwrap();
        let stored = storage.open(sample.digest).await.unwrap().unwrap();
        assert_eq!(stored.read_at(0, 2 << 20).await.unwrap(), sample.bytes);
    }
    // 8 MiB at 1 MiB/s; the last read of 2 MiB is not paid for yet.
    let took = began.elapsed().as_secs_f64();
    assert!((5.9..6.1).contains(&took), "{took}");
}

#[tokio::test]
async fn planned_faults_come_when_planned() {
    let faults = Arc::new(Faults::default());
    let storage = Wrapped::sharing(Arc::new(MemoryStorage::new()), Arc::clone(&faults));
    let sample = Sample::new(200_000, 1);
    faults.plan(Call::Write, 2, 1, io::ErrorKind::StorageFull);
    let partial = storage.create(sample.digest, sample.geometry).await.unwrap();
    for piece in sample.geometry.all() {
        let written = partial.write_piece(piece, sample.piece(piece)).await;
        assert_eq!(written.is_err_and(|error| error.is_out_of_space()), piece.0 == 2, "{piece}");
    }
    partial.write_piece(PieceIndex(2), sample.piece(PieceIndex(2))).await.unwrap();
    faults.plan(Call::Commit, 0, 2, io::ErrorKind::TimedOut);
    for _ in 0..2 {
        assert!(matches!(partial.commit().await, Err(StorageError::Io { .. })));
        assert!(storage.open(sample.digest).await.unwrap().is_none());
    }
    let blob = partial.commit().await.unwrap();
    assert_eq!(blob.read_at(0, 200_000).await.unwrap(), sample.bytes);
    let other = Wrapped::sharing(Arc::new(MemoryStorage::new()), Arc::clone(&faults));
    faults.plan(Call::Write, 1, 1, io::ErrorKind::BrokenPipe);
    other.put(&*blob, &sample.metainfo()).await.unwrap_err();
    assert!(other.open(sample.digest).await.unwrap().is_none(), "half a put is nothing");
    other.put(&*blob, &sample.metainfo()).await.unwrap();
    assert!(other.open(sample.digest).await.unwrap().is_some());
}
