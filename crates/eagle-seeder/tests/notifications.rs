//! What registries tell a seeder.
#![allow(clippy::unwrap_used)]

mod common;

use common::{LAYER, Origin, Running, memory, send, until};
use eagle_registry::Secret;
use eagle_seeder::{
    SeederConfig,
    preheat::{JobList, JobState, PreheatConfig, Trigger},
};
use hmac::{Hmac, KeyInit, Mac};
use http::Method;
use serde_json::{Value, json};
use sha2::Sha256;

const SECRET: &str = "open sesame";
const ENVELOPE: &str = "application/vnd.docker.distribution.events.v1+json";

async fn start(origin: &Origin, rules: Value, secret: Option<&str>) -> Running {
    let rules = serde_json::from_value(rules).unwrap();
    let preheat = PreheatConfig { notification_secret: secret.map(Secret::new), rules, ..PreheatConfig::default() };
    Running::start(SeederConfig { preheat, ..memory() }, origin.registries()).await
}

fn pushed(origin: &Origin, tag: &str) -> Value {
    let image = &origin.registry().images()[0];
    json!({ "events": [
        { "action": "pull", "target": {} },
        {
            "action": "push",
            "target": {
                "mediaType": image.media_type,
                "digest": image.manifest_digest.to_string(),
                "repository": origin.repository.to_string(),
                "tag": tag,
            },
            "request": { "host": origin.name.to_string() },
        },
    ] })
}

/// One notification; the status and what the answer says.
async fn tell(running: &Running, authorization: &str, media_type: &str, query: &str, body: &str) -> (u16, Value) {
    let headers = [("content-type", media_type), ("authorization", authorization)];
    let path = format!("/v1/notifications{query}");
    let (response, answer) = send(running, Method::POST, &path, &headers, body.to_owned()).await;
    (response.status().as_u16(), serde_json::from_slice(&answer).unwrap())
}

async fn jobs(running: &Running) -> JobList {
    let (_, list) = send(running, Method::GET, "/v1/preheat", &[], "").await;
    serde_json::from_slice(&list).unwrap()
}

#[tokio::test]
async fn a_push_that_a_rule_names_is_warmed_before_anybody_pulls() {
    let origin = Origin::start(&[LAYER, 1000]).await;
    let rules = json!([
        { "images": "docker.io/**" },
        { "images": format!("{}/library/*:1*", origin.name), "platforms": ["linux/amd64"] },
    ]);
    let running = start(&origin, rules, Some(SECRET)).await;
    let event = pushed(&origin, "1").to_string();
    let (status, answer) = tell(&running, &format!("Bearer {SECRET}"), ENVELOPE, "", &event).await;
    assert_eq!((status, answer["jobs"].as_array().unwrap().len()), (202, 1), "{answer}");
    assert_eq!(answer["ignored"].as_array().unwrap().len(), 1, "the pull: {answer}");
    until("the push is warm", async || jobs(&running).await.jobs[0].state.is_over()).await;
    let job = jobs(&running).await.jobs.remove(0);
    assert_eq!((job.state, job.trigger), (JobState::Succeeded, Trigger::Notification));
    assert_eq!(job.images, [format!("{}/{}:1", origin.name, origin.repository)]);
    for layer in 0..2 {
        running.get(&running.blob_path(&origin, layer), &[]).await;
        assert_eq!(origin.registry().stats().blob(origin.digests[layer]).gets, 1);
    }
    assert_eq!(running.metric("eagle_seeder_preheat_notifications_total{outcome=\"accepted\"}"), 1.0);

    // Another tag, another registry by the query: no rule, and nothing happens.
    let other = pushed(&origin, "2").to_string();
    let (status, answer) = tell(&running, SECRET, "application/json", "", &other).await;
    assert_eq!((status, answer["jobs"].as_array().unwrap().len()), (202, 0), "{answer}");
    assert!(answer["ignored"][1].as_str().unwrap().contains("no rule"), "{answer}");
    let (status, answer) = tell(&running, SECRET, ENVELOPE, "?registry=other.example", &event).await;
    assert_eq!((status, answer["jobs"].as_array().unwrap().len()), (202, 0), "{answer}");
    assert_eq!(jobs(&running).await.jobs.len(), 1);
    running.stop().await;
}

