//! What a node counts of its announces.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// Counters of one announcer; clones share them.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    announces: Family<Outcome, Counter>,
}

impl Metrics {
    /// Both series are there from the start, so that the first failure is seen as an increase.
    pub(super) fn new() -> Self {
        let announces = Family::default();
        for outcome in ["answered", "failed"] {
            drop(announces.get_or_create(&Outcome { outcome }));
        }
        Self { announces }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("announces", "Announces to trackers by how they ended", self.announces.clone());
    }

    /// Counts an announce that a tracker answered, or did not.
    pub(super) fn announced(&self, answered: bool) {
        let outcome = if answered { "answered" } else { "failed" };
        self.announces.get_or_create(&Outcome { outcome }).inc();
    }
}
