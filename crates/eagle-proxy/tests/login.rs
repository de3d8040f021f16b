//! Runtimes that say who they are only when `/v2/` asks: private images with their own credentials, public ones without.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::Duration;

use common::{
    Answer, ProxyOptions, TestProxy, blob_path, layer, origin_for,
    raw::{exchange, statuses},
    registries, request,
    stub::{StubOrigin, respond},
};
use eagle_core::Digest;
use eagle_proxy::config::Login;
use eagle_registry::embedded::{Access, User};
use http::Method;

/// `alice:pw` and `bob:pw`.
const ALICE: &str = "Basic YWxpY2U6cHc=";
const BOB: &str = "Basic Ym9iOnB3";

/// What a client does that is asked for a token: its answer is the `Authorization` to use.
async fn log_in(proxy: &TestProxy, scope: &str, authorization: Option<&str>) -> String {
    let asked = proxy.get("/v2/").await;
    assert_eq!((asked.status.as_u16(), asked.error_code().as_str()), (401, "UNAUTHORIZED"));
    let challenge = asked.header("www-authenticate").to_owned();
    let realm = format!("Bearer realm=\"http://{}", proxy.address);
    let path = challenge.strip_prefix(&realm).and_then(|rest| rest.split_once('"')).unwrap().0;
    let headers: Vec<_> = authorization.map(|value| ("authorization", value)).into_iter().collect();
    let answer = proxy.get_with(&format!("{path}?service=eagle&scope={scope}"), &headers).await;
    assert_eq!((answer.status.as_u16(), answer.header("cache-control")), (200, "no-store"));
    let answer: serde_json::Value = serde_json::from_slice(&answer.whole()).unwrap();
    format!("Bearer {}", answer["token"].as_str().unwrap())
}

async fn get(proxy: &TestProxy, path: &str, token: &str) -> Answer {
    proxy.get_with(path, &[("authorization", token)]).await
}

#[tokio::test]
async fn each_caller_is_at_the_registry_who_it_says_it_is() {
    let users = || vec![User::new("alice", "pw")];
    let bearer = Access::Bearer { users: users(), anonymous: false, lifetime: Duration::from_secs(300) };
    for access in [Access::Basic(users()), bearer] {
        let origin = origin_for(&[100_000], access).await;
        let proxy = ProxyOptions::new(&origin).start().await;
        let name = format!("{}/library/app", origin.name());
        let (scope, digest) = (format!("repository:{name}:pull"), layer(&origin.images()[0], 0));
        let (manifest, blob) = (format!("/v2/{name}/manifests/1"), format!("/v2/{name}/blobs/{digest}"));
        let alice = log_in(&proxy, &scope, Some(ALICE)).await;
        assert!(!alice.contains("YWxpY2U6cHc"));
        assert_eq!(get(&proxy, "/v2/", &alice).await.status, 200);
        assert_eq!(get(&proxy, &manifest, &alice).await.status, 200);
        assert_eq!(Digest::of(&get(&proxy, &blob, &alice).await.whole()), digest);
        let bob = log_in(&proxy, &scope, Some(BOB)).await;
        let nobody = log_in(&proxy, &scope, None).await;
        for token in [&bob, &nobody] {
            for path in [&manifest, &blob] {
                assert_eq!(get(&proxy, path, token).await.status, 401, "{path}");
            }
        }
        // Who she is is known by her password, and not by what a registry said that is gone by now.
        origin.shutdown().await;
        let alice = log_in(&proxy, &scope, Some(ALICE)).await;
        let stale = get(&proxy, &manifest, &alice).await;
        assert_eq!((stale.status.as_u16(), stale.header("warning").is_empty()), (200, false));
        assert_eq!(Digest::of(&get(&proxy, &blob, &alice).await.whole()), digest);
        for token in [&bob, &nobody] {
            assert_eq!(get(&proxy, &manifest, token).await.status, 502);
        }
    }
}

#[tokio::test]
async fn who_has_no_credentials_needs_none() {
    let origin = origin_for(&[1000], Access::Open).await;
    let proxy = ProxyOptions::new(&origin).start().await;
    let digest = layer(&origin.images()[0], 0);
    // Clients that ask nothing beforehand, and those that do as they are told.
    proxy.pull(digest).await;
    let nobody = log_in(&proxy, "repository:library/app:pull", None).await;
    assert_eq!(get(&proxy, "/v2/library/app/manifests/1", &nobody).await.status, 200);
    assert_eq!(Digest::of(&get(&proxy, &blob_path(&digest), &nobody).await.whole()), digest);
}

/// Tells who came.
fn who(request: &http::Request<bytes::Bytes>) -> http::Response<bytes::Bytes> {
    let authorization = request.headers().get("authorization").map_or("nobody", |value| value.to_str().unwrap());
    respond(200, &[("x-came", authorization)], "{}")
}

