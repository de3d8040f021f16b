//! What points runtimes at the proxies, and the hook that undoes it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    RELEASE, Tools, defaults,
    manifest::{containers, find, init_containers, kind, list, name, named, pod, strings},
    server::ApiServer,
};

/// An installation, an upgrade of it, and whether that undoes first what the installation did.
const UPGRADES: &[(&str, &str, bool)] = &[
    ("proxy.configure.runtime=containerd", "proxy.configure.runtime=containerd", false),
    (
        "proxy.configure.runtime=containerd",
        "proxy.configure.activate=false,proxy.configure.registries[0]=ghcr.io",
        false,
    ),
    ("proxy.configure.runtime=containerd", "proxy.configure.enabled=false", true),
    ("proxy.configure.runtime=docker,proxy.configure.activate=false", "proxy.configure.runtime=containerd", true),
    ("proxy.configure.runtime=containerd", "proxy.configure.runtime=crio", true),
    ("proxy.configure.directory=/srv/containerd", "proxy.configure.runtime=containerd", true),
    ("proxy.configure.runtime=containerd", "proxy.configure.directory=/srv/containerd", true),
    ("proxy.configure.directory=/srv/containerd", "proxy.configure.directory=/srv/containerd", false),
    ("proxy.configure.enabled=false", "proxy.configure.runtime=containerd", false),
    ("proxy.configure.runtime=crio", "proxy.configure.enabled=false,proxy.configure.undo.enabled=false", false),
];

pub(super) fn check(tools: &Tools, chart: &Path) -> Result<()> {
    for set in [
        &[][..],
        &["proxy.configure.runtime=docker"],
        &["proxy.configure.runtime=crio", "proxy.configure.activate=false"],
    ] {
        both_ways(tools, chart, set).with_context(|| format!("{set:?}"))?;
    }
    k3s(tools, chart)?;
    let (objects, proxy) = defaults(tools, chart, &["proxy.configure.enabled=false"], ("DaemonSet", "proxy"))?;
    ensure!(hooks(&objects).is_empty(), "there are hooks");
    ensure!(named(init_containers(&proxy), "configure-runtime").is_none(), "runtimes are configured");
    let volumes = list(&pod(&proxy)["volumes"]);
    let of_node: Vec<&Value> = volumes.iter().filter(|volume| volume["hostPath"].is_object()).collect();
    ensure!(of_node.len() == 1 && of_node[0]["name"] == "data", "directories of the node: {of_node:?}");
    let (objects, proxy) = defaults(tools, chart, &["proxy.configure.undo.enabled=false"], ("DaemonSet", "proxy"))?;
    ensure!(hooks(&objects).is_empty() && named(init_containers(&proxy), "configure-runtime").is_some(), "undo off");
    Ok(())
}

/// An upgrade first undoes what it would otherwise leave behind on the nodes.
pub(super) fn upgrades(tools: &Tools, chart: &Path) -> Result<()> {
    let server = ApiServer::start()?;
    for (before, after, undoes) in UPGRADES {
        let context = || format!("from {before} to {after}");
        let (_, proxy) = defaults(tools, chart, &[before], ("DaemonSet", "proxy"))?;
        server.cluster().put("daemonsets", &proxy);
        let objects = server.objects(tools, chart, &[after])?;
        super::pods::check(&objects).with_context(|| format!("{}, {} objects", context(), objects.len()))?;
        let hooks: Vec<&Value> = hooks(&objects).into_iter().filter(|hook| when(hook) == "pre-upgrade").collect();
        ensure!(hooks.is_empty() != *undoes, "{}: {} hooks", context(), hooks.len());
        if *undoes {
            let undo = find(&objects, "DaemonSet", &format!("{RELEASE}-eagle-undo-old"))?;
            ensure!(when(undo) == "pre-upgrade", "{}", context());
            reverses(&proxy, undo).with_context(context)?;
            whole(&hooks).with_context(context)?;
        }
        let later = objects.iter().find(|object| name(object) == format!("{RELEASE}-eagle-undo"));
        ensure!(later.is_some() != after.contains("enabled=false"), "{}: the hook of the removal", context());
    }
    // Without a cluster, or a release in it, there is nothing to go by.
    server.cluster().objects.clear();
    let objects = server.objects(tools, chart, &["proxy.configure.enabled=false"])?;
    ensure!(hooks(&objects).is_empty(), "there are hooks");
    Ok(())
}

fn when(object: &Value) -> &str {
    object["metadata"]["annotations"]["helm.sh/hook"].as_str().unwrap_or_default()
}

fn hooks(objects: &[Value]) -> Vec<&Value> {
    objects.iter().filter(|object| object["metadata"]["annotations"]["helm.sh/hook"].is_string()).collect()
}

