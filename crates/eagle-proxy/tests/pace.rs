//! What `/status` says of a pull that is slow, for each thing that can make it so.

mod common;

use common::{DEADLINE, KillableSeeder, ProxyOptions, TestProxy, blob_path, layer, open, origin, tracker, url};
use eagle_core::{Digest, units::Rate};
use eagle_registry::embedded::{EmbeddedRegistry, Fault, FaultRule, FaultTarget};
use http::Method;
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::time::{sleep, timeout};

const MIB: u64 = 1 << 20;

/// What is said of the only download, once it is that this limits it, and `more`.
async fn seen_as(proxy: &TestProxy, limit: &str, more: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let seen = timeout(DEADLINE, async {
        loop {
            last = proxy.proxy.status()["downloads"][0].clone();
            let pace = &last["pace"];
            if pace["limited_by"] == limit && pace["limited_share"].as_f64() > Some(0.5) && more(pace) {
                return;
            }
            sleep(std::time::Duration::from_millis(50)).await;
        }
    });
    let in_time = seen.await.is_ok();
    assert!(in_time, "it is never said that {limit} limits the pull: {last}");
    last
}

const fn anything(_: &Value) -> bool {
    true
}

/// The same during a pull whose runtime takes what comes.
async fn slow_pull(proxy: &TestProxy, digest: Digest, limit: &str, more: impl Fn(&Value) -> bool) -> Value {
    proxy.manifest().await;
    let (_, _, mut body) = open(proxy.address, Method::GET, &blob_path(&digest), &[]).await;
    let pull = async { while let Some(Ok(_)) = body.frame().await {} };
    tokio::select! {
        () = pull => panic!("the pull ended before it was seen"),
        seen = seen_as(proxy, limit, more) => seen,
    }
}

async fn with_seeder(seeder: Rate, own: Rate) -> (EmbeddedRegistry, KillableSeeder, TestProxy, Digest) {
    let origin = origin(&[24 * MIB]).await;
    let digest = layer(&origin.images()[0], 0);
    let mut options = ProxyOptions::new(&origin);
    options.rate = own;
    let seeder = KillableSeeder::start(&options.registries, Vec::new(), seeder);
    options.seeders = vec![seeder.url.clone()];
    let proxy = options.start().await;
    (origin, seeder, proxy, digest)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_the_host() {
    let (_origin, seeder, proxy, digest) = with_seeder(Rate::Unlimited, Rate::Limited(MIB)).await;
    // Who sends is known a second later than what limits, or more.
    let named = |pace: &Value| pace["senders"].as_array().is_some_and(|senders| !senders.is_empty());
    let seen = slow_pull(&proxy, digest, "host_limit", named).await;
    assert!(seen["pace"]["bytes_per_second"].as_u64() > Some(MIB / 4), "{seen}");
    assert_eq!(seen["pace"]["senders"][0]["id"], seeder.seeder.as_ref().unwrap().info().id.as_str(), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seeder_that_gives_little() {
    let (_origin, _seeder, proxy, digest) = with_seeder(Rate::Limited(2 * MIB), Rate::Unlimited).await;
    slow_pull(&proxy, digest, "seeder", anything).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_takes_little() {
    let (_origin, _seeder, proxy, digest) = with_seeder(Rate::Unlimited, Rate::Limited(3 * MIB)).await;
    proxy.manifest().await;
    // It reads nothing: what the connection takes in by itself is a part of this.
    let (_, _, _body) = open(proxy.address, Method::GET, &blob_path(&digest), &[]).await;
    seen_as(&proxy, "runtime", anything).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_give_little() {
    let origin = origin(&[24 * MIB]).await;
    let digest = layer(&origin.images()[0], 0);
    let tracker = tracker().await;
    let mut options = ProxyOptions::new(&origin);
    options.trackers = vec![url(tracker.local_addr())];
    let seeder = KillableSeeder::start(&options.registries, options.trackers.clone(), Rate::Unlimited);
    options.seeders = vec![seeder.url.clone()];
    let mut owners = Vec::new();
    for _ in 0..3 {
        owners.push(options.start().await);
    }
    for owner in &owners {
        owner.pull(digest).await;
        owner.proxy.node().upload_limiter().set_rate(Rate::Limited(MIB / 2));
    }
    // It still tells of pieces, and gives hardly any.
    seeder.seeder.as_ref().unwrap().limiters().1.set_rate(Rate::Limited(MIB / 32));
    let last = options.start().await;
    slow_pull(&last, digest, "peers", anything).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_gives_little() {
    let origin = origin(&[24 * MIB]).await;
    let digest = layer(&origin.images()[0], 0);
    let mut options = ProxyOptions::new(&origin);
    options.stall_timeout = DEADLINE;
    // An eighth of it comes, then nothing for two seconds, until the seeder asks for the rest.
    origin.set_faults(vec![FaultRule::always(FaultTarget::Blob(digest), Fault::StallAfter(3 * MIB))]);
    let seeder = KillableSeeder::start(&options.registries, Vec::new(), Rate::Limited(16 * MIB));
    options.seeders = vec![seeder.url.clone()];
    let proxy = options.start().await;
    slow_pull(&proxy, digest, "origin", anything).await;
}
