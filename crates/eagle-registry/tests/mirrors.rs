//! Mirrors: asked in order before the registry, and never with what is not theirs.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::sync::Arc;

use common::{Canned, caller, embedded, read, read_blob};
use eagle_core::Digest;
use eagle_registry::{
    Caller, EmbeddedRegistry, ForwardRequest, Registries, Registry, RegistryConfig, Secret,
    embedded::{Access, Fault, FaultRule, FaultTarget, User},
};
use http::{HeaderMap, Method, StatusCode};
use url::Url;

const ANYONE: Caller = Caller::anonymous();

fn with_mirrors(origin: &EmbeddedRegistry, mirrors: Vec<Url>) -> Arc<Registry> {
    let config = RegistryConfig { mirrors, retries: 0, ..origin.client_config() };
    let name = config.name.clone();
    Registries::new(vec![config]).unwrap().get(&name)
}

async fn manifest(registry: &Registry, caller: &Caller) -> StatusCode {
    let request = ForwardRequest::new(Method::GET, "demo/app/manifests/v1", HeaderMap::new()).unwrap();
    let response = registry.forward(request, caller).await.unwrap();
    let status = response.status();
    read(response.into_body()).await.unwrap();
    status
}

async fn dead() -> Url {
    let listener = tokio::net::TcpListener::bind(common::loopback()).await.unwrap();
    format!("http://{}", listener.local_addr().unwrap()).parse().unwrap()
}

#[tokio::test]
async fn the_first_mirror_that_has_it_is_asked_alone() {
    let (origin, mirror) = (embedded(&[5000], Access::Open).await, embedded(&[5000], Access::Open).await);
    let registry = with_mirrors(&origin, vec![mirror.url()]);
    let digest = origin.images()[0].layers[0].digest;
    assert_eq!(manifest(&registry, &ANYONE).await, StatusCode::OK);
    read_blob(registry.blob(&"demo/app".parse().unwrap(), digest, 0, &ANYONE).await.unwrap(), digest).await;
    assert_eq!((origin.stats().requests, mirror.stats().requests), (0, 2));
}

#[tokio::test]
async fn what_mirrors_lack_or_refuse_comes_from_the_registry() {
    let origin = embedded(&[5000], Access::Open).await;
    let (mirror, private) = (embedded(&[1], Access::Open).await, embedded(&[5000], Access::Basic(Vec::new())).await);
    let registry = with_mirrors(&origin, vec![dead().await, private.url(), mirror.url()]);
    let (repository, digest) = ("demo/app".parse().unwrap(), origin.images()[0].layers[0].digest);
    for _ in 0..2 {
        read_blob(registry.blob(&repository, digest, 0, &ANYONE).await.unwrap(), digest).await;
    }
    assert_eq!((origin.stats().requests, private.stats().requests, mirror.stats().requests), (2, 2, 2));
    // Nobody has it: the word of the registry counts.
    let none = registry.blob(&repository, Digest::of(b"none"), 0, &ANYONE).await.unwrap_err();
    assert_eq!(none.status(), Some(StatusCode::NOT_FOUND));
    // With the registry away, the mirrors are enough for what they have.
    origin.set_faults(vec![FaultRule::always(FaultTarget::All, Fault::Refuse)]);
    assert_eq!(manifest(&registry, &ANYONE).await, StatusCode::OK);
}

#[tokio::test]
async fn credentials_stay_with_the_registry() {
    let users = vec![User::new("ann", "pw")];
    let origin = embedded(&[5000], Access::Basic(users)).await;
    let asks =
        "HTTP/1.1 401 No\r\nwww-authenticate: Basic realm=\"m\"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let mirror = Canned::start(vec![asks.to_owned()]).await;
    let config = RegistryConfig {
        mirrors: vec![format!("http://{}", mirror.address).parse().unwrap()],
        username: Some("ann".to_owned()),
        password: Some(Secret::new("pw")),
        ..origin.client_config()
    };
    let name = config.name.clone();
    let registry = Registries::new(vec![config]).unwrap().get(&name);
    for _ in 0..2 {
        assert_eq!(manifest(&registry, &ANYONE).await, StatusCode::OK);
    }
    assert_eq!(mirror.heads().len(), 2);
    assert!(mirror.heads().iter().all(|head| !head.contains("authorization")), "{:?}", mirror.heads());
    // A caller with credentials of its own is the registry's business alone.
    assert_eq!(manifest(&registry, &caller("Basic YW5uOnB3")).await, StatusCode::OK);
    assert_eq!(manifest(&registry, &caller("Basic eDp5")).await, StatusCode::UNAUTHORIZED);
    assert_eq!(mirror.heads().len(), 2);
}

#[tokio::test]
async fn other_content_is_asked_for_elsewhere() {
    let (origin, mirror) = (embedded(&[5000], Access::Open).await, embedded(&[5000], Access::Open).await);
    mirror.set_faults(vec![FaultRule::always(FaultTarget::Blobs, Fault::CorruptAt(7))]);
    let registry = with_mirrors(&origin, vec![mirror.url()]);
    let (repository, digest) = ("demo/app".parse().unwrap(), origin.images()[0].layers[0].digest);
    let body = registry.blob(&repository, digest, 0, &ANYONE).await.unwrap().body;
    assert_ne!(Digest::of(&read(body).await.unwrap()), digest);
    registry.distrust(digest);
    read_blob(registry.blob(&repository, digest, 0, &ANYONE).await.unwrap(), digest).await;
    assert_eq!(origin.stats().blob(digest).gets, 1);
}
