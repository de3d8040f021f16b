//! Private images: who gets them, who does not, and what is left of credentials.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::Read,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Scene;
use crate::{
    cluster::{Role, Settings, node},
    http,
    image::{Blob, REPOSITORY, TAG},
    process::{finish, succeed, wait_until},
    registry::{Registry, free_address},
    runtimes::{Docker, Mirror, Runtime},
    token_server::{Account, TokenServer},
};

/// `grant_ttl` of every role in these scenarios.
const GRANT_TTL: Duration = Duration::from_secs(3);
/// For how long the registry takes a token.
const TOKEN_LIFETIME: Duration = Duration::from_secs(8);
/// A machine that compiles at the same time answers late.
const SLACK: Duration = Duration::from_secs(20);
const DEADLINE: Duration = Duration::from_secs(60);
/// Everything that Eagle's own code would say, and of HTTP what the libraries say.
const LOG_LEVEL: &str =
    "info,eagle=trace,eagle_proxy=trace,eagle_seeder=trace,eagle_registry=trace,hyper=trace,hyper_util=trace";
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json";

/// A tracker, a seeder and proxies that reach one registry as `registries` says.
pub(super) struct Parts {
    roles: Vec<Role>,
    directory: PathBuf,
}

impl Parts {
    /// `sections` is YAML of the shared sections.
    pub(super) fn start(scene: &Scene<'_>, name: &str, sections: &str, nodes: usize) -> Result<Self> {
        Self::start_with(scene, name, sections, nodes, "")
    }

    /// With these lines in the section of every proxy.
    pub(super) fn start_with(scene: &Scene<'_>, name: &str, sections: &str, nodes: usize, proxy: &str) -> Result<Self> {
        let directory = scene.directory.join(name);
        let mut roles = Vec::new();
        let ports = "  listen: 127.0.0.1:0\n  admin: 127.0.0.1:0\n";
        roles.push(Role::start(scene.eagle, "tracker", &directory.join("tracker"), &format!("tracker:\n{ports}"))?);
        for number in 0..=nodes {
            let (role, place) =
                if number == 0 { ("seeder", "seeder".to_owned()) } else { ("proxy", format!("node-{number}")) };
            let place = directory.join(place);
            let mut config = format!("log:\n  level: {LOG_LEVEL}\n{sections}");
            writeln!(config, "{role}:\n  grant_ttl: {}s", GRANT_TTL.as_secs())?;
            writeln!(config, "  trackers: [\"http://{}\"]", roles[0].ready.listen)?;
            match roles.get(1) {
                Some(seeder) => writeln!(config, "  seeders: [\"http://{}\"]", seeder.ready.listen)?,
                None => writeln!(config, "  manifest_ttl: 1s")?,
            }
            if number > 0 {
                config.push_str(proxy);
            }
            config.push_str(&node(&place, Settings::default()));
            roles.push(Role::start(scene.eagle, role, &place, &config)?);
        }
        Ok(Self { roles, directory })
    }

    /// The proxy of a node, from 0 on.
    pub(super) fn proxy(&self, node: usize) -> SocketAddr {
        self.roles[node + 2].ready.listen
    }

    /// Nothing that a role has written, and nothing that it says of itself, holds any of these.
    pub(super) fn hold_none_of(&self, secrets: &[String]) -> Result<()> {
        for secret in secrets {
            // In files of any kind: logs, data, what was left for a restart.
            let mut grep = Command::new("grep");
            grep.args(["--recursive", "--files-with-matches", "--fixed-strings", "--text", "-e", secret]);
            let found = finish(grep.arg(&self.directory), DEADLINE)?;
            ensure!(found.status.code() == Some(1), "credentials are in {}{}", found.stdout, found.stderr);
            for role in &self.roles {
                for page in ["/metrics", "/status", "/readyz", "/version", "/limits"] {
                    let text = http::request(role.ready.admin, "GET", page, &[])?.bytes()?;
                    let text = String::from_utf8_lossy(&text);
                    ensure!(!text.contains(secret.as_str()), "credentials are in {page} of a {}", role.ready.role);
                }
            }
        }
        // The search itself has to find what is there.
        let seen = finish(
            Command::new("grep").args(["--recursive", "--quiet", "eagle_registry"]).arg(&self.directory),
            DEADLINE,
        )?;
        ensure!(seen.status.success(), "the logs are not where they are searched");
        Ok(())
    }
}

