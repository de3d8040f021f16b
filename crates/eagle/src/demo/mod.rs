//! `eagle demo`: the main job in a box. An origin registry, a tracker, a seeder and several proxies in this process, with
//! real sockets, and a pull through every proxy at once.

mod cluster;
mod keep;
mod progress;
mod pull;
mod report;

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use eagle_core::{Geometry, ideal};
use futures::future::try_join_all;
use tempfile::TempDir;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::{
    cluster::Cluster,
    pull::{Blob, Mirror, Progress},
    report::{BlobReport, NodeReport, Report},
};
use crate::{
    cli::{DemoArgs, LogArgs},
    exit::Exit,
    shutdown::Signals,
    telemetry::{self, LogConfig},
};

/// The parts may take so long to end; who presses Ctrl-C waits for it.
const STOP: Duration = Duration::from_secs(1);
/// Tries at removing the files, while the last writes of a part that was cut off may still come.
const REMOVALS: u32 = 10;
/// Between two tries.
const REMOVAL_PAUSE: Duration = Duration::from_millis(50);

/// Runs the demonstration and prints what came of it.
///
/// # Errors
/// When a part cannot start or a pull fails; also when a signal ends it, with the exit code for that.
pub(crate) async fn run(args: DemoArgs, log: &LogArgs) -> Result<()> {
    let mut signals = Signals::listen().context("signals cannot be received")?;
    let level = log.log_level.clone().unwrap_or_else(|| "warn".to_owned());
    telemetry::init(&LogConfig { level, format: log.log_format.unwrap_or_default() }, None).map_err(Exit::usage)?;
    let directory = tempfile::Builder::new().prefix("eagle-demo-").tempdir();
    let directory =
        directory.with_context(|| format!("no directory can be made in {}", std::env::temp_dir().display()))?;
    let shutdown = CancellationToken::new();
    let mut cluster = None;
    let result = tokio::select! {
        result = demonstrate(&args, &directory, &shutdown, &mut cluster) => result,
        _ = signals.next() => Err(Exit::interrupted().into()),
    };
    shutdown.cancel();
    if let Some(cluster) = cluster {
        // A part that does not end in time is cut off when it is dropped.
        let _ = timeout(STOP, cluster.stop()).await;
    }
    remove(directory).await?;
    result
}

async fn remove(directory: TempDir) -> Result<()> {
    let path = directory.keep();
    for _ in 1..REMOVALS {
        if tokio::fs::remove_dir_all(&path).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(REMOVAL_PAUSE).await;
    }
    tokio::fs::remove_dir_all(&path).await.with_context(|| format!("{} cannot be removed", path.display()))
}

async fn demonstrate(
    args: &DemoArgs,
    directory: &TempDir,
    shutdown: &CancellationToken,
    slot: &mut Option<Cluster>,
) -> Result<()> {
    if !args.json {
        let what = if args.origin.is_some() { "" } else { " an origin registry with a generated image," };
        eprintln!("Starting{what} a tracker, a seeder and {} proxies ...", args.nodes);
    }
    let cluster = &*slot.insert(Cluster::start(args, directory.path(), shutdown.clone()).await?);
    let target = &cluster.target;
    let mirrors = cluster
        .proxies
        .iter()
        .map(|proxy| Ok(Mirror::new(format!("http://{}", proxy.local_addr()).parse()?)))
        .collect::<Result<Vec<_>>>()?;
    if !args.json {
        eprintln!("Pulling {}:{} through all of them at once:", target.repository, target.reference);
    }
    let progress: Vec<Arc<Progress>> = mirrors.iter().map(|_| Arc::default()).collect();
    let pulls = try_join_all(mirrors.iter().zip(&progress).enumerate().map(|(index, (mirror, progress))| async move {
        let pulled = mirror.pull(target, progress).await;
        pulled.with_context(|| format!("the pull through proxy {} failed", index + 1))
    }));
    let blobs = {
        // The display ends by itself soon after the last pull; a failed pull ends it at once.
        let pulls = async { Ok::<_, anyhow::Error>(pulls.await?.into_iter().next().unwrap_or_default()) };
        let display = async {
            progress::show(progress.clone(), args.json).await;
            Ok(())
        };
        tokio::try_join!(pulls, display)?.0
    };
    let report = report(args, cluster, &blobs, &progress)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("\n{}", report.text());
    }
    if args.keep {
        let addresses: Vec<_> = cluster.proxies.iter().map(eagle_proxy::Proxy::local_addr).collect();
        if let (false, [first, others @ ..]) = (args.json, addresses.as_slice()) {
            println!("{}", keep::instructions(*first, others, &cluster.admins(), target));
        }
        std::future::pending::<()>().await;
    }
    Ok(())
}

