//! The forward proxy: absolute form, tunnels, interception, and all whom it refuses.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::Duration;

use common::{
    ProxyOptions, blob_path,
    intercepted::{Authority, HOST, ask, get, named},
    layer, origin, origin_for, raw, request,
    stub::{StubOrigin, respond},
};
use eagle_core::Digest;
use eagle_proxy::config::ForwardMode;
use eagle_registry::embedded::{Access, User};
use http::Method;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn intercepted_pulls_come_through_peers_by_either_protocol() {
    let origin = origin(&[MIB]).await;
    let image = origin.images()[0].clone();
    let authority = Authority::new();
    let proxy = named(&origin).start_with(Authority::configure(authority.directory.path())).await;
    for (version, alpn) in [(http::Version::HTTP_11, "http/1.1"), (http::Version::HTTP_2, "h2")] {
        let stream = authority.connect(&proxy, alpn).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(alpn.as_bytes()));
        let answer = ask(stream, get(version, HOST, "/v2/library/app/manifests/1")).await;
        assert_eq!(answer.header("docker-content-digest"), image.manifest_digest.to_string());
        for digest in [layer(&image, 0), image.config.digest] {
            let stream = authority.connect(&proxy, alpn).await.unwrap();
            let answer = ask(stream, get(version, &format!("{HOST}:443"), &blob_path(&digest))).await;
            assert_eq!(Digest::of(&answer.whole()), digest);
        }
        let stream = authority.connect(&proxy, alpn).await.unwrap();
        let answer = ask(stream, get(version, HOST, "/v2/")).await;
        assert_eq!(answer.status, 200);
        // The tunnel was for one host; another one's images are not to be had in it.
        let stream = authority.connect(&proxy, alpn).await.unwrap();
        let answer = ask(stream, get(version, "other.example", "/v2/library/app/manifests/1")).await;
        assert_eq!(answer.status, 421);
        // Nor is a mirror's way to name a registry of any effect.
        let stream = authority.connect(&proxy, alpn).await.unwrap();
        let answer = ask(stream, get(version, HOST, "/v2/library/app/tags/list?ns=other.example")).await;
        assert_eq!(answer.status, 200);
    }
    assert_eq!(origin.stats().blob(layer(&image, 0)).gets, 1);
    assert!(proxy.proxy.cache().contains(layer(&image, 0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_intercepted_client_authenticates_to_the_registry() {
    let origin = origin_for(&[MIB], Access::Basic(vec![User::new("alice", "secret")])).await;
    let digest = layer(&origin.images()[0], 0);
    let authority = Authority::new();
    let proxy = named(&origin).start_with(Authority::configure(authority.directory.path())).await;
    for path in ["/v2/", "/v2/library/app/manifests/1", &blob_path(&digest)] {
        let answer = ask(authority.connect(&proxy, "h2").await.unwrap(), get(http::Version::HTTP_2, HOST, path)).await;
        assert_eq!(answer.status, 401, "{path}");
        assert!(answer.header("www-authenticate").starts_with("Basic"), "{path}");
        let mut request = get(http::Version::HTTP_2, HOST, path);
        // alice:secret
        request.headers_mut().insert("authorization", "Basic YWxpY2U6c2VjcmV0".parse().unwrap());
        let answer = ask(authority.connect(&proxy, "h2").await.unwrap(), request).await;
        assert_eq!(answer.status, 200, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_trust_the_authority_gets_no_connection() {
    let origin = origin(&[MIB]).await;
    let (used, trusted) = (Authority::new(), Authority::new());
    let proxy = named(&origin).start_with(Authority::configure(used.directory.path())).await;
    assert!(trusted.connect(&proxy, "h2").await.is_err());
    assert!(used.connect(&proxy, "h2").await.is_ok());
    // Nor does who speaks no TLS, or something else within it.
    let mut plain = raw::connect(proxy.address, &format!("{HOST}:443")).await.unwrap();
    plain.write_all(b"GET /v2/ HTTP/1.1\r\nHost: registry.example\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(common::DEADLINE, plain.read_to_end(&mut answer)).await.unwrap();
    assert!(!answer.starts_with(b"HTTP/"), "{answer:?}");
    for alpn in ["h2", "http/1.1"] {
        let mut stream = used.connect(&proxy, alpn).await.unwrap();
        stream.write_all(&[0xff; 4096]).await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(common::DEADLINE, stream.read_to_end(&mut answer)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_absolute_form_reaches_registries_and_their_other_paths() {
    let origin = origin(&[MIB]).await;
    let digest = layer(&origin.images()[0], 0);
    let proxy = ProxyOptions::new(&origin).start().await;
    let base = format!("http://{}", origin.local_addr());
    let answer = proxy.get(&format!("{base}/v2/library/app/manifests/1")).await;
    assert_eq!(answer.status, 200);
    for _cold_and_warm in 0..2 {
        let answer = proxy.get(&format!("{base}{}", blob_path(&digest))).await;
        assert_eq!(Digest::of(&answer.whole()), digest);
    }
    assert_eq!(origin.stats().blob(digest).gets, 1);
    // To itself, which a server must understand too.
    let own = format!("http://{}", proxy.address);
    assert_eq!(proxy.get(&format!("{own}/v2/library/app/manifests/1")).await.status, 200);

    let stub =
        StubOrigin::start(|request| respond(201, &[("x-path", request.uri().path())], request.body().clone())).await;
    let proxy = ProxyOptions::of_stub(&stub).start().await;
    let base = format!("http://{}", stub.address);
    let answer = proxy.get_with(&format!("{base}/token?service=a&scope=b"), &[("authorization", "Basic x")]).await;
    assert_eq!((answer.status.as_u16(), answer.header("x-path")), (201, "/token"));
    let seen = stub.requests().pop().unwrap();
    assert_eq!(seen.uri(), "/token?service=a&scope=b");
    assert_eq!(
        (&seen.headers()["authorization"], &seen.headers()["host"]),
        (&"Basic x".parse().unwrap(), &stub.address.to_string().parse().unwrap())
    );
    // A push by way of the forward proxy is between the client and the registry.
    let answer = request(proxy.address, Method::POST, &format!("{base}/v2/a/blobs/uploads/"), &[]).await;
    assert_eq!(answer.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_authority_connections_are_tunnelled() {
    let stub = StubOrigin::start(|_| respond(200, &[], "from the registry")).await;
    let proxy = ProxyOptions::of_stub(&stub).start().await;
    let mut stream = raw::connect(proxy.address, &stub.address.to_string()).await.unwrap();
    stream.write_all(b"GET /anything HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(common::DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.ends_with("from the registry"), "{answer}");
    // One that is only kept open does not hold up the end.
    let kept = raw::connect(proxy.address, &stub.address.to_string()).await.unwrap();
    let stopped = timeout(Duration::from_secs(15), proxy.stop()).await;
    assert!(stopped.is_ok(), "an idle tunnel ends soon after the signal to stop");
    drop(kept);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_no_open_proxy() {
    let stub = StubOrigin::start(|_| respond(200, &[], "never")).await;
    let reachable = StubOrigin::start(|_| respond(200, &[], "not a registry")).await;
    let proxy = ProxyOptions::of_stub(&stub).start().await;
    let elsewhere = reachable.address.to_string();
    for (target, status) in [
        (elsewhere.as_str(), 403),
        ("127.0.0.1:22", 403),
        ("localhost:22", 403),
        ("169.254.169.254:80", 403),
        ("evil.example:443", 403),
        ("auth.docker.io:443", 403),
        ("127.0.0.1", 400),
        ("user:pw@127.0.0.1:443", 400),
        ("0x7f.1:443", 400),
    ] {
        assert_eq!(raw::connect(proxy.address, target).await.err(), Some(status), "{target}");
    }
    for (target, status) in [
        (format!("http://{elsewhere}/v2/a/manifests/1"), 403),
        (format!("http://{elsewhere}/"), 403),
        ("http://169.254.169.254/latest/meta-data/".to_owned(), 403),
        (format!("http://user:pw@{}/v2/a/manifests/1", stub.address), 400),
        (format!("https://{}/v2/a/manifests/1", stub.address), 400),
        (format!("ftp://{}/v2/a/manifests/1", stub.address), 400),
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let answer = raw::exchange(proxy.address, request.as_bytes()).await;
        assert_eq!(raw::statuses(&answer), [status], "{target}: {answer}");
    }
    // The target counts, whatever `Host` says.
    let request = format!("GET http://{elsewhere}/v2/ HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", stub.address);
    assert_eq!(raw::statuses(&raw::exchange(proxy.address, request.as_bytes()).await), [403]);
    assert!(reachable.requests().is_empty() && stub.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_and_mode_decide() {
    let stub = StubOrigin::start(|_| respond(200, &[], "yes")).await;
    let target = stub.address.to_string();
    let off = ProxyOptions::of_stub(&stub).start_with(|config| config.forward.mode = ForwardMode::Off).await;
    assert_eq!(raw::connect(off.address, &target).await.err(), Some(403));
    assert_eq!(off.get(&format!("http://{target}/v2/")).await.status, 403);
    assert_eq!(off.get("/v2/").await.status, 401, "the mirror is another matter");
    let any = ProxyOptions::of_stub(&stub).start_with(|config| config.forward.mode = ForwardMode::Any).await;
    assert!(raw::connect(any.address, &target).await.is_ok());
    let rules = serde_json::from_str(r#"[{"repository": "secret/**", "action": "refuse"}]"#).unwrap();
    let refusing = ProxyOptions::of_stub(&stub).start_with(|config| config.rules = rules).await;
    assert_eq!(raw::connect(refusing.address, &target).await.err(), Some(403), "a tunnel would lead past the rule");
    for path in [
        "/v2/secret/app/blobs/uploads/",
        "/v2/secret/app/other/path",
        "/v2/secret/app/manifests/1",
        "/v2/se%63ret/app/other",
    ] {
        for method in [Method::GET, Method::POST] {
            let answer = request(refusing.address, method.clone(), &format!("http://{target}{path}"), &[]).await;
            assert_eq!(answer.status, 403, "{method} {path}");
        }
    }
    assert!(stub.requests().is_empty());
    assert_eq!(refusing.get(&format!("http://{target}/token")).await.status, 200);
}
