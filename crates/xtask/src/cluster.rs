//! Eagle itself: a tracker, a seeder and proxies, as processes with configuration files.

use std::{
    fmt::Write as _,
    fs::{self, OpenOptions},
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    http,
    process::{Process, wait_until},
    scenarios::Scene,
};

/// Every role starts in under a second; this is for a machine that compiles at the same time.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// Name of the cluster key's file in the directory of a role.
const KEY_FILE: &str = "cluster.key";

/// From SIGTERM to the end, with pulls drained.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// The cluster key of the scenarios: `eagle` makes better ones.
pub(crate) const CLUSTER_KEY: &str = "RWFnbGUncyB0ZXN0cyBhcmUgbWVtYmVycyBvZiBvbmU=";

/// A registry that is nowhere but in the configuration of Eagle, which takes it for another name of the origin.
pub(crate) const OTHER_REGISTRY: &str = "registry.test";

/// What a scenario sets. Everything else is Eagle's default, but for ports, which every role picks itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// Proxies to start with.
    pub(crate) nodes: usize,
    /// `p2p.encryption`.
    pub(crate) encryption: &'static str,
    /// Of every node, each way.
    pub(crate) rate: &'static str,
    /// Of the proxies.
    pub(crate) cache_limit: u64,
    /// Whether there is a cluster key. Without one, scenarios can ask the APIs of tracker and seeder themselves.
    pub(crate) keyed: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { nodes: 1, encryption: "tls", rate: "unlimited", cache_limit: 100 << 30, keyed: true }
    }
}

/// Where a role listens, from its ready file.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Ready {
    pub(crate) role: String,
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
    #[serde(default)]
    pub(crate) p2p: Option<SocketAddr>,
    #[serde(default)]
    pub(crate) data: Option<SocketAddr>,
}

/// A running role.
#[derive(Debug)]
pub(crate) struct Role {
    process: Process,
    pub(crate) ready: Ready,
    directory: PathBuf,
    eagle: PathBuf,
}

impl Role {
    /// Starts `eagle ROLE` with a configuration file and waits until it says that it is ready. It holds the cluster key
    /// unless the configuration has a section about that.
    pub(crate) fn start(eagle: &Path, role: &str, directory: &Path, config: &str) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let mut config = config.to_owned();
        if !config.contains("cluster:\n") {
            write_keys(directory, &[CLUSTER_KEY])?;
            // In front: scenarios add lines to the last section.
            config.insert_str(0, &format!("cluster:\n  key_file: {}\n", directory.join(KEY_FILE).display()));
        }
        fs::write(directory.join("eagle.yaml"), config)?;
        let (process, ready) = launch(eagle, role, directory)?;
        Ok(Self { process, ready, directory: directory.to_owned(), eagle: eagle.to_owned() })
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// What it writes.
    pub(crate) fn log(&self) -> PathBuf {
        self.directory.join("eagle.log")
    }

    /// The file with its cluster keys.
    pub(crate) fn key_file(&self) -> PathBuf {
        self.directory.join(KEY_FILE)
    }

    /// Gives it other cluster keys, which it finds by itself while it runs.
    pub(crate) fn change_keys(&self, keys: &[&str]) -> Result<()> {
        write_keys(&self.directory, keys)
    }

    /// What it says of itself.
    pub(crate) fn status(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&http::request(self.ready.admin, "GET", "/status", &[])?.bytes()?)?)
    }

    /// The names of the cluster keys that it accepts now, its own first.
    pub(crate) fn accepted_keys(&self) -> Result<Vec<String>> {
        let status = self.status()?;
        Ok(serde_json::from_value(status["cluster"]["accepted_keys"].clone())?)
    }

    /// The process's number.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// As a crash, or as a machine that is gone.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Asks it to end; it has to do so with success and in time.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let status = self.process.stop(STOP_DEADLINE)?;
        ensure!(status.success(), "{} ended with {status} after SIGTERM", self.ready.role);
        Ok(())
    }

    /// Starts it again on the same data.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        let (process, ready) = launch(&self.eagle, &self.ready.role, &self.directory)?;
        (self.process, self.ready) = (process, ready);
        Ok(())
    }

    /// The most memory that it has had, bytes.
    pub(crate) fn most_memory(&self) -> Result<u64> {
        self.process.most_memory()
    }

    pub(crate) fn check_running(&mut self) -> Result<()> {
        self.process.check_running()
    }

    /// The sum of a metric's samples whose labels contain `labels`; labels that have not come up count as zero.
    pub(crate) fn metric(&self, name: &str, labels: &str) -> Result<f64> {
        let text = http::request(self.ready.admin, "GET", "/metrics", &[])?.bytes()?;
        let text = String::from_utf8_lossy(&text);
        let (mut known, mut sum) = (false, 0.0);
        for line in text.lines() {
            let Some((sample, value)) = line.rsplit_once(' ') else { continue };
            let (sample_name, sample_labels) = sample.split_once('{').unwrap_or((sample, ""));
            if sample_name == name {
                known = true;
                if sample_labels.contains(labels) {
                    sum += value.parse::<f64>().with_context(|| format!("bad sample {line:?}"))?;
                }
            }
        }
        ensure!(known, "no metric {name} at {}:\n{text}", self.ready.admin);
        Ok(sum)
    }
}

/// Puts the key file of a role in its place, whole or not at all.
fn write_keys(directory: &Path, keys: &[&str]) -> Result<()> {
    let next = directory.join("next.key");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
    file.write_all((keys.join("\n") + "\n").as_bytes())?;
    Ok(fs::rename(next, directory.join(KEY_FILE))?)
}

