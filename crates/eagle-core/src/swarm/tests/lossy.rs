//! A whole small swarm on virtual time, over a network that loses, repeats, reorders and delays whatever it is given, breaks
//! connections and makes new ones, until one moment; from then on it delivers. Every node then gets the blob in bounded
//! time, and nothing of the swarm is left when its peers are gone.

use std::collections::{BTreeMap, BTreeSet};

use rand::{RngExt as _, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

const PIECES: u32 = 10;
/// The first has the blob.
const NODES: usize = 4;
/// How long the network is bad.
const BAD: Duration = Duration::from_secs(20);
/// How long the nodes may take from then on. Requests that were lost are given up after two seconds, and peers that let requests
/// down are asked last for up to ten.
const PATIENCE: Duration = Duration::from_secs(60);
/// Seeds of each run of the test. `EAGLE_TEST_SEEDS` takes another number, `EAGLE_TEST_SEED` another first one.
const SEEDS: u64 = 2000;

#[derive(Debug, Clone)]
enum Event {
    // What the network carries.
    Says(PeerKey, usize, BlobMessage),
    Asks(PeerKey, usize, RequestId, Option<PieceIndex>),
    Begins(PeerKey, usize, RequestId, PieceIndex),
    Brings(PeerKey, usize, RequestId, PieceIndex),
    Refuses(PeerKey, usize, RequestId, RejectReason),
    // What happens on a node, which only takes its time.
    Verified(PeerKey, usize, PieceIndex, Verdict),
    Uploaded(PeerKey, usize, PieceIndex, bool),
    Hashes(usize, u32),
    // What happens to connections.
    Breaks(PeerKey),
    Connects(usize, usize),
    Heals,
}

struct World {
    rng: ChaCha8Rng,
    now: Timestamp,
    nodes: Vec<Swarm>,
    /// Connections by their number, which both ends use as the key of the other.
    links: BTreeMap<PeerKey, (usize, usize)>,
    next_link: u64,
    cancelled: BTreeSet<(PeerKey, RequestId)>,
    events: BTreeMap<(Timestamp, u64), Event>,
    serial: u64,
    bad: bool,
    actions: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let nodes = (0..NODES).map(|node| node_of(node, rng.random())).collect();
        let mut world = Self {
            rng,
            now: Timestamp(1 << 40),
            nodes,
            links: BTreeMap::new(),
            next_link: 0,
            cancelled: BTreeSet::new(),
            events: BTreeMap::new(),
            serial: 0,
            bad: true,
            actions: 0,
        };
        world.after(BAD, Event::Heals);
        for (a, b) in pairs() {
            world.connect(a, b);
        }
        for node in 1..NODES {
            for known in [3, PIECES] {
                let delay = world.delay(5000);
                world.after(delay, Event::Hashes(node, known));
            }
        }
        world
    }

    fn delay(&mut self, most_ms: u64) -> Duration {
        Duration::from_millis(self.rng.random_range(1..=most_ms))
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.serial += 1;
        self.events.insert((self.now + delay, self.serial), event);
    }

    /// Gives something to the network.
    fn send(&mut self, link: PeerKey, event: Event) {
        if !self.bad {
            // In order, as on a connection that works.
            return self.after(Duration::from_millis(5), event);
        }
        let copies = match self.rng.random_range(0..10) {
            0 => 0,
            1 => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let delay = if self.rng.random_ratio(1, 5) { self.delay(8000) } else { self.delay(30) };
            self.after(delay, event.clone());
        }
        if self.rng.random_ratio(1, 100) {
            let delay = self.delay(2000);
            self.after(delay, Event::Breaks(link));
        }
    }

    fn connect(&mut self, a: usize, b: usize) {
        if self.links.values().any(|link| *link == (a, b)) {
            return;
        }
        let link = PeerKey(self.next_link);
        self.next_link += 1;
        self.links.insert(link, (a, b));
        for (node, other) in [(a, b), (b, a)] {
            if other == 0 {
                self.nodes[node].handle_seeder(link, None);
            } else {
                self.nodes[node].handle_peer(link, None);
            }
            self.settle(node);
        }
    }

    fn disconnect(&mut self, link: PeerKey) {
        let Some((a, b)) = self.links.remove(&link) else { return };
        for node in [a, b] {
            self.nodes[node].handle_peer_left(self.now, link);
            self.settle(node);
        }
        let delay = self.delay(3000);
        self.after(delay, Event::Connects(a, b));
    }

    fn other(&self, link: PeerKey, node: usize) -> Option<usize> {
        self.links.get(&link).map(|(a, b)| if *a == node { *b } else { *a })
    }

    /// Carries out what a node wants.
    fn settle(&mut self, node: usize) {
        while let Some(action) = self.nodes[node].poll_action() {
            self.actions += 1;
            assert!(self.actions < 100_000, "endless: {action:?} of node {node}");
            match action {
                Action::Send { peer, message } => {
                    if let Some(to) = self.other(peer, node) {
                        self.send(peer, Event::Says(peer, to, message));
                    }
                }
                Action::Request { peer, id, piece } => match self.other(peer, node) {
                    Some(to) => self.send(peer, Event::Asks(peer, to, id, piece)),
                    None => self.nodes[node].handle_failed(self.now, id),
                },
                // Those who are to know each other are connected by `meet`.
                Action::TellPeers { .. } | Action::Connect { .. } => {}
                Action::Cancel { peer, id } => drop(self.cancelled.insert((peer, id))),
                Action::Ban { peer, reason } => {
                    // Bytes that went wrong before may be found to be wrong now.
                    let corrupt = matches!(reason, BanReason::CorruptPiece(_));
                    assert!(self.bad || corrupt, "node {node} bans an honest peer over a good network: {reason}");
                    self.after(Duration::ZERO, Event::Breaks(peer));
                }
            }
        }
    }

    fn handle(&mut self, event: Event) {
        let now = self.now;
        let link = match &event {
            Event::Says(link, ..)
            | Event::Asks(link, ..)
            | Event::Begins(link, ..)
            | Event::Brings(link, ..)
            | Event::Refuses(link, ..) => Some(*link),
            _ => None,
        };
        // What was on a connection that is gone does not arrive.
        if link.is_some_and(|link| !self.links.contains_key(&link)) {
            return;
        }
        let node = match event {
            Event::Says(peer, node, message) => {
                if matches!(message, BlobMessage::Handshake { .. }) {
                    self.nodes[node].handle_greeting(peer, None);
                }
                self.nodes[node].handle_message(now, peer, message);
                node
            }
            Event::Asks(peer, node, id, piece) => {
                self.answer(peer, node, id, piece);
                node
            }
            Event::Begins(_, node, id, piece) => {
                self.nodes[node].handle_started(now, id, piece, Load::default());
                node
            }
            Event::Brings(peer, node, id, piece) => {
                if self.nodes[node].handle_received(now, id, piece) {
                    let verdict = match self.rng.random_range(0..20) {
                        0 if self.bad => Verdict::Corrupt,
                        1 if self.bad => Verdict::NotStored,
                        _ => Verdict::Stored,
                    };
                    let delay = self.delay(50);
                    self.after(delay, Event::Verified(peer, node, piece, verdict));
                }
                node
            }
            Event::Refuses(_, node, id, reason) => {
                self.nodes[node].handle_rejected(now, id, reason, Load::default());
                node
            }
            Event::Verified(peer, node, piece, verdict) => {
                self.nodes[node].handle_verified(now, peer, piece, verdict);
                node
            }
            Event::Uploaded(peer, node, piece, sent) => {
                self.nodes[node].handle_uploaded(peer, piece, sent);
                node
            }
            Event::Hashes(node, known) => {
                self.nodes[node].handle_hashes(now, known);
                node
            }
            Event::Breaks(link) => return self.disconnect(link),
            Event::Connects(a, b) => return self.connect(a, b),
            Event::Heals => return self.heal(),
        };
        self.settle(node);
    }

    /// What an uploader does with a request.
    fn answer(&mut self, peer: PeerKey, node: usize, id: RequestId, piece: Option<PieceIndex>) {
        let Some(to) = self.other(peer, node) else { return };
        if self.cancelled.contains(&(peer, id)) {
            return self.send(peer, Event::Refuses(peer, to, id, RejectReason::Cancelled));
        }
        match self.nodes[node].handle_request(self.now, peer, piece) {
            Ok(piece) => {
                assert!(self.nodes[node].have().contains(piece));
                self.send(peer, Event::Begins(peer, to, id, piece));
                self.send(peer, Event::Brings(peer, to, id, piece));
                let delay = self.delay(100);
                self.after(delay, Event::Uploaded(peer, node, piece, true));
            }
            Err(reason) => self.send(peer, Event::Refuses(peer, to, id, reason)),
        }
    }

    /// From now on what is sent arrives. What was lost before is known to be lost by its connection, as with TCP.
    fn heal(&mut self) {
        self.bad = false;
        let links: Vec<PeerKey> = self.links.keys().copied().collect();
        links.into_iter().for_each(|link| self.disconnect(link));
    }

    fn is_done(&self) -> bool {
        self.nodes.iter().all(Swarm::is_complete)
    }

    /// Runs to the end of everything that is due; true when all nodes were complete by then.
    fn run(&mut self, until: Timestamp) -> bool {
        let mut wakes = 0;
        while self.bad || !self.is_done() {
            let event = self.events.first_key_value().map(|((at, _), _)| *at);
            let alarm = (0..NODES).filter_map(|node| Some((self.nodes[node].next_timeout()?, node))).min();
            match (event, alarm) {
                (Some(at), alarm) if alarm.is_none_or(|(due, _)| at <= due) => {
                    if at > until {
                        return false;
                    }
                    self.now = self.now.max(at);
                    let Some((_, event)) = self.events.pop_first() else { return false };
                    self.handle(event);
                }
                (_, Some((due, node))) => {
                    if due > until {
                        return false;
                    }
                    wakes += 1;
                    assert!(wakes < 50_000, "node {node} is woken without end");
                    self.now = self.now.max(due);
                    self.nodes[node].handle_timeout(self.now);
                    self.settle(node);
                }
                _ => return false,
            }
            self.check();
        }
        true
    }

    fn check(&self) {
        for swarm in &self.nodes {
            assert!(swarm.requests.given_up() <= 64);
            assert!(swarm.peer_count() < NODES);
            assert!(swarm.requests.chosen() <= swarm.config.requests_in_flight + 1);
        }
    }
}

