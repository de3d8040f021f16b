//! Programs of a newer Debian than this machine's: containerd 2, docker with the containerd image store, a newer podman and
//! skopeo.
//!
//! The outer half fetches the packages with apt, into a state of apt's own, and unpacks them into a directory. A scenario
//! mounts that as a root of its own, with what it writes in memory, and starts programs in it by chroot. Nothing
//! is installed on the machine.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::{process::succeed, setup, workspace};

/// Debian 14, as far as it is: the first with containerd 2 and with a docker that has the containerd image store.
const SUITE: &str = "forky";
const PACKAGES: &[&str] = &["containerd", "crun", "docker-cli", "docker.io", "podman", "skopeo"];
/// Where apt finds what it needs to know that the packages are Debian's. Debian 12 has the suite's keys too.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Used where the machine's own configuration names no mirror of Debian.
const MIRROR: &str = "http://deb.debian.org/debian";

/// How long the packages of a suite that still changes are taken as they are.
const FRESH: Duration = Duration::from_secs(24 * 3600);
/// apt on a slow mirror, and a hundred packages to unpack on a busy machine.
const DEADLINE: Duration = Duration::from_secs(900);
const MOUNT_DEADLINE: Duration = Duration::from_secs(20);

/// Empty files that runtimes open by these names, of the machine.
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];

/// The packages, unpacked: from a day before if that is not older, or if there is no way to newer ones. The directory.
pub(crate) fn fetch() -> Result<PathBuf> {
    let cache = workspace::cache()?.join("newer-debian");
    fs::create_dir_all(&cache)?;
    let last = fs::read_to_string(cache.join("current")).ok().map(|name| cache.join(name.trim()));
    let last = last.filter(|unpacked| unpacked.join("complete").exists());
    if let Some(unpacked) = &last
        && let Ok(made) = fs::metadata(cache.join("current")).and_then(|metadata| metadata.modified())
        && SystemTime::now().duration_since(made).is_ok_and(|age| age < FRESH)
    {
        return Ok(unpacked.join("root"));
    }
    match update(&cache) {
        Ok(unpacked) => Ok(unpacked.join("root")),
        Err(reason) => match last {
            Some(unpacked) => {
                println!("the packages of {SUITE} are older than a day: {reason:#}");
                Ok(unpacked.join("root"))
            }
            None => Err(reason.context(format!("cannot get the packages of Debian's {SUITE}"))),
        },
    }
}

/// Asks the mirror what there is, and fetches and unpacks it unless it is there.
fn update(cache: &Path) -> Result<PathBuf> {
    let apt = Apt::new(&cache.join("apt"))?;
    apt.run(&["update", "-q"])?;
    let install = ["install", "-q", "-y", "--no-install-recommends"];
    let wanted = apt.run(&[&install[..], &["--print-uris"], PACKAGES].concat())?;
    // One line for each package: where it is, its file, its size, its hash.
    let wanted: Vec<&str> = wanted.lines().filter(|line| line.starts_with('\'')).collect();
    ensure!(wanted.len() >= PACKAGES.len(), "apt would fetch only {wanted:?}");
    let name = hex::encode(&Sha256::digest(wanted.join("\n"))[..8]);
    let unpacked = cache.join(&name);
    if !unpacked.join("complete").exists() {
        println!("fetching {} packages of Debian's {SUITE}", wanted.len());
        apt.run(&[&install[..], &["--download-only"], PACKAGES].concat())?;
        for old in fs::read_dir(cache)?.flatten().filter(|entry| entry.file_name() != "apt" && entry.path().is_dir()) {
            fs::remove_dir_all(old.path())?;
        }
        unpack(&apt.archives(), &unpacked.join("root"))?;
        fs::remove_dir_all(apt.archives())?;
        fs::write(unpacked.join("complete"), "")?;
    }
    fs::write(cache.join("current"), &name)?;
    Ok(unpacked)
}

/// apt with lists, archives and a list of installed packages (none) of its own.
struct Apt(PathBuf);

impl Apt {
    fn new(directory: &Path) -> Result<Self> {
        for below in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(directory.join(below))?;
        }
        fs::write(directory.join("status"), "")?;
        // Only the lists of packages: others may be configured on this machine.
        let mirror = mirror();
        fs::write(
            directory.join("sources.list"),
            format!("deb [signed-by={KEYRING} target=Packages] {mirror} {SUITE} main\n"),
        )?;
        Ok(Self(directory.to_owned()))
    }

    fn archives(&self) -> PathBuf {
        self.0.join("archives")
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("apt-get");
        let directory = self.0.display();
        for option in [
            format!("Dir::Etc::sourcelist={directory}/sources.list"),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("Dir::State::lists={directory}/lists"),
            format!("Dir::State::status={directory}/status"),
            format!("Dir::State::extended_states={directory}/extended_states"),
            format!("Dir::Cache={directory}"),
            "Acquire::Languages=none".to_owned(),
            // The directory may be one that apt's own account cannot read.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        succeed(command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments), DEADLINE)
    }
}

