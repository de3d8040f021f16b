//! What a node has cached, and what can be done about it.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Scene, pulls::pull};
use crate::{
    cluster::{Cluster, Role, Settings},
    http,
    image::{REPOSITORY, TAG},
    process::{Finished, finish, wait_until},
};

/// Verifying reads a few hundred MB in a debug build; trackers hear of a removal within a second or so.
const DEADLINE: Duration = Duration::from_secs(120);

pub(super) fn cache(scene: &Scene<'_>) -> Result<()> {
    let registry = scene.registry()?;
    let mut cluster = Cluster::start(scene, registry.address(), Settings { keyed: false, ..Settings::default() })?;
    let name = format!("docker.io/{REPOSITORY}:{TAG}");
    let all = u64::try_from(scene.image.blobs().count())?;
    let largest = scene.image.largest();
    pull(cluster.proxy(0), scene.image)?;
    for role in [&cluster.nodes[0], &cluster.seeder] {
        let image = listed(scene, role, &name)?;
        ensure!(image["blobs"] == all && image["present"] == all && image["pinned"] == false, "{image:#}");
    }

    // A pin survives a restart, and keeps the image from being removed by mistake.
    succeeds(eagle_cache(scene, &cluster.nodes[0], &["pin", &name])?)?;
    cluster.nodes[0].stop()?;
    cluster.nodes[0].start_again()?;
    let node = &cluster.nodes[0];
    ensure!(listed(scene, node, &name)?["pinned"] == true, "the pin is gone after a restart");
    let refused = eagle_cache(scene, node, &["rm", &name])?;
    ensure!(refused.status.code() == Some(1) && refused.stderr.contains("pinned"), "{}", refused.stderr);
    succeeds(eagle_cache(scene, node, &["unpin", &name])?)?;

    // What is corrupt on the disk is found and removed, and the next pull has it again.
    succeeds(eagle_cache(scene, node, &["verify", &name])?)?;
    let file = content(&node.data_dir(), &largest.digest)?.context("the largest layer is not on the disk")?;
    OpenOptions::new().write(true).open(&file)?.write_all_at(b"eagle", largest.size / 2)?;
    let found = eagle_cache(scene, node, &["verify"])?;
    ensure!(found.status.code() == Some(1), "verify ended with {}: {}", found.status, found.stdout);
    let corrupt: Vec<&str> = found.stdout.lines().filter(|line| line.contains("corrupt")).collect();
    ensure!(corrupt.len() == 1 && corrupt[0].starts_with(&largest.digest), "{}", found.stdout);
    pull(cluster.proxy(0), scene.image).context("after a corrupt blob was removed")?;

    // Removal frees the disk, and the tracker does not name this node any more.
    let swarm = format!("/v1/swarms/{}", largest.digest);
    wait_until("the tracker to know two owners", DEADLINE, || Ok((owners(&cluster, &swarm)? == 2).then_some(())))?;
    succeeds(eagle_cache(scene, &cluster.nodes[0], &["rm", &name])?)?;
    ensure!(content(&cluster.nodes[0].data_dir(), &largest.digest)?.is_none(), "the layer is still on the disk");
    wait_until("the tracker to know one owner", DEADLINE, || Ok((owners(&cluster, &swarm)? == 1).then_some(())))?;
    let unknown = eagle_cache(scene, &cluster.nodes[0], &["inspect", &name])?;
    ensure!(unknown.status.code() == Some(1), "inspect of a removed image ended with {}", unknown.status);
    let senseless = eagle_cache(scene, &cluster.nodes[0], &["rm", "../../etc/passwd"])?;
    ensure!(senseless.status.code() == Some(64), "a name that is none ended with {}", senseless.status);

    bad_requests(&cluster.nodes[0])?;
    ensure!(http::request(cluster.tracker.ready.admin, "GET", "/cache", &[])?.status == 404, "a tracker has a cache");
    // The seeder still has it, so the registry is not asked for it again.
    pull(cluster.proxy(0), scene.image).context("after the image was removed")?;
    registry.expect_each_once(scene.image.blobs())
}

/// What nobody should send to the admin address, and what comes back.
fn bad_requests(node: &Role) -> Result<()> {
    let long = format!("/cache/entry?name={}", "a".repeat(4000));
    for (method, target, status) in [
        ("POST", "/cache", 405),
        ("GET", "/cache/pin?name=debian", 405),
        ("GET", "/cache/verify?name=debian", 405),
        ("GET", "/cache/../status", 404),
        ("GET", "/cache/entry", 400),
        ("GET", "/cache/entry?name=", 400),
        ("GET", "/cache/entry?name=..%2F..%2Fetc%2Fpasswd", 400),
        ("GET", "/cache/entry?name=a%0d%0aHost:%20b", 400),
        ("GET", "/cache/entry?name=%ff%00", 400),
        ("GET", "/cache/entry?name=a&name=b", 400),
        ("DELETE", "/cache/entry?name=sha256:zz", 400),
        ("DELETE", "/cache/entry?name=no/such:image", 404),
        ("PUT", "/cache/pin?name=no/such:image", 404),
        ("POST", "/cache/verify?name=debian", 400),
        ("GET", &long, 414),
    ] {
        let response = http::request(node.ready.admin, method, target, &[])?;
        let found = response.status;
        let shown: String = target.chars().take(60).collect();
        ensure!(found == status, "{method} {shown} is answered {found} instead of {status}");
        let document: Value =
            serde_json::from_slice(&response.bytes()?).with_context(|| format!("{method} {shown}"))?;
        ensure!(document["errors"][0]["message"].is_string(), "{method} {shown}: {document}");
    }
    Ok(())
}

fn eagle_cache(scene: &Scene<'_>, role: &Role, arguments: &[&str]) -> Result<Finished> {
    let mut command = Command::new(scene.eagle);
    command.args(["cache", "--admin"]).arg(role.ready.admin.to_string()).args(arguments);
    finish(&mut command, DEADLINE)
}

fn succeeds(finished: Finished) -> Result<String> {
    ensure!(finished.status.success(), "eagle cache ended with {}: {}", finished.status, finished.stderr);
    Ok(finished.stdout)
}

/// What `eagle cache ls` says of an image.
fn listed(scene: &Scene<'_>, role: &Role, name: &str) -> Result<Value> {
    let listing: Value = serde_json::from_str(&succeeds(eagle_cache(scene, role, &["ls", "--json"])?)?)?;
    let images = listing["images"].as_array().context("no images in the list")?;
    let image = images.iter().find(|image| image["image"] == name);
    Ok(image.with_context(|| format!("{name} is not in {listing:#}"))?.clone())
}

/// How many nodes have all of a blob, as the tracker knows.
pub(super) fn owners(cluster: &Cluster, swarm: &str) -> Result<u64> {
    let response = http::request(cluster.tracker.ready.listen, "GET", swarm, &[])?;
    let swarm: Value = serde_json::from_slice(&response.bytes()?)?;
    Ok(swarm["complete"].as_u64().unwrap_or(0))
}

/// The file with the content of a blob.
pub(super) fn content(directory: &Path, digest: &str) -> Result<Option<PathBuf>> {
    let hex = digest.trim_start_matches("sha256:");
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            if let Some(found) = content(&path, digest)? {
                return Ok(Some(found));
            }
        } else if path.ends_with("data") && path.display().to_string().contains(&hex[8..]) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}