#[tokio::test]
async fn a_token_counts_for_its_registry_alone() {
    let (mine, other) = (StubOrigin::start(who).await, StubOrigin::start(who).await);
    let options =
        ProxyOptions { registries: registries(vec![mine.config(), other.config()]), ..ProxyOptions::of_stub(&mine) };
    let proxy = options.start().await;
    let tags = |origin: &StubOrigin| format!("/v2/{}/library/app/tags/list", origin.address);
    let token = log_in(&proxy, &format!("repository:{}/library/app:pull", mine.address), Some(ALICE)).await;
    assert_eq!(get(&proxy, &tags(&mine), &token).await.header("x-came"), ALICE);
    assert_eq!(get(&proxy, &tags(&other), &token).await.status, 401);
    let of_none = log_in(&proxy, "registry:catalog:*", Some(ALICE)).await;
    assert_eq!(get(&proxy, "/v2/", &of_none).await.status, 200);
    assert_eq!(get(&proxy, &tags(&mine), &of_none).await.status, 401);
    // Who names no registry means Docker Hub, and its credentials are for Docker Hub, whatever the default registry is.
    let unnamed = log_in(&proxy, "repository:library/app:pull", Some(ALICE)).await;
    assert_eq!(get(&proxy, "/v2/library/app/tags/list", &unnamed).await.header("x-came"), "nobody");
    // A token of another process, or one that was meddled with.
    let another = ProxyOptions::of_stub(&mine).start().await;
    let foreign = log_in(&another, &format!("repository:{}/library/app:pull", mine.address), Some(ALICE)).await;
    let mut meddled = token.clone();
    meddled.truncate(meddled.len() - 2);
    for bad in [foreign, meddled, "Bearer eagle-sealed.".to_owned()] {
        let answer = get(&proxy, &tags(&mine), &bad).await;
        assert_eq!(answer.status, 401);
        assert!(answer.header("www-authenticate").contains("error=\"invalid_token\""));
    }
}

#[tokio::test]
async fn a_proxy_that_is_not_to_ask_does_not() {
    let origin = StubOrigin::start(who).await;
    let proxy = ProxyOptions::of_stub(&origin).start_with(|config| config.login = Login::Off).await;
    assert_eq!(proxy.get("/v2/").await.status, 200);
    assert_eq!(proxy.get("/eagle/token").await.status, 404);
}

#[tokio::test]
async fn odd_requests_for_tokens_do_no_harm() {
    let origin = StubOrigin::start(who).await;
    let proxy = ProxyOptions::of_stub(&origin).start().await;
    for (query, expected) in [
        (String::new(), 200),
        ("?scope=%00%ff&scope=repository:..%2f..:pull&service=".to_owned(), 200),
        (format!("?{}", "scope=repository:a:pull&".repeat(200)), 200),
        (format!("?scope={}", "x".repeat(60_000)), 200),
    ] {
        let answer = request(proxy.address, Method::GET, &format!("/eagle/token{query}"), &[]).await;
        let shown: String = query.chars().take(60).collect();
        assert_eq!(answer.status, expected, "{shown}");
    }
    let name = format!("{}/library/app", origin.address);
    for nobody in ["", "Basic", "Basic %%%", "Basic Og==", "Basic eA==", "Bearer x"] {
        let token = log_in(&proxy, &format!("repository:{name}:pull"), Some(nobody)).await;
        assert_eq!(get(&proxy, &format!("/v2/{name}/tags/list"), &token).await.header("x-came"), "nobody", "{nobody}");
    }
    for method in [Method::PUT, Method::DELETE, Method::HEAD] {
        assert_eq!(request(proxy.address, method, "/eagle/token", &[]).await.status, 405);
    }
    let post = |body: &str, length: usize| {
        format!("POST /eagle/token HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
    };
    for body in ["", "grant_type=password", "grant_type=implicit&username=a&password=b", "%ff%00=&&&="] {
        let answer = exchange(proxy.address, post(body, body.len()).as_bytes()).await;
        assert_eq!(statuses(&answer), [400], "{body}");
    }
    let huge = "a".repeat(100_000);
    assert_eq!(statuses(&exchange(proxy.address, post(&huge, huge.len()).as_bytes()).await), [400]);
    let form = "grant_type=password&username=alice&password=pw&scope=repository:library/app:pull";
    assert_eq!(statuses(&exchange(proxy.address, post(form, form.len()).as_bytes()).await), [200]);
    // The realm leads to the proxy and nowhere else, whatever the client calls it.
    let odd = "GET /v2/ HTTP/1.1\r\nHost: a\"b\r\nConnection: close\r\n\r\n";
    let text = exchange(proxy.address, odd.as_bytes()).await;
    assert!(statuses(&text) == [400] || text.contains(&format!("realm=\"http://{}/", proxy.address)), "{text}");
}
