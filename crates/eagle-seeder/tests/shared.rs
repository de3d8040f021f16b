//! Seeders that share a bucket on a real S3 server.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use bucket::Bucket;
use common::{LAYER, Origin, Running, basic, piece_hashes, story, until, within};
use eagle_core::{Digest, units::Rate};
use eagle_registry::{Caller, config::Secret};
use tempfile::TempDir;

#[path = "common/bucket.rs"]
mod bucket;
mod common;

#[tokio::test(flavor = "multi_thread")]
async fn a_new_seeder_with_an_empty_disk_asks_the_origin_for_no_bytes() {
    let (bucket, first, second) = (Bucket::start().await, TempDir::new().unwrap(), TempDir::new().unwrap());
    // More than one part of an upload, and more than one read.
    let origin = Origin::start(&[3 * LAYER, 100_000, 10 << 20]).await;
    let running = Running::start(bucket.seeder(first.path()), origin.registries()).await;
    let mut contents = Vec::new();
    for layer in 0..3 {
        let content = running.get(&running.blob_path(&origin, layer), &[]).await.1;
        assert_eq!(Digest::of(&content), origin.digests[layer]);
        contents.push(content);
        bucket.has(origin.digests[layer]).await;
    }
    running.stop().await;
    origin.registry().reset_stats();
    let running = Running::start(bucket.seeder(second.path()), origin.registries()).await;
    for (layer, content) in contents.iter().enumerate() {
        let told = story(running.metainfo(&origin, layer, &Caller::anonymous()).await.unwrap()).await;
        assert_eq!((told.end, told.hashes), (Ok(()), piece_hashes(content)));
        assert_eq!(running.get(&running.blob_path(&origin, layer), &[]).await.1, content);
        assert_eq!(origin.registry().stats().blob(origin.digests[layer]).gets, 0);
    }
    assert_eq!(running.metric("eagle_seeder_shared_blobs_total{outcome=\"found\"}").to_bits(), 3f64.to_bits());
    running.stop().await;
    // Nothing that says that somebody is at work stays.
    for left in ["leases", "uploads"] {
        let path = bucket.root.path().join("bucket/eagle").join(left);
        assert!(!path.exists() || files(&path) == 0, "{left}");
    }
}

fn files(path: &Path) -> usize {
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { files(&path) } else { 1 }).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_seeders_that_are_asked_at_once_fetch_once() {
    let (bucket, first, second) = (Bucket::start().await, TempDir::new().unwrap(), TempDir::new().unwrap());
    let origin = Origin::start(&[LAYER]).await;
    let content = origin.content(0, &Caller::anonymous()).await;
    origin.registry().reset_stats();
    // Slow enough that both are asked while it runs.
    origin.registry().set_rate(Rate::Limited(4 << 20));
    let one = Running::start(bucket.seeder(first.path()), origin.registries()).await;
    let other = Running::start(bucket.seeder(second.path()), origin.registries()).await;
    let (by_one, by_other) = (one.blob_path(&origin, 0), other.blob_path(&origin, 0));
    let (a, b) = tokio::join!(one.get(&by_one, &[]), other.get(&by_other, &[]));
    assert!(a.1 == content && b.1 == content);
    assert_eq!(origin.registry().stats().blob(origin.digests[0]).gets, 1);
    one.stop().await;
    other.stop().await;
}

