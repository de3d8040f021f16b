//! Runtimes newer than those of this machine's Debian.

use anyhow::{Context, Result, ensure};

use super::{Scene, configured::pull_from_hub, host::Host};
use crate::{
    cluster::{Cluster, OTHER_REGISTRY, Settings},
    hub::Hub,
    newer::Programs,
    runtimes::{Asked, Containerd, Docker, Podman, Runtime},
};

/// The scenarios of this file.
pub(crate) const NAMES: [&str; 1] = ["newer-runtimes"];

/// What the administrator has set. containerd fetches a layer in parts of 8 MiB, several at a time.
const ETC: [(&str, &str); 4] = [
    ("docker/daemon.json", "{\n  \"features\": {\"containerd-snapshotter\": true}\n}\n"),
    (
        "containerd/config.toml",
        "version = 3\n\n[plugins.'io.containerd.transfer.v1.local']\n  max_concurrent_downloads = 4\n  \
         concurrent_layer_fetch_buffer = 8388608\n",
    ),
    ("containers/registries.conf", "unqualified-search-registries = [\"docker.io\"]\n"),
    ("containers/policy.json", "{\"default\":[{\"type\":\"insecureAcceptAnything\"}]}"),
];

/// Runtimes with nothing in them yet, with what is in `/etc` where the programs are.
struct Newer {
    docker: Docker,
    containerd: Containerd,
    podman: Podman,
}

impl Newer {
    /// `name` is short, for podman takes no long path.
    fn start(scene: &Scene<'_>, programs: &Programs, hub: &Hub, name: &str, asked: Asked) -> Result<Self> {
        let directory = |runtime: &str| scene.directory.join(format!("{runtime}-{name}"));
        Ok(Self {
            docker: Docker::as_configured(&directory("docker"), programs, hub.trust())?,
            containerd: Containerd::as_configured(&directory("containerd"), programs, hub.trust(), asked)?,
            podman: Podman::as_configured(&directory("podman"), programs, hub.trust())?,
        })
    }

    /// containerd first, for it fetches in ranges what nobody has yet.
    fn each(&self) -> [&dyn Runtime; 3] {
        [&self.containerd, &self.docker, &self.podman]
    }
}

/// The host's configuration of runtimes in place of that of the programs.
fn programs(scene: &Scene<'_>, host: &Host<'_>) -> Result<Programs> {
    let etc = ["docker", "containerd", "containers"].map(|name| (host.etc(name), name));
    scene.newer_programs(&etc.each_ref().map(|(path, name)| (path.as_path(), *name)))
}

pub(super) fn configured(scene: &Scene<'_>) -> Result<()> {
    let registry = scene.registry()?;
    let hub = Hub::start(&scene.directory.join("hub"), scene.store)?;
    let mut cluster = Cluster::start(scene, registry.address(), Settings::default())?;
    let host = Host::administered(scene, &ETC)?;
    host.configure(cluster.proxy(0), &["docker.io", OTHER_REGISTRY])?;
    let programs = programs(scene, &host)?;

    let newer = Newer::start(scene, &programs, &hub, "a", Asked::Kubernetes)?;
    let by_digest = format!("@{}", scene.image.index.digest);
    for (number, runtime) in newer.each().into_iter().enumerate() {
        runtime.pull().with_context(|| format!("{}, by tag", runtime.name()))?;
        runtime.verify(scene.image).with_context(|| format!("{}, by tag", runtime.name()))?;
        if number == 0 {
            // Each layer but the small ones in several parts, each of which is closed when the next one's beginning comes.
            let parts = cluster.nodes[0].metric("eagle_proxy_requests_total", "kind=\"blob\"")?;
            let blobs = u32::try_from(scene.image.blobs().count())?;
            ensure!(parts > 2.0 * f64::from(blobs), "containerd asked for {blobs} blobs in {parts} parts");
            registry.expect_each_once(scene.image.blobs())?;
        }
        runtime.pull_by(&by_digest).with_context(|| format!("{}, by digest", runtime.name()))?;
    }
    registry.expect_each_once(scene.image.blobs())?;
    // Nobody but Eagle knows where this registry is.
    let other = newer.docker.of_registry(OTHER_REGISTRY);
    other.pull().with_context(|| format!("docker, from {OTHER_REGISTRY}"))?;
    let asked = hub.accesses()?;
    ensure!(asked.blob_requests() == 0, "with Eagle there, Docker Hub was asked for blobs: {asked:?}");

    cluster.nodes[0].kill();
    let newer = Newer::start(scene, &programs, &hub, "b", Asked::Ctr)?;
    pull_from_hub(&newer.each(), &hub, scene.image)?;
    host.undo()
}
