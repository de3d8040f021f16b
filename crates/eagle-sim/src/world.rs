//! The event loop: nodes, messages between them, and the clock.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    time::Duration,
};

use eagle_core::{
    Bitfield, PieceIndex, Timestamp, ideal,
    swarm::{Action, PeerKey, RequestId, Swarm, SwarmStart, Verdict},
    wire::{
        control::{BlobMessage, Load},
        data::RejectReason,
    },
};
use rand::{RngExt as _, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest as _, Sha256};

use crate::{
    Plan, Report,
    network::{CHUNK, Downlink, Transfer, Uplink, duration},
};

/// Virtual time after which a simulation is called stuck: far beyond any plan's ideal.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Clone)]
enum Event {
    Start(usize),
    OriginPiece(PieceIndex),
    Message {
        from: usize,
        to: usize,
        message: BlobMessage,
    },
    Request {
        from: usize,
        to: usize,
        id: RequestId,
        piece: Option<PieceIndex>,
    },
    Cancel {
        from: usize,
        to: usize,
        id: RequestId,
    },
    Reject {
        from: usize,
        to: usize,
        id: RequestId,
        reason: RejectReason,
        load: Load,
    },
    Begin {
        from: usize,
        to: usize,
        id: RequestId,
        piece: PieceIndex,
        load: Load,
    },
    /// The sender's link is free for the next chunk.
    Sent {
        node: usize,
        transfer: Transfer,
    },
    /// A chunk is through the receiver's link.
    Arrived {
        from: usize,
        transfer: Transfer,
    },
    Verified {
        node: usize,
        from: usize,
        piece: PieceIndex,
        verdict: Verdict,
    },
    Timeout {
        node: usize,
        at: u64,
    },
}

struct Queued {
    at: u64,
    serial: u64,
    event: Event,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.serial) == (other.at, other.serial)
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.serial).cmp(&(other.at, other.serial))
    }
}

struct Node {
    swarm: Swarm,
    up: Uplink,
    down: Downlink,
    started: Option<u64>,
    first: Option<u64>,
    finished: Option<u64>,
    gone: bool,
    /// When a timeout event is queued, nanoseconds.
    alarm: Option<u64>,
    banned: BTreeSet<usize>,
}

/// Node 0 is the seeder.
pub(crate) struct World<'a> {
    plan: &'a Plan,
    now: u64,
    serial: u64,
    queue: BinaryHeap<Reverse<Queued>>,
    nodes: Vec<Node>,
    neighbours: Vec<Vec<usize>>,
    rng: ChaCha8Rng,
    trace: Sha256,
    seeder_pieces: u64,
    control_messages: u64,
}

impl<'a> World<'a> {
    pub(crate) fn new(plan: &'a Plan) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
        let pieces = plan.geometry.pieces();
        let count = plan.nodes as usize + 1;
        let nodes = (0..count)
            .map(|index| {
                let seeder = index == 0;
                let owns = seeder && plan.origin_rate.is_none();
                let swarm = Swarm::new(
                    plan.config.clone(),
                    SwarmStart {
                        geometry: plan.geometry,
                        have: if owns { Bitfield::full(pieces) } else { Bitfield::new(pieces) },
                        hashes_known: pieces,
                        download: !seeder,
                        spread: seeder,
                        seed: plan.seed ^ (index as u64) << 20,
                    },
                );
                let rate = if seeder { plan.seeder_rate } else { plan.rate };
                Node {
                    swarm,
                    up: Uplink::new(rate, plan.upload_slots),
                    down: Downlink { rate: plan.rate, free_at: 0 },
                    started: seeder.then_some(0),
                    first: None,
                    finished: None,
                    gone: false,
                    alarm: None,
                    banned: BTreeSet::new(),
                }
            })
            .collect();
        let neighbours = neighbours(count, plan.neighbours, &mut rng);
        let mut world = Self {
            plan,
            now: 0,
            serial: 0,
            queue: BinaryHeap::new(),
            nodes,
            neighbours,
            rng,
            trace: Sha256::new(),
            seeder_pieces: 0,
            control_messages: 0,
        };
        for index in 1..count {
            let share = (index - 1) as f64 / plan.nodes.max(1) as f64;
            world.at(plan.stagger.mul_f64(share), Event::Start(index));
        }
        if let Some(rate) = plan.origin_rate {
            let mut time = 0.0;
            for piece in plan.geometry.all() {
                time += f64::from(plan.geometry.length(piece)) / rate;
                world.at(Duration::from_secs_f64(time), Event::OriginPiece(piece));
            }
        }
        world
    }