fn report(args: &DemoArgs, cluster: &Cluster, blobs: &[Blob], progress: &[Arc<Progress>]) -> Result<Report> {
    let size: u64 = blobs.iter().map(|blob| blob.size).sum();
    let largest = blobs.iter().map(|blob| blob.size).max().unwrap_or_default();
    // The image as one file, cut as its largest blob is.
    let piece_length = Geometry::auto(largest)?.piece_length();
    let whole = Geometry::new(size, piece_length)?;
    let nodes = progress.len();
    let ideal = cluster::bytes_per_second(args.rate)
        .map(|rate| u32::try_from(nodes).map(|nodes| ideal::equal_rates(&whole, nodes, rate)))
        .transpose()?;
    let per_node: Vec<NodeReport> = cluster
        .proxies
        .iter()
        .zip(progress)
        .enumerate()
        .map(|(index, (proxy, progress))| {
            let traffic = proxy.traffic();
            let seconds = progress.elapsed().unwrap_or_default().as_secs_f64();
            NodeReport {
                node: index + 1,
                seconds,
                first_byte_seconds: progress.first_byte().unwrap_or_default().as_secs_f64(),
                peer_bytes: traffic.peer,
                seeder_bytes: traffic.seeder,
                origin_bytes: traffic.origin,
                efficiency: ideal.map(|ideal| ideal / seconds),
            }
        })
        .collect();
    let (blobs, origin_bytes) = match &cluster.origin {
        Some(origin) => {
            let stats = origin.stats();
            let reports: Vec<BlobReport> = blobs
                .iter()
                .map(|blob| {
                    let served = stats.blob(blob.digest);
                    BlobReport {
                        digest: blob.digest.to_string(),
                        size_bytes: blob.size,
                        origin_requests: served.gets,
                        origin_bytes: served.bytes,
                    }
                })
                .collect();
            let bytes = reports.iter().map(|blob| blob.origin_bytes).sum();
            (reports, bytes)
        }
        None => {
            let proxies = per_node.iter().map(|node| node.origin_bytes).sum::<u64>();
            (Vec::new(), cluster.seeder.counters().origin_bytes + proxies)
        }
    };
    let seconds = per_node.iter().map(|node| node.seconds).fold(0.0, f64::max);
    Ok(Report {
        image: format!("{}:{}", cluster.target.repository, cluster.target.reference),
        nodes,
        size_bytes: size,
        rate_bytes_per_second: args.rate.bytes_per_second(),
        encryption: args.encryption.as_str(),
        piece_length,
        seconds,
        ideal_seconds: ideal,
        efficiency: ideal.map(|ideal| ideal / seconds),
        delivered_bytes: progress.iter().map(|progress| progress.delivered()).sum(),
        peer_bytes: per_node.iter().map(|node| node.peer_bytes).sum(),
        origin_bytes,
        origin_multiple: origin_bytes as f64 / size as f64,
        proxies: cluster.proxies.iter().map(|proxy| format!("http://{}", proxy.local_addr())).collect(),
        blobs,
        per_node,
    })
}
