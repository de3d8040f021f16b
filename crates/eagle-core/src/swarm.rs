//! One blob's swarm from the point of view of one node: who is asked for which piece, and who is
//! given what.
//!
//! [`Swarm`] is a state machine without I/O. A driver (the peer network or the simulator)
//! - tells it what happened with the `handle_*` methods, each with the present time,
//! - then takes [`Action`]s from [`Swarm::poll_action`] until there are none and carries them out,
//! - and calls [`Swarm::handle_timeout`] at [`Swarm::next_timeout`].
//!
//! The same events at the same times with the same seed give the same actions.
//!
//! # States of a piece
//! A piece is *owned*, or *busy* (requested from peers, being verified, or claimed by the driver's
//! own origin fetch), or *needed*. Only needed pieces whose hash is known are requested. Ownership
//! is never taken back: what was verified stays verified.

mod action;
mod boundaries;
mod choker;
mod config;
mod download;
mod exchange;
mod hedge;
mod kept;
mod messages;
mod peers;
mod picker;
mod placement;
mod rates;
mod reach;
mod requests;
mod reroute;
mod service;
mod spread;
mod upload;
mod waiting;

use std::{cell::Cell, collections::VecDeque};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

pub use self::{
    action::{Action, BanReason, PeerKey, RequestId, SwarmTotals, Verdict},
    config::SwarmConfig,
    picker::{PieceChoice, PiecePicker, RarestFirst},
    waiting::WaitingUploads,
};
use self::{
    boundaries::Boundaries,
    choker::Choker,
    exchange::Exchange,
    peers::{PeerState, Peers},
    rates::Rates,
    requests::Requests,
    spread::Spread,
};
use crate::{
    FarGroup,
    bitfield::Bitfield,
    geometry::{Geometry, PieceIndex},
    time::Timestamp,
    wire::control::{BlobMessage, Load, MAX_HAVE},
};

/// Requests in flight that a swarm may have whatever the others do. With 3 instead of 1 of 12, the first
/// of four layers took 13 s instead of 11, and the last as long as before (simulated).
const LEAST_BUDGET: usize = 1;
/// Seeders that are greeted whatever the limits for peers: the one that fetches the blob, and those that a tracker knows
/// to have it; more are peers like others.
const MOST_SEEDERS: usize = 4;

/// One blob's swarm; see the module's documentation for the calling contract.
#[derive(Debug)]
pub struct Swarm {
    config: SwarmConfig,
    geometry: Geometry,
    download: bool,
    have: Bitfield,
    /// Requested, being verified, or claimed by the driver.
    busy: Bitfield,
    /// Of these, those whose bytes are here: being verified or stored, by us or by the driver. A
    /// second copy is not taken meanwhile, so that no piece is ever written twice at once.
    settling: Bitfield,
    /// Pieces whose hash is not known yet.
    unknown: Bitfield,
    /// How many neighbours own each piece.
    availability: Vec<u16>,
    peers: Peers,
    /// Seeders greeted beyond the limits for peers.
    seeders: Vec<PeerKey>,
    requests: Requests,
    spread: Spread,
    boundaries: Boundaries,
    rates: Rates,
    choker: Choker,
    exchange: Exchange,
    picker: Box<dyn PiecePicker>,
    position: PieceIndex,
    /// Requests that may be in flight now.
    budget: usize,
    /// Requests that this node serves or holds, over all of its swarms.
    node_load: u16,
    advertised: Load,
    advertised_at: Timestamp,
    pending_haves: Vec<PieceIndex>,
    haves_sent_at: Timestamp,
    totals: SwarmTotals,
    /// No peer that may be asked owns anything needed, when that was last looked at.
    dry: bool,
    /// When requests, peers and places are to be looked at again, once that is known; most events
    /// change nothing of it.
    wake: Cell<Option<Option<Timestamp>>>,
    actions: VecDeque<Action>,
    rng: ChaCha8Rng,
}

