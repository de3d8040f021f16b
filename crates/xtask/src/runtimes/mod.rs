//! Container runtimes, unmodified and from Debian's packages, each with its own state in a directory of the scenario.
//!
//! A pull is followed by a check of what the runtime then holds: the digests that it names, and every
//! file of the unpacked image.

mod containerd;
mod cri;
mod docker;
mod podman;
mod skopeo;

use std::{net::SocketAddr, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};

pub(crate) use self::{
    containerd::{Asked, Containerd},
    docker::Docker,
    podman::Podman,
    skopeo::Skopeo,
};
use crate::{
    image::{Image, TAG},
    process::succeed,
};

/// A daemon that starts on a busy machine. The first look at its programs may come from a cold disk.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// A pull with its unpacking; a pull that stalls longer is a failure that this makes visible.
const PULL_DEADLINE: Duration = Duration::from_secs(240);

/// Everything else that a runtime is asked.
const COMMAND_DEADLINE: Duration = Duration::from_secs(60);

/// Where a runtime looks for images of `docker.io`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Mirror {
    /// A registry that holds the image itself.
    Registry(SocketAddr),
    /// An Eagle proxy.
    Eagle(SocketAddr),
}

impl Mirror {
    fn address(self) -> SocketAddr {
        match self {
            Self::Registry(address) | Self::Eagle(address) => address,
        }
    }

    /// The location that podman and skopeo are given. They do not tell a mirror which registry they
    /// mean, so an Eagle proxy takes the registry's name as the first component of the path.
    fn location(self) -> String {
        match self {
            Self::Registry(address) => address.to_string(),
            Self::Eagle(address) => format!("{address}/docker.io"),
        }
    }
}

/// A name and a password.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Login<'a> {
    pub(crate) user: &'a str,
    pub(crate) password: &'a str,
}

/// A runtime that pulls from a mirror.
pub(crate) trait Runtime: Sync {
    fn name(&self) -> &'static str;
    /// Pulls the image by what follows its repository's name: `:TAG` or `@DIGEST`.
    fn pull_by(&self, reference: &str) -> Result<()>;
    /// Says who pulls from now on, as this runtime's users do; nobody, without a login.
    fn log_in(&self, login: Option<Login<'_>>) -> Result<()>;
    /// Checks digests and file contents of what was pulled by its tag.
    fn verify(&self, image: &Image) -> Result<()>;

    /// Pulls the image by its tag.
    fn pull(&self) -> Result<()> {
        self.pull_by(&tagged())
    }
}

fn tagged() -> String {
    format!(":{TAG}")
}

/// Logs podman or skopeo in to the mirror, which they know under its own name only, or out of everywhere.
fn log_in_to_mirror(mut command: Command, directory: &Path, login: Option<Login<'_>>) -> Result<()> {
    let file = directory.join(AUTH_FILE);
    // Without a file there would be an error.
    std::fs::write(&file, "{}")?;
    let Some(Login { user, password }) = login else { return Ok(()) };
    let location = std::fs::read_to_string(directory.join(MIRROR_FILE)).context("there is no mirror to log in to")?;
    command.args(["login", "--tls-verify=false", "--username", user, "--password", password, "--authfile"]);
    succeed(command.arg(&file).arg(location.trim()), COMMAND_DEADLINE)?;
    Ok(())
}

/// Has podman or skopeo use the credentials of [`log_in_to_mirror`], if there are any.
fn as_who_is_logged_in(command: &mut Command, directory: &Path) {
    let file = directory.join(AUTH_FILE);
    if file.exists() {
        command.env("REGISTRY_AUTH_FILE", file);
    }
}

/// Credentials of podman and skopeo, in the directory of each.
const AUTH_FILE: &str = "auth.json";
/// The location of the mirror.
const MIRROR_FILE: &str = "mirror";

/// `registries.conf` and `policy.json` for podman and skopeo: `docker.io` by way of the mirror, if there is one.
fn containers_config(directory: &Path, mirror: Option<Mirror>) -> Result<()> {
    std::fs::create_dir_all(directory)?;
    let mut config = "[[registry]]\nlocation = \"docker.io\"\n".to_owned();
    if let Some(location) = mirror.map(Mirror::location) {
        std::fs::write(directory.join(MIRROR_FILE), &location)?;
        config.push_str(&format!("\n[[registry.mirror]]\nlocation = \"{location}\"\ninsecure = true\n"));
    }
    std::fs::write(directory.join("registries.conf"), config)?;
    std::fs::write(directory.join("policy.json"), r#"{"default":[{"type":"insecureAcceptAnything"}]}"#)?;
    Ok(())
}
