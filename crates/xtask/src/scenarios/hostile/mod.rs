//! Clients that mean harm, beside ones that work: what is left of the rate of the latter, and what it costs in memory.
//!
//! All share this machine's processors, so an attack that makes work takes its part of them too. The figures are printed; what has to
//! hold is far less than what is measured on a quiet machine, so that a busy one does not fail.

mod attacks;
mod measure;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use self::measure::{Attack, Work, left};
use super::{Scene, pulls::pull};
use crate::{
    cluster::{Cluster, Role, Settings},
    http,
};

/// Connections that say nothing, at each port.
const IDLE: usize = 10_000;
/// Files of this process besides the connections of crowds.
const OTHER_FILES: usize = 200;
/// What has to be left of a rate: that others are served at all. How well is printed, and depends on what else the machine does.
const LEAST_LEFT: f64 = 0.05;
/// How much a role may grow under all of it, MiB: a release build grows by 84 at most, and a debug build takes more for each request.
const MOST_GROWTH: u64 = 250;
/// How long a pull by a new node may take while its ports are crowded.
const PULL_DEADLINE: Duration = Duration::from_secs(120);

pub(super) fn crowds(scene: &Scene<'_>) -> Result<()> {
    let limit = raise_limit()?;
    let registry = scene.registry()?;
    let mut cluster = Cluster::start(scene, registry.address(), Settings { keyed: false, ..Settings::default() })?;
    pull(cluster.proxy(0), scene.image)?;
    let (proxy, seeder, tracker) =
        (cluster.nodes[0].ready.clone(), cluster.seeder.ready.clone(), cluster.tracker.ready.clone());
    let before = memory(&cluster)?;
    let digest = &scene.image.largest().digest;
    let at_proxy = format!("/v2/library/debian/blobs/{digest}");
    let at_seeder = format!("/v1/blobs/{digest}?registry=docker.io&repository=library/debian");
    let from_proxy = || part(proxy.listen, &at_proxy);
    let from_seeder = || part(seeder.listen, &at_seeder);
    let asks_tracker = || part(tracker.listen, "/v1/peers");
    let probes = || part(proxy.admin, "/healthz");

    let [to_peers, to_data] = [proxy.p2p.context("no port")?, proxy.data.context("no port")?];
    let flood = attacks::announce(&to_peers.to_string());
    let attacks: [(&str, Work<'_>, Attack<'_>); 12] = [
        ("idle connections at the proxy", &from_proxy, &|stage| attacks::idle(proxy.listen, IDLE, stage)),
        ("idle connections at the seeder", &from_seeder, &|stage| attacks::idle(seeder.listen, IDLE, stage)),
        ("idle connections at the tracker", &asks_tracker, &|stage| attacks::idle(tracker.listen, IDLE, stage)),
        ("idle connections at the admin address", &probes, &|stage| attacks::idle(proxy.admin, IDLE, stage)),
        ("idle connections at the proxy's port for peers", &from_proxy, &|stage| attacks::idle(to_peers, IDLE, stage)),
        ("idle connections at the proxy's data port", &from_proxy, &|stage| attacks::idle(to_data, IDLE, stage)),
        ("requests that come a byte at a time", &from_proxy, &|stage| attacks::trickle(proxy.listen, stage)),
        ("readers that take nothing from the proxy", &from_proxy, &|stage| {
            attacks::unread(proxy.listen, &at_proxy, stage)
        }),
        ("readers that take nothing from the seeder", &from_seeder, &|stage| {
            attacks::unread(seeder.listen, &at_seeder, stage)
        }),
        ("connections that come and go", &from_proxy, &|stage| attacks::churn(proxy.listen, stage)),
        ("heads that are too long", &from_proxy, &|stage| attacks::long_heads(proxy.listen, stage)),
        ("floods of announces", &asks_tracker, &|stage| attacks::repeat(tracker.listen, &flood, stage)),
    ];
    for (name, work, attack) in attacks {
        let left = left(work, attack, scene.rounds)?;
        let most = memory(&cluster)?.map(|(role, most)| format!("{role} {most}")).join(", ");
        println!("  {name} ({}): {left}; most MiB: {most}", left.size);
        ensure!(left.median() >= LEAST_LEFT, "{name}: {left}");
    }
    newcomer(scene, &mut cluster, IDLE.min(limit / 4))?;

    for ((role, before), (_, after)) in before.iter().zip(memory(&cluster)?) {
        println!("  {role}: {before} MiB before, {after} MiB at most");
        ensure!(after <= before + MOST_GROWTH, "{role} grew from {before} to {after} MiB");
    }
    for role in cluster.nodes.iter_mut().chain([&mut cluster.seeder, &mut cluster.tracker]) {
        role.check_running()?;
    }
    Ok(())
}

/// A node that joins while the ports of all others are crowded gets the image.
fn newcomer(scene: &Scene<'_>, cluster: &mut Cluster, idle: usize) -> Result<()> {
    let mut took = Vec::new();
    for crowded in [false, true] {
        let mut crowds = Vec::new();
        let ports = [&cluster.seeder.ready, &cluster.nodes[0].ready].map(|ready| [ready.p2p, ready.data]);
        for port in ports.into_iter().flatten().flatten().filter(|_| crowded) {
            crowds.push(attacks::open(port, idle)?);
        }
        let node = cluster.add_node()?;
        let started = Instant::now();
        pull(cluster.proxy(node), scene.image)?;
        took.push(started.elapsed());
        ensure!(started.elapsed() < PULL_DEADLINE, "a pull took {took:?} with crowded ports");
        drop(crowds);
    }
    let shown: Vec<String> = took.iter().map(|took| format!("{:.1} s", took.as_secs_f64())).collect();
    println!(
        "  a new node pulls in {}, and in {} with {idle} idle connections at every port of its peers",
        shown[0], shown[1]
    );
    Ok(())
}

/// Lets this process open as many files and connections as the system allows, which has to be enough for one crowd.
fn raise_limit() -> Result<usize> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .context("cannot raise the limit of open files")?;
    let limit = maximum.map_or(usize::MAX, |maximum| usize::try_from(maximum).unwrap_or(usize::MAX));
    ensure!(
        limit > IDLE + OTHER_FILES,
        "the system allows {limit} open files (`ulimit -Hn`), and {IDLE} connections are needed"
    );
    Ok(limit - OTHER_FILES)
}

fn memory(cluster: &Cluster) -> Result<[(&'static str, u64); 3]> {
    let roles: [(&'static str, &Role); 3] =
        [("proxy", &cluster.nodes[0]), ("seeder", &cluster.seeder), ("tracker", &cluster.tracker)];
    let mut most = roles.map(|(name, _)| (name, 0));
    for ((_, most), (_, role)) in most.iter_mut().zip(roles) {
        *most = role.most_memory()? >> 20;
    }
    Ok(most)
}

/// Gets something; bytes, and one for the request.
fn part(address: SocketAddr, target: &str) -> Result<u64> {
    let mut response = http::request(address, "GET", target, &[])?;
    ensure!(response.status == 200, "{target} at {address} answered {}", response.status);
    Ok(1 + std::io::copy(&mut response, &mut std::io::sink())?)
}
