//! A pull after all trackers have gone: whom the seeder knows, a new node comes to know.

mod common;

use std::time::Duration;

use common::{DEADLINE, KillableSeeder, ProxyOptions, layer, local, origin, url};
use eagle_cluster::MemberTls;
use eagle_core::units::Rate;
use eagle_p2p::network::Membership;
use eagle_tracker::{Tracker, TrackerConfig};
use futures::future::join_all;
use prometheus_client::registry::Registry;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

const MIB: u64 = 1 << 20;
/// What the seeder gives in a second; by it alone a pull would take six.
const SEEDER: u64 = 2 * MIB;
const SIZE: u64 = 6 * SEEDER;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_when_the_trackers_are_gone_finds_the_others() {
    let origin = origin(&[SIZE]).await;
    let digest = layer(&origin.images()[0], 0);
    let shutdown = CancellationToken::new();
    let config = TrackerConfig { listen: local(), ..TrackerConfig::default() };
    let members = MemberTls::new(&Membership::Open).unwrap();
    let tracker = Tracker::start(config, &members, &mut Registry::default(), shutdown.clone()).await.unwrap();
    let mut options = ProxyOptions::new(&origin);
    options.trackers = vec![url(tracker.local_addr())];
    let seeder = KillableSeeder::start(&options.registries, options.trackers.clone(), Rate::Limited(SEEDER));
    options.seeders = vec![seeder.url.clone()];
    let known = join_all((0..2).map(|_| options.start())).await;
    join_all(known.iter().map(|proxy| proxy.pull(digest))).await;
    // A tracker names them, each to the other, and the first of them greets.
    let learnt = |source| known.iter().map(|proxy| proxy.metric("eagle_proxy_peers_learnt_total", source)).sum::<f64>();
    assert!(learnt("tracker") >= 1.0);
    assert_eq!(learnt("exchange"), 0.0);
    shutdown.cancel();
    timeout(DEADLINE, tracker.wait()).await.expect("the tracker stops");

    let late = options.start().await;
    let started = Instant::now();
    late.pull(digest).await;
    let (traffic, took) = (late.proxy.traffic(), started.elapsed());
    assert_eq!(late.metric("eagle_proxy_peers_learnt_total", "tracker"), 0.0);
    assert_eq!(late.metric("eagle_proxy_peers_learnt_total", "exchange"), 2.0);
    assert!(traffic.peer > SIZE / 2 && traffic.origin == 0, "{traffic:?}");
    assert!(took < Duration::from_secs(SIZE / SEEDER), "as long as by the seeder alone: {took:?}");
}
