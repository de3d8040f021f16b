//! Pulls of one series at one concurrency, by clients of this program.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use eagle_registry::ImageReference;
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, task::JoinSet};

use super::{
    result::PullRecord,
    series::{Series, SeriesName},
    share::Share,
};
use crate::client::Progress;

/// Records that wait for whoever collects them.
pub(crate) const RECORDS: usize = 1024;

/// What is to be pulled in a step by one program.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    pub(crate) series: SeriesName,
    /// One for each iteration in turn, or the only one.
    pub(crate) images: Vec<ImageReference>,
    pub(crate) share: Share,
    /// Pulls of every client.
    pub(crate) iterations: u32,
}

/// What a step came to besides its pulls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StepEnd {
    /// From the start of the first pull to the end of the last.
    pub(crate) elapsed_seconds: f64,
    /// Bytes of the image's blobs, where the pulls do not say how many came.
    pub(crate) image_bytes: Option<u64>,
}

/// How far pulls are; read by the display while they run.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Pulls that ended, in whichever way.
    pub(crate) done: AtomicU32,
    /// Bytes of blobs of these.
    pub(crate) bytes: AtomicU64,
}

/// Makes the pulls of a step: as many of each image before the next. A record of each goes to `records`.
///
/// # Errors
/// When the step makes no sense, or a client ends abnormally; a pull that fails is a record like others.
pub(crate) async fn run(
    series: &Series,
    step: Step,
    records: mpsc::Sender<PullRecord>,
    counts: &Arc<Counts>,
) -> Result<StepEnd> {
    let Step { series: name, images, share, iterations } = step;
    let total = share.pulls(iterations)?;
    let first = images.first().cloned().context("there is no image")?;
    let (images, ways): (Arc<[_]>, Arc<[_]>) = (images.into(), series.ways.clone().into());
    let way = ways.first().cloned().context("there is no way to pull")?;
    let taken = Arc::new(AtomicU32::new(0));
    let mut clients = JoinSet::new();
    let started = Instant::now();
    for _ in 0..share.clients {
        let (ways, images, records) = (Arc::clone(&ways), Arc::clone(&images), records.clone());
        let (taken, counts) = (Arc::clone(&taken), Arc::clone(counts));
        clients.spawn(async move {
            loop {
                let number = taken.fetch_add(1, Ordering::Relaxed);
                if number >= total {
                    return;
                }
                let number = share.of_step(number);
                let way = &ways[usize::try_from(number).unwrap_or_default() % ways.len()];
                let image = &images[usize::try_from(number / share.of).unwrap_or_default() % images.len()];
                let cleaned = way.clean(image).await;
                let progress = Progress::start();
                let result = match cleaned {
                    Ok(()) => way.pull(image, &progress).await,
                    Err(error) => Err(error),
                };
                let seconds = progress.elapsed().as_secs_f64();
                // Its layers must not be there for the pulls of another series, under another name.
                let result = result.and(way.clean(image).await);
                counts.done.fetch_add(1, Ordering::Relaxed);
                counts.bytes.fetch_add(progress.bytes(), Ordering::Relaxed);
                let record = PullRecord {
                    series: name,
                    concurrency: share.of,
                    iteration: number + 1,
                    success: result.is_ok(),
                    seconds,
                    bytes: progress.bytes(),
                    manifest_seconds: progress.manifest().map(|time| time.as_secs_f64()),
                    first_byte_seconds: progress.first_byte().map(|time: Duration| time.as_secs_f64()),
                    error: result.err().map(|error| format!("{error:#}")),
                    agent: None,
                };
                if records.send(record).await.is_err() {
                    // Nobody wants to know any more.
                    return;
                }
            }
        });
    }
    while let Some(joined) = clients.join_next().await {
        joined.context("a client ended abnormally")?;
    }
    let elapsed_seconds = started.elapsed().as_secs_f64();
    Ok(StepEnd { elapsed_seconds, image_bytes: way.size(&first).await? })
}

/// Pulls that do not count, through each way of each series.
///
/// # Errors
/// When one fails.
pub(crate) async fn warm_up(series: &[Series], image: &ImageReference, pulls: u32) -> Result<()> {
    for Series { name, ways } in series {
        for way in ways {
            for _ in 0..pulls {
                let pulled = async {
                    way.clean(image).await?;
                    way.pull(image, &Progress::start()).await?;
                    way.clean(image).await
                };
                pulled.await.with_context(|| format!("warming up, {name}"))?;
            }
        }
    }
    Ok(())
}
