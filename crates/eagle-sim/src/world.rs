//! The event loop: nodes, messages between them, and the clock.

use std::time::Duration;

use eagle_core::{
    Bitfield, Boundary, NodeRole, Timestamp,
    swarm::{Action, Swarm, SwarmConfig, SwarmStart},
    wire::control::{BlobMessage, HostRate},
};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::{
    Group, NodeReport, Plan, Report, Sample,
    bound::{self, Own},
    event::{Event, Queue},
    message_size,
    network::{Pipe, Uplink, nanos},
    node::{Member, Node, key, number},
    peers::{self, TrackerState},
    place::{Place, SharedLinks},
    samples::three,
    trace::Trace,
};

/// Virtual time after which a simulation is called stuck: far beyond any plan's ideal.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Samples in the ideal time.
const SAMPLES: f64 = 100.0;

/// The first nodes are the seeders.
pub(crate) struct World<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) now: u64,
    queue: Queue,
    pub(crate) nodes: Vec<Node>,
    pub(crate) shared_links: SharedLinks,
    pub(crate) tracker: Vec<TrackerState>,
    pub(crate) rng: ChaCha8Rng,
    trace: Trace,
    pub(crate) report: Report,
    /// Nodes that are there and lack something.
    pub(crate) unfinished: usize,
    /// Nodes that own each piece of each blob.
    pub(crate) owners: Vec<Vec<u32>>,
    /// Messages of one settling, by distance.
    outbox: [Vec<(u32, BlobMessage)>; 3],
}

impl<'a> World<'a> {
    pub(crate) fn new(plan: &'a Plan) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
        let starts = peers::starts(plan, &mut rng);
        let mut nodes: Vec<Node> = (0..plan.seeders.count).map(|number| seeder(plan, number)).collect();
        for (place, group) in plan.groups.iter().enumerate() {
            for index in 0..group.count {
                let number = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
                nodes.push(proxy(plan, number, (place, index), group, &mut rng));
            }
        }
        let report = Report {
            nodes: Vec::new(),
            ideal_seconds: bound::of_all(plan),
            origin_bytes: 0,
            seeder_bytes: 0,
            delivered_bytes: 0,
            cross_rack_bytes: 0,
            cross_zone_bytes: 0,
            cross_region_bytes: 0,
            duplicate_pieces: 0,
            corrupt_pieces: 0,
            requests: 0,
            stalled_requests: 0,
            control_messages: 0,
            control_bytes: 0,
            events: 0,
            samples: Vec::new(),
            trace: String::new(),
        };
        let mut world = Self {
            plan,
            now: 0,
            queue: Queue::default(),
            shared_links: SharedLinks::default(),
            tracker: plan.blobs.iter().map(|_| TrackerState::default()).collect(),
            rng,
            trace: Trace::default(),
            report,
            unfinished: nodes.len() - plan.seeders.count as usize,
            owners: plan.blobs.iter().map(|geometry| vec![0; geometry.pieces() as usize]).collect(),
            outbox: Default::default(),
            nodes,
        };
        world.first_events(&starts);
        world
    }

    fn first_events(&mut self, starts: &[u64]) {
        let first = starts.iter().copied().min().unwrap_or(0);
        if let Some(rate) = self.plan.seeders.origin_rate {
            let mut seconds = vec![0.0; self.plan.seeders.count as usize];
            for (blob, geometry) in (0u16..).zip(&self.plan.blobs) {
                let seconds = &mut seconds[self.seeder(blob) as usize];
                for piece in geometry.all() {
                    *seconds += f64::from(geometry.length(piece)) / rate;
                    self.queue
                        .push(first + nanos(Duration::from_secs_f64(*seconds)), Event::OriginPiece { blob, piece });
                }
                self.report.origin_bytes += geometry.size();
            }
        }
        for (node, at) in (self.plan.seeders.count..).zip(starts) {
            self.queue.push(*at, Event::Start(node));
        }
        for (number, churn) in self.plan.churn.iter().enumerate() {
            self.queue.push(nanos(churn.at), Event::Churn(number));
        }
        self.queue.push(0, Event::Sample);
    }

