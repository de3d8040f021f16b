//! Kubernetes objects, as far as the checks read them.

use anyhow::{Context, Result};
use base64::Engine as _;
use serde_json::Value;

/// Kinds whose objects make pods.
const WORKLOADS: [&str; 4] = ["StatefulSet", "DaemonSet", "Deployment", "Job"];

pub(crate) fn kind(object: &Value) -> &str {
    object["kind"].as_str().unwrap_or_default()
}

pub(crate) fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// The object of that kind and name.
pub(crate) fn find<'a>(objects: &'a [Value], wanted: &str, called: &str) -> Result<&'a Value> {
    let found = objects.iter().find(|object| kind(object) == wanted && name(object) == called);
    found.with_context(|| format!("no {wanted} {called}; there are {}", names(objects)))
}

fn names(objects: &[Value]) -> String {
    let names: Vec<String> = objects.iter().map(|object| format!("{} {}", kind(object), name(object))).collect();
    names.join(", ")
}

/// The objects that make pods.
pub(crate) fn workloads(objects: &[Value]) -> impl Iterator<Item = &Value> {
    objects.iter().filter(|object| WORKLOADS.contains(&kind(object)))
}

/// What the pods of a workload are.
pub(crate) fn pod(workload: &Value) -> &Value {
    &workload["spec"]["template"]["spec"]
}

/// A list, empty if there is none.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

pub(crate) fn containers(workload: &Value) -> &[Value] {
    list(&pod(workload)["containers"])
}

pub(crate) fn init_containers(workload: &Value) -> &[Value] {
    list(&pod(workload)["initContainers"])
}

/// The strings of a list.
pub(crate) fn strings(value: &Value) -> Vec<&str> {
    list(value).iter().filter_map(Value::as_str).collect()
}

/// The element of a list with that name.
pub(crate) fn named<'a>(elements: &'a [Value], wanted: &str) -> Option<&'a Value> {
    elements.iter().find(|element| element["name"] == wanted)
}

/// The variables of a container, with values that could come from a pod on a node whose labels of its place are `place`.
pub(crate) fn environment(container: &Value, place: &str) -> Vec<(String, String)> {
    let of = |variable: &Value| {
        let name = variable["name"].as_str()?.to_owned();
        let field = variable["valueFrom"]["fieldRef"]["fieldPath"].as_str().unwrap_or_default();
        let value = match (variable["value"].as_str(), field) {
            (Some(value), _) => value,
            (None, "status.podIP") => "127.0.0.1",
            (None, "spec.nodeName") => "node",
            (None, field) if field.starts_with("metadata.labels['topology.kubernetes.io/") => place,
            _ => "from a Secret",
        };
        Some((name, value.to_owned()))
    };
    list(&container["env"]).iter().filter_map(of).collect()
}

/// The configuration of a role.
pub(crate) fn role_config(objects: &[Value], role: &str) -> Result<String> {
    let key = format!("{role}.yaml");
    let texts = objects.iter().filter(|object| kind(object) == "ConfigMap");
    let text = texts.filter_map(|object| object["data"][&key].as_str()).next();
    Ok(text.with_context(|| format!("no ConfigMap has {key}"))?.to_owned())
}

/// What a Secret holds.
pub(crate) fn secret(secret: &Value, key: &str) -> Result<Vec<u8>> {
    let encoded = secret["data"][key].as_str().with_context(|| format!("no {key} in the Secret {}", name(secret)))?;
    base64::engine::general_purpose::STANDARD.decode(encoded).context("the data of the Secret is not base64")
}
