//! Parts that die while pulls are under way.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    Scene,
    pulls::{all_at_once, pull},
};
use crate::{
    cluster::{Cluster, Role, Settings},
    oci,
    registry::Registry,
    runtimes::{Mirror, Runtime, Skopeo},
};

/// Slow enough that the middle of a pull is seconds away from both its ends.
const RATE: &str = "20MiB/s";

pub(super) fn seeder_killed(scene: &Scene<'_>) -> Result<()> {
    let (_registry, cluster) = start(scene)?;
    let Cluster { nodes, seeder, .. } = cluster;
    kill_half_way(scene, &nodes, seeder)
}

pub(super) fn tracker_killed(scene: &Scene<'_>) -> Result<()> {
    let (_registry, mut cluster) = start(scene)?;
    let nodes = [cluster.proxy(0), cluster.proxy(1)];
    half_way(scene, nodes, || {
        cluster.tracker.kill();
    })?;
    let later = cluster.add_node().context("starting without a tracker")?;
    pull(cluster.proxy(later), scene.image).context("a node that started when the tracker was dead")
}

fn start(scene: &Scene<'_>) -> Result<(Registry, Cluster)> {
    let registry = scene.registry()?;
    let settings = Settings { nodes: 2, rate: RATE, ..Settings::default() };
    let cluster = Cluster::start(scene, registry.address(), settings)?;
    Ok((registry, cluster))
}

fn kill_half_way(scene: &Scene<'_>, nodes: &[Role], mut victim: Role) -> Result<()> {
    half_way(scene, [nodes[0].ready.listen, nodes[1].ready.listen], || victim.kill())
}

/// Pulls through both nodes at once and breaks something when one has half of the image.
fn half_way(scene: &Scene<'_>, nodes: [std::net::SocketAddr; 2], break_it: impl FnMut() + Send) -> Result<()> {
    let half = scene.image.blob_bytes() / 2;
    let broken = AtomicBool::new(false);
    let break_it = Mutex::new(break_it);
    let skopeo = Skopeo::new(&scene.directory.join("skopeo"), Mirror::Eagle(nodes[1]))?;
    let watched = || {
        let took = oci::pull(nodes[0], scene.image, |bytes| {
            if bytes >= half && !broken.swap(true, Ordering::SeqCst) {
                match break_it.lock() {
                    Ok(mut break_it) => break_it(),
                    Err(_) => unreachable!("the flag lets one through"),
                }
            }
        })
        .context("the node whose progress was watched")?;
        // Otherwise the limit did not hold and the middle was no middle.
        ensure!(took > Duration::from_secs(4), "{took:?} is too fast for {RATE}");
        Ok(())
    };
    let other = || skopeo.pull().context("the other node, by skopeo");
    let tasks: [&(dyn Fn() -> Result<()> + Sync); 2] = [&watched, &other];
    all_at_once(&tasks)?;
    if !broken.load(Ordering::SeqCst) {
        bail!("nothing was broken: the pull never saw its middle");
    }
    skopeo.verify(scene.image)
}
