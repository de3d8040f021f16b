//! Nodes of different rates: how many neighbours and requests each has, and who gets new pieces first.
//!
//! Every node says with its greeting what it can send and take. Where all say the same, or nothing, all
//! of this changes nothing. Where they differ, three things would keep fast nodes from their rate: they
//! have too few requests in flight at neighbours that are mostly slower; some have by chance neighbours
//! that are too slow altogether; and slow nodes are given new pieces first, and keep them for long.

use std::time::Duration;

use super::{PeerKey, Swarm, peers::Peers, spread::Spread};
use crate::{
    FarGroup,
    time::Timestamp,
    wire::control::{BlobMessage, HostRate},
};

/// Requests in flight go with the node's rate over its neighbours' mean rate, to this power. 1,000
/// nodes of 1.25 to 125 MB/s need neither as many as the rate asks for nor as few (`docs/benchmarks.md`).
const POWER: f64 = 0.7;
/// Least requests in flight by that: one arrives while the next waits.
const LEAST_REQUESTS: usize = 2;
/// Most requests in flight by that: what one uploader serves at once, so that pieces which wait at a node
/// that stops for a moment stay few.
const MOST_REQUESTS: usize = 32;
/// Times our rate that a neighbour counts for in that mean, at most: what a single one says of itself must not
/// decide.
const MOST_COUNTED: f64 = 8.0;
/// A new piece is not for a node while so many others that want it are clearly faster: enough that they
/// share the work of passing it on, few enough that it is never with the slow half.
const ENOUGH_FASTER: usize = 32;
/// Peers named to a node that it has not greeted and may still: a tracker's answer.
const MOST_NAMED: usize = 64;

/// What a swarm keeps in mind of rates.
#[derive(Debug)]
pub(super) struct Rates {
    /// What this node can send and take.
    pub(super) own: HostRate,
    /// Requests in flight, over all of the node's swarms.
    pub(super) most_requests: usize,
    /// Requests that this node's earlier swarms have in flight.
    pub(super) requested_before: usize,
    /// Peers named to us, connected and not greeted, and their groups.
    pub(super) named: Vec<(PeerKey, Option<FarGroup>)>,
    /// Since when nodes were passed over for faster ones, and none of those has asked.
    passed_over_since: Option<Timestamp>,
}

impl Rates {
    pub(super) fn new(most_requests: usize) -> Self {
        Self { own: HostRate::UNKNOWN, most_requests, requested_before: 0, named: Vec::new(), passed_over_since: None }
    }

    /// Somebody was given what is new, or waits for it.
    pub(super) fn has_asked(&mut self) {
        self.passed_over_since = None;
    }

    /// Whether a node is to be passed over for faster ones; they have as long as `patience` to ask.
    pub(super) fn passes_over(&mut self, now: Timestamp, patience: Duration, slow: bool) -> bool {
        if !slow {
            self.passed_over_since = None;
            return false;
        }
        now < *self.passed_over_since.get_or_insert(now) + patience
    }
}

/// Whether enough others that want what is new are clearly faster than this peer.
pub(super) fn enough_are_faster(peers: &Peers, spread: &Spread, peer: PeerKey) -> bool {
    let Some(rate) = peers.get(&peer).map(|state| state.rate) else { return false };
    let faster = || {
        let wanting = peers.iter().filter(|(_, state)| state.interested && state.unchoked);
        wanting.filter(|(_, state)| state.rate.is_clearly_faster_than(rate))
    };
    // Those that pass nothing on are looked for only where that may matter: rates are seldom different.
    faster().count() >= ENOUGH_FASTER && {
        let keeps = spread.keepers();
        faster().filter(|(key, _)| !keeps(**key)).count() >= ENOUGH_FASTER
    }
}

impl Swarm {
    /// What this node can send and take, by its limits; may change at any time.
    pub fn handle_host_rate(&mut self, now: Timestamp, rate: HostRate) {
        if rate == self.rates.own {
            return;
        }
        self.rates.own = rate;
        let greeted: Vec<(PeerKey, Option<FarGroup>)> =
            self.peers.iter().map(|(key, state)| (*key, state.group)).collect();
        for (peer, group) in greeted {
            self.send_handshake(peer, group);
        }
        self.rates_changed(now);
    }

    /// A peer's rate over ours; 1 when either is unknown.
    fn relative(&self, rate: HostRate) -> f64 {
        rate.over(self.rates.own).unwrap_or(1.0)
    }

    /// A peer was named to us: it is greeted, now or when those greeted turn out to be slow or gone.
    pub(super) fn note_named(&mut self, peer: PeerKey, group: Option<FarGroup>) {
        let known = self.peers.contains_key(&peer) || self.rates.named.iter().any(|(named, _)| *named == peer);
        if !known {
            // The latest count: they are the most likely to be there.
            if self.rates.named.len() >= MOST_NAMED {
                self.rates.named.remove(0);
            }
            self.rates.named.push((peer, group));
        }
        self.greet_named();
    }

    fn greet_named(&mut self) {
        let mut place = 0;
        while let Some(&(peer, group)) = self.rates.named.get(place) {
            let wanted = match self.effective(group) {
                Some(group) => self.lacks_peers_of(group),
                None => self.wants_more_peers(),
            };
            if wanted && self.has_room_for(group) {
                self.rates.named.remove(place);
                self.greet(peer, group);
            } else {
                place += 1;
            }
        }
    }

    /// Whether the near neighbours do not add up to [`super::SwarmConfig::greeted_peers`] as fast as we are. One
    /// that is faster counts once: we take no more than our own rate.
    fn wants_more_peers(&self) -> bool {
        let near = self.peers.values().filter(|state| state.group.is_none());
        let sum: f64 = near.map(|state| self.relative(state.rate).min(1.0)).sum();
        sum < self.config.greeted_peers as f64
    }

    /// Rates are known that were not, or neighbours came or went.
    pub(super) fn rates_changed(&mut self, now: Timestamp) {
        self.greet_named();
        let (mut sum, mut count) = (0.0, 0.0);
        for state in self.peers.values().filter(|state| !state.load.spreading) {
            sum += self.relative(state.rate).min(MOST_COUNTED);
            count += 1.0;
        }
        let usual = self.config.requests_in_flight;
        let times = if sum > 0.0 { (count / sum).powf(POWER) } else { 1.0 };
        // A small number in any case, and bounded at once.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let wanted = (usual as f64 * times).round() as usize;
        let most = wanted.clamp(LEAST_REQUESTS.min(usual), MOST_REQUESTS.max(usual));
        if most != self.rates.most_requests {
            self.rates.most_requests = most;
            self.share_budget(now);
        }
    }

    pub(super) fn send_handshake(&mut self, peer: PeerKey, group: Option<FarGroup>) {
        let message = self.handshake(self.shown_to(group).to_bytes());
        self.actions.push_back(super::Action::Send { peer, message });
    }

    /// What peers are greeted with, or told anew.
    pub(super) fn handshake(&self, bitfield: Vec<u8>) -> BlobMessage {
        BlobMessage::Handshake { geometry: self.geometry, bitfield, load: self.load(), rate: self.rates.own }
    }
}
