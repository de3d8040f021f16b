//! Manifests: collapsed, kept, checked, and there when the origin is not.
#![allow(clippy::unwrap_used)]

mod common;

use std::{sync::Arc, time::Duration};

use common::{LAYER, Origin, Running, any_port, basic, memory, story, until, within};
use eagle_core::Digest;
use eagle_registry::{
    Caller, ForwardRequest, Registries, RegistryConfig,
    body::read_up_to,
    embedded::{Fault, FaultRule, FaultTarget},
    manifest::MAX_MANIFEST_SIZE,
};
use eagle_seeder::{SeederClient, SeederConfig};
use futures::future::join_all;
use http::{HeaderMap, Method, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};

const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json";

fn path(origin: &Origin, reference: &str) -> String {
    format!("/v1/registries/{}/v2/{}/manifests/{reference}", origin.name, origin.repository)
}

/// Requests that the origin counted for its one manifest, by tag and by digest.
fn asked(origin: &Origin) -> u64 {
    origin.registry().stats().manifests.values().sum()
}

#[tokio::test]
async fn identical_requests_are_one_and_answers_are_kept() {
    let origin = Origin::start(&[LAYER]).await;
    let image = origin.registry().images()[0].clone();
    let running = Running::start(memory(), origin.registries()).await;
    let by_tag = path(&origin, "1");
    let answers = join_all((0..16).map(|_| running.get(&by_tag, &[("accept", ACCEPT)]))).await;
    for (response, body) in answers {
        assert_eq!((response.status(), &body), (StatusCode::OK, &image.manifest));
        assert_eq!(response.headers()["content-type"], image.media_type);
        assert_eq!(response.headers()["docker-content-digest"], image.manifest_digest.to_string());
        assert!(!response.headers().contains_key("warning"));
    }
    assert_eq!(asked(&origin), 1);
    // The tag has filled the digest, and GET answers HEAD.
    let by_digest = path(&origin, &image.manifest_digest.to_string());
    let (response, body) = running.get(&by_digest, &[("accept", ACCEPT)]).await;
    assert_eq!((response.headers()["eagle-source"].to_str().unwrap(), body), ("cache", image.manifest.clone()));
    let (response, body) = running.send(Method::HEAD, &by_digest, &[("accept", ACCEPT)]).await;
    assert_eq!((response.status(), body.len()), (StatusCode::OK, 0));
    assert_eq!(response.headers()["content-length"], image.manifest.len().to_string());
    assert_eq!(asked(&origin), 1);
    // Other callers are other questions, and so are other kinds of what a tag names.
    running.get(&by_digest, &[("accept", "application/json")]).await;
    assert_eq!(asked(&origin), 1);
    running.get(&by_tag, &[("accept", "application/json")]).await;
    running.get(&by_tag, &[("accept", ACCEPT), ("accept", "application/json")]).await;
    running.get(&by_digest, &[("accept", ACCEPT), ("authorization", "Basic eDp5")]).await;
    assert_eq!(asked(&origin), 4);
    assert!(running.metric("eagle_seeder_manifest_requests_total{source=\"cache\"}") >= 2.0);
    running.stop().await;
}

