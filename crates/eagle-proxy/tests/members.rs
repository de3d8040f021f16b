//! A whole cluster with a key.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{DEADLINE, KillableSeeder, ProxyOptions, layer, origin, tracker_as, url};
use eagle_cluster::{ClusterKey, ClusterKeys, Membership};
use eagle_core::units::Rate;
use tokio::{sync::watch, time::timeout};

const LAYER: u64 = 6 << 20;

fn keys(keys: &[&ClusterKey]) -> ClusterKeys {
    let lines: Vec<String> = keys.iter().map(|key| key.expose().to_string()).collect();
    lines.join("\n").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_go_on_while_the_key_changes() {
    let (a, b) = (ClusterKey::generate().unwrap(), ClusterKey::generate().unwrap());
    let (sender, receiver) = watch::channel(keys(&[&a]));
    let membership = Membership::Keyed(receiver);
    let origin = origin(&[LAYER, LAYER]).await;
    let image = origin.images()[0].clone();
    let options = ProxyOptions::new(&origin);
    let tracker = tracker_as(&membership).await;
    let trackers = vec![url(tracker.local_addr())];
    // Three seconds a layer, so that all steps fall into the first.
    let rate = Rate::Limited(LAYER / 3);
    let seeder = KillableSeeder::start_as(&options.registries, trackers.clone(), rate, membership.clone());
    let options = ProxyOptions { seeders: vec![seeder.url.clone()], trackers, membership, ..options };
    let (first, second) = (options.start().await, options.start().await);
    let change = async {
        for step in [keys(&[&a, &b]), keys(&[&b, &a]), keys(&[&b])] {
            tokio::time::sleep(Duration::from_millis(500)).await;
            sender.send_replace(step);
        }
    };
    let pulls = async { tokio::join!(first.pull(layer(&image, 0)), second.pull(layer(&image, 0)), change) };
    timeout(DEADLINE, pulls).await.expect("both pulls end");
    timeout(DEADLINE, first.pull(layer(&image, 1))).await.expect("under the new key alone");
    for number in 0..2 {
        assert_eq!(origin.stats().blob(layer(&image, number)).gets, 1, "the cluster did without the origin");
    }
    first.stop().await;
    second.stop().await;
}
