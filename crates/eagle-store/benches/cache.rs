//! The cache's own work: a use, an admission that evicts, and reading a piece.
//!
//! `cargo bench -p eagle-store --bench cache`; `eagle-bench cache` measures the same parts as a whole, on a disk.
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on fails")]

use std::{cell::Cell, hint::black_box, sync::Arc};

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use eagle_core::{Digest, Geometry, Metainfo, digest::Algorithm, geometry::MIN_PIECE_LENGTH};
use eagle_store::{BlobStorage, Cache, FsStorage, MemoryStorage};
use tokio::runtime::{Builder, Runtime};

/// Blobs in the cache.
const ENTRIES: u64 = 10_000;
/// Bytes of each: the cost of the bytes themselves is not what is measured.
const SIZE: u64 = 8;
/// Bytes of the piece that is read.
const PIECE: usize = MIN_PIECE_LENGTH as usize;
/// Steps between the entries that are used, with no factor in common with their number.
const STRIDE: usize = 7_919;

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// A blob that no other has the content of.
fn small(number: u64) -> (Bytes, Metainfo) {
    let bytes = number.to_le_bytes().to_vec();
    let metainfo = Metainfo::of(Algorithm::Sha256, Geometry::new(SIZE, MIN_PIECE_LENGTH).unwrap(), &bytes);
    (bytes.into(), metainfo)
}

async fn put(cache: &Arc<Cache>, bytes: Bytes, metainfo: Metainfo) {
    let entry = cache.create(metainfo.digest, metainfo.geometry).await.unwrap();
    entry.write_piece(metainfo.geometry.all().next().unwrap(), bytes).await.unwrap();
    entry.commit(Some(metainfo)).await.unwrap();
}

fn bookkeeping(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cache of 10,000 blobs");
    let runtime = runtime();
    let (cache, digests) = runtime.block_on(async {
        let cache = Cache::open(Arc::new(MemoryStorage::new()), ENTRIES * SIZE).await.unwrap();
        let mut digests: Vec<Digest> = Vec::new();
        for (bytes, metainfo) in (0..ENTRIES).map(small) {
            digests.push(metainfo.digest);
            put(&cache, bytes, metainfo).await;
        }
        (cache, digests)
    });
    group.bench_function("use", |bencher| {
        let mut place = 0;
        bencher.iter(|| {
            place = (place + STRIDE) % digests.len();
            assert!(cache.touch(digests[place]));
        });
    });
    group.bench_function("look-up with a pin", |bencher| {
        let place = Cell::new(0);
        bencher.to_async(&runtime).iter(|| {
            place.set((place.get() + STRIDE) % digests.len());
            let (cache, digest) = (&cache, digests[place.get()]);
            async move { cache.get(digest).await.unwrap() }
        });
    });
    let next = Cell::new(ENTRIES);
    group.bench_function("admission that evicts one", |bencher| {
        let newcomer = || {
            next.set(next.get() + 1);
            small(next.get())
        };
        bencher.to_async(&runtime).iter_batched(
            newcomer,
            |(bytes, metainfo)| put(&cache, bytes, metainfo),
            BatchSize::SmallInput,
        );
    });
    assert_eq!(cache.stats().evictions, next.get() - ENTRIES);
}

fn reads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("read of a piece of 64 KiB");
    group.throughput(Throughput::Bytes(PIECE as u64));
    let runtime = runtime();
    let directory = tempfile::tempdir().unwrap();
    let file_system = runtime.block_on(FsStorage::open(directory.path())).unwrap();
    let storages: [(&str, Arc<dyn BlobStorage>); 2] =
        [("memory", Arc::new(MemoryStorage::new())), ("files, checked before", Arc::new(file_system))];
    for (name, storage) in storages {
        let reader = runtime.block_on(async {
            let bytes = Bytes::from(vec![0xa5; PIECE]);
            let geometry = Geometry::new(PIECE as u64, MIN_PIECE_LENGTH).unwrap();
            let metainfo = Metainfo::of(Algorithm::Sha256, geometry, &bytes);
            let cache = Cache::open(storage, PIECE as u64).await.unwrap();
            put(&cache, bytes, metainfo.clone()).await;
            let blob = cache.get(metainfo.digest).await.unwrap();
            let reader = blob.reader();
            // The first read of a file checks its hash, and is none of what is measured.
            reader.read_at(0, PIECE).await.unwrap();
            reader
        });
        group.bench_function(name, |bencher| {
            bencher.to_async(&runtime).iter(|| async { black_box(reader.read_at(0, PIECE).await.unwrap()) });
        });
    }
}

criterion_group!(benches, bookkeeping, reads);
criterion_main!(benches);
