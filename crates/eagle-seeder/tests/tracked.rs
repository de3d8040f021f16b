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
