//! `eagle-bench cache`: what the cache itself costs: its bookkeeping, its checks, evictions, and its start.

mod start;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::Bytes;
use eagle_core::{Digest, Geometry, Metainfo, PieceIndex, digest::Algorithm, geometry::MIN_PIECE_LENGTH};
use eagle_store::{BlobReader, BlobStorage, Cache, CachedBlob, FsStorage, MemoryStorage};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;

use self::start::Start;
use crate::{
    cli::CacheArgs,
    cluster::find_eagle,
    host::ProcessUse,
    report::Circumstances,
    stats::{percentile, sorted},
};

/// Bytes of one read: what a proxy reads at a time.
const READ: usize = 256 << 10;
/// Bytes of a blob that is evicted, and of a warm hit: one piece.
const SMALL: u64 = MIN_PIECE_LENGTH as u64;
/// Blobs written at the same time, so that the file system can sync many at once.
const WRITERS: usize = 32;
/// Blobs that warm hits go to.
const HOT: u64 = 64;
/// Who asks for them at the same time, each this long after its last answer: 8,000 a second, which two cores do easily.
const CLIENTS: u64 = 8;
const PAUSE: Duration = Duration::from_millis(1);
/// How long warm hits are measured without an eviction, for each round.
const CALM: Duration = Duration::from_secs(1);
/// Times that each of the measurements that are quick is made; the median counts.
const REPEATS: usize = 5;

/// The report. Fields are described in `docs/benchmarks.md`.
#[derive(Debug, Serialize)]
struct CacheReport {
    #[serde(flatten)]
    circumstances: Circumstances,
    bookkeeping: Bookkeeping,
    reads: Vec<Reads>,
    start: Start,
    eviction: Eviction,
}

/// Operations of one thread on a full cache of many small blobs in memory.
#[derive(Debug, Serialize)]
struct Bookkeeping {
    entries: u64,
    uses_per_second: f64,
    /// Each evicts the least recently used, reserves, writes and commits.
    admissions_per_second: f64,
}

/// Reading a blob from the page cache in order, by one task.
#[derive(Debug, Serialize)]
struct Reads {
    how: &'static str,
    bytes: u64,
    bytes_per_second: f64,
    cpu_seconds_per_gb: f64,
}

/// Warm hits of one piece, without and with evictions going on.
#[derive(Debug, Serialize)]
struct Eviction {
    victims: u64,
    rounds: u32,
    /// Of one round's evictions, the median.
    seconds: f64,
    calm_p99_seconds: f64,
    evicting_p99_seconds: f64,
    ratio: f64,
    calm_hits: usize,
    evicting_hits: usize,
}

/// Runs the benchmark, prints what came of it and writes it.
///
/// # Errors
/// When the disk fails.
pub(crate) async fn run(args: CacheArgs) -> Result<()> {
    let eagle = find_eagle(args.eagle.as_deref())?;
    let circumstances = Circumstances::now("cache", Some(&eagle));
    let directory = tempfile::Builder::new().prefix("eagle-bench-").tempdir()?;
    let bookkeeping = bookkeeping(args.entries).await?;
    let reads = reads(&directory.path().join("reads"), args.size.0).await?;
    let start = start::measure(&directory.path().join("start"), args.blobs, &eagle).await?;
    let eviction = eviction(&directory.path().join("eviction"), args.victims, args.rounds).await?;
    let report = CacheReport { circumstances, bookkeeping, reads, start, eviction };
    args.output.write(&report)?;
    let CacheReport { bookkeeping, reads, start, eviction, .. } = &report;
    println!("{} entries, one thread", bookkeeping.entries);
    println!("  {:<50} {:>12.0} /s", "uses (least recently used order kept)", bookkeeping.uses_per_second);
    println!("  {:<50} {:>12.0} /s", "admissions, each with an eviction", bookkeeping.admissions_per_second);
    println!("\n{} bytes from the page cache, {READ} at a time, one task", args.size.0);
    for Reads { how, bytes_per_second, cpu_seconds_per_gb, .. } in reads {
        println!("  {how:<50} {:>7.0} MB/s   {cpu_seconds_per_gb:.3} CPU s/GB", bytes_per_second / 1e6);
    }
    println!(
        "\nstart with {} blobs on disk: {:.3} s; of a whole proxy, until it serves: {:.3} s",
        start.blobs, start.seconds, start.proxy_seconds
    );
    println!(
        "\nwarm hits of {SMALL} bytes, p99: {:.0} us calm, {:.0} us while {} blobs are evicted in {:.3} s: {:.2} x",
        eviction.calm_p99_seconds * 1e6,
        eviction.evicting_p99_seconds * 1e6,
        eviction.victims,
        eviction.seconds,
        eviction.ratio
    );
    Ok(())
}

