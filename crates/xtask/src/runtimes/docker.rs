use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::{COMMAND_DEADLINE, Containerd, Login, Mirror, PULL_DEADLINE, Runtime, START_DEADLINE, tagged};
use crate::{
    hub::Environment,
    image::{Image, REPOSITORY},
    newer::Programs,
    process::{Finished, Process, finish, succeed, wait_until},
    tree,
};

/// A dockerd of its own with its registry mirror set, asked through the `docker` command.
#[derive(Debug)]
pub(crate) struct Docker {
    // Dropped in this order: dockerd before the containerd that it talks to.
    _dockerd: Process,
    containerd: Containerd,
    programs: Programs,
    directory: PathBuf,
    /// The registry of the image; Docker Hub if there is none.
    registry: Option<String>,
}

impl Docker {
    /// What works without systemd, in a virtual machine, on nobody's account but root's:
    ///
    /// - every path absolute: with a relative `--exec-root` dockerd waits in vain for its own containerd's socket;
    /// - no bridge and no iptables: a pull needs neither, and the namespace may allow neither;
    /// - a configuration file of its own, or `/etc/docker/daemon.json` would mix in; it must exist;
    /// - the mirror is plain http on 127.0.0.0/8, which dockerd takes without `insecure-registries`.
    pub(crate) fn start(directory: &Path, mirror: Mirror) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let config = directory.join("daemon.json");
        fs::write(&config, "{}")?;
        Self::launch(directory, &config, &[format!("--registry-mirror=http://{}", mirror.address())], Vec::new())
    }

    /// With whatever is in this `daemon.json`, and these variables.
    pub(crate) fn configured(directory: &Path, config: &Path, environment: Environment) -> Result<Self> {
        fs::create_dir_all(directory)?;
        Self::launch(directory, config, &[], environment)
    }

    /// With what is in `/etc/docker` where the programs are, and these variables.
    pub(crate) fn as_configured(directory: &Path, programs: &Programs, environment: Environment) -> Result<Self> {
        fs::create_dir_all(directory)?;
        // Its own defaults, whatever `/etc/containerd` says; docker gives its images to no other.
        let config = directory.join("containerd.toml");
        fs::write(&config, "version = 3\n")?;
        let containerd = Containerd::launch(&directory.join("containerd"), programs, &config, environment.clone())?;
        Self::launch_with(containerd, programs, directory, Path::new("/etc/docker/daemon.json"), &[], environment)
    }

    fn launch(directory: &Path, config: &Path, arguments: &[String], environment: Environment) -> Result<Self> {
        let containerd = Containerd::daemon(&directory.join("containerd"))?;
        Self::launch_with(containerd, &Programs::Installed, directory, config, arguments, environment)
    }

    fn launch_with(
        containerd: Containerd,
        programs: &Programs,
        directory: &Path,
        config: &Path,
        arguments: &[String],
        environment: Environment,
    ) -> Result<Self> {
        wait_until("the socket of docker's containerd", START_DEADLINE, || {
            Ok(containerd.socket().exists().then_some(()))
        })?;
        let mut command = programs.command("dockerd")?;
        command.arg("--log-level=warn").arg("--config-file").arg(config);
        command.envs(environment);
        command.arg("--data-root").arg(directory.join("data"));
        command.arg("--exec-root").arg(directory.join("exec"));
        command.arg("--pidfile").arg(directory.join("docker.pid"));
        command.arg("--containerd").arg(containerd.socket());
        command.arg("--host").arg(Self::host(directory));
        command.args(arguments);
        command.args([
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            "--ip-forward=false",
            "--ip-masq=false",
        ]);
        let mut process = Process::start("dockerd", &mut command, &directory.join("dockerd.log"))?;
        wait_until("dockerd to answer", START_DEADLINE, || {
            process.check_running()?;
            let answer = finish(Self::client_of(programs, directory)?.arg("version"), COMMAND_DEADLINE)?;
            Ok(answer.status.success().then_some(()))
        })?;
        Ok(Self {
            _dockerd: process,
            containerd,
            programs: programs.clone(),
            directory: directory.to_owned(),
            registry: None,
        })
    }

    fn host(directory: &Path) -> String {
        format!("unix://{}/docker.sock", directory.display())
    }

    fn client(&self) -> Result<Command> {
        Self::client_of(&self.programs, &self.directory)
    }

    fn client_of(programs: &Programs, directory: &Path) -> Result<Command> {
        let mut command = programs.command("docker")?;
        // A user's own credentials and contexts must not get in.
        command.env("DOCKER_CONFIG", directory.join("client")).env_remove("DOCKER_HOST").env_remove("DOCKER_CONTEXT");
        command.arg("--host").arg(Self::host(directory));
        Ok(command)
    }

    /// Its client, to be told what to do.
    pub(crate) fn command(&self) -> Result<Command> {
        self.client()
    }

    /// The same docker, with the image of another registry.
    pub(crate) fn of_registry(self, registry: impl ToString) -> Self {
        Self { registry: Some(registry.to_string()), ..self }
    }

    /// The name as a person types it: docker adds `docker.io/library/`.
    fn image(&self, reference: &str) -> String {
        match &self.registry {
            Some(registry) => format!("{registry}/{REPOSITORY}{reference}"),
            None => format!("{}{reference}", REPOSITORY.trim_start_matches("library/")),
        }
    }

    /// Forgets the image, so that it has to be pulled again.
    pub(crate) fn remove(&self) -> Result<()> {
        // Its containers first, those that `verify` has made among them.
        let containers = succeed(self.client()?.args(["ps", "--all", "--quiet"]), COMMAND_DEADLINE)?;
        for container in containers.lines() {
            succeed(self.client()?.args(["rm", "--force", container]), COMMAND_DEADLINE)?;
        }
        succeed(self.client()?.args(["rmi", &self.image(&tagged())]), COMMAND_DEADLINE)?;
        Ok(())
    }

    /// Says who pulls from this registry and pushes to it from now on.
    pub(crate) fn log_in_to(&self, registry: &str, login: Option<Login<'_>>) -> Result<()> {
        let auths = login.map_or_else(
            || json!({}),
            |Login { user, password }| {
                let auth = BASE64_STANDARD.encode(format!("{user}:{password}"));
                json!({ registry: { "auth": auth } })
            },
        );
        let client = self.directory.join("client");
        fs::create_dir_all(&client)?;
        fs::write(client.join("config.json"), json!({ "auths": auths }).to_string())?;
        Ok(())
    }

    /// Makes an image of the files in a tar file and pushes it under a whole name.
    pub(crate) fn push(&self, tar: &Path, name: &str) -> Result<Finished> {
        succeed(self.client()?.arg("import").arg(tar).arg(name), PULL_DEADLINE)?;
        finish(self.client()?.args(["push", "--quiet", name]), PULL_DEADLINE)
    }

    /// Runs a command in a container of the image; what it prints.
    pub(crate) fn run(&self, command: &[&str]) -> Result<String> {
        let mut run = self.client()?;
        run.args(["run", "--rm", "--network", "none", &self.image(&tagged())]).args(command);
        succeed(&mut run, COMMAND_DEADLINE)
    }
}

