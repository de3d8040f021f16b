//! `eagle-bench pull`: an image many times, directly and through proxies.

mod agents;
pub(crate) mod protocol;
pub(crate) mod result;
mod runtime;
pub(crate) mod series;
pub(crate) mod share;
pub(crate) mod step;

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use eagle_registry::{ImageReference, embedded::RegistryStats};
use tokio::sync::mpsc;
use url::Url;

pub(crate) use self::runtime::Runtime;
use self::{
    agents::{Agents, Pulled},
    result::{PullRecord, PullReport, StepResult, Whole},
    series::{Plan, Series, SeriesName},
    share::Share,
    step::{Counts, RECORDS, Step},
};
use crate::{
    agent::token,
    cli::PullArgs,
    client::get_json,
    cluster::{Cluster, Images, LOCAL_REGISTRY, find_eagle},
    progress,
    report::Circumstances,
};

/// Who pulls.
enum Pullers {
    /// This program.
    Here(Vec<Series>),
    /// Others like it, each a share.
    Agents(Box<Agents>),
}

/// What came of all steps.
#[derive(Default)]
struct Measured {
    records: Vec<PullRecord>,
    steps: Vec<StepResult>,
    /// Why it broke off.
    error: Option<String>,
}

/// Runs the benchmark, prints what came of it and writes it.
///
/// # Errors
/// When the local cluster does not start, a pull fails or an agent is lost; in the last cases the reports are written
/// all the same.
pub(crate) async fn run(args: PullArgs) -> Result<()> {
    let runtime_version = check(&args).await?;
    let eagle = args.local.then(|| find_eagle(args.cluster.eagle.as_deref())).transpose()?;
    let circumstances = Circumstances::now("pull", eagle.as_deref());
    let mut cluster = None;
    let (images, plan) = if args.local {
        eprintln!("Starting an origin registry, a tracker, a seeder and {} proxies ...", args.cluster.nodes);
        let cluster = &*cluster.insert(start(&args).await?);
        let images = (0..image_count(&args)).map(|number| cluster.numbered_image(number));
        (images.collect::<Result<Vec<_>>>()?, local_plan(&args, cluster)?)
    } else {
        let image = args.image.clone().context("--image is missing")?;
        let plan = Plan {
            image: image.clone(),
            direct: args.direct.is_some(),
            registry: args.direct.clone().flatten(),
            proxies: args.proxies.clone(),
            runtime: args.runtime,
            alias: None,
        };
        (vec![image], plan)
    };
    let series: Vec<_> = plan.series()?;
    let names: Vec<_> = series.iter().map(|series| series.name).collect();
    let mut pullers = if args.agents.is_empty() {
        Pullers::Here(series)
    } else {
        let token = token::read(args.token_file.as_deref())?;
        eprintln!("Greeting {} agents ...", args.agents.len());
        Pullers::Agents(Box::new(Agents::connect(&args.agents, token.as_ref(), &plan).await?))
    };
    let origin = cluster.as_ref().map(Cluster::origin);
    let measuring = measure(&args, &images, &names, &mut pullers, origin);
    let measured = match &mut cluster {
        Some(cluster) => tokio::select! {
            result = measuring => result?,
            error = cluster.watch() => return Err(error),
        },
        None => measuring.await?,
    };
    let agents = match pullers {
        Pullers::Here(_) => Vec::new(),
        Pullers::Agents(agents) => agents.results().to_vec(),
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
        runtime_version,
        iterations: args.iterations,
        error: measured.error,
        agents,
        steps: measured.steps,
        pulls: measured.records,
    };
    if let Some(path) = &args.csv {
        std::fs::write(path, report.csv()).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    args.output.write(&report)?;
    println!("{report}");
    if let Some(error) = &report.error {
        bail!("broke off: {error}");
    }
    let failed = report.pulls.iter().filter(|pull| !pull.success).count();
    if let Some(error) = report.pulls.iter().find_map(|pull| pull.error.as_ref()) {
        bail!("{failed} of {} pulls failed, the first with: {error}", report.pulls.len());
    }
    Ok(())
}

/// What can be said before anything is started. Gives the version of the runtime on this machine, where it is one of this machine that pulls.
async fn check(args: &PullArgs) -> Result<Option<String>> {
    let mut version = None;
    let hosts = u32::try_from(args.agents.len().max(1))?;
    if let Some(runtime) = args.runtime {
        ensure!(
            runtime.pulls_apart() || args.concurrency.iter().all(|&concurrency| concurrency <= hosts),
            "--runtime: a daemon pulls an image once, however many ask; use --concurrency 1, or skopeo; with agents, as many \
             as there are"
        );
        if args.agents.is_empty() {
            version = Some(runtime.version().await?);
        }
    }
    ensure!(
        !args.local_address.is_unspecified(),
        "--local-address: {} is not where an agent can connect to; give an address of this machine",
        args.local_address
    );
    for &concurrency in &args.concurrency {
        // The first share is the largest.
        let share = Share::split(concurrency, hosts).first().copied().context("there are no clients")?;
        share.pulls(args.iterations).context("--concurrency, --iterations")?;
    }
    Ok(version)
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

/// The local cluster.
async fn start(args: &PullArgs) -> Result<Cluster> {
    let layers = layer_sizes(args.cluster.size.0);
    let images = Images { layers: &layers, config_size: 0, count: image_count(args) };
    Cluster::with_images(&args.cluster, &images, args.local_address).await
}

/// Images of a local run: one for warming up, and with `--unique` one for each iteration of each step.
fn image_count(args: &PullArgs) -> u32 {
    let steps = u32::try_from(args.concurrency.len()).unwrap_or(u32::MAX);
    if args.unique { steps.saturating_mul(args.iterations).saturating_add(1) } else { 1 }
}

/// What is pulled from the local cluster.
fn local_plan(args: &PullArgs, cluster: &Cluster) -> Result<Plan> {
    let url = |address: SocketAddr| -> Result<Url> { Ok(format!("http://{address}").parse()?) };
    Ok(Plan {
        image: cluster.image()?,
        direct: true,
        registry: Some(url(cluster.origin())?),
        proxies: cluster.proxies.iter().map(|proxy| url(proxy.ready.listen)).collect::<Result<_>>()?,
        runtime: args.runtime,
        alias: args.runtime.is_some().then(|| LOCAL_REGISTRY.to_owned()),
    })
}

async fn measure(
    args: &PullArgs,
    images: &[ImageReference],
    series: &[SeriesName],
    pullers: &mut Pullers,
    origin: Option<SocketAddr>,
) -> Result<Measured> {
    let first = images.first().context("there is no image")?;
    match pullers {
        Pullers::Here(series) => step::warm_up(series, first, args.warm_up).await?,
        Pullers::Agents(agents) => agents.warm_up(args.warm_up).await?,
    }
    let mut measured = Measured::default();
    // With `--unique` the first is for warming up, and the following ones are for the steps in turn.
    let iterations = usize::try_from(args.iterations)?;
    let mut unique = images.get(1..).unwrap_or_default().chunks(iterations);
    for &concurrency in &args.concurrency {
        let images = if args.unique { unique.next().context("there are too few images")? } else { &images[..1] };
        for &series in series {
            let total = concurrency.checked_mul(args.iterations).context("too many pulls")?;
            eprintln!("{total} pulls, {concurrency} at a time, {series}:");
            let step =
                Step { series, images: images.to_vec(), share: Share::whole(concurrency), iterations: args.iterations };
            let before = origin_bytes(origin).await?;
            let Pulled { records: mut pulls, end, lost } = shown(pullers, step, total).await?;
            if let Some(size) = end.image_bytes {
                pulls.iter_mut().filter(|pull| pull.success).for_each(|pull| pull.bytes = size);
            }
            let sent = origin_bytes(origin).await?.zip(before).map(|(after, before)| after.saturating_sub(before));
            let got = pulls.iter().map(|pull| pull.bytes).sum();
            ensure!(
                args.runtime.is_none() || series != SeriesName::Direct || sent.is_none_or(|sent| sent >= got),
                "the registry sent {} bytes where {got} were pulled: the runtime has layers of this image by other images, \
                 which have to be removed before",
                sent.unwrap_or_default()
            );
            let elapsed = Duration::try_from_secs_f64(end.elapsed_seconds)?;
            let whole = Whole { asked: total, elapsed, origin_bytes: sent };
            measured.steps.push(StepResult::new(series, concurrency, &pulls, whole)?);
            measured.records.extend(pulls);
            if let Some(lost) = lost {
                measured.error = Some(lost.to_string());
                return Ok(measured);
            }
        }
    }
    Ok(measured)
}

/// A step, with a display of how far it is.
async fn shown(pullers: &mut Pullers, step: Step, total: u32) -> Result<Pulled> {
    let counts = Arc::new(Counts::default());
    let pulling = async {
        match pullers {
            Pullers::Here(series) => here(series, step, &counts).await,
            Pullers::Agents(agents) => Ok(agents.step(&step, &counts).await),
        }
    };
    let note = || format!("{} MB", counts.bytes.load(Ordering::Relaxed) / 1_000_000);
    let done = || counts.done.load(Ordering::Relaxed).into();
    tokio::select! {
        pulled = pulling => pulled,
        () = progress::show(total.into(), done, note) => bail!("the display ended"),
    }
}

/// A step by this program.
async fn here(series: &[Series], step: Step, counts: &Arc<Counts>) -> Result<Pulled> {
    let series = series.iter().find(|series| series.name == step.series);
    let series = series.ok_or_else(|| anyhow!("there is nothing {} to pull", step.series))?;
    let (sink, mut heard) = mpsc::channel(RECORDS);
    let collect = async {
        let mut records = Vec::new();
        while let Some(record) = heard.recv().await {
            records.push(record);
        }
        records.sort_by_key(|record: &PullRecord| record.iteration);
        records
    };
    let (end, records) = tokio::join!(step::run(series, step, sink, counts), collect);
    Ok(Pulled { records, end: end?, lost: None })
}

/// Bytes of blobs that our own origin has sent so far.
async fn origin_bytes(origin: Option<SocketAddr>) -> Result<Option<u64>> {
    let Some(origin) = origin else { return Ok(None) };
    let stats: RegistryStats = get_json(origin, "/_stats").await?;
    Ok(Some(stats.blob_bytes))
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
}
