//! What nodes report of themselves and of the links between zones, for choosing peers.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock, RwLockReadGuard},
    time::Duration,
};

use eagle_core::{
    NodeId, Timestamp,
    tracker::{Candidate, Flows, NodeLoad},
};

use crate::{api::AnnounceRequest, config::TrackerConfig};

/// Reports of the nodes that announce to this tracker. They are not shared with other trackers: what is missing only
/// makes the order of peers a little worse.
#[derive(Debug)]
pub(super) struct Reports {
    flows: RwLock<Flows>,
    /// How busy each node said it is, and when; as many as nodes may be known.
    loads: RwLock<HashMap<NodeId, (Timestamp, NodeLoad)>>,
    most: usize,
    /// How long a report counts: as long as the node itself.
    ttl: Duration,
}

impl Reports {
    pub(super) fn new(config: &TrackerConfig) -> Self {
        Self { flows: RwLock::default(), loads: RwLock::default(), most: config.max_peers, ttl: config.peer_ttl }
    }

    /// Takes the reports of an announce; of a node that stops, what it reported is forgotten.
    pub(super) fn take(&self, now: Timestamp, request: &AnnounceRequest) {
        if !request.flows.is_empty() {
            let mut flows = self.flows.write().unwrap_or_else(PoisonError::into_inner);
            flows.report(now, &request.node.topology, &request.flows);
        }
        if request.stopped {
            self.loads.write().unwrap_or_else(PoisonError::into_inner).remove(&request.node.id);
        } else if let Some(load) = request.load {
            let mut loads = self.loads.write().unwrap_or_else(PoisonError::into_inner);
            if loads.len() >= self.most && !loads.contains_key(&request.node.id) {
                loads.retain(|_, (at, _)| now - *at < self.ttl);
            }
            if loads.len() < self.most {
                loads.insert(request.node.id.clone(), (now, load));
            }
        }
    }

    /// Says of each candidate how busy it is, as far as that is known.
    pub(super) fn add_loads(&self, now: Timestamp, candidates: &mut [Candidate]) {
        let loads = self.loads.read().unwrap_or_else(PoisonError::into_inner);
        if loads.is_empty() {
            return;
        }
        for candidate in candidates {
            let known = loads.get(&candidate.info.id).filter(|(at, _)| now - *at < self.ttl);
            candidate.load = known.map(|(_, load)| *load);
        }
    }

    /// The rates between zones.
    pub(super) fn flows(&self) -> RwLockReadGuard<'_, Flows> {
        self.flows.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use eagle_core::{PeerInfo, tracker::Ownership};

    use super::*;

    fn node(number: usize) -> PeerInfo {
        PeerInfo { id: format!("node{number}").parse().unwrap(), ..PeerInfo::example() }
    }

    fn load_of(reports: &Reports, now: Timestamp, number: usize) -> Option<NodeLoad> {
        let info = Arc::new(node(number));
        let mut candidates = [Candidate { info, pieces: Ownership::Empty, load: None, age: Duration::ZERO }];
        reports.add_loads(now, &mut candidates);
        candidates[0].load
    }

    #[test]
    fn loads_are_bounded_and_go_with_their_nodes() {
        let reports = Reports::new(&TrackerConfig { max_peers: 2, ..TrackerConfig::default() });
        let load = Some(NodeLoad { requests: 3, free_slots: 1 });
        for number in 0..3 {
            reports.take(Timestamp(0), &AnnounceRequest { load, ..AnnounceRequest::of(node(number)) });
        }
        assert_eq!((load_of(&reports, Timestamp(0), 1), load_of(&reports, Timestamp(0), 2)), (load, None));
        reports.take(Timestamp(0), &AnnounceRequest { stopped: true, ..AnnounceRequest::of(node(1)) });
        assert_eq!(load_of(&reports, Timestamp(0), 1), None);
        // What is old neither counts nor takes a place.
        let later = Timestamp(0) + Duration::from_secs(3600);
        assert_eq!(load_of(&reports, later, 0), None);
        for number in 5..7 {
            reports.take(later, &AnnounceRequest { load, ..AnnounceRequest::of(node(number)) });
        }
        assert_eq!((load_of(&reports, later, 5), load_of(&reports, later, 6)), (load, load));
    }
}
