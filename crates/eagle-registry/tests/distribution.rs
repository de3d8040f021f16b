//! Against Docker Distribution, the registry that most others are built from (`docker-registry` of Debian).
//!
//! Without the program the tests say so and pass, unless `EAGLE_TEST_REQUIRE_ALL=1` asks for all.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::{path::Path, process::Stdio, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use common::{client, embedded, read, read_blob};
use eagle_core::Digest;
use eagle_registry::{
    Caller, ForwardRequest, Manifest, RegistryConfig, Secret,
    embedded::{Access, PublishedImage},
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

const ANYONE: Caller = Caller::anonymous();
const PROGRAM: &str = "docker-registry";
/// User and password, and what `htpasswd -B` makes of them.
const USER: (&str, &str) = ("ann", "fly-high");
const HTPASSWD: &str = "ann:$2b$04$igc9A3/W.FJWhcDCiJY00.hLfOzOCFTdc5bmVmyNCHLqjDk.tPjhe\n";

struct Distribution {
    _process: Child,
    _directory: tempfile::TempDir,
    config: RegistryConfig,
}

fn is_installed() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|directory| directory.join(PROGRAM).is_file()) {
        return true;
    }
    assert!(std::env::var_os("EAGLE_TEST_REQUIRE_ALL").is_none_or(|all| all != "1"), "{PROGRAM} is not installed");
    eprintln!("SKIPPED: {PROGRAM} is not installed (Debian: apt-get install docker-registry)");
    false
}

fn write_config(directory: &Path, auth: bool) -> std::path::PathBuf {
    let htpasswd = directory.join("htpasswd");
    std::fs::write(&htpasswd, HTPASSWD).unwrap();
    let auth = if auth {
        format!("auth: {{htpasswd: {{realm: eagle, path: {}}}}}\n", htpasswd.display())
    } else {
        String::new()
    };
    let storage = directory.join("storage");
    let text = format!(
        "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:0'}}\n{auth}",
        storage.display()
    );
    let file = directory.join("config.yml");
    std::fs::write(&file, text).unwrap();
    file
}

/// Starts the program on a free port, which it tells in its log.
async fn start(auth: bool) -> Distribution {
    let directory = tempfile::tempdir().unwrap();
    let config = write_config(directory.path(), auth);
    let mut process = Command::new(PROGRAM)
        .arg("serve")
        .arg(config)
        .env("OTEL_TRACES_EXPORTER", "none")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
    let listening = async {
        while let Some(line) = log.next_line().await.unwrap() {
            if let Some((_, rest)) = line.split_once("listening on ") {
                return rest.split(['"', ' ', ',']).next().unwrap().to_owned();
            }
        }
        panic!("{PROGRAM} ended without listening");
    };
    let address = tokio::time::timeout(Duration::from_secs(20), listening).await.expect("it listens within 20 s");
    // Its log must go on being read, or it stops when the pipe is full.
    tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
    let config = RegistryConfig {
        url: Some(format!("http://{address}").parse().unwrap()),
        ..RegistryConfig::new(address.parse().unwrap())
    };
    Distribution { _process: process, _directory: directory, config }
}

/// The writing half of the API, which Eagle itself has no use for.
struct Pusher {
    client: Client<HttpConnector, Full<Bytes>>,
    base: String,
}

impl Pusher {
    async fn send(&self, method: Method, url: &str, media_type: &str, body: Bytes) -> Response<Incoming> {
        let pair = BASE64_STANDARD.encode(format!("{}:{}", USER.0, USER.1));
        let request = Request::builder()
            .method(method)
            .uri(url)
            .header("authorization", format!("Basic {pair}"))
            .header("content-type", media_type)
            .body(Full::new(body))
            .unwrap();
        let response = self.client.request(request).await.unwrap();
        assert!(response.status().is_success(), "{url}: {}", response.status());
        response
    }

    async fn blob(&self, image: &PublishedImage, digest: Digest, content: Bytes) {
        let url = format!("{}/v2/{}/blobs/uploads/", self.base, image.repository);
        let response = self.send(Method::POST, &url, "application/octet-stream", Bytes::new()).await;
        let location = response.headers()["location"].to_str().unwrap();
        let url = format!("{location}&digest={digest}");
        self.send(Method::PUT, &url, "application/octet-stream", content).await;
    }

    async fn manifest(&self, image: &PublishedImage) {
        let url = format!("{}/v2/{}/manifests/{}", self.base, image.repository, image.tag);
        self.send(Method::PUT, &url, image.media_type, image.manifest.clone()).await;
    }
}

/// Pushes a generated image, and gives it back.
async fn push(to: &RegistryConfig) -> PublishedImage {
    let origin = embedded(&[200_000, 3_000_000], Access::Open).await;
    let image = origin.images()[0].clone();
    let pusher = Pusher { client: Client::builder(TokioExecutor::new()).build_http(), base: to.base() };
    let source = client(origin.client_config());
    for blob in image.layers.iter().chain([&image.config]) {
        let content = read(source.blob(&image.repository, blob.digest, 0, &ANYONE).await.unwrap().body).await.unwrap();
        pusher.blob(&image, blob.digest, content).await;
    }
    pusher.manifest(&image).await;
    image
}

async fn pull(config: RegistryConfig, image: &PublishedImage) {
    let registry = client(config);
    let mut headers = HeaderMap::new();
    // As docker does: one header for each type.
    for media_type in eagle_registry::manifest::MEDIA_TYPES {
        headers.append("accept", HeaderValue::from_static(media_type));
    }
    let path = format!("{}/manifests/{}", image.repository, image.tag);
    let request = ForwardRequest::new(Method::GET, path, headers).unwrap();
    let response = registry.forward(request, &ANYONE).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["docker-content-digest"], image.manifest_digest.to_string().as_str());
    let media_type = response.headers()["content-type"].to_str().unwrap().to_owned();
    let body = read(response.into_body()).await.unwrap();
    assert_eq!(body, image.manifest);
    let manifest = Manifest::parse(&body, Some(&media_type)).unwrap();
    for blob in &manifest.blobs {
        assert_eq!(registry.blob_head(&image.repository, blob.digest, &ANYONE).await.unwrap(), blob.size);
        read_blob(registry.blob(&image.repository, blob.digest, 0, &ANYONE).await.unwrap(), blob.digest).await;
        let half = blob.size / 2;
        let rest = registry.blob(&image.repository, blob.digest, half, &ANYONE).await.unwrap();
        assert_eq!((rest.start, rest.size), (half, blob.size));
        assert_eq!(read(rest.body).await.unwrap().len() as u64, blob.size - half);
    }
    let missing = registry.blob(&image.repository, Digest::of(b"none"), 0, &ANYONE).await.unwrap_err();
    assert_eq!(missing.status(), Some(StatusCode::NOT_FOUND));
}

#[tokio::test]
async fn pulls_from_distribution() {
    if !is_installed() {
        return;
    }
    let server = start(false).await;
    let image = push(&server.config).await;
    pull(server.config.clone(), &image).await;
}

#[tokio::test]
async fn pulls_from_distribution_with_a_password() {
    if !is_installed() {
        return;
    }
    let server = start(true).await;
    let image = push(&server.config).await;
    let with_user = RegistryConfig {
        username: Some(USER.0.to_owned()),
        password: Some(Secret::new(USER.1)),
        ..server.config.clone()
    };
    pull(with_user, &image).await;
    let refused = client(server.config.clone()).blob_head(&image.repository, image.layers[0].digest, &ANYONE).await;
    assert_eq!(refused.unwrap_err().status(), Some(StatusCode::UNAUTHORIZED));
}