/// `Authorization` of Basic authentication.
pub(super) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

fn get(address: SocketAddr, target: &str, authorization: Option<&str>) -> Result<http::Response> {
    let mut headers = vec![("Accept", ACCEPT)];
    headers.extend(authorization.map(|value| ("Authorization", value)));
    http::request(address, "GET", target, &headers)
}

fn manifest_path(reference: &str) -> String {
    format!("/v2/{REPOSITORY}/manifests/{reference}?ns=docker.io")
}

fn blob_path(blob: &Blob) -> String {
    format!("/v2/{REPOSITORY}/blobs/{}?ns=docker.io", blob.digest)
}

/// Pulls the whole image as somebody, and checks it.
pub(super) fn pull_as(scene: &Scene<'_>, proxy: SocketAddr, authorization: Option<&str>) -> Result<()> {
    let image = scene.image;
    for (reference, wanted) in
        [(TAG, &image.index), (&image.index.digest, &image.index), (&image.manifest.digest, &image.manifest)]
    {
        let answer = get(proxy, &manifest_path(reference), authorization)?;
        let status = answer.status;
        check(answer, wanted).with_context(|| format!("manifest {reference}: {status}"))?;
    }
    for blob in image.blobs() {
        let answer = get(proxy, &blob_path(blob), authorization)?;
        let status = answer.status;
        check(answer, blob).with_context(|| format!("blob {}: {status}", blob.digest))?;
    }
    Ok(())
}

fn check(mut answer: http::Response, wanted: &Blob) -> Result<()> {
    ensure!(answer.status == 200, "refused");
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 256 << 10]);
    loop {
        let count = answer.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
    }
    let digest = format!("sha256:{}", hex::encode(hasher.finalize()));
    ensure!(digest == wanted.digest, "{digest} came");
    Ok(())
}

/// Everything of the image that can be asked for.
fn targets(scene: &Scene<'_>) -> Vec<String> {
    let image = scene.image;
    let references = [TAG, &image.index.digest, &image.manifest.digest];
    references.into_iter().map(manifest_path).chain(image.blobs().map(blob_path)).collect()
}

/// Somebody gets nothing of the image, on no node.
fn gets_nothing(scene: &Scene<'_>, parts: &Parts, nodes: usize, authorization: Option<&str>, who: &str) -> Result<()> {
    for node in 0..nodes {
        for target in targets(scene) {
            let answer = get(parts.proxy(node), &target, authorization)?;
            let status = answer.status;
            ensure!(matches!(status, 401 | 404), "{who} got {status} for {target} from node {node}");
            let body = answer.bytes()?;
            let document: Value = serde_json::from_slice(&body).context("a refusal that is not JSON")?;
            ensure!(document["errors"][0]["code"].is_string(), "{target}: {document}");
        }
    }
    Ok(())
}