    pub(crate) fn run(mut self) -> Report {
        let longest = nanos(LONGEST);
        while self.unfinished > 0 {
            let Some((at, event)) = self.queue.pop().filter(|(at, _)| *at <= longest) else { break };
            self.now = at;
            let (kind, first, second, third) = event.summary();
            self.trace.add(at);
            self.trace.pair(u32::from(kind) << 24 | first, second);
            self.trace.pair(third, self.nodes.get(first as usize).map_or(0, |node| node.owned));
            self.report.events += 1;
            self.handle(event);
        }
        self.sample();
        self.finish()
    }

    fn finish(mut self) -> Report {
        let seconds = |nanos: u64| nanos as f64 / 1e9;
        for state in self.nodes.iter().filter(|node| !node.gone) {
            let Some((group, start)) = state.group.zip(state.started) else { continue };
            let since = |at: Option<u64>| at.map_or(f64::INFINITY, |at| seconds(at - start));
            let own = Own {
                start: seconds(start),
                down: state.slowed.map_or(state.down.rate, |(_, before)| before),
                slowed: state.slowed.map(|(at, _)| (seconds(at), state.down.rate)),
            };
            self.report.nodes.push(NodeReport {
                group,
                start: own.start,
                seconds: since(state.finished()),
                first_piece_seconds: since(state.first),
                first_blob_seconds: since(state.members.iter().flatten().filter_map(|member| member.finished).min()),
                bound_seconds: bound::seconds(self.plan, own),
            });
        }
        for totals in self.nodes.iter().flat_map(|node| node.members.iter().flatten()).map(|m| m.swarm.totals()) {
            self.report.duplicate_pieces += totals.duplicate_pieces;
            self.report.corrupt_pieces += totals.corrupt_pieces;
            self.report.requests += totals.requests;
            self.report.stalled_requests += totals.stalled_requests;
        }
        self.report.trace = self.trace.finish();
        self.report
    }

    pub(crate) fn blobs(&self) -> u16 {
        u16::try_from(self.plan.blobs.len()).unwrap_or(u16::MAX)
    }

    /// The seeder that is responsible for a blob.
    pub(crate) fn seeder(&self, blob: u16) -> u32 {
        u32::from(blob) % self.plan.seeders.count.max(1)
    }

    pub(crate) fn at(&mut self, at: u64, event: Event) {
        self.queue.push(at, event);
    }

    /// `delay` is in nanoseconds.
    pub(crate) fn after(&mut self, delay: u64, event: Event) {
        self.queue.push(self.now + delay, event);
    }

    /// Nanoseconds that a message travels.
    pub(crate) fn latency(&self, from: u32, to: u32) -> u64 {
        let links = &self.plan.links;
        nanos(match self.nodes[from as usize].place.boundary(self.nodes[to as usize].place) {
            None | Some(Boundary::Rack) => links.latency,
            Some(Boundary::Zone) => links.zone_latency,
            Some(Boundary::Region) => links.region_latency,
        })
    }