fn weight(object: &Value) -> Result<i64> {
    let weight = object["metadata"]["annotations"]["helm.sh/hook-weight"].as_str().context("no weight")?;
    Ok(weight.parse()?)
}

/// The hook undoes what the init container does: the same runtime, the same directories, on the same nodes.
fn both_ways(tools: &Tools, chart: &Path, set: &[&str]) -> Result<()> {
    let (objects, proxy) = defaults(tools, chart, set, ("DaemonSet", "proxy"))?;
    let (_, undo) = defaults(tools, chart, set, ("DaemonSet", "undo"))?;
    reverses(&proxy, &undo)?;
    let hooks = hooks(&objects);
    ensure!(hooks.iter().all(|hook| when(hook) == "post-delete"), "a hook that is not of the removal");
    whole(&hooks)
}

fn reverses(proxy: &Value, undo: &Value) -> Result<()> {
    let there = named(init_containers(proxy), "configure-runtime").context("no init container")?;
    let back = named(init_containers(undo), "undo").context("no container that undoes")?;
    for key in ["image", "command", "volumeMounts", "securityContext"] {
        ensure!(there[key] == back[key], "{key}: {} and {}", there[key], back[key]);
    }
    let (there, back) = (strings(&there["args"]), strings(&back["args"]));
    ensure!(there[..2] == back[..2] && back.contains(&"--undo"), "{there:?} and {back:?}");
    ensure!(there.contains(&"--activate") == back.contains(&"--activate"), "{there:?} and {back:?}");
    for key in ["nodeSelector", "tolerations", "affinity"] {
        ensure!(pod(proxy)[key] == pod(undo)[key], "{key} differ");
    }
    for volume in list(&pod(undo)["volumes"]) {
        let same = named(list(&pod(proxy)["volumes"]), volume["name"].as_str().unwrap_or_default());
        ensure!(same == Some(volume), "{volume} differs from the proxy's");
        let whole = volume["hostPath"]["path"] == "/";
        ensure!(!whole || there.contains(&"--activate"), "the root of the node is mounted for nothing");
    }
    ensure!(list(&containers(undo)[0]["volumeMounts"]).is_empty(), "what only waits sees the node");
    Ok(())
}

/// The objects of one hook come in order, and the Job waits for the DaemonSet.
fn whole(hooks: &[&Value]) -> Result<()> {
    let of_kind =
        |wanted: &str| hooks.iter().copied().find(|hook| kind(hook) == wanted).with_context(|| format!("no {wanted}"));
    let (set, job) = (of_kind("DaemonSet")?, of_kind("Job")?);
    for hook in hooks {
        let annotations = &hook["metadata"]["annotations"];
        ensure!(annotations["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded", "{}", name(hook));
        let first = ["ServiceAccount", "Role", "RoleBinding"].contains(&kind(hook));
        ensure!(!first || weight(hook)? < weight(set)?, "{} comes too late", kind(hook));
    }
    ensure!(weight(set)? < weight(job)?, "the Job waits for what is not there yet");
    let role = of_kind("Role")?;
    let rules = list(&role["rules"]);
    ensure!(
        rules.len() == 1 && strings(&rules[0]["resourceNames"]) == [name(set)],
        "may see more than its own: {rules:?}"
    );
    ensure!(strings(&rules[0]["verbs"]) == ["get", "list", "watch"], "may change something: {rules:?}");
    let arguments = strings(&containers(job)[0]["args"]);
    ensure!(
        arguments.contains(&format!("daemonset/{}", name(set)).as_str()),
        "waits for something else: {arguments:?}"
    );
    ensure!(pod(job)["serviceAccountName"] == name(of_kind("ServiceAccount")?), "another service account");
    Ok(())
}

/// `config_path` of k3s names files by the node's own paths, so these lead there in the container too.
fn k3s(tools: &Tools, chart: &Path) -> Result<()> {
    let directory = "/var/lib/rancher/k3s/agent/etc/containerd";
    let set = format!("proxy.configure.directory={directory}");
    let (_, proxy) = defaults(tools, chart, &[&set], ("DaemonSet", "proxy"))?;
    let volume = named(list(&pod(&proxy)["volumes"]), "runtime").context("no volume")?;
    ensure!(volume["hostPath"]["path"] == directory, "{volume}");
    let container = named(init_containers(&proxy), "configure-runtime").context("no init container")?;
    let mounts = list(&container["volumeMounts"]).iter().filter(|mount| mount["name"] == "runtime");
    let paths: Vec<&str> = mounts.filter_map(|mount| mount["mountPath"].as_str()).collect();
    ensure!(paths == ["/host/etc/containerd", &format!("/host{directory}")], "{paths:?}");
    Ok(())
}
