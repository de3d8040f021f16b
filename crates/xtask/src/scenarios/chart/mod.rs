//! The chart's containers, as it describes them, in the image that its Dockerfile makes.

mod kubelet;

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use self::kubelet::{Node, build_image, check_image};
use super::{Scene, host::files};
use crate::{
    chart::{
        NAMESPACE, RELEASE, Tools, directory,
        manifest::{containers, find, init_containers, named},
    },
    http,
    process::{Finished, finish, succeed, wait_until},
    registry::Registry,
    rootfs,
    runtimes::{Containerd, Docker, Mirror, Runtime},
};

const DEADLINE: Duration = Duration::from_secs(60);
/// Ports of the chart: the namespace has them to itself.
const PROXY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 43002);
const ADMINS: [(&str, u16); 3] = [("tracker", 6970), ("seeder", 55009), ("proxy", 43003)];
/// As runtimes know Eagle's own image.
const OWN_IMAGE: &str = "eagle/eagle";
const TAG: &str = "e2e";

/// `systemctl` of the node: it writes down what it is asked, in a directory that the container may write to.
const SYSTEMCTL: &str = "#!/bin/sh\necho \"$@\" >> /var/lib/eagle/configure/asked\n";

pub(super) fn in_containers(scene: &Scene<'_>) -> Result<()> {
    let registry = scene.registry()?;
    let docker = Docker::start(&scene.directory.join("docker"), Mirror::Eagle(PROXY))?;
    let repository = format!("{}/{OWN_IMAGE}", registry.address());
    let program = scene.static_eagle.context("no program for the image")?;
    build_image(&docker, program, &scene.directory.join("image"), &format!("{repository}:{TAG}"))?;
    check_image(&docker, &scene.directory.join("image"), &format!("{repository}:{TAG}"))?;
    succeed(docker.command()?.args(["push", "--quiet", &format!("{repository}:{TAG}")]), DEADLINE)?;

    let objects = rendered(&registry, &repository)?;
    let root = node_root(scene)?;
    let before = host_files(&root)?;
    let node = Node {
        docker: &docker,
        objects: &objects,
        root: root.clone(),
        volumes: scene.directory.join("volumes"),
        // Of the second tracker too, at whose address nothing answers.
        names: [("tracker", 0), ("tracker", 1), ("seeder", 0)]
            .map(|(role, index)| format!("{RELEASE}-eagle-{role}-{index}.{RELEASE}-eagle-{role}.{NAMESPACE}.svc"))
            .to_vec(),
    };
    let workload = |kind: &str, role: &str| find(&objects, kind, &format!("{RELEASE}-eagle-{role}"));
    let proxy = workload("DaemonSet", "proxy")?;
    let mut running = Vec::new();
    for (workload, role) in [
        (workload("StatefulSet", "tracker")?, "tracker"),
        (workload("StatefulSet", "seeder")?, "seeder"),
        (proxy, "proxy"),
    ] {
        for container in init_containers(workload) {
            done(&node.run(workload, container)?)?;
        }
        running.push((role, node.start(workload, &containers(workload)[0])?));
    }
    let asked = fs::read_to_string(root.join("var/lib/eagle/configure/asked"))?;
    ensure!(asked == "restart containerd\n", "systemctl was asked {asked:?}");
    // A pod that starts again changes nothing, and restarts nothing.
    let configure = named(init_containers(proxy), "configure-runtime").context("no init container")?;
    done(&node.run(proxy, configure)?)?;
    ensure!(fs::read_to_string(root.join("var/lib/eagle/configure/asked"))? == asked, "systemctl was asked again");
    for (role, port) in ADMINS {
        let id = &running.iter().find(|(running, _)| *running == role).context("not started")?.1;
        ready(&node, role, port, id)?;
    }

    // containerd by the files that the init container wrote. It checks digests itself; other scenarios compare every file.
    let certs = root.join("etc/containerd/certs.d");
    let containerd = Containerd::configured(&scene.directory.join("containerd"), &certs, Vec::new())?;
    containerd.pull()?;
    registry.expect_each_once(scene.image.blobs())?;
    own_image(scene, &registry)?;
    metrics_are_clean(scene.directory)?;

    undone(&node, &root, &before)?;
    let ids: Vec<&str> = running.iter().map(|(_, id)| id.as_str()).collect();
    node.stop(&ids)
}

/// The chart as an administrator would install it, with Docker Hub at our registry.
fn rendered(registry: &Registry, repository: &str) -> Result<Vec<Value>> {
    let url = format!("http://{}", registry.address());
    let small = "config.min_free=16MiB";
    Tools::ready()?.objects(
        &directory(),
        None,
        &[
            &format!("image.repository={repository}"),
            &format!("image.tag={TAG}"),
            &format!("registries[0].name=docker.io,registries[0].url={url}"),
            // What is tested does not depend on how full this machine's disk is.
            &format!("seeder.{small},proxy.{small}"),
            "seeder.config.cache_limit=4GiB,proxy.config.cache_limit=4GiB",
            "seeder.config.download_rate=unlimited,seeder.config.upload_rate=unlimited",
            "proxy.config.download_rate=unlimited,proxy.config.upload_rate=unlimited",
        ],
    )
}

