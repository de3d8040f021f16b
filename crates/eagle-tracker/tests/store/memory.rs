//! The store in memory.

use eagle_core::{NodeRole, PeerInfo, PieceSet, Topology, tracker::NodeLoad};
use eagle_tracker::{
    Event, TrackerConfig,
    store::{MemorySeeders, MemoryStore, PeerStore, StoreLimits, StoreStats},
};
use proptest::prelude::*;

use crate::{
    reports_suite, seeders_suite,
    suite::{self, at},
};

fn make(limits: StoreLimits) -> Box<dyn PeerStore> {
    Box::new(MemoryStore::new(limits))
}

proptest! {
    #[test]
    fn behaves_as_the_model(steps in suite::steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(suite::run(&MemoryStore::new(suite::limits()), steps));
    }
}

#[tokio::test]
async fn a_seeder_decides_on_the_geometry() {
    suite::a_seeder_decides_on_the_geometry(&make).await;
}

#[tokio::test]
async fn bounds_hold_and_nobody_is_pushed_out() {
    suite::bounds_hold_and_nobody_is_pushed_out(&make).await;
}

#[tokio::test]
async fn large_swarms_are_seen_in_part_with_their_seeders() {
    suite::large_swarms_are_seen_in_part_with_their_seeders(&make).await;
}

#[tokio::test]
async fn how_busy_a_node_is_counts_when_peers_are_chosen() {
    let store = make(suite::limits());
    for number in 1..=3 {
        let own = suite::blob(1, PieceSet::Complete, Event::Completed);
        store.announce(&suite::node(number, NodeRole::Proxy), true, &[own], at(0)).await.unwrap();
    }
    let load = NodeLoad { requests: 7, free_slots: 2 };
    store.set_load(&suite::node(2, NodeRole::Proxy).id, load);
    let view = store.view(suite::digest(1), &suite::node(1, NodeRole::Proxy).id, 1, at(0)).await.unwrap();
    let mut loads: Vec<_> = view
        .peers
        .iter()
        .zip(&view.candidates)
        .map(|(peer, candidate)| (peer.named().info().id.to_string(), candidate.load))
        .collect();
    loads.sort_by(|(a, _), (b, _)| a.cmp(b));
    assert_eq!(loads, [("node2".to_owned(), Some(load)), ("node3".to_owned(), None)]);
}

/// So many that they do not leave their swarms one by one.
#[tokio::test]
async fn when_most_nodes_fall_silent_the_others_and_their_blobs_stay() {
    const NODES: usize = 3_000;
    let (own, part) = (
        |number| suite::blob(number, PieceSet::Complete, Event::Completed),
        |number| suite::blob(number, PieceSet::Prefix(2), Event::Progress),
    );
    let store = make(StoreLimits { peers: NODES, peers_per_blob: NODES, ..suite::limits() });
    let info = |number: usize| PeerInfo {
        id: format!("p{number}").parse().unwrap(),
        topology: Topology { zone: Some((number % 3).to_string()), ..Topology::default() },
        ..suite::node(1, NodeRole::Proxy)
    };
    for number in 0..NODES {
        // Everybody has blob 1, whole or in part; each third of them one more.
        let first = if number % 2 == 0 { own(1) } else { part(1) };
        let blobs = [first, own(u8::try_from(2 + number % 3).unwrap())];
        store.announce(&info(number), true, &blobs, at(0)).await.unwrap();
    }
    // One in twenty goes on; of the last third nobody.
    let goes_on = |number: &usize| number.is_multiple_of(20) && number % 3 != 2;
    for number in (0..NODES).filter(goes_on) {
        store.announce(&info(number), false, &[], at(80)).await.unwrap();
    }
    let alive = (0..NODES).filter(goes_on).count();
    suite::sweep_all(&*store, at(100)).await;
    assert_eq!(store.stats(), StoreStats { peers: alive, blobs: 3, entries: 2 * alive });
    let first =
        store.swarms(None, 10, at(100)).await.into_iter().find(|swarm| swarm.digest == suite::digest(1)).unwrap();
    assert_eq!((first.peers, first.complete, first.progress), (alive, alive, 1.0));
    assert!(store.swarm(suite::digest(4), None, 1, at(100)).await.is_none());
    // Everybody is back, and the sums are those of a store that never forgot them.
    for number in 0..NODES {
        let first = if number % 2 == 0 { own(1) } else { part(1) };
        store.announce(&info(number), true, &[first], at(100)).await.unwrap();
    }
    let (first, members) = store.swarm(suite::digest(1), None, NODES, at(100)).await.unwrap();
    assert_eq!((first.peers, first.complete, members.len()), (NODES, NODES / 2, NODES));
    let seen = store.view(suite::digest(1), &info(0).id, 1, at(100)).await.unwrap();
    assert_eq!(seen.candidates.len(), 128);
    for number in 0..NODES {
        store.leave(&info(number).id).await;
    }
    assert_eq!(store.stats(), StoreStats::default());
}

#[tokio::test]
async fn lists_come_in_pages() {
    suite::lists_come_in_pages(&make).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_announces_expiry_and_leaving_keep_the_counts() {
    suite::concurrent_announces_expiry_and_leaving_keep_the_counts(&make, 300).await;
}

proptest! {
    #[test]
    fn seeders_and_leases_follow_the_rules(steps in seeders_suite::steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(seeders_suite::run(&MemorySeeders::default(), steps, at(3_600)));
    }
}

#[tokio::test]
async fn seeders_and_leases_keep_to_what_every_store_keeps_to() {
    seeders_suite::a_lease_without_progress_ends(&MemorySeeders::default()).await;
    seeders_suite::leases_and_seeders_are_bounded(&MemorySeeders::default()).await;
}

#[tokio::test]
async fn reports_keep_to_what_every_store_keeps_to() {
    let trackers = [reports_suite::Running::start(&TrackerConfig::default()).await];
    reports_suite::every_tracker_shows_what_was_reported_to_any(&trackers).await;
}
