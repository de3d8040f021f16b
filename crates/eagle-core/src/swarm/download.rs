//! The downloading half of a swarm: making requests and taking their answers.

use std::time::Duration;

use rand::RngExt as _;

use super::{Action, BanReason, PeerKey, PieceChoice, RequestId, Swarm, Verdict, requests::Request};
use crate::{
    geometry::PieceIndex,
    time::Timestamp,
    wire::{control::Load, data::RejectReason},
};

impl Swarm {
    /// An answer begins: `piece` is on its way. False when it is not wanted, or not what was asked.
    pub fn handle_started(&mut self, now: Timestamp, id: RequestId, piece: PieceIndex, load: Load) -> bool {
        let Some(request) = self.requests.get_mut(id) else { return false };
        let peer = request.peer;
        request.heard_at = now;
        request.started_at = Some(now);
        let (asked, moved) = (request.piece, request.cancelled);
        if asked.is_some_and(|asked| asked != piece) || piece.0 >= self.geometry.pieces() {
            self.ban(peer, BanReason::Protocol("an answer with another piece than the one asked for"));
            return false;
        }
        if asked.is_none() {
            self.cancel_all(piece);
            if let Some(request) = self.requests.get_mut(id) {
                request.piece = Some(piece);
            }
            self.busy.insert(piece);
        }
        if moved {
            self.revive(id, piece);
        }
        self.note_queue(peer, load);
        self.fill(now);
        true
    }

    /// Bytes of an answer came in.
    pub fn handle_progress(&mut self, now: Timestamp, id: RequestId) {
        if let Some(request) = self.requests.get_mut(id) {
            request.heard_at = now;
        }
    }

    /// All bytes of a piece are in; they are to be verified and stored unless this says false. When
    /// the hash is still on its way (a seeder may give a piece before its hash has come), the driver
    /// keeps the bytes until then.
    pub fn handle_received(&mut self, now: Timestamp, id: RequestId, piece: PieceIndex) -> bool {
        let Some(request) = self.requests.remove(id) else {
            // Given up in the meantime; welcome all the same if nobody else has brought it.
            if let Some(late) = self.requests.came_late(id) {
                self.note_served(now, &late);
            }
            return self.take(piece);
        };
        self.answered(&request);
        if request.piece.is_some_and(|asked| asked != piece) {
            self.ban(request.peer, BanReason::Protocol("another piece than the one asked for"));
            self.free(request.piece);
            self.fill(now);
            return false;
        }
        self.note_served(now, &request);
        let reach = self.reach_of(request.peer, piece, request.any);
        self.boundaries.note_reach(piece, reach);
        let wanted = self.take(piece);
        if !wanted {
            // Another has brought it since this answer began, which had it count as on its way.
            self.free(Some(piece));
        }
        self.fill(now);
        wanted
    }

    /// The verification of a piece from `peer` has ended.
    pub fn handle_verified(&mut self, now: Timestamp, peer: PeerKey, piece: PieceIndex, verdict: Verdict) {
        match verdict {
            Verdict::Stored => self.own(now, piece),
            Verdict::Corrupt | Verdict::NotStored => {
                self.unsettle(piece);
                if verdict == Verdict::Corrupt {
                    self.totals.corrupt_pieces += 1;
                    self.ban(peer, BanReason::CorruptPiece(piece));
                }
            }
        }
        self.fill(now);
    }

    /// A request was refused.
    pub fn handle_rejected(&mut self, now: Timestamp, id: RequestId, reason: RejectReason, load: Load) {
        let Some(request) = self.requests.remove(id) else { return };
        self.answered(&request);
        self.note_queue(request.peer, load);
        if let Some(state) = self.peers.get_mut(&request.peer) {
            match reason {
                RejectReason::NothingToSpread => state.nothing_until = Some(now + self.config.retry),
                RejectReason::Cancelled => {}
                // It says so by a message too if that is to last; its queue may just be full.
                RejectReason::Choked => state.blocked_until = Some(now + self.config.retry),
                // It says that it owns the piece and does not give it: trust it less for a while.
                RejectReason::NotHere | RejectReason::Failed => {
                    if let Some(piece) = request.piece
                        && state.have.remove(piece)
                    {
                        let count = &mut self.availability[piece.0 as usize];
                        *count = count.saturating_sub(1);
                    }
                    state.refusals += 1;
                    if state.refusals >= self.config.most_refusals {
                        self.ban(request.peer, BanReason::Protocol("it owns nothing of what it says it does"));
                    }
                    self.strike(now, &request);
                }
            }
        }
        self.free(request.piece);
        self.fill(now);
    }

