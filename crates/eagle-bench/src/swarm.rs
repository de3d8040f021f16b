//! `eagle-bench swarm`: one cold blob through every node of a cluster at the same moment.

mod result;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use eagle_core::{ideal, units::Rate};
use eagle_registry::ImageReference;
use futures::future::{join_all, try_join_all};
use tokio::task::JoinSet;

use self::result::{Measured, NodeResult, SwarmReport};
use crate::{
    cli::{ClusterArgs, SwarmArgs},
    client::{Mirror, Progress, Route},
    cluster::{Cluster, find_eagle},
    host::ProcessUse,
    origin::Layer,
    progress,
    report::Circumstances,
    stats::{percentile, sorted},
};

/// Requests to the origin of which the median first byte is taken.
const ORIGIN_REQUESTS: usize = 5;

/// A pull's progress, once it has begun, which is later than the others where starts are staggered.
type Slot = Arc<OnceLock<Progress>>;

/// Runs the benchmark, prints what came of it and writes it.
///
/// # Errors
/// When the cluster does not start, a process ends, or a node does not get the blob; in the last case the
/// report is written all the same.
pub(crate) async fn run(args: SwarmArgs) -> Result<()> {
    let eagle = find_eagle(args.cluster.eagle.as_deref())?;
    let circumstances = Circumstances::now("swarm", Some(&eagle));
    eprintln!("Starting an origin registry, a tracker, a seeder and {} proxies ...", args.cluster.nodes);
    let mut cluster = Cluster::start(&args.cluster, &[args.cluster.size.0]).await?;
    let measured = measure(&args, &mut cluster).await?;
    cluster.stop().await;
    let report = SwarmReport::new(circumstances, &args, measured)?;
    args.output.write(&report)?;
    println!("{report}");
    let failed: Vec<String> = report
        .per_node
        .iter()
        .filter_map(|node| Some(format!("node {}: {}", node.node, node.error.as_ref()?)))
        .collect();
    if !failed.is_empty() {
        bail!("{} of {} nodes did not get the blob\n{}", failed.len(), report.nodes, failed.join("\n"));
    }
    Ok(())
}

/// When a node starts, seconds after the first: evenly over all of `--stagger`.
fn start_seconds(args: &SwarmArgs, index: usize) -> f64 {
    let last = f64::from(args.cluster.nodes.saturating_sub(1).max(1));
    args.stagger.as_secs_f64() * index as f64 / last
}

/// The least time that any scheme needs for a node from its own start; `None` where nothing limits the nodes.
///
/// Where nodes start at different times, the bounds for all of them together say nothing of a single one. What is
/// left is that a node downloads no faster than it can, and that the seeder, which began with the first node, has
/// sent every byte once before anybody has them all.
pub(crate) fn ideal_seconds(args: &SwarmArgs, index: usize) -> Result<Option<f64>> {
    let cluster = &args.cluster;
    if args.stagger.is_zero() || cluster.nodes == 1 {
        return ideal_together(cluster);
    }
    let Some(rate) = cluster.rate.bytes_per_second() else { return Ok(None) };
    let size = cluster.size.0 as f64;
    let seeder = cluster.seeder_rate.unwrap_or(cluster.rate).bytes_per_second();
    let seeder = seeder.map_or(0.0, |rate| size / rate as f64) - start_seconds(args, index);
    Ok(Some((size / rate as f64).max(seeder)))
}

/// The least time that any scheme needs for nodes that start together; `None` where nothing limits the nodes.
pub(crate) fn ideal_together(args: &ClusterArgs) -> Result<Option<f64>> {
    let Rate::Limited(rate) = args.rate else { return Ok(None) };
    let rate = rate as f64;
    let seeder = match args.seeder_rate.unwrap_or(args.rate) {
        Rate::Limited(rate) => rate as f64,
        Rate::Unlimited => f64::INFINITY,
    };
    let geometry = args.piece_length.geometry(args.size.0)?;
    let nodes = usize::try_from(args.nodes)?;
    Ok(Some(if seeder == rate {
        ideal::equal_rates(&geometry, args.nodes, rate)
    } else {
        ideal::unequal_rates(args.size.0, seeder, rate, &vec![rate; nodes])
    }))
}

