//! What a seeder that is faster than the limit can send before it is read.
#![allow(clippy::unwrap_used)]

#[path = "../../eagle-registry/testing/fast_server.rs"]
mod fast_server;

use eagle_cluster::MemberTls;
use eagle_core::{Digest, units::Rate};
use eagle_registry::{Caller, RegistryName};
use eagle_seeder::SeederClient;
use fast_server::{ALLOWED, RATE};

#[tokio::test(flavor = "multi_thread")]
async fn a_seeder_gets_little_further_ahead_than_the_limit_allows() {
    let (url, sent) = fast_server::start().await;
    let client = SeederClient::paced_by(vec![url.clone()], &MemberTls::open(), || Rate::Limited(RATE));
    let (registry, repository): (RegistryName, _) = ("a.b".parse().unwrap(), "c".parse().unwrap());
    let anonymous = Caller::anonymous();
    let blob = client.blob(&url, Digest::of(b"x"), &registry, &repository, 0, &anonymous).await.unwrap();
    let ahead = fast_server::ahead(blob.body, &sent).await;
    assert!(ahead <= ALLOWED, "{ahead} bytes were ahead, {ALLOWED} are allowed");
}
