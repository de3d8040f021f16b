//! The quickstarts, walked through as their pages have them: every block that is marked with the scenario's name, in its order, as root.
//! What other pages say of the same runtime is done before the quickstart undoes its own.
//!
//! There is no systemd in the namespaces; a script stands in for `systemctl`, starts what the units say as the user that they
//! say, and has systemd's own checker look at the units.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{OWN_DIRECTORIES, Scene, write_program};
use crate::{
    hub::Hub,
    image::{REPOSITORY, TAG},
    pages::{Block, run_by},
    process::succeed,
    registry::{Fetched, Registry},
    workspace,
};

/// A walk with its pulls, on a busy machine.
const DEADLINE: Duration = Duration::from_secs(240);
/// The tag that the pages pull.
const PULLED: &str = "12";

pub(super) const DOCKER: &str = "quickstart-docker";
pub(super) const CONTAINERD: &str = "quickstart-containerd";

const SYSTEMCTL: &str = include_str!("systemctl.sh");
const PRELUDE: &str = include_str!("walk.sh");
/// What has to be so after the page: nothing of Eagle runs, and the runtime's files are as they were.
const CODA: &str = "cd /\n! ls \"$WALK\"/eagle-*.pid 2>/dev/null\nfiles | diff \"$WALK/files-before\" -\n";

pub(super) fn docker(scene: &Scene<'_>) -> Result<()> {
    walk(scene, DOCKER, "docker")
}

pub(super) fn containerd(scene: &Scene<'_>) -> Result<()> {
    walk(scene, CONTAINERD, "containerd")
}

fn walk(scene: &Scene<'_>, name: &str, runtime: &str) -> Result<()> {
    let store = tagged(scene)?;
    let hub = Hub::start(&scene.directory.join("hub"), &store)?;
    let directory = scene.directory.join("walk");
    fs::create_dir_all(directory.join("downloaded"))?;
    fs::copy(scene.eagle, directory.join("downloaded/eagle"))?;
    fs::copy(hub.authority(), directory.join("authority.pem"))?;
    let hosts = fs::read_to_string("/etc/hosts")?;
    fs::write(directory.join("hosts"), format!("{hosts}127.0.0.1 eagle-1\n"))?;
    write_program(&directory.join("systemctl"), SYSTEMCTL)?;
    let script = directory.join("walk.sh");
    fs::write(&script, format!("{OWN_DIRECTORIES}{PRELUDE}\nset -x\n{}\nset +x\n{CODA}", commands(name)?))?;

    // Whatever the walk starts ends with its namespace.
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh"]).arg(&script);
    command.env("WALK", &directory).env("RUNTIME", runtime);
    let printed = succeed(&mut command, DEADLINE).with_context(|| format!("docs/{name}.md"))?;
    let largest = &scene.image.largest().digest;
    ensure!(printed.contains(largest.as_str()), "Eagle's cache does not have {largest}:\n{printed}");
    let asked = hub.accesses()?;
    for blob in scene.image.blobs() {
        let fetched = asked.blobs.get(&blob.digest).copied().unwrap_or_default();
        ensure!(fetched == Fetched { requests: 1, bytes: blob.size }, "{}: {fetched:?}", blob.digest);
    }
    Ok(())
}

/// The commands of a quickstart, and before it begins to undo what it did, those of other pages.
fn commands(name: &str) -> Result<String> {
    let page = format!("docs/{name}.md");
    let (mut own, others): (Vec<Block>, Vec<Block>) =
        run_by(&workspace::root(), name)?.into_iter().partition(|block| block.page == page);
    ensure!(own.len() >= 4, "{page} has {} blocks of commands", own.len());
    let undoing = own.iter().position(|block| block.text.contains("--undo")).context("nothing is undone")?;
    own.splice(undoing..undoing, others);
    Ok(own.iter().map(Block::script).collect())
}

/// The registry's storage, with the image also under the tag of the pages.
fn tagged(scene: &Scene<'_>) -> Result<std::path::PathBuf> {
    let store = scene.directory.join("store");
    // Links: blobs are never written to.
    succeed(Command::new("cp").arg("-al").arg(scene.store).arg(&store), DEADLINE)?;
    let registry = Registry::start(&scene.directory.join("tagging"), &store)?;
    let image = |tag: &str| format!("docker://{}/{REPOSITORY}:{tag}", registry.address());
    let mut copy = Command::new("skopeo");
    copy.args(["--insecure-policy", "copy", "--quiet", "--all", "--preserve-digests"]);
    copy.args(["--src-tls-verify=false", "--dest-tls-verify=false", &image(TAG), &image(PULLED)]);
    succeed(&mut copy, DEADLINE)?;
    Ok(store)
}