    fn handle(&mut self, event: Event) {
        let now = Timestamp(self.now);
        match event {
            Event::Start(node) => self.start(node),
            Event::OriginPiece { blob, piece } => {
                let seeder = self.seeder(blob);
                if let Some(swarm) = self.nodes[seeder as usize].swarm(blob) {
                    swarm.handle_owned(now, piece);
                }
                self.settle(seeder, blob);
            }
            Event::Connected { node, blob, peers, by_tracker } => self.connected(node, blob, &peers, by_tracker),
            Event::Announce(node) => self.announce(node),
            Event::Messages { from, blob, batch } => {
                for (to, message) in batch {
                    self.message(from, to, blob, message);
                }
            }
            Event::Request { from, to, blob, id, piece } => self.request(from, to, blob, id, piece),
            Event::Cancel { from, to, blob, id } => self.cancel(from, to, blob, id),
            Event::Reject { to, blob, id, reason, load } => {
                if let Some(swarm) = self.nodes[to as usize].swarm(blob) {
                    swarm.handle_rejected(now, id, reason, load);
                    self.settle(to, blob);
                }
            }
            Event::Begin { to, blob, id, piece, load } => {
                if let Some(swarm) = self.nodes[to as usize].swarm(blob) {
                    swarm.handle_started(now, id, piece, load);
                    self.settle(to, blob);
                }
            }
            Event::Sent(node) => self.sent(node),
            Event::Wake { node, at } => self.wake(node, at),
            Event::Progress { to, blob, id } => {
                if let Some(swarm) = self.nodes[to as usize].swarm(blob) {
                    swarm.handle_progress(now, id);
                }
            }
            Event::Arrived { from, to, blob, id, piece } => self.arrived(from, to, blob, id, piece),
            Event::Verified { node, from, blob, piece, verdict } => self.verified(node, from, blob, piece, verdict),
            Event::Timeout { node, blob, at } => self.timeout(node, blob, at),
            Event::Churn(number) => self.churn(number),
            Event::Lost(node) => self.lost(node),
            Event::Sample => {
                self.sample();
                self.after(nanos(Duration::from_secs_f64(self.report.ideal_seconds / SAMPLES)).max(1), Event::Sample);
            }
        }
    }

    fn message(&mut self, from: u32, to: u32, blob: u16, message: BlobMessage) {
        if self.nodes[from as usize].gone || self.nodes[to as usize].banned.contains(&from) {
            return;
        }
        let group = self.far_group(to, from);
        let Some(swarm) = self.nodes[to as usize].swarm(blob) else { return };
        let now = Timestamp(self.now);
        if matches!(message, BlobMessage::Handshake { .. }) {
            swarm.handle_greeting(key(from), group);
            if !swarm.has_peer(key(from)) {
                // There are too many; the real engine says so in the same way.
                self.outbox[0].push((from, BlobMessage::Leave));
                self.flush(to, blob);
                return;
            }
        }
        swarm.handle_message(now, key(from), message);
        self.settle(to, blob);
    }

    fn timeout(&mut self, node: u32, blob: u16, at: u64) {
        let now = Timestamp(self.now);
        let state = &mut self.nodes[node as usize];
        let Some(member) = state.members[usize::from(blob)].as_mut().filter(|member| member.alarm == Some(at)) else {
            return;
        };
        member.alarm = None;
        if let Some(swarm) = state.swarm(blob) {
            swarm.handle_timeout(now);
            self.settle(node, blob);
        }
    }

    /// Carries out a node's actions and sets its alarm.
    pub(crate) fn settle(&mut self, node: u32, blob: u16) {
        if blob > 0 {
            self.nodes[node as usize].share_requests(Timestamp(self.now), blob);
        }
        while let Some(action) = self.nodes[node as usize].swarm(blob).and_then(Swarm::poll_action) {
            match action {
                Action::Send { peer, message } => {
                    let to = number(peer);
                    let boundary = self.nodes[node as usize].place.boundary(self.nodes[to as usize].place);
                    let distance = boundary.map_or(0, |boundary| boundary as usize);
                    self.outbox[distance].push((to, message));
                }
                Action::Request { peer, id, piece } => {
                    let to = number(peer);
                    self.after(self.latency(node, to), Event::Request { from: node, to, blob, id, piece });
                }
                Action::Cancel { peer, id } => {
                    let to = number(peer);
                    self.after(self.latency(node, to), Event::Cancel { from: node, to, blob, id });
                }
                Action::TellPeers { peer, about } => {
                    let told = about.into_iter().filter_map(|peer| self.address(number(peer))).collect();
                    self.outbox[0].push((number(peer), BlobMessage::Peers(told)));
                }
                Action::Connect { peers, most, .. } => self.connect_told(node, blob, &peers, most),
                Action::Ban { peer, .. } => self.ban(node, peer),
            }
        }
        self.flush(node, blob);
        let now = self.now;
        let Some(member) = self.nodes[node as usize].members[usize::from(blob)].as_mut() else { return };
        if let Some(timeout) = member.swarm.next_timeout() {
            let at = timeout.0.max(now);
            if member.alarm.is_none_or(|alarm| at < alarm) {
                member.alarm = Some(at);
                self.at(at, Event::Timeout { node, blob, at });
            }
        }
    }