impl Runtime for Docker {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn pull_by(&self, reference: &str) -> Result<()> {
        succeed(self.client()?.args(["pull", &self.image(reference)]), PULL_DEADLINE)?;
        Ok(())
    }

    fn log_in(&self, login: Option<Login<'_>>) -> Result<()> {
        // What `docker login` writes, which needs Docker Hub to answer.
        self.log_in_to("https://index.docker.io/v1/", login)
    }

    fn verify(&self, image: &Image) -> Result<()> {
        let name = self.image(&tagged());
        let inspected = succeed(self.client()?.args(["image", "inspect", &name]), COMMAND_DEADLINE)?;
        let inspected: Value = serde_json::from_str(&inspected)?;
        let (id, layers) = (&inspected[0]["Id"], &inspected[0]["RootFS"]["Layers"]);
        // The containerd image store knows an image by what its tag leads to, the older one by its configuration.
        let known_by = if self.programs.are_newer() { &image.index } else { &image.config };
        ensure!(id == &Value::from(known_by.digest.as_str()), "docker has image {id}");
        ensure!(layers == &Value::from(image.diff_ids.clone()), "docker has layers {layers}");
        let repository_digests = inspected[0]["RepoDigests"].to_string();
        ensure!(repository_digests.contains(&image.index.digest), "docker pulled {repository_digests}");

        if self.programs.are_newer() {
            // By containerd's own names.
            let name = format!("{}/{REPOSITORY}{}", self.registry.as_deref().unwrap_or("docker.io"), tagged());
            return self.containerd.compare_files("moby", &name, image);
        }
        let container = succeed(self.client()?.args(["create", &name]), COMMAND_DEADLINE)?;
        let (tar, exported) = (self.directory.join("export.tar"), self.directory.join("export"));
        succeed(self.client()?.args(["export", "--output"]).arg(&tar).arg(container.trim()), PULL_DEADLINE)?;
        fs::create_dir_all(&exported)?;
        let unpack = ["--extract", "--preserve-permissions", "--numeric-owner"];
        succeed(Command::new("tar").args(unpack).arg("-C").arg(&exported).arg("-f").arg(&tar), PULL_DEADLINE)?;
        fs::remove_file(&tar)?;
        tree::compare(&image.rootfs(), &exported, tree::DOCKER_ADDS)?;
        fs::remove_dir_all(&exported)?;
        Ok(())
    }
}
