//! Releases that helm installs, upgrades and removes, in a cluster where nothing happens by itself: what it does when it is stopped half way, or a
//! hook fails.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::{
    RELEASE, Tools,
    manifest::{init_containers, named, strings},
    server::ApiServer,
    tools::{DEADLINE, IMAGE},
};
use crate::process::{finish, succeed, wait_until};

const PROXIES: &str = "daemonsets/release-eagle-proxy";
const UNDO: &str = "daemonsets/release-eagle-undo";
const UNDO_JOB: &str = "jobs/release-eagle-undo";
const UNDO_OLD: &str = "daemonsets/release-eagle-undo-old";
const UNDO_OLD_JOB: &str = "jobs/release-eagle-undo-old";
/// What Kubernetes says of a Job that went well, and of one that did not.
const DONE: Option<&str> = Some("Complete");
const FAILED: Option<&str> = Some("Failed");

/// helm is killed while it waits for the nodes; the next one does the rest.
pub(super) fn half_way(tools: &Tools, chart: &Path) -> Result<()> {
    let server = installed(tools, chart)?;
    let mut helm =
        Killed(server.helm(tools, &["uninstall", RELEASE]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    wait_until("the hook of the removal", DEADLINE, || {
        Ok(server.cluster().objects.contains_key(UNDO_JOB).then_some(()))
    })?;
    ensure!(helm.0.try_wait()?.is_none(), "helm did not wait for the nodes");
    drop(helm);
    ensure!(!is_there(&server, PROXIES) && is_there(&server, UNDO), "left half way: {:?}", places(&server));

    server.cluster().jobs_end = DONE;
    server.cluster().changes.clear();
    let said = succeed(&mut server.helm(tools, &["uninstall", RELEASE]), DEADLINE)?;
    ensure!(said.contains("uninstalled"), "{said}");
    let again = server.cluster().changes.iter().filter(|change| *change == &format!("POST {UNDO}")).count();
    ensure!(again == 1, "the hook ran {again} times");
    ensure!(places(&server) == ["secrets/release-eagle-cluster"], "left behind: {:?}", places(&server));
    Ok(())
}

/// What stays when a node is away is what README.md says how to delete.
pub(super) fn node_away(tools: &Tools, chart: &Path) -> Result<()> {
    let server = installed(tools, chart)?;
    server.cluster().jobs_end = FAILED;
    let finished = finish(&mut server.helm(tools, &["uninstall", RELEASE]), DEADLINE)?;
    ensure!(!finished.status.success() && finished.stderr.contains("release-eagle-undo failed"), "{}", finished.stderr);
    // helm takes what came before the Job away with it.
    ensure!(!is_there(&server, PROXIES) && !is_there(&server, UNDO), "left: {:?}", places(&server));
    ensure!(is_there(&server, UNDO_JOB), "nothing is left: {:?}", places(&server));
    let readme = std::fs::read_to_string(chart.join("README.md"))?;
    let command = "delete daemonset,job,serviceaccount,role,rolebinding --selector 'app.kubernetes.io/component in (undo,undo-old)'";
    ensure!(readme.contains(command), "README.md does not say `{command}`");
    for (place, object) in &server.cluster().objects {
        let kind = super::manifest::kind(object).to_lowercase();
        let deleted = command.split([' ', ',']).any(|word| word == kind)
            && object["metadata"]["labels"]["app.kubernetes.io/component"] == "undo";
        ensure!(deleted || place == "secrets/release-eagle-cluster", "{place} stays");
    }
    Ok(())
}

/// To another runtime: the nodes come first, and nothing is changed while one of them cannot be reached.
pub(super) fn upgrade(tools: &Tools, chart: &Path) -> Result<()> {
    let server = installed(tools, chart)?;
    let upgrade = || -> Command {
        let mut helm =
            server.helm(tools, &["upgrade", RELEASE, "--set", IMAGE, "--set", "proxy.configure.runtime=crio"]);
        helm.arg(chart);
        helm
    };
    let patches = || server.cluster().changes.iter().filter(|change| change.starts_with("PATCH ")).count();
    server.cluster().jobs_end = FAILED;
    let finished = finish(&mut upgrade(), DEADLINE)?;
    ensure!(!finished.status.success() && finished.stderr.contains("pre-upgrade"), "{}", finished.stderr);
    ensure!(is_there(&server, UNDO_OLD_JOB) && patches() == 0, "changed: {:?}", server.cluster().changes);

    server.cluster().jobs_end = DONE;
    server.cluster().changes.clear();
    succeed(&mut upgrade(), DEADLINE)?;
    let changes = server.cluster().changes.clone();
    let at =
        |wanted: String| changes.iter().position(|change| *change == wanted).with_context(|| format!("no {wanted}"));
    let order = [at(format!("POST {UNDO_OLD}"))?, at(format!("POST {UNDO_OLD_JOB}"))?, at(format!("PATCH {PROXIES}"))?];
    ensure!(order.is_sorted(), "{changes:?}");
    ensure!(!is_there(&server, UNDO_OLD) && !is_there(&server, UNDO_OLD_JOB), "left: {:?}", places(&server));
    Ok(())
}

/// A release of the chart with its own values.
fn installed(tools: &Tools, chart: &Path) -> Result<ApiServer> {
    let server = ApiServer::start()?;
    let mut install = server.helm(tools, &["install", RELEASE, "--set", IMAGE]);
    succeed(install.arg(chart), DEADLINE)?;
    let cluster = server.cluster();
    let proxies = cluster.objects.get(PROXIES).context("no proxies")?;
    let configure = named(init_containers(proxies), "configure-runtime").context("runtimes are not configured")?;
    ensure!(strings(&configure["args"]).contains(&"containerd"), "{configure}");
    drop(cluster);
    Ok(server)
}

fn is_there(server: &ApiServer, place: &str) -> bool {
    server.cluster().objects.contains_key(place)
}

fn places(server: &ApiServer) -> Vec<String> {
    server.cluster().objects.keys().cloned().collect()
}

/// A process that ends with this, in whatever way.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended, which is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
