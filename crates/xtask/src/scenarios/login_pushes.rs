//! Pushes through the mirror by clients that have logged in to it, to a registry with a token service.

use std::{fs, net::SocketAddr, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::json;

use super::{
    Scene,
    private::{Parts, accounts, registries},
};
use crate::{
    image::REPOSITORY,
    process::{Finished, finish, succeed},
    registry::{Registry, free_address},
    runtimes::{Docker, Login, Mirror},
    token_server::TokenServer,
};

/// For how long the registry takes a token: longer than the scenario takes.
const TOKEN_LIFETIME: u64 = 600;
const DEADLINE: Duration = Duration::from_secs(120);
/// What is pushed: one layer of this many bytes, which no client sends in one part.
const SIZE: usize = 20 << 20;

pub(super) fn with_tokens(scene: &Scene<'_>) -> Result<()> {
    let server = TokenServer::start(TOKEN_LIFETIME, accounts())?;
    let store = scene.directory.join("store");
    let auth = json!({ "auth": server.auth_section(scene.directory)? });
    let registry = Registry::start_at(&scene.directory.join("registry"), &store, free_address()?, auth)?;
    let parts = Parts::start_with(scene, "eagle", &registries(registry.address()), 1, "  push: passthrough\n")?;
    let proxy = parts.proxy(0);
    let content = scene.directory.join("content");
    fs::create_dir_all(&content)?;
    fs::write(content.join("file"), vec![7; SIZE])?;
    let tar = scene.directory.join("content.tar");
    succeed(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&content).arg("."), DEADLINE)?;

    let docker = Docker::start(&scene.directory.join("docker"), Mirror::Eagle(proxy))?;
    let podman = Podman { directory: scene.directory.join("podman"), proxy };
    fs::create_dir_all(&podman.directory)?;
    let mut pushed = Vec::new();
    for user in ["bob", "nobody", "alice"] {
        let (by_docker, by_podman, by_skopeo) =
            (format!("{user}-docker"), format!("{user}-podman"), format!("{user}-skopeo"));
        podman.log_in(user)?;
        let password = accounts().remove(user).map(|account| account.password);
        let login = password.as_deref().map(|password| Login { user, password });
        docker.log_in_to(&proxy.to_string(), login)?;
        let outcomes = [
            docker.push(&tar, &format!("{proxy}/{REPOSITORY}:{by_docker}"))?,
            podman.push(&tar, &by_podman)?,
            podman.copy(&tar, &by_skopeo)?,
        ];
        for (outcome, tag) in outcomes.into_iter().zip([by_docker, by_podman, by_skopeo]) {
            ensure!(outcome.status.success() == (user == "alice"), "{tag}: {outcome:?}");
            pushed.push(tag);
        }
    }
    let tags = store.join("docker/registry/v2/repositories").join(REPOSITORY).join("_manifests/tags");
    for tag in pushed {
        let there = tags.join(&tag).join("current/link").exists();
        ensure!(there == tag.starts_with("alice"), "{tag}: {}", if there { "pushed" } else { "not pushed" });
    }
    parts.hold_none_of(&["alices-own-password".to_owned(), "bobs-own-password".to_owned()])
}

/// podman and skopeo, which name the registry in the path and in the name that they log in to.
struct Podman {
    directory: std::path::PathBuf,
    proxy: SocketAddr,
}

impl Podman {
    fn log_in(&self, user: &str) -> Result<()> {
        let password = accounts().remove(user).map(|account| account.password);
        let auths = password.map_or_else(
            || json!({}),
            |password| {
                let auth = BASE64_STANDARD.encode(format!("{user}:{password}"));
                json!({ format!("{}/docker.io", self.proxy): { "auth": auth } })
            },
        );
        Ok(fs::write(self.directory.join("auth.json"), json!({ "auths": auths }).to_string())?)
    }

    fn name(&self, tag: &str) -> String {
        format!("{}/docker.io/{REPOSITORY}:{tag}", self.proxy)
    }

    fn podman(&self) -> Command {
        let mut podman = Command::new("podman");
        podman.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]);
        podman.arg("--root").arg(self.directory.join("root")).arg("--runroot").arg(self.directory.join("run"));
        podman.arg("--tmpdir").arg(self.directory.join("tmp"));
        podman.env("REGISTRY_AUTH_FILE", self.directory.join("auth.json"));
        podman
    }

    fn push(&self, tar: &Path, tag: &str) -> Result<Finished> {
        let name = self.name(tag);
        succeed(self.podman().arg("import").arg(tar).arg(&name), DEADLINE)?;
        finish(self.podman().args(["push", "--tls-verify=false", "--quiet", &name]), DEADLINE)
    }

    /// skopeo, with an image that podman has.
    fn copy(&self, tar: &Path, tag: &str) -> Result<Finished> {
        let (name, layout) = (self.name(tag), self.directory.join(format!("layout-{tag}")));
        succeed(self.podman().arg("import").arg(tar).arg(&name), DEADLINE)?;
        let to = format!("oci:{}:x", layout.display());
        succeed(self.podman().args(["push", "--quiet", &name, &to]), DEADLINE).context("cannot save the image")?;
        let mut copy = Command::new("skopeo");
        copy.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", "--authfile"]);
        copy.arg(self.directory.join("auth.json")).arg(to);
        finish(copy.arg(format!("docker://{name}")), DEADLINE)
    }
}
