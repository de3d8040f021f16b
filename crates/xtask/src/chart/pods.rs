//! What must hold of every pod: who it runs as, what it may, what it mounts.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Tools, defaults,
    manifest::{containers, find, init_containers, kind, list, name, named, pod, strings, workloads},
};

/// Containers that set up a node as root, and what each may besides.
const ROOT: &[(&str, &[&str])] = &[
    ("prepare-data", &["CHOWN"]),
    ("configure-runtime", &["CHOWN", "DAC_OVERRIDE", "FOWNER", "SYS_CHROOT"]),
    ("undo", &["CHOWN", "DAC_OVERRIDE", "FOWNER", "SYS_CHROOT"]),
];

/// Checks every pod among the objects.
pub(super) fn check(objects: &[Value]) -> Result<()> {
    let mut roles = BTreeSet::new();
    for workload in workloads(objects) {
        let shown = format!("{} {}", kind(workload), name(workload));
        security(workload).with_context(|| shown.clone())?;
        mounts(workload, objects).with_context(|| shown.clone())?;
        selector(workload).with_context(|| shown.clone())?;
        let role = &workload["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"];
        roles.insert(role.as_str().unwrap_or_default());
    }
    ensure!(["tracker", "seeder", "proxy"].iter().all(|role| roles.contains(role)), "only {roles:?}");
    services(objects)?;
    network_policies(objects)
}

fn security(workload: &Value) -> Result<()> {
    let context = &pod(workload)["securityContext"];
    ensure!(context["runAsNonRoot"] == true, "may run as root: {context}");
    ensure!(context["runAsUser"].as_u64().is_some_and(|user| user > 0), "runs as root: {context}");
    ensure!(context["seccompProfile"]["type"] == "RuntimeDefault", "no seccomp profile: {context}");
    let is_job = kind(workload) == "Job";
    ensure!(pod(workload)["automountServiceAccountToken"] == is_job, "the token of the service account");
    let on_nodes = kind(workload) == "DaemonSet";
    ensure!(on_nodes || pod(workload)["hostNetwork"].is_null(), "uses the network of the node");
    for key in ["hostPID", "hostIPC"] {
        ensure!(pod(workload)[key].is_null(), "{key}");
    }
    let volumes = list(&pod(workload)["volumes"]);
    ensure!(on_nodes || volumes.iter().all(|volume| volume["hostPath"].is_null()), "mounts a directory of the node");
    for container in init_containers(workload).iter().chain(containers(workload)) {
        let shown = container["name"].as_str().unwrap_or_default();
        let context = &container["securityContext"];
        ensure!(context["allowPrivilegeEscalation"] == false, "{shown} may gain rights");
        ensure!(context["readOnlyRootFilesystem"] == true, "{shown} can write to its root");
        ensure!(context["privileged"].is_null(), "{shown} is privileged");
        ensure!(strings(&context["capabilities"]["drop"]) == ["ALL"], "{shown} keeps capabilities");
        let added: BTreeSet<&str> = strings(&context["capabilities"]["add"]).into_iter().collect();
        match ROOT.iter().find(|(name, _)| *name == shown) {
            Some((_, may)) => ensure!(added == may.iter().copied().collect(), "{shown} may {added:?}"),
            None => {
                ensure!(added.is_empty() && context["runAsUser"].is_null(), "{shown} is more than its pod: {context}")
            }
        }
        ensure!(container["resources"]["limits"]["memory"].is_string(), "{shown} has no memory limit");
    }
    Ok(())
}

