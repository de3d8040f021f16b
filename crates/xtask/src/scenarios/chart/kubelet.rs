//! What a kubelet does with the chart's pods, as far as their containers notice: each is run by docker with the command,
//! variables, mounts, user and rights that its pod gives it, on the network of this machine.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{
    chart::manifest::{self, environment, find, list, named, pod, strings},
    process::{Finished, finish, succeed},
    runtimes::Docker,
};

/// A container that starts, and its command, on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);
/// What directories and the like may add to the files of an image, bytes.
const OVERHEAD: u64 = 64 << 10;
/// docker kills what has not ended this long after SIGTERM, seconds: longer than a role drains.
const STOP: &str = "30";

/// A node of the cluster.
pub(super) struct Node<'a> {
    pub(super) docker: &'a Docker,
    /// Everything that the chart made.
    pub(super) objects: &'a [Value],
    /// What directories of the node are below.
    pub(super) root: PathBuf,
    /// For what is no directory of the node.
    pub(super) volumes: PathBuf,
    /// Names of other pods, all of them on this machine.
    pub(super) names: Vec<String>,
}

impl Node<'_> {
    /// Runs a container of a pod to its end.
    pub(super) fn run(&self, workload: &Value, container: &Value) -> Result<Finished> {
        let mut command = self.docker.command()?;
        command.args(["run", "--rm"]);
        self.describe(&mut command, workload, container)?;
        finish(&mut command, DEADLINE)
    }

    /// Starts a container of a pod; its id.
    pub(super) fn start(&self, workload: &Value, container: &Value) -> Result<String> {
        let mut command = self.docker.command()?;
        command.args(["run", "--detach"]);
        self.describe(&mut command, workload, container)?;
        Ok(succeed(&mut command, DEADLINE)?.trim().to_owned())
    }

    /// Asks containers to end, all at once; each has to do so by itself and without an error.
    pub(super) fn stop(&self, ids: &[&str]) -> Result<()> {
        succeed(self.docker.command()?.args(["stop", "--time", STOP]).args(ids), DEADLINE)?;
        for id in ids {
            let mut inspect = self.docker.command()?;
            let code = succeed(inspect.args(["inspect", "--format", "{{.State.ExitCode}}", id]), DEADLINE)?;
            ensure!(code.trim() == "0", "ended with {}:\n{}", code.trim(), self.log(id)?);
        }
        Ok(())
    }

    pub(super) fn log(&self, id: &str) -> Result<String> {
        let finished = finish(self.docker.command()?.args(["logs", id]), DEADLINE)?;
        Ok(finished.stdout + &finished.stderr)
    }

    pub(super) fn is_running(&self, id: &str) -> Result<bool> {
        let state = succeed(self.docker.command()?.args(["inspect", "--format", "{{.State.Running}}", id]), DEADLINE)?;
        Ok(state.trim() == "true")
    }

    fn describe(&self, command: &mut Command, workload: &Value, container: &Value) -> Result<()> {
        let of_pod = &pod(workload)["securityContext"];
        let own = &container["securityContext"];
        let id = |key: &str| own[key].as_u64().or_else(|| of_pod[key].as_u64()).with_context(|| format!("no {key}"));
        let (user, group) = (id("runAsUser")?, id("runAsGroup")?);
        command.arg("--network=host").arg(format!("--user={user}:{group}"));
        for name in &self.names {
            command.arg(format!("--add-host={name}:127.0.0.1"));
        }
        if own["readOnlyRootFilesystem"] == true {
            command.arg("--read-only");
        }
        if own["allowPrivilegeEscalation"] == false {
            command.arg("--security-opt=no-new-privileges");
        }
        for capability in strings(&own["capabilities"]["drop"]) {
            command.arg(format!("--cap-drop={capability}"));
        }
        for capability in strings(&own["capabilities"]["add"]) {
            command.arg(format!("--cap-add={capability}"));
        }
        for (name, value) in environment(container, "north-1") {
            command.arg(format!("--env={name}={value}"));
        }
        for mount in list(&container["volumeMounts"]) {
            let name = mount["name"].as_str().context("a mount without a name")?;
            let source = self.volume(workload, name, u32::try_from(group)?)?;
            let target = mount["mountPath"].as_str().context("a mount without a path")?;
            let mode = if mount["readOnly"] == true { ":ro" } else { "" };
            command.arg(format!("--volume={}:{target}{mode}", source.display()));
        }
        let words = strings(&container["command"]);
        let (program, first) = words.split_first().context("no command")?;
        command.arg(format!("--entrypoint={program}"));
        command.arg(container["image"].as_str().context("no image")?);
        command.args(first).args(strings(&container["args"]));
        Ok(())
    }

    /// The directory behind a volume of a pod, made when it is not there.
    fn volume(&self, workload: &Value, name: &str, group: u32) -> Result<PathBuf> {
        let own = self.volumes.join(manifest::name(workload)).join(name);
        let volumes = list(&pod(workload)["volumes"]);
        let Some(volume) = named(volumes, name) else {
            // Of the claims of a StatefulSet: the kubelet gives it to the pod's group.
            return given_to(own, group);
        };
        if let Some(path) = volume["hostPath"]["path"].as_str() {
            let directory = self.root.join(path.trim_start_matches('/'));
            fs::create_dir_all(&directory)?;
            return Ok(directory);
        }
        if !volume["emptyDir"].is_null() {
            return given_to(own, group);
        }
        let items = |source: &Value| list(&source["items"]).to_vec();
        let (source, secret) = (&volume["configMap"], &volume["secret"]);
        fs::create_dir_all(&own)?;
        for item in items(source).iter().chain(&items(secret)) {
            let key = item["key"].as_str().context("an item without a key")?;
            let bytes = if source.is_null() {
                let object = find(self.objects, "Secret", secret["secretName"].as_str().unwrap_or_default())?;
                manifest::secret(object, key)?
            } else {
                let object = find(self.objects, "ConfigMap", source["name"].as_str().unwrap_or_default())?;
                object["data"][key].as_str().with_context(|| format!("no {key}"))?.as_bytes().to_vec()
            };
            let file = own.join(item["path"].as_str().context("an item without a path")?);
            fs::write(&file, bytes)?;
            // 0440 for Secrets, as the chart asks, and the default otherwise; both are the group's.
            fs::set_permissions(&file, fs::Permissions::from_mode(if source.is_null() { 0o440 } else { 0o644 }))?;
            chown(&file, Some(0), Some(group))?;
        }
        if source.is_null() && secret.is_null() {
            bail!("a volume of a kind that is not known here: {volume}");
        }
        Ok(own)
    }
}

