//! A process that is killed at random moments while it writes, reads, evicts and completes blobs.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use eagle_core::{Geometry, Metainfo, PieceIndex, digest::Algorithm, geometry::MIN_PIECE_LENGTH, units::Percent};
use eagle_store::{BlobStorage as _, Cache, CacheSettings, FsStorage};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tokio_util::sync::CancellationToken;

const NAME: &str = "a_process_that_is_killed_at_any_moment_leaves_only_what_is_right";
/// The directory to work in, for the process that is killed.
const CHILD: &str = "EAGLE_STORE_TEST_CHILD";
const ROUNDS: u64 = 25;
const BLOBS: u8 = 12;
const PIECE: u64 = MIN_PIECE_LENGTH as u64;
/// About half of all blobs.
const LIMIT: u64 = 20 * PIECE;

struct Sample {
    bytes: Bytes,
    metainfo: Metainfo,
}

/// A blob of one to five pieces, the last one short.
fn sample(number: u8) -> Sample {
    let mut random = ChaCha8Rng::seed_from_u64(u64::from(number));
    let mut bytes = vec![0; usize::from(number % 5) * usize::try_from(PIECE).unwrap() + 10_000 + usize::from(number)];
    random.fill(&mut bytes[..]);
    let geometry = Geometry::new(bytes.len() as u64, MIN_PIECE_LENGTH).unwrap();
    Sample { metainfo: Metainfo::of(Algorithm::Sha256, geometry, &bytes), bytes: bytes.into() }
}

impl Sample {
    fn piece(&self, piece: PieceIndex) -> Bytes {
        let range = self.metainfo.geometry.range(piece);
        self.bytes.slice(usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap())
    }
}

async fn open(root: &Path) -> Arc<Cache> {
    let percent = |hundredths| Percent::new(hundredths).unwrap();
    let settings = CacheSettings { high: percent(80), low: percent(50), ..CacheSettings::limited(LIMIT) };
    Cache::open(Arc::new(FsStorage::open(root).await.unwrap()), settings).await.unwrap()
}

/// Works until it is killed.
async fn work(root: &Path) {
    let cache = open(root).await;
    tokio::spawn(Arc::clone(&cache).upkeep(CancellationToken::new()));
    let mut users = tokio::task::JoinSet::new();
    for user in 0..4u8 {
        let cache = Arc::clone(&cache);
        users.spawn(async move {
            let mut random = ChaCha8Rng::seed_from_u64(u64::from(std::process::id()) * 7 + u64::from(user));
            loop {
                let sample = sample(random.random_range(0..BLOBS));
                let Metainfo { digest, geometry, .. } = sample.metainfo;
                if random.random_bool(0.1) {
                    cache.remove(digest).await;
                }
                if let Some(blob) = cache.get(digest).await {
                    let read = blob.reader().read_at(0, sample.bytes.len()).await;
                    assert!(read.is_ok_and(|bytes| bytes == sample.bytes));
                    continue;
                }
                // Full, or somebody else writes it.
                let Ok(entry) = cache.create(digest, geometry).await else { continue };
                let recovered = entry.recovered();
                for piece in geometry.all().filter(|piece| !recovered.contains(*piece)) {
                    // A removal by another user ends it.
                    if entry.write_piece(piece, sample.piece(piece)).await.is_err() || random.random_bool(0.1) {
                        break;
                    }
                }
                let _ = entry.commit(Some(sample.metainfo.clone())).await;
            }
        });
    }
    users.join_next().await;
    // A user that fails is told by the exit code.
    std::process::exit(1);
}

/// What the next process finds; complete blobs, and pieces of others.
async fn check(root: &Path) -> (usize, usize) {
    let storage = Arc::new(FsStorage::open(root).await.unwrap());
    let samples: Vec<_> = (0..BLOBS).map(sample).collect();
    let (mut complete, mut pieces, mut total) = (0, 0, 0);
    for stored in storage.list().await.unwrap() {
        let sample = samples.iter().find(|sample| sample.metainfo.digest == stored.digest).unwrap();
        total += stored.size;
        assert_eq!(stored.size, sample.bytes.len() as u64);
        if stored.complete {
            let reader = storage.open(stored.digest).await.unwrap().unwrap();
            assert!(reader.read_at(0, sample.bytes.len()).await.unwrap() == sample.bytes, "complete and wrong");
            assert_eq!(storage.metainfo(stored.digest).await.unwrap().as_ref(), Some(&sample.metainfo));
            complete += 1;
        } else {
            let partial = storage.create(stored.digest, sample.metainfo.geometry).await.unwrap();
            for piece in partial.recovered().iter() {
                let range = sample.metainfo.geometry.range(piece);
                let length = usize::try_from(range.end - range.start).unwrap();
                let bytes = partial.read_at(range.start, length).await.unwrap();
                assert!(bytes == sample.piece(piece), "recorded and wrong");
                pieces += 1;
            }
        }
    }
    assert!(total <= LIMIT, "{total} bytes with a limit of {LIMIT}");
    drop(storage);
    let cache = open(root).await;
    assert!(cache.stats().bytes <= LIMIT);
    (complete, pieces)
}

#[test]
fn a_process_that_is_killed_at_any_moment_leaves_only_what_is_right() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let Some(root) = std::env::var_os(CHILD) {
        runtime.block_on(work(Path::new(&root)));
        return;
    }
    let directory = tempfile::TempDir::new().unwrap();
    let root = directory.path().join("data");
    let seed = rand::random::<u64>();
    eprintln!("seed {seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (mut complete, mut pieces) = (0, 0);
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", NAME, "--nocapture"]).env(CHILD, &root).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = child.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(random.random_range(20..400)));
        let ended = child.try_wait().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(ended.is_none(), "round {round}: the process failed by itself: {ended:?}");
        if root.exists() {
            let found = runtime.block_on(check(&root));
            complete += found.0;
            pieces += found.1;
        }
    }
    assert!(complete + pieces > 0, "nothing was ever there to be checked");
}

#[tokio::test]
async fn ten_thousand_blobs_are_there_at_once_in_the_order_of_their_use() {
    const COUNT: u32 = 10_000;
    let directory = tempfile::TempDir::new().unwrap();
    let root = directory.path().join("data");
    drop(FsStorage::open(&root).await.unwrap());
    // Ten terabytes, all holes: to read them would take hours.
    let size = 1u64 << 30;
    let mut digests = Vec::new();
    let now = std::time::SystemTime::now();
    for number in 0..COUNT {
        let digest = eagle_core::Digest::of(&number.to_le_bytes());
        let hex = digest.hex();
        let blob = root.join("blobs/sha256").join(&hex[..2]).join(&hex);
        std::fs::create_dir_all(&blob).unwrap();
        let file = std::fs::File::create(blob.join("data")).unwrap();
        file.set_len(size).unwrap();
        file.set_modified(now - Duration::from_secs(u64::from(COUNT - number))).unwrap();
        digests.push(digest);
    }
    let storage = Arc::new(FsStorage::open(&root).await.unwrap());
    let cache = Cache::open(storage, u64::from(COUNT) * size).await.unwrap();
    let found: Vec<_> = cache.list().iter().map(|entry| entry.digest).collect();
    assert!(found == digests, "another order");
    assert_eq!((cache.stats().blobs, cache.stats().bytes), (u64::from(COUNT), u64::from(COUNT) * size));
}
