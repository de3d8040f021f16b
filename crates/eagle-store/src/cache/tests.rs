mod damage;
mod faulty;
mod random;
mod upkeep;

use eagle_core::PieceIndex;
use rustix::io::Errno;

use self::faulty::Faulty;
use super::*;
use crate::{conformance::Sample, fs::FsStorage, memory::MemoryStorage};

const PIECE: u64 = eagle_core::geometry::MIN_PIECE_LENGTH as u64;

/// A blob of `pieces` pieces.
fn sample(pieces: u64, seed: u8) -> Sample {
    Sample::new(usize::try_from(pieces * PIECE).unwrap(), seed)
}

async fn memory(limit: u64) -> Arc<Cache> {
    Cache::open(Arc::new(MemoryStorage::new()), limit).await.unwrap()
}

async fn write_all(entry: &PartialEntry, sample: &Sample) {
    for piece in sample.geometry.all() {
        entry.write_piece(piece, sample.piece(piece)).await.unwrap();
    }
}

async fn put(cache: &Arc<Cache>, sample: &Sample) -> CachedBlob {
    let entry = cache.create(sample.digest, sample.geometry).await.unwrap();
    write_all(&entry, sample).await;
    entry.commit(Some(sample.metainfo())).await.unwrap()
}

async fn content(blob: &CachedBlob) -> Digest {
    let size = usize::try_from(blob.size()).unwrap();
    Digest::of(&blob.reader().read_at(0, size).await.unwrap())
}

fn digests(cache: &Cache) -> Vec<Digest> {
    cache.list().iter().map(|entry| entry.digest).collect()
}

#[tokio::test]
async fn keeps_what_was_committed() {
    let cache = memory(10 * PIECE).await;
    let blob = sample(3, 1);
    assert!(cache.get(blob.digest).await.is_none());
    let entry = cache.create(blob.digest, blob.geometry).await.unwrap();
    assert_eq!((entry.digest(), entry.geometry(), entry.recovered().count()), (blob.digest, blob.geometry, 0));
    write_all(&entry, &blob).await;
    assert!(!cache.contains(blob.digest) && cache.get(blob.digest).await.is_none(), "not before the commit");
    assert_eq!(entry.reader().read_at(PIECE, 5).await.unwrap(), blob.bytes.slice(65536..65541));
    let committed = entry.commit(Some(blob.metainfo())).await.unwrap();
    let again = entry.commit(None).await.unwrap();
    assert_eq!((content(&committed).await, content(&again).await), (blob.digest, blob.digest));
    drop((committed, again, entry));
    assert!(cache.contains(blob.digest));
    let found = cache.get(blob.digest).await.unwrap();
    assert_eq!(content(&found).await, blob.digest);
    assert_eq!(found.metainfo().as_deref(), Some(&blob.metainfo()));
    let stats = cache.stats();
    let expected =
        CacheStats { bytes: 3 * PIECE, limit: 10 * PIECE, blobs: 1, hits: 1, misses: 2, ..CacheStats::default() };
    assert_eq!(stats, expected);
}

#[tokio::test]
async fn the_least_recently_used_go_as_many_as_needed() {
    let cache = memory(10 * PIECE).await;
    let blobs: Vec<_> = (0..5).map(|seed| sample(2, seed)).collect();
    for blob in &blobs {
        put(&cache, blob).await;
    }
    let mut evictions = cache.evictions();
    cache.get(blobs[0].digest).await.unwrap();
    let large = sample(5, 9);
    put(&cache, &large).await;
    assert_eq!(digests(&cache), [blobs[4].digest, blobs[0].digest, large.digest]);
    for blob in &blobs[1..4] {
        assert_eq!(evictions.recv().await.unwrap(), blob.digest);
        assert!(!cache.contains(blob.digest) && cache.get(blob.digest).await.is_none());
    }
    let stats = cache.stats();
    assert_eq!((stats.bytes, stats.evictions, stats.evicted_bytes), (9 * PIECE, 3, 6 * PIECE));
}

#[tokio::test]
async fn newcomers_at_the_same_time_cost_no_more_than_one_after_the_other() {
    let cache = Cache::open(Arc::new(Faulty::default()), 4 * PIECE).await.unwrap();
    let (a, b, c, d) = (sample(2, 1), sample(2, 2), sample(1, 3), sample(1, 4));
    put(&cache, &a).await;
    put(&cache, &b).await;
    let (first, second) = tokio::join!(cache.create(c.digest, c.geometry), cache.create(d.digest, d.geometry));
    assert!(first.is_ok() && second.is_ok());
    assert!(!cache.contains(a.digest) && cache.contains(b.digest), "the room of one was enough for both");
}

