//! A seeder that takes a blob from the one that fetches it.
#![allow(clippy::unwrap_used)]

use std::{path::Path, time::Duration};

use bucket::Bucket;
use common::{LAYER, Mortal, Origin, Running, basic, followed, piece_hashes, story, until, within};
use eagle_core::units::Rate;
use eagle_registry::Caller;
use eagle_seeder::SeederConfig;
use http::StatusCode;
use tempfile::TempDir;

#[path = "common/bucket.rs"]
mod bucket;
mod common;

/// Far less than the origin takes in these tests.
const SHORT_WAIT: Duration = Duration::from_millis(300);

fn waiting(config: SeederConfig, wait: Duration) -> SeederConfig {
    let object_store = eagle_seeder::ObjectStoreConfig { wait, ..config.object_store.clone() };
    SeederConfig { object_store, ..config }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_takes_longer_than_the_wait_is_asked_once() {
    let (bucket, first, second) = (Bucket::start().await, TempDir::new().unwrap(), TempDir::new().unwrap());
    let origin = Origin::start(&[LAYER]).await;
    let content = origin.content(0, &Caller::anonymous()).await;
    origin.registry().reset_stats();
    origin.registry().set_rate(Rate::Limited(2 << 20));
    let start = async |directory: &Path| {
        Running::start(waiting(bucket.seeder(directory), SHORT_WAIT), origin.registries()).await
    };
    let (one, other) = (start(first.path()).await, start(second.path()).await);
    let (by_one, by_other) = (one.blob_path(&origin, 0), other.blob_path(&origin, 0));
    let told = async {
        let stream = other.metainfo(&origin, 0, &Caller::anonymous()).await.unwrap();
        story(stream).await
    };
    let (a, b, told) = tokio::join!(one.get(&by_one, &[]), other.get(&by_other, &[]), told);
    assert!(a.1 == content && b.1 == content);
    assert_eq!((told.end, told.hashes), (Ok(()), piece_hashes(&content)));
    assert_eq!(origin.registry().stats().blob(origin.digests[0]).gets, 1);
    // One of the two took all of it from the other.
    assert_eq!(followed(&one) + followed(&other), LAYER);
    bucket.has(origin.digests[0]).await;
    one.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_holder_is_succeeded_from_the_byte_reached() {
    let (bucket, first, second) = (Bucket::start().await, TempDir::new().unwrap(), TempDir::new().unwrap());
    let origin = Origin::start(&[LAYER]).await;
    let content = origin.content(0, &Caller::anonymous()).await;
    origin.registry().reset_stats();
    // Two seconds: half of it is there when the holder dies.
    origin.registry().set_rate(Rate::Limited(2 << 20));
    let holder = Mortal::start(bucket.seeder(first.path()), &origin).await;
    holder.running.metainfo(&origin, 0, &Caller::anonymous()).await.unwrap();
    let heir = Running::start(bucket.seeder(second.path()), origin.registries()).await;
    let path = heir.blob_path(&origin, 0);
    let killed = async {
        until("half of the blob", async || followed(&heir) >= LAYER / 4).await;
        holder.kill();
        origin.registry().set_rate(Rate::Unlimited);
    };
    let (got, ()) = tokio::join!(heir.get(&path, &[]), killed);
    assert!(got.1 == content);
    let stats = origin.registry().stats().blob(origin.digests[0]);
    assert_eq!(stats.gets, 2, "one of each");
    assert!(heir.seeder.counters().origin_bytes <= LAYER * 3 / 4, "what came from the holder is not fetched again");
    bucket.has(origin.digests[0]).await;
    heir.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_cannot_be_reached_is_not_waited_for_in_silence() {
    let (bucket, first, second) = (Bucket::start().await, TempDir::new().unwrap(), TempDir::new().unwrap());
    let origin = Origin::start(&[LAYER]).await;
    let content = origin.content(0, &Caller::anonymous()).await;
    origin.registry().reset_stats();
    // The holder is at it for the whole test.
    origin.registry().set_rate(Rate::Limited(64 << 10));
    let elsewhere = Some("http://127.0.0.1:1".parse().unwrap());
    let holder = SeederConfig { url: elsewhere, ..bucket.seeder(first.path()) };
    let holder = Running::start(holder, origin.registries()).await;
    holder.metainfo(&origin, 0, &Caller::anonymous()).await.unwrap();
    let wait = Duration::from_secs(8);
    let other = Running::start(waiting(bucket.seeder(second.path()), wait), origin.registries()).await;
    let stream = other.metainfo(&origin, 0, &Caller::anonymous()).await.unwrap();
    let gets = || origin.registry().stats().blob(origin.digests[0]).gets;
    assert_eq!(gets(), 1, "it answers before it gives up waiting");
    origin.registry().set_rate(Rate::Unlimited);
    let told = story(stream).await;
    assert_eq!((told.end, told.hashes), (Ok(()), piece_hashes(&content)));
    assert!(gets() <= 2);
    other.stop().await;
    holder.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_followed_begins_nothing_and_lets_nobody_in_whom_the_origin_refuses() {
    let (bucket, directory) = (Bucket::start().await, TempDir::new().unwrap());
    let origin = Origin::private(&[LAYER]).await;
    let running = Running::start(bucket.seeder(directory.path()), origin.registries()).await;
    let path = running.blob_path(&origin, 0);
    let follow = async |caller: &Caller| {
        let authorization = caller.authorization.as_ref().map_or("", |value| value.to_str().unwrap());
        let headers = [("eagle-follows", "1"), ("authorization", authorization)];
        running.get(&path, &headers[..1 + usize::from(!authorization.is_empty())]).await
    };
    let (alice, gets) = (basic("alice", "a"), || origin.registry().stats().blob(origin.digests[0]).gets);
    assert_eq!(follow(&alice).await.0.status(), StatusCode::CONFLICT);
    assert_eq!(gets(), 0);
    within(async { story(running.metainfo(&origin, 0, &alice).await.unwrap()).await }).await;
    let (response, body) = follow(&alice).await;
    assert_eq!((response.status(), body.len() as u64), (StatusCode::OK, LAYER));
    assert_eq!(response.headers()["eagle-piece-length"], common::PIECE.to_string());
    for stranger in [Caller::anonymous(), basic("alice", "wrong")] {
        assert_eq!(follow(&stranger).await.0.status(), StatusCode::UNAUTHORIZED);
    }
    assert_eq!(gets(), 1);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_whose_lease_was_taken_takes_the_rest_from_its_successor() {
    let (bucket, first, second) = (Bucket::start().await, TempDir::new().unwrap(), TempDir::new().unwrap());
    let origin = Origin::start(&[LAYER]).await;
    let content = origin.content(0, &Caller::anonymous()).await;
    origin.registry().set_rate(Rate::Limited(256 << 10));
    let one = Running::start(bucket.seeder(first.path()), origin.registries()).await;
    let other = Running::start(bucket.seeder(second.path()), origin.registries()).await;
    let (by_one, by_other) = (one.blob_path(&origin, 0), other.blob_path(&origin, 0));
    let hex = origin.digests[0].hex();
    let lease = bucket.root.path().join("bucket/eagle/leases/sha256").join(hex).join("0");
    let written = || std::fs::metadata(&lease).and_then(|lease| lease.modified()).ok();
    let leases = |running: &Running, outcome: &str| {
        running.counted(&format!("eagle_seeder_leases_total{{outcome=\"{outcome}\"}}")).unwrap_or_default()
    };
    let taken = async {
        until("a lease", async || written().is_some()).await;
        let before = written();
        // The next renewal is 2 s away then.
        until("the lease to be renewed", async || written().is_some_and(|now| Some(now) != before)).await;
        // As whoever takes it for dead does.
        std::fs::remove_file(&lease).unwrap();
        let all = other.get(&by_other, &[]);
        let lost = async {
            until("the holder to find out", async || leases(&one, "lost") > 0.0).await;
            origin.registry().set_rate(Rate::Unlimited);
        };
        tokio::join!(all, lost).0
    };
    let (a, b) = tokio::join!(one.get(&by_one, &[]), taken);
    assert!(a.1 == content && b.1 == content);
    // On a slow day the first has its lease again before the other asks.
    if leases(&other, "granted") > 0.0 {
        assert!(followed(&one) > 0 && one.seeder.counters().origin_bytes < LAYER);
    } else {
        assert!(followed(&other) > 0 && other.seeder.counters().origin_bytes == 0);
    }
    bucket.has(origin.digests[0]).await;
    one.stop().await;
    other.stop().await;
}
