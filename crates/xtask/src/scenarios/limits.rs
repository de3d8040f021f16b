//! Disk limits.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{Scene, cache::content, disk_faults::mount, pulls::pull};
use crate::{
    cluster::{Cluster, MIN_FREE, Settings},
    process::wait_until,
    runtimes::{Mirror, Runtime, Skopeo},
    tree,
};

/// Between two looks at the disk. A layer arrives over hundreds of them.
const SAMPLE: Duration = Duration::from_millis(5);

/// What the records beside the content of an image may take of what is to be left free, bytes: they are a few KiB a blob.
const RECORDS: u64 = 256 << 10;
/// A proxy looks at its file system every 5 s.
const DEADLINE: Duration = Duration::from_secs(60);

pub(super) fn smaller_than_image(scene: &Scene<'_>) -> Result<()> {
    let largest = scene.image.largest().size;
    // Every layer fits, the largest with a little to spare, but not all of them together.
    pull_within(scene, largest + (scene.image.blob_bytes() - largest) / 2)
}

pub(super) fn smaller_than_blob(scene: &Scene<'_>) -> Result<()> {
    pull_within(scene, scene.image.largest().size / 2)
}

/// A file system of a known size, which others fill meanwhile. What is free is what the kernel says, not what Eagle says.
pub(super) fn minimum_free(scene: &Scene<'_>) -> Result<()> {
    let registry = scene.registry()?;
    let mut cluster = Cluster::start(scene, registry.address(), Settings { nodes: 0, ..Settings::default() })?;
    let disk = scene.directory.join("eagle/node-0/data");
    fs::create_dir_all(&disk)?;
    // All of the image fits, with once more what is to be left.
    let size = scene.image.blob_bytes() + 2 * MIN_FREE;
    mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], &disk)?;
    let node = cluster.add_node()?;
    let all_kept = || -> Result<bool> {
        let kept: Result<Vec<_>> = scene.image.blobs().map(|blob| content(&disk, &blob.digest)).collect();
        Ok(kept?.iter().all(Option::is_some))
    };
    pull_leaving(scene, &cluster, &disk).context("with room for all")?;
    ensure!(all_kept()?, "the image fits and is not kept");

    let filler = disk.join("filler");
    let length = free(&disk)?.checked_sub(MIN_FREE / 2).context("less is free than was left")?;
    fs::write(&filler, vec![0; usize::try_from(length)?])?;
    ensure!(free(&disk)? < MIN_FREE, "the file of others is too small");
    wait_until("the minimum to be free again", DEADLINE, || Ok((free(&disk)? >= MIN_FREE).then_some(())))?;
    ensure!(cluster.nodes[node].metric("eagle_proxy_cache_evictions_total", "")? > 0.0, "nothing was evicted");
    pull_leaving(scene, &cluster, &disk).context("with less room than the image needs")?;
    ensure!(cluster.nodes[node].metric("eagle_proxy_cache_blobs", "")? > 0.0, "nothing is kept");
    ensure!(!all_kept()?, "more is kept than there is room for");

    fs::remove_file(&filler)?;
    pull_leaving(scene, &cluster, &disk).context("with room again")?;
    ensure!(all_kept()?, "the image fits again and is not kept");
    cluster.nodes[node].stop()
}

/// Pulls through the first proxy, which may never leave less free than it is to.
fn pull_leaving(scene: &Scene<'_>, cluster: &Cluster, disk: &Path) -> Result<()> {
    let done = AtomicBool::new(false);
    // What cannot be asked counts as nothing free.
    let missing = || MIN_FREE.saturating_sub(free(disk).unwrap_or(0));
    let (most, samples) = thread::scope(|scope| {
        let watch = scope.spawn(|| watch(missing, &done));
        let pulled = pull(cluster.proxy(0), scene.image);
        done.store(true, Ordering::SeqCst);
        let watched = watch.join().map_err(|_| anyhow::anyhow!("the watch of the disk panicked"));
        pulled.and(watched)
    })?;
    ensure!(samples >= 20, "the disk was looked at {samples} times only");
    ensure!(most <= RECORDS, "{most} bytes were missing of the {MIN_FREE} that are to be free");
    Ok(())
}

/// What is free for programs without privileges, as the kernel has it.
fn free(directory: &Path) -> Result<u64> {
    let space = rustix::fs::statvfs(directory)?;
    Ok(space.f_bavail * space.f_frsize)
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
        let watch = scope.spawn(|| watch(|| tree::disk_use(&data_dir), &done));
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

/// Looks at the disk until told to stop; the most that was found, and how often it looked.
fn watch(look: impl Fn() -> u64, done: &AtomicBool) -> (u64, u64) {
    let (mut most, mut samples) = (0, 0);
    while !done.load(Ordering::SeqCst) {
        most = most.max(look());
        samples += 1;
        thread::sleep(SAMPLE);
    }
    (most, samples)
}