fn node_of(node: usize, seed: u64) -> Swarm {
    let seeder = node == 0;
    let start = SwarmStart {
        geometry: geometry(PIECES),
        have: if seeder { Bitfield::full(PIECES) } else { Bitfield::new(PIECES) },
        hashes_known: if seeder { PIECES } else { 0 },
        download: !seeder,
        spread: seeder,
        seed,
    };
    Swarm::new(SwarmConfig::default(), start)
}

fn pairs() -> impl Iterator<Item = (usize, usize)> {
    (0..NODES).flat_map(|a| (a + 1..NODES).map(move |b| (a, b)))
}

/// Nothing of peers or requests is left in a swarm.
fn assert_empty(swarm: &mut Swarm, seed: u64) {
    let left = [
        ("peers", swarm.peers.len()),
        ("seeders", swarm.seeders.len()),
        ("requests", swarm.requests.len()),
        ("peers that were named", swarm.rates.named.len()),
        ("pieces that are taken", swarm.busy.count() as usize),
        ("pieces that are being stored", swarm.settling.count() as usize),
        ("owners", swarm.availability.iter().map(|count| usize::from(*count)).sum()),
        ("actions", actions(swarm).len()),
    ];
    for (what, count) in left {
        assert_eq!(count, 0, "seed {seed}: {what} are left");
    }
}

#[test]
fn swarms_survive_a_network_that_loses_repeats_reorders_and_delays() {
    let seeds = std::env::var("EAGLE_TEST_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS);
    let first = std::env::var("EAGLE_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    for seed in first..first + seeds {
        let mut world = World::new(seed);
        let until = world.now + BAD + PATIENCE;
        let done = world.run(until);
        let have: Vec<u32> = world.nodes.iter().map(|node| node.have().count()).collect();
        assert!(done, "seed {seed}: {have:?} of {PIECES} pieces {PATIENCE:?} after the network was good again");
        // What is still on the way arrives, and then everybody leaves.
        let last = world.now + Duration::from_secs(10);
        while let Some(((at, _), event)) = world.events.pop_first() {
            world.now = world.now.max(at.min(last));
            if !matches!(event, Event::Connects(..)) {
                world.handle(event);
            }
        }
        let links: Vec<PeerKey> = world.links.keys().copied().collect();
        for link in links {
            world.disconnect(link);
        }
        for swarm in &mut world.nodes {
            assert_empty(swarm, seed);
        }
    }
}
