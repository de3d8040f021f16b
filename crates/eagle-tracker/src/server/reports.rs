//! What nodes report of themselves and of the links between zones: for choosing peers, and for people to see.

use std::{
    collections::HashMap,
    hash::RandomState,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use eagle_core::{
    Digest, NodeId, Timestamp,
    tracker::{Candidate, Flows, NodeLoad},
};
use lru::LruCache;

use crate::{
    api::{AnnounceRequest, MOST_SENDERS, NodeActivity, Sender, ZoneFlow, ZoneName},
    config::TrackerConfig,
    store::{SeenPeer, SharedReports, Told},
};

/// Zones that a node receives from of which the rate is kept; a node has few neighbours in more.
const MOST_ZONES: usize = 8;
/// Bounds of the time that a report is taken to be about: nodes report twice a second at most, and whoever was silent for longer
/// has not received evenly.
const SPAN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));
/// Times the span of a report that its rates count, at least the second: then the next one is late, and they are over.
const LASTS: (u32, Duration) = (2, Duration::from_secs(3));
/// Nodes that are forgotten at a time, if their reports are too old: with each report, so that a flood of new nodes finds the places of
/// those that are gone and costs no more than others do; and with each sweep, which holds up the answers for less than a millisecond.
const FORGOTTEN: (usize, usize) = (2, 1_000);
/// Nodes whose rates are added up until other tasks have their turn: a few thousand additions.
const ADDED: usize = 500;

/// Reports of the nodes that announce to this tracker, and to those that it shares a store with.
#[derive(Debug)]
pub(super) struct Reports {
    flows: RwLock<Flows>,
    nodes: RwLock<Nodes>,
    most: usize,
    /// How long a load counts: as long as the node itself.
    ttl: Duration,
    /// On their way to and from other trackers.
    shared: Option<SharedReports>,
}

/// What each node last reported, in the order of when; as many as nodes may be known. Shared, so that whoever looks at all of them
/// holds up announces for as long as it takes to count references, and no longer.
type Nodes = LruCache<NodeId, Arc<Reported>, RandomState>;

/// What one node last reported.
#[derive(Debug)]
struct Reported {
    at: Timestamp,
    load: Option<NodeLoad>,
    zone: ZoneName,
    /// When its rates are over.
    until: Timestamp,
    /// What it receives from each zone, bytes per second.
    zones: Vec<(ZoneName, u64)>,
    /// What it receives of each blob from whom, bytes per second.
    senders: Vec<(Digest, NodeId, u64)>,
}

/// How fast bytes move at present.
#[derive(Debug, Default)]
pub(super) struct Rates {
    blobs: HashMap<Digest, u64>,
    sent: HashMap<NodeId, u64>,
    /// What goes from zone to zone, the fastest first.
    pub(super) flows: Vec<ZoneFlow>,
    /// Of all nodes together.
    pub(super) bytes_per_second: u64,
}

impl Rates {
    /// Bytes per second of a blob.
    pub(super) fn of_blob(&self, digest: &Digest) -> u64 {
        self.blobs.get(digest).copied().unwrap_or_default()
    }

    /// Adds what a node reported, and what goes between zones by it.
    fn add(&mut self, reported: &Reported, between: &mut HashMap<(ZoneName, ZoneName), u64>) {
        add(&mut self.bytes_per_second, reported.received());
        for (digest, id, rate) in &reported.senders {
            add(self.blobs.entry(*digest).or_default(), *rate);
            add(self.sent.entry(id.clone()).or_default(), *rate);
        }
        for (from, rate) in &reported.zones {
            add(between.entry((from.clone(), reported.zone.clone())).or_default(), *rate);
        }
    }

    /// Bytes per second that others get from a node.
    pub(super) fn sent_by(&self, node: &str) -> u64 {
        // What is no identity sends nothing.
        node.parse().ok().and_then(|node: NodeId| self.sent.get(&node).copied()).unwrap_or_default()
    }
}

impl Reports {
    pub(super) fn new(config: &TrackerConfig, shared: Option<SharedReports>) -> Self {
        let nodes = RwLock::new(LruCache::unbounded_with_hasher(RandomState::new()));
        Self { flows: RwLock::default(), nodes, most: config.max_peers, ttl: config.peer_ttl, shared }
    }

    /// Takes the reports of an announce; of a node that stops, what it reported is forgotten.
    pub(super) fn take(&self, now: Timestamp, request: &AnnounceRequest) {
        let reports = request.load.is_some() || !request.flows.is_empty() || !request.senders.is_empty();
        if !reports && !request.stopped {
            return;
        }
        if let Some(shared) = &self.shared {
            shared.add(now, request);
        }
        self.apply(now, request);
    }

