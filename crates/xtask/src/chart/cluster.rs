//! Secrets, with and without a look into a cluster: what the chart makes once and keeps, and what the administrator has to bring.
//!
//! The cluster is as much of a Kubernetes API server as helm's `lookup` asks: which resources there are, a namespace, and Secrets.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    NAMESPACE, RELEASE, Tools,
    manifest::{find, secret},
    tools::{DEADLINE, parse},
};
use crate::process::succeed;

/// Secrets that the chart makes, and the key within each.
const MADE: [(&str, &str); 2] = [("release-eagle-cluster", "cluster.key"), ("release-eagle-redis", "password")];
/// What the API server says that these hold: "the key that is there", in base64.
const THERE: &str = "dGhlIGtleSB0aGF0IGlzIHRoZXJl";
/// The same of Secrets that the administrator was asked for.
const WANTED: [(&str, &[&str]); 5] = [
    ("ours", &["cluster.key"]),
    ("certificates", &["tls.crt", "tls.key", "ca.crt"]),
    ("redis-login", &["password"]),
    ("registry-login", &["password"]),
    ("pull", &[".dockerconfigjson"]),
];
/// Values that ask for them.
const ASKING: &str = "cluster.keySecret.name=ours,cluster.tls.secret=certificates,redis.url=redis://redis,\
    redis.passwordSecret.name=redis-login,dockerConfigSecrets[0]=pull,registries[0].name=a.example,\
    registries[0].username=u,registries[0].passwordSecret.name=registry-login,\
    registries[0].passwordSecret.key=password";
/// A request of helm on this machine, on a busy day.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// The chart makes a key once: with a look into the cluster the one that is there stays.
pub(super) fn secrets_are_kept(tools: &Tools, chart: &Path) -> Result<()> {
    const ON: &[&str] = &["redis.enabled=true"];
    for (name, key) in MADE {
        let held = |objects: &[Value]| secret(find(objects, "Secret", name)?, key);
        let (first, second) = (held(&tools.objects(chart, None, ON)?)?, held(&tools.objects(chart, None, ON)?)?);
        ensure!(first != second, "{name}: without a look into the cluster two are the same: they are not random");
        let kept = find(&tools.objects(chart, None, ON)?, "Secret", name)?["metadata"]["annotations"].clone();
        ensure!(kept["helm.sh/resource-policy"] == "keep", "{name} goes with the release: {kept}");
        let ours = ["redis.enabled=true", "cluster.keySecret.name=ours,redis.passwordSecret.name=ours"];
        let given = tools.objects(chart, None, &ours)?;
        ensure!(find(&given, "Secret", name).is_err(), "{name} is made although one is given");
    }
    let server = ApiServer::start()?;
    for there in [false, true] {
        server.has_secrets.store(there, Ordering::SeqCst);
        let mut template = tools.template(chart);
        template.args(["--set", ON[0], "--dry-run=server", "--disable-openapi-validation", "--kube-apiserver"]);
        let objects = parse(&succeed(template.arg(server.url()), DEADLINE)?)?;
        for (name, key) in MADE {
            let made = secret(find(&objects, "Secret", name)?, key)?;
            ensure!((made == b"the key that is there") == there, "{name}, there: {there}");
        }
    }
    Ok(())
}

/// The notes name each Secret that pods would wait for.
pub(super) fn missing_secrets(tools: &Tools, chart: &Path) -> Result<()> {
    // Only `helm install` prints the notes, and asks the cluster about every object; so there are none.
    let directory = tempfile::tempdir()?;
    succeed(Command::new("cp").arg("-r").arg(chart).arg(directory.path()), DEADLINE)?;
    let notes = directory.path().join("eagle");
    for entry in fs::read_dir(notes.join("templates"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            fs::remove_file(path)?;
        }
    }
    let server = ApiServer::start()?;
    for there in [false, true] {
        server.has_secrets.store(there, Ordering::SeqCst);
        let mut install = tools.helm();
        install.args(["install", RELEASE, "--namespace", NAMESPACE, "--dry-run=server", "--set", ASKING]);
        install.args(["--disable-openapi-validation", "--kube-apiserver"]).arg(server.url()).arg(&notes);
        let printed = succeed(&mut install, DEADLINE)?;
        for (name, key) in WANTED.iter().flat_map(|(name, keys)| keys.iter().map(move |key| (name, key))) {
            let warning = format!("WARNING: there is no Secret {name} with the key {key} in {NAMESPACE}");
            ensure!(printed.contains(&warning) != there, "{name} {key}, there: {there}:\n{printed}");
        }
        ensure!(printed.contains("WARNING") != there, "{printed}");
    }
    Ok(())
}

struct ApiServer {
    address: SocketAddr,
    has_secrets: Arc<AtomicBool>,
}

impl ApiServer {
    /// Serves for as long as the process lives, one connection after another.
    fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let has_secrets = Arc::new(AtomicBool::new(false));
        let there = Arc::clone(&has_secrets);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that breaks off is its own business; what it lacks fails the check.
                let _ = answer(&stream, there.load(Ordering::SeqCst));
            }
        });
        Ok(Self { address, has_secrets })
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn answer(mut stream: &TcpStream, has_secrets: bool) -> Result<()> {
    stream.set_read_timeout(Some(REQUEST_DEADLINE))?;
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().context("no request")??;
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let path = request.split(' ').nth(1).unwrap_or_default().split('?').next().unwrap_or_default().to_owned();
    let namespace = format!("/api/v1/namespaces/{NAMESPACE}");
    let wanted = path.strip_prefix(&format!("{namespace}/secrets/")).filter(|_| has_secrets);
    let (status, body) = match path.as_str() {
        "/version" => ("200 OK", json!({ "major": "1", "minor": "33", "gitVersion": "v1.33.0" })),
        "/api" => ("200 OK", json!({ "kind": "APIVersions", "versions": ["v1"] })),
        "/apis" => ("200 OK", json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [] })),
        "/api/v1" => (
            "200 OK",
            json!({ "kind": "APIResourceList", "groupVersion": "v1", "resources": [
                { "name": "secrets", "singularName": "secret", "kind": "Secret", "namespaced": true, "verbs": ["get"] },
                { "name": "namespaces", "singularName": "namespace", "kind": "Namespace", "namespaced": false, "verbs": ["get"] },
            ] }),
        ),
        path if path == namespace => {
            ("200 OK", json!({ "kind": "Namespace", "apiVersion": "v1", "metadata": { "name": NAMESPACE } }))
        }
        // helm looks for earlier releases.
        path if path.strip_prefix(&namespace) == Some("/secrets") => {
            ("200 OK", json!({ "kind": "SecretList", "apiVersion": "v1", "metadata": {}, "items": [] }))
        }
        _ if wanted.is_some() => {
            let keys = MADE.iter().map(|(_, key)| *key).chain(WANTED.iter().flat_map(|(_, keys)| keys.iter().copied()));
            let data: Value =
                keys.map(|key| (key.to_owned(), Value::from(THERE))).collect::<serde_json::Map<_, _>>().into();
            let metadata = json!({ "name": wanted, "namespace": NAMESPACE });
            ("200 OK", json!({ "kind": "Secret", "apiVersion": "v1", "metadata": metadata, "data": data }))
        }
        _ => (
            "404 Not Found",
            json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404 }),
        ),
    };
    let body = body.to_string();
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )?;
    Ok(())
}
