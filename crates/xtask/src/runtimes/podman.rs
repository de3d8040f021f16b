use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{COMMAND_DEADLINE, Mirror, PULL_DEADLINE, Runtime, containers_config};
use crate::{
    image::{Image, REPOSITORY, TAG},
    process::succeed,
    tree,
};

/// podman with storage of its own. It has no daemon: each command is the runtime.
#[derive(Debug)]
pub(crate) struct Podman {
    directory: PathBuf,
}

impl Podman {
    pub(crate) fn new(directory: &Path, mirror: Mirror) -> Result<Self> {
        containers_config(directory, mirror)?;
        Ok(Self { directory: directory.to_owned() })
    }

    fn command(&self) -> Command {
        let directory = &self.directory;
        let mut command = Command::new("podman");
        command.env("CONTAINERS_REGISTRIES_CONF", directory.join("registries.conf"));
        // Named drivers, or podman takes what /etc/containers and a missing systemd suggest.
        command.args(["--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]);
        command.arg("--root").arg(directory.join("root"));
        command.arg("--runroot").arg(directory.join("run"));
        command.arg("--tmpdir").arg(directory.join("tmp"));
        command
    }

    fn image() -> String {
        format!("docker.io/{REPOSITORY}:{TAG}")
    }
}

impl Runtime for Podman {
    fn name(&self) -> &'static str {
        "podman"
    }

    fn pull(&self) -> Result<()> {
        let mut pull = self.command();
        pull.args(["pull", "--quiet", "--signature-policy"]).arg(self.directory.join("policy.json")).arg(Self::image());
        succeed(&mut pull, PULL_DEADLINE)?;
        Ok(())
    }

    fn verify(&self, image: &Image) -> Result<()> {
        let inspected = succeed(self.command().args(["image", "inspect", &Self::image()]), COMMAND_DEADLINE)?;
        let inspected: Value = serde_json::from_str(&inspected)?;
        let (id, layers) = (&inspected[0]["Id"], &inspected[0]["RootFS"]["Layers"]);
        ensure!(id == image.config.digest.trim_start_matches("sha256:"), "podman has image {id}");
        ensure!(layers == &Value::from(image.diff_ids.clone()), "podman has layers {layers}");
        let repository_digests = inspected[0]["RepoDigests"].to_string();
        ensure!(repository_digests.contains(&image.index.digest), "podman pulled {repository_digests}");

        let mount = succeed(self.command().args(["image", "mount", &Self::image()]), COMMAND_DEADLINE)?;
        let compared = tree::compare(&image.rootfs(), Path::new(mount.trim()), &[]);
        succeed(self.command().args(["image", "unmount", &Self::image()]), COMMAND_DEADLINE)?;
        compared
    }
}