type Harm = fn(&mut Vec<u8>);

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_blob_is_never_served_and_is_stored_anew() {
    let bucket = Bucket::start().await;
    let origin = Origin::start(&[LAYER]).await;
    let content = origin.content(0, &Caller::anonymous()).await;
    let digest = origin.digests[0];
    let directory = TempDir::new().unwrap();
    let running = Running::start(bucket.seeder(directory.path()), origin.registries()).await;
    running.get(&running.blob_path(&origin, 0), &[]).await;
    bucket.has(digest).await;
    running.stop().await;

    let damage: [(&str, Harm); 4] = [
        ("data", |bytes| bytes[3_000_000] ^= 1),
        ("data", |bytes| bytes.truncate(1_000_000)),
        ("metainfo", |bytes| bytes.fill(0)),
        ("complete", Vec::clear),
    ];
    for (number, (part, harm)) in damage.into_iter().enumerate() {
        let path = bucket.object(digest, part);
        let mut bytes = std::fs::read(&path).unwrap();
        harm(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        origin.registry().reset_stats();
        let directory = TempDir::new().unwrap();
        let running = Running::start(bucket.seeder(directory.path()), origin.registries()).await;
        // The first may break off where the damage is. Whoever gets a whole answer has the right bytes.
        let mut whole = None;
        for _ in 0..50 {
            let (response, body) = running.try_send(http::Method::GET, &running.blob_path(&origin, 0), &[]).await;
            if let (true, Ok(body)) = (response.status().is_success(), body) {
                whole = Some(body);
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        assert!(whole.unwrap() == content, "{part} {number}");
        assert_eq!(origin.registry().stats().blob(digest).gets, 1, "{part} {number}");
        assert!(running.metric("eagle_seeder_shared_blobs_total{outcome=\"damaged\"}") >= 1.0);
        bucket.has(digest).await;
        until("the right bytes", async || std::fs::read(bucket.object(digest, "data")).unwrap() == content).await;
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_bucket_is_for_those_whom_the_origin_lets_in() {
    let (bucket, first, second) = (Bucket::start().await, TempDir::new().unwrap(), TempDir::new().unwrap());
    let origin = Origin::private(&[LAYER]).await;
    let running = Running::start(bucket.seeder(first.path()), origin.registries()).await;
    let told = story(running.metainfo(&origin, 0, &basic("alice", "a")).await.unwrap()).await;
    assert_eq!(told.end, Ok(()));
    bucket.has(origin.digests[0]).await;
    running.stop().await;
    let running = Running::start(bucket.seeder(second.path()), origin.registries()).await;
    for stranger in [Caller::anonymous(), basic("alice", "wrong")] {
        running.metainfo(&origin, 0, &stranger).await.unwrap_err();
    }
    origin.registry().reset_stats();
    let told = story(running.metainfo(&origin, 0, &basic("bob", "b")).await.unwrap()).await;
    assert_eq!(told.end, Ok(()));
    assert_eq!(origin.registry().stats().blob(origin.digests[0]).gets, 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_object_store_a_seeder_works_and_later_catches_up() {
    let (bucket, directory) = (Bucket::start().await, TempDir::new().unwrap());
    let origin = Origin::start(&[LAYER]).await;
    let content = origin.content(0, &Caller::anonymous()).await;
    // Wrong keys are refused at once, unlike a server that does not answer.
    let mut config = bucket.seeder(directory.path());
    config.object_store.secret_access_key = Some(Secret::new("wrong"));
    let running = Running::start(config, origin.registries()).await;
    assert_eq!(running.get(&running.blob_path(&origin, 0), &[]).await.1, content);
    running.stop().await;
    assert!(!bucket.object(origin.digests[0], "complete").exists());
    let running = Running::start(bucket.seeder(directory.path()), origin.registries()).await;
    within(bucket.has(origin.digests[0])).await;
    running.stop().await;
    assert!(std::fs::read(bucket.object(origin.digests[0], "data")).unwrap() == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_store_that_does_not_answer_delays_one_fetch_and_not_each() {
    let directory = TempDir::new().unwrap();
    let origin = Origin::start(&[LAYER, 100_000]).await;
    // Connections are taken by the system, and nobody answers.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let bucket = Bucket::start().await;
    let mut config = bucket.seeder(directory.path());
    config.object_store.endpoint = Some(format!("http://{}", silent.local_addr().unwrap()).parse().unwrap());
    let running = Running::start(config, origin.registries()).await;
    for layer in 0..2 {
        let content = running.get(&running.blob_path(&origin, layer), &[]).await.1;
        assert_eq!(Digest::of(&content), origin.digests[layer]);
    }
    let failures = running.metric("eagle_seeder_shared_blobs_total{outcome=\"failed\"}");
    assert_eq!(failures.to_bits(), 1f64.to_bits(), "the second was not looked for there");
    running.stop().await;
}