/// How a [`Swarm`] begins.
#[derive(Debug, Clone)]
pub struct SwarmStart {
    /// Size and piece length of the blob.
    pub geometry: Geometry,
    /// Pieces owned already.
    pub have: Bitfield,
    /// How many hashes, from the first piece on, are known.
    pub hashes_known: u32,
    /// Whether to fetch what is missing.
    pub download: bool,
    /// Whether this node is the first source and spreads each piece once before repeating any.
    pub spread: bool,
    /// Seed of all random choices.
    pub seed: u64,
}

impl Swarm {
    /// A swarm without peers.
    pub fn new(config: SwarmConfig, start: SwarmStart) -> Self {
        let pieces = start.geometry.pieces();
        let mut unknown = Bitfield::full(pieces);
        for piece in (0..start.hashes_known.min(pieces)).map(PieceIndex) {
            unknown.remove(piece);
        }
        Self {
            choker: Choker::new(config.unchoked_peers),
            exchange: Exchange::default(),
            spread: Spread::new(start.spread, pieces),
            picker: Box::new(RarestFirst),
            boundaries: Boundaries::new(&start.have),
            rates: Rates::new(config.requests_in_flight),
            geometry: start.geometry,
            download: start.download,
            have: start.have,
            busy: Bitfield::new(pieces),
            settling: Bitfield::new(pieces),
            unknown,
            availability: vec![0; pieces as usize],
            peers: Peers::default(),
            seeders: Vec::new(),
            requests: Requests::new(config.initial_service_time),
            position: PieceIndex(0),
            budget: config.requests_in_flight,
            node_load: 0,
            advertised: Load::default(),
            advertised_at: Timestamp(0),
            pending_haves: Vec::new(),
            haves_sent_at: Timestamp(0),
            totals: SwarmTotals::default(),
            dry: false,
            wake: Cell::new(None),
            actions: VecDeque::new(),
            rng: ChaCha8Rng::seed_from_u64(start.seed),
            config,
        }
    }

    /// Pieces owned and verified.
    pub fn have(&self) -> &Bitfield {
        &self.have
    }

    /// Whether every piece is owned.
    pub fn is_complete(&self) -> bool {
        self.have.is_full()
    }

    /// Size and piece length.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Totals so far.
    pub fn totals(&self) -> SwarmTotals {
        self.totals
    }

    /// Number of peers that take part.
    pub fn peer_count(&self) -> usize {
        self.peers.len()
    }

    /// Whether this peer takes part.
    pub fn has_peer(&self, peer: PeerKey) -> bool {
        self.peers.contains_key(&peer)
    }

    /// How busy this node is, as it tells its peers.
    pub fn load(&self) -> Load {
        Load { requests: self.node_load, spreading: self.spread.wants_to_spread() }
    }

    /// A peer that was named to us is connected: it is greeted, as long as those we know do not add up
    /// to [`SwarmConfig::greeted_peers`] as fast as we are. A peer without a `group` is near, in our own.
    pub fn handle_peer(&mut self, peer: PeerKey, group: Option<FarGroup>) {
        self.note_named(peer, group);
    }

    /// A seeder that was named to us is connected: it is greeted however many peers we know. Where all nodes
    /// came to know enough of each other before they reached the seeder, nobody had anything.
    pub fn handle_seeder(&mut self, peer: PeerKey, group: Option<FarGroup>) {
        if self.seeders.contains(&peer) {
            return;
        }
        if self.seeders.len() < MOST_SEEDERS {
            self.seeders.push(peer);
            self.greet(peer, group);
        } else {
            self.handle_peer(peer, group);
        }
    }

    /// A peer greets us: it is greeted in turn, as long as we know fewer near or far peers than
    /// [`SwarmConfig::max_peers`]. Its message is still to be handled. Without a `group` it is near.
    pub fn handle_greeting(&mut self, peer: PeerKey, group: Option<FarGroup>) {
        if self.has_room_for(group) {
            self.greet(peer, group);
        }
    }

    fn greet(&mut self, peer: PeerKey, group: Option<FarGroup>) {
        if self.peers.contains_key(&peer) {
            return;
        }
        self.peers.insert(peer, PeerState::new(self.geometry.pieces(), group, self.effective(group)));
        self.send_handshake(peer, group);
        self.review_boundaries();
    }

