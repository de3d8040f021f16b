//! Container runtimes, unmodified and from Debian's packages, each with its own state in a directory of the scenario.
//!
//! A pull is followed by a check of what the runtime then holds: the digests that it names, and every
//! file of the unpacked image.

mod containerd;
mod docker;
mod podman;
mod skopeo;

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::Result;

pub(crate) use self::{containerd::Containerd, docker::Docker, podman::Podman, skopeo::Skopeo};
use crate::image::Image;

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

/// A runtime that pulls from a mirror.
pub(crate) trait Runtime: Sync {
    fn name(&self) -> &'static str;
    fn pull(&self) -> Result<()>;
    /// Checks digests and file contents of what was pulled.
    fn verify(&self, image: &Image) -> Result<()>;
}

/// `registries.conf` and `policy.json` for podman and skopeo: `docker.io` by way of the mirror, if there is one.
fn containers_config(directory: &Path, mirror: Option<Mirror>) -> Result<()> {
    std::fs::create_dir_all(directory)?;
    let mut config = "[[registry]]\nlocation = \"docker.io\"\n".to_owned();
    if let Some(location) = mirror.map(Mirror::location) {
        config.push_str(&format!("\n[[registry.mirror]]\nlocation = \"{location}\"\ninsecure = true\n"));
    }
    std::fs::write(directory.join("registries.conf"), config)?;
    std::fs::write(directory.join("policy.json"), r#"{"default":[{"type":"insecureAcceptAnything"}]}"#)?;
    Ok(())
}
