//! As much of a Kubernetes API server as helm asks for: which resources there are, and objects, which are kept by their paths.
//!
//! Nothing happens by itself: no pod is started, and a Job ends as the test says.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use serde_json::{Value, json};

use super::{
    NAMESPACE, Tools,
    manifest::name,
    tools::{DEADLINE, parse},
};
use crate::process::succeed;

/// A request of helm on this machine, on a busy day.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// More than any request of helm has.
const MAX_BODY: usize = 4 << 20;
/// Groups and versions, and what is in them.
const RESOURCES: &[(&str, &[(&str, &str)])] = &[
    (
        "v1",
        &[
            ("secrets", "Secret"),
            ("configmaps", "ConfigMap"),
            ("services", "Service"),
            ("serviceaccounts", "ServiceAccount"),
            ("namespaces", "Namespace"),
        ],
    ),
    ("apps/v1", &[("daemonsets", "DaemonSet"), ("statefulsets", "StatefulSet"), ("deployments", "Deployment")]),
    ("batch/v1", &[("jobs", "Job")]),
    ("policy/v1", &[("poddisruptionbudgets", "PodDisruptionBudget")]),
    ("rbac.authorization.k8s.io/v1", &[("roles", "Role"), ("rolebindings", "RoleBinding")]),
];

/// What is in the cluster.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    /// By where they are: `secrets/NAME`.
    pub(super) objects: BTreeMap<String, Value>,
    /// What was changed, in order: `DELETE secrets/NAME`.
    pub(super) changes: Vec<String>,
    /// How Jobs end, as the type of a condition: `Complete`, `Failed`. Without it they do not.
    pub(super) jobs_end: Option<&'static str>,
}

impl Cluster {
    /// Puts an object there, as if it had been made.
    pub(super) fn put(&mut self, resource: &str, object: &Value) {
        self.objects.insert(format!("{resource}/{}", name(object)), object.clone());
    }
}

pub(super) struct ApiServer {
    address: SocketAddr,
    cluster: Arc<Mutex<Cluster>>,
}

impl ApiServer {
    /// Serves for as long as the process lives.
    pub(super) fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let cluster = Arc::<Mutex<Cluster>>::default();
        let there = Arc::clone(&cluster);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let there = Arc::clone(&there);
                // A client that breaks off is its own business; what it lacks fails the check.
                thread::spawn(move || drop(answer(&stream, &there)));
            }
        });
        Ok(Self { address, cluster })
    }

    /// What is in the cluster, to look at and to change.
    pub(super) fn cluster(&self) -> MutexGuard<'_, Cluster> {
        lock(&self.cluster)
    }

    /// A command of helm, in the namespace and the cluster.
    pub(super) fn helm(&self, tools: &Tools, arguments: &[&str]) -> Command {
        let mut helm = tools.helm();
        helm.args(arguments)
            .args(["--namespace", NAMESPACE, "--kube-apiserver"])
            .arg(format!("http://{}", self.address));
        helm
    }

    /// The objects that the chart makes for a release that is in the cluster, hooks among them.
    pub(super) fn objects(&self, tools: &Tools, chart: &Path, set: &[&str]) -> Result<Vec<Value>> {
        let mut template = tools.template(chart);
        template.args(set.iter().flat_map(|set| ["--set", set]));
        template.args(["--is-upgrade", "--dry-run=server", "--disable-openapi-validation", "--kube-apiserver"]);
        parse(&succeed(template.arg(format!("http://{}", self.address)), DEADLINE)?)
    }
}

fn lock(cluster: &Mutex<Cluster>) -> MutexGuard<'_, Cluster> {
    cluster.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Request {
    method: String,
    path: String,
    query: String,
    body: Vec<u8>,
}

fn read(stream: &TcpStream) -> Result<Request> {
    stream.set_read_timeout(Some(REQUEST_DEADLINE))?;
    let mut reader = BufReader::new(stream);
    let mut line = || -> Result<String> {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    };
    let first = line()?;
    let mut length = 0;
    loop {
        let header = line()?.to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
    }
    ensure!(length <= MAX_BODY, "a body of {length} bytes");
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().context("no request")?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Ok(Request { method: method.to_owned(), path: path.to_owned(), query: query.to_owned(), body })
}