    pub(crate) fn run(mut self) -> Report {
        while let Some(Reverse(queued)) = self.queue.pop() {
            self.now = queued.at;
            if self.now > u64::try_from(LONGEST.as_nanos()).unwrap_or(u64::MAX) {
                break;
            }
            self.record(&queued.event);
            self.handle(queued.event);
            if self.nodes[1..].iter().all(|node| node.gone || node.finished.is_some()) {
                break;
            }
        }
        self.report()
    }

    fn record(&mut self, event: &Event) {
        self.trace.update(self.now.to_le_bytes());
        self.trace.update(format!("{event:?}"));
    }

    fn report(self) -> Report {
        let since = |node: &Node, at: Option<u64>| match (node.started, at) {
            (Some(start), Some(end)) => (end - start) as f64 / 1e9,
            _ => f64::INFINITY,
        };
        let survivors = || self.nodes[1..].iter().filter(|node| !node.gone);
        let totals = || self.nodes.iter().map(|node| node.swarm.totals());
        Report {
            seconds: survivors().map(|node| since(node, node.finished)).collect(),
            first_piece_seconds: survivors().map(|node| since(node, node.first)).collect(),
            ideal_seconds: ideal::equal_rates(&self.plan.geometry, self.plan.nodes, self.plan.rate),
            seeder_pieces: self.seeder_pieces,
            duplicate_pieces: totals().map(|totals| totals.duplicate_pieces).sum(),
            corrupt_pieces: totals().map(|totals| totals.corrupt_pieces).sum(),
            control_messages: self.control_messages,
            trace: self.trace.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }

    fn at(&mut self, delay: Duration, event: Event) {
        self.serial += 1;
        let at = self.now + u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX / 2);
        self.queue.push(Reverse(Queued { at, serial: self.serial, event }));
    }

    fn handle(&mut self, event: Event) {
        let now = Timestamp(self.now);
        match event {
            Event::Start(index) => {
                self.nodes[index].started = Some(self.now);
                for other in self.neighbours[index].clone() {
                    // A node learns of those that are there, and they of it by its handshake.
                    if self.nodes[other].started.is_some() && !self.nodes[other].gone {
                        self.nodes[index].swarm.handle_peer(key(other));
                    }
                }
                self.settle(index);
            }
            Event::OriginPiece(piece) => {
                self.nodes[0].swarm.handle_owned(now, piece);
                self.settle(0);
            }
            Event::Message { from, to, message } => {
                if self.nodes[to].gone || self.nodes[from].gone || self.nodes[to].banned.contains(&from) {
                    return;
                }
                if matches!(message, BlobMessage::Handshake { .. }) {
                    self.nodes[to].swarm.handle_greeting(key(from));
                }
                self.nodes[to].swarm.handle_message(now, key(from), message);
                self.settle(to);
            }
            Event::Request { from, to, id, piece } => self.handle_request(from, to, id, piece),
            Event::Cancel { from, to, id } => {
                let waiting = &mut self.nodes[to].up.waiting;
                if let Some(at) = waiting.iter().position(|t| t.to == from && t.id == id)
                    && let Some(transfer) = waiting.remove(at)
                {
                    self.nodes[to].swarm.handle_uploaded(key(from), transfer.piece, false);
                    self.reject(to, from, id, RejectReason::Cancelled);
                    self.settle(to);
                }
            }
            Event::Reject { from, to, id, reason, load } => {
                self.nodes[to].swarm.handle_rejected(now, id, reason, load);
                let _ = from;
                self.settle(to);
            }
            Event::Begin { from, to, id, piece, load } => {
                let _ = from;
                self.nodes[to].swarm.handle_started(now, id, piece, load);
                self.settle(to);
            }
            Event::Sent { node, transfer } => self.sent(node, transfer),
            Event::Arrived { from, transfer } => self.arrived(from, transfer),
            Event::Verified { node, from, piece, verdict } => {
                if self.nodes[node].gone {
                    return;
                }
                self.nodes[node].swarm.handle_verified(now, key(from), piece, verdict);
                let state = &mut self.nodes[node];
                if state.first.is_none() && state.swarm.have().contains(PieceIndex(0)) {
                    state.first = Some(self.now);
                }
                if state.finished.is_none() && state.swarm.is_complete() {
                    state.finished = Some(self.now);
                }
                self.settle(node);
                let half = self.nodes[node].swarm.have().count() * 2 >= self.plan.geometry.pieces();
                if half && node <= self.plan.faults.vanish as usize {
                    self.vanish(node);
                }
            }
            Event::Timeout { node, at } => {
                if self.nodes[node].alarm == Some(at) {
                    self.nodes[node].alarm = None;
                    if !self.nodes[node].gone {
                        self.nodes[node].swarm.handle_timeout(now);
                        self.settle(node);
                    }
                }
            }
        }
    }

