//! Runtimes newer than those of this machine's Debian.

use anyhow::{Context, Result, ensure};

use serde_json::json;

use super::{
    Scene,
    configured::pull_from_hub,
    host::Host,
    private::{Parts, accounts, registries},
    private_runtimes::{ALICE, BOB, TOKEN_LIFETIME},
};
use crate::{
    cluster::{Cluster, OTHER_REGISTRY, Settings},
    hub::{Environment, Hub},
    newer::Programs,
    registry::{Registry, free_address},
    runtimes::{Asked, Containerd, Docker, Login, Podman, Runtime},
    token_server::TokenServer,
};

/// The scenarios of this file.
pub(crate) const NAMES: [&str; 2] = ["newer-runtimes", "private-newer-runtimes"];

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
    fn start(
        scene: &Scene<'_>,
        programs: &Programs,
        environment: Environment,
        name: &str,
        asked: Asked,
    ) -> Result<Self> {
        let directory = |runtime: &str| scene.directory.join(format!("{runtime}-{name}"));
        Ok(Self {
            docker: Docker::as_configured(&directory("docker"), programs, environment.clone())?,
            containerd: Containerd::as_configured(&directory("containerd"), programs, environment.clone(), asked)?,
            podman: Podman::as_configured(&directory("podman"), programs, environment)?,
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

    let newer = Newer::start(scene, &programs, hub.trust(), "a", Asked::Kubernetes)?;
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
    let newer = Newer::start(scene, &programs, hub.trust(), "b", Asked::Ctr)?;
    pull_from_hub(&newer.each(), &hub, scene.image)?;
    host.undo()
}

/// Each as alice, bob and nobody. There is no Docker Hub here: what is pulled came by way of the mirror.
pub(super) fn private(scene: &Scene<'_>) -> Result<()> {
    let server = TokenServer::start(TOKEN_LIFETIME, accounts())?;
    let auth = json!({ "auth": server.auth_section(scene.directory)? });
    let registry = Registry::start_at(&scene.directory.join("registry"), scene.store, free_address()?, auth)?;
    let parts = Parts::start(scene, "eagle", &registries(registry.address()), 1)?;
    let host = Host::administered(scene, &ETC)?;
    host.configure(parts.proxy(0), &["docker.io"])?;
    let programs = programs(scene, &host)?;
    let newer = Newer::start(scene, &programs, Vec::new(), "a", Asked::Kubernetes)?;
    let mirror = format!("{}/docker.io", parts.proxy(0));
    let log_in = |runtime: &dyn Runtime, login: Option<Login<'_>>| match runtime.name() {
        "podman" => newer.podman.log_in_to(&mirror, login),
        _ => runtime.log_in(login),
    };
    for runtime in [&newer.containerd as &dyn Runtime, &newer.podman] {
        let name = runtime.name();
        for (who, login) in [("bob", Some(BOB)), ("nobody", None)] {
            log_in(runtime, login)?;
            ensure!(runtime.pull().is_err(), "{who} pulled with {name}");
        }
        log_in(runtime, Some(ALICE))?;
        runtime.pull().with_context(|| format!("alice with {name}"))?;
        runtime.verify(scene.image).with_context(|| format!("{name} pulled something else"))?;
    }
    registry.expect_each_once(scene.image.blobs())?;
    // A login for the registry is shown to no mirror by docker with the containerd image store, nor by what CRI-O and
    // podman --creds have in common: they would go on to the registry itself.
    log_in(&newer.docker, Some(ALICE))?;
    ensure!(newer.docker.pull().is_err(), "docker showed alice's login for Docker Hub to the mirror");
    newer.podman.log_in_to(&mirror, None)?;
    ensure!(
        newer.podman.pull_with_secret(ALICE).is_err(),
        "podman showed the credentials for Docker Hub to the mirror"
    );
    parts.hold_none_of(&[ALICE, BOB].map(|login| login.password.to_owned()))
}
