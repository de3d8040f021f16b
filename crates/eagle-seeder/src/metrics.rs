//! Metrics of the seeder, in the forms of Prometheus.

use std::sync::Arc;

use eagle_registry::OriginError;
use http::StatusCode;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use serde::Serialize;

/// What origins are asked.
const ORIGIN_KINDS: [&str; 4] = ["blob", "blob_head", "forward", "relay"];
/// How origins answer.
const ORIGIN_OUTCOMES: [&str; 10] = [
    "ok",
    "denied",
    "not_found",
    "throttled",
    "server_error",
    "refused",
    "unreachable",
    "timeout",
    "truncated",
    "protocol",
];
/// What origins are not asked.
const SPARED_KINDS: [&str; 4] = ["blob", "blob_head", "list", "manifest"];
/// What becomes of a blob in the storage that seeders share.
const SHARED_OUTCOMES: [&str; 6] = ["found", "absent", "stored", "not_stored", "damaged", "failed"];
/// How it came to be a seeder's turn to fetch.
const LEASE_OUTCOMES: [&str; 4] = ["granted", "alone", "followed", "lost"];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OriginLabels {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabel {
    source: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// Counters of a seeder since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counters {
    /// Bytes of blobs received from origins.
    pub origin_bytes: u64,
    /// Blobs fetched, checked and stored.
    pub blobs_completed: u64,
    /// Blobs that the origin sent with other content than their digest says.
    pub verification_failures: u64,
    /// Fetches that run now.
    pub fetches_running: u64,
    /// Bytes of blobs given out over HTTP.
    pub http_bytes: u64,
}

/// The metrics of one seeder; clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    origin_bytes: Counter,
    origin_requests: Family<OriginLabels, Counter>,
    origin_requests_spared: Family<KindLabel, Counter>,
    fetches_running: Gauge,
    blobs_complete: Counter,
    verification_failures: Counter,
    manifest_requests: Family<SourceLabel, Counter>,
    http_bytes: Counter,
    shared_blobs: Family<OutcomeLabel, Counter>,
    shared_read: Counter,
    shared_written: Counter,
    leases: Family<OutcomeLabel, Counter>,
    followed: Counter,
}

impl Default for Inner {
    /// Every series is there from the start: an increase from nothing is no increase to who looks at rates.
    fn default() -> Self {
        let origin_requests = Family::default();
        for kind in ORIGIN_KINDS {
            for outcome in ORIGIN_OUTCOMES {
                drop(origin_requests.get_or_create(&OriginLabels { kind, outcome }));
            }
        }
        let origin_requests_spared = Family::default();
        for kind in SPARED_KINDS {
            drop(origin_requests_spared.get_or_create(&KindLabel { kind }));
        }
        let manifest_requests = Family::default();
        for source in [ManifestSource::Cache, ManifestSource::Origin, ManifestSource::Stale] {
            drop(manifest_requests.get_or_create(&SourceLabel { source: source.name() }));
        }
        let (shared_blobs, leases) = (Family::default(), Family::default());
        for outcome in SHARED_OUTCOMES {
            drop(shared_blobs.get_or_create(&OutcomeLabel { outcome }));
        }
        for outcome in LEASE_OUTCOMES {
            drop(leases.get_or_create(&OutcomeLabel { outcome }));
        }
        Self {
            origin_bytes: Counter::default(),
            origin_requests,
            origin_requests_spared,
            fetches_running: Gauge::default(),
            blobs_complete: Counter::default(),
            verification_failures: Counter::default(),
            manifest_requests,
            http_bytes: Counter::default(),
            shared_blobs,
            shared_read: Counter::default(),
            shared_written: Counter::default(),
            leases,
            followed: Counter::default(),
        }
    }
}

/// Where the answer to a request for a manifest came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ManifestSource {
    Cache,
    Origin,
    Stale,
}

impl ManifestSource {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Origin => "origin",
            Self::Stale => "stale",
        }
    }
}

/// Counts a running fetch for as long as it lives.
#[derive(Debug)]
pub(crate) struct RunningFetch(Metrics);

impl Drop for RunningFetch {
    fn drop(&mut self) {
        self.0.0.fetches_running.dec();
    }
}