    fn handle_request(&mut self, from: usize, to: usize, id: RequestId, piece: Option<PieceIndex>) {
        if self.nodes[to].gone || self.rng.random_bool(self.plan.faults.lost_requests) {
            return;
        }
        match self.nodes[to].swarm.handle_request(key(from), piece) {
            Ok(piece) => {
                self.serial += 1;
                let left = self.plan.geometry.length(piece);
                let transfer = Transfer { to: from, id, piece, left, unacknowledged: 0, serial: self.serial };
                self.nodes[to].up.waiting.push_back(transfer);
                self.admit(to);
            }
            Err(reason) => self.reject(to, from, id, reason),
        }
        self.settle(to);
    }

    fn reject(&mut self, from: usize, to: usize, id: RequestId, reason: RejectReason) {
        let load = self.nodes[from].swarm.load();
        self.at(self.plan.latency, Event::Reject { from, to, id, reason, load });
    }

    fn admit(&mut self, node: usize) {
        self.note_load(node);
        for transfer in self.nodes[node].up.admit() {
            let load = self.nodes[node].swarm.load();
            let Transfer { to, id, piece, .. } = transfer;
            self.at(self.plan.latency, Event::Begin { from: node, to, id, piece, load });
        }
        self.send(node);
    }

    fn note_load(&mut self, node: usize) {
        let load = u16::try_from(self.nodes[node].up.load()).unwrap_or(u16::MAX);
        self.nodes[node].swarm.handle_node_load(load);
    }

    /// Puts the next chunk on a node's uplink, when that is free.
    fn send(&mut self, node: usize) {
        if self.nodes[node].up.sending || self.nodes[node].gone {
            return;
        }
        let Some(transfer) = self.nodes[node].up.next() else { return };
        self.nodes[node].up.sending = true;
        let length = self.plan.geometry.length(transfer.piece);
        let sent = length - transfer.left;
        let bytes = if sent.is_multiple_of(CHUNK) { CHUNK } else { sent % CHUNK };
        let time = duration(bytes, self.nodes[node].up.rate);
        self.at(time, Event::Sent { node, transfer });
        // Store and forward: the receiver's link takes the chunk once the sender's is done.
        let down = &mut self.nodes[transfer.to].down;
        let ready = self.now + nanos(time) + nanos(self.plan.latency);
        down.free_at = down.free_at.max(ready) + nanos(duration(bytes, down.rate));
        let delay = Duration::from_nanos(down.free_at - self.now);
        self.at(delay, Event::Arrived { from: node, transfer });
    }

    fn sent(&mut self, node: usize, transfer: Transfer) {
        self.nodes[node].up.sending = false;
        if transfer.left == 0 && !self.nodes[node].gone {
            self.nodes[node].up.remove(transfer.serial);
            self.nodes[node].swarm.handle_uploaded(key(transfer.to), transfer.piece, true);
            if node == 0 {
                self.seeder_pieces += 1;
            }
            self.admit(node);
            self.settle(node);
        }
        self.send(node);
    }