fn launch(eagle: &Path, role: &str, directory: &Path) -> Result<(Process, Ready)> {
    let ready_file = directory.join("ready.json");
    let _ = fs::remove_file(&ready_file);
    let mut command = Command::new(eagle);
    command.arg(role).arg("--config").arg(directory.join("eagle.yaml")).arg("--ready-file").arg(&ready_file);
    let log = directory.join("eagle.log");
    let mut process = Process::start(format!("eagle {role}"), &mut command, &log)?;
    let ready = wait_until(&format!("eagle {role} to be ready"), START_DEADLINE, || {
        process.check_running()?;
        // Half written is as good as not there.
        Ok(fs::read(&ready_file).ok().and_then(|text| serde_json::from_slice::<Ready>(&text).ok()))
    })
    .with_context(|| crate::process::tail(&log))?;
    Ok((process, ready))
}

/// One tracker, one seeder and some proxies.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Role>,
    pub(crate) seeder: Role,
    pub(crate) tracker: Role,
    settings: Settings,
    origin: SocketAddr,
    directory: PathBuf,
    eagle: PathBuf,
}

impl Cluster {
    /// Starts all of it with `docker.io` mapped to the registry at `origin`.
    pub(crate) fn start(scene: &Scene<'_>, origin: SocketAddr, settings: Settings) -> Result<Self> {
        let directory = scene.directory.join("eagle");
        let tracker = Role::start(
            scene.eagle,
            "tracker",
            &directory.join("tracker"),
            &format!("tracker:\n  listen: 127.0.0.1:0\n  admin: 127.0.0.1:0\n{}", membership(settings)),
        )?;
        let seeder_directory = directory.join("seeder");
        let mut config = common(origin, settings);
        writeln!(config, "seeder:\n  trackers: [\"http://{}\"]", tracker.ready.listen)?;
        config.push_str(&node(&seeder_directory, settings));
        let seeder = Role::start(scene.eagle, "seeder", &seeder_directory, &config)?;
        let mut cluster =
            Self { nodes: Vec::new(), seeder, tracker, settings, origin, directory, eagle: scene.eagle.to_owned() };
        for _ in 0..settings.nodes {
            cluster.add_node()?;
        }
        Ok(cluster)
    }

    /// Starts one more proxy; its place in `nodes`.
    pub(crate) fn add_node(&mut self) -> Result<usize> {
        let number = self.nodes.len();
        let directory = self.directory.join(format!("node-{number}"));
        let mut config = common(self.origin, self.settings);
        writeln!(config, "proxy:\n  trackers: [\"http://{}\"]", self.tracker.ready.listen)?;
        writeln!(config, "  seeders: [\"http://{}\"]", self.seeder.ready.listen)?;
        writeln!(config, "  cache_limit: {}", self.settings.cache_limit)?;
        config.push_str(&node(&directory, self.settings));
        self.nodes.push(Role::start(&self.eagle, "proxy", &directory, &config)?);
        Ok(number)
    }

    /// Starts the seeder again with these lines at the end of its configuration. Its address may change, so nodes are
    /// added after this.
    pub(crate) fn configure_seeder(&mut self, lines: &str) -> Result<()> {
        let file = self.seeder.directory.join("eagle.yaml");
        let config = fs::read_to_string(&file)?;
        fs::write(&file, format!("{config}{lines}"))?;
        self.seeder.stop()?;
        self.seeder.start_again()
    }

    /// Starts a node again with these lines at the end of its configuration's section. Its address may change.
    pub(crate) fn configure_node(&mut self, node: usize, lines: &str) -> Result<()> {
        let node = &mut self.nodes[node];
        let file = node.directory.join("eagle.yaml");
        let config = fs::read_to_string(&file)?;
        fs::write(&file, format!("{config}{lines}"))?;
        node.stop()?;
        node.start_again()
    }

    /// Where the runtime of a node connects.
    pub(crate) fn proxy(&self, node: usize) -> SocketAddr {
        self.nodes[node].ready.listen
    }
}

/// The sections that seeder and proxy share.
pub(crate) fn common(origin: SocketAddr, settings: Settings) -> String {
    format!(
        "{}p2p:\n  encryption: {}\n\
         registries:\n  - name: docker.io\n    url: http://{origin}\n  - name: {OTHER_REGISTRY}\n    url: http://{origin}\n\
         log:\n  level: info\n",
        membership(settings),
        settings.encryption
    )
}

/// The section about the cluster, where it is not the one that every role gets.
fn membership(settings: Settings) -> &'static str {
    if settings.keyed { "" } else { "cluster:\n  insecure: false\n" }
}

/// What seeders and proxies leave free on their file systems, bytes. Little: what is tested does not depend on how full the disk of this
/// machine is.
pub(crate) const MIN_FREE: u64 = 16 << 20;

/// What is the same in the sections of seeder and proxy.
pub(crate) fn node(directory: &Path, settings: Settings) -> String {
    let data_dir = directory.join("data");
    format!(
        "  listen: 127.0.0.1:0\n  admin: 127.0.0.1:0\n  p2p_listen: 127.0.0.1:0\n  data_listen: 127.0.0.1:0\n  advertise: 127.0.0.1\n  \
         data_dir: {}\n  min_free: {MIN_FREE}\n  download_rate: {rate}\n  upload_rate: {rate}\n",
        data_dir.display(),
        rate = settings.rate
    )
}
