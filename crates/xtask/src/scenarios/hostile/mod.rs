//! Clients that mean harm, beside ones that work: what is left of the rate of the latter, and what it costs in memory.
//!
//! All share this machine's processors, so an attack that makes work takes its part of them too. The figures are printed, and written
//! where that is asked for. What has to hold of a single round is far less than what is measured on a quiet machine, so that a busy one
//! does not fail; of the median of several it is what is aimed at.

mod attacks;
mod measure;

use std::{
    fs,
    net::SocketAddr,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

use self::measure::{Attack, Left, Stage, Work, left};
use super::{Scene, pulls::pull};
use crate::{
    cluster::{Cluster, Role, Settings},
    http,
};

/// Connections that say nothing, at each port.
const IDLE: usize = 10_000;
/// Files of this process besides the connections of crowds.
const OTHER_FILES: usize = 200;
/// What is attacked.
const ROLES: [&str; 3] = ["proxy", "seeder", "tracker"];
/// The most memory of each of them under all of it, MiB: twice what a release build took (docs/reliability.md). With a single
/// round, as with all tests, twice that: a debug build takes more for each request.
const MOST_MEMORY: [u64; 3] = [174, 232, 76];
/// How long a pull by a new node may take while its ports are crowded.
const PULL_DEADLINE: Duration = Duration::from_secs(120);

pub(super) fn crowds(scene: &Scene<'_>) -> Result<()> {
    let limit = raise_limit()?;
    let registry = scene.registry()?;
    let mut outcome = Outcome::default();
    anybody(scene, registry.address(), limit, &mut outcome)?;
    members(scene, registry.address(), &mut outcome)?;
    outcome.check(scene)
}

/// Those who reach the ports of nodes that trust everybody.
fn anybody(scene: &Scene<'_>, origin: SocketAddr, limit: usize, outcome: &mut Outcome) -> Result<()> {
    let mut cluster = Cluster::start(scene, origin, Settings { keyed: false, ..Settings::default() })?;
    pull(cluster.proxy(0), scene.image)?;
    let (proxy, seeder, tracker) =
        (cluster.nodes[0].ready.clone(), cluster.seeder.ready.clone(), cluster.tracker.ready.clone());
    let digest = &scene.image.largest().digest;
    let at_proxy = format!("/v2/library/debian/blobs/{digest}");
    let at_seeder = format!("/v1/blobs/{digest}?registry=docker.io&repository=library/debian");
    let from_proxy = || part(proxy.listen, &at_proxy);
    let from_seeder = || part(seeder.listen, &at_seeder);
    let announcement = attacks::announce(&proxy.listen.to_string(), "12D3KooWworks", 1);
    let announces = || attacks::send(tracker.listen, &announcement);
    let asks_tracker = || part(tracker.listen, "/v1/peers");
    let probes = || part(proxy.admin, "/healthz");

    let [to_peers, to_data] = [proxy.p2p.context("no port")?, proxy.data.context("no port")?];
    let flood = attacks::announce(&to_peers.to_string(), "12D3KooWflood", 500);
    let attacks: [(&str, Work<'_>, Attack<'_>); 14] = [
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
        ("heads that hide another request", &from_proxy, &|stage| attacks::smuggled(proxy.listen, stage)),
        ("bodies that come a little at a time", &announces, &|stage| attacks::slow_bodies(tracker.listen, stage)),
        ("floods of announces", &asks_tracker, &|stage| attacks::repeat(tracker.listen, &flood, stage)),
    ];
    for (name, work, attack) in attacks {
        outcome.measure(scene, &cluster, name, work, attack)?;
    }
    outcome.newcomer_seconds = newcomer(scene, &mut cluster, IDLE.min(limit / 4))?;
    outcome.end(scene, &mut cluster)
}

/// Those who hold the cluster key: nodes that were taken over.
fn members(scene: &Scene<'_>, origin: SocketAddr, outcome: &mut Outcome) -> Result<()> {
    let program = scene.hostile_member.context("the members that mean harm are not there")?;
    let directory = scene.directory.join("members");
    let mut cluster = Cluster::start(&Scene { directory: &directory, ..*scene }, origin, Settings::default())?;
    pull(cluster.proxy(0), scene.image)?;
    let (proxy, tracker) = (cluster.nodes[0].ready.clone(), cluster.tracker.ready.clone());
    let layer = scene.image.largest();
    let at_proxy = format!("/v2/library/debian/blobs/{}", layer.digest);
    let from_proxy = || part(proxy.listen, &at_proxy);
    let asks_tracker = || part(tracker.admin, "/v1/peers");
    let status = cluster.nodes[0].status()?;
    let node = status["status"]["node"]["id"].as_str().context("the node has no name")?;
    let to_peers = proxy.p2p.context("no port")?;
    let key_file = cluster.nodes[0].key_file();
    let flood = |arguments: &[&str], stage: &Stage| {
        let mut command = Command::new(program);
        command.arg(&key_file).args(arguments);
        attacks::run(&mut command, stage)
    };
    let control = ["control", node, &to_peers.to_string(), &layer.digest.to_string(), &layer.size.to_string()];
    outcome.measure(scene, &cluster, "control messages of members that lie", &from_proxy, &|stage| {
        flood(&control, stage)
    })?;
    let announces = ["announce", &format!("http://{}", tracker.listen)];
    outcome.measure(scene, &cluster, "floods of announces of a member", &asks_tracker, &|stage| {
        flood(&announces, stage)
    })?;
    outcome.end(scene, &mut cluster)
}

/// What all of it did.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    attacks: Vec<Measured>,
    /// Of each role, MiB.
    most_mebibytes: [u64; 3],
    /// How long a new node pulls with idle ports of its peers, and with crowded ones.
    newcomer_seconds: [f64; 2],
    /// What should have been otherwise.
    problems: Vec<String>,
}