#[tokio::test]
async fn what_was_pushed_is_asked_for_again() {
    let origin = Origin::start(&[LAYER]).await;
    let running = Running::start(memory(), origin.registries()).await;
    let (by_tag, other_tag) = (path(&origin, "1"), path(&origin, "2"));
    let by_digest = path(&origin, &origin.registry().images()[0].manifest_digest.to_string());
    let get = async |path: &str| running.get(path, &[("accept", ACCEPT)]).await.0;
    let change = async |path: &str| running.send(Method::DELETE, path, &[]).await.0.status();
    for _ in 0..2 {
        assert_eq!(get(&by_tag).await.status(), 200);
        assert_eq!(get(&by_digest).await.status(), 200);
    }
    assert_eq!(asked(&origin), 1);
    // Another tag is another matter.
    assert_eq!(change(&other_tag).await, 204);
    get(&by_tag).await;
    assert_eq!(asked(&origin), 1);
    // With a manifest go the tags that may lead to it, and the answer about the tag is one about the digest too.
    for changed in [&by_tag, &by_digest] {
        let before = asked(&origin);
        assert_eq!(change(changed).await, 204);
        for _ in 0..2 {
            assert_eq!(get(&by_tag).await.status(), 200);
            assert_eq!(get(&by_digest).await.status(), 200);
        }
        assert_eq!(asked(&origin), before + 1, "{changed}");
    }
    // What cannot be asked for again is better than nothing.
    change(&by_tag).await;
    origin.registry().set_faults(vec![FaultRule::always(FaultTarget::All, Fault::Status(StatusCode::BAD_GATEWAY))]);
    assert_eq!(get(&by_tag).await.headers()["eagle-source"], "stale");
    let bad = format!("/v1/registries/{}/v2/{}/manifests/..", origin.name, origin.repository);
    for path in [bad.as_str(), "/v1/blobs", "/v1/registries/a.b/v2/", &running.blob_path(&origin, 0)] {
        assert_eq!(change(path).await, 405, "{path}");
    }
    running.stop().await;
}

#[tokio::test]
async fn a_head_is_kept_for_heads_and_a_tag_is_asked_again() {
    let origin = Origin::start(&[LAYER]).await;
    let config = SeederConfig { manifest_ttl: Duration::from_millis(300), ..memory() };
    let running = Running::start(config, origin.registries()).await;
    let by_tag = path(&origin, "1");
    for _ in 0..2 {
        assert_eq!(running.send(Method::HEAD, &by_tag, &[]).await.0.status(), StatusCode::OK);
    }
    assert_eq!(asked(&origin), 1);
    running.get(&by_tag, &[]).await;
    running.get(&by_tag, &[]).await;
    assert_eq!(asked(&origin), 2);
    until("the tag is asked again", async || {
        running.send(Method::HEAD, &by_tag, &[]).await;
        asked(&origin) == 3
    })
    .await;
    // That HEAD confirmed the body, which is still there.
    let (response, body) = running.get(&by_tag, &[]).await;
    assert_eq!(response.headers()["eagle-source"], "cache");
    assert_eq!(body, origin.registry().images()[0].manifest);
    running.stop().await;
}

#[tokio::test]
async fn without_its_origin_a_seeder_serves_what_it_knows() {
    let mut origin = Origin::private(&[LAYER]).await;
    let content = origin.content(0, &basic("alice", "a")).await;
    let config = SeederConfig { manifest_ttl: Duration::ZERO, ..memory() };
    let running = Running::start(config, origin.registries()).await;
    let authorization = basic("alice", "a").authorization.unwrap();
    let alice = [("authorization", authorization.to_str().unwrap())];
    let (_, manifest) = running.get(&path(&origin, "1"), &alice).await;
    assert_eq!(story(running.metainfo(&origin, 0, &basic("alice", "a")).await.unwrap()).await.end, Ok(()));
    origin.stop().await;
    for method in [Method::GET, Method::HEAD] {
        let (response, body) = running.send(method.clone(), &path(&origin, "1"), &alice).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["warning"], "110 - \"Response is Stale\"");
        assert!(method == Method::HEAD || body == manifest);
    }
    assert_eq!(running.get(&running.blob_path(&origin, 0), &alice).await.1, content);
    // Nobody else gets any of it, and what is not known is a bad gateway.
    assert_eq!(running.get(&path(&origin, "1"), &[]).await.0.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(running.get(&running.blob_path(&origin, 0), &[]).await.0.status(), StatusCode::BAD_GATEWAY);
    let (response, body) = running.get(&path(&origin, "2"), &alice).await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert!(String::from_utf8_lossy(&body).contains("UNAVAILABLE"));
    assert!(running.metric("eagle_seeder_manifest_requests_total{source=\"stale\"}") >= 2.0);
    running.stop().await;
}