/// Every mount has a volume, every volume a mount, and what volumes name is there unless the administrator brings it.
fn mounts(workload: &Value, objects: &[Value]) -> Result<()> {
    let volumes = list(&pod(workload)["volumes"]);
    let claims = list(&workload["spec"]["volumeClaimTemplates"]);
    let known: BTreeSet<&str> =
        volumes.iter().filter_map(|volume| volume["name"].as_str()).chain(claims.iter().map(name)).collect();
    ensure!(known.len() == volumes.len() + claims.len(), "two volumes have one name: {volumes:?}");
    let mut mounted = BTreeSet::new();
    for container in init_containers(workload).iter().chain(containers(workload)) {
        let mut paths = BTreeSet::new();
        for mount in list(&container["volumeMounts"]) {
            mounted.insert(mount["name"].as_str().unwrap_or_default());
            ensure!(paths.insert(mount["mountPath"].as_str()), "two mounts at {}", mount["mountPath"]);
        }
    }
    ensure!(mounted == known, "volumes {known:?}, mounted {mounted:?}");
    for volume in volumes {
        let Some(map) = volume["configMap"]["name"].as_str() else { continue };
        let Some(items) = volume["configMap"]["items"].as_array() else { continue };
        let map = find(objects, "ConfigMap", map)?;
        for item in items {
            let key = item["key"].as_str().unwrap_or_default();
            ensure!(map["data"][key].is_string(), "{} has no {key}", name(map));
        }
    }
    Ok(())
}

/// Kubernetes refuses to change a selector, so an upgrade needs these labels as they are.
fn selector(workload: &Value) -> Result<()> {
    if kind(workload) == "Job" {
        return Ok(());
    }
    let labels = &workload["spec"]["template"]["metadata"]["labels"];
    let selector = workload["spec"]["selector"]["matchLabels"].as_object().context("no selector")?;
    let keys: Vec<&str> = selector.keys().map(String::as_str).collect();
    let expected = ["app.kubernetes.io/component", "app.kubernetes.io/instance", "app.kubernetes.io/name"];
    ensure!(keys.iter().copied().collect::<BTreeSet<_>>() == BTreeSet::from(expected), "the selector has {keys:?}");
    for (key, value) in selector {
        ensure!(labels[key] == *value, "pods have {key}={}, the selector wants {value}", labels[key]);
    }
    Ok(())
}

/// The pods that labels select, and the ports of their containers.
fn selected<'a>(objects: &'a [Value], labels: &Value) -> Option<(&'a Value, Vec<&'a str>)> {
    let matches = |workload: &&Value| {
        let own = &workload["spec"]["template"]["metadata"]["labels"];
        labels.as_object().is_some_and(|labels| labels.iter().all(|(key, value)| own[key] == *value))
    };
    let workload = workloads(objects).find(matches)?;
    let ports = list(&containers(workload)[0]["ports"]).iter();
    Some((workload, ports.filter_map(|port| port["name"].as_str()).collect()))
}

fn services(objects: &[Value]) -> Result<()> {
    for service in objects.iter().filter(|object| kind(object) == "Service") {
        let shown = name(service);
        let (_, ports) =
            selected(objects, &service["spec"]["selector"]).with_context(|| format!("{shown} selects nothing"))?;
        for port in list(&service["spec"]["ports"]) {
            let target = port["targetPort"].as_str().unwrap_or_default();
            ensure!(ports.contains(&target), "{shown} leads to {target}; there are {ports:?}");
        }
    }
    for monitor in objects.iter().filter(|object| kind(object) == "ServiceMonitor") {
        let labels = &monitor["spec"]["selector"]["matchLabels"];
        let service = objects.iter().filter(|object| kind(object) == "Service").find(|service| {
            labels
                .as_object()
                .is_some_and(|labels| labels.iter().all(|(key, value)| service["metadata"]["labels"][key] == *value))
        });
        let service = service.with_context(|| format!("{} finds no Service", name(monitor)))?;
        let port = list(&monitor["spec"]["endpoints"])[0]["port"].as_str().unwrap_or_default();
        ensure!(named(list(&service["spec"]["ports"]), port).is_some(), "{} has no port {port}", name(service));
    }
    Ok(())
}

