//! Thousands of nodes and their trackers on virtual time, one of which is started again without what it knew: the nodes are the real
//! machines, the trackers real stores. How soon all its swarms are back, and how many announces come at once meanwhile.
//!
//! `EAGLE_TEST_NODES=5000 cargo test --release -p eagle-tracker --all-features --lib restart -- --nocapture` prints the figures of
//! `docs/trackers.md`.

use std::{cmp::Reverse, collections::BinaryHeap};

use eagle_core::{Geometry, PieceSet};
use futures::executor::block_on;

use super::*;
use crate::store::{MemoryStore, PeerStore, StoreLimits};

/// Blobs of each node, and blobs that there are.
const BLOBS: (usize, u32) = (20, 1_000);
/// What a tracker asks for while a swarm grows, which is when most announces come.
const ACTIVE: Duration = Duration::from_secs(1);
/// How long all is well before.
const BEFORE: Duration = Duration::from_secs(4);
/// What it asks for of who wants nothing of it.
const IDLE: Duration = Duration::from_secs(30);
/// Until all is said again, at the latest: the longest interval, give or take a tenth, and the two seconds.
const AFTER: Duration = Duration::from_secs(35);
/// Within this of noticing, a node has said everything again.
const AIM: Duration = Duration::from_secs(2);
/// By which announces are counted.
const WINDOW: Duration = Duration::from_millis(100);
/// The tracker that is started again.
const RESTARTED: usize = 0;

#[derive(Debug)]
enum Event {
    Wakes(usize),
    Arrives { tracker: usize, life: u32, node: usize, ticket: Ticket, request: AnnounceRequest },
    Answers { tracker: usize, node: usize, ticket: Ticket, response: AnnounceResponse },
    Fails { node: usize, ticket: Ticket },
    Ends,
    Returns,
}

struct Node {
    machine: Machine,
    info: PeerInfo,
    wakes: Option<Timestamp>,
    /// When it knew that the tracker is back, and when the tracker knew everything of it.
    noticed: Option<Timestamp>,
    restored: Option<Timestamp>,
    /// Whether it was not answered.
    failed: bool,
}

struct World {
    now: Timestamp,
    rng: ChaCha8Rng,
    serial: u64,
    queue: BinaryHeap<Reverse<(Timestamp, u64)>>,
    events: std::collections::HashMap<u64, Event>,
    nodes: Vec<Node>,
    stores: Vec<MemoryStore>,
    up: bool,
    life: u32,
    returned: Option<Timestamp>,
    /// Announces that reached each tracker, by window.
    arrived: Vec<std::collections::BTreeMap<u64, u64>>,
}

fn limits() -> StoreLimits {
    StoreLimits {
        ttl: Duration::from_secs(90),
        peers: 100_000,
        blobs: 100_000,
        peers_per_blob: 100_000,
        blobs_per_peer: 1_000,
    }
}