    /// A request failed with its channel; another may do better.
    pub fn handle_failed(&mut self, now: Timestamp, id: RequestId) {
        let Some(request) = self.requests.remove(id) else { return };
        self.answered(&request);
        self.free(request.piece);
        self.strike(now, &request);
        if let Some(state) = self.peers.get_mut(&request.peer) {
            state.blocked_until = Some(now + self.config.retry);
        }
        self.fill(now);
    }

    /// When the first request will have brought nothing for too long.
    pub(super) fn next_stall(&self) -> Option<Timestamp> {
        self.requests.iter().map(|(_, request)| request.heard_at + self.patience(request)).min()
    }

    pub(super) fn drop_stalled(&mut self, now: Timestamp) {
        let stalled: Vec<RequestId> = self
            .requests
            .iter()
            .filter(|(_, request)| now >= request.heard_at + self.patience(request))
            .map(|(id, _)| id)
            .collect();
        // Several requests that one peer lets down at once are one sign, not many.
        let mut struck = Vec::new();
        for id in stalled {
            let Some(request) = self.requests.give_up(id) else { continue };
            self.totals.stalled_requests += 1;
            self.answered(&request);
            self.free(request.piece);
            if !struck.contains(&request.peer) {
                struck.push(request.peer);
                self.strike(now, &request);
            }
            self.actions.push_back(Action::Cancel { peer: request.peer, id });
        }
    }

    /// How long a request may bring nothing: a few times what requests take here or at this peer,
    /// whichever is longer, and twice as long for each it has let down in a row.
    fn patience(&self, request: &Request) -> Duration {
        let usual = self.requests.service_time().max(request.expected.unwrap_or_default());
        let wait = usual.saturating_mul(self.config.stall_factor).max(self.config.shortest_stall);
        self.peers.get(&request.peer).map_or(wait, |state| state.service.doubled(wait))
    }

    /// A request was let down by its peer.
    fn strike(&mut self, now: Timestamp, request: &Request) {
        let patience = self.patience(request);
        if let Some(state) = self.peers.get_mut(&request.peer) {
            state.service.strike(now, patience, &self.config);
        }
    }

    /// A request was answered in full.
    fn note_served(&mut self, now: Timestamp, request: &Request) {
        let times = self.requests.observe(now, request);
        if let Some(state) = self.peers.get_mut(&request.peer) {
            state.service.answered(times);
            state.refusals = 0;
        }
    }

    fn has_room(&self) -> bool {
        self.requests.chosen() < self.budget
    }

    /// Makes as many requests as may be in flight.
    pub(super) fn fill(&mut self, now: Timestamp) {
        self.wake.set(None);
        if !self.download || self.have.is_full() {
            return;
        }
        self.ask_for_any(now, self.config.spread_requests);
        self.ask_afar(now);
        self.dry = false;
        let mut passed_over = Vec::new();
        while self.has_room() {
            let Some(peer) = self.best_uploader(&passed_over) else {
                self.dry = passed_over.is_empty();
                break;
            };
            let Some(piece) = self.pick(peer) else { break };
            if self.better_left_to_others(peer, piece) {
                passed_over.push(peer);
            } else {
                self.request(now, peer, Some(piece));
            }
        }
        if self.requests.len() < self.config.least_in_flight {
            // Too few uploaders to keep the line busy, one seeder for instance: a second request
            // waits there for the first to end.
            self.ask_for_any(now, self.config.least_in_flight);
        }
        self.hedge(now);
    }

    /// Makes as many requests as may be in flight after a message from one peer, by which nothing
    /// changed but what we know of that peer: most messages change nothing that matters, and there
    /// are as many of them as there are pieces and neighbours together.
    pub(super) fn fill_from(&mut self, now: Timestamp, peer: PeerKey) {
        if !self.download || self.have.is_full() {
            return;
        }
        let useful = self
            .peers
            .get(&peer)
            .is_some_and(|state| state.serves() && state.have.any_without(&[&self.have, &self.busy, &self.unknown]));
        let spreads = self.peers.get(&peer).is_some_and(|state| state.load.spreading || state.group.is_some());
        let unchanged = !useful && self.dry || !spreads && !self.has_room();
        if unchanged && self.needs_more() {
            return;
        }
        self.fill(now);
    }

