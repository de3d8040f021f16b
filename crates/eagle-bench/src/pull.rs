//! `eagle-bench pull`: an image many times, directly and through proxies.

mod result;
mod runtime;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use eagle_registry::{ImageReference, Registries, Registry, RegistryConfig, embedded::RegistryStats};
use tokio::task::JoinSet;
use url::Url;

pub(crate) use self::runtime::Runtime;
use self::{
    result::{PullRecord, PullReport, StepResult, Whole},
    runtime::Client,
};
use crate::{
    cli::PullArgs,
    client::{Mirror, Progress, Route, get_json},
    cluster::{Cluster, Images, LOCAL_REGISTRY, find_eagle},
    progress,
    report::Circumstances,
};

/// The series of pulls from the registry itself.
const DIRECT: &str = "direct";

/// Pulls that are compared with others.
struct Series {
    name: &'static str,
    ways: Vec<Way>,
}

/// How one pull goes.
#[derive(Debug, Clone)]
enum Way {
    /// From the registry, at this URL.
    Direct(Arc<Registry>, Url),
    Through(Url),
    /// By a container runtime; the other way is where it pulls from.
    Runtime(Arc<Client>, Box<Self>),
}

impl Way {
    fn route(&self) -> Route {
        match self {
            Self::Direct(registry, _) => Route::Registry(Arc::clone(registry)),
            // Connections of its own, as another runtime would have.
            Self::Through(proxy) => Route::Mirror(Box::new(Mirror::new(proxy.clone()))),
            Self::Runtime(_, from) => from.route(),
        }
    }

    /// Removes what an earlier pull left; takes no part in the time of the next.
    async fn clean(&self, image: &ImageReference) -> Result<()> {
        match self {
            Self::Direct(..) | Self::Through(_) => Ok(()),
            Self::Runtime(client, _) => client.clean(image).await,
        }
    }

    async fn pull(&self, image: &ImageReference, progress: &Progress) -> Result<()> {
        match self {
            Self::Direct(..) | Self::Through(_) => self.route().pull(image, progress).await,
            Self::Runtime(client, _) => client.pull(image).await,
        }
    }

    /// Bytes of the image's blobs, where the pull itself does not say how many came.
    async fn size(&self, image: &ImageReference) -> Result<Option<u64>> {
        let Self::Runtime(_, from) = self else { return Ok(None) };
        let manifest = from.route().resolve(image).await?;
        Ok(Some(manifest.blobs.iter().map(|blob| blob.size).sum()))
    }
}

