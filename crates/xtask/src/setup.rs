//! The programs that the tests need, and how they get onto a Debian machine.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::process::{finish, succeed};

/// A program and the Debian package that has it: the first of these that this release of Debian knows.
struct Tool {
    program: &'static str,
    packages: &'static [&'static str],
}

const fn tool(program: &'static str, packages: &'static [&'static str]) -> Tool {
    Tool { program, packages }
}

/// What the end-to-end scenarios start.
const E2E: &[Tool] = &[
    tool("docker-registry", &["docker-registry"]),
    tool("htpasswd", &["apache2-utils"]),
    tool("nginx", &["nginx-light", "nginx"]),
    tool("dockerd", &["docker.io"]),
    // Debian 13 has the client apart from the daemon.
    tool("docker", &["docker-cli", "docker.io"]),
    tool("containerd", &["containerd"]),
    tool("ctr", &["containerd"]),
    tool("runc", &["runc"]),
    tool("podman", &["podman"]),
    tool("skopeo", &["skopeo"]),
    tool("curl", &["curl"]),
    tool("ip", &["iproute2"]),
    tool("unshare", &["util-linux"]),
    tool("chromium", &["chromium"]),
    tool("chromedriver", &["chromium-driver"]),
    tool("prometheus", &["prometheus"]),
    tool("promtool", &["prometheus"]),
    // The shared store of trackers, in the tests of its crate.
    tool("redis-server", &["redis-server"]),
    tool("tar", &["tar"]),
    tool("gzip", &["gzip"]),
    tool("strip", &["binutils"]),
    tool("setpriv", &["util-linux"]),
    tool("useradd", &["passwd"]),
    // Checks units; nothing is started by it.
    tool("systemd-analyze", &["systemd"]),
    tool("mount", &["mount"]),
    tool("strace", &["strace"]),
];

/// What `cargo xtask chaos` starts.
const CHAOS: &[Tool] = &[
    tool("ip", &["iproute2"]),
    tool("tc", &["iproute2"]),
    tool("nft", &["nftables"]),
    tool("mount", &["mount"]),
    tool("unshare", &["util-linux"]),
    tool("nsenter", &["util-linux"]),
    tool("setpriv", &["util-linux"]),
];

/// What the checks of the chart start. helm and the schemas come from their own registries (`chart.rs`).
const CHART: &[Tool] = &[
    tool("python3", &["python3"]),
    // Checks the alert rules. The same package has the Prometheus of the end-to-end scenarios.
    tool("promtool", &["prometheus"]),
];

/// Packages without a program of their own.
const E2E_EXTRA: &[&[&str]] = &[&["ca-certificates"]];
const CHAOS_EXTRA: &[&[&str]] = &[&["libfaketime"]];
const CHART_EXTRA: &[&[&str]] = &[&["python3-venv"]];

/// What a run of the end-to-end scenarios wants of the disk, bytes: 4.7 GB were seen to go, where several runtimes unpack the image.
const E2E_ROOM: u64 = 6 << 30;

/// apt on a slow mirror.
const APT_DEADLINE: Duration = Duration::from_secs(900);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    E2e,
    Chart,
    Chaos,
    All,
}

/// Nothing may be skipped there.
pub(crate) fn in_ci() -> bool {
    env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false")
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Makes the needed programs available, by apt-get when root; an error that names what is missing otherwise.
pub(crate) fn ensure(need: Need) -> Result<()> {
    let missing = missing(need);
    if missing.is_empty() {
        return Ok(());
    }
    let by_hand: Vec<&str> = missing.iter().filter_map(|packages| packages.last().copied()).collect();
    let by_hand = by_hand.join(" ");
    if !is_root() || !program("apt-get") {
        bail!("missing: {by_hand} (on Debian, as root: apt-get install --no-install-recommends {by_hand})");
    }
    println!("installing {by_hand}");
    let apt = |arguments: &[&str]| {
        succeed(Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(arguments), APT_DEADLINE)
    };
    apt(&["update", "-q"]).context("apt-get update failed")?;
    let mut arguments = vec!["install", "-q", "-y", "--no-install-recommends"];
    for packages in &missing {
        let known = |package: &&&str| {
            finish(Command::new("apt-cache").args(["show", package]), APT_DEADLINE)
                .is_ok_and(|show| show.status.success())
        };
        let package = packages.iter().find(known).with_context(|| format!("Debian has none of {packages:?} here"))?;
        arguments.push(package);
    }
    // A package that starts its own daemon would take ports and sockets; the tests start their own.
    let no_daemons = PolicyGuard::deny_daemons()?;
    apt(&arguments).with_context(|| format!("apt-get could not install {by_hand}"))?;
    drop(no_daemons);
    let still = self::missing(need);
    ensure!(still.is_empty(), "still missing after apt-get install: {still:?}");
    Ok(())
}

/// Whether the scenarios have room in `directory`: a disk that fills up half way makes runtimes fail in ways that do not say so.
pub(crate) fn ensure_room(directory: &Path) -> Result<()> {
    let space = rustix::fs::statvfs(directory).with_context(|| format!("cannot look at {}", directory.display()))?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    ensure!(
        free >= E2E_ROOM,
        "{} has {} MiB of free space, and the end-to-end scenarios want {}; remove something (cargo clean), or set TMPDIR",
        directory.display(),
        free >> 20,
        E2E_ROOM >> 20
    );
    Ok(())
}

/// What is not there: for each, the packages of which one would bring it.
fn missing(need: Need) -> Vec<&'static [&'static str]> {
    let mut packages = Vec::new();
    let mut look = |tools: &[Tool], extra: &[&'static [&'static str]]| {
        packages.extend(tools.iter().filter(|tool| !program(tool.program)).map(|tool| tool.packages));
        packages.extend(extra.iter().filter(|packages| !packages.iter().any(|package| installed(package))));
    };
    if matches!(need, Need::E2e | Need::All) {
        look(E2E, E2E_EXTRA);
    }
    if matches!(need, Need::Chart | Need::All) {
        look(CHART, CHART_EXTRA);
    }
    if matches!(need, Need::Chaos | Need::All) {
        look(CHAOS, CHAOS_EXTRA);
    }
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// Whether a program is on the path.
fn program(name: &str) -> bool {
    find(name).is_some()
}

/// Where a program is. Debian keeps daemons in sbin directories, which a user's path may lack.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

fn installed(package: &str) -> bool {
    // A package that may be installed for several architectures at once has its own in the name.
    let architectures = ["", ":amd64", ":arm64"].iter();
    let mut lists = architectures.map(|suffix| format!("/var/lib/dpkg/info/{package}{suffix}.list"));
    lists.any(|list| Path::new(&list).exists())
}

/// `policy-rc.d` that keeps packages from starting daemons, for as long as it lives. One that is there already stays.
struct PolicyGuard {
    made: Option<PathBuf>,
}

impl PolicyGuard {
    fn deny_daemons() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let path = PathBuf::from("/usr/sbin/policy-rc.d");
        if path.exists() {
            return Ok(Self { made: None });
        }
        std::fs::write(&path, "#!/bin/sh\nexit 101\n")?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        Ok(Self { made: Some(path) })
    }
}

impl Drop for PolicyGuard {
    fn drop(&mut self) {
        if let Some(path) = &self.made {
            let _ = std::fs::remove_file(path);
        }
    }
}