fn answer(mut stream: &TcpStream, cluster: &Mutex<Cluster>) -> Result<()> {
    let request = read(stream)?;
    let collections: Vec<&(&str, &str)> = RESOURCES.iter().flat_map(|(_, resources)| *resources).collect();
    let place = request.path.split_once(&format!("/namespaces/{NAMESPACE}/")).map(|(_, place)| place.to_owned());
    let collection = place.as_ref().and_then(|place| collections.iter().find(|(resource, _)| place == resource));
    let (status, body) = match (&place, collection) {
        (None, _) => discovery(&request.path),
        (Some(resource), Some(_)) if request.method == "POST" => {
            let object = create(&mut lock(cluster), resource, &request.body)?;
            ("201 Created", Some(object))
        }
        (Some(resource), Some((_, kind))) => {
            let items = list(&lock(cluster), resource, &request.query)?;
            if request.query.contains("watch=") {
                return watch(stream, kind, &items);
            }
            (
                "200 OK",
                Some(
                    json!({ "kind": format!("{kind}List"), "apiVersion": version(resource), "metadata": {}, "items": items }),
                ),
            )
        }
        (Some(place), None) => {
            let mut cluster = lock(cluster);
            if request.method != "GET" && cluster.objects.contains_key(place) {
                cluster.changes.push(format!("{} {place}", request.method));
            }
            match request.method.as_str() {
                "DELETE" => (
                    "200 OK",
                    cluster
                        .objects
                        .remove(place)
                        .map(|_| json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" })),
                ),
                "PUT" => {
                    let object = decode(&request.body)?;
                    (
                        "200 OK",
                        cluster
                            .objects
                            .get_mut(place)
                            .map(|there| std::mem::replace(there, object.clone()))
                            .map(|_| object),
                    )
                }
                // What a patch would change is of no concern here.
                _ => ("200 OK", cluster.objects.get(place).cloned()),
            }
        }
    };
    let not_found =
        json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404 });
    let (status, body) = body.map_or(("404 Not Found", not_found), |body| (status, body));
    // Of schemas there are none, in the form in which helm asks for them: it checks nothing then.
    let (form, body) = if request.path == "/openapi/v2" {
        ("application/com.github.proto-openapi.spec.v2.v1.0+protobuf", String::new())
    } else {
        ("application/json", body.to_string())
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {form}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )?;
    Ok(())
}

/// The version that a resource is in.
fn version(resource: &str) -> &'static str {
    let holds = |resources: &[(&str, &str)]| resources.iter().any(|(known, _)| *known == resource);
    RESOURCES.iter().find(|(_, resources)| holds(resources)).map_or("v1", |(version, _)| *version)
}

/// What is asked of the server itself, and not of the namespace's objects.
fn discovery(path: &str) -> (&'static str, Option<Value>) {
    let body = match path {
        "/version" => Some(json!({ "major": "1", "minor": "33", "gitVersion": "v1.33.0" })),
        "/api" => Some(json!({ "kind": "APIVersions", "versions": ["v1"] })),
        "/openapi/v2" => Some(Value::Null),
        "/apis" => {
            let group = |version: &str| {
                let version = json!({ "groupVersion": version, "version": "v1" });
                let name = version["groupVersion"].as_str().and_then(|version| version.split('/').next());
                json!({ "name": name, "versions": [version], "preferredVersion": version })
            };
            let groups: Vec<Value> = RESOURCES
                .iter()
                .filter(|(version, _)| version.contains('/'))
                .map(|(version, _)| group(version))
                .collect();
            Some(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups }))
        }
        path if path == format!("/api/v1/namespaces/{NAMESPACE}") => {
            Some(json!({ "kind": "Namespace", "apiVersion": "v1", "metadata": { "name": NAMESPACE } }))
        }
        path => {
            let wanted = path.trim_start_matches("/apis/").trim_start_matches("/api/");
            RESOURCES.iter().find(|(version, _)| *version == wanted).map(|(version, resources)| {
                let resource = |(name, kind): &(&str, &str)| {
                    json!({
                        "name": name, "singularName": kind.to_lowercase(), "kind": kind, "namespaced": *name != "namespaces",
                        "verbs": ["get", "list", "watch", "create", "update", "patch", "delete"],
                    })
                };
                let resources: Vec<Value> = resources.iter().map(resource).collect();
                json!({ "kind": "APIResourceList", "groupVersion": version, "resources": resources })
            })
        }
    };
    ("200 OK", body)
}