/// Waits until somebody gets nothing any more; it may take no longer than what is configured.
fn loses_access(scene: &Scene<'_>, parts: &Parts, nodes: usize, authorization: &str, within: Duration) -> Result<()> {
    let revoked = Instant::now();
    let nothing = || gets_nothing(scene, parts, nodes, Some(authorization), "a caller whose right is gone");
    while let Err(error) = nothing() {
        ensure!(revoked.elapsed() <= within + SLACK, "{:?} after the right was taken: {error:#}", revoked.elapsed());
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

pub(super) fn registries(address: SocketAddr) -> String {
    format!("registries:\n  - name: docker.io\n    url: http://{address}\n")
}

pub(super) fn write_htpasswd(file: &Path, users: &[(&str, &str)]) -> Result<()> {
    let mut text = String::new();
    for (user, password) in users {
        text.push_str(&succeed(Command::new("htpasswd").args(["-Bbn", "-C", "4", user, password]), DEADLINE)?);
    }
    // At once: the registry reads the file whenever it has changed.
    let new = file.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(new, file).context("cannot replace the password file")
}

pub(super) fn htpasswd(scene: &Scene<'_>) -> Result<()> {
    let passwords = scene.directory.join("htpasswd");
    write_htpasswd(&passwords, &[("alice", "alices-own-password"), ("carol", "carols-own-password")])?;
    let auth = json!({ "auth": { "htpasswd": { "realm": "private", "path": passwords } } });
    let registry = Registry::start_at(&scene.directory.join("registry"), scene.store, free_address()?, auth)?;
    let parts = Parts::start(scene, "eagle", &registries(registry.address()), 2)?;
    let (alice, bob) = (basic("alice", "alices-own-password"), basic("bob", "bobs-own-guess"));
    pull_as(scene, parts.proxy(0), Some(&alice)).context("alice on the first node")?;
    registry.expect_each_once(scene.image.blobs())?;
    // All of it is cached on this node now, and the other one can have it from peers.
    for (who, authorization) in [("bob", Some(bob.as_str())), ("nobody", None)] {
        gets_nothing(scene, &parts, 2, authorization, who)?;
    }
    pull_as(scene, parts.proxy(1), Some(&alice)).context("alice on the second node")?;
    registry.expect_each_once(scene.image.blobs())?;
    write_htpasswd(&passwords, &[("carol", "carols-own-password")])?;
    loses_access(scene, &parts, 2, &alice, GRANT_TTL)?;
    pull_as(scene, parts.proxy(1), Some(&basic("carol", "carols-own-password"))).context("carol")?;
    let encoded = |authorization: &str| authorization.trim_start_matches("Basic ").to_owned();
    parts.hold_none_of(&[
        "alices-own-password".to_owned(),
        "carols-own-password".to_owned(),
        "bobs-own-guess".to_owned(),
        encoded(&alice),
        encoded(&bob),
    ])
}

pub(super) fn accounts() -> BTreeMap<String, Account> {
    let account = |user: &str, repository: Option<&str>| {
        let account = Account {
            password: format!("{user}s-own-password"),
            identity_token: format!("{user}s-identity-token"),
            repository: repository.map(str::to_owned),
            pushes: user == "alice",
        };
        (user.to_owned(), account)
    };
    BTreeMap::from([account("alice", Some(REPOSITORY)), account("bob", None), account("robot", Some(REPOSITORY))])
}

/// A token as a runtime gets it: from where the refusal says, which has come through the proxy.
fn token(proxy: SocketAddr, server: &TokenServer, authorization: &str) -> Result<String> {
    let refusal = get(proxy, &manifest_path(TAG), None)?;
    ensure!(refusal.status == 401, "{} for nobody", refusal.status);
    let challenge = refusal.header("www-authenticate").context("a refusal without WWW-Authenticate")?.to_owned();
    let realm = format!("realm=\"http://{}/token\"", server.address());
    ensure!(challenge.starts_with("Bearer ") && challenge.contains(&realm), "{challenge}");
    let target = format!("/token?service=registry&scope=repository:{REPOSITORY}:pull");
    let answer = http::request(server.address(), "GET", &target, &[("Authorization", authorization)])?;
    ensure!(answer.status == 200, "the token service answered {}", answer.status);
    let answer: Value = serde_json::from_slice(&answer.bytes()?)?;
    answer["token"].as_str().map(str::to_owned).context("no token")
}

pub(super) fn tokens(scene: &Scene<'_>) -> Result<()> {
    let server = TokenServer::start(TOKEN_LIFETIME.as_secs(), accounts())?;
    let auth = json!({ "auth": server.auth_section(scene.directory)? });
    let registry = Registry::start_at(&scene.directory.join("registry"), scene.store, free_address()?, auth)?;
    let parts = Parts::start(scene, "eagle", &registries(registry.address()), 2)?;
    let mut secrets = Vec::new();
    let mut bearer = |user: &str| -> Result<String> {
        let token = token(parts.proxy(0), &server, &basic(user, &format!("{user}s-own-password")))?;
        secrets.push(token.clone());
        Ok(format!("Bearer {token}"))
    };
    // A token of its own for each part: they are short-lived, and this may be a slow machine.
    let alice = bearer("alice")?;
    for target in targets(scene) {
        let authorization = bearer("alice")?;
        let answer = get(parts.proxy(0), &target, Some(&authorization))?;
        ensure!(answer.status == 200, "alice got {} for {target}", answer.status);
        std::io::copy(&mut { answer }, &mut std::io::sink())?;
    }
    registry.expect_each_once(scene.image.blobs())?;
    let bob = bearer("bob")?;
    for (who, authorization) in [("bob", Some(bob.as_str())), ("nobody", None)] {
        gets_nothing(scene, &parts, 2, authorization, who)?;
    }
    let last = bearer("alice")?;
    server.remove("alice");
    ensure!(bearer("alice").is_err(), "the token service still knows alice");
    for authorization in [&alice, &last] {
        loses_access(scene, &parts, 2, authorization, TOKEN_LIFETIME + GRANT_TTL)?;
    }
    secrets.extend(accounts().into_values().map(|account| account.password));
    parts.hold_none_of(&secrets)
}

/// docker sends no credentials to a mirror: those of a mounted pull secret count, which is replaced while all runs.
pub(super) fn pull_secret(scene: &Scene<'_>) -> Result<()> {
    let server = TokenServer::start(TOKEN_LIFETIME.as_secs(), accounts())?;
    let auth = json!({ "auth": server.auth_section(scene.directory)? });
    let registry = Registry::start_at(&scene.directory.join("registry"), scene.store, free_address()?, auth)?;
    let secret = scene.directory.join("config.json");
    let write = |entry: Value| -> Result<()> {
        let new = secret.with_extension("new");
        fs::write(&new, json!({ "auths": { registry.address().to_string(): entry } }).to_string())?;
        fs::rename(new, &secret).context("cannot replace the pull secret")
    };
    write(json!({ "auth": BASE64_STANDARD.encode("00000000:"), "identitytoken": "robots-identity-token" }))?;
    let sections =
        registries(registry.address()) + &format!("credentials:\n  docker_configs: [{}]\n", secret.display());
    let parts = Parts::start(scene, "eagle", &sections, 2)?;
    let docker = Docker::start(&scene.directory.join("docker"), Mirror::Eagle(parts.proxy(0)))?;
    docker.pull().context("docker, with an identity token")?;
    docker.verify(scene.image)?;
    registry.expect_each_once(scene.image.blobs())?;
    server.remove("robot");
    // The image is still asked for with the old secret, in vain once its last token has run out.
    wait_until("the old pull secret to be refused", TOKEN_LIFETIME + GRANT_TTL + SLACK, || {
        Ok((get(parts.proxy(1), &manifest_path(TAG), None)?.status == 401).then_some(()))
    })?;
    write(json!({ "auth": BASE64_STANDARD.encode("alice:alices-own-password") }))?;
    wait_until("the new pull secret to be used", SLACK, || {
        Ok((get(parts.proxy(1), &manifest_path(TAG), None)?.status == 200).then_some(()))
    })?;
    pull_as(scene, parts.proxy(1), None).context("with the new secret")?;
    let pairs = ["robots-identity-token", "alices-own-password"].map(str::to_owned);
    let encoded = BASE64_STANDARD.encode("alice:alices-own-password");
    parts.hold_none_of(&[pairs.as_slice(), &[encoded]].concat())
}
