//! The quickstarts, walked through as their pages have them: every `sh` block, in its order, as root.
//!
//! There is no systemd in the namespaces; a script stands in for `systemctl`, starts what the units say as the user that they
//! say, and has systemd's own checker look at the units.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};

use super::Scene;
use crate::{
    hub::Hub,
    image::{REPOSITORY, TAG},
    process::succeed,
    registry::{Fetched, Registry},
    workspace,
};

/// A walk with its pulls, on a busy machine.
const DEADLINE: Duration = Duration::from_secs(240);
/// The tag that the pages pull.
const PULLED: &str = "12";

const SYSTEMCTL: &str = include_str!("systemctl.sh");
const PRELUDE: &str = include_str!("walk.sh");
/// What has to be so after the page: nothing of Eagle runs, and the runtime's files are as they were.
const CODA: &str = "cd /\n! ls \"$QUICKSTART\"/eagle-*.pid 2>/dev/null\nfiles | diff \"$QUICKSTART/files-before\" -\n";

pub(super) fn docker(scene: &Scene<'_>) -> Result<()> {
    walk(scene, "quickstart-docker.md", "docker")
}

pub(super) fn containerd(scene: &Scene<'_>) -> Result<()> {
    walk(scene, "quickstart-containerd.md", "containerd")
}

fn walk(scene: &Scene<'_>, page: &str, runtime: &str) -> Result<()> {
    let store = tagged(scene)?;
    let hub = Hub::start(&scene.directory.join("hub"), &store)?;
    let directory = scene.directory.join("walk");
    fs::create_dir_all(directory.join("downloaded"))?;
    fs::copy(scene.eagle, directory.join("downloaded/eagle"))?;
    let authority = hub.trust().into_iter().find(|(name, _)| *name == "SSL_CERT_FILE").context("no authority")?.1;
    fs::copy(authority, directory.join("authority.pem"))?;
    let hosts = fs::read_to_string("/etc/hosts")?;
    fs::write(directory.join("hosts"), format!("{hosts}127.0.0.1 eagle-1\n"))?;
    write_program(&directory.join("systemctl"), SYSTEMCTL)?;
    let script = directory.join("walk.sh");
    fs::write(&script, format!("{PRELUDE}\nset -x\n{}\nset +x\n{CODA}", commands(page)?))?;

    // Whatever the walk starts ends with its namespace.
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh"]).arg(&script);
    command.env("QUICKSTART", &directory).env("RUNTIME", runtime);
    let printed = succeed(&mut command, DEADLINE).with_context(|| format!("docs/{page}"))?;
    let largest = &scene.image.largest().digest;
    ensure!(printed.contains(largest.as_str()), "Eagle's cache does not have {largest}:\n{printed}");
    let asked = hub.accesses()?;
    for blob in scene.image.blobs() {
        let fetched = asked.blobs.get(&blob.digest).copied().unwrap_or_default();
        ensure!(fetched == Fetched { requests: 1, bytes: blob.size }, "{}: {fetched:?}", blob.digest);
    }
    Ok(())
}

/// The commands of a page.
fn commands(page: &str) -> Result<String> {
    let text = fs::read_to_string(workspace::root().join("docs").join(page))?;
    let blocks: Vec<&str> = text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    ensure!(blocks.len() >= 4, "docs/{page} has {} blocks of commands", blocks.len());
    Ok(blocks.concat())
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

fn write_program(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}
