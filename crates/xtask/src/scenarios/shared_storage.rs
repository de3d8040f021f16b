//! Seeders that keep their blobs in an object store.

use std::{fmt::Write as _, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{
    Scene,
    pulls::{all_at_once, pull},
};
use crate::{
    cluster::{Role, Settings, common, node},
    process::wait_until,
    registry::Registry,
    runtimes::{Mirror, Runtime, Skopeo},
    s3::S3,
};

/// A blob goes into the bucket after it was served: some hundred MB on a busy machine.
const STORE_DEADLINE: Duration = Duration::from_secs(120);

/// A tracker, and a bucket for seeders that come and go.
struct Parts<'a> {
    scene: &'a Scene<'a>,
    registry: Registry,
    bucket: S3,
    tracker: Role,
}

impl<'a> Parts<'a> {
    fn start(scene: &'a Scene<'a>) -> Result<Self> {
        let registry = scene.registry()?;
        let bucket = S3::start(scene.s3_server, &scene.directory.join("s3"))?;
        let config = "tracker:\n  listen: 127.0.0.1:0\n  admin: 127.0.0.1:0\n";
        let tracker = Role::start(scene.eagle, "tracker", &scene.directory.join("tracker"), config)?;
        Ok(Self { scene, registry, bucket, tracker })
    }

    /// A role with an empty disk; `keys` are more of its section.
    fn role(&self, role: &str, name: &str, keys: &str) -> Result<Role> {
        let directory: PathBuf = self.scene.directory.join(name);
        let settings = Settings::default();
        let mut config = common(self.registry.address(), settings);
        writeln!(config, "{role}:\n  trackers: [\"http://{}\"]", self.tracker.ready.listen)?;
        config.push_str(keys);
        config.push_str(&node(&directory, settings));
        Role::start(self.scene.eagle, role, &directory, &config)
    }

    fn seeder(&self, name: &str) -> Result<Role> {
        self.role("seeder", name, &self.bucket.seeder_config())
    }

    fn proxy(&self, name: &str, seeder: SocketAddr) -> Result<Role> {
        // However slow the machine is, nobody gives up waiting for the seeder and turns to the registry.
        self.role("proxy", name, &format!("  seeders: [\"http://{seeder}\"]\n  stall_timeout: 1m\n"))
    }

    /// Waits until the whole image is in the bucket.
    fn stored(&self) -> Result<()> {
        wait_until("the image to be in the bucket", STORE_DEADLINE, || {
            Ok(self.scene.image.blobs().all(|blob| self.bucket.has(&blob.digest)).then_some(()))
        })
    }
}

pub(super) fn two_seeders(scene: &Scene<'_>) -> Result<()> {
    let parts = Parts::start(scene)?;
    let seeders = [parts.seeder("seeder-0")?, parts.seeder("seeder-1")?];
    let one = parts.proxy("node-0", seeders[0].ready.listen)?;
    let other = parts.proxy("node-1", seeders[1].ready.listen)?;
    let skopeo = Skopeo::new(&scene.directory.join("skopeo"), Mirror::Eagle(other.ready.listen))?;
    let tasks: [&(dyn Fn() -> Result<()> + Sync); 2] =
        [&|| pull(one.ready.listen, scene.image), &|| skopeo.pull().context("by the other seeder")];
    all_at_once(&tasks)?;
    skopeo.verify(scene.image)?;
    parts.registry.expect_each_once(scene.image.blobs())?;
    parts.stored()
}

pub(super) fn outlives_seeder(scene: &Scene<'_>) -> Result<()> {
    let mut parts = Parts::start(scene)?;
    let mut first = parts.seeder("seeder-0")?;
    let node = parts.proxy("node-0", first.ready.listen)?;
    pull(node.ready.listen, scene.image)?;
    parts.stored()?;
    parts.registry.expect_each_once(scene.image.blobs())?;
    first.kill();
    // Nobody else has the image: the node goes, too, and the tracker with what it knows.
    drop(node);
    parts.tracker.kill();
    parts.tracker.start_again()?;

    let second = parts.seeder("seeder-1")?;
    let node = parts.proxy("node-1", second.ready.listen)?;
    let skopeo = Skopeo::new(&scene.directory.join("skopeo"), Mirror::Eagle(node.ready.listen))?;
    skopeo.pull().context("from the bucket")?;
    skopeo.verify(scene.image)?;
    parts.registry.expect_each_once(scene.image.blobs()).context("the new seeder asked the registry for blobs")?;
    let read = second.metric("eagle_seeder_shared_read_bytes_total", "")?;
    let wanted = scene.image.blob_bytes();
    ensure!(read.to_bits() == (wanted as f64).to_bits(), "{read} bytes came from the bucket, the image has {wanted}");
    Ok(())
}
