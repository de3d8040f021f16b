//! The processes of a run: how they are configured, started, killed, started again and ended.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::{
    network::Network,
    plan::{Member, Plan},
};
use crate::{
    cluster::CLUSTER_KEY,
    process::{Process, succeed},
};

/// From SIGTERM to the end, with everything drained.
const STOP_DEADLINE: Duration = Duration::from_secs(15);
/// Room on a member's disk above its cache limit: records, the identity, and what the file system itself takes.
const DISK_ROOM: u64 = 8 << 20;
/// Before another source takes over. The default is 5 s; a run has no time for that.
const STALL_TIMEOUT: &str = "1s";
/// Every role starts in under a second; this is for a machine that has other work.
const READY_DEADLINE: Duration = Duration::from_secs(30);
/// Mounting and the like.
const COMMAND_DEADLINE: Duration = Duration::from_secs(20);

/// Where runtimes connect.
const PROXY_PORT: u16 = 43002;

/// A member with its process.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) member: Member,
    directory: PathBuf,
    command: Vec<String>,
    environment: Vec<(String, String)>,
    eagle: PathBuf,
    process: Option<Process>,
    /// Seen ready since it was last started.
    ready: bool,
    /// Of the cache; none for a tracker.
    pub(crate) cache_limit: Option<u64>,
    pub(crate) admin: SocketAddr,
}

impl Node {
    /// Writes the configuration, mounts the disk, starts nothing.
    pub(crate) fn prepare(
        plan: &Plan,
        network: &Network,
        member: Member,
        directory: &Path,
        eagle: &Path,
        origin: SocketAddr,
    ) -> Result<Self> {
        let directory = directory.join(member.to_string());
        let data = directory.join("data");
        fs::create_dir_all(&data)?;
        let cache_limit = match member {
            Member::Tracker(_) => None,
            Member::Seeder(_) => Some(plan.seeder_cache_limit),
            Member::Proxy(_) => Some(plan.cache_limit),
        };
        if let (true, Some(limit)) = (network.has_namespaces(), cache_limit) {
            let size = format!("size={}", limit + DISK_ROOM);
            succeed(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "chaos"]).arg(&data), COMMAND_DEADLINE)?;
        }
        let config = configuration(plan, network, member, &data, cache_limit, origin)?;
        fs::write(directory.join("eagle.yaml"), config)?;
        fs::write(directory.join("clock"), "+0\n")?;
        let port = match member {
            Member::Tracker(_) => 6970,
            Member::Seeder(_) => 55009,
            Member::Proxy(_) => 43003,
        };
        Ok(Self {
            member,
            command: network.command(member),
            environment: if plan.moves_clocks() {
                clock_environment(&directory, plan.jumps(member))?
            } else {
                Vec::new()
            },
            directory,
            eagle: eagle.to_owned(),
            process: None,
            ready: false,
            cache_limit,
            admin: SocketAddr::new(network.local_address(member), port),
        })
    }

    /// Says in which zone it is, before it is started.
    pub(crate) fn label(&mut self, zone: &str) {
        self.set("EAGLE_P2P__TOPOLOGY__ZONE", zone);
    }

    /// Sets a variable of its environment, before it is started.
    pub(crate) fn set(&mut self, variable: &str, value: &str) {
        self.environment.push((variable.into(), value.into()));
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.directory.join("eagle.log")
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Starts it, without waiting.
    pub(crate) fn start(&mut self) -> Result<()> {
        let ready_file = self.directory.join("ready.json");
        let _ = fs::remove_file(&ready_file);
        let mut words = self.command.iter().map(String::as_str).chain([self.eagle.to_str().context("odd path")?]);
        let mut command = Command::new(words.next().context("no command")?);
        command.args(words).arg(self.member.role()).arg("--config").arg(self.directory.join("eagle.yaml"));
        command.arg("--ready-file").arg(ready_file).envs(self.environment.iter().cloned());
        command.env("RUST_BACKTRACE", "1");
        self.process = Some(Process::start(self.member.to_string(), &mut command, &self.log())?);
        self.ready = false;
        Ok(())
    }

    /// Whether it said so since its start; an error if it has ended.
    pub(crate) fn is_ready(&mut self) -> Result<bool> {
        let Some(process) = &mut self.process else { return Ok(false) };
        process.check_running()?;
        self.ready = self.ready
            || fs::read(self.directory.join("ready.json"))
                .is_ok_and(|text| text.ends_with(b"}") || text.ends_with(b"}\n"));
        Ok(self.ready)
    }

    /// Waits until it is ready.
    pub(crate) fn wait_ready(&mut self) -> Result<()> {
        let started = Instant::now();
        while !self.is_ready()? {
            ensure!(started.elapsed() < READY_DEADLINE, "{} was not ready within {READY_DEADLINE:?}", self.member);
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
        self.ready = false;
    }

    pub(crate) fn runs(&self) -> bool {
        self.process.is_some()
    }

    pub(crate) fn check_running(&mut self) -> Result<()> {
        self.process.as_mut().with_context(|| format!("{} was not started again", self.member))?.check_running()
    }

    /// SIGSTOP or SIGCONT, if it runs.
    pub(crate) fn freeze(&self, freeze: bool) {
        if let Some(process) = &self.process {
            process.signal(if freeze { Signal::STOP } else { Signal::CONT });
        }
    }

    /// Its process.
    pub(crate) fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// SIGTERM; it has to end with success and in time.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().with_context(|| format!("{} does not run", self.member))?;
        let status = process.stop(STOP_DEADLINE)?;
        ensure!(status.success(), "{} ended with {status} after SIGTERM", self.member);
        Ok(())
    }

    /// Moves its clock to so many seconds from the right time.
    pub(crate) fn move_clock(&self, seconds: i64) -> Result<()> {
        // The library reads the file while it is written to: it is replaced as a whole.
        let file = self.directory.join("clock");
        let new = self.directory.join("clock.new");
        fs::write(&new, format!("{seconds:+}\n"))?;
        Ok(fs::rename(new, file)?)
    }
}

