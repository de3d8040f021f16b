//! A seeder whose cluster has a key.
#![allow(clippy::unwrap_used)]

mod common;

use common::{LAYER, Origin, PIECE, Running, memory, send, story, within};
use eagle_cluster::{ClusterKey, ClusterKeys, MemberTls, Membership};
use eagle_core::units::Rate;
use eagle_registry::{Caller, ForwardRequest, Secret};
use eagle_seeder::{
    SeederClient, SeederConfig, SeederError,
    preheat::{NodeNews, PreheatConfig},
};
use http::{HeaderMap, Method};
use http_body_util::BodyExt;
use tokio::sync::watch;

fn key() -> ClusterKey {
    ClusterKey::generate().unwrap()
}

fn keys(keys: &[&ClusterKey]) -> ClusterKeys {
    let lines: Vec<String> = keys.iter().map(|key| key.expose().to_string()).collect();
    lines.join("\n").parse().unwrap()
}

fn membership(key: &ClusterKey) -> (watch::Sender<ClusterKeys>, Membership) {
    let (sender, receiver) = watch::channel(ClusterKeys::one(key.clone()));
    (sender, Membership::Keyed(receiver))
}

/// A seeder of a cluster with this key that has the layer of the origin, and a client that is a member.
async fn start(config: SeederConfig, origin: &Origin, membership: &Membership) -> (Running, SeederClient) {
    let running = Running::start_as(config, origin.registries(), membership.clone()).await;
    let client = SeederClient::new(vec![running.url.clone()], &MemberTls::new(membership).unwrap());
    let (digest, anonymous) = (origin.digests[0], Caller::anonymous());
    let stream = client.metainfo(&running.url, digest, &origin.name, &origin.repository, &anonymous);
    assert_eq!(story(within(stream).await.unwrap()).await.end, Ok(()));
    (running, client)
}

/// Every path there is, and some that there are not.
fn paths(running: &Running, origin: &Origin) -> Vec<String> {
    let blob = running.blob_path(origin, 0);
    let (digest, rest) = blob.split_once('?').unwrap();
    let registry = origin.name.to_string();
    vec![
        "/".to_owned(),
        "/v1/blobs".to_owned(),
        format!("{digest}/metainfo?{rest}"),
        "/v1/blobs/sha256:00".to_owned(),
        format!("/v1/registries/{registry}/v2/"),
        format!("/v1/registries/{registry}/v2/{}/manifests/1", origin.repository),
        format!("/v1/registries/{registry}/v2/{}/tags/list", origin.repository),
        "/v1/nodes".to_owned(),
        "/v1/preheat".to_owned(),
        "/v1/preheat/1".to_owned(),
        "/v1/notifications".to_owned(),
        "/v1/notifications?registry=a.b".to_owned(),
        "/v2/".to_owned(),
        "/metrics".to_owned(),
        blob,
    ]
}

#[tokio::test]
async fn a_stranger_learns_nothing() {
    let origin = Origin::start(&[LAYER]).await;
    let (_sender, membership) = membership(&key());
    let (running, client) = start(memory(), &origin, &membership).await;
    origin.registry().reset_stats();
    for path in paths(&running, &origin) {
        for method in [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            for authorization in ["", "Bearer open sesame", "Basic YTphCg=="] {
                let headers = [("authorization", authorization), ("content-type", "application/json")];
                let (response, body) = send(&running, method.clone(), &path, &headers, "{}").await;
                assert_eq!(response.status(), 403, "{method} {path}");
                let text = format!("{:?} {}", response.headers(), String::from_utf8_lossy(&body));
                assert_eq!(text.contains("members of its cluster"), method != Method::HEAD, "{method} {path}: {text}");
                for word in ["sha256", "docker-content", origin.name.as_str(), "library", "preheat", "secret"] {
                    assert!(!text.contains(word), "{method} {path}: {text}");
                }
            }
        }
    }
    assert_eq!(origin.registry().stats().requests, 0);
    // By a client of Eagle without a key, and with another one.
    let ask = async |members: &MemberTls| {
        let client = SeederClient::new(vec![running.url.clone()], members);
        let anonymous = Caller::anonymous();
        let asked = client.blob_head(&running.url, origin.digests[0], &origin.name, &origin.repository, &anonymous);
        within(asked).await.unwrap_err()
    };
    let error = ask(&MemberTls::open()).await;
    assert!(matches!(error, SeederError::Refused { status, .. } if status == 403), "{error}");
    let other = key();
    let error = ask(&MemberTls::new(&self::membership(&other).1).unwrap()).await;
    let SeederError::Unreachable { reason, .. } = &error else { panic!("{error}") };
    assert!(reason.contains(&format!("does not know this node's cluster key (id {})", other.id())), "{reason}");
    // And none of it is in a member's way.
    let anonymous = Caller::anonymous();
    let blob = client.blob(&running.url, origin.digests[0], &origin.name, &origin.repository, 0, &anonymous);
    assert_eq!(within(blob).await.unwrap().body.collect().await.unwrap().to_bytes().len() as u64, LAYER);
    running.stop().await;
}

