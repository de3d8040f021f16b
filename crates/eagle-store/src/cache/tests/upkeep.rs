//! Marks, free space, and the scrub.

use std::time::Duration;

use eagle_core::units::{FreeSpace, Percent, Rate};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::cache::CacheSettings;

fn percent(hundredths: u8) -> Percent {
    Percent::new(hundredths).unwrap()
}

/// A cache with somebody who looks after it until the guard is dropped.
async fn kept(
    storage: Arc<dyn BlobStorage>,
    settings: CacheSettings,
) -> (Arc<Cache>, tokio_util::sync::DropGuard, tokio::task::JoinHandle<()>) {
    let cache = Cache::open(storage, settings).await.unwrap();
    let stop = CancellationToken::new();
    let upkeep = tokio::spawn(Arc::clone(&cache).upkeep(stop.clone()));
    (cache, stop.drop_guard(), upkeep)
}

async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn above_the_high_mark_the_oldest_go_down_to_the_low_mark_and_no_further() {
    let settings = CacheSettings { high: percent(80), low: percent(50), ..CacheSettings::limited(10 * PIECE) };
    let (cache, stop, upkeep) = kept(Arc::new(Faulty::default()), settings).await;
    let mut evictions = cache.evictions();
    let blobs: Vec<_> = (0..9).map(|seed| sample(1, seed)).collect();
    for blob in &blobs[..8] {
        put(&cache, blob).await;
    }
    sleep(Duration::from_secs(60)).await;
    assert_eq!(cache.stats().evictions, 0, "the high mark is reached and not passed");
    let held = cache.get(blobs[0].digest).await.unwrap();
    // Oldest first: 1, 2, …; 0 is in use, and then the newest but one.
    put(&cache, &blobs[8]).await;
    eventually("the low mark is not reached", || cache.stats().bytes <= 5 * PIECE).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(digests(&cache), [5, 6, 7, 0, 8].map(|index: usize| blobs[index].digest));
    for blob in &blobs[1..5] {
        assert_eq!(evictions.recv().await.unwrap(), blob.digest, "whoever listens is told at once");
    }
    assert_eq!(content(&held).await, blobs[0].digest);
    drop(stop);
    upkeep.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_in_use_stays_above_the_marks() {
    let settings = CacheSettings { high: percent(50), low: percent(10), ..CacheSettings::limited(10 * PIECE) };
    let (cache, _stop, _upkeep) = kept(Arc::new(Faulty::default()), settings).await;
    let held = put(&cache, &sample(6, 1)).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!((cache.stats().bytes, cache.stats().evictions), (6 * PIECE, 0));
    drop(held);
    eventually("it does not go when it can", || cache.stats().bytes == 0).await;
}

#[tokio::test]
async fn a_newcomer_leaves_the_minimum_free_or_is_refused() {
    let storage = Arc::new(Faulty::default());
    *storage.disk.lock().unwrap() = Some((20 * PIECE, 5 * PIECE));
    let settings = CacheSettings { min_free: FreeSpace::Part(percent(10)), ..CacheSettings::limited(100 * PIECE) };
    let cache = Cache::open(Arc::clone(&storage) as _, settings).await.unwrap();
    let (a, b, c) = (sample(6, 1), sample(4, 2), sample(5, 3));
    put(&cache, &a).await;
    put(&cache, &b).await;
    // 20 - 5 - 10 = 5 are free, and 2 stay so: one of the old ones goes, and no more.
    let entry = cache.create(c.digest, c.geometry).await.unwrap();
    assert!(!cache.contains(a.digest) && cache.contains(b.digest));
    // What a writer reserved is not free for the next, whatever of it is written.
    *storage.disk.lock().unwrap() = Some((20 * PIECE, 9 * PIECE));
    let (held, d) = (cache.get(b.digest).await.unwrap(), sample(1, 4));
    let error = cache.create(d.digest, d.geometry).await.unwrap_err();
    assert!(
        matches!(error, CreateError::NoSpace { size, min_free, .. } if size == PIECE && min_free == 2 * PIECE),
        "{error}"
    );
    drop(held);
    write_all(&entry, &c).await;
    entry.commit(Some(c.metainfo())).await.unwrap();
    drop(entry);
    put(&cache, &d).await;
    assert!(!cache.contains(b.digest) && cache.contains(c.digest));
    // More than all of it together could give: nothing goes for nothing.
    *storage.disk.lock().unwrap() = Some((20 * PIECE, 19 * PIECE));
    let large = sample(15, 5);
    let before = digests(&cache);
    assert!(matches!(cache.create(large.digest, large.geometry).await, Err(CreateError::NoSpace { .. })));
    assert_eq!(digests(&cache), before);
}

#[tokio::test(start_paused = true)]
async fn when_others_fill_the_file_system_the_oldest_make_room_for_the_minimum() {
    let storage = Arc::new(Faulty::default());
    *storage.disk.lock().unwrap() = Some((20 * PIECE, 0));
    let settings = CacheSettings { min_free: FreeSpace::Bytes(4 * PIECE), ..CacheSettings::limited(100 * PIECE) };
    let (cache, _stop, _upkeep) = kept(Arc::clone(&storage) as _, settings).await;
    let blobs: Vec<_> = (0..5).map(|seed| sample(2, seed)).collect();
    for blob in &blobs {
        put(&cache, blob).await;
    }
    *storage.disk.lock().unwrap() = Some((20 * PIECE, 9 * PIECE));
    eventually("nothing goes", || cache.stats().evictions > 0).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(digests(&cache), [2, 3, 4].map(|index: usize| blobs[index].digest), "3 pieces were missing: two blobs");
}

#[tokio::test]
async fn the_scrub_finds_what_nobody_asks_for_and_is_no_use_of_it() {
    let directory = tempfile::TempDir::new().unwrap();
    let storage: Arc<dyn BlobStorage> = Arc::new(FsStorage::open(directory.path()).await.unwrap());
    let settings = CacheSettings { scrub_rate: Some(Rate::Unlimited), ..CacheSettings::limited(100 * PIECE) };
    let blobs: Vec<_> = (0..4).map(|seed| sample(3, seed)).collect();
    let cache = Cache::open(Arc::clone(&storage), 100 * PIECE).await.unwrap();
    for blob in &blobs {
        put(&cache, blob).await;
    }
    drop(cache);
    damage::flip(directory.path(), &blobs[1], 2 * PIECE + 7);
    damage::truncate(directory.path(), &blobs[2], PIECE);
    let (cache, stop, upkeep) = kept(Arc::clone(&storage), settings).await;
    let mut evictions = cache.evictions();
    eventually("the damage is not found", || cache.stats().damaged == 2).await;
    eventually("the others are not read", || cache.stats().scrubbed_bytes >= 6 * PIECE).await;
    assert_eq!(digests(&cache), [0, 3].map(|index: usize| blobs[index].digest), "in the order of their use");
    let mut told = [evictions.recv().await.unwrap(), evictions.recv().await.unwrap()];
    let mut bad = [blobs[1].digest, blobs[2].digest];
    told.sort_unstable();
    bad.sort_unstable();
    assert_eq!(told, bad);
    assert_eq!((cache.stats().hits, cache.list().iter().any(|entry| entry.pinned)), (0, false));
    drop(stop);
    upkeep.await.unwrap();
}

#[tokio::test]
async fn the_scrub_keeps_its_rate_and_goes_on_where_it_was() {
    let directory = tempfile::TempDir::new().unwrap();
    let open = async || Arc::new(FsStorage::open(directory.path()).await.unwrap());
    let storage = open().await;
    let mut blobs: Vec<_> = (0..3).map(|seed| sample(2, seed)).collect();
    blobs.sort_by_key(|blob| blob.digest);
    let cache = Cache::open(Arc::clone(&storage) as _, 100 * PIECE).await.unwrap();
    for blob in &blobs {
        put(&cache, blob).await;
    }
    drop((cache, storage));
    // An earlier process got as far as the second piece of the second blob.
    let place = ScrubPlace { digest: blobs[1].digest, piece: PieceIndex(1) };
    open().await.keep_scrub_place(Some(place)).await;
    damage::flip(directory.path(), &blobs[0], 0);
    damage::flip(directory.path(), &blobs[1], 0);
    let rate = 20 * PIECE;
    let settings = CacheSettings { scrub_rate: Some(Rate::Limited(rate)), ..CacheSettings::limited(100 * PIECE) };
    let storage = open().await;
    assert_eq!(storage.scrub_place().await, Some(place));
    let began = Instant::now();
    let (cache, stop, upkeep) = kept(Arc::clone(&storage) as _, settings).await;
    eventually("the rest is not read", || cache.stats().scrubbed_bytes >= 3 * PIECE).await;
    // Pauses follow the pieces, so the last one costs no time here.
    assert!(began.elapsed() >= Duration::from_secs_f64(2.0 * PIECE as f64 / rate as f64), "{:?}", began.elapsed());
    assert_eq!(
        (cache.stats().damaged, cache.stats().scrubbed_bytes),
        (0, 3 * PIECE),
        "what came before is left to the next round"
    );
    drop(stop);
    upkeep.await.unwrap();
}

#[tokio::test]
async fn the_scrub_hashes_what_has_no_hashes_of_pieces_from_its_beginning() {
    let directory = tempfile::TempDir::new().unwrap();
    let storage: Arc<dyn BlobStorage> = Arc::new(FsStorage::open(directory.path()).await.unwrap());
    let blobs: Vec<_> = (0..3).map(|seed| sample(9, seed)).collect();
    let cache = Cache::open(Arc::clone(&storage), 100 * PIECE).await.unwrap();
    for blob in &blobs {
        let entry = cache.create(blob.digest, blob.geometry).await.unwrap();
        write_all(&entry, blob).await;
        entry.commit(None).await.unwrap();
    }
    drop(cache);
    damage::flip(directory.path(), &blobs[1], 8 * PIECE + 7);
    // Some hashes are as good as none.
    let some = eagle_core::Metainfo { hashes: blobs[2].metainfo().hashes[..3].to_vec(), ..blobs[2].metainfo() };
    storage.put_metainfo(&some).await.unwrap();
    let settings = CacheSettings { scrub_rate: Some(Rate::Unlimited), ..CacheSettings::limited(100 * PIECE) };
    let (cache, stop, upkeep) = kept(Arc::clone(&storage), settings).await;
    eventually("the damage is not found", || cache.stats().damaged == 1).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    for blob in [&blobs[0], &blobs[2]] {
        loop {
            let found = storage.metainfo(blob.digest).await.unwrap();
            if found.is_some_and(|found| found.leads_to_digest()) {
                break;
            }
            assert!(Instant::now() < deadline, "the hashes are not kept");
            sleep(Duration::from_millis(5)).await;
        }
    }
    assert_eq!(digests(&cache), [blobs[0].digest, blobs[2].digest], "in the order of their use");
    assert_eq!((cache.stats().damaged, cache.stats().scrubbed_bytes), (1, 27 * PIECE));
    drop(stop);
    upkeep.await.unwrap();
}