/// The mirror that this machine's packages come from.
fn mirror() -> String {
    let mut ask = Command::new("apt-get");
    ask.args(["indextargets", "--format", "$(SITE)|$(LABEL)", "Created-By: Packages"]);
    let listed = succeed(&mut ask, MOUNT_DEADLINE).unwrap_or_default();
    listed.lines().find_map(|line| line.strip_suffix("|Debian")).unwrap_or(MIRROR).to_owned()
}

fn unpack(archives: &Path, root: &Path) -> Result<()> {
    fs::create_dir_all(root.join("usr"))?;
    // No package brings these links of a merged /usr, nor the mount points.
    for link in ["bin", "lib", "lib64", "sbin"] {
        std::os::unix::fs::symlink(format!("usr/{link}"), root.join(link))?;
    }
    for directory in ["dev", "etc", "proc", "root", "run", "sys", "tmp", "var/tmp"] {
        fs::create_dir_all(root.join(directory))?;
    }
    let mut packages: Vec<_> = fs::read_dir(archives)?.flatten().map(|entry| entry.path()).collect();
    packages.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
    for package in packages {
        succeed(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(root), DEADLINE)?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n")?;
    Ok(())
}

/// What the outer half has fetched, as the scenarios are given it.
#[derive(Debug)]
pub(crate) struct Unpacked {
    /// The unpacked packages.
    pub(crate) root: PathBuf,
    /// Where to mount them: no directory that anybody removes while they are mounted there.
    pub(crate) mount_at: PathBuf,
}

/// The packages, mounted as a root in this mount namespace for as long as this lives.
#[derive(Debug)]
pub(crate) struct Newer {
    mount_at: PathBuf,
}

impl Newer {
    /// Mounts them, with `scratch` under its own name within, and the directories of `/etc` that are named, of `etc`.
    pub(crate) fn mount(unpacked: &Unpacked, scratch: &Path, etc: &[(&Path, &str)]) -> Result<Self> {
        let mount_at = unpacked.mount_at.clone();
        fs::create_dir_all(&mount_at)?;
        mount(&["-t", "tmpfs", "newer"], &mount_at)?;
        let newer = Self { mount_at };
        let (root, at) = (newer.root(), newer.mount_at.display());
        for directory in ["upper", "work", "root"] {
            fs::create_dir_all(newer.mount_at.join(directory))?;
        }
        let layers = format!("lowerdir={},upperdir={at}/upper,workdir={at}/work", unpacked.root.display());
        mount(&["-t", "overlay", "-o", &layers, "newer"], &root)?;
        mount(&["-t", "proc", "proc"], &root.join("proc"))?;
        mount(&["--rbind", "/sys"], &root.join("sys"))?;
        for directory in ["dev", "run", "tmp"] {
            mount(&["-t", "tmpfs", "newer"], &root.join(directory))?;
        }
        fs::create_dir_all(root.join("dev/shm"))?;
        for device in DEVICES {
            newer.bind(&Path::new("/dev").join(device), &format!("dev/{device}"))?;
        }
        newer.bind(scratch, scratch.strip_prefix("/")?.to_str().context("a directory that is not UTF-8")?)?;
        // As it is now: a scenario may have put a name into it.
        newer.bind(Path::new("/etc/hosts"), "etc/hosts")?;
        for (from, name) in etc {
            newer.bind(from, &format!("etc/{name}"))?;
        }
        Ok(newer)
    }

    fn bind(&self, from: &Path, below: &str) -> Result<()> {
        let to = self.root().join(below);
        if from.is_dir() {
            fs::create_dir_all(&to)?;
        } else if !to.exists() {
            fs::write(&to, "")?;
        }
        mount(&["--bind", from.to_str().context("a path that is not UTF-8")?], &to)
    }

    fn root(&self) -> PathBuf {
        self.mount_at.join("root")
    }
}

impl Drop for Newer {
    fn drop(&mut self) {
        // Fails only where the namespace ends anyhow.
        let _ = succeed(Command::new("umount").args(["--recursive", "--lazy"]).arg(&self.mount_at), MOUNT_DEADLINE);
    }
}

fn mount(arguments: &[&str], at: &Path) -> Result<()> {
    succeed(Command::new("mount").args(arguments).arg(at), MOUNT_DEADLINE)?;
    Ok(())
}

/// Where a runtime's programs come from.
#[derive(Debug, Clone)]
pub(crate) enum Programs {
    /// This machine's.
    Installed,
    /// Of a newer Debian.
    Newer(Arc<Newer>),
}

impl Programs {
    /// A program, by its name.
    pub(crate) fn command(&self, program: &str) -> Result<Command> {
        match self {
            Self::Installed => {
                Ok(Command::new(setup::find(program).with_context(|| format!("{program} is not installed"))?))
            }
            Self::Newer(newer) => {
                let mut command = Command::new("chroot");
                command.arg(newer.root()).arg(program);
                // In whatever order the machine's own path has them.
                command.env("PATH", "/usr/sbin:/usr/bin");
                Ok(command)
            }
        }
    }

    /// Where something that a program has mounted at `path` is seen from outside.
    pub(crate) fn seen(&self, path: &Path) -> PathBuf {
        match self {
            Self::Installed => path.to_owned(),
            Self::Newer(newer) => newer.root().join(path.strip_prefix("/").unwrap_or(path)),
        }
    }

    pub(crate) fn are_newer(&self) -> bool {
        matches!(self, Self::Newer(_))
    }
}
