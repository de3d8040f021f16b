//! Second requests for what takes too long, and whom to leave out as long as others do better.

use std::time::Duration;

use super::{Action, PeerKey, Swarm, peers::PeerState, requests::Request};
use crate::{geometry::PieceIndex, time::Timestamp};

/// Once duplicates are more than one piece in this many, and [`FREE_DUPLICATES`], second requests
/// are made later only: they shall cost less than a hundredth of the bytes.
const PIECES_PER_DUPLICATE: u64 = 128;
/// Duplicates that do not count: with few pieces one is more than a hundredth already.
const FREE_DUPLICATES: u64 = 1;
/// Peers asked for one piece at once, the weak ones included.
const MOST_ASKED: usize = 3;
/// How many times later second requests are made when there were too many.
const LATER: u32 = 4;

impl Swarm {
    /// When the next second request is to be made; `None` when none could be made then, so that the
    /// driver is never woken for nothing.
    pub(super) fn next_hedge(&self) -> Option<Timestamp> {
        self.hedges().into_iter().map(|(at, ..)| at).min()
    }

    /// Asks a second peer for what takes too long: in the endgame anything, before it what a
    /// reader waits for.
    pub(super) fn hedge(&mut self, now: Timestamp) {
        // Each second request takes room and changes who is least loaded, so one at a time.
        while let Some((_, piece, peer)) = self.hedges().into_iter().filter(|(at, ..)| *at <= now).min() {
            self.request(now, peer, Some(piece));
        }
    }

    /// Pieces that may be asked for a second time, from when on, and of whom.
    fn hedges(&self) -> Vec<(Timestamp, PieceIndex, PeerKey)> {
        if !self.download || self.have.is_full() {
            return Vec::new();
        }
        let endgame = !self.needs_more();
        // What a reader waits for may go beyond the limit, by one request.
        let room = self.budget + usize::from(!endgame);
        if self.requests.chosen() >= room {
            return Vec::new();
        }
        let next = self.have.first_missing(self.position.0);
        if !endgame && !next.is_some_and(|piece| self.requests.asked_for(piece).any(|peer| self.is_weak(peer))) {
            return Vec::new();
        }
        self.requests
            .newest()
            .into_iter()
            .filter(|(piece, _)| endgame || Some(*piece) == next)
            .filter_map(|(piece, request)| {
                // One good peer is enough; weak ones may let us down, however many were asked.
                let asked: Vec<PeerKey> = self.requests.asked_for(piece).collect();
                let enough = asked.len() > 1 && asked.iter().any(|peer| !self.is_weak(*peer));
                let peer = self.best_owner(piece, &asked).filter(|_| !enough && asked.len() < MOST_ASKED)?;
                Some((request.sent_at + self.hedge_age(&request), piece, peer))
            })
            .collect()
    }

    /// Age at which a request gets a second one beside it.
    fn hedge_age(&self, request: &Request) -> Duration {
        let usual = self.requests.service_time();
        let age = if self.is_weak(request.peer) { usual } else { usual.mul_f64(self.config.hedge_factor) };
        let wasted =
            self.totals.duplicate_pieces > FREE_DUPLICATES + u64::from(self.have.count()) / PIECES_PER_DUPLICATE;
        if wasted { age * LATER } else { age }
    }

    /// Whether a peer is clearly slower than the others or let down the last request.
    fn is_weak(&self, peer: PeerKey) -> bool {
        self.peers
            .get(&peer)
            .is_none_or(|state| state.service.is_doubted() || state.service.slowness(self.requests.transfer_time()) > 1)
    }

    /// The least loaded peer but one that owns a piece and would serve it well.
    fn best_owner(&self, piece: PieceIndex, but: &[PeerKey]) -> Option<PeerKey> {
        self.good_owners(piece)
            .filter(|(key, state)| !but.contains(key) && state.in_flight <= self.config.requests_per_peer)
            .min_by_key(|(key, state)| (state.queue(), *key))
            .map(|(key, _)| key)
    }

    fn good_owners(&self, piece: PieceIndex) -> impl Iterator<Item = (PeerKey, &PeerState)> {
        self.peers.iter().map(|(key, state)| (*key, state)).filter(move |(key, state)| {
            state.serves()
                && !state.load.spreading
                && state.group.is_none()
                && !self.is_weak(*key)
                && state.have.contains(piece)
        })
    }

    /// Whether a piece that a weak peer could give comes sooner when we wait for one of the others
    /// to have room for it.
    pub(super) fn better_left_to_others(&self, peer: PeerKey, piece: PieceIndex) -> bool {
        let Some(state) = self.peers.get(&peer).filter(|_| self.is_weak(peer)) else { return false };
        if !state.service.is_shunned() {
            // A slow peer is worth asking for what comes in time all the same, and one that failed is
            // worth a try once its time is over.
            let usual = self.requests.service_time();
            let missing = self.geometry.pieces() - self.have.count();
            let at_once = u32::try_from(self.requests.len()).unwrap_or(u32::MAX).max(1);
            let left = usual.saturating_mul(missing) / at_once;
            let expected = state.service.doubled(state.service.expected().unwrap_or(usual));
            if expected <= left.max(usual * 2) {
                return false;
            }
        }
        self.good_owners(piece).next().is_some()
    }

    /// Tells everybody who was asked for a piece that it is no longer needed.
    pub(super) fn cancel_all(&mut self, piece: PieceIndex) {
        for (peer, id) in self.requests.cancel_all(piece) {
            self.actions.push_back(Action::Cancel { peer, id });
        }
    }
}