#[tokio::test]
async fn what_is_in_use_stays() {
    let cache = memory(4 * PIECE).await;
    let (a, b, c) = (sample(2, 1), sample(2, 2), sample(2, 3));
    let held = put(&cache, &a).await;
    let reader = put(&cache, &b).await.reader();
    assert!(cache.list().iter().all(|entry| entry.pinned && entry.complete));
    let error = cache.create(c.digest, c.geometry).await.unwrap_err();
    assert!(matches!(error, CreateError::Full), "{error}");
    assert_eq!(content(&held).await, a.digest);
    drop(reader);
    put(&cache, &c).await;
    assert!(cache.contains(a.digest) && !cache.contains(b.digest));
    let clone = held.clone();
    drop(held);
    assert!(
        matches!(cache.create(b.digest, sample(3, 2).geometry).await, Err(CreateError::Full)),
        "the clone pins too"
    );
    drop(clone);
    put(&cache, &b).await;
    assert!(!cache.contains(c.digest) && cache.contains(a.digest), "a was used last");
}

#[tokio::test]
async fn refuses_what_cannot_be() {
    let cache = memory(4 * PIECE).await;
    let large = sample(5, 1);
    let error = cache.create(large.digest, large.geometry).await.unwrap_err();
    assert!(
        matches!(error, CreateError::TooLarge { size, limit } if size == 5 * PIECE && limit == 4 * PIECE),
        "{error}"
    );
    let blob = sample(1, 2);
    let entry = cache.create(blob.digest, blob.geometry).await.unwrap();
    let reader = entry.reader();
    drop(entry);
    assert!(matches!(cache.create(blob.digest, blob.geometry).await, Err(CreateError::InProgress)), "its reader lives");
    drop(reader);
    let entry = cache.create(blob.digest, blob.geometry).await.unwrap();
    write_all(&entry, &blob).await;
    let foreign = entry.commit(Some(large.metainfo())).await;
    assert!(matches!(foreign, Err(StorageError::Metainfo { .. })), "{foreign:?}");
    drop((entry.commit(None).await.unwrap(), entry));
    assert!(matches!(cache.create(blob.digest, blob.geometry).await, Err(CreateError::Complete)));
}

#[tokio::test]
async fn a_touch_is_a_use_of_what_is_complete() {
    let cache = memory(6 * PIECE).await;
    let blobs: Vec<_> = (0..3).map(|seed| sample(2, seed)).collect();
    for blob in &blobs {
        put(&cache, blob).await;
    }
    let hits = cache.stats().hits;
    assert!(cache.touch(blobs[0].digest));
    assert_eq!(digests(&cache), [1, 2, 0].map(|index: usize| blobs[index].digest));
    put(&cache, &sample(3, 9)).await;
    assert!(!cache.touch(blobs[1].digest), "evicted, as the least recently used");
    assert!(cache.touch(blobs[0].digest));
    let partial = sample(1, 10);
    let _entry = cache.create(partial.digest, partial.geometry).await.unwrap();
    assert!(!cache.touch(partial.digest));
    assert_eq!(cache.stats().hits, hits + 2);
}

#[tokio::test]
async fn a_partial_blob_counts_and_can_be_resumed_or_evicted() {
    let cache = memory(4 * PIECE).await;
    let blob = sample(3, 1);
    let entry = cache.create(blob.digest, blob.geometry).await.unwrap();
    entry.write_piece(PieceIndex(1), blob.piece(PieceIndex(1))).await.unwrap();
    entry.put_metainfo(&blob.metainfo()).await.unwrap();
    drop(entry);
    let stats = cache.stats();
    assert_eq!((stats.bytes, stats.blobs, stats.partials), (3 * PIECE, 0, 1));
    let entry = cache.create(blob.digest, blob.geometry).await.unwrap();
    assert_eq!(entry.recovered().iter().collect::<Vec<_>>(), [PieceIndex(1)]);
    assert_eq!(entry.metainfo().await, Some(blob.metainfo()));
    assert_eq!(cache.stats().bytes, 3 * PIECE, "not counted twice");
    let other = sample(2, 2);
    assert!(matches!(cache.create(other.digest, other.geometry).await, Err(CreateError::Full)));
    drop(entry);
    put(&cache, &other).await;
    assert_eq!(digests(&cache), [other.digest]);
    let smaller = Geometry::new(2 * PIECE, 65536).unwrap();
    drop(cache.create(blob.digest, smaller).await.unwrap());
    assert_eq!(cache.create(blob.digest, Geometry::new(PIECE, 65536).unwrap()).await.unwrap().recovered().count(), 0);
    assert_eq!(cache.stats().bytes, 3 * PIECE, "its size changed");
}

