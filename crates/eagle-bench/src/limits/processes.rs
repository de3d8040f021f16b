//! A proxy and a seeder as processes, whose limits are set over HTTP: how blobs share them, and how fast a change is
//! in effect, as clients see it.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use eagle_core::units::{Rate, Size};
use eagle_registry::ImageReference;
use serde_json::json;
use tokio::task::JoinSet;

use super::{
    changes,
    flow::Direction,
    result::{Change, Share},
    windows::Sample,
};
use crate::{
    cli::{ClusterArgs, LimitsArgs, PieceLength},
    client::{Mirror, Progress, Route, put_json},
    cluster::{Cluster, Role},
    origin::Layer,
};

/// Blobs that share a limit.
const BLOBS: usize = 4;
/// The limit that they share, bytes per second: little for the machine, and many pieces a second.
const SHARED: u64 = 20_000_000;
/// Size of each of them, bytes: six seconds of its share, a multiple of 512.
const SHARED_SIZE: u64 = 29_999_616;
/// The rates of a change, bytes per second, and how long each is kept.
const CHANGES: [u64; 3] = [10_000_000, 30_000_000, 5_000_000];
const KEPT: Duration = Duration::from_secs(2);
/// Size of the blob meanwhile, bytes: what these rates move, and some more.
const CHANGED_SIZE: u64 = 110_000_128;
/// Between two samples.
const SAMPLE: Duration = Duration::from_millis(5);
/// From the last first byte to the time in which shares are counted, and from there to the first last byte.
const MARGIN: f64 = 0.5;
/// Small pieces, since clients get whole ones: 26 ms at a share of the limit.
const PIECE: u32 = 128 << 10;

/// What came of it.
pub(super) struct Measured {
    pub(super) shares: Vec<Share>,
    pub(super) changes: Vec<Change>,
}

/// Starts a cluster and measures both directions.
///
/// # Errors
/// When it does not start, or a blob does not arrive.
pub(super) async fn measure(args: &LimitsArgs) -> Result<Measured> {
    let cluster_args = ClusterArgs {
        nodes: 1,
        size: Size(SHARED_SIZE * 8 + CHANGED_SIZE * 2),
        rate: Rate::Unlimited,
        seeder_rate: None,
        encryption: args.encryption,
        piece_length: PieceLength::Fixed(PIECE),
        eagle: args.eagle.clone(),
        keep_logs: args.keep_logs.clone(),
        log_level: "info".to_owned(),
    };
    let mut layers = vec![SHARED_SIZE; 2 * BLOBS];
    layers.extend([CHANGED_SIZE; 2]);
    let mut cluster = Cluster::start(&cluster_args, &layers).await?;
    let image = cluster.image()?;
    let proxy = cluster.proxies.first().context("there is no proxy")?;
    let route = Route::Mirror(Box::new(Mirror::new(format!("http://{}", proxy.ready.listen).parse()?)));
    route.resolve(&image).await?;
    let mut measured = Measured { shares: Vec::new(), changes: Vec::new() };
    let blobs = cluster.layers().to_vec();
    for (index, direction) in [Direction::Download, Direction::Upload].into_iter().enumerate() {
        let limited = match direction {
            Direction::Download => proxy,
            Direction::Upload => &cluster.seeder,
        };
        let shared = blobs.get(index * BLOBS..(index + 1) * BLOBS).context("a layer is missing")?;
        let changed = *blobs.get(2 * BLOBS + index).context("a layer is missing")?;
        set(limited, direction, Rate::Limited(SHARED)).await?;
        measured.shares.push(share(&route, &image, shared, direction).await?);
        measured.changes.extend(change(limited, &route, &image, changed, direction).await?);
        set(limited, direction, Rate::Unlimited).await?;
    }
    cluster.check_running()?;
    cluster.stop().await;
    Ok(measured)
}

/// As an operator does it.
async fn set(role: &Role, direction: Direction, rate: Rate) -> Result<()> {
    let answer = put_json(role.ready.admin, "/limits", &json!({ direction.as_str(): rate })).await?;
    ensure!(answer[direction.as_str()] == json!(rate), "the limit was not taken: {answer}");
    Ok(())
}

