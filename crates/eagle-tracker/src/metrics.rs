//! What the tracker counts.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::store::StoreStats;

/// Upper bounds of the duration buckets, seconds: around the 5 ms that 99 % should stay below.
const DURATIONS: [f64; 10] = [0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1.0];

#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) announces: Counter,
    pub(crate) announce_errors: Counter,
    pub(crate) announce_duration: Histogram,
    blobs: Gauge,
    peers: Gauge,
    entries: Gauge,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            announces: Counter::default(),
            announce_errors: Counter::default(),
            announce_duration: Histogram::new(DURATIONS),
            blobs: Gauge::default(),
            peers: Gauge::default(),
            entries: Gauge::default(),
        };
        // The registry's text format adds `_total` to counters.
        registry.register("eagle_tracker_announces", "Announces received", metrics.announces.clone());
        registry.register(
            "eagle_tracker_announce_errors",
            "Announces refused as a whole, and blobs refused within announces",
            metrics.announce_errors.clone(),
        );
        registry.register(
            "eagle_tracker_announce_duration_seconds",
            "Time from the whole request of an announce to its answer",
            metrics.announce_duration.clone(),
        );
        registry.register("eagle_tracker_blobs", "Blobs with at least one peer", metrics.blobs.clone());
        registry.register("eagle_tracker_peers", "Nodes known", metrics.peers.clone());
        registry.register("eagle_tracker_entries", "Pairs of a blob and a peer", metrics.entries.clone());
        metrics
    }

    pub(crate) fn set_sizes(&self, stats: StoreStats) {
        for (gauge, value) in [(&self.blobs, stats.blobs), (&self.peers, stats.peers), (&self.entries, stats.entries)] {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
    }
}
