//! Requests that no runtime sends, as bytes on a socket: each gets one refusal or a harmless answer, nothing of it
//! reaches the origin in another form, and a good pull follows.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{
    ProxyOptions, blob_path, layer, origin, raw,
    stub::{StubOrigin, respond},
};
use eagle_core::Digest;
use eagle_proxy::config::Push;

const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_http_is_refused_and_smuggles_nothing() {
    let stub = StubOrigin::start(|_| respond(200, &[("content-type", "application/json")], "{}")).await;
    let proxy = ProxyOptions::of_stub(&stub).start_with(|config| config.push = Push::Passthrough).await;
    let hidden = "GET /v2/library/hidden/tags/list HTTP/1.1\r\nHost: x\r\n\r\n";
    let length = hidden.len();
    for (request, status) in [
        // Two lengths for one content: whichever is believed, what follows is not a second request.
        (
            format!(
                "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"
            ),
            None,
        ),
        (
            format!(
                "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: {length}\r\n\r\n0\r\n\r\n{hidden}"
            ),
            None,
        ),
        (
            format!(
                "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: {length}\r\n\r\n{hidden}"
            ),
            Some(400),
        ),
        (format!("POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: +0\r\n\r\n{hidden}"), Some(400)),
        (format!("POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0x0\r\n\r\n{hidden}"), Some(400)),
        (format!("POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n{hidden}"), Some(400)),
        (
            format!("POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n{hidden}"),
            Some(400),
        ),
        (
            format!(
                "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n{hidden}"
            ),
            Some(400),
        ),
        (
            format!(
                "GET /v2/a/tags/list HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: {length}\r\n\r\n{hidden}"
            ),
            Some(400),
        ),
        // Injected lines and names.
        ("GET /v2/a/tags/list HTTP/1.1\r\nHost: x\r\nX-A: b\rInjected: c\r\n\r\n".to_owned(), Some(400)),
        ("GET /v2/a/tags/list HTTP/1.1\r\nHost: x\r\nX A: b\r\n\r\n".to_owned(), Some(400)),
        ("GET /v2/a/tags/list HTTP/1.1\r\nHost: x\r\nX-A\r\n\r\n".to_owned(), Some(400)),
        ("GET /v2/a/tags/list HTTP/1.1\r\nHost: x\r\nX-A: b\0c\r\n\r\n".to_owned(), Some(400)),
        ("GET /v2/a/tags/list HTTP/9.9\r\nHost: x\r\n\r\n".to_owned(), Some(400)),
        ("GET\t/v2/a/tags/list\tHTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), Some(400)),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), None),
        (format!("GET /v2/{}/tags/list HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(70_000)), None),
        (format!("GET /v2/a/tags/list HTTP/1.1\r\nHost: x\r\n{}\r\n", "X-A: b\r\n".repeat(20_000)), None),
        // Of CONNECT.
        ("CONNECT / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), Some(400)),
        ("CONNECT * HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), Some(400)),
        (format!("CONNECT {} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nabcd", stub.address), Some(400)),
        (format!("CONNECT http://{}/ HTTP/1.1\r\nHost: x\r\n\r\n", stub.address), Some(400)),
        ("CONNECT 127.0.0.1:99999 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), Some(400)),
        ("CONNECT 127.0.0.1:0 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), Some(400)),
        ("CONNECT [::1 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), Some(400)),
        ("CONNECT a..b:443 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), Some(400)),
    ] {
        let answer = raw::exchange(proxy.address, request.as_bytes()).await;
        let statuses = raw::statuses(&answer);
        let shown: String = request.chars().take(100).collect();
        assert!(statuses.len() <= 1, "{shown:?}: {answer}");
        if let Some(status) = status {
            assert_eq!(statuses, [status], "{shown:?}: {answer}");
        }
    }
    for request in stub.requests() {
        let path = request.uri().path();
        assert!(!path.contains("hidden"), "{path}");
        assert!(!request.headers().contains_key("injected"));
        assert!(
            !(request.headers().contains_key("content-length") && request.headers().contains_key("transfer-encoding"))
        );
    }
    assert_eq!(proxy.get("/v2/").await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_digests_and_queries_lead_nowhere_else() {
    let origin = origin(&[MIB]).await;
    let digest = layer(&origin.images()[0], 0);
    let proxy = ProxyOptions::new(&origin).start().await;
    let unknown = Digest::of(b"unknown");
    let long = "a".repeat(300);
    let before = origin.stats().requests;
    for (target, statuses) in [
        ("/v2/../../etc/passwd".to_owned(), &[400, 404][..]),
        ("/v2/..%2f..%2fetc%2fpasswd/manifests/1".to_owned(), &[400]),
        ("/v2/%2e%2e/%2e%2e/manifests/1".to_owned(), &[400]),
        ("/v2/a%00b/manifests/1".to_owned(), &[400]),
        ("/v2/a%0d%0aX-Injected:%20y/manifests/1".to_owned(), &[400]),
        ("/v2/library/app/manifests/1%0d%0aX:%20y".to_owned(), &[400]),
        ("/v2/library/app/manifests/%2e%2e%2f%2e%2e".to_owned(), &[400, 404]),
        ("/v2/library/app/blobs/sha256:..%2f..%2f..%2fetc%2fpasswd".to_owned(), &[400, 404]),
        (format!("/v2/library/app/blobs/{}", unknown.to_string().to_uppercase()), &[400]),
        (format!("/v2/library/app/blobs/{unknown}%00"), &[400]),
        (format!("/v2/library/app/blobs/sha512:{}", unknown.hex()), &[400]),
        (format!("/v2/{long}/manifests/1"), &[400]),
        (format!("/v2/library/app/manifests/{long}"), &[400]),
        ("/v2/library/app/manifests/1?ns=evil.example%0d%0aX:y".to_owned(), &[400]),
        ("/v2/library/app/manifests/1?ns=user:pw@evil.example".to_owned(), &[400]),
        ("/v2/library/app/manifests/1?ns=a.example&ns=b.example".to_owned(), &[400]),
        ("/v2/library/app/manifests/1?ns=%ff".to_owned(), &[400]),
        (format!("/v2/library/app/tags/list?last={}", "x".repeat(5000)), &[414]),
        ("/v2/library/app/referrers/latest".to_owned(), &[400]),
        ("//v2/library/app/manifests/1".to_owned(), &[400, 404]),
        ("/V2/library/app/manifests/1".to_owned(), &[404]),
    ] {
        for method in ["GET", "HEAD"] {
            let request = format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            let answer = raw::exchange(proxy.address, request.as_bytes()).await;
            let shown: String = target.chars().take(100).collect();
            assert!(matches!(raw::statuses(&answer)[..], [status] if statuses.contains(&status)), "{shown}: {answer}");
            assert!(!answer.to_ascii_lowercase().contains("\nx-injected"), "{shown}: {answer}");
        }
    }
    assert_eq!(origin.stats().requests, before, "nothing of it reaches the origin");
    proxy.pull(digest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_of_the_connection_stay_on_it() {
    let stub = StubOrigin::start(|_| {
        respond(
            200,
            &[
                ("content-type", "application/json"),
                ("connection", "x-hop"),
                ("x-hop", "1"),
                ("x-end", "1"),
                ("keep-alive", "timeout=1"),
            ],
            "{}",
        )
    })
    .await;
    let proxy = ProxyOptions::of_stub(&stub).start().await;
    let headers = [
        ("connection", "x-private"),
        ("x-private", "1"),
        ("proxy-authorization", "Basic secret"),
        ("proxy-connection", "keep-alive"),
        ("te", "trailers"),
        ("upgrade", "h2c"),
        ("x-forwarded-host", "evil.example"),
    ];
    for path in ["/v2/library/app/tags/list".to_owned(), format!("http://{}/v2/_catalog", stub.address)] {
        let answer = proxy.get_with(&path, &headers).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-end"), answer.header("x-hop")), (200, "1", ""), "{path}");
        let seen = stub.requests().pop().unwrap();
        for (name, _) in &headers[..6] {
            assert!(!seen.headers().contains_key(*name), "{path}: {name}");
        }
        assert_eq!(seen.headers().get_all("host").iter().count(), 1);
        assert_eq!(seen.headers()["host"], stub.address.to_string().as_str());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_make_no_sense_do_no_harm() {
    let origin = origin(&[MIB]).await;
    let digest = layer(&origin.images()[0], 0);
    let proxy = ProxyOptions::new(&origin).start().await;
    proxy.manifest().await;
    for range in [
        "bytes=18446744073709551616-",
        "bytes=-18446744073709551616",
        "bytes=1-0",
        "bytes=--1",
        "bytes=0-0,0-0,0-0",
        "",
        "bytes=0-18446744073709551615",
    ] {
        let answer = proxy.get_with(&blob_path(&digest), &[("range", range)]).await;
        assert!(matches!(answer.status.as_u16(), 200 | 206 | 400 | 416), "{range:?}: {}", answer.status);
        assert!(answer.broken.is_none() && answer.body.len() as u64 <= MIB, "{range:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn web_pages_get_nothing_and_reach_nobody() {
    let stub = StubOrigin::start(|_| respond(202, &[], "{}")).await;
    let proxy = ProxyOptions::of_stub(&stub).start_with(|config| config.push = Push::Passthrough).await;
    let host = proxy.address;
    let rebound = "evil.example:43002";
    for (line, host, more) in [
        ("GET /v2/library/app/tags/list", rebound.to_owned(), "User-Agent: Mozilla/5.0\r\nAccept-Language: en\r\n"),
        (
            "POST /v2/library/app/blobs/uploads/",
            host.to_string(),
            "Origin: http://evil.example\r\nContent-Length: 0\r\n",
        ),
        ("DELETE /v2/library/app/manifests/1", rebound.to_owned(), "Origin: http://evil.example:43002\r\n"),
        ("GET /v2/", host.to_string(), "Sec-Fetch-Site: cross-site\r\n"),
        ("GET /eagle/token?scope=repository:library/app:pull", host.to_string(), "Origin: null\r\n"),
    ] {
        let request = format!("{line} HTTP/1.1\r\nHost: {host}\r\n{more}Connection: close\r\n\r\n");
        let answer = raw::exchange(proxy.address, request.as_bytes()).await;
        assert_eq!(raw::statuses(&answer), [403], "{line}: {answer}");
    }
    assert_eq!(stub.requests().len(), 0);
    // The same name, from what is no browser.
    let request = format!("GET /v2/library/app/tags/list HTTP/1.1\r\nHost: {rebound}\r\nConnection: close\r\n\r\n");
    let answer = raw::exchange(proxy.address, request.as_bytes()).await;
    assert_eq!((raw::statuses(&answer), stub.requests().len()), (vec![202], 1));
}
