//! Nodes and trackers on virtual time, over a network that loses, repeats, reorders and delays requests and answers, with trackers
//! that go away, stand still and come back empty, until one moment; from then on all is well. In bounded time each tracker then knows of
//! every proxy the blobs for which it is the first, and of every seeder all that it has, and nothing else.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use eagle_core::{Geometry, NodeId, PieceSet};
use futures::executor::block_on;

use super::*;
use crate::{
    api::{BlobPeers, SwarmPeer},
    store::{MemoryStore, PeerStore, StoreLimits},
};

/// Blobs that there are.
const BLOBS: u32 = 8;
const NODES: usize = 2;
/// Pieces of each blob.
const PIECES: u32 = 16;
/// How long everything is bad.
const BAD: Duration = Duration::from_secs(90);
/// How long it may take from then on until all agree: every tracker has been found again, everything that was delayed has come, the
/// full state that follows is out, and trackers that stood in are told that they need not any more.
const PATIENCE: Duration = Duration::from_secs(90);
/// The same where requests that were answered come a second time. Nothing shows a node that they did, so it takes until the next full
/// state that it sends without a reason. No transport that Eagle uses does that to it.
const LONG_PATIENCE: Duration = REFRESH.saturating_add(Duration::from_secs(120));
/// How long it stays quiet after that.
const QUIET: Duration = Duration::from_secs(1800);
/// What trackers ask for, as they do for growing swarms.
const INTERVAL: Duration = Duration::from_secs(5);
/// When an exchange is given up, as in [`super::super::http`].
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest that a bad network or a tracker that stands still keeps a request.
const LONGEST_DELAY: Duration = Duration::from_secs(12);
const LIMITS: StoreLimits =
    StoreLimits { ttl: Duration::from_secs(60), peers: 100, blobs: 100, peers_per_blob: 100, blobs_per_peer: 100 };
/// Seeds of each run of the test. `EAGLE_TEST_SEEDS` takes another number, `EAGLE_TEST_SEED` another first one.
const SEEDS: u64 = 1000;

#[derive(Debug, Clone)]
enum Event {
    /// A request reaches a tracker; the answer goes to this announce of this node.
    Arrives {
        tracker: usize,
        life: u32,
        node: usize,
        ticket: Ticket,
        request: AnnounceRequest,
    },
    Answers {
        node: usize,
        ticket: Ticket,
        response: AnnounceResponse,
    },
    Fails {
        node: usize,
        ticket: Ticket,
    },
    /// Something becomes of a blob of a node.
    Changes {
        node: usize,
    },
    /// A tracker goes away, and comes back without what it knew.
    Dies {
        tracker: usize,
    },
    Returns {
        tracker: usize,
    },
    /// A tracker forgets a node, as when another process of the same identity says its last word.
    Forgets {
        tracker: usize,
        node: usize,
    },
}

struct Tracker {
    store: MemoryStore,
    up: bool,
    /// Counts its deaths: what was under way to an earlier life is lost.
    life: u32,
}

struct Node {
    info: PeerInfo,
    machine: Machine,
    has: BTreeMap<Digest, BlobStatus>,
    /// When it announced, in the last second.
    sent: VecDeque<Timestamp>,
    /// When something became of its blobs, in the last two seconds.
    changed: VecDeque<Timestamp>,
    announces: u64,
}

