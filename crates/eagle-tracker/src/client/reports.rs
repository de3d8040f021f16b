//! Adds to announces what a node reports of itself.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use eagle_core::tracker::{NodeReports, Received};
use tokio::time::Instant;

use crate::api::AnnounceRequest;

/// Least time between two reports to a tracker. Announces that follow each other faster are of one burst, and what is measured over
/// less is no rate.
const AT_MOST_EVERY: Duration = Duration::from_millis(500);

/// Who knows what there is to report, once somebody does.
pub(super) type Source = OnceLock<Arc<dyn NodeReports>>;

/// Which tracker was told what, by the names of the trackers.
#[derive(Debug, Default)]
pub(super) struct Told(HashMap<String, (Instant, Received)>);

impl Told {
    /// Adds what is new since the last report to this tracker. The first one says nothing of what came before, for which there is no
    /// time that it took.
    pub(super) fn add(&mut self, now: Instant, source: &Source, tracker: &str, request: &mut AnnounceRequest) {
        let Some(source) = source.get() else { return };
        let before = self.0.get(tracker);
        if request.stopped || before.is_some_and(|(at, _)| now - *at < AT_MOST_EVERY) {
            return;
        }
        let received = source.received();
        request.load = Some(source.load());
        if let Some((_, before)) = before {
            (request.flows, request.senders) = received.since(before);
        }
        self.0.insert(tracker.to_owned(), (now, received));
    }

    /// Forgets trackers that there are no more.
    pub(super) fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.0.retain(|tracker, _| is_there(tracker));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use eagle_core::{Digest, PeerInfo, Topology, tracker::NodeLoad};

    use super::*;

    #[derive(Debug, Default)]
    struct Node(Mutex<Received>);

    impl NodeReports for Node {
        fn load(&self) -> NodeLoad {
            NodeLoad { requests: 3, free_slots: 1 }
        }

        fn received(&self) -> Received {
            self.0.lock().unwrap().clone()
        }
    }

    #[test]
    fn each_tracker_is_told_what_is_new_and_not_too_often() {
        let (source, mut told, start) = (Source::new(), Told::default(), Instant::now());
        let mut announce = |intervals: u32, source: &Source, tracker: &str| {
            let mut request = AnnounceRequest::of(PeerInfo::example());
            told.add(start + AT_MOST_EVERY * intervals, source, tracker, &mut request);
            (request.load.is_some(), request.flows.iter().map(|flow| flow.bytes).sum::<u64>(), request.senders.len())
        };
        assert_eq!(announce(0, &source, "a"), (false, 0, 0), "nobody knows anything");
        let node = Arc::new(Node::default());
        assert!(source.set(Arc::clone(&node) as _).is_ok());
        let receive = |bytes| {
            let (sender, second) = (PeerInfo::example().id, Duration::from_secs(1));
            node.0.lock().unwrap().add(Digest::of(b"a"), &sender, &Topology::default(), bytes, second);
        };
        receive(10);
        assert_eq!(announce(0, &source, "a"), (true, 0, 0), "the first report");
        receive(20);
        assert_eq!(announce(0, &source, "a"), (false, 0, 0), "of the same burst");
        assert_eq!(announce(0, &source, "b"), (true, 0, 0));
        assert_eq!((announce(1, &source, "a"), announce(1, &source, "b")), ((true, 20, 1), (true, 0, 0)));
        assert_eq!(announce(2, &source, "a"), (true, 0, 0));
    }
}
