//! Requests, and the pieces that answer them.

use eagle_core::{
    PieceIndex, Timestamp,
    swarm::{RequestId, Verdict},
    wire::data::RejectReason,
};
use rand::RngExt as _;

use crate::{
    event::Event,
    message_size,
    network::{Next, Transfer, time},
    node::key,
    world::World,
};

/// SHA-256 of a piece, bytes per second (`docs/architecture.md`).
const HASH_RATE: f64 = 1.6e9;
/// Pause between two reports of a piece's progress, as the real channel makes them, nanoseconds.
const PROGRESS_EVERY: u64 = 100_000_000;

impl World<'_> {
    pub(crate) fn request(&mut self, from: u32, to: u32, blob: u16, id: RequestId, piece: Option<PieceIndex>) {
        self.report.control_bytes += message_size::REQUEST_AND_ANSWER;
        let lost = self.plan.faults.lost_requests > 0.0 && self.rng.random_bool(self.plan.faults.lost_requests);
        let (dead, now) = (self.is_dead(to), self.now);
        let Some(swarm) = self.nodes[to as usize].swarm(blob).filter(|_| !lost) else { return };
        match swarm.handle_request(Timestamp(now), key(from), piece) {
            Ok(_) if dead => {}
            Ok(piece) => {
                let length = swarm.geometry().length(piece);
                let receiver = swarm.rate_of(key(from));
                self.nodes[to as usize].up.wait(receiver, Transfer::new(from, blob, id, piece, length));
                self.admit(to);
            }
            Err(reason) => self.reject(to, from, blob, id, reason),
        }
        self.settle(to, blob);
    }

    /// Whether a node accepts requests and never answers.
    fn is_dead(&self, node: u32) -> bool {
        node.checked_sub(self.plan.seeders.count).is_some_and(|number| number < self.plan.faults.dead)
    }

    pub(crate) fn cancel(&mut self, from: u32, to: u32, blob: u16, id: RequestId) {
        if let Some(transfer) = self.nodes[to as usize].up.cancel(from, id, blob) {
            if let Some(swarm) = self.nodes[to as usize].swarm(blob) {
                swarm.handle_uploaded(key(from), transfer.piece, false);
            }
            self.reject(to, from, blob, id, RejectReason::Cancelled);
            self.settle(to, blob);
        }
    }

    fn reject(&mut self, from: u32, to: u32, blob: u16, id: RequestId, reason: RejectReason) {
        let Some(load) = self.nodes[from as usize].swarm(blob).map(|swarm| swarm.load()) else { return };
        self.after(self.latency(from, to), Event::Reject { to, blob, id, reason, load });
    }

    /// Fills free upload slots.
    pub(crate) fn admit(&mut self, node: u32) {
        while let Some(transfer) = self.nodes[node as usize].up.admit(self.now) {
            self.begin(node, transfer);
        }
        self.send(node);
    }

    fn begin(&mut self, node: u32, transfer: Transfer) {
        let Transfer { to, blob, id, piece, .. } = transfer;
        if let Some(load) = self.nodes[node as usize].swarm(blob).map(|swarm| swarm.load()) {
            self.after(self.latency(node, to), Event::Begin { to, blob, id, piece, load });
        }
    }

    /// Puts the next chunk on a node's uplink, when that is free.
    fn send(&mut self, node: u32) {
        let now = self.now;
        let from = &mut self.nodes[node as usize];
        if from.up.sending || from.gone {
            return;
        }
        let place = match from.up.next(now) {
            Next::Send(place) => place,
            next => {
                if let Some(transfer) = from.up.admit(now) {
                    self.begin(node, transfer);
                    return self.send(node);
                }
                if let Next::Wait(at) = next
                    && from.up.wake.is_none_or(|wake| at < wake)
                {
                    from.up.wake = Some(at);
                    self.at(at, Event::Wake { node, at });
                }
                return;
            }
        };
        let (rate, here) = (from.up.rate, from.place);
        let Some(transfer) = from.up.begin_chunk(place).map(|transfer| *transfer) else { return };
        let Transfer { to, blob, id, piece, left, .. } = transfer;
        let bytes = from.up.chunk(left);
        let sent = now + time(bytes, rate);
        self.at(sent, Event::Sent(node));
        // Store and forward: the next link takes the chunk once this one is done.
        let other = self.nodes[to as usize].place;
        self.report.count_crossing(here.boundary(other), bytes);
        let ready = self.shared_links.pass(&self.plan.links, here, other, sent + self.latency(node, to), bytes);
        let receiver = &mut self.nodes[to as usize];
        // What a vanished receiver was sent is never acknowledged.
        let arrives = if receiver.gone { u64::MAX } else { receiver.down.pass(ready, bytes) };
        let told = transfer.told;
        let progress = arrives != u64::MAX && left > bytes && arrives > told + PROGRESS_EVERY;
        if let Some(transfer) = self.nodes[node as usize].up.on_link() {
            transfer.sent(bytes, arrives);
            if progress {
                transfer.told = arrives;
            }
        }
        if progress && told > 0 {
            self.at(arrives, Event::Progress { to, blob, id });
        }
        if left == bytes && arrives != u64::MAX {
            self.at(arrives, Event::Arrived { from: node, to, blob, id, piece });
        }
    }

    pub(crate) fn sent(&mut self, node: u32) {
        let state = &mut self.nodes[node as usize];
        if let Some(transfer) = state.up.end_chunk() {
            let seeder = state.group.is_none();
            if let Some(swarm) = state.swarm(transfer.blob) {
                swarm.handle_uploaded(key(transfer.to), transfer.piece, true);
                if seeder {
                    self.report.seeder_bytes += u64::from(swarm.geometry().length(transfer.piece));
                }
            }
            self.admit(node);
            self.settle(node, transfer.blob);
        } else {
            self.send(node);
        }
    }

    pub(crate) fn wake(&mut self, node: u32, at: u64) {
        let up = &mut self.nodes[node as usize].up;
        if up.wake == Some(at) {
            up.wake = None;
            self.send(node);
        }
    }

    pub(crate) fn arrived(&mut self, from: u32, to: u32, blob: u16, id: RequestId, piece: PieceIndex) {
        let now = Timestamp(self.now);
        if self.nodes[from as usize].gone {
            return;
        }
        let Some(swarm) = self.nodes[to as usize].swarm(blob) else { return };
        let length = swarm.geometry().length(piece);
        let wanted = swarm.handle_received(now, id, piece);
        self.report.delivered_bytes += u64::from(length);
        if wanted {
            let faults = self.plan.faults;
            let corrupt = faults.corrupt > 0.0 && from % 2 == 1 && self.rng.random_bool(faults.corrupt);
            let verdict = if corrupt { Verdict::Corrupt } else { Verdict::Stored };
            self.after(time(length, HASH_RATE), Event::Verified { node: to, from, blob, piece, verdict });
        }
        self.settle(to, blob);
    }

    pub(crate) fn verified(&mut self, node: u32, from: u32, blob: u16, piece: PieceIndex, verdict: Verdict) {
        let now = self.now;
        let state = &mut self.nodes[node as usize];
        let Some(swarm) = state.swarm(blob) else { return };
        swarm.handle_verified(Timestamp(now), key(from), piece, verdict);
        if verdict == Verdict::Stored {
            self.owners[usize::from(blob)][piece.0 as usize] += 1;
            self.stored(node, blob);
        }
        self.settle(node, blob);
    }

    /// A node owns one more piece: its reader moves on, and it may be done.
    fn stored(&mut self, node: u32, blob: u16) {
        let now = self.now;
        let state = &mut self.nodes[node as usize];
        state.owned += 1;
        let Some(member) = state.members[usize::from(blob)].as_mut() else { return };
        let reached = member.swarm.have().first_missing(member.position).map_or(u32::MAX, |piece| piece.0);
        if reached != member.position {
            member.position = reached;
            member.swarm.handle_position(PieceIndex(reached));
        }
        let begun = reached > 0;
        let half = member.swarm.have().count() * 2 >= member.swarm.geometry().pieces();
        if member.swarm.is_complete() && member.finished.is_none() {
            member.finished = Some(now);
            if state.is_done() {
                self.unfinished -= 1;
                self.after(0, Event::Announce(node));
            }
            for later in blob + 1..self.blobs() {
                self.settle(node, later);
            }
        }
        let state = &mut self.nodes[node as usize];
        if begun && blob == 0 && state.first.is_none() {
            state.first = Some(now);
        }
        if half && blob == 0 && node - self.plan.seeders.count < self.plan.faults.vanish && !state.gone {
            self.vanish(node);
            self.after(0, Event::Lost(node));
        }
    }
}