impl Metrics {
    /// Puts the metrics under their names into `registry`, which has the prefix of the role.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let inner = &*self.0;
        registry.register("origin_bytes", "Bytes of blobs received from origins", inner.origin_bytes.clone());
        registry.register("origin_requests", "Requests to origins", inner.origin_requests.clone());
        registry.register(
            "origin_requests_spared",
            "Requests of proxies that were answered without a request to an origin of their own",
            inner.origin_requests_spared.clone(),
        );
        registry.register("fetches_running", "Blobs that are being fetched", inner.fetches_running.clone());
        registry.register("blobs_complete", "Blobs fetched, checked and stored", inner.blobs_complete.clone());
        registry.register(
            "verification_failures",
            "Blobs that the origin sent with other content than their digest says",
            inner.verification_failures.clone(),
        );
        registry.register(
            "manifest_requests",
            "Requests for manifests by where the answer came from",
            inner.manifest_requests.clone(),
        );
        registry.register("http_bytes", "Bytes of blobs given out over HTTP", inner.http_bytes.clone());
        registry.register(
            "shared_blobs",
            "Blobs looked for in, or stored in, the object store that seeders share",
            inner.shared_blobs.clone(),
        );
        registry.register("shared_read_bytes", "Bytes read from that object store", inner.shared_read.clone());
        registry.register("shared_written_bytes", "Bytes given to that object store", inner.shared_written.clone());
        registry.register(
            "leases",
            "Fetches by how it came to be this seeder's turn: granted, alone (nobody could be asked, or the holder gave nothing), followed; lost is one that another seeder took over meanwhile",
            inner.leases.clone(),
        );
        registry.register(
            "followed_bytes",
            "Bytes of blobs received from the seeder that fetched them",
            inner.followed.clone(),
        );
    }

    pub(crate) fn origin_bytes(&self, bytes: u64) {
        self.0.origin_bytes.inc_by(bytes);
    }

    /// Counts a request that ended well or with this error.
    pub(crate) fn origin_request(&self, kind: &'static str, error: Option<&OriginError>) {
        let outcome = match error {
            None => "ok",
            Some(OriginError::Status { status, .. }) => return self.origin_answer(kind, *status),
            Some(OriginError::Unreachable { .. }) => "unreachable",
            Some(OriginError::Timeout { .. }) => "timeout",
            Some(OriginError::Truncated { .. }) => "truncated",
            Some(OriginError::Protocol { .. }) => "protocol",
        };
        self.count_origin(kind, outcome);
    }

    fn count_origin(&self, kind: &'static str, outcome: &'static str) {
        debug_assert!(ORIGIN_KINDS.contains(&kind) && ORIGIN_OUTCOMES.contains(&outcome), "{kind} {outcome}");
        self.0.origin_requests.get_or_create(&OriginLabels { kind, outcome }).inc();
    }

    /// Counts a request that was answered with this status.
    pub(crate) fn origin_answer(&self, kind: &'static str, status: StatusCode) {
        let outcome = match status.as_u16() {
            200..=399 => "ok",
            401 | 403 => "denied",
            404 => "not_found",
            429 => "throttled",
            500.. => "server_error",
            _ => "refused",
        };
        self.count_origin(kind, outcome);
    }

    /// Counts a request of this kind that the origin was not asked for: what it would be told was known,
    /// or another request was on its way.
    pub(crate) fn spared(&self, kind: &'static str) {
        debug_assert!(SPARED_KINDS.contains(&kind), "{kind}");
        self.0.origin_requests_spared.get_or_create(&KindLabel { kind }).inc();
    }

    pub(crate) fn fetch_started(&self) -> RunningFetch {
        self.0.fetches_running.inc();
        RunningFetch(self.clone())
    }

    pub(crate) fn blob_complete(&self) {
        self.0.blobs_complete.inc();
    }

    pub(crate) fn verification_failed(&self) {
        self.0.verification_failures.inc();
    }

    pub(crate) fn manifest_request(&self, source: ManifestSource) {
        self.0.manifest_requests.get_or_create(&SourceLabel { source: source.name() }).inc();
    }

    pub(crate) fn http_bytes(&self, bytes: u64) {
        self.0.http_bytes.inc_by(bytes);
    }

    /// Counts a blob that was looked for in the shared storage, or given to it.
    pub(crate) fn shared_blob(&self, outcome: &'static str) {
        debug_assert!(SHARED_OUTCOMES.contains(&outcome), "{outcome}");
        self.0.shared_blobs.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(crate) fn shared_read(&self, bytes: u64) {
        self.0.shared_read.inc_by(bytes);
    }

    pub(crate) fn shared_written(&self, bytes: u64) {
        self.0.shared_written.inc_by(bytes);
    }

    /// Counts a blob by how it came to be fetched here.
    pub(crate) fn lease(&self, outcome: &'static str) {
        debug_assert!(LEASE_OUTCOMES.contains(&outcome), "{outcome}");
        self.0.leases.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(crate) fn followed(&self, bytes: u64) {
        self.0.followed.inc_by(bytes);
    }

    /// The counters as numbers.
    pub(crate) fn counters(&self) -> Counters {
        Counters {
            origin_bytes: self.0.origin_bytes.get(),
            blobs_completed: self.0.blobs_complete.get(),
            verification_failures: self.0.verification_failures.get(),
            fetches_running: u64::try_from(self.0.fetches_running.get()).unwrap_or(0),
            http_bytes: self.0.http_bytes.get(),
        }
    }
}