async fn measure(args: &SwarmArgs, cluster: &mut Cluster) -> Result<Measured> {
    let image = cluster.image()?;
    let layer = *cluster.layers().first().context("the image has no layer")?;
    ensure!(layer.size == args.cluster.size.0, "the blob has {} bytes instead of {}", layer.size, args.cluster.size.0);

    let idle = usage(cluster)?;
    let routes = cluster
        .proxies
        .iter()
        .map(|proxy| Ok(Route::Mirror(Box::new(Mirror::new(format!("http://{}", proxy.ready.listen).parse()?)))))
        .collect::<Result<Vec<_>>>()?;
    // As a runtime does it; it is also how a proxy learns that this caller may read the blob. Not timed: the
    // measure is from the request for the blob to its last byte.
    for manifest in try_join_all(routes.iter().map(|route| route.resolve(&image))).await? {
        ensure!(manifest.blobs.iter().any(|blob| blob.digest == layer.digest), "the manifest does not name the blob");
    }

    eprintln!("Pulling {} bytes through all of them at once:", layer.size);
    let before = usage(cluster)?;
    let slots: Vec<Slot> = routes.iter().map(|_| Slot::default()).collect();
    let outcomes = {
        let clients = run_clients(args, &routes, &image, layer, &slots);
        let bytes = || slots.iter().filter_map(|slot| slot.get()).map(Progress::bytes).sum();
        let note = || format!("{} of {} nodes", slots.iter().filter(|slot| done(slot, layer)).count(), slots.len());
        let total = layer.size.saturating_mul(u64::from(args.cluster.nodes));
        tokio::select! {
            outcomes = clients => outcomes?,
            error = cluster.watch() => return Err(error),
            () = progress::show(total, bytes, note) => bail!("the display ended"),
        }
    };
    let after = usage(cluster)?;

    let statuses = join_all(cluster.proxies.iter().map(crate::cluster::Role::status)).await;
    let mut per_node = Vec::new();
    let parts = outcomes.into_iter().zip(&slots).zip(statuses);
    let used = idle.proxies.iter().zip(&before.proxies).zip(&after.proxies);
    for (index, (((outcome, slot), status), ((idle, before), after))) in parts.zip(used).enumerate() {
        let status = status.with_context(|| format!("node {} has no status", index + 1))?;
        let (complete, error) = match outcome {
            Ok(elapsed) => (Some(elapsed.as_secs_f64()), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        let ideal = ideal_seconds(args, index)?;
        let traffic = |source: &str| status["traffic_bytes"][source].as_u64().unwrap_or_default();
        per_node.push(NodeResult {
            node: index + 1,
            start_seconds: start_seconds(args, index),
            ideal_seconds: ideal,
            efficiency: ideal.zip(complete).map(|(ideal, complete)| ideal / complete),
            first_byte_seconds: slot.get().and_then(Progress::first_byte).map(|time| time.as_secs_f64()),
            complete_seconds: complete,
            delivered_bytes: slot.get().map(Progress::bytes).unwrap_or_default(),
            peer_bytes: traffic("peer"),
            seeder_bytes: traffic("seeder"),
            origin_bytes: traffic("origin"),
            uploaded_bytes: status["uploaded_bytes"].as_u64().unwrap_or_default(),
            control_bytes: status["control_bytes"].as_u64().unwrap_or_default(),
            cpu_seconds: after.cpu_seconds - before.cpu_seconds,
            idle_rss_bytes: idle.rss_bytes,
            max_rss_bytes: after.max_rss_bytes,
            error,
        });
    }
    let seeder_status = cluster.seeder.status().await?;
    Ok(Measured {
        per_node,
        // Before it is asked once more, for the time that it takes by itself.
        origin: cluster.origin_stats().await?.blob(layer.digest),
        origin_first_byte_seconds: origin_first_byte(cluster, &image, layer).await?,
        seeder_uploaded: seeder_status["uploaded_bytes"].as_u64().unwrap_or_default(),
        seeder_control: seeder_status["control_bytes"].as_u64().unwrap_or_default(),
        seeder: since(idle.seeder, before.seeder, after.seeder),
        tracker: since(idle.tracker, before.tracker, after.tracker),
    })
}

/// Every client on a task of its own; how long each took, or why it failed.
async fn run_clients(
    args: &SwarmArgs,
    routes: &[Route],
    image: &ImageReference,
    layer: Layer,
    slots: &[Slot],
) -> Result<Vec<Result<Duration>>> {
    let mut tasks = JoinSet::new();
    let start = tokio::time::Instant::now();
    for (index, (route, slot)) in routes.iter().zip(slots).enumerate() {
        let (route, image, slot) = (route.clone(), image.clone(), Arc::clone(slot));
        let delay = Duration::from_secs_f64(start_seconds(args, index));
        tasks.spawn(async move {
            tokio::time::sleep_until(start + delay).await;
            let progress = slot.get_or_init(Progress::start);
            let result = route.blob(&image, layer.digest, layer.size, progress).await;
            (index, result.map(|()| progress.elapsed()))
        });
    }
    let mut outcomes: Vec<Result<Duration>> = routes.iter().map(|_| Err(anyhow::anyhow!("not run"))).collect();
    while let Some(joined) = tasks.join_next().await {
        let (index, outcome) = joined.context("a client ended abnormally")?;
        outcomes[index] = outcome;
    }
    Ok(outcomes)
}

fn done(slot: &Slot, layer: Layer) -> bool {
    slot.get().is_some_and(|progress| progress.bytes() == layer.size)
}

/// What the processes have used so far.
struct Usage {
    proxies: Vec<ProcessUse>,
    seeder: ProcessUse,
    tracker: ProcessUse,
}

fn usage(cluster: &Cluster) -> Result<Usage> {
    Ok(Usage {
        proxies: cluster.proxies.iter().map(|proxy| proxy.process.usage()).collect::<Result<_>>()?,
        seeder: cluster.seeder.process.usage()?,
        tracker: cluster.tracker.process.usage()?,
    })
}

/// The time of the pull, the memory before it, and the most of all time.
fn since(idle: ProcessUse, before: ProcessUse, after: ProcessUse) -> ProcessUse {
    let cpu_seconds = after.cpu_seconds - before.cpu_seconds;
    ProcessUse { cpu_seconds, rss_bytes: idle.rss_bytes, max_rss_bytes: after.max_rss_bytes }
}

/// Seconds from a request for the blob at the origin itself, which does nothing else, to its first byte.
async fn origin_first_byte(cluster: &Cluster, image: &ImageReference, layer: Layer) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..ORIGIN_REQUESTS {
        // A connection of its own, as a seeder's first request needs one.
        let mirror = Mirror::new(format!("http://{}", cluster.origin()).parse()?);
        times.push(mirror.first_byte(image, layer.digest).await.context("the origin")?.as_secs_f64());
    }
    percentile(&sorted(times), 50).context("the origin was not asked")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn ideal(args: &[&str]) -> Option<f64> {
        let cli = Cli::parse_from(["eagle-bench", "swarm"].iter().chain(args));
        let Command::Swarm(args) = cli.command else { panic!("not a swarm") };
        ideal_seconds(&args, 0).unwrap()
    }

    #[test]
    fn staggered_nodes_have_ideals_of_their_own() {
        let cli = Cli::parse_from([
            "eagle-bench",
            "swarm",
            "--nodes",
            "5",
            "--size",
            "100MB",
            "--rate",
            "10MB/s",
            "--seeder-rate",
            "8MB/s",
            "--stagger",
            "4s",
        ]);
        let Command::Swarm(args) = cli.command else { panic!("not a swarm") };
        let starts: Vec<f64> = (0..5).map(|index| start_seconds(&args, index)).collect();
        assert_eq!(starts, [0.0, 1.0, 2.0, 3.0, 4.0]);
        let ideals: Vec<_> = (0..5).map(|index| ideal_seconds(&args, index).unwrap().unwrap()).collect();
        assert_eq!(ideals, [12.5, 11.5, 10.5, 10.0, 10.0]);
    }

    #[test]
    fn the_ideal_is_the_bound_that_applies() {
        assert_eq!(ideal(&["--rate", "unlimited"]), None);
        let common = ["--nodes", "16", "--size", "256MiB", "--rate", "10MB/s"];
        let auto = ideal(&common).unwrap();
        assert!((auto - (26.8435456 + 4.0 * 0.0524288)).abs() < 1e-9, "{auto}");
        let with = |more: &[&str]| ideal(&[&common[..], more].concat()).unwrap();
        assert!((with(&["--piece-length", "1MiB"]) - (26.8435456 + 4.0 * 0.1048576)).abs() < 1e-9);
        assert_eq!(with(&["--seeder-rate", "10MB/s"]), auto);
        assert!((with(&["--seeder-rate", "5MB/s"]) - 53.687_091_2).abs() < 1e-9);
        assert!((with(&["--seeder-rate", "unlimited"]) - 26.8435456).abs() < 1e-9);
    }
}
