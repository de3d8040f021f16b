use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::{
    AUTH_FILE, COMMAND_DEADLINE, Login, Mirror, PULL_DEADLINE, Runtime, as_who_is_logged_in, containers_config,
    log_in_to_mirror, tagged,
};
use crate::{
    hub::Environment,
    image::{Image, REPOSITORY},
    newer::Programs,
    process::succeed,
    tree,
};

/// Where podman and CRI-O look for more configuration.
const DROP_INS: &str = "/etc/containers/registries.conf.d";

/// podman with storage of its own. It has no daemon: each command is the runtime.
#[derive(Debug)]
pub(crate) struct Podman {
    programs: Programs,
    directory: PathBuf,
    /// Where `registries.conf` and `policy.json` are.
    config: PathBuf,
    environment: Environment,
    /// Over the system's own drop-ins, for as long as this lives.
    _drop_ins: Option<Mounted>,
}

/// A directory that is mounted over the system's, in this mount namespace.
#[derive(Debug)]
struct Mounted;

impl Mounted {
    fn over_drop_ins(directory: &Path) -> Result<Self> {
        succeed(Command::new("mount").arg("--bind").arg(directory).arg(DROP_INS), COMMAND_DEADLINE)?;
        Ok(Self)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Fails only where the namespace ends anyhow.
        let _ = succeed(Command::new("umount").arg(DROP_INS), COMMAND_DEADLINE);
    }
}

impl Podman {
    pub(crate) fn new(directory: &Path, mirror: Mirror) -> Result<Self> {
        containers_config(directory, Some(mirror))?;
        let directory = directory.to_owned();
        Ok(Self {
            programs: Programs::Installed,
            config: directory.clone(),
            directory,
            environment: Vec::new(),
            _drop_ins: None,
        })
    }

    /// With the files of this directory in place of those in `/etc/containers`, and these variables.
    pub(crate) fn configured(directory: &Path, config: &Path, environment: Environment) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        // podman has no way to name another directory for these.
        let drop_ins = Some(Mounted::over_drop_ins(&config.join("registries.conf.d"))?);
        Ok(Self {
            programs: Programs::Installed,
            directory: directory.to_owned(),
            config: config.to_owned(),
            environment,
            _drop_ins: drop_ins,
        })
    }

    /// With what is in `/etc/containers` where the programs are, and these variables.
    pub(crate) fn as_configured(directory: &Path, programs: &Programs, environment: Environment) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let config = PathBuf::from("/etc/containers");
        Ok(Self { programs: programs.clone(), directory: directory.to_owned(), config, environment, _drop_ins: None })
    }

    fn command(&self) -> Result<Command> {
        let directory = &self.directory;
        let mut command = self.programs.command("podman")?;
        command.envs(self.environment.clone());
        command.env("CONTAINERS_REGISTRIES_CONF", self.config.join("registries.conf"));
        // Named drivers, or podman takes what /etc/containers and a missing systemd suggest.
        command.args(["--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]);
        command.arg("--root").arg(directory.join("root"));
        command.arg("--runroot").arg(directory.join("run"));
        command.arg("--tmpdir").arg(directory.join("tmp"));
        Ok(command)
    }

    /// Writes what `podman login` to a mirror writes.
    pub(crate) fn log_in_to(&self, mirror: &str, login: Option<Login<'_>>) -> Result<()> {
        let auths = login.map_or_else(
            || json!({}),
            |Login { user, password }| {
                let auth = BASE64_STANDARD.encode(format!("{user}:{password}"));
                json!({ mirror: { "auth": auth } })
            },
        );
        Ok(std::fs::write(self.directory.join(AUTH_FILE), json!({ "auths": auths }).to_string())?)
    }

    /// Pulls by the tag with credentials for the registry of the image, as CRI-O does with the pull secret of a pod.
    pub(crate) fn pull_with_secret(&self, Login { user, password }: Login<'_>) -> Result<()> {
        let mut pull = self.command()?;
        pull.args(["pull", "--quiet", "--creds", &format!("{user}:{password}"), "--signature-policy"]);
        pull.arg(self.config.join("policy.json")).arg(Self::image(&tagged()));
        succeed(&mut pull, PULL_DEADLINE)?;
        Ok(())
    }

    fn image(reference: &str) -> String {
        format!("docker.io/{REPOSITORY}{reference}")
    }
}

impl Runtime for Podman {
    fn name(&self) -> &'static str {
        "podman"
    }

    fn pull_by(&self, reference: &str) -> Result<()> {
        let mut pull = self.command()?;
        as_who_is_logged_in(&mut pull, &self.directory);
        pull.args(["pull", "--quiet", "--signature-policy"])
            .arg(self.config.join("policy.json"))
            .arg(Self::image(reference));
        succeed(&mut pull, PULL_DEADLINE)?;
        Ok(())
    }

    fn log_in(&self, login: Option<Login<'_>>) -> Result<()> {
        log_in_to_mirror(self.programs.command("podman")?, &self.directory, login)
    }

    fn verify(&self, image: &Image) -> Result<()> {
        let inspected = succeed(self.command()?.args(["image", "inspect", &Self::image(&tagged())]), COMMAND_DEADLINE)?;
        let inspected: Value = serde_json::from_str(&inspected)?;
        let (id, layers) = (&inspected[0]["Id"], &inspected[0]["RootFS"]["Layers"]);
        ensure!(id == image.config.digest.trim_start_matches("sha256:"), "podman has image {id}");
        ensure!(layers == &Value::from(image.diff_ids.clone()), "podman has layers {layers}");
        let repository_digests = inspected[0]["RepoDigests"].to_string();
        ensure!(repository_digests.contains(&image.index.digest), "podman pulled {repository_digests}");

        let mount = succeed(self.command()?.args(["image", "mount", &Self::image(&tagged())]), COMMAND_DEADLINE)?;
        let compared = tree::compare(&image.rootfs(), &self.programs.seen(Path::new(mount.trim())), &[]);
        succeed(self.command()?.args(["image", "unmount", &Self::image(&tagged())]), COMMAND_DEADLINE)?;
        compared
    }
}
