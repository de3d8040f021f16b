//! Metrics of the proxy, in the forms of Prometheus.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use serde::Serialize;

/// What is asked of a proxy.
const REQUEST_KINDS: [&str; 11] =
    ["base", "blob", "connect", "forward", "login", "manifest", "other", "push", "referrers", "tags", "token"];
const STATUSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];
/// Why a blob is not given, or not to its end.
const ERROR_KINDS: [&str; 5] = ["refused", "unavailable", "wrong_content", "storage", "stopping"];
/// Upper bounds of the buckets of a pull's throughput, bytes per second: from a slow uplink to more than a disk gives.
const THROUGHPUTS: [f64; 11] = [1e5, 1e6, 5e6, 1e7, 2.5e7, 5e7, 1e8, 2.5e8, 5e8, 1e9, 2.5e9];
/// Classes of sizes, with the smallest size that is above each, bytes: throughput of a small blob is mostly waiting.
const SIZES: [(&str, u64); 4] =
    [("under_1MiB", 1 << 20), ("under_16MiB", 16 << 20), ("under_128MiB", 128 << 20), ("larger", u64::MAX)];

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

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SizeLabel {
    size: &'static str,
}

/// How an answer with a blob, or with a range of one, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PullOutcome {
    /// The runtime was given all that it asked for.
    Complete,
    /// The connection had to be cut.
    Failed,
    /// The runtime went away.
    Abandoned,
}

impl PullOutcome {
    /// Value of the label `outcome`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Failed => "failed",
            Self::Abandoned => "abandoned",
        }
    }
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
    pulls: Family<OutcomeLabel, Counter>,
    throughput: Family<SizeLabel, Histogram, fn() -> Histogram>,
    errors: Family<KindLabel, Counter>,
    running: Gauge,
    fallbacks: Family<FallbackLabel, Counter>,
    verification_failures: Counter,
}

impl Default for Inner {
    /// Every series is there from the start: an increase from nothing is no increase to who looks at rates.
    fn default() -> Self {
        let requests = Family::default();
        for kind in REQUEST_KINDS {
            for status in STATUSES {
                drop(requests.get_or_create(&RequestLabels { kind, status }));
            }
        }
        let bytes = Family::default();
        for source in [Source::Cache, Source::Peer, Source::Seeder, Source::Origin] {
            drop(bytes.get_or_create(&SourceLabel { source: source.name() }));
        }
        let fallbacks = Family::default();
        for to in [Source::Seeder, Source::Origin] {
            drop(fallbacks.get_or_create(&FallbackLabel { to: to.name() }));
        }
        let pulls = Family::default();
        for outcome in [PullOutcome::Complete, PullOutcome::Failed, PullOutcome::Abandoned] {
            drop(pulls.get_or_create(&OutcomeLabel { outcome: outcome.name() }));
        }
        let errors = Family::default();
        for kind in ERROR_KINDS {
            drop(errors.get_or_create(&KindLabel { kind }));
        }
        let throughput =
            Family::<SizeLabel, Histogram, fn() -> Histogram>::new_with_constructor(|| Histogram::new(THROUGHPUTS));
        for (size, _) in SIZES {
            drop(throughput.get_or_create(&SizeLabel { size }));
        }
        Self {
            requests,
            bytes,
            pulls,
            throughput,
            errors,
            delivered: Counter::default(),
            // From a hit in the page cache to the longest wait that a runtime tolerates.
            first_byte: Histogram::new([0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]),
            running: Gauge::default(),
            fallbacks,
            verification_failures: Counter::default(),
        }
    }
}

impl Metrics {
    /// Makes the metrics visible in `registry`, which has the prefix of the role.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let inner = &*self.0;
        registry.register("requests", "Requests of runtimes", inner.requests.clone());
        registry.register("bytes", "Bytes of blobs by where they came from", inner.bytes.clone());
        registry.register("delivered_bytes", "Bytes of blobs given to runtimes", inner.delivered.clone());
        registry.register(
            "first_byte_seconds",
            "Time from a request for a blob to its first byte",
            inner.first_byte.clone(),
        );
        registry.register("pulls", "Answers with a blob, or a range of one, by how they ended", inner.pulls.clone());
        registry.register(
            "pull_bytes_per_second",
            "Throughput of complete answers with a blob, from the request to the last byte, by size of the answer",
            inner.throughput.clone(),
        );
        registry.register("errors", "Blobs that were not given, or not to their end, by reason", inner.errors.clone());
        registry.register("downloads_running", "Blobs that are being downloaded", inner.running.clone());
        registry.register("fallbacks", "Times that a slower source had to take over", inner.fallbacks.clone());
        registry.register(
            "verification_failures",
            "Blobs and pieces that did not match their digest or hash",
            inner.verification_failures.clone(),
        );
    }

    /// Counts an answered request; `kind` is what was asked for.
    pub(crate) fn request(&self, kind: &'static str, status: http::StatusCode) {
        let status = match status.as_u16() / 100 {
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        };
        debug_assert!(REQUEST_KINDS.contains(&kind), "{kind}");
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
    pub(crate) fn first_byte(&self, elapsed: Duration) {
        self.0.first_byte.observe(elapsed.as_secs_f64());
    }

    /// Counts an answer with a blob that has ended, after so many bytes.
    pub(crate) fn pulled(&self, outcome: PullOutcome, bytes: u64, elapsed: Duration) {
        self.0.pulls.get_or_create(&OutcomeLabel { outcome: outcome.name() }).inc();
        if outcome == PullOutcome::Complete && bytes > 0 {
            let size = SIZES.iter().find(|(_, above)| bytes < *above).map_or("larger", |(size, _)| size);
            // An answer that took no time at all would have no throughput.
            let seconds = elapsed.max(Duration::from_micros(1)).as_secs_f64();
            self.0.throughput.get_or_create(&SizeLabel { size }).observe(bytes as f64 / seconds);
        }
    }

    /// Counts a blob that was not given, or not to its end.
    pub(crate) fn error(&self, kind: &'static str) {
        debug_assert!(ERROR_KINDS.contains(&kind), "{kind}");
        self.0.errors.get_or_create(&KindLabel { kind }).inc();
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