/// Where the runtime of a proxy's machine connects.
pub(crate) fn mirror(network: &Network, proxy: usize) -> SocketAddr {
    SocketAddr::new(network.local_address(Member::Proxy(proxy)), PROXY_PORT)
}

fn configuration(
    plan: &Plan,
    network: &Network,
    member: Member,
    data: &Path,
    cache_limit: Option<u64>,
    origin: SocketAddr,
) -> Result<String> {
    let address = network.address(member);
    let local = network.local_address(member);
    let urls = |role: fn(usize) -> Member, count: usize, port: u16| {
        let urls: Vec<_> =
            (0..count).map(|number| format!("\"http://{}:{port}\"", network.address(role(number)))).collect();
        format!("[{}]", urls.join(", "))
    };
    let trackers = urls(Member::Tracker, plan.trackers, 6969);
    let seeders = urls(Member::Seeder, plan.seeders, 55008);
    let mut config = format!(
        "cluster:\n  key: {CLUSTER_KEY}\n\
         p2p:\n  encryption: {}\n\
         registries:\n  - name: docker.io\n    url: http://{origin}\n    connect_timeout: 2s\n    response_timeout: 3s\n    stall_timeout: 2s\n\
         log:\n  level: info\n  format: text\n",
        plan.encryption
    );
    match member {
        // Nodes that were killed are to be forgotten within a run.
        Member::Tracker(_) => writeln!(
            config,
            "tracker:\n  listen: {address}:6969\n  admin: {local}:6970\n  peer_ttl: 4s\n  interval_idle: 2s"
        )?,
        Member::Seeder(_) => writeln!(
            config,
            "seeder:\n  listen: {address}:55008\n  admin: {local}:55009\n  p2p_listen: {address}:61008\n  \
             data_listen: {address}:61018\n  trackers: {trackers}\n  manifest_ttl: 2s"
        )?,
        Member::Proxy(_) => writeln!(
            config,
            "proxy:\n  listen: {local}:{PROXY_PORT}\n  admin: {local}:43003\n  p2p_listen: {address}:61007\n  \
             data_listen: {address}:61017\n  trackers: {trackers}\n  seeders: {seeders}\n  stall_timeout: {STALL_TIMEOUT}"
        )?,
    }
    if let Some(limit) = cache_limit {
        writeln!(
            config,
            "  advertise: {address}\n  data_dir: {}\n  cache_limit: {limit}\n  download_rate: {rate}B/s\n  upload_rate: {rate}B/s",
            data.display(),
            rate = plan.rate
        )?;
        // Where every node has a file system of its own, the default is tested too.
        if !network.has_namespaces() {
            writeln!(config, "  min_free: 16MiB")?;
        }
    }
    Ok(config)
}

/// libfaketime, which adds what stands in a file to the wall clock, and to the monotonic one if so asked. Nothing else is changed.
fn clock_environment(directory: &Path, monotonic: bool) -> Result<Vec<(String, String)>> {
    let library = super::clock::library().context("libfaketime is not installed")?;
    let file = directory.join("clock");
    let pairs = [
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME_TIMESTAMP_FILE", file.display().to_string()),
        ("FAKETIME_CACHE_DURATION", "1".into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", if monotonic { "0" } else { "1" }.into()),
        ("NO_FAKE_STAT", "1".into()),
    ];
    Ok(pairs.map(|(key, value)| (key.to_owned(), value)).to_vec())
}
