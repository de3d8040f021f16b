//! Pushes and deletes through the mirror: refused, or passed on to the registry.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use common::{
    KillableSeeder, ProxyOptions, TestProxy, registries,
    stub::{StubOrigin, respond},
};
use eagle_core::{Digest, units::Rate};
use eagle_proxy::config::Push;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const CONTENT: &[u8] = b"a layer";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Plays the registry's half of the specification's upload, with sessions of an odd form, as some registries have.
fn origin(request: &Request<Bytes>) -> Response<Bytes> {
    let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
    let digest = Digest::of(CONTENT);
    if request.headers().get("authorization").is_none_or(|value| value != "Basic secret") {
        return respond(401, &[("www-authenticate", "Basic realm=\"x\"")], "");
    }
    match (request.method().as_str(), path) {
        ("POST", "/v2/library/app/blobs/uploads/") if query.starts_with("mount=") => {
            respond(201, &[("location", &format!("/v2/library/app/blobs/{digest}"))], "")
        }
        ("POST", "/v2/library/app/blobs/uploads/") => {
            respond(202, &[("location", "/uploads/odd%2Fform/1?_state=a%3D"), ("range", "0-0")], "")
        }
        ("PATCH", "/uploads/odd%2Fform/1") if query == "_state=a%3D" => {
            respond(202, &[("location", "/uploads/odd%2Fform/2?_state=b"), ("range", "0-6")], "")
        }
        ("PUT", "/uploads/odd%2Fform/2") if query == format!("_state=b&digest={digest}") => {
            respond(201, &[("location", &format!("/v2/library/app/blobs/{digest}"))], "")
        }
        ("PUT", "/v2/library/app/manifests/1") => respond(
            201,
            &[
                ("location", &format!("/v2/library/app/manifests/{digest}")),
                ("docker-content-digest", &digest.to_string()),
            ],
            "",
        ),
        ("DELETE", _) => respond(202, &[], ""),
        ("GET", "/uploads/odd%2Fform/2") => respond(204, &[("range", "0-6")], ""),
        ("POST", "/v2/library/elsewhere/blobs/uploads/") => {
            respond(202, &[("location", "https://storage.example/bucket?signature=x")], "")
        }
        ("POST", "/v2/library/evil/blobs/uploads/") => respond(202, &[("location", "http://evil.example/upload")], ""),
        _ => respond(404, &[], ""),
    }
}

async fn send(address: SocketAddr, method: &str, path: &str, body: Bytes) -> (StatusCode, HeaderMap) {
    send_with(address, method, path, "Basic secret", body).await
}

async fn send_as(address: SocketAddr, method: &str, path: &str, authorization: &str) -> (StatusCode, HeaderMap) {
    send_with(address, method, path, authorization, Bytes::new()).await
}

async fn send_with(
    address: SocketAddr,
    method: &str,
    path: &str,
    authorization: &str,
    body: Bytes,
) -> (StatusCode, HeaderMap) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request =
        Request::builder().method(method).uri(path).header("host", "proxy").header("authorization", authorization);
    let response = sender.send_request(request.body(Full::new(body)).unwrap()).await.unwrap();
    (response.status(), response.headers().clone())
}