    /// A peer is gone.
    pub fn handle_peer_left(&mut self, now: Timestamp, peer: PeerKey) {
        self.rates.named.retain(|(named, _)| *named != peer);
        self.exchange.forget(peer);
        self.seeders.retain(|seeder| *seeder != peer);
        if let Some(state) = self.peers.remove(&peer) {
            for piece in state.have.iter() {
                let count = &mut self.availability[piece.0 as usize];
                *count = count.saturating_sub(1);
            }
            for piece in self.requests.drop_peer(peer) {
                self.free(Some(piece));
            }
            self.spread.forget(peer);
            self.choker.forget(peer);
            self.take_offers_back(peer, &state);
            self.review_boundaries();
            self.rates_changed(now);
            self.rechoke(now);
            self.fill(now);
        }
    }

    /// Hashes are now known for the first `known` pieces.
    pub fn handle_hashes(&mut self, now: Timestamp, known: u32) {
        let from = self.unknown.first_present(0).map_or(known, |piece| piece.0);
        for piece in (from..known.min(self.geometry.pieces())).map(PieceIndex) {
            self.unknown.remove(piece);
        }
        self.fill(now);
    }

    /// The driver stored and verified a piece by its own means.
    pub fn handle_owned(&mut self, now: Timestamp, piece: PieceIndex) {
        self.own(now, piece);
        self.fill(now);
    }

    /// The driver wants to fetch a piece itself; false when it is owned or on its way.
    pub fn claim(&mut self, piece: PieceIndex) -> bool {
        let claimed = !self.have.contains(piece) && self.busy.insert(piece);
        if claimed {
            self.settling.insert(piece);
        }
        claimed
    }

    /// The driver gives up a piece that it claimed.
    pub fn release(&mut self, now: Timestamp, piece: PieceIndex) {
        self.unsettle(piece);
        self.fill(now);
    }

    /// First piece that a reader waits for.
    pub fn handle_position(&mut self, piece: PieceIndex) {
        self.position = piece;
    }

    /// Requests in flight that this swarm chose, those for any piece left out.
    pub fn requested(&self) -> usize {
        self.requests.chosen()
    }

    /// How many requests this node's earlier swarms have in flight. They come first, so that the
    /// layers of an image are complete one after another and not all at its end; but no swarm stops.
    pub fn handle_requested_before(&mut self, now: Timestamp, requests: usize) {
        self.rates.requested_before = requests;
        self.share_budget(now);
    }

    /// What the node's earlier swarms leave of its requests.
    fn share_budget(&mut self, now: Timestamp) {
        let before = self.budget;
        self.budget = self.rates.most_requests.saturating_sub(self.rates.requested_before).max(LEAST_BUDGET);
        if self.budget > before {
            self.fill(now);
        }
    }

    /// Number of requests that this node serves or holds, over all of its swarms.
    pub fn handle_node_load(&mut self, requests: u16) {
        self.node_load = requests;
    }

    /// The next thing to do; `None` when all is done for now.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Swarm::handle_timeout`] wants to be called; `None` when there is nothing to wait for.
    pub fn next_timeout(&self) -> Option<Timestamp> {
        let haves = (!self.pending_haves.is_empty()).then(|| self.haves_sent_at + self.config.have_interval);
        let load = (self.load() != self.advertised && !self.peers.is_empty())
            .then(|| self.advertised_at + self.config.load_interval);
        let wake = self.wake.get().unwrap_or_else(|| {
            let wake = self.next_wake();
            self.wake.set(Some(wake));
            wake
        });
        [haves, load, wake, self.next_exchange()].into_iter().flatten().min()
    }

    fn next_wake(&self) -> Option<Timestamp> {
        let stalls = self.next_stall();
        let hedge = self.next_hedge();
        let choker = self.choker.next_round(self.config.choke_interval);
        let snubs = (self.download && !self.is_complete())
            .then(|| {
                self.peers
                    .values()
                    .flat_map(|peer| [peer.service.shunned_until(), peer.blocked_until, peer.nothing_until])
                    .flatten()
                    .min()
            })
            .flatten();
        [stalls, hedge, choker, snubs, self.next_far()].into_iter().flatten().min()
    }

