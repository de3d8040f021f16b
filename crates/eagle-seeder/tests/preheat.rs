//! Preheating over the HTTP API.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{LAYER, Origin, Running, config, memory, send, until};
use eagle_core::Digest;
use eagle_registry::{
    Secret,
    embedded::{Fault, FaultRule, FaultTarget},
};
use eagle_seeder::{
    SeederConfig,
    preheat::{
        BlobKind, BlobState, Job, JobId, JobList, JobState, NodeNews, NodeOrders, PreheatConfig, WarmManifest,
        WarmResult,
    },
};
use http::{Method, StatusCode};
use serde_json::json;

async fn post(running: &Running, path: &str, body: &serde_json::Value) -> (StatusCode, Bytes) {
    let headers = [("content-type", "application/json")];
    let (response, body) = send(running, Method::POST, path, &headers, body.to_string()).await;
    (response.status(), body)
}

async fn submit(running: &Running, body: &serde_json::Value) -> Job {
    let (status, body) = post(running, "/v1/preheat", body).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{body:?}");
    serde_json::from_slice(&body).unwrap()
}

async fn job(running: &Running, id: &JobId) -> Job {
    let (response, body) = send(running, Method::GET, &format!("/v1/preheat/{id}"), &[], "").await;
    assert_eq!(response.status(), StatusCode::OK, "{body:?}");
    serde_json::from_slice(&body).unwrap()
}

async fn ended(running: &Running, id: &JobId) -> Job {
    until("the job is over", async || job(running, id).await.state.is_over()).await;
    job(running, id).await
}

fn image(origin: &Origin) -> String {
    format!("{}/{}:1", origin.name, origin.repository)
}

fn patient(origin: &Origin) -> serde_json::Value {
    json!({ "images": [image(origin)] })
}

#[tokio::test]
async fn every_blob_is_stored_and_told_of_and_pulls_ask_the_origin_for_none() {
    let origin = Origin::start(&[LAYER, 1000]).await;
    let running = Running::start(memory(), origin.registries()).await;
    let begun = submit(&running, &json!({ "images": [image(&origin), image(&origin)], "platforms": "all" })).await;
    assert_eq!(begun.images.len(), 1, "each once");
    let job = ended(&running, &begun.id).await;
    assert_eq!(job.state, JobState::Succeeded, "{job:?}");
    let image = &job.images[0];
    assert_eq!(image.digest, Some(origin.registry().images()[0].manifest_digest));
    let kinds: Vec<_> = image.blobs.iter().map(|blob| blob.kind).collect();
    assert_eq!(kinds, [BlobKind::Manifest, BlobKind::Config, BlobKind::Layer, BlobKind::Layer]);
    for blob in &image.blobs {
        let told = (blob.state, blob.received, blob.source.as_deref(), blob.attempts);
        assert_eq!(told, (BlobState::Stored, blob.size, Some("origin"), 1), "{blob:?}");
    }
    assert_eq!(image.blobs[2].digest, origin.digests[0]);
    let totals = job.totals();
    assert_eq!((totals.blobs, totals.stored, totals.bytes), (4, 4, totals.received_bytes));
    origin.registry().reset_stats();
    for layer in 0..2 {
        let content = running.get(&running.blob_path(&origin, layer), &[]).await.1;
        assert_eq!(content.len() as u64, origin.sizes[layer]);
        assert_eq!(origin.registry().stats().blob(origin.digests[layer]).gets, 0);
    }
    // The second time everything is there.
    let again = submit(&running, &patient(&origin)).await;
    let again = ended(&running, &again.id).await;
    assert!(again.images[0].blobs.iter().all(|blob| blob.source.as_deref() == Some("cache")), "{again:?}");
    let (_, list) = send(&running, Method::GET, "/v1/preheat", &[], "").await;
    let list: JobList = serde_json::from_slice(&list).unwrap();
    assert_eq!(list.jobs.iter().map(|job| &job.id).collect::<Vec<_>>(), [&again.id, &job.id]);
    assert_eq!(running.metric("eagle_seeder_preheat_jobs_total{outcome=\"succeeded\"}"), 2.0);
    assert_eq!(running.metric("eagle_seeder_preheat_blobs_total{outcome=\"stored\"}"), 8.0);
    running.stop().await;
}

