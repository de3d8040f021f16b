//! The files of a machine, as its administrator has left them and as `eagle configure` changes them.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::Scene;
use crate::process::{Finished, finish, succeed};

const DEADLINE: Duration = Duration::from_secs(20);
const RUNTIMES: [&str; 4] = ["docker", "containerd", "podman", "crio"];

/// A root directory with the configuration of every runtime.
pub(super) struct Host<'a> {
    scene: &'a Scene<'a>,
    root: PathBuf,
    before: BTreeMap<PathBuf, Vec<u8>>,
}

impl<'a> Host<'a> {
    /// With these files below its `/etc`.
    pub(super) fn administered(scene: &'a Scene<'a>, etc: &[(&str, &str)]) -> Result<Self> {
        let root = scene.directory.join("host");
        for (path, text) in etc {
            let path = root.join("etc").join(path);
            fs::create_dir_all(path.parent().context("no parent")?)?;
            fs::write(path, text)?;
        }
        fs::create_dir_all(root.join("etc/containers/registries.conf.d"))?;
        fs::create_dir_all(root.join("var/lib"))?;
        let before = files(&root)?;
        Ok(Self { scene, root, before })
    }

    pub(super) fn etc(&self, name: &str) -> PathBuf {
        self.root.join("etc").join(name)
    }

    /// Points every runtime at the proxy, for these registries, or for those that it does by default if there are none.
    pub(super) fn configure(&self, proxy: SocketAddr, registries: &[&str]) -> Result<()> {
        let registries: Vec<&str> = registries.iter().flat_map(|registry| ["--registry", registry]).collect();
        for runtime in RUNTIMES {
            let missing = self.eagle(&[&[runtime, "--check"], &registries[..]].concat(), proxy)?;
            // CRI-O reads what podman reads.
            ensure!(runtime == "crio" || missing.status.code() == Some(1), "{runtime} before: {missing:?}");
            done(&self.eagle(&[&[runtime], &registries[..]].concat(), proxy)?, runtime)?;
            done(&self.eagle(&[&[runtime, "--check"], &registries[..]].concat(), proxy)?, runtime)?;
        }
        Ok(())
    }

    /// Undoes that; every file has to be as it was.
    pub(super) fn undo(&self) -> Result<()> {
        for runtime in RUNTIMES {
            let mut undo = Command::new(self.scene.eagle);
            undo.args(["configure", runtime, "--undo", "--root"]).arg(&self.root);
            done(&finish(&mut undo, DEADLINE)?, runtime)?;
        }
        ensure!(files(&self.root)? == self.before, "undoing did not bring the files back as they were");
        Ok(())
    }

    fn eagle(&self, arguments: &[&str], proxy: SocketAddr) -> Result<Finished> {
        let mut command = Command::new(self.scene.eagle);
        command.arg("configure").args(arguments).arg("--address").arg(proxy.to_string());
        finish(command.arg("--root").arg(&self.root), DEADLINE)
    }
}

fn done(finished: &Finished, runtime: &str) -> Result<()> {
    ensure!(finished.status.success(), "eagle configure {runtime}: {finished:?}");
    Ok(())
}

/// Every file with its content, and every directory.
pub(super) fn files(root: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let listed = succeed(Command::new("find").arg(root), DEADLINE)?;
    let mut files = BTreeMap::new();
    for path in listed.lines().map(PathBuf::from) {
        let content = if path.is_dir() { Vec::new() } else { fs::read(&path)? };
        files.insert(path, content);
    }
    Ok(files)
}