#[tokio::test]
async fn what_is_removed_counts_as_long_as_somebody_holds_it() {
    let cache = memory(4 * PIECE).await;
    let blob = sample(3, 1);
    let held = put(&cache, &blob).await;
    let mut evictions = cache.evictions();
    assert!(cache.remove(blob.digest).await);
    assert!(!cache.remove(blob.digest).await);
    assert_eq!(evictions.recv().await.unwrap(), blob.digest);
    assert!(!cache.contains(blob.digest) && cache.list().is_empty());
    assert_eq!(content(&held).await, blob.digest);
    assert_eq!((cache.stats().bytes, cache.stats().evictions), (3 * PIECE, 0));
    assert!(matches!(cache.create(blob.digest, blob.geometry).await, Err(CreateError::Full)));
    drop(held);
    assert_eq!(cache.stats().bytes, 0);
    put(&cache, &blob).await;

    cache.remove(blob.digest).await;
    let entry = cache.create(blob.digest, blob.geometry).await.unwrap();
    entry.write_piece(PieceIndex(0), blob.piece(PieceIndex(0))).await.unwrap();
    entry.discard().await;
    entry.discard().await;
    let error = entry.write_piece(PieceIndex(1), blob.piece(PieceIndex(1))).await.unwrap_err();
    assert!(matches!(error, StorageError::Removed { .. }), "{error}");
    assert!(matches!(entry.commit(None).await, Err(StorageError::Removed { .. })));
    assert_eq!(cache.stats().bytes, 3 * PIECE);
    drop(entry);
    assert_eq!(cache.stats().bytes, 0);
    let entry = cache.create(blob.digest, blob.geometry).await.unwrap();
    write_all(&entry, &blob).await;
    entry.commit(None).await.unwrap();
    entry.discard().await;
    assert!(cache.contains(blob.digest), "what is complete is not discarded");
}

