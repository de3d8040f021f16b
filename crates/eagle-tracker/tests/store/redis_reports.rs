//! What nodes report, shared by trackers in a real Redis.

use crate::{
    redis_server::{RedisServer, is_installed},
    reports_suite::{self, Running, report, until},
    suite::limits,
};

#[tokio::test(flavor = "multi_thread")]
async fn trackers_share_what_nodes_report() {
    if !is_installed() {
        return;
    }
    let server = RedisServer::start();
    let config = server.config(&limits());
    let trackers = [Running::start(&config).await, Running::start(&config).await];
    reports_suite::every_tracker_shows_what_was_reported_to_any(&trackers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_in_redis_are_bounded_and_checked_and_memory_stands_in_while_it_is_away() {
    if !is_installed() {
        return;
    }
    let mut server = RedisServer::start();
    let config = server.config(&limits());
    let trackers = [Running::start(&config).await, Running::start(&config).await];
    let [one, other] = &trackers;
    let key = format!("eagle:{{{}}}:reports", config.store_name);
    let shows = async |tracker: &Running, bytes: u64| {
        until("the bytes of the reports", async || tracker_bytes(tracker).await == bytes).await;
    };
    one.announce(&report(2, 10)).await;
    shows(other, 10).await;

    // What no tracker wrote is left out, and what comes after it is read.
    for garbage in ["x y", "by", "by somebody soon nonsense", "by somebody 7 nonsense 8"] {
        server.command(&format!("XADD {key} * {garbage}"));
    }
    one.announce(&report(2, 10)).await;
    shows(other, 20).await;
    // The stream has a bound, and ends by itself.
    for _ in 0..300 {
        server.command(&format!("XADD {key} * by somebody 7 nonsense"));
    }
    one.announce(&report(2, 10)).await;
    shows(other, 30).await;
    let length: usize = server.command(&format!("XLEN {key}")).trim_start_matches(':').trim().parse().unwrap();
    assert!(length <= 200, "{length} entries");
    let left: i64 = server.command(&format!("PTTL {key}")).trim_start_matches(':').trim().parse().unwrap();
    assert!((1..=60_000).contains(&left), "{left} ms left");

    // Without Redis each shows what it was told itself; a new Redis is used from its beginning.
    server.kill();
    one.announce(&report(2, 10)).await;
    shows(one, 40).await;
    server.start_again();
    until("reports to be shared again", async || {
        one.announce(&report(2, 10)).await;
        tracker_bytes(other).await > 30
    })
    .await;
}

/// Bytes of all flows that a tracker shows.
async fn tracker_bytes(tracker: &Running) -> u64 {
    tracker.bytes().await.into_iter().map(|(.., bytes)| bytes).sum()
}
