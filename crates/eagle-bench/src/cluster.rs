//! A cluster on this machine: an origin registry, a tracker, a seeder and proxies, each a process with ports
//! of its own choice and data in one temporary directory.

use std::{
    ffi::OsString,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use eagle_core::{
    Digest,
    units::{Rate, Size},
};
use eagle_registry::{ImageReference, embedded::RegistryStats};
use futures::future::try_join_all;
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    cli::ClusterArgs,
    client::get_json,
    origin::{Layer, OriginReady, tag},
    process::Process,
};

/// Between two looks at whether everything still runs.
const WATCH: Duration = Duration::from_millis(200);
/// From asking all processes to end to killing those that have not.
const STOP: Duration = Duration::from_secs(5);
/// Cache of every node unless two such images need more: nothing here should depend on eviction.
const CACHE: u64 = 100 << 30;

/// What the nodes also know the origin as: a name without a port, which may stand in the path of an image.
pub(crate) const LOCAL_REGISTRY: &str = "bench.local";

/// Where a role listens, from its ready file.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Ready {
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
}

/// A role of Eagle that runs.
#[derive(Debug)]
pub(crate) struct Role {
    pub(crate) process: Process,
    pub(crate) ready: Ready,
}

impl Role {
    /// The `status` part of what it says at `/status`.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) async fn status(&self) -> Result<Value> {
        let mut status: Value = get_json(self.ready.admin, "/status").await?;
        Ok(status["status"].take())
    }
}

/// Everything that runs. Dropping it kills the processes and removes their data.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) proxies: Vec<Role>,
    pub(crate) seeder: Role,
    pub(crate) tracker: Role,
    origin: Process,
    ready: OriginReady,
    // Last: dropped when no process is left that could write to it.
    directory: TempDir,
}

/// What the origin has.
#[derive(Debug)]
pub(crate) struct Images<'a> {
    /// Sizes of the layers of each.
    pub(crate) layers: &'a [u64],
    /// Least size of the configuration of each.
    pub(crate) config_size: u64,
    /// How many of different content.
    pub(crate) count: u32,
}

/// What the processes are started with.
struct Launch<'a> {
    args: &'a ClusterArgs,
    eagle: &'a Path,
    directory: &'a Path,
    logs: &'a Path,
    origin: SocketAddr,
}

/// The eagle program: as given, or the one beside this program.
///
/// # Errors
/// When there is none.
pub(crate) fn find_eagle(given: Option<&Path>) -> Result<PathBuf> {
    let eagle = match given {
        Some(path) => path.to_owned(),
        None => std::env::current_exe().context("cannot find this program")?.with_file_name("eagle"),
    };
    ensure!(
        eagle.is_file(),
        "there is no eagle program at {}; build it (cargo build --release -p eagle) or name it with --eagle",
        eagle.display()
    );
    // A relative path would be looked up in PATH.
    eagle.canonicalize().with_context(|| format!("{} cannot be found", eagle.display()))
}

impl Cluster {
    /// Starts everything, with an image of these layers at the origin, and waits until all of it is ready.
    ///
    /// # Errors
    /// What did not start, with the end of its log.
    pub(crate) async fn start(args: &ClusterArgs, layers: &[u64]) -> Result<Self> {
        Self::with_images(args, &Images { layers, config_size: 0, count: 1 }, IpAddr::V4(Ipv4Addr::LOCALHOST)).await
    }

    /// The same, with these images; the origin and the proxies listen at this address of the machine.
    ///
    /// # Errors
    /// What did not start, with the end of its log.
    pub(crate) async fn with_images(args: &ClusterArgs, images: &Images<'_>, address: IpAddr) -> Result<Self> {
        let eagle = find_eagle(args.eagle.as_deref())?;
        let directory = tempfile::Builder::new().prefix("eagle-bench-").tempdir();
        let directory =
            directory.with_context(|| format!("no directory can be made in {}", std::env::temp_dir().display()))?;
        let logs = args.keep_logs.clone().unwrap_or_else(|| directory.path().join("logs"));
        fs::create_dir_all(&logs).with_context(|| format!("{} cannot be made", logs.display()))?;

        let (origin, ready) = start_origin(images, address, directory.path(), &logs).await?;
        let launch = Launch { args, eagle: &eagle, directory: directory.path(), logs: &logs, origin: ready.listen };
        let tracker = launch.start("tracker", "tracker", json!({})).await?;
        let trackers = json!([format!("http://{}", tracker.ready.listen)]);
        let rate = args.seeder_rate.unwrap_or(args.rate);
        let mut section = launch.node("seeder", rate, &trackers);
        section["piece_length"] = json!(args.piece_length.to_string());
        let seeder = launch.start("seeder", "seeder", section).await?;
        let seeders = json!([format!("http://{}", seeder.ready.listen)]);
        let proxies = try_join_all((1..=args.nodes).map(|number| {
            let name = format!("proxy-{number}");
            let mut section = launch.node(&name, args.rate, &trackers);
            section["seeders"] = seeders.clone();
            section["listen"] = json!(SocketAddr::new(address, 0));
            let launch = &launch;
            async move { launch.start(&name, "proxy", section).await }
        }))
        .await?;
        Ok(Self { proxies, seeder, tracker, origin, ready, directory })
    }

    /// The first image at the origin.
    ///
    /// # Errors
    /// Never, unless the origin is not the one that this program starts.
    pub(crate) fn image(&self) -> Result<ImageReference> {
        self.numbered_image(0)
    }

    /// The image of this number, counted from 0.
    ///
    /// # Errors
    /// As [`Cluster::image`].
    pub(crate) fn numbered_image(&self, number: u32) -> Result<ImageReference> {
        let OriginReady { listen, repository, .. } = &self.ready;
        Ok(format!("{listen}/{repository}:{}", tag(number)).parse()?)
    }

