//! Images that are there before anybody pulls them.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Scene, pulls::pull};
use crate::{
    cluster::{Cluster, Role, Settings},
    http,
    image::{REPOSITORY, TAG},
    process::{finish, wait_until},
    registry::{Registry, free_address},
    runtimes::{Mirror, Podman, Runtime, Skopeo},
};

/// Nodes hear of work within some seconds, and fetch a few hundred MB on a busy machine.
const DEADLINE: Duration = Duration::from_secs(180);

pub(super) fn preheat(scene: &Scene<'_>) -> Result<()> {
    let mut registry = scene.registry()?;
    let mut cluster =
        Cluster::start(scene, registry.address(), Settings { nodes: 2, keyed: false, ..Settings::default() })?;
    let job = eagle_preheat(scene, &cluster.seeder, &["--nodes", "all", &format!("{REPOSITORY}:{TAG}")])?;
    registry.expect_each_once(scene.image.blobs())?;
    let told: Vec<&Value> = job["images"][0]["blobs"].as_array().context("no blobs in the report")?.iter().collect();
    for blob in scene.image.blobs() {
        let entry = told.iter().find(|entry| entry["digest"] == *blob.digest);
        let entry = entry.with_context(|| format!("{} is missing in {job:#}", blob.digest))?;
        ensure!(entry["state"] == "stored" && entry["size"] == blob.size && entry["source"] == "origin", "{entry:#}");
    }
    let nodes = job["node_reports"].as_array().context("no nodes in the report")?;
    // With the index and the manifest.
    let all = u64::try_from(scene.image.blobs().count())? + 2;
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
    // Nor is either needed on a node that is warm, by a runtime that has never asked it for anything.
    let podman = Podman::new(&scene.directory.join("podman"), Mirror::Eagle(cluster.proxy(1)))?;
    podman.pull().context("from a warm node, registry and seeder gone")?;
    podman.verify(scene.image)?;
    cluster.seeder.start_again()?;
    let id = job["id"].as_str().context("no id")?;
    let kept = get(&cluster.seeder, &format!("/v1/preheat/{id}"))?;
    ensure!(kept == job, "after a restart the job is {kept:#} instead of {job:#}");
    let failed = finish(&mut command(scene, &cluster.seeder, &["no/such:image"]), DEADLINE)?;
    ensure!(failed.status.code() == Some(1), "an image that cannot be had ends with {}", failed.status);
    Ok(())
}

pub(super) fn push_notification(scene: &Scene<'_>) -> Result<()> {
    // Each has to know the other's address before it starts.
    let address = free_address()?;
    let mut cluster = Cluster::start(scene, address, Settings { nodes: 0, keyed: false, ..Settings::default() })?;
    let rules = "preheat:\n  notification_secret: open sesame\n  rules:\n  - images: docker.io/library/*\n";
    cluster.configure_seeder(rules)?;
    cluster.add_node()?;
    let endpoint = |name: &str, secret: &str| {
        json!({
            "name": name,
            "url": format!("http://{}/v1/notifications?registry=docker.io", cluster.seeder.ready.listen),
            "headers": { "Authorization": [format!("Bearer {secret}")] },
            "timeout": "5s", "threshold": 3, "backoff": "1s",
        })
    };
    let endpoints = json!([endpoint("foreign", "open says me"), endpoint("eagle", "open sesame")]);
    let storage = scene.directory.join("storage");
    let sections = json!({ "notifications": { "endpoints": endpoints } });
    let registry = Registry::start_at(&scene.directory.join("registry"), &storage, address, sections)?;
    ensure!(jobs(&cluster.seeder)?.is_empty(), "nothing was pushed yet");
    registry.push(scene.image)?;
    let job = wait_until("the pushed image to be warm", DEADLINE, || {
        let job = jobs(&cluster.seeder)?.into_iter().find(|job| job["trigger"] == "notification");
        Ok(job.filter(|job| job["state"] != "queued" && job["state"] != "running"))
    })?;
    ensure!(job["state"] == "succeeded" && job["images"][0] == format!("docker.io/{REPOSITORY}:{TAG}"), "{job:#}");
    // A push asks whether blobs are there, by HEAD; what was fetched was fetched by the seeder.
    registry.expect_each_once(scene.image.blobs())?;
    let skopeo = Skopeo::new(&scene.directory.join("skopeo"), Mirror::Eagle(cluster.proxy(0)))?;
    skopeo.pull()?;
    skopeo.verify(scene.image)?;
    registry.expect_each_once(scene.image.blobs())?;
    ensure!(jobs(&cluster.seeder)?.len() == 1, "one push is one job: {:#?}", jobs(&cluster.seeder)?);
    wait_until("the wrong secret to be refused", DEADLINE, || {
        let refused = cluster.seeder.metric("eagle_seeder_preheat_notifications_total", "outcome=\"denied\"")?;
        Ok((refused > 0.0).then_some(()))
    })
}

pub(super) fn schedule(scene: &Scene<'_>) -> Result<()> {
    let registry = scene.registry()?;
    let mut cluster =
        Cluster::start(scene, registry.address(), Settings { nodes: 0, keyed: false, ..Settings::default() })?;
    let file = scene.directory.join("images.txt");
    fs::write(&file, format!("# what is rolled out next\n{REPOSITORY}:{TAG}\n"))?;
    let page = serve("no/such:image\n".to_owned())?;
    let lists = format!(
        "preheat:\n  schedule:\n  - cron: '*/2 * * * * *'\n    list: {}\n  - cron: '*/2 * * * * *'\n    list: http://{page}/list?key=sesame\n",
        file.display()
    );
    cluster.configure_seeder(&lists)?;
    cluster.add_node()?;
    let over = |list: &str, state: &str| {
        let found =
            |job: &Value| job["list"].as_str().is_some_and(|found| found.starts_with(list)) && job["state"] == state;
        wait_until(&format!("{list} to have {state}"), DEADLINE, || Ok(jobs(&cluster.seeder)?.into_iter().find(found)))
    };
    let from_file = over(&file.display().to_string(), "succeeded")?;
    ensure!(from_file["trigger"] == "schedule" && from_file["error"].is_null(), "{from_file:#}");
    let from_page = over(&format!("http://{page}/list"), "failed")?;
    ensure!(from_page["images"][0] == "docker.io/no/such:image", "{from_page:#}");
    ensure!(!from_page.to_string().contains("sesame"), "a key is shown: {from_page:#}");
    registry.expect_each_once(scene.image.blobs())?;
    let skopeo = Skopeo::new(&scene.directory.join("skopeo"), Mirror::Eagle(cluster.proxy(0)))?;
    skopeo.pull()?;
    skopeo.verify(scene.image)?;
    registry.expect_each_once(scene.image.blobs())
}

/// A server that gives everybody this text, for as long as the scenario lasts.
fn serve(text: String) -> Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // Who goes away early is no concern of this server.
            let _ = stream.read(&mut [0; 4096]);
            let _ =
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}", text.len());
        }
    });
    Ok(address)
}

/// The jobs that a seeder lists.
fn jobs(seeder: &Role) -> Result<Vec<Value>> {
    let list = get(seeder, "/v1/preheat")?;
    Ok(list["jobs"].as_array().context("no list of jobs")?.clone())
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
