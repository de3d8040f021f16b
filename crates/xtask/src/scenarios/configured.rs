//! Runtimes that `eagle configure` has pointed at a proxy, and what becomes of them when that proxy is gone.

use anyhow::{Context, Result, ensure};

use super::{Scene, host::Host};
use crate::{
    cluster::{Cluster, Settings},
    hub::Hub,
    image::Image,
    runtimes::{Containerd, Docker, Podman, Runtime},
};

/// What the administrator has set.
const ETC: [(&str, &str); 4] = [
    ("docker/daemon.json", "{\n    \"max-concurrent-downloads\": 4,\n    \"debug\": false\n}\n"),
    ("containerd/config.toml", "version = 2\n# by hand\n"),
    ("containers/registries.conf", "unqualified-search-registries = [\"docker.io\"]\n"),
    ("containers/policy.json", "{\"default\":[{\"type\":\"insecureAcceptAnything\"}]}"),
];

pub(super) fn configured(scene: &Scene<'_>) -> Result<()> {
    let registry = scene.registry()?;
    let hub = Hub::start(&scene.directory.join("hub"), scene.store)?;
    let mut cluster = Cluster::start(scene, registry.address(), Settings::default())?;
    let host = Host::administered(scene, &ETC)?;
    host.configure(cluster.proxy(0), &[])?;

    for runtime in start(scene, &host, &hub, "a")? {
        runtime.pull().with_context(|| format!("{}, configured", runtime.name()))?;
        runtime.verify(scene.image).with_context(|| format!("{} pulled something else", runtime.name()))?;
    }
    registry.expect_each_once(scene.image.blobs())?;
    let asked = hub.accesses()?;
    ensure!(asked.blob_requests() == 0, "with Eagle there, Docker Hub was asked for blobs: {asked:?}");

    cluster.nodes[0].kill();
    let runtimes = start(scene, &host, &hub, "b")?;
    pull_from_hub(&runtimes.each_ref().map(|runtime| &**runtime), &hub, scene.image)?;
    for runtime in &runtimes {
        runtime.verify(scene.image).with_context(|| format!("{} pulled something else", runtime.name()))?;
    }
    // These fetch every blob once and whole.
    let asked = hub.accesses()?;
    let pulls = u64::try_from(runtimes.len())?;
    ensure!(asked.blob_bytes() == pulls * scene.image.blob_bytes(), "Docker Hub has sent {asked:?}");
    host.undo()
}

/// Pulls with each of these; all of it has to come from Docker Hub.
pub(super) fn pull_from_hub(runtimes: &[&dyn Runtime], hub: &Hub, image: &Image) -> Result<()> {
    for runtime in runtimes {
        let before = hub.accesses()?.blob_bytes();
        runtime.pull().with_context(|| format!("{}, from Docker Hub", runtime.name()))?;
        let asked = hub.accesses()?;
        // More where it breaks off the parts that it has enough of.
        ensure!(asked.blob_bytes() - before >= image.blob_bytes(), "after {}, it has sent {asked:?}", runtime.name());
    }
    Ok(())
}

/// docker, containerd and podman with nothing in them yet, on the files of the host. `name` is short, for podman takes
/// no long path.
fn start(scene: &Scene<'_>, host: &Host<'_>, hub: &Hub, name: &str) -> Result<[Box<dyn Runtime>; 3]> {
    let directory = |runtime: &str| scene.directory.join(format!("{runtime}-{name}"));
    let docker = Docker::configured(&directory("docker"), &host.etc("docker/daemon.json"), hub.trust())?;
    let containerd = Containerd::configured(&directory("containerd"), &host.etc("containerd/certs.d"), hub.trust())?;
    let podman = Podman::configured(&directory("podman"), &host.etc("containers"), hub.trust())?;
    Ok([Box::new(docker), Box::new(containerd), Box::new(podman)])
}