impl World {
    fn new(nodes: usize, trackers: usize, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let names: Vec<String> = (0..trackers).map(|place| format!("tracker-{place}:6969")).collect();
        let geometry = Geometry::auto(32 << 20).unwrap();
        let node = |place: usize| {
            let info = PeerInfo { id: format!("node{place}").parse().unwrap(), ..PeerInfo::example() };
            // Nodes are there since some time in the second before.
            let mut machine = Machine::new(names.clone(), info.clone(), Timestamp(0), rng.random());
            for _ in 0..BLOBS.0 {
                let share: f64 = rng.random_range(0.0..1.0);
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "below the number of blobs"
                )]
                let blob = (share * share * f64::from(BLOBS.1)) as u32;
                let status = BlobStatus { geometry, pieces: PieceSet::Complete, want_peers: false };
                machine.update(Timestamp(0), Digest::of(&blob.to_le_bytes()), status);
            }
            // All are in the middle of a pull of the same ten blobs.
            let wanted = Digest::of(format!("layer {}", place % 10).as_bytes());
            let status = BlobStatus { geometry, pieces: PieceSet::Prefix(1), want_peers: true };
            machine.update(Timestamp(0), wanted, status);
            Node { machine, info, wakes: None, noticed: None, restored: None, failed: false }
        };
        let nodes: Vec<Node> = (0..nodes).map(node).collect();
        let stores = (0..trackers).map(|_| MemoryStore::new(limits())).collect();
        Self {
            now: Timestamp(0),
            rng,
            serial: 0,
            queue: BinaryHeap::new(),
            events: std::collections::HashMap::new(),
            nodes,
            stores,
            up: true,
            life: 0,
            returned: None,
            arrived: vec![std::collections::BTreeMap::new(); trackers],
        }
    }

    fn at(&mut self, at: Timestamp, event: Event) {
        self.serial += 1;
        self.queue.push(Reverse((at, self.serial)));
        self.events.insert(self.serial, event);
    }

    /// One way through the network.
    fn hop(&mut self) -> Duration {
        Duration::from_micros(self.rng.random_range(200..3_000))
    }

    fn run(&mut self, until: Timestamp) {
        while let Some(Reverse((at, serial))) = self.queue.peek().copied().filter(|Reverse((at, _))| *at <= until) {
            self.queue.pop();
            self.now = at;
            if let Some(event) = self.events.remove(&serial) {
                self.handle(event);
            }
        }
        self.now = until;
    }

    /// Does what a node asks for, and wakes it when it wants to be.
    fn settle(&mut self, node: usize) {
        while let Some(Announce { ticket, tracker, request }) = self.nodes[node].machine.poll(self.now) {
            let hop = self.hop();
            if tracker == RESTARTED && !self.up {
                self.at(self.now + hop, Event::Fails { node, ticket });
            } else {
                let life = if tracker == RESTARTED { self.life } else { 0 };
                self.at(self.now + hop, Event::Arrives { tracker, life, node, ticket, request });
            }
        }
        let next = self.nodes[node].machine.next_timeout();
        if next != self.nodes[node].wakes {
            self.nodes[node].wakes = next;
            if let Some(next) = next {
                self.at(next.max(self.now), Event::Wakes(node));
            }
        }
    }

    fn handle(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Wakes(node) => {
                if self.nodes[node].wakes.is_some_and(|wakes| wakes <= now) {
                    self.nodes[node].wakes = None;
                    self.settle(node);
                }
            }
            Event::Arrives { tracker, life, node, ticket, request } => {
                let hop = self.hop();
                if tracker == RESTARTED && (!self.up || life != self.life) {
                    return self.at(now + hop, Event::Fails { node, ticket });
                }
                let window = now.0 / u64::try_from(WINDOW.as_nanos()).unwrap();
                *self.arrived[tracker].entry(window).or_default() += 1;
                let store = &self.stores[tracker];
                let applied = block_on(store.announce(&self.nodes[node].info, request.full, &request.blobs, now));
                let send_full = !applied.unwrap().known && !request.full;
                if tracker == RESTARTED && self.returned.is_some() && request.full {
                    self.nodes[node].restored.get_or_insert(now);
                }
                let active = request.blobs.iter().any(|blob| blob.want_peers);
                let response = AnnounceResponse {
                    interval_seconds: if active { ACTIVE } else { IDLE }.as_secs_f64(),
                    send_full,
                    topology: None,
                    peers: vec![],
                    refused: vec![],
                    seeders_version: None,
                };
                self.at(now + hop, Event::Answers { tracker, node, ticket, response });
            }
            Event::Answers { tracker, node, ticket, response } => {
                let answered = &mut self.nodes[node];
                if tracker == RESTARTED && self.returned.is_some() && (response.send_full || answered.failed) {
                    answered.noticed.get_or_insert(now);
                }
                answered.machine.handle_answer(now, ticket, response);
                self.settle(node);
            }
            Event::Fails { node, ticket } => {
                self.nodes[node].failed = true;
                self.nodes[node].machine.handle_failure(now, ticket, &"connection refused");
                self.settle(node);
            }
            Event::Ends => {
                self.up = false;
                self.life += 1;
                self.stores[RESTARTED] = MemoryStore::new(limits());
            }
            Event::Returns => {
                self.up = true;
                self.returned = Some(now);
            }
        }
    }

    /// Most announces that reached any tracker in a window from this time on.
    fn peak(&self, from: Timestamp, to: Timestamp) -> u64 {
        let window = |at: Timestamp| at.0 / u64::try_from(WINDOW.as_nanos()).unwrap();
        let counts = self.arrived.iter().flat_map(|arrived| arrived.range(window(from)..window(to)));
        counts.map(|(_, count)| *count).max().unwrap_or(0)
    }
}

/// Runs one, prints its figures and checks what is promised.
fn restart(nodes: usize, trackers: usize, away: Duration) {
    let mut world = World::new(nodes, trackers, 7);
    let ends = Timestamp(0) + BEFORE;
    let returns = ends + away;
    world.at(ends, Event::Ends);
    world.at(returns, Event::Returns);
    for node in 0..nodes {
        // Started over two seconds, as in a rollout.
        let at = Timestamp(0) + Duration::from_secs(2).mul_f64(world.rng.random_range(0.0..1.0));
        world.nodes[node].wakes = Some(at);
        world.at(at, Event::Wakes(node));
    }
    world.run(Timestamp(0) + (BEFORE - Duration::from_millis(1)));
    let entries = world.stores[RESTARTED].stats().entries;
    world.run(returns + AFTER);
    let back = world.stores[RESTARTED].stats().entries;
    assert_eq!(back, entries, "all swarms are back");

    let since = |at: Timestamp| (at - returns).as_secs_f64();
    let mut slowest = Duration::ZERO;
    let (mut first, mut last) = (f64::MAX, 0.0_f64);
    for node in &world.nodes {
        let restored = node.restored.expect("every node has said everything again");
        let noticed = node.noticed.expect("every node has noticed");
        slowest = slowest.max(restored.max(noticed) - noticed);
        (first, last) = (first.min(since(restored)), last.max(since(restored)));
    }
    let usual = world.peak(Timestamp(0) + (BEFORE - Duration::from_secs(1)), ends);
    let during = world.peak(ends, returns);
    let after = world.peak(returns, returns + AFTER);
    println!(
        "{nodes} nodes, {trackers} trackers, one away for {:.1} s: full state at most {:.2} s after noticing, \
         all swarms back {first:.2} to {last:.2} s after its return; most announces at one tracker in 100 ms: \
         {usual} before, {during} while away, {after} after",
        away.as_secs_f64(),
        slowest.as_secs_f64(),
    );
    assert!(slowest <= AIM, "{slowest:?}");
    // Without a storm: not a quarter of the nodes at once, however they notice. All of them announce each second as it is.
    assert!(after.max(during) <= u64::try_from(nodes / 4).unwrap(), "{during} and {after} in 100 ms");
}

#[test]
fn a_tracker_that_restarts_empty_has_its_swarms_back_soon_and_without_a_storm() {
    let nodes = std::env::var("EAGLE_TEST_NODES").ok().and_then(|nodes| nodes.parse().ok()).unwrap_or(500);
    for trackers in [1, 3] {
        // Between two announces of most nodes; seconds; as long as a machine takes to start.
        for away in [Duration::from_millis(200), Duration::from_secs(5), Duration::from_secs(30)] {
            restart(nodes, trackers, away);
        }
    }
}
