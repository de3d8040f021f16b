use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};

use super::{COMMAND_DEADLINE, Login, Mirror, PULL_DEADLINE, Runtime, START_DEADLINE};
use crate::{
    hub::Environment,
    image::{Image, REPOSITORY, TAG},
    process::{Process, finish, succeed, wait_until},
    setup, tree,
};

/// A containerd of its own, asked through `ctr`.
#[derive(Debug)]
pub(crate) struct Containerd {
    process: Process,
    directory: PathBuf,
    /// Where `hosts.toml` files are.
    certs: PathBuf,
    /// Of `ctr`, which is what pulls.
    environment: Environment,
    /// `USER:PASSWORD`.
    login: Mutex<Option<String>>,
}

impl Containerd {
    pub(crate) fn start(directory: &Path, mirror: Mirror) -> Result<Self> {
        let certs = directory.join("certs.d/docker.io");
        fs::create_dir_all(&certs)?;
        // `server` is where containerd turns when every listed host fails; without it that is
        // registry-1.docker.io, which the namespace of the scenarios cannot reach anyway.
        let address = mirror.address();
        fs::write(
            certs.join("hosts.toml"),
            format!(
                "server = \"http://{address}\"\n\n[host.\"http://{address}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
            ),
        )?;
        Self::configured(directory, &directory.join("certs.d"), Vec::new())
    }

    /// With the `hosts.toml` files below this directory, and these variables.
    pub(crate) fn configured(directory: &Path, certs: &Path, environment: Environment) -> Result<Self> {
        let mut daemon = Self { certs: certs.to_owned(), environment, ..Self::daemon(directory)? };
        wait_until("containerd to answer", START_DEADLINE, || {
            daemon.process.check_running()?;
            let answer = finish(daemon.ctr().arg("version"), COMMAND_DEADLINE)?;
            Ok(answer.status.success().then_some(()))
        })?;
        Ok(daemon)
    }

    /// The process alone, for dockerd, which would otherwise start one that outlives it when it is killed.
    pub(super) fn daemon(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let config = directory.join("config.toml");
        let shown = directory.display();
        // Without the plugins for Kubernetes (wants a CNI), for other file systems, and `opt`, which makes /opt/containerd.
        fs::write(
            &config,
            format!(
                "version = 2\nroot = \"{shown}/root\"\nstate = \"{shown}/state\"\n\
                 disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\", \
                 \"io.containerd.snapshotter.v1.aufs\", \"io.containerd.snapshotter.v1.btrfs\", \
                 \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.zfs\"]\n\
                 [grpc]\n  address = \"{shown}/containerd.sock\"\n\
                 [ttrpc]\n  address = \"{shown}/containerd.sock.ttrpc\"\n"
            ),
        )?;
        let program = setup::find("containerd").context("containerd is not installed")?;
        let log = directory.join("containerd.log");
        let process = Process::start(
            "containerd",
            Command::new(program).args(["--log-level", "warn", "--config"]).arg(&config),
            &log,
        )?;
        Ok(Self {
            process,
            directory: directory.to_owned(),
            certs: directory.join("certs.d"),
            environment: Vec::new(),
            login: Mutex::default(),
        })
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.directory.join("containerd.sock")
    }

    fn ctr(&self) -> Command {
        let mut command = Command::new("ctr");
        command.envs(self.environment.clone()).arg("--address").arg(self.socket());
        command
    }

    fn image() -> String {
        format!("docker.io/{REPOSITORY}:{TAG}")
    }
}

impl Runtime for Containerd {
    fn name(&self) -> &'static str {
        "containerd"
    }

    fn pull(&self) -> Result<()> {
        let mut pull = self.ctr();
        pull.args(["images", "pull", "--hosts-dir"]).arg(&self.certs);
        if let Some(login) = self.login.lock().unwrap_or_else(PoisonError::into_inner).as_deref() {
            pull.args(["--user", login]);
        }
        pull.arg(Self::image());
        succeed(&mut pull, PULL_DEADLINE)?;
        Ok(())
    }

    fn log_in(&self, login: Option<Login<'_>>) -> Result<()> {
        let login = login.map(|Login { user, password }| format!("{user}:{password}"));
        *self.login.lock().unwrap_or_else(PoisonError::into_inner) = login;
        Ok(())
    }

    fn verify(&self, image: &Image) -> Result<()> {
        let content = succeed(self.ctr().args(["content", "ls", "--quiet"]), COMMAND_DEADLINE)?;
        for wanted in [&image.index, &image.manifest].into_iter().chain(image.blobs()) {
            let digest = &wanted.digest;
            ensure!(content.lines().any(|line| line == digest), "containerd does not have {digest}:\n{content}");
        }
        let listed = succeed(self.ctr().args(["images", "ls"]), COMMAND_DEADLINE)?;
        ensure!(listed.contains(&image.index.digest), "the tag does not lead to {}:\n{listed}", image.index.digest);
        let mount = self.directory.join("mount");
        fs::create_dir_all(&mount)?;
        succeed(self.ctr().args(["images", "mount", &Self::image()]).arg(&mount), COMMAND_DEADLINE)?;
        let compared = tree::compare(&image.rootfs(), &mount, &[]);
        succeed(self.ctr().args(["images", "unmount", "--rm"]).arg(&mount), COMMAND_DEADLINE)?;
        compared
    }
}
