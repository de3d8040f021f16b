//! Disk limits.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{Scene, pulls::pull};
use crate::{
    cluster::{Cluster, Settings},
    runtimes::{Mirror, Runtime, Skopeo},
    tree,
};

/// Between two looks at the disk. A layer arrives over hundreds of them.
const SAMPLE: Duration = Duration::from_millis(5);

pub(super) fn smaller_than_image(scene: &Scene<'_>) -> Result<()> {
    let largest = scene.image.largest().size;
    // Every layer fits, the largest with a little to spare, but not all of them together.
    pull_within(scene, largest + (scene.image.blob_bytes() - largest) / 2)
}

pub(super) fn smaller_than_blob(scene: &Scene<'_>) -> Result<()> {
    pull_within(scene, scene.image.largest().size / 2)
}

/// Pulls twice through a proxy with this limit while its disk use is watched.
fn pull_within(scene: &Scene<'_>, limit: u64) -> Result<()> {
    let registry = scene.registry()?;
    let settings = Settings { cache_limit: limit, ..Settings::default() };
    let cluster = Cluster::start(scene, registry.address(), settings)?;
    let skopeo = Skopeo::new(&scene.directory.join("skopeo"), Mirror::Eagle(cluster.proxy(0)))?;
    let done = AtomicBool::new(false);
    let data_dir = cluster.nodes[0].data_dir();
    let (most, samples) = thread::scope(|scope| {
        let watch = scope.spawn(|| watch(&data_dir, &done));
        // skopeo asks for several blobs at once, which together do not fit; then one after the other.
        let pulled = skopeo.pull().and_then(|()| pull(cluster.proxy(0), scene.image));
        done.store(true, Ordering::SeqCst);
        let watched = watch.join().map_err(|_| anyhow::anyhow!("the watch of the disk panicked"));
        pulled.and(watched)
    })
    .with_context(|| format!("with a cache of {limit} bytes for an image of {}", scene.image.blob_bytes()))?;
    skopeo.verify(scene.image)?;
    ensure!(samples >= 20, "the disk was looked at {samples} times only");
    ensure!(most <= limit, "{most} bytes on disk with a limit of {limit}");
    ensure!(most > 0, "nothing was ever cached");
    Ok(())
}

/// Looks at the disk until told to stop; the most that was used, and how often it looked.
fn watch(directory: &Path, done: &AtomicBool) -> (u64, u64) {
    let (mut most, mut samples) = (0, 0);
    while !done.load(Ordering::SeqCst) {
        most = most.max(tree::disk_use(directory));
        samples += 1;
        thread::sleep(SAMPLE);
    }
    (most, samples)
}