    /// Whether there are other trackers that reports are shared with.
    pub(super) const fn are_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// Tells the other trackers what was reported here, and gives what was reported to them.
    pub(super) async fn exchange(&self, now: Timestamp) -> Vec<Told> {
        match &self.shared {
            Some(shared) => shared.exchange(now).await,
            None => Vec::new(),
        }
    }

    /// Takes what was reported to other trackers.
    pub(super) fn take_from_others(&self, told: &[Told]) {
        for told in told {
            if let Some(report) = told.read() {
                self.apply(told.at, &report);
            }
        }
    }

    fn apply(&self, now: Timestamp, request: &AnnounceRequest) {
        if !request.flows.is_empty() {
            let mut flows = self.flows.write().unwrap_or_else(PoisonError::into_inner);
            flows.report(now, &request.node.topology, &request.flows);
        }
        let mut nodes = self.nodes_mut();
        let before = nodes.peek(&request.node.id).map(|reported| reported.at);
        if before.is_some_and(|before| now < before) {
            // It came by another tracker, behind a later one.
            return;
        }
        if request.stopped {
            nodes.pop(&request.node.id);
            return;
        }
        self.forget(&mut nodes, now, FORGOTTEN.0);
        if before.is_none() && nodes.len() >= self.most {
            return;
        }
        nodes.put(request.node.id.clone(), Arc::new(Reported::new(now, before, request)));
    }

    /// Forgets what some of the nodes reported that are gone.
    pub(super) fn sweep(&self, now: Timestamp) {
        self.forget(&mut self.nodes_mut(), now, FORGOTTEN.1);
    }

    /// Forgets at most so many of those that have been silent for too long.
    fn forget(&self, nodes: &mut Nodes, now: Timestamp, most: usize) {
        for _ in 0..most {
            if nodes.peek_lru().is_none_or(|(_, reported)| now - reported.at < self.ttl) {
                return;
            }
            nodes.pop_lru();
        }
    }

    /// Says of each candidate how busy it is, as far as that is known.
    pub(super) fn add_loads(&self, now: Timestamp, candidates: &mut [Candidate], peers: &[SeenPeer]) {
        let nodes = self.nodes();
        if nodes.is_empty() {
            return;
        }
        for (candidate, peer) in candidates.iter_mut().zip(peers) {
            let known = nodes.peek(&peer.named().info().id).filter(|reported| now - reported.at < self.ttl);
            candidate.load = known.and_then(|reported| reported.load);
        }
    }

    /// The rates between zones.
    pub(super) fn flows(&self) -> RwLockReadGuard<'_, Flows> {
        self.flows.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a node does now.
    pub(super) fn activity(&self, now: Timestamp, node: &str, rates: &Rates) -> NodeActivity {
        let sent_bytes_per_second = rates.sent_by(node);
        let nodes = self.nodes();
        let known = node.parse().ok().and_then(|node: NodeId| nodes.peek(&node));
        let Some(reported) = known.filter(|reported| now - reported.at < self.ttl) else {
            return NodeActivity { sent_bytes_per_second, ..NodeActivity::default() };
        };
        let received_bytes_per_second = if now < reported.until { reported.received() } else { 0 };
        NodeActivity { load: reported.load, received_bytes_per_second, sent_bytes_per_second }
    }

    /// From whom a node gets most of a blob, the fastest first.
    pub(super) fn senders(&self, now: Timestamp, node: &str, digest: &Digest) -> Vec<Sender> {
        let nodes = self.nodes();
        let known = node.parse().ok().and_then(|node: NodeId| nodes.peek(&node));
        let Some(reported) = known.filter(|reported| now < reported.until) else { return Vec::new() };
        let of_blob = reported.senders.iter().filter(|(blob, ..)| blob == digest);
        of_blob.map(|(_, id, rate)| Sender { id: id.to_string(), bytes_per_second: *rate }).collect()
    }

    /// How fast bytes move now. Looks at what every node reported, a few at a time, so that announces are answered meanwhile.
    pub(super) async fn rates(&self, now: Timestamp) -> Rates {
        let mut rates = Rates::default();
        let mut between: HashMap<(ZoneName, ZoneName), u64> = HashMap::new();
        let moving: Vec<Arc<Reported>> = {
            let nodes = self.nodes();
            let reported = nodes.iter().map(|(_, reported)| reported);
            reported.filter(|reported| now < reported.until && reported.moves()).map(Arc::clone).collect()
        };
        for part in moving.chunks(ADDED) {
            part.iter().for_each(|reported| rates.add(reported, &mut between));
            tokio::task::yield_now().await;
        }
        let known = self.flows().list(now);
        rates.flows = known
            .into_iter()
            .map(|flow| {
                let (from, to) = (ZoneName::from(&flow.from), ZoneName::from(&flow.to));
                let pair = (from, to);
                let bytes_per_second = between.get(&pair).copied().unwrap_or_default();
                let (from, to) = pair;
                let transfer_bytes_per_second = flow.bytes_per_second;
                ZoneFlow { from, to, bytes_per_second, transfer_bytes_per_second, bytes: flow.bytes }
            })
            .collect();
        // They are in the order of their places, which is kept among equals.
        rates.flows.sort_by_key(|flow| std::cmp::Reverse((flow.bytes_per_second, flow.bytes)));
        rates
    }

