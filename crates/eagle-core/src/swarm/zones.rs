//! Pieces cross into a zone once: who is told of them in other zones, and who asks there.
//!
//! The one that the first source gave a new piece offers it to one peer in each other zone, at once,
//! by a `Have`. Nobody else tells peers of other zones what is new: those hear in longer intervals, by
//! a further handshake, of what was owned for so long that it should be everywhere. Whatever a node
//! then still misses near itself it fetches from afar, one piece now and then.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use rand::RngExt as _;

use super::{Action, FarZone, PeerKey, PieceChoice, Swarm};
use crate::{
    bitfield::Bitfield,
    geometry::PieceIndex,
    time::Timestamp,
    wire::control::{BlobMessage, Load},
};

/// Near peers with whom a node fetches one missing piece from afar per time of patience. More peers
/// share the task, so each does so less often, and what one fetched is among them before most try.
const NEAR_PER_RESCUE: u32 = 5;
/// Times that a request may take before it counts as stalled, until a piece counts as known everywhere:
/// it has to come into the other zones and be passed on twice there. With 1 instead of 2, 1.46
/// times the least crossed and not 1.27 (simulated, 4 zones of 150 nodes, 16 peers per rescue).
const PATIENCES: u32 = 2;
/// Peers of each other zone that are greeted even when there are [`super::SwarmConfig::greeted_peers`]:
/// who knows none of a zone cannot offer a piece there.
const FAR_PEERS: usize = 3;

/// What a swarm keeps in mind of other zones.
#[derive(Debug)]
pub(super) struct Zones {
    /// Pieces that the first source gave us.
    first: Bitfield,
    /// Owned for so long that peers far away may be told.
    settled: Bitfield,
    /// Owned, and since when, but not yet among those.
    recent: VecDeque<(Timestamp, PieceIndex)>,
    /// When peers far away were last told.
    told_at: Timestamp,
    /// Not before then is a missing piece fetched from afar.
    rescue_at: Option<Timestamp>,
}

impl Zones {
    pub(super) fn new(have: &Bitfield) -> Self {
        Self {
            first: Bitfield::new(have.len()),
            settled: have.clone(),
            recent: VecDeque::new(),
            told_at: Timestamp(0),
            rescue_at: None,
        }
    }

    /// The first source gave us this piece.
    pub(super) fn note_first(&mut self, piece: PieceIndex) {
        self.first.insert(piece);
    }
}

impl Swarm {
    /// Whether a peer of another zone is greeted although there are many near ones.
    pub(super) fn lacks_peers_of(&self, zone: Option<FarZone>) -> bool {
        zone.is_some() && self.peers.values().filter(|state| state.zone == zone).count() < FAR_PEERS
    }

    pub(super) fn has_far_peers(&self) -> bool {
        self.peers.values().any(|state| state.zone.is_some())
    }

    /// What a new peer is told that we own.
    pub(super) fn shown_to(&self, zone: Option<FarZone>) -> &Bitfield {
        if zone.is_some() && self.download { &self.zones.settled } else { &self.have }
    }

    /// How long a new piece has to come into the other zones by offers.
    fn far_patience(&self) -> Duration {
        let stall = self.requests.service_time().saturating_mul(self.config.stall_factor);
        stall.max(self.config.shortest_stall) * PATIENCES
    }

    /// A piece is owned: if we are the first to, one peer in each other zone is offered it.
    pub(super) fn offer(&mut self, now: Timestamp, piece: PieceIndex) {
        if !self.download {
            return;
        }
        self.zones.recent.push_back((now, piece));
        self.settle_recent(now);
        if !self.zones.first.contains(piece) {
            return;
        }
        // Who was offered least, at random among equals.
        let mut chosen: BTreeMap<FarZone, (u32, u32, PeerKey)> = BTreeMap::new();
        for (&key, state) in self.peers.iter() {
            let Some(zone) = state.zone.filter(|_| !state.load.spreading && !state.have.contains(piece)) else {
                continue;
            };
            let score = (state.offered, self.rng.random(), key);
            let best = chosen.entry(zone).or_insert(score);
            *best = score.min(*best);
        }
        if chosen.is_empty() {
            return;
        }
        let load = self.load();
        for (.., peer) in chosen.into_values() {
            if let Some(state) = self.peers.get_mut(&peer) {
                state.offered += 1;
            }
            let message = BlobMessage::Have { pieces: vec![piece.0], load };
            self.actions.push_back(Action::Send { peer, message });
        }
        // Near peers hear of it an interval later, so that the requests from afar come first.
        self.haves_sent_at = now;
    }

