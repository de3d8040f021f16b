//! Private images, pulled through Eagle by runtimes with the credentials that their users gave them.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{
    Scene,
    private::{Parts, accounts, registries, write_htpasswd},
};
use crate::{
    registry::{Registry, free_address},
    runtimes::{Containerd, Docker, Login, Mirror, Podman, Runtime, Skopeo},
    token_server::TokenServer,
};

/// For how long the registry takes a token: longer than all pulls of a scenario take.
pub(super) const TOKEN_LIFETIME: u64 = 600;
pub(super) const ALICE: Login<'_> = Login { user: "alice", password: "alices-own-password" };
pub(super) const BOB: Login<'_> = Login { user: "bob", password: "bobs-own-password" };

/// Pulls as alice with each runtime, on a node of its own, and checks that nobody else gets anything.
fn alice_alone_pulls(scene: &Scene<'_>, registry: &Registry, runtimes: &[&dyn Runtime]) -> Result<()> {
    for runtime in runtimes {
        let name = runtime.name();
        runtime.log_in(Some(ALICE))?;
        runtime.pull().with_context(|| format!("alice with {name}"))?;
        runtime.verify(scene.image).with_context(|| format!("{name} pulled something else"))?;
    }
    registry.expect_each_once(scene.image.blobs())?;
    // Each of these has the image, and so has Eagle; a pull begins with the question what the tag means all the same.
    for runtime in runtimes {
        for (who, login) in [("bob", Some(BOB)), ("nobody", None)] {
            runtime.log_in(login)?;
            ensure!(runtime.pull().is_err(), "{who} pulled with {}", runtime.name());
        }
    }
    registry.expect_each_once(scene.image.blobs())
}

fn secrets() -> Vec<String> {
    [ALICE, BOB].map(|login| login.password.to_owned()).to_vec()
}

pub(super) fn with_tokens(scene: &Scene<'_>) -> Result<()> {
    let server = TokenServer::start(TOKEN_LIFETIME, accounts())?;
    let auth = json!({ "auth": server.auth_section(scene.directory)? });
    let mut registry = Registry::start_at(&scene.directory.join("registry"), scene.store, free_address()?, auth)?;
    let parts = Parts::start(scene, "eagle", &registries(registry.address()), 4)?;
    let mirror = |node| Mirror::Eagle(parts.proxy(node));
    let docker = Docker::start(&scene.directory.join("docker"), mirror(0))?;
    let podman = Podman::new(&scene.directory.join("podman"), mirror(1))?;
    let skopeo = Skopeo::new(&scene.directory.join("skopeo"), mirror(2))?;
    let containerd = Containerd::start(&scene.directory.join("containerd"), mirror(3))?;
    alice_alone_pulls(scene, &registry, &[&docker, &podman, &skopeo, &containerd])?;
    drop(server);
    registry.stop();
    // containerd goes to the registry's token service itself; these say who they are to Eagle, which knows them.
    docker.remove()?;
    let runtimes: [&dyn Runtime; 3] = [&docker, &podman, &skopeo];
    for runtime in runtimes {
        runtime.log_in(Some(ALICE))?;
        runtime.pull().with_context(|| format!("alice with {}, registry and token service gone", runtime.name()))?;
        for (who, login) in [("bob", Some(BOB)), ("nobody", None)] {
            runtime.log_in(login)?;
            ensure!(runtime.pull().is_err(), "{who} pulled with {}, the registry gone", runtime.name());
        }
    }
    parts.hold_none_of(&secrets())
}

pub(super) fn with_passwords(scene: &Scene<'_>) -> Result<()> {
    let passwords = scene.directory.join("htpasswd");
    write_htpasswd(&passwords, &[(ALICE.user, ALICE.password)])?;
    let auth = json!({ "auth": { "htpasswd": { "realm": "private", "path": passwords } } });
    let registry = Registry::start_at(&scene.directory.join("registry"), scene.store, free_address()?, auth)?;
    let parts = Parts::start(scene, "eagle", &registries(registry.address()), 3)?;
    let mirror = |node| Mirror::Eagle(parts.proxy(node));
    let docker = Docker::start(&scene.directory.join("docker"), mirror(0))?;
    let containerd = Containerd::start(&scene.directory.join("containerd"), mirror(1))?;
    let skopeo = Skopeo::new(&scene.directory.join("skopeo"), mirror(2))?;
    alice_alone_pulls(scene, &registry, &[&docker, &containerd, &skopeo])?;
    parts.hold_none_of(&secrets())
}
