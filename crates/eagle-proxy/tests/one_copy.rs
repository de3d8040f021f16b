//! Many nodes that pull the same cold image at the same moment, and what they cost the origin.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod common;

use common::{KillableSeeder, ProxyOptions, TestProxy, blob_path, origin, request};
use eagle_core::{Digest, units::Rate};
use eagle_registry::embedded::PublishedImage;
use futures::future::join_all;
use http::Method;

const MIB: u64 = 1 << 20;
/// They know no tracker and so not each other: what counts here is what the origin sees, and the handshakes of all with
/// all take half a minute in a build without optimisation.
const NODES: usize = 16;

/// As docker: the tag by `HEAD`, the manifest by `GET`, then configuration and layers.
async fn pull(node: &TestProxy, image: &PublishedImage, blobs: &[Digest]) {
    let accept = [("accept", image.media_type)];
    let head = request(node.address, Method::HEAD, "/v2/library/app/manifests/1", &accept).await;
    let digest = head.header("docker-content-digest").to_owned();
    assert_eq!(digest, image.manifest_digest.to_string());
    let manifest = node.get_with(&format!("/v2/library/app/manifests/{digest}"), &accept).await;
    assert_eq!(manifest.whole(), image.manifest);
    let paths: Vec<String> = blobs.iter().map(blob_path).collect();
    let pulled = join_all(paths.iter().map(|path| node.get(path))).await;
    for (answer, digest) in pulled.into_iter().zip(blobs) {
        assert_eq!(answer.status, 200, "{:?}", answer.body);
        assert_eq!(Digest::of(&answer.whole()), *digest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_nodes_cost_the_origin_one_pull() {
    let origin = origin(&[3 * MIB, MIB, 40_000]).await;
    let image = origin.images()[0].clone();
    let mut options = ProxyOptions::new(&origin);
    // A busy machine must not look like a seeder that stands still.
    options.stall_timeout = std::time::Duration::from_secs(20);
    let seeders: Vec<KillableSeeder> =
        (0..2).map(|_| KillableSeeder::start(&options.registries, Vec::new(), Rate::Unlimited)).collect();
    options.seeders = seeders.iter().map(|seeder| seeder.url.clone()).collect();
    let nodes = join_all((0..NODES).map(|_| options.start())).await;
    let blobs: Vec<Digest> = image.layers.iter().chain([&image.config]).map(|blob| blob.digest).collect();
    join_all(nodes.iter().map(|node| pull(node, &image, &blobs))).await;
    let stats = origin.stats();
    for digest in &blobs {
        let blob = stats.blob(*digest);
        assert_eq!((blob.gets, blob.ranges, blob.heads), (1, 0, 0), "{digest}");
    }
    let mut manifests: Vec<u64> = stats.manifests.values().copied().collect();
    manifests.sort_unstable();
    assert_eq!(manifests, [1, 1], "one resolution of the tag, one manifest: {:?}", stats.manifests);
    assert_eq!(stats.requests, 2 + blobs.len() as u64);
    for node in &nodes {
        assert_eq!(node.proxy.traffic().origin, 0);
    }
}
