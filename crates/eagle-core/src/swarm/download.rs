//! The downloading half of a swarm: making requests and taking their answers.

use rand::RngExt as _;

use super::{Action, BanReason, PeerKey, PieceChoice, RequestId, Swarm, Verdict};
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
        request.started = true;
        let asked = request.piece;
        if asked.is_some_and(|asked| asked != piece) || piece.0 >= self.geometry.pieces() {
            self.ban(peer, BanReason::Protocol("an answer with another piece than the one asked for"));
            return false;
        }
        if asked.is_none() {
            let brought_by_others = self.requests.others_for(piece);
            if let Some(request) = self.requests.get_mut(id) {
                request.piece = Some(piece);
            }
            self.busy.insert(piece);
            for (other, id) in brought_by_others {
                self.actions.push_back(Action::Cancel { peer: other, id });
            }
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
            return self.take(piece);
        };
        self.answered(&request);
        self.requests.observe(now, &request);
        if !self.take(piece) {
            self.fill(now);
            return false;
        }
        for (peer, id) in self.requests.others_for(piece) {
            self.actions.push_back(Action::Cancel { peer, id });
        }
        self.fill(now);
        true
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
                RejectReason::NothingToSpread => state.nothing_to_spread = true,
                RejectReason::Cancelled => {}
                RejectReason::Choked => state.choking = true,
                // It says that it owns the piece and does not give it: trust it less for a while.
                RejectReason::NotHere | RejectReason::Failed => {
                    state.snubbed_until = Some(now + self.config.snub);
                    if let Some(piece) = request.piece
                        && state.have.remove(piece)
                    {
                        let count = &mut self.availability[piece.0 as usize];
                        *count = count.saturating_sub(1);
                    }
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
        if let Some(state) = self.peers.get_mut(&request.peer) {
            state.snubbed_until = Some(now + self.config.snub);
            state.blocked_until = Some(now + self.config.retry);
        }
        self.fill(now);
    }

    pub(super) fn drop_stalled(&mut self, now: Timestamp) {
        for id in self.requests.stalled(now, &self.config) {
            let Some(request) = self.requests.remove(id) else { continue };
            self.totals.stalled_requests += 1;
            self.answered(&request);
            self.free(request.piece);
            if let Some(state) = self.peers.get_mut(&request.peer) {
                state.snubbed_until = Some(now + self.config.snub);
            }
            self.actions.push_back(Action::Cancel { peer: request.peer, id });
        }
    }

    /// When a request of the endgame is old enough to be asked a second time; `None` when no second
    /// request could be made then, so that the driver is never woken for nothing.
    pub(super) fn next_hedge(&self) -> Option<Timestamp> {
        if !self.download || self.have.is_full() || !self.has_room() || self.needs_more() {
            return None;
        }
        let age = self.requests.service_time().mul_f64(self.config.hedge_factor);
        self.requests
            .alone()
            .iter()
            .find(|(_, request)| request.piece.is_some_and(|piece| self.best_owner(piece, request.peer).is_some()))
            .map(|(_, request)| request.sent_at + age)
    }

    fn has_room(&self) -> bool {
        self.requests.chosen() < self.config.requests_in_flight
    }

    /// Makes as many requests as may be in flight.
    pub(super) fn fill(&mut self, now: Timestamp) {
        self.wake.set(None);
        if !self.download || self.have.is_full() {
            return;
        }
        self.ask_for_any(now, self.config.spread_requests);
        self.dry = false;
        while self.has_room() {
            let Some(peer) = self.best_uploader() else {
                self.dry = true;
                break;
            };
            let Some(piece) = self.pick(peer) else { break };
            self.request(now, peer, Some(piece));
        }
        if self.requests.len() < self.config.least_in_flight {
            // Too few uploaders to keep the line busy, one seeder for instance: a second request
            // waits there for the first to end.
            self.ask_for_any(now, self.config.least_in_flight);
        }
        if !self.needs_more() {
            self.hedge(now);
        }
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
        let spreads = self.peers.get(&peer).is_some_and(|state| state.load.spreading);
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
                    && !state.nothing_to_spread
                    && !state.is_snubbed()
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
    fn needs_more(&self) -> bool {
        self.have.any_clear(&[&self.busy, &self.unknown])
    }

    /// The least loaded peer that owns something needed; ties at random.
    ///
    /// Choosing the uploader before the piece is what keeps all uploaders busy: the rarest piece
    /// has a single owner, and everyone would go there.
    fn best_uploader(&mut self) -> Option<PeerKey> {
        let pipelined = self.requests.len() < self.config.least_in_flight;
        let per_peer = self.config.requests_per_peer + usize::from(pipelined);
        let mut best: Option<((bool, u32), PeerKey)> = None;
        let mut ties = 0u32;
        for (&key, state) in self.peers.iter() {
            let may = state.serves()
                && !state.load.spreading
                && state.in_flight - state.any_in_flight < per_peer
                && state.have.any_without(&[&self.have, &self.busy, &self.unknown]);
            if !may {
                continue;
            }
            let score = (state.is_snubbed(), state.queue());
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

    fn request(&mut self, now: Timestamp, peer: PeerKey, piece: Option<PieceIndex>) {
        let Some(state) = self.peers.get_mut(&peer) else { return };
        state.in_flight += 1;
        state.asked_since_load = state.asked_since_load.saturating_add(1);
        match piece {
            Some(piece) => {
                self.busy.insert(piece);
            }
            None => state.any_in_flight += 1,
        }
        self.totals.requests += 1;
        let id = self.requests.add(now, peer, piece);
        self.actions.push_back(Action::Request { peer, id, piece });
    }

    /// The endgame: nothing else to ask for, so ask a second peer for what takes too long.
    fn hedge(&mut self, now: Timestamp) {
        let age = self.requests.service_time().mul_f64(self.config.hedge_factor);
        for (_, request) in self.requests.alone() {
            if now < request.sent_at + age || !self.has_room() {
                break;
            }
            let Some(piece) = request.piece else { continue };
            if let Some(peer) = self.best_owner(piece, request.peer) {
                self.request(now, peer, Some(piece));
            }
        }
    }

    /// The least loaded peer but one that owns a piece and would serve it.
    fn best_owner(&self, piece: PieceIndex, but: PeerKey) -> Option<PeerKey> {
        self.peers
            .iter()
            .filter(|(key, state)| {
                **key != but
                    && state.serves()
                    && !state.is_snubbed()
                    && !state.load.spreading
                    && state.in_flight <= self.config.requests_per_peer
                    && state.have.contains(piece)
            })
            .min_by_key(|(key, state)| (state.queue(), **key))
            .map(|(key, _)| *key)
    }

    /// A request has ended, whichever way.
    fn answered(&mut self, request: &super::requests::Request) {
        if let Some(state) = self.peers.get_mut(&request.peer) {
            state.in_flight = state.in_flight.saturating_sub(1);
            if request.any {
                state.any_in_flight = state.any_in_flight.saturating_sub(1);
            }
        }
    }

    /// Takes in the bytes of a piece; false when there is no use for them.
    fn take(&mut self, piece: PieceIndex) -> bool {
        let wanted = piece.0 < self.geometry.pieces() && !self.have.contains(piece) && self.settling.insert(piece);
        if wanted {
            self.busy.insert(piece);
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