#[tokio::test]
async fn members_have_all_of_the_api() {
    let origin = Origin::start(&[LAYER]).await;
    let (_sender, membership) = membership(&key());
    let (running, client) = start(memory(), &origin, &membership).await;
    let (anonymous, digest) = (Caller::anonymous(), origin.digests[0]);
    let head = client.blob_head(&running.url, digest, &origin.name, &origin.repository, &anonymous);
    assert_eq!(within(head).await.unwrap().size, LAYER);
    let manifest = ForwardRequest::new(Method::GET, format!("{}/manifests/1", origin.repository), HeaderMap::new());
    let manifest = client.forward(&origin.name, manifest.unwrap(), &anonymous);
    assert_eq!(within(manifest).await.unwrap().status(), 200);
    let news = NodeNews { node: "node".parse().unwrap(), results: Vec::new() };
    assert!(within(client.report(&running.url, &news)).await.unwrap().work.is_empty());
    running.stop().await;
}

#[tokio::test]
async fn secrets_let_strangers_do_what_they_are_for_and_nothing_else() {
    let origin = Origin::start(&[LAYER]).await;
    let (_sender, membership) = membership(&key());
    let preheat = PreheatConfig {
        token: Some(Secret::new("open sesame")),
        notification_secret: Some(Secret::new("well now")),
        ..PreheatConfig::default()
    };
    let (running, _client) = start(SeederConfig { preheat, ..memory() }, &origin, &membership).await;
    let json = ("content-type", "application/json");
    let ask = async |method: Method, path: &str, authorization: &str, body: &'static str| {
        let headers = [json, ("authorization", authorization)];
        send(&running, method, path, &headers, body).await.0.status().as_u16()
    };
    let (token, secret) = ("Bearer open sesame", "Bearer well now");
    assert_eq!(ask(Method::GET, "/v1/preheat", token, "").await, 200);
    assert_eq!(ask(Method::POST, "/v1/preheat", token, "{}").await, 400, "it is read");
    assert_eq!(ask(Method::POST, "/v1/notifications", secret, r#"{"events":[]}"#).await, 202);
    for wrong in ["", "Bearer", "Bearer open", secret] {
        assert_eq!(ask(Method::GET, "/v1/preheat", wrong, "").await, 401, "{wrong}");
    }
    assert_eq!(ask(Method::POST, "/v1/notifications", token, r#"{"events":[]}"#).await, 401);
    for path in paths(&running, &origin) {
        if !path.starts_with("/v1/preheat") && !path.starts_with("/v1/notifications") {
            assert_eq!(ask(Method::GET, &path, token, "").await, 403, "{path}");
            assert_eq!(ask(Method::POST, &path, secret, "{}").await, 403, "{path}");
        }
    }
    running.stop().await;
}

#[tokio::test]
async fn a_download_outlives_a_change_of_the_key() {
    let origin = Origin::start(&[LAYER]).await;
    let (a, b) = (key(), key());
    let (sender, membership) = membership(&a);
    // Two seconds for the layer.
    let config = SeederConfig { upload_rate: Rate::Limited(LAYER / 2), ..memory() };
    let (running, client) = start(config, &origin, &membership).await;
    let (anonymous, digest) = (Caller::anonymous(), origin.digests[0]);
    let blob = async |start| {
        let blob = client.blob(&running.url, digest, &origin.name, &origin.repository, start, &anonymous);
        within(blob).await.unwrap().body
    };
    let mut body = blob(0).await;
    let mut received = Vec::new();
    let more = async |body: &mut eagle_registry::Body, received: &mut Vec<u8>, bytes: usize| {
        let goal = received.len() + bytes;
        while received.len() < goal {
            match within(body.frame()).await {
                Some(frame) => {
                    let frame = frame.map_err(|error| error.to_string())?;
                    received.extend_from_slice(frame.data_ref().unwrap());
                }
                None => break,
            }
        }
        Ok::<_, String>(())
    };
    for step in [&[&a, &b], &[&b, &a]] {
        more(&mut body, &mut received, PIECE as usize).await.unwrap();
        sender.send_replace(keys(step));
    }
    // Under way still on the connection of the first key, while new requests use the other.
    within(client.blob_head(&running.url, digest, &origin.name, &origin.repository, &anonymous)).await.unwrap();
    more(&mut body, &mut received, PIECE as usize).await.unwrap();
    // What is on a connection of the first key when that goes is asked for again from the byte reached.
    sender.send_replace(keys(&[&b]));
    while more(&mut body, &mut received, usize::MAX / 2).await.is_err() {
        body = blob(received.len() as u64).await;
    }
    assert_eq!(received, origin.content(0, &anonymous).await);
    running.stop().await;
}
