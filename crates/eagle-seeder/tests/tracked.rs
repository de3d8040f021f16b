//! Seeders with storage of their own, and a tracker that says whose turn it is.
#![allow(clippy::unwrap_used)]

use common::{LAYER, Mortal, Origin, Running, any_port, config, followed, memory, until, within};
use eagle_cluster::MemberTls;
use eagle_core::units::Rate;
use eagle_registry::Caller;
use eagle_seeder::SeederConfig;
use eagle_tracker::{Tracker, TrackerConfig};
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_util::sync::CancellationToken;
use url::Url;

mod common;

async fn tracker() -> (Tracker, Url) {
    let config = TrackerConfig { listen: any_port(), ..TrackerConfig::default() };
    let tracker =
        Tracker::start(config, &MemberTls::open(), &mut Registry::default(), CancellationToken::new()).await.unwrap();
    let url = format!("http://{}", tracker.local_addr()).parse().unwrap();
    (tracker, url)
}

fn tracked(url: &Url, config: SeederConfig) -> SeederConfig {
    SeederConfig { trackers: vec![url.clone()], ..config }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_comes_from_the_origin_once_for_seeders_that_share_nothing() {
    let (_tracker, url) = tracker().await;
    let origin = Origin::start(&[LAYER]).await;
    let content = origin.content(0, &Caller::anonymous()).await;
    origin.registry().reset_stats();
    origin.registry().set_rate(Rate::Limited(2 << 20));
    let one = Running::start(tracked(&url, memory()), origin.registries()).await;
    let other = Running::start(tracked(&url, memory()), origin.registries()).await;
    let (by_one, by_other) = (one.blob_path(&origin, 0), other.blob_path(&origin, 0));
    let (a, b) = tokio::join!(one.get(&by_one, &[]), other.get(&by_other, &[]));
    assert!(a.1 == content && b.1 == content);
    assert_eq!(origin.registry().stats().blob(origin.digests[0]).gets, 1);
    assert_eq!(followed(&one) + followed(&other), LAYER);
    // And for one that comes when it is all over.
    let later = Running::start(tracked(&url, memory()), origin.registries()).await;
    assert!(later.get(&later.blob_path(&origin, 0), &[]).await.1 == content);
    assert_eq!((origin.registry().stats().blob(origin.digests[0]).gets, followed(&later)), (1, LAYER));
    for seeder in [one, other, later] {
        seeder.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_seeder_is_succeeded_from_the_byte_reached() {
    let ((_tracker, url), directory) = (tracker().await, TempDir::new().unwrap());
    let origin = Origin::start(&[LAYER]).await;
    let content = origin.content(0, &Caller::anonymous()).await;
    origin.registry().reset_stats();
    origin.registry().set_rate(Rate::Limited(2 << 20));
    let holder = Mortal::start(tracked(&url, config(directory.path())), &origin).await;
    holder.running.metainfo(&origin, 0, &Caller::anonymous()).await.unwrap();
    let heir = Running::start(tracked(&url, memory()), origin.registries()).await;
    let path = heir.blob_path(&origin, 0);
    let killed = async {
        until("a quarter of the blob", async || followed(&heir) >= LAYER / 4).await;
        holder.kill();
        origin.registry().set_rate(Rate::Unlimited);
    };
    let (got, ()) = tokio::join!(heir.get(&path, &[]), killed);
    assert!(got.1 == content);
    assert_eq!(origin.registry().stats().blob(origin.digests[0]).gets, 2, "one of each");
    assert!(heir.seeder.counters().origin_bytes <= LAYER * 3 / 4, "what came from the holder is not fetched again");
    heir.stop().await;
}

/// One request to a tracker, and the body of the answer.
async fn say(tracker: &Tracker, request: &str, body: &str) -> serde_json::Value {
    let mut stream = TcpStream::connect(tracker.local_addr()).await.unwrap();
    let head = "host: t\r\nconnection: close\r\ncontent-type: application/json";
    let request = format!("{request} HTTP/1.1\r\n{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_whose_lease_was_taken_takes_the_rest_from_its_successor() {
    let (tracker, url) = tracker().await;
    let origin = Origin::start(&[LAYER]).await;
    let content = origin.content(0, &Caller::anonymous()).await;
    origin.registry().set_rate(Rate::Limited(256 << 10));
    let one = Running::start(tracked(&url, memory()), origin.registries()).await;
    let other = Running::start(tracked(&url, memory()), origin.registries()).await;
    let (by_one, by_other) = (one.blob_path(&origin, 0), other.blob_path(&origin, 0));
    let leases = |running: &Running, outcome: &str| {
        running.counted(&format!("eagle_seeder_leases_total{{outcome=\"{outcome}\"}}")).unwrap_or_default()
    };
    let taken = async {
        until("a lease", async || tracker.status()["leases"] == 1).await;
        let seeders = within(say(&tracker, "GET /v1/seeders", "")).await;
        let holder = seeders["seeders"].as_array().unwrap().iter().find(|seeder| seeder["leases"] == 1).unwrap();
        // As when it was not heard of for long. The next heartbeat is up to 2 s away.
        let gone = serde_json::json!({ "seeder": holder, "stopped": true }).to_string();
        within(say(&tracker, "POST /v1/seeders", &gone)).await;
        let all = other.get(&by_other, &[]);
        let lost = async {
            until("the holder to find out", async || leases(&one, "lost") > 0.0 || leases(&other, "followed") > 0.0)
                .await;
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
    one.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_tracker_a_seeder_fetches_by_itself() {
    let gone: Url = "http://127.0.0.1:1".parse().unwrap();
    let origin = Origin::start(&[LAYER]).await;
    let running = Running::start(tracked(&gone, memory()), origin.registries()).await;
    let (response, body) = within(running.get(&running.blob_path(&origin, 0), &[])).await;
    assert!(response.status().is_success());
    assert_eq!(eagle_core::Digest::of(&body), origin.digests[0]);
    running.stop().await;
}