    /// The time of [`Swarm::next_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        self.flush_haves(now);
        self.tell_far_peers(now);
        if self.load() != self.advertised && now >= self.advertised_at + self.config.load_interval {
            self.advertise_load(now);
        }
        for peer in self.peers.values_mut() {
            peer.service.forgive(now);
            for waiting in [&mut peer.blocked_until, &mut peer.nothing_until] {
                waiting.take_if(|until| now >= *until);
            }
        }
        self.drop_stalled(now);
        self.ask_for_peers(now);
        if self.choker.round_due(now, self.config.choke_interval) {
            self.rechoke(now);
        }
        self.fill(now);
    }

    /// Notes a newly owned piece and tells the neighbours, in batches.
    fn own(&mut self, now: Timestamp, piece: PieceIndex) {
        self.settling.remove(piece);
        self.busy.remove(piece);
        if piece.0 >= self.geometry.pieces() || !self.have.insert(piece) {
            return;
        }
        self.pending_haves.push(piece);
        self.offer(now, piece);
        self.wake.set(None);
        self.cancel_all(piece);
        if now >= self.haves_sent_at + self.config.have_interval || self.is_complete() {
            self.flush_haves(now);
        }
        // Only who owns this piece may have become of no interest by it.
        for (&peer, state) in self.peers.iter_mut() {
            if state.we_are_interested && state.have.contains(piece) && !state.have.any_without(&[&self.have]) {
                state.we_are_interested = false;
                self.actions.push_back(Action::Send { peer, message: BlobMessage::NotInterested });
            }
        }
    }

    fn flush_haves(&mut self, now: Timestamp) {
        let due = now >= self.haves_sent_at + self.config.have_interval || self.is_complete();
        if self.pending_haves.is_empty() || !due {
            return;
        }
        self.haves_sent_at = now;
        self.advertised_at = now;
        self.advertised = self.load();
        let pieces = std::mem::take(&mut self.pending_haves);
        // Who has got least hears of it first, so that no peer becomes the source of everything new.
        let mut order: Vec<(u32, PeerKey)> = self.peers.iter().map(|(key, state)| (state.given, *key)).collect();
        order.sort_unstable();
        for (_, peer) in order {
            let Some(state) = self.peers.get(&peer) else { continue };
            // A neighbour that owns everything has no use for this, unless it must know what to
            // spread or when we are done with it.
            if state.have.is_full() && !state.load.spreading {
                continue;
            }
            // Peers beyond a boundary hear of it in their own way.
            if self.download && state.group.is_some() && !state.load.spreading {
                continue;
            }
            // Nor for pieces that it owns itself; who spreads wants to know how far they have come.
            let news = pieces.iter().filter(|piece| state.load.spreading || !state.have.contains(**piece));
            let news: Vec<u32> = news.map(|piece| piece.0).collect();
            for batch in news.chunks(MAX_HAVE) {
                let message = BlobMessage::Have { pieces: batch.to_vec(), load: self.advertised };
                self.actions.push_back(Action::Send { peer, message });
            }
        }
    }

    fn advertise_load(&mut self, now: Timestamp) {
        self.advertised_at = now;
        self.advertised = self.load();
        for (&peer, state) in self.peers.iter() {
            if state.interested {
                self.actions.push_back(Action::Send { peer, message: BlobMessage::Load(self.advertised) });
            }
        }
    }

    fn rechoke(&mut self, now: Timestamp) {
        self.wake.set(None);
        for (peer, unchoke) in self.choker.rechoke(now, self.config.choke_interval, &self.peers) {
            if let Some(state) = self.peers.get_mut(&peer) {
                state.unchoked = unchoke;
                let message = if unchoke { BlobMessage::Unchoke } else { BlobMessage::Choke };
                self.actions.push_back(Action::Send { peer, message });
            }
        }
    }

    fn ban(&mut self, peer: PeerKey, reason: BanReason) {
        self.actions.push_back(Action::Ban { peer, reason });
    }
}

#[cfg(test)]
mod boundaries_tests;
#[cfg(test)]
mod exchange_tests;
#[cfg(test)]
mod rates_tests;
#[cfg(test)]
mod reroute_tests;
#[cfg(test)]
mod tests;
