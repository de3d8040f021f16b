//! Further tries, `Retry-After`, and limits.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use common::{Canned, caller, embedded, read, read_blob};
use eagle_core::units::Rate;
use eagle_registry::{
    Caller, ForwardRequest, OriginError, Registries, Registry, RegistryConfig,
    embedded::{Access, Fault, FaultRule, FaultTarget},
};
use http::{HeaderMap, Method, StatusCode};

const ANYONE: Caller = Caller::anonymous();

fn registry(config: RegistryConfig) -> Arc<Registry> {
    let name = config.name.clone();
    Registries::new(vec![config]).unwrap().get(&name)
}

async fn ask(registry: &Registry, path: &str, caller: &Caller) -> Result<StatusCode, OriginError> {
    let request = ForwardRequest::new(Method::GET, path, HeaderMap::new()).unwrap();
    let response = registry.forward(request, caller).await?;
    let status = response.status();
    read(response.into_body()).await?;
    Ok(status)
}

fn answer(status: &str, headers: &str) -> String {
    format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n{headers}\r\n")
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_a_refusal_is_not() {
    for (fault, requests) in [
        (Fault::Status(StatusCode::SERVICE_UNAVAILABLE), 3),
        (Fault::Status(StatusCode::TOO_MANY_REQUESTS), 3),
        (Fault::Status(StatusCode::INTERNAL_SERVER_ERROR), 3),
    ] {
        let origin = embedded(&[1], Access::Open).await;
        let rule = FaultRule { times: Some(2), ..FaultRule::always(FaultTarget::All, fault) };
        origin.set_faults(vec![rule]);
        let registry = registry(origin.client_config());
        assert_eq!(ask(&registry, "demo/app/manifests/v1", &ANYONE).await.unwrap(), StatusCode::OK);
        assert_eq!(origin.stats().requests, requests);
    }
    let origin = embedded(&[1], Access::Open).await;
    for status in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::NOT_FOUND] {
        origin.reset_stats();
        origin.set_faults(vec![FaultRule::always(FaultTarget::All, Fault::Status(status))]);
        let registry = registry(origin.client_config());
        assert_eq!(ask(&registry, "demo/app/manifests/v1", &ANYONE).await.unwrap(), status);
        assert_eq!(origin.stats().requests, 1);
    }
}

#[tokio::test]
async fn tries_have_an_end_and_the_last_answer_counts() {
    let origin = embedded(&[1], Access::Open).await;
    origin.set_faults(vec![FaultRule::always(FaultTarget::All, Fault::Status(StatusCode::BAD_GATEWAY))]);
    let registry = registry(RegistryConfig { retries: 2, ..origin.client_config() });
    assert_eq!(ask(&registry, "demo/app/manifests/v1", &ANYONE).await.unwrap(), StatusCode::BAD_GATEWAY);
    assert_eq!(origin.stats().requests, 3);
}

#[tokio::test]
async fn a_short_pause_is_waited_for() {
    for status in ["429 Slow", "503 Down"] {
        let server = Canned::start(vec![answer(status, "retry-after: 1\r\n"), answer("200 OK", "")]).await;
        let registry = registry(server.config());
        let begin = Instant::now();
        assert_eq!(ask(&registry, "a/manifests/1", &ANYONE).await.unwrap(), StatusCode::OK);
        assert!(begin.elapsed() >= Duration::from_secs(1), "{:?}", begin.elapsed());
        assert_eq!(server.heads().len(), 2);
    }
}

#[tokio::test]
async fn a_long_pause_is_passed_on_and_kept_for_the_same_kind_of_request() {
    let server = Canned::start(vec![answer("429 Slow", "retry-after: 120\r\n"), answer("200 OK", "")]).await;
    let registry = registry(server.config());
    assert_eq!(ask(&registry, "a/manifests/1", &ANYONE).await.unwrap(), StatusCode::TOO_MANY_REQUESTS);
    let error = ask(&registry, "a/manifests/2", &ANYONE).await.unwrap_err();
    let OriginError::Status { status, headers, body, .. } = error else { panic!("{error}") };
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    let seconds: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((100..=120).contains(&seconds), "{seconds}");
    assert!(String::from_utf8_lossy(&body).contains("TOOMANYREQUESTS"));
    assert_eq!(server.heads().len(), 1, "a registry that asks for a pause is left alone");
    // Another caller has limits of its own, and blobs are not manifests.
    assert_eq!(ask(&registry, "a/manifests/2", &caller("Basic YTpi")).await.unwrap(), StatusCode::OK);
    let blob = format!("a/blobs/{}", eagle_core::Digest::of(b""));
    assert_eq!(ask(&registry, &blob, &ANYONE).await.unwrap(), StatusCode::OK);
}

#[tokio::test]
async fn a_pause_that_makes_no_sense_is_ignored() {
    for value in ["-1", "soon", "1e9", "", "Sun, 99 Nov 9999 99:99:99 GMT", "\u{e4}"] {
        let header = format!("retry-after: {value}\r\n");
        let server = Canned::start(vec![answer("503 Down", &header), answer("200 OK", "")]).await;
        let registry = registry(server.config());
        assert_eq!(ask(&registry, "a/manifests/1", &ANYONE).await.unwrap(), StatusCode::OK, "{value}");
    }
}

#[tokio::test]
async fn connections_are_limited() {
    let origin = embedded(&[300_000; 6], Access::Open).await;
    origin.set_rate(Rate::Limited(3 << 20));
    let registry = registry(RegistryConfig { max_connections: Some(3), ..origin.client_config() });
    let repository = "demo/app".parse().unwrap();
    let layers = origin.images()[0].layers.clone();
    let held = [
        registry.blob(&repository, layers[0].digest, 0, &ANYONE).await.unwrap(),
        registry.blob(&repository, layers[1].digest, 0, &ANYONE).await.unwrap(),
    ];
    // A third blob waits, a manifest does not.
    let anyone = ANYONE;
    let mut third = Box::pin(registry.blob(&repository, layers[2].digest, 0, &anyone));
    let waited = tokio::time::timeout(Duration::from_millis(300), &mut third).await;
    assert!(waited.is_err());
    assert_eq!(ask(&registry, "demo/app/manifests/v1", &ANYONE).await.unwrap(), StatusCode::OK);
    assert_eq!(origin.stats().blob(layers[2].digest).gets, 0);
    drop(held);
    read_blob(third.await.unwrap(), layers[2].digest).await;
}

#[tokio::test]
async fn the_download_rate_holds() {
    let origin = embedded(&[300_000, 300_000], Access::Open).await;
    let registry = registry(RegistryConfig { download_rate: Rate::Limited(400_000), ..origin.client_config() });
    let repository = "demo/app".parse().unwrap();
    let begin = Instant::now();
    let pulls = origin.images()[0].layers.iter().map(|layer| async {
        read_blob(registry.blob(&repository, layer.digest, 0, &ANYONE).await.unwrap(), layer.digest).await;
    });
    futures::future::join_all(pulls).await;
    // 600 kB at 400 kB/s; a slow machine only takes longer.
    assert!(begin.elapsed() >= Duration::from_millis(1400), "{:?}", begin.elapsed());
}