struct World {
    seed: u64,
    rng: ChaCha8Rng,
    now: Timestamp,
    good_from: Timestamp,
    /// Whether requests come twice.
    repeats: bool,
    trackers: Vec<Tracker>,
    nodes: Vec<Node>,
    events: BTreeMap<(Timestamp, u64), Event>,
    serial: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let now = Timestamp(0);
        let trackers = (0..rng.random_range(1..=3))
            .map(|_| Tracker { store: MemoryStore::new(LIMITS), up: true, life: 0 })
            .collect::<Vec<_>>();
        let seeded = rng.random_bool(0.2);
        let node = |place: usize, seed| {
            let role = if place == 0 && seeded { NodeRole::Seeder } else { NodeRole::Proxy };
            let info = PeerInfo { id: format!("node{place}").parse().unwrap(), role, ..PeerInfo::example() };
            let names = (0..trackers.len()).map(name).collect();
            Node {
                machine: Machine::new(names, info.clone(), now, seed),
                info,
                has: BTreeMap::new(),
                sent: VecDeque::new(),
                changed: VecDeque::new(),
                announces: 0,
            }
        };
        let nodes = (0..NODES).map(|place| node(place, rng.random())).collect();
        let mut world = Self {
            seed,
            rng,
            now,
            good_from: now + BAD,
            repeats: seed.is_multiple_of(4),
            trackers,
            nodes,
            events: BTreeMap::new(),
            serial: 0,
        };
        // Cut at the end of the bad time, so that each world has another number of each.
        for _ in 0..world.rng.random_range(0..60) {
            let (at, node) = (world.some_time(BAD), world.rng.random_range(0..NODES));
            world.at(at, Event::Changes { node });
        }
        for _ in 0..world.rng.random_range(0..8) {
            let (at, tracker) = (world.some_time(BAD), world.rng.random_range(0..world.trackers.len()));
            let event = match world.rng.random_range(0..3) {
                0 => Event::Forgets { tracker, node: world.rng.random_range(0..NODES) },
                _ => Event::Dies { tracker },
            };
            world.at(at, event);
        }
        world
    }

    fn some_time(&mut self, within: Duration) -> Timestamp {
        self.now + within.mul_f64(self.rng.random_range(0.0..1.0))
    }

    fn at(&mut self, at: Timestamp, event: Event) {
        self.serial += 1;
        self.events.insert((at, self.serial), event);
    }

    fn bad(&self) -> bool {
        self.now < self.good_from
    }

    /// When something sent now arrives: not at all, once or twice.
    fn arrivals(&mut self) -> Vec<Timestamp> {
        let short = Duration::from_micros(self.rng.random_range(100..50_000));
        if !self.bad() {
            return vec![self.now + short];
        }
        let mut copies = match self.rng.random_range(0..10) {
            0 | 1 => 0,
            2 if self.repeats => 2,
            _ => 1,
        };
        let mut arrivals = Vec::new();
        while copies > 0 {
            copies -= 1;
            let late = self.rng.random_bool(0.3);
            arrivals.push(if late { self.some_time(LONGEST_DELAY) } else { self.now + short });
        }
        arrivals
    }

    /// Everything that happens until then.
    fn run(&mut self, until: Timestamp) {
        loop {
            for node in 0..NODES {
                self.settle(node);
            }
            let event = self.events.first_key_value().map(|((at, _), _)| *at);
            let timeout = self.nodes.iter().filter_map(|node| node.machine.next_timeout()).min();
            let Some(next) = event.into_iter().chain(timeout).min().filter(|next| *next <= until) else { break };
            assert!(timeout.is_none_or(|timeout| timeout > self.now), "seed {}: woken for nothing", self.seed);
            self.now = self.now.max(next);
            if event == Some(next)
                && let Some((_, event)) = self.events.pop_first()
            {
                self.handle(event);
            }
        }
        self.now = until;
    }

    /// Does what a node asks for now.
    fn settle(&mut self, node: usize) {
        let mut actions = 0;
        while let Some(Announce { ticket, tracker, request }) = self.nodes[node].machine.poll(self.now) {
            actions += 1;
            assert!(actions <= self.trackers.len(), "seed {}: {request:?} and more at once", self.seed);
            self.send(node, ticket, tracker, request);
        }
        let machine = &self.nodes[node].machine;
        for tracker in &machine.trackers {
            assert!(tracker.state.evicted() <= BLOBS as usize, "seed {}", self.seed);
            assert!(tracker.round.as_ref().is_none_or(|round| round.requests.len() <= 1), "seed {}", self.seed);
        }
    }

    fn send(&mut self, node: usize, ticket: Ticket, tracker: usize, request: AnnounceRequest) {
        let (now, trackers) = (self.now, self.trackers.len());
        let sender = &mut self.nodes[node];
        sender.announces += 1;
        sender.sent.push_back(now);
        forget_before(&mut sender.sent, now, Duration::from_secs(1));
        forget_before(&mut sender.changed, now, Duration::from_secs(2));
        // Each change can be worth one round. Without any, there is one in the least wait after failures, and what a tracker
        // asked for.
        let most = trackers * (sender.changed.len() + 6);
        assert!(sender.sent.len() <= most, "seed {}: {} announces within a second", self.seed, sender.sent.len());
        if !self.trackers[tracker].up {
            let at = now + Duration::from_millis(1);
            return self.at(at, Event::Fails { node, ticket });
        }
        self.at(now + EXCHANGE_TIMEOUT, Event::Fails { node, ticket });
        let life = self.trackers[tracker].life;
        for at in self.arrivals() {
            self.at(at, Event::Arrives { tracker, life, node, ticket, request: request.clone() });
        }
    }

    fn handle(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Arrives { tracker, life, node, ticket, request } => {
                let to = &self.trackers[tracker];
                if !to.up || to.life != life {
                    return;
                }
                let response = answer(&to.store, &request, now);
                for at in self.arrivals() {
                    self.at(at, Event::Answers { node, ticket, response: response.clone() });
                }
            }
            Event::Answers { node, ticket, response } => {
                for found in self.nodes[node].machine.handle_answer(now, ticket, response) {
                    assert!(found.peers.iter().all(|peer| peer.id != self.nodes[node].info.id), "seed {}", self.seed);
                }
            }
            Event::Fails { node, ticket } => self.nodes[node].machine.handle_failure(now, ticket, &"it was lost"),
            Event::Changes { node } => self.change(node),
            Event::Dies { tracker } => {
                let tracker_there = &mut self.trackers[tracker];
                if std::mem::replace(&mut tracker_there.up, false) {
                    tracker_there.life += 1;
                    tracker_there.store = MemoryStore::new(LIMITS);
                    let back = self.some_time(Duration::from_secs(20)).min(self.good_from);
                    self.at(back, Event::Returns { tracker });
                }
            }
            Event::Returns { tracker } => self.trackers[tracker].up = true,
            Event::Forgets { tracker, node } => block_on(self.trackers[tracker].store.leave(&self.nodes[node].info.id)),
        }
    }

    fn change(&mut self, node: usize) {
        let digest = Digest::of(&self.rng.random_range(0..BLOBS).to_le_bytes());
        let (now, what) = (self.now, self.rng.random_range(0..10));
        let pieces = match self.rng.random_range(0..3) {
            0 => PieceSet::Complete,
            1 => PieceSet::Empty,
            _ => PieceSet::Prefix(self.rng.random_range(1..PIECES)),
        };
        let status = BlobStatus { geometry: geometry(), want_peers: pieces != PieceSet::Complete && what < 4, pieces };
        let node = &mut self.nodes[node];
        node.changed.push_back(now);
        if what < 7 {
            node.has.insert(digest, status.clone());
            node.machine.update(now, digest, status);
        } else {
            node.has.remove(&digest);
            node.machine.remove(now, digest);
        }
    }

    /// What a tracker knows of a node.
    fn known(&self, tracker: usize, node: usize) -> BTreeMap<Digest, (u32, bool)> {
        let digests = (0..BLOBS).map(|blob| Digest::of(&blob.to_le_bytes()));
        let known = digests.filter_map(|digest| {
            let (_, members) = block_on(self.trackers[tracker].store.swarm(digest, None, 100, self.now))?;
            let member = members.into_iter().find(|member| member.peer.id == self.nodes[node].info.id.as_str())?;
            Some((digest, (member.pieces, member.complete)))
        });
        known.collect()
    }

    /// Trackers that list a node as alive.
    fn listing(&self, node: usize) -> BTreeSet<usize> {
        let lists = |tracker: &usize| {
            let nodes = block_on(self.trackers[*tracker].store.nodes(None, 100, self.now));
            nodes.iter().any(|peer| peer.peer.id == self.nodes[node].info.id.as_str())
        };
        (0..self.trackers.len()).filter(lists).collect()
    }

    fn assert_all_agree(&self) {
        for (place, node) in self.nodes.iter().enumerate() {
            let count = |status: &BlobStatus| (status.pieces.count(PIECES), status.pieces == PieceSet::Complete);
            let has: BTreeMap<Digest, (u32, bool)> =
                node.has.iter().map(|(digest, status)| (*digest, count(status))).collect();
            let names: Vec<String> = (0..self.trackers.len()).map(name).collect();
            for tracker in 0..self.trackers.len() {
                let is_first = |digest: &Digest| rendezvous::places(&names, digest.as_bytes())[0] == tracker;
                let mut placed = has.clone();
                placed.retain(|digest, _| node.info.role == NodeRole::Seeder || is_first(digest));
                let known = self.known(tracker, place);
                assert_eq!(known, placed, "seed {}: what tracker {tracker} knows of node {place}", self.seed);
                assert!(self.listing(place).contains(&tracker), "seed {}: {place} is at every tracker", self.seed);
            }
        }
    }
}