async fn passing(origin: &StubOrigin) -> TestProxy {
    ProxyOptions::of_stub(origin).start_with(|config| config.push = Push::Passthrough).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_comes_back_through_the_proxy_at_every_step() {
    let origin = StubOrigin::start(origin).await;
    let proxy = passing(&origin).await;
    let digest = Digest::of(CONTENT);
    let registry = origin.address;
    for (name, namespace) in [
        ("library/app".to_owned(), String::new()),
        (format!("{registry}/library/app"), String::new()),
        ("library/app".to_owned(), format!("ns={registry}")),
    ] {
        let with = |path: &str, more: &str| {
            let query: Vec<&str> = [namespace.as_str(), more].into_iter().filter(|part| !part.is_empty()).collect();
            let separator = if query.is_empty() {
                ""
            } else if path.contains('?') {
                "&"
            } else {
                "?"
            };
            format!("{path}{separator}{}", query.join("&"))
        };
        let begin = with(&format!("/v2/{name}/blobs/uploads/"), "");
        let (status, headers) = send(proxy.address, "POST", &begin, Bytes::new()).await;
        assert_eq!(status, 202);
        let location = headers["location"].to_str().unwrap().to_owned();
        assert!(
            location.starts_with(&format!("/v2/{name}/blobs/uploads/")) && location.ends_with(&namespace),
            "{location}"
        );
        let (status, headers) = send(proxy.address, "PATCH", &location, Bytes::from_static(CONTENT)).await;
        assert_eq!((status.as_u16(), headers["range"].to_str().unwrap()), (202, "0-6"));
        let location = headers["location"].to_str().unwrap().to_owned();
        assert_eq!(send(proxy.address, "GET", &location, Bytes::new()).await.0, 204);
        let end = if location.contains('?') {
            format!("{location}&digest={digest}")
        } else {
            format!("{location}?digest={digest}")
        };
        let (status, headers) = send(proxy.address, "PUT", &end, Bytes::new()).await;
        assert_eq!(status, 201);
        assert_eq!(headers["location"].to_str().unwrap(), with(&format!("/v2/{name}/blobs/{digest}"), ""));
        let (status, headers) =
            send(proxy.address, "PUT", &with(&format!("/v2/{name}/manifests/1"), ""), Bytes::from_static(b"{}")).await;
        assert_eq!(status, 201);
        assert_eq!(headers["location"].to_str().unwrap(), with(&format!("/v2/{name}/manifests/{digest}"), ""));
        let mount = with(&format!("/v2/{name}/blobs/uploads/"), &format!("mount={digest}&from=library/other"));
        assert_eq!(send(proxy.address, "POST", &mount, Bytes::new()).await.0, 201);
        assert_eq!(
            send(proxy.address, "DELETE", &with(&format!("/v2/{name}/blobs/{digest}"), ""), Bytes::new()).await.0,
            202
        );
    }
    let patched: Vec<_> = origin.requests().into_iter().filter(|request| request.method() == Method::PATCH).collect();
    assert_eq!(patched.len(), 3);
    assert!(patched.iter().all(|request| request.body() == CONTENT));
    let (status, headers) = send(proxy.address, "POST", "/v2/library/elsewhere/blobs/uploads/", Bytes::new()).await;
    assert_eq!(
        (status.as_u16(), headers["location"].to_str().unwrap()),
        (202, "https://storage.example/bucket?signature=x")
    );
    let (_, headers) = send(proxy.address, "POST", "/v2/library/evil/blobs/uploads/", Bytes::new()).await;
    assert!(headers.get("location").is_none());
}

/// A registry of one tag, with whatever was pushed last.
fn of_one_tag() -> impl Fn(&Request<Bytes>) -> Response<Bytes> + Send + Sync + 'static {
    let manifest = std::sync::Mutex::new(Bytes::from_static(b"{\"schemaVersion\":2}"));
    move |request| {
        let mut manifest = manifest.lock().unwrap();
        if request.method() == Method::PUT {
            *manifest = request.body().clone();
            return respond(201, &[("location", "/v2/library/app/manifests/1")], "");
        }
        let digest = Digest::of(&manifest).to_string();
        respond(200, &[("docker-content-digest", &digest), ("content-type", MANIFEST)], manifest.clone())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pushed_is_what_everybody_pulls_at_once() {
    let origin = StubOrigin::start(of_one_tag()).await;
    let seeders: Vec<_> = (0..2)
        .map(|_| KillableSeeder::start(&registries(vec![origin.config()]), Vec::new(), Rate::Unlimited))
        .collect();
    let options = ProxyOptions {
        seeders: seeders.iter().map(|seeder| seeder.url.clone()).collect(),
        ..ProxyOptions::of_stub(&origin)
    };
    let pushing = options.start_with(|config| config.push = Push::Passthrough).await;
    let other = options.start().await;
    for round in 0..3 {
        for proxy in [&pushing, &other] {
            let pulled = proxy.get("/v2/library/app/manifests/1").await.whole();
            let expected =
                if round == 0 { "{\"schemaVersion\":2}".to_owned() } else { format!("{{\"round\":{round}}}") };
            assert_eq!(pulled, expected.as_bytes());
        }
        let next = Bytes::from(format!("{{\"round\":{}}}", round + 1));
        assert_eq!(send(pushing.address, "PUT", "/v2/library/app/manifests/1", next).await.0, 201);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_content_is_streamed_and_one_that_breaks_off_is_never_whole() {
    let origin = StubOrigin::start(origin).await;
    let proxy = passing(&origin).await;
    let (_, headers) = send(proxy.address, "POST", "/v2/library/app/blobs/uploads/", Bytes::new()).await;
    let location = headers["location"].to_str().unwrap().to_owned();
    let large = Bytes::from(vec![7; 64 << 20]);
    let (status, headers) = send(proxy.address, "PATCH", &location, large.clone()).await;
    assert_eq!(status, 202);
    assert_eq!(origin.requests().pop().unwrap().body().len(), large.len());

    let location = headers["location"].to_str().unwrap().to_owned();
    let before = origin.requests().len();
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let frames = futures::stream::iter([
        Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from_static(b"half"))),
        Err(std::io::Error::other("gone")),
    ]);
    let body = StreamBody::new(frames).boxed();
    let request = Request::builder().method("PUT").uri(&location).header("authorization", "Basic secret");
    assert!(sender.send_request(request.body(body).unwrap()).await.is_err());
    let _ = connection.await;
    assert_eq!(origin.requests().len(), before);
    assert_eq!(proxy.get("/v2/").await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_an_upload_that_stands_still() {
    let origin = StubOrigin::start(origin).await;
    let proxy = passing(&origin).await;
    let (_, headers) = send(proxy.address, "POST", "/v2/library/app/blobs/uploads/", Bytes::new()).await;
    let location = headers["location"].to_str().unwrap();
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let head = format!(
        "PATCH {location} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic secret\r\nContent-Length: 100\r\n\r\nhalf"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // The stall timeout of the stub's configuration is two seconds.
    let mut status = [0; 12];
    timeout(common::DEADLINE, stream.read_exact(&mut status)).await.expect("an answer in time").unwrap();
    assert_eq!(&status, b"HTTP/1.1 502");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_push_or_not_known_is_refused() {
    let origin = StubOrigin::start(origin).await;
    let proxy = passing(&origin).await;
    for (method, path, status) in [
        ("PATCH", "/v2/library/app/blobs/uploads/never-begun", 404),
        ("PUT", "/v2/library/app/blobs/uploads/..%2f..%2fx", 404),
        ("POST", "/v2/library/app/blobs/uploads", 400),
        ("POST", "/v1/search", 404),
        ("POST", "/v2/Library/blobs/uploads/", 400),
        ("PUT", "/v2/library/app/manifests/..", 400),
        ("DELETE", "/v2/library/app/blobs/sha256:00", 400),
        ("PUT", "/v2/library/app/manifests/1?ns=a&ns=b", 400),
    ] {
        assert_eq!(send(proxy.address, method, path, Bytes::new()).await.0, status, "{method} {path}");
    }
    assert!(origin.requests().is_empty());
    // The registry's refusal, with its challenge, is the client's to answer.
    let answer = common::request(proxy.address, Method::POST, "/v2/library/app/blobs/uploads/", &[]).await;
    assert_eq!((answer.status.as_u16(), answer.header("www-authenticate")), (401, "Basic realm=\"x\""));
    let refusing = ProxyOptions::of_stub(&origin).start().await;
    let before = origin.requests().len();
    for (method, path) in [("POST", "/v2/library/app/blobs/uploads/"), ("DELETE", "/v2/library/app/manifests/1")] {
        assert_eq!(send(refusing.address, method, path, Bytes::new()).await.0, 405);
    }
    assert_eq!(origin.requests().len(), before);
}

/// `alice:pw`.
const ALICE: &str = "Basic YWxpY2U6cHc=";

/// A registry with a token service of its own, whose tokens say what they are for, and hold until `revoked` is told.
fn with_tokens(revoked: Arc<AtomicBool>) -> impl Fn(&Request<Bytes>) -> Response<Bytes> + Send + Sync + 'static {
    move |request| {
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
        let authorization = request.headers().get("authorization").map_or("", |value| value.to_str().unwrap());
        let number = u8::from(revoked.load(Ordering::Relaxed));
        if path == "/token" {
            let scope = query.split("scope=repository%3Alibrary%2Fapp%3A").nth(1).unwrap_or_default();
            return match authorization {
                ALICE => respond(200, &[], format!("{{\"token\":\"{number}-{scope}\"}}")),
                _ => respond(401, &[], ""),
            };
        }
        let host = request.headers()["host"].to_str().unwrap();
        let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"x\"");
        let wanted = if request.method() == Method::DELETE { "delete" } else { "pull%2Cpush" };
        match request.method().as_str() {
            "GET" if path == "/v2/" => respond(401, &[("www-authenticate", &challenge)], ""),
            "POST" | "DELETE" if authorization == format!("Bearer {number}-{wanted}") => {
                respond(202, &[("location", "/upload/1")], "")
            }
            _ => respond(401, &[("www-authenticate", &challenge)], ""),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_logged_in_to_the_mirror_pushes_with_a_token_of_the_registry() {
    let revoked = Arc::new(AtomicBool::new(false));
    let origin = StubOrigin::start(with_tokens(Arc::clone(&revoked))).await;
    let proxy = passing(&origin).await;
    let name = format!("{}/library/app", origin.address);
    let login = async |authorization: &'static str| {
        let path = format!("/eagle/token?service=eagle&scope=repository:{name}:pull,push");
        let answer = proxy.get_with(&path, &[("authorization", authorization)]).await;
        let answer: serde_json::Value = serde_json::from_slice(&answer.whole()).unwrap();
        format!("Bearer {}", answer["token"].as_str().unwrap())
    };
    let (alice, mallory) = (login(ALICE).await, login("Basic bWFsbG9yeTpwdw==").await);
    let (upload, manifest) = (format!("/v2/{name}/blobs/uploads/"), format!("/v2/{name}/manifests/1"));
    let step = async |method, path: &str, token: &str| send_as(proxy.address, method, path, token).await;
    for _ in 0..3 {
        assert_eq!(step("POST", &upload, &alice).await.0, 202);
    }
    assert_eq!(step("DELETE", &manifest, &alice).await.0, 202);
    let tokens = origin.requests().iter().filter(|request| request.uri().path() == "/token").count();
    assert_eq!(tokens, 2, "one for pushes, one for deletes");
    let (status, headers) = step("POST", &upload, &mallory).await;
    // There is nothing at the registry's token service for who knows this proxy's alone.
    assert_eq!((status.as_u16(), headers.get("www-authenticate")), (401, None));
    // Tokens that count no more: one step is refused, the next one has a new token.
    revoked.store(true, Ordering::Relaxed);
    assert_eq!(step("POST", &upload, &alice).await.0, 401);
    assert_eq!(step("POST", &upload, &alice).await.0, 202);
}