#[tokio::test]
async fn an_overloaded_origin_is_stood_in_for_and_a_refusal_is_not() {
    let origin = Origin::start(&[LAYER]).await;
    let config = SeederConfig { manifest_ttl: Duration::ZERO, ..memory() };
    let running = Running::start(config, origin.registries()).await;
    running.get(&path(&origin, "1"), &[]).await;
    for (fault, expected, stale) in [(503, 200, true), (429, 200, true), (404, 404, false), (401, 401, false)] {
        let fault = Fault::Status(StatusCode::from_u16(fault).unwrap());
        origin.registry().set_faults(vec![FaultRule::always(FaultTarget::Manifests, fault)]);
        let (response, _) = running.get(&path(&origin, "1"), &[]).await;
        assert_eq!((response.status().as_u16(), response.headers().contains_key("warning")), (expected, stale));
    }
    running.stop().await;
}

/// A machine with another runtime, which words its `Accept` differently, is helped as well.
#[tokio::test]
async fn without_its_origin_a_seeder_serves_whoever_accepts_the_kind() {
    let mut origin = Origin::start(&[LAYER]).await;
    let config = SeederConfig { manifest_ttl: Duration::ZERO, ..memory() };
    let running = Running::start(config, origin.registries()).await;
    let (first, manifest) = running.get(&path(&origin, "1"), &[("accept", "application/json, */*")]).await;
    let kind = first.headers()["content-type"].to_str().unwrap().to_owned();
    let digest = first.headers()["docker-content-digest"].to_str().unwrap().to_owned();
    origin.stop().await;
    for accept in [kind.as_str(), "text/plain, */*;q=0.1", "application/*"] {
        let (response, body) = running.get(&path(&origin, "1"), &[("accept", accept)]).await;
        assert_eq!((response.status(), &body), (StatusCode::OK, &manifest), "{accept}");
        assert!(response.headers().contains_key("warning"));
    }
    let (response, _) = running.get(&path(&origin, "1"), &[("accept", "application/vnd.example")]).await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    // By digest there is nothing to choose, and nothing stale about it.
    let (response, body) = running.get(&path(&origin, &digest), &[("accept", "application/vnd.example")]).await;
    assert_eq!((response.status(), body), (StatusCode::OK, manifest));
    assert!(!response.headers().contains_key("warning"));
    running.stop().await;
}

#[tokio::test]
async fn a_manifest_grants_the_blobs_that_it_names() {
    let origin = Origin::private(&[LAYER]).await;
    let running = Running::start(memory(), origin.registries()).await;
    let bob = basic("bob", "b");
    assert_eq!(story(running.metainfo(&origin, 0, &basic("alice", "a")).await.unwrap()).await.end, Ok(()));
    let authorization = bob.authorization.clone().unwrap();
    running.get(&path(&origin, "1"), &[("authorization", authorization.to_str().unwrap())]).await;
    assert!(running.metainfo(&origin, 0, &bob).await.is_ok());
    let blob = origin.registry().stats().blob(origin.digests[0]);
    assert_eq!((blob.gets, blob.heads), (1, 0), "no question per blob");
    running.stop().await;
}