#[tokio::test]
async fn a_signature_is_as_good_as_the_secret() {
    let origin = Origin::start(&[1000]).await;
    let running = start(&origin, json!([{ "images": "**/*" }]), Some(SECRET)).await;
    let event = pushed(&origin, "1").to_string();
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(event.as_bytes());
    let signature = format!("sha256={}", hex::encode(mac.finalize().into_bytes()));
    for (body, status) in [(event.replace("push", "pull"), 401), (event, 202)] {
        let headers = [("content-type", ENVELOPE), ("x-hub-signature-256", signature.as_str())];
        let (response, answer) = send(&running, Method::POST, "/v1/notifications", &headers, body).await;
        assert_eq!(response.status(), status, "{answer:?}");
    }
    assert_eq!(jobs(&running).await.jobs.len(), 1);
    running.stop().await;
}

#[tokio::test]
async fn foreign_and_malformed_notifications_change_nothing() {
    let origin = Origin::start(&[1000]).await;
    let running = start(&origin, json!([{ "images": "**/*" }]), Some(SECRET)).await;
    let event = pushed(&origin, "1").to_string();
    let good = format!("Bearer {SECRET}");
    let deep = format!("{{\"events\":{}", "[".repeat(100_000));
    let large = format!("{{\"events\":[],\"x\":\"{}\"}}", "a".repeat(2 << 20));
    let many = json!({ "events": vec![json!({}); 2000] }).to_string();
    for (authorization, media_type, query, body, status) in [
        ("", ENVELOPE, "", event.as_str(), 401),
        ("Bearer", ENVELOPE, "", &event, 401),
        ("Bearer open", ENVELOPE, "", &event, 401),
        ("Basic b3BlbiBzZXNhbWU=", ENVELOPE, "", &event, 401),
        ("Basic !", ENVELOPE, "", &event, 401),
        (&good, "text/plain", "", &event, 415),
        (&good, "", "", &event, 415),
        (&good, ENVELOPE, "?registry=a%2Fb", &event, 400),
        (&good, ENVELOPE, "?registry=a.b&registry=c.d", &event, 400),
        (&good, ENVELOPE, "?registry=%ff", &event, 400),
        (&good, ENVELOPE, "?registry=a.b%0d%0aHost:%20c", &event, 400),
        (&good, ENVELOPE, "", "", 400),
        (&good, ENVELOPE, "", "{", 400),
        (&good, ENVELOPE, "", "[]", 400),
        (&good, ENVELOPE, "", "{}", 400),
        (&good, ENVELOPE, "", "\u{0}", 400),
        (&good, ENVELOPE, "", &deep, 400),
        (&good, ENVELOPE, "", &many, 400),
        (&good, ENVELOPE, "", &large, 413),
        (&good, ENVELOPE, "", "{\"events\":[]}", 202),
        (&good, "application/json", "", "{\"type\":\"SCANNING_COMPLETED\",\"event_data\":{}}", 202),
        (&good, "application/json", "", "{\"type\":\"PUSH_ARTIFACT\"}", 400),
    ] {
        let (found, answer) = tell(&running, authorization, media_type, query, body).await;
        assert_eq!(found, status, "{authorization} {media_type} {query} {}: {answer}", &body[..body.len().min(60)]);
        assert!(!answer.to_string().contains(SECRET), "{answer}");
    }
    // Names that are none are left out one by one.
    for (place, name) in [("repository", "../../etc"), ("repository", "A B"), ("tag", "a/b"), ("digest", "sha256:..")] {
        let mut odd = pushed(&origin, "1");
        odd["events"][1]["target"][place] = json!(name);
        let (status, answer) = tell(&running, &good, ENVELOPE, "", &odd.to_string()).await;
        assert_eq!((status, answer["jobs"].as_array().unwrap().len()), (202, 0), "{place} {name}: {answer}");
    }
    let (response, _) = send(&running, Method::GET, "/v1/notifications", &[], "").await;
    assert_eq!(response.status(), 405);
    assert!(jobs(&running).await.jobs.is_empty());
    assert_eq!(origin.registry().stats().requests, 0);
    running.stop().await;

    let off = start(&origin, json!([]), None).await;
    let (status, answer) = tell(&off, &good, ENVELOPE, "", &event).await;
    assert_eq!(status, 403, "{answer}");
    off.stop().await;
}
