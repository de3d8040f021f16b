use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

use anyhow::{Result, ensure};

use super::{COMMAND_DEADLINE, Login, Mirror, PULL_DEADLINE, Runtime, START_DEADLINE, cri, tagged};
use crate::{
    hub::Environment,
    image::{Image, REPOSITORY},
    newer::Programs,
    process::{Process, finish, succeed, wait_until},
    tree,
};

/// A containerd of its own, asked through `ctr`.
#[derive(Debug)]
pub(crate) struct Containerd {
    process: Process,
    programs: Programs,
    directory: PathBuf,
    /// Where `hosts.toml` files are.
    certs: PathBuf,
    /// Of `ctr`, which is what pulls.
    environment: Environment,
    /// `USER:PASSWORD`.
    login: Mutex<Option<String>>,
    asked: Asked,
}

/// By which way containerd is told to pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// By `ctr`, which is given the directory of the `hosts.toml` files.
    Ctr,
    /// By the interface that Kubernetes uses, for which its own configuration says where they are.
    Kubernetes,
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
        Self { certs: certs.to_owned(), environment, ..Self::daemon(directory)? }.ready()
    }

    /// With what is in `/etc/containerd` where the programs are, and these variables.
    pub(crate) fn as_configured(
        directory: &Path,
        programs: &Programs,
        environment: Environment,
        asked: Asked,
    ) -> Result<Self> {
        let config = Path::new("/etc/containerd/config.toml");
        let daemon = Self::launch(directory, programs, config, environment)?;
        Self { certs: PathBuf::from("/etc/containerd/certs.d"), asked, ..daemon }.ready()
    }

    fn ready(self) -> Result<Self> {
        let mut daemon = self;
        wait_until("containerd to answer", START_DEADLINE, || {
            daemon.process.check_running()?;
            let answer = finish(daemon.ctr()?.arg("version"), COMMAND_DEADLINE)?;
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
        Self::launch(directory, &Programs::Installed, &config, Vec::new())
    }

    /// The process alone, with this configuration.
    pub(super) fn launch(
        directory: &Path,
        programs: &Programs,
        config: &Path,
        environment: Environment,
    ) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let log = directory.join("containerd.log");
        let mut command = programs.command("containerd")?;
        command.envs(environment.clone()).args(["--log-level", "warn", "--config"]).arg(config);
        command.arg("--root").arg(directory.join("root")).arg("--state").arg(directory.join("state"));
        command.arg("--address").arg(directory.join("containerd.sock"));
        let process = Process::start("containerd", &mut command, &log)?;
        Ok(Self {
            process,
            programs: programs.clone(),
            directory: directory.to_owned(),
            certs: directory.join("certs.d"),
            environment,
            login: Mutex::default(),
            asked: Asked::Ctr,
        })
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("containerd.sock")
    }

    fn ctr(&self) -> Result<Command> {
        let mut command = self.programs.command("ctr")?;
        command.envs(self.environment.clone()).arg("--address").arg(self.socket());
        command.args(["--namespace", self.namespace()]);
        Ok(command)
    }

    /// Where the images are that it pulls.
    fn namespace(&self) -> &'static str {
        match self.asked {
            Asked::Ctr => "default",
            Asked::Kubernetes => "k8s.io",
        }
    }

    /// Checks every file of an image that whoever uses this namespace has pulled.
    pub(super) fn compare_files(&self, namespace: &str, name: &str, image: &Image) -> Result<()> {
        let mount = self.directory.join("mount");
        fs::create_dir_all(&mount)?;
        // The last of several namespaces counts.
        let ctr = || -> Result<Command> {
            let mut command = self.ctr()?;
            command.args(["--namespace", namespace]);
            Ok(command)
        };
        succeed(ctr()?.args(["images", "mount", name]).arg(&mount), COMMAND_DEADLINE)?;
        let compared = tree::compare(&image.rootfs(), &self.programs.seen(&mount), &[]);
        succeed(ctr()?.args(["images", "unmount", "--rm"]).arg(&mount), COMMAND_DEADLINE)?;
        compared
    }

    fn image(reference: &str) -> String {
        format!("docker.io/{REPOSITORY}{reference}")
    }
}

impl Runtime for Containerd {
    fn name(&self) -> &'static str {
        "containerd"
    }

    fn pull_by(&self, reference: &str) -> Result<()> {
        let login = self.login.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if self.asked == Asked::Kubernetes {
            let login = login.as_deref().and_then(|login| login.split_once(':'));
            return cri::pull(&self.socket(), &Self::image(reference), login);
        }
        let mut pull = self.ctr()?;
        pull.args(["images", "pull", "--hosts-dir"]).arg(&self.certs);
        if let Some(login) = &login {
            pull.args(["--user", login]);
        }
        pull.arg(Self::image(reference));
        succeed(&mut pull, PULL_DEADLINE)?;
        Ok(())
    }

    fn log_in(&self, login: Option<Login<'_>>) -> Result<()> {
        let login = login.map(|Login { user, password }| format!("{user}:{password}"));
        *self.login.lock().unwrap_or_else(PoisonError::into_inner) = login;
        Ok(())
    }

    fn verify(&self, image: &Image) -> Result<()> {
        let content = succeed(self.ctr()?.args(["content", "ls", "--quiet"]), COMMAND_DEADLINE)?;
        for wanted in [&image.index, &image.manifest].into_iter().chain(image.blobs()) {
            let digest = &wanted.digest;
            ensure!(content.lines().any(|line| line == digest), "containerd does not have {digest}:\n{content}");
        }
        let listed = succeed(self.ctr()?.args(["images", "ls"]), COMMAND_DEADLINE)?;
        ensure!(listed.contains(&image.index.digest), "the tag does not lead to {}:\n{listed}", image.index.digest);
        self.compare_files(self.namespace(), &Self::image(&tagged()), image)
    }
}