#[tokio::test]
async fn a_manifest_by_digest_is_kept_for_good_and_the_right_to_it_is_not() {
    let mut origin = Origin::private(&[LAYER]).await;
    let digest = origin.registry().images()[0].manifest_digest.to_string();
    let config = SeederConfig { grant_ttl: Duration::ZERO, ..memory() };
    let running = Running::start(config, origin.registries()).await;
    let authorization = basic("alice", "a").authorization.unwrap();
    let alice = [("authorization", authorization.to_str().unwrap())];
    let (_, manifest) = running.get(&path(&origin, "1"), &alice).await;
    assert_eq!(story(running.metainfo(&origin, 0, &basic("alice", "a")).await.unwrap()).await.end, Ok(()));
    origin.registry().reset_stats();
    let (response, body) = running.get(&path(&origin, &digest), &alice).await;
    assert_eq!((response.status(), &body), (StatusCode::OK, &manifest));
    assert_eq!(origin.registry().stats().requests, 1, "the origin was asked by HEAD whether alice may");
    assert_eq!(running.metric("eagle_seeder_origin_requests_total{kind=\"forward\",outcome=\"ok\"}"), 2.0);
    // Her right is gone: she gets the origin's refusal, by digest, by tag, and of the blob.
    let rule = FaultRule::always(FaultTarget::All, Fault::Status(StatusCode::UNAUTHORIZED));
    origin.registry().set_faults(vec![rule]);
    for path in [path(&origin, &digest), path(&origin, "1"), running.blob_path(&origin, 0)] {
        let (response, body) = running.get(&path, &alice).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{path}");
        assert!(String::from_utf8_lossy(&body).contains("errors"), "{path}");
    }
    // And the refusal is remembered when the origin is down.
    origin.stop().await;
    for path in [path(&origin, &digest), path(&origin, "1"), running.blob_path(&origin, 0)] {
        assert_eq!(running.get(&path, &alice).await.0.status(), StatusCode::BAD_GATEWAY, "{path}");
    }
    running.stop().await;
}

#[tokio::test]
async fn everybody_may_read_what_is_public_for_longer() {
    let origin = Origin::private(&[LAYER]).await;
    let public = RegistryConfig { public: true, ..origin.config.clone() };
    let config = SeederConfig { grant_ttl: Duration::ZERO, manifest_ttl: Duration::ZERO, ..memory() };
    let running = Running::start(config, Arc::new(Registries::new(vec![public]).unwrap())).await;
    let alice = basic("alice", "a");
    let authorization = alice.authorization.clone().unwrap();
    let headers = [("authorization", authorization.to_str().unwrap())];
    running.get(&path(&origin, "1"), &headers).await;
    for _ in 0..2 {
        assert_eq!(story(running.metainfo(&origin, 0, &alice).await.unwrap()).await.end, Ok(()));
    }
    let blob = origin.registry().stats().blob(origin.digests[0]);
    assert_eq!((blob.gets, blob.heads), (1, 0), "no question although grant_ttl is over");
    // That is a longer memory of what the origin has said to a caller, not leave for those it has said nothing to.
    assert!(running.metainfo(&origin, 0, &Caller::anonymous()).await.is_err());
    running.stop().await;
}

#[tokio::test]
async fn what_is_answered_says_how_old_it_is_and_what_it_spared() {
    let origin = Origin::start(&[LAYER]).await;
    let running = Running::start(memory(), origin.registries()).await;
    let tag = path(&origin, "1");
    let asked = (0..8).map(|_| running.get(&tag, &[]));
    for (response, _) in join_all(asked).await {
        assert_eq!(response.status(), StatusCode::OK);
    }
    let (response, _) = running.get(&path(&origin, "1"), &[]).await;
    let age: u64 = response.headers()["age"].to_str().unwrap().parse().unwrap();
    assert!((1..60).contains(&age), "{age}");
    assert_eq!(origin.registry().stats().requests, 1);
    assert_eq!(running.metric("eagle_seeder_origin_requests_spared_total{kind=\"manifest\"}"), 8.0);
    running.stop().await;
}