#[tokio::test]
async fn a_restart_keeps_blobs_and_their_order_and_reads_nothing() {
    let storage = Arc::new(Faulty::default());
    let blobs: Vec<_> = (0..4).map(|seed| sample(2, seed)).collect();
    let cache = Cache::open(Arc::clone(&storage) as _, 10 * PIECE).await.unwrap();
    for blob in &blobs {
        put(&cache, blob).await;
    }
    drop(cache.create(Digest::of(b"partial"), Geometry::new(2 * PIECE, 65536).unwrap()).await.unwrap());
    cache.get(blobs[1].digest).await.unwrap();
    drop(cache);
    let cache = Cache::open(Arc::clone(&storage) as _, 10 * PIECE).await.unwrap();
    let order = [blobs[0].digest, blobs[2].digest, blobs[3].digest, Digest::of(b"partial"), blobs[1].digest];
    assert_eq!(digests(&cache), order);
    assert_eq!((cache.stats().blobs, cache.stats().partials, cache.stats().bytes), (4, 1, 10 * PIECE));
    assert_eq!(storage.reads.load(Ordering::Relaxed), 0);
    let found = cache.get(blobs[1].digest).await.unwrap();
    assert_eq!((content(&found).await, found.metainfo().is_some()), (blobs[1].digest, true));
    drop((cache, found));
    // With a lower limit, the oldest go at once.
    let cache = Cache::open(Arc::clone(&storage) as _, 5 * PIECE).await.unwrap();
    assert_eq!(digests(&cache).len(), 2);
    assert!(cache.contains(blobs[1].digest));
    assert_eq!(storage.list().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_restart_on_disk_keeps_blobs_and_their_order() {
    let directory = tempfile::TempDir::new().unwrap();
    let open =
        async || Cache::open(Arc::new(FsStorage::open(directory.path()).await.unwrap()), 8 * PIECE).await.unwrap();
    let blobs: Vec<_> = (0..4).map(|seed| sample(2, seed)).collect();
    let cache = open().await;
    for blob in &blobs {
        put(&cache, blob).await;
    }
    cache.get(blobs[0].digest).await.unwrap();
    drop(cache);
    let cache = open().await;
    assert_eq!(digests(&cache), [1, 2, 3, 0].map(|i: usize| blobs[i].digest));
    let partial = sample(2, 7);
    let entry = cache.create(partial.digest, partial.geometry).await.unwrap();
    entry.write_piece(PieceIndex(0), partial.piece(PieceIndex(0))).await.unwrap();
    drop((entry, cache));
    let cache = open().await;
    assert_eq!(digests(&cache), [blobs[2].digest, blobs[3].digest, blobs[0].digest, partial.digest]);
    let entry = cache.create(partial.digest, partial.geometry).await.unwrap();
    assert_eq!(entry.recovered().iter().collect::<Vec<_>>(), [PieceIndex(0)]);
}

#[tokio::test]
async fn content_that_vanished_or_changed_its_size_is_dropped() {
    let directory = tempfile::TempDir::new().unwrap();
    let storage: Arc<dyn BlobStorage> = Arc::new(FsStorage::open(directory.path()).await.unwrap());
    let cache = Cache::open(Arc::clone(&storage), 10 * PIECE).await.unwrap();
    let file = |blob: &Sample| {
        let hex = blob.digest.hex();
        directory.path().join("blobs/sha256").join(&hex[..2]).join(&hex).join("data")
    };
    let cut = |blob: &Sample| std::fs::File::options().write(true).open(file(blob)).unwrap().set_len(7).unwrap();
    let (gone, short, later) = (sample(2, 1), sample(2, 2), sample(2, 3));
    for blob in [&gone, &short, &later] {
        put(&cache, blob).await;
    }
    let mut evictions = cache.evictions();
    std::fs::remove_file(file(&gone)).unwrap();
    cut(&short);
    for blob in [&gone, &short] {
        assert!(cache.contains(blob.digest));
        assert!(cache.get(blob.digest).await.is_none());
        assert!(!cache.contains(blob.digest));
        assert_eq!(evictions.recv().await.unwrap(), blob.digest);
    }
    assert_eq!(cache.stats().bytes, 2 * PIECE);
    put(&cache, &gone).await;
    assert_eq!(content(&cache.get(gone.digest).await.unwrap()).await, gone.digest);
    // Cut while no process looked: the metainfo knows better.
    cut(&later);
    let cache = Cache::open(storage, 10 * PIECE).await.unwrap();
    assert!(cache.contains(later.digest));
    assert!(cache.get(later.digest).await.is_none());
    assert!(!cache.contains(later.digest));
}

#[tokio::test]
async fn a_full_file_system_costs_old_blobs_and_then_says_so() {
    let storage = Arc::new(Faulty::default());
    let cache = Cache::open(Arc::clone(&storage) as _, 10 * PIECE).await.unwrap();
    let (old, new) = (sample(2, 1), sample(2, 2));
    put(&cache, &old).await;
    let entry = cache.create(new.digest, new.geometry).await.unwrap();
    *storage.full_with.lock().unwrap() = Some(old.digest);
    storage.full.store(true, Ordering::Relaxed);
    entry.write_piece(PieceIndex(0), new.piece(PieceIndex(0))).await.unwrap();
    assert!(!cache.contains(old.digest));
    storage.full.store(true, Ordering::Relaxed);
    let error = entry.write_piece(PieceIndex(1), new.piece(PieceIndex(1))).await.unwrap_err();
    assert!(error.is_out_of_space(), "{error}");
    storage.fail_create.store(true, Ordering::Relaxed);
    let error = cache.create(old.digest, old.geometry).await.unwrap_err();
    assert!(matches!(&error, CreateError::Storage(error) if error.is_out_of_space()), "{error}");
    assert_eq!(cache.stats().bytes, 2 * PIECE, "its reservation is gone");
}

#[tokio::test]
async fn what_cannot_be_removed_still_counts() {
    let storage = Arc::new(Faulty::default());
    let cache = Cache::open(Arc::clone(&storage) as _, 4 * PIECE).await.unwrap();
    let (stuck, old, new) = (sample(2, 1), sample(2, 2), sample(2, 3));
    put(&cache, &stuck).await;
    put(&cache, &old).await;
    storage.unremovable.lock().unwrap().insert(stuck.digest);
    assert!(!cache.remove(stuck.digest).await);
    put(&cache, &old_after(&cache, &stuck, &old).await).await;
    put(&cache, &new).await;
    assert!(cache.contains(stuck.digest) && !cache.contains(old.digest), "another one went");
    storage.unremovable.lock().unwrap().insert(new.digest);
    let error = cache.create(old.digest, old.geometry).await.unwrap_err();
    assert!(matches!(error, CreateError::Storage(StorageError::Io { .. })), "{error}");
    assert_eq!(cache.stats().bytes, 4 * PIECE);
    assert_eq!(content(&cache.get(new.digest).await.unwrap()).await, new.digest);
}

/// Makes `stuck` the least recently used again, by storing `old` anew.
async fn old_after(cache: &Arc<Cache>, stuck: &Sample, old: &Sample) -> Sample {
    assert!(cache.contains(stuck.digest));
    assert!(cache.remove(old.digest).await);
    old.clone()
}

#[tokio::test]
async fn what_cannot_be_opened_is_dropped_where_the_disk_is_why() {
    let storage = Arc::new(Faulty::default());
    let cache = Cache::open(Arc::clone(&storage) as _, 10 * PIECE).await.unwrap();
    let says = |errno| *storage.unopenable.lock().unwrap() = errno;
    let blob = sample(2, 1);
    put(&cache, &blob).await;
    says(Some(Errno::MFILE));
    assert!(cache.get(blob.digest).await.is_none());
    says(None);
    assert_eq!(
        (cache.get(blob.digest).await.is_some(), cache.stats().damaged),
        (true, 0),
        "the blob was never the matter"
    );
    let mut evictions = cache.evictions();
    for (damaged, errno) in [Errno::IO, Errno::UCLEAN, Errno::BADMSG, Errno::STALE].into_iter().enumerate() {
        says(Some(errno));
        assert!(cache.get(blob.digest).await.is_none() && !cache.contains(blob.digest), "{errno}");
        assert_eq!((evictions.recv().await.unwrap(), cache.stats().damaged), (blob.digest, damaged as u64 + 1));
        says(None);
        put(&cache, &blob).await;
    }
}

#[tokio::test]
async fn what_is_damaged_and_cannot_be_removed_is_no_blob_any_more() {
    let storage = Arc::new(Faulty::default());
    let cache = Cache::open(Arc::clone(&storage) as _, 4 * PIECE).await.unwrap();
    let (blob, other) = (sample(2, 1), sample(2, 2));
    put(&cache, &blob).await;
    put(&cache, &other).await;
    let mut evictions = cache.evictions();
    storage.unremovable.lock().unwrap().insert(blob.digest);
    *storage.unopenable.lock().unwrap() = Some(Errno::IO);
    assert!(cache.get(blob.digest).await.is_none() && !cache.contains(blob.digest));
    assert_eq!((evictions.recv().await.unwrap(), cache.stats().bytes), (blob.digest, 4 * PIECE), "it takes its space");
    assert!(cache.get(blob.digest).await.is_none());
    assert_eq!(cache.stats().damaged, 1, "it is not found to be damaged again");
    let refused = cache.create(blob.digest, blob.geometry).await;
    assert!(matches!(refused, Err(CreateError::Storage(StorageError::Io { .. }))), "{refused:?}");
    // The disk is well again.
    storage.unremovable.lock().unwrap().clear();
    *storage.unopenable.lock().unwrap() = None;
    assert_eq!(content(&put(&cache, &blob).await).await, blob.digest);
    assert_eq!((cache.stats().bytes, cache.contains(other.digest)), (4 * PIECE, true));
}

#[tokio::test]
async fn a_blob_is_kept_though_its_metainfo_cannot_be() {
    let storage = Arc::new(Faulty::default());
    let cache = Cache::open(Arc::clone(&storage) as _, 4 * PIECE).await.unwrap();
    let blob = sample(2, 1);
    storage.fail_metainfo.store(true, Ordering::Relaxed);
    let held = put(&cache, &blob).await;
    assert_eq!(held.metainfo().as_deref(), Some(&blob.metainfo()), "whoever uses it has it");
    drop(held);
    let held = cache.get(blob.digest).await.unwrap();
    assert_eq!((held.metainfo(), content(&held).await), (None, blob.digest));
}
