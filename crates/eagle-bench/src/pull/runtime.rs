//! Pulls by a container runtime of this machine: `docker pull`, `ctr images pull`, `skopeo copy`.
//!
//! Each begins without the image, and leaves none: layers that it shares with other images of the machine are the runtime's to
//! keep. What runs is the runtime's own command, as an operator would type it, with the daemon that
//! is there; nothing of its configuration is changed.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::ValueEnum;
use eagle_registry::ImageReference;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::process::Command;
use url::Url;

use crate::agent::token;

/// A pull that takes longer has failed.
const PULL: Duration = Duration::from_secs(600);
/// Longest for a question and for removing an image.
const QUESTION: Duration = Duration::from_secs(60);
/// Longest version of a runtime, bytes; Debian's have about twenty.
const MAX_VERSION: usize = 100;
/// The end of what a command printed that goes into an error, bytes.
const TAIL: u64 = 2048;
/// Where containerd keeps the images of a benchmark apart from all others.
const NAMESPACE: &str = "eagle-bench";

/// Who pulls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Runtime {
    /// `docker pull`, by the daemon of `DOCKER_HOST`
    Docker,
    /// `ctr images pull`, by the daemon of `CONTAINERD_ADDRESS`
    Containerd,
    /// `skopeo copy` into a directory
    Skopeo,
}

impl Runtime {
    /// As on the command line.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::Skopeo => "skopeo",
        }
    }

    /// The program that is run.
    const fn program(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "ctr",
            Self::Skopeo => "skopeo",
        }
    }

    /// Whether pulls of the same image at the same time are so many pulls: a daemon makes one of them.
    pub(crate) const fn pulls_apart(self) -> bool {
        matches!(self, Self::Skopeo)
    }

    /// Finds the program and asks it, or its daemon, for its version.
    ///
    /// # Errors
    /// When it is not there or does not answer.
    pub(crate) async fn version(self) -> Result<String> {
        let scratch = scratch()?;
        let arguments: &[&str] = match self {
            Self::Docker => &["version", "--format", "{{.Server.Version}}"],
            Self::Containerd => &["version"],
            Self::Skopeo => &["--version"],
        };
        let asked = run(self, arguments, scratch.path(), QUESTION).await;
        let printed = asked.with_context(|| match self {
            Self::Docker => "--runtime docker needs a docker daemon that runs (DOCKER_HOST says which)",
            Self::Containerd => "--runtime containerd needs a containerd that runs (CONTAINERD_ADDRESS says which)",
            Self::Skopeo => "--runtime skopeo needs skopeo",
        })?;
        self.version_in(&printed).with_context(|| format!("{} says no version: {printed}", self.program()))
    }

    /// The version in what the program printed: of `ctr` that of the daemon, which comes after its own.
    fn version_in(self, printed: &str) -> Option<String> {
        let version = match self {
            Self::Docker => printed.lines().last()?.trim(),
            Self::Containerd => {
                printed.lines().filter_map(|line| line.trim().strip_prefix("Version:")).next_back()?.trim()
            }
            Self::Skopeo => {
                printed.lines().find_map(|line| line.trim().strip_prefix("skopeo version "))?.split(' ').next()?
            }
        };
        let plain = |mark: char| mark.is_ascii_graphic();
        (!version.is_empty() && version.len() <= MAX_VERSION && version.chars().all(plain)).then(|| version.to_owned())
    }
}

/// A runtime that pulls from one place.
#[derive(Debug)]
pub(crate) struct Client {
    runtime: Runtime,
    /// The registry itself, or a proxy.
    from: Url,
    /// Whether it is a proxy.
    through: bool,
    /// What a proxy knows the registry as, where the registry's own name cannot be part of a path.
    alias: Option<String>,
}

impl Client {
    pub(crate) const fn new(runtime: Runtime, from: Url, through: bool, alias: Option<String>) -> Self {
        Self { runtime, from, through, alias }
    }

