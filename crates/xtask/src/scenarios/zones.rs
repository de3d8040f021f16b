//! What labels of zones are worth where the link between two zones is thin: real sockets in namespaces.

use std::{net::SocketAddr, path::Path, thread, time::Instant};

use anyhow::{Context, Result, ensure};

use super::Scene;
use crate::chaos::{
    client::{Record, Runtime},
    content::Image,
    members::{Node, mirror},
    network::Network,
    origin::Origin,
    plan::{Member, Plan},
};

const MIB: u64 = 1 << 20;
/// In each of two zones.
const PER_ZONE: usize = 4;
/// What all nodes pull: pieces enough that each of them gets some from the seeder.
const LAYER: u64 = 16 * MIB;
/// Of every host, each way: little enough for this machine to do it for all.
const RATE: u64 = 8 * MIB;
/// Of the link between the zones, each way.
const BETWEEN: u64 = 4 * MIB;

/// What may cross with labels, of what crosses without: on a quiet machine it is about half.
const LEAST_SAVED: f64 = 0.8;

/// How one swarm went.
struct Outcome {
    /// Until the slowest node had all.
    seconds: f64,
    /// Bytes over the link between the zones, over the size of what was pulled.
    crossed: f64,
}

/// The plan `benches/plans/two-small-zones.toml`.
pub(super) fn over_a_thin_link(scene: &Scene<'_>) -> Result<()> {
    let plan = Plan {
        seed: 1,
        trackers: 1,
        seeders: 1,
        proxies: 2 * PER_ZONE,
        encryption: "none",
        rate: RATE,
        cache_limit: 2 * LAYER,
        seeder_cache_limit: 2 * LAYER,
        images: vec![vec![LAYER], vec![LAYER]],
        pulls: Vec::new(),
        faults: Vec::new(),
    };
    let images: Vec<_> =
        plan.images.iter().enumerate().map(|(number, layers)| Image::make(plan.seed, number, layers)).collect();
    let network = Network::make(true, 0, &plan.members())?;
    let apart: Vec<Member> = (PER_ZONE..2 * PER_ZONE).map(Member::Proxy).collect();
    network.set_apart(&apart, BETWEEN)?;
    let origin = Origin::start(SocketAddr::new(network.origin(), 5000), &images)?;
    let stage = Stage { plan: &plan, network: &network, origin: &origin, eagle: scene.eagle };
    let with = stage.pull(&scene.directory.join("labels"), 0, &images[0], true).context("with labels")?;
    let without = stage.pull(&scene.directory.join("blind"), 1, &images[1], false).context("without labels")?;
    for (name, outcome) in [("with labels", &with), ("without", &without)] {
        println!(
            "  {name}: slowest node {:.1} s, {:.2} times the size over the link between the zones",
            outcome.seconds, outcome.crossed
        );
    }
    ensure!(with.crossed >= 1.0, "the zone behind the link got less than all: {:.2}", with.crossed);
    ensure!(
        with.crossed <= LEAST_SAVED * without.crossed,
        "labels save too little: {:.2} against {:.2} times the size",
        with.crossed,
        without.crossed
    );
    Ok(())
}

/// What both swarms have in common.
struct Stage<'a> {
    plan: &'a Plan,
    network: &'a Network,
    origin: &'a Origin,
    eagle: &'a Path,
}

impl Stage<'_> {
    /// Starts a cluster and lets all of its nodes pull an image at once.
    fn pull(&self, directory: &Path, number: usize, image: &Image, labels: bool) -> Result<Outcome> {
        let mut nodes = Vec::new();
        for member in self.plan.members() {
            let address = self.origin.address();
            let mut node = Node::prepare(self.plan, self.network, member, directory, self.eagle, address)?;
            if labels {
                node.label(if matches!(member, Member::Proxy(number) if number >= PER_ZONE) { "b" } else { "a" });
            }
            node.start()?;
            nodes.push(node);
        }
        for node in &mut nodes {
            node.wait_ready()?;
        }
        let (before, start) = (self.network.crossed()?, Instant::now());
        let pull = |node: usize| -> Result<f64> {
            self.network.enter(Member::Proxy(node))?;
            let record = Record::default();
            let runtime = Runtime { node, mirror: mirror(self.network, node), origin: self.origin, record: &record };
            ensure!(runtime.pull(number, image), "proxy-{node} could not pull: {:?}", record.requests());
            Ok(start.elapsed().as_secs_f64())
        };
        let pull = &pull;
        let times: Vec<Result<f64>> = thread::scope(|scope| {
            let pulls: Vec<_> = (0..self.plan.proxies).map(|node| scope.spawn(move || pull(node))).collect();
            pulls.into_iter().map(|pull| pull.join().map_err(|_| anyhow::anyhow!("a pull panicked"))?).collect()
        });
        let seconds = times.into_iter().collect::<Result<Vec<f64>>>()?.into_iter().fold(0.0, f64::max);
        let crossed = (self.network.crossed()? - before) as f64 / image.size() as f64;
        for node in nodes.iter_mut().rev() {
            node.stop()?;
        }
        Ok(Outcome { seconds, crossed })
    }
}
