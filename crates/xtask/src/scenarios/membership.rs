//! The cluster key, in clusters of processes.

use std::{
    fmt::Write as _,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{
    Scene,
    pulls::{all_at_once, pull},
};
use crate::{
    cluster::{CLUSTER_KEY, Cluster, Role, Settings, common, node},
    http,
    image::{REPOSITORY, TAG},
    oci,
    process::{finish, wait_until},
    runtimes::{Docker, Mirror, Runtime},
};

/// The key that the cluster changes to.
const NEXT_KEY: &str = "YW5kIHRoaXMgaXMgdGhlIG5leHQga2V5IG9mIHRoZW0=";

/// Slow enough that the key is changed on the way, which takes a few seconds.
const RATE: &str = "12MiB/s";

/// Roles look at the file every second.
const STEP_DEADLINE: Duration = Duration::from_secs(30);

/// Between two looks at how far a pull is.
const LOOK: Duration = Duration::from_millis(20);

/// How long a port may take to close on a stranger. Members have 5 s to say who they are.
const PATIENCE: Duration = Duration::from_secs(10);

/// All of it is there already.
const PREHEAT_DEADLINE: Duration = Duration::from_secs(60);

pub(super) fn strangers(scene: &Scene<'_>) -> Result<()> {
    let registry = scene.registry()?;
    let cluster = Cluster::start(scene, registry.address(), Settings { nodes: 2, ..Settings::default() })?;
    let stranger = |name: &str, membership: &str| {
        let directory = scene.directory.join(name);
        let mut config = common(registry.address(), Settings::default());
        writeln!(config, "cluster:\n  {membership}\nproxy:\n  origin_fallback: false")?;
        writeln!(config, "  trackers: [\"http://{}\"]", cluster.tracker.ready.listen)?;
        writeln!(config, "  seeders: [\"http://{}\"]", cluster.seeder.ready.listen)?;
        config.push_str(&node(&directory, Settings::default()));
        Role::start(scene.eagle, "proxy", &directory, &config)
    };
    let strangers = [stranger("other-key", &format!("key: {NEXT_KEY}"))?, stranger("no-key", "insecure: true")?];
    let refused = |role: &Role| {
        ensure!(pull(role.ready.listen, scene.image).is_err(), "a stranger pulled the image");
        Ok(())
    };
    let tasks: [&(dyn Fn() -> Result<()> + Sync); 4] = [
        &|| pull(cluster.proxy(0), scene.image).context("a member"),
        &|| pull(cluster.proxy(1), scene.image).context("the other member"),
        &|| refused(&strangers[0]),
        &|| refused(&strangers[1]),
    ];
    all_at_once(&tasks)?;
    // Now that the members have all of it there is most to be had.
    for stranger in &strangers {
        refused(stranger)?;
        let traffic = stranger.status()?["status"]["traffic_bytes"].clone();
        for source in ["peer", "seeder", "origin"] {
            ensure!(traffic[source] == 0, "a stranger got bytes of blobs: {traffic}");
        }
        ensure!(stranger.metric("eagle_proxy_peers_connected", "")? == 0.0, "a stranger has peers");
    }
    for role in cluster.nodes.iter().chain([&cluster.seeder]) {
        for port in [role.ready.p2p, role.ready.data].into_iter().flatten() {
            for words in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x13/multistream/1.0.0\n", &[0; 64]] {
                let answer = http::raw(port, words, PATIENCE)?;
                ensure!(answer.is_empty(), "{port} answers a stranger: {answer:?}");
            }
        }
    }
    for (role, path) in
        [(&cluster.tracker, "/v1/swarms"), (&cluster.tracker, "/v1/peers"), (&cluster.seeder, "/v1/blobs")]
    {
        let response = http::request(role.ready.listen, "GET", path, &[])?;
        ensure!(response.status == 403, "a stranger is answered {} at {path}", response.status);
        let said = String::from_utf8_lossy(&response.bytes()?).into_owned();
        ensure!(!said.contains("sha256") && !said.contains("12D3KooW"), "a stranger is told: {said}");
    }
    // The command of an administrator is a member if it holds the key.
    let preheat = |key: &[&str]| {
        let mut command = Command::new(scene.eagle);
        command.args(["preheat", "--wait", "--seeder"]).arg(format!("http://{}", cluster.seeder.ready.listen));
        finish(command.args(key).arg(format!("{REPOSITORY}:{TAG}")), PREHEAT_DEADLINE)
    };
    let key_file = cluster.seeder.key_file().display().to_string();
    let member = preheat(&["--cluster-key-file", &key_file])?;
    ensure!(member.status.success(), "eagle preheat with the key: {}{}", member.stdout, member.stderr);
    let stranger = preheat(&[])?;
    ensure!(stranger.status.code() == Some(1) && stranger.stderr.contains("403"), "without: {}", stranger.stderr);
    registry.expect_each_once(scene.image.blobs())
}

pub(super) fn key_changes_during_pulls(scene: &Scene<'_>) -> Result<()> {
    let registry = scene.registry()?;
    let settings = Settings { nodes: 3, rate: RATE, ..Settings::default() };
    let cluster = Cluster::start(scene, registry.address(), settings)?;
    let docker = Docker::start(&scene.directory.join("docker"), Mirror::Eagle(cluster.proxy(0)))?;
    let arrived = AtomicU64::new(0);
    let ended = AtomicBool::new(false);
    let count = |bytes| {
        arrived.fetch_max(bytes, Ordering::SeqCst);
    };
    let pull = |node: usize| {
        let pulled = oci::pull(cluster.proxy(node), scene.image, count).map(|_| ());
        ended.store(true, Ordering::SeqCst);
        pulled.with_context(|| format!("the pull through node {node}"))
    };
    let change = || {
        // All are at it.
        let begun = scene.image.blob_bytes() / 10;
        while arrived.load(Ordering::SeqCst) < begun && !ended.load(Ordering::SeqCst) {
            thread::sleep(LOOK);
        }
        for keys in [vec![CLUSTER_KEY, NEXT_KEY], vec![NEXT_KEY, CLUSTER_KEY], vec![NEXT_KEY]] {
            step(&cluster, &keys)?;
        }
        ensure!(!ended.load(Ordering::SeqCst), "the pulls were over before the key was changed");
        Ok(())
    };
    let tasks: [&(dyn Fn() -> Result<()> + Sync); 4] = [&|| docker.pull(), &|| pull(1), &|| pull(2), &change];
    all_at_once(&tasks)?;
    docker.verify(scene.image)?;
    registry.expect_each_once(scene.image.blobs())
}

/// Gives every node these keys and waits until all use them.
fn step(cluster: &Cluster, keys: &[&str]) -> Result<()> {
    let roles: Vec<&Role> = cluster.nodes.iter().chain([&cluster.seeder, &cluster.tracker]).collect();
    let before = roles[0].accepted_keys()?;
    for role in &roles {
        role.change_keys(keys)?;
    }
    for role in &roles {
        wait_until("all nodes to have taken the keys", STEP_DEADLINE, || {
            let accepted = role.accepted_keys()?;
            Ok((accepted != before && accepted.len() == keys.len()).then_some(()))
        })?;
    }
    Ok(())
}