#[tokio::test]
async fn what_fails_for_a_moment_is_tried_again_and_what_is_not_there_is_said() {
    let origin = Origin::start(&[LAYER]).await;
    origin
        .registry()
        .set_faults(vec![FaultRule::once(FaultTarget::Manifests, Fault::Status(StatusCode::SERVICE_UNAVAILABLE))]);
    let running = Running::start(memory(), origin.registries()).await;
    let missing = format!("{}/{}:2", origin.name, origin.repository);
    let begun = submit(&running, &json!({ "images": [image(&origin), missing] })).await;
    let job = ended(&running, &begun.id).await;
    assert_eq!(job.state, JobState::Failed);
    assert_eq!(job.images[0].state, JobState::Succeeded, "{job:?}");
    assert_eq!(job.images[1].state, JobState::Failed);
    assert!(job.images[1].error.as_ref().unwrap().contains("404"), "{job:?}");
    running.stop().await;
}

#[tokio::test]
async fn a_job_can_be_cancelled_and_others_go_on() {
    let origin = Origin::start(&[LAYER]).await;
    origin
        .registry()
        .set_faults(vec![FaultRule::always(FaultTarget::Manifests, Fault::Status(StatusCode::SERVICE_UNAVAILABLE))]);
    let running = Running::start(memory(), origin.registries()).await;
    let mut jobs = Vec::new();
    for tag in 0..3 {
        let image = format!("{}/{}:t{tag}", origin.name, origin.repository);
        jobs.push(submit(&running, &json!({ "images": [image] })).await);
    }
    // Two run and one waits; one of each is cancelled.
    until("two run", async || job(&running, &jobs[1].id).await.state == JobState::Running).await;
    for id in [&jobs[0].id, &jobs[2].id] {
        let path = format!("/v1/preheat/{id}");
        let (response, body) = send(&running, Method::DELETE, &path, &[], "").await;
        assert_eq!(response.status(), StatusCode::OK, "{body:?}");
        assert_eq!(ended(&running, id).await.state, JobState::Cancelled);
        let (response, _) = send(&running, Method::DELETE, &path, &[], "").await;
        assert_eq!(response.status(), StatusCode::CONFLICT);
    }
    assert!(
        !job(&running, &jobs[1].id).await.state.is_over() || job(&running, &jobs[1].id).await.state == JobState::Failed
    );
    running.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_results_and_goes_on_with_what_was_not_done() {
    let mut origin = Origin::start(&[LAYER, 1000]).await;
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(config(directory.path()), origin.registries()).await;
    let done = submit(&running, &patient(&origin)).await;
    let done = ended(&running, &done.id).await;
    origin
        .registry()
        .set_faults(vec![FaultRule::always(FaultTarget::Manifests, Fault::Status(StatusCode::SERVICE_UNAVAILABLE))]);
    let missing = format!("{}/{}:2", origin.name, origin.repository);
    let open = submit(&running, &json!({ "images": [missing], "platforms": ["linux/amd64"] })).await;
    until("it runs", async || job(&running, &open.id).await.state == JobState::Running).await;
    running.stop().await;
    origin.registry().set_faults(Vec::new());
    let running = Running::start(config(directory.path()), origin.registries()).await;
    assert_eq!(job(&running, &done.id).await, done);
    let open = ended(&running, &open.id).await;
    assert_eq!((open.state, open.platforms.to_string().as_str()), (JobState::Failed, "linux/amd64"));
    assert!(open.images[0].error.as_ref().unwrap().contains("404"), "{open:?}");
    running.stop().await;
    // A journal that makes no sense keeps nobody from starting.
    std::fs::write(directory.path().join("preheat.json"), "{").unwrap();
    origin.stop().await;
    let running = Running::start(config(directory.path()), origin.registries()).await;
    let (_, list) = send(&running, Method::GET, "/v1/preheat", &[], "").await;
    assert!(serde_json::from_slice::<JobList>(&list).unwrap().jobs.is_empty());
    running.stop().await;
}

#[tokio::test]
async fn with_several_seeders_each_blob_is_stored_where_proxies_ask_for_it() {
    let origin = Origin::start(&[LAYER, LAYER / 2, 1000, 2000, 3000, 4000]).await;
    // The others have to be known before the one that is asked starts.
    let others =
        [Running::start(memory(), origin.registries()).await, Running::start(memory(), origin.registries()).await];
    let seeders = others.iter().map(|running| running.url.clone()).collect();
    let preheat = PreheatConfig { seeders, ..PreheatConfig::default() };
    let running = Running::start(SeederConfig { preheat, ..memory() }, origin.registries()).await;
    let begun = submit(&running, &patient(&origin)).await;
    let job = ended(&running, &begun.id).await;
    assert_eq!(job.state, JobState::Succeeded, "{job:?}");
    let urls = others.iter().map(|running| running.url.clone()).collect();
    let client = eagle_seeder::SeederClient::new(urls, &eagle_cluster::MemberTls::open());
    for blob in job.images[0].blobs.iter().filter(|blob| blob.kind == BlobKind::Layer) {
        assert_eq!(blob.source.as_deref(), Some(client.order(&blob.digest)[0].as_str()));
        assert_eq!(origin.registry().stats().blob(blob.digest).gets, 1);
    }
    let stored: u64 = others.iter().map(|running| running.seeder.counters().blobs_completed).sum();
    assert_eq!((stored, running.seeder.counters().blobs_completed), (7, 0));
    for running in others.into_iter().chain([running]) {
        running.stop().await;
    }
}

#[tokio::test]
async fn bad_requests_are_refused_and_begin_nothing() {
    let origin = Origin::start(&[1000]).await;
    let running = Running::start(memory(), origin.registries()).await;
    let deep = format!("{{\"images\":{}1{}}}", "[".repeat(5000), "]".repeat(5000));
    let many = json!({ "images": vec!["a"; 1001] }).to_string();
    let long = json!({ "images": ["a".repeat(300 << 10)] }).to_string();
    let kind = ("content-type", "application/json");
    for (body, headers, status) in [
        ("", vec![kind], 400),
        ("{", vec![kind], 400),
        ("{}", vec![kind], 400),
        ("[]", vec![kind], 400),
        ("{\"images\":[]}", vec![kind], 400),
        ("{\"images\":[\"a\"],\"nodez\":1}", vec![kind], 400),
        ("{\"images\":[\"../../etc\"]}", vec![kind], 400),
        ("{\"images\":[\"a\\r\\nHost: b\"]}", vec![kind], 400),
        ("{\"images\":[\"a:b@sha256:zz\"]}", vec![kind], 400),
        ("{\"images\":[\"http://a/b\"]}", vec![kind], 400),
        ("{\"images\":[\"a\"],\"nodes\":-1}", vec![kind], 400),
        ("{\"images\":[\"a\"],\"platforms\":[\"x\"]}", vec![kind], 400),
        ("\u{ff}", vec![kind], 400),
        (&deep, vec![kind], 400),
        (&many, vec![kind], 400),
        (&long, vec![kind], 413),
        ("{\"images\":[\"a\"]}", vec![("content-type", "text/plain")], 415),
        ("{\"images\":[\"a\"]}", vec![], 415),
    ] {
        let (response, answer) = send(&running, Method::POST, "/v1/preheat", &headers, body.to_owned()).await;
        assert_eq!(response.status(), status, "{}: {answer:?}", &body[..body.len().min(60)]);
        assert!(serde_json::from_slice::<serde_json::Value>(&answer).unwrap()["errors"][0]["code"].is_string());
    }
    for (method, path, status) in [
        (Method::PUT, "/v1/preheat", 405),
        (Method::POST, "/v1/preheat/0123456789abcdef", 405),
        (Method::GET, "/v1/preheat/0123456789abcdef", 404),
        (Method::DELETE, "/v1/preheat/0123456789abcdef", 404),
        (Method::GET, "/v1/preheat/..%2f..%2fetc", 404),
        (Method::GET, "/v1/preheat/", 404),
        (Method::GET, "/v1/nodes", 405),
    ] {
        let (response, answer) = send(&running, method, path, &[], "").await;
        assert_eq!(response.status(), status, "{path}: {answer:?}");
    }
    let (_, list) = send(&running, Method::GET, "/v1/preheat", &[], "").await;
    assert!(serde_json::from_slice::<JobList>(&list).unwrap().jobs.is_empty());
    running.stop().await;
}

#[tokio::test]
async fn with_a_token_nobody_else_gets_in() {
    let origin = Origin::start(&[1000]).await;
    let preheat = PreheatConfig { token: Some(Secret::new("word")), ..PreheatConfig::default() };
    let running = Running::start(SeederConfig { preheat, ..memory() }, origin.registries()).await;
    let body = patient(&origin).to_string();
    for (authorization, status) in
        [(None, 401), (Some("Bearer other"), 401), (Some("Bearer "), 401), (Some("Bearer word"), 202)]
    {
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(authorization.map(|value| ("authorization", value)));
        let (response, answer) = send(&running, Method::POST, "/v1/preheat", &headers, body.clone()).await;
        assert_eq!(response.status(), status, "{answer:?}");
        assert_eq!(response.headers().contains_key("www-authenticate"), status == 401);
    }
    assert_eq!(send(&running, Method::GET, "/v1/preheat", &[], "").await.0.status(), 401);
    running.stop().await;
}

#[tokio::test]
async fn nodes_are_given_what_the_seeders_have() {
    let origin = Origin::start(&[LAYER, 1000]).await;
    let running = Running::start(memory(), origin.registries()).await;
    let tell = async |node: &str, results: Vec<WarmResult>| {
        let news = NodeNews { node: node.parse().unwrap(), results };
        let (status, body) = post(&running, "/v1/nodes", &json!(news)).await;
        assert_eq!(status, StatusCode::OK, "{body:?}");
        serde_json::from_slice::<NodeOrders>(&body).unwrap()
    };
    let orders = tell("node1", Vec::new()).await;
    assert!(orders.work.is_empty() && orders.interval_seconds >= 5.0);
    let begun = submit(&running, &json!({ "images": [image(&origin)], "nodes": "all" })).await;
    let mut work = Vec::new();
    until("work for the node", async || {
        work = tell("node1", Vec::new()).await.work;
        tokio::time::sleep(Duration::from_millis(200)).await;
        !work.is_empty()
    })
    .await;
    assert_eq!(work.len(), 4, "the manifest, the configuration and the layers");
    let manifests: Vec<_> = work.iter().filter_map(|order| order.blob.manifest.clone()).collect();
    assert_eq!(manifests, [WarmManifest { tag: Some("1".parse().unwrap()) }]);
    assert!(work.iter().all(|order| order.job == begun.id && order.blob.registry == origin.name));
    let mut results: Vec<WarmResult> = work
        .iter()
        .map(|order| WarmResult { job: order.job.clone(), digest: order.blob.digest, error: None })
        .collect();
    results.push(WarmResult {
        job: JobId::clone(&begun.id),
        digest: Digest::of(b"foreign"),
        error: Some("x".to_owned()),
    });
    assert!(tell("node1", results).await.work.is_empty());
    let job = ended(&running, &begun.id).await;
    assert_eq!((job.state, job.node_reports.len(), job.node_reports[0].stored), (JobState::Succeeded, 1, 4), "{job:?}");
    for bad in [json!({}), json!({ "node": "../x" }), json!({ "node": "a", "results": [{ "job": "x" }] }), json!([])] {
        assert_eq!(post(&running, "/v1/nodes", &bad).await.0, StatusCode::BAD_REQUEST);
    }
    running.stop().await;
}
