use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::{Login, Mirror, PULL_DEADLINE, Runtime, as_who_is_logged_in, containers_config, log_in_to_mirror};
use crate::{
    hub::Environment,
    image::{Image, REPOSITORY, TAG},
    process::succeed,
};

/// skopeo, which copies an image into a directory, byte for byte.
#[derive(Debug)]
pub(crate) struct Skopeo {
    directory: PathBuf,
    environment: Environment,
}

impl Skopeo {
    pub(crate) fn new(directory: &Path, mirror: Mirror) -> Result<Self> {
        containers_config(directory, Some(mirror))?;
        Ok(Self { directory: directory.to_owned(), environment: Vec::new() })
    }

    /// Without a mirror, with these variables.
    pub(crate) fn direct(directory: &Path, environment: Environment) -> Result<Self> {
        containers_config(directory, None)?;
        Ok(Self { directory: directory.to_owned(), environment })
    }

    fn copy(&self) -> PathBuf {
        self.directory.join("copy")
    }
}

impl Runtime for Skopeo {
    fn name(&self) -> &'static str {
        "skopeo"
    }

    fn pull_by(&self, reference: &str) -> Result<()> {
        let mut copy = Command::new("skopeo");
        copy.envs(self.environment.clone());
        as_who_is_logged_in(&mut copy, &self.directory);
        copy.arg("--registries-conf").arg(self.directory.join("registries.conf"));
        copy.arg("--policy").arg(self.directory.join("policy.json"));
        copy.args(["copy", "--quiet", "--all", "--preserve-digests"]);
        copy.arg(format!("docker://docker.io/{REPOSITORY}{reference}"));
        copy.arg(format!("oci:{}:{TAG}", self.copy().display()));
        succeed(&mut copy, PULL_DEADLINE)?;
        Ok(())
    }

    fn log_in(&self, login: Option<Login<'_>>) -> Result<()> {
        log_in_to_mirror(Command::new("skopeo"), &self.directory, login)
    }

    fn verify(&self, image: &Image) -> Result<()> {
        for wanted in [&image.index, &image.manifest].into_iter().chain(image.blobs()) {
            let digest = wanted.digest.trim_start_matches("sha256:");
            let below = Path::new("blobs/sha256").join(digest);
            let copied = fs::read(self.copy().join(&below)).with_context(|| format!("skopeo has no {digest}"))?;
            ensure!(copied == fs::read(image.layout().join(&below))?, "skopeo has other bytes for {digest}");
        }
        Ok(())
    }
}