/// What one attack did.
#[derive(Debug, Serialize)]
struct Measured {
    attack: &'static str,
    median: f64,
    #[serde(flatten)]
    left: Left,
    /// Of each role since it started, MiB.
    most_mebibytes: [u64; 3],
}

impl Outcome {
    fn measure(
        &mut self,
        scene: &Scene<'_>,
        cluster: &Cluster,
        attack: &'static str,
        work: Work<'_>,
        does: Attack<'_>,
    ) -> Result<()> {
        let left = left(work, does, scene.rounds)?;
        let most_mebibytes = memory(cluster)?;
        println!("  {attack} ({}): {left}; most MiB: {}", left.size, shown(most_mebibytes));
        if !left.is_enough() {
            self.problems.push(format!("{attack}: {left}"));
        }
        self.attacks.push(Measured { attack, median: left.median(), left, most_mebibytes });
        Ok(())
    }

    /// The end of a cluster: all of it still runs, and took no more memory than it may.
    fn end(&mut self, scene: &Scene<'_>, cluster: &mut Cluster) -> Result<()> {
        let (most, times) = (memory(cluster)?, if scene.rounds > 1 { 1 } else { 2 });
        println!("  most MiB: {}", shown(most));
        for (role, (most, bound)) in ROLES.into_iter().zip(most.into_iter().zip(MOST_MEMORY)) {
            let bound = bound * times;
            if most > bound {
                self.problems.push(format!("the {role} took {most} MiB, and {bound} are its most"));
            }
        }
        for (all, most) in self.most_mebibytes.iter_mut().zip(most) {
            *all = most.max(*all);
        }
        for role in cluster.nodes.iter_mut().chain([&mut cluster.seeder, &mut cluster.tracker]) {
            role.check_running()?;
        }
        Ok(())
    }

    /// Writes what was measured where that is asked for, and fails with all problems.
    fn check(&self, scene: &Scene<'_>) -> Result<()> {
        if let Some(file) = scene.measured {
            fs::write(file, serde_json::to_vec_pretty(self)?)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        ensure!(self.problems.is_empty(), "{}", self.problems.join("\n"));
        Ok(())
    }
}

/// A node that joins while the ports of all others are crowded gets the image.
fn newcomer(scene: &Scene<'_>, cluster: &mut Cluster, idle: usize) -> Result<[f64; 2]> {
    let mut seconds = [0.0; 2];
    for (crowded, seconds) in [false, true].into_iter().zip(&mut seconds) {
        let mut crowds = Vec::new();
        let ports = [&cluster.seeder.ready, &cluster.nodes[0].ready].map(|ready| [ready.p2p, ready.data]);
        for port in ports.into_iter().flatten().flatten().filter(|_| crowded) {
            crowds.push(attacks::open(port, idle)?);
        }
        let node = cluster.add_node()?;
        let started = Instant::now();
        pull(cluster.proxy(node), scene.image)?;
        let took = started.elapsed();
        ensure!(took < PULL_DEADLINE, "a pull took {took:?} with crowded ports");
        *seconds = took.as_secs_f64();
        drop(crowds);
    }
    let [calm, crowded] = seconds;
    println!(
        "  a new node pulls in {calm:.1} s, and in {crowded:.1} s with {idle} idle connections at every port of its peers"
    );
    Ok(seconds)
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

/// The most memory of each role so far, MiB.
fn memory(cluster: &Cluster) -> Result<[u64; 3]> {
    let roles: [&Role; 3] = [&cluster.nodes[0], &cluster.seeder, &cluster.tracker];
    let mut most = [0; 3];
    for (most, role) in most.iter_mut().zip(roles) {
        *most = role.most_memory()? >> 20;
    }
    Ok(most)
}

fn shown(most: [u64; 3]) -> String {
    ROLES.iter().zip(most).map(|(role, most)| format!("{role} {most}")).collect::<Vec<_>>().join(", ")
}

/// Gets something; bytes, and one for the request.
fn part(address: SocketAddr, target: &str) -> Result<u64> {
    let mut response = http::request(address, "GET", target, &[])?;
    ensure!(response.status == 200, "{target} at {address} answered {}", response.status);
    Ok(1 + std::io::copy(&mut response, &mut std::io::sink())?)
}