/// An origin that gives these bodies, one per request, all with the same digest in the header.
async fn scripted(digest: Digest, bodies: Vec<&'static str>) -> (Arc<Registries>, JoinHandle<()>) {
    let listener = TcpListener::bind(any_port()).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let config = RegistryConfig { url: Some(url), ..RegistryConfig::new("scripted.test".parse().unwrap()) };
    let serve = tokio::spawn(async move {
        for body in bodies {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await.unwrap();
            let head = format!("content-length: {}\r\ndocker-content-digest: {digest}", body.len());
            let answer = format!("HTTP/1.1 200 OK\r\nconnection: close\r\n{head}\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (Arc::new(Registries::new(vec![config]).unwrap()), serve)
}

#[tokio::test]
async fn a_wrong_manifest_is_refused_and_not_kept() {
    let right = "{}";
    let digest = Digest::of(right.as_bytes());
    let (registries, origin) = scripted(digest, vec!["{ }", right, "{ }", right]).await;
    let running = Running::start(memory(), registries).await;
    let by_digest = format!("/v1/registries/scripted.test/v2/a/manifests/{digest}");
    let (response, body) = running.get(&by_digest, &[]).await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert!(String::from_utf8_lossy(&body).contains("other content"));
    assert_eq!(running.get(&by_digest, &[]).await.1, right);
    // By tag there is only its own header to hold it against: it is passed on as it is, but not kept.
    let by_tag = "/v1/registries/scripted.test/v2/a/manifests/1";
    assert_eq!(running.get(by_tag, &[]).await.1, "{ }");
    assert_eq!(running.get(by_tag, &[]).await.1, right);
    assert_eq!(running.get(by_tag, &[]).await.0.headers()["eagle-source"], "cache");
    within(origin).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn a_manifest_that_is_too_large_is_passed_on_and_not_kept() {
    // More than a registry has to take (distribution-spec 1.1: 4 MiB).
    let large: &'static str = Box::leak(format!("{{{}}}", " ".repeat(MAX_MANIFEST_SIZE)).into_boxed_str());
    let digest = Digest::of(large.as_bytes());
    // Collected in vain, and then passed through: each time anew.
    let (registries, origin) = scripted(digest, vec![large; 4]).await;
    let running = Running::start(memory(), registries).await;
    for _ in 0..2 {
        let (response, body) = running.get("/v1/registries/scripted.test/v2/a/manifests/1", &[]).await;
        assert_eq!((response.status(), body.len()), (StatusCode::OK, large.len()));
        assert_eq!(response.headers()["eagle-source"], "origin");
    }
    within(origin).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn the_rest_of_the_api_passes_through() {
    let origin = Origin::start(&[LAYER]).await;
    let running = Running::start(memory(), origin.registries()).await;
    let base = format!("/v1/registries/{}/v2", origin.name);
    assert_eq!(running.get(&format!("{base}/"), &[]).await.0.status(), StatusCode::OK);
    let (response, body) = running.get(&format!("{base}/{}/tags/list?n=5", origin.repository), &[]).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(String::from_utf8_lossy(&body).contains("\"1\""));
    let (response, body) = running.get(&path(&origin, "unknown"), &[]).await;
    assert_eq!((response.status().as_u16(), response.headers()["eagle-source"].to_str().unwrap()), (404, "origin"));
    assert!(String::from_utf8_lossy(&body).contains("MANIFEST_UNKNOWN"));
    // A request that depends on more than its path is nobody else's.
    let (response, _) = running.get(&path(&origin, "1"), &[("if-none-match", "\"x\"")]).await;
    assert_eq!(response.headers()["eagle-source"], "origin");
    running.stop().await;
}

#[tokio::test]
async fn the_client_asks_the_next_seeder() {
    let origin = Origin::start(&[LAYER]).await;
    let image = origin.registry().images()[0].clone();
    let running = Running::start(memory(), origin.registries()).await;
    // Nothing listens on port 1.
    let dead = "http://127.0.0.1:1".parse().unwrap();
    let client = SeederClient::new(vec![dead, running.url.clone()], &eagle_cluster::MemberTls::open());
    for tag in 0..8 {
        // Under several names, so that each of the two is the first choice of some.
        let registry = origin.name.clone();
        let forward = |path: String| ForwardRequest::new(Method::GET, path, HeaderMap::new()).unwrap();
        let missing = forward(format!("library/test{tag}/manifests/1"));
        let response = client.forward(&registry, missing, &Caller::anonymous()).await.unwrap();
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        let path = format!("{}/manifests/1", origin.repository);
        let response = client.forward(&registry, forward(path), &Caller::anonymous()).await.unwrap();
        let body = read_up_to(response.into_body(), 1 << 20).await.unwrap().unwrap();
        assert_eq!(Digest::of(&body), image.manifest_digest);
    }
    running.stop().await;
}