/// As fsGroup does.
fn given_to(directory: PathBuf, group: u32) -> Result<PathBuf> {
    fs::create_dir_all(&directory)?;
    chown(&directory, Some(0), Some(group))?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o2775))?;
    Ok(directory)
}

/// The image runs as another user than root and holds the files of `context` and nothing else.
pub(super) fn check_image(docker: &Docker, context: &Path, tag: &str) -> Result<()> {
    let mut inspect = docker.command()?;
    inspect.args(["image", "inspect", "--format", "{{.Config.User}} {{.Size}}", tag]);
    let printed = succeed(&mut inspect, DEADLINE)?;
    let (user, size) = printed.trim().split_once(' ').with_context(|| format!("docker says {printed:?}"))?;
    // By number, for `runAsNonRoot` of a pod cannot be checked by name.
    let number: u32 =
        user.split(':').next().unwrap_or_default().parse().with_context(|| format!("the user {user:?}"))?;
    ensure!(number != 0, "the image runs as root");
    let files = ["usr/bin/eagle", "etc/ssl/certs/ca-certificates.crt"];
    let lengths: u64 = files.iter().map(|file| Ok(fs::metadata(context.join(file))?.len())).sum::<Result<u64>>()?;
    let size: u64 = size.parse()?;
    ensure!(size < lengths + OVERHEAD, "an image of {size} bytes holds more than its files, {lengths} bytes");
    println!(
        "the image has {size} bytes, {} of them the program, and runs as {user}",
        fs::metadata(context.join(files[0]))?.len()
    );
    Ok(())
}

/// The image, out of a program that needs no library, with certificate authorities and nothing else.
pub(super) fn build_image(docker: &Docker, eagle: &Path, context: &Path, tag: &str) -> Result<()> {
    let stripped = context.with_extension("stripped");
    fs::create_dir_all(context)?;
    // Debug information is most of the program, and of no use in the image.
    succeed(Command::new("strip").arg("-o").arg(&stripped).arg(eagle), DEADLINE)?;
    // Lists the libraries of a program that needs some.
    let listed = finish(Command::new("ldd").arg(&stripped), DEADLINE)?;
    ensure!(!listed.stdout.contains("=>"), "the program of the image needs libraries: {}", listed.stdout);
    crate::rootfs::copy(&stripped, context, Path::new("/usr/bin/eagle"))?;
    let authorities = Path::new("/etc/ssl/certs/ca-certificates.crt");
    crate::rootfs::copy(authorities, context, authorities)?;
    let mut command = docker.command()?;
    // The builder of every docker, which needs no plugin and makes no stage that is not asked for.
    command.env("DOCKER_BUILDKIT", "0").args(["build", "--quiet", "--target", "prebuilt", "--tag", tag, "--file"]);
    command.arg(crate::chart::directory().join("image/Dockerfile")).arg(context);
    succeed(&mut command, DEADLINE)?;
    Ok(())
}