    fn arrived(&mut self, from: usize, transfer: Transfer) {
        let now = Timestamp(self.now);
        let to = transfer.to;
        if self.nodes[from].gone {
            return;
        }
        if let Some(sending) = self.nodes[from].up.find(transfer.serial) {
            sending.unacknowledged -= 1;
        }
        if transfer.left > 0 {
            self.nodes[to].swarm.handle_progress(now, transfer.id);
            self.send(from);
            return;
        }
        if self.nodes[to].gone {
            return;
        }
        if self.nodes[to].swarm.handle_received(now, transfer.id, transfer.piece) {
            let corrupt = from % 2 == 1 && self.rng.random_bool(self.plan.faults.corrupt);
            let verdict = if corrupt { Verdict::Corrupt } else { Verdict::Stored };
            // SHA-256 at 1.6 GB/s.
            let delay = duration(self.plan.geometry.length(transfer.piece), 1.6e9);
            self.at(delay, Event::Verified { node: to, from, piece: transfer.piece, verdict });
        }
        self.settle(to);
    }

    fn vanish(&mut self, node: usize) {
        self.nodes[node].gone = true;
        for other in 0..self.nodes.len() {
            if !self.nodes[other].gone {
                self.nodes[other].up.waiting.retain(|transfer| transfer.to != node);
                self.nodes[other].up.active.retain(|transfer| transfer.to != node);
                self.nodes[other].swarm.handle_peer_left(Timestamp(self.now), key(node));
                self.admit(other);
                self.settle(other);
            }
        }
    }

    /// Carries out a node's actions and sets its alarm.
    fn settle(&mut self, node: usize) {
        let latency = self.plan.latency;
        self.note_load(node);
        while let Some(action) = self.nodes[node].swarm.poll_action() {
            match action {
                Action::Send { peer, message } => {
                    self.control_messages += 1;
                    self.at(latency, Event::Message { from: node, to: index(peer), message });
                }
                Action::Request { peer, id, piece } => {
                    self.at(latency, Event::Request { from: node, to: index(peer), id, piece });
                }
                Action::Cancel { peer, id } => self.at(latency, Event::Cancel { from: node, to: index(peer), id }),
                Action::Ban { peer, .. } => {
                    self.nodes[node].banned.insert(index(peer));
                    self.nodes[node].swarm.handle_peer_left(Timestamp(self.now), peer);
                }
            }
        }
        if let Some(timeout) = self.nodes[node].swarm.next_timeout() {
            let at = timeout.0.max(self.now);
            if self.nodes[node].alarm.is_none_or(|alarm| at < alarm) {
                self.nodes[node].alarm = Some(at);
                self.at(Duration::from_nanos(at - self.now), Event::Timeout { node, at });
            }
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4)
}

fn key(node: usize) -> PeerKey {
    PeerKey(node as u64)
}

fn index(peer: PeerKey) -> usize {
    usize::try_from(peer.0).unwrap_or(usize::MAX)
}

/// Random neighbours for each node; everyone knows the seeder, and the graph is symmetrical.
fn neighbours(count: usize, degree: usize, rng: &mut ChaCha8Rng) -> Vec<Vec<usize>> {
    let mut sets: BTreeMap<usize, BTreeSet<usize>> = (0..count).map(|node| (node, BTreeSet::new())).collect();
    let all: Vec<usize> = (1..count).collect();
    for node in 1..count {
        let mut others: Vec<usize> = all.iter().copied().filter(|other| *other != node).collect();
        if others.len() > degree {
            others.shuffle(rng);
            others.truncate(degree / 2);
        }
        for other in others {
            sets.entry(node).or_default().insert(other);
            sets.entry(other).or_default().insert(node);
        }
        sets.entry(node).or_default().insert(0);
    }
    sets.into_values().map(|set| set.into_iter().collect()).collect()
}
