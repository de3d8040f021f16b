//! The cluster key, with and without a look into a cluster.
//!
//! The cluster is as much of a Kubernetes API server as helm's `lookup` asks: which resources there are, and one Secret.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
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
    Tools,
    manifest::{find, secret},
    tools::{DEADLINE, NAMESPACE, parse},
};
use crate::process::succeed;

const NAME: &str = "release-eagle-cluster";
/// A request of helm on this machine, on a busy day.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// The chart makes a key once: with a look into the cluster the one that is there stays.
pub(super) fn key_is_kept(tools: &Tools, chart: &Path) -> Result<()> {
    let key = |objects: &[Value]| secret(find(objects, "Secret", NAME)?, "cluster.key");
    let (first, second) = (key(&tools.objects(chart, None, &[])?)?, key(&tools.objects(chart, None, &[])?)?);
    ensure!(first != second, "without a look into the cluster two keys are the same: they are not random");
    let kept = find(&tools.objects(chart, None, &[])?, "Secret", NAME)?["metadata"]["annotations"].clone();
    ensure!(kept["helm.sh/resource-policy"] == "keep", "the key goes with the release: {kept}");
    let given = tools.objects(chart, None, &["cluster.keySecret.name=ours"])?;
    ensure!(find(&given, "Secret", NAME).is_err(), "a Secret is made although one is given");

    let server = ApiServer::start()?;
    for there in [false, true] {
        server.has_secret.store(there, Ordering::SeqCst);
        let mut template = tools.template(chart);
        let server = format!("http://{}", server.address);
        template.args(["--dry-run=server", "--disable-openapi-validation", "--kube-apiserver", &server]);
        let made = key(&parse(&succeed(&mut template, DEADLINE)?)?)?;
        ensure!(
            (made == b"the key that is there") == there,
            "there: {there}, made: {:?}",
            String::from_utf8_lossy(&made)
        );
    }
    Ok(())
}

struct ApiServer {
    address: SocketAddr,
    has_secret: Arc<AtomicBool>,
}

impl ApiServer {
    /// Serves for as long as the process lives, one connection after another.
    fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let has_secret = Arc::new(AtomicBool::new(false));
        let there = Arc::clone(&has_secret);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that breaks off is its own business; what it lacks fails the check.
                let _ = answer(&stream, there.load(Ordering::SeqCst));
            }
        });
        Ok(Self { address, has_secret })
    }
}

fn answer(mut stream: &TcpStream, has_secret: bool) -> Result<()> {
    stream.set_read_timeout(Some(REQUEST_DEADLINE))?;
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().context("no request")??;
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let path = request.split(' ').nth(1).unwrap_or_default().split('?').next().unwrap_or_default().to_owned();
    let secrets = format!("/api/v1/namespaces/{NAMESPACE}/secrets/{NAME}");
    let (status, body) = match path.as_str() {
        "/version" => ("200 OK", json!({ "major": "1", "minor": "33", "gitVersion": "v1.33.0" })),
        "/api" => ("200 OK", json!({ "kind": "APIVersions", "versions": ["v1"] })),
        "/apis" => ("200 OK", json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [] })),
        "/api/v1" => (
            "200 OK",
            json!({ "kind": "APIResourceList", "groupVersion": "v1", "resources": [
                { "name": "secrets", "singularName": "secret", "kind": "Secret", "namespaced": true, "verbs": ["get"] },
            ] }),
        ),
        path if path == secrets && has_secret => (
            "200 OK",
            // "the key that is there"
            json!({ "kind": "Secret", "apiVersion": "v1", "metadata": { "name": NAME, "namespace": NAMESPACE },
                "data": { "cluster.key": "dGhlIGtleSB0aGF0IGlzIHRoZXJl" } }),
        ),
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