/// A blob that no other has the content of.
fn small(number: u64, size: u64) -> Result<(Bytes, Metainfo)> {
    let mut bytes = vec![0; usize::try_from(size)?];
    for (place, byte) in bytes.iter_mut().zip(number.to_le_bytes()) {
        *place = byte;
    }
    let geometry = Geometry::new(size, MIN_PIECE_LENGTH)?;
    let metainfo = Metainfo::of(Algorithm::Sha256, geometry, &bytes);
    Ok((bytes.into(), metainfo))
}

async fn put(cache: &Arc<Cache>, bytes: Bytes, metainfo: Metainfo) -> Result<CachedBlob> {
    let entry = cache.create(metainfo.digest, metainfo.geometry).await?;
    let geometry = metainfo.geometry;
    for piece in geometry.all() {
        let range = geometry.range(piece);
        entry.write_piece(piece, bytes.slice(usize::try_from(range.start)?..usize::try_from(range.end)?)).await?;
    }
    Ok(entry.commit(Some(metainfo)).await?)
}

/// Puts blobs of `numbers` into the cache, many at a time.
async fn fill(cache: &Arc<Cache>, numbers: std::ops::Range<u64>, size: u64) -> Result<Vec<Digest>> {
    let puts = stream::iter(numbers).map(|number| async move {
        let (bytes, metainfo) = small(number, size)?;
        let digest = metainfo.digest;
        put(cache, bytes, metainfo).await?;
        Ok::<_, anyhow::Error>(digest)
    });
    puts.buffered(WRITERS).try_collect().await
}

/// The next of a sequence of numbers that look random (Steele and Vigna's congruential generator, upper bits).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(1);
    *state >> 32
}

async fn bookkeeping(entries: u64) -> Result<Bookkeeping> {
    const SIZE: u64 = 8;
    let cache = Cache::open(Arc::new(MemoryStorage::new()), entries * SIZE).await?;
    let digests = fill(&cache, 0..entries, SIZE).await?;
    let mut rates = Vec::new();
    for repeat in 0..REPEATS {
        let (mut state, operations) = (repeat as u64, 2_000_000u32);
        let began = Instant::now();
        for _ in 0..operations {
            let place = usize::try_from(next(&mut state) % entries)?;
            ensure!(cache.touch(digests[place]), "an entry is gone");
        }
        rates.push(f64::from(operations) / began.elapsed().as_secs_f64());
    }
    let newcomers = 20_000u32.min(u32::try_from(entries)?);
    let made: Vec<_> = (0..u64::from(newcomers)).map(|number| small(entries + number, SIZE)).collect::<Result<_>>()?;
    let began = Instant::now();
    for (bytes, metainfo) in made {
        put(&cache, bytes, metainfo).await?;
    }
    let admissions_per_second = f64::from(newcomers) / began.elapsed().as_secs_f64();
    ensure!(cache.stats().evictions == u64::from(newcomers), "not each newcomer took one entry's place");
    Ok(Bookkeeping { entries, uses_per_second: median(rates)?, admissions_per_second })
}

async fn reads(root: &Path, size: u64) -> Result<Vec<Reads>> {
    let storage: Arc<dyn BlobStorage> = Arc::new(FsStorage::open(root).await?);
    let content: Vec<u8> =
        (0..size.div_ceil(8)).flat_map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
    let bytes = Bytes::from(content).slice(..usize::try_from(size)?);
    let geometry = Geometry::auto(size)?;
    let metainfo = tokio::task::spawn_blocking({
        let bytes = bytes.clone();
        move || Metainfo::of(Algorithm::Sha256, geometry, &bytes)
    });
    let metainfo = metainfo.await?;
    let digest = metainfo.digest;
    let cache = Cache::open(Arc::clone(&storage), size).await?;
    put(&cache, bytes, metainfo).await?;
    let plain = storage.open(digest).await?.context("the blob is not stored")?;
    let mut results = vec![
        read("as the storage has it", || async { Ok(Arc::clone(&plain)) }).await?,
        read("compared with its checksums", || async { opened(&cache, digest).await }).await?,
    ];
    // A new cache knows nothing of the content and hashes it.
    let first = || async { opened(&Cache::open(Arc::clone(&storage), size).await?, digest).await };
    results.push(read("hashed, as at the first read of a process", first).await?);
    Ok(results)
}

async fn opened(cache: &Arc<Cache>, digest: Digest) -> Result<Arc<dyn BlobReader>> {
    Ok(cache.get(digest).await.context("the blob is not in the cache")?.reader())
}

async fn read<F: Future<Output = Result<Arc<dyn BlobReader>>>>(
    how: &'static str,
    open: impl Fn() -> F,
) -> Result<Reads> {
    let (mut rates, mut costs, mut size) = (Vec::new(), Vec::new(), 0);
    for _ in 0..REPEATS {
        let reader = open().await?;
        size = reader.size();
        let (before, began) = (ProcessUse::of("self")?, Instant::now());
        let mut at = 0;
        while at < size {
            let length = READ.min(usize::try_from(size - at)?);
            at += u64::try_from(reader.read_at(at, length).await?.len())?;
        }
        rates.push(size as f64 / began.elapsed().as_secs_f64());
        costs.push((ProcessUse::of("self")?.cpu_seconds - before.cpu_seconds) / (size as f64 / 1e9));
    }
    Ok(Reads { how, bytes: size, bytes_per_second: median(rates)?, cpu_seconds_per_gb: median(costs)? })
}

