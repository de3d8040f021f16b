//! Names of trackers and seeders that come to mean other machines.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Scene;
use crate::{
    chaos::{
        client::{Record, Runtime},
        content::Image,
        origin::Origin,
    },
    cluster::{Role, Settings, common, node},
    http,
    process::{succeed, wait_until},
};

const TRACKER: &str = "tracker.eagle.test";
const SEEDER: &str = "seeder.eagle.test";
/// The machines that the names mean, first and later. Nothing else in this namespace has these addresses.
const MACHINES: [Ipv4Addr; 2] = [Ipv4Addr::new(127, 202, 0, 1), Ipv4Addr::new(127, 202, 0, 2)];
/// Sizes of the layers of each image: large enough that they do not come along with their hashes.
const LAYERS: [u64; 2] = [256 << 10; 2];
/// Who pulls nothing notices with its next announce that a tracker is gone.
const IDLE: &str = "500ms";
/// What a node notices within seconds; this is for a machine that has other work.
const DEADLINE: Duration = Duration::from_secs(60);
const COMMAND_DEADLINE: Duration = Duration::from_secs(10);

/// This namespace's own `/etc/hosts`, as long as this lives.
struct Hosts {
    file: PathBuf,
    mounted: Vec<&'static str>,
}

impl Hosts {
    fn mount(directory: &Path) -> Result<Self> {
        let mut hosts = Self { file: directory.join("hosts"), mounted: Vec::new() };
        let order = directory.join("nsswitch.conf");
        fs::write(&order, "hosts: files\n")?;
        hosts.point_at(MACHINES[0])?;
        for (file, at) in [(hosts.file.clone(), "/etc/hosts"), (order, "/etc/nsswitch.conf")] {
            // There may be none to mount over, and then none that says something else.
            if Path::new(at).exists() {
                succeed(Command::new("mount").arg("--bind").arg(file).arg(at), COMMAND_DEADLINE)?;
                hosts.mounted.push(at);
            }
        }
        ensure!(hosts.mounted.contains(&"/etc/hosts"), "there is no /etc/hosts");
        Ok(hosts)
    }

    /// Changes what the names mean, in the file that is mounted.
    fn point_at(&self, machine: Ipv4Addr) -> Result<()> {
        Ok(fs::write(&self.file, format!("127.0.0.1 localhost\n{machine} {TRACKER} {SEEDER}\n"))?)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for at in &self.mounted {
            // What stays mounted goes with the namespace.
            let _ = succeed(Command::new("umount").arg(at), COMMAND_DEADLINE);
        }
    }
}

/// What all parts have in common.
struct Stage<'a> {
    scene: &'a Scene<'a>,
    images: Vec<Image>,
    origin: Origin,
}

pub(super) fn resolved_anew(scene: &Scene<'_>) -> Result<()> {
    let hosts = Hosts::mount(scene.directory)?;
    let images: Vec<_> = (0..2).map(|number| Image::make(2, number, &LAYERS)).collect();
    let origin = Origin::start(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0), &images)?;
    let stage = Stage { scene, images, origin };
    let (mut tracker, mut seeder) = stage.machine(0)?;
    let node = stage.proxy("node", true)?;
    // Whoever has no tracker finds seeders by the names of its own list alone.
    let untracked = stage.proxy("untracked", false)?;
    for proxy in [&node, &untracked] {
        stage.pull(proxy, 0)?;
    }
    knows(&tracker, 2).context("before")?;

    let (later_tracker, _later_seeder) = stage.machine(1)?;
    hosts.point_at(MACHINES[1])?;
    tracker.kill();
    seeder.kill();
    knows(&later_tracker, 2).context("after the names were changed")?;
    for proxy in [&node, &untracked] {
        stage.pull(proxy, 1)?;
    }
    let fetched = stage.origin.fetched();
    for blob in stage.images.iter().flat_map(|image| &image.blobs) {
        let times = fetched.get(&blob.digest).copied().unwrap_or_default();
        ensure!(times == 1, "{} was fetched {times} times from the origin: {fetched:?}", blob.digest);
    }
    Ok(())
}

/// Waits until a tracker knows so many nodes.
fn knows(tracker: &Role, nodes: usize) -> Result<()> {
    wait_until("the tracker to know the nodes", DEADLINE, || {
        let answer = http::request(tracker.ready.admin, "GET", "/v1/peers", &[])?.bytes()?;
        let page: Value = serde_json::from_slice(&answer)?;
        let known = page["peers"].as_array().context("no list of nodes")?.len();
        Ok((known == nodes).then_some(()))
    })
}

impl Stage<'_> {
    /// A tracker and a seeder on a machine of their own.
    fn machine(&self, number: usize) -> Result<(Role, Role)> {
        let address = MACHINES[number];
        let start = |role: &str, config: &str| {
            Role::start(self.scene.eagle, role, &self.scene.directory.join(format!("{role}-{number}")), config)
        };
        let config = format!(
            "tracker:\n  listen: {address}:6969\n  admin: 127.0.0.1:0\n  interval_active: 500ms\n  interval_idle: {IDLE}\n"
        );
        let tracker = start("tracker", &config)?;
        let mut config = common(self.origin.address(), Settings::default());
        writeln!(config, "seeder:\n  trackers: [\"http://{TRACKER}:6969\"]")?;
        let directory = self.scene.directory.join(format!("seeder-{number}"));
        let addresses = node(&directory, Settings::default()).replace("127.0.0.1", &address.to_string());
        // The first one is that of the API.
        config.push_str(&addresses.replacen(&format!("listen: {address}:0"), &format!("listen: {address}:55008"), 1));
        Ok((tracker, start("seeder", &config)?))
    }

    fn proxy(&self, name: &str, tracked: bool) -> Result<Role> {
        let directory = self.scene.directory.join(name);
        let mut config = common(self.origin.address(), Settings::default());
        // However slow the machine is, nobody turns to the registry for what the seeder is to bring.
        writeln!(config, "proxy:\n  seeders: [\"http://{SEEDER}:55008\"]\n  stall_timeout: 1m")?;
        if tracked {
            writeln!(config, "  trackers: [\"http://{TRACKER}:6969\"]")?;
        }
        config.push_str(&node(&directory, Settings::default()));
        Role::start(self.scene.eagle, "proxy", &directory, &config)
    }

    fn pull(&self, proxy: &Role, number: usize) -> Result<()> {
        let record = Record::default();
        let runtime = Runtime { node: 0, mirror: proxy.ready.listen, origin: &self.origin, record: &record };
        ensure!(runtime.pull(number, &self.images[number]), "image {number}: {:?}", record.requests());
        Ok(())
    }
}
