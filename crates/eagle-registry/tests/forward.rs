//! Requests that are passed on: headers, credentials, redirects.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::time::Duration;

use common::{Canned, caller, client, embedded, read, read_blob};
use eagle_core::Digest;
use eagle_registry::{
    Caller, EmbeddedRegistry, ForwardRequest, OriginError, Registry, RegistryConfig, Secret,
    embedded::{Access, Fault, FaultRule, FaultTarget, User},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};

const ANYONE: Caller = Caller::anonymous();

fn request(method: Method, path: &str) -> ForwardRequest {
    ForwardRequest::new(method, path, HeaderMap::new()).unwrap()
}

async fn status(registry: &Registry, caller: &Caller) -> StatusCode {
    let response = registry.forward(request(Method::GET, "demo/app/manifests/v1"), caller).await.unwrap();
    let status = response.status();
    read(response.into_body()).await.unwrap();
    status
}

fn with_user(origin: &EmbeddedRegistry, username: &str, password: &str) -> RegistryConfig {
    RegistryConfig {
        username: Some(username.to_owned()),
        password: Some(Secret::new(password)),
        ..origin.client_config()
    }
}

fn users() -> Vec<User> {
    let other = "other/app".parse().unwrap();
    vec![User::new("ann", "p:w"), User { repositories: Some(vec![other]), ..User::new("bob", "pw") }]
}

fn bearer(anonymous: bool) -> Access {
    Access::Bearer { users: users(), anonymous, lifetime: Duration::from_secs(300) }
}