/// Runs the benchmark, prints what came of it and writes it.
///
/// # Errors
/// When the local cluster does not start, or a pull fails; in the last case the reports are written all
/// the same.
pub(crate) async fn run(args: PullArgs) -> Result<()> {
    if let Some(runtime) = args.runtime {
        ensure!(
            runtime.pulls_apart() || args.concurrency.iter().all(|&concurrency| concurrency == 1),
            "--runtime: a daemon pulls an image once, however many ask; use --concurrency 1, or skopeo"
        );
        runtime.check().await?;
    }
    let eagle = args.local.then(|| find_eagle(args.cluster.eagle.as_deref())).transpose()?;
    let circumstances = Circumstances::now("pull", eagle.as_deref());
    let mut cluster = None;
    let (images, series) = if args.local {
        eprintln!("Starting an origin registry, a tracker, a seeder and {} proxies ...", args.cluster.nodes);
        let cluster = &*cluster.insert(start(&args).await?);
        let origin = format!("http://{}", cluster.origin()).parse()?;
        let proxies = cluster.proxies.iter().map(|proxy| Ok(format!("http://{}", proxy.ready.listen).parse()?));
        let images = (0..image_count(&args)).map(|number| cluster.numbered_image(number));
        let images = images.collect::<Result<Vec<_>>>()?;
        let series = series(&cluster.image()?, Some(Some(origin)), proxies.collect::<Result<_>>()?)?;
        (images, by_runtime(series, &args, &cluster.image()?)?)
    } else {
        let image = args.image.clone().context("--image is missing")?;
        let series = series(&image, args.direct.clone(), args.proxies.clone())?;
        let series = by_runtime(series, &args, &image)?;
        (vec![image], series)
    };
    let origin = cluster.as_ref().map(Cluster::origin);
    let measuring = measure(&args, &images, &series, origin);
    let (records, steps) = match &mut cluster {
        Some(cluster) => tokio::select! {
            result = measuring => result?,
            error = cluster.watch() => return Err(error),
        },
        None => measuring.await?,
    };
    if let Some(cluster) = cluster {
        cluster.stop().await;
    }
    let report = PullReport {
        circumstances,
        image: images.first().map(ToString::to_string).unwrap_or_default(),
        local: args.local,
        unique: args.unique,
        warm_up: args.warm_up,
        runtime: args.runtime,
        iterations: args.iterations,
        steps,
        pulls: records,
    };
    if let Some(path) = &args.csv {
        std::fs::write(path, report.csv()).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    args.output.write(&report)?;
    println!("{report}");
    let failed = report.pulls.iter().filter(|pull| !pull.success).count();
    if let Some(error) = report.pulls.iter().find_map(|pull| pull.error.as_ref()) {
        bail!("{failed} of {} pulls failed, the first with: {error}", report.pulls.len());
    }
    Ok(())
}

/// Layers of the local image: one far larger than the others, as images are.
fn layer_sizes(total: u64) -> Vec<u64> {
    // Layers are tar files, whose unit is 512 bytes.
    let part = (total / 10).next_multiple_of(512);
    match total.checked_sub(3 * part) {
        Some(first) if part >= eagle_registry::embedded::MIN_LAYER_SIZE => vec![first, 2 * part, part],
        _ => vec![total],
    }
}

/// What is compared: the registry itself if asked for or if there is nothing else, and the proxies.
#[expect(clippy::option_option, reason = "clap's form of a flag with an optional value")]
fn series(image: &ImageReference, direct: Option<Option<Url>>, proxies: Vec<Url>) -> Result<Vec<Series>> {
    let mut series = Vec::new();
    if direct.is_some() || proxies.is_empty() {
        let url = direct.flatten();
        let shown = url.clone().map_or_else(|| format!("https://{}", image.registry).parse(), Ok)?;
        let config = RegistryConfig { url, ..RegistryConfig::new(image.registry.clone()) };
        let registry = Registries::new(vec![config])?.get(&image.registry);
        series.push(Series { name: DIRECT, ways: vec![Way::Direct(registry, shown)] });
    }
    if !proxies.is_empty() {
        series.push(Series { name: "eagle", ways: proxies.into_iter().map(Way::Through).collect() });
    }
    Ok(series)
}

/// The local cluster.
async fn start(args: &PullArgs) -> Result<Cluster> {
    let layers = layer_sizes(args.cluster.size.0);
    let images = Images { layers: &layers, config_size: 0, count: image_count(args) };
    Cluster::with_images(&args.cluster, &images).await
}

/// Images of a local run: one for warming up, and with `--unique` one for each iteration of each step.
fn image_count(args: &PullArgs) -> u32 {
    let steps = u32::try_from(args.concurrency.len()).unwrap_or(u32::MAX);
    if args.unique { steps.saturating_mul(args.iterations).saturating_add(1) } else { 1 }
}

/// The same, by a runtime if one is to pull.
fn by_runtime(series: Vec<Series>, args: &PullArgs, image: &ImageReference) -> Result<Vec<Series>> {
    let Some(runtime) = args.runtime else { return Ok(series) };
    let alias = args.local.then(|| LOCAL_REGISTRY.to_owned());
    let by = |way: Way| -> Result<Way> {
        let (from, through) = match &way {
            Way::Through(proxy) => (proxy.clone(), true),
            Way::Direct(_, url) => (url.clone(), false),
            Way::Runtime(..) => bail!("a runtime cannot pull by another ({image})"),
        };
        Ok(Way::Runtime(Arc::new(Client::new(runtime, from, through, alias.clone())), Box::new(way)))
    };
    let series = series
        .into_iter()
        .map(|Series { name, ways }| Ok(Series { name, ways: ways.into_iter().map(by).collect::<Result<_>>()? }));
    series.collect()
}

async fn measure(
    args: &PullArgs,
    images: &[ImageReference],
    series: &[Series],
    origin: Option<SocketAddr>,
) -> Result<(Vec<PullRecord>, Vec<StepResult>)> {
    let first = images.first().context("there is no image")?;
    for series in series {
        warm_up(series, first, args.warm_up).await?;
    }
    let (mut records, mut steps) = (Vec::new(), Vec::new());
    // With `--unique` the first is for warming up, and the following ones are for the steps in turn.
    let iterations = usize::try_from(args.iterations)?;
    let mut unique = images.get(1..).unwrap_or_default().chunks(iterations);
    for &concurrency in &args.concurrency {
        let images = if args.unique { unique.next().context("there are too few images")? } else { &images[..1] };
        for series in series {
            let total = concurrency.checked_mul(args.iterations).context("too many pulls")?;
            eprintln!("{total} pulls, {} at a time, {}:", concurrency, series.name);
            let before = origin_bytes(origin).await?;
            let started = Instant::now();
            let mut pulls = step(series, images, concurrency, total).await?;
            let elapsed = started.elapsed();
            let way = series.ways.first().context("there is no way to pull")?;
            if let Some(size) = way.size(&images[0]).await? {
                pulls.iter_mut().filter(|pull| pull.success).for_each(|pull| pull.bytes = size);
            }
            let sent = origin_bytes(origin).await?.zip(before).map(|(after, before)| after.saturating_sub(before));
            let got = pulls.iter().map(|pull| pull.bytes).sum();
            ensure!(
                args.runtime.is_none() || series.name != DIRECT || sent.is_none_or(|sent| sent >= got),
                "the registry sent {} bytes where {got} were pulled: the runtime has layers of this image by other images, \
                 which have to be removed before",
                sent.unwrap_or_default()
            );
            steps.push(StepResult::new(series.name, concurrency, &pulls, Whole { elapsed, origin_bytes: sent })?);
            records.extend(pulls);
        }
    }
    Ok((records, steps))
}

/// Pulls that do not count, through each way.
async fn warm_up(series: &Series, image: &ImageReference, pulls: u32) -> Result<()> {
    for way in &series.ways {
        for _ in 0..pulls {
            let pulled = async {
                way.clean(image).await?;
                way.pull(image, &Progress::start()).await?;
                way.clean(image).await
            };
            pulled.await.with_context(|| format!("warming up, {}", series.name))?;
        }
    }
    Ok(())
}

/// Bytes of blobs that our own origin has sent so far.
async fn origin_bytes(origin: Option<SocketAddr>) -> Result<Option<u64>> {
    let Some(origin) = origin else { return Ok(None) };
    let stats: RegistryStats = get_json(origin, "/_stats").await?;
    Ok(Some(stats.blob_bytes))
}

/// `total` pulls, `concurrency` at a time: as many of each image before the next.
async fn step(series: &Series, images: &[ImageReference], concurrency: u32, total: u32) -> Result<Vec<PullRecord>> {
    let taken = Arc::new(AtomicU32::new(0));
    let (done, bytes) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU64::new(0)));
    let mut clients = JoinSet::new();
    for _ in 0..concurrency {
        let (name, ways, images) = (series.name, series.ways.clone(), images.to_owned());
        let (taken, done, bytes) = (Arc::clone(&taken), Arc::clone(&done), Arc::clone(&bytes));
        clients.spawn(async move {
            let mut records = Vec::new();
            loop {
                let iteration = taken.fetch_add(1, Ordering::Relaxed);
                if iteration >= total {
                    return records;
                }
                let way = &ways[usize::try_from(iteration).unwrap_or_default() % ways.len()];
                let image = &images[usize::try_from(iteration / concurrency).unwrap_or_default() % images.len()];
                let cleaned = way.clean(image).await;
                let progress = Progress::start();
                let result = match cleaned {
                    Ok(()) => way.pull(image, &progress).await,
                    Err(error) => Err(error),
                };
                let seconds = progress.elapsed().as_secs_f64();
                // Its layers must not be there for the pulls of another series, under another name.
                let result = result.and(way.clean(image).await);
                done.fetch_add(1, Ordering::Relaxed);
                bytes.fetch_add(progress.bytes(), Ordering::Relaxed);
                records.push(PullRecord {
                    series: name,
                    concurrency,
                    iteration: iteration + 1,
                    success: result.is_ok(),
                    seconds,
                    bytes: progress.bytes(),
                    manifest_seconds: progress.manifest().map(|time| time.as_secs_f64()),
                    first_byte_seconds: progress.first_byte().map(|time: Duration| time.as_secs_f64()),
                    error: result.err().map(|error| format!("{error:#}")),
                });
            }
        });
    }
    let collect = async {
        let mut records = Vec::new();
        while let Some(joined) = clients.join_next().await {
            records.extend(joined.context("a client ended abnormally")?);
        }
        records.sort_by_key(|record: &PullRecord| record.iteration);
        Ok(records)
    };
    let note = || format!("{} MB", bytes.load(Ordering::Relaxed) / 1_000_000);
    tokio::select! {
        records = collect => records,
        () = progress::show(total.into(), || done.load(Ordering::Relaxed).into(), note) => bail!("the display ended"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_add_up() {
        for total in [2048, 4096, 20480, 1 << 20, 64 << 20, 1 << 30] {
            let sizes = layer_sizes(total);
            assert_eq!(sizes.iter().sum::<u64>(), total);
            assert!(sizes.iter().all(|&size| eagle_registry::embedded::layer_size(size) == size), "{sizes:?}");
        }
        assert_eq!(layer_sizes(64 << 20).len(), 3);
    }

    #[test]
    fn series_as_asked_for() {
        let image: ImageReference = "debian:12".parse().unwrap();
        let proxy: Url = "http://127.0.0.1:43002".parse().unwrap();
        let names = |direct, proxies| {
            series(&image, direct, proxies).unwrap().iter().map(|series| series.name).collect::<Vec<_>>()
        };
        assert_eq!(names(None, vec![]), ["direct"]);
        assert_eq!(names(None, vec![proxy.clone()]), ["eagle"]);
        assert_eq!(names(Some(None), vec![proxy]), ["direct", "eagle"]);
    }
}
