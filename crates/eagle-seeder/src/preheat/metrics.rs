//! Metrics of preheating.

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
#[derive(Debug, Clone, Default)]
pub(crate) struct PreheatMetrics {
    jobs: Family<Outcome, Counter>,
    blobs: Family<Outcome, Counter>,
}

impl PreheatMetrics {
    /// Puts them under their names into `registry`.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("eagle_seeder_preheat");
        registry.register("jobs", "Jobs of preheating that are over", self.jobs.clone());
        registry.register("blobs", "Blobs and manifests that jobs of preheating asked for", self.blobs.clone());
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
