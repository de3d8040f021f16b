//! What a registry that is faster than the limit can send before it is read.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

#[path = "../testing/fast_server.rs"]
mod fast_server;

use eagle_core::{Digest, units::Rate};
use eagle_registry::{Caller, Registries, RegistryConfig};

/// The most by which a registry was ahead of who reads a blob of it on a host with this limit.
async fn ahead(host: Option<Rate>) -> u64 {
    let (url, sent) = fast_server::start().await;
    let name = url.authority().parse().unwrap();
    let registries = Registries::new(vec![RegistryConfig { url: Some(url), ..RegistryConfig::new(name) }]).unwrap();
    if let Some(rate) = host {
        registries.paced_by(move || rate);
    }
    let registry = registries.get(&registries.configured()[0]);
    let repository = "a".parse().unwrap();
    let blob = registry.blob(&repository, Digest::of(b"x"), 0, &Caller::anonymous()).await.unwrap();
    fast_server::ahead(blob.body, &sent).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_holds_little_more_than_the_limit_allows() {
    let bounded = ahead(Some(Rate::Limited(fast_server::RATE))).await;
    let allowed = fast_server::ALLOWED;
    assert!(bounded <= allowed, "{bounded} bytes were ahead, {allowed} are allowed");
    println!("{bounded} bytes were ahead at a limit, {} without", ahead(None).await);
}
