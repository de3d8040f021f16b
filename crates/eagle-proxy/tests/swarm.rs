//! Pulls through a whole cluster: peers, a seeder, a tracker, and what happens when one of them fails.

mod common;

use common::{
    DEADLINE, KillableSeeder, ProxyOptions, blob_path, dead_url, eventually, layer, open, origin, request, tracker, url,
};
use eagle_core::{Digest, units::Rate};
use eagle_registry::embedded::{Fault, FaultRule, FaultTarget};
use futures::future::join_all;
use http::Method;
use http_body_util::BodyExt;
use tokio::time::timeout;

const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn three_proxies_pull_and_the_origin_is_asked_once() {
    let origin = origin(&[6 * MIB, 300 << 10]).await;
    let image = origin.images()[0].clone();
    let tracker = tracker().await;
    let mut options = ProxyOptions::new(&origin);
    options.trackers = vec![url(tracker.local_addr())];
    let seeder = KillableSeeder::start(&options.registries, options.trackers.clone(), Rate::Limited(20 * MIB));
    options.seeders = vec![seeder.url.clone()];
    options.rate = Rate::Limited(20 * MIB);
    let proxies = join_all((0..3).map(|_| options.start())).await;
    let digests: Vec<Digest> = std::iter::once(&image.config).chain(&image.layers).map(|blob| blob.digest).collect();
    join_all(proxies.iter().map(|proxy| async {
        for digest in &digests {
            proxy.pull(*digest).await;
        }
    }))
    .await;
    let stats = origin.stats();
    for blob in std::iter::once(&image.config).chain(&image.layers) {
        assert_eq!(stats.blob(blob.digest).bytes, blob.size, "the origin gives each blob once");
    }
    let total: u64 = std::iter::once(&image.config).chain(&image.layers).map(|blob| blob.size).sum();
    for proxy in &proxies {
        let traffic = proxy.proxy.traffic();
        assert_eq!(traffic.delivered, total);
        assert_eq!(traffic.origin, 0, "{traffic:?}");
        assert!(traffic.peer + traffic.seeder >= total, "{traffic:?}");
    }
    // A second pull is served from the disk.
    proxies[0].pull(layer(&image, 0)).await;
    assert_eq!(proxies[0].proxy.traffic().cache, image.layers[0].size);
}