    /// What the runtime is told to pull.
    ///
    /// # Errors
    /// When it cannot be said to this runtime.
    fn name(&self, image: &ImageReference) -> Result<String> {
        if self.runtime == Runtime::Containerd {
            return Ok(image.to_string());
        }
        let host = self.from.host_str().context("the address has no host")?;
        let host = self.from.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let (_, path) =
            image.to_string().split_once('/').map(|(a, b)| (a.to_owned(), b.to_owned())).context("no path")?;
        if !self.through {
            return Ok(format!("{host}/{path}"));
        }
        let registry = self.alias.clone().unwrap_or_else(|| image.registry.as_str().to_owned());
        ensure!(
            !registry.contains(':'),
            "{} cannot name a registry with a port ({registry}) behind a proxy; --runtime containerd can",
            self.runtime.program()
        );
        Ok(format!("{host}/{registry}/{path}"))
    }

    /// Removes the image, if it is there.
    ///
    /// # Errors
    /// When that fails.
    pub(crate) async fn clean(&self, image: &ImageReference) -> Result<()> {
        let name = self.name(image)?;
        let scratch = scratch()?;
        match self.runtime {
            Runtime::Docker => {
                let listed = ["image", "inspect", "--format", "{{.Id}}", &name];
                if run(self.runtime, &listed, scratch.path(), QUESTION).await.is_err() {
                    return Ok(());
                }
                run(self.runtime, &["image", "rm", "--force", &name], scratch.path(), QUESTION).await.map(drop)
            }
            Runtime::Containerd => {
                let remove = ["--namespace", NAMESPACE, "images", "rm", "--sync", &name];
                run(self.runtime, &remove, scratch.path(), QUESTION).await.map(drop)
            }
            // Each pull has a directory of its own.
            Runtime::Skopeo => Ok(()),
        }
        .with_context(|| format!("{name} cannot be removed"))
    }

    /// Pulls the image.
    ///
    /// # Errors
    /// When the runtime says so, with the end of what it printed; or when it takes too long.
    pub(crate) async fn pull(&self, image: &ImageReference) -> Result<()> {
        let name = self.name(image)?;
        let scratch = scratch()?;
        match self.runtime {
            Runtime::Docker => run(self.runtime, &["pull", "--quiet", &name], scratch.path(), PULL).await.map(drop),
            Runtime::Containerd => {
                let hosts = scratch.path().join("hosts");
                self.write_hosts(&hosts.join(image.registry.as_str()))?;
                let hosts = hosts.to_string_lossy();
                let pull = ["--namespace", NAMESPACE, "images", "pull", "--hosts-dir", &*hosts, &name];
                run(self.runtime, &pull, scratch.path(), PULL).await.map(drop)
            }
            Runtime::Skopeo => {
                let secure = format!("--src-tls-verify={}", self.from.scheme() == "https");
                let (from, to) =
                    (format!("docker://{name}"), format!("dir:{}", scratch.path().join("image").display()));
                run(self.runtime, &["copy", "--quiet", &secure, &from, &to], scratch.path(), PULL).await.map(drop)
            }
        }
    }

    /// `hosts.toml` with one host and no fall-back: a pull that Eagle could not serve has to fail.
    fn write_hosts(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory)?;
        let file = directory.join("hosts.toml");
        let from = self.from.as_str().trim_end_matches('/');
        // containerd 1.6 does not look at a file that has a server and no host.
        let text = format!("server = \"{from}\"\n\n[host.\"{from}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
        fs::write(&file, text).with_context(|| format!("{} cannot be written", file.display()))
    }
}

fn scratch() -> Result<TempDir> {
    tempfile::Builder::new().prefix("eagle-bench-").tempdir().context("no temporary directory can be made")
}

/// Where a program is, by `PATH`.
fn find(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file());
    found.with_context(|| format!("there is no {program} in PATH on this machine; install it, or leave --runtime out"))
}

