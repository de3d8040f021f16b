//! containerd from 2.1 on fetches a layer in several ranges at once. Each is open-ended, `bytes=N-`, and is closed as
//! soon as its share is in: no failure, and no reason to fetch the rest of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::Duration;

use bytes::BytesMut;
use common::{KillableSeeder, ProxyOptions, TestProxy, blob_path, layer, open, origin, registries};
use eagle_core::{Digest, units::Rate};
use eagle_registry::EmbeddedRegistry;
use futures::future::join_all;
use http::Method;
use http_body_util::BodyExt;

const MIB: u64 = 1 << 20;
/// What one range is for.
const SHARE: u64 = MIB;

/// Asks for everything from `start` on and hangs up after a share, or at the end of the blob.
async fn share(proxy: &TestProxy, digest: Digest, start: u64, size: u64) -> BytesMut {
    let range = format!("bytes={start}-");
    let (status, headers, mut body) = open(proxy.address, Method::GET, &blob_path(&digest), &[("range", &range)]).await;
    assert_eq!(status, 206);
    assert_eq!(headers["content-range"], format!("bytes {start}-{}/{size}", size - 1).as_str());
    let wanted = usize::try_from(SHARE.min(size - start)).unwrap();
    let mut content = BytesMut::new();
    while content.len() < wanted {
        let frame = body.frame().await.expect("more of the blob").unwrap();
        content.extend_from_slice(&frame.into_data().unwrap());
    }
    content.truncate(wanted);
    content
}

async fn pull(proxy: &TestProxy, digest: Digest, size: u64) {
    proxy.manifest().await;
    let shares = join_all((0..size).step_by(1 << 20).map(|start| share(proxy, digest, start, size))).await;
    assert_eq!(Digest::of(&shares.concat()), digest);
}

fn nothing_failed(proxy: &TestProxy) {
    for metric in ["eagle_proxy_verification_failures_total", "eagle_proxy_fallbacks_total"] {
        assert!(proxy.metric(metric, "").abs() < f64::EPSILON, "{metric}");
    }
    for status in ["4xx", "5xx"] {
        assert!(proxy.metric("eagle_proxy_requests_total", status).abs() < f64::EPSILON, "{status}");
    }
}

/// Bytes that the origin has sent once it sends no more.
async fn settled(origin: &EmbeddedRegistry, digest: Digest) -> u64 {
    let mut before = None;
    for _ in 0..200 {
        let sent = origin.stats().blob(digest).bytes;
        if before.replace(sent) == Some(sent) {
            return sent;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    panic!("the origin does not stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_and_a_warm_blob_in_shares() {
    let origin = origin(&[8 * MIB + 512]).await;
    let digest = layer(&origin.images()[0], 0);
    let registries = registries(vec![common::client_config(&origin)]);
    let seeder = KillableSeeder::start(&registries, Vec::new(), Rate::Unlimited);
    let options = ProxyOptions { seeders: vec![seeder.url.clone()], ..ProxyOptions::new(&origin) };
    let proxy = options.start().await;
    for _cold_and_warm in 0..2 {
        pull(&proxy, digest, 8 * MIB + 512).await;
        let blob = origin.stats().blob(digest);
        assert_eq!((blob.gets, blob.bytes), (1, 8 * MIB + 512), "one copy, whatever the number of ranges");
    }
    assert!(proxy.proxy.cache().contains(digest));
    nothing_failed(&proxy);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tail_of_a_range_is_not_fetched_in_vain() {
    const SIZE: u64 = 64 * MIB;
    let origin = origin(&[SIZE]).await;
    let digest = layer(&origin.images()[0], 0);
    // Nothing of these two is kept, so what a range does not take would be fetched for nobody.
    let passes_through = ProxyOptions { cache_limit: MIB, ..ProxyOptions::new(&origin) }.start().await;
    let rule = serde_json::from_str(r#"{"action": "origin"}"#).unwrap();
    let by_rule = ProxyOptions::new(&origin).start_with(|config| config.rules = vec![rule]).await;
    for proxy in [&passes_through, &by_rule] {
        proxy.manifest().await;
        origin.reset_stats();
        // Slow enough that no socket's buffer hides a tail.
        origin.set_rate(Rate::Limited(16 * MIB));
        for start in [0, 4 * MIB, 8 * MIB] {
            share(proxy, digest, start, SIZE).await;
        }
        let sent = settled(&origin, digest).await;
        assert!(sent < SIZE / 2, "{sent} bytes for three ranges of {SHARE}");
        let failures = proxy.metric("eagle_proxy_verification_failures_total", "");
        assert!(failures.abs() < f64::EPSILON);
        assert!(proxy.metric("eagle_proxy_requests_total", "5xx").abs() < f64::EPSILON);
    }
}
