//! Seeders with disks of their own, and nodes that do not agree on whom to ask.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, Result, ensure};

use super::{
    Scene,
    pulls::{all_at_once, pull},
};
use crate::{
    cluster::{Role, Settings, common, node},
    oci,
    registry::Registry,
    runtimes::{Mirror, Runtime, Skopeo},
};

/// Slow enough that the middle of a pull is seconds away from both its ends.
const RATE: &str = "20MiB/s";

/// A tracker, two seeders that know of each other by it alone, and nodes.
struct Parts<'a> {
    scene: &'a Scene<'a>,
    registry: Registry,
    tracker: Role,
    settings: Settings,
}

impl<'a> Parts<'a> {
    fn start(scene: &'a Scene<'a>, settings: Settings) -> Result<Self> {
        let config = "tracker:\n  listen: 127.0.0.1:0\n  admin: 127.0.0.1:0\n";
        let tracker = Role::start(scene.eagle, "tracker", &scene.directory.join("tracker"), config)?;
        Ok(Self { scene, registry: scene.registry()?, tracker, settings })
    }

    /// A role with an empty disk.
    fn role(&self, role: &str, name: &str, seeders: &[SocketAddr], tracked: bool) -> Result<Role> {
        let directory = self.scene.directory.join(name);
        let mut config = common(self.registry.address(), self.settings);
        writeln!(config, "{role}:")?;
        if tracked {
            writeln!(config, "  trackers: [\"http://{}\"]", self.tracker.ready.listen)?;
        }
        if !seeders.is_empty() {
            let urls: Vec<String> = seeders.iter().map(|address| format!("\"http://{address}\"")).collect();
            // However slow the machine is, nobody gives up waiting for a seeder and turns to the registry.
            writeln!(config, "  seeders: [{}]\n  stall_timeout: 1m", urls.join(", "))?;
        }
        config.push_str(&node(&directory, self.settings));
        Role::start(self.scene.eagle, role, &directory, &config)
    }

    fn seeders(&self) -> Result<[Role; 2]> {
        Ok([self.role("seeder", "seeder-0", &[], true)?, self.role("seeder", "seeder-1", &[], true)?])
    }
}

pub(super) fn fetched_once(scene: &Scene<'_>) -> Result<()> {
    let parts = Parts::start(scene, Settings::default())?;
    let seeders = parts.seeders()?;
    let [a, b] = [seeders[0].ready.listen, seeders[1].ready.listen];
    let lists: [&[SocketAddr]; 4] = [&[a], &[b], &[a, b], &[b, a]];
    // One half hears from the tracker which seeders are alive, the other has nothing but its own list.
    let nodes = (0..8).map(|number| parts.role("proxy", &format!("node-{number}"), lists[number % 4], number >= 4));
    let nodes: Vec<Role> = nodes.collect::<Result<_>>()?;
    let pulls: Vec<_> = nodes[1..].iter().map(|node| || pull(node.ready.listen, scene.image)).collect();
    let skopeo = Skopeo::new(&scene.directory.join("skopeo"), Mirror::Eagle(nodes[0].ready.listen))?;
    let by_skopeo = || skopeo.pull().context("by skopeo");
    let mut tasks: Vec<&(dyn Fn() -> Result<()> + Sync)> = vec![&by_skopeo];
    for pull in &pulls {
        tasks.push(pull);
    }
    all_at_once(&tasks)?;
    skopeo.verify(scene.image)?;
    parts.registry.expect_each_once(scene.image.blobs())?;
    let mut followed = 0.0;
    for seeder in &seeders {
        followed += seeder.metric("eagle_seeder_followed_bytes_total", "")?;
    }
    ensure!(followed > 0.0, "both seeders were asked for the same blobs, and neither had any from the other");
    Ok(())
}

pub(super) fn holder_killed(scene: &Scene<'_>) -> Result<()> {
    let parts = Parts::start(scene, Settings { rate: RATE, ..Settings::default() })?;
    let [holder, heir] = parts.seeders()?;
    // The first alone is asked until it is gone; the second only by who never heard of the first.
    let one = parts.role("proxy", "node-0", &[holder.ready.listen, heir.ready.listen], false)?;
    let other = parts.role("proxy", "node-1", &[heir.ready.listen], false)?;
    let (half, holder, killed) = (scene.image.blob_bytes() / 2, Mutex::new(holder), AtomicBool::new(false));
    let skopeo = Skopeo::new(&scene.directory.join("skopeo"), Mirror::Eagle(other.ready.listen))?;
    let watched = || {
        let pulled = oci::pull(one.ready.listen, scene.image, |bytes| {
            if bytes >= half
                && !killed.swap(true, Ordering::SeqCst)
                && let Ok(mut holder) = holder.lock()
            {
                holder.kill();
            }
        });
        pulled.map(|_| ()).context("the node whose progress was watched")
    };
    let by_skopeo = || skopeo.pull().context("the node of the other seeder");
    let tasks: [&(dyn Fn() -> Result<()> + Sync); 2] = [&watched, &by_skopeo];
    all_at_once(&tasks)?;
    ensure!(killed.load(Ordering::SeqCst), "nothing was killed: the pull never saw its middle");
    skopeo.verify(scene.image)?;
    let fetched = parts.registry.accesses()?.blobs;
    for blob in scene.image.blobs() {
        let requests = fetched.get(&blob.digest).map_or(0, |fetched| fetched.requests);
        ensure!((1..=2).contains(&requests), "{} was asked for {requests} times: {fetched:?}", blob.digest);
    }
    Ok(())
}
