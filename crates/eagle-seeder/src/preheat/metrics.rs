//! Metrics of preheating.

use http::StatusCode;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::report::{BlobState, JobState};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// Counters of preheating; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct PreheatMetrics {
    jobs: Family<Outcome, Counter>,
    blobs: Family<Outcome, Counter>,
    notifications: Family<Outcome, Counter>,
}

impl Default for PreheatMetrics {
    /// Every series is there from the start, so that an increase from nothing is seen.
    fn default() -> Self {
        let family = |outcomes: &[&'static str]| {
            let family = Family::<Outcome, Counter>::default();
            for outcome in outcomes {
                drop(family.get_or_create(&Outcome { outcome }));
            }
            family
        };
        let over = [JobState::Succeeded, JobState::Failed, JobState::Cancelled];
        Self {
            jobs: family(&over.map(JobState::name)),
            blobs: family(&["stored", "skipped", "failed"]),
            notifications: family(&["accepted", "denied", "throttled", "malformed"]),
        }
    }
}

impl PreheatMetrics {
    /// Puts them under their names into `registry`, which has the prefix of the role.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("preheat");
        registry.register("jobs", "Jobs of preheating that are over", self.jobs.clone());
        let notifications = self.notifications.clone();
        registry.register("notifications", "Notifications of registries by how they were answered", notifications);
        registry.register("blobs", "Blobs and manifests that jobs of preheating asked for", self.blobs.clone());
    }

    /// Counts a notification that was answered with this status.
    pub(crate) fn notification(&self, status: StatusCode) {
        let outcome = match status.as_u16() {
            202 => "accepted",
            401 | 403 => "denied",
            429 => "throttled",
            _ => "malformed",
        };
        self.notifications.get_or_create(&Outcome { outcome }).inc();
    }

    pub(super) fn job(&self, state: JobState) {
        self.jobs.get_or_create(&Outcome { outcome: state.name() }).inc();
    }

    pub(super) fn blob(&self, state: BlobState) {
        let outcome = match state {
            BlobState::Stored => "stored",
            BlobState::Skipped => "skipped",
            BlobState::Failed => "failed",
            BlobState::Waiting | BlobState::Fetching => return,
        };
        self.blobs.get_or_create(&Outcome { outcome }).inc();
    }
}