    /// Sends what is in the outbox.
    fn flush(&mut self, from: u32, blob: u16) {
        for batch in std::mem::take(&mut self.outbox) {
            let Some((first, _)) = batch.first() else { continue };
            self.report.control_messages += batch.len() as u64;
            self.report.control_bytes += batch.iter().map(|(_, message)| message_size::of(message)).sum::<u64>();
            self.after(self.latency(from, *first), Event::Messages { from, blob, batch: batch.into() });
        }
    }

    fn sample(&mut self) {
        let pieces: u32 = self.plan.blobs.iter().map(eagle_core::Geometry::pieces).sum();
        let nodes = || self.nodes.iter().filter(|node| node.group.is_some() && !node.gone);
        let count = nodes().count() as f64;
        self.report.samples.push(Sample {
            seconds: self.now as f64 / 1e9,
            owned: three(nodes().map(|node| node.owned).collect(), pieces.into()),
            done: nodes().filter(|node| node.is_done()).count() as f64 / count.max(1.0),
            spread: three(self.owners.iter().flatten().copied().collect(), f64::from(self.plan.nodes())),
        });
    }
}

fn member(plan: &Plan, blob: usize, number: u32, seeder: bool, rate: f64) -> Member {
    let geometry = plan.blobs[blob];
    let pieces = geometry.pieces();
    let owns = seeder && plan.seeders.origin_rate.is_none();
    let max_peers = if seeder { plan.seeders.max_peers } else { plan.config.max_peers };
    let start = SwarmStart {
        geometry,
        have: if owns { Bitfield::full(pieces) } else { Bitfield::new(pieces) },
        hashes_known: pieces,
        download: !seeder,
        spread: seeder,
        seed: plan.seed ^ u64::from(number) << 20 ^ (blob as u64) << 52,
    };
    let mut swarm = Swarm::new(SwarmConfig { max_peers, ..plan.config.clone() }, start);
    // Rates of plans are positive and far below 2^63.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    swarm.handle_host_rate(Timestamp(0), HostRate(rate as u64));
    // An empty blob is there from the start.
    let finished = (!seeder && pieces == 0).then_some(0);
    Member { swarm, finished, alarm: None, position: 0 }
}

fn labels(plan: &Plan, place: Place) -> eagle_core::Place {
    if plan.labels { (&place.topology()).into() } else { eagle_core::Place::default() }
}

fn seeder(plan: &Plan, number: u32) -> Node {
    let place = Place::of_seeders(plan);
    let responsible = |blob: usize| blob % plan.seeders.count as usize == number as usize;
    let members =
        (0..plan.blobs.len()).map(|blob| responsible(blob).then(|| member(plan, blob, number, true, plan.seeders.up)));
    Node {
        role: NodeRole::Seeder,
        labels: labels(plan, place),
        place,
        group: None,
        members: members.collect(),
        up: Uplink::new(plan.seeders.up, plan.upload_slots),
        down: Pipe::new(plan.seeders.up),
        started: Some(0),
        first: None,
        gone: false,
        slowed: None,
        banned: Default::default(),
        owned: 0,
    }
}

fn proxy(plan: &Plan, number: u32, (group_number, index): (usize, u32), group: &Group, rng: &mut ChaCha8Rng) -> Node {
    let place = Place::of_member(group, index);
    let part: f64 = rng.random_range(0.0..=1.0);
    let within = |(least, most): (f64, f64)| least * (most / least).powf(part);
    let (up, down) = (within(group.up), within(group.down));
    let members = (0..plan.blobs.len()).map(|blob| Some(member(plan, blob, number, false, up.min(down))));
    Node {
        role: NodeRole::Proxy,
        labels: labels(plan, place),
        place,
        group: Some(group_number),
        members: members.collect(),
        up: Uplink::new(up, plan.upload_slots),
        down: Pipe::new(down),
        started: None,
        first: None,
        gone: false,
        slowed: None,
        banned: Default::default(),
        owned: 0,
    }
}
