//! Random use of a cache, by one and by many at once.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use eagle_core::PieceIndex;
use proptest::prelude::*;
use rand::SeedableRng as _;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_give_up_leave_nothing_half_done() {
    let cache = Cache::open(Arc::new(Faulty::default()), 6 * PIECE).await.unwrap();
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    for round in 0..200u32 {
        let blob = sample(1 + u64::from(round % 3), u8::try_from(round % 250).unwrap());
        let other = Arc::clone(&cache);
        let caller = tokio::spawn(async move {
            let entry = other.create(blob.digest, blob.geometry).await?;
            write_all(&entry, &blob).await;
            entry.commit(None).await?;
            other.get(blob.digest).await;
            other.remove(blob.digest).await;
            Ok::<_, CreateError>(())
        });
        for _ in 0..random.random_range(0..30) {
            tokio::task::yield_now().await;
        }
        caller.abort();
    }
    cache.settle().await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while cache.list().iter().any(|entry| entry.pinned) {
        assert!(Instant::now() < deadline, "a pin was lost: {:?}", cache.list());
        tokio::task::yield_now().await;
    }
    let sum: u64 = cache.list().iter().map(|entry| entry.size).sum();
    assert_eq!(cache.stats().bytes, sum, "every byte counted belongs to an entry");
    put(&cache, &sample(6, 255)).await;
    assert_eq!(cache.list().len(), 1, "everything else could go");
}

/// What a storage holds, and what the cache says, may not exceed the limit.
async fn check_limit(cache: &Cache, storage: &dyn BlobStorage) {
    let stored: u64 = storage.list().await.unwrap().iter().map(|blob| blob.size).sum();
    let stats = cache.stats();
    assert!(stored <= stats.limit, "{stored} bytes stored, {} allowed", stats.limit);
    assert!(stats.bytes <= stats.limit, "{} bytes counted, {} allowed", stats.bytes, stats.limit);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_users_at_once_stay_below_the_limit_and_keep_what_they_hold() {
    let storage = Arc::new(Faulty::default());
    let limit = 12 * PIECE;
    let cache = Cache::open(Arc::clone(&storage) as _, limit).await.unwrap();
    let mut users = tokio::task::JoinSet::new();
    for user in 0..6u64 {
        let (cache, storage) = (Arc::clone(&cache), Arc::clone(&storage));
        users.spawn(async move {
            let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(user);
            for _ in 0..150 {
                let blob = sample(random.random_range(1..5), random.random_range(0..8));
                let held = match cache.get(blob.digest).await {
                    Some(held) => held,
                    None => match cache.create(blob.digest, blob.geometry).await {
                        Ok(entry) => {
                            write_all(&entry, &blob).await;
                            check_limit(&cache, &*storage).await;
                            if random.random_range(0..4) == 0 {
                                continue;
                            }
                            match entry.commit(Some(blob.metainfo())).await {
                                Ok(held) => held,
                                Err(StorageError::Removed { .. }) => continue,
                                Err(error) => panic!("{error}"),
                            }
                        }
                        Err(CreateError::Full | CreateError::InProgress | CreateError::Complete) => continue,
                        Err(error) => panic!("{error}"),
                    },
                };
                tokio::task::yield_now().await;
                check_limit(&cache, &*storage).await;
                assert_eq!(content(&held).await, blob.digest);
            }
        });
    }
    while let Some(user) = users.join_next().await {
        user.unwrap();
    }
    assert!(cache.stats().evictions > 0, "the limit was reached");
    assert!(cache.list().iter().all(|entry| !entry.pinned));
}

#[derive(Debug, Clone)]
enum Step {
    Put { name: u8, pieces: u64, keep: bool },
    Leave { name: u8, pieces: u64 },
    Get { name: u8, pieces: u64, keep: bool },
    Release(proptest::sample::Index),
    Remove { name: u8, pieces: u64 },
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let blob = || (0u8..4, 1u64..5);
    let step = prop_oneof![
        4 => (blob(), any::<bool>()).prop_map(|((name, pieces), keep)| Step::Put { name, pieces, keep }),
        1 => blob().prop_map(|(name, pieces)| Step::Leave { name, pieces }),
        4 => (blob(), any::<bool>()).prop_map(|((name, pieces), keep)| Step::Get { name, pieces, keep }),
        3 => any::<proptest::sample::Index>().prop_map(Step::Release),
        1 => blob().prop_map(|(name, pieces)| Step::Remove { name, pieces }),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 0..40)
}

/// Runs steps on a real cache, and says how the limit and the pins were kept.
async fn follow(steps: Vec<Step>) {
    let storage = Arc::new(MemoryStorage::new());
    let limit = 9 * PIECE;
    let mut cache = Cache::open(Arc::clone(&storage) as _, limit).await.unwrap();
    let mut held: Vec<(CachedBlob, bool)> = Vec::new();
    for step in steps {
        match step {
            Step::Put { name, pieces, keep } => {
                let blob = sample(pieces, name);
                let before = cache.list();
                match cache.create(blob.digest, blob.geometry).await {
                    Ok(entry) => {
                        write_all(&entry, &blob).await;
                        let committed = entry.commit(Some(blob.metainfo())).await.unwrap();
                        if keep {
                            held.push((committed, true));
                        }
                    }
                    Err(CreateError::Complete) => assert!(cache.contains(blob.digest)),
                    Err(CreateError::Full) => {
                        let free = limit - cache.stats().bytes;
                        let unpinned: u64 = before.iter().filter(|e| !e.pinned).map(|e| e.size).sum();
                        assert!(free + unpinned < blob.geometry.size(), "there was room");
                        assert_eq!(cache.list(), before, "nothing goes in vain");
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Leave { name, pieces } => {
                let blob = sample(pieces, name);
                if let Ok(entry) = cache.create(blob.digest, blob.geometry).await {
                    entry.write_piece(PieceIndex(0), blob.piece(PieceIndex(0))).await.unwrap();
                }
            }
            Step::Get { name, pieces, keep } => {
                let digest = sample(pieces, name).digest;
                let expected = cache.contains(digest);
                let found = cache.get(digest).await;
                assert_eq!(found.is_some(), expected);
                if let Some(found) = found.filter(|_| keep) {
                    held.push((found, true));
                }
            }
            Step::Release(index) if !held.is_empty() => drop(held.swap_remove(index.index(held.len()))),
            Step::Release(_) => {}
            Step::Remove { name, pieces } => {
                let digest = sample(pieces, name).digest;
                let expected = cache.list().iter().any(|entry| entry.digest == digest);
                assert_eq!(cache.remove(digest).await, expected);
                for blob in held.iter_mut().filter(|blob| blob.0.digest() == digest) {
                    blob.1 = false;
                }
            }
            Step::Restart => {
                held.clear();
                let complete: HashSet<_> = cache.list().into_iter().filter(|e| e.complete).map(|e| e.digest).collect();
                cache = Cache::open(Arc::clone(&storage) as _, limit).await.unwrap();
                let kept: HashSet<_> = cache.list().into_iter().filter(|e| e.complete).map(|e| e.digest).collect();
                assert_eq!(kept, complete);
            }
        }
        check_limit(&cache, &*storage).await;
        for (blob, present) in &held {
            assert!(!present || cache.contains(blob.digest()), "a pinned blob was evicted");
            assert_eq!(content(blob).await, blob.digest());
        }
    }
    drop(held);
    let sum: u64 = cache.list().iter().map(|entry| entry.size).sum();
    assert_eq!(cache.stats().bytes, sum, "every byte counted belongs to an entry");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn any_use_stays_below_the_limit(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(follow(steps));
    }
}
