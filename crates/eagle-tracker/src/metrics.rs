//! What the tracker counts.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::store::{SeederStats, StoreHealth, StoreStats};

/// Upper bounds of the duration buckets, seconds: around the 5 ms that 99 % should stay below.
const DURATIONS: [f64; 10] = [0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1.0];

/// How claims are answered.
const CLAIM_OUTCOMES: [&str; 4] = ["granted", "held", "owned", "full"];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) announces: Counter,
    pub(crate) announce_errors: Counter,
    announces_held: Counter,
    pub(crate) announce_duration: Histogram,
    blobs: Gauge,
    peers: Gauge,
    entries: Gauge,
    store_away: Gauge,
    store_failures: Counter,
    seeders: Gauge,
    leases: Gauge,
    lease_claims: Family<OutcomeLabel, Counter>,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            announces: Counter::default(),
            announce_errors: Counter::default(),
            announces_held: Counter::default(),
            announce_duration: Histogram::new(DURATIONS),
            blobs: Gauge::default(),
            peers: Gauge::default(),
            entries: Gauge::default(),
            store_away: Gauge::default(),
            store_failures: Counter::default(),
            seeders: Gauge::default(),
            leases: Gauge::default(),
            lease_claims: Family::default(),
        };
        // Each is there from the start, so that an increase from nothing is seen.
        for outcome in CLAIM_OUTCOMES {
            drop(metrics.lease_claims.get_or_create(&OutcomeLabel { outcome }));
        }
        // The registry's text format adds `_total` to counters.
        registry.register("eagle_tracker_announces", "Announces received", metrics.announces.clone());
        registry.register(
            "eagle_tracker_announce_errors",
            "Announces refused as a whole, and blobs refused within announces",
            metrics.announce_errors.clone(),
        );
        registry.register(
            "eagle_tracker_announces_held",
            "Announces answered later, because their node announces too often",
            metrics.announces_held.clone(),
        );
        registry.register(
            "eagle_tracker_announce_duration_seconds",
            "Time from the whole request of an announce to its answer, without what it was held back",
            metrics.announce_duration.clone(),
        );
        registry.register("eagle_tracker_blobs", "Blobs with at least one peer", metrics.blobs.clone());
        registry.register("eagle_tracker_peers", "Nodes known", metrics.peers.clone());
        registry.register("eagle_tracker_entries", "Pairs of a blob and a peer", metrics.entries.clone());
        registry.register(
            "eagle_tracker_store_away",
            "1 while the shared store does not answer and this tracker keeps what it is told in its own memory",
            metrics.store_away.clone(),
        );
        registry.register(
            "eagle_tracker_store_failures",
            "Calls of the shared store that failed",
            metrics.store_failures.clone(),
        );
        registry.register("eagle_tracker_seeders", "Seeders that are alive", metrics.seeders.clone());
        registry.register("eagle_tracker_leases", "Blobs that a seeder has the right to fetch", metrics.leases.clone());
        registry.register(
            "eagle_tracker_lease_claims",
            "Answers to seeders that want to fetch a blob: granted, held by another, owned by another, full",
            metrics.lease_claims.clone(),
        );
        metrics
    }

    /// Notes how long an announce was held back.
    pub(crate) fn held(&self, time: Duration) {
        if !time.is_zero() {
            self.announces_held.inc();
        }
    }

    pub(crate) fn set_health(&self, health: StoreHealth) {
        self.store_away.set(i64::from(health.away));
        self.store_failures.inc_by(health.failures.saturating_sub(self.store_failures.get()));
    }

    pub(crate) fn lease_claim(&self, outcome: &'static str) {
        debug_assert!(CLAIM_OUTCOMES.contains(&outcome), "{outcome}");
        self.lease_claims.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(crate) fn set_seeders(&self, stats: SeederStats) {
        self.seeders.set(i64::try_from(stats.seeders).unwrap_or(i64::MAX));
        self.leases.set(i64::try_from(stats.leases).unwrap_or(i64::MAX));
    }

    pub(crate) fn set_sizes(&self, stats: StoreStats) {
        for (gauge, value) in [(&self.blobs, stats.blobs), (&self.peers, stats.peers), (&self.entries, stats.entries)] {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
    }
}
