//! Runtimes that `eagle configure` has pointed at a proxy, and what becomes of them when that proxy is gone.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::Scene;
use crate::{
    cluster::{Cluster, Settings},
    hub::Hub,
    process::{Finished, finish, succeed},
    runtimes::{Containerd, Docker, Podman, Runtime},
};

const DEADLINE: Duration = Duration::from_secs(20);
const RUNTIMES: [&str; 4] = ["docker", "containerd", "podman", "crio"];

pub(super) fn configured(scene: &Scene<'_>) -> Result<()> {
    let registry = scene.registry()?;
    let hub = Hub::start(&scene.directory.join("hub"), scene.store)?;
    let mut cluster = Cluster::start(scene, registry.address(), Settings::default())?;
    let proxy = cluster.proxy(0);
    let root = administered(scene)?;
    let before = files(&root)?;
    for runtime in RUNTIMES {
        let missing = eagle(scene, &root, &[runtime, "--check"], proxy)?;
        ensure!(runtime == "crio" || missing.status.code() == Some(1), "{runtime} before: {missing:?}");
        done(&eagle(scene, &root, &[runtime], proxy)?, runtime)?;
        done(&eagle(scene, &root, &[runtime, "--check"], proxy)?, runtime)?;
    }

    for runtime in start(scene, &root, &hub, "a")? {
        runtime.pull().with_context(|| format!("{}, configured", runtime.name()))?;
        runtime.verify(scene.image).with_context(|| format!("{} pulled something else", runtime.name()))?;
    }
    registry.expect_each_once(scene.image.blobs())?;
    let asked = hub.accesses()?;
    ensure!(asked.blob_requests() == 0, "with Eagle there, Docker Hub was asked for blobs: {asked:?}");

    cluster.nodes[0].kill();
    for (number, runtime) in start(scene, &root, &hub, "b")?.into_iter().enumerate() {
        runtime.pull().with_context(|| format!("{}, with Eagle gone", runtime.name()))?;
        runtime.verify(scene.image).with_context(|| format!("{} pulled something else", runtime.name()))?;
        let pulls = u64::try_from(number)? + 1;
        let asked = hub.accesses()?;
        let bytes = asked.blob_bytes();
        ensure!(bytes == pulls * scene.image.blob_bytes(), "after {}, Docker Hub has sent {asked:?}", runtime.name());
    }

    for runtime in RUNTIMES {
        done(&undo(scene, &root, runtime)?, runtime)?;
    }
    ensure!(files(&root)? == before, "undoing did not bring the files back as they were");
    Ok(())
}

/// A root as an administrator may have left it.
fn administered(scene: &Scene<'_>) -> Result<PathBuf> {
    let root = scene.directory.join("host");
    let write = |path: &str, text: &str| -> Result<()> {
        let path = root.join(path);
        fs::create_dir_all(path.parent().context("no parent")?)?;
        Ok(fs::write(path, text)?)
    };
    write("etc/docker/daemon.json", "{\n    \"max-concurrent-downloads\": 4,\n    \"debug\": false\n}\n")?;
    write("etc/containerd/config.toml", "version = 2\n# by hand\n")?;
    write("etc/containers/registries.conf", "unqualified-search-registries = [\"docker.io\"]\n")?;
    write("etc/containers/policy.json", "{\"default\":[{\"type\":\"insecureAcceptAnything\"}]}")?;
    fs::create_dir_all(root.join("etc/containers/registries.conf.d"))?;
    fs::create_dir_all(root.join("var/lib"))?;
    Ok(root)
}

/// docker, containerd and podman with nothing in them yet, on the files below the root. `name` is short, for podman takes
/// no long path.
fn start(scene: &Scene<'_>, root: &Path, hub: &Hub, name: &str) -> Result<Vec<Box<dyn Runtime>>> {
    let directory = |runtime: &str| scene.directory.join(format!("{runtime}-{name}"));
    let etc = root.join("etc");
    let docker = Docker::configured(&directory("docker"), &etc.join("docker/daemon.json"), hub.trust())?;
    let containerd = Containerd::configured(&directory("containerd"), &etc.join("containerd/certs.d"), hub.trust())?;
    let podman = Podman::configured(&directory("podman"), &etc.join("containers"), hub.trust())?;
    Ok(vec![Box::new(docker), Box::new(containerd), Box::new(podman)])
}

fn eagle(scene: &Scene<'_>, root: &Path, arguments: &[&str], proxy: SocketAddr) -> Result<Finished> {
    let mut command = Command::new(scene.eagle);
    command.arg("configure").args(arguments).arg("--address").arg(proxy.to_string()).arg("--root").arg(root);
    finish(&mut command, DEADLINE)
}

fn undo(scene: &Scene<'_>, root: &Path, runtime: &str) -> Result<Finished> {
    finish(Command::new(scene.eagle).args(["configure", runtime, "--undo", "--root"]).arg(root), DEADLINE)
}

fn done(finished: &Finished, runtime: &str) -> Result<()> {
    ensure!(finished.status.success(), "eagle configure {runtime}: {finished:?}");
    Ok(())
}

/// Every file with its content, and every directory.
fn files(root: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let listed = succeed(Command::new("find").arg(root), DEADLINE)?;
    let mut files = BTreeMap::new();
    for path in listed.lines().map(PathBuf::from) {
        let content = if path.is_dir() { Vec::new() } else { fs::read(&path)? };
        files.insert(path, content);
    }
    Ok(files)
}