/// Runs a command of the runtime to its end, and gives the end of what it printed.
async fn run(runtime: Runtime, arguments: &[&str], scratch: &Path, deadline: Duration) -> Result<String> {
    let program = find(runtime.program())?;
    let log = scratch.join("log");
    let output = File::create(&log)?;
    let own = std::env::current_exe().context("cannot find this program")?;
    let what = || format!("{} {}", runtime.program(), arguments.join(" "));
    let mut child = Command::new(own)
        .args(["owned", "--"])
        .arg(program)
        .args(arguments)
        // Not the runtime's business.
        .env_remove(token::VARIABLE)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(what)?;
    let Ok(status) = tokio::time::timeout(deadline, child.wait()).await else {
        bail!("{}: took over {} s", what(), deadline.as_secs());
    };
    let status = status.with_context(what)?;
    if status.success() {
        return Ok(tail(&log));
    }
    Err(anyhow!("{}: {status}: {}", what(), tail(&log)))
}

fn tail(log: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut text = Vec::new();
        file.take(TAIL).read_to_end(&mut text)?;
        Ok(text)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(runtime: Runtime, through: bool, alias: Option<&str>) -> Client {
        let from = "http://127.0.0.1:43002".parse().unwrap();
        Client::new(runtime, from, through, alias.map(str::to_owned))
    }

    #[test]
    fn names_are_what_each_runtime_understands() {
        let image: ImageReference = "docker.io/library/debian:12".parse().unwrap();
        let name = |client: &Client| client.name(&image).unwrap();
        assert_eq!(name(&client(Runtime::Docker, true, None)), "127.0.0.1:43002/docker.io/library/debian:12");
        assert_eq!(name(&client(Runtime::Skopeo, false, None)), "127.0.0.1:43002/library/debian:12");
        assert_eq!(name(&client(Runtime::Containerd, true, None)), "docker.io/library/debian:12");
        let local: ImageReference = "127.0.0.1:5000/bench/image:latest".parse().unwrap();
        let aliased = client(Runtime::Docker, true, Some("bench.local")).name(&local).unwrap();
        assert_eq!(aliased, "127.0.0.1:43002/bench.local/bench/image:latest");
        let error = client(Runtime::Docker, true, None).name(&local).unwrap_err().to_string();
        assert!(error.contains("127.0.0.1:5000") && error.contains("containerd"), "{error}");
    }

    #[test]
    fn versions_are_read_of_what_programs_print() {
        let version = |runtime: Runtime, printed: &str| runtime.version_in(printed).unwrap_or_default();
        assert_eq!(version(Runtime::Skopeo, "skopeo version 1.9.3"), "1.9.3");
        assert_eq!(version(Runtime::Skopeo, "skopeo version 1.18.0 commit: abc"), "1.18.0");
        assert_eq!(version(Runtime::Docker, "20.10.24+dfsg1"), "20.10.24+dfsg1");
        let ctr = "Client:\n  Version:  1.6.1\n  Revision: a\n\nServer:\n  Version:  1.7.2~ds1\n  UUID: b";
        assert_eq!(version(Runtime::Containerd, ctr), "1.7.2~ds1");
        for nothing in ["", "skopeo", "skopeo version \u{1b}[2J", &format!("skopeo version {}", "1".repeat(101))] {
            assert_eq!(Runtime::Skopeo.version_in(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = find("eagle-no-such-runtime").unwrap_err().to_string();
        assert!(error.contains("there is no eagle-no-such-runtime in PATH"), "{error}");
    }

    #[test]
    fn only_the_end_of_a_log_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        fs::write(&log, format!("{}the end\n", "x".repeat(10_000))).unwrap();
        let text = tail(&log);
        assert!(text.ends_with("the end") && text.len() <= 2048);
        assert_eq!(tail(&directory.path().join("none")), "");
    }
}