fn name(tracker: usize) -> String {
    format!("tracker-{tracker}:6969")
}

fn geometry() -> Geometry {
    Geometry::new(u64::from(PIECES) << 16, 1 << 16).unwrap()
}

fn forget_before(times: &mut VecDeque<Timestamp>, now: Timestamp, age: Duration) {
    while times.front().is_some_and(|at| now - *at > age) {
        times.pop_front();
    }
}

/// What a tracker answers: as [`crate::server`], without choosing among the peers.
fn answer(store: &MemoryStore, request: &AnnounceRequest, now: Timestamp) -> AnnounceResponse {
    let mut response = AnnounceResponse {
        interval_seconds: INTERVAL.as_secs_f64(),
        send_full: false,
        topology: None,
        peers: vec![],
        refused: vec![],
        seeders_version: None,
    };
    if request.stopped {
        block_on(store.leave(&request.node.id));
        return response;
    }
    let applied = block_on(store.announce(&request.node, request.full, &request.blobs, now)).unwrap();
    response.send_full = !applied.known && !request.full;
    for blob in request.blobs.iter().filter(|blob| blob.want_peers) {
        let view = block_on(store.view(blob.digest, &asker(request), 7, now));
        let named = view.iter().flat_map(|view| view.peers.iter().zip(&view.candidates));
        let peers = named.map(|(peer, candidate)| SwarmPeer {
            info: peer.named().info().clone(),
            pieces: candidate.pieces.to_piece_set(),
        });
        response.peers.push(BlobPeers { digest: blob.digest, peers: peers.collect() });
    }
    response
}