/// The root of a node with containerd as Debian installs it, and just enough programs for its `systemctl`.
fn node_root(scene: &Scene<'_>) -> Result<PathBuf> {
    let root = scene.directory.join("node");
    rootfs::add_program(&root, Path::new("/bin/sh"), "/bin/sh")?;
    let write = |path: &str, text: &str| -> Result<()> {
        let path = root.join(path);
        fs::create_dir_all(path.parent().context("no parent")?)?;
        Ok(fs::write(path, text)?)
    };
    write("etc/containerd/config.toml", "version = 2\n# by hand\n")?;
    write("usr/bin/systemctl", SYSTEMCTL)?;
    succeed(Command::new("chmod").arg("755").arg(root.join("usr/bin/systemctl")), DEADLINE)?;
    // What the kubelet makes for the mounts, and so is there from then on.
    fs::create_dir_all(root.join("var/lib/eagle/configure"))?;
    Ok(root)
}

/// The files of the node that the runtime reads.
fn host_files(root: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    files(&root.join("etc"))
}

fn done(finished: &Finished) -> Result<()> {
    ensure!(finished.status.success(), "{}{}", finished.stdout, finished.stderr);
    Ok(())
}

fn ready(node: &Node<'_>, role: &str, port: u16, id: &str) -> Result<()> {
    let waited = wait_until(&format!("the {role}'s container to be ready"), DEADLINE, || {
        ensure!(node.is_running(id)?, "the {role}'s container has ended");
        let answer = http::request(admin(port), "GET", "/readyz", &[]);
        Ok(answer.ok().filter(|answer| answer.status == 200).map(drop))
    });
    waited.with_context(|| node.log(id).unwrap_or_default())
}

fn admin(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Eagle's own image, pulled through Eagle.
fn own_image(scene: &Scene<'_>, registry: &Registry) -> Result<()> {
    let before = registry.accesses()?.blob_requests();
    let copy = |number: u32| {
        let layout = scene.directory.join(format!("own-{number}"));
        let mut copy = Command::new("skopeo");
        copy.args(["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]);
        copy.arg(format!("docker://{PROXY}/docker.io/{OWN_IMAGE}:{TAG}")).arg(format!("dir:{}", layout.display()));
        succeed(&mut copy, DEADLINE).map(|_| layout)
    };
    let layout = copy(1)?;
    let manifest: Value = serde_json::from_slice(&fs::read(layout.join("manifest.json"))?)?;
    let blobs = manifest["layers"].as_array().context("no layers")?.len() + 1;
    copy(2)?;
    let asked = registry.accesses()?.blob_requests() - before;
    ensure!(asked == u64::try_from(blobs)?, "{blobs} blobs, pulled twice, were asked for {asked} times");
    Ok(())
}

/// `promtool check metrics` finds nothing in the metrics of roles that are at work. `docs/metrics.md` lists them, and the chart's checks
/// hold dashboard and alerts to that page.
fn metrics_are_clean(directory: &Path) -> Result<()> {
    for (role, port) in ADMINS {
        let text = http::request(admin(port), "GET", "/metrics", &[])?.bytes()?;
        let file = directory.join(format!("{role}-metrics.txt"));
        fs::write(&file, &text)?;
        let checked = finish(Command::new("sh").args(["-c", "promtool check metrics < $0"]).arg(&file), DEADLINE)?;
        let printed = checked.stdout + &checked.stderr;
        ensure!(checked.status.success() && printed.is_empty(), "of a {role}: {printed}");
        ensure!(text.len() > 1000, "a {role} has hardly any metrics");
    }
    Ok(())
}

/// What the hook of `helm uninstall` does on a node, and that it waits until it is told to end.
fn undone(node: &Node<'_>, root: &Path, before: &BTreeMap<PathBuf, Vec<u8>>) -> Result<()> {
    ensure!(&host_files(root)? != before, "nothing was configured");
    let undo = find(node.objects, "DaemonSet", &format!("{RELEASE}-eagle-undo"))?;
    let back = named(init_containers(undo), "undo").context("no container that undoes")?;
    // Somebody has changed a file by hand: it is kept, and the hook says so.
    let config = root.join("etc/containerd/config.toml");
    let written = fs::read_to_string(&config)?;
    fs::write(&config, format!("{written}# changed\n"))?;
    let kept = node.run(undo, back)?;
    let told = kept.stderr.contains("somebody has changed it") && kept.stderr.contains("config.toml");
    ensure!(!kept.status.success() && told, "of a file that was changed: {kept:?}");
    ensure!(fs::read_to_string(&config)?.ends_with("# changed\n"), "it was not kept");
    fs::write(&config, written)?;
    done(&node.run(undo, back)?)?;
    ensure!(&host_files(root)? == before, "not every file is as it was");
    let id = node.start(undo, &containers(undo)[0])?;
    wait_until("the container that waits", DEADLINE, || Ok(node.log(&id)?.contains("nothing to undo").then_some(())))?;
    ensure!(node.is_running(&id)?, "it did not stay: {}", node.log(&id)?);
    node.stop(&[&id])
}
