//! Images that are there before anybody pulls them.

use std::{process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Scene, pulls::pull};
use crate::{
    cluster::{Cluster, Role, Settings},
    http,
    image::{REPOSITORY, TAG},
    process::finish,
    runtimes::{Mirror, Runtime, Skopeo},
};

/// Nodes hear of work within some seconds, and fetch a few hundred MB on a busy machine.
const DEADLINE: Duration = Duration::from_secs(180);

pub(super) fn preheat(scene: &Scene<'_>) -> Result<()> {
    let mut registry = scene.registry()?;
    let mut cluster = Cluster::start(scene, registry.address(), Settings { nodes: 2, ..Settings::default() })?;
    let job = eagle_preheat(scene, &cluster.seeder, &["--nodes", "all", &format!("{REPOSITORY}:{TAG}")])?;
    registry.expect_each_once(scene.image.blobs())?;
    let told: Vec<&Value> = job["images"][0]["blobs"].as_array().context("no blobs in the report")?.iter().collect();
    for blob in scene.image.blobs() {
        let entry = told.iter().find(|entry| entry["digest"] == *blob.digest);
        let entry = entry.with_context(|| format!("{} is missing in {job:#}", blob.digest))?;
        ensure!(entry["state"] == "stored" && entry["size"] == blob.size && entry["source"] == "origin", "{entry:#}");
    }
    let nodes = job["node_reports"].as_array().context("no nodes in the report")?;
    let all = u64::try_from(scene.image.blobs().count())?;
    ensure!(nodes.len() == 2 && nodes.iter().all(|node| node["stored"] == all), "{job:#}");

    // Nothing but manifests is asked for from here on: neither at the registry nor at other nodes.
    let before: Vec<f64> = cluster.nodes.iter().map(from_elsewhere).collect::<Result<_>>()?;
    pull(cluster.proxy(0), scene.image)?;
    let skopeo = Skopeo::new(&scene.directory.join("skopeo"), Mirror::Eagle(cluster.proxy(1)))?;
    skopeo.pull()?;
    skopeo.verify(scene.image)?;
    let after: Vec<f64> = cluster.nodes.iter().map(from_elsewhere).collect::<Result<_>>()?;
    ensure!(before == after, "bytes from elsewhere before and after the pulls: {before:?}, {after:?}");
    registry.expect_each_once(scene.image.blobs())?;

    // Without the registry the report is there still, and the image can be warmed no more.
    registry.stop();
    cluster.seeder.stop()?;
    cluster.seeder.start_again()?;
    let id = job["id"].as_str().context("no id")?;
    let kept = get(&cluster.seeder, &format!("/v1/preheat/{id}"))?;
    ensure!(kept == job, "after a restart the job is {kept:#} instead of {job:#}");
    let failed = finish(&mut command(scene, &cluster.seeder, &["no/such:image"]), DEADLINE)?;
    ensure!(failed.status.code() == Some(1), "an image that cannot be had ends with {}", failed.status);
    Ok(())
}

/// Runs `eagle preheat --wait --json`, which has to succeed; the job.
fn eagle_preheat(scene: &Scene<'_>, seeder: &Role, arguments: &[&str]) -> Result<Value> {
    let output = finish(&mut command(scene, seeder, arguments), DEADLINE)?;
    let (printed, complaint) = (&output.stdout, &output.stderr);
    ensure!(output.status.success(), "eagle preheat ended with {}: {complaint}\n{printed}", output.status);
    serde_json::from_str(printed).with_context(|| format!("not JSON: {printed}"))
}

fn command(scene: &Scene<'_>, seeder: &Role, arguments: &[&str]) -> Command {
    let mut command = Command::new(scene.eagle);
    command.args(["preheat", "--wait", "--json", "--seeder"]).arg(format!("http://{}", seeder.ready.listen));
    command.args(arguments);
    command
}

fn get(role: &Role, path: &str) -> Result<Value> {
    let response = http::request(role.ready.listen, "GET", path, &[])?;
    ensure!(response.status == 200, "GET {path} is answered {}", response.status);
    Ok(serde_json::from_slice(&response.bytes()?)?)
}

/// Bytes of blobs that a node got from anywhere but its own cache.
fn from_elsewhere(node: &Role) -> Result<f64> {
    let mut sum = 0.0;
    for source in ["peer", "seeder", "origin"] {
        sum += node.metric("eagle_proxy_bytes_total", &format!("source=\"{source}\""))?;
    }
    Ok(sum)
}
