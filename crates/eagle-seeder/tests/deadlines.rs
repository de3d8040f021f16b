//! Clients that never end: a body that never comes whole, a head that never does, an answer that is never read.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../eagle-cluster/testing/endless.rs"]
mod endless;

use std::time::Duration;

use common::{Origin, Running, memory, story};
use eagle_cluster::{ClusterKey, ClusterKeys, Membership};
use eagle_registry::Caller;
use endless::say;
use tokio::sync::watch;

/// More than a seeder takes in for a reader, bytes.
const LARGE: u64 = 8 << 20;

#[tokio::test]
async fn a_body_that_never_ends_is_given_up() {
    let origin = Origin::start(&[1]).await;
    let running = Running::start(memory(), origin.registries()).await;
    let head = "POST /v1/preheat HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n";
    for rest in ["Content-Length: 100\r\n\r\n{\"image\":", "Transfer-Encoding: chunked\r\n\r\n9\r\n{\"image\":\r\n"] {
        let answer = say(running.seeder.address(), &format!("{head}{rest}"), Duration::from_secs(10)).await;
        assert!(answer.starts_with("HTTP/1.1 408"), "{rest}: {answer}");
    }
    running.stop().await;
}

#[tokio::test]
async fn a_head_of_a_stranger_that_never_ends_is_given_up() {
    let origin = Origin::start(&[1]).await;
    let (_keys, receiver) = watch::channel(ClusterKeys::one(ClusterKey::generate().unwrap()));
    let running = Running::start_as(memory(), origin.registries(), Membership::Keyed(receiver)).await;
    for head in ["G", "GET /v1/blobs HTTP/1.1\r\nHost: x\r\n"] {
        let answer = say(running.seeder.address(), head, Duration::from_secs(5)).await;
        assert!(!answer.contains(" 200 "), "{answer}");
    }
    running.stop().await;
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_given_up_and_a_slow_one_is_not() {
    let origin = Origin::start(&[LARGE]).await;
    let running = Running::start(memory(), origin.registries()).await;
    let metainfo = running.metainfo(&origin, 0, &Caller::anonymous()).await.unwrap();
    assert_eq!(story(metainfo).await.end, Ok(()));
    let (address, target) = (running.seeder.address(), running.blob_path(&origin, 0));
    let slow = endless::read(address, &target, true, [115; 3]).await;
    assert!(slow > LARGE, "{slow} bytes of {LARGE} and a head were read, slowly");
    let stalled = endless::read(address, &target, false, [1, 100, 25]).await;
    assert!(stalled < LARGE, "all was sent to who took nothing for long");
    let patient = endless::read(address, &target, false, [1, 1, 110]).await;
    assert!(patient > LARGE, "{patient} bytes of {LARGE} and a head were read, late");
    running.stop().await;
}
