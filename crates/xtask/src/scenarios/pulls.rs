//! Pulls that have to work, and what they may cost the registry.

use std::{fmt, net::SocketAddr, thread};

use anyhow::{Context, Result, ensure};

use super::Scene;
use crate::{
    cluster::{Cluster, Settings},
    image::Image,
    oci,
    runtimes::{Containerd, Docker, Mirror, Podman, Runtime, Skopeo},
};

pub(super) fn without_eagle(scene: &Scene<'_>) -> Result<()> {
    let registry = scene.registry()?;
    let mirror = Mirror::Registry(registry.address());
    let docker = Docker::start(&scene.directory.join("docker"), mirror)?;
    let containerd = Containerd::start(&scene.directory.join("containerd"), mirror)?;
    let podman = Podman::new(&scene.directory.join("podman"), mirror)?;
    let skopeo = Skopeo::new(&scene.directory.join("skopeo"), mirror)?;
    let runtimes: [&dyn Runtime; 4] = [&docker, &containerd, &podman, &skopeo];
    for (number, runtime) in runtimes.into_iter().enumerate() {
        runtime.pull().with_context(|| format!("{} cannot pull", runtime.name()))?;
        runtime.verify(scene.image).with_context(|| format!("{} pulled something else", runtime.name()))?;
        // Each fetches every blob once; with none between, the registry's log has to add up.
        let accesses = registry.accesses()?;
        let pulls = u64::try_from(number)? + 1;
        ensure!(
            accesses.blob_bytes() == pulls * scene.image.blob_bytes(),
            "after {} the registry's access log has {accesses:?}",
            runtime.name()
        );
    }
    starts_a_container(&docker)
}

pub(super) fn three_runtimes(scene: &Scene<'_>) -> Result<()> {
    let registry = scene.registry()?;
    let cluster = Cluster::start(scene, registry.address(), Settings { nodes: 3, ..Settings::default() })?;
    let docker = Docker::start(&scene.directory.join("docker"), Mirror::Eagle(cluster.proxy(0)))?;
    let containerd = Containerd::start(&scene.directory.join("containerd"), Mirror::Eagle(cluster.proxy(1)))?;
    let podman = Podman::new(&scene.directory.join("podman"), Mirror::Eagle(cluster.proxy(2)))?;
    let runtimes: [&dyn Runtime; 3] = [&docker, &containerd, &podman];
    all_at_once(&runtimes.map(|runtime| move || runtime.pull().with_context(|| runtime.name().to_owned())))?;
    registry.expect_each_once(scene.image.blobs())?;
    for runtime in runtimes {
        runtime.verify(scene.image).with_context(|| format!("{} pulled something else", runtime.name()))?;
    }
    starts_a_container(&docker)
}

pub(super) fn registry_stopped(scene: &Scene<'_>) -> Result<()> {
    let mut registry = scene.registry()?;
    let settings = Settings { nodes: 2, encryption: "none", ..Settings::default() };
    let mut cluster = Cluster::start(scene, registry.address(), settings)?;
    // Runtimes differ in the `Accept` headers that they send, and the answer of a registry may depend on them: what the
    // tag means when the registry is gone is known for those who asked before.
    let first = Skopeo::new(&scene.directory.join("first"), Mirror::Eagle(cluster.proxy(0)))?;
    let tasks: [&(dyn Fn() -> Result<()> + Sync); 2] = [&|| first.pull(), &|| pull(cluster.proxy(1), scene.image)];
    all_at_once(&tasks)?;
    registry.expect_each_once(scene.image.blobs())?;
    registry.stop();
    let further = cluster.add_node()?;
    let skopeo = Skopeo::new(&scene.directory.join("skopeo"), Mirror::Eagle(cluster.proxy(further)))?;
    skopeo.pull().context("with the registry stopped")?;
    skopeo.verify(scene.image)
}

pub(super) fn warm_restart(scene: &Scene<'_>) -> Result<()> {
    let registry = scene.registry()?;
    let mut cluster = Cluster::start(scene, registry.address(), Settings::default())?;
    pull(cluster.proxy(0), scene.image)?;
    registry.expect_each_once(scene.image.blobs())?;
    cluster.nodes[0].stop()?;
    cluster.nodes[0].start_again()?;
    let skopeo = Skopeo::new(&scene.directory.join("skopeo"), Mirror::Eagle(cluster.proxy(0)))?;
    skopeo.pull().context("after the restart")?;
    skopeo.verify(scene.image)?;
    let accesses = registry.accesses()?;
    ensure!(
        accesses.blob_requests() == u64::try_from(scene.image.blobs().count())?,
        "after the restart the registry was asked for blobs again: {accesses:?}"
    );
    // A fresh process counts from zero: all that the runtime got has to have come from the cache.
    let elsewhere = from_elsewhere(&cluster)?;
    ensure!(elsewhere == 0.0, "the restarted proxy fetched {elsewhere} bytes of blobs from elsewhere");
    Ok(())
}

/// Bytes of blobs that a node got from anywhere but its own cache.
fn from_elsewhere(cluster: &Cluster) -> Result<f64> {
    let mut sum = 0.0;
    for source in ["peer", "seeder", "origin"] {
        sum += cluster.nodes[0].metric("eagle_proxy_bytes_total", &format!("source=\"{source}\""))?;
    }
    Ok(sum)
}

/// The image is not only complete: it runs.
fn starts_a_container(docker: &Docker) -> Result<()> {
    let printed = docker.run(&["/bin/bash", "-c", "echo $((6 * 7)) from $(cat /etc/debian_version | wc -l)"])?;
    ensure!(printed.trim() == "42 from 1", "a container of the image printed {printed:?}");
    Ok(())
}

/// Pulls with the small client that checks every digest.
pub(super) fn pull(proxy: SocketAddr, image: &Image) -> Result<()> {
    oci::pull(proxy, image, |_| ()).map(|_| ())
}

/// Runs all of them in threads; the first error, once all have ended.
pub(super) fn all_at_once<F>(tasks: &[F]) -> Result<()>
where
    F: Fn() -> Result<()> + Sync,
{
    let outcomes: Vec<Result<()>> = thread::scope(|scope| {
        let threads: Vec<_> = tasks.iter().map(|task| scope.spawn(task)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| Err(panicked(&panic)))).collect()
    });
    outcomes.into_iter().collect()
}

fn panicked(panic: &dyn fmt::Debug) -> anyhow::Error {
    anyhow::anyhow!("a task panicked: {panic:?}")
}