#[tokio::test]
async fn manifests_come_with_their_headers() {
    let origin = embedded(&[1], Access::Open).await;
    let registry = client(origin.client_config());
    let image = &origin.images()[0];
    let digest = image.manifest_digest.to_string();
    for reference in ["v1", &digest] {
        for method in [Method::GET, Method::HEAD] {
            let path = format!("demo/app/manifests/{reference}");
            let response = registry.forward(request(method.clone(), &path), &ANYONE).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(response.headers()["docker-content-digest"], digest.as_str());
            assert_eq!(response.headers()["content-type"], image.media_type);
            assert_eq!(response.headers()["content-length"], image.manifest.len().to_string().as_str());
            let body = read(response.into_body()).await.unwrap();
            assert_eq!(body, if method == Method::GET { image.manifest.clone() } else { "".into() });
        }
    }
    let response = registry.forward(request(Method::GET, "demo/app/tags/list?n=5"), &ANYONE).await.unwrap();
    assert_eq!(read(response.into_body()).await.unwrap(), r#"{"name":"demo/app","tags":["v1"]}"#);
    let response = registry.forward(request(Method::GET, "demo/app/manifests/v2"), &ANYONE).await.unwrap();
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert!(read(response.into_body()).await.unwrap().starts_with(br#"{"errors":[{"code":"MANIFEST_UNKNOWN""#));
}

#[tokio::test]
async fn every_accept_header_is_kept_and_those_of_the_connection_are_not() {
    let answer = "HTTP/1.1 200 OK\r\nlink: </v2/next>; rel=\"next\"\r\nx-mine: 1\r\netag: \"e\"\r\nconnection: close, x-mine\r\ncontent-length: 2\r\n\r\nok";
    let server = Canned::start(vec![answer.to_owned()]).await;
    let mut headers = HeaderMap::new();
    for n in 0..6 {
        headers.append("accept", HeaderValue::from_str(&format!("type/{n}")).unwrap());
    }
    for (name, value) in [
        ("host", "127.0.0.1:43002"),
        ("authorization", "Basic c2VjcmV0"),
        ("accept-encoding", "gzip"),
        ("connection", "close, x-hop"),
        ("x-hop", "1"),
        ("cookie", "a=b"),
        ("user-agent", "docker/20"),
        ("if-none-match", "\"e\""),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let request = ForwardRequest::new(Method::GET, "a/manifests/1", headers).unwrap();
    let response = client(server.config()).forward(request, &ANYONE).await.unwrap();
    assert_eq!(response.headers().len(), 3, "{:?}", response.headers());
    assert_eq!(response.headers()["link"], "</v2/next>; rel=\"next\"");
    let head = &server.heads()[0];
    assert!(head.starts_with("get /v2/a/manifests/1 http/1.1\r\n"), "{head}");
    for n in 0..6 {
        assert!(head.contains(&format!("accept: type/{n}\r\n")), "{head}");
    }
    for kept in [
        &format!("host: {}", server.address),
        "user-agent: docker/20",
        "if-none-match: \"e\"",
        "accept-encoding: identity",
    ] {
        assert!(head.contains(&format!("{kept}\r\n")), "{kept}: {head}");
    }
    for gone in ["authorization", "gzip", "x-hop", "cookie", "43002", "*/*"] {
        assert!(!head.contains(gone), "{gone}: {head}");
    }
}

#[tokio::test]
async fn only_reading_of_plain_paths_is_passed_on() {
    assert!(ForwardRequest::new(Method::PUT, "a/manifests/1", HeaderMap::new()).is_err());
    for path in ["../x", "a/%2e%2e/b", "/a", "a b", "a#b"] {
        assert!(ForwardRequest::new(Method::GET, path, HeaderMap::new()).is_err(), "{path}");
    }
}

#[tokio::test]
async fn basic_authentication() {
    let origin = embedded(&[1], Access::Basic(users())).await;
    assert_eq!(status(&client(origin.client_config()), &ANYONE).await, StatusCode::UNAUTHORIZED);
    let ann = client(with_user(&origin, "ann", "p:w"));
    assert_eq!(status(&ann, &ANYONE).await, StatusCode::OK);
    let before = origin.stats().requests;
    assert_eq!(status(&ann, &ANYONE).await, StatusCode::OK);
    assert_eq!(origin.stats().requests - before, 1, "the second request carries the password at once");
    assert_eq!(status(&client(with_user(&origin, "ann", "wrong")), &ANYONE).await, StatusCode::UNAUTHORIZED);
    assert_eq!(status(&client(with_user(&origin, "bob", "pw")), &ANYONE).await, StatusCode::FORBIDDEN);
    // The caller's own credentials count, not those of the configuration.
    assert_eq!(status(&ann, &caller("Basic bm86Ym9keQ==")).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn tokens_are_fetched_once_kept_and_renewed() {
    let origin = embedded(&[1], bearer(true)).await;
    let image = origin.images()[0].clone();
    let registry = client(origin.client_config());
    let pulls = (0..20).map(|_| async {
        let blob = registry.blob(&image.repository, image.layers[0].digest, 0, &ANYONE).await.unwrap();
        read_blob(blob, image.layers[0].digest).await;
    });
    futures::future::join_all(pulls).await;
    assert_eq!(origin.stats().token_requests, 1, "concurrent requests share one token");
    assert_eq!(status(&registry, &ANYONE).await, StatusCode::OK);
    assert_eq!(origin.stats().token_requests, 1);
    // A token that the registry no longer takes is replaced.
    origin.revoke_tokens();
    assert_eq!(status(&registry, &ANYONE).await, StatusCode::OK);
    assert_eq!(origin.stats().token_requests, 2);
}

#[tokio::test]
async fn tokens_expire() {
    let access = Access::Bearer { users: users(), anonymous: true, lifetime: Duration::from_secs(1) };
    let origin = embedded(&[1], access).await;
    let registry = client(origin.client_config());
    assert_eq!(status(&registry, &ANYONE).await, StatusCode::OK);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let refused = origin.stats().refused;
    assert_eq!(status(&registry, &ANYONE).await, StatusCode::OK);
    let stats = origin.stats();
    assert_eq!(stats.token_requests, 2);
    assert_eq!(stats.refused, refused + 1);
}

#[tokio::test]
async fn tokens_for_users() {
    let origin = embedded(&[1], bearer(false)).await;
    assert_eq!(status(&client(with_user(&origin, "ann", "p:w")), &ANYONE).await, StatusCode::OK);
    // Refused by the token service or by the registry: a 401 with the challenge for the runtime to see.
    for config in [origin.client_config(), with_user(&origin, "ann", "wrong"), with_user(&origin, "bob", "pw")] {
        let registry = client(config);
        let response = registry.forward(request(Method::GET, "demo/app/manifests/v1"), &ANYONE).await.unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert!(response.headers()["www-authenticate"].to_str().unwrap().starts_with("Bearer realm="));
    }
    // A caller with credentials does its own dance, also when the configuration has better ones.
    let registry = client(with_user(&origin, "ann", "p:w"));
    let tokens = origin.stats().token_requests;
    assert_eq!(status(&registry, &caller("Bearer made-up")).await, StatusCode::UNAUTHORIZED);
    assert_eq!(origin.stats().token_requests, tokens);
    let error = registry
        .blob(&"demo/app".parse().unwrap(), origin.images()[0].layers[0].digest, 0, &caller("Bearer made-up"))
        .await
        .unwrap_err();
    let OriginError::Status { status, headers, .. } = error else { panic!("{error}") };
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(headers.contains_key("www-authenticate"));
}

#[tokio::test]
async fn an_overloaded_token_service_is_not_a_refusal() {
    let origin = embedded(&[1], bearer(true)).await;
    origin.set_faults(vec![FaultRule::once(FaultTarget::Tokens, Fault::Status(StatusCode::TOO_MANY_REQUESTS))]);
    let registry = client(origin.client_config());
    let error = registry.forward(request(Method::GET, "demo/app/manifests/v1"), &ANYONE).await.unwrap_err();
    assert_eq!(error.status(), Some(StatusCode::TOO_MANY_REQUESTS));
    assert_eq!(status(&registry, &ANYONE).await, StatusCode::OK);
}

#[tokio::test]
async fn a_dead_token_service_costs_one_deadline_for_all() {
    // Accepts, as the kernel does for it, and never answers.
    let silent = tokio::net::TcpListener::bind(common::loopback()).await.unwrap();
    let realm = format!("http://{}/token", silent.local_addr().unwrap());
    let answer = format!(
        "HTTP/1.1 401 No\r\nwww-authenticate: Bearer realm=\"{realm}\"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    );
    let server = Canned::start(vec![answer]).await;
    let registry = client(server.config());
    let begin = std::time::Instant::now();
    let requests = (0..10).map(|_| async { registry.forward(request(Method::GET, "a/manifests/1"), &ANYONE).await });
    for result in futures::future::join_all(requests).await {
        assert!(matches!(result, Err(OriginError::Timeout { .. })));
    }
    // The deadline is 2 s; one after the other would take 20 s.
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_token_service_that_redirects_gets_no_further() {
    let thief = Canned::start(vec!["HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n{\"token\":\"t\"}".to_owned()]).await;
    let origin = embedded(&[1], bearer(false)).await;
    let away = Fault::Redirect(format!("http://{}/", thief.address));
    origin.set_faults(vec![FaultRule::always(FaultTarget::Tokens, away)]);
    let registry = client(with_user(&origin, "ann", "p:w"));
    assert!(registry.forward(request(Method::GET, "demo/app/manifests/v1"), &ANYONE).await.is_err());
    assert!(thief.heads().is_empty());
}

#[tokio::test]
async fn redirects_are_followed_without_credentials() {
    let storage =
        Canned::start(vec!["HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello".to_owned()]).await;
    let origin = embedded(&[1], Access::Basic(users())).await;
    let location = format!("http://{}/bucket/x?signature=s", storage.address);
    origin.set_faults(vec![FaultRule::always(FaultTarget::Blobs, Fault::Redirect(location))]);
    let digest = Digest::of(b"hello");
    let repository = "demo/app".parse().unwrap();
    let registry = client(with_user(&origin, "ann", "p:w"));
    // With the credentials of the configuration, and with the caller's.
    for caller in [ANYONE, caller("Basic YW5uOnA6dw==")] {
        read_blob(registry.blob(&repository, digest, 0, &caller).await.unwrap(), digest).await;
    }
    assert_eq!(registry.blob_head(&repository, digest, &ANYONE).await.unwrap(), 5);
    let heads = storage.heads();
    assert!(heads[0].starts_with("get /bucket/x?signature=s http/1.1"), "{heads:?}");
    assert!(heads.iter().all(|head| !head.contains("authorization")), "{heads:?}");
}

#[tokio::test]
async fn challenges_of_other_hosts_are_not_answered() {
    let body =
        "HTTP/1.1 401 No\r\nwww-authenticate: Basic realm=\"evil\"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let evil = Canned::start(vec![body.to_owned()]).await;
    let origin = embedded(&[1], Access::Basic(users())).await;
    let away = Fault::Redirect(format!("http://{}/", evil.address));
    origin.set_faults(vec![FaultRule::always(FaultTarget::All, away)]);
    let registry = client(with_user(&origin, "ann", "p:w"));
    let response: Response<_> = registry.forward(request(Method::GET, "demo/app/manifests/v1"), &ANYONE).await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert!(!response.headers().contains_key("www-authenticate"));
    assert_eq!(evil.heads().len(), 1);
    assert!(!evil.heads()[0].contains("authorization"));
}

#[tokio::test]
async fn a_storage_that_is_signed_for_get_alone_still_tells_the_size() {
    let refuse = "HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let give = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello";
    let storage = Canned::start(vec![refuse.to_owned(), give.to_owned()]).await;
    let origin = embedded(&[1], Access::Open).await;
    let away = Fault::Redirect(format!("http://{}/", storage.address));
    origin.set_faults(vec![FaultRule::always(FaultTarget::Blobs, away)]);
    let size =
        client(origin.client_config()).blob_head(&"demo/app".parse().unwrap(), Digest::of(b"hello"), &ANYONE).await;
    assert_eq!(size.unwrap(), 5);
}

#[tokio::test]
async fn redirects_have_an_end() {
    let origin = embedded(&[1], Access::Open).await;
    origin.set_faults(vec![FaultRule::always(FaultTarget::All, Fault::Redirect("/v2/".to_owned()))]);
    let error = client(origin.client_config()).forward(request(Method::GET, ""), &ANYONE).await.unwrap_err();
    assert!(error.to_string().contains("redirects"), "{error}");
    assert_eq!(origin.stats().requests, 6);
}

#[tokio::test]
async fn the_name_of_a_request_reaches_the_registry() {
    let canned =
        Canned::start(vec!["HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".into()]).await;
    let registry = client(canned.config());
    let mut headers = HeaderMap::new();
    headers.insert("x-request-id", HeaderValue::from_static("pull-17"));
    let named = Caller::of(&headers);
    // Whatever the request itself brought, one name is sent.
    headers.insert("x-request-id", HeaderValue::from_static("something else"));
    let manifest = ForwardRequest::new(Method::GET, "demo/app/manifests/v1", headers).unwrap();
    let _ = registry.forward(manifest, &named).await.unwrap();
    let repository = "demo/app".parse().unwrap();
    let _ = registry.blob(&repository, Digest::of(b""), 0, &named).await.unwrap_err();
    let _ = registry.blob_head(&repository, Digest::of(b""), &ANYONE).await.unwrap_err();
    let heads = canned.heads();
    assert_eq!(heads.len(), 3, "{heads:?}");
    for head in &heads[..2] {
        assert_eq!(head.matches("x-request-id: pull-17\r\n").count(), 1, "{head}");
        assert_eq!(head.matches("x-request-id").count(), 1, "{head}");
    }
    assert!(!heads[2].contains("x-request-id"), "{}", heads[2]);
}