/// Every port of a pod with a policy is in one rule of it, and the admin port in none that is for peers.
fn network_policies(objects: &[Value]) -> Result<()> {
    for policy in objects.iter().filter(|object| kind(object) == "NetworkPolicy") {
        let shown = name(policy);
        let labels = &policy["spec"]["podSelector"]["matchLabels"];
        let (workload, mut ports) = selected(objects, labels).with_context(|| format!("{shown} selects nothing"))?;
        ensure!(pod(workload)["hostNetwork"].is_null(), "{shown} is for pods on the network of the node");
        let rules = list(&policy["spec"]["ingress"]);
        ensure!(rules.len() <= 1 || ports.contains(&"admin"), "{shown} has rules for nothing: {rules:?}");
        let mut open: Vec<&str> =
            rules.iter().flat_map(|rule| list(&rule["ports"])).filter_map(|port| port["port"].as_str()).collect();
        ports.sort_unstable();
        open.sort_unstable();
        ensure!(open == ports, "{shown} opens {open:?}; the pods have {ports:?}");
        if !ports.contains(&"admin") {
            ensure!(!list(&rules[0]["from"]).is_empty(), "{shown} is open to everybody");
            continue;
        }
        let admin: Vec<&Value> = rules.iter().filter(|rule| rule["ports"].to_string().contains("admin")).collect();
        ensure!(admin.len() == 1 && list(&admin[0]["ports"]).len() == 1, "{shown}: {rules:?}");
        ensure!(!list(&admin[0]["from"]).is_empty(), "{shown} opens the admin port to everybody");
    }
    Ok(())
}

/// Region and zone come from the pod's labels, unless all nodes have one place.
pub(super) fn topology(tools: &Tools, chart: &Path) -> Result<()> {
    let variable = |workload: &Value, label: &str| {
        let name = format!("EAGLE_P2P__TOPOLOGY__{label}");
        named(list(&containers(workload)[0]["env"]), &name).map(|variable| variable["valueFrom"].clone())
    };
    for role in [("DaemonSet", "proxy"), ("StatefulSet", "seeder")] {
        let (_, labelled) = defaults(tools, chart, &[], role)?;
        for (label, key) in [("REGION", "region"), ("ZONE", "zone")] {
            let path = format!("metadata.labels['topology.kubernetes.io/{key}']");
            let expected = json!({ "fieldRef": { "fieldPath": path } });
            ensure!(variable(&labelled, label) == Some(expected), "{label} of the {}", role.1);
        }
        // A variable would win over the file, and be empty where there are no labels.
        let (objects, given) = defaults(tools, chart, &["p2p.topology.zone=north-1"], role)?;
        ensure!(
            variable(&given, "ZONE").is_none() && variable(&given, "REGION").is_some(),
            "the zone of the {}",
            role.1
        );
        ensure!(
            super::manifest::role_config(&objects, role.1)?.contains("zone: north-1"),
            "no zone in the configuration"
        );
        let (_, off) = defaults(tools, chart, &["p2p.topologyFromPodLabels=false"], role)?;
        ensure!(variable(&off, "ZONE").is_none() && variable(&off, "REGION").is_none(), "{} without labels", role.1);
    }
    Ok(())
}

/// A Secret with certificates is mounted in every role, and every role's configuration names its files.
pub(super) fn certificates(tools: &Tools, chart: &Path) -> Result<()> {
    let set = ["cluster.tls.secret=certificates,cluster.tls.certificate=node.pem,cluster.tls.ca=node.pem"];
    for role in [("StatefulSet", "tracker"), ("StatefulSet", "seeder"), ("DaemonSet", "proxy")] {
        let (objects, workload) = defaults(tools, chart, &set, role)?;
        let volume = named(list(&pod(&workload)["volumes"]), "tls").context("no volume")?;
        // Two of the three in one file: a key can be mounted once.
        let items = json!([{ "key": "node.pem", "path": "node.pem" }, { "key": "tls.key", "path": "tls.key" }]);
        ensure!(volume["secret"]["secretName"] == "certificates" && volume["secret"]["items"] == items, "{volume}");
        let config: Value = serde_saphyr::from_str(&super::manifest::role_config(&objects, role.1)?)?;
        let files = json!({
            "certificate": "/etc/eagle-tls/node.pem", "key": "/etc/eagle-tls/tls.key", "ca": "/etc/eagle-tls/node.pem",
        });
        ensure!(config["cluster"]["tls"] == files, "{}: {}", role.1, config["cluster"]);
        let (objects, without) = defaults(tools, chart, &[], role)?;
        ensure!(named(list(&pod(&without)["volumes"]), "tls").is_none(), "{} has certificates", role.1);
        ensure!(!super::manifest::role_config(&objects, role.1)?.contains("tls:"), "{} has certificates", role.1);
    }
    Ok(())
}
