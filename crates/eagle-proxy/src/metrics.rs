//! Metrics of the proxy, in the forms of Prometheus.

use std::sync::Arc;

use eagle_p2p::node::Node;
use eagle_store::Cache;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
    registry::Registry,
};
use serde::Serialize;

/// Where bytes of blobs came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// The proxy's own cache.
    Cache,
    /// Other proxies.
    Peer,
    /// Seeders, over the peer network or HTTP.
    Seeder,
    /// The registry itself.
    Origin,
}

impl Source {
    /// Value of the label `source`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Peer => "peer",
            Self::Seeder => "seeder",
            Self::Origin => "origin",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    kind: &'static str,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabel {
    source: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FallbackLabel {
    to: &'static str,
}

/// Bytes of blobs that a proxy has moved since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Traffic {
    /// Given to runtimes out of the cache, without any transfer.
    pub cache: u64,
    /// Received from other proxies.
    pub peer: u64,
    /// Received from seeders.
    pub seeder: u64,
    /// Received from origins.
    pub origin: u64,
    /// Given to runtimes, whatever the source.
    pub delivered: u64,
}

/// The metrics of one proxy; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    requests: Family<RequestLabels, Counter>,
    bytes: Family<SourceLabel, Counter>,
    delivered: Counter,
    first_byte: Histogram,
    running: Gauge,
    fallbacks: Family<FallbackLabel, Counter>,
    verification_failures: Counter,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            bytes: Family::default(),
            delivered: Counter::default(),
            // From a hit in the page cache to the longest wait that a runtime tolerates.
            first_byte: Histogram::new([0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]),
            running: Gauge::default(),
            fallbacks: Family::default(),
            verification_failures: Counter::default(),
        }
    }
}

impl Metrics {
    /// Makes the metrics, and those of the cache and the node, visible in `registry`.
    pub(crate) fn register(&self, registry: &mut Registry, cache: &Arc<Cache>, node: &Node) {
        let registry = registry.sub_registry_with_prefix("eagle_proxy");
        let inner = &*self.0;
        registry.register("requests", "Requests of runtimes", inner.requests.clone());
        registry.register("bytes", "Bytes of blobs by where they came from", inner.bytes.clone());
        registry.register("delivered_bytes", "Bytes of blobs given to runtimes", inner.delivered.clone());
        registry.register(
            "first_byte_seconds",
            "Time from a request for a blob to its first byte",
            inner.first_byte.clone(),
        );
        registry.register("downloads_running", "Blobs that are being downloaded", inner.running.clone());
        registry.register("fallbacks", "Times that a slower source had to take over", inner.fallbacks.clone());
        registry.register(
            "verification_failures",
            "Blobs and pieces that did not match their digest or hash",
            inner.verification_failures.clone(),
        );
        let collector = StateCollector { cache: Arc::clone(cache), node: node.clone() };
        registry.register_collector(Box::new(collector));
    }

    /// Counts an answered request; `kind` is what was asked for.
    pub(crate) fn request(&self, kind: &'static str, status: http::StatusCode) {
        let status = match status.as_u16() / 100 {
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        };
        self.0.requests.get_or_create(&RequestLabels { kind, status }).inc();
    }

    /// Counts bytes received (or, from the cache, served).
    pub(crate) fn bytes(&self, source: Source, bytes: u64) {
        if bytes > 0 {
            self.0.bytes.get_or_create(&SourceLabel { source: source.name() }).inc_by(bytes);
        }
    }

    /// Counts bytes given to a runtime.
    pub(crate) fn delivered(&self, bytes: u64) {
        self.0.delivered.inc_by(bytes);
    }

    /// Records the time to the first byte.
    pub(crate) fn first_byte(&self, elapsed: std::time::Duration) {
        self.0.first_byte.observe(elapsed.as_secs_f64());
    }

    /// Counts one more download under way until the guard is dropped.
    pub(crate) fn running(&self) -> Running {
        self.0.running.inc();
        Running(self.0.running.clone())
    }

    /// Counts a change to a slower source.
    pub(crate) fn fallback(&self, to: Source) {
        self.0.fallbacks.get_or_create(&FallbackLabel { to: to.name() }).inc();
    }

    /// Counts bytes that were not what they should be.
    pub(crate) fn verification_failure(&self) {
        self.0.verification_failures.inc();
    }

    /// The bytes moved so far.
    pub fn traffic(&self) -> Traffic {
        let of = |source: Source| self.0.bytes.get_or_create(&SourceLabel { source: source.name() }).get();
        Traffic {
            cache: of(Source::Cache),
            peer: of(Source::Peer),
            seeder: of(Source::Seeder),
            origin: of(Source::Origin),
            delivered: self.0.delivered.get(),
        }
    }
}

/// One download under way.
#[derive(Debug)]
pub(crate) struct Running(Gauge);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Reads cache and node when it is asked, so that its numbers are never late.
#[derive(Debug)]
struct StateCollector {
    cache: Arc<Cache>,
    node: Node,
}

impl Collector for StateCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let stats = self.cache.stats();
        let node = self.node.counters();
        let gauge = |value: u64| ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        for (name, help, value) in [
            ("cache_bytes", "Bytes of blobs on disk, reserved ones included", stats.bytes),
            ("cache_limit_bytes", "Bytes that the cache may use", stats.limit),
            ("cache_blobs", "Complete blobs in the cache", stats.blobs),
            ("peers_connected", "Peers connected now", node.connected_peers as u64),
        ] {
            let metric = gauge(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        }
        for (name, help, value) in [
            ("cache_evictions", "Blobs removed to make room", stats.evictions),
            ("cache_evicted_bytes", "Bytes removed to make room", stats.evicted_bytes),
            ("cache_damaged", "Blobs dropped because their content was gone, unreadable or wrong", stats.damaged),
            ("cache_scrubbed_bytes", "Bytes read again to find damage", stats.scrubbed_bytes),
            ("upload_bytes", "Bytes of pieces given to peers", node.uploaded),
            ("peer_strangers", "Connections to peer ports that did not begin as a member's", node.strangers),
        ] {
            let metric = ConstCounter::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        }
        Ok(())
    }
}