/// A pull of each blob, begun now.
fn pull(route: &Route, image: &ImageReference, blobs: &[Layer]) -> (JoinSet<Result<()>>, Vec<Arc<Progress>>) {
    let (mut pulls, mut progress) = (JoinSet::new(), Vec::new());
    for &blob in blobs {
        let own = Arc::new(Progress::start());
        progress.push(Arc::clone(&own));
        let (route, image) = (route.clone(), image.clone());
        pulls.spawn(async move { route.blob(&image, blob.digest, blob.size, &own).await });
    }
    (pulls, progress)
}

async fn share(route: &Route, image: &ImageReference, blobs: &[Layer], direction: Direction) -> Result<Share> {
    let (mut pulls, progress) = pull(route, image, blobs);
    let started = tokio::time::Instant::now();
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); blobs.len()];
    let mut complete = 0;
    while complete < blobs.len() {
        let at = started.elapsed().as_secs_f64();
        for (samples, progress) in samples.iter_mut().zip(&progress) {
            samples.push(Sample { at, bytes: progress.bytes() });
        }
        while let Some(ended) = pulls.try_join_next() {
            ended.context("a pull ended abnormally")??;
            complete += 1;
        }
        tokio::time::sleep(SAMPLE).await;
    }
    // All of them must be under way.
    let first = |samples: &Vec<Sample>| samples.iter().find(|sample| sample.bytes > 0).map(|sample| sample.at);
    let last = |samples: &Vec<Sample>| {
        let end = samples.last()?.bytes;
        samples.iter().find(|sample| sample.bytes == end).map(|sample| sample.at)
    };
    let begin = samples.iter().filter_map(first).fold(0.0, f64::max) + MARGIN;
    let end = samples.iter().filter_map(last).fold(f64::INFINITY, f64::min) - MARGIN;
    ensure!(end > begin, "the blobs were never under way together");
    let bytes_at = |samples: &Vec<Sample>, at: f64| {
        samples.iter().find(|sample| sample.at >= at).map_or(0, |sample| sample.bytes) as f64
    };
    let bytes: Vec<f64> = samples.iter().map(|samples| bytes_at(samples, end) - bytes_at(samples, begin)).collect();
    let mean = bytes.iter().sum::<f64>() / bytes.len() as f64;
    let shares: Vec<f64> = bytes.iter().map(|bytes| bytes / mean).collect();
    let worst = shares.iter().map(|share| (share - 1.0).abs()).fold(0.0, f64::max);
    let bytes_per_second = mean * bytes.len() as f64 / (end - begin);
    Ok(Share { direction, rate_bytes_per_second: SHARED, bytes_per_second, seconds: end - begin, shares, worst })
}

async fn change(
    limited: &Role,
    route: &Route,
    image: &ImageReference,
    blob: Layer,
    direction: Direction,
) -> Result<Vec<Change>> {
    let [first, others @ ..] = CHANGES;
    set(limited, direction, Rate::Limited(first)).await?;
    let (mut pulls, progress) = pull(route, image, &[blob]);
    let progress = progress.first().context("there is no pull")?;
    let started = tokio::time::Instant::now();
    let (mut samples, mut moments) = (Vec::new(), Vec::new());
    for rate in [None].into_iter().chain(others.map(Some)) {
        if let Some(rate) = rate {
            // From the request on: what it takes is part of the change.
            moments.push(started.elapsed().as_secs_f64());
            set(limited, direction, Rate::Limited(rate)).await?;
        }
        let part = tokio::time::Instant::now();
        while part.elapsed() < KEPT {
            samples.push(Sample { at: started.elapsed().as_secs_f64(), bytes: progress.bytes() });
            tokio::time::sleep(SAMPLE).await;
        }
    }
    ensure!(progress.bytes() < blob.size, "the blob was too small to see the last change");
    set(limited, direction, Rate::Unlimited).await?;
    while let Some(ended) = pulls.join_next().await {
        ended.context("a pull ended abnormally")??;
    }
    Ok(changes(direction, "PUT /limits", &samples, &moments, &CHANGES))
}