    fn nodes(&self) -> RwLockReadGuard<'_, Nodes> {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn nodes_mut(&self) -> RwLockWriteGuard<'_, Nodes> {
        self.nodes.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reported {
    /// What an announce reports, since the one `before`. The first report of a node is about no time that is known.
    fn new(now: Timestamp, before: Option<Timestamp>, request: &AnnounceRequest) -> Self {
        let zone = ZoneName::from(&request.node.topology);
        let mut new = Self { at: now, load: request.load, zone, until: now, zones: Vec::new(), senders: Vec::new() };
        let Some(before) = before else { return new };
        let span = (now - before).clamp(SPAN.0, SPAN.1);
        new.until = now + (span * LASTS.0).max(LASTS.1);
        new.zones = request.flows.iter().map(|flow| (ZoneName::from(&flow.from), rate(flow.bytes, span))).collect();
        new.zones.sort_by_key(|(_, rate)| std::cmp::Reverse(*rate));
        new.zones.truncate(MOST_ZONES);
        let senders = request.senders.iter().take(MOST_SENDERS);
        new.senders = senders.map(|sender| (sender.digest, sender.id.clone(), rate(sender.bytes, span))).collect();
        new.senders.sort_by_key(|(.., rate)| std::cmp::Reverse(*rate));
        new
    }

    /// Whether it received anything.
    const fn moves(&self) -> bool {
        !self.zones.is_empty() || !self.senders.is_empty()
    }

    fn received(&self) -> u64 {
        self.zones.iter().fold(0, |sum, (_, rate)| sum.saturating_add(*rate))
    }
}

fn rate(bytes: u64, span: Duration) -> u64 {
    let micros = span.as_micros().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000 / micros).unwrap_or(u64::MAX)
}

fn add(sum: &mut u64, more: u64) {
    *sum = sum.saturating_add(more);
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Waker},
    };

    use eagle_core::{
        PeerInfo, Place, Topology,
        tracker::{FlowReport, Ownership, SenderReport},
    };

    use super::*;
    use crate::encoding::NodeRecord;

    fn node(number: usize) -> PeerInfo {
        PeerInfo { id: format!("node{number}").parse().unwrap(), ..PeerInfo::example() }
    }

    fn load_of(reports: &Reports, now: Timestamp, number: usize) -> Option<NodeLoad> {
        let info = node(number);
        let (role, place, pieces) = (info.role, Place::from(&info.topology), Ownership::Empty);
        let mut candidates = [Candidate { role, place, pieces, load: None, age: Duration::ZERO }];
        reports.add_loads(now, &mut candidates, &[SeenPeer::record(Arc::new(NodeRecord::new(info)))]);
        candidates[0].load
    }

    #[test]
    fn loads_are_bounded_and_go_with_their_nodes() {
        let reports = Reports::new(&TrackerConfig { max_peers: 2, ..TrackerConfig::default() }, None);
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
        reports.sweep(later + Duration::from_secs(3600));
        assert!(reports.nodes().is_empty());
    }

    #[test]
    fn a_flood_of_new_nodes_costs_no_walk_and_takes_no_place_of_others() {
        const MOST: usize = 100;
        let reports = Reports::new(&TrackerConfig { max_peers: MOST, ..TrackerConfig::default() }, None);
        let ttl = TrackerConfig::default().peer_ttl;
        let take = |now: Timestamp, number: usize| {
            let load = Some(NodeLoad { requests: 3, free_slots: 1 });
            reports.take(now, &AnnounceRequest { load, ..AnnounceRequest::of(node(number)) });
        };
        let known = || reports.nodes().len();
        (0..10 * MOST).for_each(|number| take(Timestamp(0), number));
        assert!(known() == MOST && load_of(&reports, Timestamp(0), MOST - 1).is_some());
        // One of them goes on: it is the last that may be forgotten.
        take(Timestamp(0) + ttl / 2, 0);
        // Each report forgets a few of the others, so that the flood is taken, and never more than that.
        for number in 0..MOST {
            let before = known();
            take(Timestamp(0) + ttl, 1_000 + number);
            assert!(before < known() + FORGOTTEN.0 && known() <= MOST, "{before}, then {}", known());
        }
        assert!(load_of(&reports, Timestamp(0) + ttl, 0).is_some(), "who reports is kept");
        assert_eq!(known(), MOST);
    }

    fn zone(name: &str) -> Topology {
        Topology { zone: Some(name.to_owned()), ..Topology::default() }
    }

    /// An announce of a node in the zone `to` that received this much from the node `from` in the zone `a`.
    fn received(number: usize, to: &str, from: usize, bytes: u64) -> AnnounceRequest {
        let flow = FlowReport { from: zone("a"), bytes_per_second: 9, bytes };
        let sender = SenderReport { digest: Digest::of(b"blob"), id: node(from).id, bytes };
        let (flows, senders) = if bytes > 0 { (vec![flow], vec![sender]) } else { (Vec::new(), Vec::new()) };
        let info = PeerInfo { topology: zone(to), ..node(number) };
        AnnounceRequest { load: Some(NodeLoad::default()), flows, senders, ..AnnounceRequest::of(info) }
    }

    #[tokio::test]
    async fn rates_are_those_of_the_last_reports_and_end_with_them() {
        let reports = Reports::new(&TrackerConfig::default(), None);
        let at = |millis| Timestamp(0) + Duration::from_millis(millis);
        for number in 0..2 {
            reports.take(at(0), &received(number, "b", 7, 1_000));
        }
        assert_eq!(reports.rates(at(0)).await.bytes_per_second, 0, "of a first report nobody knows the time");
        for number in 0..2 {
            reports.take(at(2_000), &received(number, "b", 7, 1_000));
        }
        let (rates, blob) = (reports.rates(at(2_100)).await, Digest::of(b"blob"));
        assert_eq!((rates.bytes_per_second, rates.of_blob(&blob), rates.sent_by("node7")), (1_000, 1_000, 1_000));
        let flow = &rates.flows[0];
        assert_eq!((flow.from.zone.as_deref(), flow.to.zone.as_deref()), (Some("a"), Some("b")));
        assert_eq!((flow.bytes_per_second, flow.transfer_bytes_per_second, flow.bytes), (1_000, 9, 4_000));
        let senders = reports.senders(at(2_100), "node1", &blob);
        assert_eq!(senders, [Sender { id: "node7".to_owned(), bytes_per_second: 500 }]);
        let activity = reports.activity(at(2_100), "node0", &rates);
        assert_eq!((activity.received_bytes_per_second, activity.sent_bytes_per_second), (500, 0));
        assert_eq!(reports.activity(at(2_100), "node7", &rates).sent_bytes_per_second, 1_000);
        // One has ended, the other one is silent.
        reports.take(at(3_000), &received(0, "b", 7, 0));
        assert_eq!(reports.rates(at(3_000)).await.bytes_per_second, 500);
        let rates = reports.rates(at(6_100)).await;
        assert_eq!((rates.bytes_per_second, rates.flows[0].bytes), (0, 4_000));
        assert!(reports.senders(at(6_100), "node1", &blob).is_empty());
    }

    #[tokio::test]
    async fn what_a_node_may_report_is_bounded() {
        let reports = Reports::new(&TrackerConfig::default(), None);
        let flow = |number: u64| FlowReport { from: zone(&number.to_string()), bytes_per_second: 1, bytes: u64::MAX };
        let sender = |number| SenderReport { digest: Digest::of(b"a"), id: node(number).id, bytes: u64::MAX };
        let request = AnnounceRequest {
            flows: (0..100).map(flow).collect(),
            senders: (0..100).map(sender).collect(),
            ..AnnounceRequest::of(node(1))
        };
        reports.take(Timestamp(0), &request);
        reports.take(Timestamp(1), &request);
        let reported = reports.nodes().peek(&node(1).id).map(Arc::clone).unwrap();
        assert_eq!((reported.zones.len(), reported.senders.len()), (MOST_ZONES, MOST_SENDERS));
        assert_eq!(reports.rates(Timestamp(1)).await.bytes_per_second, u64::MAX);
    }

    #[tokio::test]
    async fn announces_are_taken_while_rates_are_added_up() {
        const NODES: usize = 3 * ADDED;
        let reports = Reports::new(&TrackerConfig::default(), None);
        for number in 0..NODES {
            reports.take(Timestamp(0), &received(number, "b", 7, 1_000));
            reports.take(Timestamp(0) + Duration::from_secs(1), &received(number, "b", 7, 1_000));
        }
        let now = Timestamp(0) + Duration::from_secs(2);
        let mut rates = pin!(reports.rates(now));
        assert!(rates.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert!(reports.nodes.try_write().is_ok() && reports.flows.try_write().is_ok());
        // They end here, and in what is being added up they do not.
        for number in 0..NODES {
            reports.take(now, &AnnounceRequest { stopped: true, ..received(number, "b", 7, 0) });
        }
        assert_eq!(rates.await.bytes_per_second, 1_000 * NODES as u64);
        assert_eq!(reports.rates(now).await.bytes_per_second, 0);
    }
}