fn create(cluster: &mut Cluster, resource: &str, body: &[u8]) -> Result<Value> {
    let mut object = decode(body)?;
    object["metadata"]["namespace"] = json!(NAMESPACE);
    if let Some(end) = cluster.jobs_end.filter(|_| resource == "jobs") {
        let condition = json!({ "type": end, "status": "True", "reason": end });
        object["status"] = json!({ "succeeded": u8::from(end == "Complete"), "conditions": [condition] });
    }
    cluster.changes.push(format!("POST {resource}/{}", name(&object)));
    cluster.put(resource, &object);
    Ok(object)
}

/// The objects of a collection that a request selects, by labels or by name.
fn list(cluster: &Cluster, resource: &str, query: &str) -> Result<Vec<Value>> {
    let form: Vec<(String, String)> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let selector = |wanted: &str| form.iter().find(|(key, _)| key == wanted).map_or("", |(_, value)| value);
    let labels: Vec<(&str, &str)> =
        selector("labelSelector").split(',').filter_map(|part| part.split_once('=')).collect();
    let called = selector("fieldSelector").strip_prefix("metadata.name=");
    let selected = |object: &&Value| {
        called.is_none_or(|called| name(object) == called)
            && labels.iter().all(|(key, value)| object["metadata"]["labels"][*key] == *value)
    };
    let of_resource =
        cluster.objects.iter().filter(|(place, _)| place.split_once('/').is_some_and(|(of, _)| of == resource));
    Ok(of_resource.map(|(_, object)| object).filter(selected).cloned().collect())
}

/// Says what there is, and nothing more until the client goes: here nothing happens by itself.
fn watch(mut stream: &TcpStream, kind: &str, items: &[Value]) -> Result<()> {
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n")?;
    let all = json!({ "k8s.io/initial-events-end": "true" });
    let all =
        json!({ "kind": kind, "apiVersion": "batch/v1", "metadata": { "resourceVersion": "1", "annotations": all } });
    let events = items.iter().map(|item| json!({ "type": "ADDED", "object": item }));
    for event in events.chain([json!({ "type": "BOOKMARK", "object": all })]) {
        writeln!(stream, "{event}")?;
    }
    stream.set_read_timeout(None)?;
    io::copy(&mut stream, &mut io::sink())?;
    Ok(())
}

/// An object as helm sends it: JSON, or its own Secrets as protobuf (`k8s.io/api/core/v1/generated.proto`).
fn decode(body: &[u8]) -> Result<Value> {
    let Some(envelope) = body.strip_prefix(b"k8s\0") else { return Ok(serde_json::from_slice(body)?) };
    let secret = fields(envelope)?.into_iter().find(|(number, _)| *number == 2).context("an empty envelope")?.1;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let entry = |bytes: &[u8]| -> Result<(String, Vec<u8>)> {
        let fields: BTreeMap<u64, &[u8]> = fields(bytes)?.into_iter().collect();
        Ok((text(fields.get(&1).copied().unwrap_or_default()), fields.get(&2).copied().unwrap_or_default().to_vec()))
    };
    let mut object = json!({ "kind": "Secret", "apiVersion": "v1", "metadata": { "labels": {} }, "data": {} });
    for (number, bytes) in fields(secret)? {
        match number {
            1 => {
                for (number, bytes) in fields(bytes)? {
                    if number == 1 {
                        object["metadata"]["name"] = json!(text(bytes));
                    } else if number == 11 {
                        let (key, value) = entry(bytes)?;
                        object["metadata"]["labels"][key] = json!(text(&value));
                    }
                }
            }
            2 => {
                let (key, value) = entry(bytes)?;
                object["data"][key] = json!(base64::engine::general_purpose::STANDARD.encode(value));
            }
            3 => object["type"] = json!(text(bytes)),
            _ => {}
        }
    }
    Ok(object)
}

/// The fields of a message that have a length, by number; those that are numbers are left out.
fn fields(mut bytes: &[u8]) -> Result<Vec<(u64, &[u8])>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let tag = number(&mut bytes)?;
        match tag & 7 {
            0 => drop(number(&mut bytes)?),
            2 => {
                let length = usize::try_from(number(&mut bytes)?)?;
                let (field, rest) = bytes.split_at_checked(length).context("a field beyond the end")?;
                found.push((tag >> 3, field));
                bytes = rest;
            }
            kind => anyhow::bail!("a field of kind {kind}"),
        }
    }
    Ok(found)
}

fn number(bytes: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().context("a number without an end")?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Ok(value);
        }
    }
    anyhow::bail!("a number of more than 64 bits")
}
