//! A registry that answers 429, and seeders of which one has what is asked for.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod common;

use common::{KillableSeeder, ProxyOptions, blob_path, origin};
use eagle_core::{Digest, rendezvous, units::Rate};
use eagle_registry::embedded::{Fault, FaultRule, FaultTarget};
use http::StatusCode;

/// So many that the seeder without them is the first to be asked for some of them.
const LAYERS: usize = 12;

#[tokio::test(flavor = "multi_thread")]
async fn another_seeder_is_asked_before_a_429_is_passed_on() {
    let origin = origin(&[40_000; LAYERS]).await;
    let image = origin.images()[0].clone();
    let blobs: Vec<Digest> = image.layers.iter().map(|layer| layer.digest).collect();
    let options = |seeders: &[&KillableSeeder]| {
        let seeders = seeders.iter().map(|seeder| seeder.url.clone()).collect();
        ProxyOptions { seeders, ..ProxyOptions::new(&origin) }
    };
    let start = || KillableSeeder::start(&ProxyOptions::new(&origin).registries, Vec::new(), Rate::Unlimited);
    let (one, other) = (start(), start());
    // The one that is asked for manifests first is the one that knows nothing.
    let repository = format!("{}/library/app", origin.name());
    let first = rendezvous::order(&[one.url.as_str(), other.url.as_str()], repository.as_bytes())[0].to_owned();
    let (ignorant, knows) = if first == one.url.as_str() { (&one, &other) } else { (&other, &one) };
    let before = options(&[knows]).start().await;
    for digest in &blobs {
        before.pull(*digest).await;
    }
    let node = options(&[ignorant, knows]).start().await;
    let alone = options(&[ignorant]).start().await;
    origin.set_faults(vec![FaultRule::always(FaultTarget::All, Fault::Status(StatusCode::TOO_MANY_REQUESTS))]);
    assert_eq!(node.manifest().await.whole(), image.manifest);
    for digest in &blobs {
        let answer = node.get(&blob_path(digest)).await;
        assert_eq!(answer.status, 200, "{digest}: {:?}", answer.body);
        assert_eq!(Digest::of(&answer.whole()), *digest);
    }
    // Where no seeder knows better, the runtime hears what the registry says.
    let answer = alone.get("/v2/library/app/manifests/1").await;
    assert_eq!(answer.status, 429, "{:?}", answer.body);
}
