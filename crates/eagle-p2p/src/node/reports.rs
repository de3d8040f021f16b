//! What a node tells trackers of itself: how busy it is, and what it received from where.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use eagle_core::{
    Digest, NodeId, Topology,
    tracker::{NodeLoad, NodeReports, Received},
};

use super::uploads::Uploads;

/// What the engine has counted, for whoever reports it.
#[derive(Debug, Default)]
pub(super) struct Counted(Mutex<Received>);

impl Counted {
    /// A piece came.
    pub(super) fn add(&self, digest: Digest, sender: &NodeId, from: &Topology, bytes: u64, elapsed: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).add(digest, sender, from, bytes, elapsed);
    }
}

impl Counted {
    /// Bytes of a blob by sender.
    pub(super) fn of(&self, digest: &Digest) -> Vec<(NodeId, u64)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).of(digest)
    }
}

/// Reports of one node.
#[derive(Debug)]
pub(super) struct Reports {
    pub(super) counted: Arc<Counted>,
    pub(super) uploads: Arc<Uploads>,
}

impl NodeReports for Reports {
    fn load(&self) -> NodeLoad {
        NodeLoad { requests: self.uploads.requests(), free_slots: self.uploads.free_slots() }
    }

    fn received(&self) -> Received {
        self.counted.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