    /// Seeders that still spread choose what they give.
    fn ask_for_any(&mut self, now: Timestamp, limit: usize) {
        if !self.needs_more() {
            return;
        }
        let seeders: Vec<PeerKey> = self
            .peers
            .iter()
            .filter(|(_, state)| {
                state.load.spreading
                    && state.serves()
                    && state.nothing_until.is_none()
                    && !state.service.is_shunned()
                    && state.any_in_flight < limit
                    && state.have.any_without(&[&self.have, &self.busy, &self.unknown])
            })
            .map(|(key, _)| *key)
            .collect();
        for peer in seeders {
            self.request(now, peer, None);
        }
    }

    /// Whether a piece with a known hash is neither owned nor on its way.
    pub(super) fn needs_more(&self) -> bool {
        self.have.any_clear(&[&self.busy, &self.unknown])
    }

    /// The least loaded peer that owns something needed; ties at random.
    ///
    /// Choosing the uploader before the piece is what keeps all uploaders busy: the rarest piece
    /// has a single owner, and everyone would go there.
    fn best_uploader(&mut self, but: &[PeerKey]) -> Option<PeerKey> {
        let pipelined = self.requests.len() < self.config.least_in_flight;
        let per_peer = self.config.requests_per_peer + usize::from(pipelined);
        let usual = self.requests.transfer_time();
        let mut best: Option<((bool, u32), PeerKey)> = None;
        let mut ties = 0u32;
        for (&key, state) in self.peers.iter() {
            let may = state.serves()
                && !state.load.spreading
                && state.group.is_none()
                && !but.contains(&key)
                && state.in_flight - state.any_in_flight < per_peer
                && state.have.any_without(&[&self.have, &self.busy, &self.unknown]);
            if !may {
                continue;
            }
            // A peer that takes ten times as long counts as one with a queue ten times as long.
            let wait = (state.queue() + 1).saturating_mul(state.service.slowness(usual));
            let score = (state.service.is_shunned(), wait);
            match best {
                Some((least, _)) if score > least => {}
                Some((least, _)) if score == least => {
                    ties += 1;
                    if self.rng.random_range(0..ties) == 0 {
                        best = Some((score, key));
                    }
                }
                _ => {
                    best = Some((score, key));
                    ties = 1;
                }
            }
        }
        best.map(|(_, key)| key)
    }

    fn pick(&mut self, peer: PeerKey) -> Option<PieceIndex> {
        let state = self.peers.get(&peer)?;
        let choice = PieceChoice {
            theirs: &state.have,
            unwanted: &[&self.have, &self.busy, &self.unknown],
            availability: &self.availability,
            position: self.position,
            window: self.config.window,
        };
        self.picker.pick(&choice, &mut self.rng)
    }

    pub(super) fn request(&mut self, now: Timestamp, peer: PeerKey, piece: Option<PieceIndex>) {
        let Some(state) = self.peers.get_mut(&peer) else { return };
        let expected = state.service.expected();
        state.in_flight += 1;
        state.asked_since_load = state.asked_since_load.saturating_add(1);
        match piece {
            Some(piece) => {
                self.busy.insert(piece);
            }
            None => state.any_in_flight += 1,
        }
        self.totals.requests += 1;
        let any = piece.is_none();
        let id = self.requests.add(Request {
            peer,
            piece,
            any,
            cancelled: false,
            sent_at: now,
            heard_at: now,
            started_at: None,
            expected,
        });
        self.actions.push_back(Action::Request { peer, id, piece });
    }

    /// A request has ended, whichever way.
    fn answered(&mut self, request: &Request) {
        if let Some(state) = self.peers.get_mut(&request.peer) {
            state.in_flight = state.in_flight.saturating_sub(1);
            if request.any {
                state.any_in_flight = state.any_in_flight.saturating_sub(1);
            }
        }
    }

    /// Takes in the bytes of a piece; false when there is no use for them. Who else was asked for it
    /// need not send it any more.
    fn take(&mut self, piece: PieceIndex) -> bool {
        let wanted = piece.0 < self.geometry.pieces() && !self.have.contains(piece) && self.settling.insert(piece);
        if wanted {
            self.busy.insert(piece);
            self.cancel_all(piece);
        } else {
            self.totals.duplicate_pieces += 1;
        }
        wanted
    }

    /// What was here of a piece turned out to be of no use.
    pub(super) fn unsettle(&mut self, piece: PieceIndex) {
        self.settling.remove(piece);
        self.free(Some(piece));
    }

    /// A piece is needed again, unless another request brings it or its bytes are here.
    pub(super) fn free(&mut self, piece: Option<PieceIndex>) {
        if let Some(piece) = piece
            && !self.requests.wants(piece)
            && !self.settling.contains(piece)
        {
            self.busy.remove(piece);
        }
    }
}
