//! Daemons that reach registries by way of `HTTPS_PROXY`.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::Scene;
use crate::{
    cluster::{Cluster, Role, Settings, node},
    http,
    hub::Hub,
    process::{finish, succeed},
    registry::{Registry, free_address},
    runtimes::{Docker, Runtime, Skopeo},
};

const DEADLINE: Duration = Duration::from_secs(20);
/// Of the range for documentation (RFC 5737).
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// dockerd and skopeo trust nobody but Eagle's own authority, and no name resolves: what they get came from the proxy.
pub(super) fn intercepted(scene: &Scene<'_>) -> Result<()> {
    let registry = scene.registry()?;
    let mut cluster = Cluster::start(scene, registry.address(), Settings::default())?;
    let authority = scene.directory.join("authority");
    let init = ["ca", "init", "--registry", "docker.io", "--dir"];
    succeed(Command::new(scene.eagle).args(init).arg(&authority), DEADLINE)?;
    cluster.configure_node(0, &format!("  forward:\n    ca_dir: {}\n", authority.display()))?;
    let proxy = cluster.proxy(0);
    let environment = vec![
        ("SSL_CERT_FILE", authority.join("ca.pem").display().to_string()),
        ("HTTPS_PROXY", format!("http://{proxy}")),
        ("HTTP_PROXY", format!("http://{proxy}")),
    ];
    let config = scene.directory.join("daemon.json");
    fs::write(&config, "{}")?;
    let docker = Docker::configured(&scene.directory.join("docker"), &config, environment.clone())?;
    let skopeo = Skopeo::direct(&scene.directory.join("skopeo"), environment)?;
    let runtimes: [&dyn Runtime; 2] = [&docker, &skopeo];
    for runtime in runtimes {
        runtime.pull().with_context(|| format!("{} by way of the forward proxy", runtime.name()))?;
        runtime.verify(scene.image).with_context(|| format!("{} pulled something else", runtime.name()))?;
    }
    registry.expect_each_once(scene.image.blobs())?;
    for target in ["evil.example:443", "127.0.0.1:22", "registry-1.docker.io:25"] {
        let status = http::request(proxy, "CONNECT", target, &[])?.status;
        ensure!(status == 403, "CONNECT {target}: {status}");
    }
    Ok(())
}

/// A registry at an address outside 127.0.0.0/8, which daemons do not use a proxy for, and without TLS.
pub(super) fn plain(scene: &Scene<'_>) -> Result<()> {
    // In this namespace the address is nobody else's.
    let _ = finish(Command::new("ip").args(["address", "add", &format!("{OUTSIDE}/32"), "dev", "lo"]), DEADLINE)?;
    let address = SocketAddr::from((OUTSIDE, free_address()?.port()));
    let registry = Registry::start_at(&scene.directory.join("registry"), scene.store, address, json!({}))?;
    let ports = "  listen: 127.0.0.1:0\n  admin: 127.0.0.1:0\n";
    let tracker = Role::start(scene.eagle, "tracker", &scene.directory.join("tracker"), &format!("tracker:\n{ports}"))?;
    let shared = format!("registries:\n  - name: {address}\n    url: http://{address}\n");
    let start = |role: &str, more: &str| -> Result<Role> {
        let directory = scene.directory.join(role);
        let trackers = format!("  trackers: [\"http://{}\"]\n", tracker.ready.listen);
        let config = format!("{shared}{role}:\n{trackers}{more}{}", node(&directory, Settings::default()));
        Role::start(scene.eagle, role, &directory, &config)
    };
    let seeder = start("seeder", "")?;
    let proxy = start("proxy", &format!("  seeders: [\"http://{}\"]\n", seeder.ready.listen))?;
    let config = scene.directory.join("daemon.json");
    fs::write(&config, json!({ "insecure-registries": [address.to_string()] }).to_string())?;
    let environment = vec![("HTTP_PROXY", format!("http://{}", proxy.ready.listen))];
    let docker = Docker::configured(&scene.directory.join("docker"), &config, environment)?.of_registry(address);
    docker.pull().context("docker by way of HTTP_PROXY")?;
    docker.verify(scene.image)?;
    registry.expect_each_once(scene.image.blobs())?;
    docker.remove()?;
    docker.pull().context("docker, the second time")?;
    registry.expect_each_once(scene.image.blobs())
}

/// Without an authority the proxy sees nothing of what goes through, and goes nowhere else.
pub(super) fn tunnelled(scene: &Scene<'_>) -> Result<()> {
    let registry = scene.registry()?;
    let hub = Hub::start(&scene.directory.join("hub"), scene.store)?;
    let cluster = Cluster::start(scene, registry.address(), Settings::default())?;
    let mut environment = hub.trust();
    environment.push(("HTTPS_PROXY", format!("http://{}", cluster.proxy(0))));
    let skopeo = Skopeo::direct(&scene.directory.join("skopeo"), environment)?;
    skopeo.pull()?;
    skopeo.verify(scene.image)?;
    let (through, own) = (hub.accesses()?, registry.accesses()?);
    ensure!(through.blob_bytes() == scene.image.blob_bytes(), "through the tunnel: {through:?}");
    ensure!(own.blob_requests() == 0, "Eagle itself asked for blobs: {own:?}");
    let connects = cluster.nodes[0].metric("eagle_proxy_requests_total", "kind=\"connect\"")?;
    ensure!(connects > 0.0, "skopeo did not use the proxy");
    Ok(())
}