/// What nodes report with their announces is what people see of who gives what to whom.
#[tokio::test(flavor = "multi_thread")]
async fn the_tracker_knows_what_goes_from_zone_to_zone() {
    let size = 6 * MIB;
    let origin = origin(&[size]).await;
    let digest = layer(&origin.images()[0], 0);
    let tracker = tracker().await;
    let mut options = ProxyOptions::new(&origin);
    options.trackers = vec![url(tracker.local_addr())];
    let seeder = KillableSeeder::start(&options.registries, options.trackers.clone(), Rate::Limited(2 * MIB));
    options.seeders = vec![seeder.url.clone()];
    let mut proxies = Vec::new();
    for zone in ["a", "b"] {
        options.topology.zone = Some(zone.to_owned());
        proxies.push(options.start().await);
    }
    let known = async |path: &str| -> serde_json::Value {
        let answer = request(tracker.local_addr(), Method::GET, path, &[]).await;
        serde_json::from_slice(&answer.whole()).unwrap()
    };
    let watched = async {
        // All of it is seen at one moment of the pull, which takes three seconds.
        let swarm = format!("/v1/swarms/{digest}");
        loop {
            let flows = known("/v1/topology").await["flows"].as_array().unwrap().clone();
            let rate_to = |zone| {
                let to = flows.iter().filter(|flow| flow["to"]["zone"] == zone);
                to.map(|flow| flow["bytes_per_second"].as_u64().unwrap()).sum::<u64>()
            };
            let swarm = known(&swarm).await;
            let members = swarm["members"].as_array().cloned().unwrap_or_default();
            let serves = members.iter().any(|member| !member["senders"].as_array().is_none_or(Vec::is_empty));
            if rate_to("a") > 0 && rate_to("b") > 0 && serves && swarm["bytes_per_second"].as_u64() > Some(0) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    timeout(DEADLINE, async { tokio::join!(watched, proxies[0].pull(digest), proxies[1].pull(digest)) }).await.unwrap();
    // In the end everything was reported, to the byte.
    let reported = async {
        loop {
            let page = known("/v1/topology").await;
            let flows = page["flows"].as_array().unwrap();
            let bytes: u64 = flows.iter().map(|flow| flow["bytes"].as_u64().unwrap()).sum();
            if bytes >= 2 * size {
                return bytes;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let reported = timeout(DEADLINE, reported).await.expect("what came last is reported too");
    // Counted after: a block that was asked for twice may come when the pull has ended.
    let counted: u64 = proxies.iter().map(|proxy| proxy.proxy.node().counters().downloaded).sum();
    assert!(reported <= counted, "{reported} bytes were reported, {counted} came");
    let peers = known("/v1/peers").await;
    let peers = peers["peers"].as_array().unwrap();
    assert!(peers.len() == 3 && peers.iter().all(|peer| peer["activity"]["load"]["free_slots"].is_u64()), "{peers:?}");
}

/// The seeder's HTTP answer is all that a node needs for a small blob: no peer connection, no request
/// for a piece. What came so is offered to peers like anything else.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_blob_comes_with_its_metainfo() {
    let size = 40 << 10;
    let origin = origin(&[size]).await;
    let digest = layer(&origin.images()[0], 0);
    let tracker = tracker().await;
    let mut options = ProxyOptions::new(&origin);
    options.trackers = vec![url(tracker.local_addr())];
    let seeder = KillableSeeder::start(&options.registries, options.trackers.clone(), Rate::Limited(20 * MIB));
    options.seeders = vec![seeder.url.clone()];
    let first = options.start().await;
    first.pull(digest).await;
    let counters = seeder.seeder.as_ref().unwrap().counters();
    assert_eq!(counters.http_bytes, counters.origin_bytes, "each blob went out once, over HTTP");
    assert!(counters.http_bytes >= size);
    assert_eq!(seeder.seeder.as_ref().unwrap().status()["connected_peers"], 0);
    assert_eq!(seeder.seeder.as_ref().unwrap().status()["uploaded_bytes"], 0);
    let traffic = first.proxy.traffic();
    assert_eq!((traffic.peer, traffic.origin), (0, 0), "{traffic:?}");
    assert!(first.proxy.cache().get(digest).await.is_some(), "peers are served from the cache");
    // A second node gets it in the same way, from what the seeder stored.
    let second = options.start().await;
    second.pull(digest).await;
    let seeder = seeder.seeder.as_ref().unwrap();
    assert_eq!(seeder.counters().http_bytes, counters.http_bytes + size);
    assert_eq!((seeder.status()["connected_peers"].as_u64(), origin.stats().blob(digest).bytes), (Some(0), size));
}

/// Where the upload limit is in the way, the content is left out and the bytes come as others do.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_blob_comes_through_a_low_limit_too() {
    let size = 60 << 10;
    let origin = origin(&[size]).await;
    let digest = layer(&origin.images()[0], 0);
    let mut options = ProxyOptions::new(&origin);
    let seeder = KillableSeeder::start(&options.registries, Vec::new(), Rate::Limited(20 << 10));
    options.seeders = vec![seeder.url.clone()];
    let proxy = options.start().await;
    proxy.pull(digest).await;
    let traffic = proxy.proxy.traffic();
    assert_eq!((traffic.seeder, traffic.origin), (size, 0), "{traffic:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tracker_that_is_away_is_no_matter() {
    let origin = origin(&[2 * MIB]).await;
    let digest = layer(&origin.images()[0], 0);
    let mut options = ProxyOptions::new(&origin);
    options.trackers = vec![dead_url().await];
    let seeder = KillableSeeder::start(&options.registries, options.trackers.clone(), Rate::Unlimited);
    options.seeders = vec![seeder.url.clone()];
    let proxies = join_all((0..2).map(|_| options.start())).await;
    join_all(proxies.iter().map(|proxy| proxy.pull(digest))).await;
    assert_eq!(origin.stats().blob(digest).bytes, 2 * MIB);
    for proxy in &proxies {
        assert_eq!(proxy.proxy.traffic().origin, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seeder_that_dies_half_way_is_no_matter() {
    let origin = origin(&[8 * MIB]).await;
    let digest = layer(&origin.images()[0], 0);
    let mut options = ProxyOptions::new(&origin);
    // Slow enough to die in the middle.
    let mut seeder = KillableSeeder::start(&options.registries, Vec::new(), Rate::Limited(2 * MIB));
    options.seeders = vec![seeder.url.clone()];
    let proxy = options.start().await;
    proxy.manifest().await;
    let (status, _, mut body) = open(proxy.address, Method::GET, &blob_path(&digest), &[]).await;
    assert_eq!(status, 200);
    let mut received = Vec::new();
    let read = async {
        while let Some(frame) = body.frame().await {
            received.extend_from_slice(&frame.expect("an unbroken body").into_data().unwrap_or_default());
            if received.len() as u64 > MIB {
                seeder.kill();
            }
        }
    };
    timeout(DEADLINE, read).await.unwrap();
    assert_eq!(Digest::of(&received), digest);
    let traffic = proxy.proxy.traffic();
    assert!(traffic.origin > 0 && traffic.seeder > 0, "{traffic:?}");
    assert!(traffic.origin < 8 * MIB, "what had come was not fetched again: {traffic:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_origin_may_go_once_the_blob_is_in_the_cluster() {
    let origin = origin(&[3 * MIB]).await;
    let digest = layer(&origin.images()[0], 0);
    let mut options = ProxyOptions::new(&origin);
    let seeder = KillableSeeder::start(&options.registries, Vec::new(), Rate::Unlimited);
    options.seeders = vec![seeder.url.clone()];
    let (first, second) = (options.start().await, options.start().await);
    first.pull(digest).await;
    origin.shutdown().await;
    first.pull(digest).await;
    second.pull(digest).await;
    assert_eq!(second.proxy.traffic().origin, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_origin_never_reaches_a_runtime() {
    let origin = origin(&[MIB]).await;
    let digest = layer(&origin.images()[0], 0);
    let mut options = ProxyOptions::new(&origin);
    let seeder = KillableSeeder::start(&options.registries, Vec::new(), Rate::Unlimited);
    for seeders in [vec![], vec![seeder.url.clone()]] {
        options.seeders = seeders;
        let proxy = options.start().await;
        proxy.manifest().await;
        origin.set_faults(vec![FaultRule::always(FaultTarget::Blob(digest), Fault::CorruptAt(MIB / 2))]);
        let answer = proxy.get(&blob_path(&digest)).await;
        assert!(answer.status == 502 || answer.broken.is_some(), "{}", answer.status);
        assert!((answer.body.len() as u64) < MIB);
        assert!(!proxy.proxy.cache().contains(digest));
        origin.set_faults(Vec::new());
        proxy.pull(digest).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn seeders_that_are_away_leave_the_origin() {
    let origin = origin(&[2 * MIB + 1000]).await;
    let image = origin.images()[0].clone();
    let digest = layer(&image, 0);
    let mut options = ProxyOptions::new(&origin);
    options.seeders = vec![dead_url().await, dead_url().await];
    let proxy = options.start().await;
    // Many at once are one download.
    join_all((0..5).map(|_| proxy.pull(digest))).await;
    assert_eq!(origin.stats().blob(digest).bytes, image.layers[0].size);
    assert_eq!(proxy.proxy.traffic().origin, image.layers[0].size);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_removed_under_its_readers_is_relayed_to_the_end() {
    let origin = origin(&[8 * MIB]).await;
    let digest = layer(&origin.images()[0], 0);
    let mut options = ProxyOptions::new(&origin);
    let seeder = KillableSeeder::start(&options.registries, Vec::new(), Rate::Unlimited);
    options.seeders = vec![seeder.url.clone()];
    // Slow enough to be caught in the middle.
    options.rate = Rate::Limited(3 * MIB);
    let proxy = options.start().await;
    proxy.manifest().await;
    let (_, _, mut body) = open(proxy.address, Method::GET, &blob_path(&digest), &[]).await;
    let mut received = Vec::new();
    let read = async {
        let mut removed = false;
        while let Some(frame) = body.frame().await {
            received.extend_from_slice(&frame.expect("an unbroken body").into_data().unwrap_or_default());
            if received.len() as u64 > MIB && !removed {
                removed = proxy.proxy.cache().remove(digest).await;
                assert!(removed);
            }
        }
    };
    timeout(DEADLINE, read).await.unwrap();
    assert_eq!(Digest::of(&received), digest);
    assert!(!proxy.proxy.cache().contains(digest));
    assert_eq!(origin.stats().blob(digest).bytes, 8 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_to_peers_counts_as_used() {
    let size = 3 * MIB;
    let origin = origin(&[size; 3]).await;
    let layers: Vec<Digest> = (0..3).map(|index| layer(&origin.images()[0], index)).collect();
    let tracker = tracker().await;
    let mut options = ProxyOptions::new(&origin);
    options.trackers = vec![url(tracker.local_addr())];
    let seeder = KillableSeeder::start(&options.registries, options.trackers.clone(), Rate::Limited(2 * MIB));
    options.seeders = vec![seeder.url.clone()];
    // Two of the three fit.
    options.cache_limit = 2 * size + MIB;
    let giver = options.start().await;
    for digest in &layers[..2] {
        giver.pull(*digest).await;
    }
    // What was just received is held for peers for a while, and the end of that is a use too.
    let cache = giver.proxy.cache();
    eventually("nothing to be held", || cache.list().iter().all(|entry| !entry.pinned)).await;
    let in_order: Vec<Digest> = cache.list().into_iter().map(|entry| entry.digest).collect();
    let [oldest, newer] = in_order[..] else { panic!("{in_order:?}") };

    let taker = options.start().await;
    taker.pull(oldest).await;
    assert!(taker.proxy.traffic().peer > 0, "{:?}", taker.proxy.traffic());
    eventually("nothing to be held again", || cache.list().iter().all(|entry| !entry.pinned)).await;
    giver.pull(layers[2]).await;
    assert!(cache.contains(oldest), "evicted although a peer had it last");
    assert!(!cache.contains(newer));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_was_cut_off_is_taken_up_again() {
    let origin = origin(&[8 * MIB]).await;
    let digest = layer(&origin.images()[0], 0);
    let mut options = ProxyOptions::new(&origin);
    let seeder = KillableSeeder::start(&options.registries, Vec::new(), Rate::Unlimited);
    options.seeders = vec![seeder.url.clone()];
    options.rate = Rate::Limited(4 * MIB);
    let proxy = options.start().await;
    proxy.manifest().await;
    let (_, _, mut body) = open(proxy.address, Method::GET, &blob_path(&digest), &[]).await;
    let mut received = 0;
    // Long enough for the storage to record what it has, which it does every second.
    while received < 6 * MIB {
        received += body.frame().await.unwrap().unwrap().into_data().unwrap_or_default().len() as u64;
    }
    drop(body);
    let data = proxy.stop().await;
    options.rate = Rate::Unlimited;
    let proxy = options.start_in(data).await;
    proxy.pull(digest).await;
    let traffic = proxy.proxy.traffic();
    assert!(traffic.seeder < 7 * MIB, "what was on the disk is not fetched again: {traffic:?}");
}
