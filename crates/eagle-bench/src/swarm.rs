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
    report::{Circumstances, write_json},
};

/// A pull's progress, once it has begun, which is later than the others where starts are staggered.
type Slot = Arc<OnceLock<Progress>>;

/// Runs the benchmark, prints what came of it and writes it.
///
/// # Errors
/// When the cluster does not start, a process ends, or a node does not get the blob; in the last case the
/// report is written all the same.
pub(crate) async fn run(args: SwarmArgs) -> Result<()> {
    let eagle = find_eagle(args.cluster.eagle.as_deref())?;
    let circumstances = Circumstances::now(Some(&eagle));
    eprintln!("Starting an origin registry, a tracker, a seeder and {} proxies ...", args.cluster.nodes);
    let mut cluster = Cluster::start(&args.cluster, &[args.cluster.size.0]).await?;
    let measured = measure(&args, &mut cluster).await?;
    cluster.stop().await;
    let report = SwarmReport::new(circumstances, &args, measured)?;
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
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

/// The least time that any scheme needs; `None` where nothing limits the nodes.
pub(crate) fn ideal_seconds(args: &ClusterArgs) -> Result<Option<f64>> {
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
        let clients = run_clients(args.stagger, &routes, &image, layer, &slots);
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
    let parts = outcomes.into_iter().zip(&slots).zip(statuses).zip(before.proxies.iter().zip(&after.proxies));
    for (index, (((outcome, slot), status), (before, after))) in parts.enumerate() {
        let status = status.with_context(|| format!("node {} has no status", index + 1))?;
        let (complete, error) = match outcome {
            Ok(elapsed) => (Some(elapsed.as_secs_f64()), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        let traffic = |source: &str| status["traffic_bytes"][source].as_u64().unwrap_or_default();
        per_node.push(NodeResult {
            node: index + 1,
            first_byte_seconds: slot.get().and_then(Progress::first_byte).map(|time| time.as_secs_f64()),
            complete_seconds: complete,
            delivered_bytes: slot.get().map(Progress::bytes).unwrap_or_default(),
            peer_bytes: traffic("peer"),
            seeder_bytes: traffic("seeder"),
            origin_bytes: traffic("origin"),
            uploaded_bytes: status["uploaded_bytes"].as_u64().unwrap_or_default(),
            cpu_seconds: after.cpu_seconds - before.cpu_seconds,
            max_rss_bytes: after.max_rss_bytes,
            error,
        });
    }
    let seeder_status = cluster.seeder.status().await?;
    Ok(Measured {
        per_node,
        origin: cluster.origin_stats().await?.blob(layer.digest),
        seeder_uploaded: seeder_status["uploaded_bytes"].as_u64().unwrap_or_default(),
        seeder: since(before.seeder, after.seeder),
        tracker: since(before.tracker, after.tracker),
    })
}

/// Every client on a task of its own; how long each took, or why it failed.
async fn run_clients(
    stagger: Duration,
    routes: &[Route],
    image: &ImageReference,
    layer: Layer,
    slots: &[Slot],
) -> Result<Vec<Result<Duration>>> {
    let mut tasks = JoinSet::new();
    let start = tokio::time::Instant::now();
    for (index, (route, slot)) in routes.iter().zip(slots).enumerate() {
        let (route, image, slot) = (route.clone(), image.clone(), Arc::clone(slot));
        let delay = stagger.saturating_mul(u32::try_from(index)?);
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

/// The time between, and the memory of all time.
fn since(before: ProcessUse, after: ProcessUse) -> ProcessUse {
    ProcessUse { cpu_seconds: after.cpu_seconds - before.cpu_seconds, ..after }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn ideal(args: &[&str]) -> Option<f64> {
        let cli = Cli::parse_from(["eagle-bench", "swarm"].iter().chain(args));
        let Command::Swarm(args) = cli.command else { panic!("not a swarm") };
        ideal_seconds(&args.cluster).unwrap()
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