fn asker(request: &AnnounceRequest) -> NodeId {
    request.node.id.clone()
}

#[test]
fn trackers_and_nodes_agree_once_the_network_is_good() {
    let seeds = std::env::var("EAGLE_TEST_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS);
    let first = std::env::var("EAGLE_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    for seed in first..first + seeds {
        let mut world = World::new(seed);
        world.run(world.good_from + if world.repeats { LONG_PATIENCE } else { PATIENCE });
        world.assert_all_agree();
        let before: Vec<u64> = world.nodes.iter().map(|node| node.announces).collect();
        // One in a hundred for a long time: nothing is said more often than the tracker asked for.
        let quiet = if seed.is_multiple_of(100) { QUIET } else { Duration::from_secs(30) };
        world.run(world.now + quiet);
        world.assert_all_agree();
        for (node, before) in world.nodes.iter().zip(before) {
            let each = quiet.as_secs_f64() / INTERVAL.mul_f64(0.9).as_secs_f64() + 4.0;
            let most = each * world.trackers.len() as f64;
            assert!(((node.announces - before) as f64) < most, "seed {seed}: {} announces", node.announces - before);
        }
        // Whoever stops is out of every tracker that lists it.
        for node in 0..NODES {
            let (request, told) = world.nodes[node].machine.farewell();
            assert!(world.listing(node).is_subset(&told.iter().copied().collect()), "seed {seed}");
            for tracker in told {
                answer(&world.trackers[tracker].store, &request, world.now);
            }
            assert_eq!(world.listing(node), BTreeSet::new(), "seed {seed}");
        }
    }
}
