//! The store in memory.

use eagle_tracker::{
    TrackerConfig,
    store::{MemorySeeders, MemoryStore, PeerStore, StoreLimits},
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