async fn eviction(root: &Path, victims: u64, rounds: u32) -> Result<Eviction> {
    let limit = (victims + HOT) * SMALL;
    let cache = Cache::open(Arc::new(FsStorage::open(root).await?), limit).await?;
    let hot = fill(&cache, 0..HOT, SMALL).await?;
    let (mut calm, mut evicting, mut seconds) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..u64::from(rounds) {
        let first = HOT + round * victims;
        fill(&cache, first..first + victims, SMALL).await?;
        calm.extend(hits(&cache, &hot, tokio::time::sleep(CALM)).await?);
        let before = cache.stats().evictions;
        let newcomer = async {
            let geometry = Geometry::new(victims * SMALL, MIN_PIECE_LENGTH)?;
            let began = Instant::now();
            let entry = cache.create(Digest::of(&round.to_le_bytes()), geometry).await?;
            let took = began.elapsed();
            entry.write_piece(PieceIndex(0), vec![0; usize::try_from(SMALL)?].into()).await?;
            Ok::<_, anyhow::Error>((took, entry))
        };
        let evicted = Arc::new(std::sync::Mutex::new(None));
        let outcome = Arc::clone(&evicted);
        let during =
            async { *outcome.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(newcomer.await) };
        evicting.extend(hits(&cache, &hot, during).await?);
        let outcome = evicted.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let (took, entry) = outcome.ok_or_else(|| anyhow!("no newcomer came"))??;
        seconds.push(took.as_secs_f64());
        ensure!(cache.stats().evictions == before + victims, "{} blobs were evicted", cache.stats().evictions - before);
        entry.discard().await;
    }
    let (calm_hits, evicting_hits) = (calm.len(), evicting.len());
    let p99 = |times| percentile(&sorted(times), 99).ok_or_else(|| anyhow!("no warm hit ended in time"));
    let (calm, evicting) = (p99(calm)?, p99(evicting)?);
    Ok(Eviction {
        victims,
        rounds,
        seconds: median(seconds)?,
        calm_p99_seconds: calm,
        evicting_p99_seconds: evicting,
        ratio: evicting / calm,
        calm_hits,
        evicting_hits,
    })
}

/// Asks for hot blobs while `during` lasts; the seconds that each hit took.
async fn hits(cache: &Arc<Cache>, hot: &[Digest], during: impl Future<Output = ()>) -> Result<Vec<f64>> {
    let over = Arc::new(AtomicBool::new(false));
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let (cache, hot, over) = (Arc::clone(cache), hot.to_owned(), Arc::clone(&over));
        clients.spawn(async move {
            let (mut state, mut times) = (client, Vec::new());
            while !over.load(Ordering::Relaxed) {
                let place = usize::try_from(next(&mut state) % hot.len() as u64)?;
                let began = Instant::now();
                let reader = opened(&cache, hot[place]).await?;
                reader.read_at(0, usize::try_from(SMALL)?).await?;
                times.push(began.elapsed().as_secs_f64());
                tokio::time::sleep(PAUSE).await;
            }
            Ok::<_, anyhow::Error>(times)
        });
    }
    during.await;
    over.store(true, Ordering::Relaxed);
    let mut all = Vec::new();
    while let Some(times) = clients.join_next().await {
        all.extend(times??);
    }
    Ok(all)
}

fn median(values: Vec<f64>) -> Result<f64> {
    percentile(&sorted(values), 50).context("nothing was measured")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_part_measures_what_it_says() {
        let directory = tempfile::tempdir().unwrap();
        let found = bookkeeping(100).await.unwrap();
        assert!(found.uses_per_second > 0.0 && found.admissions_per_second > 0.0);
        let found = reads(&directory.path().join("reads"), 1_000_001).await.unwrap();
        assert_eq!(found.iter().map(|read| read.bytes).collect::<Vec<_>>(), [1_000_001; 3]);
        let start_root = directory.path().join("start");
        start::fill_up(&start_root, 50).await.unwrap();
        assert!(start::cache_opens(&start_root, 50).await.unwrap() > 0.0);
        let other = start::cache_opens(&start_root, 51).await.unwrap_err();
        assert!(other.to_string().contains("50 of 51 blobs"), "{other}");
        let found = eviction(&directory.path().join("eviction"), 20, 2).await.unwrap();
        assert!(found.ratio > 0.0 && found.calm_hits > 0 && found.evicting_hits > 0, "{found:?}");
    }
}