    fn settle_recent(&mut self, now: Timestamp) {
        let patience = self.far_patience();
        while let Some(&(_, piece)) = self.zones.recent.front().filter(|(since, _)| now >= *since + patience) {
            self.zones.recent.pop_front();
            self.zones.settled.insert(piece);
        }
    }

    /// A peer said by a `Have` that it owns these pieces; one far away thereby offers them.
    pub(super) fn note_offers(&mut self, peer: PeerKey, pieces: &[u32], load: Load) {
        if let Some(state) = self.peers.get_mut(&peer).filter(|state| state.zone.is_some() && !load.spreading) {
            for piece in pieces {
                state.offers.insert(PieceIndex(*piece));
            }
        }
    }

    /// Tells peers far away what should be everywhere by now.
    pub(super) fn tell_far_peers(&mut self, now: Timestamp) {
        if self.next_far_news().is_none_or(|at| now < at) {
            return;
        }
        self.settle_recent(now);
        self.zones.told_at = now;
        let bitfield = self.zones.settled.to_bytes();
        let message = self.handshake(bitfield);
        for (&peer, state) in self.peers.iter() {
            if state.zone.is_some() && !state.load.spreading && self.zones.settled.any_without(&[&state.have]) {
                self.actions.push_back(Action::Send { peer, message: message.clone() });
            }
        }
    }

    fn next_far_news(&self) -> Option<Timestamp> {
        let patience = self.far_patience();
        let (since, _) = self.zones.recent.front().filter(|_| self.has_far_peers())?;
        Some((*since + patience).max(self.zones.told_at + patience))
    }

    /// When news for other zones, or a fetch from there, are due.
    pub(super) fn next_far(&self) -> Option<Timestamp> {
        let rescue = self.zones.rescue_at.filter(|_| self.download && !self.have.is_full());
        [self.next_far_news(), rescue].into_iter().flatten().min()
    }

    /// Pieces that peers near us own, and how many such peers there are.
    fn near(&self) -> (Bitfield, u32) {
        let mut owned = Bitfield::new(self.geometry.pieces());
        let mut peers = 0;
        for state in self.peers.values() {
            if state.zone.is_none() && !state.choking && !state.service.is_shunned() {
                owned.union(&state.have);
                peers += 1;
            }
        }
        (owned, peers)
    }

    /// Asks far away for what was offered to us, and now and then for what nobody near us owns.
    pub(super) fn ask_afar(&mut self, now: Timestamp) {
        if !self.has_far_peers() || !self.needs_more() {
            self.zones.rescue_at = None;
            return;
        }
        let (near, peers) = self.near();
        // Offers come as new pieces do, to one node of many: they need no place among the others.
        let mut room = (self.budget + self.config.least_in_flight).saturating_sub(self.requests.chosen());
        let keys: Vec<PeerKey> =
            self.peers.iter().filter(|(_, state)| state.zone.is_some()).map(|(key, _)| *key).collect();
        for peer in &keys {
            while room > 0 && self.ask_one_afar(now, *peer, &near, true) {
                room -= 1;
            }
        }
        let alone = peers == 0;
        if self.zones.rescue_at.is_none_or(|at| now >= at) || alone {
            let due = alone || self.zones.rescue_at.is_some();
            let first = self.rng.random_range(0..keys.len());
            let mut asked = false;
            for place in 0..keys.len() {
                let wanted = due && (alone || !asked) && self.requests.chosen() < self.budget;
                asked |= wanted && self.ask_one_afar(now, keys[(first + place) % keys.len()], &near, false);
            }
            if !due || asked || self.zones.rescue_at.is_some_and(|at| now >= at) {
                let period = self.far_patience().saturating_mul(peers.max(1)) / NEAR_PER_RESCUE;
                self.zones.rescue_at = Some(now + period.mul_f64(self.rng.random_range(0.5..1.5)));
            }
        }
    }

    fn ask_one_afar(&mut self, now: Timestamp, peer: PeerKey, near: &Bitfield, offers: bool) -> bool {
        let Some(state) = self.peers.get(&peer) else { return false };
        let most = self.config.requests_per_peer + usize::from(offers);
        let may = state.serves()
            && !state.load.spreading
            && !state.service.is_shunned()
            && state.in_flight - state.any_in_flight < most;
        if !may {
            return false;
        }
        let choice = PieceChoice {
            theirs: if offers { &state.offers } else { &state.have },
            unwanted: &[&self.have, &self.busy, &self.unknown, near],
            availability: &self.availability,
            position: self.position,
            // A reader's next pieces are the same for all: they would all fetch them at once.
            window: if offers { self.config.window } else { 0 },
        };
        let Some(piece) = self.picker.pick(&choice, &mut self.rng) else { return false };
        self.request(now, peer, Some(piece));
        true
    }
}
