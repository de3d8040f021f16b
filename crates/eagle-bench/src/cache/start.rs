//! How long a cache that is full takes to start: by itself, and in a proxy.

use std::{path::Path, sync::Arc, time::Instant};

use anyhow::{Context as _, Result, ensure};
use eagle_core::units::{Rate, Size};
use eagle_store::{Cache, FsStorage};
use serde::Serialize;

use super::{REPEATS, fill, median};
use crate::{
    cli::{ClusterArgs, Encryption, PieceLength},
    cluster::lone_proxy,
};

/// Bytes of a blob: what counts is how many there are, since none is hashed at the start.
const SIZE: u64 = 8;
/// Where a proxy keeps its blobs in its data directory (`docs/storage.md`).
const BLOBS: &str = "blobs";
/// The data directory of the proxy, in that of the measurement.
const PROXY: &str = "proxy";

/// Starts with blobs on disk, the median of several each.
#[derive(Debug, Serialize)]
pub(super) struct Start {
    pub(super) blobs: u64,
    /// Opening the storage on disk and a cache over it.
    pub(super) seconds: f64,
    /// From starting the program `eagle proxy` to its word that it serves.
    pub(super) proxy_seconds: f64,
}

/// Fills a cache and starts it, then a proxy with it.
///
/// # Errors
/// When the disk fails, the proxy does not start, or either finds another number of blobs.
pub(super) async fn measure(directory: &Path, blobs: u64, eagle: &Path) -> Result<Start> {
    let data = directory.join(PROXY);
    std::fs::create_dir_all(&data).with_context(|| format!("{} cannot be made", data.display()))?;
    let root = data.join(BLOBS);
    fill_up(&root, blobs).await?;
    let seconds = cache_opens(&root, blobs).await?;
    Ok(Start { blobs, seconds, proxy_seconds: proxy_starts(directory, blobs, eagle).await? })
}

/// Makes a cache of so many blobs, and closes it.
pub(super) async fn fill_up(root: &Path, blobs: u64) -> Result<()> {
    let cache = Cache::open(Arc::new(FsStorage::open(root).await?), blobs * SIZE).await?;
    fill(&cache, 0..blobs, SIZE).await?;
    cache.settle().await;
    Ok(())
}

pub(super) async fn cache_opens(root: &Path, blobs: u64) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..REPEATS {
        let began = Instant::now();
        let cache = Cache::open(Arc::new(FsStorage::open(root).await?), blobs * SIZE).await?;
        times.push(began.elapsed().as_secs_f64());
        ensure!(cache.stats().blobs == blobs, "{} of {blobs} blobs are there", cache.stats().blobs);
    }
    median(times)
}

async fn proxy_starts(directory: &Path, blobs: u64, eagle: &Path) -> Result<f64> {
    let args = ClusterArgs {
        nodes: 1,
        size: Size(blobs * SIZE),
        rate: Rate::Unlimited,
        seeder_rate: None,
        encryption: Encryption::None,
        piece_length: PieceLength::Auto,
        eagle: None,
        keep_logs: None,
        log_level: "info".to_owned(),
    };
    let mut times = Vec::new();
    for _ in 0..REPEATS {
        let began = Instant::now();
        let mut proxy = lone_proxy(&args, eagle, directory, PROXY).await?;
        times.push(began.elapsed().as_secs_f64());
        let status = proxy.status().await?;
        let found = status["cache"]["blobs"].as_u64().context("the status of the proxy says nothing of blobs")?;
        ensure!(found == blobs, "the proxy found {found} of {blobs} blobs");
        proxy.process.end().await?;
    }
    median(times)
}
