//! What a plain client of the distribution API sees of a real registry through a proxy, and what it does not get.

use std::{fs, net::SocketAddr, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Scene;
use crate::{
    cluster::{Cluster, Settings},
    http,
    image::{REPOSITORY, TAG},
    process::{Finished, finish, succeed},
    registry::Registry,
};

/// Copying a few hundred MB on a busy machine.
const COPY_DEADLINE: Duration = Duration::from_secs(180);
/// What a client may rely on, whoever answers.
const HEADERS: [&str; 4] =
    ["content-type", "content-length", "docker-content-digest", "docker-distribution-api-version"];

pub(super) fn reading(scene: &Scene<'_>) -> Result<()> {
    let registry = scene.registry()?;
    let cluster = Cluster::start(scene, registry.address(), Settings::default())?;
    let proxy = cluster.proxy(0);
    let accept = ("Accept", "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json");
    let (index, manifest, config) =
        (&scene.image.index.digest, &scene.image.manifest.digest, &scene.image.config.digest);
    for path in [
        format!("manifests/{TAG}"),
        format!("manifests/{index}"),
        format!("manifests/{manifest}"),
        format!("blobs/{config}"),
        "tags/list".to_owned(),
        "tags/list?n=1".to_owned(),
        // Docker Distribution 2.8 has no such endpoint, and that is what a client has to be told.
        format!("referrers/{manifest}"),
        format!("referrers/{manifest}?artifactType=application%2Fx"),
        "manifests/no-such-tag".to_owned(),
        format!("manifests/sha512:{}", "0".repeat(128)),
        format!("blobs/sha512:{}", "0".repeat(128)),
    ] {
        for method in ["HEAD", "GET", "GET"] {
            let target = format!("/v2/{REPOSITORY}/{path}");
            let direct = http::request(registry.address(), method, &target, &[accept])?;
            let through = http::request(proxy, method, &target, &[accept])?;
            ensure!(
                through.status == direct.status,
                "{method} {path}: {} instead of {}",
                through.status,
                direct.status
            );
            if direct.status != 200 {
                continue;
            }
            for name in HEADERS {
                // The registry's own answers to HEAD of a list differ from those to GET.
                let (wanted, got) = (direct.header(name).map(str::to_owned), through.header(name).map(str::to_owned));
                ensure!(got == wanted, "{method} {path}: {name} is {got:?} instead of {wanted:?}");
            }
            ensure!(through.bytes()? == direct.bytes()?, "{method} {path}: another body");
        }
    }
    Ok(())
}

pub(super) fn pushing(scene: &Scene<'_>) -> Result<()> {
    let store = scene.directory.join("store");
    let registry = Registry::start(&scene.directory.join("registry"), &store)?;
    let mut cluster = Cluster::start(scene, registry.address(), Settings::default())?;
    let refused = push(scene, cluster.proxy(0))?;
    ensure!(!refused.status.success(), "a mirror took a push: {refused:?}");
    let answer = http::request(cluster.proxy(0), "POST", &format!("/v2/{REPOSITORY}/blobs/uploads/"), &[])?;
    ensure!(answer.status == 405, "a push was answered {}", answer.status);
    let told: Value = serde_json::from_slice(&answer.bytes()?)?;
    ensure!(told["errors"][0]["code"] == "UNSUPPORTED", "{told}");

    cluster.configure_node(0, "  push: passthrough\n")?;
    let pushed = push(scene, cluster.proxy(0))?;
    ensure!(pushed.status.success(), "{pushed:?}");
    // Straight from the registry: what it holds now is the image.
    let copy = scene.directory.join("copy");
    let from = format!("docker://{}/{REPOSITORY}:{TAG}", registry.address());
    let mut pull = skopeo();
    pull.args(["--src-tls-verify=false", &from]).arg(format!("oci:{}:{TAG}", copy.display()));
    succeed(&mut pull, COPY_DEADLINE)?;
    for wanted in [&scene.image.index, &scene.image.manifest].into_iter().chain(scene.image.blobs()) {
        let below = format!("blobs/sha256/{}", wanted.digest.trim_start_matches("sha256:"));
        let copied = fs::read(copy.join(&below)).with_context(|| format!("{} was not pushed", wanted.digest))?;
        ensure!(copied == fs::read(scene.image.layout().join(&below))?, "{} arrived as something else", wanted.digest);
    }
    Ok(())
}

fn skopeo() -> Command {
    let mut copy = Command::new("skopeo");
    copy.args(["--insecure-policy", "copy", "--quiet", "--all", "--preserve-digests"]);
    copy
}

fn push(scene: &Scene<'_>, proxy: SocketAddr) -> Result<Finished> {
    let mut push = skopeo();
    push.arg("--dest-tls-verify=false").arg(format!("oci:{}:{TAG}", scene.image.layout().display()));
    push.arg(format!("docker://{proxy}/{REPOSITORY}:{TAG}"));
    finish(&mut push, COPY_DEADLINE)
}