    /// Where the origin listens.
    pub(crate) const fn origin(&self) -> SocketAddr {
        self.ready.listen
    }

    /// The layers of the image.
    pub(crate) fn layers(&self) -> &[Layer] {
        &self.ready.layers
    }

    /// The configuration of the image.
    pub(crate) const fn config(&self) -> Layer {
        self.ready.config
    }

    /// Where the first proxy keeps a complete blob.
    pub(crate) fn blob_file(&self, digest: Digest) -> PathBuf {
        let hex = digest.hex();
        // As `docs/storage.md` has it.
        self.directory
            .path()
            .join("proxy-1/blobs/blobs/sha256")
            .join(hex.get(..2).unwrap_or(""))
            .join(&hex)
            .join("data")
    }

    /// A directory that is removed with everything else.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What the origin has served.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) async fn origin_stats(&self) -> Result<RegistryStats> {
        get_json(self.ready.listen, "/_stats").await
    }

    /// An error when a process has ended, with its log.
    ///
    /// # Errors
    /// The first process that has.
    pub(crate) fn check_running(&mut self) -> Result<()> {
        self.processes().into_iter().try_for_each(Process::check_running)
    }

    /// Ends, with an error, when a process does.
    pub(crate) async fn watch(&mut self) -> anyhow::Error {
        loop {
            if let Err(error) = self.check_running() {
                return error;
            }
            tokio::time::sleep(WATCH).await;
        }
    }

    /// Ends all processes in order, and those that take too long by force.
    pub(crate) async fn stop(mut self) {
        for process in self.processes() {
            process.ask_to_end();
        }
        let started = Instant::now();
        while started.elapsed() < STOP && !self.processes().into_iter().all(Process::has_ended) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn processes(&mut self) -> Vec<&mut Process> {
        let roles = self.proxies.iter_mut().chain([&mut self.seeder, &mut self.tracker]);
        roles.map(|role| &mut role.process).chain([&mut self.origin]).collect()
    }
}

/// Starts a proxy that knows no tracker, no seeder and no registry, with what is in `NAME` of the directory; its log and configuration
/// are put beside that.
///
/// # Errors
/// When it does not start, with the end of its log.
pub(crate) async fn lone_proxy(args: &ClusterArgs, eagle: &Path, directory: &Path, name: &str) -> Result<Role> {
    // The configuration names a registry, and nobody asks it for anything: the port of the discard service (RFC 863).
    let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
    let launch = Launch { args, eagle, directory, logs: directory, origin: nowhere };
    // Of an earlier start it would say that this one is ready.
    let _ = fs::remove_file(launch.ready_file(name));
    launch.start(name, "proxy", launch.node(name, args.rate, &json!([]))).await
}

async fn start_origin(
    images: &Images<'_>,
    address: IpAddr,
    directory: &Path,
    logs: &Path,
) -> Result<(Process, OriginReady)> {
    let file = directory.join("origin.ready");
    let mut arguments: Vec<OsString> = vec!["origin".into(), "--ready-file".into(), file.clone().into()];
    arguments.extend(["--address".into(), address.to_string().into()]);
    arguments.extend(["--config-size".into(), images.config_size.to_string().into()]);
    arguments.extend(["--images".into(), images.count.to_string().into()]);
    for size in images.layers {
        arguments.extend(["--layer".into(), size.to_string().into()]);
    }
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut process = Process::start("the origin registry", &program, &arguments, logs.join("origin.log"))?;
    let ready = process.ready(&file).await?;
    Ok((process, ready))
}

impl Launch<'_> {
    /// What seeder and proxy have in common.
    fn node(&self, name: &str, rate: Rate, trackers: &Value) -> Value {
        let cache = CACHE.max(self.args.size.0.saturating_mul(2));
        json!({
            "p2p_listen": "127.0.0.1:0",
            "data_listen": "127.0.0.1:0",
            "advertise": "127.0.0.1",
            "data_dir": self.directory.join(name),
            "cache_limit": Size(cache).to_string(),
            // A bench measures the same however full the disk is, down to what it needs itself.
            "min_free": "16MiB",
            "download_rate": rate.to_string(),
            "upload_rate": rate.to_string(),
            "trackers": trackers,
        })
    }

    fn ready_file(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.ready"))
    }

    /// Starts `eagle ROLE` with a configuration file and waits until it is ready.
    async fn start(&self, name: &str, role: &str, mut section: Value) -> Result<Role> {
        if section["listen"].is_null() {
            section["listen"] = json!("127.0.0.1:0");
        }
        section["admin"] = json!("127.0.0.1:0");
        let config = json!({
            role: section,
            "p2p": { "encryption": self.args.encryption.as_str() },
            "registries": [
                { "name": self.origin.to_string(), "url": format!("http://{}", self.origin) },
                { "name": LOCAL_REGISTRY, "url": format!("http://{}", self.origin) },
            ],
            "log": { "level": self.args.log_level, "format": "text" },
        });
        // JSON is YAML too.
        let config_file = self.logs.join(format!("{name}.yaml"));
        fs::write(&config_file, serde_json::to_vec_pretty(&config)?)
            .with_context(|| format!("{} cannot be written", config_file.display()))?;
        let ready_file = self.ready_file(name);
        let arguments =
            [role.into(), "--config".into(), config_file.into(), "--ready-file".into(), ready_file.clone().into()];
        let log = self.logs.join(format!("{name}.log"));
        let mut process = Process::start(&format!("eagle {name}"), self.eagle, &arguments, log)?;
        let ready = process.ready(&ready_file).await?;
        Ok(Role { process, ready })
    }
}
